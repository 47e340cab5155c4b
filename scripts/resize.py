"""Resize a folder of images, such as CelebA-HQ's 1024x1024 faces, with PIL's bicubic.

    python scripts/resize.py load/celebAHQ/1024 load/celebAHQ --sizes 256 128 64 32

Writes OUTPUT/<size>/<name>.png, whose shorter side has `size` pixels, each made from the original. Files that exist and
are not older than their source are kept, so an interrupted run continues.
"""
import os
import sys

import _path

from PIL import Image

from datasets.images import BadImage, cores, read_image
from datasets.imresize import imresize, in_processes, list_images
from engine.runtime import Parser, run_program
from utils import UserError, atomic_write, counted


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('source', help='a folder of images')
    parser.add_argument('output', help='the folder that gets one folder per size')
    parser.add_argument('--sizes', type=int, nargs='+', default=[256, 128, 64, 32], help='pixels of the shorter side')
    parser.add_argument('--workers', type=int, default=cores(), help='processes; default: one per core')
    args = parser.parse_args(argv)
    if min(args.sizes) < 1:
        raise UserError(f'--sizes: found {min(args.sizes)}, expected at least 1 pixel')
    jobs = list(list_jobs(args.source, args.output, args.sizes))
    results = in_processes(resize_file, jobs, min(args.workers, len(jobs) // 16), f'{args.source} -> {args.output}')
    problems = sorted(problem for problem in results if problem)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f'{counted(len(jobs) - len(problems), "image")} resized')
    if problems:
        raise UserError(f'{len(problems)} of {counted(len(jobs), "image")} could not be resized, listed above')


def list_jobs(source, output, sizes):
    """(source file, {size: file to write}) for each image that lacks a size."""
    names = list_images(source)
    for size in sizes:
        os.makedirs(os.path.join(output, str(size)), exist_ok=True)
    for name in names:
        path = os.path.join(source, name)
        targets = {size: os.path.join(output, str(size), os.path.splitext(name)[0] + '.png') for size in sizes}
        targets = {size: target for size, target in targets.items()
                   if not os.path.exists(target) or os.path.getmtime(target) < os.path.getmtime(path)}
        if targets:
            yield path, targets


def resize_file(path, targets):
    """Write the image at `path` in each size of {size: file}; returns a problem or None."""
    try:
        img = read_image(path)  # (H, W, 3)
    except BadImage as error:
        return str(error)
    shorter = min(img.shape[:2])
    if shorter < max(targets):
        return f'{path}: found {img.shape[1]}x{img.shape[0]} pixels, expected at least {max(targets)} on each side'
    for size, target in targets.items():
        small = imresize(img, [round(side * size / shorter) for side in img.shape[:2]], 'pil')
        with atomic_write(target) as f:
            Image.fromarray(small).save(f, format='PNG')


if __name__ == '__main__':
    run_program(main)
