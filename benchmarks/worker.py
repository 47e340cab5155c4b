"""One measurement in a new process, since speed and memory depend on what a process did before."""
import json
import statistics
import subprocess
import sys

import engine  # before torch: how its threads wait
import torch

from benchmarks import cases
from engine.rendering.renderer import Renderer
from engine.runtime import DTYPES, keep_freed_memory, peak_memory, reset_peak_memory
from models.decode import rows_per_chunk

MB = 1 << 20


def run(what, kind, **options):
    """The result of `measure` in a new process."""
    options = json.dumps({'what': what, 'kind': kind, **options})
    done = subprocess.run([sys.executable, '-m', 'benchmarks.worker', options], stdout=subprocess.PIPE, text=True,
                          cwd=engine.ROOT, check=True)
    return json.loads(done.stdout)


def measure(what, kind, precision='float32', keep=False, quick=False, calls=1, skip=0, **options):
    """{seconds: medians per stage; peak_mb: the peak of memory beyond what was there before; flops of a product}.

    what: 'step', 'textbook-step', or a key of `stages`; keep: freed memory stays with the process (CPU); skip: first
    calls that are not timed. peak_mb is None where the system does not tell it.
    """
    device, training = torch.device(kind), what.endswith('step')
    if keep:
        keep_freed_memory()
    if training:
        functions = (cases.step_stages if what == 'step' else cases.textbook_step_stages)(device, precision, quick)
    else:
        functions = stages(what, device, precision, quick, **options)
        if what != 'product':  # loads what is loaded once
            cases.interleave({'': (stages(what, device, precision, quick, (8, 8, 1)), precision, False)}, 1, device)
    plain = 'float32' if what in ('product', 'render') else precision  # these cast by themselves
    reset_peak_memory(device)
    before = peak_memory(device)  # so far, what is used now
    times = cases.interleave({'': (functions, plain, training)}, calls, device)['']
    peak = peak_memory(device)
    return {'seconds': [statistics.median(stage) for stage in zip(*times[skip:])],
            'peak_mb': None if peak is None else peak - before, 'flops': getattr(functions[0], 'flops', None)}


def stages(what, device, precision, quick, case=None, rows=None, budget=None):
    """Functions, each of the result of the one before.

    what: 'fast' and 'textbook' decode the first `rows` output rows of case (h, w, scale); 'render' makes the whole
    8-bit output with a budget in MB; 'product' makes products like those of the decoder's hidden layers.
    """
    model = cases.make_model(device, quick)
    if what == 'product':
        width, dtype = model.imnet.layers[-1].in_features, DTYPES[precision]
        rows = rows_per_chunk(torch.empty(0, width, device=device, dtype=dtype))
        return cases.product_stages(width, rows, 3, device, dtype, 1e7 if quick else None)
    h, w, scale = case
    inp = torch.rand(1, 3, h, w, generator=torch.Generator().manual_seed(0)).to(device)
    if what == 'textbook':
        return cases.textbook_stages(model, inp * 2 - 1, (h * scale, w * scale), rows)
    model = model.to(memory_format=torch.channels_last)
    if what == 'fast':
        return cases.fast_stages(model, inp * 2 - 1, (h * scale, w * scale), rows)
    renderer = Renderer(model, precision=precision, memory=budget and budget * MB)
    return [lambda _: renderer.open(inp[0]).render((h * scale, w * scale), dtype=torch.uint8)]


if __name__ == '__main__':
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
