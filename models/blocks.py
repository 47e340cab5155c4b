"""Convolutional pieces that several encoders share."""
import math
from typing import Annotated

import torch
from torch import nn

from utils import FLAG, Integer, Number, OneOf


# Arguments of several encoders.
Features = Annotated[int, Integer(1, 8192), 'features']
Scale = Annotated[int, OneOf(1, 2, 3, 4, 8, 16, 32, 64), "factor of the encoder's up-sampler"]
NoUpsampling = Annotated[bool, FLAG, 'true: return features, for LIIF and MetaSR']
RgbRange = Annotated[float, Number(0, above=True), 'range of two unused layers that published checkpoints hold']

# Mean RGB of the DIV2K training images, by which the original EDSR shifts its input.
DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


def conv(in_channels, out_channels, kernel_size=3):
    """A convolution that keeps height and width."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)


class MeanShift(nn.Conv2d):
    """The fixed 1x1 convolution x + sign * rgb_range * mean.

    LIIF normalizes its input itself and never runs this; the tensors stay, frozen, because checkpoints list them
    and published optimizer states count parameters by position.
    """

    def __init__(self, rgb_range, sign):
        super().__init__(3, 3, kernel_size=1)
        self.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.bias.data = sign * rgb_range * torch.tensor(DIV2K_MEAN)
        self.requires_grad_(False)


def upsampling(scale, in_channels, channels, kernel_size=3):
    """Layers of a sub-pixel convolution, (B, in_channels, h, w) -> (B, channels, scale * h, scale * w), for 3 or a
    power of two, in steps of two."""
    layers = []
    for factor in (3,) if scale == 3 else (2,) * int(math.log2(scale)):
        layers += [conv(in_channels, factor ** 2 * channels, kernel_size), nn.PixelShuffle(factor)]
        in_channels = channels
    return layers
