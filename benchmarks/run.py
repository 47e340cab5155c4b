"""Measure the fast path against the textbook formula, and record the numbers.

    python benchmarks/run.py                                 # everything, on a GPU if there is one
    python benchmarks/run.py --device cpu --only decode,train
    python benchmarks/run.py --quick                         # tiny sizes, to see whether it runs; writes nothing
    python benchmarks/table.py                               # only the tables, from the results

What is compared is measured by turns; numbers are medians, ratios are medians of the rounds' ratios. Results go to
benchmarks/results/<device>.json, and from there to the tables of README.md and docs/speed.md.
"""
import datetime
import os
import re
import sys

import _path

import torch

from benchmarks import data, speed, table
from benchmarks.common import machine, read, result_path, rounded, write
from engine.runtime import Parser, run_program
from utils import UserError

SECTIONS = {'decode': speed.measure_decode, 'train': speed.measure_train, 'data': data.measure_data,
            'memory': speed.measure_memory, 'lattice': speed.measure_lattice}


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('--device', choices=['cpu', 'cuda'], help='default: cuda if there is a GPU')
    parser.add_argument('--only', default=','.join(SECTIONS), help=f'sections, of {",".join(SECTIONS)}')
    parser.add_argument('--output', help='the JSON file; default: benchmarks/results/<device>.json')
    parser.add_argument('--quick', action='store_true', help='tiny sizes; written only to --output')
    args = parser.parse_args(argv)

    device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise UserError('--device: found cuda, expected cpu, since torch sees no GPU: give cpu, or install a torch for '
                        'this GPU')
    names = args.only.split(',')
    if not set(names) <= set(SECTIONS):
        raise UserError(f'--only: found {args.only!r}, expected some of {",".join(SECTIONS)}')
    info = machine(device)
    path = args.output or result_path(file_name(info))
    results = {'machine': info, **read(path)}  # sections not measured now stay
    for name in names:
        print(f'measuring {name} ...', file=sys.stderr, flush=True)
        load = round(os.getloadavg()[0], 2)
        results[name] = {'date': datetime.date.today().isoformat(), 'quick': args.quick, 'machine': info,
                         'load_before': load, 'result': rounded(SECTIONS[name](device, args.quick))}
        if args.output or not args.quick:
            write(path, results)
    print(table.report(results))
    if not args.output and not args.quick:
        table.write()


def file_name(info):
    """'Intel(R) Xeon(R) Processor (AVX512)' on a CPU -> cpu-intel-xeon-avx512."""
    words = re.sub(r'\((r|tm)\)|@.*|\b(processor|cpu|nvidia|geforce|[0-9]+-core)\b', ' ', info['name'].lower())
    return '-'.join([info['device'], *re.findall(r'[a-z0-9]+', words)])


if __name__ == '__main__':
    run_program(main)
