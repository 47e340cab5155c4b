"""Seconds of decoding and of training, fast path against textbook formula, and what they are made of."""
import contextlib
import functools
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cases, memory
from engine.runtime import DTYPES, keep_freed_memory
from models.decode import rows_per_chunk


ROUNDS = {'cpu': 3, 'cuda': 11}
PROCESSES = 3  # in turn for each side of a CPU's decode, since one may be lucky with its memory throughout
QUERIES = 90000  # of an image that are timed on a CPU, the rest being alike, so that there is time for many rounds
PRECISIONS = 'float32', 'bf16'
SIDES = 'textbook', 'fast', 'product'


def measure_decode(device, quick):
    """Per case and precision: seconds of encoding and decoding by both, ratios, and the decoder's share of the rate at
    which this machine does nothing but 256-wide products with ReLU; on a GPU the share of its matrix units' peak."""
    rounds = 1 if quick else 2 if device.type == 'cpu' else ROUNDS[device.type]
    peak = measure_peak(device, quick)
    chosen = cases.QUICK['decode'] if quick else cases.DECODE + [cases.FRAME] * (device.type == 'cuda')
    result = {'peak_gflops': peak, 'cases': [decode_case(c, rounds, device, quick, peak) for c in chosen]}
    h, w, scale = chosen[-1] if device.type == 'cuda' else chosen[1]
    result['profile'] = {'input': [h, w], 'scale': scale, **{
        name: top_operators(*side_stages('fast', name, (h, w, scale), None, device, quick), False, device)
        for name in PRECISIONS}}
    return result


@contextlib.contextmanager
def sides_apart(device, kept=False):
    """`time_side`, on a CPU with a new process for each side, as people would run them; kept: ones that keep the memory
    they free. How soon a process gets memory depends on what it did before."""
    if device.type != 'cpu':
        yield time_side
        return
    with contextlib.ExitStack() as stack:
        processes = {side: stack.enter_context(ProcessPoolExecutor(
            1, multiprocessing.get_context('spawn'), keep_freed_memory if kept else None)) for side in SIDES}
        yield lambda side, *args: processes[side].submit(time_side, side, *args).result()


def time_side(side, *args):
    """(Seconds of the stages of one side: [encode, decode], of the product [all]; page faults on a CPU)."""
    device = args[-2]
    stages = {side: (*side_stages(side, *args), False)}
    before = page_faults(device)
    times = cases.interleave(stages, 1, device)[side][0]
    return times, page_faults(device) - before


