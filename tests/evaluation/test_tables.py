"""Tables of results next to the published numbers."""
import json
import os

import pytest

from engine.config import load_config
from engine.evaluation import tables
from scripts.reproduce import TABLES
from tests.common import ROOT, small_spec
from tests.evaluation.common import cells_of, made_up
from utils import UserError


def test_published_numbers_are_plausible():
    for table in tables.paper()['tables'].values():
        assert table['source'] and len(table['scales']) == len(set(table['scales']))
        for rows in table['data'].values():
            for numbers in rows.values():
                there = [v for v in numbers if v is not None]
                assert len(numbers) == len(table['scales']) and all(19 < v < 39 for v in there)
                assert there == sorted(there, reverse=True)  # a larger scale is harder


@pytest.mark.parametrize('number', TABLES)
def test_models_of_the_paper_are_compared_with_their_rows(number):
    data = next(iter(tables.paper()['tables'][number]['data']))
    for row, networks in TABLES[number][1].items():
        assert row in tables.published_numbers(data) or (number, row) == ('2', 'Bicubic')
        for name in networks:
            spec, trained = {'name': 'bicubic', 'args': {}}, None
            if name != 'bicubic':
                config = load_config(os.path.join(ROOT, 'configs', f'{name}.yaml'), check_paths=False)
                spec, trained = config['model'], config['train_dataset']['wrapper']
            assert tables.published_row({'label': 'mine', 'spec': spec, 'trained_with': trained}, data) == row


def test_other_models_are_compared_with_a_row_only_when_labelled_so():
    about = {'label': 'mine', 'spec': small_spec(), 'trained_with': None}
    assert tables.published_row(about, 'DIV2K') is None
    assert tables.published_row({**about, 'label': 'EDSR-baseline-LIIF'}, 'DIV2K') == 'EDSR-baseline-LIIF'
    assert tables.published_row({**about, 'label': 'EDSR-baseline-LIIF'}, 'Set5') is None  # none published


def rows_of(runs):
    text = tables.make_tables(runs)
    assert len({len(line) for line in text.splitlines() if line.startswith('|')}) == 1  # columns line up
    return cells_of(text)


def test_cells():
    rows = rows_of([made_up('RDN-LIIF', '12', 23.99), made_up('RDN-LIIF', '2', 34.9), made_up('mine', '2', 30.0),
                    made_up('mine', '2.5', 29.0, self_ensemble=True, precision='bf16', cell_clip=4.0)])
    where = 'DIV2K (100 images)'
    assert rows == [['data', 'model', 'x2', 'x2.5', 'x12'],
                    [where, 'RDN-LIIF', '34.90 (34.99, -0.09)', '', '23.99 (23.89, +0.10)'],
                    [where, 'mine', '30.00', '', ''],
                    [where, 'mine, bf16, self-ensemble, cell clip 4', '', '29.00', ''],
                    [where, 'Bicubic (published)', '31.01', '', '22.27'],
                    [where, 'EDSR-baseline-LIIF (published)', '34.67', '', '23.71']]


def test_a_part_of_a_set_is_not_compared_with_the_whole():
    rows = rows_of([made_up('RDN-LIIF', '2', 35.5, images=12), made_up('RDN-LIIF', '2', 34.9, images=100)])
    assert rows[1:3] == [['DIV2K (12 images)', 'RDN-LIIF', '35.50'],
                         ['DIV2K (100 images)', 'Bicubic (published)', '31.01']]
    assert ['DIV2K (100 images)', 'RDN-LIIF', '34.90 (34.99, -0.09)'] in rows
    assert tables.summary(made_up('RDN-LIIF', '2', 35.5, images=12))['published'] is None
    assert tables.summary(made_up('RDN-LIIF', '2', 34.9))['published']['row'] == 'RDN-LIIF'


def test_trainings_by_others_stand_between_ours_and_the_papers():
    runs = [made_up('mine', '2', 37.9, data='Set5', images=5)]
    others = 'EDSR-baseline-LIIF (mean of 3 trainings)'
    assert [row[1:] for row in rows_of(runs)[1:]] == [
        ['mine', '37.90'], [others, '37.97'], ['RDN-LIIF (published)', '38.17'], ['Bicubic (published)', '33.66']]
    assert any(line.startswith(f'Set5, {others}: three seeds') for line in tables.notes(runs))
    assert not any(others in line for line in tables.notes([made_up('mine', '2', 30.0)]))


def test_the_newest_result_counts(tmp_path):
    for name, psnr, date in (('a', 1.0, '2024-01-02'), ('b', 2.0, '2024-03-01'), ('c', 3.0, '2024-02-01')):
        (tmp_path / f'{name}.json').write_text(json.dumps(made_up('m', '2', psnr, date=date)))
    (tmp_path / 'other.json').write_text('[1]')
    assert [run['psnr'] for run in tables.read_results([str(tmp_path)])] == [2.0]
    (tmp_path / 'empty').mkdir()
    for path in ('empty', 'nowhere'):
        with pytest.raises(UserError):
            tables.read_results([str(tmp_path / path)])
