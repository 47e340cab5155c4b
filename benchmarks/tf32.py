"""What `precision: tf32` costs: the shipped weights on Set5, with the factors of all products rounded as a GPU does.

    python benchmarks/tf32.py [--data load] [--scales 2 3 4]

TF32 keeps 10 bits of the mantissa of the factors and adds in float32. Convolutions and matrix products are emulated on
the CPU: their factors are rounded to the nearest such number, ties away from zero. Writes benchmarks/results/tf32.json
and the table in docs/speed.md.
"""
import json
import os

import _path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.run import machine
from datasets.loader import make_loader
from engine import ROOT
from engine.evaluation.evaluate import measure, predict_rgb
from engine.evaluation.runs import open_model
from engine.evaluation.suite import open_data, read_suite
from engine.evaluation.tables import markdown
from engine.runtime import Parser, run_program
from utils import UserError, atomic_write, replace_between

MARKERS = '<!-- benchmarks/tf32.py writes from here -->', '<!-- to here -->'
WEIGHTS = 'edsr-baseline-liif'
CPU = torch.device('cpu')
FACTORS = {'mm': (0, 1), 'bmm': (0, 1), 'addmm': (1, 2), 'addmm_': (1, 2), 'baddbmm': (1, 2), 'convolution': (0, 1)}


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
    parser.add_argument('--data', default='load', help='the folder of the data sets')
    parser.add_argument('--scales', nargs='+', default=['2', '3', '4'])
    args = parser.parse_args(argv)
    candidate = open_model(WEIGHTS, CPU)
    rows = [measure_case(candidate, case) for case in read_suite('benchmark', args.scales, args.data)
            if case.data == 'Set5']
    with atomic_write(os.path.join(ROOT, 'benchmarks', 'results', 'tf32.json'), 'w') as f:
        json.dump({'command': 'python benchmarks/tf32.py', 'machine': machine(CPU), 'weights': WEIGHTS, 'rows': rows},
                  f, indent=1)
    replace_between(os.path.join(ROOT, 'docs', 'speed.md'), table(rows), MARKERS)
    print(table(rows))


def measure_case(candidate, case):
    """The PSNR in float32 and with TF32 over a case, and how the outputs, in [0, 1], differ."""
    if case.missing:
        raise UserError(f'there is no {case.missing}: python scripts/prepare_data.py benchmark')
    loader = make_loader(open_data(case.config, case.dataset), 1, 0, train=False, num_workers=0)

    def predict(batch):
        return predict_rgb(candidate.model, batch, case.config['data_norm'], case.config['eval_bsize'])
    plain = list(measure(loader, predict, CPU, case.config['eval_type']))
    with TF32():
        emulated = list(measure(loader, predict, CPU, case.config['eval_type']))
    differences = [(a.pred - b.pred).abs() for a, b in zip(plain, emulated)]
    return {'set': case.data, 'scale': case.scale, 'images': len(plain),
            'psnr': {name: sum(part.psnr for part in parts) / len(parts)
                     for name, parts in (('float32', plain), ('tf32', emulated))},
            'largest_psnr_difference': max(abs(a.psnr - b.psnr) for a, b in zip(plain, emulated)),
            'largest_output_difference': max(d.max().item() for d in differences),
            'mean_output_difference': sum(d.double().mean().item() for d in differences) / len(differences)}


def table(rows):
    head = ['images', 'scale', 'PSNR in float32', 'tf32 changes it by', 'largest change of an image',
            'output differs by', 'at most']
    return markdown(head, [[row['set'], f'x{row["scale"]}', f'{row["psnr"]["float32"]:.4f} dB',
                            f'{row["psnr"]["tf32"] - row["psnr"]["float32"]:+.6f} dB',
                            f'{row["largest_psnr_difference"]:.6f} dB', f'{row["mean_output_difference"]:.1e}',
                            f'{row["largest_output_difference"]:.1e}'] for row in rows])


if __name__ == '__main__':
    run_program(main)
