"""What surrounds the steps: their results, the progress bar, bad images, saves within an epoch, signals to stop."""
import functools
import logging
import math
import signal
import time
from typing import Callable, NamedTuple

import torch
from tqdm import tqdm

from datasets.loader import BatchSampler
from engine import distributed
from engine.runtime import copy_to_host
from engine.optim import learning_rate
from utils import Averager, UserError, counted, time_text


SMALLEST_SCALE = 1.0  # of fp16 losses; when gradients overflow at this scale, the model is at fault
log = logging.getLogger('liif')


class Stopped(Exception):
    """A signal asked to stop. Every step made is complete and recorded."""


class Result(NamedTuple):
    """What a step found. values: [loss, processes asked to stop, bad images skipped, norm of the gradient], on the
    CPU once `wait` returns; rate: the learning rate; index: of the samples."""
    values: torch.Tensor
    wait: Callable
    rate: float
    index: torch.Tensor


class Monitor:
    """Watches a run. A step's result is read one step late, so that a GPU always has a step to work on, and always
    before anything is saved."""

    def __init__(self, state, sampler, folder, stop):
        self.state, self.sampler, self.folder, self.stop = state, sampler, folder, stop
        self.pending, self.stopping = None, False
        self.begun, self.first = time.monotonic(), state.epoch

    def batches(self, loader):
        """The batches of the loader. At their end the last result is recorded."""
        state, begun, waited = self.state, time.perf_counter(), 0.0
        with tqdm(total=state.steps, initial=state.step, desc=f'epoch {state.epoch}', leave=False,
                  disable=None if self.folder.is_main else True) as self.progress:
            asked = begun
            for batch in loader:
                waited += time.perf_counter() - asked
                if state.epoch == 1 and state.step == 0 and self.pending is None:
                    log.info('first batch: ' + ', '.join(f'{key} {tuple(value.shape)} {str(value.dtype)[6:]}'
                                                         for key, value in batch.items() if torch.is_tensor(value)))
                warn_of_skipped(batch)
                yield batch
                asked = time.perf_counter()
        share = waited / (time.perf_counter() - begun)
        if share > 0.2 and waited > 5:
            log.info(f'the model waited for data {share:.0%} of the time: use more workers, or set cache: bin')
        if self.record() or self.stopping:
            raise Stopped

    def after_step(self, batch, loss, norm, rate, share):
        """Record the step before this one, save when it is time. Raises Stopped when a process was asked to stop."""
        counts = [self.stop.asked(), batch['skipped'].sum().item() if share else 0]
        sums = distributed.all_sum(torch.stack([loss * share, *(loss.new_full((), n) for n in counts)]))
        self.stopping |= self.record(Result(*copy_to_host(torch.cat([sums, norm.view(1)])), rate, batch['index']))
        if self.state.loss.n:
            self.progress.set_postfix_str(f'loss {self.state.loss.item():.4f}', refresh=False)
        self.progress.update()
        if self.stopping or self.folder.save_is_due(self.state.config['save_minutes']):
            asked = self.record()
            if self.stopping:
                raise Stopped
            self.folder.save(self.state.checkpoint())
            self.stopping = asked  # after the next step, as in the processes that do not save

    def record(self, following=None):
        """Take the pending Result into the state; `following` is pending then. Returns whether a process was asked to
        stop. Raises UserError for a loss or a gradient that is not finite."""
        result, self.pending, state = self.pending, following, self.state
        if result is None:
            return False
        result.wait()
        loss, asked, skipped, norm = result.values.tolist()
        overflow = state.scaler.is_enabled() and state.scaler.get_scale() >= SMALLEST_SCALE  # it skipped that step
        if not math.isfinite(loss) or not math.isfinite(norm) and not overflow:
            if not self.folder.is_main:
                raise SystemExit(2)  # process 0 finds the same and says it
            raise UserError(f'epoch {state.epoch}, step {state.step + 1}: the loss is {loss:g} and the norm of its '
                            f'gradient {norm:g}, at rate {result.rate:g} on samples {self._samples(result)}: lower the '
                            f'rate, set grad_clip, or look at these images; the last good checkpoint stays')
        state.step += 1
        state.loss.add(loss)
        state.skipped += int(skipped)
        return asked > 0

    def _samples(self, result):
        """The sample indices of the global batch, as text."""
        indices, sampler = result.index.tolist(), self.sampler
        if distributed.world() > 1:
            whole = BatchSampler(sampler.samples, sampler.batch_size, sampler.seed, train=True)
            whole.set_position(self.state.epoch, self.state.step)
            indices = [index for _, index in next(iter(whole))]
        return ', '.join(map(str, indices))

    def end_epoch(self, psnr):
        """Log the epoch, go to the next one, save. psnr: of the validation, in dB; None without one."""
        state, config, epoch = self.state, self.state.config, self.state.epoch
        rate = learning_rate(config, epoch, state.steps - 1, state.steps)
        scalars = {'lr': rate, 'loss/train': state.loss.item()}
        line = f'epoch {epoch}/{config["epoch_max"]}: rate {rate:.3g}, loss {state.loss.item():.6f}'
        if psnr is not None:
            scalars['psnr/val'] = psnr
            if psnr > state.best:
                state.best, state.best_epoch = psnr, epoch
            line += f', val psnr {psnr:.4f} (best {state.best:.4f})'
        if state.skipped:
            line += f', {state.skipped} samples of bad images replaced so far'
        seconds, epochs = time.monotonic() - self.begun, epoch - self.first + 1
        total = seconds / epochs * (config['epoch_max'] - epoch + epochs)
        line += f', {time_text(seconds)} of {time_text(total)}'
        if psnr is not None and state.reference:
            line += '; ' + ', '.join(f'{name} {value:.4f}' for name, value in state.reference.items())
        log.info(line)
        self.folder.scalars(scalars, epoch)
        state.epoch, state.step, state.loss = epoch + 1, 0, Averager()
        self.folder.save(state.checkpoint(), *state.names())  # last: interrupted before it, the epoch is done again

    def stop_run(self):
        """Save and say how to resume; returns the signal's number."""
        state = self.state
        self.folder.save(state.checkpoint())
        log.info(f'stopped by a signal in epoch {state.epoch}, {state.step} of its {counted(state.steps, "step")} '
                 f'made, and saved; go on with: {distributed.resume_command()}')
        distributed.wait()  # a process that ended sooner would have the others ended, too
        return self.stop.number or signal.SIGTERM  # it may be another process that was asked


def warn_of_skipped(batch):
    for reason in batch.get('reasons', ()):
        warn_once(f'skipped: {reason}')


@functools.cache
def warn_once(message):
    log.warning(message)
