"""Video files and animated GIFs, frame by frame, through PyAV (the package `av`), which brings ffmpeg's libraries.

Frames keep their exact times, also those of clips with a variable rate. Audio packets are copied where the container
can hold them.
"""
import contextlib
import functools
import heapq
import itertools
import os
import tempfile
from fractions import Fraction
from typing import Callable, NamedTuple, Optional

import numpy as np

from utils import UserError


EXACT = 'flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp'  # ffmpeg's colours, without its short cuts
MUXERS = {'.mp4': 'mp4', '.m4v': 'mp4', '.mov': 'mov', '.mkv': 'matroska', '.webm': 'webm', '.gif': 'gif'}
WRITES = tuple(MUXERS)
READS = (*WRITES, '.avi', '.mpg', '.mpeg', '.ts', '.wmv')
BT709, BT2020, UNKNOWN, LIMITED = 1, 9, 2, 1  # ffmpeg's numbers of colour spaces and ranges
GIF_TICK = Fraction(1, 100)  # seconds
GIF_LEAST = 2  # the shortest time of a GIF frame that viewers respect, in ticks


class Video(NamedTuple):
    """A video that can be read.

    size: (h, w), upright; tick: the unit of times in seconds, a Fraction; rate: frames per second, on average, a
    Fraction; count: the approximate number of frames; frames: yields (pixels (h, w, 3), time in ticks) from the first
    frame on each time it is called, uint16 for a source of more than 8 bits, else uint8; deep: whether they are
    uint16; last: how many ticks the last frame is shown, None if unknown; colour: ffmpeg's numbers of the primaries
    and of the transfer function.
    """
    size: tuple
    tick: Fraction
    rate: Fraction
    count: int
    frames: Callable
    deep: bool = False
    last: Optional[int] = None
    colour: tuple = (BT709, BT709)


def is_video(path):
    return os.path.splitext(path)[1].lower() in READS


def read_video(path):
    """The Video in a file. Raises UserError, naming it, when it is missing, damaged or not a video."""
    if not os.path.isfile(path):
        raise UserError(f'{path} does not exist: check the name')
    av = _av()
    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            first = next(_decoded(container, stream))
            tick, rate = stream.time_base, stream.average_rate or stream.guessed_rate or Fraction(25)
            count = stream.frames or round(float((container.duration or 0) / 1e6 * rate)) or 1
        last = None
        if path.lower().endswith('.gif'):
            with av.open(path) as container:
                durations = [packet.duration for packet in container.demux(video=0) if packet.size]
            count, last = len(durations), durations[-1]
    except (av.FFmpegError, IndexError, StopIteration) as error:
        raise UserError(f'{path} cannot be read as a video: it seems damaged, or is of an unknown kind') from error
    size = (first.height, first.width) if first.rotation % 180 == 0 else (first.width, first.height)
    deep = max(component.bits for component in first.format.components) > 8
    colour = tuple(BT709 if value == UNKNOWN else int(value) for value in (first.color_primaries, first.color_trc))
    return Video(size, tick, rate, count, functools.partial(_frames, path), deep, last, colour)


def write_video(path, frames, size, tick, rate=None, last=None, deep=False, colour=(BT709, BT709), audio_from=None):
    """Write a video of size (H, W), with the sound of the file `audio_from`, if given and if it has any.

    frames: yields (pixels (H, W, 3), time in ticks), uint16 if `deep`, which is stored with 10 bits (WebM and GIF: 8),
    else uint8; the other arguments are as in Video. By default, rate is 1 / tick, and the last frame is shown for
    1 / rate. H.264 in 4:2:0 colour needs even sizes: odd ones are stored in 4:4:4. The file appears when it is
    complete. Returns the number of frames. Raises UserError when it cannot be written, or there are no frames.
    """
    av, suffix, count = _av(), os.path.splitext(path)[1].lower(), 0
    rate = rate or 1 / tick
    last = last or round(1 / rate / tick)
    if suffix == '.gif':
        frames, tick, last = _gif_times(frames, tick), GIF_TICK, max(GIF_LEAST, round(last * tick / GIF_TICK))
        audio_from = None
    options = {'.gif': {'final_delay': str(last)}, '.mkv': {}, '.webm': {}}.get(suffix, {'movflags': 'faststart'})
    try:
        with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(path)), prefix='.video') as temporary:
            file = os.path.join(temporary, 'video' + suffix)
            with av.open(file, 'w', format=MUXERS[suffix], options=options) as output:
                stream, graph = _encoder(output, suffix, size, tick, rate, deep, colour)
                video = _video_packets(stream, graph, frames, tick, last)
                audio = _audio_packets(output, audio_from)
                for packet in heapq.merge(video, audio, key=lambda packet: packet.dts * packet.time_base):
                    count += packet.stream is stream
                    output.mux(packet)
            os.replace(file, path)
    except av.FFmpegError as error:
        raise UserError(f'{path} cannot be written as a video ({error.strerror}): choose another name, size or '
                        f'place') from error
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror}): choose another place') from error
    return count


