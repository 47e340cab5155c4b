"""A smooth zoom into an image, as a video, a GIF or PNG frames.

    python scripts/zoom.py photo.jpg --factor 30 --output zoom.mp4
    python scripts/zoom.py photo.jpg --centre 210,145.5 --factor 12 --side-by-side --size 360,640 --output zoom.gif

The image is encoded once, and frames far beyond x4 are decoded through the lattice (models/lattice.py). The speed is
exponential, so that it looks even, and the ends are eased.
"""
import os
import time

import _path

import numpy as np
import torch
from PIL import Image

from engine.arguments import numbers, within
from engine.rendering.api import to_numpy, to_tensor
from engine.rendering.figures import (View, add_model_arguments, baseline, check_size, ease, renderer_of,
                                      save_animation, tag)
from engine.runtime import Parser, describe_device, run_program
from utils import UserError


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('image')
    parser.add_argument('--output', required=True, help='.mp4, .gif, .webm; without suffix: a folder of PNG frames')
    parser.add_argument('--centre', metavar='X,Y', help='where to, in source pixels; default: the middle')
    parser.add_argument('--factor', type=within(1, 10_000, float, above=True), default=30, help='how far; default: 30')
    parser.add_argument('--seconds', type=within(0, 3600, float, above=True), default=8,
                        help='how long; default: 8')
    parser.add_argument('--fps', type=within(0, 240, float, above=True), default=30,
                        help='frames a second; default: 30')
    parser.add_argument('--size', type=numbers('resolution'), metavar='H,W', default=(480, 640),
                        help='of a frame, in pixels; default: 480,640')
    parser.add_argument('--side-by-side', action='store_true', help='two halves that show the same place, the left '
                        'one by bicubic interpolation')
    parser.add_argument('--back', action='store_true', help='zoom out again, for a GIF that loops')
    add_model_arguments(parser)
    args = parser.parse_args(argv)

    size = args.size
    check_size(size)
    count = max(2, round(args.seconds * args.fps))
    img = to_tensor(args.image)
    centre = parse_centre(args.centre, img.shape[-2:])
    started, renderer = time.time(), renderer_of(args, decode='auto')
    draw = SideBySide(renderer, img) if args.side_by_side else View(renderer, img).render
    path = zoom_path(img.shape[-2:], (size[0], size[1] / 2) if args.side_by_side else size, centre, args.factor)
    steps = np.linspace(0, 1, count)
    if args.back:
        steps = 1 - abs(1 - 2 * np.arange(count) / count)  # the last frame is not the first again
    frames = (draw(size, path(ease(t))) for t in steps)
    save_animation(args.output, frames, count, size, args.fps, os.path.basename(args.output))
    first, last = (size[0] / path(t)[3] for t in (0, 1))
    print(f'{args.output}: {count} frames of {size[1]}x{size[0]}, x{first:.3g} to x{last:.3g}, '
          f'{time.time() - started:.0f} s ({time.process_time():.0f} s of processor time) on '
          f'{describe_device(renderer.device)} in {renderer.precision}, torch {torch.__version__}')


def parse_centre(text, size):
    h, w = size
    if text is None:
        return w / 2, h / 2
    try:
        x, y = (float(part) for part in text.split(','))
    except ValueError:
        x = y = -1
    if not (0 <= x <= w and 0 <= y <= h):
        raise UserError(f'--centre: found {text!r}, expected X,Y inside the image of {w}x{h} pixels')
    return x, y


def zoom_path(source, size, centre, factor):
    """A function 0..1 -> region (x, y, width, height) in source pixels.

    From the largest region of the frame's aspect, in the middle of the image, to one `factor` times smaller around
    the centre. The edges move in proportion to the width, so one point of the image stays in place all along, and
    the region never leaves the image.
    """
    (h, w), (rows, columns) = source, size
    width = min(w, h * columns / rows)
    height = min(h, w * rows / columns)
    left, top = (w - width) / 2, (h - height) / 2
    last_left = min(max(centre[0] - width / factor / 2, 0), w - width / factor)
    last_top = min(max(centre[1] - height / factor / 2, 0), h - height / factor)

    def region(t):
        shrink = factor ** -t  # from 1 to 1 / factor
        share = (1 - shrink) / (1 - 1 / factor)
        return (left + (last_left - left) * share, top + (last_top - top) * share, width * shrink, height * shrink)
    return region


class SideBySide:
    """Frames whose halves show the same region, the left one by bicubic interpolation and the right one by LIIF."""

    def __init__(self, renderer, img):
        self.view = View(renderer, img)
        self.plain = baseline('bicubic').open(img)

    def __call__(self, size, region):
        (height, width), half = size, size[1] // 2
        left = to_numpy(self.plain.render((height, half), region, 'uint8'))
        right = self.view.render((height, width - half), region)
        image = Image.fromarray(np.concatenate([left, right], axis=1))
        image.paste('white', (half, 0, half + 1, height))
        tag(image, 'bicubic', 'left')
        tag(image, 'LIIF', 'right')
        return np.asarray(image)


if __name__ == '__main__':
    run_program(main)
