"""The benchmark command runs, at tiny sizes; what it measures is another matter."""
import json
import math
import os
import subprocess
import sys

import pytest

from benchmarks import table
from tests.common import ROOT
from utils import UserError, replace_between


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [n for v in value for n in numbers(v)]
    return [value] if isinstance(value, (int, float)) else []


def assert_tables(text):
    blocks = [block for block in text.split('\n\n') if block.startswith('|')]
    for block in blocks:
        lines = block.strip().split('\n')
        assert len(lines) > 2 and len({line.count('|') for line in lines}) == 1, block
        assert 'nan' not in block
    return len(blocks)


def test_quick_run_writes_results_and_tables(tmp_path):
    path = tmp_path / 'results.json'
    done = subprocess.run([sys.executable, os.path.join(ROOT, 'benchmarks', 'run.py'), '--quick', '--device', 'cpu',
                           '--output', str(path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(path.read_text())
    for name in ('decode', 'train', 'data', 'memory', 'precision'):
        assert results[name]['quick'] and all(map(math.isfinite, numbers(results[name]))), name
    for case in results['decode']['result']['cases']:
        assert case['float32']['ratio'] > 0 and case['bf16']['share_of_product'] > 0
    assert len(results['train']['result']['profile']['float32']) == 10
    assert assert_tables(done.stdout) >= 7
    table.figure(results, str(tmp_path / 'memory.png'))
    assert (tmp_path / 'memory.png').stat().st_size > 1000

    page = tmp_path / 'page.md'
    page.write_text('before\n<!-- benchmarks:start -->\noutdated\n<!-- benchmarks:end -->\nafter\n')
    for _ in range(2):  # the second changes nothing
        replace_between(str(page), table.report(results), table.MARKERS)
        assert 'outdated' not in page.read_text() and page.read_text().count('before\n') == 1
        assert page.read_text().endswith('<!-- benchmarks:end -->\nafter\n')
    del results['memory']
    assert 'memory: not measured' in table.report(results)
    page.write_text('no markers')
    with pytest.raises(UserError, match='has no lines <!-- benchmarks:start'):
        replace_between(str(page), 'text', table.MARKERS)
    assert page.read_text() == 'no markers'


def test_an_unknown_section_is_told_in_a_line():
    done = subprocess.run([sys.executable, os.path.join(ROOT, 'benchmarks', 'run.py'), '--only', 'decoding'],
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith('error: --only') and done.stderr.count('\n') == 1
