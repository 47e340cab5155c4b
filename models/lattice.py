"""The lattice decode of LIIF: the network's cost no longer grows with the output.

For one cell the decoder's output f(z, d, cell) of a latent code z is a continuous function of its offset d alone, two
numbers in [-R, R]: R = 2 with the local ensemble, which blends the codes on either side of a query; R = 1 without. So f
is evaluated once per code on a lattice of offsets, and output pixels are interpolated from the lattice. This is an
approximation; `models/decode.py` is exact.

**Lattice.** K = 2g + 1 offsets per axis, node p at d_p = (p - g) * step for p = 0 ... 2g. With the local ensemble,
step = 2 / (g + 1): the nodes at -2 and 2 are left out, because a code's weight is zero there. Without it, step = 1 / g.
With i, j the row and column of a code in the whole image's map, (h, w) its shape, and `cell` the size of an output
pixel (2 / H, 2 / W for a whole image), the values of image b are

    v[b, i, j, p, q] = f([unfold3x3(z_b,i,j), d_p, d_q, cell * (h, w)])

**Interpolation.** Along p and along q, the natural cubic spline through the values, which continues linearly beyond
the outer nodes (`spline_basis`). f is piecewise linear in d with many kinks, and a cubic spline is the best linear
estimate of such a function; polynomials of a higher degree overshoot at the kinks. The lattice holds the spline's
coefficients. With A[p, m] the weight of coefficient m at node p, and (top, left) the first code of the lattice,

    coefficients[(i - top) * K + m, (j - left) * K + n, b] = sum over p, q of inv(A)[m, p] inv(A)[n, q] v[b, i, j, p, q]

**Resampling.** Rows and columns separate. Along one axis with n codes, an output coordinate x reads, for each side s
(-1 and +1; without the local ensemble the one side 0), S = 1 or 2 of them:

    code    i_s = the code nearest to clamp(x + s / n + 1e-6), and d_s = (x - centre of i_s) * n: `decode.nearest_code`
    place   u = d_s / step + g, in nodes
    taps    T = min(4, K) coefficients from start = clamp(floor(u) - 1, 0, K - T) on; the others have no weight
    weights l_m of the spline, times (blending, eq. 4) a_s = |d_{-s}| / (|d_-1| + |d_+1|): the distance on the *other*
            side; 1/2 each when both distances are 0; 1 without the local ensemble
    row     (i_s - first code) * K + m is read with the weight l_m * a_s

so that S * T = 8 coefficients per axis give the output: out[r, c] = sum over (r', c') of row weight * column weight *
coefficients[r', c']. On the border both sides find the same code, with equal distances: it is read twice with half the
weight.

**Ties.** The four areas of eq. 4 carry 1e-9 each, which matters only where both distances of an axis vanish: at the
centre of the last row or column of codes, which odd scales (and x1) meet exactly. Weights do not separate there (the
four corners count alike), so these output rows and columns, one per axis, are decoded exactly.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F

from utils import UserError

from . import decode
from .models import decodes_grids


TAPS = 4  # coefficients per side and axis that an output pixel reads
FINEST = 32  # the largest g
VANISHING = 1e-4  # distances below it, in half codes, leave the blending to the 1e-9 of eq. 4
STRIP = 1 << 24  # numbers of an intermediate result that are held at a time


class Lattice(NamedTuple):
    """The splines through the decoder's output on the lattice of a rectangle of codes, for one cell.

    coefficients: (rows * K, columns * K, B, 3), float32 at least; codes: where it comes from; cell: (2,);
    g: K = 2g + 1; span: (first row, first column, end row, end column) of its codes in the whole image's map.
    """
    coefficients: torch.Tensor
    codes: decode.Codes
    cell: torch.Tensor
    g: int
    span: tuple

    def covers(self, span):
        """Whether it holds the lattice of these codes."""
        return self.span[0] <= span[0] and self.span[1] <= span[1] \
            and self.span[2] >= span[2] and self.span[3] >= span[3]


def has_lattice(model):
    """Whether the lattice decode applies: a LIIF (no subclass with its own queries) whose decoder is a ReLU MLP."""
    return decodes_grids(model) and hasattr(model, 'local_ensemble') and decode.is_relu_mlp(model.imnet)


def check_density(g):
    """Raises UserError unless g is a whole number from 1 to 32."""
    if not isinstance(g, int) or isinstance(g, bool) or not 1 <= g <= FINEST:
        raise UserError(f'lattice: found {g!r}, expected a whole number from 1 to {FINEST} nodes')


def code_span(model, codes, y, x):
    """(first row, first column, end row, end column) of the codes that a grid of rows y and columns x reads."""
    ends = []
    for coord, n in ((y, codes.shape[0]), (x, codes.shape[1])):
        found = torch.stack([decode.nearest_code(coord, n, side)[0] for side in decode.sides(model.local_ensemble)])
        ends.append((int(found.min()), int(found.max()) + 1))
    (top, bottom), (left, right) = ends
    return top, left, bottom, right


def relative_cost(model, span, pixels, g):
    """Decoder evaluations for the lattice of the codes in `span`, relative to those of the exact decode of `pixels`."""
    count = (span[2] - span[0]) * (span[3] - span[1])
    return count * (2 * g + 1) ** 2 / (pixels * len(decode.corners(model.local_ensemble)))


def node_spacing(model, g):
    """The distance of two nodes, in units of half the spacing of codes."""
    return 2 / (g + 1) if model.local_ensemble else 1 / g


def spline_basis(u, k):
    """Weights (..., k), in float64, of the k coefficients of a natural cubic spline at places u (...,), in nodes.

    Node p is at place p. These are the cubic B-splines at the places -2 ... k + 1, where the coefficients beyond the
    ends continue the last two linearly: that makes the second derivative zero at the ends.
    """
    place = torch.arange(-2, k + 2, device=u.device)
    gap = (u.double().unsqueeze(-1) - place).abs()  # (..., k + 4)
    weight = ((2 - gap).clamp(min=0) ** 3 - 4 * (1 - gap).clamp(min=0) ** 3) / 6
    row, near = torch.arange(k + 4, device=u.device), place.clamp(0, k - 2)
    ends = weight.new_zeros(k + 4, k)
    ends[row, near], ends[row, near + 1] = (1.0 + near - place).double(), (place - near).double()
    return weight @ ends


@torch.no_grad()
def make_lattice(model, codes, cell, g=6, span=None):
    """The lattice of the codes in `span` (default: all of `codes`).

    model: a LIIF for which `has_lattice`; codes: of `model.encode`; cell: (2,), the size of an output pixel.
    Raises UserError for g outside 1 ... 32.
    """
    check_density(g)
    table, (t, l), (th, tw) = codes.table, codes.origin, codes.feat.shape[-2:]
    top, left, bottom, right = span = span or (t, l, t + th, l + tw)
    b, k, columns = len(codes.feat), 2 * g + 1, right - left
    dtype, device = torch.promote_types(cell.dtype, torch.float32), table.device
    place = torch.arange(k, device=device)
    offset = (place - g).to(dtype) * node_spacing(model, g)  # (K,)
    to_spline = torch.linalg.inv(spline_basis(place, k)).to(dtype)  # (K, K)
    cell = cell.to(device, dtype)
    coefficients = torch.empty((bottom - top) * k, columns * k, b, 3, device=device, dtype=dtype)
    rows = max(1, min(bottom - top, decode.BLOCK * decode.rows_per_chunk(table) // (b * k * k * columns)))  # at a time
    work = decode.workspace(model, table, b * rows * k * k * columns)
    size = torch.tensor(codes.shape, device=device, dtype=dtype)
    for first in range(top, bottom, rows):
        n = min(rows, bottom - first)
        shape = b, n, k, columns, k
        index = torch.arange(b, device=device).view(-1, 1, 1) * (th * tw) \
            + torch.arange(first - t, first - t + n, device=device).view(-1, 1) * tw \
            + torch.arange(left - l, right - l, device=device)  # (B, n, columns)
        index = index.view(b, n, 1, columns, 1).expand(shape)
        query = [offset.view(k, 1, 1).expand(shape), offset.expand(shape)]
        if model.cell_decode:
            query += [(cell * size)[axis].expand(shape) for axis in (0, 1)]
        query = torch.stack(query, dim=-1).flatten(0, -2)  # (M, 2 or 4)
        rgb = decode.evaluate(model.imnet, table, index.reshape(-1), query, work, dtype)  # (3, M)
        rgb = (rgb + work.layers[-1][1].to(dtype).unsqueeze(1)).view(3 * b * n, k, columns * k)
        with torch.autocast(device.type, enabled=False):
            rgb = (to_spline @ rgb).view(-1, k) @ to_spline.t()  # along the rows, then along the columns
        coefficients[(first - top) * k:(first - top + n) * k] = \
            rgb.view(3, *shape).permute(2, 3, 4, 5, 1, 0).reshape(n * k, columns * k, b, 3)
    return Lattice(coefficients, codes, cell, g, tuple(span))


def axis_weights(model, lattice, x, axis):
    """The coefficients along one axis that output coordinates x (N,) read: index (N, S * T) into the lattice's rows or
    columns, weight (N, S * T), and whether both distances vanish (N,)."""
    n, first, k, g = lattice.codes.shape[axis], lattice.span[axis], 2 * lattice.g + 1, lattice.g
    found = [decode.nearest_code(x, n, side) for side in decode.sides(model.local_ensemble)]
    taps = min(TAPS, k)
    distance = torch.stack([d for _, d in found], dim=-1)  # (N, S)
    u = distance / node_spacing(model, g) + g
    tap = (u.floor().long() - 1).clamp(0, k - taps).unsqueeze(-1) + torch.arange(taps, device=x.device)  # (N, S, T)
    share = distance.abs().flip(-1) + 1e-12
    share = share / share.sum(-1, keepdim=True)  # (N, S): eq. 4 along one axis
    weight = spline_basis(u, k).gather(-1, tap) * share.unsqueeze(-1)  # (N, S, T)
    code = torch.stack([i for i, _ in found], dim=-1) - first  # (N, S)
    vanishing = distance.abs().sum(-1) < VANISHING if len(found) == 2 else torch.zeros_like(x, dtype=torch.bool)
    return (code.unsqueeze(-1) * k + tap).flatten(1), weight.flatten(1), vanishing


@torch.no_grad()
def resample(model, lattice, y, x):
    """RGB (B, 3, H, W), normalized, at the crossings of rows y (H,) and columns x (W,), all within the lattice."""
    image = lattice.coefficients
    b = image.shape[2]
    rows, row_weight, row_ties = axis_weights(model, lattice, y, 0)
    columns, column_weight, column_ties = axis_weights(model, lattice, x, 1)
    out = image.new_empty(b, 3, len(y), len(x))
    if out.numel() == 0:
        return out
    left, right = int(columns.min()), int(columns.max()) + 1  # what lies beyond is not touched
    height = max(1, STRIP // (3 * b * max(right - left, len(x))))
    for r in range(0, len(y), height):
        part, weight = rows[r:r + height], row_weight[r:r + height].to(image.dtype)
        top, bottom = int(part.min()), int(part.max()) + 1
        table = image[top:bottom, left:right].reshape(bottom - top, -1)
        strip = F.embedding_bag(part - top, table, per_sample_weights=weight, mode='sum')  # (H', columns * B * 3)
        table = strip.view(len(part), right - left, b * 3).transpose(0, 1).reshape(right - left, -1)
        strip = F.embedding_bag(columns - left, table, per_sample_weights=column_weight.to(image.dtype), mode='sum')
        out[:, :, r:r + height] = strip.view(len(x), len(part), b, 3).permute(2, 3, 1, 0)
    if row_ties.any():
        out[:, :, row_ties] = model.decode_grid(lattice.codes, y[row_ties], x, lattice.cell).to(out.dtype)
    if column_ties.any():
        out[..., column_ties] = model.decode_grid(lattice.codes, y, x[column_ties], lattice.cell).to(out.dtype)
    return out


def on_grid(model, codes, y, x, cell, g=6):
    """`model.decode_grid` through the lattice, built and resampled in strips of rows (ascending), of which one lattice
    is held at a time. Returns RGB (B, 3, H, W), normalized."""
    check_density(g)
    if 0 in (len(y), len(x)):
        return model.decode_grid(codes, y, x, cell)
    parts = []
    _, left, _, right = code_span(model, codes, y, x)
    rows = max(8, STRIP // (3 * len(codes.feat) * (right - left) * (2 * g + 1) ** 2))  # of codes at a time
    nearest = decode.nearest_code(y, codes.shape[0])[0] // rows  # (H,)
    for part in y.split(torch.unique_consecutive(nearest, return_counts=True)[1].tolist()):
        lattice = make_lattice(model, codes, cell, g, code_span(model, codes, part, x))
        parts.append(resample(model, lattice, part, x))
    return torch.cat(parts, dim=2)
