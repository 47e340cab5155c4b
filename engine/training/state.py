"""A training run at one step: everything that the next step depends on, to a checkpoint and back.

Nothing random is in it: samples are drawn by (seed, epoch, index), and the global generators are seeded for each step
(engine/training/loop.py), so a run goes on as if it had never stopped, also with other numbers of workers and processes.
"""
import torch

import models
from engine.checkpoint import build_model
from engine.optim import make_optimizer
from utils import Averager, UserError


IDENTITY = {'sub': [0.0], 'div': [1.0]}
# What may differ from the run that is resumed: where to start from, when to save, how much memory to use.
FREE = {'resume', 'save_minutes', 'epoch_save', 'eval_bsize'}


class State:
    """
    config: complete, with `model` and `optimizer` specs (see `agree`).
    checkpoint: what to go on from; init: a checkpoint whose weights to start from instead; None: new weights.

    epoch: the one under way, from 1; step: steps of it already made; steps: in every epoch; loss: mean over those made;
    best: highest validation PSNR in dB, reached in best_epoch; skipped: bad images passed over.
    """

    def __init__(self, config, device, steps, checkpoint=None, init=None):
        self.config, self.steps = config, steps
        self.epoch, self.step, self.loss, self.skipped = 1, 0, Averager(), 0
        self.best, self.best_epoch = float('-inf'), 0
        if config['precision'] == 'fp16' and device.type != 'cuda':
            raise UserError(f'precision: fp16 is for CUDA GPUs, this is {device}; use bf16 or float32')
        source = checkpoint or init
        if source is None:
            model = models.make(config['model'])
        else:
            model = build_model({**config['model'], 'sd': source['model']['sd']}, 'to start from')
        self.model = model.to(device, memory_format=torch.channels_last).train()
        self.optimizer = make_optimizer(self.model.parameters(), config['optimizer'])
        self.scaler = torch.amp.GradScaler(device.type, enabled=config['precision'] == 'fp16')
        self.ema = {k: v.clone() for k, v in self.model.state_dict().items()} if config['ema'] else None
        if checkpoint is not None:
            self._restore(checkpoint)

    def checkpoint(self):
        """The dict that describes this moment; its tensors are the live ones, so it is written before the next step."""
        config = self.config
        checkpoint = {
            'model': {**config['model'], 'sd': self.model.state_dict()},
            'optimizer': {**config['optimizer'], 'sd': self.optimizer.state_dict()},
            'epoch': self.epoch - 1,
            'data_norm': config['data_norm'] or {'inp': IDENTITY, 'gt': IDENTITY},
            'config': config,
            'train': {'step': self.step, 'steps': self.steps, 'loss': [self.loss.n, self.loss.v], 'best': self.best,
                      'best_epoch': self.best_epoch, 'skipped': self.skipped, 'scaler': self.scaler.state_dict()},
        }
        return checkpoint if self.ema is None else {**checkpoint, 'ema': self.ema}

    def names(self):
        """Files for the checkpoint at the end of an epoch, besides the last one."""
        done, every = self.epoch - 1, self.config['epoch_save']
        best = ['epoch-best.pth'] if self.best_epoch == done > 0 else []
        return best + ([f'epoch-{done}.pth'] if every and done and done % every == 0 else [])

    def _restore(self, checkpoint):
        self.epoch = checkpoint.get('epoch', 0) + 1
        try:
            self._restore_optimizer(checkpoint['optimizer']['sd'])
            train = checkpoint.get('train')  # absent in checkpoints of the published code: at the end of an epoch
            if train is not None:
                self.best, self.best_epoch = float(train['best']), int(train.get('best_epoch', 0))
                self.skipped = int(train['skipped'])
                if train['steps'] == self.steps:  # otherwise the epoch begins again
                    self.step, self.loss.n, self.loss.v = int(train['step']), *map(float, train['loss'])
                if self.scaler.is_enabled() and train['scaler']:
                    self.scaler.load_state_dict(train['scaler'])
            for key, value in (checkpoint.get('ema') or {}).items() if self.ema else ():
                self.ema[key].copy_(value)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(f'the checkpoint cannot be resumed from, its training state is not complete '
                            f'({type(error).__name__}: {error}); start from its weights with --init') from error

    def _restore_optimizer(self, found):
        """Its running means, and the rate of the last step; the rest comes from the config, which agrees."""
        wanted = self.optimizer.state_dict()
        counts = [sum(len(group['params']) for group in sd['param_groups']) for sd in (found, wanted)]
        if counts[0] != counts[1]:
            raise UserError(f'the optimizer state is for {counts[0]} parameters, the model has {counts[1]}: '
                            f'start from the weights alone with --init')
        parameters = list(self.model.parameters())
        for i, values in found['state'].items():
            for key, value in values.items():
                if torch.is_tensor(value) and value.dim() and value.shape != parameters[i].shape:
                    raise UserError(f'the optimizer state {key} of parameter {i} is {tuple(value.shape)}, wanted '
                                    f'{tuple(parameters[i].shape)}: start from the weights alone with --init')
        self.optimizer.load_state_dict({**wanted, 'state': found['state']})
        for group, source in zip(self.optimizer.param_groups, found['param_groups']):
            group['lr'] = source['lr']  # for the record: every step sets its own

    @torch.no_grad()
    def average(self):
        """Move the averaged weights towards the present ones: ema <- decay * ema + (1 - decay) * weights."""
        if self.ema is None:
            return
        present = self.model.state_dict()
        floats = [key for key, value in present.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.ema[k] for k in floats], [present[k] for k in floats], 1 - self.config['ema'])
        for key in present.keys() - set(floats):  # counters
            self.ema[key].copy_(present[key])


