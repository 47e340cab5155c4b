"""ONNX: the two graphs equal PyTorch at sizes they were not traced with, and upscale an image without it."""
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from engine.checkpoint import PUBLISHED_NORM
from engine.rendering.api import load_renderer, to_numpy, to_tensor
from tests.common import small_model
from tests.conftest import ROOT
from tests.rendering.test_api import save_small
from utils import UserError


for package in ('onnx', 'onnxscript', 'onnxruntime'):
    pytest.importorskip(package, reason=f'{package} is not installed (requirements-optional.txt)')
sys.path.append(os.path.join(ROOT, 'scripts'))
import export_onnx  # noqa: E402 (where it is found comes first)


@pytest.fixture(scope='module')
def graphs(tmp_path_factory):
    """A folder with model.pth, encoder.onnx and decoder.onnx, written by the script."""
    folder = tmp_path_factory.mktemp('onnx')
    export_onnx.main(['--model', save_small(folder / 'model.pth'), '--output', str(folder)])
    return folder


def test_the_graphs_are_free_in_size_and_one_file_each(graphs):
    import onnx
    names = {'encoder.onnx': {'image': [1, 3, 'height', 'width']},
             'decoder.onnx': {'codes': ['height', 'width', 16], 'coord': ['queries', 2], 'cell': ['queries', 2]}}
    for name, wanted in names.items():
        graph = onnx.load(str(graphs / name), load_external_data=False).graph
        found = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input}
        assert found == wanted
        assert all(t.data_location == onnx.TensorProto.DEFAULT for t in graph.initializer)
    assert sorted(os.listdir(graphs)) == ['decoder.onnx', 'encoder.onnx', 'model.pth']


def test_they_equal_pytorch_where_the_script_did_not_look(graphs):
    model = small_model()
    parts = [(graphs / name).read_bytes() for name in ('encoder.onnx', 'decoder.onnx')]
    sizes, scales = [(31, 46), (2, 2), (9, 1), (1, 1)], [1, 7, 0.6, 2.5]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_onnx, 'SIZES', sizes)
        patch.setattr(export_onnx, 'SCALES', scales)
        assert export_onnx.largest_difference(model, PUBLISHED_NORM, *parts) <= 1e-5


def test_nan_and_other_weights_fail_the_check(graphs):
    parts = [(graphs / name).read_bytes() for name in ('encoder.onnx', 'decoder.onnx')]
    for off in (float('nan'), 0.01):
        model = small_model().requires_grad_(False)
        model.imnet.layers[-1].bias += off
        with pytest.raises(UserError, match='differ from PyTorch'):
            export_onnx.largest_difference(model, PUBLISHED_NORM, *parts)


def test_without_the_ensemble(tmp_path):
    """Nothing is moved by 1e-6 then: ties are those of nearest grid_sample itself."""
    parts = export_onnx.export(small_model(local_ensemble=False), PUBLISHED_NORM)
    assert export_onnx.largest_difference(small_model(local_ensemble=False), PUBLISHED_NORM, *parts) <= 1e-5


def test_upscale_without_pytorch(graphs):
    photo, large = str(graphs / 'photo.png'), str(graphs / 'large.png')
    pixels = np.random.default_rng(3).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    code = ('import runpy, sys; sys.modules["torch"] = None; '
            f'runpy.run_path({os.path.join(ROOT, "scripts", "upscale_onnx.py")!r}, run_name="__main__")')

    def run(*args):
        return subprocess.run([sys.executable, '-c', code, photo, '--graphs', str(graphs), '--output', *args],
                              capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})

    done = run(large, '--resolution', '160,211')  # more queries than one chunk
    assert done.returncode == 0, done.stderr
    with Image.open(large) as image:
        found = np.asarray(image).astype(int)
    scene = load_renderer(str(graphs / 'model.pth'), gpu='cpu').open(to_tensor(photo))
    wanted = to_numpy(scene.render((160, 211), dtype='uint8')).astype(int)
    assert found.shape == wanted.shape and abs(found - wanted).max() <= 1
    alpha = np.full((33, 47, 1), 200, np.uint8)
    Image.fromarray(np.concatenate([pixels, alpha], axis=2)).save(photo)
    for output, mode in ((large, 'RGBA'), (str(graphs / 'large.jpg'), 'RGB')):
        done = run(output, '--resolution', '160,211')
        assert done.returncode == 0, done.stderr
        with Image.open(output) as image:
            assert image.mode == mode
            if mode == 'RGBA':
                assert np.array_equal(np.asarray(image)[..., :3], found) and (np.asarray(image)[..., 3] == 200).all()
    for output, size in ((large, '0,5'), (large + '.what', '5,5'), (str(graphs / 'missing' / 'a.png'), '5,5')):
        done = run(output, '--resolution', size)
        assert done.returncode == 2 and done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
    assert not [name for name in os.listdir(graphs) if name.startswith('.')]


def test_a_model_that_cannot_be_exported(tmp_path):
    import models
    from engine.checkpoint import save_checkpoint
    spec = {'name': 'metasr', 'args': {'encoder_spec': {'name': 'edsr-baseline', 'args': {
        'n_resblocks': 1, 'n_feats': 8, 'no_upsampling': True}}}}
    path = str(tmp_path / 'metasr.pth')
    save_checkpoint(path, {'model': {**spec, 'sd': models.make(spec).state_dict()}})
    with pytest.raises(UserError, match='MetaSR'):
        export_onnx.main(['--model', path, '--output', str(tmp_path / 'out')])
    assert not (tmp_path / 'out').exists()
