"""Image files read: all kinds, depths and orientations; damaged and hostile ones. Pillow, torchvision and tifffile
serve as independent readers and writers."""
import contextlib
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from datasets.images import BadImage, decode_png16
from engine.rendering.reading import ORIENTATION, SourceImage, read_source, source_size
from engine.rendering.writing import check_output, write_image
from tests.common import seeds
from tests.image_files import png_file
from tests.rendering.common import CHELSEA, SRGB, copy, decode, deep, disc, odd_exif, png, save, whole
from utils import UserError


pytestmark = pytest.mark.filterwarnings('ignore:.*TorchVision are deprecated:DeprecationWarning')


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


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_16_bit_png_survives(tmp_path, channels):
    pixels = deep((31, 23, channels))
    (tmp_path / 'a.png').write_bytes(png(pixels))
    source = read_source(str(tmp_path / 'a.png'))
    assert source.depth == 16 and len(source.colour) == (1 if channels < 3 else 3)
    values = source.colour if source.alpha is None else torch.cat([source.colour, source.alpha])
    assert np.array_equal((values.double() * 65535).round().permute(1, 2, 0).numpy(), pixels)
    write_image(str(tmp_path / 'b.png'), source, source.size, whole(source))
    written = decode((tmp_path / 'b.png').read_bytes())
    assert written.dtype == np.uint16 and np.abs(written.astype(int) - pixels).max() <= 1


@pytest.mark.parametrize('pixels, key', [(deep((9, 7, 1)), (5,)), (deep((9, 7, 3)), (5, 6, 65535))])
def test_16_bit_png_with_a_transparent_colour(tmp_path, pixels, key):
    pixels[2, 3] = key
    data = struct.pack(f'>{len(key)}H', *key)
    (tmp_path / 'a.png').write_bytes(png(pixels, [(b'tRNS', data)]))
    alpha = read_source(str(tmp_path / 'a.png')).alpha
    assert alpha[0, 2, 3] == 0 and alpha.sum() == 9 * 7 - 1


@pytest.mark.parametrize('mode, channels, has_alpha', [
    ('1', 1, False), ('L', 1, False), ('LA', 1, True), ('P', 3, False), ('RGB', 3, False), ('RGBA', 3, True)])
def test_modes(tmp_path, mode, channels, has_alpha):
    rgba = Image.fromarray(np.dstack([CHELSEA, CHELSEA[..., 1]]))
    image = rgba.convert(mode) if mode != 'P' else rgba.convert('RGB').quantize(200)
    source = read_source(save(tmp_path / 'a.png', image))
    assert (len(source.colour), source.alpha is not None, source.depth) == (channels, has_alpha, 8)
    expected = np.asarray(image.convert({1: 'L', 3: 'RGB'}[channels])).reshape(*source.size, channels)
    assert np.array_equal((source.colour * 255).round().permute(1, 2, 0).numpy(), expected)
    if has_alpha:
        assert np.array_equal((source.alpha[0] * 255).round().numpy(), np.asarray(image)[..., -1])
    again = copy(source, tmp_path / 'b.png')
    assert torch.equal(again.colour.mul(255).round(), source.colour.mul(255).round()) or has_alpha
    assert len(again.colour) == channels and (again.alpha is None) == (not has_alpha)
    assert Image.open(tmp_path / 'b.png').mode == {1: 'L', 3: 'RGB'}[channels] + ('A' if has_alpha else '')


@pytest.mark.parametrize('image, key', [
    (Image.fromarray(CHELSEA).quantize(60), 7), (Image.fromarray(CHELSEA[..., 0]), 90),
    (Image.fromarray(CHELSEA), tuple(map(int, CHELSEA[5, 5])))])
def test_a_transparent_colour_becomes_alpha(tmp_path, image, key):
    source = read_source(save(tmp_path / 'a.png', image, transparency=key))
    pixels = np.asarray(image)
    hidden = (pixels.reshape(*pixels.shape[:2], -1) == key).all(axis=-1)
    assert hidden.any() and np.array_equal(source.alpha[0].numpy() == 0, hidden)


def test_a_palette_of_greys_is_grey(tmp_path):
    image = Image.fromarray(CHELSEA[..., 0]).quantize(40)
    assert len(read_source(save(tmp_path / 'a.png', image)).colour) == 1
    assert len(read_source(save(tmp_path / 'b.png', image, icc_profile=SRGB)).colour) == 3  # what the profile is for


