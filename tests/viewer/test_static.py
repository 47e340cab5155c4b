"""The page without a server: its graphs give the lattice of the viewer, whatever the size of the image."""
import pytest
import torch

from engine.checkpoint import PUBLISHED_NORM
from engine.rendering.renderer import Renderer
from tests.common import small_model
from tests.viewer.common import drawing
from utils import UserError
from viewer import static
from viewer.lattice import CLIP, STEPS, TILE, lattice_tile, splines, tiles


def tile_of_graphs(parts, img, row, column, steps, halo):
    """A tile of the lattice as viewer/local/worker.js makes it, in float32: (rows, columns, 3)."""
    (h, w), side = img.shape[-2:], static.BLOCK * TILE + 1
    top, left = (place // static.BLOCK * static.BLOCK * TILE - 1 for place in (row, column))  # of the block's codes
    window, mask = torch.full((1, 3, side + 2 * halo, side + 2 * halo), 0.7), torch.zeros(1, 1, *2 * [side + 2 * halo])
    y, x = ([i for i in range(side + 2 * halo) if 0 <= i + first - halo < n] for first, n in ((top, h), (left, w)))
    part = (slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1))
    window[(..., *part)] = img[:, y[0] + top - halo:y[-1] + top - halo + 1, x[0] + left - halo:x[-1] + left - halo + 1]
    mask[(..., *part)] = 1
    codes = parts['encoder'][0](window, mask)
    y, x = (torch.arange(place * TILE - 1, (place + 1) * TILE) for place in (row, column))
    inside = [v.clamp(0, n - 1) for v, n in ((y, h), (x, w))]
    codes = codes[inside[0] - top][:, inside[1] - left]
    y, x = (2. * (v - i) for v, i in zip((y, x), inside))
    out, rows = torch.zeros((TILE + 2) * steps, TILE * steps + 1, 3), static.ROWS[steps]
    for first in range(0, TILE + 1, rows):
        some = slice(first, first + rows)
        out[first * steps:(first + rows + 1) * steps] += parts[f'lattice{steps}'][0](codes[some], y[some], x)
    pieces = (min(TILE, n + 1 - place * TILE) for n, place in ((h, row), (w, column)))
    rows, columns = (n * steps + 1 for n in pieces)
    out = splines(splines(out[steps:steps + rows, :columns].permute(2, 0, 1), steps).transpose(1, 2), steps)
    return out.permute(2, 1, 0)


@pytest.mark.parametrize('size, cell_decode', [((1, 1), True), ((5, 31), False), ((32, 67), True)])
def test_graphs_give_the_lattice_of_the_viewer(size, cell_decode):
    model, img = small_model(cell_decode=cell_decode), drawing(*size)
    scene = Renderer(model, cell_clip=CLIP).open(img)
    with torch.no_grad():
        parts = static.parts(model, PUBLISHED_NORM)
        for row in range(tiles(size[0])):
            for column in range(tiles(size[1])):
                for steps in STEPS:
                    found = tile_of_graphs(parts, img, row, column, steps, model.halo)
                    wanted = torch.from_numpy(lattice_tile(scene, row, column, steps)).float()
                    assert found.shape == wanted.shape and (found - wanted).abs().max() < 1e-3  # float16


@pytest.mark.parametrize('args', [{'local_ensemble': False}, {'encoder_spec': {'name': 'rcan', 'args': {
    'no_upsampling': True, 'n_resgroups': 1, 'n_resblocks': 1, 'n_feats': 16}}}])
def test_models_that_it_cannot_hold(args):
    with pytest.raises(UserError, match='viewer/serve.py'):
        static.parts(small_model(**args), PUBLISHED_NORM)


def test_the_runtime_is_the_tested_version(tmp_path):
    with pytest.raises(UserError, match='as npm unpacks it'):
        static.runtime(str(tmp_path))
    (tmp_path / 'dist').mkdir()
    for name in static.RUNTIME_FILES:
        (tmp_path / 'dist' / name).write_text('another version')
    with pytest.raises(UserError, match='fetch that version'):
        static.runtime(str(tmp_path))
