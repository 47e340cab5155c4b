"""The weights that come with the project: whole, loaded only as they are, as good as was written down; and the script
that makes them from a run."""
import functools
import glob
import hashlib
import json
import os
import re
import shutil

import pytest
import torch
from PIL import Image

import demo
from engine import checkpoint as weights
from engine import runtime
from engine.checkpoint import SUMS, default_model, load_checkpoint, load_model
from engine.config import load_config
from engine.evaluation.runs import Options, run_suite
from engine.evaluation.suite import read_suite
from scripts import release
from scripts.sample_photos import write_sample
from tests.common import ROOT
from tests.programs import program
from tests.rendering.common import PHOTO
from tests.rendering.conftest import checkpoints, registered  # noqa: F401 (fixtures)
from tests.survival import make_images, run, tiny_config, write_config
from utils import UserError


FOLDERS = sorted(map(os.path.dirname, glob.glob(os.path.join(ROOT, 'weights', '*', 'model.pth'))))
NAMES = list(map(os.path.basename, FOLDERS))
RESULTS = 'shipped.json'


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    pytest.importorskip('skimage', reason='scikit-image, which brings the photographs, is not installed')
    root = tmp_path_factory.mktemp('load')
    write_sample(str(root / 'sample'))
    return str(root)


def test_there_are_weights_and_one_of_them_is_the_default():
    assert FOLDERS and os.path.dirname(default_model()) in FOLDERS


def test_committed_results_are_of_the_weights_as_they_are():
    """What stands in README and docs, found by the file that a result names."""
    found = {}
    for pattern in ('weights/**/*.json', 'benchmarks/results/**/*.json'):
        for path in glob.glob(os.path.join(ROOT, pattern), recursive=True):
            with open(path, encoding='utf-8') as f:
                runs = json.load(f)
            for run in runs.get('runs', []) if isinstance(runs, dict) and 'budget' not in path else []:
                if run['model'].get('file', '').startswith('weights/edsr'):
                    found.setdefault(run['model']['file'], set()).add((run['model']['sha256'], path))
    assert len(found) == 2
    for file, results in found.items():
        with open(os.path.join(ROOT, os.path.dirname(file), SUMS)) as f:
            digest = f.read().split()[0]
        assert [path for sha256, path in results if sha256 != digest] == []


def test_default_weights(tmp_path, checkpoints, monkeypatch, capsys):
    with pytest.raises(UserError, match='no weights come with this copy.*quickstart'):
        weights.default_model(str(tmp_path))
    for age, name in enumerate(['new', 'old']):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'model.pth').write_bytes(open(checkpoints['liif'], 'rb').read())
        os.utime(tmp_path / name / 'model.pth', (1000 - age, 1000 - age))
    assert weights.default_model(str(tmp_path)) == str(tmp_path / 'new' / 'model.pth')
    (tmp_path / 'default.txt').write_text('old\n')
    assert weights.default_model(str(tmp_path)) == str(tmp_path / 'old' / 'model.pth')
    assert weights.model_path('new', str(tmp_path)) == str(tmp_path / 'new' / 'model.pth')
    monkeypatch.setattr(weights, 'WEIGHTS', str(tmp_path))
    Image.fromarray(PHOTO).save(tmp_path / 'in.png')
    runtime.say_once.cache_clear()
    demo.main([str(tmp_path / 'in.png'), '--output', str(tmp_path / 'out.png'), '--scale', '2'])
    assert 'old/model.pth), for PNG images' in capsys.readouterr().err and (tmp_path / 'out.png').exists()


