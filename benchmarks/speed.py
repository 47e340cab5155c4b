"""Seconds and memory of decoding and training, fast path and textbook formula, measured in processes by turns."""
import statistics

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cases, worker

ROUNDS = 3  # processes of each kind
QUERIES = 90000  # of an image that are timed on a CPU; the others take as long
PRECISIONS = 'float32', 'bf16'
SIDES = 'textbook', 'fast'
LARGE = 1500, 2000, 2


def by_turns(device, quick, kinds, **options):
    """A dict a round: {kind: what `worker.measure` says}; a kind is (what, precision, whether freed memory is kept)."""
    run = worker.measure if quick else worker.run  # each in a new process, which takes seconds
    return [{kind: run(kind[0], device.type, precision=kind[1], keep=kind[2], quick=quick, **options)
             for kind in kinds} for _ in range(1 if quick else ROUNDS)]


def measure_decode(device, quick):
    """Per case and precision: seconds of encoding and decoding by both sides, their ratio, also where both keep freed
    memory (`kept`), and the decoder's share of the rate of plain products."""
    chosen = chosen_cases(device, quick)
    result = {'cases': [decode_case(case, device, quick) for case in chosen]}
    case = chosen[-1] if device.type == 'cuda' else chosen[1]
    result['profile'] = {name: top_operators(worker.stages('fast', device, name, quick, case), device, name)
                         for name in PRECISIONS}
    return result


def chosen_cases(device, quick):
    return cases.QUICK['decode'] if quick else cases.DECODE + [cases.FRAME] * (device.type == 'cuda')


