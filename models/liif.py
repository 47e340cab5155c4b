"""LIIF: a continuous image as a grid of latent codes and an MLP that decodes any coordinate (paper, section 3).

Textbook form, for a query x and each of the four codes z_t around it (eqs. 2 to 5, notation of the paper):

    s(x) = sum_t S_t / S * f([unfold3x3(z_t), (x - v_t) * (h, w), cell * (h, w)])

with v_t the centre of code t and S_t the area of the rectangle between x and the *diagonally opposite* centre.
That sends 9C + 4 = 580 inputs through f four times for each query. The same function, reorganised:

1. f's first layer is linear, so its share of the 9C feature inputs is one 3x3 convolution of the feature map,
   computed once per image (`encode`) and merely looked up per query;
2. the four inputs that depend on the query (relative coordinate, relative cell) are added by a product with the
   layer's last four columns;
3. on a regular grid (`decode_grid`) nearest codes, offsets and areas separate into a row and a column table.

Per query at the paper's sizes: 793,600 multiply-adds instead of 1,383,424, and 256 gathered values a corner
instead of 576; what is left is the hidden layers' 256x256 products. (Blending the hidden vectors, to apply the last
layer once, would save 2,304 more and was measured slower: three channels are cheaper to blend than 256.)
A decoder other than a ReLU MLP gathers the unfolded features instead and runs whole.
"""
import math
from typing import Annotated, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import nn

import models
from utils import FLAG, Spec, UserError, axis_coord

from .mlp import MLP
from .models import EncoderSpec, register


SHIFT = 1e-6  # breaks the ties of queries half-way between two codes, and keeps clamped coordinates inside
CPU_CHUNK, GPU_CHUNK = 8 << 20, 256 << 20  # bytes of one layer computed together: what a CPU caches, or fills a GPU
BLOCK = 4  # chunks whose coordinates, offsets and weights are worked out together


class Codes(NamedTuple):
    """The latent codes of an image, or of a window of it, ready for decoding.

    feat: (B, C, th, tw); table: (B * th * tw, D), the rows from which queries gather (the first layer's share, or
    the unfolded features of a general decoder); shape: (h, w) of the whole image's map; origin: (row, column) of
    the window in it.
    """
    feat: torch.Tensor
    table: Optional[torch.Tensor]
    shape: tuple
    origin: tuple = (0, 0)


class Workspace(NamedTuple):
    """What decoding prepares once for all its chunks (`LIIF._workspace`).

    layers: (W, b) of f, none of a general decoder; rows: of a chunk, None for all at once; buffers: (2, elements), which
    the layers fill in turn without gradients.
    """
    layers: list
    rows: Optional[int] = None
    buffers: Optional[torch.Tensor] = None


