"""PSNR of bicubic enlargement by the kernel that made the low-resolution images: MATLAB's imresize or PIL's bicubic.

    python benchmarks/lr_kernels.py [--data load/benchmark]

Writes benchmarks/results/lr_kernels.json and the table in docs/lr-kernels.md.
"""
import json
import os

import _path

import numpy as np
import torch

import models
from datasets.images import read_image
from datasets.imresize import KERNELS, imresize, list_images, lr_size
from engine import ROOT
from engine.evaluation.tables import markdown
from engine.rendering.renderer import Renderer
from engine.runtime import Parser, run_program
from utils import UserError, atomic_write, calc_psnr, replace_between

SETS, SCALES = ('Set5', 'Set14', 'B100', 'Urban100'), (2, 3, 4)
MARKERS = '<!-- benchmarks/lr_kernels.py writes from here -->', '<!-- to here -->'


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('--data', default='load/benchmark', help='a folder with Set5/HR and so on')
    args = parser.parse_args(argv)
    sets = [name for name in SETS if os.path.isdir(os.path.join(args.data, name, 'HR'))]
    if not sets:
        raise UserError(f'{args.data} holds none of {", ".join(SETS)}: python scripts/prepare_data.py benchmark')
    rows = [measure(os.path.join(args.data, name, 'HR'), name, scale) for name in sets for scale in SCALES]
    with atomic_write(os.path.join(ROOT, 'benchmarks', 'results', 'lr_kernels.json'), 'w') as f:
        json.dump({'command': 'python benchmarks/lr_kernels.py', 'rows': rows}, f, indent=1)
    replace_between(os.path.join(ROOT, 'docs', 'lr-kernels.md'), table(rows), MARKERS)
    print(table(rows))


def measure(folder, name, scale):
    """How the kernels' images differ, and the mean luma PSNR of bicubic on both."""
    renderer, psnr, differences = Renderer(models.make({'name': 'bicubic'})), {k: [] for k in KERNELS}, []
    for file in list_images(folder):
        hr = read_image(os.path.join(folder, file))
        small, (rows, columns) = lr_size(hr.shape[:2], scale)
        hr = hr[:rows, :columns]
        lr = {kernel: imresize(hr, small, kernel) for kernel in KERNELS}
        differences.append(np.abs(lr['matlab'].astype(int) - lr['pil']).ravel())
        for kernel in KERNELS:
            sr = renderer.open(to_float(lr[kernel])).render((rows, columns))
            psnr[kernel].append(calc_psnr(sr[None], to_float(hr)[None], 'benchmark', scale).item())
    differences = np.concatenate(differences)
    return {'set': name, 'scale': scale, 'percent_of_values_that_differ': 100 * (differences > 0).mean(),
            'largest_difference': int(differences.max()),
            'psnr': {'bicubic': {kernel: float(np.mean(values)) for kernel, values in psnr.items()}}}


def to_float(img):
    return torch.from_numpy(img.transpose(2, 0, 1).copy()) / 255


def table(rows):
    head = ['set', 'scale', 'values that differ', 'by at most', 'bicubic, MATLAB', 'bicubic, PIL', 'PIL - MATLAB']
    psnr = [[row['psnr']['bicubic'][kernel] for kernel in KERNELS] for row in rows]
    return markdown(head, [[row['set'], f'x{row["scale"]}', f'{row["percent_of_values_that_differ"]:.1f}%',
                            row['largest_difference'], f'{matlab:.3f}', f'{pil:.3f}', f'{pil - matlab:+.3f}']
                           for row, (matlab, pil) in zip(rows, psnr)])


if __name__ == '__main__':
    run_program(main)
