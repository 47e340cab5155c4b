"""Seconds and memory of decoding and of a training step, here ('fast') and by the textbook formula, and the speed of
the lattice decode: sections of run.py. What the lattice costs in PSNR: accuracy.py.

Each measurement but those of the lattice has a new process, because speed and memory depend on what a process did
before; what is compared is measured by turns.
"""
import concurrent.futures
import functools
import itertools
import multiprocessing
import os
import time
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import models
from benchmarks.common import by_turns, median, ratio
from benchmarks.roofline import CORNERS, WIDTH, evaluation_cost
from engine import ROOT
from engine.config import load_config
from engine.rendering.renderer import Renderer
from engine.runtime import DTYPES, autocast, keep_freed_memory, peak_memory, reset_peak_memory
from engine.training.loop import train_step
from engine.training.state import State
from models import lattice, textbook
from models.decode import rows_per_chunk
from utils import axis_coord, make_coord

CONFIG = os.path.join(ROOT, 'configs', 'train-div2k', 'train_edsr-baseline-liif.yaml')
PRECISIONS, SIDES = ('float32', 'bf16'), ('textbook', 'fast')
QUERIES = 90000  # of an image that are timed on a CPU; the others take as long
TEXTBOOK_CHUNK = 30000
MB = 1 << 20
SIZES = {False: SimpleNamespace(
    decode=[(256, 256, 2), (96, 96, 4), (170, 128, 8), (64, 64, 12), (48, 48, 30)],  # (h, w, scale) of each case
    frame=(540, 960, 4),  # another case, for GPUs
    large=(1500, 2000, 2),  # one to render in tiles
    step=(16, 48, 2304),  # samples, side of the inputs, queries
    product={'cpu': 5e10, 'cuda': 1e13},  # operations of plain products
    lattice=(32, (6, 8, 12, 30)),  # side of the input, scales
    rounds=3)}
SIZES[True] = SimpleNamespace(  # quick
    decode=[(6, 7, 2)], frame=(9, 12, 2), large=(20, 30, 2), step=(2, 8, 50),
    product={'cpu': 1e7, 'cuda': 1e7}, lattice=(8, (6,)), rounds=1)
DENSITIES = 4, 6  # of the lattice
TIMED = {'textbook': 10_000, 'exact': 20_000}  # output pixels of the sides whose cost grows with them
FRAME = (720, 1280)


def make_model(device):
    """EDSR-baseline-LIIF, with random weights that are the same every time."""
    torch.manual_seed(0)
    return models.make(load_config(CONFIG, check_paths=False)['model']).to(device).eval()


# What is measured: stages, each a function of what the one before returned.

def stages(what, precision, device, quick=False, case=(8, 8, 1), rows=None, budget=None):
    """what: 'fast' and 'textbook' encode, then decode the first `rows` output rows of case (h, w, scale); 'render'
    makes the whole 8-bit output with a budget in MB; 'product' makes products like those of the decoder's hidden
    layers; 'step' and 'textbook-step' train."""
    if what.endswith('step'):
        return [step(what, precision, device, *SIZES[quick].step)]
    if what == 'product':
        return [products(DTYPES[precision], device, SIZES[quick].product[device.type])]
    model, size = make_model(device), [n * case[2] for n in case[:2]]
    inp = torch.rand(1, 3, *case[:2]).to(device)
    if what == 'render':
        model = model.to(memory_format=torch.channels_last)
        renderer = Renderer(model, precision=precision, memory=budget and budget * MB)
        return [lambda _: renderer.open(inp[0]).render(size, dtype=torch.uint8)]

    def cast(stage, value):
        with torch.no_grad(), autocast(device, precision):
            return stage(value)
    found = {'fast': fast_stages, 'textbook': textbook_stages}[what](model, inp * 2 - 1, size, rows)
    return [functools.partial(cast, stage) for stage in found]


