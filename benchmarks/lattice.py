"""The lattice decode: how much faster than the exact one and the textbook formula, and what it costs in PSNR.

    python benchmarks/lattice.py                             # both parts
    python benchmarks/lattice.py --only speed --threads 1
    python benchmarks/lattice.py --only truth --sets Set5=load/benchmark/Set5/HR photos=load/photos/valid --crop 192

Writes benchmarks/results/lattice-<cpu>.json. Speed: decoding alone, from codes of random weights, in CPU seconds (those
of the process, on which other processes have little influence) and in wall seconds; of exact and textbook a part of the
rows is timed. Truth: PSNR (RGB) against the ground truth of the shipped weights, on the middle of each image.
"""
import datetime
import json
import os
import statistics
import time

import _path

import numpy as np
import torch
from PIL import Image

from benchmarks import cases
from benchmarks.run import file_name, machine, rounded
from datasets.images import read_image
from datasets.imresize import list_images
from engine import ROOT
from engine.rendering.api import load_renderer
from engine.rendering.renderer import Renderer
from engine.runtime import Parser, run_program
from models import lattice
from utils import atomic_write, axis_coord, calc_psnr

SIDE, SCALES, DENSITIES = 32, (6, 8, 12, 30), (4, 6)
TIMED = {'exact': 20_000, 'textbook': 10_000}  # output pixels of the sides whose cost grows with them
FRAME = (720, 1280)
TRUTH_SCALES = (6, 8, 9, 12, 30)  # 9: the first at which decode='auto' uses the lattice with g = 6


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('--only', choices=['speed', 'truth'], help='default: both')
    parser.add_argument('--sets', nargs='+', metavar='NAME=FOLDER', help='images of the truth part', default=[
        'Set5=load/benchmark/Set5/HR', 'Set14=load/benchmark/Set14/HR', 'photos=load/photos/valid'])
    parser.add_argument('--crop', type=int, default=192, help='pixels a side that are compared; default: 192')
    parser.add_argument('--first', type=int, help='so many images of each set; default: all')
    parser.add_argument('--rounds', type=int, default=3, help='of the speed part; default: 3')
    parser.add_argument('--threads', type=int, help='default: chosen by torch')
    parser.add_argument('--output', help='the JSON file; default: benchmarks/results/lattice-<cpu>.json')
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    info, results = machine(torch.device('cpu')), {}
    path = args.output or os.path.join(ROOT, 'benchmarks', 'results', 'lattice-' + file_name(info))
    if os.path.exists(path):  # the part that is not measured now stays
        with open(path) as f:
            results = json.load(f)
    for part, measure in (('speed', measure_speed), ('truth', measure_truth)):
        if args.only in (None, part):
            results[part] = {'date': datetime.date.today().isoformat(), 'machine': info,
                             'load_before': round(os.getloadavg()[0], 2), **rounded(measure(args))}
            with atomic_write(path, 'w') as f:
                f.write(json.dumps(results, indent=1) + '\n')
            print(json.dumps(results[part], indent=1))


