"""The encoder, the decoder and the data wrapper of docs/adding-a-model.md, from files outside the project."""
import importlib.util
import os
import random
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import DataLoader

import datasets
import models
from datasets.loader import make_loader, unpack
from engine.config import load_config
from engine.evaluation.evaluate import eval_psnr
from engine.rendering.renderer import Renderer
from tests.common import ROOT
from tests.programs import program


def example(name):
    """The code on the page docs/adding-a-model.md that registers `name`."""
    with open(os.path.join(ROOT, 'docs', 'adding-a-model.md'), encoding='utf-8') as f:
        blocks = re.findall(r'^```python\n(.*?)^```$', f.read(), re.MULTILINE | re.DOTALL)
    found, = [block for block in blocks if f"@register('{name}')" in block]
    return found


SPEC = {'name': 'nearest-code', 'args': {
    'encoder_spec': {'name': 'three-convolutions', 'args': {'n_feats': 16}},
    'imnet_spec': {'name': 'mlp', 'args': {'out_dim': 3, 'hidden_list': [32]}}}}
NORM = {'inp': {'sub': [0.5], 'div': [0.5]}, 'gt': {'sub': [0.5], 'div': [0.5]}}


@pytest.fixture
def extensions(tmp_path, monkeypatch):
    """Import the page's three files from a folder outside the project; what they register is forgotten afterwards."""
    for registry in (models.registry, datasets.registry):
        monkeypatch.setattr(registry, 'entries', dict(registry.entries))
    for i, name in enumerate(('three-convolutions', 'nearest-code', 'noisy-crops')):
        path = tmp_path / f'extension{i}.py'
        path.write_text(example(name))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize('package, name', [('models', 'three-convolutions'), ('models', 'nearest-code'),
                                           ('datasets', 'noisy-crops')])
def test_a_file_in_the_package_and_its_import_line(tmp_path, package, name):
    shutil.copy(os.path.join(ROOT, 'utils.py'), tmp_path)
    for folder in ('models', 'datasets'):
        shutil.copytree(os.path.join(ROOT, folder), tmp_path / folder, ignore=shutil.ignore_patterns('__pycache__'))
    (tmp_path / package / 'mine.py').write_text(example(name))
    lines = (tmp_path / package / '__init__.py').read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith('from '))
    lines.insert(first + 1, 'from . import mine')
    (tmp_path / package / '__init__.py').write_text('\n'.join(lines))
    done = program('-c', f'import {package}; print({name!r} in {package}.registry.entries)', cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, 'True\n'), done.stderr


