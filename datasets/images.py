"""Opening image files, for training and for rendering: one place for formats, size limits, damage and 16-bit PNG."""
import collections
import concurrent.futures
import contextlib
import functools
import io
import os
import struct
import threading
import zlib

import numpy as np
from PIL import Image

from utils import UserError, first_line


FORMATS = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG', '.bmp': 'BMP', '.tif': 'TIFF', '.tiff': 'TIFF',
           '.webp': 'WEBP', '.gif': 'GIF', '.ppm': 'PPM', '.pgm': 'PPM', '.avif': 'AVIF', '.heic': 'HEIF',
           '.heif': 'HEIF'}
MAX_PIXELS = 178_956_970  # Pillow's own threshold for a decompression bomb: half a gigabyte of RGB
WEBP_SIDE = 16383  # the longest side of a WebP frame; the header of an animation can claim more
IMAGE_DEPTH = 32997  # TIFF tag: the number of slices of a volume
# The seven passes of an interlaced PNG: first row and column, steps between rows and between columns.
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]

_pillow_limit = threading.Lock()


class BadImage(UserError):
    """One image, or one pair, that cannot be used. Training can be told to skip these; other mistakes stop it."""


class TooLarge(BadImage):
    """An image with more pixels than allowed. `found` is the message without the advice, which programs replace."""

    @classmethod
    def of(cls, found, advice):
        error = cls(f'{found}: {advice}')
        error.found = found
        return error


def read_image(path, max_pixels=MAX_PIXELS):
    """The pixels of an image file: uint8 (H, W, 3), RGB.

    Grey is repeated, palettes are looked up, alpha is dropped (not blended), 16 bits become 8 by round(v / 257); of
    16-bit colour TIFF, Pillow reads the high byte only, which is at most one level off. EXIF orientation is not
    applied, as in the published pipeline. max_pixels: the largest H * W to decode, None for no limit.
    Raises BadImage, naming the file, when it is missing, damaged, too large or not an image.
    """
    with open_image(path, max_pixels) as (image, data):
        if is_png16(data):
            pixels = decode_png16(data)
            return _to_rgb8(pixels[..., :3 if pixels.shape[2] > 2 else 1])
        if image.mode == 'F':
            raise BadImage(f'image {path} holds floating-point values: convert it to 8 or 16 bits')
        if image.mode.startswith('I'):
            return _to_rgb8(np.asarray(image))
        image.info.pop('transparency', None)  # alpha is dropped; Pillow would warn
        return np.asarray(image if image.mode == 'RGB' else image.convert('RGB'))  # (H, W, 3)


def image_size(path, max_pixels=MAX_PIXELS):
    """(H, W) from the header alone, before EXIF orientation. Raises BadImage as `read_image` does, as far as the
    header allows."""
    with open_header(path, max_pixels) as image:
        return image.size[1], image.size[0]


def image_format(path):
    """The format of an image file as Pillow names it ('JPEG', 'PNG', ...), by its content; None if it is none."""
    try:
        with open_header(path, None) as image:
            return image.format
    except BadImage:
        return None


@contextlib.contextmanager
def open_header(path, max_pixels=MAX_PIXELS):
    """Yield the PIL image of a file of which only the header has been read. Raises BadImage for any failure in the
    `with` block."""
    with _bad_image(path), open(path, 'rb') as f, _identify(f, path, max_pixels) as image:
        yield image


@contextlib.contextmanager
def open_image(path, max_pixels=MAX_PIXELS, data=None):
    """Yield (PIL image, not decoded yet; bytes of the file). Decoding it gives the first image of several.

    data: the bytes of the file, if they are in memory already and `path` only names them. Raises BadImage for any
    failure in the `with` block.
    """
    with _bad_image(path):
        if data is None:
            with open(path, 'rb') as f:
                data = f.read()
        if data[:4] == b'\x89PNG':
            with _identify(io.BytesIO(data), path, max_pixels) as image:
                image.verify()  # the checksums: a damaged PNG can decode to wrong pixels without an error
        with _identify(io.BytesIO(data), path, max_pixels) as image:  # verify() leaves an image unusable
            yield image, data


