"""Training: `train` runs the epochs, `train_epoch` the steps of one epoch, `train_step` one step.

A run is a function of its config and seed. What else a step needs is in `State`, all of which is saved in a checkpoint,
so a run that is interrupted anywhere and resumed takes the same steps as an uninterrupted one.
"""
import logging
import math
import random
import time

import numpy as np
import torch

import datasets
from datasets.check import changes, check_batches, check_headers, file_list
from datasets.loader import all_pixels, closing_workers, keyed_rng, make_loader, unpack
from engine import distributed
from engine.checkpoint import load_checkpoint, model_path
from engine.runtime import StopSignals, autocast, code_version, describe_device, has_bf16, keep_freed_memory
from engine.optim import LOSSES, learning_rate
from engine.training.monitor import Monitor, Stopped, warn_once
from engine.training.state import State
from engine.training.validation import measure_start, validate
from utils import counted, normalize


log = logging.getLogger('liif')


def train(config, folder, device, checkpoint=None, workers=None):
    """Train to `epoch_max`, or until a signal asks to stop; returns the signal's number, or None.

    config: complete; folder: a RunFolder; checkpoint: what to resume from, its config checked against this one;
    workers: processes that read images, None to choose by the machine.
    """
    torch.backends.cudnn.benchmark = True  # inputs keep their size
    warn_once.cache_clear()
    if device.type == 'cpu':
        keep_freed_memory()
    loader = open_data(config, 'train_dataset', device, workers)
    val_loader = open_data(config, 'val_dataset', device, workers) if config['val_dataset'] else None
    seed_globals(config['seed'])
    init = load_checkpoint(model_path(config['init'])) if config['init'] and checkpoint is None else None
    state = State(config, device, len(loader.batch_sampler), checkpoint, init)
    state.data = {'train_dataset': file_list(loader.dataset.wrapper)}
    if val_loader is not None:
        state.data['val_dataset'] = file_list(val_loader.dataset.wrapper)
    net = distributed.wrap(state.model, device)
    begin(state, folder, device, checkpoint)
    if state.epoch > config['epoch_max']:
        log.info(f'nothing left to train: the checkpoint has {counted(state.epoch - 1, "epoch")}, epoch_max is '
                 f'{config["epoch_max"]}')
        return None

    loaders = [x for x in (loader, val_loader) if x is not None]
    with StopSignals() as stop, closing_workers(loaders, f'go on with: {distributed.resume_command()}'):
        monitor = Monitor(state, loader.batch_sampler, folder, stop)
        try:
            if val_loader is not None and state.epoch == 1 and state.step == 0:
                measure_start(state, val_loader, monitor, device)
            while state.epoch <= config['epoch_max']:
                train_epoch(net, state, loader, device, monitor)
                psnr = None
                if val_loader is not None and state.epoch % config['epoch_val'] == 0:
                    folder.save(state.checkpoint())  # a validation that fails does not cost the epoch
                    psnr = validate(state, val_loader, monitor, device)
                monitor.end_epoch(psnr)
        except Stopped:
            return monitor.stop_run()
    log.info(f'done: {counted(config["epoch_max"], "epoch")}; the model is {folder.file("epoch-last.pth")}')
    return None


def train_epoch(net, state, loader, device, monitor):
    """Take the remaining steps of this epoch. Raises Stopped, after a complete step, when a signal asked to stop."""
    config, sampler = state.config, loader.batch_sampler
    sampler.set_position(state.epoch, state.step)
    state.model.train()
    for step, batch in enumerate(monitor.batches(loader), state.step):
        seed_globals(config['seed'], state.epoch, step, distributed.rank())
        rate, share = learning_rate(config, state.epoch, step, state.steps), sampler.share(step)
        loss, norm = train_step(net, state, unpack(batch, device), rate, share)
        monitor.after_step(batch, loss, norm, rate, share)


