"""The multi-layer perceptron that decodes latent codes (paper, section 5.1: hidden layers of 256, ReLU)."""
from torch import nn

from .models import register


@register('mlp')
class MLP(nn.Module):
    """(..., in_dim) -> (..., out_dim), with a ReLU after each of the hidden layers `hidden_list`."""

    def __init__(self, in_dim, out_dim, hidden_list):
        super().__init__()
        layers = []
        for width in hidden_list:
            layers += [nn.Linear(in_dim, width), nn.ReLU()]
            in_dim = width
        self.layers = nn.Sequential(*layers, nn.Linear(in_dim, out_dim))

    def forward(self, x):
        return self.layers(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
