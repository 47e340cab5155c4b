"""Image files read and written with everything that must survive: alpha, grey, 16 bits, orientation, ICC profile,
resolution (DPI), EXIF.

    picture = read_picture('in.png')
    scene = renderer.open(picture.for_network())
    write_picture('out.png', picture, size, scene.rectangles(size))

Files are opened by datasets/images.py. Pillow does not write 16-bit colour: such PNG goes through
engine/rendering/png.py, and such TIFF through tifffile, an optional package.
"""
import contextlib
import io
import math
import os
import struct
import zlib
from typing import NamedTuple, Optional

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, features

from datasets.images import FORMATS, MAX_PIXELS, decode_png16, is_png16, open_header, open_image, png_chunks
from engine.rendering.png import write_png
from engine.rendering.renderer import grid_axis, quantize
from utils import UserError, atomic_write


WRITES = ('PNG', 'JPEG', 'WEBP', 'TIFF', 'AVIF')
LONGEST_SIDE = {'PNG': 2 ** 31 - 1, 'JPEG': 65500, 'WEBP': 16383, 'TIFF': 2 ** 31 - 1, 'AVIF': 16384}
JPEG_EXIF = 65533  # bytes: EXIF must fit one segment
ORIENTATION, EXIF_IFD, GPS_IFD, MAKER_NOTE = 0x0112, 0x8769, 0x8825, 0x927C
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
PIXEL_WIDTH, PIXEL_HEIGHT = 0xA002, 0xA003
# The EXIF tags that describe the scene rather than the file: description, maker, model, software, date, artist,
# copyright.
DESCRIPTIVE = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)
COLOUR_CHUNKS = (b'gAMA', b'cHRM', b'sRGB', b'cICP')  # PNG chunks that define colour, besides the ICC profile


class Picture(NamedTuple):
    """The content of an image file, upright.

    colour: (3 or 1, h, w) float32 in [0, 1]; alpha: (1, h, w) likewise, not multiplied in, or None; depth: 8 or 16
    bits; icc: the ICC profile; dpi: (horizontal, vertical); exif: {directory: {tag: value}}, directory 0 is the main
    one; chunks: PNG chunks that define colour; remarks: sentences on what could not be kept; format: the file's, as
    Pillow names it.
    """
    colour: torch.Tensor
    alpha: Optional[torch.Tensor] = None
    depth: int = 8
    icc: Optional[bytes] = None
    dpi: Optional[tuple] = None
    exif: dict = {}
    chunks: tuple = ()
    remarks: tuple = ()
    format: Optional[str] = None

    @property
    def size(self):
        return tuple(self.colour.shape[-2:])

    def for_network(self):
        """RGB (3, h, w): grey repeated; fully transparent pixels take the colours around them, because the colour
        stored there (often black) would spread into the edges."""
        colour = self.colour if self.alpha is None else _bleed(self.colour, self.alpha)
        return colour.expand(3, -1, -1)


# Reading.

def read_picture(path, max_pixels=MAX_PIXELS, data=None):
    """The Picture in an image file of a kind in datasets.images.FORMATS (the first image of several).

    max_pixels: the largest h * w to decode, None for no limit; data: the bytes of the file, if they are in memory
    already and `path` only names them. Raises BadImage, naming the file, when it is missing, damaged, too large, of
    more than 16 bits or not an image.
    """
    with open_image(path, max_pixels, data) as (image, data):
        return _read(image, data, path)


def picture_size(path, max_pixels=None):
    """(h, w) of an image file, upright, from its header alone. Raises BadImage as `read_picture` does, as far as the
    header tells."""
    with open_header(path, max_pixels) as image:
        width, height = image.size
        if image.format == 'TIFF':  # some versions of Pillow have turned its size already
            width, height = image.tag_v2[256], image.tag_v2[257]
        # For the EXIF of a PNG that does not begin with it, Pillow would decode the whole image.
        plain = image.format == 'PNG' and 'exif' not in image.info
        return (width, height) if not plain and _orientation(image) in (5, 6, 7, 8) else (height, width)


def _read(image, data, path):
    icc, dpi, (exif, remarks) = image.info.get('icc_profile'), _dpi(image), _read_exif(image)
    if _is_deep(image, data):
        pixels = decode_png16(data) if image.format == 'PNG' else _decode_tiff16(image, data, path)
        pixels = _with_transparent_colour(pixels, image.info.get('transparency'))
    else:
        pixels, kept = _decode(image, path, bool(icc))
        icc = icc if kept else None
    # Read again after decoding: Pillow may have turned a TIFF by now, and then it has dropped the tag.
    pixels = _upright(pixels, _orientation(image))  # (h, w, C)
    chunks = tuple(png_chunks(data, COLOUR_CHUNKS)) if image.format == 'PNG' else ()
    depth = 16 if pixels.dtype == np.uint16 else 8
    values = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).contiguous() / (2 ** depth - 1)  # (C, h, w)
    opaque = len(values) in (1, 3)
    colour, alpha = (values, None) if opaque else (values[:-1], values[-1:])
    return Picture(colour, alpha, depth, icc, dpi, exif, chunks, remarks, image.format)


