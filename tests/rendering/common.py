"""What the tests of demo.py and of image files share."""
import io
import os
import struct

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageCms, features
from torch import nn
from torchvision.io import ImageReadMode, decode_image

from engine.checkpoint import load_model
from engine.rendering.png import write_png
from engine.rendering.reading import GPS_IFD, read_source
from engine.rendering.renderer import Renderer
from engine.rendering.writing import write_image


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
CHELSEA = skimage.data.chelsea()[40:101, 90:173]  # (61, 83, 3), a cat's face
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


# Image files.

def deep(shape, seed=0):
    """16-bit pixels that do not fit 8 bits: a smooth ramp with noise in the low bits."""
    ramp = np.linspace(0, 65000, shape[0])[:, None, None] + np.random.default_rng(seed).integers(0, 500, shape)
    return ramp.astype(np.uint16)


def png(pixels, chunks=()):
    f = io.BytesIO()
    write_png(f, [pixels], pixels.shape[:2], pixels.shape[2], 8 * pixels.itemsize, chunks)
    return f.getvalue()


def decode(data):
    return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8),
                        ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()  # deprecated, and the oracle while it lasts


def whole(source):
    """Rectangles that show the source as it is, in three uneven pieces."""
    rgb = source.for_network()
    h, w = source.size
    row, column = h // 3, w // 2
    yield from ((0, 0, rgb[:, :row + 1]), (row + 1, 0, rgb[:, row + 1:, :column + 1]))
    if column + 1 < w:
        yield row + 1, column + 1, rgb[:, row + 1:, column + 1:]


def save(path, image, **options):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return str(path)


def copy(source, path, **options):
    """Write a source at its own size and read it again."""
    write_image(str(path), source, source.size, whole(source), **options)
    return read_source(str(path))


def need_avif(suffix):
    if suffix == '.avif' and not features.check('avif'):
        pytest.skip('this Pillow has no AVIF')


def disc(under):
    """A white disc with a soft edge, and the colour `under` where it is fully transparent."""
    y, x = np.mgrid[:40, :52]
    alpha = np.clip(15.5 - np.hypot(y - 20, x - 25), 0, 1)
    colour = np.where(alpha > 0, 255, under)
    return np.dstack([colour, colour, colour, alpha * 255]).round().astype(np.uint8)


def exif_entry(tag, kind, count, value):
    return struct.pack('<HHI', tag, kind, count) + value


def odd_exif():
    """EXIF with a good make and latitude, and entries of the wrong type that cameras and phones write."""
    make = exif_entry(0x010F, 2, 4, b'Cam\0')
    gps = [exif_entry(0, 2, 4, b'2200'),  # GPSVersionID as text
           exif_entry(1, 2, 2, b'N\0\0\0'), exif_entry(6, 10, 1, struct.pack('<I', 200)),  # altitude -5/1
           exif_entry(7, 2, 4, b'10:2')]  # GPSTimeStamp as text
    main = [make, exif_entry(GPS_IFD, 4, 1, struct.pack('<I', 100))]
    data = b'II*\0' + struct.pack('<IH', 8, len(main)) + b''.join(main) + bytes(4)
    data = data.ljust(100, b'\0') + struct.pack('<H', len(gps)) + b''.join(gps) + bytes(4)
    return b'Exif\0\0' + data.ljust(200, b'\0') + struct.pack('<ii', -5, 1)
