"""Batches whose content is a function of (config, seed) alone.

Every sample's random choices come from a generator keyed by (seed, epoch, index), so they are the same for any number
of workers and processes, and after an interruption. The batch sampler hands (epoch, index) to the workers, because
what is set in the parent never reaches workers that persist.
"""
import contextlib
import gc
import os
import random
import signal
import sys
import threading
import time

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from utils import UserError, make_coord

from .images import BadImage, cores


def make_loader(wrapper, batch_size, seed, train, num_workers=None, device_type='cpu', rank=0, world=1,
                on_bad_image='stop'):
    """A DataLoader over `wrapper` whose batches are dicts of what the wrapper gives, collated, plus
        index    int64 (B,)   which samples these are, for messages (`wrapper.path(index)` is the file)
        skipped  int64 (B,)   how many bad images were skipped for each
        reasons  list of str  why; only when there are any
    Iteration starts where `loader.batch_sampler.set_position(epoch, step)` says, at (0, 0) before.

    batch_size: of the global batch, which `world` processes share: in training, process `rank` takes its part of each;
    in evaluation it takes every world-th batch whole, because an image metric pools over a batch.
    train: shuffled, by (seed, epoch). Otherwise in order, with the random choices of epoch 0, the same every time.
    num_workers: None chooses by the machine. device_type: where batches go ('cuda' pins memory).
    on_bad_image: 'stop' raises BadImage; 'skip' takes the next image that can be used instead.
    """
    if on_bad_image not in ('stop', 'skip'):
        raise UserError(f'on_bad_image is stop or skip, found {on_bad_image!r}')
    if batch_size < 1 or (train and batch_size < world):
        raise UserError(f'batch_size {batch_size} is shared by {world} processes: it must be at least {world}')
    if num_workers is None:
        num_workers = default_workers(len(wrapper), device_type)
    more = dict(persistent_workers=True, worker_init_fn=_start_worker) if num_workers else {}
    return _Loader(_Samples(wrapper, seed, on_bad_image), num_workers=num_workers, collate_fn=_collate,
                   batch_sampler=BatchSampler(len(wrapper), batch_size, seed, train, rank, world),
                   pin_memory=device_type == 'cuda', generator=torch.Generator(), **more)  # leaves the global one alone


