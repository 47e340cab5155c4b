"""demo.py on one image: sizes, options of rendering, what survives of a file."""
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import demo
from datasets import images
from datasets.images import decode_png16
from engine.arguments import numbers
from engine.checkpoint import load_model
from engine.rendering import jobs, pace, sizes
from engine.rendering import renderer as render
from engine.rendering.png import write_png
from engine.rendering.reading import read_source
from engine.rendering.renderer import Renderer
from tests.common import ROOT, small_model
from tests.rendering.common import ENVIRONMENT, PHOTO, pixels, reference
from utils import UserError


def test_the_fixed_form_as_a_process(tmp_path, checkpoints):
    Image.fromarray(PHOTO).save(tmp_path / 'in.png')
    (tmp_path / 'out.png').write_bytes(b'an older one')
    done = subprocess.run([sys.executable, 'demo.py', '--input', tmp_path / 'in.png', '--model', checkpoints['liif'],
                           '--resolution', '90,101', '--output', tmp_path / 'out.png', '--gpu', 'cpu',
                           '--precision', 'float32'],
                          cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(pixels(tmp_path / 'out.png'), reference(checkpoints['liif'], PHOTO, (90, 101)))
    assert '101x90 from 63x41' in done.stdout and 'MP/s on cpu' in done.stdout and not done.stderr


@pytest.mark.parametrize('options, size', [
    (['--resolution', '50,77'], (50, 77)), (['--scale', '1.7'], (70, 107)), (['--scale', '2.5,1'], (103, 63)),
    (['--width', '100'], (65, 100)), (['--height', '100'], (100, 154)), (['--max-side', '101'], (66, 101)),
    (['--scale', '0.001'], (1, 1)), (['--region', '10,20.5,20,8', '--scale', '3'], (24, 60)),
    (['--region', '0,0,10.5,41', '--width', '21'], (82, 21)), (['--region', '1,1,4,2', '--resolution', '9,7'], (9, 7))])
def test_the_size_asked_for_is_the_size_written(upscale, options, size):
    assert Image.open(upscale(PHOTO, *options)).size == size[::-1]


def test_sizes_of_any_source():
    rng = np.random.default_rng(0)
    for _ in range(300):
        h, w, n = (int(v) for v in rng.integers(1, 5000, 3))
        tall = max(1, round(h * n / w))
        size = sizes.size_rule('width', (n,), limit=None)(h, w)
        assert size[1] == n and abs(size[0] - tall) <= 1
        assert sizes.size_rule('height', (n,), limit=None)(h, w)[0] == n
        assert max(sizes.size_rule('max-side', (n,))(h, w)) == n
    assert sizes.size_rule('scale', (2.5,))(1, 3) == (3, 8)  # halves go up
    for text in ('1920x1080', '1080,1920', '1920 X 1080'):
        assert numbers('resolution')(text) == (1080, 1920)
    assert demo.parse_arguments(['x.png']).size == ('scale', (4,))


@pytest.mark.parametrize('shape', [(17, 1), (1, 17), (1, 1), (2, 3)])
def test_tiny_images(upscale, checkpoints, shape):
    image = PHOTO[:shape[0], :shape[1]]
    found = pixels(upscale(image, '--scale', '3.4'))
    assert np.array_equal(found, reference(checkpoints['liif'], image, found.shape[:2]))


def test_a_region_is_the_crop_of_the_whole(upscale):
    whole = pixels(upscale(PHOTO, '--scale', '3'))
    part = pixels(upscale(PHOTO, '--scale', '3', '--region', '10,4,21,17'))
    assert np.abs(part - whole[12:63, 30:93]).max() <= 1
    part = pixels(upscale(PHOTO, '--resolution', '30,60', '--region', '10.5,4.25,20,10'))
    fine = pixels(upscale(PHOTO, '--resolution', f'{41 * 12},{63 * 12}'))
    assert np.abs(part - fine[51:171, 126:366].reshape(30, 4, 60, 4, 3).mean((1, 3))).mean() < 12


@pytest.mark.parametrize('options, settings', [
    (['--self-ensemble'], {'self_ensemble': True}), (['--cell-clip'], {'cell_clip': 4.0}),
    (['--cell-clip', '2'], {'cell_clip': 2.0}), (['--precision', 'bf16'], {'precision': 'bf16'})])
def test_options_of_rendering(upscale, checkpoints, options, settings):
    found = pixels(upscale(PHOTO, '--scale', '5', *options))
    assert np.array_equal(found, reference(checkpoints['liif'], PHOTO, found.shape[:2], **settings))
    assert not np.array_equal(found, reference(checkpoints['liif'], PHOTO, found.shape[:2]))


def test_cell_clip_changes_nothing_within_the_range(upscale):
    plain = pixels(upscale(PHOTO, '--scale', '3'))
    assert np.array_equal(plain, pixels(upscale(PHOTO, '--scale', '3', '--cell-clip')))


@pytest.mark.parametrize('strip', [1 << 20, 1000])
def test_tiles_and_strips_do_not_show(upscale, checkpoints, monkeypatch, strip):
    monkeypatch.setattr(render, 'STRIP', strip)
    found = pixels(upscale(PHOTO, '--scale', '2.7', '--tile', '16'))
    assert np.abs(found - reference(checkpoints['liif'], PHOTO, found.shape[:2])).max() <= 1


def test_what_is_held_in_floats_does_not_grow(checkpoints, monkeypatch):
    monkeypatch.setattr(render, 'STRIP', 2000)
    scene = Renderer(small_model()).open(torch.rand(3, 20, 30))
    areas = [rgb.shape[1] * rgb.shape[2] for _, _, rgb in scene.rectangles((300, 150))]
    assert max(areas) <= 2000 and sum(areas) == 300 * 150


def test_progress_covers_the_output():
    class Bar:
        n = 0

        def update(self, n):
            self.n += n
    bar, scene = Bar(), Renderer(small_model(), tile=16).open(torch.rand(3, 20, 30))
    assert len(list(jobs.watched(scene, (50, 70), None, bar))) > 1 and bar.n == 50 * 70


def test_half_precision_that_overflows_is_redone(upscale, capsys):
    assert (pixels(upscale(PHOTO, '--scale', '2', '--precision', 'bf16', model='overflow')) == 128).all()
    assert 'bf16 overflowed, so this is redone in float32' in capsys.readouterr().out
    upscale(PHOTO, '--scale', '2', model='overflow')
    assert 'overflowed' not in capsys.readouterr().out


def test_averaged_weights(upscale, checkpoints):
    plain, averaged = (pixels(upscale(PHOTO, '--scale', '2', *o)) for o in ([], ['--ema']))
    assert not np.array_equal(plain, averaged)
    with pytest.raises(UserError, match='no averaged weights'):
        upscale(PHOTO, '--scale', '2', '--ema', model='overflow')


@pytest.mark.parametrize('options, size', [(['--scale', '0.3'], (12, 19)), (['--scale', '0.3,2'], (12, 126)),
                                           (['--region', '0,0,63,40', '--scale', '0.3'], (12, 19))])
def test_reductions_do_not_alias(upscale, options, size):
    """Stripes of one pixel, which picking samples would turn into wide ones, become grey; so does their alpha."""
    stripes = np.zeros((41, 63, 4), np.uint8)
    stripes[::2] = 255
    found = pixels(upscale(stripes[..., :3], *options))
    assert found.shape == (*size, 3) and np.ptp(found[4:8, 8:-8], axis=0).max() < 40
    assert np.ptp(pixels(upscale(stripes, *options))[4:8, 8:-8, 3]) < 40


@pytest.mark.parametrize('gain, native, chosen', [(1.4, True, 'float32'), (1.6, True, 'bf16'), (1.6, False, 'float32')])
def test_the_precision_is_chosen_by_a_trial(tmp_path, checkpoints, monkeypatch, capsys, gain, native, chosen):
    """native: whether the CPU computes in bf16; where it does not, no trial in bf16 is made: it would take long."""
    tried = []

    class Pretended(pace.Pace):
        def __init__(self, renderer):
            self.tile, self.halo = None, 0
            tried.append(renderer.precision)
            self.encode = self.decode = 100 * (gain if renderer.precision == 'bf16' else 1)
    monkeypatch.setattr(pace, 'Pace', Pretended)
    monkeypatch.setattr(pace, 'has_bf16', lambda device: native)
    Image.fromarray(PHOTO).save(tmp_path / 'in.png')
    demo.main([str(tmp_path / 'in.png'), '--model', checkpoints['liif'], '--gpu', 'cpu'])
    said = capsys.readouterr().out
    assert f'on cpu in {chosen}' in said and ('bf16' in tried) == native
    seconds = 41 * 63 * 17 / 100 / (gain if chosen == 'bf16' else 1)
    assert f'this takes about {seconds / 60:.0f} min' in said
    assert np.array_equal(pixels(tmp_path / 'in_x4.png'),
                          reference(checkpoints['liif'], PHOTO, (164, 252), precision=chosen))


@pytest.mark.parametrize('tile, size', [(1, (24, 40)), (8, (40, 60)), (30, (40, 60)), (100, (40, 60))])
def test_the_estimate_knows_that_tiles_overlap(tile, size):
    model, encoded = small_model(), []
    renderer = Renderer(model, tile=tile)
    timed = pace.Pace(renderer)
    model.encoder.register_forward_pre_hook(lambda module, inputs: encoded.append(inputs[0][0, 0].numel()))
    renderer.open(torch.rand(3, *size)).render([2 * n for n in size])
    timed.encode, timed.decode = 1, 1e9
    assert sum(encoded) == pytest.approx(timed.seconds(math.prod(size), 4 * math.prod(size)), rel=0.5)


def test_a_fixed_scale_model_at_its_scale(upscale):
    assert Image.open(upscale(PHOTO, '--scale', '2', model='fixed')).size == (126, 82)


def test_insisting_lifts_the_limits(upscale, monkeypatch):
    monkeypatch.setattr(sizes, 'MAX_OUTPUT', 5000)
    monkeypatch.setattr(images, 'MAX_PIXELS', 100)
    with pytest.raises(UserError, match='63x41 pixels, more than the limit of 100.*--insist'):
        upscale(PHOTO, '--scale', '1')
    with pytest.raises(UserError, match='--insist'):
        upscale(PHOTO[:2, :2], '--scale', '60')
    assert Image.open(upscale(PHOTO, '--scale', '2', '--insist')).size == (126, 82)


def test_alpha(upscale):
    alpha = np.zeros(PHOTO.shape[:2], np.uint8)
    alpha[8:30, 10:50] = 255
    hidden = np.where(alpha[..., None], PHOTO, 0)
    found = [pixels(upscale(np.dstack([colour, alpha]), '--scale', '2.5')) for colour in (hidden, hidden ^ (alpha == 0)[
        ..., None].astype(np.uint8) * 255)]
    assert found[0].shape == (103, 158, 4) and np.array_equal(*found)  # what is hidden does not matter
    assert (found[0][25:70, 30:120, 3] == 255).all() and (found[0][:15, :, 3] == 0).all()


def test_grey_stays_grey(upscale, checkpoints):
    grey = PHOTO[..., 1]
    found = pixels(upscale(grey, '--scale', '2'))
    assert found.shape == (82, 126)
    rgb = reference(checkpoints['liif'], np.repeat(grey[..., None], 3, 2), (82, 126))
    assert np.abs(found - rgb.mean(-1)).max() <= 1
    assert Image.open(upscale(Image.fromarray(grey > 120), '--scale', '2')).mode == 'L'


def test_16_bits_have_no_bands(tmp_path, upscale, checkpoints):
    ramp = np.linspace(20000, 20600, 30).astype(np.uint16)[:, None, None] + np.zeros((1, 20, 3), np.uint16)
    with open(tmp_path / 'deep.png', 'wb') as f:
        write_png(f, [ramp], (30, 20), 3, 16)
    found = decode_png16(open(upscale(str(tmp_path / 'deep.png'), '--scale', '4'), 'rb').read())
    assert found.shape == (120, 80, 3) and len(np.unique(found)) > 100  # three levels of 8 bits
    model, norm = load_model(checkpoints['liif'], 'cpu')
    scene = Renderer(model, norm).open(torch.from_numpy(ramp.astype(np.float32)).permute(2, 0, 1) / 65535)
    expected = (scene.render((120, 80)).double() * 65535).permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() <= 0.51


@pytest.mark.parametrize('name', ['out.jpg', 'out.webp', 'out.tif', 'out.JPEG'])
def test_formats_profile_resolution_orientation(tmp_path, upscale, checkpoints, name):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PHOTO).save(tmp_path / 'in.jpg', exif=exif, dpi=(300, 300), icc_profile=b'x' * 200, quality=100,
                                subsampling=0)
    upright = np.rot90(pixels(tmp_path / 'in.jpg').astype(np.uint8), -1).copy()
    quality = () if name == 'out.tif' else ('--quality', '100')
    output = upscale(str(tmp_path / 'in.jpg'), '--scale', '2', *quality, name=name)
    expected = reference(checkpoints['liif'], upright, (126, 82))
    assert np.abs(pixels(output) - expected).mean() < (1.5 if name.lower().endswith(('.jpg', '.jpeg')) else 0.01)
    written = read_source(output)
    assert written.icc == b'x' * 200 and np.allclose(written.dpi, 300, atol=0.1)
