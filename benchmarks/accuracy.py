"""What lower precision and the lattice decode cost in PSNR, with the shipped weights.

    python benchmarks/accuracy.py                             # both parts, on a CPU
    python benchmarks/accuracy.py --only lattice --sets Set5=load/benchmark/Set5/HR photos=load/photos/valid
    python benchmarks/accuracy.py --device cuda --output out  # writes into another folder, and no page

PSNR (RGB) against the ground truth, and against the exact decode in float32, on the middle 128x128 pixels of the first
8 images of each set. TF32 keeps 10 bits of the mantissa of the factors and adds in float32; on a CPU it is emulated:
the factors of convolutions and matrix products are rounded to the nearest such number, ties away from zero. Writes
benchmarks/results/precision.json, benchmarks/results/lattice.json and their tables in docs/speed.md.
"""
import contextlib
import os

import _path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import table
from benchmarks.common import RESULTS, image_pairs, machine, write
from engine.rendering.api import load_renderer
from engine.rendering.renderer import Renderer
from engine.runtime import Parser, run_program
from utils import calc_psnr

SETS = ['Set5=load/benchmark/Set5/HR', 'Set14=load/benchmark/Set14/HR', 'photos=load/photos/valid']
# part: the sets, the scales, and the ways whose cost is measured, as arguments of Renderer
PARTS = {'precision': (SETS[:1], (2, 3, 4), {name: {'precision': name} for name in ('tf32', 'bf16')}),
         'lattice': (SETS, (6, 8, 9, 12, 30),  # 9: the first at which decode='auto' uses the lattice with g = 6
                     {f'g={g}': {'decode': 'lattice', 'lattice': g} for g in (4, 6)})}
FIRST, CROP = 8, 128  # images of each set; pixels a side that are compared
FACTORS = {'mm': (0, 1), 'bmm': (0, 1), 'addmm': (1, 2), 'addmm_': (1, 2), 'baddbmm': (1, 2), 'convolution': (0, 1),
           'mkldnn::_linear_pointwise': (0, 1)}


class TF32(TorchDispatchMode):
    """Within `with`, products round their factors to TF32."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix('aten::').split('.')[0]
        assert name in FACTORS or not ('mm' in name or 'conv' in name or 'linear' in name), name
        args = [rounded(arg) if i in FACTORS.get(name, ()) else arg for i, arg in enumerate(args)]
        return function(*args, **(kwargs or {}))


def rounded(x):
    """A float32 tensor rounded to 10 bits of mantissa, ties away from zero."""
    return ((x.view(torch.int32) + (1 << 12)) & -(1 << 13)).view(torch.float32)


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('--only', choices=PARTS, help='default: both')
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--sets', nargs='+', metavar='NAME=FOLDER', help=f'folders of images; default: '
                        f'{" ".join(SETS)}, for precision the first alone')
    parser.add_argument('--output', default=RESULTS, help='a folder for the JSON files; default: benchmarks/results, '
                        'and the tables in docs/speed.md and README.md are written')
    args = parser.parse_args(argv)
    os.makedirs(args.output, exist_ok=True)
    exact = load_renderer(None, gpu='0' if args.device == 'cuda' else 'cpu', precision='float32')
    for part in [args.only] if args.only else PARTS:
        sets, scales, ways = PARTS[part]
        renderers = {name: Renderer(exact.model, exact.data_norm, **way) for name, way in ways.items()}
        rows = [measure(exact, renderers, *text.partition('=')[::2], scale) for text in args.sets or sets
                for scale in scales]
        write(os.path.join(args.output, f'{part}.json'), {
            'machine': machine(torch.device(args.device)), 'crop': CROP, 'first': FIRST, 'rows': rows})
        print(table.accuracy_table(rows))
    if args.output == RESULTS:
        table.write()


def measure(exact, renderers, name, folder, scale):
    """For a set at a scale: PSNR by the exact decode, and what each way loses, on average and at worst."""
    found = [compare([exact, *renderers.values()], hr, lr) for hr, (lr,) in
             image_pairs(folder, scale, ('pil',), FIRST) if min(lr.shape[1:]) >= 4]
    psnr, distance = np.array(found).transpose(1, 2, 0)  # (1 + ways, images) each
    loss = psnr[0] - psnr
    return {'set': name, 'scale': scale, 'images': len(found), 'exact': psnr[0].mean()} | {
        way: {'loss': loss[i].mean(), 'worst': loss[i].max(), 'distance': distance[i].mean()}
        for i, way in enumerate(renderers, 1)}


def compare(renderers, hr, lr):
    """PSNR in dB by each renderer, the exact one first: against the middle of the ground truth, and against the exact
    one's output."""
    height, width = (min(CROP, n) for n in hr.shape[1:])
    top, left = (hr.shape[1] - height) // 2, (hr.shape[2] - width) // 2
    region = [n * lr.shape[1] / hr.shape[1] for n in (left, top, width, height)]
    out = []
    for renderer in renderers:
        emulated = renderer.precision == 'tf32' and renderer.device.type == 'cpu'
        with TF32() if emulated else contextlib.nullcontext():
            out.append(renderer.open(lr).render((height, width), region=region)[None])
    truth = hr[None, :, top:top + height, left:left + width]
    return [[calc_psnr(rgb, target).item() for rgb in out] for target in (truth, out[0])]


if __name__ == '__main__':
    run_program(main)