def image_names(folder):
    """Names of the image files in a folder, sorted; hidden and other files are left out. Raises UserError for none."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith('.')
                       and os.path.splitext(entry.name)[1].lower() in FORMATS and entry.is_file())
    if not names:
        raise UserError(f'folder {folder!r} holds no images ({" ".join(FORMATS)}): name another one, or fill it')
    return names


def file_stamps(root, names):
    """(n, 3) int64: size, mtime and ctime (ns) of each file, -1 for one that is missing. The ctime reveals a
    file that was replaced by one of the same size and mtime."""
    stamps = np.full((len(names), 3), -1, dtype=np.int64)
    for i, name in enumerate(names):
        with contextlib.suppress(OSError):
            stat = os.stat(os.path.join(root, name))
            stamps[i] = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    return stamps


def is_png16(data):
    """Whether the bytes of a file are a PNG of 16 bits per sample."""
    return data[:4] == b'\x89PNG' and data[24] == 16


def decode_png16(data):
    """The samples of a 16-bit PNG file, given as bytes: uint16 (H, W, C). Raises ValueError, OSError or zlib.error for
    damaged data.

    Pillow reads 16-bit colour as 8 bits: it undoes PNG's filters on all bytes, then keeps the high byte of each
    sample. Decoding twice, for the high and for the low bytes, gives all 16 bits, with Pillow's speed and safety.
    """
    width, height, _, kind, _, _, interlaced = struct.unpack('>IIBBBBB', data[16:29])
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    _check_length(data, height, width, 2 * channels, interlaced)
    if channels == 1:
        return _decode(data)[..., None].astype(np.uint16)
    if channels == 2:  # grey and alpha take four bytes, like RGBA of 8 bits
        return np.ascontiguousarray(_decode(data, 'RGBA')).view('>u2').astype(np.uint16)
    mode = 'RGB' if channels == 3 else 'RGBA'
    return _decode(data, f'{mode};16B').astype(np.uint16) << 8 | _decode(data, f'{mode};16L')


def png_chunks(data, names):
    """Yield the chunks (name, content) called `names` of a PNG file, given as bytes."""
    at = 8
    while at + 8 <= len(data):
        length, name = struct.unpack_from('>I4s', data, at)
        if name in names:
            yield name, data[at + 8:at + 8 + length]
        at += 12 + length


def in_threads(function, items):
    """Yield function(item) for each item, in order, computed by one thread per core (decoders release the lock). At
    most two results per thread wait to be taken, which bounds the memory."""
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        yield from in_order(pool, ((function, item) for item in items), 2 * cores())


def in_order(pool, calls, ahead):
    """Yield function(*arguments) for each (function, *arguments), in order, computed by an executor of which at most
    `ahead` results wait to be taken."""
    waiting = collections.deque()
    for call in calls:
        waiting.append(pool.submit(*call))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def cores():
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@functools.cache
def known_formats():
    """Names of the formats in FORMATS that the installed Pillow opens."""
    with contextlib.suppress(ImportError):  # optional: HEIC
        import pillow_heif
        pillow_heif.register_heif_opener()
    Image.init()
    return sorted(set(FORMATS.values()) & set(Image.OPEN))  # not EPS, which would run another program


def _identify(file, path, max_pixels):
    """The PIL image in a file, after the checks that its header allows."""
    with _pillow_limit:  # Pillow's limit is global and does not name the file: ours replaces it
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file, formats=known_formats())
        except Image.UnidentifiedImageError:
            file.seek(0)
            raise _unknown(path, file.read(12)) from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    width, height = image.size
    if image.format == 'TIFF' and image.tag_v2.get(IMAGE_DEPTH, 1) != 1:
        raise BadImage(f'image {path} is a volume of {image.tag_v2[IMAGE_DEPTH]} slices: save one slice as an image')
    if image.format == 'WEBP' and max(width, height) > WEBP_SIDE:
        raise BadImage(f'image {path} has a header for {width}x{height} pixels, but WebP holds at most {WEBP_SIDE} per '
                       f'side: it seems damaged; replace it')
    if max_pixels is not None and width * height > max_pixels:
        raise TooLarge.of(f'image {path} has {width}x{height} pixels, more than the limit of {max_pixels}',
                          'remove it, or raise max_pixels if it is meant to be this large')
    return image


def _unknown(path, head):
    if not head:
        return BadImage(f'image {path} is empty (0 bytes): replace or remove it')
    if head[4:8] == b'ftyp':
        return BadImage(f'image {path} seems to be HEIC or AVIF: install a reader (pip install pillow-heif for '
                        f'HEIC, Pillow 11.3 or newer for AVIF), or convert it to PNG')
    if head[:4] in (b'II*\0', b'MM\0*'):
        return BadImage(f'image {path} is damaged, or a TIFF of a kind that Pillow cannot read: convert it to PNG')
    return BadImage(f'image {path} cannot be read (not an image in a known format): replace or remove it')


@contextlib.contextmanager
def _bad_image(path):
    """Whatever fails inside becomes a BadImage of one line."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise BadImage(f'image {path} does not exist: check the name') from None
    except IsADirectoryError:
        raise BadImage(f'{path} is a folder, expected an image') from None
    except Exception as error:  # decoders of damaged data raise exceptions of any type
        raise BadImage(f'image {path} cannot be read ({first_line(error)}): replace or remove it') from error


def _check_length(data, height, width, pixel, interlaced):
    """Raise ValueError if a PNG's compressed data gives fewer bytes than its pixels, each of `pixel` bytes, and one for
    the filter of each row: Pillow leaves the rest black. Files of 8 bits are not checked, since that would inflate
    them twice: their checksums tell of damage, except where the file was made wrong."""
    passes = [(-(-(height - top) // down), -(-(width - left) // right))  # (rows, columns)
              for top, left, down, right in (ADAM7 if interlaced else [(0, 0, 1, 1)])]
    size = sum(rows * (1 + columns * pixel) for rows, columns in passes if columns)
    compressed = b''.join(content for _, content in png_chunks(data, (b'IDAT',)))
    if len(zlib.decompressobj().decompress(compressed, size)) < size:
        raise ValueError('the image data ends too early')


def _decode(data, rawmode=None):
    """The pixels of a PNG file as Pillow unpacks them, by the given raw mode if any."""
    with _identify(io.BytesIO(data), 'PNG', None) as image:
        if rawmode:
            codec, extents, offset, _ = image.tile[0]
            image.tile = [(codec, extents, offset, rawmode)]
        return np.asarray(image)


def _to_rgb8(pixels):
    if pixels.dtype != np.uint8:
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError('its values do not fit 16 bits')
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # round(v / 257); no ties exist
    pixels = pixels.reshape(*pixels.shape[:2], -1)  # (H, W, 1 or 3)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
