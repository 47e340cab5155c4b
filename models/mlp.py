"""The multi-layer perceptron that decodes latent codes (paper, section 5.1: hidden layers of 256, ReLU)."""
from typing import Annotated

from torch import nn

from utils import Integer, ListOf

from .models import register

WIDTHS = ListOf(Integer(1, 65536), most=64, text='a list of at most 64 integers from 1 to 65536')


@register('mlp', 'decoder')
class MLP(nn.Module):
    """(..., in_dim) -> (..., out_dim), with a ReLU after each of the hidden layers `hidden_list`."""

    def __init__(self, in_dim: Annotated[int, Integer(1), 'given by the model: leave it out'],
                 out_dim: Annotated[int, Integer(1, 65536), '3 in a model: red, green, blue'],
                 hidden_list: Annotated[list, WIDTHS, 'widths of the hidden layers']):
        super().__init__()
        layers = []
        for width in hidden_list:
            layers += [nn.Linear(in_dim, width), nn.ReLU()]
            in_dim = width
        self.layers = nn.Sequential(*layers, nn.Linear(in_dim, out_dim))

    def forward(self, x):
        return self.layers(x)
