"""Image files written with everything that must survive of the source (engine/rendering/reading.py).

    image = read_source('in.png')
    scene = renderer.open(image.for_network())
    write_image('out.png', image, size, scene.rectangles(size))

Pillow does not write 16-bit colour: such PNG goes through engine/rendering/png.py, and such TIFF through tifffile, an
optional package.
"""
import contextlib
import io
import os
import struct
import zlib

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, features

from datasets.images import FORMATS
from engine.arguments import QUALITY
from engine.rendering.png import write_png
from engine.rendering.reading import EXIF_IFD, RESOLUTION_UNIT, X_RESOLUTION, Y_RESOLUTION, exif_bytes, import_tifffile
from engine.rendering.renderer import grid_axis, quantize
from utils import UserError, atomic_write


LONGEST_SIDE = {'PNG': 2 ** 31 - 1, 'JPEG': 65500, 'WEBP': 16383, 'TIFF': 2 ** 31 - 1, 'AVIF': 16384}
JPEG_EXIF = 65533  # bytes: EXIF must fit one segment
MAKER_NOTE, PIXEL_WIDTH, PIXEL_HEIGHT = 0x927C, 0xA002, 0xA003


def file_format(path, size=(1, 1)):
    """'PNG', 'JPEG', 'WEBP', 'TIFF' or 'AVIF', by the name of a file to be written. Raises UserError for others, and
    for sides of size (H, W) that the format cannot hold."""
    suffix = os.path.splitext(path)[1].lower()
    kind = FORMATS.get(suffix)
    if kind not in LONGEST_SIDE:
        raise UserError(f'output {path}: found {suffix or "no suffix"!r}, expected a name that ends in '
                        f'{", ".join(s for s, name in FORMATS.items() if name in LONGEST_SIDE)}')
    if kind == 'AVIF' and not features.check('avif'):
        raise UserError(f'output {path}: the installed Pillow cannot write AVIF: pip install "pillow>=11.3", or name a '
                        f'.png file')
    if max(size) > LONGEST_SIDE[kind]:
        raise UserError(f'output {path}: found {size[1]}x{size[0]} pixels, expected at most {LONGEST_SIDE[kind]} per '
                        f'side for {kind}: name a .png file')
    return kind


def check_output(path, image, size):
    """Check, before anything is rendered, that a file can hold a SourceImage at size (H, W). Returns a list of remarks
    on what is lost. Raises UserError if the file cannot hold it."""
    kind, channels = file_format(path, size), len(image.colour) + (image.alpha is not None)
    if kind == 'TIFF' and size[0] * size[1] * channels * image.depth // 8 > 4_000_000_000:
        raise UserError(f'output {path}: found {size[1]}x{size[0]} pixels, expected at most the 4 GB of a TIFF: name a '
                        f'.png file')
    if kind == 'TIFF' and image.depth == 16 and channels > 1:
        import_tifffile(path)
    remarks = [*image.remarks, *_metadata(image, size, kind)[1]]
    if kind not in ('PNG', 'TIFF') and image.depth == 16:
        remarks.append(f'{kind} holds 8 bits: the 16 bits of the source are rounded; .png and .tif keep them')
    if kind == 'JPEG' and image.alpha is not None:
        remarks.append('JPEG holds no transparency: the image is laid on white; .png, .webp, .avif and .tif keep it')
    return remarks


def write_image(path, image, size, rectangles, region=None, quality=QUALITY):
    """Write what a Scene renders of image.for_network(), with the metadata and channels of a SourceImage.

    rectangles: (top, left, RGB (3, rows, columns)) in [0, 1], as Scene.rectangles(size, region) yields them;
    quality: of JPEG, WebP and AVIF, 1 to 100 (100: lossless WebP). Grey is averaged back to one channel, alpha is
    interpolated. The file appears when it is complete. Raises UserError when it cannot be written.
    """
    kind = file_format(path)
    depth = image.depth if kind in ('PNG', 'TIFF') else 8
    keep_alpha = kind != 'JPEG'
    channels = len(image.colour) + (keep_alpha and image.alpha is not None)
    finished = _finish(image, size, rectangles, region, depth, keep_alpha)
    with writable(path), atomic_write(path) as f:
        if kind == 'PNG':
            write_png(f, _bands(finished, size[1]), size, channels, depth, _png_chunks(image, size))
            return
        pixels = np.empty((*size, channels), np.uint16 if depth == 16 else np.uint8)
        for top, left, values in finished:
            pixels[top:top + len(values), left:left + values.shape[1]] = values
        if kind == 'TIFF' and depth == 16 and channels > 1:
            f.write(_tiff16(image, pixels))
        else:
            f.write(_encoded(image, pixels, kind, quality))


@contextlib.contextmanager
def writable(path):
    """Inside, failures of the file system become a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror or error}): choose another place or free some '
                        f'space') from error


def pillow_bytes(image, kind, **options):
    """A PIL image as the bytes of a file. Given a real file, Pillow's JPEG encoder ignores short writes, so a full
    disk would leave a cut image behind."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getbuffer()


# Pixels.

