"""The paper's tables, from training to the table, on tiny data; and what happens in between."""
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from engine.evaluation.tables import paper
from scripts import reproduce
from tests.common import ROOT
from tests.evaluation.common import cells_of, made_up
from tests.programs import program
from utils import UserError


# Cells of the tables that networks for x2, x3 and x4 fill.
FIXED = {'EDSR-baseline': 3, 'RDN': 3}


def tables_in(text):
    """{table: {(data, row): cells}} that the program printed; published rows have ' (published)' in their names."""
    tables = {}
    for number, part in re.findall(r'^Table (\d): (.*?)(?=^==|\Z)', text, re.MULTILINE | re.DOTALL):
        rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in part.splitlines()
                if line.startswith('| ') and not line.startswith('| data')]
        tables[number] = {(re.sub(r' \(.*', '', row[0]), row[1]): row[2:] for row in rows}
    return tables


def test_smoke_walks_all_four_tables(tmp_path):
    out = program('scripts/reproduce.py', '--smoke', '--gpu', 'cpu', cwd=tmp_path)
    assert out.returncode == 0, out.stderr[-2000:]
    assert os.listdir(tmp_path) == []  # it works in a separate folder
    assert out.stdout.splitlines()[-1].startswith('smoke: every cell')
    tables = tables_in(out.stdout)
    assert set(tables) == set(reproduce.TABLES)
    for number, (_, rows) in reproduce.TABLES.items():
        published = paper()['tables'][number]
        assert {key for key in tables[number] if key[1] in rows} == set(itertools.product(published['data'], rows))
        for data, row in itertools.product(published['data'], rows):
            cells = tables[number][data, row]
            measured = [cell for cell in cells if re.match(r'\d+\.\d\d', cell)]
            assert len(measured) == FIXED.get(row, len(published['scales'])) <= len(cells), (data, row, cells)
            numbers = published['data'][data].get(row)
            if numbers:  # below, not compared with: they are of whole sets
                below = tables[number][data, f'{row} (published)']
                assert below[:len(numbers)] == ['' if n is None else f'{n:.2f}' for n in numbers]
    # Networks that several tables share are trained once.
    assert len(re.findall(r'^== train-', out.stdout, re.MULTILINE)) == 21


def test_plan_says_what_is_missing_and_what_it_costs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    reproduce.main(['1', '3', '--plan'])
    text = capsys.readouterr().out
    assert text.count('train-div2k/train_edsr-baseline-liif:') == 1
    assert '0 of 1,000 epochs done; cost of all: 1000 epochs of 1000 steps' in text
    assert 'there is no ./load/div2k/DIV2K_train_HR' in text and 'table 3: 8 rows at DIV2K x2, ' in text
    assert os.listdir(tmp_path) == []


def test_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    reproduce.write_tiny_data('load')
    sets = reproduce.smoke_overrides(os.path.join(ROOT, 'configs', 'train-celebAHQ', 'train_celebAHQ-64-128_liif.yaml'))
    command = ['4', '--rows', 'LIIF', '--gpu', 'cpu', *(f'--set={value}' for value in sets)]
    ran = []

    def failing(argv):  # the second training finds no space on the disk, say
        ran.append(os.path.basename(argv[argv.index('--config') + 1]))
        return 2 if '32-256' in ran[-1] and len(ran) == 2 else reproduce.run_here(argv)

    monkeypatch.setattr(reproduce, 'run_apart', failing)
    with pytest.raises(UserError, match='32-256_liif: train_liif.py ended with 2'):
        reproduce.main(command)
    text = capsys.readouterr().out
    assert re.search(r'\| LIIF +\| \d+\.\d\d +\|$', text, re.MULTILINE)  # the other half is there
    reproduce.main(command)
    text = capsys.readouterr().out
    assert ran == [f'train_celebAHQ-{s}_liif.yaml' for s in ('64-128', '32-256', '32-256')]
    assert 'done (save/_train_celebAHQ-64-128_liif/epoch-last.pth)' in text and '64 -> 128: ' in text
    assert len(re.findall('measured before', text)) == 1 and len(tables_in(text)['4'][('CelebA-HQ', 'LIIF')]) == 2
    reproduce.main(command)
    assert len(ran) == 3 and len(re.findall('measured before', capsys.readouterr().out)) == 2


def test_missing_data_costs_its_rows_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    reproduce.write_tiny_data('load')
    os.rename('load/div2k/DIV2K_train_HR', 'load/away')
    with pytest.raises(UserError, match='train_edsr-baseline-liif: there is no ./load/div2k/DIV2K_train_HR'):
        reproduce.main(['1', '--rows', 'Bicubic', 'EDSR-baseline-LIIF', '--gpu', 'cpu'])
    rows = tables_in(capsys.readouterr().out)['1']
    assert [row for _, row in rows if '(published)' not in row] == ['Bicubic'] and len(rows['DIV2K', 'Bicubic']) == 8


