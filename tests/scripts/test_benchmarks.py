"""The benchmark programs run, at tiny sizes, and the pages show the committed results."""
import json
import math
import os
import shutil
import subprocess
import sys

import pytest

from benchmarks import lr_kernels, table, worker
from tests.common import ROOT
from tests.image_files import folder


def run(*arguments, **options):
    return subprocess.run([sys.executable, os.path.join(ROOT, 'benchmarks', 'run.py'), *arguments], text=True,
                          capture_output=True, **options)


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [n for v in value for n in numbers(v)]
    return [value] if isinstance(value, (int, float)) else []


def read(*path):
    with open(os.path.join(ROOT, *path), encoding='utf-8') as f:
        return f.read()


@pytest.mark.skipif(shutil.which('bash') is None, reason='needs bash')
def test_everything_for_a_machine_with_a_gpu(tmp_path):
    """benchmarks/gpu.sh at tiny sizes on the CPU: tests, measurements, two ranks, a training; then nothing again."""
    for part, names in (('train', 'abcd'), ('valid', 'e')):
        folder(tmp_path / part, [f'{name}.png' for name in names], size=(60, 70))
    output = tmp_path / 'out'
    command = ['bash', os.path.join(ROOT, 'benchmarks', 'gpu.sh'), str(tmp_path), '--output', str(output), '--device',
               'cpu', '--quick']
    environment = {**os.environ, 'PYTHON': sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert 'loss of one process' in done.stdout and 'passed' in (output / 'tests.log').read_text()
    assert (output / 'save' / 'gpu-20min' / 'epoch-last.pth').exists()
    assert_quick_results(json.loads((output / 'speed.json').read_text()), done.stdout)
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert again.returncode == 0 and again.stdout.count('done before') == 4
    wrong = subprocess.run([*command[:2], str(output)], capture_output=True, text=True, env=environment)
    assert wrong.returncode == 2 and wrong.stderr.startswith('error: ') and wrong.stderr.count('\n') == 1


def assert_quick_results(results, printed):
    for name in table.TABLES:
        assert results[name]['quick'] and all(map(math.isfinite, numbers(results[name]))), name
    for case in results['decode']['result']['cases']:
        assert case['float32']['ratio'] > 0 and case['bf16']['share_of_product'] > 0
    assert len(results['train']['result']['profile']['float32']) == 10
    assert table.report(results) in printed and 'nan' not in table.report(results)
    blocks = [block.strip().split('\n') for block in table.report(results).split('\n\n') if block.startswith('|')]
    assert len(blocks) == sum(map(len, table.TABLES.values()))
    assert all(len(lines) > 2 and len({line.count('|') for line in lines}) == 1 for lines in blocks)
    del results['memory']
    assert 'memory: not measured' in table.report(results)


def test_a_measurement_in_its_own_process():
    found = worker.run('product', 'cpu', quick=True, keep=True, calls=2)
    assert len(found['seconds']) == 1 and found['seconds'][0] > 0 and found['flops'] > 1e6


def test_pages_show_the_committed_results():
    found = [json.loads(read('benchmarks', 'results', name)) for name in
             sorted(os.listdir(os.path.join(ROOT, 'benchmarks', 'results'))) if name.endswith('.json')]
    devices = [results for results in found if table.TABLES.keys() & results.keys()]
    assert devices
    for results in devices:
        assert table.report(results) in read('docs', 'speed.md')
    lattices = [results for results in found if 'truth' in results]
    assert lattices
    for results in lattices:
        assert table.lattice_tables(results) in read('docs', 'speed.md')
    assert lr_kernels.table(json.loads(read('benchmarks', 'results', 'lr_kernels.json'))['rows']) \
        in read('docs', 'lr-kernels.md')


def test_an_unknown_section_is_reported_in_one_line():
    done = run('--only', 'decoding')
    assert done.returncode == 2 and done.stderr.startswith('error: --only') and done.stderr.count('\n') == 1
