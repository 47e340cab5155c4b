"""Optimizers by name, and the learning rate as a function of the step."""
import math

import torch

from engine.training.muon import Muon
from utils import UserError


OPTIMIZERS = {'adam': torch.optim.Adam, 'sgd': torch.optim.SGD, 'muon': Muon}


def make_optimizer(parameters, spec):
    """The optimizer that spec = {name, args} names, over all the parameters in their order (published states go by
    position; frozen ones get no gradient and no update)."""
    if spec['name'] not in OPTIMIZERS:
        raise UserError(f'optimizer {spec["name"]!r} is not known; known: {", ".join(OPTIMIZERS)}')
    try:
        return OPTIMIZERS[spec['name']](parameters, **spec['args'])
    except (TypeError, ValueError) as error:
        raise UserError(f'optimizer {spec["name"]}: {error}; correct optimizer.args') from None


def learning_rate(config, epoch, step, steps):
    """The rate of step `step` (from 0) of epoch `epoch` (from 1) of `steps` steps each.

    Nothing is carried from step to step, so that nothing can be applied twice: `multi_step_lr` multiplies by gamma
    once for each milestone that has so many epochs behind it. With `warmup_epochs` the rate first grows in equal
    steps; a cosine falls from there to min_lr.
    """
    base = config['optimizer']['args']['lr']
    scheduler = config.get('lr_scheduler')
    if scheduler is None and config.get('multi_step_lr') is None:
        return base
    name, args = (scheduler['name'], scheduler['args']) if scheduler else ('multi-step', config['multi_step_lr'])
    done = (epoch - 1) * steps + step
    warmup = args.get('warmup_epochs', 0) * steps
    if done + 1 < warmup:
        return base * (done + 1) / warmup
    if name == 'multi-step':
        return base * args.get('gamma', 0.1) ** sum(done >= milestone * steps for milestone in args['milestones'])
    if name == 'trapezoid':
        end = (args.get('epochs') or config['epoch_max']) * steps
        low = args.get('min_lr', 0)
        left = min(1, max(0, end - done) / (args['decay_epochs'] * steps))
        return low + (base - low) * left
    if name == 'cosine':
        end = (args.get('epochs') or config['epoch_max']) * steps
        progress = min(1, max(0, done - warmup) / max(1, end - warmup))
        low = args.get('min_lr', 0)
        return low + (base - low) * (1 + math.cos(math.pi * progress)) / 2
    raise UserError(f'lr_scheduler {name!r} is not known; known: multi-step, cosine')