@pytest.mark.parametrize('folder', FOLDERS, ids=NAMES)
def test_files_of_a_model(folder):
    path = os.path.join(folder, 'model.pth')
    with open(os.path.join(folder, SUMS)) as sums, open(path, 'rb') as f:
        assert sums.read() == f'{hashlib.sha256(f.read()).hexdigest()}  model.pth\n'
    checkpoint = load_checkpoint(path)
    weights = checkpoint['model']['sd']
    assert 'optimizer' not in checkpoint and {v.dtype for v in weights.values()} == {torch.float32}
    count = sum(v.numel() for v in weights.values())
    assert os.path.getsize(path) < 4 * count + 64 * 1024
    # The config in the folder trains the same model, and the card tells its size and its sum.
    config = load_config(os.path.join(folder, 'config.yaml'), kind='train', check_paths=False)
    assert config['model'] == {key: checkpoint['model'][key] for key in ('name', 'args')}
    with open(os.path.join(folder, 'README.md')) as f:
        card = f.read()
    with open(os.path.join(folder, SUMS)) as f:
        assert f'{count:,}' in card and f.read(64) in card


@pytest.mark.parametrize('folder', FOLDERS, ids=NAMES)
def test_psnr_on_the_sample_photographs_is_as_it_was(folder, photographs, tmp_path):
    if not os.path.exists(os.path.join(folder, RESULTS)):
        pytest.skip(f'{folder} has no results on the sample photographs (test.py --suite samples)')
    with open(os.path.join(folder, RESULTS)) as f:
        kept = {run['scale']: run for run in json.load(f)['runs']
                if run['data'] == 'samples' and run['model']['parameters'] and run['scale'] in ('2', '8')}
    path = os.path.join(folder, 'model.pth')
    cases = read_suite('samples', ['2', '8'], photographs)
    bicubic = run_suite(cases, ['bicubic'], torch.device('cpu'), str(tmp_path)).runs
    runs = run_suite(cases, [path], torch.device('cpu'), str(tmp_path), Options()).runs
    assert [run['scale'] for run in runs] == [run['scale'] for run in bicubic] == list(kept)
    for run, plain in zip(runs, bicubic):
        assert run['model']['sha256'] == kept[run['scale']]['model']['sha256']
        assert abs(run['psnr'] - kept[run['scale']]['psnr']) < 0.01
        assert run['psnr'] > plain['psnr'] + 0.3


def test_demo_needs_no_model(photographs, tmp_path):
    target = tmp_path / 'large.png'
    done = program('demo.py', '--input', os.path.join(photographs, 'sample', 'valid', 'chelsea.png'), '--region',
                   '100,100,40,30', '--scale', '4', '--output', str(target), '--gpu', 'cpu')
    assert done.returncode == 0, done.stderr
    assert os.path.relpath(default_model(), ROOT) in done.stdout + done.stderr and target.exists()


def test_weights_that_were_exchanged_are_refused(photographs, tmp_path):
    folder = shutil.copytree(FOLDERS[0], tmp_path / 'copy')
    path = str(folder / 'model.pth')
    load_model(path, torch.device('cpu'))
    checkpoint = torch.load(path, weights_only=True)
    next(iter(checkpoint['model']['sd'].values())).add_(1e-3)
    torch.save(checkpoint, path)  # a good file by its own checksums
    with pytest.raises(UserError, match=r'model\.pth does not match .*SHA256SUMS'):
        load_model(path, torch.device('cpu'))
    done = program('test.py', '--suite', 'samples', '--model', path, '--data', photographs, '--output', str(tmp_path))
    assert done.returncode != 0 and 'SHA256SUMS' in done.stderr and 'Traceback' not in done.stderr
    os.rename(path, folder / 'mine.pth')  # a name of which the sums say nothing
    load_model(str(folder / 'mine.pth'), torch.device('cpu'))


@pytest.mark.parametrize('args, eval_type, wanted', [
    ({'scale_max': 4, 'sample_q': 16}, None, 'RGB, crops at x1 to x4'),
    ({'scale_min': 1.5, 'scale_max': 2.0}, 'div2k-2', 'div2k-2, crops at x1.5 to x2'),
    ({'scale_min': 3, 'scale_max': None}, 'benchmark-3', 'benchmark-3'), ({}, None, 'RGB')])
