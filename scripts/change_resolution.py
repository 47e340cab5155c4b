"""One image at sizes that grow continuously, as a GIF (or a video, or PNG frames).

    python scripts/change_resolution.py face.png --output growing.gif
    python scripts/change_resolution.py photo.jpg --input-size 64 --start 32 --end 640 --output growing.gif
"""
import os

import _path

import numpy as np
import torch
from PIL import Image

from engine.arguments import within
from engine.rendering.api import to_tensor
from engine.rendering.figures import (GROUND, View, add_model_arguments, blank, check_size, ease,
                                      renderer_of, save_animation, tag)
from datasets.imresize import imresize
from engine.runtime import Parser, run_program
from utils import UserError


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('image')
    parser.add_argument('--output', required=True, help='.gif, .mp4, .webm; without suffix: a folder of PNG frames')
    parser.add_argument('--start', type=within(1), default=32, help='the first size, of the longer side, in pixels; '
                        'default: 32')
    parser.add_argument('--end', type=within(1), default=640, help='the last one; default: 640')
    parser.add_argument('--input-size', type=int, metavar='N', help='first reduce the image to N pixels on its longer '
                        'side, which is all that the model sees')
    parser.add_argument('--seconds', type=within(0, 3600, float, above=True), default=6, help='how long; default: 6')
    parser.add_argument('--fps', type=within(0, 100, float, above=True), default=12.5,
                        help='frames a second; default: 12.5')
    add_model_arguments(parser)
    args = parser.parse_args(argv)

    count = max(2, round(args.seconds * args.fps))
    img = to_tensor(args.image)
    if args.input_size is not None:
        img = reduce(img, args.input_size)
    view = View(renderer_of(args, decode='auto'), img)
    canvas = fit(view.size, max(args.start, args.end))
    check_size(canvas)
    hold = round(args.fps / 2)  # a moment of rest before it starts over
    frames = grow(view, canvas, args.start, args.end, count - hold, hold) if count > hold + 1 else \
        grow(view, canvas, args.start, args.end, count, 0)
    save_animation(args.output, frames, count, canvas, args.fps, os.path.basename(args.output))
    print(f'{args.output}: {count} frames of {canvas[1]}x{canvas[0]}')


def fit(size, longest):
    """(H, W) of the image with `longest` pixels on its longer side."""
    return tuple(max(1, round(n * longest / max(size))) for n in size)


def reduce(img, longest):
    """img (3, h, w), reduced with antialiasing to `longest` pixels on its longer side."""
    if not 0 < longest <= max(img.shape[-2:]):
        raise UserError(f'--input-size: found {longest}, expected 1 to {max(img.shape[-2:])}, the image\'s longer side')
    pixels = (img * 255 + 0.5).to(torch.uint8).permute(1, 2, 0).numpy()
    return to_tensor(imresize(pixels, fit(img.shape[-2:], longest)))


def grow(view, canvas, start, end, count, hold):
    """Frames of size `canvas`, the image in the middle; the last one stays for `hold` more."""
    for i in range(count):
        longest = start * (end / start) ** ease(i / (count - 1))
        # As even or odd as the canvas, so that it stays in the middle.
        size = [min(full, n + (full - n) % 2) for n, full in zip(fit(view.size, longest), canvas)]
        frame = blank(canvas, GROUND)
        picture = view.render(tuple(size))
        frame.paste(Image.fromarray(picture), ((canvas[1] - size[1]) // 2, (canvas[0] - size[0]) // 2))
        tag(frame, f'{size[1]} x {size[0]}', 'left')
        tag(frame, f'from {view.size[1]} x {view.size[0]}', 'right')
        yield np.asarray(frame)
    for _ in range(hold):
        yield np.asarray(frame)


if __name__ == '__main__':
    run_program(main)
