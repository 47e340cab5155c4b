"""Suites: the same PSNR as test.py --config, any scale, results that are kept, mistakes that cost one case only."""
import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import engine.evaluation.runs
import models
from datasets.degraded import compress
from datasets.image_folder import ImageFolder
from datasets.imresize import imresize
from datasets.loader import make_loader
from engine.checkpoint import PUBLISHED_NORM, save_checkpoint
from engine.config import load_config
from engine.evaluation import tables
from engine.evaluation.evaluate import eval_psnr
from engine.evaluation.metrics import calc_ssim
from engine.evaluation.runs import Options, open_model, run_suite, split_label
from engine.evaluation.suite import FromHR, canonical_scale, open_data, read_suite, suite_names
from engine.rendering.renderer import Renderer
from scripts import reproduce
from scripts.reproduce import TABLES, write_tiny_data
from tests.common import ROOT, fill_model, small_spec
from utils import UserError, calc_psnr


REAL = os.environ.get('LIIF_DATA', os.path.join(ROOT, 'load'))
CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def load(tmp_path_factory):
    """What load/ holds for all of the paper, tiny."""
    root = str(tmp_path_factory.mktemp('data') / 'load')
    write_tiny_data(root)
    return root


def save_model(path, spec=None, **more):
    spec = spec or small_spec()
    model = fill_model(models.make(spec))
    save_checkpoint(path, {'model': {**spec, 'sd': model.state_dict()}, 'epoch': 2, 'data_norm': PUBLISHED_NORM,
                           **more})
    return str(path)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp('models') / 'small.pth')


def write_suite(path, *tests):
    path.write_text(json.dumps({'tests': list(tests)}))  # JSON is YAML
    return str(path)


def set5(scales):
    return {'data': 'Set5', 'config': 'configs/test/test-set5-{scale}.yaml', 'scales': scales}


def program(*args, cwd=ROOT, code=0):
    out = subprocess.run([sys.executable, os.path.join(ROOT, 'test.py'), '--gpu', 'cpu', *args], cwd=cwd, text=True,
                         capture_output=True)
    assert out.returncode == code and 'Traceback' not in out.stderr, out.stderr
    return out


# What suites list.

def test_suites_of_the_paper():
    assert {'all', 'benchmark', 'celebAHQ', 'div2k'} <= set(suite_names())
    found = {name: [(case.data, case.scale) for case in read_suite(name)] for name in suite_names()}
    assert found['benchmark'] == [(data, scale) for data in ('Set5', 'Set14', 'B100', 'Urban100') for scale in '23468']
    assert found['div2k'] == [('DIV2K', scale) for scale in '2 3 4 6 12 18 24 30'.split()]
    assert found['all'] == found['div2k'] + found['benchmark'] + found['celebAHQ']
    scales = [float(scale) for _, scale in found['continuous']]
    assert scales == sorted(scales) and scales[0] < 1.5 and scales[-1] == 30
    for table in '1234':  # every published number has a case
        published = tables.paper()['tables'][table]
        assert {(data, scale) for data in published['data'] for scale in published['scales']} \
            <= set(found[TABLES[table][0]])


def test_degradations_make_a_case_each_and_change_only_the_input(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)).save(tmp_path / 'a.png')
    test = {'data': 'mine', 'hr': str(tmp_path), 'metric': 'rgb', 'scales': [2, 3],
            'degradations': {'clean': {}, 'JPEG': {'quality': 75}}}
    cases = read_suite(write_suite(tmp_path / 's.yaml', test))
    assert [case.name for case in cases] == ['mine, clean x2', 'mine, clean x3', 'mine, JPEG x2', 'mine, JPEG x3']
    clean, jpeg = (open_data(case.config, case.dataset).sample(0, None) for case in cases[::2])
    assert torch.equal(clean['gt'], jpeg['gt'])
    expected = compress(clean['inp'].permute(1, 2, 0).numpy(), 75)
    assert np.array_equal(jpeg['inp'].permute(1, 2, 0).numpy(), expected) and not torch.equal(clean['inp'], jpeg['inp'])
    for wrong, path in ((['JPEG'], 'degradations'), ({'JPEG': 75}, 'degradations.JPEG'),
                        ({'JPEG': {'quality': 0}}, 'degradations.JPEG.quality'),
                        ({'JPEG': {'blur': 1}}, 'degradations.JPEG.blur')):
        with pytest.raises(UserError, match=rf'tests\.0\.{path}: found .*, expected .*'):
            read_suite(write_suite(tmp_path / 's.yaml', {**test, 'degradations': wrong}))