def remarks(path, size, deep=False):
    """Sentences on what may surprise a viewer of the video. Raises UserError for a name that is not a video's."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in WRITES:
        raise UserError(f'output {path}: found {suffix or "no suffix"!r}, expected the name of a video: '
                        f'{", ".join(WRITES)}')
    found = []
    if suffix not in ('.webm', '.gif') and (size[0] % 2 or size[1] % 2):
        found.append('an odd size is stored in 4:4:4 colour, which some players (browsers, telephones) do not show; an '
                     'even size plays everywhere')
    if deep:
        found.append(f'a {suffix} file is written with 8 bits: the source has more; .mp4, .mov and .mkv keep 10'
                     if suffix in ('.webm', '.gif') else
                     'the video has more than 8 bits and is stored with 10, which some players do not show')
    return found


def _av():
    try:
        import av
    except ImportError:
        raise UserError('video and animated GIF need one more package: pip install av') from None
    return av


# Reading.

def _decoded(container, stream):
    """The frames of a stream; damaged packets are skipped."""
    av = _av()
    stream.thread_type = 'AUTO'
    with contextlib.suppress(av.error.InvalidDataError):
        for packet in container.demux(stream):
            with contextlib.suppress(av.error.InvalidDataError, av.error.EOFError):
                yield from packet.decode()


def _frames(path):
    av = _av()
    with av.open(path) as container:
        stream = container.streams.video[0]
        decoded = _decoded(container, stream)
        first = next(decoded)
        begin = round(max(container.start_time or 0, 0) / Fraction(10 ** 6) / stream.time_base)
        # Untagged YUV of HD size is BT.709 by convention; swscale would assume BT.601.
        unsaid = first.colorspace == UNKNOWN and first.format.name.startswith('yuv') and first.height >= 720
        alpha = any(component.is_alpha for component in first.format.components)
        deep = max(component.bits for component in first.format.components) > 8
        kind, turns = 'rgba' if alpha else 'rgb48le' if deep else 'rgb24', round(first.rotation / 90)
        graph = _graph(first.width, first.height, first.format.name, stream.time_base,
                       [('scale', f'{first.width}:{first.height}:in_color_matrix={"bt709" if unsaid else "auto"}:'
                                  f'{EXACT}'), ('format', kind)])
        time = -1
        for frame in _filtered(graph, itertools.chain([first], decoded)):
            if frame is not None:
                pixels = frame.to_ndarray(format=kind)
                if alpha:  # on white
                    a = pixels[..., 3:].astype(np.uint16)
                    pixels = ((pixels[..., :3] * a + 255 * (255 - a) + 127) // 255).astype(np.uint8)
                time = max(time + 1, (frame.pts or 0) - begin)
                yield np.rot90(pixels, turns), time  # both count counterclockwise


def _graph(width, height, kind, tick, filters):
    """A filter graph for frames of a pixel format `kind`; filters: [(name, arguments)], one after the other."""
    graph = _av().filter.Graph()
    nodes = [graph.add_buffer(width=width, height=height, format=kind, time_base=tick),
             *(graph.add(*item) for item in filters), graph.add('buffersink')]
    graph.link_nodes(*nodes)
    graph.configure()
    return graph


def _filtered(graph, frames):
    """The frames that a graph makes of frames, and None at the end."""
    av = _av()
    for frame in itertools.chain(frames, [None]):
        graph.vpush(frame)
        with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                yield graph.vpull()
    yield None


# Writing.

def _gif_times(frames, tick):
    """Frames with times in 1/100 s. Of frames that follow faster than viewers respect, some are left out."""
    before = -GIF_LEAST
    for pixels, time in frames:
        time = round(time * tick / GIF_TICK)
        if time - before >= GIF_LEAST:
            yield pixels, time
            before = time


def _video_packets(stream, graph, frames, tick, last):
    """Yield the encoded packets of a video stream; the final frame is shown for `last` ticks."""
    final = None
    for frame in _filtered(graph, _video_frames(frames, tick)):
        if frame is not None:
            final = frame.pts
        elif final is None:
            raise UserError('no frame of the video can be read: it seems damaged')
        for packet in stream.encode(frame):
            if frame is None and packet.pts == final:
                packet.duration = last
            yield packet


def _video_frames(frames, tick):
    for pixels, time in frames:
        kind = 'rgb48le' if pixels.dtype == np.uint16 else 'rgb24'
        frame = _av().VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=kind)
        frame.pts, frame.time_base = time, tick
        yield frame


def _encoder(output, suffix, size, tick, rate, deep, colour):
    """(the video stream, the graph that makes its frames of RGB ones) of a file to be written."""
    (height, width), source = size, 'rgb48le' if deep else 'rgb24'
    if suffix == '.gif':
        stream, kind = output.add_stream('gif', rate=GIF_TICK.denominator), 'pal8'
        graph = _gif_graph(size, source)
    else:
        name, options = ('libvpx-vp9', {'crf': '18', 'b': '0', 'row-mt': '1'}) if suffix == '.webm' else \
            ('libx264', {'crf': '16'})
        odd = suffix != '.webm' and (height % 2 or width % 2)
        kind = ('yuv444p' if odd else 'yuv420p') + ('10le' if deep and suffix != '.webm' else '')
        matrix = BT2020 if colour[0] == BT2020 else BT709
        stream = output.add_stream(name, rate=Fraction(rate).limit_denominator(1_000_000), options=options)
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, LIMITED
        context.color_primaries, context.color_trc = colour
        context.thread_count, context.thread_type = 0, 'AUTO'  # as many as suit the machine; not cut into slices
        scale = f'out_color_matrix={"bt2020" if matrix == BT2020 else "bt709"}:out_range=tv:{EXACT}'
        graph = _graph(width, height, source, tick, [('scale', scale), ('format', kind)])
    stream.width, stream.height, stream.pix_fmt, stream.codec_context.time_base = width, height, kind, tick
    return stream, graph


def _gif_graph(size, kind):
    """A graph that gives each frame its own palette."""
    graph = _av().filter.Graph()
    source = graph.add_buffer(width=size[1], height=size[0], format=kind, time_base=GIF_TICK)
    split, palette, use, sink = (graph.add(*item) for item in (
        ('split',), ('palettegen', 'stats_mode=single'), ('paletteuse', 'new=1'), ('buffersink',)))
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph


def _audio_packets(output, path):
    """Add the audio streams of a file to `output`, then yield their packets: copied, or encoded again where the
    container cannot hold the codec."""
    av = _av()
    if path is None:
        return
    with av.open(path) as source:
        targets = {}
        for stream in source.streams.audio:
            copied = stream.codec_context.codec.canonical_name in output.supported_codecs
            targets[stream.index] = copied, output.add_stream_from_template(stream) if copied else output.add_stream(
                'libopus' if output.format.name == 'webm' else output.default_audio_codec, rate=48000)
        for packet in source.demux(*source.streams.audio) if targets else ():
            copied, target = targets[packet.stream.index]
            begin = round(max(source.start_time or 0, 0) / Fraction(10 ** 6) / packet.time_base)
            if copied:
                if packet.dts is not None:
                    packet.pts, packet.dts, packet.stream = packet.pts - begin, packet.dts - begin, target
                    yield packet
                continue
            for frame in [*packet.decode(), *([] if packet.size else [None])]:
                if frame is not None:
                    frame.pts -= begin
                yield from target.encode(frame)