@torch.no_grad()
def measure_speed(args):
    """Decoding of an image of SIDE x SIDE by turns, and frames from a kept lattice."""
    model = cases.make_model(torch.device('cpu'))
    codes = model.encode(torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    found = {'input': [SIDE, SIDE], 'decode': [], 'frames': []}
    for scale in SCALES:
        sides = speed_sides(model, codes, scale)
        times = {name: [] for name in sides}
        for run in [False] + [True] * args.rounds:  # the first is the warm-up
            for name, (function, portion) in sides.items():
                cpu, wall = time.process_time(), time.perf_counter()
                function()
                if run:
                    times[name].append(((time.process_time() - cpu) * portion, (time.perf_counter() - wall) * portion))
        case = {'scale': scale, 'output': [SIDE * scale] * 2}
        for name in sides:
            case[name] = {'cpu_seconds': statistics.median(t[0] for t in times[name]),
                          'wall_seconds': statistics.median(t[1] for t in times[name])}
            if name.startswith('g='):
                case[name] |= {f'times_faster_than_{side}': statistics.median(
                    slow[0] / fast[0] for slow, fast in zip(times[side], times[name])) for side in TIMED}
        found['decode'].append(case)
    found['frames'] = [measure_frames(model, codes, g) for g in DENSITIES]
    return found


def speed_sides(model, codes, scale):
    """{name: (function that decodes all or a part of the rows, output rows per timed row)}."""
    size = SIDE * scale
    x, cell = axis_coord(size), torch.tensor([2 / size, 2 / size])
    rows = {side: max(1, min(size, pixels // size)) for side, pixels in TIMED.items()}
    _, textbook = cases.textbook_stages(model, codes.feat, (size, size), rows['textbook'])
    sides = {'textbook': (lambda: textbook(codes.feat), size / rows['textbook']),
             'exact': (lambda: model.decode_grid(codes, x[:rows['exact']], x, cell), size / rows['exact'])}
    for g in DENSITIES:
        sides[f'g={g}'] = lambda g=g: lattice.on_grid(model, codes, x, x, cell, g), 1
    return sides


def measure_frames(model, codes, g, count=10):
    """Frames per second at 1280x720 while a view zooms in on the image, from a lattice that is kept."""
    kept = lattice.make_lattice(model, codes, torch.tensor([0.5 / SIDE, 0.5 / SIDE]), g)
    times = []
    for i in range(-2, count):  # the first two are the warm-up
        half = 0.95 * 0.8 ** max(i, 0)
        y, x = (axis_coord(n, -half, half) for n in FRAME)
        cpu, wall = time.process_time(), time.perf_counter()
        lattice.resample(model, kept, y, x)
        if i >= 0:
            times.append((time.process_time() - cpu, time.perf_counter() - wall))
    return {'g': g, 'size': list(FRAME), 'cpu_seconds': statistics.median(t[0] for t in times),
            'wall_seconds': statistics.median(t[1] for t in times),
            'best_wall_seconds': min(t[1] for t in times)}


def measure_truth(args):
    """For each set and scale: PSNR by the exact decode, and what each density loses, on average and at worst."""
    exact = load_renderer(None, gpu='cpu')
    renderers = {'exact': exact, **{f'g={g}': Renderer(exact.model, exact.data_norm, decode='lattice', lattice=g)
                                    for g in DENSITIES}}
    rows = []
    for name, folder in (part.split('=', 1) for part in args.sets):
        paths = [os.path.join(folder, file) for file in list_images(folder)[:args.first]]
        for scale in TRUTH_SCALES:
            found = [r for r in (compare(renderers, path, scale, args.crop) for path in paths) if r]
            row = {'set': name, 'scale': scale, 'images': len(found),
                   'exact': statistics.mean(r['exact'] for r in found)}
            for g in DENSITIES:
                loss = [r['exact'] - r[f'g={g}'] for r in found]
                row[f'g={g}'] = {'loss': statistics.mean(loss), 'worst': max(loss),
                                 'distance': statistics.mean(r[f'distance {g}'] for r in found),
                                 'nearest': min(r[f'distance {g}'] for r in found)}
            rows.append(row)
            print(json.dumps(rounded(row)), flush=True)
    return {'crop': args.crop, 'first': args.first, 'rows': rows}


def compare(renderers, path, scale, crop):
    """PSNR against the middle of the ground truth, and of each density against the exact decode, in dB; None for an
    image that is too small."""
    image = torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1)  # (3, H, W), uint8
    h, w = (n // scale for n in image.shape[-2:])
    if min(h, w) < 4:
        return None
    truth = image[:, :h * scale, :w * scale]
    small = Image.fromarray(truth.permute(1, 2, 0).numpy()).resize((w, h), Image.BICUBIC)
    inp = torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255
    height, width = (min(crop, n * scale) for n in (h, w))
    top, left = (h * scale - height) // 2, (w * scale - width) // 2
    region = [n / scale for n in (left, top, width, height)]
    out = {name: renderer.open(inp).render((height, width), region=region) for name, renderer in renderers.items()}
    truth = truth[:, top:top + height, left:left + width] / 255
    result = {name: calc_psnr(rgb[None], truth[None]).item() for name, rgb in out.items()}
    return result | {f'distance {g}': calc_psnr(out[f'g={g}'][None], out['exact'][None]).item() for g in DENSITIES}


if __name__ == '__main__':
    run_program(main)
