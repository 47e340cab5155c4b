"""MetaSR (Hu et al., CVPR 2019), the arbitrary-scale baseline of the paper's tables: an MLP predicts, per query,
the weights of a convolution over the 3x3 neighbourhood of the nearest latent code."""
import torch
import torch.nn.functional as F
from torch import nn

import models
from utils import make_coord

from .models import EncoderSpec, features, register


EDGE = 1e-6  # moves ties to the code on the lower right and keeps clamped coordinates inside the image


@register('metasr', 'model')
class MetaSR(nn.Module):
    """Same protocol as LIIF: gen_feat(inp), query_rgb(coord, cell), forward(inp, coord, cell)."""

    def __init__(self, encoder_spec: EncoderSpec):
        super().__init__()
        self.encoder = models.make(encoder_spec)
        self.imnet = models.make({'name': 'mlp', 'args': {
            'in_dim': 3, 'out_dim': self.encoder.out_dim * 9 * 3, 'hidden_list': [256]}})

    def gen_feat(self, inp):
        """inp: (B, 3, h, w), normalized. Keeps and returns the features (B, C, h, w)."""
        self.feat = features(self.encoder, inp)
        return self.feat

    def query_rgb(self, coord, cell):
        """coord, cell: (B, Q, 2). Returns RGB (B, Q, 3), normalized.

        The query is the top-left corner of its pixel; its offset from the top-left corner of the code it falls in,
        in units of LR pixels, and the pixel's height in the same unit go into the MLP.
        """
        b, c, h, w = self.feat.shape
        q = coord.shape[1]
        size = torch.tensor([h, w], device=coord.device, dtype=coord.dtype)
        codes = F.unfold(self.feat.to(coord.dtype), 3, padding=1).view(b, 9 * c, h, w)
        corners = make_coord((h, w), flatten=False, device=coord.device, dtype=coord.dtype) - 1 / size  # (h, w, 2)
        corners = corners.permute(2, 0, 1).expand(b, 2, h, w)

        corner = coord - cell / 2  # (B, Q, 2)
        nearest = (corner + EDGE).clamp(-1 + EDGE, 1 - EDGE).flip(-1).unsqueeze(1)  # (B, 1, Q, 2)
        code = F.grid_sample(codes, nearest, mode='nearest', align_corners=False)[:, :, 0].transpose(1, 2)
        origin = F.grid_sample(corners, nearest, mode='nearest', align_corners=False)[:, :, 0].transpose(1, 2)
        offset = (corner - origin) * size / 2  # (B, Q, 2)
        height = cell[..., :1] * h / 2  # (B, Q, 1)

        weight = self.imnet(torch.cat([offset, height], dim=-1)).view(b * q, 9 * c, 3)
        return torch.bmm(code.reshape(b * q, 1, 9 * c), weight).view(b, q, 3)

    def forward(self, inp, coord, cell):
        self.gen_feat(inp)
        return self.query_rgb(coord, cell)
