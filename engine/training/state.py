"""A training run at one step: everything that the next step depends on, to a checkpoint and back.

Nothing random is in it: samples are drawn by (seed, epoch, index), and the global generators are seeded for each step
(engine/training/loop.py), so a run goes on as if it had never stopped, for any number of workers and processes.
"""
import difflib
import logging
import math

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import models
from engine.checkpoint import IDENTITY_NORM, build_model
from engine.optim import learning_rate, make_optimizer
from utils import Averager, UserError, is_number


# What may differ from the run that is resumed: where to start from, when to save, how much memory to use.
FREE = {'resume', 'init', 'save_minutes', 'epoch_save', 'eval_bsize'}
log = logging.getLogger('liif')


class Changed(UserError):
    """A config that is not the one of the run to resume. keys: the paths of the keys that differ."""
    keys = ()


class State:
    """All that a training needs to go on: the model, the optimizer, and where it stands.

    config: complete, with `model` and `optimizer` specs (see `check_resumable`).
    checkpoint: what to resume; init: a checkpoint whose weights to start from instead; neither: new weights.
    Raises UserError for a checkpoint that does not suit the config, or whose training state is not complete.

    epoch: the one under way, from 1; step: steps of it already made; steps: in every epoch; loss: mean over those made;
    best: highest validation PSNR in dB, reached in best_epoch; skipped: bad images so far; reference: PSNR on the
    validation set of bicubic interpolation and of the model before the first step, None until measured; data: the files
    of each data set (datasets/check.py).
    """

    def __init__(self, config, device, steps, checkpoint=None, init=None):
        self.config, self.steps = config, steps
        self.epoch, self.step, self.loss, self.skipped = 1, 0, Averager(), 0
        self.best, self.best_epoch, self.reference, self.data = float('-inf'), 0, None, {}
        if config['precision'] == 'fp16' and device.type != 'cuda':
            raise UserError(f'precision: fp16 is for CUDA GPUs, this is {device}; use bf16 or float32')
        if checkpoint is not None:
            model = build_model({**config['model'], 'sd': checkpoint['model']['sd']}, 'to resume')
        else:
            model = models.make(config['model']) if init is None else start_from(init, config)
        self.model = model.to(device, memory_format=torch.channels_last).train()
        self.optimizer = make_optimizer(self.model.parameters(), config['optimizer'])
        self.scaler = torch.amp.GradScaler(device.type, enabled=config['precision'] == 'fp16')
        self.ema = None  # ema <- decay * ema + (1 - decay) * weights; buffers are copied
        if config['ema']:
            self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config['ema']))
            self.ema.n_averaged += 1  # it begins with the initial weights, not with those after the first step
        if checkpoint is not None:
            self._restore(checkpoint)

    def checkpoint(self):
        """The dict that describes this moment; its tensors are the live ones, so it is written before the next step.
        The rate in the optimizer's groups is that of the next step, as the published code saves it."""
        config = self.config
        for group in self.optimizer.param_groups:
            group['lr'] = learning_rate(config, self.epoch, self.step, self.steps)
        checkpoint = {
            'model': {**config['model'], 'sd': self.model.state_dict()},
            'optimizer': {**config['optimizer'], 'sd': self.optimizer.state_dict()},
            'epoch': self.epoch - 1,
            'data_norm': config['data_norm'] or IDENTITY_NORM,
            'config': config,
            'data': self.data,
            'train': {'step': self.step, 'steps': self.steps, 'loss': [self.loss.n, self.loss.v], 'best': self.best,
                      'best_epoch': self.best_epoch, 'skipped': self.skipped, 'reference': self.reference,
                      'scaler': self.scaler.state_dict()},
        }
        return checkpoint if self.ema is None else {**checkpoint, 'ema': self.ema.module.state_dict()}

    def names(self):
        """Files for the checkpoint at the end of an epoch, besides the last one."""
        done, every = self.epoch - 1, self.config['epoch_save']
        best = ['epoch-best.pth'] if self.best_epoch == done > 0 else []
        return best + ([f'epoch-{done}.pth'] if every and done and done % every == 0 else [])

    def _restore(self, checkpoint):
        try:
            self.epoch = checkpoint.get('epoch', 0) + 1
            train = checkpoint.get('train')  # absent in checkpoints of the published code: at the end of an epoch
            if train is not None:
                check_position(train)
                self.best, self.best_epoch = float(train['best']), int(train.get('best_epoch', 0))
                self.skipped, self.reference = train['skipped'], train.get('reference')
                if train['steps'] == self.steps:
                    self.step, (self.loss.n, self.loss.v) = train['step'], map(float, train['loss'])
                elif train['step']:
                    log.warning(f'the data has changed: an epoch has {self.steps} steps, had {train["steps"]}, so '
                                f'epoch {self.epoch}, of which {train["step"]} steps were made, begins again')
                if self.scaler.is_enabled() and train['scaler']:
                    self.scaler.load_state_dict(train['scaler'])
            if self.epoch < 1:
                raise ValueError(f'its epoch is {self.epoch - 1}')
            self._restore_optimizer(checkpoint['optimizer']['sd'])
            if self.ema is not None and checkpoint.get('ema'):
                self.ema.module.load_state_dict(checkpoint['ema'])
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
            raise UserError(f'the checkpoint cannot be resumed from, its training state is not complete or not valid '
                            f'({type(error).__name__}: {error}); start from its weights with init') from error

    def _restore_optimizer(self, found):
        """Its running means and counts; the rest comes from the config, which agrees."""
        wanted = self.optimizer.state_dict()
        counts = [sum(len(group['params']) for group in sd['param_groups']) for sd in (found, wanted)]
        if counts[0] != counts[1]:
            raise UserError(f'the optimizer state is for {counts[0]} parameters, the model has {counts[1]}: '
                            f'start from the weights alone with init')
        name, args = self.config['optimizer']['name'], self.config['optimizer']['args']
        if not found['state'] and self.epoch + self.step > 1 and (name != 'sgd' or args.get('momentum')):
            raise ValueError(f'the running means of {name} are missing')
        parameters = dict(enumerate(self.model.parameters()))
        for i, values in found['state'].items():
            for key, value in values.items():
                if torch.is_tensor(value) and value.dim() and value.shape != parameters[i].shape:
                    raise UserError(f'the optimizer state {key} of parameter {i} is {tuple(value.shape)}, expected '
                                    f'{tuple(parameters[i].shape)}: start from the weights alone with init')
        groups = [{**was, **now} for was, now in zip(found['param_groups'], wanted['param_groups'])]
        self.optimizer.load_state_dict({'param_groups': groups, 'state': found['state']})


