"""Make low-resolution images from a folder of high-resolution ones.

    python scripts/make_lr.py load/benchmark/Set5/HR --scale 2 3 4
    python scripts/make_lr.py load/div2k/DIV2K_valid_HR --scale 2.5 2x3

writes <name>x2.png and so on into LR_bicubic/X2, X3, ... next to `HR` (DIV2K_valid_LR_bicubic/X2.5 next to
DIV2K_valid_HR), where the configs look for them. Sizes, crops and kernels: docs/lr-kernels.md. Files that exist are
kept, so an interrupted run continues where it stopped.
"""
import os
import sys

import _path

from datasets.imresize import KERNELS, make_lr_folder, parse_scale
from engine.runtime import Parser, run_program
from utils import UserError, counted


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('folder', help='high-resolution images')
    parser.add_argument('--scale', nargs='+', required=True, metavar='S',
                        help='2, 2.7, or 2x3 for different vertical and horizontal scales')
    parser.add_argument('--kernel', choices=KERNELS, default='matlab',
                        help="matlab: imresize, as in the published LR_bicubic folders; pil: what LIIF trains with")
    parser.add_argument('--output', help='default: the folder with HR replaced by LR_bicubic (LR_pil for PIL)')
    parser.add_argument('--workers', type=int, help='processes; default: chosen automatically')
    parser.add_argument('--overwrite', action='store_true', help='make existing files again')
    args = parser.parse_args(argv)

    scales = [parse_scale(scale) for scale in args.scale]
    output = args.output or default_output(args.folder, args.kernel)
    made, kept, bad = make_lr_folder(args.folder, output, scales, args.kernel, args.workers, args.overwrite)
    print(f'{output}: {made} made, {kept} kept')
    for problem in bad:
        print(problem, file=sys.stderr)
    if bad:
        raise UserError(f'{counted(len(bad), "image")} could not be made smaller, as listed above')


def default_output(folder, kernel):
    folder = os.path.normpath(folder)
    if not folder.endswith('HR'):
        raise UserError(f'found the folder {folder}, expected a name that ends in HR, from which that of the '
                        f'low-resolution images follows: rename it or pass --output')
    return folder[:-2] + ('LR_bicubic' if kernel == 'matlab' else 'LR_pil')


if __name__ == '__main__':
    run_program(main)