@register('liif', 'model')
class LIIF(nn.Module):
    """encoder_spec: an encoder with `out_dim`; imnet_spec: the decoder f, given `in_dim` here; without it the model
    reads the pixels of an up-sampling encoder (the fixed-scale rows of the paper's tables).
    local_ensemble, feat_unfold, cell_decode: the paper's components, each switchable (table 3: -e, -u, -c)."""

    def __init__(self, encoder_spec: EncoderSpec,
                 imnet_spec: Annotated[dict, Spec('decoder'), 'the decoder; null: the encoder up-samples'] = None,
                 local_ensemble: Annotated[bool, FLAG, 'blend the four codes around a query'] = True,
                 feat_unfold: Annotated[bool, FLAG, 'a code is the 3x3 neighbourhood of features'] = True,
                 cell_decode: Annotated[bool, FLAG, 'the decoder is given the size of the query pixel'] = True):
        super().__init__()
        self.local_ensemble = local_ensemble
        self.feat_unfold = feat_unfold
        self.cell_decode = cell_decode
        self.encoder = models.make(encoder_spec)
        self.imnet = None
        if imnet_spec is not None:
            in_dim = self.encoder.out_dim * (9 if feat_unfold else 1) + 2 + (2 if cell_decode else 0)
            self.imnet = models.make(imnet_spec, args={'in_dim': in_dim})

    # The protocol of the LIIF family.

    def gen_feat(self, inp):
        """inp: (B, 3, h, w), normalized. Keeps and returns the features (B, C, h, w)."""
        self.codes = self.encode(inp)
        self.feat = self.codes.feat
        return self.feat

    def query_rgb(self, coord, cell=None):
        """coord, cell: (B, Q, 2) in [-1, 1] (cell unused without cell_decode). Returns RGB (B, Q, 3), normalized."""
        return self.decode(self.codes, coord, cell)

    def forward(self, inp, coord, cell):
        return self.decode(self.encode(inp), coord, cell)

    # Encoding.

    @property
    def halo(self):
        """How far beyond a window `encode` reads, in pixels; None when the encoder sees the whole image, or an
        up-sampler changes the size, so that windows would not give the same codes."""
        radius = getattr(self.encoder, 'receptive_radius', None) if self.imnet is not None else None
        return None if radius is None else radius + int(self.feat_unfold)

    @property
    def floats_per_pixel(self):
        """About how many floats encoding holds at once per source pixel, by which tiles are sized."""
        table = self.imnet.layers[0].out_features if self._shares_first_layer else 9 * self.encoder.out_dim
        return getattr(self.encoder, 'floats_per_pixel', 32 * self.encoder.out_dim) + 2 * table

    def encode(self, inp, window=None):
        """Codes of inp (B, 3, h, w), normalized; of its rows and columns (top, left, bottom, right) only when a window
        is given: equal to that part of the whole image's codes, since it is computed from the window and `halo`
        pixels around it, never beyond the border."""
        if window is None:
            feat = self.encoder(inp)  # (B, C, h, w)
            return Codes(feat, self._table(feat), tuple(feat.shape[-2:]))
        if self.halo is None:
            raise UserError('this encoder looks at the whole image, so an image cannot be encoded in tiles exactly; '
                            'encode it whole')
        h, w = inp.shape[-2:]
        top, left, bottom, right = window
        # Features one code beyond the window feed the 3x3 of the table, whose own padding then falls only on the border.
        t, l, b, r = _grow(window, int(self.feat_unfold), h, w)
        T, L, B, R = _grow(window, self.halo, h, w)
        feat = self.encoder(inp[..., T:B, L:R])[..., t - T:b - T, l - L:r - L]
        crop = (slice(top - t, bottom - t), slice(left - l, right - l))
        return Codes(feat[(..., *crop)], self._table(feat, crop), (h, w), (top, left))

    @property
    def _shares_first_layer(self):
        """Whether f is a ReLU MLP with a hidden layer, to which the reorganisation applies."""
        return isinstance(self.imnet, MLP) and len(self.imnet.layers) > 1

    def _table(self, feat, crop=(slice(None), slice(None))):
        """Rows to gather: (B * th * tw, D), of the feature map (B, C, h, w) or its part `crop`."""
        if self.imnet is None:
            return None
        if self._shares_first_layer:
            first = self.imnet.layers[0]
            c, k = feat.shape[1], 3 if self.feat_unfold else 1
            # Unfold orders its channels c * 9 + k, so the weight's columns are a convolution kernel as they stand.
            kernel = first.weight[:, :c * k * k].reshape(-1, c, k, k)
            table = F.conv2d(feat, kernel, first.bias, padding=k // 2)  # (B, D, h, w)
        elif self.feat_unfold:
            table = F.unfold(feat, 3, padding=1).view(feat.shape[0], -1, *feat.shape[-2:])  # (B, 9C, h, w)
        else:
            table = feat
        table = table[(..., *crop)].permute(0, 2, 3, 1)  # (B, th, tw, D)
        return table.reshape(-1, table.shape[-1])

    # Decoding.

    def decode(self, codes, coord, cell=None):
        """RGB (B, Q, 3), normalized, of scattered queries coord, cell (B, Q, 2)."""
        b, q = coord.shape[:2]
        if self.imnet is None:
            return self._read(codes, coord.unsqueeze(1))[:, :, 0].transpose(1, 2)
        block = q if torch.is_grad_enabled() else self._block(codes)
        parts = zip(coord.split(block, 1), (cell if self.cell_decode else coord).split(block, 1))
        work = self._workspace(codes.table, len(self._corners()) * b * min(q, block))
        return torch.cat([self._decode(codes, x, c, work) for x, c in parts], dim=1)

    @staticmethod
    def _read(codes, coord):
        """Without a decoder: the nearest pixel of the up-sampled image, (B, C, H', W') for coord (B, H', W', 2)."""
        return F.grid_sample(codes.feat.to(coord.dtype), coord.flip(-1), mode='nearest', align_corners=False)

    def _block(self, codes):
        """Queries of each image whose geometry is worked out at a time."""
        return max(1, BLOCK * _chunk(codes.table) // (len(self._corners()) * max(1, len(codes.feat))))

    def _corners(self):
        return [(-1, -1), (-1, 1), (1, -1), (1, 1)] if self.local_ensemble else [(0, 0)]

    def _nearest(self, codes, coord, corner):
        """The code nearest to each query moved by half a code's spacing towards `corner`.

        coord: (B, Q, 2). Returns its row of codes.table, (B, Q), and the relative coordinate (B, Q, 2).
        """
        (h, w), (top, left), (th, tw) = codes.shape, codes.origin, codes.feat.shape[-2:]
        row, y = nearest_code(coord[..., 0], h, corner[0])
        column, x = nearest_code(coord[..., 1], w, corner[1])
        image = torch.arange(coord.shape[0], device=coord.device).view(-1, 1)
        return (image * th + row - top) * tw + column - left, torch.stack([y, x], dim=-1)

    def _decode(self, codes, coord, cell, work):
        b, q = coord.shape[:2]
        found = [self._nearest(codes, coord, corner) for corner in self._corners()]
        index = torch.stack([i.view(-1) for i, _ in found])  # (T, B * Q)
        offset = torch.stack([x.view(-1, 2) for _, x in found])  # (T, B * Q, 2)
        query = offset
        if self.cell_decode:
            size = coord.new_tensor(codes.shape)
            query = torch.cat([offset, (cell * size).reshape(1, -1, 2).expand_as(offset)], dim=-1)  # (T, B * Q, 4)
        weight = _opposite_areas(offset[..., 0], offset[..., 1])  # (T, B * Q)
        rgb = self._blend(codes.table, index.view(-1), query.flatten(0, 1), weight, work)  # (3, B * Q)
        return rgb.t().view(b, q, len(rgb))

    def decode_grid(self, codes, y, x, cell, chunk=None):
        """RGB (B, 3, H, W), normalized, at the crossings of rows y (H,) and columns x (W,); cell: (2,), one pixel size
        for all; chunk: queries decoded at a time, chosen for the device when None."""
        if self.imnet is None:
            grid = torch.stack(torch.meshgrid(y, x, indexing='ij'), dim=-1)  # (H, W, 2)
            return self._read(codes, grid.expand(len(codes.feat), *grid.shape))
        rows = [nearest_code(y, codes.shape[0], v) for v in ((-1, 1) if self.local_ensemble else (0,))]
        columns = [nearest_code(x, codes.shape[1], v) for v in ((-1, 1) if self.local_ensemble else (0,))]
        (top, left), (th, tw) = codes.origin, codes.feat.shape[-2:]
        b = codes.feat.shape[0]
        image = torch.arange(b, device=y.device).view(-1, 1, 1) * (th * tw)
        out = y.new_empty(b, 3, len(y), len(x))
        height, width = _blocks(len(y), len(x), max(1, min(chunk // b if chunk else math.inf, self._block(codes))))
        cell = (cell * y.new_tensor(codes.shape)).to(y)  # (2,), relative
        work = self._workspace(codes.table, len(self._corners()) * b * height * width)
        for r in range(0, len(y), height):
            for c in range(0, len(x), width):
                block = [(i[r:r + height].view(-1, 1) - top, d[r:r + height].view(-1, 1)) for i, d in rows]
                across = [(i[c:c + width] - left, d[c:c + width]) for i, d in columns]
                index = torch.stack([image + i * tw + j for i, _ in block for j, _ in across])  # (T, B, H', W')
                offset = torch.stack([torch.stack(torch.broadcast_tensors(v, u), dim=-1)
                                      for _, v in block for _, u in across])  # (T, H', W', 2)
                weight = _opposite_areas(offset[..., 0], offset[..., 1])  # (T, H', W')
                query = torch.cat([offset, cell.expand_as(offset)], dim=-1) if self.cell_decode else offset
                query = query.unsqueeze(1).expand(*index.shape, -1).reshape(index.numel(), -1)  # (T * N, 4)
                weight = weight.unsqueeze(1).expand(index.shape).reshape(len(index), -1)  # (T, N)
                rgb = self._blend(codes.table, index.view(-1), query, weight, work)  # (3, N)
                out[..., r:r + height, c:c + width] = rgb.view(3, *index.shape[1:]).transpose(0, 1)
        return out  # (B, 3, H, W)

    def _workspace(self, table, rows):
        """What decoding takes once for all its chunks, of at most so many rows: the layers in the precision of the table
        and, without gradients, two buffers that they fill in turn. New memory for each result costs a CPU a third of
        its rate."""
        layers = self._layers()
        # The last bias is added to the blended colours, which are of float32 at least.
        layers = [(w.to(table.dtype), b.to(table.dtype)) for w, b in layers[:-1]] + \
                 [(w.to(table.dtype), b) for w, b in layers[-1:]]
        if torch.is_grad_enabled():
            return Workspace(layers)
        rows = min(rows, _chunk(table))
        return Workspace(layers, rows, table.new_empty(2, rows * max((len(b) for _, b in layers), default=0)))

    def _layers(self):
        """(W, b) of f's layers; none of a decoder that takes the general path."""
        layers = self.imnet.layers if self._shares_first_layer else []
        return [(layer.weight, layer.bias) for layer in layers if isinstance(layer, nn.Linear)]

    def _blend(self, table, index, query, weight, work):
        """f at every corner, blended: (3, N) in float32 at least.

        table: (rows, D); index: (T * N,), the codes' rows in it; query: (T * N, 2 or 4), what the first layer takes
        besides the features; weight: (T, N), sums to one over the T corners; work: of `_workspace`.
        """
        columns = bias = None
        if work.layers:
            (first, _), *_, (_, bias) = work.layers
            columns = first[:, -query.shape[-1]:].t()  # (2 or 4, D)
            if table.dtype != query.dtype:
                # Half precision would lose digits of the coordinates, so the lost part is added as further inputs.
                coarse = query.to(table.dtype)
                query = torch.cat([coarse, (query - coarse).to(table.dtype)], dim=-1)
                columns = torch.cat([columns, columns])
        chunks = [slice(i, i + work.rows) for i in range(0, len(index), work.rows)] if work.rows else [slice(None)]
        rgb = torch.cat([self._corner_rgb(table, index[chunk], query[chunk], columns, work).to(weight.dtype)
                         for chunk in chunks], dim=1)  # (3, T * N)
        blended = (weight * rgb.view(len(rgb), *weight.shape)).sum(1)  # (3, N)
        return blended if bias is None else blended + bias.unsqueeze(1)  # once for all corners: their weights sum to 1

    def _corner_rgb(self, table, index, query, columns, work):
        """f without its last bias, (3, M), for M rows of the table, and the rest of its input with the first layer's
        columns for it."""
        if not work.layers:
            return self.imnet(torch.cat([table.index_select(0, index), query.to(table.dtype)], dim=-1)).t()
        _, *hidden, (last, _) = work.layers
        if work.buffers is None:
            x = _relu(table.index_select(0, index).addmm_(query, columns))  # (M, D)
            for matrix, bias in hidden:
                x = _relu(F.linear(x, matrix, bias))  # (M, D)
            return F.linear(x, last).t()
        place, other = ((lambda width, at=at: at[:len(index) * width].view(-1, width)) for at in work.buffers)
        x = torch.index_select(table, 0, index, out=place(table.shape[-1]))  # (M, D)
        x = _relu(x.addmm_(query, columns))
        for matrix, bias in hidden:
            place, other = other, place
            x = _relu(torch.addmm(bias, x, matrix.t(), out=place(len(bias))))  # (M, D)
        # So narrow a product takes half the time by channels in float32, by rows in bf16.
        return F.linear(x, last).t() if x.dtype == torch.bfloat16 else torch.mm(last, x.t())


def nearest_code(x, n, side=0):
    """The code nearest to coordinate x, or to x moved by half the spacing of codes towards `side`, on one axis.

    x: any shape, in [-1, 1]; n: codes along the axis; side: -1, 0 or 1.
    Returns the index (int64) and x's distance from that code's centre in units of half the spacing of codes.
    A ramp sent through grid_sample itself breaks the ties of odd scales as the published model does, on every device.
    """
    moved = (x + (side / n + SHIFT) if side else x).clamp(-1 + SHIFT, 1 - SHIFT)
    ramp = torch.arange(n, device=x.device, dtype=x.dtype).view(1, 1, 1, n)
    where = torch.stack([moved, torch.zeros_like(moved)], dim=-1).view(1, 1, -1, 2)
    with torch.autocast(x.device.type, enabled=False):
        index = F.grid_sample(ramp, where, mode='nearest', align_corners=False).view(x.shape).long()
    centre = axis_coord(n, device=x.device, dtype=x.dtype)[index]
    return index, (x - centre) * n


class BitReLU(torch.autograd.Function):
    """ReLU in place of bf16 on a CPU, several times faster than torch's own, which makes floats of it and bf16 again.
    Read as integers, the numbers below 0 are -inf (-128) and less, and a NaN, of either sign, is not."""

    @staticmethod
    def forward(ctx, x):
        torch.threshold_(x.view(torch.int16), -128, 0)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        bits = (t.view(torch.int16) for t in (grad, *ctx.saved_tensors))
        return torch.ops.aten.threshold_backward(*bits, 0).view(grad.dtype)


def _relu(x):
    """ReLU in place."""
    return BitReLU.apply(x) if x.dtype == torch.bfloat16 and x.device.type == 'cpu' else x.relu_()


def _chunk(table):
    """Rows (M, D) of one layer that are computed together."""
    budget = CPU_CHUNK if table.device.type == 'cpu' else GPU_CHUNK
    return max(1, budget // (table.shape[-1] * table.element_size()))


def _blocks(rows, columns, chunk):
    """(height, width) of the blocks, of at most `chunk` queries, that cover a grid in the fewest pieces."""
    rows, columns = max(1, rows), max(1, columns)
    widths = [min(chunk, math.ceil(columns / parts)) for parts in range(1, 9)]
    return min(((min(rows, chunk // width), width) for width in widths),
               key=lambda shape: math.ceil(rows / shape[0]) * math.ceil(columns / shape[1]))


def _opposite_areas(y, x):
    """Blending weights of the local ensemble (eq. 4): corner t gets the area that x spans with the opposite corner.
    y, x: relative coordinates, (T, ...), T = 4 or 1. Returns (T, ...), summing to one over T."""
    area = (y * x).abs() + 1e-9
    return area.flip(0) / area.sum(0)


def _grow(window, by, h, w):
    top, left, bottom, right = window
    return max(top - by, 0), max(left - by, 0), min(bottom + by, h), min(right + by, w)
