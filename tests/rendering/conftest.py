"""Small checkpoints, and a run of demo.py with one of them."""
import numpy as np
import pytest
from PIL import Image

import demo
import models
from engine.checkpoint import save_checkpoint
from tests.common import small_model, small_spec
from tests.rendering.common import Overflow


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The registry knows `Overflow` in these tests alone."""
    monkeypatch.setitem(models.registry.entries, 'demo-test-overflow', Overflow)


@pytest.fixture(scope='session')
def checkpoints(tmp_path_factory):
    """Paths of small checkpoints, by name."""
    folder = tmp_path_factory.mktemp('checkpoints')
    fixed = {'name': 'edsr-baseline', 'args': {'n_resblocks': 1, 'n_feats': 8, 'scale': 2}}
    specs = {'liif': small_spec(), 'fixed': {'name': 'liif', 'args': {'encoder_spec': fixed}}, 'encoder': fixed,
             'overflow': {'name': 'demo-test-overflow', 'args': {}},
             'broken': {'name': 'demo-test-overflow', 'args': {'broken': True}}}
    for name, spec in specs.items():
        model = small_model() if name == 'liif' else Overflow(**spec['args']) if spec['name'] == 'demo-test-overflow' \
            else models.make(spec)
        checkpoint = {'model': {**spec, 'sd': model.state_dict()}, 'epoch': 1}
        if name == 'liif':
            checkpoint['ema'] = {key: 0.5 * value for key, value in model.state_dict().items()}
        save_checkpoint(str(folder / f'{name}.pth'), checkpoint)
    (folder / 'cut.pth').write_bytes((folder / 'liif.pth').read_bytes()[:5000])
    (folder / 'text.pth').write_text('no checkpoint')
    return {path.stem: str(path) for path in folder.iterdir()}


@pytest.fixture
def upscale(tmp_path, checkpoints):
    """Run demo.py on an image (pixels or a path): what is in the output, its path, unless another name is given."""
    def run(image, *options, name='out.png', model='liif'):
        source = image
        if not isinstance(image, str):
            source = str(tmp_path / 'in.png')
            (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(source)
        output = str(tmp_path / name)
        demo.main([source, '--output', output, '--model', checkpoints[model], '--gpu', 'cpu', '--precision', 'float32',
                   *options])
        return output
    return run
