"""Image files written: exact pixels, what survives of the source, what a format cannot hold; nothing half-written."""
import io
import os
import shutil
import struct
import subprocess
import tracemalloc

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, JpegImagePlugin, TiffImagePlugin

from datasets.images import png_chunks
from engine.rendering.png import write_png
from engine.rendering.reading import EXIF_IFD, GPS_IFD, SourceImage, read_source
from engine.rendering.writing import PIXEL_WIDTH, _bands, check_output, write_image
from tests.programs import program
from tests.rendering.common import CHELSEA, SRGB, copy, decode, disc, need_avif, odd_exif, png, save, whole
from utils import UserError


pytestmark = pytest.mark.filterwarnings('ignore:.*TorchVision are deprecated:DeprecationWarning')


def use_isal(wanted, monkeypatch):
    if wanted:
        pytest.importorskip('isal')
    else:
        monkeypatch.setattr('engine.rendering.png.isal_zlib', None)


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


@pytest.mark.parametrize('isal, most', [(False, 1.03), (True, 1.08)])
def test_png_is_about_as_small_as_pillows(isal, most, monkeypatch):
    use_isal(isal, monkeypatch)
    pixels = skimage.data.astronaut()
    f = io.BytesIO()
    Image.fromarray(pixels).save(f, 'PNG')
    assert len(png(pixels)) < most * f.tell()


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


@pytest.mark.parametrize('original', ['.png', '.jpg', '.webp', '.tif'])
@pytest.mark.parametrize('target', ['.png', '.jpg', '.webp', '.tif'])
def test_profile_resolution_and_exif_survive(tmp_path, original, target):
    exif = Image.Exif()
    exif[0x010F] = 'Maker'
    exif.get_ifd(EXIF_IFD).update({PIXEL_WIDTH: 7, 0x9003: '2020:01:02 03:04:05'})
    options = {'dpi': (300, 150)}
    if original == '.webp':  # which has no other place for it
        exif.update({0x011A: 300.0, 0x011B: 150.0, 0x0128: 2})
    source = read_source(save(tmp_path / f'a{original}', CHELSEA, exif=exif.tobytes(), icc_profile=SRGB, **options))
    write_image(str(tmp_path / f'b{target}'), source, source.size, whole(source))
    with Image.open(tmp_path / f'b{target}') as image:
        found = image.getexif()
        assert image.info['icc_profile'] == SRGB and found[0x010F] == 'Maker'
        details = found.get_ifd(EXIF_IFD)
        assert details[PIXEL_WIDTH] == source.size[1] and details[0x9003] == '2020:01:02 03:04:05'
        dpi = image.info.get('dpi') or (found[0x011A], found[0x011B])
        assert np.allclose([float(v) for v in dpi], (300, 150), atol=0.1)


def rational(a, b):
    return TiffImagePlugin.IFDRational(a, b)


@pytest.mark.parametrize('original', ['.png', '.jpg', '.webp'])
@pytest.mark.parametrize('target', ['.png', '.jpg', '.webp', '.tif', '.avif'])
def test_odd_exif_is_kept_as_far_as_possible(tmp_path, original, target):
    need_avif(target)
    source = read_source(save(tmp_path / f'a{original}', CHELSEA, exif=odd_exif()))
    assert source.exif[0] == {0x010F: 'Cam'} and source.exif[GPS_IFD][1] == 'N'
    remarks = check_output(f'b{target}', source, source.size)
    assert len(remarks) == 1 and 'damaged entries of its EXIF' in remarks[0]
    again = copy(source, tmp_path / f'b{target}')
    assert again.exif == source.exif and again.remarks == ()


@pytest.mark.parametrize('target', ['.png', '.jpg', '.webp', '.tif', '.avif'])
def test_exif_with_gps_alone_survives(tmp_path, target):
    need_avif(target)
    gps = {1: 'N', 2: (rational(47, 1), rational(3, 1), rational(5, 2)), 6: rational(12, 1)}
    source = SourceImage(torch.rand(3, 8, 9), exif={GPS_IFD: gps})
    assert copy(source, tmp_path / f'a{target}').exif == {GPS_IFD: gps}


def test_exif_too_long_for_a_jpeg(tmp_path):
    exif = {0: {0x010F: 'Cam'}, EXIF_IFD: {0x927C: bytes(70_000)}}  # a maker note
    source = SourceImage(torch.rand(3, 8, 9), exif=exif)
    assert check_output('a.png', source, (8, 9)) == []
    assert 'maker note' in check_output('a.jpg', source, (8, 9))[0]
    assert copy(source, tmp_path / 'a.jpg').exif[0] == {0x010F: 'Cam'}
    source = SourceImage(torch.rand(3, 8, 9), exif={0: {0x010F: 'x' * 70_000}})
    assert 'too long for a JPEG: it is left out' in check_output('a.jpg', source, (8, 9))[0]
    assert copy(source, tmp_path / 'a.jpg').exif == {}


def test_chunks_of_png_that_define_colour_survive(tmp_path):
    gamma = (b'gAMA', struct.pack('>I', 100000))
    (tmp_path / 'a.png').write_bytes(png(CHELSEA, [gamma]))
    copy(read_source(str(tmp_path / 'a.png')), tmp_path / 'b.png')
    assert list(png_chunks((tmp_path / 'b.png').read_bytes(), (b'gAMA',))) == [gamma]