def test_crops_are_the_middle_of_each_image(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (90, 201, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / 'a.png')
    test = {'data': 'mine', 'hr': str(tmp_path), 'metric': 'rgb', 'scales': [2], 'crop': 100}
    case, = read_suite(write_suite(tmp_path / 's.yaml', test))
    sample = open_data(case.config, case.dataset).sample(0, None)
    assert np.array_equal(sample['gt'].view(90, 100, 3), image[:, 50:150]) and sample['inp'].shape == (3, 45, 50)
    for wrong in (0, '100', None):
        with pytest.raises(UserError, match=r'tests\.0\.crop: found .*, expected .*64'):
            read_suite(write_suite(tmp_path / 's.yaml', {**test, 'crop': wrong}))
    test = {'data': 'x', 'config': 'c{scale}.yaml', 'scales': [2], 'crop': 99}
    with pytest.raises(UserError, match='crop'):
        read_suite(write_suite(tmp_path / 's.yaml', test))


@pytest.mark.parametrize('text, wanted', [('2', '2'), (2.0, '2'), ('x2.70', '2.7'), ('2,3.5', '2x3.5'), ('2x2', '2'),
                                          ('32-256', '32-256')])
def test_scales_have_one_name(text, wanted):
    assert canonical_scale(text) == wanted


def test_data_moves_as_a_whole(load, tmp_path):
    usual, there, empty = (read_suite('all', data_root=root) for root in (None, load, str(tmp_path)))
    assert all(case.missing is None for case in there) and all(case.missing for case in empty)
    assert [case.config for case in usual] == [case.config for case in there]  # so results do not depend on the folder


# PSNR.

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


def test_scales_from_hr_follow_the_rule(tmp_path):
    hr = np.random.default_rng(0).integers(0, 256, (61, 47, 3), dtype=np.uint8)
    Image.fromarray(hr).save(tmp_path / 'a.png')
    item = FromHR(ImageFolder(str(tmp_path)), '2.7x2').sample(0, None)
    rows, columns = round(22 * 2.7), 46  # 61 / 2.7 = 22.6, 47 / 2 = 23.5
    assert item['size'].tolist() == [rows, columns] == [59, 46]
    assert torch.equal(item['inp'], torch.from_numpy(imresize(hr[:59, :46], (22, 23))).permute(2, 0, 1))
    assert torch.equal(item['gt'], torch.from_numpy(hr[:59, :46].copy()).view(-1, 3))
    assert item['cell'].tolist() == [pytest.approx([2 / 59, 2 / 46])]


def test_real_scales_equal_the_integer_rule_at_integers(model, load, tmp_path):
    hr = os.path.join(load, 'benchmark', 'Set5', 'HR')
    suite = write_suite(tmp_path / 's.yaml', set5(['2', '3']),
                        {'data': 'from HR', 'hr': hr, 'metric': 'benchmark', 'scales': [2, 3]})
    runs = run_suite(read_suite(suite, None, load), [model], CPU, str(tmp_path)).runs
    assert [run['psnr'] for run in runs[:2]] == [run['psnr'] for run in runs[2:]]


def test_anisotropic_scale_shaves_the_larger(load, tmp_path):
    case, = read_suite(write_suite(tmp_path / 's.yaml', set5([2])), ['1.5,3.5'], load)
    assert case.config['eval_type'] == 'benchmark-4' and case.factor == (1.5, 3.5)
    run, = run_suite([case], ['bicubic'], CPU, str(tmp_path)).runs
    item = open_data(case.config, case.dataset).sample(0, None)
    size = item['size'].tolist()
    pred = Renderer(models.make({'name': 'bicubic'})).open(item['inp'] / 255).render(size)
    gt = item['gt'].view(*size, 3).permute(2, 0, 1) / 255
    assert run['psnr'] == pytest.approx(calc_psnr(pred[None], gt[None], 'benchmark', 4).item(), abs=1e-4)


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
        plain, clipped, tiled = (run_suite([case], [model], CPU, str(tmp_path), options).runs[0]['psnr'] for options in
                                 (Options(), Options(cell_clip=4), Options(cell_clip=4, tile=16)))
        assert clipped == pytest.approx(expected, abs=1e-4) and tiled == pytest.approx(expected, abs=1e-4)
        assert (clipped == plain) == (scale == '2')


def test_a_batch_that_cannot_be_measured_names_its_image(model, load):
    case = next(case for case in read_suite('benchmark', ['2'], load) if case.data == 'Set5')
    loader = make_loader(open_data(case.config, case.dataset), 1, seed=0, train=False, num_workers=0)
    with pytest.raises(UserError, match='^0000.png: nothing is left of an image'):
        eval_psnr(loader, open_model(model, CPU).model, PUBLISHED_NORM, 'benchmark-40')


@pytest.mark.parametrize('name', ['benchmark', 'div2k'])
def test_scripts_of_the_suites(name, tmp_path):
    python = tmp_path / 'python'  # stands for the interpreter and shows how it is called
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)

    def arguments(*given):
        out = subprocess.run(['bash', os.path.join(ROOT, 'scripts', f'test-{name}.sh'), *given], cwd=tmp_path,
                             capture_output=True, text=True, env={**os.environ, 'PYTHON': str(python)}, check=True)
        test, suite, part, data, load, *rest = out.stdout.splitlines()
        assert os.path.samefile(test, os.path.join(ROOT, 'test.py')) and (suite, part) == ('--suite', name)
        assert data == '--data' and os.path.realpath(load) == os.path.realpath(os.path.join(ROOT, 'load'))
        return rest

    assert arguments('a model.pth') == ['--model', 'a model.pth']
    assert arguments('a model.pth', 'cpu') == ['--model', 'a model.pth', '--gpu', 'cpu']
    assert arguments() == ['--model']  # test.py says what is missing


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