@pytest.fixture
def photos(tmp_path):
    """A folder of three smooth colour images of 40x56 pixels."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    y, x = np.mgrid[:40, :56] / 40
    for i in range(3):
        waves = [np.sin((i + 2) * y + (c + 1) * x + c) for c in range(3)]
        Image.fromarray((127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)).save(folder / f'{i}.png')
    return folder


def test_trains_on_published_batches(extensions, photos):
    """The plain loop of the LIIF family: float items, torch's own DataLoader, the model's forward."""
    images = datasets.make({'name': 'image-folder', 'args': {'root_path': str(photos), 'repeat': 4}})
    data = datasets.make({'name': 'sr-implicit-downsampled', 'args': {
        'inp_size': 12, 'scale_max': 3, 'sample_q': 100, 'augment': True}}, args={'dataset': images})
    torch.manual_seed(0)
    random.seed(0)
    model = models.make(SPEC)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(10):
        for batch in DataLoader(data, batch_size=4, shuffle=True):
            assert batch['inp'].shape == (4, 3, 12, 12) and batch['inp'].dtype == torch.float32
            assert batch['coord'].shape == batch['cell'].shape == (4, 100, 2) and batch['gt'].shape == (4, 100, 3)
            pred = model((batch['inp'] - 0.5) / 0.5, batch['coord'], batch['cell'])
            loss = (pred - (batch['gt'] - 0.5) / 0.5).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_with_the_project(extensions, photos, tmp_path):
    """Checkpoint spec, loader, evaluation and rendering take the model and the wrapper as they take ours."""
    images = datasets.make({'name': 'image-folder', 'args': {'root_path': str(photos)}})
    data = datasets.make({'name': 'noisy-crops', 'args': {'size': 16}}, args={'dataset': images})
    first, again = [next(iter(make_loader(data, 3, seed=7, train=True, num_workers=0))) for _ in range(2)]
    assert torch.equal(first['inp'], again['inp'])  # its own use of random and torch follows the seed
    batch = unpack(first, torch.device('cpu'))

    torch.manual_seed(0)
    model = models.make(SPEC)
    with torch.no_grad():
        whole = model(batch['inp'], batch['coord'], batch['cell'])
    assert whole.shape == (3, 256, 3)
    copy = models.make({**SPEC, 'sd': model.state_dict()}, load_sd=True)
    loader = make_loader(data, 2, seed=0, train=False, num_workers=0)
    psnr = eval_psnr(loader, model, NORM)
    assert psnr == eval_psnr(loader, copy, NORM)
    assert abs(psnr - eval_psnr(loader, model, NORM, eval_bsize=100)) < 1e-3

    out = Renderer(model, NORM).open(images[0]).render((31, 50))
    assert out.shape == (3, 31, 50)
    corner = model.eval()((images[0][None] - 0.5) / 0.5, torch.tensor([[[-1 + 1 / 31, -1 + 1 / 50]]]),
                          torch.tensor([[[2 / 31, 2 / 50]]]))
    assert torch.allclose(out[:, 0, 0], (corner[0, 0] * 0.5 + 0.5).clamp(0, 1), atol=1e-5)


def test_our_decoder_renders_their_encoder_in_tiles(extensions, photos):
    image = datasets.make({'name': 'image-folder', 'args': {'root_path': str(photos)}})[0]
    torch.manual_seed(0)
    model = models.make({**SPEC, 'name': 'liif'})
    whole, tiles = [Renderer(model, NORM, tile=tile).open(image).render((90, 101)) for tile in (None, 16)]
    assert torch.allclose(whole, tiles, atol=1e-5)


def test_config_checks_their_arguments(extensions, photos, tmp_path):
    data = {'dataset': {'name': 'image-folder', 'args': {'root_path': str(photos)}},
            'wrapper': {'name': 'noisy-crops', 'args': {'size': 16}}, 'batch_size': 2}
    config = {'train_dataset': data, 'model': SPEC, 'epoch_max': 1,
              'optimizer': {'name': 'adam', 'args': {'lr': 0.001}}}
    path = tmp_path / 'config.yaml'
    path.write_text(yaml.safe_dump(config))
    assert load_config(str(path))['model'] == SPEC
    data['wrapper']['args'] = {'sise': 16}
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match='did you mean size'):
        load_config(str(path))


def test_one_file_and_one_import_line(tmp_path):
    """In a copy of the project: the two files go into models/, two import lines into its __init__.py, no more."""
    shutil.copytree(os.path.join(ROOT, 'models'), tmp_path / 'models', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(os.path.join(ROOT, 'utils.py'), tmp_path)
    (tmp_path / 'models' / 'mine.py').write_text(example('three-convolutions'))
    (tmp_path / 'models' / 'theirs.py').write_text(example('nearest-code'))
    with open(tmp_path / 'models' / '__init__.py', 'a') as f:
        f.write('from . import mine\nfrom . import theirs\n')
    code = f'import models, torch; model = models.make({SPEC!r}); x = torch.zeros(2, 5, 2); ' \
           'print(tuple(model(torch.zeros(2, 3, 6, 8), x, x + 0.1).shape))'
    result = program('-c', code, cwd=tmp_path)
    assert result.stdout.strip() == '(2, 5, 3)', result.stderr
