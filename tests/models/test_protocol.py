"""The protocol of the LIIF family holds for whoever overrides a part of it, or touches the features in between."""
import types

import pytest
import torch

import models
from engine.evaluation.evaluate import predict
from engine.rendering.renderer import Renderer
from models import decodes_grids, textbook
from models.decode import linear_layers
from models.liif import LIIF
from tests.common import error, fill_model, small_model, small_spec
from tests.models.test_fast_path import queries
from utils import UserError, make_coord


IMG = torch.rand(3, 9, 11, generator=torch.Generator().manual_seed(0))
NORM = {'inp': {'sub': [0.5], 'div': [0.5]}, 'gt': {'sub': [0.5], 'div': [0.5]}}


class Inverted(LIIF):
    def query_rgb(self, coord, cell=None):
        return -LIIF.query_rgb(self, coord, cell)


class Louder(LIIF):
    def gen_feat(self, inp):
        self.feat = 2 * self.encoder(inp)
        return self.feat


class Backwards(LIIF):
    def forward(self, inp, coord, cell):
        return super().forward(inp, coord, cell).flip(-1)


def assigned():
    model = small_model()
    model.query_rgb = types.MethodType(Inverted.query_rgb, model)
    return model


def changed(kind):
    model = small_model()
    model.__class__ = kind
    return model


def by_hand(model, coord, cell):
    """What the published programs compute: features, then queries in chunks."""
    with torch.no_grad():
        model.gen_feat((IMG[None] - 0.5) / 0.5)
        return torch.cat([model.query_rgb(c, s) for c, s in zip(coord.split(100, 1), cell.split(100, 1))], dim=1)


@pytest.mark.parametrize('make', [lambda: changed(Inverted), lambda: changed(Louder), assigned])
def test_overridden_parts_are_used_everywhere(make):
    size = (14, 20)
    coord = make_coord(size)[None]
    cell = torch.tensor([2 / n for n in size]).expand_as(coord)
    model, plain = make(), small_model()
    inp = (IMG[None] - 0.5) / 0.5
    wanted = by_hand(model, coord, cell)  # (1, Q, 3)
    assert error(wanted, by_hand(plain, coord, cell)) > 0.1 and decodes_grids(plain) and not decodes_grids(model)
    assert error(model(inp, coord, cell), wanted) <= 1e-5
    for grid in ({'coord': None, 'cell': cell[:, :1]}, {'coord': coord, 'cell': cell}):
        for bsize in (None, 64):
            batch = {**grid, 'size': torch.tensor([size])}
            assert error(predict(model, inp, batch, bsize), wanted) <= 1e-5
    renderer = Renderer(model, NORM)
    scene = (renderer.open if hasattr(renderer, 'open') else renderer.encode)(IMG)
    assert torch.allclose(scene.render(size), (wanted[0].mT.view(3, *size) * 0.5 + 0.5).clamp(0, 1), atol=1e-5)
    assert model.halo is None
    with pytest.raises(UserError):
        Renderer(model, NORM, tile=8)


def test_an_overridden_forward_is_used():
    model, (coord, cell) = changed(Backwards), queries(1, 30)
    assert not decodes_grids(model)
    with torch.no_grad():
        assert torch.equal(model(IMG[None], coord, cell), small_model()(IMG[None], coord, cell).flip(-1))
        assert torch.equal(predict(model, IMG[None], {'coord': coord, 'cell': cell}), model(IMG[None], coord, cell))


def test_which_models_decode_grids():
    class Faster(Inverted):
        def decode_grid(self, codes, y, x, cell, chunk=None):
            return -super().decode_grid(codes, y, x, cell, chunk)

    metasr = models.make({'name': 'metasr', 'args': {'encoder_spec': small_spec()['args']['encoder_spec']}})
    found = [decodes_grids(m) for m in (models.make({'name': 'bicubic'}), models.make({'name': 'nearest'}),
                                        changed(Faster), metasr, torch.nn.Linear(1, 1))]
    assert found == [True, True, True, False, False]


