"""The exact fast decode of LIIF: the formula of `models/textbook.py` in another order, with the same values.

The textbook sends 9C + 4 = 580 inputs through the decoder f four times for each query. Here

1. f's first layer is linear, so its share of the 9C feature inputs is one 3x3 convolution of the feature map, computed
   once per image (`feature_table`) and looked up for each query;
2. the inputs that depend on the query (relative coordinate, relative cell) are added by a product with the layer's last
   columns;
3. on a regular grid (`on_grid`) nearest codes and offsets separate into a row and a column table.

Per query at the paper's sizes: 793,600 multiply-adds instead of 1,383,424, and 256 gathered values a corner instead of
576. The 256x256 products of the hidden layers remain. (Blending the hidden vectors, to apply the last layer once, would
save 2,304 more and was measured slower: blending three channels is cheaper than blending 256.)
A decoder other than a ReLU MLP gathers the unfolded features instead and runs whole.
"""
import functools
import itertools
import math
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import nn

from utils import axis_coord

from .mlp import MLP


SHIFT = 1e-6  # breaks the ties of queries half-way between two codes, and keeps clamped coordinates inside
CPU_CHUNK, GPU_CHUNK = 8 << 20, 32 << 20  # bytes of one layer in a chunk; GPU_CHUNK: where the L2 size is unknown
BLOCK = 4  # chunks whose coordinates, offsets and weights are computed together


class Codes(NamedTuple):
    """The latent codes of an image, or of a window of it, ready for decoding.

    feat: (B, C, th, tw); table: (B * th * tw, D), the rows that queries gather (`feature_table`), None without a
    decoder; shape: (h, w) of the whole image's map; origin: (row, column) of the window in it.
    """
    feat: torch.Tensor
    table: Optional[torch.Tensor]
    shape: tuple
    origin: tuple = (0, 0)


class Workspace(NamedTuple):
    """What decoding prepares once for all its chunks (`workspace`).

    layers: (W, b) of f, empty for a general decoder; rows: of a chunk, None for all at once; buffers: (2, elements),
    which the layers fill in turn without gradients.
    """
    layers: list
    rows: Optional[int] = None
    buffers: Optional[torch.Tensor] = None


# Encoding.

def is_relu_mlp(imnet):
    """Whether f is a ReLU MLP with a hidden layer, whose first layer can be split."""
    return (isinstance(imnet, MLP) and type(imnet).forward is MLP.forward and len(imnet.layers) > 1
            and all(isinstance(layer, (nn.Linear, nn.ReLU)) for layer in imnet.layers))


