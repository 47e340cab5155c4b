"""What the kernel behind the low-resolution images is worth in PSNR: MATLAB's imresize against PIL's bicubic.

    python benchmarks/lr_kernels.py [--data load/benchmark] [--model MODEL.pth]

Reduces the benchmark sets with both and enlarges them with the bicubic baseline (and a checkpoint, when one is
given); writes benchmarks/results/lr_kernels.json and the table in docs/lr-kernels.md.
"""
import json
import os
import sys


ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import numpy as np  # noqa: E402 (the path comes first)
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

import models  # noqa: E402
from datasets.images import read_image  # noqa: E402
from datasets.imresize import KERNELS, imresize, list_images, lr_size  # noqa: E402
from engine.rendering.renderer import Renderer  # noqa: E402
from engine.runtime import Parser, run_program  # noqa: E402
from utils import UserError, atomic_write, calc_psnr, replace_between  # noqa: E402


SETS, SCALES = ('Set5', 'Set14', 'B100', 'Urban100'), (2, 3, 4)
RESULTS = os.path.join(ROOT, 'benchmarks', 'results', 'lr_kernels.json')
PAGE = os.path.join(ROOT, 'docs', 'lr-kernels.md')
MARKERS = '<!-- benchmarks/lr_kernels.py writes from here -->', '<!-- to here -->'


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('--data', default='load/benchmark', help='a folder with Set5/HR and so on')
    parser.add_argument('--model', help='a checkpoint to measure beside bicubic')
    args = parser.parse_args(argv)

    renderers = {'bicubic': Renderer(models.make({'name': 'bicubic'}))}
    if args.model:
        from engine.checkpoint import load_model
        renderers['LIIF'] = Renderer(*load_model(args.model, torch.device('cpu')))
    sets = [name for name in SETS if os.path.isdir(os.path.join(args.data, name, 'HR'))]
    if not sets:
        raise UserError(f'{args.data} holds none of {", ".join(SETS)}: python scripts/prepare_data.py benchmark')
    rows = [measure(os.path.join(args.data, name), scale, renderers) for name in sets for scale in SCALES]
    os.makedirs(os.path.dirname(RESULTS), exist_ok=True)
    with atomic_write(RESULTS, 'w') as f:
        json.dump({'command': 'python benchmarks/lr_kernels.py', 'rows': rows}, f, indent=1)
    replace_between(PAGE, table(rows), MARKERS)
    print(table(rows))


def measure(folder, scale, renderers):
    """One set at one scale: how the kernels' images differ, and the mean luma PSNR of each method on both."""
    name = os.path.basename(folder)
    psnr = {method: {kernel: [] for kernel in KERNELS} for method in renderers}
    given, differ, values, largest = 0, 0, 0, 0
    for file in tqdm(list_images(os.path.join(folder, 'HR')), desc=f'{name} x{scale}', leave=False, disable=None):
        hr = read_image(os.path.join(folder, 'HR', file))
        small, (rows, columns) = lr_size(hr.shape[:2], scale)
        hr = hr[:rows, :columns]
        lr = {kernel: imresize(hr, small, kernel) for kernel in KERNELS}
        published = os.path.join(folder, 'LR_bicubic', f'X{scale}', f'{os.path.splitext(file)[0]}x{scale}.png')
        difference = np.abs(lr['matlab'].astype(int) - lr['pil'])
        given += int((read_image(published) != lr['matlab']).sum()) if os.path.exists(published) else 0
        differ, values = differ + int((difference > 0).sum()), values + difference.size
        largest = max(largest, int(difference.max()))
        for method, renderer in renderers.items():
            for kernel in KERNELS:
                sr = renderer.open(to_float(lr[kernel])).render((rows, columns))
                psnr[method][kernel].append(calc_psnr(sr[None], to_float(hr)[None], 'benchmark', scale).item())
    return {'set': name, 'scale': scale, 'unlike_the_published_files': given,
            'percent_of_values_that_differ': 100 * differ / values, 'largest_difference': largest,
            'psnr': {method: {kernel: float(np.mean(v)) for kernel, v in by.items()} for method, by in psnr.items()}}


def to_float(img):
    return torch.from_numpy(img.transpose(2, 0, 1).copy()) / 255


def table(rows):
    """Markdown."""
    methods = list(rows[0]['psnr'])
    head = ['set', 'scale', 'values that differ', 'by at most']
    for method in methods:
        head += [f'{method}, MATLAB', f'{method}, PIL', 'PIL - MATLAB']
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    for row in rows:
        cells = [row['set'], f'x{row["scale"]}', f'{row["percent_of_values_that_differ"]:.1f}%',
                 f'{row["largest_difference"]}']
        for method in methods:
            matlab, pil = (row['psnr'][method][kernel] for kernel in KERNELS)
            cells += [f'{matlab:.3f}', f'{pil:.3f}', f'{pil - matlab:+.3f}']
        lines.append('| ' + ' | '.join(cells) + ' |')
    unlike = sum(row['unlike_the_published_files'] for row in rows)
    return '\n'.join(lines) + f'\n\nValues of the published LR files that `imresize` did not reproduce: {unlike}.\n'


if __name__ == '__main__':
    run_program(main)