def test_alpha_of_regions_is_cut_from_the_whole(tmp_path):
    source = read_source(save(tmp_path / 'a.png', disc(0)))
    opaque = torch.ones(3, 1, 1)
    for region, size, window in [((0, 0, 52, 40), (100, 130), np.s_[:, :]),
                                 ((10, 8, 26, 16), (40, 65), np.s_[20:60, 25:90])]:
        rectangles = [(0, 0, opaque.expand(3, *size))]
        write_image(str(tmp_path / 'b.png'), source, size, rectangles, region)
        found = np.asarray(Image.open(tmp_path / 'b.png'))[..., 3].astype(int)
        if window == np.s_[:, :]:
            full = found
        assert np.abs(found - full[window]).max() <= 1
    assert full.max() == 255 and full.min() == 0 and full[50, 62] == 255


def test_jpeg_lays_transparency_on_white(tmp_path):
    source = read_source(save(tmp_path / 'a.png', disc(0)))
    assert any('white' in remark for remark in check_output('b.jpg', source, source.size))
    assert copy(source, tmp_path / 'b.jpg').colour.min() > 0.98


def test_jpeg_keeps_the_colour_of_every_pixel(tmp_path):
    for quality in (1, 95):
        copy(SourceImage(torch.rand(3, 8, 9)), tmp_path / 'a.jpg', quality=quality)
        with Image.open(tmp_path / 'a.jpg') as image:
            assert JpegImagePlugin.get_sampling(image) == 0  # 4:4:4


@pytest.mark.parametrize('suffix', ['.png', '.webp', '.tif'])
def test_opaque_stays_opaque(tmp_path, suffix):
    pixels = np.dstack([CHELSEA, np.full(CHELSEA.shape[:2], 255, np.uint8)])
    source = copy(read_source(save(tmp_path / 'a.png', pixels)), tmp_path / f'b{suffix}', quality=100)
    if source.alpha is not None:  # WebP drops what says nothing
        assert source.alpha.min() == 1
    assert torch.equal((source.colour * 255).round().byte(), torch.from_numpy(CHELSEA).permute(2, 0, 1))


def test_avif(tmp_path):
    need_avif('.avif')
    pixels = np.dstack([CHELSEA, CHELSEA[..., 1]])
    path = save(tmp_path / 'a.png', pixels, dpi=(300, 300), icc_profile=SRGB)
    source = copy(read_source(path), tmp_path / 'b.avif')
    assert np.abs(source.colour.permute(1, 2, 0).numpy() * 255 - CHELSEA).mean() < 3
    assert (source.alpha[0] * 255 - torch.from_numpy(CHELSEA[..., 1])).abs().mean() < 3
    assert source.icc == SRGB and np.allclose(source.dpi, (300, 300), atol=0.1)


@pytest.mark.parametrize('path, size, message', [
    ('a.xyz', (4, 4), r"found '.xyz'.*\.png"), ('a', (4, 4), 'no suffix'), ('a.gif', (4, 4), 'gif'),
    ('a.webp', (4, 16384), '16383'), ('a.jpg', (65501, 4), '65500'), ('a.tif', (40000, 40000), '4 GB')])
def test_outputs_that_cannot_hold_it(path, size, message):
    with pytest.raises(UserError, match=message):
        check_output(path, SourceImage(torch.rand(3, 4, 4)), size)


def test_16_bits_to_8_are_remarked():
    source = SourceImage(torch.rand(3, 4, 4), depth=16)
    assert check_output('a.png', source, (4, 4)) == [] and '8 bits' in check_output('a.jpg', source, (4, 4))[0]


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.webp', '.tif'])
def test_a_failure_leaves_what_was_there(tmp_path, suffix):
    path = tmp_path / f'a{suffix}'
    path.write_bytes(b'before')

    def rectangles():
        yield 0, 0, torch.rand(3, 2, 5)
        raise UserError('half-way')
    with pytest.raises(UserError, match='half-way'):
        write_image(str(path), SourceImage(torch.rand(3, 4, 5)), (4, 5), rectangles())
    assert path.read_bytes() == b'before' and os.listdir(tmp_path) == [path.name]
    with pytest.raises(UserError, match='cannot be written'):
        write_image(str(tmp_path / 'none' / f'a{suffix}'), SourceImage(torch.rand(3, 4, 5)), (4, 5), rectangles())


def test_long_names(tmp_path):
    path = tmp_path / f'{"x" * 251}.png'
    assert copy(read_source(save(tmp_path / 'a.png', CHELSEA)), path).size == (61, 83)
    assert len(os.listdir(tmp_path)) == 2


WRITE = """
import os, resource, signal, sys
import numpy as np, torch
from PIL import Image
from engine.rendering.figures import save_image
from engine.rendering.reading import SourceImage
from engine.rendering.writing import write_image
from utils import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
os.chdir(sys.argv[1])
pixels = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
writers = {f'a{suffix}': lambda path: write_image(path, SourceImage(pixels), (40, 60), [(0, 0, pixels)])
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
    done = program('-c', WRITE, tmp_path)
    assert [line.split()[1:] for line in done.stdout.splitlines()] == [['True', 'True']] * 6, done.stdout + done.stderr


def test_a_full_disk_never_leaves_a_cut_file(tmp_path):
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(tmp_path)]
    if not shutil.which('mount') or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip('needs the right to mount a small file system')
    try:
        source, path = SourceImage(torch.rand(3, 60, 60)), tmp_path / 'a.jpg'
        write_image(str(path), source, (60, 60), whole(source))
        size, written = path.stat().st_size, 0
        for filled in range(0, 64 * 1024, 4096):
            path.unlink(missing_ok=True)
            (tmp_path / 'filler').write_bytes(bytes(filled))
            try:
                write_image(str(path), source, (60, 60), whole(source))
            except UserError as error:
                assert 'No space left' in str(error) and os.listdir(tmp_path) == ['filler']
            else:
                written += 1
                assert path.stat().st_size == size
        assert 0 < written < 16
    finally:
        subprocess.run(['umount', str(tmp_path)], check=True)

