"""Rendering: any size and region, tiles, self-ensemble, precision; equal to the model queried directly."""
import copy
import dataclasses

import numpy as np
import pytest
import torch

import models
from engine.rendering import renderer as render
from engine.rendering.renderer import Renderer
from models import textbook
from tests.common import fill_model, seeds, small_model, small_spec
from utils import UserError, make_coord


IMG = torch.rand(3, 37, 53, generator=torch.Generator().manual_seed(0))


def direct(model, size):
    """The whole image by the textbook formula, de-normalized and clamped."""
    coord = make_coord(size)[None]
    with torch.no_grad():
        rgb = textbook.query(model, model.encoder((IMG[None] - 0.5) / 0.5), coord,
                             torch.tensor([2 / size[0], 2 / size[1]]).expand_as(coord))
    return (rgb[0].mT.reshape(3, *size) * 0.5 + 0.5).clamp(0, 1)


@pytest.mark.parametrize('size', [(111, 159), (37, 53), (20, 200), (1, 1), (50, 30)])
@pytest.mark.parametrize('switches', [{}, {'local_ensemble': False}, {'feat_unfold': False}])
def test_equals_the_textbook_whole_or_in_tiles(size, switches):
    model = small_model(**switches)
    wanted = direct(model, size)
    for options in ({}, {'tile': 8}, {'tile': 1 << 20}, {'chunk': 7}, {'memory': 100_000}):
        assert (Renderer(model, **options).open(IMG).render(size) - wanted).abs().max() <= 1e-5, options


def test_a_budget_makes_tiles():
    renderer = Renderer(small_model(), memory=2_000_000)
    assert renderer.open(torch.rand(3, 100, 300)).tile < 100 <= Renderer(small_model()).open(IMG).tile * 2


@pytest.mark.parametrize('tile', [None, 9])
def test_a_region_is_the_crop_of_the_whole(tile):
    scene = Renderer(small_model(), tile=tile).open(IMG)
    whole = scene.render((111, 159))
    part = scene.render((60, 90), region=(10, 5, 30, 20))
    assert (part - whole[:, 15:75, 30:120]).abs().max() <= 1e-5
    tall = scene.render((37 * 4, 53 * 3))
    part = scene.render((10, 21), region=(7, 3.5, 7, 2.5))  # fractions, anisotropic
    assert (part - tall[:, 14:24, 21:42]).abs().max() <= 1e-5


@pytest.mark.parametrize('seed', seeds(0))
@pytest.mark.parametrize('ensemble', [False, True])
@pytest.mark.parametrize('scale', [1, 2, 3])
def test_regions_break_ties_as_the_whole_does(scale, ensemble, seed):
    """At odd scales queries lie half-way between codes, and at the end of an axis all four areas can vanish."""
    rng = np.random.default_rng([seed, scale])
    cases = [((26, 17), (4, 18, 11, 8))]
    for _ in range(8):
        h, w = rng.integers(2, 60, 2)
        y, x = rng.integers(h), rng.integers(w)
        cases.append(((h, w), (x, y, w - x if rng.random() < 0.5 else rng.integers(1, w - x + 1),
                               h - y if rng.random() < 0.5 else rng.integers(1, h - y + 1))))
    for size, region in cases:
        img = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
        scene = Renderer(small_model(), self_ensemble=ensemble).open(img)
        whole = scene.render((size[0] * scale, size[1] * scale))
        left, top, width, height = (n * scale for n in region)
        part = scene.render((int(height), int(width)), region)
        assert (part - whole[:, top:top + height, left:left + width]).abs().max() <= 1e-5, (size, region)


def test_a_region_far_below_a_pixel():
    for region in ((11.25, 8.5, 0.3, 0.2), (0, 0, 1e-320, 1e-320), (5, 6, 1e-320, 0.2)):
        out = Renderer(small_model()).open(IMG).render((20, 30), region)
        assert out.shape == (3, 20, 30) and out.isfinite().all()