def test_cmyk_becomes_rgb_without_its_profile(tmp_path):
    image = Image.fromarray(CHELSEA).convert('CMYK')
    source = read_source(save(tmp_path / 'a.jpg', image, quality=95, icc_profile=b'not a profile' * 20))
    assert source.icc is None
    assert np.abs(source.colour.permute(1, 2, 0).numpy() * 255 - CHELSEA).mean() < 4


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
    source = read_source(str(tmp_path / 'a.tif'))
    assert source.depth == 16
    values = source.colour if source.alpha is None else torch.cat([source.colour, source.alpha])
    found = (values.double() * 65535).round().permute(1, 2, 0).numpy()
    seen = pixels[..., -1:] > 20000 if kind == 'premultiplied' else True  # little is left of faint colours
    assert (np.abs(found - pixels) * seen).max() <= (4 if kind == 'premultiplied' else 0)
    write_image(str(tmp_path / 'b.tif'), source, source.size, whole(source))
    assert np.abs(tifffile.imread(tmp_path / 'b.tif').reshape(found.shape) - found).max() <= 1


def test_16_bit_tiff_without_tifffile(tmp_path, monkeypatch):
    tifffile = pytest.importorskip('tifffile')
    tifffile.imwrite(tmp_path / 'a.tif', deep((5, 4, 3)), photometric='rgb')
    tifffile.imwrite(tmp_path / 'grey.tif', deep((5, 4, 1))[..., 0])
    monkeypatch.setitem(__import__('sys').modules, 'tifffile', None)
    with pytest.raises(UserError, match='a.tif.*pip install tifffile'):
        read_source(str(tmp_path / 'a.tif'))
    assert read_source(str(tmp_path / 'grey.tif')).depth == 16
    with pytest.raises(UserError, match='pip install tifffile'):
        check_output('b.tif', SourceImage(torch.rand(3, 4, 5), depth=16), (4, 5))


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.webp', '.tif'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_is_applied_once(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path / f'a{suffix}', CHELSEA, exif=exif, dpi=(300, 150))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
    source = read_source(path)
    assert np.array_equal((source.colour * 255).round().permute(1, 2, 0).numpy(), expected)
    assert source_size(path) == source.size
    swapped = orientation > 4
    assert source.dpi is None or np.allclose(source.dpi, (150, 300) if swapped else (300, 150), atol=0.1)
    copy(source, tmp_path / f'b{suffix}')
    with Image.open(tmp_path / f'b{suffix}') as image:
        assert image.size[::-1] == source.size and image.getexif().get(ORIENTATION, 1) == 1


