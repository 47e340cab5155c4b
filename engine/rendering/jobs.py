"""Enlarging files: which outputs are made from which images and videos, and how."""
import contextlib
import dataclasses
import functools
import glob
import itertools
import math
import os

import numpy as np
import torch
from tqdm import tqdm

import models
from datasets.images import FORMATS, MAX_PIXELS
from engine.arguments import QUALITY
from engine.rendering import video as videos
from engine.rendering.reading import read_source, source_size
from engine.rendering.renderer import Renderer
from engine.rendering.writing import LONGEST_SIDE, check_output, file_format, to_pixels, write_image
from engine.runtime import out_of_memory
from utils import UserError


# Which files.

def find_jobs(inputs, output=None, scale=None):
    """([(source, target)], whether they are a batch rather than one named file).

    inputs: files, folders and patterns; a file that several of them name is one job
    output: a file or folder; default: targets are functions of the size (H, W), `free_name` with this `scale`
    Raises UserError if nothing is found, and for targets that clash.
    """
    inputs = list({os.path.abspath(item): item for item in inputs}.values())
    first = inputs[0]
    if output is None:
        if any(os.path.isdir(item) or not os.path.exists(item) and glob.has_magic(item) for item in inputs):
            raise UserError(f'{" ".join(inputs)}: expected an output folder for a folder or a pattern')
        return [(source, functools.partial(free_name, source, scale=scale)) for source in inputs], len(inputs) > 1
    if len(inputs) == 1 and not os.path.isdir(first) and (os.path.exists(first) or not glob.has_magic(first)):
        if os.path.isdir(output) or output.endswith(('/', os.sep)):
            output = os.path.join(output, mirrored(os.path.basename(first)))
        jobs, batch = [(first, output)], False
    else:
        jobs = [(source, os.path.join(output, mirrored(name))) for source, name in find_sources(inputs, output)]
        batch = True
        if not os.path.isdir(output) and (os.path.exists(output) or is_known(output)):
            what = 'a file' if os.path.exists(output) else 'the name of an image or video'
            raise UserError(f'output {output}: found {what}, expected a folder for several inputs')
    chosen = {}
    for source, target in jobs:
        other, _ = chosen.setdefault(os.path.realpath(target), (source, target))
        if os.path.realpath(other) != os.path.realpath(source):
            raise UserError(f'{other} and {source} would both be written to {target}: rename one, or enlarge them '
                            f'separately')
        if os.path.realpath(source) == os.path.realpath(target):
            raise UserError(f'{source} would be overwritten: name another output')
    return list(chosen.values()), batch


def find_sources(inputs, output):
    """[(path, name below the output folder)] of several files, folders and patterns."""
    found = []
    for item in inputs:
        if os.path.isdir(item):
            for folder, folders, names in os.walk(item):
                folders[:] = sorted(f for f in folders if not f.startswith('.') and
                                    os.path.realpath(os.path.join(folder, f)) != os.path.realpath(output))
                paths = [os.path.join(folder, name) for name in sorted(names)]
                found += [(path, os.path.relpath(path, item)) for path in paths if is_known(path)]
        elif os.path.exists(item) or not glob.has_magic(item):
            found.append((item, os.path.basename(item)))
        else:
            found += [(path, os.path.basename(path)) for path in sorted(glob.glob(item, recursive=True))
                      if os.path.isfile(path) and is_known(path)]
    if not found:
        raise UserError(f'{" ".join(inputs)}: no image or video was found')
    return found


def is_known(path):
    name = os.path.basename(path)
    return not name.startswith('.') and (videos.is_video(path) or os.path.splitext(name)[1].lower() in FORMATS)


def mirrored(name):
    """The name of an output: that of the input, with another suffix if its format cannot be written."""
    stem, suffix = os.path.splitext(name)
    if videos.is_video(name):
        return name if suffix.lower() in videos.WRITES else stem + '.mp4'
    return name if FORMATS.get(suffix.lower()) in LONGEST_SIDE else stem + '.png'


def free_name(source, size, scale=None):
    """A name in the folder of `source` that is not taken: photo_x4.png, or photo_1920x1080.png for scale None; scale:
    one or two numbers."""
    stem, suffix = os.path.splitext(mirrored(source))
    stem += '_x' + ','.join(f'{v:g}' for v in scale) if scale else f'_{size[1]}x{size[0]}'
    suffix = suffix if videos.is_video(source) else '.png'
    names = itertools.chain([stem + suffix], (f'{stem}-{n}{suffix}' for n in itertools.count(2)))
    return next(name for name in names if not os.path.lexists(name))


def is_clip(source, target):
    """Whether frames are to be rendered; a GIF that is written as an image gives its first frame."""
    still = source.lower().endswith('.gif') and isinstance(target, str) and not videos.is_video(target)
    return videos.is_video(source) and not still


def takes_quality(target):
    """Whether a target, as `find_jobs` gives it, is written in a format that has a quality."""
    return isinstance(target, str) and FORMATS.get(os.path.splitext(target)[1].lower()) in ('JPEG', 'WEBP', 'AVIF')


def is_done(source, target, size_of):
    """Whether the target is newer than the source and, for images, of the size asked for."""
    if callable(target) or not os.path.exists(target) or not os.path.exists(source) \
            or os.path.getmtime(target) < os.path.getmtime(source):
        return False
    with contextlib.suppress(UserError):  # raised again when the job is checked
        return videos.is_video(target) or source_size(target) == size_of(*source_size(source))
    return False


