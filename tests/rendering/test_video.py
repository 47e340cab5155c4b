"""demo.py on videos and animated GIFs: sizes, times, colours, sound."""
import os
import shutil
import struct
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, ImageSequence

from engine.rendering import jobs
from engine.rendering import renderer as render
from engine.rendering import video as videos
from engine.rendering.renderer import Renderer
from tests.common import small_model
from tests.rendering.common import PHOTO, pixels, reference
from utils import UserError


av = pytest.importorskip('av')


def gif(path, times, size=(24, 31)):
    frames = [Image.fromarray(np.roll(PHOTO, 9 * i, 1)[:size[0], :size[1]]).quantize(128) for i in range(len(times))]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0)
    return str(path)


@pytest.mark.parametrize('times', [[50, 200, 70, 500], [100, 100, 100]])
def test_gif_frames_keep_their_times(tmp_path, upscale, checkpoints, times):
    source = gif(tmp_path / 'in.gif', times)
    with Image.open(upscale(source, '--scale', '1.5', name='out.gif')) as found:
        assert [frame.info['duration'] for frame in ImageSequence.Iterator(found)] == times and found.size == (47, 36)
    first = np.array(Image.open(source).convert('RGB'))
    found = pixels(upscale(source, '--scale', '1.5', name='still.png'))  # the first frame
    assert np.array_equal(found, reference(checkpoints['liif'], first, (36, 47)))
    assert np.abs(np.asarray(Image.open(tmp_path / 'out.gif').convert('RGB')).astype(int) - found).mean() < 3


def write_clip(path, pixels, times, tick, audio=False, pix_fmt='yuv420p'):
    """A clip with frames at the given times, written by PyAV alone; audio: a tone in AAC."""
    with av.open(str(path), 'w') as output:
        stream = output.add_stream('libx264', rate=30, options={'crf': '10'})
        stream.height, stream.width, stream.pix_fmt = *pixels[0].shape[:2], pix_fmt
        stream.codec_context.time_base = tick
        sound = output.add_stream('aac', rate=44100, layout='mono') if audio else None
        for image, time in zip(pixels, times):
            frame = av.VideoFrame.from_ndarray(image, format='rgb48le' if image.dtype == np.uint16 else 'rgb24')
            frame.pts, frame.time_base = time, tick
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if audio:
            wave = np.sin(np.arange(20_000) * 0.06).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(wave[None], format='fltp', layout='mono')
            frame.sample_rate, frame.pts = 44100, 0
            output.mux(sound.encode(frame))
            output.mux(sound.encode(None))
    return str(path)


def times_of(path):
    with av.open(path) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def audio_of(path):
    with av.open(path) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def shifting(count, size=(24, 32)):
    return [np.ascontiguousarray(np.roll(PHOTO, 5 * i, 1)[:size[0], :size[1]]) for i in range(count)]


@pytest.fixture(scope='session')
def clip(tmp_path_factory):
    """A video of 12 frames, 32x24, at 30000/1001 frames per second, with sound."""
    path = tmp_path_factory.mktemp('clip') / 'in.mp4'
    return write_clip(path, shifting(12), [1001 * i for i in range(12)], Fraction(1, 30000), audio=True)


@pytest.mark.parametrize('name, size', [('out.mp4', (36, 48)), ('out.mp4', (37, 51)), ('out.webm', (37, 51)),
                                        ('out.mkv', (36, 48)), ('out.mov', (36, 48)), ('out.gif', (37, 51))])
def test_video_keeps_size_times_and_sound(tmp_path, upscale, clip, name, size, capsys):
    output = upscale(clip, '--resolution', f'{size[0]},{size[1]}', name=name)
    found, wanted = times_of(output), times_of(clip)
    assert len(found) == len(wanted) == 12
    if name.endswith(('.mp4', '.mov')):
        assert found == wanted
    else:  # Matroska counts milliseconds and starts at the sound's first sample, GIF counts hundredths of a second
        assert max(abs(a - found[0] - b) for a, b in zip(found, wanted)) <= (0.005 if name == 'out.gif' else 0.001)
    with av.open(output) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == size
        assert name == 'out.gif' or stream.average_rate == Fraction(30000, 1001) or name in ('out.mkv', 'out.webm')
    if name.endswith(('.mp4', '.mov', '.mkv')):
        assert audio_of(output) == audio_of(clip)
    elif name == 'out.webm':
        with av.open(output) as container:
            assert container.streams.audio[0].codec_context.codec.canonical_name == 'opus'
        assert len(audio_of(output)) > 15
    printed = capsys.readouterr().out
    assert 'x 12 frames' in printed and ('4:4:4' in printed) == (name == 'out.mp4' and size == (37, 51))
    assert sorted(os.listdir(tmp_path)) == [name]


def test_times_of_a_variable_rate_are_exact(tmp_path, upscale):
    times = [0, 400, 401, 2500, 2600, 9000, 9001]  # of 1/12800 s
    path = write_clip(tmp_path / 'in.mp4', shifting(7), times, Fraction(1, 12800))
    assert times_of(path) == [Fraction(time, 12800) for time in times]
    assert times_of(upscale(path, '--scale', '2', name='out.mp4')) == times_of(path)


