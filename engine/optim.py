"""Optimizers and losses by name, and the learning rate as a function of the step."""
import math
from typing import Annotated

import torch
import torch.nn as nn

from engine.muon import BETAS, Muon
from utils import FLAG, Integer, ListOf, Number, Registry, UserError


optimizers, schedules = Registry('optimizer'), Registry('lr_scheduler')
LearningRate = Annotated[float, Number(0), 'learning rate']
WeightDecay = Annotated[float, Number(0), 'weight of an L2 penalty']
optimizers.register('muon', 'optimizer')(Muon)
CHARBONNIER = 1e-3  # errors far below it, in normalized colours, count by their square, those far above by their size
LOSSES = {'l1': nn.L1Loss(),  # the paper's, section 4.1
          'l2': nn.MSELoss(),
          'charbonnier': lambda pred, gt: ((pred - gt) ** 2 + CHARBONNIER ** 2).sqrt().mean()}


@optimizers.register('adam', 'optimizer')
def adam(params, lr: LearningRate, betas: Annotated[list, BETAS, 'decay of the running means'] = (0.9, 0.999),
         eps: Annotated[float, Number(0), 'added to the denominator'] = 1e-8, weight_decay: WeightDecay = 0,
         amsgrad: Annotated[bool, FLAG, 'keep the largest second moment'] = False):
    params = list(params)
    fused = all(p.device.type in ('cpu', 'cuda') for p in params)  # one kernel for all: a quarter of the time on a CPU
    return torch.optim.Adam(params, lr, betas, eps, weight_decay, amsgrad, fused=fused)


@optimizers.register('sgd', 'optimizer')
def sgd(params, lr: LearningRate, momentum: Annotated[float, Number(0), 'decay of the running gradient'] = 0,
        dampening: Annotated[float, Number(0), 'dampening of the momentum'] = 0, weight_decay: WeightDecay = 0,
        nesterov: Annotated[bool, FLAG, 'look ahead; needs a momentum, without dampening'] = False):
    return torch.optim.SGD(params, lr, momentum, dampening, weight_decay, nesterov)


@optimizers.register('soap', 'optimizer')
def soap(params, lr: LearningRate, betas: Annotated[list, BETAS, 'decay of the running means'] = (0.95, 0.95),
         weight_decay: Annotated[float, Number(0), 'decay of the weights in a step, times lr'] = 0,
         precondition_frequency: Annotated[int, Integer(1), 'steps between updates of the eigenbases'] = 10):
    """Adam in the eigenbases of Shampoo's matrices (Vyas et al., 2024)."""
    try:
        from pytorch_optimizer import SOAP
    except ImportError:
        raise UserError("optimizer 'soap' needs a package: pip install pytorch_optimizer") from None
    return SOAP(params, lr, tuple(betas), weight_decay=weight_decay, precondition_frequency=precondition_frequency)


def make_optimizer(parameters, spec):
    """The optimizer that spec = {name, args} names, over all the parameters in their order (published states go by
    position; frozen ones get no gradient and no update)."""
    return optimizers.make(spec, args={'params': parameters})


# Schedules. Each is a function of (base, done, steps, epoch_max), where base is the rate of the optimizer, `done` the
# number of steps made and `steps` that of an epoch, and of the arguments in the config.

Epochs = Annotated[float, Number(0, above=True), 'when the rate reaches min_lr; null: epoch_max']
MinRate = Annotated[float, Number(0), 'the rate at the end']
WarmUp = Annotated[float, Number(0), 'first epochs, over which the rate grows from 0']


@schedules.register('multi-step', 'lr_scheduler')
def multi_step(base, done, steps, epoch_max, /,
               milestones: Annotated[list, ListOf(Number(0, above=True), text='a list of numbers > 0'),
                                     'epochs after which the rate is multiplied'],
               gamma: Annotated[float, Number(0, above=True), 'factor of the rate at each of them'] = 0.1,
               warmup_epochs: WarmUp = 0):
    """base * gamma^k after k milestones."""
    return base * gamma ** sum(done >= milestone * steps for milestone in milestones)


@schedules.register('cosine', 'lr_scheduler')
def cosine(base, done, steps, epoch_max, /, epochs: Epochs = None, min_lr: MinRate = 0, warmup_epochs: WarmUp = 0):
    """From base after the warm-up to min_lr at the end, along half a period of a cosine."""
    end, warmup = (epochs or epoch_max) * steps, warmup_epochs * steps
    progress = min(1, max(0, done - warmup) / max(1, end - warmup))
    return min_lr + (base - min_lr) * (1 + math.cos(math.pi * progress)) / 2


@schedules.register('trapezoid', 'lr_scheduler')
def trapezoid(base, done, steps, epoch_max, /,
              decay_epochs: Annotated[float, Number(0, above=True), 'last epochs, over which the rate falls linearly'],
              epochs: Epochs = None, min_lr: MinRate = 0, warmup_epochs: WarmUp = 0):
    """base, then along a straight line to min_lr over the last decay_epochs."""
    left = min(1, max(0, (epochs or epoch_max) * steps - done) / (decay_epochs * steps))
    return min_lr + (base - min_lr) * left


def learning_rate(config, epoch, step, steps):
    """The rate of step `step` (from 0) of epoch `epoch` (from 1) of `steps` steps each.

    Nothing is carried from step to step, so that nothing can be applied twice. With `warmup_epochs` the rate first
    grows in equal steps.
    """
    base = config['optimizer']['args']['lr']
    spec = config.get('lr_scheduler')
    if config.get('multi_step_lr') is not None:
        spec = {'name': 'multi-step', 'args': config['multi_step_lr']}
    if spec is None:
        return base
    done, warmup = (epoch - 1) * steps + step, spec['args'].get('warmup_epochs', 0) * steps
    if done + 1 < warmup:
        return base * (done + 1) / warmup
    return schedules.get(spec['name'])(base, done, steps, config['epoch_max'], **spec['args'])
