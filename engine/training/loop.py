"""Training: `train` is the loop, `train_step` what happens in it.

A run is a function of its config and seed. What a step needs beyond them is in `State`, which a checkpoint holds
whole, so a run that is interrupted anywhere and resumed makes the same steps as one that is not.
"""
import itertools
import math
import random
import signal
import time
from typing import NamedTuple, Optional

import numpy as np
import torch
from tqdm import tqdm

import datasets
from datasets.batch import unpack
from datasets.check import check_headers
from datasets.loader import BatchSampler, keyed_rng, make_loader
from engine import distributed
from engine.evaluation.evaluate import batch_psnr, predict
from engine.runtime import StopSignals, autocast, code_version, describe_device, keep_freed_memory
from engine.optim import learning_rate
from engine.training.state import State
from utils import Averager, UserError, denormalize, make_coord, normalize


SMALLEST_SCALE = 1.0  # of fp16 losses; gradients that overflow even so are the model's fault
IMAGES, LARGE = 3, 2 ** 20  # validation images shown in TensorBoard: so many, of at most so many pixels


def train_step(net, state, batch, rate, share=1.0):
    """One step on the L1 loss. Returns the loss and the gradient's norm, tensors that a GPU is still computing.

    net: the model, or its wrapper that averages gradients over processes; batch: as `unpack` gives it; rate: learning
    rate; share: the fraction of the global batch that is here.
    """
    config = state.config
    norm = config['data_norm'] or {}
    inp = normalize(batch['inp'], norm.get('inp'), 1).contiguous(memory_format=torch.channels_last)  # (B, 3, h, w)
    gt = normalize(batch['gt'], norm.get('gt'), -1)  # (B, Q, 3)
    coord = all_pixels(batch) if batch['coord'] is None else batch['coord']  # (B, Q, 2)
    with autocast(inp.device, config['precision']):
        pred = net(inp, coord, batch['cell'].expand_as(coord))  # (B, Q, 3)
    loss = (pred.float() - gt).abs().mean()

    for group in state.optimizer.param_groups:
        group['lr'] = rate
    state.optimizer.zero_grad(set_to_none=True)
    weight = share * distributed.world()  # the mean over processes then is the mean over the global batch
    state.scaler.scale(loss * weight).backward()
    state.scaler.unscale_(state.optimizer)
    size = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config['grad_clip'] or math.inf)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.average()
    return loss.detach(), size


def train(config, folder, device, checkpoint=None, init=None, workers=None):
    """Train to `epoch_max`, or until a signal asks to stop; returns the signal's number, or None.

    config: complete; folder: a RunFolder; checkpoint: what to go on from, its config agreed with this one; init: a
    checkpoint whose weights to start from; workers: processes that read images, None for as many as pay.
    """
    torch.backends.cudnn.benchmark = True  # inputs keep their size
    if device.type == 'cpu':
        keep_freed_memory()
    loader = open_data(config, 'train_dataset', device, workers, folder)
    val_loader = open_data(config, 'val_dataset', device, workers, folder) if config['val_dataset'] else None
    steps = len(loader.batch_sampler)
    seed_globals(config['seed'])
    state = State(config, device, steps, checkpoint, init)
    net = distributed.wrap(state.model, device)
    parameters = sum(p.numel() for p in state.model.parameters())
    processes = f', {distributed.world()} processes' if distributed.world() > 1 else ''
    folder.log(f'model: {config["model"]["name"]}, {parameters:,} parameters, {config["precision"]}, '
               f'{describe_device(device)}{processes}, torch {torch.__version__}')
    folder.log(f'begun at {time.strftime("%Y-%m-%d %H:%M:%S %z")} by code {code_version()}')
    if checkpoint is not None:
        folder.log(f'going on with epoch {state.epoch}, {state.step} of its {steps} steps made')
    folder.begin(config)
    if checkpoint is not None and not checkpoint.get('train', {}).get('step'):
        folder.save(state.checkpoint(), *state.names())  # an interruption may have come between the files of an epoch
    folder.open_curves((state.epoch - 1) * steps + state.step)

    if state.epoch > config['epoch_max']:
        folder.log(f'nothing left to train: the checkpoint has {state.epoch - 1} epochs, epoch_max is '
                   f'{config["epoch_max"]}')
        return None

    begun, first = time.monotonic(), state.epoch
    with StopSignals() as stop:
        while state.epoch <= config['epoch_max']:
            if not train_epoch(net, state, loader, folder, device, stop):
                break
            psnr = None
            if val_loader is not None and state.epoch % config['epoch_val'] == 0:
                psnr, stopped = validate(state, val_loader, folder, device, stop)
                if stopped:
                    break
            end_epoch(state, folder, psnr, time.monotonic() - begun, state.epoch - first + 1)
        else:
            folder.log(f'done: {config["epoch_max"]} epochs; the model is {folder.file("epoch-last.pth")}')
            return None
        folder.save(state.checkpoint())  # a step is complete and checked
        folder.log(f'stopped by a signal in epoch {state.epoch}, {state.step} of its {steps} steps made, and saved; go '
                   f'on with: {distributed.resume_command()}')
        distributed.wait()  # a process that ended sooner would have the others ended, too
        return stop.number or signal.SIGTERM  # it may be another process that was asked


