"""What every program needs around its work: a device and a precision, errors in one line, an orderly end on a signal.

Half precision is autocast over float32 weights; coordinates and blending weights stay in float32 (models/decode.py).
"""
import contextlib
import ctypes
import errno
import functools
import os
import signal
import subprocess
import sys

import torch

from datasets.images import cores
from engine import ROOT, distributed
from engine.arguments import Parser  # noqa: F401 (programs import it from here)
from utils import UserError, counted, first_line


DTYPES = {'float32': torch.float32, 'tf32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
EMULATED = 'AVX2', 'NO AVX', 'DEFAULT'  # the widest vectors of CPUs on which PyTorch emulates bf16
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNUSABLE = NotADirectoryError, IsADirectoryError, PermissionError, FileExistsError


def run_program(main):
    """Call main() and exit: 0, 2 with `error: <one line>` for a mistake of the user, 1 with a traceback for ours."""
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')  # file names need not be UTF-8
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush complains
        code = 128 + signal.SIGPIPE
    except Exception as error:
        message = explain(error)
        if message is None and not distributed.joined():
            raise
        if message is None:
            sys.excepthook(*sys.exc_info())  # the way out below would leave it unprinted
        elif distributed.joined():
            print(f'error in process {distributed.rank()} of {distributed.world()}: {message}', file=sys.stderr)
        elif int(os.environ.get('LOCAL_RANK', 0)) == 0:  # the others find the same before they join
            print(f'error: {message}', file=sys.stderr)
        code = 1 if message is None else 2
    if distributed.joined():
        distributed.leave(code)
    sys.exit(code)


def explain(error):
    """One line about an error that the user can fix; None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f'{error.filename or "a file"} cannot be written ({os.strerror(error.errno)}): free some space, and ' \
               f'start again'
    if isinstance(error, UNUSABLE) and error.filename:
        return f'{error.filename} cannot be used ({error.strerror}): check the path and its permissions'
    if out_of_memory(error):
        return f'the memory is not enough ({first_line(error)}): lower batch_size, sample_q or eval_bsize, or use a ' \
               f'GPU or machine with more'
    if distributed.lost_peer(error):
        return f'another process of this run has died, its own message says why ({first_line(error)})'
    return None


def out_of_memory(error):
    """Whether an exception says that the memory of a GPU or of the machine is not enough."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) \
        or isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def select_device(gpu=None, announce=True):
    """The device to compute on, as a torch.device; a CUDA device is made the current one.

    gpu: what --gpu says: a number among the GPUs that CUDA_VISIBLE_DEVICES leaves (that variable is never touched),
    'cpu', or, for several processes, one such per process, 'a,b'; default: this process's GPU, else Apple's, else the
    CPU
    announce: say once if no CUDA GPU was found
    """
    local, count = int(os.environ.get('LOCAL_RANK', 0)), int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    if gpu is not None:
        names = parse_gpus(gpu)
        if len(names) > 1 and len(names) != count:
            raise UserError(f'--gpu: found {gpu}, {len(names)} devices for {count} process{"es"[:2 * (count > 1)]}: '
                            f'name one' + (f' or {count}' if count > 1 else ''))
        if len(names) == 1 and count > 1 and names != ['cpu']:
            raise UserError(f'--gpu: found {gpu}, but {count} processes would share it; leave --gpu out, and each '
                            f'takes its own')
        return named_device(names[local] if len(names) > 1 else names[0])
    if torch.cuda.is_available():
        return named_device(str(local))
    device = torch.device('mps' if torch.backends.mps.is_available() and count == 1 else 'cpu')
    if local == 0 and announce:
        kind = "Apple's GPU (MPS)" if device.type == 'mps' else \
            f'the CPU ({counted(torch.get_num_threads(), "thread")})'
        say_once(f'no CUDA GPU found, computing on {kind}')
    return device


@functools.cache
def say_once(message):
    """Print a message to stderr the first time that this process has it."""
    print(message, file=sys.stderr)


def parse_gpus(gpu):
    """'0,1' -> ['0', '1']. Raises UserError for what is no list of GPU numbers, or of cpu."""
    names = [name.strip() for name in gpu.split(',')]
    numbers = all(name.isascii() and name.isdigit() for name in names) and len({*names}) == len(names)
    if not numbers and {*names} != {'cpu'}:
        raise UserError(f'--gpu: found {gpu!r}, expected the number of a GPU such as 0, several such as 0,1 (to train '
                        f'on all of them), or cpu')
    return names


def named_device(name):
    if name == 'cpu':
        return torch.device('cpu')
    number, count = int(name), torch.cuda.device_count()
    if count == 0 and number == 0 and torch.backends.mps.is_available():
        return torch.device('mps')
    if number >= count:
        visible = os.environ.get('CUDA_VISIBLE_DEVICES')
        found = f'found GPUs 0 to {count - 1}' if count > 1 else 'found only GPU 0' if count else \
            'found no CUDA GPU'
        found += f' (CUDA_VISIBLE_DEVICES={visible})' if visible else ''
        remedy = 'choose one of these' if count else 'use --gpu cpu'
        raise UserError(f'GPU {number} does not exist: {found}; {remedy}')
    # Streams, events, pinned memory and NCCL use the current device unless told otherwise.
    torch.cuda.set_device(torch.device('cuda', number))
    return torch.device('cuda', number)


def copy_to_host(tensor):
    """Start copying a tensor to the CPU: (the copy, a function that returns once the copy is complete)."""
    if not tensor.is_cuda:
        return tensor, lambda: None
    copy, event = tensor.to('cpu', non_blocking=True), torch.cuda.Event()  # PyTorch allocates the copy pinned
    event.record(torch.cuda.current_stream(tensor.device))
    return copy, event.synchronize


def describe_device(device):
    if device.type == 'cuda':
        return f'{device} ({torch.cuda.get_device_name(device)})'
    if device.type == 'cpu':
        return f'cpu ({counted(torch.get_num_threads(), "thread")} of {counted(cores(), "core")})'
    return str(device)


def model_device(model):
    """Where a model's parameters or buffers are; the CPU for one that has none."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device('cpu'))


def autocast(device, precision):
    """The context in which a model computes in `precision`: None or 'float32', 'tf32', 'bf16', or 'fp16' (not on a
    CPU). On a CUDA GPU it also settles how float32 products are computed from here on, the backward pass included:
    as IEEE float32, or rounded to TF32's 10 bits for 'tf32'."""
    precision = precision or 'float32'
    if precision not in DTYPES:
        raise UserError(f'precision: found {precision!r}, expected one of {", ".join(DTYPES)}')
    if precision == 'fp16' and device.type == 'cpu':
        raise UserError('precision: fp16 is slow and overflows on a CPU; use bf16 there')
    if device.type == 'cuda':
        allow_tf32(precision == 'tf32')
    if DTYPES[precision] is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def has_bf16(device):
    """Whether a device computes in bf16 itself, as far as that is known. Otherwise PyTorch emulates it: on a CPU
    without AVX-512 a convolution then takes tens of times as long as in float32."""
    if device.type == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != 'cpu' or torch.backends.cpu.get_cpu_capability() not in EMULATED


def allow_tf32(allow):
    """Whether float32 convolutions and matrix products of CUDA GPUs may round to TF32. PyTorch's own default differs
    between the two: convolutions do, matrix products do not."""
    if hasattr(torch.backends.cudnn, 'conv'):  # torch 2.9; the older switches warn there
        value = 'tf32' if allow else 'ieee'
        torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = value
    else:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allow


def keep_freed_memory():
    """Have the process keep the memory that CPU tensors free, for the tensors to come.

    A training step frees and allocates the same large tensors every time; glibc gives each back to the system, which
    then clears the pages anew, a fifth of the step's time (docs/speed.md). The process stays at its peak size in
    return. Does nothing where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
    if mallopt is not None:
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
        mallopt(M_MMAP_MAX, 0)  # nothing is mapped on its own ...
        mallopt(M_TRIM_THRESHOLD, -1)  # ... and the heap never shrinks


def reset_peak_memory(device):
    """Have `peak_memory` count from here; on a CPU only under Linux, elsewhere it counts from the start."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == 'linux':
        with contextlib.suppress(OSError), open('/proc/self/clear_refs', 'w') as f:
            f.write('5')


def peak_memory(device):
    """Megabytes (2**20 bytes) at the peak: of what torch allocated on a GPU, of the whole process on a CPU; None where
    the system does not tell."""
    if device.type == 'cuda':
        return round(torch.cuda.max_memory_allocated(device) / 2 ** 20, 1)
    try:
        with open('/proc/self/status') as f:
            return next(round(int(line.split()[1]) / 1024, 1) for line in f if line.startswith('VmHWM'))
    except (OSError, StopIteration):
        return None


def code_version():
    """The commit of this code, with -dirty when files differ from it; 'unknown' where git cannot tell."""
    try:
        return subprocess.run(['git', '-C', ROOT, 'describe', '--always', '--dirty', '--exclude=*'], check=True,
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return 'unknown'


class StopSignals:
    """Within `with`: SIGTERM and SIGINT do not end the process but are remembered, for it to finish its step.

    A second SIGINT (an impatient key press) ends it at once. A process started by `distributed.launch` also stops when
    its launcher is gone.
    """

    def __init__(self):
        self.number = None
        self.launcher = int(os.environ.get('LIIF_LAUNCHER', 0))

    def __enter__(self):
        self.before = {number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _remember(self, number, frame):
        if number == signal.SIGINT and self.number is not None:
            raise KeyboardInterrupt
        self.number = number
        if distributed.is_main():  # print() could be what the signal interrupted
            again = ', Ctrl-C again to stop at once without saving' if number == signal.SIGINT else ''
            os.write(sys.stderr.fileno(), f'\nstopping after this step{again}\n'.encode())

    def asked(self):
        """Whether it is time to stop."""
        if self.number is None and self.launcher and os.getppid() != self.launcher:
            self.number = signal.SIGTERM
        return self.number is not None
