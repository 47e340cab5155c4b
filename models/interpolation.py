"""Interpolation as models without weights: `bicubic`, `bilinear`, `nearest`, the baselines of every table.

The weights are those that make the low-resolution images, `utils.resampling_taps`.
"""
from typing import Annotated

import torch
import torch.nn as nn
import torch.nn.functional as F

from utils import OneOf, cubic, linear, resampling_taps

from .decode import Codes
from .models import register


class Interpolation(nn.Module):
    """An image read at any coordinate by separable interpolation; the model protocol with no weights.

    Linear in its input, with weights that sum to 1, so that `data_norm` cancels out. A cell larger than a source
    pixel stretches the kernel (antialiasing), whatever the axis.
    """

    def __init__(self, kernel, border='symmetric'):
        super().__init__()
        self.kernel, self.border = kernel, border
        self.register_buffer('place', torch.empty(0), persistent=False)  # moves with `.to(device)`: it tells the device

    def gen_feat(self, inp):
        """Keep the image, (B, C, h, w)."""
        self.feat = inp
        return self.feat

    def query_rgb(self, coord, cell=None):
        """coord: (B, Q, 2) in [-1, 1]; cell: (B, Q, 2) or (B, 1, 2), None for no antialiasing. Returns (B, Q, C)."""
        b, c, h, w = self.feat.shape
        pixels = self.feat.permute(0, 2, 3, 1).reshape(-1, c)  # (B * h * w, C)
        offset = torch.arange(b, device=coord.device).view(b, 1, 1) * (h * w)
        height, width = (None, None) if cell is None else cell.unbind(-1)
        rows, row_weight = self.taps(coord[..., 0], height, h)  # (B, Q, P)
        columns, column_weight = self.taps(coord[..., 1], width, w)  # (B, Q, R)
        out = 0
        for row, weight in zip(rows.unbind(-1), row_weight.unbind(-1)):  # row by row: P * R pixels at once are many
            line = F.embedding(row[..., None] * w + columns + offset, pixels)  # (B, Q, R, C)
            out = out + (line * (column_weight * weight[..., None])[..., None]).sum(dim=2)  # (B, Q, C)
        return out

    def encode(self, inp):
        """The image as it is: interpolation has no codes."""
        return Codes(inp, None, tuple(inp.shape[-2:]))

    def decode_grid(self, codes, y, x, cell, chunk=None):
        """(B, C, H, W) at the crossings of rows y (H,) and columns x (W,), one axis after the other; cell: (2,).
        chunk does not matter here: what is held is the image and the output."""
        out = codes.feat
        for axis, at in ((0, y), (1, x)):
            index, weight = self.taps(at, cell[axis], codes.shape[axis])  # (H or W, P)
            dim = 2 + axis
            shape = [-1, 1] if axis == 0 else [-1]
            out = sum(out.index_select(dim, i) * w.to(out.dtype).view(shape)
                      for i, w in zip(index.unbind(-1), weight.unbind(-1)))
        return out

    def taps(self, x, size, n):
        """What is read at coordinates x (...) along an axis of n pixels: index, weight (..., P). size: of the query
        pixels along it, (...) or one for all."""
        u = (x + 1) * (n / 2) - 0.5  # (...)
        stretch = u.new_ones(()) if size is None else size * (n / 2)
        return resampling_taps(u, stretch, n, self.kernel, self.border)

    def forward(self, inp, coord, cell=None):
        self.gen_feat(inp)
        return self.query_rgb(coord, cell)


BORDERS = {'matlab': 'symmetric', 'pil': 'clip'}  # mirrored, left out


@register('bicubic', 'interpolation')
def bicubic(kernel: Annotated[str, OneOf(*BORDERS), 'how borders are treated'] = 'matlab'):
    """Bicubic interpolation. kernel: whose treatment of borders, one of BORDERS."""
    return Interpolation(cubic, BORDERS[kernel])


@register('bilinear', 'interpolation')
def bilinear():
    """Bilinear interpolation."""
    return Interpolation(linear)


@register('nearest', 'interpolation')
class Nearest(Interpolation):
    """The source pixel a coordinate lies in; on the edge of two, the one below or to the right."""

    def __init__(self):
        super().__init__(kernel=None)

    def taps(self, x, size, n):
        # The small shift decides ties: float32 coordinates fall on either side of an edge.
        index = torch.floor((x + 1 + 1e-6) * (n / 2)).long().clamp(0, n - 1).unsqueeze(-1)  # (..., 1)
        return index, torch.ones_like(index, dtype=x.dtype)
