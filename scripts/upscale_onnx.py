"""Upscale an image with the two ONNX graphs of scripts/export_onnx.py: onnxruntime, numpy and Pillow, no PyTorch.

    python scripts/upscale_onnx.py photo.png --graphs onnx --scale 4 --output large.png

Copy this file and the graphs anywhere; nothing else of the project is needed. Transparency is kept.
"""
import argparse
import os
import sys
import tempfile

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

CHUNK = 16384  # queries decoded at a time


def load(folder):
    """(encoder, decoder) of the folder, on whatever onnxruntime finds first: a GPU, else the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return [onnxruntime.InferenceSession(os.path.join(folder, name), options,
                                         providers=onnxruntime.get_available_providers())
            for name in ('encoder.onnx', 'decoder.onnx')]


def upscale(encoder, decoder, image, size):
    """image: uint8 (h, w, 3); size: (H, W). Returns uint8 (H, W, 3)."""
    pixels = image.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(255)  # (1, 3, h, w)
    codes, = encoder.run(None, {'image': pixels})  # (h, w, D)
    height, width = size
    coord = np.stack(np.meshgrid(centres(height), centres(width), indexing='ij'), -1).reshape(-1, 2)  # (H * W, 2)
    cell = np.array([[2 / height, 2 / width]], np.float32)
    wanted = {i.name for i in decoder.get_inputs()}
    out = np.empty((height * width, 3), np.uint8)
    for start in range(0, len(coord), CHUNK):
        part = coord[start:start + CHUNK]
        feeds = {'codes': codes, 'coord': part, 'cell': np.repeat(cell, len(part), axis=0)}
        rgb, = decoder.run(None, {name: feeds[name] for name in wanted})  # (Q, 3)
        out[start:start + CHUNK] = np.clip(rgb, 0, 1) * 255 + 0.5
    return out.reshape(height, width, 3)


def centres(n):
    """Pixel centres of n pixels that span [-1, 1]: float32, in the order of operations the model was trained with."""
    r = 1 / n
    return np.float32(-1 + r) + np.float32(2 * r) * np.arange(n, dtype=np.float32)


def read(path):
    """(uint8 (h, w, 3), alpha as an image or None); turned upright."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        alpha = image.convert('RGBA').getchannel('A') if image.has_transparency_data else None
        return np.asarray(image.convert('RGB')), alpha


def save(image, alpha, path):
    """Write to a temporary file in the same folder, then rename it, so that no partial file is ever seen.

    alpha: enlarged with PIL's bicubic, and left out of JPEG, which has none.
    """
    image = Image.fromarray(image)
    suffix = os.path.splitext(path)[1]
    if alpha is not None and Image.registered_extensions().get(suffix.lower()) != 'JPEG':
        image.putalpha(alpha.resize(image.size, Image.BICUBIC))
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(path)), prefix='.upscale') as folder:
        temporary = os.path.join(folder, 'image' + suffix)
        image.save(temporary)
        os.replace(temporary, path)


def resolution(text):
    """(H, W) of 'H,W'."""
    try:
        height, width = (int(n) for n in text.split(','))
    except ValueError:
        raise ValueError(f'--resolution: found {text!r}, expected height,width such as 1080,1920') from None
    return height, width


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image')
    parser.add_argument('--graphs', default='onnx', help='the folder with encoder.onnx and decoder.onnx')
    parser.add_argument('--output', required=True)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument('--scale', type=float, help='a factor such as 3.7')
    size.add_argument('--resolution', metavar='H,W', help='height and width in pixels')
    args = parser.parse_args(argv)

    try:
        if os.path.splitext(args.output)[1].lower() not in Image.registered_extensions():
            raise ValueError(f'--output: found {args.output!r}, expected a name that ends in .png, .jpg or .webp')
        if args.resolution is not None:
            height, width = resolution(args.resolution)
        image, alpha = read(args.image)
        if args.scale is not None:
            height, width = (round(n * args.scale) for n in image.shape[:2])
        if min(height, width) < 1:
            raise ValueError(f'the output would be {width}x{height} pixels, expected at least 1 each')
        save(upscale(*load(args.graphs), image, (height, width)), alpha, args.output)
    except Exception as error:
        # What the user can fix: files, sizes, graphs (onnxruntime's errors have no common class).
        if not isinstance(error, (OSError, ValueError, OverflowError, MemoryError)) \
                and not type(error).__module__.startswith('onnxruntime'):
            raise
        lines = ['there is not enough memory: choose a smaller size'] if isinstance(error, MemoryError) \
            else str(error).splitlines()
        print('error:', lines[0], file=sys.stderr)
        sys.exit(2)
    print(f'{args.output}: {width}x{height} from {image.shape[1]}x{image.shape[0]}')


if __name__ == '__main__':
    main()
