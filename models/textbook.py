"""LIIF as the paper states it (section 3, eqs. 1 to 5), with nothing rearranged: read this file first.

The tests compare the fast decode of `models/decode.py` with it, and the benchmarks measure against it.
Notation of the paper: M the feature map, z* a latent code, v* its centre, x a query, c its cell, f the decoder.
"""
import torch
import torch.nn.functional as F

from utils import make_coord


def query(model, feat, x, cell):
    """The colours at scattered queries.

    model: a LIIF with a decoder; feat: its encoder's output, (B, C, h, w); x, cell: (B, Q, 2), (y, x) in [-1, 1].
    Returns RGB (B, Q, 3), normalized.
    """
    b, _, h, w = feat.shape
    M = F.unfold(feat, 3, padding=1).view(b, -1, h, w) if model.feat_unfold else feat  # eq. 3: each code with its 3x3
    centres = make_coord((h, w), flatten=False, device=x.device, dtype=x.dtype).permute(2, 0, 1).expand(b, 2, h, w)
    units = x.new_tensor([h, w])  # makes 1 half the distance between two codes

    def nearest(grid, at):  # (B, D, h, w) read at (B, Q, 2) -> (B, Q, D)
        return F.grid_sample(grid, at.flip(-1).unsqueeze(1), mode='nearest', align_corners=False)[:, :, 0].mT

    corners = [(i, j) for i in (-1, 1) for j in (-1, 1)] if model.local_ensemble else [(0, 0)]
    rgb, area = [], []
    for corner in corners:  # eq. 4: t in {00, 01, 10, 11}
        at = x
        if model.local_ensemble:
            at = x + x.new_tensor(corner) / units + 1e-6  # half a code towards the corner
        at = at.clamp(-1 + 1e-6, 1 - 1e-6)
        z, v = nearest(M, at), nearest(centres, at)
        offset = (x - v) * units  # (B, Q, 2)
        inputs = [z, offset]  # eq. 1: f(z*, x - v*)
        if model.cell_decode:
            inputs.append(cell * units)  # eq. 5: f(z*, [x - v*, c])
        rgb.append(model.imnet(torch.cat(inputs, dim=-1)))  # (B, Q, 3)
        area.append((offset[..., 0] * offset[..., 1]).abs() + 1e-9)  # (B, Q)
    total = sum(area)
    opposite = area[::-1]  # eq. 4: S_t is the area between x and the corner diagonally opposite to t
    return sum(r * (s / total).unsqueeze(-1) for r, s in zip(rgb, opposite))