def fast_stages(model, inp, size, rows=None):
    y, x = (axis_coord(n, device=inp.device) for n in size)
    cell = torch.tensor([2 / n for n in size], device=inp.device)
    model, inp = (part.to(memory_format=torch.channels_last) for part in (model, inp))
    return [lambda _: model.encode(inp), lambda codes: model.decode_grid(codes, y[:rows], x, cell)]


def textbook_stages(model, inp, size, rows=None):
    """The same by the textbook formula, unfolding anew for every 30000 queries."""
    coord = make_coord(size, device=inp.device)[None, :(rows or size[0]) * size[1]]
    cell = torch.tensor([2 / n for n in size], device=inp.device).expand_as(coord)
    return [lambda _: model.encoder(inp), lambda feat: torch.cat([
        textbook.query(model, feat, x, c) for x, c in
        zip(coord.split(TEXTBOOK_CHUNK, 1), cell.split(TEXTBOOK_CHUNK, 1))], dim=1)]


def products(dtype, device, operations):
    """Three products with ReLU, over and over, in buffers that exist already: what the decoder's hidden layers
    come down to. The function's `flops` are the operations of a call."""
    rows = min(rows_per_chunk(torch.empty(0, WIDTH, device=device, dtype=dtype)),
               max(1, round(operations / (6 * WIDTH ** 2))))
    x, *buffers = torch.rand(3, rows, WIDTH).to(device, dtype)
    weight = ((torch.rand(WIDTH, WIDTH) - 0.5) / WIDTH ** 0.5).to(device, dtype)
    bias = torch.zeros(WIDTH, device=device, dtype=dtype)
    repeat = max(1, round(operations / (6 * rows * WIDTH ** 2)))

    def run(_):
        for _ in range(repeat):
            out = x
            for i in range(3):
                out = torch.addmm(bias, out, weight, out=buffers[i % 2]).relu_()  # (rows, WIDTH)
        return out
    run.flops = 6 * rows * WIDTH ** 2 * repeat
    return run


def step(what, precision, device, b, side, q):
    """A training step as train_liif.py makes it, on random inputs (b, 3, side, side) and q queries of scales from 1 to
    4; 'textbook-step': the same with the textbook formula in the model's place."""
    state = State(load_config(CONFIG, [f'precision={precision}'], check_paths=False), device, 1)
    model, cell = state.model, 2 / (side * (1 + 3 * torch.rand(b, 1, 1)))
    net = model if what == 'step' else lambda inp, coord, cell: textbook.query(model, model.encoder(inp), coord, cell)
    batch = {'inp': torch.rand(b, 3, side, side), 'coord': torch.rand(b, q, 2) * 2 - 1, 'cell': cell.expand(b, q, 2),
             'gt': torch.rand(b, q, 3)}
    batch = {name: value.to(device) for name, value in batch.items()}
    return lambda _: train_step(net, state, batch, 1e-4)[0].item()


# How it is measured.

def run(functions):
    value = None
    for function in functions:
        value = function(value)


def measure(what, precision, keep, device, quick, calls=0, **options):
    """{seconds: of each stage, the mean of `calls` after two that are not timed, none without calls; peak_mb: the peak
    of memory beyond what was there before, None where the system does not tell; flops: of products}.

    keep: freed memory stays with the process (CPU); options: of `stages`.
    """
    from torch.utils.benchmark import Timer  # here, since it warns on standard error where there is no CUDA
    if keep:
        keep_freed_memory()
    if what in SIDES:
        run(stages(what, precision, device))  # loads what is loaded once
    functions = stages(what, precision, device, quick, **options)
    reset_peak_memory(device)
    before, value, seconds = peak_memory(device), [None], []  # the peak so far is what is used now
    for function in functions if calls else []:
        timer = Timer('value[0] = f(x)', globals={'f': function, 'x': value[0], 'value': value},
                      num_threads=torch.get_num_threads())
        seconds.append(timer.timeit(calls).median)
    if not calls:
        run(functions)
    peak = peak_memory(device)
    return {'seconds': seconds, 'peak_mb': None if peak is None else peak - before,
            'flops': getattr(functions[0], 'flops', None)}


