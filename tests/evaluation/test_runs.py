"""Results that are kept, and mistakes that cost one case only."""
import csv
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

import engine.evaluation.runs
import models
from engine.checkpoint import PUBLISHED_NORM
from engine.evaluation import tables
from engine.evaluation.runs import Options, run_suite
from engine.evaluation.suite import read_suite
from tests.common import ROOT, small_spec
from tests.evaluation.common import CPU, one_case, save_model, set5, write_suite
from tests.image_files import folder
from tests.programs import finish, program, start
from utils import UserError


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
    case = one_case(tmp_path / 's.yaml', {
        'data': 'flat', 'hr': str(tmp_path / 'HR'), 'metric': 'rgb', 'scales': [1]})
    outcomes = [run_suite([case], ['nearest'], CPU, str(tmp_path)) for _ in range(2)]
    name, = os.listdir(tmp_path / 'runs')
    json.loads((tmp_path / 'runs' / name).read_text(), parse_constant=pytest.fail)
    assert all(math.isinf(float(outcome.runs[0]['psnr'])) for outcome in outcomes)
    assert '| inf ' in tables.write_results(str(tmp_path), 's', outcomes[1])


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
    encoder = small_spec()['args']['encoder_spec']
    texts = [save_model(tmp_path / 'good.pth'), save_model(tmp_path / 'norm.pth', data_norm=norm),
             save_model(tmp_path / 'grey.pth', grey), save_model(tmp_path / 'bare.pth', encoder),
             str(tmp_path / 'none.pth')]
    out = program('test.py', '--gpu', 'cpu', '--suite', 'benchmark', '--scales', '2', '8', '--model', *texts, '--data',
                  data, '--output', tmp_path / 'out')
    assert out.returncode == 2 and 'Traceback' not in out.stderr, out.stderr
    failed = [line for line in out.stderr.splitlines() if line.startswith('failed: ')]
    # Set14 x2 and B100 cost every working model one line each, and a model of another kind one line in all.
    for words in (('good: Set14 x2: ', '0000.png', '60x48'), ('good: B100 x8: ', '0000.png', '8 pixels'),
                  ('norm: Set5 x2', 'norm.pth', '0.4', 'data_norm'), ('grey: ', 'gives 1 channels', 'expected 3'),
                  ('bare: ', 'its model, EDSR, has no decoder'), ('none: ', 'does not exist')):
        assert sum(all(word in line for word in words) for line in failed) == 1, (words, failed)
    assert out.stderr.splitlines()[-1].startswith('error: ')
    assert re.search(r'Urban100 x2, x8: \S+ and 1 other path do not exist\n', out.stdout)
    with open(tmp_path / 'out' / 'benchmark.json') as f:
        runs = json.load(f)['runs']
    assert {(run['model']['label'], run['data'], run['scale']) for run in runs} == {
        ('good', 'Set5', '2'), ('good', 'Set5', '8'), ('good', 'Set14', '8')}


def test_two_models_with_one_label_are_refused(model, load, tmp_path):
    (tmp_path / 'a').mkdir()
    other = save_model(tmp_path / 'a' / os.path.basename(model))
    with pytest.raises(UserError, match='^two models are labelled small: name them LABEL=MODEL$'):
        run_suite(read_suite('div2k', ['2'], load), [model, other], CPU, str(tmp_path))


@pytest.mark.parametrize('error', [torch.OutOfMemoryError('too large'), RuntimeError("can't allocate memory"),
                                   MemoryError()])
def test_a_case_without_enough_memory_costs_itself_alone(error, load, tmp_path, monkeypatch):
    real = engine.evaluation.runs.measure_case

    def failing(candidate, config, *args):
        if config['eval_type'] == 'benchmark-2':
            raise error
        return real(candidate, config, *args)

    monkeypatch.setattr(engine.evaluation.runs, 'measure_case', failing)
    cases = read_suite(write_suite(tmp_path / 's.yaml', set5([2, 3])), None, load)
    with monkeypatch.context() as patch:
        patch.setattr(engine.evaluation.runs, 'explain', lambda found: 'too little memory' if found is error else None)
        outcome = run_suite(cases, ['nearest'], CPU, str(tmp_path))
    assert [run['scale'] for run in outcome.runs] == ['3']
    assert outcome.problems == [('nearest', 'Set5 x2', 'too little memory')]
    monkeypatch.setattr(engine.evaluation.runs, 'explain', lambda found: None)  # a bug keeps its traceback
    with pytest.raises(type(error)):
        run_suite(cases, ['nearest'], CPU, str(tmp_path))


