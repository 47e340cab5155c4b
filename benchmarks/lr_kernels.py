"""PSNR of bicubic enlargement by the kernel that made the low-resolution images: MATLAB's imresize or PIL's bicubic.

    python benchmarks/lr_kernels.py

Measures the sets of load/benchmark. Writes benchmarks/results/lr_kernels.json and the table in docs/lr-kernels.md.
"""
import os
import statistics

import _path

import torch

import models
from benchmarks.common import image_pairs, publish
from datasets.imresize import KERNELS
from engine.evaluation.tables import markdown
from engine.rendering.renderer import Renderer
from engine.runtime import Parser, run_program
from utils import UserError, calc_psnr

SETS, SCALES = ('Set5', 'Set14', 'B100', 'Urban100'), (2, 3, 4)


def main(argv=None):
    Parser(__doc__).parse_args(argv)
    sets = {name: os.path.join('load', 'benchmark', name, 'HR') for name in SETS}
    rows = [measure(folder, name, scale) for name, folder in sets.items() if os.path.isdir(folder) for scale in SCALES]
    if not rows:
        raise UserError(f'load/benchmark: found none of {", ".join(SETS)}, expected at least one: '
                        f'python scripts/prepare_data.py benchmark')
    publish('lr_kernels', 'lr-kernels.md', table(rows), rows=rows)


def measure(folder, name, scale):
    """How the kernels' images differ, and the mean luma PSNR of bicubic on both."""
    renderer, psnr, differences = Renderer(models.make({'name': 'bicubic'})), {k: [] for k in KERNELS}, []
    for hr, lr in image_pairs(folder, scale, KERNELS):
        differences.append((255 * (lr[0] - lr[1]).abs()).round().flatten())
        for kernel, small in zip(KERNELS, lr):
            sr = renderer.open(small).render(hr.shape[1:])
            psnr[kernel].append(calc_psnr(sr[None], hr[None], 'benchmark', scale).item())
    differences = torch.cat(differences)
    return {'set': name, 'scale': scale, 'largest_difference': int(differences.max()),
            'percent_of_values_that_differ': 100 * (differences > 0).double().mean().item(),
            'psnr': {'bicubic': {kernel: statistics.mean(values) for kernel, values in psnr.items()}}}


def table(rows):
    head = ['set', 'scale', 'values that differ', 'by at most', 'bicubic, MATLAB', 'bicubic, PIL', 'PIL - MATLAB']
    psnr = [[row['psnr']['bicubic'][kernel] for kernel in KERNELS] for row in rows]
    return markdown(head, [[row['set'], f'x{row["scale"]}', f'{row["percent_of_values_that_differ"]:.1f}%',
                            row['largest_difference'], f'{matlab:.3f}', f'{pil:.3f}', f'{pil - matlab:+.3f}']
                           for row, (matlab, pil) in zip(rows, psnr)])


if __name__ == '__main__':
    run_program(main)
