"""PSNR of suites: the same as of test.py --config and eval_psnr, at any scale, with every option."""
import json
import math
import os

import numpy as np
import pytest
import torch

import models
from datasets.loader import make_loader
from engine.checkpoint import PUBLISHED_NORM
from engine.config import load_config
from engine.evaluation import tables
from engine.evaluation.evaluate import eval_psnr
from engine.evaluation.metrics import calc_ssim
from engine.evaluation.runs import Options, open_model, run_suite
from engine.evaluation.suite import open_data, read_suite
from engine.rendering.renderer import Renderer
from tests.common import ROOT, small_spec
from tests.evaluation.common import CPU, one_case, run_case, save_model, set5, write_suite
from utils import UserError, calc_psnr


REAL = os.environ.get('LIIF_DATA', os.path.join(ROOT, 'load'))


@pytest.mark.parametrize('suite, scale, config', [('benchmark', '2', 'test-set5-2'), ('benchmark', '8', 'test-set5-8'),
                                                  ('div2k', '3', 'test-div2k-3'),
                                                  ('celebAHQ', '32-256', 'test-celebAHQ-32-256')])
def test_suite_config_and_eval_psnr_agree(suite, scale, config, model, load, tmp_path, capsys):
    import test
    test.main(['--config', f'configs/test/{config}.yaml', '--model', model, '--gpu', 'cpu', '--data', load])
    printed = capsys.readouterr().out.splitlines()[-1]
    run = run_suite(read_suite(suite, [scale], load), [model], CPU, str(tmp_path)).runs[0]
    assert printed == f'result: {run["psnr"]:.4f}'

    case = read_suite(suite, [scale], load)[0]
    candidate = open_model(model, CPU)
    loader = make_loader(open_data(case.config, case.dataset), 1, seed=0, train=False, num_workers=0)
    assert eval_psnr(loader, candidate.model, case.config['data_norm'], case.config['eval_type'], 30000) == run['psnr']
    assert run['psnr'] == pytest.approx(np.mean([row['psnr'] for row in run['per_image']]), abs=1e-12)


def test_real_scales_equal_the_integer_rule_at_integers(model, load, tmp_path):
    hr = os.path.join(load, 'benchmark', 'Set5', 'HR')
    suite = write_suite(tmp_path / 's.yaml', set5(['2', '3']),
                        {'data': 'from HR', 'hr': hr, 'metric': 'benchmark', 'scales': [2, 3]})
    runs = run_suite(read_suite(suite, None, load), [model], CPU, str(tmp_path)).runs
    assert [run['psnr'] for run in runs[:2]] == [run['psnr'] for run in runs[2:]]


def test_anisotropic_scale_shaves_the_larger(load, tmp_path):
    case = one_case(tmp_path / 's.yaml', set5([2]), ['1.5,3.5'], load)
    assert case.config['eval_type'] == 'benchmark-4' and case.factor == (1.5, 3.5)
    run = run_case(case, 'bicubic', tmp_path)
    item = open_data(case.config, case.dataset).sample(0, None)
    size = item['size'].tolist()
    pred = Renderer(models.make({'name': 'bicubic'})).open(item['inp'] / 255).render(size)
    gt = item['gt'].view(*size, 3).permute(2, 0, 1) / 255
    assert run['psnr'] == pytest.approx(calc_psnr(pred[None], gt[None], 'benchmark', 4).item(), abs=1e-4)


def test_inputs_from_hr_have_any_scale(load, tmp_path):
    scales = ['1.1', '1.5', '2.3', '2x3.5']
    for test in (set5([2]), {'data': 'HR', 'hr': os.path.join(load, 'benchmark', 'Set5', 'HR'), 'metric': 'div2k',
                             'scales': [2]}):
        suite = write_suite(tmp_path / 's.yaml', test)
        outcome = run_suite(read_suite(suite, scales, load), ['nearest'], CPU, str(tmp_path))
        assert not outcome.problems and [run['scale'] for run in outcome.runs] == scales


def test_images_of_another_scale_than_that_of_eval_type_are_refused(load):
    import test
    with pytest.raises(UserError, match='^0000.png: found a ground truth 2 times as large .*, expected 4 times'):
        test.main(['--config', 'configs/test/test-set5-2.yaml', '--set', 'eval_type=benchmark-4', '--model', 'nearest',
                   '--gpu', 'cpu', '--data', load])


def test_cell_clip_is_ltes(model, load, tmp_path):
    """Beyond the clip the decoder sees the cell of the clip: the cell times scale / clip, along each axis."""
    for scale, factor in (('8', 2.0), ('2', 1.0)):
        case, = (case for case in read_suite('benchmark', [scale], load) if case.data == 'Set14')
        data, candidate = open_data(case.config, case.dataset), open_model(model, CPU)
        loader = make_loader(data, 1, seed=0, train=False, num_workers=0)

        class Scaled(torch.nn.Module):
            gen_feat = staticmethod(candidate.model.gen_feat)

            def query_rgb(self, coord, cell):
                return candidate.model.query_rgb(coord, cell * factor)

        expected = eval_psnr(loader, Scaled(), PUBLISHED_NORM, case.config['eval_type'], 500)
        plain, clipped, tiled = (run_case(case, model, tmp_path, options)['psnr'] for options in
                                 (Options(), Options(cell_clip=4), Options(cell_clip=4, tile=16)))
        assert clipped == pytest.approx(expected, abs=1e-4) and tiled == pytest.approx(expected, abs=1e-4)
        assert (clipped == plain) == (scale == '2')