@pytest.mark.skipif(not os.path.isdir(os.path.join(REAL, 'benchmark', 'Set5')),
                    reason='no photographs: put benchmark/Set5 into $LIIF_DATA')
def test_bicubic_on_set5(tmp_path):
    cases = [case for case in read_suite('benchmark', ['2', '3', '4'], REAL) if case.data == 'Set5']
    outcome = run_suite(cases, ['bicubic'], CPU, str(tmp_path))
    with open(os.path.join(ROOT, 'benchmarks', 'results', 'lr_kernels.json')) as f:
        kept = [row['psnr']['bicubic']['matlab'] for row in json.load(f)['rows'] if row['set'] == 'Set5']
    assert [run['psnr'] for run in outcome.runs] == pytest.approx(kept, abs=1e-4)
    assert kept == pytest.approx([33.66, 30.39, 28.42], abs=0.025)  # published
    hr = [read_suite('benchmark', [scale], REAL)[0].config['test_dataset']['dataset']['args'] for scale in '234']
    suite = write_suite(tmp_path / 's.yaml', {'data': 'Set5', 'metric': 'benchmark', 'scales': [3],
                                              'hr': hr[0]['root_path_2']})
    run, = run_suite(read_suite(suite, None, REAL), ['bicubic'], CPU, str(tmp_path)).runs
    assert run['psnr'] == outcome.runs[1]['psnr']  # the LR files are MATLAB's


# What is kept.