def _finish(image, size, rectangles, region, depth, keep_alpha):
    """Rectangles of RGB as (top, left, integers (rows, columns, C)): grey again, with alpha, or on white."""
    left, top, width, height = region or (0, 0, *image.size[::-1])
    y = grid_axis(size[0], image.size[0], top, height).ahead
    x = grid_axis(size[1], image.size[1], left, width).ahead
    for top, left, rgb in rectangles:
        rows, columns = rgb.shape[1:]
        rgb = rgb if rgb.is_cuda else rgb.cpu()  # MPS lacks bicubic sampling
        if len(image.colour) == 1:
            rgb = rgb.mean(dim=0, keepdim=True)
        if image.alpha is not None:
            alpha = _alpha_at(image.alpha, y[top:top + rows].to(rgb.device), x[left:left + columns].to(rgb.device))
            rgb = torch.cat([rgb, alpha]) if keep_alpha else rgb * alpha + (1 - alpha)
        yield top, left, to_pixels(rgb, torch.uint16 if depth == 16 else torch.uint8)


def to_pixels(img, dtype):
    """A tensor (C, H, W) in [0, 1] as an array (H, W, C) of uint8 or uint16."""
    img = img.cpu() if dtype == torch.uint16 else img  # which not every device has
    return quantize(img, dtype).permute(1, 2, 0).cpu().numpy()


def _alpha_at(alpha, y, x):
    """Alpha (1, h, w) by bicubic interpolation, clamped, at rows y and columns x: (1, rows, columns)."""
    grid = torch.stack(torch.meshgrid(x, y, indexing='xy'), dim=-1)  # (rows, columns, 2), x first
    values = F.grid_sample(alpha[None].to(y.device), grid[None], mode='bicubic', padding_mode='border',
                           align_corners=False)
    return values[0].clamp_(0, 1)


def _bands(rectangles, width):
    """Join rectangles, which cover an image from the top down, into bands of whole rows."""
    waiting, area, top = [], 0, 0
    for rectangle in rectangles:
        waiting.append(rectangle)
        area += rectangle[2].shape[0] * rectangle[2].shape[1]
        bottom = max(t + len(values) for t, _, values in waiting)
        if area < (bottom - top) * width:
            continue
        values = waiting[0][2]
        band = np.empty((bottom - top, width, values.shape[2]), values.dtype)
        for t, left, values in waiting:
            band[t - top:t - top + values.shape[0], left:left + values.shape[1]] = values
        yield band
        waiting, area, top = [], 0, bottom
    assert not waiting, f'rectangles below row {top} leave gaps'


# Files.

def _png_chunks(image, size):
    chunks, exif = list(image.chunks), _metadata(image, size, 'PNG')[0]
    if image.icc:
        chunks.append((b'iCCP', b'ICC profile\0\0' + zlib.compress(image.icc)))
    if image.dpi:
        chunks.append((b'pHYs', struct.pack('>IIB', *(round(v / 0.0254) for v in image.dpi), 1)))
    return chunks + ([(b'eXIf', exif[6:])] if exif else [])  # without the 'Exif' mark of JPEG


def _encoded(image, pixels, kind, quality):
    """The bytes of a JPEG, WebP, AVIF or TIFF file of pixels (H, W, C)."""
    options = {'icc_profile': image.icc, 'dpi': image.dpi, 'exif': _metadata(image, pixels.shape[:2], kind)[0]}
    if kind == 'WEBP':
        options.update(quality=quality, lossless=quality == 100)
    elif kind == 'JPEG':
        options.update(quality=quality, subsampling=0)
    elif kind == 'AVIF':
        options.update(quality=quality, subsampling='4:4:4')
    elif not {*image.exif} - {0}:  # Pillow's compressed TIFF cannot hold the further directories of EXIF
        options.update(compression='tiff_adobe_deflate')
    encoded = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return pillow_bytes(encoded, kind, **{key: value for key, value in options.items() if value not in (None, b'')})


def _tiff16(image, pixels):
    """The bytes of a TIFF file of 16-bit pixels (H, W, C)."""
    colours, data = len(image.colour), io.BytesIO()
    import_tifffile('output').imwrite(
        data, pixels, photometric='rgb' if colours == 3 else 'minisblack', planarconfig='contig', metadata=None,
        extrasamples=['unassalpha'] if pixels.shape[2] > colours else None, compression='zlib', predictor=True,
        iccprofile=image.icc, resolution=image.dpi, resolutionunit=2 if image.dpi else None)
    return data.getbuffer()


def _metadata(image, size, kind):
    """(EXIF of an upright image of size (H, W) as bytes, empty for none; remarks on what does not fit)."""
    exif = {directory: dict(tags) for directory, tags in image.exif.items()}
    if EXIF_IFD in exif:
        exif[EXIF_IFD].update({PIXEL_WIDTH: size[1], PIXEL_HEIGHT: size[0]})
    if kind in ('WEBP', 'AVIF') and image.dpi:  # these have no other place for it
        exif.setdefault(0, {}).update(zip((X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT), (*image.dpi, 2)))
    data = exif_bytes(exif) if exif else b''
    if kind != 'JPEG' or len(data) <= JPEG_EXIF:
        return data, ()
    exif.get(EXIF_IFD, {}).pop(MAKER_NOTE, None)
    data = exif_bytes(exif)
    if len(data) <= JPEG_EXIF:
        return data, ("the EXIF is too long for a JPEG: the camera's maker note is left out",)
    return b'', ('the EXIF is too long for a JPEG: it is left out',)
