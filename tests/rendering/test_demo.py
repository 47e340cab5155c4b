"""demo.py: every option, on photographs of every kind, and what it says to wrong ones."""
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import nn

import demo
import models
from engine.checkpoint import load_model, save_checkpoint
from datasets import images
from datasets.images import decode_png16
from engine.rendering import jobs, pace, sizes
from engine.rendering import renderer as render
from engine.rendering.picture import read_picture
from engine.rendering.png import write_png
from engine.rendering.renderer import Renderer
from tests.common import small_model, small_spec
from tests.conftest import ROOT
from utils import UserError


PHOTO = skimage.data.chelsea()[60:101, 100:163]  # (41, 63, 3): odd sizes, an eye
ENVIRONMENT = {**os.environ, 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'passive', 'CUDA_VISIBLE_DEVICES': ''}


class Overflow(nn.Module):
    """Grey, but NaN in half precision, or always with `broken`."""

    def __init__(self, broken=False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.broken = broken

    def gen_feat(self, inp):
        self.inp = inp

    def query_rgb(self, coord, cell):
        bad = self.broken or torch.is_autocast_enabled('cpu')
        return torch.full((*coord.shape[:2], 3), float('nan') if bad else 0.0)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The registry knows `Overflow` in this file's tests alone."""
    monkeypatch.setitem(models.registry.entries, 'demo-test-overflow', Overflow)


@pytest.fixture(scope='session')
def checkpoints(tmp_path_factory):
    """Paths of small checkpoints, by name."""
    folder = tmp_path_factory.mktemp('checkpoints')
    fixed = {'name': 'edsr-baseline', 'args': {'n_resblocks': 1, 'n_feats': 8, 'scale': 2}}
    specs = {'liif': small_spec(), 'fixed': {'name': 'liif', 'args': {'encoder_spec': fixed}}, 'encoder': fixed,
             'overflow': {'name': 'demo-test-overflow', 'args': {}},
             'broken': {'name': 'demo-test-overflow', 'args': {'broken': True}}}
    for name, spec in specs.items():
        model = small_model() if name == 'liif' else Overflow(**spec['args']) if spec['name'] == 'demo-test-overflow' \
            else models.make(spec)
        checkpoint = {'model': {**spec, 'sd': model.state_dict()}, 'epoch': 1}
        if name == 'liif':
            checkpoint['ema'] = {key: 0.5 * value for key, value in model.state_dict().items()}
        save_checkpoint(str(folder / f'{name}.pth'), checkpoint)
    (folder / 'cut.pth').write_bytes((folder / 'liif.pth').read_bytes()[:5000])
    (folder / 'text.pth').write_text('no checkpoint')
    return {path.stem: str(path) for path in folder.iterdir()}


@pytest.fixture
def upscale(tmp_path, checkpoints):
    """Run demo.py on an image (pixels or a path): what is in the output, its path, unless another name is given."""
    def run(image, *options, name='out.png', model='liif'):
        source = image
        if not isinstance(image, str):
            source = str(tmp_path / 'in.png')
            (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(source)
        output = str(tmp_path / name)
        demo.main([source, '--output', output, '--model', checkpoints[model], '--gpu', 'cpu', '--precision', 'float32',
                   *options])
        return output
    return run


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def reference(checkpoint, image, size, **options):
    """What engine/rendering/renderer.py makes of pixels (h, w, 3): (H, W, 3), to 8 bits."""
    model, norm = load_model(checkpoint, 'cpu')
    scene = Renderer(model, norm, **options).open(torch.from_numpy(image).permute(2, 0, 1) / 255)
    return scene.render(size, dtype=torch.uint8).permute(1, 2, 0).numpy().astype(int)


# The fixed form.

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


@pytest.mark.parametrize('wrong, message', [
    (['--resolution', '0,5'], "resolution: found '0,5'"),
    (['--resolution', '9,9', '--input', 'text.png'], 'text.png')])
def test_bad_input_as_a_process(tmp_path, checkpoints, wrong, message):
    (tmp_path / 'text.png').write_text('no picture')
    Image.fromarray(PHOTO).save(tmp_path / 'in.png')
    done = subprocess.run([sys.executable, os.path.join(ROOT, 'demo.py'), '--input', 'in.png', '--model',
                           checkpoints['liif'], '--output', 'out.png', '--gpu', 'cpu', *wrong],
                          cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
    assert message in done.stderr and sorted(os.listdir(tmp_path)) == ['in.png', 'text.png']


def test_a_terminated_run_leaves_nothing(tmp_path, checkpoints):
    Image.fromarray(PHOTO).save(tmp_path / 'in.png')
    process = subprocess.Popen([sys.executable, 'demo.py', '--input', tmp_path / 'in.png', '--model',
                                checkpoints['liif'], '--resolution', '9000,9000', '--output', tmp_path / 'out.png'],
                               cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if len(os.listdir(tmp_path)) > 1 or process.poll() is not None:
                break
            time.sleep(0.1)
        assert len(os.listdir(tmp_path)) == 2 and not os.path.exists(tmp_path / 'out.png')
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
    assert os.listdir(tmp_path) == ['in.png']


# Sizes.

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
        size = sizes.parse_size(limit=None, width=str(n))(h, w)
        assert size[1] == n and abs(size[0] - tall) <= 1
        assert sizes.parse_size(limit=None, height=n)(h, w)[0] == n
        assert max(sizes.parse_size(max_side=n)(h, w)) == n
    assert sizes.parse_size(scale='2.5')(1, 3) == (3, 8)  # halves go up
    for text in ('1920x1080', '1080,1920', '1920 X 1080'):
        assert sizes.parse_size(resolution=text)(1, 3) == (1080, 1920)
    assert sizes.parse_size()(2, 3) == (8, 12)


@pytest.mark.parametrize('shape', [(17, 1), (1, 17), (1, 1), (2, 3)])
def test_tiny_pictures(upscale, checkpoints, shape):
    image = PHOTO[:shape[0], :shape[1]]
    found = pixels(upscale(image, '--scale', '3.4'))
    assert np.array_equal(found, reference(checkpoints['liif'], image, found.shape[:2]))


@pytest.mark.parametrize('options, message', [
    (['--scale', '2', '--width', '5'], 'found scale and width'),
    (['--resolution', '0,5'], "'0,5'"), (['--resolution', '5'], 'H,W'), (['--resolution', '5.5,5'], 'H,W'),
    (['--scale', '0'], "'0'"), (['--scale', 'nan'], 'nan'), (['--scale', '1,2,3'], 'a factor'), (['--scale=-2'], '-2'),
    (['--width', 'wide'], 'wide'), (['--region', '0,0,0,5', '--scale', '2'], 'region'),
    (['--region', '60,0,4,4', '--scale', '2'], 'inside the image of 63x41'),
    (['--region=-1,0,4,4', '--scale', '2'], 'inside the image'),
    (['--region', '0,nan,4,4', '--scale', '2'], 'region'),
    (['--scale', '9000'], '567000x369000 pixels, 209.2 gigapixels.*--insist'),
    (['--scale', '2', '--tile', '0'], 'tile'),
    (['--scale', '2', '--precision', 'fp16'], 'fp16')])
def test_wrong_options(tmp_path, upscale, options, message):
    with pytest.raises(UserError, match=message) as error:
        upscale(PHOTO, *options)
    assert '\n' not in str(error.value) and os.listdir(tmp_path) == ['in.png']


@pytest.mark.parametrize('options, message', [
    (['--sclae', '2'], '--sclae is not an option, did you mean --scale?'), (['--nonsense=1'], '--nonsense is not'),
    (['--quality', '0'], '--quality: found 0'), (['--cell-clip', '0.5'], '--cell-clip: found 0.5'),
    (['--cell-clip', 'x'], '--cell-clip: found x'),
    (['--precision', 'fp8'], "invalid choice: 'fp8' (choose from 'auto', 'float32', 'tf32', 'bf16', 'fp16')")])
def test_mistyped_options_are_named_before_torch_is_imported(options, message):
    code = f'import sys, demo\ntry: demo.main({["x.png", *options]})\nexcept SystemExit as e: ' \
           f'sys.exit(e.code if "torch" not in sys.modules else 99)'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1


def test_help_does_not_import_torch():
    code = 'import sys, demo\ntry: demo.main(["--help"])\nexcept SystemExit: print("torch" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith('False\n')


def test_a_region_is_checked_before_an_estimate_is_made(tmp_path, upscale, monkeypatch, capsys):
    monkeypatch.setattr(demo, 'SLOW', 0)
    with pytest.raises(UserError, match='inside the image of 63x41'):
        upscale(PHOTO, '--precision', 'auto', '--region', '60,0,4,4')
    assert 'this takes' not in capsys.readouterr().out
    upscale(PHOTO, '--precision', 'auto')
    assert 'this takes' in capsys.readouterr().out


def test_a_region_outside_of_one_image_does_not_cost_the_others(tmp_path, checkpoints, capsys):
    for name, size in (('a', (10, 10)), ('b', (30, 30))):
        Image.new('RGB', size).save(tmp_path / f'{name}.png')
    os.makedirs(tmp_path / 'out')
    Image.new('RGB', (40, 40)).save(tmp_path / 'out' / 'a.png')  # of an earlier run without a region
    with pytest.raises(SystemExit):
        demo.main([str(tmp_path / 'a.png'), str(tmp_path / 'b.png'), '--output', str(tmp_path / 'out'), '--gpu', 'cpu',
                   '--model', checkpoints['liif'], '--region', '12,12,4,4', '--precision', 'float32'])
    assert '1 written, 0 already there, 1 failed' in capsys.readouterr().out


def test_insisting_lifts_the_limits(upscale, monkeypatch):
    monkeypatch.setattr(sizes, 'MAX_OUTPUT', 5000)
    monkeypatch.setattr(images, 'MAX_PIXELS', 100)
    with pytest.raises(UserError, match='63x41 pixels, more than the limit of 100.*--insist'):
        upscale(PHOTO, '--scale', '1')
    with pytest.raises(UserError, match='--insist'):
        upscale(PHOTO[:2, :2], '--scale', '60')
    assert Image.open(upscale(PHOTO, '--scale', '2', '--insist')).size == (126, 82)


# Rendering.

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


@pytest.mark.parametrize('gain, chosen', [(1.4, 'float32'), (1.6, 'bf16')])
def test_the_precision_is_chosen_by_a_trial(tmp_path, checkpoints, monkeypatch, capsys, gain, chosen):
    class Pretended(pace.Pace):
        def __init__(self, renderer):
            self.encode = self.decode = 100 * (gain if renderer.precision == 'bf16' else 1)
    monkeypatch.setattr(pace, 'Pace', Pretended)
    Image.fromarray(PHOTO).save(tmp_path / 'in.png')
    demo.main([str(tmp_path / 'in.png'), '--model', checkpoints['liif'], '--gpu', 'cpu'])
    said = capsys.readouterr().out
    assert f'on cpu in {chosen}' in said
    seconds = 41 * 63 * 17 / 100 / (gain if chosen == 'bf16' else 1)
    assert f'this takes about {seconds / 60:.0f} min' in said
    assert np.array_equal(pixels(tmp_path / 'in_x4.png'),
                          reference(checkpoints['liif'], PHOTO, (164, 252), precision=chosen))


# What must survive, end to end.

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
    output = upscale(str(tmp_path / 'in.jpg'), '--scale', '2', '--quality', '100', name=name)
    expected = reference(checkpoints['liif'], upright, (126, 82))
    assert np.abs(pixels(output) - expected).mean() < (1.5 if name.lower().endswith(('.jpg', '.jpeg')) else 0.01)
    written = read_picture(output)
    assert written.icc == b'x' * 200 and np.allclose(written.dpi, 300, atol=0.1)


# Several files.

@pytest.fixture
def album(tmp_path):
    folder = tmp_path / 'album'
    (folder / 'sub').mkdir(parents=True)
    (folder / '.cache').mkdir()
    for i, name in enumerate(['a.png', 'b.jpg', 'sub/c.bmp', '.hidden.png', '.cache/d.png']):
        Image.fromarray(PHOTO[i:]).save(folder / name)
    (folder / 'notes.txt').write_text('not a picture')
    return folder


def run(checkpoints, *options):
    demo.main(['--model', checkpoints['liif'], '--gpu', 'cpu', '--precision', 'float32', '--scale', '2',
               *map(str, options)])


def tree(folder):
    return sorted(os.path.relpath(os.path.join(where, name), folder) for where, _, names in os.walk(folder)
                  for name in names)


def test_a_folder_is_mirrored_and_done_once(tmp_path, album, checkpoints, capsys):
    out = tmp_path / 'out'
    run(checkpoints, '--input', album, '--output', out)
    assert tree(out) == ['a.png', 'b.jpg', 'sub/c.png']
    assert Image.open(out / 'b.jpg').size == (126, 80)
    stamps = {name: os.stat(out / name).st_mtime_ns for name in tree(out)}
    assert '3 written, 0 already there, 0 failed' in capsys.readouterr().out
    run(checkpoints, '--input', album, '--output', out)
    assert '0 written, 3 already there' in capsys.readouterr().out
    assert stamps == {name: os.stat(out / name).st_mtime_ns for name in tree(out)}
    os.utime(out / 'b.jpg', (1, 1))  # older than its source
    Image.fromarray(PHOTO).save(out / 'a.png')  # of another size
    run(checkpoints, '--input', album, '--output', out)
    assert '2 written, 1 already there' in capsys.readouterr().out
    run(checkpoints, '--input', album, '--output', out, '--overwrite')
    assert '3 written' in capsys.readouterr().out


def test_names_that_are_not_utf8_or_long_do_not_stop_a_batch(tmp_path, checkpoints):
    folder, names = tmp_path / 'in', [b'caf\xe9.png', b'x' * 251 + b'.png', b'z.png']
    folder.mkdir()
    try:
        for name in names:
            with open(os.path.join(os.fsencode(folder), name), 'wb') as f:
                Image.fromarray(PHOTO[:9, :9]).save(f, 'PNG')
    except OSError:
        pytest.skip('this file system does not take such names')
    done = subprocess.run([sys.executable, 'demo.py', '--input', folder, '--model', checkpoints['liif'], '--scale', '2',
                           '--gpu', 'cpu', '--output', tmp_path / 'out'], cwd=ROOT, capture_output=True, text=True,
                          env={**ENVIRONMENT, 'PYTHONIOENCODING': 'utf-8:strict'})
    assert done.returncode == 0 and '3 written, 0 already there, 0 failed' in done.stdout, done.stderr
    assert sorted(os.listdir(os.fsencode(tmp_path / 'out'))) == sorted(names)


def test_the_output_folder_may_lie_in_the_input(album, checkpoints):
    for _ in range(2):
        run(checkpoints, '--input', album, '--output', album / 'large')
    assert tree(album / 'large') == ['a.png', 'b.jpg', 'sub/c.png']


def test_a_bad_file_does_not_stop_the_others(tmp_path, album, checkpoints, capsys):
    (album / 'aa.png').write_bytes((album / 'a.png').read_bytes()[:900])
    (album / 'ab.jpg').write_text('no picture')
    with pytest.raises(SystemExit) as stop:
        run(checkpoints, '--input', album, '--output', tmp_path / 'out')
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert '3 written, 0 already there, 2 failed' in printed.out
    assert printed.err.count('aa.png') == printed.err.count('ab.jpg') == 2  # at once, and at the end
    assert tree(tmp_path / 'out') == ['a.png', 'b.jpg', 'sub/c.png']


def test_patterns_and_several_files(tmp_path, album, checkpoints):
    run(checkpoints, '--input', album / '*.png', '--output', tmp_path / 'out')
    assert tree(tmp_path / 'out') == ['a.png']
    run(checkpoints, '--input', album / '**' / '*', '--output', tmp_path / 'deep')
    assert tree(tmp_path / 'deep') == ['a.png', 'b.jpg', 'c.png']
    run(checkpoints, '--input', album / 'a.png', album / 'sub', '--output', tmp_path / 'two')
    assert tree(tmp_path / 'two') == ['a.png', 'c.png']
    run(checkpoints, '--input', album / 'a.png', '--output', f'{tmp_path}/two/new/')
    assert tree(tmp_path / 'two' / 'new') == ['a.png']
    odd = album / 'x[1].png'  # a name, though it looks like a pattern
    Image.fromarray(PHOTO).save(odd)
    run(checkpoints, '--input', odd, '--output', tmp_path / 'odd.png')
    assert (tmp_path / 'odd.png').exists()


def test_without_an_output_a_new_name_is_found(tmp_path, checkpoints, capsys):
    for name in ('a.jpg', 'b.png'):
        Image.fromarray(PHOTO).save(tmp_path / name)
    for options, names in [([], ['a_x4.png', 'b_x4.png']), ([], ['a_x4-2.png', 'b_x4-2.png']),
                           (['--scale', '1.5'], ['a_x1.5.png', 'b_x1.5.png']),
                           (['--resolution', '50x9'], ['a_50x9.png', 'b_50x9.png'])]:
        before = {name: (tmp_path / name).read_bytes() for name in tree(tmp_path)}
        demo.main([str(tmp_path / 'a.jpg'), '--input', str(tmp_path / 'b.png'), '--model', checkpoints['liif'], '--gpu',
                   'cpu', '--precision', 'float32', *options])
        assert {*tree(tmp_path)} - {*before} == {*names}
        assert all((tmp_path / name).read_bytes() == data for name, data in before.items())
    assert capsys.readouterr().out.count('50x9 changes the aspect by 262%; --max-side 50 keeps it') == 2
    with pytest.raises(UserError, match='expected an output folder'):
        demo.main([str(tmp_path)])


def test_inputs_that_make_no_sense(tmp_path, album, checkpoints):
    (tmp_path / 'empty').mkdir()
    Image.fromarray(PHOTO).save(album / 'b.png')
    for inputs, output, message in [
            ([tmp_path / 'empty'], 'out', 'no image or video'), ([album / '*.xyz'], 'out', 'no image or video'),
            ([album / 'a.png', album / 'b.png'], album / 'b.jpg', 'found a file, expected a folder'),
            ([album], 'large.png', 'found the name of an image or video, expected a folder'),
            ([album / 'a.png', album / 'sub' / '..' / 'a.png'], album / '..' / 'album', 'would be overwritten'),
            ([album / 'a.png'], album / 'sub' / '..' / 'a.png', 'would be overwritten'),
            ([album, album / 'sub' / 'c.bmp', tmp_path / 'c.png'], 'out', None)]:
        if message:
            with pytest.raises(UserError, match=message):
                run(checkpoints, '--input', *inputs, '--output', tmp_path / output)
    Image.fromarray(PHOTO).save(album / 'a.bmp')
    with pytest.raises(UserError, match='a.bmp and .*a.png would both be written to .*a.png'):
        run(checkpoints, '--input', album, '--output', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


# Models and outputs that do not do.

@pytest.mark.parametrize('model, message', [
    ('encoder', 'has no decoder'), ('fixed', 'only pixels at x2'), ('cut', 'cut short'), ('text', 'not a checkpoint'),
    ('broken', 'NaN in float32')])
def test_unfit_checkpoints(tmp_path, upscale, model, message):
    with pytest.raises(UserError, match=message):
        upscale(PHOTO, '--scale', '3', model=model)
    assert os.listdir(tmp_path) == ['in.png']


def test_a_fixed_scale_model_at_its_scale(upscale):
    assert Image.open(upscale(PHOTO, '--scale', '2', model='fixed')).size == (126, 82)


def test_outputs_that_cannot_be_written(tmp_path, upscale):
    (tmp_path / 'file').write_text('')
    for name, message in [('file/x.png', 'file'), ('x.xyz', 'xyz'), ('x.mp4', 'mp4'), ('x.webp', '16383')]:
        with pytest.raises(UserError, match=message):
            upscale(PHOTO, '--resolution', '2,17000', name=name)
    assert sorted(os.listdir(tmp_path)) == ['file', 'in.png']
    with pytest.raises(UserError, match='/dev/full|/proc|cannot be written|Read-only|Permission|No such file'):
        upscale(PHOTO, '--scale', '2', name='/proc/1/none/x.png')


@pytest.mark.parametrize('error', [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_one_line(tmp_path, upscale, monkeypatch, error):
    def refuse(self, image):
        raise error
    monkeypatch.setattr(Renderer, 'open', refuse)
    with pytest.raises(UserError, match='in.png: not enough memory.*tile 128'):
        upscale(PHOTO, '--scale', '2')


def test_every_option_is_documented(capsys):
    with pytest.raises(SystemExit):
        demo.main(['--help'])
    options = set(re.findall(r'--[a-z][a-z-]+', capsys.readouterr().out)) - {'--help'}
    with open(os.path.join(ROOT, 'docs', 'demo.md')) as f:
        documented = set(re.findall(r'--[a-z][a-z-]+', f.read()))
    assert options == documented and len(options) > 15


# Which weights.

def test_each_file_of_a_folder_gets_the_weights_for_its_kind(tmp_path, monkeypatch, capsys):
    from tests.rendering.test_api import stand_in_weights
    weights, folder = stand_in_weights(tmp_path, monkeypatch), tmp_path / 'in'
    folder.mkdir()
    for name, kind in (('a.png', 'JPEG'), ('b.png', 'PNG'), ('c.png', 'JPEG')):  # the content tells
        Image.fromarray(PHOTO).save(folder / name, kind)
    arguments = [str(folder), '--scale', '2', '--gpu', 'cpu', '--precision', 'float32', '--output']
    demo.main([*arguments, str(tmp_path / 'out')])
    said = capsys.readouterr().err
    assert 'the weights photo (' in said and 'for JPEG images' in said and 'the weights clean (' in said
    assert said.count('\n') == 2
    photo = 'edsr-baseline-liif-photo'
    for name, model in (('a.png', photo), ('b.png', 'mine'), ('c.png', photo)):
        source = np.array(Image.open(folder / name))
        wanted = reference(os.path.join(weights, model, 'model.pth'), source, (82, 126))
        assert np.array_equal(pixels(tmp_path / 'out' / name), wanted)
    demo.main([*arguments, str(tmp_path / 'named'), '--model', 'photo'])
    assert not capsys.readouterr().err
    wanted = reference(os.path.join(weights, photo, 'model.pth'), PHOTO, (82, 126))
    assert np.array_equal(pixels(tmp_path / 'named' / 'b.png'), wanted)


@pytest.mark.parametrize('arguments, part', [
    (['--output', 'out/x.xyz'], "found '.xyz', wanted a name that ends in"),
    (['--model', ''], '--model: found an empty name'),
    (['--decode', 'fast'], 'invalid choice')])
def test_mistakes_are_found_before_any_work(arguments, part, tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / 'a.png')
    done = subprocess.run([sys.executable, os.path.join(ROOT, 'demo.py'), 'a.png', *arguments], cwd=tmp_path,
                          env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2 and part in done.stderr and done.stderr.count('\n') == 1, done.stderr
    assert 'minus' not in done.stderr and os.listdir(tmp_path) == ['a.png']
