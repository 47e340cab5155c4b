"""The folder of a run: its log, its config, its curves, its checkpoints. Only process 0 writes."""
import contextlib
import glob
import logging
import os
import shutil
import time

import torch
import yaml
from PIL import Image
from tqdm import tqdm

from engine import distributed
from engine.checkpoint import LAST, PREVIOUS, find_resume, save_checkpoint, to_bytes
from utils import UserError, atomic_write

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


LOG, CONFIG, CURVES, SAMPLES, LOCK = 'log.txt', 'config.yaml', 'tensorboard', 'samples', 'lock'
log = logging.getLogger('liif')


def folder_name(config_path, name=None, tag=None):
    """save/_<config's name>[_tag], or save/<name>[_tag]."""
    name = '_' + os.path.splitext(os.path.basename(config_path))[0] if name is None else name
    name += f'_{tag}' if tag else ''
    if name in ('', '.', '..') or os.path.basename(name) != name:
        raise UserError(f'name, tag: found {name!r}, expected the name of a folder below save/')
    return os.path.join('save', name)


class RunFolder:
    """The run folder `path`. In processes other than the first, everything here does nothing.

    resume: go on with the run in it, when there is one; or overwrite: replace it. Raises UserError with neither for a
    folder in which training began. Nothing is written or deleted before `begin`.
    """

    def __init__(self, path, resume=False, overwrite=False):
        self.path, self.overwrite, self.is_main = path, overwrite, distributed.is_main()
        self.begun, self.curves, self.saved = False, None, time.monotonic()
        self.resume, self.lock = resume, None
        if self.is_main:
            if resume and os.path.isdir(path):
                self._lock()
            self._refuse_a_run()
        log.handlers = [Terminal(), LogFile(self)] if self.is_main else [Terminal(logging.WARNING)]
        log.propagate = False
        log.setLevel(logging.INFO)

    def begin(self, config, finished=False):
        """Make the folder ready and keep the config in it: training begins. finished: nothing is left to train, so the
        config is not shown again."""
        if not self.is_main:
            return
        with self.writing('.'):
            if self.overwrite:
                self._delete()
            os.makedirs(self.path, exist_ok=True)
            if self.lock is None:
                self._lock()
                self._refuse_a_run()  # one may have begun since
            for pattern in ('.*.pth.*', f'.{CONFIG}.*'):  # left by a process that was killed while it wrote
                for leftover in glob.glob(pattern, root_dir=self.path):
                    os.unlink(self.file(leftover))
        self.begun, text = True, yaml.safe_dump(config, sort_keys=False, default_flow_style=None)
        with self.writing(CONFIG), atomic_write(self.file(CONFIG), 'w', encoding='utf-8') as f:
            f.write(text)
        if not finished:
            log.info(f'config (kept in {self.file(CONFIG)}):\n{text.rstrip()}')

    def _refuse_a_run(self):
        begun = glob.glob('*.pth*', root_dir=self.path) or os.path.exists(self.file(CONFIG))
        if begun and not self.resume and not self.overwrite:
            raise UserError(f'{self.path} holds a run already: resume it, overwrite it, or keep both by another name '
                            f'or tag')

    def _delete(self):
        """Delete the folder of an earlier run. It is renamed first: killed in the middle of deleting, what is left of
        the earlier run is not resumed."""
        old = os.path.join(os.path.dirname(self.path), f'.{os.path.basename(self.path)}.deleted')
        if os.path.isdir(old):
            shutil.rmtree(old)
        if os.path.isdir(self.path):
            self._lock()
            os.rename(self.path, old)
            shutil.rmtree(old)
            self.lock = None

    def _lock(self):
        """Keep other processes out of the folder until this one ends. Raises UserError when one is in it."""
        if fcntl is None:
            return
        with self.writing(LOCK):
            self.lock = open(self.file(LOCK), 'w')
        try:
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by data workers, which may end later
        except (BlockingIOError, PermissionError):
            raise UserError(f'{self.path} is in use by another run: wait until it ends, or use another name or '
                            f'tag') from None
        except OSError:  # a file system without locks
            pass

    def close(self):
        """Log to it no longer."""
        log.handlers, log.propagate = [], True

    def file(self, name):
        return os.path.join(self.path, name)

    @contextlib.contextmanager
    def writing(self, name):
        """A full disk, within `with`, is a UserError that says what is left and how to go on."""
        try:
            yield
        except OSError as error:
            last = self.file(LAST)
            kept = f'{last} is intact, go on' if os.path.exists(last) else 'there is no checkpoint yet, begin again'
            raise UserError(f'{self.file(name)} cannot be written ({error.strerror or error}): free some space; {kept} '
                            f'with: {distributed.resume_command()}') from error

    # Checkpoints.

    def newest(self):
        """(path, bytes) to resume from; None when there is none. A damaged epoch-last.pth is set aside, so that it does
        not push out the good one before it."""
        if not self.is_main or not os.path.isdir(self.path):
            return None
        found = find_resume(self.path)
        if found is not None and found[0] != self.file(LAST) and os.path.exists(self.file(LAST)):
            os.replace(self.file(LAST), self.file(LAST) + '.damaged')
        return found

    def save(self, checkpoint, *names):
        """Write a checkpoint under these names and, last of all, as epoch-last.pth: if that one marks the end of an
        epoch, the others exist."""
        if self.is_main:
            data = to_bytes(checkpoint)
            for name in (*names, LAST):
                with self.writing(name):
                    save_checkpoint(self.file(name), data, self.file(PREVIOUS) if name == LAST else None)
            self.saved = time.monotonic()

    def save_is_due(self, minutes):
        """Whether the last save was at least `minutes` ago; None: never due."""
        return self.is_main and minutes is not None and time.monotonic() - self.saved >= 60 * minutes

    # Curves and images for TensorBoard.

    def open_curves(self, epoch):
        """Record curves from this epoch on (what an interrupted run recorded of it no longer shows)."""
        if not self.is_main:
            return
        try:
            with self.writing(CURVES):
                self.curves = Curves(self.file(CURVES), epoch)
        except ImportError as error:
            log.warning(f'no curves and images are recorded: {error.name} is not installed (pip install tensorboardX)')

    def scalars(self, values, epoch):
        """{name: number} after an epoch."""
        if self.curves is not None:
            with self.writing(CURVES):
                for name, value in values.items():
                    self.curves.add(epoch, summary=self.curves.summary.scalar(name, value))

    def images(self, images, epoch):
        """{name: float (3, H, W) in [0, 1]} after an epoch; as PNG, too, where the next ones replace them."""
        if not self.is_main:
            return
        with self.writing(SAMPLES):
            os.makedirs(self.file(SAMPLES), exist_ok=True)
        for name, image in images.items():
            pixels = image.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()  # (3, H, W)
            path = os.path.join(SAMPLES, name.replace('/', '-') + '.png')
            with self.writing(path), atomic_write(self.file(path)) as f:
                Image.fromarray(pixels.transpose(1, 2, 0)).save(f, 'PNG')
            if self.curves is not None:
                with self.writing(CURVES):
                    self.curves.add(epoch, summary=self.curves.summary.image(name, pixels))


class Terminal(logging.Handler):
    """Lines above the progress bar."""

    def emit(self, record):
        tqdm.write(record.getMessage())


class LogFile(logging.Handler):
    """The folder's log.txt. Lines from before training begins are kept until then."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.lines = folder, []

    def emit(self, record):
        self.lines.append(record.getMessage() + '\n')
        if self.folder.begun:
            with self.folder.writing(LOG), open(self.folder.file(LOG), 'a', encoding='utf-8') as f:
                f.writelines(self.lines)
            self.lines = []


class Curves:
    """An event file written by this very thread. tensorboardX's SummaryWriter uses another one, which a full disk ends
    without a word, after which its queue fills and training hangs."""

    def __init__(self, path, epoch):
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        os.makedirs(path, exist_ok=True)
        self.summary, self.event_pb2 = summary, event_pb2
        self.writer = EventsWriter(os.path.join(path, 'events'), f'.{os.getpid()}')
        self.add(epoch, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def add(self, epoch, **content):  # the axis of the curves, which TensorBoard calls step
        self.writer.write_event(self.event_pb2.Event(wall_time=time.time(), step=epoch, **content))
        self.writer.flush()