def default_workers(samples, device_type):
    """Worker processes for a data set of `samples` samples on this machine: none for a tiny one; one a core, up to 8,
    when a GPU computes; one for four cores when the CPU does. The training processes of a machine share them."""
    share = cores() // int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    if samples < 64 or share < 2:
        return 0
    return min(8, share if device_type != 'cpu' else share // 4)


class BatchSampler(Sampler):
    """Lists of (epoch, index), this process's part of the global batches (see `make_loader`)."""

    def __init__(self, samples, batch_size, seed, train, rank=0, world=1):
        self.samples, self.batch_size, self.seed, self.train = samples, batch_size, seed, train
        self.rank, self.world = rank, world
        self.set_position(0)

    def set_position(self, epoch, step=0):
        """The next iterations start at batch `step` of `epoch` (evaluation is always epoch 0)."""
        self.epoch, self.step = epoch if self.train else 0, step

    def __len__(self):
        """Batches of this process in a whole epoch."""
        steps = -(-self.samples // self.batch_size)
        return steps if self.train else len(range(self.rank, steps, self.world))

    def __iter__(self):
        order = np.arange(self.samples)
        if self.train:
            order = keyed_rng(self.seed, self.epoch).permutation(self.samples)
        for step in range(self.step, len(self)):
            first = (step if self.train else self.rank + step * self.world) * self.batch_size
            batch = order[first:first + self.batch_size]
            if self.train:
                # A last batch may be smaller than the world: who would get nothing repeats its first sample, and
                # `share` says that it does not count.
                batch = batch[self.rank::self.world] if self.rank < len(batch) else batch[:1]
            yield [(self.epoch, index) for index in batch.tolist()]

    def share(self, step):
        """The fraction of the global batch `step` of an epoch that this process computes: the weight of its mean loss
        in the mean over all processes. 1 for one process; 0 when its part of the batch is empty."""
        size = min(self.batch_size, self.samples - step * self.batch_size)
        return len(range(self.rank, size, self.world)) / size


def keyed_rng(*key):
    """A generator that depends on the numbers of the key, their order and their count alone."""
    return np.random.default_rng([len(key), *key])


def unpack(batch, device):
    """Move a batch and make it float: a dict of
        inp    float32 (B, 3, h, w) in [0, 1]
        coord  float32 (B, Q, 2); None when the queries are all pixels of `size`, in `make_coord` order
        cell   float32 (B, 1, 2), one for all queries, or (B, Q, 2)
        gt     float32 (B, Q, 3) in [0, 1]
        size   int64 (B, 2) on the CPU, (H, W) of the image the queries come from; None when the loader does not tell
    Takes our wrappers' small form (uint8 `inp` and `gt`) and the published form (floats) alike.
    """
    out = {key: batch.get(key) for key in ('inp', 'coord', 'cell', 'gt')}
    for key, value in out.items():
        if value is None:
            continue
        moved = value.to(device, non_blocking=True)
        out[key] = moved.float() / 255 if value.dtype == torch.uint8 else moved.float()
    return {**out, 'size': batch.get('size')}


def all_pixels(inp, size):
    """Coordinates of every pixel, (B, H * W, 2), for a batch without `coord`. inp: (B, 3, h, w); size: (B, 2)."""
    coord = make_coord(size[0].tolist(), device=inp.device)  # (H * W, 2)
    return coord.expand(len(inp), *coord.shape)


class _Loader(DataLoader):
    def __iter__(self):
        for batch in self._start():
            if isinstance(batch, UserError):  # raised here, in one line; raised in a worker it gains a traceback
                self.close()  # now, and not whenever the error is forgotten
                raise batch
            yield batch

    def _start(self):
        """The batches, without the handler of SIGCHLD that PyTorch installs with the first worker processes: it raises
        wherever the training process happens to be, in a lock or a write. Without it a dead worker is found when a
        batch is waited for, within 5 seconds."""
        if not hasattr(signal, 'SIGCHLD') or threading.current_thread() is not threading.main_thread():
            return super().__iter__()  # PyTorch installs none
        handler = signal.getsignal(signal.SIGCHLD)
        try:
            return super().__iter__()
        finally:
            signal.signal(signal.SIGCHLD, handler)

    def dead_worker(self, patience=0.0):
        """Why a worker process has died, in a few words; None when none has.

        patience: seconds to wait for one that is about to end (its connections close first).
        """
        workers, deadline = getattr(self._iterator, '_workers', ()), time.monotonic() + patience
        while True:
            for process in workers:
                if process.exitcode:
                    how = signal.Signals(-process.exitcode).name if process.exitcode < 0 else f'code {process.exitcode}'
                    return f'process {process.pid}, which reads images, was ended by {how}'
            if not workers or time.monotonic() > deadline:
                return None
            time.sleep(0.05)

    def close(self):
        """End the worker processes, in order, and those that do not answer by force."""
        iterator, self._iterator = self._iterator, None
        workers = getattr(iterator, '_workers', ())
        if workers:
            iterator._shutdown_workers()
        for process in workers:
            process.kill()


@contextlib.contextmanager
def closing_workers(loaders, remedy):
    """Within `with`, a killed worker process of loaders of `make_loader` raises a UserError, which ends with the text
    `remedy`; at the end all workers have ended."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:  # PyTorch's, or a connection has ended
        patience = 0 if isinstance(error, RuntimeError) else 5
        lost = next(filter(None, (loader.dead_worker(patience) for loader in loaders)), None)
        if lost is None:
            raise
        raise UserError(f'{lost} (by the system, if memory ran out): use fewer workers, and {remedy}') from None
    finally:
        for loader in loaders:
            loader.close()


class _Samples(Dataset):
    """The wrapper's samples by (epoch, index), with `index`, `skipped` and `reasons`; a UserError instead when the
    wrapper raised one."""

    def __init__(self, wrapper, seed, on_bad_image):
        if seed < 0:
            raise UserError(f'seed is a whole number of at least 0, found {seed}')
        self.wrapper, self.seed, self.on_bad_image = wrapper, seed, on_bad_image

    def __len__(self):
        return len(self.wrapper)

    def __getitem__(self, key):
        epoch, index = key
        tries = min(len(self), 1000) if self.on_bad_image == 'skip' else 1
        reasons = []
        for attempt in range(tries):
            rng = keyed_rng(self.seed, epoch, index)
            used = (index + attempt) % len(self)
            try:
                item = self.wrapper.sample(used, rng) if hasattr(self.wrapper, 'sample') \
                    else _seeded_item(self.wrapper, used, rng)
                return {**item, 'index': used, 'skipped': attempt, 'reasons': reasons}
            except BadImage as error:
                reasons.append(str(error))
            except UserError as error:
                return error
        return UserError(reasons[0] if tries == 1 else f'{tries} images in a row cannot be used; {reasons[0]}')


def _seeded_item(wrapper, index, rng):
    """An item of a wrapper that draws from the global generators, which are seeded for it and then restored."""
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = int(rng.integers(2 ** 32))
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # the CPU's alone: torch.manual_seed reaches the GPU's too
        return wrapper[index]
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])


def _collate(items):
    for item in items:
        if isinstance(item, UserError):
            return item
    reasons = [reason for item in items for reason in item.pop('reasons')]
    for key in items[0]:
        shapes = {tuple(getattr(item[key], 'shape', ())) for item in items}
        if len(shapes) > 1:
            return UserError(f'images of different size cannot form a batch ({key}: '
                             f'{" and ".join(map(str, sorted(shapes)[:2]))}): set batch_size: 1, or inp_size')
    batch = default_collate(items)
    return {**batch, 'reasons': reasons} if reasons else batch


def _start_worker(worker):
    """A signal to end, which clusters and terminals send to all processes, is the training process's business: it
    finishes its step and ends the workers. They wait for that, a minute at most."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))
    sys.excepthook = _report_unless_disconnected
    gc.freeze()  # what the parent had: collecting it here would copy its memory and end other loaders' workers


def _report_unless_disconnected(kind, error, traceback):
    """The thread that hands tensors over reports here when the training process, or this one, goes away."""
    if not issubclass(kind, (OSError, EOFError)):
        sys.__excepthook__(kind, error, traceback)
