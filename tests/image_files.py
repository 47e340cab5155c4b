"""Image files and folders for the tests."""
import struct
import zlib

import numpy as np
from PIL import Image

import datasets


def noise(*shape, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def save(path, array, **kwargs):
    Image.fromarray(array).save(path, **kwargs)
    return str(path)


def write_png(path, pixels, colour_type):
    """A PNG of 16 bits a channel, which Pillow does not write; pixels: uint16 (H, W, channels)."""
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
    header = struct.pack('>IIBBBBB', pixels.shape[1], pixels.shape[0], 16, colour_type, 0, 0, 0)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows))
                     + chunk(b'IEND', b''))
    return str(path)


def folder(path, names, size=(8, 8), seed=0):
    path.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        save(path / name, noise(*size, 3, seed=seed + i))
    return str(path)


def make_folder(root, **args):
    return datasets.make({'name': 'image-folder', 'args': {'root_path': root, **args}})


def make_pairs(lr, hr, **args):
    return datasets.make({'name': 'paired-image-folders', 'args': {'root_path_1': lr, 'root_path_2': hr, **args}})
