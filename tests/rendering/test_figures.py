"""The scripts that make figures and animations: what is drawn is what was rendered, at the sizes asked for."""
import os
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.imresize import imresize
from engine.rendering.api import load_renderer, to_numpy, to_tensor
from engine.rendering.figures import View, baseline, ease
from engine.rendering.renderer import Renderer
from tests.common import small_model
from tests.conftest import ROOT
from tests.programs import program
from tests.rendering.test_api import save_small
from utils import UserError, calc_psnr


sys.path.append(os.path.join(ROOT, 'scripts'))
import change_resolution  # noqa: E402 (where they are found comes first)
import compare  # noqa: E402
import draw_jpegs  # noqa: E402
import zoom  # noqa: E402


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A folder with model.pth and photo.png: 60x42, smooth, with a busy spot at the lower right."""
    folder = tmp_path_factory.mktemp('pictures')
    save_small(folder / 'model.pth')
    rng = np.random.default_rng(4)
    pixels = imresize(rng.integers(100, 140, (7, 10, 3), dtype=np.uint8), (42, 60))
    pixels[26:40, 40:58] = rng.integers(0, 256, (14, 18, 3))
    Image.fromarray(pixels).save(folder / 'photo.png')
    return folder


def run(script, files, output, *args):
    script.main([str(files / 'photo.png'), '--model', str(files / 'model.pth'), '--gpu', 'cpu', '--output', str(output),
                 '--precision', 'float32', *map(str, args)])


def frames_of(folder):
    paths = sorted(os.listdir(folder))
    assert paths == [f'{i:05d}.png' for i in range(len(paths))]
    return [np.asarray(Image.open(os.path.join(folder, path)).convert('RGB')) for path in paths]


# What is shown.

def test_a_view_is_bicubic_when_it_shrinks_and_liif_when_it_enlarges():
    img = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    renderer = Renderer(small_model())
    view, scene, plain = View(renderer, img), renderer.open(img), baseline('bicubic').open(img)
    assert (view.render((11, 16)) == to_numpy(plain.render((11, 16), dtype='uint8'))).all()
    assert (view.render((60, 90)) == to_numpy(scene.render((60, 90), dtype='uint8'))).all()
    region = (3, 2.5, 8, 8)
    assert (view.render((40, 40), region) == to_numpy(scene.render((40, 40), region, 'uint8'))).all()
    between = view.render((25, 38)).astype(float)
    ends = [to_numpy(s.render((25, 38))) * 255 for s in (scene, plain)]
    assert abs(between - (ends[0] + ends[1]) / 2).max() <= 1


def test_easing_starts_and_ends_at_rest():
    t = np.array([ease(x) for x in np.linspace(0, 1, 1001)])
    speed = np.diff(t)
    assert t[0] == 0 and abs(t[-1] - 1) < 1e-12 and (speed > 0).all() and abs(np.diff(speed)).max() < 1e-5
    assert speed[0] < 0.01 * speed[500] and speed[-1] < 0.01 * speed[500]


# compare.py

def test_the_figure_and_its_psnr(files, tmp_path, capsys):
    out = tmp_path / 'figure.png'
    run(compare, files, out, '--scale', 2.5, '--width', 600)
    truth = np.asarray(Image.open(files / 'photo.png'))[:40, :60]
    low = to_tensor(imresize(truth, (16, 24)))
    renderer = load_renderer(str(files / 'model.pth'), gpu='cpu')
    said = dict(re.findall(r'^  (\S+) +([\d.]+) dB$', capsys.readouterr().out, re.M))
    name = os.path.basename(files)  # the folder of model.pth
    for name, scene in (('bicubic', baseline('bicubic')), ('nearest', baseline('nearest')), (name, renderer)):
        psnr = calc_psnr(scene.open(low).render((40, 60))[None], to_tensor(truth)[None]).item()
        assert said[name] == f'{psnr:.2f}'
    assert len(said) == 4
    figure = np.asarray(Image.open(out).convert('RGB')).astype(int)
    assert figure.shape[1] == 600 and 250 < figure.shape[0] < 450
    # The ground truth's inset is the busy spot of the image, its pixels repeated.
    x, y, w, h = compare.busiest(low)
    assert x > 10 and y > 5
    height, width = compare.cell_size(600, w / h)
    step = compare.gap(600)
    below = figure[step + height:, 600 - step - width:600 - step]
    first = np.flatnonzero((below < 250).all(2).mean(1) > 0.9)[0]  # where the second row of panels begins
    panel = below[first:first + height]
    inset = Image.fromarray(truth[round(y * 2.5):round(y * 2.5) + round(h * 2.5),
                                  round(x * 2.5):round(x * 2.5) + round(w * 2.5)])
    assert abs(panel - np.asarray(inset.resize((width, height), Image.NEAREST)).astype(int)).mean() < 20


def test_the_inset_is_marked_in_its_place(files, tmp_path):
    low = torch.full((3, 30, 40), 0.5)
    image = np.asarray(compare.marked(low, (10, 6, 8, 6), (300, 400))).astype(int)
    red = (image[..., 0] - image[..., 1:].max(-1)) > 100
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    assert abs(rows[0] - 60) <= 3 and abs(rows[-1] - 120) <= 3
    assert abs(columns[0] - 100) <= 3 and abs(columns[-1] - 180) <= 3
    assert not red[65:115, 105:175].any()


def test_a_figure_without_ground_truth(files, tmp_path, capsys):
    out = tmp_path / 'figure.jpg'
    run(compare, files, out, '--input-only', '--scale', 0.9, '--region', '10,5,12.5,8', '--width', 400)
    assert Image.open(out).size[0] == 400 and 'dB' not in capsys.readouterr().out


# zoom.py

@pytest.mark.parametrize('centre', [(30, 21), (0, 0), (60, 42), (50, 5.5)])
def test_the_path_of_a_zoom(centre):
    path = zoom.zoom_path((42, 60), (36, 64), centre, 30)
    regions = np.array([path(t) for t in np.linspace(0, 1, 50)])
    x, y, w, h = regions.T
    assert (x >= -1e-9).all() and (y >= -1e-9).all() and (x + w <= 60 + 1e-9).all() and (y + h <= 42 + 1e-9).all()
    assert np.allclose(w / h, 64 / 36) and np.allclose(w[0], 60) and np.allclose(w[0] / w[-1], 30)
    assert np.allclose(w[1:] / w[:-1], w[1] / w[0])  # an even speed
    still = (x[0] * w[-1] - x[-1] * w[0]) / (w[-1] - w[0]) if x[0] != x[-1] else x[0]  # where x + u * w stays
    u = (still - x) / w
    assert np.allclose(u, u[0], atol=1e-6)
    assert x[-1] - 1e-9 <= centre[0] <= x[-1] + w[-1] + 1e-9 and y[-1] - 1e-9 <= centre[1] <= y[-1] + h[-1] + 1e-9


def test_zoom_frames(files, tmp_path):
    out = tmp_path / 'frames'
    run(zoom, files, out, '--size', '21,30', '--seconds', 1, '--fps', 5, '--factor', 50, '--centre', '45,30')
    frames = frames_of(out)
    assert len(frames) == 5 and {frame.shape for frame in frames} == {(21, 30, 3)}
    scene = load_renderer(str(files / 'model.pth'), gpu='cpu').open(to_tensor(str(files / 'photo.png')))
    wanted = to_numpy(scene.render((21, 30), (45 - 0.6, 30 - 0.42, 1.2, 0.84), 'uint8'))
    assert abs(frames[-1].astype(int) - wanted).max() <= 1
    with pytest.raises(UserError, match='exists already'):
        run(zoom, files, out, '--size', '21,30', '--seconds', 1, '--fps', 5)


def test_bicubic_and_liif_side_by_side_and_back(files, tmp_path):
    out = tmp_path / 'frames'
    run(zoom, files, out, '--size', '60,81', '--seconds', 1, '--fps', 6, '--factor', 4, '--side-by-side', '--back')
    frames = frames_of(out)
    assert len(frames) == 6
    assert all((frames[i] == frames[-i]).all() for i in range(1, 6))
    img = to_tensor(str(files / 'photo.png'))
    region = zoom.zoom_path((42, 60), (60, 40.5), (30, 21), 4)(1)
    assert abs(region[0] + region[2] / 2 - 30) < 1e-9 and abs(region[2] / region[3] - 40.5 / 60) < 1e-9
    left, right = [to_numpy(scene.render((60, n), region, 'uint8')).astype(int) for scene, n in (
        (baseline('bicubic').open(img), 40), (load_renderer(str(files / 'model.pth'), gpu='cpu').open(img), 41))]
    found = frames[3].astype(int)
    assert abs(found[30:, :40] - left[30:]).max() <= 1 and abs(found[30:, 41:] - right[30:, 1:]).max() <= 1
    assert (found[30:, 40] == 255).all()


@pytest.mark.parametrize('suffix', ['.gif', '.mp4'])
def test_animations_read_back(files, tmp_path, suffix):
    pytest.importorskip('av', reason='av is not installed (requirements-optional.txt)')
    from engine.rendering.video import read_video
    out = tmp_path / ('zoom' + suffix)
    run(zoom, files, out, '--size', '32,48', '--seconds', 1, '--fps', 5, '--factor', 8)
    video = read_video(str(out))
    assert video.size == (32, 48) and abs(video.rate - 5) < 0.1 and len(list(video.frames())) == 5


# change_resolution.py

def test_growing_sizes(files, tmp_path):
    out = tmp_path / 'grow'
    run(change_resolution, files, out, '--start', 10, '--end', 100, '--input-size', 20, '--seconds', 1.2, '--fps', 10)
    frames = frames_of(out)
    assert len(frames) == 12 and {frame.shape for frame in frames} == {(70, 100, 3)}
    assert all((frame == frames[6]).all() for frame in frames[6:])  # the last is held for half a second
    ground = np.array([0xec, 0xee, 0xf1])
    # The middle row of each frame, below the labels: how wide the image is.
    widths = [int((frame[35] != ground).any(-1).sum()) for frame in frames[:7]]
    assert widths[0] == 10 and widths[-1] == 100 and widths == sorted(widths) and len(set(widths)) == 7
    low = change_resolution.reduce(to_tensor(str(files / 'photo.png')), 20)
    assert low.shape == (3, 14, 20)
    wanted = load_renderer(str(files / 'model.pth'), gpu='cpu').open(low).render((70, 100), dtype='uint8')
    assert (frames[-1][30:] == to_numpy(wanted)[30:]).all()


# Mistakes.

@pytest.mark.parametrize('script, args, words', [
    (compare, ['--scale', 0.5], '--scale: found 0.5'),
    (compare, ['--region', '50,0,20,5', '--input-only'], '^--region: found 50,0,20,5, expected .*inside the image'),
    (compare, ['--scale', 1e6, '--input-only'], 'at most 100 million'),
    (compare, ['--scale', 100], 'too small'),
    (zoom, ['--centre', '70,3'], 'inside the image of 60x42'),
    (zoom, ['--centre', 'nan,3'], 'inside the image of 60x42'),
    (change_resolution, ['--input-size', 61], '1 to 60'),
    (change_resolution, ['--end', 1_000_000], 'at most 100 million'),
])
def test_mistakes_are_one_line_and_leave_nothing(files, tmp_path, script, args, words):
    with pytest.raises(UserError, match=words) as error:
        run(script, files, tmp_path / ('out.png' if script is compare else 'out'), *args)
    assert '\n' not in str(error.value) and not os.listdir(tmp_path)


@pytest.mark.parametrize('script, args, words', [
    (compare, ['--region', 'here'], "'here', expected x,y,width,height"),
    (zoom, ['--size', '0,5'], "'0,5', expected H,W"),
    (compare, ['--scale', 'nan'], 'nan, expected a number above 0 and at most 1e+09'),
    (compare, ['--width', '299'], '299, expected a whole number from 300 to 20000'),
    (zoom, ['--factor', '1'], '1, expected a number above 1 and at most 10000'),
    (zoom, ['--seconds=-1'], '-1, expected a number above 0 and at most 3600'),
    (change_resolution, ['--end', '0'], '0, expected a whole number of at least 1'),
])
def test_wrong_arguments_are_one_line(files, tmp_path, script, args, words, capsys):
    with pytest.raises(SystemExit):
        run(script, files, tmp_path / 'out', *args)
    said = capsys.readouterr().err
    assert f'{args[0].split("=")[0]}: found {words}' in said and said.count('\n') == 1 and not os.listdir(tmp_path)


@pytest.mark.parametrize('script', [compare, zoom, change_resolution])
def test_outputs_that_cannot_be_written(files, tmp_path, script):
    few = ['--width', 300] if script is compare else ['--seconds', 0.2, '--fps', 10]
    few += ['--size', '8,8'] if script is zoom else []
    for output in (tmp_path / 'missing' / 'out.gif', tmp_path / 'out.what'):
        if script is compare:
            output = output.with_suffix('.png' if output.suffix == '.gif' else '.what')
        with pytest.raises(UserError, match='written|expected a name'):
            run(script, files, output, *few)
    assert not os.listdir(tmp_path)


def test_an_error_half_way_leaves_no_frames(files, tmp_path, monkeypatch):
    def broken(t):
        if t > 0.5:
            raise UserError('pretended')
        return t
    monkeypatch.setattr(zoom, 'ease', broken)
    for name in ('frames', 'zoom.gif'):
        with pytest.raises(UserError, match='pretended|one more package'):
            run(zoom, files, tmp_path / name, '--size', '8,8', '--seconds', 1, '--fps', 5)
    assert not os.listdir(tmp_path)


def test_programs_end_with_one_line(files, tmp_path):
    done = program('scripts/zoom.py', tmp_path / 'none.png', '--output', tmp_path / 'a.gif')
    assert done.returncode == 2 and re.fullmatch(r'error: .*none\.png does not exist.*\n', done.stderr)


def test_rows_of_jpegs(files, tmp_path, monkeypatch):
    monkeypatch.setattr(draw_jpegs, 'PHOTOS', {'mine': ('photo.png', (15, 11))})
    monkeypatch.setattr(draw_jpegs, 'SIDE', 48)
    model = str(files / 'model.pth')
    arguments = ['--photos', str(files), '--output', str(tmp_path), '--clean', model, '--photo', model]
    draw_jpegs.main(arguments)
    assert sorted(os.listdir(tmp_path)) == ['jpeg-mine-x3.png', 'jpeg-mine-x4.png']
    small = Image.fromarray(imresize(np.asarray(Image.open(files / 'photo.png')), (21, 30)))
    small.save(tmp_path / 'small.jpg', quality=75)
    low = to_tensor(str(tmp_path / 'small.jpg'))
    region = (15 - 6, 11 - 6, 12, 12)
    figure = np.asarray(Image.open(tmp_path / 'jpeg-mine-x4.png'))
    renderers = baseline('nearest'), baseline('bicubic'), load_renderer(model), load_renderer(model)
    for i, renderer in enumerate(renderers):
        wanted = to_numpy(renderer.open(low).render((48, 48), region, 'uint8'))
        assert np.array_equal(figure[8:56, 8 + 56 * i:56 + 56 * i], wanted), i
    with pytest.raises(UserError, match='sample_photos.py'):
        draw_jpegs.main([*arguments, '--photos', str(tmp_path)])
