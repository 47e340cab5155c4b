"""Picture files, read and written with everything that must survive: alpha, grey, 16 bits, orientation, ICC profile,
resolution (DPI), EXIF.

    picture = read_picture('in.png')
    scene = renderer.open(picture.for_network())
    write_picture('out.png', picture, size, scene.rectangles(size))

Pillow reads 16-bit colour as 8 bits without a word and does not write it, so such PNG goes through engine/rendering/png.py, and
such TIFF through tifffile, an optional package.
"""
import io
import math
import os
import struct
import threading
import zlib
from typing import NamedTuple, Optional

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms

from engine.rendering.png import read_chunks, read_png16, write_png
from engine.rendering.renderer import grid_axis, quantize
from utils import UserError, atomic_write


READS = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG', '.webp': 'WEBP', '.tif': 'TIFF', '.tiff': 'TIFF',
         '.bmp': 'BMP', '.gif': 'GIF'}
WRITES = ('PNG', 'JPEG', 'WEBP', 'TIFF')
LONGEST_SIDE = {'PNG': 2 ** 31 - 1, 'JPEG': 65500, 'WEBP': 16383, 'TIFF': 2 ** 31 - 1}
MAX_SOURCE = 178_956_970  # pixels a file may unpack to, Pillow's own limit: half a gigabyte of RGB
ORIENTATION, EXIF_IFD, GPS_IFD = 0x0112, 0x8769, 0x8825
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
PIXEL_WIDTH, PIXEL_HEIGHT = 0xA002, 0xA003
# What EXIF says of the scene rather than of the file: description, maker, model, software, date, artist, copyright.
DESCRIPTIVE = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)
COLOUR_CHUNKS = (b'gAMA', b'cHRM', b'sRGB', b'cICP')  # of PNG, beside the ICC profile

_pillow_limit = threading.Lock()


class Picture(NamedTuple):
    """A picture as its file meant it, upright.

    colour: (3 or 1, h, w) float32 in [0, 1]; alpha: (1, h, w) likewise, not multiplied in, or None; depth: 8 or 16;
    icc: an ICC profile; dpi: (horizontal, vertical); exif: {directory: {tag: value}}, directory 0 being the main one;
    chunks: PNG's own words on colour.
    """
    colour: torch.Tensor
    alpha: Optional[torch.Tensor] = None
    depth: int = 8
    icc: Optional[bytes] = None
    dpi: Optional[tuple] = None
    exif: dict = {}
    chunks: tuple = ()

    @property
    def size(self):
        return tuple(self.colour.shape[-2:])

    def for_network(self):
        """RGB (3, h, w): grey repeated, and under transparent pixels the colours around them, since what a file
        holds there (often black) would seep into the edges."""
        colour = self.colour if self.alpha is None else _bleed(self.colour, self.alpha)
        return colour.expand(3, -1, -1)


# Reading.

def read_picture(path, max_pixels=MAX_SOURCE, data=None):
    """The picture in a PNG, JPEG, WebP, TIFF, BMP or GIF file (the first of several).

    max_pixels: the largest h * w that is unpacked, None for no limit; data: the bytes of the file, where they are at
    hand and `path` only names them. Raises UserError, naming the file, for what is
    missing, damaged, too large, of more than 16 bits or no picture.
    """
    try:
        if data is None:
            with open(path, 'rb') as f:
                data = f.read()
        with _open(data, path, max_pixels) as image:
            if image.format == 'PNG':
                image.verify()  # the checksums: a damaged PNG can decode to wrong pixels without an error
        with _open(data, path, max_pixels) as image:  # verify() leaves an image unusable
            return _read(image, data, path)
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise UserError(f'{path} does not exist: check the name') from None
    except IsADirectoryError:
        raise UserError(f'{path} is a folder, wanted a picture') from None
    except Image.UnidentifiedImageError:
        kind = 'TIFF of a rare kind' if data[:4] in (b'II*\0', b'MM\0*') else 'file of another kind than PNG, JPEG, ' \
            'WebP, TIFF, BMP and GIF'
        raise UserError(f'{path} is a {kind}: convert it to PNG') from None
    except Exception as error:  # decoders of damaged data fail in every way there is
        reason = str(error).split('\n')[0] or type(error).__name__
        raise UserError(f'{path} cannot be read ({reason}): it seems damaged; replace it') from error


