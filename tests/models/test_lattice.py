"""The lattice decode: close to the exact decode on trained weights, equal at the nodes, parts equal to the whole."""
import functools

import pytest
import torch

import models
from engine.rendering.api import load_renderer
from models import lattice
from models.lattice import make_lattice, on_grid, resample
from tests.common import error, small_model, small_spec
from tests.models.test_fast_path import SWITCHES
from utils import UserError, axis_coord


def psnr(found, wanted):
    """Of values in [-1, 1]."""
    return -10 * torch.log10(((found - wanted) / 2).pow(2).mean()).item()


def encoded(model, shape=(7, 10), b=1, seed=0):
    with torch.no_grad():
        return model.encode(torch.rand(b, 3, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1)


def grid(codes, scale_y, scale_x=None):
    """y, x, cell of the whole image at these scales."""
    size = [max(1, round(n * s)) for n, s in zip(codes.shape, (scale_y, scale_x or scale_y))]
    return axis_coord(size[0]), axis_coord(size[1]), torch.tensor([2 / n for n in size])


def exact(model, codes, y, x, cell):
    with torch.no_grad():
        return model.decode_grid(codes, y, x, cell)


@functools.cache
def trained():
    return load_renderer(None, gpu='cpu').model


@functools.cache
def photograph(name, step):
    """Codes by the trained weights of 14x16 pixels out of the middle of a photograph, made smaller by `step`."""
    data = pytest.importorskip('skimage.data', reason='the photographs come with scikit-image')
    image = torch.from_numpy(getattr(data, name)().copy()).permute(2, 0, 1)[None] / 127.5 - 1
    image = torch.nn.functional.interpolate(image, scale_factor=1 / step, mode='bicubic', antialias=True)
    h, w = image.shape[-2:]
    with torch.no_grad():
        return trained().encode(image[..., h // 2 - 7:h // 2 + 7, w // 2 - 8:w // 2 + 8])


# The distance depends on the image: hard edges cost 7 to 9 dB.
@pytest.mark.parametrize('name, step, bounds', [('chelsea', 2, (65, 70, 74)), ('astronaut', 1, (57, 63, 66))])
@pytest.mark.parametrize('scale', [8, 13, 30])
def test_distance_from_the_exact_decode(name, step, bounds, scale):
    codes = photograph(name, step)
    y, x, cell = grid(codes, scale)
    y = y[:len(y) // 2] if scale == 30 else y
    wanted = exact(trained(), codes, y, x, cell)
    found = [psnr(on_grid(trained(), codes, y, x, cell, g), wanted) for g in (4, 6, 8)]
    assert all(f >= bound for f, bound in zip(found, bounds)), found


def test_bf16_evaluation():
    codes = photograph('chelsea', 2)
    y, x, cell = grid(codes, 8)
    with torch.autocast('cpu', torch.bfloat16):
        found = on_grid(trained(), codes, y, x, cell)
    assert found.dtype == torch.float32 and psnr(found, exact(trained(), codes, y, x, cell)) > 60


@pytest.mark.parametrize('switches', SWITCHES, ids=str)
def test_converges_as_the_lattice_grows_finer(switches):
    """Random weights, an anisotropic scale, two images."""
    model = small_model(**switches)
    codes = encoded(model, b=2)
    y, x, cell = grid(codes, 5.3, 8.1)
    wanted = exact(model, codes, y, x, cell)
    found = [error(on_grid(model, codes, y, x, cell, g), wanted) for g in (1, 4, 16, 32)]
    assert all(b < a for a, b in zip(found, found[1:])) and found[-1] < 3e-3, found


def test_a_linear_decoder_is_reproduced():
    """Biases that leave every ReLU open make f linear in the offset, and interpolation exact."""
    model = small_model()
    for layer in model.imnet.layers[::2][:-1]:
        layer.bias.data += 1e3
    model = model.double()
    with torch.no_grad():
        codes = model.encode(torch.rand(1, 3, 7, 10, dtype=torch.float64))
    y, x, cell = (t.double() for t in grid(codes, 6.7))
    assert error(on_grid(model, codes, y, x, cell, 2), exact(model, codes, y, x, cell)) <= 1e-5


@pytest.mark.parametrize('switches', [SWITCHES[0], SWITCHES[4], SWITCHES[-1]], ids=str)
@pytest.mark.parametrize('g', [1, 2, 5, 8])
def test_nodes_are_reproduced(switches, g):
    """Queries whose offsets are nodes, in float64 so that they are met; outside of the last half code, too."""
    model = small_model(**switches).double()
    with torch.no_grad():
        codes = model.encode(torch.rand(1, 3, 6, 8, dtype=torch.float64))
    offsets = (torch.arange(2 * g + 1, dtype=torch.float64) - g) * lattice.node_spacing(model, g)
    axes = []
    for n in codes.shape:
        centres = axis_coord(n, dtype=torch.float64)[:, None]
        x = (centres + offsets[offsets.abs() < 1] / n).flatten().sort()[0]
        axes.append(x)
    cell = torch.tensor([0.05, 0.04], dtype=torch.float64)
    found = resample(model, make_lattice(model, codes, cell, g), *axes)
    assert error(found, exact(model, codes, *axes, cell)) <= 1e-5


@pytest.mark.parametrize('scale', [1, 3, 5, 4, 0.4, (2.5, 9)])
@pytest.mark.parametrize('local_ensemble', [True, False])
def test_ties_borders_and_small_outputs(scale, local_ensemble):
    """The last row and column at odd scales, where 1e-9 decides, x1 and below."""
    model = small_model(local_ensemble=local_ensemble)
    codes = encoded(model)
    y, x, cell = grid(codes, *(scale if isinstance(scale, tuple) else (scale,)))
    assert error(on_grid(model, codes, y, x, cell, 16), exact(model, codes, y, x, cell)) <= 5e-3


def test_one_code():
    model = small_model()
    codes = encoded(model, (1, 1))
    y, x, cell = grid(codes, 9)
    assert error(on_grid(model, codes, y, x, cell, 16), exact(model, codes, y, x, cell)) <= 5e-3


def test_parts_equal_the_whole(monkeypatch):
    """Regions, strips, windows of codes and lattices of a part of them."""
    model = small_model()
    inp = torch.rand(1, 3, 21, 30, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        codes, window = model.encode(inp), model.encode(inp, (5, 6, 19, 25))
    y, x, cell = grid(codes, 5)
    kept = make_lattice(model, codes, cell, 4)
    whole = resample(model, kept, y, x)
    assert error(on_grid(model, codes, y, x, cell, 4), whole) <= 1e-6
    rows, columns = slice(31, 90), slice(37, 118)
    wanted = whole[..., rows, columns]
    assert torch.equal(resample(model, kept, y[rows], x[columns]), wanted)
    assert error(on_grid(model, window, y[rows], x[columns], cell, 4), wanted) <= 1e-5
    span = lattice.code_span(model, codes, y[rows], x[columns])
    part = make_lattice(model, codes, cell, 4, span)
    assert kept.covers(span) and part.covers(span) and not part.covers(kept.span)
    assert error(resample(model, part, y[rows], x[columns]), wanted) <= 1e-5
    monkeypatch.setattr('models.lattice.STRIP', 3000)
    monkeypatch.setattr('models.decode.CPU_CHUNK', 4 * 16 * 23)
    assert error(on_grid(model, codes, y, x, cell, 4), whole) <= 1e-5


def test_strips_hold_one_lattice_at_a_time(monkeypatch):
    model, sizes = small_model(), []
    codes = encoded(model, (90, 5))
    make = lattice.make_lattice
    monkeypatch.setattr('models.lattice.STRIP', 10_000)
    monkeypatch.setattr('models.lattice.make_lattice', lambda *args: sizes.append(args[4]) or make(*args))
    on_grid(model, codes, *grid(codes, 3), 2)
    assert len(sizes) == 4 and max(bottom - top for top, _, bottom, _ in sizes) <= 30


def test_batches_equal_their_images():
    model, codes = small_model(), encoded(small_model(), b=3)
    y, x, cell = grid(codes, 5)
    together = on_grid(model, codes, y, x, cell, 3)
    for i in range(3):
        with torch.no_grad():
            one = model.encode_features(codes.feat[i:i + 1])
        assert error(on_grid(model, one, y, x, cell, 3), together[i:i + 1]) <= 1e-5


def test_no_gradients_and_no_pixels():
    model = small_model()
    codes = model.encode(torch.rand(1, 3, 5, 6))
    y, x, cell = grid(codes, 4)
    assert not on_grid(model, codes, y, x, cell, 2).requires_grad
    assert on_grid(model, codes, y[:0], x, cell, 2).shape == (1, 3, 0, 24)
    assert resample(model, make_lattice(model, codes, cell, 2), y, x[:0]).shape == (1, 3, 20, 0)


@pytest.mark.parametrize('g', [0, 33, -1, 2.0, True, None, '6'])
def test_senseless_densities_are_refused(g):
    model = small_model()
    codes = encoded(model)
    for decode in (lambda: make_lattice(model, codes, torch.tensor([0.1, 0.1]), g),
                   lambda: on_grid(model, codes, *grid(codes, 2), g)):
        with pytest.raises(UserError, match='lattice: found .*expected a whole number from 1 to 32') as raised:
            decode()
        assert '\n' not in str(raised.value)


def test_which_models_have_a_lattice():
    class Own(models.liif.LIIF):
        def query_rgb(self, coord, cell=None):
            return super().query_rgb(coord, cell)

    encoder = small_spec()['args']['encoder_spec']
    own, one_layer = small_model(), small_model(hidden=())
    own.__class__ = Own
    metasr = models.make({'name': 'metasr', 'args': {'encoder_spec': encoder}})
    fixed = models.make({'name': 'liif', 'args': {'encoder_spec': {'name': 'edsr-baseline', 'args': {
        'n_resblocks': 1, 'n_feats': 4, 'scale': 2}}}})
    found = [lattice.has_lattice(m) for m in (small_model(), own, one_layer, metasr, fixed,
                                              models.make({'name': 'bicubic'}))]
    assert found == [True, False, False, False, False, False]
