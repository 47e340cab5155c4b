"""The figures of scripts/plot.py."""
import json

import pytest
from PIL import Image

from scripts import plot
from tests.evaluation.common import made_up
from utils import UserError


def test_psnr_curves(tmp_path):
    runs = [made_up('RDN-LIIF', scale, psnr) for scale, psnr in
            (('30', 20.0), ('2', 34.0), ('2x3', 30.0), ('1', 'inf'))]
    (tmp_path / 'r.json').write_text(json.dumps({'format': 'liif-results-1', 'suite': 's', 'runs': runs}))
    curves = plot.psnr_curves([str(tmp_path / 'r.json')])
    with pytest.raises(UserError, match='DIV2K'):
        plot.psnr_curves([str(tmp_path / 'r.json')], 'Set5')
    with pytest.raises(UserError, match='nothing to draw'):
        plot.draw([('x', 'y', {}, {})])
    assert curves['RDN-LIIF'] == [(2.0, 34.0), (30.0, 20.0)]
    assert curves['RDN-LIIF (published)'][0] == (2.0, 34.99) and curves['Bicubic (published)'][0] == (2.0, 31.01)
    assert set(curves) == {'RDN-LIIF', *(f'{row} (published)' for row in ('RDN-LIIF', 'EDSR-baseline-LIIF', 'Bicubic'))}


def test_training_curves(tmp_path):
    (tmp_path / '_run').mkdir()
    (tmp_path / '_run' / 'log.txt').write_text(
        'model: liif\nepoch 1/3: rate 0.001, loss 0.250000, val psnr 24.5000 (best 24.5000), 1.0s of 3.0s\n'
        'epoch 2/3: rate 0.001, loss 0.200000, 2.0s of 3.0s\nbegun at x\n'
        'epoch 2/3: rate 0.001, loss 0.190000, 0.5s of 3.0s\n')
    losses, psnr = plot.training_curves([str(tmp_path / '_run')])
    assert losses == {'run': [(1, 0.25), (2, 0.19)]} and psnr == {'run': [(1, 24.5)]}
    losses, psnr = plot.training_curves([str(tmp_path / '_run')], minutes=True)
    assert losses == {'run': [(1 / 60, 0.25), (2.5 / 60, 0.19)]} and psnr == {'run': [(1 / 60, 24.5)]}
    with pytest.raises(UserError, match='log.txt'):
        plot.training_curves([str(tmp_path)])


def test_plot_writes_an_image(tmp_path):
    pytest.importorskip('matplotlib')
    case = {'input': [10, 20], 'scale': 2, **{name: {side: {'encode': 1.0, 'decode': 2.0} for side in
                                                     ('fast', 'textbook')} for name in ('float32', 'bf16')}}
    memory = {'input': [10, 20], 'scale': 2, 'fast': {'beyond_output_mb': 3.0}, 'textbook': {'beyond_output_mb': None}}
    (tmp_path / 'cpu.json').write_text(json.dumps({
        'machine': {'name': 'X'}, 'decode': {'result': {'cases': [case]}},
        'memory': {'result': {'cases': [memory]}}}))
    seconds, megabytes = plot.cost_curves([str(tmp_path)])
    assert seconds['here, bf16'] == [(0.0008, 3.0)] and megabytes == {'here': [(0.0002, 3.0)]}
    (tmp_path / 'gpu.json').write_text((tmp_path / 'cpu.json').read_text().replace('"X"', '"Y"'))
    assert set(plot.cost_curves([str(tmp_path)])[1]) == {'here, X', 'here, Y'}
    plot.main(['cost', str(tmp_path), '--output', str(tmp_path / 'figures' / 'cost.png')])
    assert Image.open(tmp_path / 'figures' / 'cost.png').size == (2100, 675)  # two panels
    with pytest.raises(UserError, match='.png'):
        plot.main(['cost', str(tmp_path), '--output', 'cost.doc'])