def start_from(init, config):
    """The config's model with the weights of a checkpoint. Raises UserError with the differences if they do not fit."""
    try:
        return build_model({**config['model'], 'sd': init['model']['sd']}, config['init'])
    except UserError:
        was = {'name': init['model']['name'], 'args': init['model'].get('args') or {}}
        differences = compare(was, config['model'], 'model')
        if not differences:
            raise
        raise UserError(f'the weights of {config["init"]} are not for this model: ' + ', '.join(
            f'{key} is {now}, that of the weights {"the default" if before is None else before}'
            for key, before, now in differences) + '; take the model of the weights, or other weights') from None


def check_position(train):
    """Raise ValueError for numbers of a run that no run reaches."""
    step, steps, (count, loss) = train['step'], train['steps'], train['loss']
    for name, value, high in (('step', step, steps), ('steps', steps, math.inf),
                              ('skipped', train['skipped'], math.inf)):
        if type(value) is not int or not 0 <= value <= high:
            raise ValueError(f'its {name} is {value!r}, expected a whole number from 0 to {high}')
    if not (count >= 0 and math.isfinite(count) and math.isfinite(loss)) or math.isnan(train['best']):
        raise ValueError(f'its mean loss is {loss!r} over {count!r} steps, its best PSNR {train["best"]!r}')


def check_resumable(config, checkpoint, path, allowed=()):
    """The config to go on with from a checkpoint: the given one, with the checkpoint's `model`, and its `optimizer`
    where the given one has none.

    allowed: paths of keys that may differ, such as 'epoch_max' or 'optimizer.args'. Raises Changed showing all other
    differences, UserError for a checkpoint that cannot be resumed from.
    """
    was = checkpoint.get('config') or {key: config[key] for key in config if key not in ('model', 'optimizer')}
    was = {**was, 'model': {'name': checkpoint['model']['name'], 'args': checkpoint['model'].get('args') or {}}}
    optimizer = checkpoint.get('optimizer') or {}
    if not isinstance(optimizer.get('name'), str) or not isinstance(optimizer.get('args'), dict) \
            or not isinstance(optimizer.get('sd'), dict):
        raise UserError(f'checkpoint {path} holds weights but no optimizer: {{name, args, sd}}, so it cannot be '
                        f'resumed from; start from its weights with init: {path}')
    was['optimizer'] = {'name': optimizer['name'], 'args': optimizer['args']}
    now = {key: was[key] if value is None and key in ('model', 'optimizer') else value for key, value in config.items()}
    ends = [(c.get('lr_scheduler') or {}).get('args', {}).get('epochs', 'none') for c in (was, now)]
    if ends == [was.get('epoch_max'), None]:  # earlier versions wrote the length of a schedule out
        was['lr_scheduler'] = {**was['lr_scheduler'], 'args': {**was['lr_scheduler']['args'], 'epochs': None}}
    if now['optimizer']['name'] != was['optimizer']['name']:
        raise UserError(f'the state of {was["optimizer"]["name"]} in {path} cannot be used by '
                        f'{now["optimizer"]["name"]}: change it back, or start from its weights with init: {path}')
    unknown = [key for key in allowed if key.split('.')[0] not in now]
    if unknown:
        close = difflib.get_close_matches(unknown[0], now, n=1)
        raise UserError(f'found {unknown[0]} allowed to change, expected a key of the config'
                        + (f'; did you mean {close[0]}?' if close else ''))
    differences = {key: f'{key} is {b}, was {a}' for key, a, b in compare(was, now)
                   if key.split('.')[0] not in FREE and not any(f'{key}.'.startswith(f'{a}.') for a in allowed)}
    if differences:
        error = Changed(f'the config is not the one of {path}: {"; ".join(differences.values())}; change it back')
        error.keys = list(differences)
        raise error
    return {**now, 'model': was['model'], 'init': was.get('init')}


def compare(a, b, path=''):
    """The leaves in which two nested dicts differ: a list of (key path, in a, in b); an absent key counts as None."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(key for key in b if key not in a)]
        return [d for key in keys for d in compare(a.get(key), b.get(key), f'{path}.{key}' if path else str(key))]
    if a in (None, {}) and b in (None, {}):
        return []
    return [] if a == b and type(a) is type(b) or is_number(a) and is_number(b) and a == b else [(path, a, b)]
