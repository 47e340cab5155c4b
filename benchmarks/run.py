"""Measure the fast path against the textbook formula, and write the figures down.

    python benchmarks/run.py                                 # everything, on a GPU where there is one
    python benchmarks/run.py --device cpu --only decode,train
    python benchmarks/run.py --quick                         # whether it runs: tiny sizes, nothing written

Everything compared is measured in turns within one run, after a warm-up; figures are medians, ratios are medians of
the rounds' ratios. Results go to benchmarks/results/<device>.json, from which benchmarks/table.py fills the tables of
README.md and docs/speed.md. See docs/speed.md for what the figures say.
"""
import datetime
import json
import os
import platform
import re
import sys
import time


sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
import numpy  # noqa: E402
import torch  # noqa: E402

import engine  # noqa: E402, F401 (before torch: how its threads wait)
from benchmarks import data, memory, precision, speed, table  # noqa: E402
from engine.runtime import Parser, run_program  # noqa: E402
from utils import UserError, atomic_write  # noqa: E402


def measure_data(device, quick):
    return data.measure(images=2, samples=5, rounds=1, size=(256, 320)) if quick else data.measure()


# Training comes last, since it changes how the process handles freed memory.
SECTIONS = {'decode': speed.measure_decode, 'data': measure_data, 'memory': memory.measure,
            'precision': precision.measure, 'train': speed.measure_train}


def machine(device):
    """What the figures depend on."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu_name()
    return {'device': device.type, 'name': name, 'cpus': os.cpu_count(), 'threads': torch.get_num_threads(),
            'versions': {'torch': torch.__version__, 'cuda': torch.version.cuda, 'numpy': numpy.__version__,
                         'python': platform.python_version(), 'system': platform.system()}}


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


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('--device', choices=['cpu', 'cuda'], help='a GPU where there is one when absent')
    parser.add_argument('--only', default=','.join(SECTIONS), help=f'sections to measure, of {",".join(SECTIONS)}')
    parser.add_argument('--model', help='a checkpoint for the precision section, instead of weights by rule')
    parser.add_argument('--output', help='the JSON file; benchmarks/results/<device>.json when absent')
    parser.add_argument('--quick', action='store_true', help='tiny sizes; written only where --output says')
    args = parser.parse_args(argv)

    device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise UserError('--device: found cuda, but torch sees no GPU; give cpu, or install a torch for this GPU')
    names = args.only.split(',')
    if not set(names) <= set(SECTIONS):
        raise UserError(f'--only: found {args.only!r}, wanted some of {",".join(SECTIONS)}')
    info = machine(device)
    path = args.output or os.path.join(table.RESULTS, file_name(info))
    results = {}
    if os.path.exists(path):  # sections not measured now stay as they are
        with open(path) as f:
            results = json.load(f)
    results['machine'] = info
    for name in (n for n in SECTIONS if n in names):
        print(f'measuring {name} ...', file=sys.stderr, flush=True)
        start, load = time.monotonic(), os.getloadavg()[0]
        options = {'path': args.model} if name == 'precision' else {}
        found = SECTIONS[name](device, args.quick, **options)
        results[name] = {'date': datetime.date.today().isoformat(), 'quick': args.quick, 'load_before': round(load, 2),
                         'took_seconds': round(time.monotonic() - start, 1), 'result': table.rounded(found)}
        if args.output or not args.quick:
            with atomic_write(path, 'w') as f:
                f.write(json.dumps(results, indent=1) + '\n')
    print(table.report(results))
    if not args.output and not args.quick:
        table.write()


if __name__ == '__main__':
    run_program(main)