def test_ten_bits_are_kept(tmp_path, upscale, capsys):
    ramp = np.broadcast_to(np.linspace(0, 65535, 64).astype(np.uint16)[None, :, None], (24, 64, 3))
    path = write_clip(tmp_path / 'in.mp4', [np.ascontiguousarray(ramp)] * 3, range(3), Fraction(1, 10),
                      pix_fmt='yuv420p10le')
    source = [pixels for pixels, _ in videos.read_video(path).frames()]
    assert source[0].dtype == np.uint16 and np.abs(source[0].astype(int) - ramp).max() < 700
    output = upscale(path, '--scale', '2', name='out.mp4')
    assert 'stored with 10' in capsys.readouterr().out
    with av.open(output) as container:
        assert container.streams.video[0].codec_context.pix_fmt == 'yuv420p10le'
    video = videos.read_video(output)
    assert video.deep and video.size == (48, 128)
    upscale(path, '--scale', '2', name='out.webm')
    assert not videos.read_video(str(tmp_path / 'out.webm')).deep and '8 bits' in capsys.readouterr().out


def test_a_turned_clip_is_read_upright(tmp_path, clip):
    """Telephones store turned frames and a matrix that turns them back."""
    data = open(clip, 'rb').read()
    one = 0x10000
    plain, turned = (struct.pack('>9i', *matrix, 0, 0, 0x40000000)
                     for matrix in ((one, 0, 0, 0, one, 0), (0, one, 0, -one, 0, 0)))
    at = data.index(plain, data.index(b'tkhd'))
    (tmp_path / 'turned.mp4').write_bytes(data[:at] + turned + data[at + 36:])
    upright, video = videos.read_video(clip), videos.read_video(str(tmp_path / 'turned.mp4'))
    assert video.size == (32, 24)
    for (a, _), (b, _) in zip(upright.frames(), video.frames()):
        assert np.array_equal(np.rot90(a, -1), b)  # clockwise, as the matrix says


def test_video_colours_are_those_of_the_image(tmp_path):
    video = videos
    frames = [np.repeat(np.repeat(np.uint8([[[200, 40, 30], [20, 180, 60]], [[30, 50, 190], [120, 120, 120]]]), 24, 0),
                        24, 1)] * 3
    for name in ('a.mp4', 'b.webm'):
        video.write_video(str(tmp_path / name), zip(frames, range(3)), (48, 48), Fraction(1, 25))
        again = [pixels for pixels, _ in video.read_video(str(tmp_path / name)).frames()]
        middle = np.s_[8:48:24, 8:48:24]
        assert len(again) == 3 and np.abs(again[1][middle].astype(int) - frames[1][middle]).max() <= 4


def test_names_that_are_not_utf8(tmp_path, upscale, clip):
    path = os.path.join(os.fsencode(tmp_path), b'caf\xe9.mp4')
    try:
        shutil.copy(clip, path)
    except OSError:
        pytest.skip('this file system takes UTF-8 names only')
    output = upscale(os.fsdecode(path), '--scale', '2', name=os.fsdecode(b'larger caf\xe9.mp4'))
    assert len(times_of(output)) == 12


def test_still_frames_are_rendered_once(tmp_path, monkeypatch):
    count = []
    monkeypatch.setattr(Renderer, 'open', lambda self, img: count.append(1) or render.Scene(self, img))
    frames = [PHOTO[:9, :9]] * 4 + [PHOTO[1:10, :9]]
    video = videos.Video((9, 9), Fraction(1, 25), 25, 5, lambda: zip(frames, range(5)))
    assert len(list(jobs.render_frames(video, Renderer(small_model()), (18, 18), None))) == 5 and len(count) == 2


def test_bad_videos(tmp_path, upscale, clip, monkeypatch):
    path, bad = clip, str(tmp_path / 'bad.mp4')
    for data in (b'', b'no video' * 50, open(path, 'rb').read()[:3000]):
        with open(bad, 'wb') as f:
            f.write(data)
        with pytest.raises(UserError, match='bad.mp4|no frame') as error:
            upscale(bad, '--scale', '2', name='out.mp4')
        assert '\n' not in str(error.value)
    (tmp_path / 'bad.gif').write_bytes(b'GIF89a' + b'\1' * 30)
    for source, options, name, message in [
            (str(tmp_path / 'bad.gif'), ['--scale', '2'], 'out.gif', 'bad.gif'),
            (path, ['--scale', '2'], 'out.png', "found '.png', expected the name of a video"),
            (path, ['--scale', '2', '--region', '0,0,99,9'], 'out.mp4', 'inside the image of 32x24'),
            (path, ['--resolution', '2,17000'], 'out.mp4', 'cannot be written as a video'),
            (str(tmp_path / 'none.mp4'), ['--scale', '2'], 'out.mp4', 'does not exist')]:
        with pytest.raises(UserError, match=message):
            upscale(source, *options, name=name)
    monkeypatch.setitem(sys.modules, 'av', None)
    with pytest.raises(UserError, match='pip install av'):
        upscale(path, '--scale', '2', name='out.mp4')
    assert sorted(os.listdir(tmp_path)) == ['bad.gif', 'bad.mp4']
