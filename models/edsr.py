"""EDSR (Lim et al., CVPR Workshops 2017): a plain residual network without batch normalization."""
from typing import Annotated

from torch import nn

from utils import Integer, Number

from .blocks import Features, MeanShift, NoUpsampling, RgbRange, Scale, conv, upsampling
from .models import register


Blocks = Annotated[int, Integer(0, 1024), 'residual blocks']
ResScale = Annotated[float, Number(0), 'factor of each residual']


class ResBlock(nn.Module):
    """x + res_scale * conv(relu(conv(x)))."""

    def __init__(self, n_feats, res_scale):
        super().__init__()
        self.body = nn.Sequential(conv(n_feats, n_feats), nn.ReLU(inplace=True), conv(n_feats, n_feats))
        self.res_scale = res_scale

    def forward(self, x):
        res = self.body(x)  # (B, C, h, w)
        return x + (res if self.res_scale == 1 else self.res_scale * res)


@register('edsr-baseline', 'encoder')
class EDSR(nn.Module):
    """(B, 3, h, w) -> (B, n_feats, h, w) with no_upsampling, else (B, 3, scale * h, scale * w).

    EDSR-baseline as it is: 16 blocks of 64 features, 1.2 M parameters; the encoder of most of the paper's tables.
    out_dim: channels of the output. receptive_radius: how many pixels beyond itself an output code sees.
    """

    def __init__(self, n_resblocks: Blocks = 16, n_feats: Features = 64, res_scale: ResScale = 1, scale: Scale = 2,
                 no_upsampling: NoUpsampling = False, rgb_range: RgbRange = 1):
        super().__init__()
        self.no_upsampling = no_upsampling
        self.sub_mean = MeanShift(rgb_range, -1)
        self.add_mean = MeanShift(rgb_range, +1)
        self.head = nn.Sequential(conv(3, n_feats))
        self.body = nn.Sequential(*[ResBlock(n_feats, res_scale) for _ in range(n_resblocks)], conv(n_feats, n_feats))
        if no_upsampling:
            self.out_dim = n_feats
            self.receptive_radius = 2 * n_resblocks + 2
            self.floats_per_pixel = 6 * n_feats
        else:
            self.out_dim = 3
            self.tail = nn.Sequential(nn.Sequential(*upsampling(scale, n_feats, n_feats)), conv(n_feats, 3))

    def forward(self, x):
        x = self.head(x)  # (B, C, h, w)
        x = x + self.body(x)  # (B, C, h, w)
        return x if self.no_upsampling else self.tail(x)


@register('edsr', 'encoder')
def make_edsr(n_resblocks: Blocks = 32, n_feats: Features = 256, res_scale: ResScale = 0.1, scale: Scale = 2,
              no_upsampling: NoUpsampling = False, rgb_range: RgbRange = 1):
    """EDSR: 32 blocks of 256 features with residuals scaled by 0.1."""
    return EDSR(n_resblocks, n_feats, res_scale, scale, no_upsampling, rgb_range)
