"""The speed of the lattice decode: a section of benchmarks/run.py. What it costs in PSNR: benchmarks/accuracy.py."""
import itertools
import statistics
import time

import torch

from benchmarks.common import by_turns, ratio
from benchmarks.speed import make_model, textbook_stages
from models import lattice
from utils import axis_coord

SIDE, SCALES, DENSITIES, ROUNDS = 32, (6, 8, 12, 30), (4, 6), 3
TIMED = {'textbook': 10_000, 'exact': 20_000}  # output pixels of the sides whose cost grows with them
FRAME = (720, 1280)


@torch.no_grad()
def measure_lattice(device, quick):
    """CPU seconds of decoding an image of SIDE x SIDE from codes of random weights, by turns; of exact and textbook a
    part of the rows is timed. Wall seconds of frames from a kept lattice."""
    model, found = make_model(device, quick), []
    codes = model.encode(torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1)
    for scale in SCALES[:1] if quick else SCALES:
        size = SIDE * scale
        x, cell = axis_coord(size, device=device), torch.tensor([2 / size, 2 / size], device=device)
        rows = {side: max(1, min(size, pixels // size)) for side, pixels in TIMED.items()}
        _, textbook = textbook_stages(model, codes.feat, (size, size), rows['textbook'])
        times = by_turns({'textbook': lambda: textbook(codes.feat),
                          'exact': lambda: model.decode_grid(codes, x[:rows['exact']], x, cell),
                          **{f'g={g}': lambda g=g: lattice.on_grid(model, codes, x, x, cell, g) for g in DENSITIES}},
                         1 if quick else ROUNDS)
        times |= {side: [t * size / rows[side] for t in times[side]] for side in TIMED}
        case = {name: {'cpu_seconds': statistics.median(seconds)} for name, seconds in times.items()}
        for g in DENSITIES:
            case[f'g={g}'] |= {f'times_faster_than_{side}': ratio(times[side], times[f'g={g}']) for side in TIMED}
        found.append({'scale': scale, 'output': [size, size], **case})
    return {'input': [SIDE, SIDE], 'decode': found, 'frames': [measure_frames(model, codes, g) for g in DENSITIES]}


def measure_frames(model, codes, g, count=10):
    """Seconds of a frame while a view zooms in on the image, from a lattice that is kept."""
    cell = torch.tensor([0.5 / SIDE, 0.5 / SIDE], device=codes.feat.device)
    kept, numbers = lattice.make_lattice(model, codes, cell, g), itertools.count()

    def frame():
        half = 0.95 * 0.8 ** next(numbers)
        lattice.resample(model, kept, *(axis_coord(n, -half, half, device=cell.device) for n in FRAME))
    seconds = by_turns({'frame': frame}, count, time.perf_counter)['frame']
    return {'g': g, 'size': list(FRAME), 'wall_seconds': statistics.median(seconds)}