def test_goes_on_where_it_stopped(model, load, tmp_path, monkeypatch):
    data = str(tmp_path / 'load')
    shutil.copytree(load, data)
    suite, output = write_suite(tmp_path / 's.yaml', set5([2, 4, 6])), str(tmp_path / 'out')
    real, calls = engine.evaluation.runs.measure_case, []

    def stopping(candidate, config, *args):
        calls.append(config['eval_type'])
        if calls == ['benchmark-2', 'benchmark-4', 'benchmark-6']:
            raise KeyboardInterrupt
        return real(candidate, config, *args)

    monkeypatch.setattr(engine.evaluation.runs, 'measure_case', stopping)
    with pytest.raises(KeyboardInterrupt):
        run_suite(read_suite(suite, None, data), [model], CPU, output)
    kept = {name: os.stat(os.path.join(output, 'runs', name)).st_mtime_ns for name in os.listdir(f'{output}/runs')}
    assert len(kept) == 2

    def again(**options):
        calls[:] = ['again']
        run_suite(read_suite(suite, None, data), [f'other={model}'], CPU, output, **options)
        return [int(eval_type.split('-')[1]) for eval_type in calls[1:]]

    assert again() == [6] and again() == []
    assert all(os.stat(os.path.join(output, 'runs', name)).st_mtime_ns == time for name, time in kept.items())
    with open(os.path.join(output, 'runs', next(name for name in kept if name.startswith('Set5-4'))), 'w') as f:
        f.write('{"form')  # cut short
    assert again() == [4]
    lr = os.path.join(data, 'benchmark', 'Set5', 'LR_bicubic', 'X2', '0000x2.png')
    Image.open(lr).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(lr)
    assert again() == [2]
    assert again() == [] and again(options=Options(ssim=True)) == [2, 4, 6] == again(fresh=True)


def test_files_of_a_suite(model, load, tmp_path):
    outcome = run_suite(read_suite('benchmark', ['3'], load), [f'mine={model}', 'bicubic'], CPU, str(tmp_path),
                        Options(ssim=True))
    text = tables.write_results(str(tmp_path), 'benchmark', outcome)
    assert (tmp_path / 'benchmark.md').read_text() == text + '\n'
    with open(tmp_path / 'benchmark.csv') as f:
        rows = list(csv.DictReader(f))
    with open(tmp_path / 'benchmark.json') as f:
        runs = json.load(f, parse_constant=pytest.fail)['runs']
    assert len(rows) == len(runs) == len(outcome.runs) == 8
    for run, row in zip(runs, rows):
        assert (row['model'], row['data'], row['scale']) == (run['model']['label'], run['data'], run['scale'])
        assert float(row['psnr']) == run['psnr'] and float(row['ssim']) == run['ssim'] and float(row['seconds']) > 0
        assert f'{run["psnr"]:.2f}' in text and f'{run["ssim"]:.4f}' in text
    one = runs[0]
    assert len(one['model']['sha256']) == 64 and one['images'] == 1
    assert one['model']['parameters'] == sum(p.numel() for p in models.make(small_spec()).parameters())
    assert one['versions']['torch'] == torch.__version__ and one['device'].startswith('cpu')
    assert one['seconds'] > 0 and (sys.platform != 'linux' or one['peak_memory_mb'] > 50)
    assert one['config']['eval_type'] == 'benchmark-3' and 'per_image' not in one and one['published'] is None
    bicubic = next(run for run in outcome.runs if (run['model']['label'], run['data']) == ('bicubic', 'Set5'))
    assert tables.summary(bicubic)['published'] is None  # one image, not five
    assert tables.summary({**bicubic, 'images': 5})['published'] == {
        'row': 'Bicubic', 'psnr': 30.39, 'difference': bicubic['psnr'] - 30.39}


