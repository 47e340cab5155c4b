"""RDN (Zhang et al., CVPR 2018): residual dense blocks whose outputs are fused globally."""
from typing import Annotated

import torch
from torch import nn

from utils import Integer, OneOf

from .blocks import Features, NoUpsampling, conv, upsampling
from .models import register


CONFIGS = {'A': (20, 6, 32), 'B': (16, 8, 64)}  # blocks D, convolutions a block C, growth G


class DenseConv(nn.Module):
    """Appends `growth` new channels to its input."""

    def __init__(self, in_channels, growth, kernel_size):
        super().__init__()
        self.conv = nn.Sequential(conv(in_channels, growth, kernel_size), nn.ReLU())

    def forward(self, x):
        return torch.cat([x, self.conv(x)], dim=1)  # (B, in_channels + growth, h, w)


class ResidualDenseBlock(nn.Module):
    """(B, channels, h, w) -> the same shape."""

    def __init__(self, channels, growth, n_convs, kernel_size):
        super().__init__()
        self.convs = nn.Sequential(*[DenseConv(channels + i * growth, growth, kernel_size) for i in range(n_convs)])
        self.LFF = conv(channels + n_convs * growth, channels, 1)  # local feature fusion

    def forward(self, x):
        return x + self.LFF(self.convs(x))  # (B, G0, h, w)


@register('rdn', 'encoder')
class RDN(nn.Module):
    """(B, 3, h, w) -> (B, G0, h, w) with no_upsampling, else (B, 3, scale * h, scale * w) for scale 2, 3 or 4.

    RDNconfig: 'A' (20 blocks of 6 convolutions, growth 32) or 'B' (16, 8, 64).
    out_dim: channels of the output. receptive_radius: how many pixels beyond itself an output code sees.
    """

    def __init__(self, G0: Features = 64,
                 RDNkSize: Annotated[int, Integer(1, 99, odd=True), 'side of the kernels'] = 3,
                 RDNconfig: Annotated[str, OneOf(*CONFIGS), 'A: 20 blocks, 6 layers, growth 32; B: 16, 8, 64'] = 'B',
                 scale: Annotated[int, OneOf(2, 3, 4), "factor of the encoder's up-sampler"] = 2,
                 no_upsampling: NoUpsampling = False):
        super().__init__()
        n_blocks, n_convs, growth = CONFIGS[RDNconfig]
        self.no_upsampling = no_upsampling
        self.SFENet1 = conv(3, G0, RDNkSize)  # shallow feature extraction
        self.SFENet2 = conv(G0, G0, RDNkSize)
        self.RDBs = nn.ModuleList(ResidualDenseBlock(G0, growth, n_convs, RDNkSize) for _ in range(n_blocks))
        self.GFF = nn.Sequential(conv(n_blocks * G0, G0, 1), conv(G0, G0, RDNkSize))  # global feature fusion
        if no_upsampling:
            self.out_dim = G0
            self.floats_per_pixel = (2 * n_blocks + 6) * G0 + 2 * n_convs * growth
            self.receptive_radius = (3 + n_blocks * n_convs) * (RDNkSize // 2)
        else:
            self.out_dim = 3
            self.UPNet = nn.Sequential(*upsampling(scale, G0, growth, RDNkSize), conv(growth, 3, RDNkSize))

    def forward(self, x):
        shallow = self.SFENet1(x)  # (B, G0, h, w)
        x = self.SFENet2(shallow)  # (B, G0, h, w)
        outputs = []
        for block in self.RDBs:
            x = block(x)
            outputs.append(x)
        x = self.GFF(torch.cat(outputs, dim=1)) + shallow  # (B, G0, h, w)
        return x if self.no_upsampling else self.UPNet(x)
