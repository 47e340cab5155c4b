"""Video files, frame by frame, through the ffmpeg that imageio's plug-in (the package imageio-ffmpeg) brings.

Frames keep a constant rate, which is what audio stays in step with. GIF is read by Pillow, which knows the time of
every frame; its rate is the finest that all of them need.
"""
import contextlib
import functools
import math
import os
import subprocess
import tempfile
from fractions import Fraction
from typing import Callable, NamedTuple, Optional

import numpy as np
from PIL import Image, ImageSequence

from utils import UserError


EXACT = 'flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp'  # ffmpeg's colours, without its short cuts
WRITES = ('.mp4', '.m4v', '.mov', '.mkv', '.webm', '.gif')
READS = (*WRITES, '.avi', '.mpg', '.mpeg', '.ts', '.wmv')


class Video(NamedTuple):
    """size: (h, w); rate: frames a second, a Fraction; count: how many frames, about; frames: yields them, uint8
    (h, w, 3), from the first each time it is called; last: for a GIF, whose frames are repeated to last as long as
    they do, how long the last one is shown, in 1/100 s."""
    size: tuple
    rate: Fraction
    count: int
    frames: Callable
    last: Optional[int] = None


def is_video(path):
    return os.path.splitext(path)[1].lower() in READS


def read_video(path):
    """The Video in a file. Raises UserError, naming it, for what is missing, damaged or no video."""
    if not os.path.isfile(path):
        raise UserError(f'{path} does not exist: check the name')
    if path.lower().endswith('.gif'):
        return _read_gif(path)
    ffmpeg = _ffmpeg()
    try:
        with contextlib.closing(ffmpeg.read_frames(_url(path))) as reader:
            meta = next(reader)
    except (OSError, RuntimeError, IndexError, AttributeError, ValueError) as error:  # its parser's ways to fail
        raise UserError(f'{path} cannot be read as a video: it seems damaged, or is of an unknown kind') from error
    rate = _exact_rate(meta['fps'])
    size = meta['size'][::-1]
    # A video that does not say which colours it means is taken at its size's word.
    unsaid = meta['pix_fmt'].startswith('yuv') and 'bt' not in meta['pix_fmt'] and size[0] >= 720
    options = ['-r', str(rate), '-vf', f'scale=in_color_matrix={"bt709" if unsaid else "auto"}:{EXACT}']
    count = max(1, round(meta['duration'] * rate))
    return Video(size, rate, count, functools.partial(_frames, path, size, options))


def write_video(path, frames, size, rate, last=None, audio_from=None):
    """Write frames, uint8 (H, W, 3), to a video of size (H, W), with the sound of the file `audio_from` if it has any.

    rate: frames a second; last: as in Video; a GIF's repeated frames become one again.
    Odd sizes are kept. H.264 in 4:2:0 colour needs even ones, so they are stored in 4:4:4. The file appears when it
    is complete. Returns the number of frames. Raises UserError when it cannot be written, or there are no frames.
    """
    executable = _ffmpeg().get_ffmpeg_exe()
    height, width = size
    command = [executable, '-hide_banner', '-loglevel', 'error', '-y', '-f', 'rawvideo', '-pix_fmt', 'rgb24',
               '-s', f'{width}x{height}', '-r', str(rate), '-i', '-']
    suffix = os.path.splitext(path)[1].lower()
    if audio_from is not None and suffix != '.gif':
        command += ['-i', _url(audio_from), '-map', '0:v:0', '-map', '1:a?']
        if suffix == os.path.splitext(audio_from)[1].lower():
            command += ['-c:a', 'copy']
    command += _encoding(suffix, size, rate, last)
    with _temporary(path, suffix) as temporary, tempfile.TemporaryFile() as log:
        count = 0
        process = subprocess.Popen([*command, _url(temporary)], stdin=subprocess.PIPE, stderr=log)
        try:
            with contextlib.suppress(BrokenPipeError):  # ffmpeg gave up: its log says why
                for count, frame in enumerate(frames, 1):
                    process.stdin.write(np.ascontiguousarray(frame).data)
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            failed = process.wait() != 0
            if count == 0:
                raise UserError('no frame of the video can be read: it seems damaged')
        except BaseException:
            process.kill()
            process.wait()
            raise
        if failed:
            log.seek(0)
            reason = (log.read().decode(errors='replace').strip() or 'ffmpeg failed').splitlines()[0]
            raise UserError(f'{path} cannot be written as a video ({reason}): choose another name, size or place')
    return count