def test_infinite_psnr_is_kept_as_strict_json(tmp_path):
    os.makedirs(tmp_path / 'HR')
    for name in ('black.png', 'white.png'):
        Image.new('RGB', (40, 40), name[:-4]).save(tmp_path / 'HR' / name)
    suite = write_suite(tmp_path / 's.yaml', {'data': 'flat', 'hr': str(tmp_path / 'HR'), 'metric': 'rgb',
                                              'scales': [1]})
    outcomes = [run_suite(read_suite(suite), ['nearest'], CPU, str(tmp_path)) for _ in range(2)]
    name, = os.listdir(tmp_path / 'runs')
    json.loads((tmp_path / 'runs' / name).read_text(), parse_constant=pytest.fail)
    assert all(math.isinf(float(outcome.runs[0]['psnr'])) for outcome in outcomes)
    assert '| inf ' in tables.write_results(str(tmp_path), 's', outcomes[1])


def test_a_part_of_a_folder(tmp_path):
    os.makedirs(tmp_path / 'HR')
    for name in ('a.png', 'b.png', 'c.png'):
        Image.new('RGB', (40, 40), 'gray').save(tmp_path / 'HR' / name)
    (tmp_path / 'split.json').write_text('{"mine": ["c.png", "a.png"]}')
    test = {'data': 'part', 'hr': str(tmp_path / 'HR'), 'metric': 'rgb', 'scales': [2]}
    suite = write_suite(tmp_path / 's.yaml', {**test, 'split_file': str(tmp_path / 'split.json'), 'split_key': 'mine'})
    run, = run_suite(read_suite(suite), ['nearest'], CPU, str(tmp_path)).runs
    assert sorted(row['image'] for row in run['per_image']) == ['a.png', 'c.png']
    with pytest.raises(UserError, match='split_file and split_key'):
        read_suite(write_suite(tmp_path / 's.yaml', {**test, 'split_key': 'mine'}))


# Mistakes.

def test_mistakes_cost_only_what_they_concern(load, tmp_path):
    data = tmp_path / 'load'
    shutil.copytree(load, data)
    tiny = data / 'benchmark' / 'B100' / 'HR' / '0000.png'
    Image.open(tiny).crop((0, 0, 16, 40)).save(tiny)  # as wide as what x8 shaves
    lr = data / 'benchmark' / 'Set14' / 'LR_bicubic' / 'X2' / '0000x2.png'
    Image.open(lr).crop((0, 0, 16, 24)).save(lr)
    shutil.rmtree(data / 'benchmark' / 'Urban100')
    grey = small_spec()
    grey['args']['imnet_spec']['args']['out_dim'] = 1
    norm = {'inp': {'sub': [0.4], 'div': [0.5]}, 'gt': PUBLISHED_NORM['gt']}
    texts = [save_model(tmp_path / 'good.pth'), save_model(tmp_path / 'norm.pth', data_norm=norm),
             save_model(tmp_path / 'grey.pth', grey), str(tmp_path / 'none.pth')]
    out = program('--suite', 'benchmark', '--scales', '2', '8', '--model', *texts, '--data', str(data), '--output',
                  str(tmp_path / 'out'), code=2)
    failed = [line for line in out.stderr.splitlines() if line.startswith('failed: ')]
    # Set14 x2 and B100 cost every working model one line each, and a model of another kind one line in all.
    for words in (('good: Set14 x2: ', '0000.png', '60x48'), ('good: B100 x8: ', '0000.png', '8 pixels'),
                  ('norm: Set5 x2', 'norm.pth', '0.4', 'data_norm'), ('grey: ', 'gives 1 channels', 'expected 3'),
                  ('none: ', 'does not exist')):
        assert sum(all(word in line for word in words) for line in failed) == 1, (words, failed)
    assert out.stderr.splitlines()[-1].startswith('error: ')
    assert 'Urban100 x2, x8: there is no ' in out.stdout
    with open(tmp_path / 'out' / 'benchmark.json') as f:
        runs = json.load(f)['runs']
    assert {(run['model']['label'], run['data'], run['scale']) for run in runs} == {
        ('good', 'Set5', '2'), ('good', 'Set5', '8'), ('good', 'Set14', '8')}


