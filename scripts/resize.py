"""Resize a folder of images, such as CelebA-HQ's 1024x1024 faces, with PIL's bicubic.

    python scripts/resize.py load/celebAHQ/1024 load/celebAHQ --sizes 256 128 64 32

writes OUTPUT/<size>/<name>.png, the shorter side being `size`. Each size is made from the original. What is done
already (and not older than its source) is kept, so an interrupted run continues.
"""
import os
import sys

import _path

from PIL import Image
from tqdm import tqdm

from datasets.images import BadImage, cores, read_image
from datasets.imresize import in_processes, list_images
from engine.runtime import Parser, run_program
from utils import UserError, atomic_write


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('source', help='a folder of images')
    parser.add_argument('output', help='the folder in which one folder a size is made')
    parser.add_argument('--sizes', type=int, nargs='+', default=[256, 128, 64, 32], help='pixels of the shorter side')
    parser.add_argument('--workers', type=int, default=cores(), help='processes; as many as there are cores by default')
    args = parser.parse_args(argv)
    if min(args.sizes) < 1:
        raise UserError(f'--sizes are pixels, at least 1, found {min(args.sizes)}')
    jobs = list_jobs(args.source, args.output, args.sizes)
    problems = []
    with tqdm(total=len(jobs), desc=f'{args.source} -> {args.output}', unit='image', disable=None) as bar:
        for problem in in_processes(resize_file, jobs, min(args.workers, len(jobs) // 16)):
            problems += [problem] if problem else []
            bar.update()
    for problem in sorted(problems):
        print(problem, file=sys.stderr)
    print(f'{len(jobs) - len(problems)} images resized')
    if problems:
        raise UserError(f'{len(problems)} of {len(jobs)} images could not be resized, listed above')


def list_jobs(source, output, sizes):
    """(source file, {size: file to write}) for each image that lacks a size."""
    jobs, stems = [], {}
    for size in sizes:
        os.makedirs(os.path.join(output, str(size)), exist_ok=True)
    for name in list_images(source):
        stem, path = os.path.splitext(name)[0], os.path.join(source, name)
        if stems.setdefault(stem, name) != name:
            raise UserError(f'{stems[stem]} and {name} of {source} would get one name: rename one')
        targets = {size: os.path.join(output, str(size), stem + '.png') for size in sizes}
        targets = {size: target for size, target in targets.items()
                   if not os.path.exists(target) or os.path.getmtime(target) < os.path.getmtime(path)}
        if targets:
            jobs.append((path, targets))
    return jobs


def resize_file(path, targets):
    """Write the image at `path` in each size of {size: file}; what was wrong with it, if anything."""
    try:
        image = Image.fromarray(read_image(path))
    except BadImage as error:
        return str(error)
    if min(image.size) < max(targets):
        return f'{path} is {image.width}x{image.height}, wanted at least {max(targets)} on each side'
    for size, target in targets.items():
        w, h = (round(side * size / min(image.size)) for side in image.size)
        with atomic_write(target) as f:
            image.resize((w, h), Image.BICUBIC).save(f, format='PNG')


if __name__ == '__main__':
    run_program(main)
