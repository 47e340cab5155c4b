"""Where and in which precision a model computes.

Half precision is autocast over float32 weights; coordinates and blending weights stay in float32 (models/liif.py).
"""
import contextlib
import ctypes
import sys

import torch

from utils import UserError

DTYPES = {'float32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def model_device(model):
    """Where a model's parameters or buffers are; the CPU for one that has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device('cpu')


def autocast(device, precision):
    """The context in which a model computes in `precision`: None or 'float32', 'bf16', or 'fp16' (not on a CPU)."""
    precision = precision or 'float32'
    if precision not in DTYPES:
        raise UserError(f'precision: found {precision!r}, wanted one of {", ".join(DTYPES)}')
    if precision == 'float32':
        return contextlib.nullcontext()
    if precision == 'fp16' and device.type == 'cpu':
        raise UserError('precision: fp16 is slow and overflows on a CPU; use bf16 there')
    return torch.autocast(device.type, dtype=DTYPES[precision])


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
