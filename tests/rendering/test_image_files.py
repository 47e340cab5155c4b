"""Image files: what is read, what survives being written, what is refused. Pillow, torchvision and tifffile serve as
independent readers and writers."""
import contextlib
import io
import os
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin, features
from torchvision.io import ImageReadMode, decode_image

from datasets.images import BadImage, decode_png16, png_chunks
from engine.rendering.picture import (
    EXIF_IFD,
    GPS_IFD,
    ORIENTATION,
    PIXEL_WIDTH,
    Picture,
    _bands,
    check_output,
    picture_size,
    read_picture,
    write_picture,
)
from engine.rendering.png import write_png
from tests.common import ROOT, seeds
from tests.image_files import png_file
from utils import UserError


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
CHELSEA = skimage.data.chelsea()[40:101, 90:173]  # (61, 83, 3), a cat's face


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


def whole(picture):
    """Rectangles that show the picture as it is, in three uneven pieces."""
    rgb = picture.for_network()
    h, w = picture.size
    row, column = h // 3, w // 2
    yield from ((0, 0, rgb[:, :row + 1]), (row + 1, 0, rgb[:, row + 1:, :column + 1]))
    if column + 1 < w:
        yield row + 1, column + 1, rgb[:, row + 1:, column + 1:]


pytestmark = pytest.mark.filterwarnings('ignore:.*TorchVision are deprecated:DeprecationWarning')


def save(path, image, **options):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return str(path)


def need_avif(suffix):
    if suffix == '.avif' and not features.check('avif'):
        pytest.skip('this Pillow has no AVIF')


def copy(picture, path, **options):
    """Write a picture at its own size and read it again."""
    write_picture(str(path), picture, picture.size, whole(picture), **options)
    return read_picture(str(path))


def use_isal(wanted, monkeypatch):
    if wanted:
        pytest.importorskip('isal')
    else:
        monkeypatch.setattr('engine.rendering.png.isal_zlib', None)


# The PNG writer.

@pytest.mark.parametrize('channels', [1, 2, 3, 4])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('size', [(1, 1), (3, 1), (1, 5), (67, 41), (700, 500)])
@pytest.mark.parametrize('isal', [False, True])
def test_png_is_exact(channels, dtype, size, isal, monkeypatch):
    use_isal(isal, monkeypatch)
    rng = np.random.default_rng(size[0])
    noise = rng.integers(0, np.iinfo(dtype).max + 1, (*size, channels)).astype(dtype)
    for pixels in (noise, np.sort(noise, axis=0), np.zeros_like(noise)):
        f = io.BytesIO()
        write_png(f, np.array_split(pixels, min(3, len(pixels))), size, channels, 8 * pixels.itemsize)
        assert np.array_equal(decode(f.getvalue()), pixels)
        Image.open(io.BytesIO(f.getvalue())).verify()  # checksums
        if dtype == np.uint8:
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(f.getvalue()))).reshape(pixels.shape), pixels)


@pytest.mark.parametrize('kind, channels', [(0, 1), (4, 2), (2, 3), (6, 4)])
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (9, 1), (2, 3), (20, 31), (31, 20)])
@pytest.mark.parametrize('interlaced', [0, 1])
def test_16_bit_png_is_read_as_torchvision_does(kind, channels, size, interlaced):
    rng = np.random.default_rng(sum(size))
    height, width = size
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    raw = b''
    for top, left, down, right in passes if interlaced else [(0, 0, 1, 1)]:
        h, w = len(range(top, height, down)), len(range(left, width, right))
        rows = rng.integers(0, 256, (h, 1 + w * 2 * channels)).astype(np.uint8)  # any bytes are filtered pixels
        rows[:, 0] = rng.permutation(np.arange(h) % 5)
        raw += rows.tobytes() if w else b''
    chunks = [(b'IHDR', struct.pack('>IIBBBBB', width, height, 16, kind, 0, 0, interlaced)),
              (b'IDAT', zlib.compress(raw)), (b'IEND', b'')]
    data = png_file(chunks)
    assert np.array_equal(decode_png16(data), decode(data))
    with pytest.raises(ValueError, match='ends too early'):
        decode_png16(png_file([chunks[0], (b'IDAT', zlib.compress(raw[:-1])), chunks[2]]))