def one_image_test(folder, repeat=1, batch_size=1):
    """The path of a test config of images in a folder."""
    config = {'test_dataset': {
        'dataset': {'name': 'image-folder', 'args': {'root_path': str(folder / 'HR'), 'repeat': repeat}},
        'wrapper': {'name': 'sr-implicit-downsampled', 'args': {'scale_min': 2}}, 'batch_size': batch_size}}
    (folder / 'test.yaml').write_text(json.dumps(config))  # JSON is YAML
    return str(folder / 'test.yaml')


def test_a_killed_data_worker_ends_in_one_line(tmp_path):
    os.makedirs(tmp_path / 'HR')
    Image.new('RGB', (40, 40), 'gray').save(tmp_path / 'HR' / 'a.png')
    command = [sys.executable, os.path.join(ROOT, 'test.py'), '--gpu', 'cpu', '--model', 'bicubic', '--workers', '2',
               '--config', one_image_test(tmp_path, repeat=1_000_000)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    workers = []
    while len(workers) < 2:
        assert process.poll() is None
        time.sleep(0.05)
        workers = subprocess.run(['pgrep', '-P', str(process.pid)], capture_output=True, text=True).stdout.split()
    time.sleep(1)
    os.kill(int(workers[0]), signal.SIGKILL)
    _, text = process.communicate(timeout=300)
    assert process.returncode == 2 and text.count('\n') == 1, text
    assert text.startswith(f'error: process {workers[0]}, which reads images, was ended by SIGKILL') \
        and text.endswith('use fewer workers, and start again\n')


def test_images_of_different_size_in_a_batch_are_found_at_the_start(tmp_path, monkeypatch):
    os.makedirs(tmp_path / 'HR')
    for name, width in (('a', 40), ('b', 40), ('c', 30)):
        Image.new('RGB', (width, 40), 'gray').save(tmp_path / 'HR' / f'{name}.png')
    import test
    monkeypatch.setattr('datasets.image_folder.read_image', None)
    with pytest.raises(UserError, match='samples of different size cannot form a batch of 2 .*a.png.*c.png'):
        test.main(['--config', one_image_test(tmp_path, batch_size=2), '--model', 'bicubic', '--gpu', 'cpu'])


@pytest.mark.parametrize('arguments, words', [
    (['--suite', 'benchmrk'], ['benchmrk', 'benchmark']),
    (['--suite', 'nowhere.yaml'], ['nowhere.yaml']),
    (['--suite', 'div2k', '--scales', '0.5'], ['0.5', 'from 1 on']),
    (['--suite', 'div2k', '--scales', 'two'], ['two']),
    (['--suite', 'celebAHQ', '--scales', '2'], ['64-128']),
    (['--suite', 'div2k', '--scales', '64-128'], ['none of its tests', '64-128']),
    (['--suite', 'div2k'], ['nothing was measured', 'prepare_data.py']),
    (['--suite', 'div2k', '--precision', 'fp16'], ['fp16', 'bf16']),
    (['--config', 'configs/test/test-set5-2.yaml', '--data', 'nowhere'], ['nowhere', '--data']),
])
def test_wrong_arguments_are_told_in_one_line(arguments, words, tmp_path, monkeypatch):
    import test
    monkeypatch.chdir(tmp_path)
    os.symlink(os.path.join(ROOT, 'configs'), tmp_path / 'configs')
    with pytest.raises(UserError) as error:
        test.main([*arguments, '--model', 'bicubic', '--gpu', 'cpu'])
    assert all(word in str(error.value) for word in words) and '\n' not in str(error.value)


@pytest.mark.parametrize('text', ['[]', 'tests: 3', 'tests: [{data: a}]', 'suites: [x]\ntests: []', 'tests: []',
                                  'tests: [{data: a, hr: b, metric: luma, scales: [2]}]',
                                  'tests: [{data: a, hr: b, metric: rgb, scales: []}]'])
def test_wrong_suites_are_told_in_one_line(text, tmp_path):
    (tmp_path / 's.yaml').write_text(text)
    with pytest.raises(UserError) as error:
        read_suite(str(tmp_path / 's.yaml'))
    assert 's.yaml' in str(error.value) and '\n' not in str(error.value)


def test_a_network_of_one_scale_is_measured_there(load, tmp_path):
    spec = {'name': 'liif', 'args': {'encoder_spec': {'name': 'edsr-baseline', 'args': {
        'n_resblocks': 1, 'n_feats': 8, 'scale': 3}}}}
    outcome = run_suite(read_suite('benchmark', ['2', '3'], load), [save_model(tmp_path / 'x3.pth', spec)], CPU,
                        str(tmp_path))
    assert {run['scale'] for run in outcome.runs} == {'3'} and len(outcome.runs) == 4
    assert 'x3 enlarges by 3 alone: not Set5 x2' in outcome.left_out[0] and not outcome.problems


def test_pooled_psnr_is_named(model, load, tmp_path):
    config = load_config(os.path.join(ROOT, 'configs/test/test-div2k-2.yaml'), ['test_dataset.batch_size=2'], 'test',
                         check_paths=False)
    (tmp_path / 'pooled-2.yaml').write_text(json.dumps(config))
    suite = write_suite(tmp_path / 's.yaml', {'data': 'DIV2K', 'config': str(tmp_path / 'pooled-{scale}.yaml'),
                                              'scales': [2]})
    outcome = run_suite(read_suite(suite, None, load), [model], CPU, str(tmp_path))
    one, = run_suite(read_suite('div2k', ['2'], load), [model], CPU, str(tmp_path)).runs
    pooled = -10 * math.log10(np.mean([10 ** (-row['psnr'] / 10) for row in one['per_image']]))
    assert outcome.runs[0]['psnr'] == pytest.approx(pooled, abs=1e-4) and len(outcome.runs[0]['per_image']) == 1
    text = tables.write_results(str(tmp_path), 's', outcome)
    assert 'DIV2K: the squared error is pooled over batches of 2 images' in text


@pytest.mark.parametrize('text, wanted', [
    ('save/_my-run/epoch-last.pth', 'my-run'), ('weights/small/model.pth', 'small'), ('a/RDN.pth', 'RDN'),
    ('save/_my-run/epoch-best.pth', 'my-run epoch-best'), ('bicubic', 'bicubic'), ('A b=x/y.pth', 'A b')])
def test_labels(text, wanted):
    assert split_label(text)[0] == wanted


# Comparison with published numbers.

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


def made_up(label, scale, psnr, data='DIV2K', images=100, date='2024-01-01', **options):
    return {'format': 'liif-run-1',
            'model': {'label': label, 'spec': small_spec(), 'parameters': 10, 'sha256': '0' * 64, 'epoch': None},
            'data': data, 'images': images, 'scale': scale, 'config': {'eval_type': 'div2k-2'}, 'date': date,
            'pooled_over': 1, 'options': {'precision': 'float32', 'self_ensemble': False, 'ema': False, **options},
            'psnr': psnr, 'device': 'cpu', 'versions': {'torch': '2'}, 'per_image': []}


def rows_of(runs):
    text = tables.make_tables(runs)
    assert len({len(line) for line in text.splitlines() if line.startswith('|')}) == 1  # columns line up
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines() if line.startswith('|')]
    return rows[:1] + rows[2:]


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