def measure_apart(*args, **options):
    """The result of `measure` in a new process."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(measure, *args, **options).result()


def in_processes(kinds, device, quick, **options):
    """{kind: what `measure` says in each round}; a kind is (what, precision, whether freed memory is kept)."""
    found = {kind: [] for kind in kinds}
    for kind in list(found) * SIZES[quick].rounds:  # when quick in this process: a new one takes seconds
        found[kind].append((measure if quick else measure_apart)(*kind, device, quick, **options))
    return found


def chosen_cases(device, quick):
    return SIZES[quick].decode + [SIZES[quick].frame] * (device.type == 'cuda')


def chosen_rows(case, device, queries):
    """How many output rows of a case are computed: on a CPU enough for `queries` pixels, on a GPU all."""
    height, width = (n * case[2] for n in case[:2])
    return height if device.type == 'cuda' else min(height, -(-queries // width))


def measure_decode(device, quick):
    """Per case and precision: seconds of encoding and decoding by both sides, their ratio, also where both keep freed
    memory, and the decoder's share of the rate of plain products."""
    return {'cases': [decode_case(case, device, quick) for case in chosen_cases(device, quick)]}


def decode_case(case, device, quick):
    (h, w, scale), rows = case, chosen_rows(case, device, QUERIES)
    kinds = [*itertools.product(SIDES, PRECISIONS, (False, True)), *(('product', name, False) for name in PRECISIONS)]
    runs = in_processes(kinds, device, quick, case=case, rows=rows, calls=1)
    seconds = {kind: np.array([run['seconds'] for run in found]) for kind, found in runs.items()}  # (rounds, stages)
    parts = {kind: found * [1, h * scale / rows] for kind, found in seconds.items() if kind[0] in SIDES}
    total = {kind: found.sum(1) for kind, found in parts.items()}
    flops = h * w * scale ** 2 * CORNERS * evaluation_cost('float32')[0]  # the table of the first layer excluded
    result = {'input': [h, w], 'scale': scale, 'rows_timed': rows}
    for name in PRECISIONS:
        product = runs['product', name, False][0]['flops'] / seconds['product', name, False][:, 0]
        ours = flops / parts['fast', name, False][:, 1]
        result[name] = {
            **{side: dict(zip(('encode', 'decode'), np.median(parts[side, name, False], 0))) for side in SIDES},
            'ratio': ratio(total['textbook', name, False], total['fast', name, False]),
            'ratio_both_keep': ratio(total['textbook', name, True], total['fast', name, True]),
            'product_gflops': median(product) / 1e9, 'decoder_gflops': median(ours) / 1e9,
            'share_of_product': ratio(ours, product)}
    result['bf16']['ratio_to_textbook_float32'] = ratio(total['textbook', 'float32', False],
                                                        total['fast', 'bf16', False])
    return result


def measure_train(device, quick):
    """Per precision: seconds and peak MB of a training step by both sides, as people run them: the textbook formula by
    default, here with freed memory kept, as train_liif.py does; and their ratio, also where both keep it."""
    kinds = [(what, name, keep) for name in PRECISIONS
             for what, keep in (('step', True), ('textbook-step', False), ('textbook-step', True))]
    runs, result = in_processes(kinds, device, quick, calls=1 if quick else 4), {}
    times = {kind: [run['seconds'][0] for run in found] for kind, found in runs.items()}
    for name in PRECISIONS:
        ours, theirs = ('step', name, True), ('textbook-step', name, False)
        with FlopCounterMode(display=False) as counter:
            run(stages('step', name, device, quick))
        result[name] = {side: {'seconds': median(times[kind]), 'peak_mb': median(run['peak_mb'] for run in runs[kind])}
                        for side, kind in (('textbook', theirs), ('fast', ours))}
        result[name] |= {'ratio': ratio(times[theirs], times[ours]),
                         'ratio_to_textbook_float32': ratio(times['textbook-step', 'float32', False], times[ours]),
                         'ratio_both_keep': ratio(times['textbook-step', name, True], times[ours]),
                         'gflops': counter.get_total_flops() / 1e9 / median(times[ours])}
    return result


