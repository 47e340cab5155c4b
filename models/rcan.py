"""RCAN (Zhang et al., ECCV 2018): residual groups of blocks with channel attention."""
from typing import Annotated

from torch import nn

from utils import Integer

from .blocks import Features, MeanShift, NoUpsampling, RgbRange, Scale, conv, upsampling
from .models import register


class ChannelAttention(nn.Module):
    """x scaled per channel by a gate computed from the channel means of the whole image."""

    def __init__(self, n_feats, reduction):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_du = nn.Sequential(conv(n_feats, n_feats // reduction, 1), nn.ReLU(inplace=True),
                                     conv(n_feats // reduction, n_feats, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.conv_du(self.avg_pool(x))  # (B, C, h, w) * (B, C, 1, 1)


class Residual(nn.Module):
    """x + body(x), of blocks and of groups alike."""

    def __init__(self, *layers):
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.body(x)


@register('rcan', 'encoder')
class RCAN(nn.Module):
    """(B, 3, h, w) -> (B, n_feats, h, w) with no_upsampling, else (B, 3, scale * h, scale * w).

    out_dim: channels of the output. receptive_radius is None: the attention pools over the whole image, so an
    image cannot be encoded in tiles with the same result.
    """

    def __init__(self, n_resgroups: Annotated[int, Integer(0, 1024), 'residual groups'] = 10,
                 n_resblocks: Annotated[int, Integer(0, 1024), 'residual blocks in a group'] = 20,
                 n_feats: Features = 64,
                 reduction: Annotated[int, Integer(1, 8192), 'reduction of features in the channel attention'] = 16,
                 scale: Scale = 2, no_upsampling: NoUpsampling = False, rgb_range: RgbRange = 1):
        super().__init__()
        self.no_upsampling = no_upsampling
        self.receptive_radius = None
        self.sub_mean = MeanShift(rgb_range, -1)
        head = nn.Sequential(conv(3, n_feats))

        def block():
            return Residual(conv(n_feats, n_feats), nn.ReLU(inplace=True), conv(n_feats, n_feats),
                            ChannelAttention(n_feats, reduction))

        def group():
            return Residual(*[block() for _ in range(n_resblocks)], conv(n_feats, n_feats))

        body = nn.Sequential(*[group() for _ in range(n_resgroups)], conv(n_feats, n_feats))
        # Initial weights are drawn in the published order, which is not the published order of the parameters.
        self.add_mean = MeanShift(rgb_range, +1)
        self.head, self.body = head, body
        if no_upsampling:
            self.out_dim = n_feats
        else:
            self.out_dim = 3
            self.tail = nn.Sequential(nn.Sequential(*upsampling(scale, n_feats, n_feats)), conv(n_feats, 3))

    def forward(self, x):
        x = self.head(x)  # (B, C, h, w)
        x = x + self.body(x)  # (B, C, h, w)
        return x if self.no_upsampling else self.tail(x)