def test_results_page_takes_the_committed_results(tmp_path):
    os.makedirs(tmp_path / 'weights' / 'small')
    results = tmp_path / 'weights' / 'small' / 'results.json'
    readme = tmp_path / 'README.md'

    def write(psnr):
        runs = [made_up('small', '2', psnr)]
        results.write_text(json.dumps({'format': 'liif-results-1', 'suite': 's', 'runs': runs}))
        reproduce.write_results_page(str(readme), str(tmp_path))
        return readme.read_text()

    before, after = '# Title\n\n<!-- results:start -->\n', '<!-- results:end -->\nthe end\n'
    readme.write_text(before + 'old\n' + after)
    first = write(31.234)
    assert first.startswith(before) and first.endswith(after) and 'old' not in first and '| 31.23 ' in first
    assert write(31.234) == first and '| 32.00 ' in write(32.0)
    readme.write_text('# Title\n')
    with pytest.raises(UserError, match='results:start'):
        write(31.0)
    assert readme.read_text() == '# Title\n'


def test_summary_of_the_readme(tmp_path):
    os.makedirs(tmp_path / 'weights')
    runs = [{**made_up(label, scale, psnr, data='Set5', images=5), 'seconds': 0.25} for label, scale, psnr in
            (('mine', '2', 37.5), ('mine', '3', 33.9), ('mine', '4', 31.7), ('half', '2', 36.0))]
    (tmp_path / 'weights' / 'r.json').write_text(json.dumps(
        {'format': 'liif-results-1', 'suite': 's', 'runs': runs}))
    readme = tmp_path / 'README.md'
    readme.write_text('<!-- summary:start -->\n<!-- summary:end -->\n')
    text = reproduce.write_summary(str(readme), str(tmp_path))
    assert readme.read_text() == f'<!-- summary:start -->\n{text}\n<!-- summary:end -->\n'
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines()[2:]]
    assert [row[0] for row in rows] == ['mine', 'RDN-LIIF (published)']  # 'half' lacks two scales
    assert rows[0][1:4] == ['37.50', '33.90', '31.70'] and rows[0][4].startswith('0.8 ') and rows[1][3] == '32.50'


