"""Measure the fast path against the textbook formula, and record the numbers.

    python benchmarks/run.py                                 # everything, on a GPU if there is one
    python benchmarks/run.py --device cpu --only decode,train
    python benchmarks/run.py --quick                         # tiny sizes, to see whether it runs; writes nothing
    python benchmarks/table.py                               # only the tables, from the results

What is compared is measured by turns; numbers are medians, ratios are medians of the rounds' ratios. Results go to
benchmarks/results/<device>.json, and from there to the tables of README.md and docs/speed.md.
"""
import datetime
import json
import os
import platform
import re
import sys
import time

import _path

import engine  # before torch: how its threads wait
import torch

from benchmarks import data, speed, table
from engine.runtime import Parser, code_version, run_program
from utils import UserError, atomic_write

SECTIONS = {'decode': speed.measure_decode, 'train': speed.measure_train, 'data': data.measure_data,
            'memory': speed.measure_memory, 'precision': data.measure_precision}


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('--device', choices=['cpu', 'cuda'], help='default: cuda if there is a GPU')
    parser.add_argument('--only', default=','.join(SECTIONS), help=f'sections, of {",".join(SECTIONS)}')
    parser.add_argument('--model', help='a checkpoint for the precision section; default: random weights')
    parser.add_argument('--output', help='the JSON file; default: benchmarks/results/<device>.json')
    parser.add_argument('--quick', action='store_true', help='tiny sizes; written only to --output')
    args = parser.parse_args(argv)

    device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise UserError('--device: found cuda, but torch sees no GPU; give cpu, or install a torch for this GPU')
    names = args.only.split(',')
    if not set(names) <= set(SECTIONS):
        raise UserError(f'--only: found {args.only!r}, wanted some of {",".join(SECTIONS)}')
    info = machine(device)
    path, results = args.output or os.path.join(table.RESULTS, file_name(info)), {}
    if os.path.exists(path):  # sections not measured now stay
        with open(path) as f:
            results = json.load(f)
    results['machine'] = info
    for name in names:
        print(f'measuring {name} ...', file=sys.stderr, flush=True)
        start, load = time.monotonic(), os.getloadavg()[0]
        found = SECTIONS[name](device, args.quick, **({'path': args.model} if name == 'precision' else {}))
        results[name] = {'date': datetime.date.today().isoformat(), 'quick': args.quick, 'load_before': round(load, 2),
                         'took_seconds': round(time.monotonic() - start, 1), 'result': rounded(found)}
        if args.output or not args.quick:
            with atomic_write(path, 'w') as f:
                f.write(json.dumps(results, indent=1) + '\n')
    print(table.report(results))
    if not args.output and not args.quick:
        table.write()


def machine(device):
    """What the numbers depend on."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu_name()
    return {'device': device.type, 'name': name, 'cpus': os.cpu_count(), 'threads': torch.get_num_threads(),
            'versions': {'torch': torch.__version__, 'cuda': torch.version.cuda, 'python': platform.python_version(),
                         'code': code_version(), 'system': platform.system()}}


def cpu_name():
    try:
        with open('/proc/cpuinfo') as f:
            found = re.search(r'^model name\s*:\s*(.*)$', f.read(), re.M)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def file_name(info):
    """'Intel(R) Xeon(R) Processor' on a CPU -> cpu-intel-xeon."""
    words = re.sub(r'\((r|tm)\)|@.*|\b(processor|cpu|nvidia|geforce|[0-9]+-core)\b', ' ', info['name'].lower())
    return '-'.join([info['device'], *re.findall(r'[a-z0-9]+', words)]) + '.json'


def rounded(value, digits=4):
    """Numbers rounded to significant digits, throughout dicts and lists."""
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v, digits) for v in value]
    return float(f'{value:.{digits}g}') if isinstance(value, float) else value


if __name__ == '__main__':
    run_program(main)