def test_rectangles_cover_the_output_once():
    for options in ({}, {'tile': 10}, {'tile': 10, 'self_ensemble': True}):
        covered = torch.zeros(70, 90, dtype=torch.int)
        for top, left, rgb in Renderer(small_model(), **options).open(IMG).rectangles((70, 90)):
            covered[top:top + rgb.shape[1], left:left + rgb.shape[2]] += 1
        assert (covered == 1).all()


@pytest.mark.parametrize('scale', [1, 2, 3])
def test_self_ensemble_is_the_mean_over_the_symmetries(scale):
    model, size = small_model(), (37 * scale, 53 * scale)
    found = Renderer(model, self_ensemble=True).open(IMG).render(size)
    assert (Renderer(model, self_ensemble=True, tile=11).open(IMG).render(size) - found).abs().max() <= 1e-5
    outs = []
    linear = {'inp': {'sub': [0.5], 'div': [0.5]}, 'gt': {'sub': [0.5], 'div': [0.01]}}  # nothing is clamped
    for k in range(4):
        for flip in (False, True):
            img = torch.rot90(IMG, k, (1, 2))
            img = img.flip(2) if flip else img
            out = Renderer(model, linear).open(img).render((img.shape[1] * scale, img.shape[2] * scale))
            out = out.flip(2) if flip else out
            outs.append(torch.rot90(out, -k, (1, 2)))
    mean = torch.stack(outs).mean(0)
    ours = Renderer(model, linear, self_ensemble=True).open(IMG).render(size)
    assert 0 < mean.min() and mean.max() < 1
    assert (ours - mean).abs().max() <= 1e-5


def test_types():
    scene = Renderer(small_model()).open(IMG)
    exact = scene.render((50, 60))
    assert torch.equal(scene.render((50, 60), dtype=torch.uint8), (exact * 255 + 0.5).to(torch.uint8))
    deep = scene.render((50, 60), dtype='uint16').numpy()
    assert deep.dtype == 'uint16' and abs(deep / 65535 - exact.numpy()).max() <= 0.51 / 65535


def test_cell_clip():
    """Beyond the trained scale the cell stays; up to it nothing changes."""
    model = small_model()
    assert torch.equal(Renderer(model, cell_clip=4).open(IMG).render((74, 106)),
                       Renderer(model).open(IMG).render((74, 106)))
    clipped = Renderer(model, cell_clip=2).open(IMG).render((148, 212))
    coord = make_coord((148, 212))[None]
    with torch.no_grad():
        rgb = model((IMG[None] - 0.5) / 0.5, coord, torch.tensor([2 / 74, 2 / 106]).expand_as(coord))
    assert (clipped - (rgb[0].mT.reshape(3, 148, 212) * 0.5 + 0.5).clamp(0, 1)).abs().max() <= 1e-5


def test_half_precision_and_its_fallback():
    model = small_model()
    exact = Renderer(model).open(IMG).render((74, 106))
    scene = Renderer(model, precision='bf16').open(IMG)
    assert (scene.render((74, 106)) - exact).abs().max() < 0.05 and not scene.redone

    class Overflowing(type(model)):  # stands for a model whose half-precision values overflow
        def decode_grid(self, codes, *args, **kwargs):
            out = super().decode_grid(codes, *args, **kwargs)
            return out * float('inf') if codes.table.dtype != torch.float32 else out

    model.__class__ = Overflowing
    scene = Renderer(model, precision='bf16').open(IMG)
    assert torch.equal(scene.render((74, 106)), exact) and scene.redone


def test_models_with_the_protocol_alone(monkeypatch):
    """A model that only has gen_feat and query_rgb renders too, with two scenes in turn."""
    inner = small_model()

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def gen_feat(self, inp):
            return self.inner.gen_feat(inp)

        def query_rgb(self, coord, cell):
            return self.inner.query_rgb(coord, cell)

    monkeypatch.setattr(render, 'STRIP', 500)
    renderer = Renderer(Plain(), chunk=100)
    a, b = renderer.open(IMG), renderer.open(IMG.flip(2))
    first = a.render((41, 60))
    b.render((41, 60))
    assert torch.equal(a.render((41, 60)), first)
    assert (first - Renderer(inner).open(IMG).render((41, 60))).abs().max() <= 1e-6
    turned = [Renderer(m, self_ensemble=True).open(IMG).render((41, 60)) for m in (Plain(), inner)]
    assert (turned[0] - turned[1]).abs().max() <= 1e-6


