"""Reading image files: always uint8 RGB (H, W, 3), whatever the file holds."""
import collections
import concurrent.futures
import io
import os
import threading
import warnings

import numpy as np
import torch
from PIL import Image

from utils import UserError


try:
    from torchvision.io import ImageReadMode, decode_image
except ImportError:
    decode_image = None

FORMATS = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG', '.bmp': 'BMP', '.tif': 'TIFF', '.tiff': 'TIFF',
           '.webp': 'WEBP', '.gif': 'GIF', '.ppm': 'PPM', '.pgm': 'PPM'}
MAX_PIXELS = 178_956_970  # Pillow's own threshold for a decompression bomb: half a gigabyte of RGB

_pillow_limit = threading.Lock()


class BadImage(UserError):
    """One image, or one pair, that cannot be used. Training can be told to skip these; other mistakes stop it."""


def read_image(path, max_pixels=MAX_PIXELS):
    """The pixels of an image file: uint8 (H, W, 3), RGB.

    Grey is repeated, palettes are looked up, alpha is dropped (not blended), 16 bits become 8 by round(v / 257).
    An EXIF orientation is not applied, as in the published pipeline. max_pixels: the largest H * W that is
    decoded, None for no limit. Raises BadImage, naming the file, for what is missing, damaged, too large or no image.

    Pillow knows 16-bit colour only by its high byte, so such PNG files go through torchvision, as long as that has
    decoders (it plans to drop them); 16-bit colour TIFF keeps the high byte, which is at most one level off.
    """
    try:
        with open(path, 'rb') as f:
            data = f.read()
        with _open(io.BytesIO(data), path, max_pixels) as image:
            if image.format == 'PNG':
                image.verify()  # the checksums: a damaged PNG can decode to wrong pixels without an error
                if data[24] == 16 and data[25] != 0 and decode_image:  # bit depth, and a colour type beyond grey
                    return _to_rgb8(_decode_png16(data))
        with _open(io.BytesIO(data), path, max_pixels) as image:  # verify() leaves an image unusable
            if image.mode == 'F':
                raise BadImage(f'image {path} holds floating-point values: convert it to 8 or 16 bits')
            if image.mode.startswith('I'):
                return _to_rgb8(np.asarray(image))
            image.info.pop('transparency', None)  # alpha is dropped; Pillow would warn
            return np.asarray(image if image.mode == 'RGB' else image.convert('RGB'))  # (H, W, 3)
    except (BadImage, MemoryError):
        raise
    except FileNotFoundError:
        raise BadImage(f'image {path} does not exist') from None
    except Exception as error:  # decoders of damaged data fail in every way there is
        raise _unreadable(path, error) from error


def image_size(path, max_pixels=MAX_PIXELS):
    """(H, W) from the header alone. Raises BadImage as `read_image` does, as far as the header tells."""
    try:
        with open(path, 'rb') as f, _open(f, path, max_pixels) as image:
            return image.size[1], image.size[0]
    except BadImage:
        raise
    except FileNotFoundError:
        raise BadImage(f'image {path} does not exist') from None
    except Exception as error:
        raise _unreadable(path, error) from error


def in_threads(function, items):
    """Yield function(item) for each item, in order, computed by a thread per core (decoders release the lock);
    at most two results a thread wait to be taken, so memory stays flat."""
    threads = cores()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        waiting = collections.deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def cores():
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _open(file, path, max_pixels):
    # Pillow's limit is a global without a name for the file; ours takes its place while a header is read. Naming the
    # formats keeps out the ones that run other programs (EPS).
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file, formats=sorted(set(FORMATS.values())))
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    width, height = image.size
    if max_pixels is not None and width * height > max_pixels:
        raise BadImage(f'image {path} has {width}x{height} pixels, more than the limit of {max_pixels}: remove it, or '
                       f'raise max_pixels of the dataset if it is meant to be this large')
    return image


def _unreadable(path, error):
    reason = str(error).split('\n')[0] or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        reason = 'not an image in a known format'
    return BadImage(f'image {path} cannot be read ({reason}): replace or remove it')


def _decode_png16(data):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        pixels = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    return pixels[:3 if len(pixels) >= 3 else 1].permute(1, 2, 0).numpy()  # (H, W, 3 or 1), without alpha


def _to_rgb8(pixels):
    if pixels.dtype != np.uint8:
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError('its values do not fit 16 bits')
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # round(v / 257); no ties exist
    pixels = pixels.reshape(*pixels.shape[:2], -1)  # (H, W, 1 or 3)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
