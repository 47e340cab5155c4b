"""The lattice of an image: a few values per latent code, between which the page's shader interpolates.

With a constant cell c, the decoded image (paper, eqs. 2 to 4)

    s(x) = sum_t S_t / S * f(z_t, x - v_t, c)

is a function of the position alone. The four codes t change only where x crosses a line through code centres, and there
the weight of the code that leaves is zero, so s is continuous. These lines cut the image into square pieces: piece k
of an axis lies between the centres of codes k - 1 and k, k = 0 ... n; the first and the last are half inside the image.
The exact decode gives s at g + 1 nodes per piece and axis, and the shader interpolates with the cubic Lagrange
polynomial through the four nearest nodes of the same piece. The cost, g^2 nodes per code, does not depend on the zoom,
since the cell stays that of the largest scale of training. A draft comes first, in a quarter of the time.

Interpolating s takes a quarter of the texture reads and a fifth of the memory of a lattice per code, whose four
interpolated values the shader would have to blend, at about 1.5 dB less accuracy for the same number of evaluations.
"""
import numpy as np
import torch


STEPS = (3, 6)  # g of the draft and of the final lattice; at least 3, since an interpolation takes four nodes
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
    # Upon the last centre both sides take the same code at distance zero, and all four areas vanish: keep off it.
    coord[(coord - (1 - 1 / n)).abs() < 1e-9] -= 2e-6
    return coord.float()


def lattice_tile(scene, row, column, steps):
    """RGB at the nodes of a tile: float16 (rows * steps + 1, columns * steps + 1, 3), not clamped.

    scene: a Scene whose renderer has `cell_clip`; row, column: of the tile; steps: g.
    """
    (h, w), clip = scene.size, scene.renderer.cell_clip
    rgb = scene.sample(axis_nodes(h, row, steps), axis_nodes(w, column, steps), (2 / (h * clip), 2 / (w * clip)))
    return np.ascontiguousarray(rgb.permute(1, 2, 0).to(torch.float16).cpu().numpy())