def picture_size(path):
    """(h, w) of a picture, upright, from its header alone; None where it has no readable one."""
    try:
        with open(path, 'rb') as f, _open(f, path, None) as image:
            width, height = image.size
            if image.format == 'TIFF':  # whose size some versions of Pillow have turned already
                width, height = image.tag_v2[256], image.tag_v2[257]
            # Asked for the EXIF of a PNG that begins without any, Pillow would decode all of it.
            plain = image.format == 'PNG' and 'exif' not in image.info
            turned = not plain and image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
            return (width, height) if turned else (height, width)
    except Exception:  # as in read_picture
        return None


def _open(data, path, max_pixels):
    # Pillow's limit is a global without a name for the file; ours takes its place while a header is read. Naming the
    # formats keeps out the ones that run other programs (EPS).
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=sorted({*READS.values()}))
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    width, height = image.size
    if max_pixels is not None and width * height > max_pixels:
        raise UserError(f'{path} unpacks to {width}x{height} pixels, more than the limit of {max_pixels}: add --insist '
                        f'if it is meant to be this large')
    return image


def _read(image, data, path):
    icc, dpi, exif = image.info.get('icc_profile'), image.info.get('dpi'), _read_exif(image)
    turned = image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    if _is_deep(image, data):
        pixels = _decode_png16(image, data) if image.format == 'PNG' else _decode_tiff16(image, data, path)
    else:
        pixels, kept = _decode(image, path, bool(icc))
        icc = icc if kept else None
    if dpi is None:
        dpi = _exif_dpi(image.getexif())
    # Pillow may have turned a TIFF, and forgotten the tag then; so it is asked for again.
    pixels = _upright(pixels, image.getexif().get(ORIENTATION, 1))  # (h, w, C)
    dpi = _checked_dpi(dpi, swap=turned)
    chunks = tuple(read_chunks(data, COLOUR_CHUNKS)) if image.format == 'PNG' else ()
    depth = 16 if pixels.dtype == np.uint16 else 8
    values = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).contiguous() / (2 ** depth - 1)  # (C, h, w)
    opaque = len(values) in (1, 3)
    return Picture(values if opaque else values[:-1], None if opaque else values[-1:], depth, icc, dpi, exif, chunks)


def _is_deep(image, data):
    """Whether a file holds 16-bit samples that Pillow would not give as they are."""
    if image.format == 'PNG':
        return data[24] == 16  # IHDR's bit depth
    return image.format == 'TIFF' and image.mode != 'F' and max(image.tag_v2.get(258, (1,))) == 16


def _decode(image, path, has_profile):
    """(pixels (h, w, 1 to 4), uint8 or 16-bit grey; whether they are still in the colours of the ICC profile)."""
    mode = image.mode
    if mode == 'F' or mode.startswith('I'):
        pixels = np.asarray(image)
        if mode == 'F' or pixels.min() < 0 or pixels.max() > 65535:
            raise UserError(f'{path} holds values of more than 16 bits: convert it to 8 or 16 bits')
        return pixels.astype(np.uint16)[..., None], True
    alpha = mode in ('LA', 'La', 'PA', 'RGBA', 'RGBa') or 'transparency' in image.info
    if mode in ('1', 'L', 'LA', 'La'):
        return _channels(image.convert('LA' if alpha else 'L')), True
    if mode in ('P', 'PA'):
        pixels = _channels(image.convert('RGBA' if alpha else 'RGB'))
        if not has_profile and (pixels[..., :1] == pixels[..., 1:3]).all():
            pixels = pixels[..., 2:]  # a palette of greys
        return pixels, True
    if mode == 'CMYK' and has_profile:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info['icc_profile']))
            return _channels(ImageCms.profileToProfile(image, profile, ImageCms.createProfile('sRGB'),
                                                       outputMode='RGB')), False
        except (ImageCms.PyCMSError, OSError):
            pass  # an unusable profile: Pillow's plain formula then
    return _channels(image.convert('RGBA' if alpha else 'RGB')), mode in ('RGB', 'RGBA', 'RGBa', 'RGBX')