def remarks(path, size):
    """What a viewer of the video may run into: a list of sentences. Raises UserError for a name that is no video's."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in WRITES:
        raise UserError(f'output {path}: found {suffix or "no suffix"!r}, wanted the name of a video: '
                        f'{", ".join(WRITES)}')
    if suffix not in ('.webm', '.gif') and (size[0] % 2 or size[1] % 2):
        return ['an odd size is stored in 4:4:4 colour, which some players (browsers, telephones) do not show; an even '
                'size plays everywhere']
    return []


def _ffmpeg():
    try:
        import imageio_ffmpeg
    except ImportError:
        raise UserError('video needs one more package: pip install imageio-ffmpeg') from None
    return imageio_ffmpeg


def _url(path):
    return 'file:' + os.path.abspath(path)  # whatever a name begins with or holds


def _frames(path, size, options):
    with contextlib.closing(_ffmpeg().read_frames(_url(path), output_params=options)) as reader:
        next(reader)
        for data in reader:
            yield np.frombuffer(data, np.uint8).reshape(*size, 3)


def _exact_rate(fps):
    """ffmpeg prints two decimals; 23.98 stands for 24000/1001, which over an hour makes half a second."""
    for whole in (24, 30, 48, 60, 120):
        if abs(fps - whole * 1000 / 1001) < 0.006:
            return Fraction(whole * 1000, 1001)
    return Fraction(fps or 25).limit_denominator(100)


def _read_gif(path):
    try:
        with Image.open(path, formats=['GIF']) as image:
            size = image.size[::-1]
            times = [_hundredths(frame) for frame in ImageSequence.Iterator(image)]
    except Exception as error:  # decoders of damaged data fail in every way there is
        raise UserError(f'{path} cannot be read as a GIF: it seems damaged; replace it') from error
    tick = math.gcd(*times)
    frames = functools.partial(_gif_frames, path, tick)
    return Video(size, Fraction(100, tick), sum(times) // tick, frames, times[-1])


def _gif_frames(path, tick):
    with Image.open(path, formats=['GIF']) as image:
        for frame in ImageSequence.Iterator(image):
            rgba = frame.convert('RGBA')
            pixels = np.asarray(Image.alpha_composite(Image.new('RGBA', rgba.size, 'white'), rgba).convert('RGB'))
            for _ in range(_hundredths(frame) // tick):
                yield pixels


def _hundredths(frame):
    """How long a frame of a GIF is shown, in 1/100 s; 0 and 1 mean 10, as in browsers."""
    time = round(frame.info.get('duration', 0) / 10)
    return time if time > 1 else 10


def _encoding(suffix, size, rate, last):
    """ffmpeg's options for a kind of file."""
    if suffix == '.gif':  # whose times are 1/100 s, and 2 of them the least that viewers respect
        timing = 'fps=50,' if rate > 50 else ''
        if last is not None:
            timing = 'mpdecimate=hi=1:lo=1:frac=0,'  # a frame like the one before is dropped
        palettes = 'split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1'  # one for each frame
        final = [] if last is None else ['-final_delay', str(last)]
        return ['-filter_complex', timing + palettes, '-fps_mode', 'vfr', *final]
    colour = ['-vf', f'scale=out_color_matrix=bt709:out_range=tv:{EXACT}', '-colorspace', 'bt709',
              '-color_primaries', 'bt709', '-color_trc', 'bt709', '-color_range', 'tv']
    if suffix == '.webm':
        return [*colour, '-c:v', 'libvpx-vp9', '-pix_fmt', 'yuv420p', '-crf', '18', '-b:v', '0', '-row-mt', '1']
    odd = size[0] % 2 or size[1] % 2
    options = [*colour, '-c:v', 'libx264', '-pix_fmt', 'yuv444p' if odd else 'yuv420p', '-crf', '16']
    return options + ([] if suffix == '.mkv' else ['-movflags', '+faststart'])


@contextlib.contextmanager
def _temporary(path, suffix):
    """The name of a file beside `path` for ffmpeg to write, moved there in the end, removed on any error."""
    folder, name = os.path.split(os.path.abspath(path))
    try:
        fd, temporary = tempfile.mkstemp(dir=folder, prefix=f'.{name}.', suffix=suffix)
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror}): choose another place') from error
    os.close(fd)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