@pytest.mark.parametrize('isal, most', [(False, 1.03), (True, 1.08)])
def test_png_is_about_as_small_as_pillows(isal, most, monkeypatch):
    use_isal(isal, monkeypatch)
    pixels = skimage.data.astronaut()
    f = io.BytesIO()
    Image.fromarray(pixels).save(f, 'PNG')
    assert len(png(pixels)) < most * f.tell()


def test_a_tall_16_bit_png_takes_little_memory():
    """1x30000 RGBA, from 600 bytes, once took 6.9 GB: memory must be proportional to the pixels."""
    rows = (b'\4' + b'\1' * 8) * 30000
    header = struct.pack('>IIBBBBB', 1, 30000, 16, 6, 0, 0, 0)
    data = png_file([(b'IHDR', header), (b'IDAT', zlib.compress(rows)), (b'IEND', b'')])
    tracemalloc.start()
    pixels = decode_png16(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * pixels.nbytes and np.array_equal(pixels, decode(data))


def test_png_is_written_in_flat_memory(tmp_path):
    band = np.tile(CHELSEA, (1, 40, 1))  # 61 rows of 10 kB
    tracemalloc.start()
    with open(tmp_path / 'x.png', 'wb') as f:
        write_png(f, (band for _ in range(150)), (61 * 150, band.shape[1]), 3, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert Image.open(tmp_path / 'x.png').size == (band.shape[1], 61 * 150)
    assert peak < 0.75 * 150 * band.nbytes  # 91 MB of pixels


def test_bands_of_whole_rows():
    pixels = np.arange(12 * 9 * 3).reshape(12, 9, 3)
    cuts = [(0, 4, 0, 5), (4, 6, 0, 5), (0, 3, 5, 9), (3, 6, 5, 9), (6, 12, 0, 9)]
    bands = list(_bands(((t, l, pixels[t:b, l:r]) for t, b, l, r in cuts), 9))
    assert [len(b) for b in bands] == [6, 6] and np.array_equal(np.concatenate(bands), pixels)
    with pytest.raises(AssertionError, match='gaps'):
        list(_bands([(0, 0, pixels[:4, :5])], 9))


# Reading.

@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_16_bit_png_survives(tmp_path, channels):
    pixels = deep((31, 23, channels))
    (tmp_path / 'a.png').write_bytes(png(pixels))
    picture = read_picture(str(tmp_path / 'a.png'))
    assert picture.depth == 16 and len(picture.colour) == (1 if channels < 3 else 3)
    values = picture.colour if picture.alpha is None else torch.cat([picture.colour, picture.alpha])
    assert np.array_equal((values.double() * 65535).round().permute(1, 2, 0).numpy(), pixels)
    write_picture(str(tmp_path / 'b.png'), picture, picture.size, whole(picture))
    written = decode((tmp_path / 'b.png').read_bytes())
    assert written.dtype == np.uint16 and np.abs(written.astype(int) - pixels).max() <= 1


@pytest.mark.parametrize('pixels, key', [(deep((9, 7, 1)), (5,)), (deep((9, 7, 3)), (5, 6, 65535))])
def test_16_bit_png_with_a_transparent_colour(tmp_path, pixels, key):
    pixels[2, 3] = key
    data = struct.pack(f'>{len(key)}H', *key)
    (tmp_path / 'a.png').write_bytes(png(pixels, [(b'tRNS', data)]))
    alpha = read_picture(str(tmp_path / 'a.png')).alpha
    assert alpha[0, 2, 3] == 0 and alpha.sum() == 9 * 7 - 1


@pytest.mark.parametrize('mode, channels, has_alpha', [
    ('1', 1, False), ('L', 1, False), ('LA', 1, True), ('P', 3, False), ('RGB', 3, False), ('RGBA', 3, True)])
def test_modes(tmp_path, mode, channels, has_alpha):
    rgba = Image.fromarray(np.dstack([CHELSEA, CHELSEA[..., 1]]))
    image = rgba.convert(mode) if mode != 'P' else rgba.convert('RGB').quantize(200)
    picture = read_picture(save(tmp_path / 'a.png', image))
    assert (len(picture.colour), picture.alpha is not None, picture.depth) == (channels, has_alpha, 8)
    expected = np.asarray(image.convert({1: 'L', 3: 'RGB'}[channels])).reshape(*picture.size, channels)
    assert np.array_equal((picture.colour * 255).round().permute(1, 2, 0).numpy(), expected)
    if has_alpha:
        assert np.array_equal((picture.alpha[0] * 255).round().numpy(), np.asarray(image)[..., -1])
    again = copy(picture, tmp_path / 'b.png')
    assert torch.equal(again.colour.mul(255).round(), picture.colour.mul(255).round()) or has_alpha
    assert len(again.colour) == channels and (again.alpha is None) == (not has_alpha)
    assert Image.open(tmp_path / 'b.png').mode == {1: 'L', 3: 'RGB'}[channels] + ('A' if has_alpha else '')


@pytest.mark.parametrize('image, key', [
    (Image.fromarray(CHELSEA).quantize(60), 7), (Image.fromarray(CHELSEA[..., 0]), 90),
    (Image.fromarray(CHELSEA), tuple(map(int, CHELSEA[5, 5])))])
def test_a_transparent_colour_becomes_alpha(tmp_path, image, key):
    picture = read_picture(save(tmp_path / 'a.png', image, transparency=key))
    pixels = np.asarray(image)
    hidden = (pixels.reshape(*pixels.shape[:2], -1) == key).all(axis=-1)
    assert hidden.any() and np.array_equal(picture.alpha[0].numpy() == 0, hidden)


def test_a_palette_of_greys_is_grey(tmp_path):
    image = Image.fromarray(CHELSEA[..., 0]).quantize(40)
    assert len(read_picture(save(tmp_path / 'a.png', image)).colour) == 1
    assert len(read_picture(save(tmp_path / 'b.png', image, icc_profile=SRGB)).colour) == 3  # what the profile is for


def test_cmyk_becomes_rgb_without_its_profile(tmp_path):
    image = Image.fromarray(CHELSEA).convert('CMYK')
    picture = read_picture(save(tmp_path / 'a.jpg', image, quality=95, icc_profile=b'not a profile' * 20))
    assert picture.icc is None
    assert np.abs(picture.colour.permute(1, 2, 0).numpy() * 255 - CHELSEA).mean() < 4


@pytest.mark.parametrize('kind', ['rgb', 'rgba', 'premultiplied', 'planar', 'grey', 'white-is-zero', 'deflate'])
def test_16_bit_tiff(tmp_path, kind):
    tifffile = pytest.importorskip('tifffile')
    colours = 1 if kind in ('grey', 'white-is-zero') else 3
    pixels = deep((19, 13, colours + (kind in ('rgba', 'premultiplied'))))
    stored, options = pixels, {'photometric': 'rgb' if colours == 3 else 'minisblack'}
    if kind == 'rgba':
        options['extrasamples'] = ['unassalpha']
    if kind == 'premultiplied':
        stored = pixels.astype(np.uint64)
        stored[..., :3] = stored[..., :3] * stored[..., 3:] // 65535
        stored, options['extrasamples'] = stored.astype(np.uint16), ['assocalpha']
    if kind == 'planar':
        stored, options['planarconfig'] = np.moveaxis(pixels, -1, 0).copy(), 'separate'
    if kind == 'white-is-zero':
        stored, options['photometric'] = 65535 - pixels, 'miniswhite'
    if kind == 'deflate':
        options.update(compression='zlib', predictor=True)
    tifffile.imwrite(tmp_path / 'a.tif', stored[..., 0] if stored.shape[-1] == 1 else stored, **options)
    picture = read_picture(str(tmp_path / 'a.tif'))
    assert picture.depth == 16
    values = picture.colour if picture.alpha is None else torch.cat([picture.colour, picture.alpha])
    found = (values.double() * 65535).round().permute(1, 2, 0).numpy()
    seen = pixels[..., -1:] > 20000 if kind == 'premultiplied' else True  # little is left of faint colours
    assert (np.abs(found - pixels) * seen).max() <= (4 if kind == 'premultiplied' else 0)
    write_picture(str(tmp_path / 'b.tif'), picture, picture.size, whole(picture))
    assert np.abs(tifffile.imread(tmp_path / 'b.tif').reshape(found.shape) - found).max() <= 1


def test_16_bit_tiff_without_tifffile(tmp_path, monkeypatch):
    tifffile = pytest.importorskip('tifffile')
    tifffile.imwrite(tmp_path / 'a.tif', deep((5, 4, 3)), photometric='rgb')
    tifffile.imwrite(tmp_path / 'grey.tif', deep((5, 4, 1))[..., 0])
    monkeypatch.setitem(__import__('sys').modules, 'tifffile', None)
    with pytest.raises(UserError, match='a.tif.*pip install tifffile'):
        read_picture(str(tmp_path / 'a.tif'))
    assert read_picture(str(tmp_path / 'grey.tif')).depth == 16
    with pytest.raises(UserError, match='pip install tifffile'):
        check_output('b.tif', Picture(torch.rand(3, 4, 5), depth=16), (4, 5))


# What goes with the pixels.

@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.webp', '.tif'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_is_applied_once(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path / f'a{suffix}', CHELSEA, exif=exif, dpi=(300, 150))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
    picture = read_picture(path)
    assert np.array_equal((picture.colour * 255).round().permute(1, 2, 0).numpy(), expected)
    assert picture_size(path) == picture.size
    swapped = orientation > 4
    assert picture.dpi is None or np.allclose(picture.dpi, (150, 300) if swapped else (300, 150), atol=0.1)
    copy(picture, tmp_path / f'b{suffix}')
    with Image.open(tmp_path / f'b{suffix}') as image:
        assert image.size[::-1] == picture.size and image.getexif().get(ORIENTATION, 1) == 1


def test_orientation_of_16_bits(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    pixels = deep((9, 5, 3))
    (tmp_path / 'a.png').write_bytes(png(pixels, [(b'eXIf', exif.tobytes()[6:])]))
    picture = read_picture(str(tmp_path / 'a.png'))
    found = (picture.colour.double() * 65535).round().permute(1, 2, 0).numpy()
    assert np.array_equal(found, np.rot90(pixels, -1))
    tifffile = pytest.importorskip('tifffile')
    tifffile.imwrite(tmp_path / 'a.tif', pixels, photometric='rgb', extratags=[(ORIENTATION, 3, 1, 6, True)])
    assert torch.equal(read_picture(str(tmp_path / 'a.tif')).colour, picture.colour)


@pytest.mark.parametrize('source', ['.png', '.jpg', '.webp', '.tif'])
@pytest.mark.parametrize('target', ['.png', '.jpg', '.webp', '.tif'])
def test_profile_resolution_and_exif_survive(tmp_path, source, target):
    exif = Image.Exif()
    exif[0x010F] = 'Maker'
    exif.get_ifd(EXIF_IFD).update({PIXEL_WIDTH: 7, 0x9003: '2020:01:02 03:04:05'})
    options = {'dpi': (300, 150)}
    if source == '.webp':  # which has no other place for it
        exif.update({0x011A: 300.0, 0x011B: 150.0, 0x0128: 2})
    picture = read_picture(save(tmp_path / f'a{source}', CHELSEA, exif=exif.tobytes(), icc_profile=SRGB, **options))
    write_picture(str(tmp_path / f'b{target}'), picture, picture.size, whole(picture))
    with Image.open(tmp_path / f'b{target}') as image:
        found = image.getexif()
        assert image.info['icc_profile'] == SRGB and found[0x010F] == 'Maker'
        details = found.get_ifd(EXIF_IFD)
        assert details[PIXEL_WIDTH] == picture.size[1] and details[0x9003] == '2020:01:02 03:04:05'
        dpi = image.info.get('dpi') or (found[0x011A], found[0x011B])
        assert np.allclose([float(v) for v in dpi], (300, 150), atol=0.1)


def rational(a, b):
    return TiffImagePlugin.IFDRational(a, b)


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


@pytest.mark.parametrize('source', ['.png', '.jpg', '.webp'])
@pytest.mark.parametrize('target', ['.png', '.jpg', '.webp', '.tif', '.avif'])
def test_odd_exif_is_kept_as_far_as_possible(tmp_path, source, target):
    need_avif(target)
    picture = read_picture(save(tmp_path / f'a{source}', CHELSEA, exif=odd_exif()))
    assert picture.exif[0] == {0x010F: 'Cam'} and picture.exif[GPS_IFD][1] == 'N'
    remarks = check_output(f'b{target}', picture, picture.size)
    assert len(remarks) == 1 and 'damaged entries of its EXIF' in remarks[0]
    again = copy(picture, tmp_path / f'b{target}')
    assert again.exif == picture.exif and again.remarks == ()


@pytest.mark.parametrize('target', ['.png', '.jpg', '.webp', '.tif', '.avif'])
def test_exif_with_gps_alone_survives(tmp_path, target):
    need_avif(target)
    gps = {1: 'N', 2: (rational(47, 1), rational(3, 1), rational(5, 2)), 6: rational(12, 1)}
    picture = Picture(torch.rand(3, 8, 9), exif={GPS_IFD: gps})
    assert copy(picture, tmp_path / f'a{target}').exif == {GPS_IFD: gps}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('seed', seeds(0))
def test_random_exif_never_stops_an_image(tmp_path, seed):
    rng = np.random.default_rng(seed)
    whole = bytearray(odd_exif())
    for case in range(150):
        damaged = bytearray(whole)
        for at in rng.integers(14, len(whole), rng.integers(1, 30)):
            damaged[at] = rng.integers(256)
        picture = read_picture(save(tmp_path / 'a.jpg', CHELSEA, exif=bytes(damaged)))
        target = tmp_path / f'b{(".png", ".jpg", ".webp", ".tif")[case % 4]}'
        assert copy(picture, target).size == picture.size and check_output(str(target), picture, (9, 9)) is not None


def test_exif_too_long_for_a_jpeg(tmp_path):
    exif = {0: {0x010F: 'Cam'}, EXIF_IFD: {0x927C: bytes(70_000)}}  # a maker note
    picture = Picture(torch.rand(3, 8, 9), exif=exif)
    assert check_output('a.png', picture, (8, 9)) == []
    assert 'maker note' in check_output('a.jpg', picture, (8, 9))[0]
    assert copy(picture, tmp_path / 'a.jpg').exif[0] == {0x010F: 'Cam'}
    picture = Picture(torch.rand(3, 8, 9), exif={0: {0x010F: 'x' * 70_000}})
    assert 'too long for a JPEG: it is left out' in check_output('a.jpg', picture, (8, 9))[0]
    assert copy(picture, tmp_path / 'a.jpg').exif == {}


def test_pngs_own_words_on_colour_survive(tmp_path):
    gamma = (b'gAMA', struct.pack('>I', 100000))
    (tmp_path / 'a.png').write_bytes(png(CHELSEA, [gamma]))
    copy(read_picture(str(tmp_path / 'a.png')), tmp_path / 'b.png')
    assert list(png_chunks((tmp_path / 'b.png').read_bytes(), (b'gAMA',))) == [gamma]


# Alpha.

def disc(under):
    """A white disc with a soft edge, and the colour `under` where it is fully transparent."""
    y, x = np.mgrid[:40, :52]
    alpha = np.clip(15.5 - np.hypot(y - 20, x - 25), 0, 1)
    colour = np.where(alpha > 0, 255, under)
    return np.dstack([colour, colour, colour, alpha * 255]).round().astype(np.uint8)


def test_no_dark_fringes(tmp_path):
    inputs = []
    for under in (0, 77, 255):
        picture = read_picture(save(tmp_path / f'{under}.png', disc(under)))
        inputs.append(picture.for_network())
    assert all(torch.allclose(v, torch.ones_like(v), atol=1e-6) for v in inputs)  # white, whatever was hidden


def test_hidden_colours_come_from_around(tmp_path):
    pixels = np.dstack([CHELSEA, np.full(CHELSEA.shape[:2], 255, np.uint8)])
    pixels[10:40, 20:50, 3] = 0
    pixels[10:40, 20:50, :3] = 255, 0, 255
    picture = read_picture(save(tmp_path / 'a.png', pixels))
    found, kept = picture.for_network(), picture.alpha[0] > 0
    assert torch.equal(found[:, kept], picture.colour[:, kept])
    around = torch.from_numpy(CHELSEA[5:45, 15:55]).permute(2, 0, 1) / 255
    filled = found[:, 10:40, 20:50]
    assert (filled.mean((1, 2)) - around.mean((1, 2))).abs().max() < 0.15
    assert (filled - filled.roll(1, 1))[:, 1:].abs().max() < 0.3  # no jumps


def test_alpha_of_regions_is_cut_from_the_whole(tmp_path):
    picture = read_picture(save(tmp_path / 'a.png', disc(0)))
    opaque = torch.ones(3, 1, 1)
    for region, size, window in [((0, 0, 52, 40), (100, 130), np.s_[:, :]),
                                 ((10, 8, 26, 16), (40, 65), np.s_[20:60, 25:90])]:
        rectangles = [(0, 0, opaque.expand(3, *size))]
        write_picture(str(tmp_path / 'b.png'), picture, size, rectangles, region)
        found = np.asarray(Image.open(tmp_path / 'b.png'))[..., 3].astype(int)
        if window == np.s_[:, :]:
            full = found
        assert np.abs(found - full[window]).max() <= 1
    assert full.max() == 255 and full.min() == 0 and full[50, 62] == 255


def test_jpeg_lays_transparency_on_white(tmp_path):
    picture = read_picture(save(tmp_path / 'a.png', disc(0)))
    assert any('white' in remark for remark in check_output('b.jpg', picture, picture.size))
    assert copy(picture, tmp_path / 'b.jpg').colour.min() > 0.98


@pytest.mark.parametrize('suffix', ['.png', '.webp', '.tif'])
def test_opaque_stays_opaque(tmp_path, suffix):
    pixels = np.dstack([CHELSEA, np.full(CHELSEA.shape[:2], 255, np.uint8)])
    picture = copy(read_picture(save(tmp_path / 'a.png', pixels)), tmp_path / f'b{suffix}', quality=100)
    if picture.alpha is not None:  # WebP drops what says nothing
        assert picture.alpha.min() == 1
    assert torch.equal((picture.colour * 255).round().byte(), torch.from_numpy(CHELSEA).permute(2, 0, 1))


# Other formats.

def test_avif(tmp_path):
    need_avif('.avif')
    pixels = np.dstack([CHELSEA, CHELSEA[..., 1]])
    path = save(tmp_path / 'a.png', pixels, dpi=(300, 300), icc_profile=SRGB)
    picture = copy(read_picture(path), tmp_path / 'b.avif')
    assert np.abs(picture.colour.permute(1, 2, 0).numpy() * 255 - CHELSEA).mean() < 3
    assert (picture.alpha[0] * 255 - torch.from_numpy(CHELSEA[..., 1])).abs().mean() < 3
    assert picture.icc == SRGB and np.allclose(picture.dpi, (300, 300), atol=0.1)


def test_heic_is_read_upright(tmp_path):
    pillow_heif = pytest.importorskip('pillow_heif')
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    try:
        path = save(tmp_path / 'a.heic', CHELSEA, exif=exif.tobytes(), quality=95)
    except (RuntimeError, OSError):
        pytest.skip('this pillow-heif cannot write')
    picture = read_picture(path)
    assert picture.size == picture_size(path) == (83, 61)
    assert np.abs(picture.colour.permute(1, 2, 0).numpy() * 255 - np.rot90(CHELSEA, -1)).mean() < 6


def test_a_webp_animation_with_a_false_header_is_refused(tmp_path):
    frames = [Image.fromarray(np.roll(CHELSEA, i, 0)) for i in range(3)]
    path = save(tmp_path / 'a.webp', frames[0], save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(read_picture(path).colour.mul(255).round().permute(1, 2, 0).numpy(), CHELSEA)
    data = bytearray(open(path, 'rb').read())
    data[24:27] = struct.pack('<I', 2_000_000)[:3]  # the width; 122 million pixels, below the limit
    (tmp_path / 'a.webp').write_bytes(data)
    with pytest.raises(BadImage, match='2000001x61.*seems damaged'):
        read_picture(path)


# Bad input, bad output.

@pytest.mark.parametrize('seed', seeds(0))
@pytest.mark.filterwarnings('ignore')
def test_damaged_animations_cost_no_more_than_their_first_frame(tmp_path, seed):
    """One damaged animated WebP once took 6.5 GB."""
    resource = pytest.importorskip('resource')
    frames = [Image.fromarray(np.roll(CHELSEA, i, 0)) for i in range(20)]
    rng = np.random.default_rng(seed)
    for suffix in ('.webp', '.gif'):
        data = open(save(tmp_path / f'a{suffix}', frames[0], save_all=True, append_images=frames[1:]), 'rb').read()
        bad = tmp_path / f'bad{suffix}'
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(60):
            bad.write_bytes(with_three_bytes_changed(data, rng, 12, 0.3))
            with contextlib.suppress(UserError):
                read_picture(str(bad))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 3_000_000  # KiB


def with_three_bytes_changed(data, rng, first, share):
    """data with random bytes from index `first` on; in a `share` of the cases anywhere, else among the first 60."""
    broken = bytearray(data)
    for at in rng.integers(first, len(data) if rng.random() < share else 60, 3):
        broken[at] = rng.integers(256)
    return bytes(broken)


@pytest.mark.parametrize('seed', seeds(0))
@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.webp', '.tif', '.gif', '.bmp'])
@pytest.mark.filterwarnings('ignore')
def test_damaged_files_are_one_line(tmp_path, suffix, seed):
    data = open(save(tmp_path / f'a{suffix}', CHELSEA), 'rb').read()
    bad = tmp_path / f'bad{suffix}'
    for damaged in (b'', data[:7], data[:30], data[:len(data) // 2], data[:-20] if suffix == '.png' else b'hello'):
        bad.write_bytes(damaged)
        with pytest.raises(UserError, match=r'^[^\n]*bad\.[^\n]*$'):
            read_picture(str(bad))
        picture_size(str(bad))
    rng = np.random.default_rng(seed)
    for _ in range(60):  # whatever happens, it is an image or one line
        bad.write_bytes(with_three_bytes_changed(data, rng, 0, 0.5))
        with contextlib.suppress(UserError):
            read_picture(str(bad))
        picture_size(str(bad))


def test_a_flipped_bit_in_a_png_is_found(tmp_path):
    for pixels in (CHELSEA, deep((40, 30, 3))):
        data = bytearray(png(pixels))
        data[len(data) // 2] ^= 16
        (tmp_path / 'bad.png').write_bytes(data)
        with pytest.raises(UserError, match='bad.png'):
            read_picture(str(tmp_path / 'bad.png'))


def test_what_is_no_picture(tmp_path):
    (tmp_path / 'a.png').write_text('a letter')
    (tmp_path / 'a.heic').write_bytes(struct.pack('>I', 24) + b'ftypheic' + bytes(40))
    (tmp_path / 'empty.jpg').write_bytes(b'')
    tifffile = pytest.importorskip('tifffile')
    tifffile.imwrite(tmp_path / 'volume.tif', np.zeros((3, 32, 32), np.uint8), photometric='minisblack',
                     volumetric=True, tile=(3, 16, 16))
    for name, reason in [('a.png', 'not an image'), ('absent.png', 'does not exist'), ('', 'is a folder'),
                         ('empty.jpg', 'is empty'), ('volume.tif', '3 slices'), ('a.heic', 'pillow-heif')]:
        with pytest.raises(UserError, match=reason):
            read_picture(str(tmp_path / name))
    with pytest.raises(UserError, match='more than 16 bits'):
        read_picture(save(tmp_path / 'f.tif', CHELSEA[..., 0].astype(np.float32)))


def test_decompression_bombs(tmp_path):
    header = struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)
    chunks = [(b'IHDR', header), (b'IDAT', zlib.compress(b'')), (b'IEND', b'')]
    (tmp_path / 'bomb.png').write_bytes(png_file(chunks))
    with pytest.raises(UserError, match='60000x60000.*max_pixels'):
        read_picture(str(tmp_path / 'bomb.png'))
    path = save(tmp_path / 'a.png', CHELSEA)
    with pytest.raises(UserError, match='83x61'):
        read_picture(path, max_pixels=5000)
    assert read_picture(path, max_pixels=None).size == (61, 83)


@pytest.mark.parametrize('path, size, message', [
    ('a.xyz', (4, 4), r"found '.xyz'.*\.png"), ('a', (4, 4), 'no suffix'), ('a.gif', (4, 4), 'gif'),
    ('a.webp', (4, 16384), '16383'), ('a.jpg', (65501, 4), '65500'), ('a.tif', (40000, 40000), '4 GB')])
def test_outputs_that_cannot_hold_it(path, size, message):
    with pytest.raises(UserError, match=message):
        check_output(path, Picture(torch.rand(3, 4, 4)), size)


def test_16_bits_to_8_are_remarked():
    picture = Picture(torch.rand(3, 4, 4), depth=16)
    assert check_output('a.png', picture, (4, 4)) == [] and '8 bits' in check_output('a.jpg', picture, (4, 4))[0]


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.webp', '.tif'])
def test_a_failure_leaves_what_was_there(tmp_path, suffix):
    path = tmp_path / f'a{suffix}'
    path.write_bytes(b'before')

    def rectangles():
        yield 0, 0, torch.rand(3, 2, 5)
        raise UserError('half-way')
    with pytest.raises(UserError, match='half-way'):
        write_picture(str(path), Picture(torch.rand(3, 4, 5)), (4, 5), rectangles())
    assert path.read_bytes() == b'before' and os.listdir(tmp_path) == [path.name]
    with pytest.raises(UserError, match='cannot be written'):
        write_picture(str(tmp_path / 'none' / f'a{suffix}'), Picture(torch.rand(3, 4, 5)), (4, 5), rectangles())


def test_long_names(tmp_path):
    path = tmp_path / f'{"x" * 251}.png'
    assert copy(read_picture(save(tmp_path / 'a.png', CHELSEA)), path).size == (61, 83)
    assert len(os.listdir(tmp_path)) == 2


WRITE = """
import os, resource, signal, sys
import numpy as np, torch
from PIL import Image
from engine.rendering.figures import save_image
from engine.rendering.picture import Picture, write_picture
from utils import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
os.chdir(sys.argv[1])
pixels = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
writers = {f'a{suffix}': lambda path: write_picture(path, Picture(pixels), (40, 60), [(0, 0, pixels)])
           for suffix in ('.jpg', '.png', '.webp', '.tif')}
image = Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy())
writers |= {f'figure{suffix}': lambda path: save_image(image, path) for suffix in ('.jpg', '.png')}
for name, write in writers.items():
    write(name)
    size, results = os.path.getsize(name), []
    os.remove(name)
    for room in (0, 1, 512, size // 2, size - 1, size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        try:
            write(name)
            results.append(os.path.getsize(name) == size)
        except UserError as error:
            results.append('cannot be written' in str(error) and os.listdir() == [])
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(name, all(results), os.listdir() == [name])
    os.remove(name)
"""


def test_a_short_write_never_leaves_a_cut_file(tmp_path):
    """A limit on the size of files cuts writes as a full disk does."""
    pytest.importorskip('resource')
    done = subprocess.run([sys.executable, '-c', WRITE, str(tmp_path)], capture_output=True, text=True, cwd=ROOT,
                          timeout=120)
    assert [line.split()[1:] for line in done.stdout.splitlines()] == [['True', 'True']] * 6, done.stdout + done.stderr


def test_a_full_disk_never_leaves_a_cut_file(tmp_path):
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(tmp_path)]
    if not shutil.which('mount') or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip('needs the right to mount a small file system')
    try:
        picture, path = Picture(torch.rand(3, 60, 60)), tmp_path / 'a.jpg'
        write_picture(str(path), picture, (60, 60), whole(picture))
        size, written = path.stat().st_size, 0
        for filled in range(0, 64 * 1024, 4096):
            path.unlink(missing_ok=True)
            (tmp_path / 'filler').write_bytes(bytes(filled))
            try:
                write_picture(str(path), picture, (60, 60), whole(picture))
            except UserError as error:
                assert 'No space left' in str(error) and os.listdir(tmp_path) == ['filler']
            else:
                written += 1
                assert path.stat().st_size == size
        assert 0 < written < 16
    finally:
        subprocess.run(['umount', str(tmp_path)], check=True)