def _channels(image):
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)  # (h, w, C)


def _decode_png16(image, data):
    pixels = read_png16(data)  # (h, w, C)
    key = image.info.get('transparency')  # one colour that stands for nothing
    if key is not None and pixels.shape[2] in (1, 3):
        visible = (pixels != np.asarray(key, np.uint16)).any(axis=-1, keepdims=True)
        pixels = np.concatenate([pixels, visible * np.uint16(65535)], axis=-1)
    return pixels


def _decode_tiff16(image, data, path):
    if image.mode.startswith('I;16') and image.tag_v2.get(262) == 1:
        return np.asarray(image).astype(np.uint16)[..., None]  # plain grey, which Pillow reads well
    tifffile = _tifffile(path)
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages[0]
        try:
            pixels = page.asarray()
        except ValueError as error:
            if 'imagecodecs' not in str(error):
                raise
            raise UserError(f'{path} is a compressed 16-bit TIFF that needs one more package: pip install '
                            f'imagecodecs') from None
        if page.photometric not in (0, 1, 2) or pixels.dtype != np.uint16:
            raise UserError(f'{path} is a 16-bit TIFF of an unusual kind: convert it to 16-bit RGB or grey')
        if pixels.ndim == 3 and page.planarconfig == 2:
            pixels = np.moveaxis(pixels, 0, -1)
        pixels = pixels.reshape(*pixels.shape[:2], -1)  # (h, w, C)
        if page.photometric == 0:
            pixels[..., 0] = 65535 - pixels[..., 0]  # white is zero
        colours, extra = (3 if page.photometric == 2 else 1), [int(v) for v in page.extrasamples[:1]]
        if extra == [1]:  # colours are multiplied by alpha
            alpha = np.maximum(pixels[..., colours:colours + 1], 1).astype(np.float64)
            straight = np.minimum(np.rint(pixels[..., :colours] / alpha * 65535), 65535).astype(np.uint16)
            pixels = np.concatenate([straight, pixels[..., colours:]], axis=-1)
        return pixels[..., :colours + (1 if extra in ([1], [2]) else 0)]


def _tifffile(path):
    try:
        import tifffile
    except ImportError:
        raise UserError(f'{path}: 16-bit colour TIFF needs one more package: pip install tifffile (16-bit PNG works '
                        f'without)') from None
    return tifffile