def test_a_config_with_tf32_is_not_measured_on_a_cpu(load):
    import test
    with pytest.raises(UserError, match='^precision: tf32 is for CUDA GPUs, this is cpu; use float32$'):
        test.main(['--config', 'configs/test/test-set5-2.yaml', '--set', 'precision=tf32', '--model', 'nearest',
                   '--gpu', 'cpu', '--data', load])


@pytest.mark.parametrize('message, words', [('', 'RuntimeError'), ('the first\nthe second', 'the first')])
def test_a_model_that_fails_is_told_in_one_line(message, words):
    class Failing(torch.nn.Module):
        query_rgb = None

        def gen_feat(self, inp):
            raise RuntimeError(message)

    with pytest.raises(UserError, match=rf'^m.pth: its model does not take images of three channels \({words}\)'):
        engine.evaluation.runs.check_channels(Failing(), CPU, 'm.pth')


def one_image_test(folder, repeat=1, batch_size=1):
    """The path of a test config of images in a folder."""
    config = {'test_dataset': {
        'dataset': {'name': 'image-folder', 'args': {'root_path': str(folder / 'HR'), 'repeat': repeat}},
        'wrapper': {'name': 'sr-implicit-downsampled', 'args': {'scale_min': 2}}, 'batch_size': batch_size}}
    (folder / 'test.yaml').write_text(json.dumps(config))  # JSON is YAML
    return str(folder / 'test.yaml')


def test_a_killed_data_worker_ends_in_one_line(tmp_path):
    folder(tmp_path / 'HR', ['a.png'], (40, 40))
    started = start('test.py', '--gpu', 'cpu', '--model', 'bicubic', '--workers', '1', '--per-image',
                    '--config', one_image_test(tmp_path, repeat=1_000_000))
    printed = pathlib.Path(started[1].name) / 'stdout'
    while not (printed.exists() and printed.stat().st_size):  # until an image is measured
        assert started[0].is_alive()
        time.sleep(0.05)
    worker = subprocess.run(['pgrep', '-P', str(started[0].pid)], capture_output=True, text=True).stdout.strip()
    os.kill(int(worker), signal.SIGKILL)
    done = finish(started)
    text = done.stderr
    assert done.returncode == 2 and text.count('\n') == 1, text
    assert text.startswith(f'error: process {worker}, which reads images, was ended by SIGKILL') \
        and text.endswith('use fewer workers, and start again\n')


def test_images_of_different_size_in_a_batch_are_found_at_the_start(tmp_path, monkeypatch):
    folder(tmp_path / 'HR', ['a.png', 'b.png'], (40, 40))
    folder(tmp_path / 'HR', ['c.png'], (40, 30))
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
    (['--suite', 'div2k', '--output', 'configs/suites/all.yaml'], ['--output: found the file configs/suites/all.yaml']),
    (['--suite', 'div2k', '--precision', 'fp16'], ['fp16', 'bf16']),
    (['--suite', 'div2k', '--precision', 'tf32'], ['tf32', 'this is cpu; use float32']),
    (['--config', 'configs/test/test-set5-2.yaml', '--data', 'nowhere'], ['nowhere', '--data']),
])
def test_wrong_arguments_are_told_in_one_line(arguments, words, tmp_path, monkeypatch):
    import test
    monkeypatch.chdir(tmp_path)
    os.symlink(os.path.join(ROOT, 'configs'), tmp_path / 'configs')
    with pytest.raises(UserError) as error:
        test.main([*arguments, '--model', 'bicubic', '--gpu', 'cpu'])
    assert all(word in str(error.value) for word in words) and '\n' not in str(error.value)
