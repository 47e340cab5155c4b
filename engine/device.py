"""Where and in which precision a model computes.

Half precision is autocast over float32 weights; coordinates and blending weights stay in float32 (models/liif.py).
"""
import contextlib

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
