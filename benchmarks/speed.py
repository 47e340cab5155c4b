"""Seconds and memory of decoding and of a training step, here ('fast') and by the textbook formula.

Each measurement has a new process, `python -m benchmarks.speed OPTIONS`, because speed and memory depend on what a
process did before; what is compared is measured by turns.
"""
import json
import subprocess
import sys
from typing import NamedTuple

import engine  # before torch: how its threads wait
import torch
from torch.utils.flop_counter import FlopCounterMode

import models
from benchmarks.common import median, ratio
from engine.rendering.renderer import Renderer
from engine.runtime import DTYPES, autocast, keep_freed_memory, peak_memory, reset_peak_memory
from engine.training.loop import train_step
from engine.training.state import State
from models import textbook
from models.decode import rows_per_chunk
from utils import axis_coord, make_coord

PRECISIONS, SIDES = ('float32', 'bf16'), ('textbook', 'fast')
QUERIES = 90000  # of an image that are timed on a CPU; the others take as long
TEXTBOOK_CHUNK = 30000
MB = 1 << 20


class Sizes(NamedTuple):
    """model: arguments of a LIIF; decode: (h, w, scale) of each case; frame: another, for GPUs; large: one to render in
    tiles; step: samples, side of the inputs, queries; product: operations of plain products; rounds: of all."""
    model: dict
    decode: list
    frame: tuple
    large: tuple
    step: tuple
    product: dict
    rounds: int


def liif(hidden, **encoder):
    return {'encoder_spec': {'name': 'edsr-baseline', 'args': {'no_upsampling': True, **encoder}},
            'imnet_spec': {'name': 'mlp', 'args': {'out_dim': 3, 'hidden_list': hidden}}}


PAPER = Sizes(liif([256] * 4), [(256, 256, 2), (96, 96, 4), (170, 128, 8), (64, 64, 12), (48, 48, 30)], (540, 960, 4),
              (1500, 2000, 2), (16, 48, 2304), {'cpu': 5e10, 'cuda': 1e13}, rounds=3)
QUICK = Sizes(liif([16, 16], n_resblocks=2, n_feats=8), [(12, 10, 2), (9, 11, 4)], (9, 12, 2), (40, 30, 2), (2, 8, 50),
              {'cpu': 1e7, 'cuda': 1e7}, rounds=1)


def sizes(quick):
    return QUICK if quick else PAPER


def make_model(device, quick=False):
    """EDSR-baseline-LIIF (a tiny LIIF when quick), with random weights that are the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.make({'name': 'liif', 'args': sizes(quick).model}).to(device).eval()


# What is measured: stages, each a function of what the one before returned.

def stages(what, device, precision, quick=False, case=(8, 8, 1), rows=None, budget=None):
    """what: 'fast' and 'textbook' encode, then decode the first `rows` output rows of case (h, w, scale); 'render'
    makes the whole 8-bit output with a budget in MB; 'product' makes products like those of the decoder's hidden
    layers; 'step' and 'textbook-step' train."""
    if what.endswith('step'):
        return [step(what, device, precision, quick)]
    model, (h, w, scale) = make_model(device, quick), case
    if what == 'product':
        return [products(model.imnet.layers[-1].in_features, device, DTYPES[precision], sizes(quick).product)]
    inp = torch.rand(1, 3, h, w, generator=torch.Generator().manual_seed(0)).to(device)
    if what == 'textbook':
        found = textbook_stages(model, inp * 2 - 1, (h * scale, w * scale), rows)
    else:
        model = model.to(memory_format=torch.channels_last)
        if what == 'render':
            renderer = Renderer(model, precision=precision, memory=budget and budget * MB)
            return [lambda _: renderer.open(inp[0]).render((h * scale, w * scale), dtype=torch.uint8)]
        found = fast_stages(model, inp * 2 - 1, (h * scale, w * scale), rows)

    def cast(stage, value):
        with torch.no_grad(), autocast(device, precision):
            return stage(value)
    return [lambda value, stage=stage: cast(stage, value) for stage in found]


def fast_stages(model, inp, size, rows=None):
    y, x = (axis_coord(n, device=inp.device) for n in size)
    cell = torch.tensor([2 / n for n in size], device=inp.device)
    inp = inp.contiguous(memory_format=torch.channels_last)
    return [lambda _: model.encode(inp), lambda codes: model.decode_grid(codes, y[:rows], x, cell)]


def textbook_stages(model, inp, size, rows=None):
    """The same by the textbook formula, unfolding anew for every 30000 queries."""
    coord = make_coord(size, device=inp.device)[None, :(rows or size[0]) * size[1]]
    cell = torch.tensor([2 / n for n in size], device=inp.device).expand_as(coord)
    return [lambda _: model.encoder(inp), lambda feat: torch.cat([
        textbook.query(model, feat, x, c) for x, c in
        zip(coord.split(TEXTBOOK_CHUNK, 1), cell.split(TEXTBOOK_CHUNK, 1))], dim=1)]


def products(width, device, dtype, operations):
    """Three products with ReLU, over and over, in buffers that exist already: what the decoder's hidden layers
    come down to. The function's `flops` are the operations of a call."""
    random, rows = torch.Generator().manual_seed(0), rows_per_chunk(torch.empty(0, width, device=device, dtype=dtype))
    x, *buffers = (torch.rand(rows, width, generator=random).to(device, dtype) for _ in range(3))
    weight = ((torch.rand(width, width, generator=random) - 0.5) / width ** 0.5).to(device, dtype)
    bias = torch.zeros(width, device=device, dtype=dtype)
    repeat = max(1, round(operations[device.type] / (6 * rows * width * width)))

    def run(_):
        for _ in range(repeat):
            out = x
            for i in range(3):
                out = torch.addmm(bias, out, weight, out=buffers[i % 2]).relu_()  # (rows, width)
        return out
    run.flops = 6 * rows * width * width * repeat
    return run