def feature_table(model, feat, crop=(slice(None), slice(None))):
    """The rows that queries gather, (B * th * tw, D), of the feature map (B, C, h, w) or its part `crop`.

    D is the width of f's first layer; of a general decoder, the number of (unfolded) features.
    """
    if model.imnet is None:
        return None
    if is_relu_mlp(model.imnet):
        first = model.imnet.layers[0]
        c, k = feat.shape[1], 3 if model.feat_unfold else 1
        # Unfold orders its channels c * 9 + k, so the weight's columns are a convolution kernel without reordering.
        kernel = first.weight[:, :c * k * k].reshape(-1, c, k, k)
        # Some convolution algorithms skip the zero padding and so would hide a NaN weight: the bias passes it on.
        table = F.conv2d(feat, kernel, first.bias + 0 * kernel.sum((1, 2, 3)), padding=k // 2)  # (B, D, h, w)
    elif model.feat_unfold:
        table = F.unfold(feat, 3, padding=1).view(feat.shape[0], -1, *feat.shape[-2:])  # (B, 9C, h, w)
    else:
        table = feat
    table = table[(..., *crop)].permute(0, 2, 3, 1)  # (B, th, tw, D)
    return table.reshape(-1, table.shape[-1])


# Geometry: which codes, how far, with which weight.

def sides(local_ensemble):
    """On which sides of a query the codes that it blends lie, along one axis; 0: the nearest one, whichever side."""
    return (-1, 1) if local_ensemble else (0,)


def corners(local_ensemble):
    """(row side, column side) of the codes that a query blends, in the paper's order."""
    return list(itertools.product(sides(local_ensemble), repeat=2))


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


def opposite_areas(y, x):
    """Blending weights of the local ensemble (eq. 4): corner t gets the area that x spans with the opposite corner.
    y, x: relative coordinates, (T, ...), T = 4 or 1. Returns (T, ...), summing to one over T."""
    area = (y * x).abs() + 1e-9
    return area.flip(0) / area.sum(0)


# Decoding.

def at_queries(model, codes, coord, cell=None):
    """RGB (B, Q, 3), normalized, of scattered queries coord, cell (B, Q, 2)."""
    b, q = coord.shape[:2]
    if model.imnet is None:
        return nearest_pixel(codes, coord.unsqueeze(1))[:, :, 0].transpose(1, 2)
    block = q if torch.is_grad_enabled() else queries_per_block(model, codes)
    parts = zip(coord.split(block, 1), (cell if model.cell_decode else coord).split(block, 1))
    work = workspace(model, codes.table, len(corners(model.local_ensemble)) * b * min(q, block))
    return torch.cat([_query_block(model, codes, x, c, work) for x, c in parts], dim=1)


def _query_block(model, codes, coord, cell, work):
    b, q = coord.shape[:2]
    (h, w), (top, left), (th, tw) = codes.shape, codes.origin, codes.feat.shape[-2:]
    image = torch.arange(b, device=coord.device).view(-1, 1)
    index, offset = [], []
    for i, j in corners(model.local_ensemble):
        row, y = nearest_code(coord[..., 0], h, i)  # (B, Q)
        column, x = nearest_code(coord[..., 1], w, j)
        index.append(((image * th + row - top) * tw + column - left).view(-1))  # rows of the table
        offset.append(torch.stack([y, x], dim=-1).view(-1, 2))
    index, offset = torch.stack(index), torch.stack(offset)  # (T, B * Q), (T, B * Q, 2)
    query = offset
    if model.cell_decode:
        size = torch.tensor(codes.shape, device=coord.device, dtype=coord.dtype)  # (2,)
        query = torch.cat([offset, (cell * size).reshape(1, -1, 2).expand_as(offset)], dim=-1)  # (T, B * Q, 4)
    weight = opposite_areas(offset[..., 0], offset[..., 1])  # (T, B * Q)
    rgb = blend(model.imnet, codes.table, index.view(-1), query.flatten(0, 1), weight, work)  # (3, B * Q)
    return rgb.t().view(b, q, len(rgb))


def on_grid(model, codes, y, x, cell, chunk=None):
    """RGB (B, 3, H, W), normalized, at the crossings of rows y (H,) and columns x (W,); cell: (2,), one pixel size
    for all; chunk: queries decoded at a time, chosen for the device when None."""
    if model.imnet is None:
        grid = torch.stack(torch.meshgrid(y, x, indexing='ij'), dim=-1)  # (H, W, 2)
        return nearest_pixel(codes, grid.expand(len(codes.feat), *grid.shape))
    rows, columns = ([nearest_code(at, n, side) for side in sides(model.local_ensemble)]
                     for at, n in zip((y, x), codes.shape))
    (top, left), (th, tw), b = codes.origin, codes.feat.shape[-2:], len(codes.feat)
    image = torch.arange(b, device=y.device).view(-1, 1, 1) * (th * tw)
    out = y.new_empty(b, 3, len(y), len(x))
    chunk = max(1, min(chunk // b if chunk else math.inf, queries_per_block(model, codes)))
    height, width = block_shape(len(y), len(x), chunk)
    cell = (cell * torch.tensor(codes.shape, device=y.device, dtype=y.dtype)).to(y)  # (2,), relative
    work = workspace(model, codes.table, len(rows) ** 2 * b * height * width)
    for r in range(0, len(y), height):
        for c in range(0, len(x), width):
            down = [(i[r:r + height].view(-1, 1) - top, d[r:r + height].view(-1, 1)) for i, d in rows]
            across = [(i[c:c + width] - left, d[c:c + width]) for i, d in columns]
            index = torch.stack([image + i * tw + j for i, _ in down for j, _ in across])  # (T, B, H', W')
            offset = torch.stack([torch.stack(torch.broadcast_tensors(v, u), dim=-1)
                                  for _, v in down for _, u in across])  # (T, H', W', 2)
            weight = opposite_areas(offset[..., 0], offset[..., 1])  # (T, H', W')
            query = torch.cat([offset, cell.expand_as(offset)], dim=-1) if model.cell_decode else offset
            query = query.unsqueeze(1).expand(*index.shape, -1).reshape(index.numel(), -1)  # (T * N, 4)
            weight = weight.unsqueeze(1).expand(index.shape).reshape(len(index), -1)  # (T, N)
            rgb = blend(model.imnet, codes.table, index.view(-1), query, weight, work)  # (3, N)
            out[..., r:r + height, c:c + width] = rgb.view(3, *index.shape[1:]).transpose(0, 1)
    return out  # (B, 3, H, W)


def nearest_pixel(codes, coord):
    """Without a decoder: the nearest pixel of the up-sampled image, (B, C, H', W') for coord (B, H', W', 2)."""
    return F.grid_sample(codes.feat.to(coord.dtype), coord.flip(-1), mode='nearest', align_corners=False)


# Chunks: sized so that a layer's input and output fit the cache together.

def rows_per_chunk(table):
    """Rows (M, D) of one layer that are computed together."""
    return max(1, chunk_bytes(table.device) // (table.shape[-1] * table.element_size()))


def chunk_bytes(device):
    """Half the L2 cache of an NVIDIA GPU; constants for other devices."""
    if device.type == 'cuda' and torch.cuda.is_available():
        return getattr(torch.cuda.get_device_properties(device), 'L2_cache_size', 0) // 2 or GPU_CHUNK
    return CPU_CHUNK if device.type == 'cpu' else GPU_CHUNK


def queries_per_block(model, codes):
    """Queries of each image whose geometry is computed at a time."""
    per_query = len(corners(model.local_ensemble)) * max(1, len(codes.feat))
    return max(1, BLOCK * rows_per_chunk(codes.table) // per_query)


def block_shape(rows, columns, chunk):
    """(height, width) of the blocks, of at most `chunk` queries, that cover a grid in the fewest pieces."""
    rows, columns = max(1, rows), max(1, columns)
    widths = [min(chunk, math.ceil(columns / parts)) for parts in range(1, 9)]
    return min(((min(rows, chunk // width), width) for width in widths),
               key=lambda shape: math.ceil(rows / shape[0]) * math.ceil(columns / shape[1]))


def linear_layers(imnet):
    """(W, b) of f's layers; empty for a decoder that takes the general path."""
    layers = imnet.layers if is_relu_mlp(imnet) else []
    return [(layer.weight, layer.bias) for layer in layers if isinstance(layer, nn.Linear)]


def workspace(model, table, rows):
    """The layers in the precision of the table and, without gradients, two buffers for chunks of at most `rows` rows,
    which the layers fill in turn. Allocating memory for each result would cost a third of the speed on a CPU."""
    layers = linear_layers(model.imnet)
    # The last bias keeps its type: it is added to the blended colours, which are at least float32.
    layers = [(w.to(table.dtype), b.to(table.dtype)) for w, b in layers[:-1]] + \
             [(w.to(table.dtype), b) for w, b in layers[-1:]]
    if torch.is_grad_enabled():
        return Workspace(layers)
    rows = min(rows, rows_per_chunk(table))
    return Workspace(layers, rows, table.new_empty(2, rows * max((len(b) for _, b in layers), default=0)))


# The decoder f.

def blend(imnet, table, index, query, weight, work):
    """f at every corner, blended (eq. 4): (3, N), at least float32.

    table: (rows, D); index: (T * N,), the codes' rows in it; query: (T * N, 2 or 4), the inputs of f that depend on the
    query; weight: (T, N), sums to one over the T corners; work: of `workspace`.
    """
    rgb = evaluate(imnet, table, index, query, work, weight.dtype)  # (3, T * N)
    blended = (weight * rgb.view(len(rgb), *weight.shape)).sum(1)  # (3, N)
    # The last bias once for all corners, since their weights sum to 1.
    return blended + work.layers[-1][1].unsqueeze(1) if work.layers else blended


def evaluate(imnet, table, index, query, work, dtype):
    """f without its last bias (a general decoder: with it), in `dtype`: (3, M) for index (M,) and query (M, 2 or 4)."""
    columns = None
    if work.layers:
        columns = work.layers[0][0][:, -query.shape[-1]:].t()  # (2 or 4, D), the first layer's share of the query
        if table.dtype != query.dtype:
            # Half precision would lose digits of the coordinates, so the lost part is added as further inputs.
            coarse = query.to(table.dtype)
            query = torch.cat([coarse, (query - coarse).to(table.dtype)], dim=-1)
            columns = torch.cat([columns, columns])
    chunks = [slice(i, i + work.rows) for i in range(0, len(index), work.rows)] if work.rows else [slice(None)]
    return torch.cat([_evaluate_chunk(imnet, table, index[chunk], query[chunk], columns, work).to(dtype)
                      for chunk in chunks], dim=1)


def _evaluate_chunk(imnet, table, index, query, columns, work):
    if not work.layers:
        return imnet(torch.cat([table.index_select(0, index), query.to(table.dtype)], dim=-1)).t()
    _, *hidden, (last, _) = work.layers
    if work.buffers is None:
        x = relu_(table.index_select(0, index).addmm_(query, columns))  # (M, D)
        for matrix, bias in hidden:
            x = relu_(F.linear(x, matrix, bias))  # (M, D)
        return F.linear(x, last).t()
    place, other = ((lambda width, at=at: at[:len(index) * width].view(-1, width)) for at in work.buffers)
    x = torch.index_select(table, 0, index, out=place(table.shape[-1]))  # (M, D)
    x = relu_(x.addmm_(query, columns))
    for matrix, bias in hidden:
        place, other = other, place
        x = linear_relu(x, matrix, bias, place(len(bias)))  # (M, D)
    # With so few outputs, this product takes half the time as (3, M) in float32, but as (M, 3) in bf16.
    return F.linear(x, last).t() if x.dtype == torch.bfloat16 else torch.mm(last, x.t())


def linear_relu(x, matrix, bias, out):
    """relu(x W^T + b), which may use the memory `out`. Where torch has that, the bias is part of the product; on CUDA
    the ReLU, too. On a CPU it is not, since oneDNN's ReLU turns NaN into 0, which would hide damaged weights."""
    if x.device.type == 'cuda' and hasattr(torch, '_addmm_activation'):
        return torch._addmm_activation(bias, x, matrix.t(), out=out)
    if x.device.type == 'cpu' and fuses_bias(x.dtype):
        return relu_(torch.ops.mkldnn._linear_pointwise(x, matrix, bias, 'none', [], ''))
    return relu_(torch.addmm(bias, x, matrix.t(), out=out))


@functools.cache
def fuses_bias(dtype):
    """Whether torch has oneDNN's product with a bias for a CPU in this precision."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, '_linear_pointwise'):
        return False
    return dtype == torch.float32 or dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def relu_(x):
    """ReLU in place."""
    return BitReLU.apply(x) if x.dtype == torch.bfloat16 and x.device.type == 'cpu' else x.relu_()


class BitReLU(torch.autograd.Function):
    """ReLU in place of bf16 on a CPU, several times faster than torch's own, which converts to float and back.
    Read as int16, every negative number is at most -128 (-inf), and NaN of either sign is above it."""

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
