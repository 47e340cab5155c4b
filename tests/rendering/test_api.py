"""The Python API: the documented example as it stands, and what goes in and out."""
import dataclasses
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from engine import runtime
from engine.checkpoint import save_checkpoint
from engine.rendering.api import load_renderer, to_numpy, to_tensor
from tests.common import fill_model, small_model, small_spec
from tests.conftest import ROOT
from utils import UserError


def save_small(path, **args):
    save_checkpoint(str(path), {'model': {**small_spec(**args), 'sd': small_model(**args).state_dict()}, 'epoch': 1})
    return str(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with model.pth and photo.png, 40x30."""
    save_small(tmp_path / 'model.pth')
    pixels = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'photo.png')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_documented_example_runs_as_it_stands(folder):
    with open(os.path.join(ROOT, 'docs', 'api.md')) as f:
        blocks = re.findall(r'^```python\n(.*?)^```', f.read(), re.M | re.S)
    assert len(blocks) >= 4 and len(blocks[0].strip().splitlines()) == 5  # an import, and three lines
    names = {}
    for block in blocks:
        exec(compile(block, 'docs/api.md', 'exec'), names)
    assert names['large'].shape == (3, 300, 400) and names['large'].dtype == torch.float32
    assert names['detail'].shape == (3, 240, 320) and names['frame'].shape == (3, 120, 160)
    assert names['pixels'].shape == (96, 128, 3) and names['pixels'].dtype == np.uint8
    assert names['deep'].dtype == np.uint16 and abs(names['deep'] / 257 - names['pixels']).max() <= 0.51
    with Image.open('large.png') as written:
        assert written.size == (400, 300)
        assert (np.asarray(written) == to_numpy(names['renderer'].open(to_tensor('photo.png')).render(
            (300, 400), dtype='uint8'))).all()


def test_a_region_is_a_part_of_the_whole(folder):
    scene = load_renderer('model.pth', gpu='cpu').open(to_tensor('photo.png'))
    whole = scene.render((120, 160))
    assert (scene.render((40, 80), region=(10, 5, 20, 10)) - whole[:, 20:60, 40:120]).abs().max() < 1e-5


def test_everything_that_holds_a_picture():
    pixels = np.random.default_rng(2).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    wanted = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    for image in (pixels, pixels.astype(np.uint16) * 257, pixels / 255, Image.fromarray(pixels), wanted,
                  torch.from_numpy(pixels).permute(2, 0, 1), pixels[::-1].copy()[::-1], pixels.astype('>u2') * 257,
                  (pixels / 255).astype('>f4')):
        found = to_tensor(image)
        assert found.dtype == torch.float32 and (found - wanted).abs().max() < 1e-6
    grey = pixels[..., 0]
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert deep.mode == 'I;16'
    for image in (grey, Image.fromarray(grey), deep, Image.fromarray(grey.astype(np.int32) * 257),
                  Image.fromarray(grey.astype(np.float32) / 255)):
        found = to_tensor(image)
        assert found.shape == (3, 5, 7) and (found - wanted[0]).abs().max() < 1e-6
    assert (to_numpy(wanted) == pixels / np.float32(255)).all()


@pytest.mark.parametrize('image, words', [
    (np.zeros((4, 5, 4), np.uint8), r'\(4, 5, 4\)'), (np.zeros((4, 5, 3), np.int64), 'int64'),
    (torch.zeros(4, 5), r'\(4, 5\)'), ([1, 2], 'list'), ('missing.png', 'does not exist'),
    (np.zeros((4, 5, 3), object), 'holds object: expected uint8'), (np.zeros((4, 5), 'S3'), r'holds \|S3'),
    (np.zeros((4, 5), '>i4'), 'int32'), (np.zeros((4, 5), np.longdouble), 'holds float128|holds longdouble'),
    (Image.new('I', (4, 5), -1), 'mode I holds -1 to -1: expected 0 to 65535'),
    (Image.new('I', (4, 5), 65536), 'expected 0 to 65535'), (Image.new('F', (4, 5), 1.5), r'outside of \[0, 1\]')])
def test_what_is_no_picture(image, words):
    with pytest.raises(UserError, match=words):
        to_tensor(image)


@pytest.mark.parametrize('call, words', [
    (lambda r: r.open('photo.png'), 'to_tensor'), (lambda r: r.open(torch.rand(4, 5)), '(3, height, width)'),
    (lambda r: r.open(np.zeros((3, 4, 5), np.uint8)), 'found torch.uint8 (3, 4, 5): engine.rendering.api.to_tensor'),
    (lambda r: r.open(torch.rand(3, 4, 5)).render(5), 'found 5'),
    (lambda r: r.open(torch.rand(3, 4, 5)).render((5, 2.5)), 'whole numbers'),
    (lambda r: r.open(torch.rand(3, 4, 5)).render((5, 0)), 'whole numbers'),
    (lambda r: r.open(torch.rand(3, 4, 5)).render((5, 6), dtype='int8'), 'uint16'),
    (lambda r: r.open(torch.rand(3, 4, 5)).render((5, 6), (1, 1, 2)), 'found (1, 1, 2), expected x,y,width,height'),
    (lambda r: r.open(torch.rand(3, 4, 5)).render((5, 6), 2), 'found 2, expected x,y,width,height'),
    (lambda r: dataclasses.replace(r, precision='half'), "precision: found 'half'"),
    (lambda r: dataclasses.replace(r, precision='fp16'), 'bf16')])
def test_wrong_arguments_are_told_in_one_line(folder, call, words):
    with pytest.raises(UserError) as error:
        call(load_renderer('model.pth', gpu='cpu'))
    assert words in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('before, code, words', [
    ('', 0, '(3, 16, 18)'),
    ('sys.modules["datasets"] = types.ModuleType("datasets")', 1, "a module 'datasets' from elsewhere"),
    ('sys.modules["engine"] = types.ModuleType("engine")', 1, "a module 'engine' from elsewhere"),
    (f'sys.modules["utils"] = types.ModuleType("utils")\nsys.modules["utils"].__file__ = "{ROOT}2/utils.py"', 1,
     "a module 'utils' from elsewhere")])
def test_torch_hub(tmp_path, before, code, words):
    """From another folder, in a process that has nothing of the project on its path."""
    script = f"""import sys, types, torch
{before}
renderer = torch.hub.load({os.path.relpath(ROOT, tmp_path)!r}, 'edsr_baseline_liif', source='local', gpu='cpu')
print(tuple(renderer.open(torch.rand(3, 8, 9)).render((16, 18)).shape))
"""
    done = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code and words in done.stdout + done.stderr


def stand_in_weights(tmp_path, monkeypatch):
    """A folder used as weights/, with 'clean' and 'photo', whose first weights in the decoder are 1 and 2."""
    for value, name in ((1, 'mine'), (2, 'edsr-baseline-liif-photo')):
        model = small_model()
        with torch.no_grad():
            model.imnet.layers[0].weight[0, 0] = value
        os.makedirs(tmp_path / 'weights' / name)
        save_checkpoint(str(tmp_path / 'weights' / name / 'model.pth'),
                        {'model': {**small_spec(), 'sd': model.state_dict()}})
    (tmp_path / 'weights' / 'default.txt').write_text('mine\n')
    monkeypatch.setattr('engine.checkpoint.WEIGHTS', str(tmp_path / 'weights'))
    runtime.say_once.cache_clear()
    return str(tmp_path / 'weights')


def test_a_checkpoint_without_a_decoder(tmp_path):
    import models
    spec = {'name': 'liif', 'args': {'encoder_spec': {'name': 'edsr-baseline', 'args': {
        'n_resblocks': 1, 'n_feats': 8, 'scale': 2}}}}
    path, encoder = str(tmp_path / 'plain.pth'), spec['args']['encoder_spec']
    save_checkpoint(path, {'model': {**encoder, 'sd': fill_model(models.make(encoder)).state_dict()}})
    with pytest.raises(UserError, match='no decoder'):
        load_renderer(path, gpu='cpu')
    save_checkpoint(path, {'model': {**spec, 'sd': fill_model(models.make(spec)).state_dict()}})
    scene = load_renderer(path, gpu='cpu', precision='auto').open(torch.rand(3, 5, 7))
    assert scene.render((10, 14)).shape == (3, 10, 14)
    for size, region in (((15, 21), None), ((2, 2), (0, 0, 1, 1))):
        with pytest.raises(UserError, match='only pixels at x2: .* expected 14x10'):
            scene.render(size, region)


def test_the_weights_of_the_project_are_the_default(tmp_path, monkeypatch, capsys):
    weights = stand_in_weights(tmp_path, monkeypatch)
    assert load_renderer(gpu='cpu', precision='bf16').precision == 'bf16'
    assert 'clean (' in (said := capsys.readouterr().err) and 'which come with the project' in said
    assert os.path.join('mine', 'model.pth') in said and weights


def weight_of(renderer):
    return renderer.model.imnet.layers[0].weight[0, 0].item()


def test_the_kind_of_a_file_chooses_the_weights(tmp_path, monkeypatch, capsys):
    """By its content: the names of the files here lie."""
    weights, pixels = stand_in_weights(tmp_path, monkeypatch), np.full((8, 9, 3), 99, np.uint8)
    for name, kind, wanted, said in (('a.png', 'JPEG', 2, 'photo'), ('b.jpg', 'PNG', 1, 'clean'),
                                     ('c.tif', 'WEBP', 2, 'photo'), ('d.jpg', 'TIFF', 1, 'clean')):
        Image.fromarray(pixels).save(tmp_path / name, kind)
        assert weight_of(load_renderer(gpu='cpu', image=str(tmp_path / name))) == wanted
        assert re.fullmatch(rf'using the weights {said} \(.*\), for {kind} images.*\n', capsys.readouterr().err, re.I)
    (tmp_path / 'e.jpg').write_text('no image')
    assert weight_of(load_renderer(gpu='cpu', image=str(tmp_path / 'e.jpg'))) == 1
    assert weight_of(load_renderer('photo', gpu='cpu')) == 2 and weight_of(load_renderer('clean', gpu='cpu')) == 1
    assert weight_of(load_renderer('clean', gpu='cpu', image=str(tmp_path / 'a.png'))) == 1  # what is named is taken
    os.remove(os.path.join(weights, 'edsr-baseline-liif-photo', 'model.pth'))
    capsys.readouterr()
    assert weight_of(load_renderer(gpu='cpu', image=str(tmp_path / 'a.png'))) == 1
    assert 'since the photo weights are not here yet' in capsys.readouterr().err
    with pytest.raises(UserError, match='the photo weights are not here yet: docs/photos.md'):
        load_renderer('photo', gpu='cpu')
    monkeypatch.chdir(tmp_path)
    os.mkdir('clean')  # a folder of that name is not meant
    assert weight_of(load_renderer('clean', gpu='cpu')) == 1