def test_a_model_whose_imnet_is_none_needs_no_encode():
    class Plain(torch.nn.Module):
        imnet = None

        def gen_feat(self, inp):
            self.feat = inp

        def query_rgb(self, coord, cell):
            return coord.new_zeros(*coord.shape[:2], 3)

    assert (Renderer(Plain()).open(IMG).render((5, 6)) == 0.5).all()


@pytest.mark.parametrize('name', ['metasr', 'plain'])
def test_scenes_and_renderers_of_one_model_do_not_mix(name):
    """Of models that hold the features of one image; the second kind not in `feat`, and gen_feat returns nothing."""
    class Plain(torch.nn.Module):
        def gen_feat(self, inp):
            self.grey = inp.mean()

        def query_rgb(self, coord, cell):
            return self.grey.expand(*coord.shape[:2], 3)

    model = Plain() if name == 'plain' else fill_model(models.make(
        {'name': 'metasr', 'args': {'encoder_spec': small_spec()['args']['encoder_spec']}}))
    first = Renderer(model)
    second = dataclasses.replace(first, cell_clip=1)
    images = [(first, IMG), (second, IMG * 0.5), (second, IMG * 0.25)]
    wanted = [dataclasses.replace(r, model=copy.deepcopy(model)).open(img).render((41, 60)) for r, img in images]
    scenes = [r.open(img) for r, img in images]
    for i in (0, 1, 0, 2, 1, 2, 0):
        assert torch.equal(scenes[i].render((41, 60)), wanted[i])
    if name == 'metasr':
        model.gen_feat(torch.rand(1, 3, 5, 6))
        assert torch.equal(scenes[0].render((41, 60)), wanted[0])


def test_a_scene_encodes_once():
    model, count = small_model(), []
    model.encoder.register_forward_hook(lambda *_: count.append(1))
    scene = Renderer(model).open(IMG)
    assert not count
    assert scene.encode() is scene and len(count) == 1
    scene.render((50, 60)), scene.render((5, 6), (1, 2, 3, 4))
    assert len(count) == 1


def test_a_global_encoder_says_it_cannot_be_tiled():
    spec = {**small_spec(), 'args': {**small_spec()['args'], 'encoder_spec': {
        'name': 'rcan', 'args': {'n_resgroups': 1, 'n_resblocks': 1, 'n_feats': 16, 'no_upsampling': True}}}}
    model = models.make(spec)
    with pytest.raises(UserError, match='cannot be encoded in tiles exactly, because its encoder, RCAN'):
        Renderer(model, tile=16)
    assert Renderer(model, memory=1000).open(IMG).render((10, 10)).shape == (3, 10, 10)


def test_out_of_memory_shrinks_the_tiles():
    model = small_model()
    wanted = Renderer(model).open(IMG).render((74, 106))

    class Tight(type(model)):  # stands for a GPU that cannot hold a large window
        def encode(self, inp, window=None):
            if window is None or (window[2] - window[0]) > 36:
                raise torch.OutOfMemoryError('pretended')
            return super().encode(inp, window)

    model.__class__ = Tight
    scene = Renderer(model).open(IMG)
    assert (scene.render((74, 106)) - wanted).abs().max() <= 1e-5


@pytest.mark.parametrize('size, region, words', [
    ((0, 5), None, 'at least 1 pixel'),
    ((5, 5), (-1, 0, 5, 5), 'inside the image of 53x37'),
    ((5, 5), (50, 0, 5, 5), 'inside the image of 53x37'),
    ((5, 5), (0, 0, 0, 5), 'inside the image of 53x37'),
    ((5, 5), (float('nan'), 0, 5, 5), 'inside the image of 53x37'),
])
def test_bad_sizes_and_regions(size, region, words):
    with pytest.raises(UserError, match=words):
        Renderer(small_model()).open(IMG).render(size, region)