def measure_memory(device, quick):
    """MB beyond the 8-bit output: `cases` of decoding; `large`: in tiles, in half precision."""
    h, w, scale = large = SIZES[quick].large
    tiles = measure_apart('render', 'bf16', False, device, quick, case=large, budget=512)
    return {'cases': [memory_of(case, device, quick) for case in chosen_cases(device, quick)],
            'large': {'input': [h, w], 'scale': scale,  # the textbook formula would need its 576 channels
                      'textbook_unfolded_features_mb': 576 * 4 * h * w / MB, 'fast': beyond_output([tiles], large)}}


def memory_of(case, device, quick):
    """On a CPU two chunks of the textbook formula stand for all, since each needs the same memory; the floats of
    the rows not computed, which a whole run would hold, are added."""
    (h, w, scale), rows = case, chosen_rows(case, device, 2 * TEXTBOOK_CHUNK)
    slow, fast = in_processes([('textbook', 'float32', False), ('render', 'float32', False)], device, quick, case=case,
                              rows=rows).values()
    return {'input': [h, w], 'scale': scale, 'fast': beyond_output(fast, case),
            'textbook': beyond_output(slow, case, waiting=12 * (h * scale - rows) * w * scale / MB)}


def beyond_output(runs, case, waiting=0):
    peak = median(run['peak_mb'] for run in runs)
    return {'beyond_output_mb': peak and peak + waiting - 3 * case[0] * case[1] * case[2] ** 2 / MB}


# The lattice decode.

@torch.no_grad()
def measure_lattice(device, quick):
    """CPU seconds of decoding a 32x32 image from codes of random weights, by turns; of exact and textbook a part
    of the rows is timed. Wall seconds of frames from a kept lattice."""
    model, (side, scales), found = make_model(device), SIZES[quick].lattice, []
    codes = model.encode(torch.rand(1, 3, side, side).to(device) * 2 - 1)
    for scale in scales:
        size = side * scale
        x, cell = axis_coord(size, device=device), torch.tensor([2 / size, 2 / size], device=device)
        rows = {side: max(1, min(size, pixels // size)) for side, pixels in TIMED.items()}
        _, textbook = textbook_stages(model, codes.feat, (size, size), rows['textbook'])
        times = by_turns({'textbook': lambda: textbook(codes.feat),
                          'exact': lambda: model.decode_grid(codes, x[:rows['exact']], x, cell),
                          **{f'g={g}': lambda g=g: lattice.on_grid(model, codes, x, x, cell, g) for g in DENSITIES}},
                         SIZES[quick].rounds)
        times |= {side: [t * size / rows[side] for t in times[side]] for side in TIMED}
        case = {name: {'cpu_seconds': median(seconds)} for name, seconds in times.items()}
        for g in DENSITIES:
            case[f'g={g}'] |= {f'times_faster_than_{side}': ratio(times[side], times[f'g={g}']) for side in TIMED}
        found.append({'scale': scale, 'output': [size, size], **case})
    return {'input': [side, side], 'decode': found, 'frames': [measure_frames(model, codes, g) for g in DENSITIES]}


def measure_frames(model, codes, g, count=10):
    """Seconds of a frame while a view zooms in on the image, from a lattice that is kept."""
    cell = 0.5 / torch.tensor(codes.feat.shape[-2:], device=codes.feat.device)
    kept, numbers = lattice.make_lattice(model, codes, cell, g), itertools.count()

    def frame():
        half = 0.95 * 0.8 ** next(numbers)
        lattice.resample(model, kept, *(axis_coord(n, -half, half, device=cell.device) for n in FRAME))
    seconds = by_turns({'frame': frame}, count, time.perf_counter)['frame']
    return {'g': g, 'size': list(FRAME), 'wall_seconds': median(seconds)}