def decode_case(case, device, quick):
    h, w, scale = case
    rows = h * scale if device.type == 'cuda' else min(h * scale, -(-QUERIES // (w * scale)))
    ways, portion = (False, True) if device.type == 'cpu' else (False,), h * scale / rows
    kinds = [(what, name, keep) for name in PRECISIONS for what in (*SIDES, 'product')
             for keep in (ways if what in SIDES else [False])]
    runs = by_turns(device, quick, kinds, case=case, rows=rows, calls=3, skip=1)
    times = {kind: [[run[kind]['seconds'][0], portion * run[kind]['seconds'][-1]] for run in runs] for kind in runs[0]}
    flops = cases.decoder_flops(cases.make_model(device, quick), h * w * scale ** 2)
    result = {'input': [h, w], 'scale': scale, 'rows_timed': rows}
    for name in PRECISIONS:
        slow, fast = (times[side, name, False] for side in SIDES)
        product = [run['product', name, False]['flops'] / run['product', name, False]['seconds'][0] for run in runs]
        result[name] = {
            **{side: {'encode': median(t[0] for t in found), 'decode': median(t[1] for t in found)}
               for side, found in zip(SIDES, (slow, fast))},
            'ratio': ratio(slow, fast), 'product_gflops': median(product) / 1e9,
            'decoder_gflops': median(flops / t[1] for t in fast) / 1e9,
            'share_of_product': median(flops / t[1] / rate for t, rate in zip(fast, product))}
        if True in ways:
            result[name]['kept'] = {'ratio': ratio(*(times[side, name, True] for side in SIDES)), **{
                side: median(map(sum, times[side, name, True])) for side in SIDES}}
    result['bf16']['ratio_to_textbook_float32'] = ratio(times['textbook', 'float32', False],
                                                        times['fast', 'bf16', False])
    return result


def measure_train(device, quick):
    """A training step. `keep_freed_memory`, on a CPU: by processes that give freed memory back, as is the default, and
    by ones that keep it, as train_liif.py does, with the ratio of the textbook's by default to ours as train_liif.py
    runs it; the other numbers are of processes that keep it."""
    ways = ('given_back', 'kept') if device.type == 'cpu' else ('kept',)
    kinds = {(f'{prefix}step {name}', way): (f'{prefix}step', name, way == 'kept' and device.type == 'cpu')
             for prefix in ('', 'textbook-') for name in PRECISIONS for way in ways}
    runs = by_turns(device, quick, kinds.values(), calls=3 if quick else 6, skip=2)
    times = {key: [run[kind]['seconds'] for run in runs] for key, kind in kinds.items()}
    keeping = {}
    for (name, way), kind in kinds.items():
        keeping.setdefault(name, {})[way] = {'seconds': median(map(sum, times[name, way])),
                                             'peak_mb': median(run[kind]['peak_mb'] for run in runs)}
    result = {'profile': {}}
    for name in PRECISIONS:
        ours, theirs = f'step {name}', (f'textbook-step {name}', 'textbook-step float32')
        functions, seconds = cases.step_stages(device, name, quick), keeping[ours]['kept']['seconds']
        result[name] = {'textbook': keeping[theirs[0]]['kept'], 'fast': keeping[ours]['kept'],
                        'gflops': count_flops(functions, device, name, True) / 1e9 / seconds}
        for way, place in zip(ways[::-1], (result[name], keeping[ours])):
            for key, their in zip(('ratio', 'ratio_to_textbook_float32'), theirs):
                place[key] = ratio(times[their, way], times[ours, 'kept'])
        result['profile'][name] = top_operators(functions, device, name, True)
    return {**result, **({'keep_freed_memory': keeping} if device.type == 'cpu' else {})}


def measure_memory(device, quick):
    """MB: `cases` of decoding, beyond the 8-bit output; `large`: in tiles, in half precision; `train`: a step."""
    h, w, scale = large = (40, 30, 2) if quick else LARGE
    tiles = worker.run('render', device.type, precision='bf16', case=large, budget=512, quick=quick)
    steps = by_turns(device, quick, [(what, name, False) for what in ('step', 'textbook-step') for name in PRECISIONS],
                     calls=2)
    return {'cases': [memory_of(case, device, quick) for case in chosen_cases(device, quick)],
            'large': {'input': [h, w], 'scale': scale,  # the textbook formula would need its 576 channels
                      'textbook_unfolded_features_mb': 576 * 4 * h * w / worker.MB,
                      'fast': {'beyond_output_mb': tiles['peak_mb'] and tiles['peak_mb'] - output_mb(large)}},
            'train': {f'{kind[0]} {kind[1]}': {'peak_mb': median(run[kind]['peak_mb'] for run in steps)}
                      for kind in steps[0]}}


def memory_of(case, device, quick):
    """On a CPU two chunks of the textbook formula stand for all, which need as much; the floats of the other rows,
    which would wait for them, are added."""
    height, width = case[0] * case[2], case[1] * case[2]
    rows = height if device.type == 'cuda' else min(height, -(-2 * cases.TEXTBOOK_CHUNK // width))
    runs = by_turns(device, quick, [('textbook', 'float32', False), ('render', 'float32', False)], case=case, rows=rows)
    slow, fast = (median(run[kind]['peak_mb'] for run in runs) for kind in runs[0])
    waiting = 12 * (height - rows) * width / worker.MB
    return {'input': case[:2], 'scale': case[2],
            'textbook': {'beyond_output_mb': slow and slow + waiting - output_mb(case)},
            'fast': {'beyond_output_mb': fast and fast - output_mb(case)}}


def output_mb(case):
    return 3 * case[0] * case[1] * case[2] ** 2 / worker.MB


def top_operators(functions, device, precision, gradients=False):
    entry = {'it': (functions, precision, gradients)}
    cases.interleave(entry, 1, device)  # warm-up
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * (device.type == 'cuda')
    with torch.profiler.profile(activities=kinds) as profile:
        cases.interleave(entry, 1, device)
    time_of = {event: getattr(event, f'self_{"device" if device.type == "cuda" else "cpu"}_time_total')
               for event in profile.key_averages()}
    total = sum(time_of.values()) or 1
    return [{'operator': event.key[:80], 'calls': event.count, 'ms': time_of[event] / 1e3,
             'share': time_of[event] / total} for event in sorted(time_of, key=time_of.get, reverse=True)[:10]]


def count_flops(functions, device, precision, gradients=False):
    with FlopCounterMode(display=False) as counter:
        cases.interleave({'it': (functions, precision, gradients)}, 1, device)
    return counter.get_total_flops()


def median(values):
    """None where a value was not measured."""
    values = list(values)
    return None if None in values else statistics.median(values)


def ratio(slow, fast):
    return median(sum(s) / sum(f) for s, f in zip(slow, fast))