def _upright(pixels, orientation):
    """Pixels (h, w, C) turned as EXIF's orientation 1 to 8 asks."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    rows = orientation in (3, 4, 7, 8)
    columns = orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels[::-1 if rows else 1, ::-1 if columns else 1])


def _read_exif(image):
    found = image.getexif()
    exif = {0: {tag: found[tag] for tag in DESCRIPTIVE if tag in found}}
    for directory in (EXIF_IFD, GPS_IFD):
        exif[directory] = dict(found.get_ifd(directory))
    return {directory: tags for directory, tags in exif.items() if tags}


def _exif_dpi(exif):
    per_inch = {2: 1, 3: 2.54}.get(exif.get(RESOLUTION_UNIT))
    if per_inch and X_RESOLUTION in exif and Y_RESOLUTION in exif:
        return float(exif[X_RESOLUTION]) * per_inch, float(exif[Y_RESOLUTION]) * per_inch
    return None


def _checked_dpi(dpi, swap):
    dpi = tuple(float(v) for v in dpi) if dpi else ()
    if len(dpi) != 2 or not all(math.isfinite(v) and 0.1 < v < 1e6 for v in dpi):
        return None
    return dpi[::-1] if swap else dpi


# Alpha.

def _bleed(colour, alpha):
    """Colour (C, h, w) with the fully transparent pixels coloured as their visible surroundings."""
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return colour
    return torch.where(hidden, _surroundings(colour * alpha, alpha), colour)


def _surroundings(total, weight):
    """total / weight where there is weight, elsewhere that of ever wider averages around."""
    near = total / weight.clamp_min(1e-30)
    h, w = weight.shape[-2:]
    if (weight > 0).all() or max(h, w) == 1:
        return near
    coarse = [F.avg_pool2d(F.pad(x[None], (0, w % 2, 0, h % 2)), 2)[0] for x in (total, weight)]
    far = F.interpolate(_surroundings(*coarse)[None], scale_factor=2, mode='bilinear', align_corners=False)[0]
    return torch.where(weight > 0, near, far[..., :h, :w])


def _alpha_at(alpha, y, x):
    """Alpha (1, h, w) by bicubic interpolation, clamped, at rows y and columns x: (1, rows, columns)."""
    grid = torch.stack(torch.meshgrid(x, y, indexing='xy'), dim=-1)  # (rows, columns, 2), x first
    values = F.grid_sample(alpha[None].to(y.device), grid[None], mode='bicubic', padding_mode='border',
                           align_corners=False)
    return values[0].clamp_(0, 1)


# Writing.

def file_format(path):
    """'PNG', 'JPEG', 'WEBP' or 'TIFF', by the name of a file to be written. UserError for other names."""
    suffix = os.path.splitext(path)[1].lower()
    if READS.get(suffix) not in WRITES:
        raise UserError(f'output {path}: found {suffix or "no suffix"!r}, wanted a name that ends in '
                        f'{", ".join(s for s, name in READS.items() if name in WRITES)}')
    return READS[suffix]


def check_output(path, picture, size):
    """Whether a file can hold the picture at size (H, W), before anything is rendered: UserError if not, else a list
    of remarks on what its format cannot keep."""
    kind = file_format(path)
    (height, width), channels, remarks = size, len(picture.colour) + (picture.alpha is not None), []
    if max(size) > LONGEST_SIDE[kind]:
        raise UserError(f'output {path}: {width}x{height} pixels, but {kind} holds at most {LONGEST_SIDE[kind]} a '
                        f'side: name a .png file')
    if kind == 'TIFF' and height * width * channels * picture.depth // 8 > 4_000_000_000:
        raise UserError(f'output {path}: {width}x{height} pixels do not fit the 4 GB of a TIFF: name a .png file')
    if kind == 'TIFF' and picture.depth == 16 and channels > 1:
        _tifffile(path)
    if kind in ('JPEG', 'WEBP') and picture.depth == 16:
        remarks.append(f'{kind} holds 8 bits: the 16 bits of the source are rounded; .png or .tif keep them')
    if kind == 'JPEG' and picture.alpha is not None:
        remarks.append('JPEG holds no transparency: the picture is laid on white; .png, .webp or .tif keep it')
    return remarks


def write_picture(path, picture, size, rectangles, region=None, quality=95):
    """Write what a Scene renders of picture.for_network(), and put back what the network does not see.

    rectangles: (top, left, RGB (3, rows, columns)) in [0, 1], as Scene.rectangles(size, region) yields them;
    quality: of JPEG and WebP, 1 to 100 (100: WebP without loss). Grey is averaged back to one channel, alpha
    interpolated. The file appears when it is complete. Raises UserError when it cannot be written.
    """
    kind = file_format(path)
    depth = picture.depth if kind in ('PNG', 'TIFF') else 8
    keep_alpha = kind != 'JPEG'
    channels = len(picture.colour) + (keep_alpha and picture.alpha is not None)
    bands = _bands(_finish(picture, size, rectangles, region, depth, keep_alpha), size[1])
    try:
        with atomic_write(path, 'w+b') as f:
            if kind == 'PNG':
                write_png(f, bands, size, channels, depth, _png_chunks(picture, size))
                return
            pixels, top = np.empty((*size, channels), np.uint16 if depth == 16 else np.uint8), 0
            for band in bands:
                pixels[top:top + len(band)] = band
                top += len(band)
            if kind == 'TIFF' and depth == 16 and channels > 1:
                _write_tiff16(f, picture, pixels)
            else:
                _save(f, picture, pixels, kind, quality)
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror or error}): choose another place or free some '
                        f'space') from error


def _finish(picture, size, rectangles, region, depth, keep_alpha):
    """Rectangles of RGB as (top, left, integers (rows, columns, C)): grey again, with alpha, or on white."""
    left, top, width, height = region or (0, 0, *picture.size[::-1])
    y = grid_axis(size[0], picture.size[0], top, height).ahead
    x = grid_axis(size[1], picture.size[1], left, width).ahead
    for top, left, rgb in rectangles:
        rows, columns = rgb.shape[1:]
        if not rgb.is_cuda or depth == 16:  # MPS lacks bicubic sampling, and 16-bit integers are a CPU's matter
            rgb = rgb.cpu()
        if len(picture.colour) == 1:
            rgb = rgb.mean(dim=0, keepdim=True)
        if picture.alpha is not None:
            alpha = _alpha_at(picture.alpha, y[top:top + rows].to(rgb.device), x[left:left + columns].to(rgb.device))
            rgb = torch.cat([rgb, alpha]) if keep_alpha else rgb * alpha + (1 - alpha)
        values = quantize(rgb, torch.uint16 if depth == 16 else torch.uint8)
        yield top, left, values.permute(1, 2, 0).cpu().numpy()


def _bands(rectangles, width):
    """Join rectangles, which cover a picture from the top down, into bands of whole rows."""
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


def _png_chunks(picture, size):
    chunks = list(picture.chunks)
    if picture.icc:
        chunks.append((b'iCCP', b'ICC profile\0\0' + zlib.compress(picture.icc)))
    if picture.dpi:
        chunks.append((b'pHYs', struct.pack('>IIB', *(round(v / 0.0254) for v in picture.dpi), 1)))
    if picture.exif:
        chunks.append((b'eXIf', _exif(picture, size).tobytes()[6:]))  # without the 'Exif' mark of JPEG
    return chunks


def _save(f, picture, pixels, kind, quality):
    options = {'icc_profile': picture.icc, 'dpi': picture.dpi}
    exif = _exif(picture, pixels.shape[:2])
    if kind == 'WEBP':
        options.update(quality=quality, lossless=quality == 100)
        if picture.dpi:  # WebP has no other place for it
            exif.update({X_RESOLUTION: picture.dpi[0], Y_RESOLUTION: picture.dpi[1], RESOLUTION_UNIT: 2})
    elif kind == 'JPEG':
        options.update(quality=quality, subsampling=0)
    elif not {*picture.exif} - {0}:  # Pillow's compressed TIFF cannot hold the further directories of EXIF
        options.update(compression='tiff_adobe_deflate')
    options = {key: value for key, value in options.items() if value is not None}
    if len(exif):
        options['exif'] = exif.tobytes()  # as bytes, since TIFF loses the directories of an object
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(f, kind, **options)


def _write_tiff16(f, picture, pixels):
    colours, data = len(picture.colour), io.BytesIO()  # tifffile wants a file that has a name, or none
    _tifffile('output').imwrite(
        data, pixels, photometric='rgb' if colours == 3 else 'minisblack', planarconfig='contig', metadata=None,
        extrasamples=['unassalpha'] if pixels.shape[2] > colours else None, compression='zlib', predictor=True,
        iccprofile=picture.icc, resolution=picture.dpi, resolutionunit=2 if picture.dpi else None)
    f.write(data.getbuffer())


def _exif(picture, size):
    """The EXIF of a picture that is upright and now of size (H, W)."""
    exif = Image.Exif()
    for directory, tags in picture.exif.items():
        (exif.get_ifd(directory) if directory else exif).update(tags)
    if EXIF_IFD in picture.exif:
        exif.get_ifd(EXIF_IFD).update({PIXEL_WIDTH: size[1], PIXEL_HEIGHT: size[0]})
    return exif
