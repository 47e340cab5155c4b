"""Upscale images and videos to any size.

    python demo.py photo.jpg                                        # x4, to photo_x4.png
    python demo.py photo.jpg --max-side 3840 --output large.jpg
    python demo.py photos/ --scale 3.7 --output large/
    python demo.py photo.jpg --region 100,50,64.5,48 --width 1920 --output detail.png
    python demo.py clip.mp4 --scale 2 --output large.mp4

Alpha, grey, 16 bits, EXIF orientation, ICC profile and DPI are kept. See docs/demo.md.
"""
import contextlib
import dataclasses
import signal
import sys
import time

import engine  # noqa: F401 (before torch: how its threads wait)
from engine.arguments import PRECISIONS, QUALITY, Parser, device, file_name, numbers, within


SLOW = 30  # seconds from which an estimate is printed before the start
SMALL = 1_000_000  # pixels below which none is needed


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add('inputs', nargs='*', metavar='input', type=file_name, help='images (PNG, JPEG, WebP, AVIF, TIFF, BMP, GIF, '
        '...) or videos: files, folders, patterns such as "in/*.png"')
    add('--input', nargs='+', default=[], metavar='INPUT', type=file_name, help='the same')
    add('--output', type=file_name, help='the file to write, or a folder, in which the names of the inputs are '
        'mirrored; of several inputs those written before, at this size, are skipped; default: a new file such as '
        'photo_x4.png next to the input')
    add('--model', help='a checkpoint, or a name in weights/; default: photo for JPEG and WebP, else clean '
        '(docs/photos.md)')
    size = parser.add_argument_group('size of the output (one of them; default: --scale 4)')
    size = size.add_mutually_exclusive_group()
    for kind, metavar, text in (
            ('resolution', 'H,W', 'height and width in pixels; WxH is understood too'),
            ('scale', 'S', 'a factor such as 3.7, or two: vertical,horizontal'),
            ('width', 'W', 'the width in pixels; the height keeps the aspect'),
            ('height', 'H', 'the height in pixels; the width keeps the aspect'),
            ('max-side', 'N', 'the longer side in pixels; the other keeps the aspect')):
        size.add_argument('--' + kind, dest='size', default=('scale', (4.0,)), metavar=metavar, help=text,
                          type=lambda text, kind=kind: (kind, numbers(kind)(text)))
    add('--region', metavar='X,Y,W,H', type=numbers('region'), help='render this part only, in pixels of the upright '
        'source, fractions allowed')
    add('--cell-clip', nargs='?', type=within(1, kind=float), const=4.0, metavar='S', help='beyond scale S (4: the '
        "largest of the paper's training) keep the cell of S, as later work does")
    add('--self-ensemble', action='store_true', help='average over the eight flips and transposes: slightly better, 8 '
        'times slower')
    add('--decode', choices=['exact', 'lattice', 'auto'], help='lattice: an approximation, much faster far beyond x4 '
        '(docs/demo.md); auto: where it needs at most 60%% of the work; default: exact, for videos auto')
    add('--lattice', type=within(1, 32), metavar='G', help='density of the lattice, 1 to 32; default: 6; without '
        '--decode, it selects --decode lattice')
    add('--precision', default='auto', choices=['auto', *PRECISIONS], help='auto (default): bf16 if a trial is 1.5 '
        'times as fast with it, else float32; tf32 and fp16 are for GPUs; what overflows is redone in float32')
    add('--tile', type=within(1), metavar='N', help='encode in tiles of N source pixels; default: chosen by the memory')
    add('--gpu', type=device, help="a GPU's number, or cpu; default: the first GPU, else the CPU")
    add('--ema', action='store_true', help="use the checkpoint's averaged weights")
    add('--quality', type=within(1, 100), help='of JPEG, WebP and AVIF, 1 to 100 (100: lossless WebP); default: '
        f'{QUALITY}')
    add('--overwrite', action='store_true', help='of several inputs, render again those written before; one input is '
        'always written to --output, also over an existing file')
    add('--insist', action='store_true', help='no limits on the pixels of source and output')
    args = parser.parse_args(argv)
    args.inputs += args.input
    check_arguments(parser, args)
    args.decode = args.decode or (args.lattice and 'lattice')
    return args


def check_arguments(parser, args):
    """Ends the program for arguments that are missing, or that do not fit each other."""
    if not args.inputs:
        parser.error('expected at least one input')
    if args.model == '':
        parser.error('--model: found an empty name, expected a checkpoint or the name of weights')
    if args.lattice and args.decode == 'exact':
        parser.error('--lattice: found --decode exact, expected lattice or auto: leave one of the two out')
    if args.overwrite and args.output is None:
        parser.error('--overwrite: found no --output, without which nothing is overwritten: name the file or folder')