def step(what, device, precision, quick):
    """A training step as train_liif.py makes it, on a batch like those of the paper; 'textbook-step': the same with the
    textbook formula in the model's place."""
    state = State({'model': {'name': 'liif', 'args': sizes(quick).model}, 'precision': precision, 'data_norm': None,
                   'optimizer': {'name': 'adam', 'args': {'lr': 1e-4}}, 'grad_clip': None, 'ema': None}, device, 1)
    model, batch = state.model, training_batch(device, quick)
    net = model if what == 'step' else lambda inp, coord, cell: textbook.query(model, model.encoder(inp), coord, cell)
    return lambda _: train_step(net, state, batch, 1e-4)[0].item()


def training_batch(device, quick):
    """Normalized inputs and queries as `unpack` gives them, of random scales from 1 to 4."""
    (b, side, q), random = sizes(quick).step, torch.Generator().manual_seed(0)
    inp, coord, gt = (torch.rand(*shape, generator=random).to(device) * 2 - 1
                      for shape in ((b, 3, side, side), (b, q, 2), (b, q, 3)))
    cell = 2 / (side * (1 + 3 * torch.rand(b, 1, 1, generator=random)))
    return {'inp': inp, 'coord': coord, 'cell': cell.to(device).expand(b, q, 2), 'gt': gt}


# How it is measured.

def run(functions):
    value = None
    for function in functions:
        value = function(value)


def measure(what, kind, precision='float32', keep=False, quick=False, calls=0, **options):
    """{seconds: of each stage, the mean of `calls` after two that are not timed, none without calls; peak_mb: the peak
    of memory beyond what was there before, None where the system does not tell; flops: of products}.

    keep: freed memory stays with the process (CPU); options: of `stages`.
    """
    from torch.utils.benchmark import Timer  # here, since it warns on standard error where there is no CUDA
    device = torch.device(kind)
    if keep:
        keep_freed_memory()
    if what in SIDES:
        run(stages(what, device, precision, quick))  # loads what is loaded once
    functions = stages(what, device, precision, quick, **options)
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


def measure_apart(**options):
    """The result of `measure` in a new process."""
    done = subprocess.run([sys.executable, '-m', 'benchmarks.speed', json.dumps(options)], stdout=subprocess.PIPE,
                          text=True, cwd=engine.ROOT, check=True)
    return json.loads(done.stdout)


def in_processes(device, quick, kinds, **options):
    """{kind: what `measure` says in each round}; a kind is (what, precision, whether freed memory is kept)."""
    found = {kind: [] for kind in kinds}
    for _ in range(sizes(quick).rounds):
        for what, precision, keep in kinds:
            found[what, precision, keep].append((measure if quick else measure_apart)(  # a process takes seconds
                what=what, kind=device.type, precision=precision, keep=keep, quick=quick, **options))
    return found


def chosen_cases(device, quick):
    return sizes(quick).decode + [sizes(quick).frame] * (device.type == 'cuda')


def measure_decode(device, quick):
    """Per case and precision: seconds of encoding and decoding by both sides, their ratio, also where both keep freed
    memory, and the decoder's share of the rate of plain products."""
    return {'cases': [decode_case(case, device, quick) for case in chosen_cases(device, quick)]}