class Report(NamedTuple):
    """What a step found. values: [loss, processes asked to stop, bad images passed over, norm of the gradient], on its
    way to the CPU until `ready`, an event of the GPU (None: there already)."""
    values: torch.Tensor
    ready: Optional[torch.cuda.Event]
    rate: float
    index: torch.Tensor


def report(loss, norm, share, asked, skipped, rate, index):
    """The Report of a step, summed over all processes, each of which has its `share` of the batch."""
    sums = torch.stack([loss * share, loss.new_full((), asked), loss.new_full((), skipped)])
    values = torch.cat([distributed.all_sum(sums), norm.view(1)])
    if not values.is_cuda:
        return Report(values, None, rate, index)
    values, ready = values.to('cpu', non_blocking=True), torch.cuda.Event()
    ready.record()
    return Report(values, ready, rate, index)


def train_epoch(net, state, loader, folder, device, stop):
    """The steps that are left of this epoch. Returns False when a signal asked to stop, after a complete step.

    Results are read one step late, so that a GPU always has a step to work on; always before anything is saved.
    """
    config, sampler = state.config, loader.batch_sampler
    sampler.set_position(state.epoch, state.step)
    state.model.train()
    clock = Clock()
    progress = tqdm(total=state.steps, initial=state.step, desc=f'epoch {state.epoch}', leave=False,
                    disable=None if folder.active else True)
    before, stopping = None, False
    for step, batch in zip(itertools.count(state.step), clock.waiting_for(loader)):
        if (state.epoch, step) == (1, 0):
            folder.log('first batch: ' + ', '.join(f'{key} {tuple(value.shape)} {str(value.dtype)[6:]}'
                                                   for key, value in batch.items() if torch.is_tensor(value)))
        tell_skipped(batch, folder)
        seed_globals(config['seed'], state.epoch, step, distributed.rank())
        rate, share = learning_rate(config, state.epoch, step, state.steps), sampler.share(step)
        loss, norm = train_step(net, state, unpack(batch, device), rate, share)
        skipped = int(batch['skipped'].sum()) if share else 0
        due, before = before, report(loss, norm, share, stop.asked(), skipped, rate, batch['index'])
        stopping = stopping or due is not None and settle(due, state, sampler, folder)
        progress.set_postfix_str(f'loss {state.loss.item():.4f}', refresh=False)
        progress.update()
        if stopping or folder.save_is_due(config['save_minutes']):
            asked, before = settle(before, state, sampler, folder), None
            if stopping:
                break
            folder.save(state.checkpoint())
            stopping = asked  # after the next step, as in the processes that do not save
    else:
        stopping = before is not None and settle(before, state, sampler, folder) or stopping
    progress.close()
    clock.tell(folder)
    return not stopping


def settle(found, state, sampler, folder):
    """Take a step's Report into the state. Returns whether a process was asked to stop. Raises UserError for a loss or
    a gradient that is not finite."""
    if found.ready is not None:
        found.ready.synchronize()
    loss, asked, skipped, norm = found.values.tolist()
    overflow = state.scaler.is_enabled() and state.scaler.get_scale() >= SMALLEST_SCALE  # it skipped that step
    if not math.isfinite(loss) or not math.isfinite(norm) and not overflow:
        if not folder.active:
            raise SystemExit(2)  # process 0 finds the same and says it
        raise UserError(f'epoch {state.epoch}, step {state.step + 1}: the loss is {loss:g} and the norm of its '
                        f'gradient {norm:g}, at rate {found.rate:g} on samples {batch_indices(found, state, sampler)}: '
                        f'lower the rate, set grad_clip, or look at these images; the last good checkpoint stays')
    state.step += 1
    state.loss.add(loss)
    state.skipped += int(skipped)
    return asked > 0


def batch_indices(found, state, sampler):
    """The sample indices of a global batch, as text."""
    indices = found.index.tolist()
    if distributed.world() > 1:
        whole = BatchSampler(sampler.samples, sampler.batch_size, sampler.seed, train=True)
        whole.set_position(state.epoch, state.step)
        indices = [index for _, index in next(iter(whole))]
    return ', '.join(map(str, indices))