def main(argv=None):
    args = parse_arguments(argv)
    # torch comes with these, so they are imported when the arguments are right
    from datasets import images
    from engine.rendering import jobs, sizes
    from engine.runtime import autocast, select_device
    from utils import UserError
    autocast(select_device(args.gpu, announce=False), None if args.precision == 'auto' else args.precision)  # checks
    kind, values = args.size
    size_of = sizes.size_rule(kind, values, args.region, None if args.insist else sizes.MAX_OUTPUT)
    todo, batch = jobs.find_jobs(args.inputs, args.output, values if kind == 'scale' else None)
    if args.quality is not None and not (batch and args.output) and not jobs.takes_quality(todo[0][1]):
        raise UserError(f'--quality: found {todo[0][1] if args.output else "no --output"}, expected an --output that '
                        f'ends in .jpg, .webp or .avif: name one, or leave --quality out')
    count, failed, pixels, started = len(todo), [], {}, time.time()
    if batch and not args.overwrite:
        todo = [job for job in todo if not jobs.is_done(*job, size_of)]
    for job in todo:
        with one_failure(job[0], batch, failed):
            pixels[job] = jobs.check_job(*job, size_of, None if args.insist else images.MAX_PIXELS)
    for job, renderer in make_renderers(args, pixels).items():
        with one_failure(job[0], batch, failed):
            enlarge(*job, renderer, size_of, args)
    if batch:
        print(f'{len(todo) - len(failed)} written, {count - len(todo)} already there, {len(failed)} failed, '
              f'{time.time() - started:.1f} s')
    if failed:
        print('not written:', *failed, sep='\n  ', file=sys.stderr)
        sys.exit(1)


@contextlib.contextmanager
def one_failure(source, batch, failed):
    """Around the work on one input: in a batch, a UserError is printed and appended to `failed`, else raised."""
    from datasets import images
    from utils import UserError
    try:
        yield
    except UserError as error:
        message = f'{error.found}: choose a smaller one, or add --insist if it is meant to be this large' \
            if isinstance(error, images.TooLarge) else str(error)
        if not batch:
            raise UserError(message) from error
        failed.append(message if source in message else f'{source}: {message}')
        print(f'error: {failed[-1]}', file=sys.stderr)


def make_renderers(args, pixels):
    """{job: Renderer} for {job: (source pixels, output pixels)}, once it has said how long the jobs will take if that
    is long. Without --model, the content of a file decides which weights it gets."""
    from engine.rendering.api import choose_model, load_renderer
    from engine.rendering.pace import Pace, fastest
    groups, renderers, seconds, auto = {}, {}, 0, args.precision == 'auto'
    for job in pixels:
        groups.setdefault(args.model or choose_model(job[0])[0], []).append(job)
    for group in groups.values():
        renderer = load_renderer(args.model, args.gpu, args.ema, 'float32' if auto else args.precision, group[0][0],
                                 tile=args.tile, cell_clip=args.cell_clip, self_ensemble=args.self_ensemble,
                                 decode=args.decode or 'exact', lattice=args.lattice or 6)
        source, output = (sum(column) for column in zip(*map(pixels.get, group)))
        if auto or source + output > SMALL:
            renderer, pace = fastest(renderer) if auto else (renderer, Pace(renderer))
            seconds += pace.seconds(source, output) * (8 if args.self_ensemble else 1)
        renderers.update(dict.fromkeys(group, renderer))
    if seconds > SLOW and args.decode in (None, 'exact'):
        print(f'this takes about {seconds:.0f} s' if seconds < 120 else f'this takes about {seconds / 60:.0f} min',
              f'on {renderer.device} in {renderer.precision}' + (
                  '; no CUDA GPU was found' if args.gpu is None and renderer.device.type == 'cpu' else ''), flush=True)
    return {job: renderers[job] for job in pixels}


def enlarge(source, target, renderer, size_of, args):
    """Enlarge one file, and print what became of it."""
    from datasets import images
    from engine.rendering import jobs
    started = time.time()

    def announced_size(h, w):
        rows, columns = size_of(h, w)
        _, _, width, height = args.region or (0, 0, w, h)
        change = columns * height / (rows * width) - 1
        if args.size[0] == 'resolution' and abs(change) > 0.02:
            print(f'{source}: {columns}x{rows} changes the aspect by {abs(change):.0%}; --max-side '
                  f'{max(rows, columns)} keeps it')
        return rows, columns

    if jobs.is_clip(source, target):
        if args.decode is None:
            renderer = dataclasses.replace(renderer, decode='auto')
        done = jobs.enlarge_video(source, target, renderer, announced_size, args.region)
    else:
        done = jobs.enlarge_image(source, target, renderer, announced_size, args.region, args.quality or QUALITY,
                                  None if args.insist else images.MAX_PIXELS)
    path, (h, w), (rows, columns), frames = done
    seconds, times = time.time() - started, f' x {frames} frames' if frames > 1 else ''
    print(f'{path}: {columns}x{rows}{times} from {w}x{h}, {seconds:.1f} s, '
          f'{rows * columns * frames / 1e6 / seconds:.2f} MP/s on {renderer.device} in {renderer.precision}')


if __name__ == '__main__':
    parse_arguments()  # answers --help and mistakes before torch, which takes seconds, is imported
    from engine.runtime import run_program
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that unfinished files are removed
    run_program(main)