# Figures.

def test_psnr_curves(tmp_path):
    from scripts import plot
    runs = [made_up('RDN-LIIF', scale, psnr) for scale, psnr in
            (('30', 20.0), ('2', 34.0), ('2x3', 30.0), ('1', 'inf'))]
    (tmp_path / 'r.json').write_text(json.dumps({'format': 'liif-results-1', 'suite': 's', 'runs': runs}))
    curves = plot.psnr_curves([str(tmp_path / 'r.json')])
    with pytest.raises(UserError, match='DIV2K'):
        plot.psnr_curves([str(tmp_path / 'r.json')], 'Set5')
    assert curves['RDN-LIIF'] == [(2.0, 34.0), (30.0, 20.0)]
    assert curves['RDN-LIIF (published)'][0] == (2.0, 34.99) and curves['Bicubic (published)'][0] == (2.0, 31.01)
    assert set(curves) == {'RDN-LIIF', *(f'{row} (published)' for row in ('RDN-LIIF', 'EDSR-baseline-LIIF', 'Bicubic'))}


def test_training_curves(tmp_path):
    from scripts import plot
    (tmp_path / '_run').mkdir()
    (tmp_path / '_run' / 'log.txt').write_text(
        'model: liif\nepoch 1/3: rate 0.001, loss 0.250000, val psnr 24.5000 (best 24.5000), 1.0s of 3.0s\n'
        'epoch 2/3: rate 0.001, loss 0.200000, 2.0s of 3.0s\nresuming from x\n'
        'epoch 2/3: rate 0.001, loss 0.190000, 2.0s of 3.0s\n')
    losses, psnr = plot.training_curves([str(tmp_path / '_run')])
    assert losses == {'run': [(1, 0.25), (2, 0.19)]} and psnr == {'run': [(1, 24.5)]}
    losses, psnr = plot.training_curves([str(tmp_path / '_run')], minutes=True)
    assert losses == {'run': [(1 / 60, 0.25), (2 / 60, 0.19)]} and psnr == {'run': [(1 / 60, 24.5)]}
    with pytest.raises(UserError, match='log.txt'):
        plot.training_curves([str(tmp_path)])


def test_plot_writes_an_image(tmp_path):
    pytest.importorskip('matplotlib')
    from scripts import plot
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
