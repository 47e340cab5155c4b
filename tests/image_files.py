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


def png_file(chunks):
    """The bytes of a PNG file with the given chunks (name, data) and right checksums."""
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
        for name, data in chunks)


def png16(width, height, colour_type, compressed, interlaced=0):
    """The bytes of a 16-bit PNG file with the given compressed rows."""
    header = struct.pack('>IIBBBBB', width, height, 16, colour_type, 0, 0, interlaced)
    return png_file([(b'IHDR', header), (b'IDAT', compressed), (b'IEND', b'')])


def write_png(path, pixels, colour_type):
    """A PNG of 16 bits per channel, which Pillow does not write; pixels: uint16 (H, W, channels)."""
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
    path.write_bytes(png16(pixels.shape[1], pixels.shape[0], colour_type, zlib.compress(rows)))
    return str(path)


def hostile_pngs():
    """{name: bytes} of 16-bit colour PNG files with right checksums and damaged pixel data. Some of them kill a
    process that reads them with torchvision's decode_image."""
    row = {2: b'\0' + bytes(range(12)), 6: b'\0' + bytes(range(16)), 4: b'\0' + bytes(range(8))}  # 2 pixels
    files = {}
    for kind, name in ((2, 'rgb'), (6, 'rgba'), (4, 'grey-alpha')):
        whole = zlib.compress(row[kind] * 2)
        files.update({f'{name}-no-data': png16(2, 2, kind, b''),
                      f'{name}-short-data': png16(2, 2, kind, zlib.compress(row[kind])),
                      f'{name}-bad-filter': png16(2, 2, kind, zlib.compress(row[kind] + b'\x09' + row[kind][1:])),
                      f'{name}-broken-zlib': png16(2, 2, kind, whole[:4] + b'\xff\xff' + whole[6:])})
    files['interlaced-short-data'] = png16(9, 9, 2, zlib.compress(row[2]), interlaced=1)
    return files


def folder(path, names, size=(8, 8), seed=0):
    path.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        save(path / name, noise(*size, 3, seed=seed + i))
    return str(path)


def make_folder(root, **args):
    return datasets.make({'name': 'image-folder', 'args': {'root_path': root, **args}})


def make_pairs(lr, hr, **args):
    return datasets.make({'name': 'paired-image-folders', 'args': {'root_path_1': lr, 'root_path_2': hr, **args}})
