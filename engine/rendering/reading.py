"""Image files read with everything that must survive: alpha, grey, 16 bits, orientation, ICC profile, resolution (DPI),
EXIF. Files are opened by datasets/images.py and written by engine/rendering/writing.py.
"""
import contextlib
import io
import math
from typing import NamedTuple, Optional

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms

from datasets.images import MAX_PIXELS, decode_png16, is_png16, open_header, open_image, png_chunks
from utils import UserError


ORIENTATION, EXIF_IFD, GPS_IFD = 0x0112, 0x8769, 0x8825
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
# The EXIF tags that describe the scene rather than the file: description, maker, model, software, date, artist,
# copyright.
DESCRIPTIVE = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)
COLOUR_CHUNKS = (b'gAMA', b'cHRM', b'sRGB', b'cICP')  # PNG chunks that define colour, besides the ICC profile


class SourceImage(NamedTuple):
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
        colour, alpha = self.colour, self.alpha
        if alpha is not None and alpha.min() == 0 < alpha.max():
            colour = torch.where(alpha == 0, _surroundings(colour * alpha, alpha), colour)
        return colour.expand(3, -1, -1)


def read_source(path, max_pixels=MAX_PIXELS, data=None):
    """The SourceImage in an image file of a kind in datasets.images.FORMATS (the first image of several).

    max_pixels: the largest h * w to decode, None for no limit; data: the bytes of the file, if they are in memory
    already and `path` only names them. Raises BadImage, naming the file, when it is missing, damaged, too large or not
    an image, and UserError for values of more than 16 bits.
    """
    with open_image(path, max_pixels, data) as (image, data):
        icc, dpi, (exif, remarks) = image.info.get('icc_profile'), _dpi(image), _read_exif(image)
        if is_png16(data):
            pixels = _with_transparent_colour(decode_png16(data), image.info.get('transparency'))
        elif image.format == 'TIFF' and image.mode != 'F' and max(image.tag_v2.get(258, (1,))) == 16:
            pixels = _decode_tiff16(image, data, path)
        else:
            pixels, kept = _decode(image, path, bool(icc))
            icc = icc if kept else None
        # Read again after decoding: Pillow may have turned a TIFF by now, and then it has dropped the tag.
        pixels = _upright(pixels, _orientation(image))  # (h, w, C)
        chunks = tuple(png_chunks(data, COLOUR_CHUNKS)) if image.format == 'PNG' else ()
    depth = 16 if pixels.dtype == np.uint16 else 8
    values = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).contiguous() / (2 ** depth - 1)  # (C, h, w)
    colour, alpha = (values, None) if len(values) in (1, 3) else (values[:-1], values[-1:])
    return SourceImage(colour, alpha, depth, icc, dpi, exif, chunks, remarks, image.format)


def source_size(path, max_pixels=None):
    """(h, w) of an image file, upright, from its header alone. Raises BadImage as `read_source` does, as far as the
    header allows."""
    with open_header(path, max_pixels) as image:
        width, height = image.size
        if image.format == 'TIFF':  # some versions of Pillow have turned its size already
            width, height = image.tag_v2[256], image.tag_v2[257]
        # For the EXIF of a PNG that does not begin with it, Pillow would decode the whole image.
        plain = image.format == 'PNG' and 'exif' not in image.info
        return (width, height) if not plain and _orientation(image) > 4 else (height, width)


# Pixels.

def _decode(image, path, has_profile):
    """(pixels (h, w, 1 to 4), uint8 or 16-bit grey; whether they are still in the colours of the ICC profile)."""
    mode = image.mode
    if mode == 'F' or mode.startswith('I'):
        pixels = np.asarray(image)
        if mode == 'F' or pixels.min() < 0 or pixels.max() > 65535:
            raise UserError(f'{path} holds values of more than 16 bits: convert it to 8 or 16 bits')
        return pixels.astype(np.uint16)[..., None], True
    alpha, grey = image.has_transparency_data, mode in ('1', 'L', 'LA', 'La')
    if mode == 'CMYK' and has_profile:
        with contextlib.suppress(ImageCms.PyCMSError, OSError):  # an unusable profile: Pillow's plain formula then
            image = ImageCms.profileToProfile(image, io.BytesIO(image.info['icc_profile']),
                                              ImageCms.createProfile('sRGB'), outputMode='RGB')
    pixels = np.asarray(image.convert(('L' if grey else 'RGB') + 'A' * alpha))
    pixels = pixels.reshape(*pixels.shape[:2], -1)  # (h, w, C)
    if mode in ('P', 'PA') and not has_profile and (pixels[..., :1] == pixels[..., 1:3]).all():
        pixels = pixels[..., 2:]  # a palette of greys
    return pixels, mode not in ('CMYK', 'YCbCr', 'LAB', 'HSV')