def agree(config, checkpoint, path, allowed=()):
    """The config to go on with from a checkpoint: the given one, with the checkpoint's `model`, and its `optimizer`
    where the given one has none.

    allowed: paths of keys that may differ, such as 'epoch_max' or 'optimizer.args'. Raises UserError showing all other
    differences.
    """
    was = checkpoint.get('config') or {key: config[key] for key in config if key not in ('model', 'optimizer')}
    was = {**was, 'model': {'name': checkpoint['model']['name'], 'args': checkpoint['model'].get('args') or {}}}
    optimizer = checkpoint.get('optimizer') or {}
    if not isinstance(optimizer.get('name'), str) or not isinstance(optimizer.get('args'), dict) \
            or not isinstance(optimizer.get('sd'), dict):
        raise UserError(f'checkpoint {path} holds weights but no optimizer: {{name, args, sd}}, so it cannot be '
                        f'resumed from; start from its weights with --init {path}')
    was['optimizer'] = {'name': optimizer['name'], 'args': optimizer['args']}
    now = {key: was[key] if value is None and key in ('model', 'optimizer') else value for key, value in config.items()}
    ends = [(c.get('lr_scheduler') or {}).get('args', {}).get('epochs', 'none') for c in (was, now)]
    if ends == [was.get('epoch_max'), None]:  # earlier versions wrote the length of a schedule out
        was['lr_scheduler'] = {**was['lr_scheduler'], 'args': {**was['lr_scheduler']['args'], 'epochs': None}}
    differences = [f'{key} is {b}, was {a}' for key, a, b in compare(was, now)
                   if key.split('.')[0] not in FREE and not any(f'{key}.'.startswith(f'{a}.') for a in allowed)]
    if differences:
        keys = ' '.join(f'--allow-change {d.split(" is ")[0]}' for d in differences)
        raise UserError(f'the config is not the one of {path}: {"; ".join(differences)}; change it back, or give '
                        f'{keys}')
    if now['optimizer']['name'] != was['optimizer']['name']:
        raise UserError(f'the state of {was["optimizer"]["name"]} in {path} is of no use to '
                        f'{now["optimizer"]["name"]}: start from its weights with --init {path}')
    return {**now, 'model': was['model']}


def compare(a, b, path=''):
    """The leaves in which two nested dicts differ: a list of (key path, in a, in b); an absent key counts as None."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(key for key in b if key not in a)]
        return [d for key in keys for d in compare(a.get(key), b.get(key), f'{path}.{key}' if path else str(key))]
    if a in (None, {}) and b in (None, {}):
        return []
    return [] if a == b and type(a) is type(b) or is_number(a) and is_number(b) and a == b else [(path, a, b)]


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)