@pytest.mark.parametrize('arguments, words', [([], '1 (DIV2K)'), (['5'], '5'), (['1', '--rows', 'SwinIR'], 'SwinIR')])
def test_wrong_arguments(arguments, words):
    with pytest.raises(UserError) as error:
        reproduce.main(arguments)
    assert words in str(error.value) and '\n' not in str(error.value)


def test_signals_reach_the_training_once_and_it_may_finish(tmp_path):
    child = tmp_path / 'child.py'
    child.write_text('import pathlib, signal, sys, time\n'
                     'count = []\n'
                     'signal.signal(signal.SIGTERM, lambda *_: count.append(1))\n'
                     f'pathlib.Path({str(tmp_path / "ready")!r}).touch()\n'
                     'while not count:\n    time.sleep(0.05)\n'
                     f'pathlib.Path({str(tmp_path / "stopping")!r}).touch()\n'
                     f'while not pathlib.Path({str(tmp_path / "may_end")!r}).exists():\n    time.sleep(0.01)\n'
                     f'pathlib.Path({str(tmp_path / "saved")!r}).write_text(str(len(count)))\n'
                     'sys.exit(143)\n')
    parent = subprocess.Popen([sys.executable, '-c',
                               f'import sys; sys.path.insert(0, {os.path.join(ROOT, "scripts")!r})\n'
                               f'import reproduce\nsys.exit(reproduce.run_apart([{str(child)!r}]))'])
    while not (tmp_path / 'ready').exists():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    while not (tmp_path / 'stopping').exists():
        assert parent.poll() is None
        time.sleep(0.05)
    assert parent.poll() is None  # it waits for the training
    (tmp_path / 'may_end').touch()
    assert parent.wait(timeout=60) == 143 and (tmp_path / 'saved').read_text() == '1'


def page_with_markers(root, name):
    """The page of `name` between whose markers there is nothing, in a new folder."""
    page = root / reproduce.PAGES[name][0]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f'before\n<!-- {name}:start -->\n<!-- {name}:end -->\nafter\n')
    return page


def write_results(path, runs):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'format': 'liif-results-1', 'suite': 's', 'runs': runs}))


def test_results_of_degraded_photographs_stand_side_by_side(tmp_path):
    page = page_with_markers(tmp_path, 'real')
    assert reproduce.write_page('real', str(tmp_path)) == 'Not measured yet.'
    write_results(tmp_path / reproduce.REAL, [
        {**made_up(label, scale, psnr + int(scale), f'Kodak, {kind}', 24), 'ssim': 0.5}
        for kind in ('clean', 'JPEG 75') for scale in ('3', '2') for label, psnr in (('photo', 30), ('bicubic', 20))])
    text = reproduce.write_page('real', str(tmp_path))
    assert page.read_text() == f'before\n<!-- real:start -->\n{text}\n<!-- real:end -->\nafter\n'
    rows = cells_of(text)
    assert rows[0] == rows[3] == ['inputs', 'data', 'x2 bicubic', 'x2 photo', 'x3 bicubic', 'x3 photo']
    assert rows[2] == ['JPEG 75', 'Kodak', '22.00', '32.00', '23.00', '33.00']
    assert len(rows) == 6 and rows[4][2:] == ['0.5000'] * 4  # PSNR, SSIM


def test_results_page_takes_the_committed_results(tmp_path):
    page = page_with_markers(tmp_path, 'results')

    def write(psnr):
        write_results(tmp_path / 'weights' / 'small' / 'results.json', [made_up('small', '2', psnr)])
        reproduce.write_page('results', str(tmp_path))
        return page.read_text()

    first = write(31.234)
    assert first.startswith('before\n') and first.endswith('after\n') and '| 31.23 ' in first
    assert '| 32.00 ' in write(32.0) and write(31.234) == first
    page.write_text('# Title\n')
    with pytest.raises(UserError, match='results:start'):
        write(31.0)
    assert page.read_text() == '# Title\n'


def test_summary_of_the_readme(tmp_path):
    page_with_markers(tmp_path, 'summary')
    write_results(tmp_path / 'benchmarks' / 'results' / 'summary' / 'summary.json', [
        {**made_up(label, scale, psnr, data='Set5', images=5), 'seconds': 0.25} for label, scale, psnr in
        (('mine', '2', 37.5), ('mine', '3', 33.9), ('mine', '4', 31.7), ('half', '2', 36.0))])
    rows = cells_of(reproduce.write_page('summary', str(tmp_path)))[1:]
    assert [row[0] for row in rows] == ['mine', 'RDN-LIIF (published)']  # 'half' lacks two scales
    assert rows[0][1:4] == ['37.50', '33.90', '31.70'] and rows[0][4].startswith('0.8 ') and rows[1][3] == '32.50'
