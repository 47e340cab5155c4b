"""The textbook LIIF decode, as the paper states it: the oracle for the fast path, and the baseline of benchmarks.

Notation of the paper: M the feature map, z* a latent code, v* its centre, x the query, c the cell, f the decoder.
"""
import torch
import torch.nn.functional as F

from utils import make_coord


def query(model, feat, x, cell):
    """RGB (B, Q, 3) of queries x, cell (B, Q, 2) on features (B, C, h, w), by eqs. 1 to 5 with nothing rearranged."""
    b, _, h, w = feat.shape
    M = F.unfold(feat, 3, padding=1).view(b, -1, h, w) if model.feat_unfold else feat  # eq. 3: concatenated 3x3
    centres = make_coord((h, w), flatten=False, device=x.device, dtype=x.dtype).permute(2, 0, 1).expand(b, 2, h, w)
    spacing = x.new_tensor([2 / h, 2 / w])
    units = x.new_tensor([h, w])

    def nearest(grid, at):  # (B, D, h, w) at (B, Q, 2) -> (B, Q, D)
        return F.grid_sample(grid, at.flip(-1).unsqueeze(1), mode='nearest', align_corners=False)[:, :, 0].mT

    corners = [(i, j) for i in (-1, 1) for j in (-1, 1)] if model.local_ensemble else [(0, 0)]
    rgb, area = [], []
    for corner in corners:  # eq. 4: t in {00, 01, 10, 11}
        at = x
        if model.local_ensemble:
            at = x + x.new_tensor(corner) * spacing / 2 + 1e-6
        at = at.clamp(-1 + 1e-6, 1 - 1e-6)
        z, v = nearest(M, at), nearest(centres, at)
        inputs = [z, (x - v) * units]  # eq. 1: f(z*, x - v*)
        if model.cell_decode:
            inputs.append(cell * units)  # eq. 5: f(z*, [x - v*, c])
        rgb.append(model.imnet(torch.cat(inputs, dim=-1)))  # (B, Q, 3)
        offset = (x - v) * units
        area.append((offset[..., 0] * offset[..., 1]).abs() + 1e-9)  # (B, Q)
    total = sum(area)
    opposite = area[::-1]  # eq. 4: S_t is spanned with the corner diagonally opposite to t
    return sum(r * (s / total).unsqueeze(-1) for r, s in zip(rgb, opposite))


def predict(model, inp, x, cell, bsize=30000):
    """Whole prediction (B, Q, 3), queries in chunks of `bsize`, each of which unfolds the features again."""
    feat = model.encoder(inp)
    return torch.cat([query(model, feat, x[:, i:i + bsize], cell[:, i:i + bsize])
                      for i in range(0, x.shape[1], bsize)], dim=1)
