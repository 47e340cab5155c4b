"""What the tests of demo.py share."""
import os

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import nn

from engine.checkpoint import load_model
from engine.rendering.renderer import Renderer


PHOTO = skimage.data.chelsea()[60:101, 100:163]  # (41, 63, 3): odd sizes, an eye
ENVIRONMENT = {**os.environ, 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'passive', 'CUDA_VISIBLE_DEVICES': ''}


class Overflow(nn.Module):
    """Grey, but NaN in half precision, or always with `broken`."""

    def __init__(self, broken=False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.broken = broken

    def gen_feat(self, inp):
        self.inp = inp

    def query_rgb(self, coord, cell):
        bad = self.broken or torch.is_autocast_enabled('cpu')
        return torch.full((*coord.shape[:2], 3), float('nan') if bad else 0.0)


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def reference(checkpoint, image, size, **options):
    """What engine/rendering/renderer.py makes of pixels (h, w, 3): (H, W, 3), to 8 bits."""
    model, norm = load_model(checkpoint, 'cpu')
    scene = Renderer(model, norm, **options).open(torch.from_numpy(image).permute(2, 0, 1) / 255)
    return scene.render(size, dtype=torch.uint8).permute(1, 2, 0).numpy().astype(int)