@torch.no_grad()
def validate(state, loader, folder, device, stop):
    """(PSNR in dB over the validation set, whether to stop instead). Processes take batches in turn; the mean is formed
    in the order of one process, so it is the same number."""
    config, sampler = state.config, loader.batch_sampler
    state.model.eval()
    batches = -(-sampler.samples // sampler.batch_size)
    found = torch.zeros(batches + 1, 2, dtype=torch.float64)
    with autocast(device, config['precision']):
        mine = range(sampler.rank, batches, sampler.world)
        for batch, i in zip(tqdm(loader, desc='val', leave=False, disable=None if folder.active else True), mine):
            tell_skipped(batch, folder)
            batch_on_device = unpack(batch, device)
            psnr, _ = batch_psnr(state.model, batch_on_device, config['data_norm'], config['eval_type'],
                                 config['eval_bsize'])
            found[i] = torch.tensor([psnr, len(batch['index'])])
            if i == 0 and folder.curves is not None:
                folder.images(pictures(state, batch_on_device), state.epoch * state.steps)
            if stop.asked():
                found[batches, 0] = 1
                break
    found = distributed.all_sum(found.to(device)).tolist() if distributed.joined() else found.tolist()
    mean = Averager()
    for psnr, count in found[:batches]:
        if count:
            mean.add(psnr, count)
    return mean.item(), found[batches][0] > 0


def end_epoch(state, folder, psnr, seconds, epochs):
    """Log the epoch, go to the next one, save."""
    config, epoch = state.config, state.epoch
    rate = learning_rate(config, epoch, state.steps - 1, state.steps)
    scalars = {'lr': rate, 'loss/train': state.loss.item()}
    line = f'epoch {epoch}/{config["epoch_max"]}: rate {rate:.3g}, loss {state.loss.item():.6f}'
    if psnr is not None:
        scalars['psnr/val'] = psnr
        if psnr > state.best:
            state.best, state.best_epoch = psnr, epoch
        line += f', val psnr {psnr:.4f} (best {state.best:.4f})'
    if state.skipped:
        line += f', {state.skipped} bad images passed over so far'
    total = seconds / epochs * (config['epoch_max'] - epoch + epochs)
    folder.log(f'{line}, {duration(seconds)} of {duration(total)}')
    folder.scalars(scalars, epoch * state.steps)
    state.epoch, state.step, state.loss = epoch + 1, 0, Averager()
    folder.save(state.checkpoint(), *state.names())  # last: an interruption before it has the epoch done again


# Smaller things.

def open_data(config, section, device, workers, folder):
    """The loader of the config's `train_dataset` or `val_dataset`."""
    spec, training = config[section], section == 'train_dataset'
    data = datasets.make(spec['wrapper'], args={'dataset': datasets.make(spec['dataset'])})
    loader = make_loader(data, spec['batch_size'], config['seed'], training, workers, device.type, distributed.rank(),
                         distributed.world(), config['on_bad_image'])
    batches = f'batches of {spec["batch_size"]}' if len(data) >= spec['batch_size'] or not training else \
        f'fewer than batch_size: {spec["batch_size"]}, so all of them are a batch (repeat: makes an epoch longer)'
    folder.log(f'{section}: {len(data)} samples, {batches}, {loader.num_workers} workers')
    if folder.active:
        for problem in check_headers(data, config['on_bad_image']):
            folder.log(f'will be passed over: {problem}')
    return loader


def seed_globals(*key):
    """Python's, numpy's and torch's own generators as a function of the key: nothing about them needs saving."""
    rng = keyed_rng(*key)
    random.seed(int(rng.integers(2 ** 63)))
    np.random.seed(int(rng.integers(2 ** 32)))
    torch.manual_seed(int(rng.integers(2 ** 63)))


def all_pixels(batch):
    """Coordinates of every pixel, for a batch that leaves them out: (B, H * W, 2)."""
    coord = make_coord(batch['size'][0].tolist(), device=batch['inp'].device)  # (H * W, 2)
    return coord.expand(len(batch['inp']), *coord.shape)


def pictures(state, batch):
    """The first inputs of a batch and what the model makes of them at the size their queries come from:
    {name: (3, H, W) in [0, 1]}."""
    norm, images = state.config['data_norm'] or {}, {}
    if batch.get('size') is None:
        return images
    for i in range(min(IMAGES, len(batch['inp']))):
        h, w = batch['size'][i].tolist()
        if h * w > LARGE:
            continue
        one = {'coord': None, 'size': batch['size'][i:i + 1], 'cell': batch['cell'][i:i + 1, :1]}
        rgb = predict(state.model, normalize(batch['inp'][i:i + 1], norm.get('inp'), 1), one,
                      state.config['eval_bsize'])  # (1, H * W, 3)
        images[f'val/{i}/input'] = batch['inp'][i]
        images[f'val/{i}/predicted'] = denormalize(rgb.float(), norm.get('gt'), -1)[0].t().view(3, h, w)
    return images


def tell_skipped(batch, folder):
    for reason in batch.get('reasons', ()):
        (folder.log if folder.active else print)(f'passed over: {reason}')


class Clock:
    """How much of an epoch the model waits for its data."""

    def __init__(self):
        self.begun, self.waited = time.perf_counter(), 0.0

    def waiting_for(self, loader):
        asked = time.perf_counter()
        for batch in loader:
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    def tell(self, folder):
        share = self.waited / (time.perf_counter() - self.begun)
        if share > 0.2 and self.waited > 5:
            folder.log(f'the model waited for data {share:.0%} of the time: give more --workers, or set cache: bin')


def duration(seconds):
    for size, unit in ((86400, 'd'), (3600, 'h'), (60, 'm')):
        if seconds >= size:
            return f'{seconds / size:.1f}{unit}'
    return f'{seconds:.1f}s'