def check_job(source, target, size_of, max_pixels=MAX_PIXELS):
    """(source pixels, output pixels) of a job. Raises UserError for what the headers of files and the names tell:
    sources that cannot be read, sizes that make no sense, targets that cannot be written."""
    if is_clip(source, target):
        video, check = videos.read_video(source), videos.remarks
        (h, w), frames = video.size, video.count
    else:
        (h, w), frames, check = source_size(source, max_pixels), 1, file_format
    size = size_of(h, w)
    path = target(size) if callable(target) else target
    check(path, size)
    folder = os.path.dirname(os.path.abspath(path))
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UserError(f'output {path}: {folder} is not a folder that can be written to, choose another place')
    return h * w * frames, size[0] * size[1] * frames


# Enlarging.

def enlarge_image(source, target, renderer, size_of, region=None, quality=QUALITY, max_pixels=MAX_PIXELS):
    """Write an image enlarged.

    source: the file; target: the file to write, or a function of the size (H, W) that names it
    size_of: a function (h, w) -> (H, W), as `sizes.size_rule` returns
    region: (x, y, width, height) in source pixels; quality: of JPEG, WebP and AVIF; max_pixels: see `read_source`
    Prints what cannot be kept. Returns (path, source size, size, 1 frame). Raises UserError.
    """
    with readable_errors(source):
        image = read_source(source, max_pixels)
        size = size_of(*image.size)
        path = target(size) if callable(target) else target
        for remark in check_output(path, image, size):
            print(f'{source}: {remark}')
        method, img, part = reduce_first(renderer, image.for_network(), size, region)
        if method is not renderer and image.alpha is not None:
            image = image._replace(alpha=method.open(image.alpha.expand(3, -1, -1)).render(size, region)[:1])
        with folder_of(path), tqdm(total=size[0] * size[1], desc=os.path.basename(path), unit='px', unit_scale=True,
                                   leave=False, disable=None) as bar:
            write_image(path, image, size, watched(method.open(img), size, part, bar), part, quality)
    return path, image.size, size, 1


def enlarge_video(source, target, renderer, size_of, region=None):
    """As `enlarge_image`, for a video, frame by frame."""
    with readable_errors(source):
        video = videos.read_video(source)
        size = size_of(*video.size)
        path = target(size) if callable(target) else target
        for remark in videos.remarks(path, size, video.deep):
            print(f'{source}: {remark}')
        frames = tqdm(render_frames(video, renderer, size, region), desc=os.path.basename(path), total=video.count,
                      unit='frame', leave=False, disable=None)
        with folder_of(path), contextlib.closing(frames):
            count = videos.write_video(path, frames, size, video.tick, video.rate, video.last, video.deep, video.colour,
                                       audio_from=source)
    return path, video.size, size, count


@contextlib.contextmanager
def folder_of(path):
    """Within `with`, the folder of a file to be written exists. After any error, Ctrl-C included, folders that were
    made for it and are still empty are removed."""
    folder, missing = os.path.dirname(os.path.abspath(path)), []
    parent = folder
    while not os.path.lexists(parent):
        missing.append(parent)
        parent = os.path.dirname(parent)
    try:
        os.makedirs(folder, exist_ok=True)
        yield
    except BaseException:
        for empty in missing:
            with contextlib.suppress(OSError):  # not empty, or not made yet
                os.rmdir(empty)
        raise


def render_frames(video, renderer, size, region):
    """Yield the frames enlarged: (pixels (H, W, 3), uint8 or uint16 as in the video; time in ticks)."""
    before = image = None
    dtype, most = (torch.uint16, 65535) if video.deep else (torch.uint8, 255)
    for frame, ticks in video.frames():
        if before is None or not np.array_equal(frame, before):  # a still stretch is rendered once
            img = torch.from_numpy(frame.astype(np.float32)).permute(2, 0, 1) / most
            method, img, part = reduce_first(renderer, img, size, region)
            scene, image = method.open(img), np.empty((*size, 3), frame.dtype)
            for top, left, rgb in watched(scene, size, part):
                pixels = to_pixels(rgb, dtype)
                image[top:top + len(pixels), left:left + pixels.shape[1]] = pixels
            if scene.redone:  # the next frames would overflow too
                renderer = dataclasses.replace(renderer, precision='float32')
        before = frame
        yield image, ticks


def reduce_first(renderer, img, size, region):
    """(renderer, image, region) that give `size` without aliasing.

    On an axis that shrinks, the network would only pick samples: the image is reduced by bicubic interpolation with
    antialiasing instead, after the network has enlarged the other axis if that grows.
    """
    extent = img.shape[-2:] if region is None else (region[3], region[2])
    if all(n >= e for n, e in zip(size, extent)):
        return renderer, img, region
    if any(n > e for n, e in zip(size, extent)):
        grown = tuple(max(n, math.ceil(e)) for n, e in zip(size, extent))
        img, region = renderer.open(img).render(grown, region), None
    bicubic = Renderer(models.make({'name': 'bicubic'}))
    return bicubic, bicubic.open(img).render(size, region), None


def watched(scene, size, region, bar=None):
    """The scene's rectangles with progress; UserError for NaN. Says if half precision was not enough."""
    for top, left, rgb in scene.rectangles(size, region):
        if rgb.isnan().any():
            raise UserError('the model gives NaN in float32: its checkpoint is damaged, or its training diverged')
        yield top, left, rgb
        if bar is not None:
            bar.update(rgb.shape[1] * rgb.shape[2])
    if scene.redone:
        tqdm.write(f'{scene.renderer.precision} overflowed, so this is redone in float32')


@contextlib.contextmanager
def readable_errors(source):
    """Lack of memory or of a writable place, as a UserError."""
    try:
        yield
    except BrokenPipeError:  # of whoever reads what is printed
        raise
    except OSError as error:
        raise UserError(f'{error.filename or source}: {error.strerror or error}') from error
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(f'{source}: not enough memory: choose a smaller size, or smaller tiles (tile 128)') from error
