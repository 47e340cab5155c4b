"""What is measured: the fast decode and the textbook formula, with the same model and the same inputs."""
import contextlib
import time

import torch
import torch.nn.functional as F

import models
from engine.runtime import autocast
from models import textbook
from utils import make_coord

EDSR_BASELINE_LIIF = {'name': 'liif', 'args': {
    'encoder_spec': {'name': 'edsr-baseline', 'args': {'no_upsampling': True}},
    'imnet_spec': {'name': 'mlp', 'args': {'out_dim': 3, 'hidden_list': [256, 256, 256, 256]}}}}
TINY_LIIF = {'name': 'liif', 'args': {
    'encoder_spec': {'name': 'edsr-baseline', 'args': {'n_resblocks': 2, 'n_feats': 8, 'no_upsampling': True}},
    'imnet_spec': {'name': 'mlp', 'args': {'out_dim': 3, 'hidden_list': [16, 16]}}}}
DECODE = [(256, 256, 2), (96, 96, 4), (170, 128, 8), (64, 64, 12), (48, 48, 30)]  # (h, w, scale)
FRAME = (540, 960, 4)  # to 3840x2160, on a GPU
BATCH, SIDE, QUERIES = 16, 48, 2304  # the paper's training step
TEXTBOOK_CHUNK = 30000
PRODUCT_FLOPS = {'cpu': 5e10, 'cuda': 1e13}  # a fraction of a second's work
QUICK = {'decode': [(12, 10, 2), (9, 11, 4)], 'step': (2, 8, 50)}


def make_model(device, quick=False):
    """EDSR-baseline-LIIF (a tiny LIIF when quick), with random weights that are the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.make(TINY_LIIF if quick else EDSR_BASELINE_LIIF).to(device).eval()


def fast_stages(model, inp, size, rows=None):
    """Encoding, then decoding of the first `rows` output rows (all: None), each a function of what came before."""
    y, x = (make_coord((n,), device=inp.device).view(-1) for n in size)
    cell = torch.tensor([2 / n for n in size], device=inp.device)
    inp = inp.contiguous(memory_format=torch.channels_last)
    return [lambda _: model.encode(inp), lambda codes: model.decode_grid(codes, y[:rows], x, cell)]


def textbook_stages(model, inp, size, rows=None):
    """The same by the textbook formula, unfolding anew for every 30000 queries."""
    rows = rows or size[0]
    coord = make_coord(size, device=inp.device)[None, :rows * size[1]]
    cell = torch.tensor([2 / n for n in size], device=inp.device).expand_as(coord)

    def decode(feat):
        return torch.cat([textbook.query(model, feat, x, c) for x, c in
                          zip(coord.split(TEXTBOOK_CHUNK, 1), cell.split(TEXTBOOK_CHUNK, 1))], dim=1)
    return [lambda _: model.encoder(inp), decode]


def step_stages(device, precision, quick=False):
    """A whole training step, as train_liif.py makes it, on a batch like those of the paper."""
    from engine.training.loop import train_step
    from engine.training.state import (
        State,  # here, because they take seconds that most of memory.py's processes need not wait
    )
    spec = TINY_LIIF if quick else EDSR_BASELINE_LIIF
    state = State({'model': spec, 'optimizer': {'name': 'adam', 'args': {'lr': 1e-4}}, 'precision': precision,
                   'data_norm': None, 'grad_clip': None, 'ema': None}, device, steps=1)
    batch = training_batch(device, quick)
    return [lambda _: train_step(state.model, state, batch, 1e-4)[0].item()]


def textbook_step_stages(device, precision, quick=False):
    """The same by the textbook formula: forward, L1, backward, Adam."""
    model = make_model(device, quick).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    batch = training_batch(device, quick)

    def step(_):
        with autocast(device, precision):
            pred = textbook.query(model, model.encoder(batch['inp']), batch['coord'], batch['cell'])
        loss = F.l1_loss(pred.float(), batch['gt'])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()
    return [step]


def training_batch(device, quick):
    """Normalized inputs and queries as `unpack` gives them, of random scales from 1 to 4."""
    b, side, q = QUICK['step'] if quick else (BATCH, SIDE, QUERIES)
    random = torch.Generator().manual_seed(0)
    inp, coord, gt = (torch.rand(*shape, generator=random).to(device) * 2 - 1
                      for shape in ((b, 3, side, side), (b, q, 2), (b, q, 3)))
    cell = 2 / (side * (1 + 3 * torch.rand(b, 1, 1, generator=random)))
    return {'inp': inp, 'coord': coord, 'cell': cell.to(device).expand(b, q, 2), 'gt': gt}


def product_stages(width, rows, layers, device, dtype=torch.float32, flops=None):
    """A plain product with ReLU, `layers` times over (rows, width), in buffers that are there from the beginning: what
    the decoder's hidden layers come down to."""
    random = torch.Generator().manual_seed(0)
    x, *buffers = (torch.rand(rows, width, generator=random).to(device, dtype) for _ in range(3))
    weights = [(torch.rand(width, width, generator=random) - 0.5).to(device, dtype) / width ** 0.5] * layers
    bias = torch.zeros(width, device=device, dtype=dtype)
    repeat = max(1, round((flops or PRODUCT_FLOPS[device.type]) / (2 * rows * width * width * layers)))

    def run(_):
        for _ in range(repeat):
            out = x
            for i, weight in enumerate(weights):
                out = torch.addmm(bias, out, weight, out=buffers[i % 2]).relu_()  # (rows, width)
        return out
    run.flops = 2 * rows * width * width * layers * repeat
    return [run]


def decoder_flops(model, queries):
    """Floating-point operations of the fast decoder for so many queries; the table of the first layer excluded."""
    first, *others = [layer.weight.shape for layer in model.imnet.layers if hasattr(layer, 'weight')]
    corner = first[0] * 4 + sum(n * m for n, m in others)
    return 2 * 4 * corner * queries


def interleave(entries, rounds, device):
    """Run the entries in turn, `rounds` times: drifts of the machine then meet all of them alike.

    entries: {name: (stages, precision, gradients or not)}. Returns {name: [[seconds of each stage], ...]}.
    """
    times = {name: [] for name in entries}
    for _ in range(rounds):
        for name, (stages, precision, gradients) in entries.items():
            with contextlib.nullcontext() if gradients else torch.no_grad():
                with contextlib.nullcontext() if gradients else autocast(device, precision):
                    times[name].append(_time(stages, device))
    return times


def _time(stages, device):
    value, seconds = None, []
    for stage in stages:
        synchronize(device)
        start = time.perf_counter()
        value = stage(value)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds


def synchronize(device):
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