def page_faults(device):
    if device.type != 'cpu':
        return 0
    import resource  # of Unix
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@functools.lru_cache(maxsize=4)
def side_stages(side, precision, case, rows, device, quick):
    """(Stages, the precision to run them under) of the first `rows` output rows of a case."""
    h, w, scale = case
    size = h * scale, w * scale
    model = cases.make_model(device, quick)
    inp = torch.rand(1, 3, h, w, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
    if side == 'textbook':
        return cases.textbook_stages(model, inp, size, rows), precision
    model = model.to(memory_format=torch.channels_last)
    if side == 'fast':
        return cases.fast_stages(model, inp, size, rows), precision
    width, dtype = model.imnet.layers[-1].in_features, DTYPES[precision]
    rows = rows_per_chunk(torch.empty(0, width, device=device, dtype=dtype))
    return cases.product_stages(width, rows, 3, device, dtype), 'float32'


def decode_case(case, rounds, device, quick, peak):
    h, w, scale = case
    size = h * scale, w * scale
    rows = size[0] if device.type == 'cuda' else min(size[0], -(-QUERIES // size[1]))

    few, portion = -(-cases.TEXTBOOK_CHUNK // size[1]), size[0] / rows
    runs = []  # (whether its processes keep freed memory, what `time_side` says of each side and precision)
    for kept in [False] if quick or device.type != 'cpu' else [False] * PROCESSES + [True]:
        with sides_apart(device, kept) as timed:
            for count in [0] + [rows] * rounds:  # the first is the warm-up
                run = {f'{side} {name}': timed(side, name, case, count or few, device, quick)
                       for name in PRECISIONS for side in SIDES}
                if count:
                    runs.append((kept, run))

    def found(what, kept):
        """Of each run: (seconds of encoding, of decoding the whole output); of the product (seconds,)."""
        times = [run[what][0] for k, run in runs if k == kept]
        return times if what.startswith('product') else [(encode, decode * portion) for encode, decode in times]

    times = {what: found(what, False) for what in runs[0][1]}
    result = {'input': [h, w], 'scale': scale, 'output': size, 'rows_timed': rows}
    model = cases.make_model(device, quick)
    for name in PRECISIONS:
        result[name] = {side: {'encode': median(t[0] for t in times[f'{side} {name}']),
                               'decode': median(t[1] for t in times[f'{side} {name}'])}
                        for side in ('textbook', 'fast')}
        result[name]['ratio'] = ratio(times[f'textbook {name}'], times[f'fast {name}'])
        decoders = ([t[1:] for t in times[f'{side} {name}']] for side in ('textbook', 'fast'))
        result[name]['ratio_of_decoders'] = ratio(*decoders)
        flops, product = cases.decoder_flops(model, size[0] * size[1]), times[f'product {name}']
        product_flops = side_stages('product', name, case, rows, device, quick)[0][0].flops
        result[name]['product_gflops'] = median(product_flops / t[0] / 1e9 for t in product)
        result[name]['decoder_gflops'] = median(flops / t[1] / 1e9 for t in times[f'fast {name}'])
        result[name]['share_of_product'] = median(
            flops / t[1] / (product_flops / p[0]) for t, p in zip(times[f'fast {name}'], product))
        if peak:
            operations = count_flops(*side_stages('fast', name, case, rows, device, quick), False)
            seconds = median(sum(t) for t in times[f'fast {name}'])
            result[name]['share_of_peak'] = operations / seconds / 1e9 / peak[name]
        if runs[-1][0]:
            kept = {side: found(f'{side} {name}', True) for side in ('textbook', 'fast')}
            result[name]['kept'] = {'ratio': ratio(kept['textbook'], kept['fast']),
                                    **{side: median(map(sum, kept[side])) for side in kept}}
            # Those of encoding are scaled with the rows, too, which counts them several times over.
            result[name]['page_faults'] = {side: median(run[f'{side} {name}'][1] * portion for k, run in runs if not k)
                                           for side in ('textbook', 'fast')}
    result['bf16']['ratio_to_textbook_float32'] = ratio(times['textbook float32'], times['fast bf16'])
    return result


def measure_train(device, quick):
    """A whole training step by both, in both precisions; its operations, and its share of the peak of a GPU."""
    if device.type == 'cpu':
        keep_freed_memory()
    peak = measure_peak(device, quick)
    sides = {f'{side} {name}': (stages(device, name, quick), name, True) for name in PRECISIONS
             for side, stages in (('textbook', cases.textbook_step_stages), ('fast', cases.step_stages))}
    cases.interleave(sides, 1 if quick else 5 if device.type == 'cuda' else 2, device)  # warm-up
    times = cases.interleave(sides, 1 if quick else ROUNDS[device.type], device)
    result = {'setting': dict(zip(('batch', 'side', 'queries'),
                                  cases.QUICK['step'] if quick else (cases.BATCH, cases.SIDE, cases.QUERIES)))}
    for name in PRECISIONS:
        result[name] = {side: {'seconds': median(sum(t) for t in times[f'{side} {name}'])}
                        for side in ('textbook', 'fast')}
        result[name]['ratio'] = ratio(times[f'textbook {name}'], times[f'fast {name}'])
        result[name]['gflops'] = count_flops(*sides[f'fast {name}']) / 1e9 / result[name]['fast']['seconds']
        if peak:
            result[name]['share_of_peak'] = result[name]['gflops'] / peak[name]
    result['bf16']['ratio_to_textbook_float32'] = ratio(times['textbook float32'], times['fast bf16'])
    result['profile'] = {name: top_operators(*sides[f'fast {name}'], device) for name in PRECISIONS}
    if device.type == 'cpu':
        result['keep_freed_memory'] = memory.effect_of_keeping(quick)
    return result


def top_operators(stages, precision_name, gradients, device):
    entry = {'it': (stages, precision_name, gradients)}
    cases.interleave(entry, 2, device)  # warm-up
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * (device.type == 'cuda')
    with torch.profiler.profile(activities=kinds) as profile:
        cases.interleave(entry, 1, device)
    time_of = {event: getattr(event, f'self_{"device" if device.type == "cuda" else "cpu"}_time_total')
               for event in profile.key_averages()}
    total = sum(time_of.values()) or 1
    top = sorted(time_of, key=time_of.get, reverse=True)[:10]
    return [{'operator': event.key[:80], 'calls': event.count, 'ms': time_of[event] / 1e3,
             'share': time_of[event] / total} for event in top]


def measure_peak(device, quick):
    """GFLOP/s of large square products, which is what a GPU's matrix units reach; None on a CPU, where the product of
    the decoder's own size stands for it."""
    if device.type == 'cpu':
        return None
    n = 64 if quick else 8192
    entries = {name: (cases.product_stages(n, n, 1, device, DTYPES[name]), 'float32', False) for name in PRECISIONS}
    cases.interleave(entries, 1, device)  # warm-up
    times = cases.interleave(entries, 1 if quick else 5, device)
    return {name: entries[name][0][0].flops / median(t[0] for t in times[name]) / 1e9 for name in entries}


def count_flops(stages, precision, gradients):
    counter = FlopCounterMode(display=False)
    with counter:
        cases.interleave({'it': (stages, precision, gradients)}, 1, torch.device('cpu'))
    return counter.get_total_flops()


def median(values):
    return statistics.median(values)


def ratio(slow, fast):
    return median(sum(s) / sum(f) for s, f in zip(slow, fast))
