"""Peak memory, each figure from a process of its own.

On a CPU the peak of the resident set less what it was before; on a GPU the peak of what torch allocated, likewise.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time


sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
import torch  # noqa: E402

from benchmarks import cases  # noqa: E402
from engine.rendering.renderer import Renderer  # noqa: E402
from engine.runtime import autocast, keep_freed_memory  # noqa: E402


MB = 1 << 20
CURVE = (48, 48), (4, 8, 16, 30)
LARGE = 1500, 2000, 2


def measure(device, quick):
    """`cases`: each of the decode cases and a training step; `curve`: one image at growing scales; `large`: an image
    encoded in tiles. Megabytes (2**20 bytes), when decoding the median of three processes: `peak_mb` in all, of decoding
    `beyond_output_mb` the 8-bit output."""
    (side, scales), large, rounds = CURVE, LARGE, 1 if quick else 3
    chosen = cases.DECODE + [cases.FRAME] * (device.type == 'cuda')
    if quick:
        side, scales, large, chosen = (8, 9), (2,), (40, 30, 2), cases.QUICK['decode'][:1]
    result, found = {'cases': [], 'curve': []}, {}
    for key, (h, w, scale) in [('cases', c) for c in chosen] + [('curve', (*side, s)) for s in scales]:
        if (h, w, scale) not in found:
            found[h, w, scale] = {what: [run(what, device, quick, h=h, w=w, scale=scale) for _ in range(rounds)]
                                  for what in ('fast', 'textbook')}
        result[key].append({'input': [h, w], 'scale': scale,
                            **{what: {'peak_mb': _median(r['peak_mb'] for r in runs),
                                      'beyond_output_mb': _median(r['beyond_output_mb'] for r in runs)}
                               for what, runs in found[h, w, scale].items()}})
    # Half precision, so that it takes a minute; the textbook formula would need its 576 channels for the whole image.
    h, w, scale = large
    result['large'] = {'input': [h, w], 'scale': scale, 'textbook_unfolded_features_mb': 576 * 4 * h * w / MB,
                       'fast': run('fast', device, quick, h=h, w=w, scale=scale, precision='bf16', budget=512)}
    result['train'] = {f'{what} {precision}': run(what, device, quick, precision=precision, calls=2)
                       for precision in ('float32', 'bf16')[:1 if quick else 2] for what in ('step', 'textbook-step')}
    return result


def effect_of_keeping(quick):
    """Training steps on a CPU by processes that give freed memory back to the system, as is the default, and by ones
    that keep it, each time in turns. Seconds, of steps after the second, by when the kept memory has stopped to grow,
    and megabytes are medians over the rounds; `ratio` is the textbook's in a process as it comes to ours as
    train_liif.py runs it."""
    device, rounds = torch.device('cpu'), 1 if quick else 3
    names = [f'{what} {precision}' for what in ('step', 'textbook-step') for precision in ('float32', 'bf16')]
    found = [{name: {kept: run(name.split()[0], device, quick, precision=name.split()[1], keep=kept == 'kept',
                               calls=2 if quick else 5) for kept in ('given_back', 'kept')}
              for name in names[:3 if quick else None]} for _ in range(rounds)]
    result = {name: {kept: {key: _median(r[name][kept][key] for r in found) for key in ('seconds', 'peak_mb')}
                     for kept in ('given_back', 'kept')} for name in found[0]}
    for name in ('step float32', 'step bf16'):
        for side in {f'textbook-{name}', 'textbook-step float32'} & found[0].keys():
            key = 'ratio' if side.endswith(name) else 'ratio_to_textbook_float32'
            result[name][key] = _median(r[side]['given_back']['seconds'] / r[name]['kept']['seconds'] for r in found)
    return result


def _median(values):
    values = list(values)
    return None if None in values else statistics.median(values)


def run(what, device, quick, **options):
    """Start the process for one figure; what: 'fast', 'textbook', 'step', 'textbook-step'."""
    command = [sys.executable, os.path.abspath(__file__), what, '--device', device.type]
    command += [f'--{key}={value}' for key, value in options.items() if not isinstance(value, bool)]
    command += [f'--{key}' for key, value in [*options.items(), ('quick', quick)] if value is True]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def child(args):
    device = torch.device(args.device)
    if args.keep:
        keep_freed_memory()
    if args.what.endswith('step'):
        return _step(args, device)
    model = cases.make_model(device, args.quick)
    size = args.h * args.scale, args.w * args.scale
    inp = torch.rand(1, 3, args.h, args.w, generator=torch.Generator().manual_seed(0))
    if args.what == 'fast':
        renderer = Renderer(model.to(memory_format=torch.channels_last), precision=args.precision,
                            memory=args.budget and args.budget * MB)
        renderer.open(inp[0, :, :8, :8]).render((8, 8))  # loads what is loaded once

        def function():
            return renderer.open(inp[0]).render(size, dtype=torch.uint8)
    else:
        inp = inp.to(device) * 2 - 1
        _textbook(model, inp[..., :8, :8], (8, 8), args.precision)

        def function():
            return _textbook(model, inp, size, args.precision)
    peak, seconds = _peak(function, args.calls, device)
    beyond = None if peak is None else peak - 3 * size[0] * size[1] / MB
    return {'peak_mb': peak, 'beyond_output_mb': beyond, 'seconds': seconds}


def _textbook(model, inp, size, precision):
    """The textbook prediction. On a CPU two chunks stand for all, since each holds the same; the others' outputs, which
    would wait for them, are held in their stead."""
    rows = size[0] if inp.device.type == 'cuda' else min(size[0], -(-2 * cases.TEXTBOOK_CHUNK // size[1]))
    with torch.no_grad(), autocast(inp.device, precision):
        value = torch.ones((size[0] - rows) * size[1], 3, device=inp.device)
        held = [value]
        for stage in cases.textbook_stages(model, inp, size, rows):
            value = stage(value)
        held.append(value)
        return held


def _step(args, device):
    make = cases.step_stages if args.what == 'step' else cases.textbook_step_stages
    step, = make(device, args.precision, args.quick)
    peak, seconds = _peak(lambda: step(None), args.calls, device)
    return {'peak_mb': peak, 'seconds': seconds}


def _peak(function, calls, device):
    """(Megabytes at the peak less those before, median seconds of the calls after the second), of so many calls; None
    where the system does not tell the megabytes, or there is but one call."""
    cases.synchronize(device)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    elif sys.platform == 'linux':
        with open('/proc/self/clear_refs', 'w') as f:
            f.write('5')  # the peak counts from here
        before = _resident('VmRSS')
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        function()
        cases.synchronize(device)
        seconds.append(time.perf_counter() - start)
    typical = statistics.median(seconds[2:] or seconds[1:]) if calls > 1 else None
    if device.type == 'cuda':
        return (torch.cuda.max_memory_allocated(device) - before) / MB, typical
    return (_resident('VmHWM') - before if sys.platform == 'linux' else None), typical


def _resident(key):
    with open('/proc/self/status') as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith(key))


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('what', choices=['fast', 'textbook', 'step', 'textbook-step'])
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--precision', default='float32')
    parser.add_argument('--h', type=int)
    parser.add_argument('--w', type=int)
    parser.add_argument('--scale', type=int)
    parser.add_argument('--budget', type=int, help="megabytes of the renderer's memory budget")
    parser.add_argument('--calls', type=int, default=1)
    parser.add_argument('--keep', action='store_true')
    parser.add_argument('--quick', action='store_true')
    print(json.dumps(child(parser.parse_args())))