def decode_case(case, device, quick):
    h, w, scale = case
    rows = h * scale if device.type == 'cuda' else min(h * scale, -(-QUERIES // (w * scale)))
    kinds = [(side, name, keep) for name in PRECISIONS for side in SIDES for keep in (False, True)]
    kinds += [('product', name, False) for name in PRECISIONS]
    runs = in_processes(device, quick, kinds, case=case, rows=rows, calls=1)
    parts = {kind: [[run['seconds'][0], run['seconds'][1] * h * scale / rows] for run in runs[kind]]
             for kind in kinds if kind[0] in SIDES}
    total = {kind: list(map(sum, found)) for kind, found in parts.items()}
    flops = decoder_flops(make_model(device, quick), h * w * scale ** 2)
    result = {'input': [h, w], 'scale': scale, 'rows_timed': rows}
    for name in PRECISIONS:
        product = [run['flops'] / run['seconds'][0] for run in runs['product', name, False]]
        ours = [flops / decode for _, decode in parts['fast', name, False]]
        result[name] = {
            **{side: dict(zip(('encode', 'decode'), map(median, zip(*parts[side, name, False])))) for side in SIDES},
            'ratio': ratio(total['textbook', name, False], total['fast', name, False]),
            'ratio_both_keep': ratio(total['textbook', name, True], total['fast', name, True]),
            'product_gflops': median(product) / 1e9, 'decoder_gflops': median(ours) / 1e9,
            'share_of_product': ratio(ours, product)}
    result['bf16']['ratio_to_textbook_float32'] = ratio(total['textbook', 'float32', False],
                                                        total['fast', 'bf16', False])
    return result


def decoder_flops(model, queries):
    """Floating-point operations of the fast decoder; the table of the first layer excluded."""
    first, *others = [layer.weight.shape for layer in model.imnet.layers if hasattr(layer, 'weight')]
    return 2 * 4 * queries * (first[0] * 4 + sum(n * m for n, m in others))


def measure_train(device, quick):
    """Per precision: seconds and peak MB of a training step by both sides, as people run them: the textbook formula by
    default, here with freed memory kept, as train_liif.py does; and their ratio, also where both keep it."""
    kinds = [(what, name, keep) for name in PRECISIONS
             for what, keep in (('step', True), ('textbook-step', False), ('textbook-step', True))]
    runs, result = in_processes(device, quick, kinds, calls=1 if quick else 4), {}
    times = {kind: [run['seconds'][0] for run in found] for kind, found in runs.items()}
    for name in PRECISIONS:
        ours, theirs = ('step', name, True), ('textbook-step', name, False)
        with FlopCounterMode(display=False) as counter:
            run(stages('step', device, name, quick))
        result[name] = {side: {'seconds': median(times[kind]), 'peak_mb': median(run['peak_mb'] for run in runs[kind])}
                        for side, kind in (('textbook', theirs), ('fast', ours))}
        result[name] |= {'ratio': ratio(times[theirs], times[ours]),
                         'ratio_to_textbook_float32': ratio(times['textbook-step', 'float32', False], times[ours]),
                         'ratio_both_keep': ratio(times['textbook-step', name, True], times[ours]),
                         'gflops': counter.get_total_flops() / 1e9 / median(times[ours])}
    return result


def measure_memory(device, quick):
    """MB beyond the 8-bit output: `cases` of decoding; `large`: in tiles, in half precision."""
    h, w, scale = large = sizes(quick).large
    tiles = measure_apart(what='render', kind=device.type, precision='bf16', case=large, budget=512, quick=quick)
    return {'cases': [memory_of(case, device, quick) for case in chosen_cases(device, quick)],
            'large': {'input': [h, w], 'scale': scale,  # the textbook formula would need its 576 channels
                      'textbook_unfolded_features_mb': 576 * 4 * h * w / MB,
                      'fast': {'beyond_output_mb': tiles['peak_mb'] and tiles['peak_mb'] - output_mb(large)}}}


def memory_of(case, device, quick):
    """On a CPU two chunks of the textbook formula stand for all, which need as much; the floats of the other rows,
    which would wait for them, are added."""
    height, width = case[0] * case[2], case[1] * case[2]
    rows = height if device.type == 'cuda' else min(height, -(-2 * TEXTBOOK_CHUNK // width))
    runs = in_processes(device, quick, [('textbook', 'float32', False), ('render', 'float32', False)], case=case,
                        rows=rows)
    slow, fast = (median(run['peak_mb'] for run in found) for found in runs.values())
    waiting = 12 * (height - rows) * width / MB
    return {'input': case[:2], 'scale': case[2],
            'textbook': {'beyond_output_mb': slow and slow + waiting - output_mb(case)},
            'fast': {'beyond_output_mb': fast and fast - output_mb(case)}}


def output_mb(case):
    return 3 * case[0] * case[1] * case[2] ** 2 / MB


if __name__ == '__main__':
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
