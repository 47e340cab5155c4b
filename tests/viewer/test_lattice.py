"""The lattice: nodes are the decoded image, and what is interpolated between them is close to it everywhere."""
import numpy as np
import pytest
import torch

import models
from engine.rendering.api import load_renderer
from engine.rendering.renderer import Renderer
from models.lattice import spline_basis
from tests.common import small_model, small_spec
from tests.viewer.common import drawing, psnr
from viewer.lattice import CLIP, STEPS, TILE, axis_nodes, is_continuous, lattice_tile, splines, tiles


def along(n, size, steps):
    """What each of `size` pixels reads on an axis of n codes: coefficients (steps + 1, size), counted over all tiles,
    and weights."""
    t = ((np.arange(size) + 0.5) * n / size + 0.5)
    piece = np.clip(np.floor(t), 0, n)
    weights = spline_basis(torch.from_numpy((t - piece) * steps), steps + 1).T.numpy()
    return (piece * steps).astype(int) + np.arange(steps + 1)[:, None], weights


def interpolated(scene, size, steps):
    """The image as the page's shader draws it: (3, H, W)."""
    h, w = scene.size
    lattice = np.zeros(((h + 1) * steps + 1, (w + 1) * steps + 1, 3))
    for row in range(tiles(h)):
        for column in range(tiles(w)):
            tile = lattice_tile(scene, row, column, steps)
            top, left = row * TILE * steps, column * TILE * steps
            lattice[top:top + tile.shape[0], left:left + tile.shape[1]] = tile
    (ys, wy), (xs, wx) = along(h, size[0], steps), along(w, size[1], steps)
    rows = sum(wy[k][:, None, None] * lattice[ys[k]] for k in range(steps + 1))  # (H, coefficients, 3)
    return sum(wx[k][:, None] * rows[:, xs[k]] for k in range(steps + 1)).transpose(2, 0, 1).clip(0, 1)


@pytest.mark.parametrize('n', [1, 2, 31, 32, 33, 64, 65])
def test_tiles_cover_an_axis(n):
    axes = [axis_nodes(n, tile, 4).double() for tile in range(tiles(n))]
    assert sum(len(axis) - 1 for axis in axes) == (n + 1) * 4
    assert axes[0][0] == pytest.approx(-1 - 1 / n) and axes[-1][-1] == pytest.approx(1 + 1 / n)
    for a, b in zip(axes, axes[1:]):
        assert a[-1].item() == pytest.approx(b[0].item(), abs=3e-6)


@pytest.mark.parametrize('steps', STEPS)
def test_pieces_are_natural_splines_that_share_their_ends(steps):
    values = torch.rand(3, 5 * steps + 1, dtype=torch.float64)
    found = splines(values, steps)
    assert torch.equal(found[:, -1], values[:, -1]) and (found - values)[:, ::steps].abs().max() < 1e-12
    for first in range(0, 5 * steps, steps):
        piece, nodes = slice(first, first + steps + 1), torch.arange(steps + 1).double()
        assert (found[:, piece] @ spline_basis(nodes, steps + 1).T - values[:, piece]).abs().max() < 1e-12
        ends = torch.tensor([[0, 1e-3, 2e-3], [steps, steps - 1e-3, steps - 2e-3]], dtype=torch.float64)
        bend = (found[:, piece] @ spline_basis(ends, steps + 1).mT).diff(n=2) / 1e-6  # (2, 3, 1): second derivatives
        assert bend.abs().max() < 0.02  # 1e-3 nodes from the end, where it is 0


@pytest.mark.parametrize('scale', [4, 12, 30])
def test_close_to_the_exact_decode_with_trained_weights(scale):
    renderer = load_renderer(gpu='cpu', cell_clip=CLIP)
    scene = renderer.open(drawing(13, 17))
    size = 13 * scale, 17 * scale
    wanted = scene.render(size).numpy()
    found = {steps: psnr(interpolated(scene, size, steps), wanted) for steps in STEPS}
    assert found[3] > 43 and found[6] > 58  # the sharper the weights draw edges, the less; the page needs 50


@pytest.mark.parametrize('size', [(1, 1), (1, 40), (33, 32), (5, 70)])
def test_any_size_borders_and_convergence(size):
    scene = Renderer(small_model(), cell_clip=CLIP).open(drawing(*size))
    wanted = scene.render((size[0] * 6, size[1] * 6)).numpy()  # even: no pixel upon a centre, a tie on the border
    errors = [abs(interpolated(scene, wanted.shape[1:], steps) - wanted).max() for steps in (4, 16)]
    assert errors[1] < errors[0] < 0.02 and errors[1] < 2e-3  # 5e-4 of it is float16


def test_tiles_of_an_image_encoded_in_parts():
    img = drawing(70, 75)
    whole = Renderer(small_model(), cell_clip=CLIP).open(img)
    parts = Renderer(small_model(), tile=32, cell_clip=CLIP).open(img)
    for row in range(tiles(70)):
        for column in range(tiles(75)):
            assert abs(lattice_tile(whole, row, column, 3) - lattice_tile(parts, row, column, 3)).max() < 2e-3


def test_only_continuous_images_have_one():
    assert is_continuous(small_model())
    assert not is_continuous(small_model(local_ensemble=False))
    metasr = {'name': 'metasr', 'args': {'encoder_spec': small_spec()['args']['encoder_spec']}}
    assert not is_continuous(models.make(metasr))
