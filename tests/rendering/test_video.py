"""demo.py on videos and animated GIFs: sizes, times, colours, sound."""
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageSequence

from engine.rendering import jobs
from engine.rendering import renderer as render
from engine.rendering import video as videos
from engine.rendering.renderer import Renderer
from tests.common import small_model
from tests.rendering.test_demo import PHOTO, checkpoints, pixels, reference, registered, upscale  # noqa: F401 (fixtures)
from utils import UserError


def gif(path, times, size=(24, 31)):
    frames = [Image.fromarray(np.roll(PHOTO, 9 * i, 1)[:size[0], :size[1]]).quantize(128) for i in range(len(times))]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0)
    return str(path)


@pytest.mark.parametrize('times', [[50, 200, 70, 500], [100, 100, 100]])
def test_gif_frames_keep_their_times(tmp_path, upscale, checkpoints, times):
    pytest.importorskip('imageio_ffmpeg')
    source = gif(tmp_path / 'in.gif', times)
    with Image.open(upscale(source, '--scale', '1.5', name='out.gif')) as found:
        assert [frame.info['duration'] for frame in ImageSequence.Iterator(found)] == times and found.size == (47, 36)
    first = np.array(Image.open(source).convert('RGB'))
    found = pixels(upscale(source, '--scale', '1.5', name='still.png'))  # the first frame
    assert np.array_equal(found, reference(checkpoints['liif'], first, (36, 47)))
    assert np.abs(np.asarray(Image.open(tmp_path / 'out.gif').convert('RGB')).astype(int) - found).mean() < 3


@pytest.fixture(scope='session')
def clip(tmp_path_factory):
    """A video of 12 frames, 32x24, at 30000/1001 a second, with sound; and how to ask ffmpeg."""
    exe = pytest.importorskip('imageio_ffmpeg').get_ffmpeg_exe()
    path = str(tmp_path_factory.mktemp('clip') / 'in.mp4')
    subprocess.run([exe, '-loglevel', 'error', '-f', 'lavfi', '-i', 'testsrc=s=32x24:r=30000/1001:d=0.4', '-f', 'lavfi',
                    '-i', 'sine=440:d=0.4', '-pix_fmt', 'yuv420p', '-shortest', path], check=True)

    def ask(video):
        done = subprocess.run([exe, '-hide_banner', '-i', video, '-map', '0:v', '-f', 'null', '-'], capture_output=True,
                              text=True)
        return done.stderr.split('Output #0')[0], int(done.stderr.rsplit('frame=', 1)[1].split()[0])
    return path, ask


@pytest.mark.parametrize('name, size', [('out.mp4', (36, 48)), ('out.mp4', (37, 51)), ('out.webm', (37, 51)),
                                        ('out.mkv', (36, 48)), ('out.gif', (37, 51))])
def test_video_keeps_size_rate_and_sound(tmp_path, upscale, clip, name, size, capsys):
    path, ask = clip
    output = upscale(path, '--resolution', f'{size[0]},{size[1]}', name=name)
    text, frames = ask(output)
    assert f' {size[1]}x{size[0]}' in text and frames == ask(path)[1]
    if not name.endswith('.gif'):
        assert '29.97 fps' in text and 'Audio:' in text
    printed = capsys.readouterr().out
    assert f'x {frames} frames' in printed and ('4:4:4' in printed) == (name == 'out.mp4' and size == (37, 51))
    assert sorted(os.listdir(tmp_path)) == [name]


def test_video_colours_are_those_of_the_picture(tmp_path, upscale, clip):
    video = videos
    frames = [np.repeat(np.repeat(np.uint8([[[200, 40, 30], [20, 180, 60]], [[30, 50, 190], [120, 120, 120]]]), 24, 0),
                        24, 1)] * 3
    for name in ('a.mp4', 'b.webm'):
        video.write_video(str(tmp_path / name), frames, (48, 48), 25)
        again = list(video.read_video(str(tmp_path / name)).frames())
        middle = np.s_[8:48:24, 8:48:24]
        assert len(again) == 3 and np.abs(again[1][middle].astype(int) - frames[1][middle]).max() <= 4


def test_still_frames_are_rendered_once(tmp_path, monkeypatch):
    count = []
    monkeypatch.setattr(Renderer, 'open', lambda self, img: count.append(1) or render.Scene(self, img))
    frames = [PHOTO[:9, :9]] * 4 + [PHOTO[1:10, :9]]
    video = videos.Video((9, 9), 25, 5, lambda: iter(frames), 4)
    assert len(list(jobs.render_frames(video, Renderer(small_model()), (18, 18), None))) == 5 and len(count) == 2


def test_bad_videos(tmp_path, upscale, clip, monkeypatch):
    path, _ = clip
    bad = str(tmp_path / 'bad.mp4')
    for data in (b'', b'no video' * 50, open(path, 'rb').read()[:3000]):
        with open(bad, 'wb') as f:
            f.write(data)
        with pytest.raises(UserError, match='bad.mp4|no frame') as error:
            upscale(bad, '--scale', '2', name='out.mp4')
        assert '\n' not in str(error.value)
    (tmp_path / 'bad.gif').write_bytes(b'GIF89a' + b'\1' * 30)
    for source, options, name, message in [
            (str(tmp_path / 'bad.gif'), ['--scale', '2'], 'out.gif', 'bad.gif'),
            (path, ['--scale', '2'], 'out.png', "found '.png', wanted the name of a video"),
            (path, ['--scale', '2', '--region', '0,0,99,9'], 'out.mp4', 'inside the image of 32x24'),
            (path, ['--resolution', '2,17000'], 'out.mp4', 'cannot be written as a video'),
            (str(tmp_path / 'none.mp4'), ['--scale', '2'], 'out.mp4', 'does not exist')]:
        with pytest.raises(UserError, match=message):
            upscale(source, *options, name=name)
    monkeypatch.setitem(sys.modules, 'imageio_ffmpeg', None)
    with pytest.raises(UserError, match='pip install imageio-ffmpeg'):
        upscale(path, '--scale', '2', name='out.mp4')
    assert sorted(os.listdir(tmp_path)) == ['bad.gif', 'bad.mp4']