def test_options_change_the_psnr(model, load, tmp_path):
    cases = read_suite('div2k', ['4'], load)
    case, candidate = cases[0], open_model(model, CPU)
    item = open_data(case.config, case.dataset).sample(1, None)
    size = item['size'].tolist()
    gt = item['gt'].view(*size, 3).permute(2, 0, 1)[None] / 255

    def by_hand(**options):
        sr = Renderer(candidate.model, **options).open(item['inp'] / 255).render(size)[None]
        return calc_psnr(sr, gt, 'div2k', 4).item(), calc_ssim(sr, gt, 'div2k', 4).item()

    def run(**options):
        row = run_suite(cases, [model], CPU, str(tmp_path), Options(ssim=True, **options)).runs[0]['per_image'][1]
        return row['psnr'], row['ssim']

    assert run() == pytest.approx(by_hand(), abs=1e-4)
    assert run(self_ensemble=True) == pytest.approx(by_hand(self_ensemble=True), abs=1e-4)
    assert run(tile=7) == pytest.approx(by_hand(), abs=1e-4)
    assert run(precision='bf16') == pytest.approx(by_hand(precision='bf16'), abs=1e-3)
    assert len({by_hand(), by_hand(self_ensemble=True), by_hand(precision='bf16')}) == 3
    assert len(os.listdir(tmp_path / 'runs')) == 4


def test_pooled_psnr_is_named(model, load, tmp_path):
    config = load_config(os.path.join(ROOT, 'configs/test/test-div2k-2.yaml'), ['test_dataset.batch_size=2'], 'test',
                         check_paths=False)
    (tmp_path / 'pooled-2.yaml').write_text(json.dumps(config))
    case = one_case(tmp_path / 's.yaml', {
        'data': 'DIV2K', 'config': str(tmp_path / 'pooled-{scale}.yaml'), 'scales': [2]}, data=load)
    outcome = run_suite([case], [model], CPU, str(tmp_path))
    one, = run_suite(read_suite('div2k', ['2'], load), [model], CPU, str(tmp_path)).runs
    pooled = -10 * math.log10(np.mean([10 ** (-row['psnr'] / 10) for row in one['per_image']]))
    assert outcome.runs[0]['psnr'] == pytest.approx(pooled, abs=1e-4) and len(outcome.runs[0]['per_image']) == 1
    text = tables.write_results(str(tmp_path), 's', outcome)
    assert 'DIV2K: the squared error is pooled over batches of 2 images' in text


def test_a_network_of_one_scale_is_measured_there(load, tmp_path):
    spec = {'name': 'liif', 'args': {'encoder_spec': {'name': 'edsr-baseline', 'args': {
        'n_resblocks': 1, 'n_feats': 8, 'scale': 3}}}}
    cases, x3 = read_suite('benchmark', ['2', '3'], load), save_model(tmp_path / 'x3.pth', spec)
    outcome = run_suite(cases, [x3], CPU, str(tmp_path))
    assert {run['scale'] for run in outcome.runs} == {'3'} and len(outcome.runs) == 4
    assert 'x3 enlarges by 3 alone: not Set5 x2' in outcome.left_out[0] and not outcome.problems
    spec['args']['encoder_spec']['args']['scale'] = 2
    texts = [f'EDSR={path}' for path in (save_model(tmp_path / 'x2.pth', spec), x3)]  # a row of both
    assert [run['scale'] for run in run_suite(cases, texts, CPU, str(tmp_path)).runs] == ['2'] * 4 + ['3'] * 4
    with pytest.raises(UserError, match='two models are labelled EDSR: name them LABEL=MODEL'):
        run_suite(cases, [*texts, f'EDSR={x3}'], CPU, str(tmp_path))


def test_tile_says_why_a_model_takes_whole_images():
    class Own(type(models.make(small_spec()))):
        def gen_feat(self, inp):
            return super().gen_feat(inp)

    own = Own(**small_spec()['args'])
    for model, words in ((own, 'Own has its own gen_feat, query_rgb or forward'),
                         (models.make({'name': 'bicubic'}), 'leave out the tile size')):
        with pytest.raises(UserError, match=words):
            Renderer(model, tile=32)
        Renderer(model)


def test_a_batch_that_cannot_be_measured_names_its_image(model, load):
    case = next(case for case in read_suite('benchmark', ['2'], load) if case.data == 'Set5')
    loader = make_loader(open_data(case.config, case.dataset), 1, seed=0, train=False, num_workers=0)
    with pytest.raises(UserError, match='^0000.png: found an image of'):
        eval_psnr(loader, open_model(model, CPU).model, PUBLISHED_NORM, 'benchmark-40')


@pytest.mark.skipif(not os.path.isdir(os.path.join(REAL, 'benchmark', 'Set5')),
                    reason='no photographs: put benchmark/Set5 into $LIIF_DATA')
def test_bicubic_on_set5(tmp_path):
    cases = [case for case in read_suite('benchmark', ['2', '3', '4'], REAL) if case.data == 'Set5']
    outcome = run_suite(cases, ['bicubic'], CPU, str(tmp_path))
    with open(os.path.join(ROOT, 'benchmarks', 'results', 'lr_kernels.json')) as f:
        kept = [row['psnr']['bicubic']['matlab'] for row in json.load(f)['rows'] if row['set'] == 'Set5']
    assert [run['psnr'] for run in outcome.runs] == pytest.approx(kept, abs=1e-4)
    assert kept == pytest.approx([33.66, 30.39, 28.42], abs=0.025)  # published
    hr = cases[0].config['test_dataset']['dataset']['args']
    case = one_case(tmp_path / 's.yaml', {
        'data': 'Set5', 'metric': 'benchmark', 'scales': [3], 'hr': hr['root_path_2']}, data=REAL)
    run = run_case(case, 'bicubic', tmp_path)
    assert run['psnr'] == outcome.runs[1]['psnr']  # the LR files are MATLAB's