def test_the_label_of_a_validation(args, eval_type, wanted):
    config = {'val_dataset': {'wrapper': {'args': args}}, 'eval_type': eval_type}
    assert release.validation_label(config) == f'validation PSNR, {wanted}'


def test_release_of_a_run(tmp_path, monkeypatch):
    config = write_config(tmp_path / 'c.yaml', tiny_config(make_images(tmp_path / 'images'), ema=0.9))
    target, script = tmp_path / 'weights' / 'mine', 'scripts/release.py'
    arguments = '--config', config, '--gpu', 'cpu', '--workers', '0', '--resume'
    run(str(tmp_path), *arguments, kill=('step', 5))
    for run_folder, words in (('save/_c', '1 of 4 epochs'), ('save/_none', 'does not exist')):
        done = program(script, run_folder, str(target), cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
        assert words in done.stderr and not target.exists()

    code, out = run(str(tmp_path), *arguments)
    assert code == 0, out
    trained = load_checkpoint(str(tmp_path / 'save' / '_c' / 'epoch-last.pth'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(release, 'draw_curve', functools.cache(release.draw_curve))  # starts a process: once
    measured = []
    for flags, wanted in (([], trained['model']['sd']), (['--ema'], trained['ema'])):
        release.main(['save/_c', str(target), *flags])
        assert sorted(os.listdir(target)) == ['README.md', SUMS, 'config.yaml', 'curve.png', 'log.txt', 'model.pth',
                                              'run.json']
        found = load_checkpoint(str(target / 'model.pth'))
        assert all(torch.equal(found['model']['sd'][name], value) for name, value in wanted.items())
        assert set(found) == {'model', 'epoch', 'data_norm', 'config'} and found['data_norm'] == trained['data_norm']
        card = (target / 'README.md').read_text()
        measured.append(re.search(r'validation PSNR, RGB, crops at x1 to x3 \| ([\d.]+) dB', card)[1])
        assert '| 12 (4 epochs of 3) |' in card and ('decay 0.9' in card) == bool(flags) and '| seed | 0 |' in card
        (target / 'README.md').write_text('Mine.\n' + card.replace('| seed | 0 |', '') + 'Licence.\n')
    assert card.startswith('Mine.\n') and card.endswith('Licence.\n')
    assert f'val psnr {measured[0]} ' in out and measured[1] != measured[0]  # each of its weights
    earlier = 'save/_c/epoch-2.pth'
    done = program(script, 'save/_c', str(target), '--blend', earlier, '2', cwd=tmp_path)
    assert done.returncode == 2 and 'a share between 0 and 1' in done.stderr and done.stderr.count('\n') == 1
    release.main(['save/_c', str(target), '--blend', earlier, '0.25'])
    other, found = (load_checkpoint(str(path))['model']['sd'] for path in (tmp_path / earlier, target / 'model.pth'))
    for name, value in trained['model']['sd'].items():
        assert torch.allclose(found[name], 0.75 * value + 0.25 * other[name], atol=1e-6), name
    card = (target / 'README.md').read_text()
    assert f'blended with 0.25 of {earlier} |' in card and ', before blending |' in card and ', after it |' in card
    release.main(['save/_c', str(tmp_path / 'facts'), '--facts'])
    assert sorted(os.listdir(tmp_path / 'facts')) == ['log.txt', 'run.json']
    assert '12 (4 epochs of 3)' in (tmp_path / 'facts' / 'run.json').read_text()
    later = release.facts({**trained, 'epoch': 5}, (target / 'log.txt').read_text(), False)  # the last not validated
    assert later['validation PSNR, RGB, crops at x1 to x3'] == f'{measured[0]} dB, after epoch 4'
    del trained['config']
    torch.save(trained, tmp_path / 'save' / '_c' / 'epoch-last.pth')
    with pytest.raises(UserError, match='holds no config'):
        release.main(['save/_c', str(target)])