def test_orientation_of_16_bits(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    pixels = deep((9, 5, 3))
    (tmp_path / 'a.png').write_bytes(png(pixels, [(b'eXIf', exif.tobytes()[6:])]))
    source = read_source(str(tmp_path / 'a.png'))
    found = (source.colour.double() * 65535).round().permute(1, 2, 0).numpy()
    assert np.array_equal(found, np.rot90(pixels, -1))
    tifffile = pytest.importorskip('tifffile')
    tifffile.imwrite(tmp_path / 'a.tif', pixels, photometric='rgb', extratags=[(ORIENTATION, 3, 1, 6, True)])
    assert torch.equal(read_source(str(tmp_path / 'a.tif')).colour, source.colour)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('seed', seeds(0))
def test_random_exif_never_stops_an_image(tmp_path, seed):
    rng = np.random.default_rng(seed)
    whole = bytearray(odd_exif())
    for case in range(150):
        damaged = bytearray(whole)
        for at in rng.integers(14, len(whole), rng.integers(1, 30)):
            damaged[at] = rng.integers(256)
        source = read_source(save(tmp_path / 'a.jpg', CHELSEA, exif=bytes(damaged)))
        target = tmp_path / f'b{(".png", ".jpg", ".webp", ".tif")[case % 4]}'
        assert copy(source, target).size == source.size and check_output(str(target), source, (9, 9)) is not None


def test_no_dark_fringes(tmp_path):
    inputs = []
    for under in (0, 77, 255):
        source = read_source(save(tmp_path / f'{under}.png', disc(under)))
        inputs.append(source.for_network())
    assert all(torch.allclose(v, torch.ones_like(v), atol=1e-6) for v in inputs)  # white, whatever was hidden


def test_hidden_colours_come_from_around(tmp_path):
    pixels = np.dstack([CHELSEA, np.full(CHELSEA.shape[:2], 255, np.uint8)])
    pixels[10:40, 20:50, 3] = 0
    pixels[10:40, 20:50, :3] = 255, 0, 255
    source = read_source(save(tmp_path / 'a.png', pixels))
    found, kept = source.for_network(), source.alpha[0] > 0
    assert torch.equal(found[:, kept], source.colour[:, kept])
    around = torch.from_numpy(CHELSEA[5:45, 15:55]).permute(2, 0, 1) / 255
    filled = found[:, 10:40, 20:50]
    assert (filled.mean((1, 2)) - around.mean((1, 2))).abs().max() < 0.15
    assert (filled - filled.roll(1, 1))[:, 1:].abs().max() < 0.3  # no jumps


def test_heic_is_read_upright(tmp_path):
    pillow_heif = pytest.importorskip('pillow_heif')
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    try:
        path = save(tmp_path / 'a.heic', CHELSEA, exif=exif.tobytes(), quality=95)
    except (RuntimeError, OSError):
        pytest.skip('this pillow-heif cannot write')
    source = read_source(path)
    assert source.size == source_size(path) == (83, 61)
    assert np.abs(source.colour.permute(1, 2, 0).numpy() * 255 - np.rot90(CHELSEA, -1)).mean() < 6


def test_a_webp_animation_with_a_false_header_is_refused(tmp_path):
    frames = [Image.fromarray(np.roll(CHELSEA, i, 0)) for i in range(3)]
    path = save(tmp_path / 'a.webp', frames[0], save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(read_source(path).colour.mul(255).round().permute(1, 2, 0).numpy(), CHELSEA)
    data = bytearray(open(path, 'rb').read())
    data[24:27] = struct.pack('<I', 2_000_000)[:3]  # the width; 122 million pixels, below the limit
    (tmp_path / 'a.webp').write_bytes(data)
    with pytest.raises(BadImage, match='2000001x61.*seems damaged'):
        read_source(path)


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
                read_source(str(bad))
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
        for read in (read_source, source_size) if len(damaged) < 10 else (read_source,):
            with pytest.raises(UserError, match=r'^[^\n]*bad\.[^\n]*$'):
                read(str(bad))
    rng = np.random.default_rng(seed)
    for _ in range(60):  # whatever happens, it is an image or one line
        bad.write_bytes(with_three_bytes_changed(data, rng, 0, 0.5))
        for read in (read_source, source_size):
            with contextlib.suppress(UserError):
                read(str(bad))


def test_a_flipped_bit_in_a_png_is_found(tmp_path):
    for pixels in (CHELSEA, deep((40, 30, 3))):
        data = bytearray(png(pixels))
        data[len(data) // 2] ^= 16
        (tmp_path / 'bad.png').write_bytes(data)
        with pytest.raises(UserError, match='bad.png'):
            read_source(str(tmp_path / 'bad.png'))


def test_what_is_no_image(tmp_path):
    (tmp_path / 'a.png').write_text('a letter')
    (tmp_path / 'a.heic').write_bytes(struct.pack('>I', 24) + b'ftypheic' + bytes(40))
    (tmp_path / 'empty.jpg').write_bytes(b'')
    tifffile = pytest.importorskip('tifffile')
    tifffile.imwrite(tmp_path / 'volume.tif', np.zeros((3, 32, 32), np.uint8), photometric='minisblack',
                     volumetric=True, tile=(3, 16, 16))
    for name, reason in [('a.png', 'not an image'), ('absent.png', 'does not exist'), ('', 'is a folder'),
                         ('empty.jpg', 'is empty'), ('volume.tif', '3 slices'), ('a.heic', 'pillow-heif')]:
        with pytest.raises(UserError, match=reason):
            read_source(str(tmp_path / name))
    with pytest.raises(UserError, match='more than 16 bits'):
        read_source(save(tmp_path / 'f.tif', CHELSEA[..., 0].astype(np.float32)))


def test_decompression_bombs(tmp_path):
    header = struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)
    chunks = [(b'IHDR', header), (b'IDAT', zlib.compress(b'')), (b'IEND', b'')]
    (tmp_path / 'bomb.png').write_bytes(png_file(chunks))
    with pytest.raises(UserError, match='60000x60000.*max_pixels'):
        read_source(str(tmp_path / 'bomb.png'))
    path = save(tmp_path / 'a.png', CHELSEA)
    with pytest.raises(UserError, match='83x61'):
        read_source(path, max_pixels=5000)
    assert read_source(path, max_pixels=None).size == (61, 83)
