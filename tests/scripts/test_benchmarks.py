"""The benchmark programs run, at tiny sizes, and the pages show the committed results."""
import json
import math
import os
import subprocess
import sys

from benchmarks import lr_kernels, table, worker
from tests.common import ROOT


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


def test_quick_run_writes_results_and_tables(tmp_path):
    path = tmp_path / 'results.json'
    done = run('--quick', '--device', 'cpu', '--output', str(path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(path.read_text())
    for name in table.TABLES:
        assert results[name]['quick'] and all(map(math.isfinite, numbers(results[name]))), name
    for case in results['decode']['result']['cases']:
        assert case['float32']['ratio'] > 0 and case['bf16']['share_of_product'] > 0
    assert len(results['train']['result']['profile']['float32']) == 10
    blocks = [block.strip().split('\n') for block in done.stdout.split('\n\n') if block.startswith('|')]
    assert len(blocks) == sum(map(len, table.TABLES.values()))
    assert all(len(lines) > 2 and len({line.count('|') for line in lines}) == 1 for lines in blocks)
    assert 'nan' not in done.stdout
    del results['memory']
    assert 'memory: not measured' in table.report(results)


def test_a_measurement_in_its_own_process():
    found = worker.run('product', 'cpu', quick=True, keep=True, calls=2)
    assert len(found['seconds']) == 1 and found['seconds'][0] > 0 and found['flops'] > 1e6


def test_pages_show_the_committed_results():
    found = [json.loads(read('benchmarks', 'results', name)) for name in
             sorted(os.listdir(os.path.join(ROOT, 'benchmarks', 'results'))) if name.endswith('.json')]
    devices = [results for results in found if 'machine' in results]
    assert devices
    for results in devices:
        assert table.report(results) in read('docs', 'speed.md')
    assert lr_kernels.table(json.loads(read('benchmarks', 'results', 'lr_kernels.json'))['rows']) \
        in read('docs', 'lr-kernels.md')


def test_an_unknown_section_is_reported_in_one_line():
    done = run('--only', 'decoding')
    assert done.returncode == 2 and done.stderr.startswith('error: --only') and done.stderr.count('\n') == 1
