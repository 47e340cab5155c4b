"""The measured part of docs/scaling.md:  python benchmarks/scaling.py [--device cpu|cuda]

Measures the exchange of gradients and adds it to benchmarks/results/<device>.json, then rewrites the table of
docs/scaling.md from it and from what benchmarks/run.py measured there of the step and the data.
"""
import datetime
import json
import os
import socket
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed as dist


ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[0] = ROOT
from benchmarks import run, table  # noqa: E402
from engine.runtime import Parser, run_program  # noqa: E402
from utils import UserError, atomic_write, replace_between  # noqa: E402


PARAMETERS = 1_567_299  # of EDSR-baseline-LIIF that are trained: all but the 24 of the fixed mean shifts
MARKERS = '<!-- scaling:start -->', '<!-- scaling:end -->'


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args(argv)
    info = run.machine(torch.device(args.device))
    path = os.path.join(table.RESULTS, run.file_name(info))
    if not os.path.exists(path):
        raise UserError(f'{os.path.relpath(path)} does not exist: measure the step and the data first, by '
                        f'python benchmarks/run.py --only train,data')
    with open(path) as f:
        results = json.load(f)
    results['exchange'] = {'date': datetime.date.today().isoformat(), 'result': table.rounded(measure(args.device))}
    with atomic_write(path, 'w') as f:
        f.write(json.dumps(results, indent=1) + '\n')
    print(report(results))
    replace_between(os.path.join(ROOT, 'docs', 'scaling.md'), report(results), MARKERS)


def measure(kind, rounds=100):
    """Median seconds of averaging the gradients over two gloo processes of this machine on a CPU, or over one NCCL
    process a GPU where there are several; 'seconds': None, for not measured, on a single GPU."""
    world = torch.cuda.device_count() if kind == 'cuda' else 2
    if world < 2:
        return {'processes': world, 'seconds': None}
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    processes = [subprocess.Popen(
        [sys.executable, os.path.abspath(__file__)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'RANK': str(i), 'ROUNDS': str(rounds),
             'DEVICE': kind, 'WORLD_SIZE': str(world), 'OMP_NUM_THREADS': '1'}) for i in range(world)]
    seconds = [float(process.communicate()[0]) for process in processes]
    return {'processes': world, 'backend': backend(kind), 'bytes': 4 * PARAMETERS, 'seconds': max(seconds)}


def backend(kind):
    return 'nccl' if kind == 'cuda' else 'gloo'


def one_process(kind, rounds):
    """One of the processes that `measure` starts."""
    dist.init_process_group(backend(kind))
    device = torch.device(kind, dist.get_rank()) if kind == 'cuda' else torch.device(kind)
    gradients = torch.zeros(PARAMETERS, device=device)
    times = []
    for _ in range(rounds + 3):  # the first ones warm up
        start = time.perf_counter()
        dist.all_reduce(gradients)
        if kind == 'cuda':
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    print(statistics.median(times[3:]), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # an orderly end sometimes aborts while communication threads are around


def report(results):
    """The measured costs of one device, in markdown; 'not measured' where a section is missing."""
    info = results['machine']
    step, data, exchange = (results.get(name, {}).get('result') for name in ('train', 'data', 'exchange'))
    rows = [[f'step, {name}, {info["name"]}' + (f', {info["threads"]} threads' if info['device'] == 'cpu' else ''),
             table.seconds(step[name]['fast']['seconds']) if step else 'not measured'] for name in ('float32', 'bf16')]
    measured = exchange and exchange['seconds']
    rows.append(['averaging 6.3 MB of gradients' + (f', {exchange["processes"]} {exchange["backend"]} processes of one '
                 f'machine' if measured else ''), table.seconds(exchange['seconds']) if measured else 'not measured'])
    rows.append(['samples made by one core, from 2040x1356 images (`cache: bin`)',
                 f'{data["bin"]["samples_per_second"]:.0f} a second' if data else 'not measured'])
    text = table.markdown(['cost', 'measured'], rows)
    if info['device'] == 'cpu':
        text += '\n\nOn CUDA GPUs, with NCCL: not measured.'
    return text + '\n'


if __name__ == '__main__':
    if 'ROUNDS' in os.environ and 'RANK' in os.environ:
        one_process(os.environ['DEVICE'], int(os.environ['ROUNDS']))
    run_program(main)