def train_step(net, state, batch, rate, share=1.0):
    """One step. Returns the loss and the gradient's norm, as tensors, without waiting for the GPU.

    net: the model, or its wrapper that averages gradients over processes; batch: as `unpack` returns it; rate: learning
    rate; share: this process's fraction of the global batch.
    """
    loss = batch_loss(net, state.config, batch)
    for group in state.optimizer.param_groups:
        group['lr'] = rate
    state.optimizer.zero_grad(set_to_none=True)
    weight = share * distributed.world()  # the mean over processes then is the mean over the global batch
    state.scaler.scale(loss * weight).backward()
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), state.config['grad_clip'] or math.inf)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.ema is not None:
        state.ema.update_parameters(state.model)
    return loss.detach(), norm


def batch_loss(net, config, batch):
    """Loss of the predicted colours, normalized by `data_norm`: a scalar. The paper's is L1 (section 4.1)."""
    norm = config['data_norm'] or {}
    inp = normalize(batch['inp'], norm.get('inp'), 1).contiguous(memory_format=torch.channels_last)  # (B, 3, h, w)
    gt = normalize(batch['gt'], norm.get('gt'), -1)  # (B, Q, 3)
    coord = all_pixels(inp, batch['size']) if batch['coord'] is None else batch['coord']  # (B, Q, 2)
    with autocast(inp.device, config['precision']):
        pred = net(inp, coord, batch['cell'].expand_as(coord))  # (B, Q, 3)
    return LOSSES[config['loss'] or 'l1'](pred.float(), gt)


# Helpers.

def begin(state, folder, device, checkpoint):
    """Log what will be trained, and prepare the run folder."""
    config = state.config
    parameters = sum(p.numel() for p in state.model.parameters())
    processes = f', {distributed.world()} processes' if distributed.world() > 1 else ''
    log.info(f'model: {config["model"]["name"]}, {parameters:,} parameters, {config["precision"]}, '
             f'{describe_device(device)}{processes}, torch {torch.__version__}')
    if config['precision'] == 'bf16' and not has_bf16(device):
        faster = distributed.resume_command('--set', 'precision=float32', '--allow-change', 'precision')
        log.warning(f'precision: bf16 is emulated on this device and slow: stop (Ctrl-C), and go on with: {faster}')
    log.info(f'begun at {time.strftime("%Y-%m-%d %H:%M:%S %z")} by code {code_version()}')
    if checkpoint is None and config['init']:
        log.info(f'starting from the weights of {config["init"]}')
    if checkpoint is not None and state.epoch <= config['epoch_max']:
        log.info(f'going on with epoch {state.epoch}, {state.step} of its {counted(state.steps, "step")} made')
        for section, files in state.data.items():
            for line in changes(checkpoint.get('data', {}).get(section), files):
                log.warning(f'{section} has changed since the checkpoint: {line}')
    folder.begin(config, finished=state.epoch > config['epoch_max'])
    if checkpoint is not None and not checkpoint.get('train', {}).get('step'):
        folder.save(state.checkpoint(), *state.names())  # an interruption may have come between the files of an epoch
    folder.open_curves(state.epoch)


def open_data(config, section, device, workers):
    """The loader of the config's `train_dataset` or `val_dataset`."""
    spec, training = config[section], section == 'train_dataset'
    data = datasets.make(spec['wrapper'], args={'dataset': datasets.make(spec['dataset'])})
    seed = config['seed'] if training else 0  # runs of different seeds validate on the same samples
    loader = make_loader(data, spec['batch_size'], seed, training, workers, device.type, distributed.rank(),
                         distributed.world(), config['on_bad_image'])
    batches = f'batches of {spec["batch_size"]}' if len(data) >= spec['batch_size'] or not training else \
        f'fewer than batch_size: {spec["batch_size"]}, so all of them are a batch (repeat: makes an epoch longer)'
    log.info(f'{section}: {counted(len(data), "sample")}, {batches}, {counted(loader.num_workers, "worker")}')
    if distributed.is_main():
        for problem in check_headers(data, config['on_bad_image']):
            warn_once(f'skipped: {problem}')
        check_batches(data, spec['batch_size'])
    return loader


def seed_globals(*key):
    """Seed Python's, numpy's and torch's global generators from the key: checkpoints need not hold their states."""
    rng = keyed_rng(*key)
    random.seed(int(rng.integers(2 ** 63)))
    np.random.seed(int(rng.integers(2 ** 32)))
    torch.manual_seed(int(rng.integers(2 ** 63)))
