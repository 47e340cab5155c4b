"""Upscale pictures and videos to any size.

    python demo.py --input photo.jpg --model M.pth --resolution 1080,1920 --output large.png
    python demo.py --input photos/ --scale 3.7 --output large/
    python demo.py --input photo.jpg --region 100,50,64.5,48 --width 1920 --output detail.png
    python demo.py --input clip.mp4 --scale 2 --output large.mp4

Alpha, grey, 16 bits, EXIF orientation, ICC profile and DPI are kept. See docs/demo.md.
"""
import contextlib
import dataclasses
import os
import signal
import sys
import time

import engine  # noqa: F401 (before torch: how its threads wait)
import numpy as np
import torch
from tqdm import tqdm

from datasets.images import MAX_PIXELS, TooLarge
from engine.rendering import picture as pictures
from engine.rendering import video as videos
from engine.checkpoint import load_model
from engine.rendering.jobs import find_jobs, is_done, is_still
from engine.rendering.renderer import Renderer, quantize
from engine.runtime import Parser, run_program, select_device
from engine.rendering.sizes import parse, parse_size
from engine.checkpoint import default_model
from utils import UserError


def main(argv=None):
    args = parse_arguments(argv)
    args.region = None if args.region is None else parse('region', args.region)
    size_of = parse_size(args.region, args.insist, resolution=args.resolution, scale=args.scale, width=args.width,
                         height=args.height, max_side=args.max_side)
    jobs, batch = find_jobs(args.input, args.output)
    renderer = make_renderer(args, select_device(args.gpu))
    failed, skipped, started = [], 0, time.time()
    for source, target in jobs:
        try:
            if batch and not args.overwrite and is_done(source, target, size_of):
                skipped += 1
                continue
            with one_line_errors(source):
                os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
                enlarge = enlarge_video if videos.is_video(source) and not is_still(source, target) else enlarge_picture
                enlarge(source, target, renderer, size_of, args)
        except UserError as error:
            if not batch:
                raise
            failed.append(str(error) if source in str(error) else f'{source}: {error}')
            tqdm.write(f'error: {failed[-1]}', file=sys.stderr)
    if batch:
        print(f'{len(jobs) - skipped - len(failed)} written, {skipped} already there, {len(failed)} failed, '
              f'{time.time() - started:.1f} s')
    if failed:
        print('not written:', *failed, sep='\n  ', file=sys.stderr)
        sys.exit(1)


def parse_arguments(argv):
    parser = Parser(__doc__)
    add = parser.add_argument
    add('--input', required=True, nargs='+', help='pictures (PNG, JPEG, WebP, TIFF, BMP, GIF) or videos: files, '
        'folders, patterns such as "in/*.png"')
    add('--output', required=True, help='the file to write, or a folder, in which the names of the input are mirrored; '
        'of several inputs those written before, at this size, are skipped')
    add('--model', help='a checkpoint written by train_liif.py; the weights that come with the project when absent')
    size = parser.add_argument_group('size of the output (one of them)')
    size.add_argument('--resolution', metavar='H,W', help='height and width in pixels')
    size.add_argument('--scale', metavar='S', help='a factor such as 3.7, or two: vertical,horizontal')
    size.add_argument('--width', metavar='W', help='the width in pixels; the height keeps the aspect')
    size.add_argument('--height', metavar='H', help='the height in pixels; the width keeps the aspect')
    size.add_argument('--max-side', metavar='N', help='the longer side in pixels; the other keeps the aspect')
    add('--region', metavar='X,Y,W,H', help='render this part only, in pixels of the upright source, fractions '
        'allowed')
    add('--cell-clip', nargs='?', type=float, const=4.0, metavar='S', help='beyond scale S (4: what the paper trains '
        'up to) keep the cell of S, as later work does')
    add('--self-ensemble', action='store_true', help='average over the eight flips and turns: a little better, 8 times '
        'slower')
    add('--precision', default='float32', help='float32, bf16 or fp16 (GPU only); what overflows is redone in float32')
    add('--tile', type=int, metavar='N', help='encode in tiles of N source pixels; chosen by the memory when absent')
    add('--gpu', help="a GPU's number, or cpu; the first GPU there is when absent")
    add('--ema', action='store_true', help="use the checkpoint's averaged weights")
    add('--quality', type=int, default=95, help='of JPEG and WebP, 1 to 100 (100: WebP without loss); 95')
    add('--overwrite', action='store_true', help='of several inputs, render again what is already there')
    add('--insist', action='store_true', help='no limits on the pixels of source and output')
    args = parser.parse_args(argv)
    if not 1 <= args.quality <= 100:
        raise UserError(f'--quality: found {args.quality}, wanted 1 to 100')
    if args.cell_clip is not None and not 1 <= args.cell_clip < float('inf'):
        raise UserError(f'--cell-clip: found {args.cell_clip}, wanted the largest scale of training, 1 or more')
    return args