def _with_transparent_colour(pixels, key):
    """Pixels (h, w, C) with an alpha channel that is 0 where they have the colour `key`, if there is one."""
    if key is None or pixels.shape[2] not in (1, 3):
        return pixels
    visible = (pixels != np.asarray(key, np.uint16)).any(axis=-1, keepdims=True)
    return np.concatenate([pixels, visible * np.uint16(65535)], axis=-1)


def _decode_tiff16(image, data, path):
    if image.mode.startswith('I;16') and image.tag_v2.get(262) == 1:
        return np.asarray(image).astype(np.uint16)[..., None]  # plain grey, which Pillow reads well
    with import_tifffile(path).TiffFile(io.BytesIO(data)) as tiff:
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
        return pixels[..., :colours + (extra in ([1], [2]))]


def import_tifffile(path):
    """The module tifffile, an optional package. Raises UserError."""
    try:
        import tifffile
    except ImportError:
        raise UserError(f'{path}: 16-bit colour TIFF needs one more package: pip install tifffile (16-bit PNG works '
                        f'without)') from None
    return tifffile


def _upright(pixels, orientation):
    """Pixels (h, w, C) turned as EXIF's orientation 1 to 8 asks."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels[::-1 if rows else 1, ::-1 if columns else 1])


def _surroundings(total, weight):
    """total / weight where there is weight, elsewhere that of ever wider averages around."""
    near = total / weight.clamp_min(1e-30)
    h, w = weight.shape[-2:]
    if (weight > 0).all() or max(h, w) == 1:
        return near
    coarse = [F.avg_pool2d(F.pad(x[None], (0, w % 2, 0, h % 2)), 2)[0] for x in (total, weight)]
    far = F.interpolate(_surroundings(*coarse)[None], scale_factor=2, mode='bilinear', align_corners=False)[0]
    return torch.where(weight > 0, near, far[..., :h, :w])


# Metadata. Damaged EXIF raises exceptions of any type.

def _orientation(image):
    """EXIF's orientation, 1 to 8; 1 if it cannot be read."""
    with contextlib.suppress(Exception):
        found = int(image.getexif().get(ORIENTATION, 1))
        return found if 1 <= found <= 8 else 1
    return 1


def _read_exif(image):
    """({directory: {tag: value}} with the entries that can be written again, remarks on the others)."""
    exif, lost = {}, 0
    for directory in (0, EXIF_IFD, GPS_IFD):
        try:
            tags = image.getexif() if directory == 0 else dict(image.getexif().get_ifd(directory))
            chosen = [tag for tag in tags if tag in DESCRIPTIVE or directory]
        except Exception:
            chosen, lost = [], lost + 1
        for tag in chosen:
            try:
                exif_bytes({directory: {tag: tags[tag]}})
                exif.setdefault(directory, {})[tag] = tags[tag]
            except Exception:
                lost += 1
    return exif, (f'{lost} damaged entries of its EXIF are left out',) if lost else ()


def exif_bytes(directories):
    """{directory: {tag: value}} as Pillow writes it."""
    exif = Image.Exif()
    for directory, tags in directories.items():
        (exif.get_ifd(directory) if directory else exif).update(tags)
    return exif.tobytes()


def _dpi(image):
    """(horizontal, vertical) pixels per inch of the upright image; None if the file states none, or nonsense."""
    with contextlib.suppress(Exception):
        exif, dpi = image.getexif(), image.info.get('dpi')
        if dpi is None:
            per_inch = {2: 1, 3: 2.54}[exif[RESOLUTION_UNIT]]
            dpi = float(exif[X_RESOLUTION]) * per_inch, float(exif[Y_RESOLUTION]) * per_inch
        x, y = (float(v) for v in dpi)
        if all(math.isfinite(v) and 0.1 < v < 1e6 for v in (x, y)):
            return (y, x) if _orientation(image) > 4 else (x, y)
    return None
