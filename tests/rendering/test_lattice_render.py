"""Rendering through the lattice: near the exact render, whole, in tiles and regions; kept, chosen and refused."""
import logging

import pytest
import torch

import demo
import models
from engine.rendering import renderer as renderers
from engine.rendering.renderer import Renderer
from models import lattice
from tests.common import small_model, small_spec
from utils import UserError


IMG = torch.rand(3, 27, 35, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def made(monkeypatch):
    """The spans of the lattices that rendering makes."""
    spans, make = [], lattice.make_lattice
    monkeypatch.setattr(renderers, 'make_lattice', lambda *args: spans.append(args[4]) or make(*args))
    return spans


@pytest.mark.parametrize('options', [{}, {'tile': 16}, {'self_ensemble': True}, {'precision': 'bf16'},
                                     {'cell_clip': 4}])
def test_near_the_exact_render(options, monkeypatch):
    monkeypatch.setattr(renderers, 'STRIP', 4000)
    model, size = small_model(), (270, 301)
    exact = Renderer(model, **options).open(IMG).render(size)
    found = Renderer(model, decode='lattice', lattice=16, **options).open(IMG).render(size)
    assert (found - exact).abs().max() <= (0.03 if 'precision' in options else 2e-3)
    assert not torch.equal(found, exact)


def test_regions_equal_the_whole(made):
    scene = Renderer(small_model(), decode='lattice', lattice=3).open(IMG)
    whole = scene.render((270, 350))
    part = scene.render((100, 150), region=(5, 7, 15, 10))
    assert (whole[:, 70:170, 50:200] - part).abs().max() <= 1e-6
    assert len(made) == 1  # the kept one serves the region, too
    alone = Renderer(small_model(), decode='lattice', lattice=3).open(IMG).render((100, 150), region=(5, 7, 15, 10))
    assert (alone - part).abs().max() <= 1e-5
    top, left, bottom, right = made[1]
    assert 0 < top < 7 < 17 < bottom < 27 and 0 < left < 5 < 20 < right < 35  # no more than it reads


def test_kept_while_the_cell_stays(made):
    scene = Renderer(small_model(), decode='lattice', lattice=2, cell_clip=4).open(IMG)
    for scale in (5, 7, 11):
        scene.render((27 * scale, 35 * scale))
    assert len(made) == 1
    scene.render((54, 70))  # x2: another cell
    assert len(made) == 2


def test_one_lattice_for_all_strips(made, monkeypatch):
    monkeypatch.setattr(renderers, 'STRIP', 2000)
    Renderer(small_model(), decode='lattice', lattice=2).open(IMG).render((270, 350))
    assert made == [(0, 0, 27, 35)]


def test_auto_takes_it_where_it_pays(made):
    scene = Renderer(small_model(), decode='auto', lattice=6).open(IMG)
    exact = Renderer(small_model()).open(IMG)
    size = 27 * 8, 35 * 8  # 169 evaluations a code for 256: 66%
    assert torch.equal(scene.render(size), exact.render(size)) and made == []
    scene.render((27 * 9, 35 * 9))  # 52%
    assert len(made) == 1
    scene.render((200, 200), region=(2, 2, 10, 10))  # 15% of what the region costs, as only its codes are needed
    scene.render((27 * 2, 35 * 2))
    assert made[1:] == [(1, 1, 13, 13)]


def test_lattices_are_forgotten_with_their_codes():
    scene = Renderer(small_model(), decode='lattice', lattice=2, tile=8, memory=1).open(IMG)
    scene.render((100, 100))
    assert len(scene.codes) == 1 and list(scene.lattices) == list(scene.codes)


def test_overflow_falls_back_to_float32():
    model = small_model()
    wanted = Renderer(model, decode='lattice').open(IMG).render((270, 350))

    class Overflowing(type(model)):
        def encode(self, inp, window=None):
            codes = super().encode(inp, window)
            return codes._replace(table=codes.table / 0) if codes.table.dtype != torch.float32 else codes

    model.__class__ = Overflowing
    scene = Renderer(model, precision='bf16', decode='lattice').open(IMG)
    assert torch.equal(scene.render((270, 350)), wanted) and scene.redone


def test_models_without_a_lattice_say_so_once(caplog):
    spec = {'name': 'metasr', 'args': {'encoder_spec': small_spec()['args']['encoder_spec']}}
    torch.manual_seed(0)
    model = models.make(spec)
    with caplog.at_level(logging.WARNING):
        Renderer(model, decode='auto')  # says nothing
        renderer = Renderer(model, decode='lattice')
        found = renderer.open(IMG).render((60, 70))
    assert [r.message for r in caplog.records] == ['MetaSR has no lattice decode (only LIIF with an MLP has): '
                                                   'decoding exactly']
    assert torch.equal(found, Renderer(model).open(IMG).render((60, 70)))


@pytest.mark.parametrize('options, words', [({'decode': 'fast'}, 'decode: found .*exact, lattice, auto'),
                                            ({'lattice': 0}, 'lattice: found 0, expected a whole number from 1 to 32'),
                                            ({'lattice': 33}, 'lattice: found 33')])
def test_senseless_options(options, words):
    with pytest.raises(UserError, match=words):
        Renderer(small_model(), **options)


@pytest.mark.parametrize('name, decode, wanted', [('a.png', None, 'exact'), ('a.mp4', None, 'auto'),
                                                  ('a.mp4', 'exact', 'exact'), ('a.png', 'lattice', 'lattice')])
def test_demo_takes_auto_for_videos(name, decode, wanted, monkeypatch):
    used = []
    for job in ('enlarge_image', 'enlarge_video'):
        monkeypatch.setattr(f'engine.rendering.jobs.{job}', lambda source, target, renderer, *rest: used.append(
            renderer.decode) or (source, (4, 4), (8, 8), 1))
    args = demo.parse_arguments([name] + (['--decode', decode] if decode else []))
    demo.enlarge(name, name, Renderer(small_model(), decode=decode or 'exact'), lambda h, w: (8, 8), args)
    assert used == [wanted]