@pytest.mark.parametrize('switches', [{}, {'feat_unfold': False, 'local_ensemble': False, 'cell_decode': False}])
def test_features_in_between_may_change(switches):
    """Replaced, written to, and read by changed weights: always the formula of what is there now."""
    model, (coord, cell) = small_model(**switches), queries(2, 40)

    def check():
        for _ in range(2):
            assert error(model.query_rgb(coord, cell), textbook.query(model, model.feat, coord, cell)) <= 1e-5

    with torch.no_grad():
        model.gen_feat(torch.rand(2, 3, 6, 7))
        check()
        model.feat = torch.rand(2, 8, 4, 5)  # another size, too
        check()
        model.feat[:, 2] += 1
        check()
        first = linear_layers(model.imnet)[0][0]
        first += 0.1
        check()
        first.data = torch.rand(first.shape) - 0.5
        model.gen_feat(torch.rand(2, 3, 6, 7))
        check()
    with torch.inference_mode():
        model.gen_feat(torch.rand(2, 3, 6, 7))
        check()


class Padded(torch.nn.Module):
    """Pads images to a multiple of 8, as SwinIR does, and returns features of all of it."""

    def __init__(self, window_size=None):
        super().__init__()
        self.body = torch.nn.Conv2d(3, 8, 1)
        if window_size is not None:
            self.window_size = window_size

    def forward(self, x):
        h, w = x.shape[-2:]
        return self.body(torch.nn.functional.pad(x, (0, -w % 8, 0, -h % 8)))


@pytest.mark.parametrize('name', ['liif', 'metasr'])
def test_features_of_padding_are_cut_off_or_refused(name):
    spec = small_spec() if name == 'liif' else {'name': 'metasr', 'args': {
        'encoder_spec': small_spec()['args']['encoder_spec']}}
    model = fill_model(models.make(spec))
    model.encoder = Padded(8)
    (coord, cell), inp = queries(1, 40), torch.rand(1, 3, 10, 13)
    with torch.no_grad():
        padded = model(inp, coord, cell)
        assert model.gen_feat(inp).shape[-2:] == (10, 13)
        model.encoder.forward = model.encoder.body  # without padding
        assert torch.allclose(padded, model(inp, coord, cell), atol=1e-6)
        model.encoder = Padded()
        assert model.gen_feat(torch.rand(1, 3, 16, 8)).shape[-2:] == (16, 8)
        with pytest.raises(UserError, match='16x16 features for an image of 13x10 pixels.*window_size'):
            model(inp, coord, cell)


def test_gradients_of_queries_on_frozen_features():
    """Features once without gradients, then steps on the decoder: its first layer gets all of its gradient."""
    model = fill_model(models.make(small_spec())).double()
    with torch.no_grad():
        model.gen_feat(torch.rand(1, 3, 5, 6, dtype=torch.float64))
    weights = list(model.imnet.parameters())
    for seed in range(2):
        coord, cell = queries(1, 30, seed, torch.float64)
        found = torch.autograd.grad(model.query_rgb(coord, cell).pow(2).sum(), weights)
        wanted = torch.autograd.grad(textbook.query(model, model.feat, coord, cell).pow(2).sum(), weights)
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(found, wanted))


def test_a_decoder_with_its_own_forward_runs_whole():
    """A subclass of the MLP, or an MLP with another activation, is not split."""
    class Doubled(models.mlp.MLP):
        def forward(self, x):
            return 2 * super().forward(x)

    (coord, cell), inp = queries(1, 30), torch.rand(1, 3, 5, 6)
    for change in (lambda m: setattr(m.imnet, '__class__', Doubled),
                   lambda m: m.imnet.layers.__setitem__(1, torch.nn.SiLU())):
        model = small_model()
        change(model)
        with torch.no_grad():
            assert error(model(inp, coord, cell), textbook.query(model, model.encoder(inp), coord, cell)) <= 1e-5