def _is_deep(image, data):
    """Whether a file holds 16-bit samples that Pillow would reduce to 8 bits."""
    if image.format == 'TIFF':
        return image.mode != 'F' and max(image.tag_v2.get(258, (1,))) == 16
    return is_png16(data)


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


def _with_transparent_colour(pixels, key):
    """Pixels (h, w, C) with an alpha channel that is 0 where they have the colour `key`, if there is one."""
    if key is None or pixels.shape[2] not in (1, 3):
        return pixels
    visible = (pixels != np.asarray(key, np.uint16)).any(axis=-1, keepdims=True)
    return np.concatenate([pixels, visible * np.uint16(65535)], axis=-1)


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


def _orientation(image):
    """EXIF's orientation, 1 to 8; 1 if it cannot be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF raises exceptions of any type
        return 1


def _read_exif(image):
    """({directory: {tag: value}} with the entries that can be written again, remarks on the others)."""
    exif, lost = {}, 0
    for directory in (0, EXIF_IFD, GPS_IFD):
        kept = {}
        try:
            tags = image.getexif() if directory == 0 else dict(image.getexif().get_ifd(directory))
            chosen = [tag for tag in tags if tag in DESCRIPTIVE or directory]
        except Exception:  # damaged EXIF raises exceptions of any type, here and below
            chosen, lost = [], lost + 1
        for tag in chosen:
            try:
                kept[tag] = tags[tag]
                _exif_bytes({directory: {tag: tags[tag]}})
            except Exception:
                kept.pop(tag, None)
                lost += 1
        if kept:
            exif[directory] = kept
    return exif, (f'{lost} damaged entries of its EXIF are left out',) if lost else ()


def _dpi(image):
    """(horizontal, vertical) pixels per inch of the upright image; None if the file states none, or nonsense."""
    try:
        exif, dpi = image.getexif(), image.info.get('dpi')
        if dpi is None:
            per_inch = {2: 1, 3: 2.54}[exif[RESOLUTION_UNIT]]
            dpi = float(exif[X_RESOLUTION]) * per_inch, float(exif[Y_RESOLUTION]) * per_inch
        x, y = (float(v) for v in dpi)
    except Exception:  # as in _read_exif
        return None
    if not all(math.isfinite(v) and 0.1 < v < 1e6 for v in (x, y)):
        return None
    return (y, x) if _orientation(image) in (5, 6, 7, 8) else (x, y)


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
    """'PNG', 'JPEG', 'WEBP', 'TIFF' or 'AVIF', by the name of a file to be written. Raises UserError for others."""
    suffix = os.path.splitext(path)[1].lower()
    kind = FORMATS.get(suffix)
    if kind not in WRITES:
        raise UserError(f'output {path}: found {suffix or "no suffix"!r}, expected a name that ends in '
                        f'{", ".join(s for s, name in FORMATS.items() if name in WRITES)}')
    if kind == 'AVIF' and not features.check('avif'):
        raise UserError(f'output {path}: the installed Pillow cannot write AVIF: pip install "pillow>=11.3", or name a '
                        f'.png file')
    return kind


def check_side(path, size):
    """The `file_format` of a file to be written, which can hold the sides of size (H, W). Raises UserError."""
    kind = file_format(path)
    if max(size) > LONGEST_SIDE[kind]:
        raise UserError(f'output {path}: found {size[1]}x{size[0]} pixels, expected at most {LONGEST_SIDE[kind]} per '
                        f'side for {kind}: name a .png file')
    return kind


def check_output(path, picture, size):
    """Check, before anything is rendered, that a file can hold the picture at size (H, W). Returns a list of remarks
    on what is lost. Raises UserError if the file cannot hold it."""
    kind = check_side(path, size)
    (height, width), channels = size, len(picture.colour) + (picture.alpha is not None)
    if kind == 'TIFF' and height * width * channels * picture.depth // 8 > 4_000_000_000:
        raise UserError(f'output {path}: {width}x{height} pixels do not fit the 4 GB of a TIFF: name a .png file')
    if kind == 'TIFF' and picture.depth == 16 and channels > 1:
        _tifffile(path)
    remarks = [*picture.remarks, *_metadata(picture, size, kind)[1]]
    if kind not in ('PNG', 'TIFF') and picture.depth == 16:
        remarks.append(f'{kind} holds 8 bits: the 16 bits of the source are rounded; .png and .tif keep them')
    if kind == 'JPEG' and picture.alpha is not None:
        remarks.append('JPEG holds no transparency: the image is laid on white; .png, .webp, .avif and .tif keep it')
    return remarks


def write_picture(path, picture, size, rectangles, region=None, quality=95):
    """Write what a Scene renders of picture.for_network(), with the metadata and channels of `picture`.

    rectangles: (top, left, RGB (3, rows, columns)) in [0, 1], as Scene.rectangles(size, region) yields them;
    quality: of JPEG, WebP and AVIF, 1 to 100 (100: lossless WebP). Grey is averaged back to one channel, alpha is
    interpolated. The file appears when it is complete. Raises UserError when it cannot be written.
    """
    kind = file_format(path)
    depth = picture.depth if kind in ('PNG', 'TIFF') else 8
    keep_alpha = kind != 'JPEG'
    channels = len(picture.colour) + (keep_alpha and picture.alpha is not None)
    bands = _bands(_finish(picture, size, rectangles, region, depth, keep_alpha), size[1])
    with writable(path), atomic_write(path) as f:
        if kind == 'PNG':
            write_png(f, bands, size, channels, depth, _png_chunks(picture, size))
            return
        pixels, top = np.empty((*size, channels), np.uint16 if depth == 16 else np.uint8), 0
        for band in bands:
            pixels[top:top + len(band)] = band
            top += len(band)
        if kind == 'TIFF' and depth == 16 and channels > 1:
            f.write(_tiff16(picture, pixels))
        else:
            f.write(_encoded(picture, pixels, kind, quality))


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
    exif = _metadata(picture, size, 'PNG')[0]
    if exif:
        chunks.append((b'eXIf', exif[6:]))  # without the 'Exif' mark of JPEG
    return chunks


def _encoded(picture, pixels, kind, quality):
    """The bytes of a JPEG, WebP, AVIF or TIFF file of pixels (H, W, C)."""
    options = {'icc_profile': picture.icc, 'dpi': picture.dpi, 'exif': _metadata(picture, pixels.shape[:2], kind)[0]}
    if kind == 'WEBP':
        options.update(quality=quality, lossless=quality == 100)
    elif kind == 'JPEG':
        options.update(quality=quality, subsampling=0)
    elif kind == 'AVIF':
        options.update(quality=quality, subsampling='4:4:4')
    elif not {*picture.exif} - {0}:  # Pillow's compressed TIFF cannot hold the further directories of EXIF
        options.update(compression='tiff_adobe_deflate')
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return pillow_bytes(image, kind, **{key: value for key, value in options.items() if value})


def _tiff16(picture, pixels):
    """The bytes of a TIFF file of 16-bit pixels (H, W, C)."""
    colours, data = len(picture.colour), io.BytesIO()
    _tifffile('output').imwrite(
        data, pixels, photometric='rgb' if colours == 3 else 'minisblack', planarconfig='contig', metadata=None,
        extrasamples=['unassalpha'] if pixels.shape[2] > colours else None, compression='zlib', predictor=True,
        iccprofile=picture.icc, resolution=picture.dpi, resolutionunit=2 if picture.dpi else None)
    return data.getbuffer()


def _metadata(picture, size, kind):
    """(EXIF of an upright image of size (H, W) as bytes, empty for none; remarks on what does not fit)."""
    exif = {directory: dict(tags) for directory, tags in picture.exif.items()}
    if EXIF_IFD in exif:
        exif[EXIF_IFD].update({PIXEL_WIDTH: size[1], PIXEL_HEIGHT: size[0]})
    if kind in ('WEBP', 'AVIF') and picture.dpi:  # these have no other place for it
        resolution = {X_RESOLUTION: picture.dpi[0], Y_RESOLUTION: picture.dpi[1], RESOLUTION_UNIT: 2}
        exif[0] = {**exif.get(0, {}), **resolution}
    data = _exif_bytes(exif) if exif else b''
    if kind != 'JPEG' or len(data) <= JPEG_EXIF:
        return data, ()
    exif.get(EXIF_IFD, {}).pop(MAKER_NOTE, None)
    data = _exif_bytes(exif)
    if len(data) <= JPEG_EXIF:
        return data, ("the EXIF is too long for a JPEG: the camera's maker note is left out",)
    return b'', ('the EXIF is too long for a JPEG: it is left out',)


def _exif_bytes(directories):
    exif = Image.Exif()
    for directory, tags in directories.items():
        (exif.get_ifd(directory) if directory else exif).update(tags)
    return exif.tobytes()
