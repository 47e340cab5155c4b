"""The lattice of an image: a few values per latent code, between which the page's shader interpolates.

With a constant cell c, the decoded image (paper, eqs. 2 to 4)

    s(x) = sum_t S_t / S * f(z_t, x - v_t, c)

is a function of the position alone. The four codes t change only where x crosses a line through code centres, and there
the weight of the code that leaves is zero, so s is continuous. These lines cut the image into square pieces: piece k
of an axis lies between the centres of codes k - 1 and k, k = 0 ... n; the first and the last are half inside the image.
The exact decode gives s at g + 1 nodes per piece and axis. The lattice holds the coefficients of the natural cubic
spline through the nodes of each piece, along both axes (`models.lattice.spline_basis`). At the ends of a piece they
equal the values, so neighbours share them. The cost, g^2 nodes per code, does not depend on the zoom, since the cell
stays that of the largest scale of training. A draft comes first, in a quarter of the time.

Interpolating s takes a quarter of the texture reads and a fifth of the memory of the lattice per code of
models/lattice.py, whose four interpolated values the shader would have to blend. With the same number of evaluations
it is a little less accurate.
"""
import numpy as np
import torch

from models.lattice import spline_basis


STEPS = (3, 6)  # g of the draft and of the final lattice; at least 3, since the shader reads four coefficients
TILE = 32  # pieces per axis of a tile
CLIP = 4  # largest scale of training: the cell of the lattice is that of x4


def is_continuous(model):
    """Whether the decoded image is continuous, which it is with the local ensemble."""
    return bool(getattr(model, 'local_ensemble', False))


def tiles(n):
    """Number of tiles along an axis of n codes, which has n + 1 pieces."""
    return n // TILE + 1


def axis_nodes(n, tile, steps):
    """Coordinates in [-1, 1] of the nodes of one tile along an axis of n codes: (pieces * steps + 1,) float32."""
    first = tile * TILE
    count = min(TILE, n + 1 - first)
    node = torch.arange(count * steps + 1, dtype=torch.float64)  # (pieces * steps + 1,)
    coord = -1 + 2 * (first - 0.5 + node / steps) / n
    # At the last centre both sides pick the same code at distance zero and all four areas vanish: shift that node
    # slightly.
    coord[(coord - (1 - 1 / n)).abs() < 1e-9] -= 2e-6
    return coord.float()


def to_spline(steps):
    """The matrix (steps + 1, steps + 1), float64, from values at the nodes of a piece to coefficients of the spline."""
    node = torch.arange(steps + 1)
    return torch.linalg.inv(spline_basis(node, steps + 1))


def splines(values, steps):
    """Coefficients (..., pieces * steps + 1) of the splines through `values`, of the same shape, piece by piece."""
    found = values.unfold(-1, steps + 1, steps) @ to_spline(steps).to(values).t()  # (..., pieces, steps + 1)
    return torch.cat([found[..., :-1].flatten(-2), values[..., -1:]], dim=-1)


def lattice_tile(scene, row, column, steps):
    """A tile of the lattice, RGB: float16 (rows * steps + 1, columns * steps + 1, 3), not clamped.

    scene: a Scene whose renderer has `cell_clip`; row, column: of the tile; steps: g.
    """
    (h, w), clip = scene.size, scene.renderer.cell_clip
    rgb = scene.sample(axis_nodes(h, row, steps), axis_nodes(w, column, steps), (2 / (h * clip), 2 / (w * clip)))
    rgb = splines(splines(rgb, steps).transpose(1, 2), steps)  # (3, columns, rows)
    return np.ascontiguousarray(rgb.permute(2, 1, 0).to(torch.float16).cpu().numpy())