def make_renderer(args, device):
    path = args.model
    if path is None:
        path = default_model()
        print(f'no --model given: using {os.path.relpath(path)}, which comes with the project')
    model, data_norm = load_model(path, device, ema=args.ema)
    if not hasattr(model, 'query_rgb'):
        raise UserError(f'{path}: its model, {type(model).__name__}, has no decoder that could be asked for any size; '
                        f'wanted one such as liif or metasr')
    return Renderer(model, data_norm, args.precision, tile=args.tile, cell_clip=args.cell_clip,
                    self_ensemble=args.self_ensemble)


def enlarge_picture(source, target, renderer, size_of, args):
    started = time.time()
    try:
        picture = pictures.read_picture(source, None if args.insist else MAX_PIXELS)
    except TooLarge as error:
        raise UserError(f'{error.found}: add --insist if it is meant to be this large') from None
    size = size_of(*picture.size)
    check_scale(renderer.model, picture.size, size, args.region)
    for remark in pictures.check_output(target, picture, size):
        print(f'{source}: {remark}')
    scene = renderer.open(picture.for_network())
    with tqdm(total=size[0] * size[1], desc=os.path.basename(target), unit='px', unit_scale=True, leave=False,
              disable=None) as bar:
        rectangles = watched(scene, size, args.region, bar)
        pictures.write_picture(target, picture, size, rectangles, args.region, args.quality)
    report(target, picture.size, size, 1, time.time() - started, renderer)


def enlarge_video(source, target, renderer, size_of, args):
    started = time.time()
    video = videos.read_video(source)
    size = size_of(*video.size)
    check_scale(renderer.model, video.size, size, args.region)
    for remark in videos.remarks(target, size):
        print(f'{source}: {remark}')
    frames = tqdm(render_frames(video, renderer, size, args.region), desc=os.path.basename(target), total=video.count,
                  unit='frame', leave=False, disable=None)
    with contextlib.closing(frames):
        count = videos.write_video(target, frames, size, video.rate, video.last, audio_from=source)
    report(target, video.size, size, count, time.time() - started, renderer)


def render_frames(video, renderer, size, region):
    """Yield the frames enlarged, uint8 (H, W, 3)."""
    before = image = None
    for frame in video.frames():
        if before is None or not np.array_equal(frame, before):  # a still stretch is rendered once
            scene = renderer.open(torch.from_numpy(frame.astype(np.float32)).permute(2, 0, 1) / 255)
            image = np.empty((*size, 3), np.uint8)
            for top, left, rgb in watched(scene, size, region):
                pixels = quantize(rgb, torch.uint8).permute(1, 2, 0).cpu().numpy()
                image[top:top + len(pixels), left:left + pixels.shape[1]] = pixels
            if scene.precision != renderer.precision:  # it would overflow in the next frames too
                renderer = dataclasses.replace(renderer, precision=scene.precision)
        before = frame
        yield image


def watched(scene, size, region, bar=None):
    """The scene's rectangles, which must be numbers, with progress; says so when half precision was not enough."""
    for top, left, rgb in scene.rectangles(size, region):
        if rgb.isnan().any():
            raise UserError('the model gives NaN in float32: its checkpoint is damaged, or its training diverged')
        yield top, left, rgb
        if bar is not None:
            bar.update(rgb.shape[1] * rgb.shape[2])
    if scene.redone or any(turned.redone for _, turned in scene.turned):
        tqdm.write(f'{scene.renderer.precision} overflowed, so this is redone in float32')


def check_scale(model, source, size, region):
    """UserError for a model that has no decoder, only the pixels of an up-sampling encoder, at another size."""
    if getattr(model, 'imnet', model) is None:
        with torch.no_grad():
            scale = model.encode(next(model.parameters()).new_zeros(1, 3, 16, 16)).shape[0] // 16
        if region is not None or size != (source[0] * scale, source[1] * scale):
            raise UserError(f'this checkpoint has no decoder, only pixels at x{scale}: found a size of '
                            f'{size[1]}x{size[0]}, wanted --scale {scale} of the whole image')


def report(target, source, size, frames, seconds, renderer):
    times = f' x {frames} frames' if frames > 1 else ''
    print(f'{target}: {size[1]}x{size[0]}{times} from {source[1]}x{source[0]}, {seconds:.1f} s, '
          f'{size[0] * size[1] * frames / 1e6 / seconds:.2f} MP/s on {renderer.device}')


@contextlib.contextmanager
def one_line_errors(source):
    """Lack of memory or of a writable place, as a UserError."""
    try:
        yield
    except BrokenPipeError:  # of who reads what is printed, not of the picture
        raise
    except OSError as error:
        raise UserError(f'{error.filename or source}: {error.strerror or error}') from error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) and 'allocate' not in str(error):
            raise
        raise UserError(f'{source}: the memory does not suffice: add --tile 128, or choose a smaller size') from error


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that unfinished files are removed
    run_program(main)
