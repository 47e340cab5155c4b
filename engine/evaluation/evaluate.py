"""The evaluation loop: PSNR of a model over a data set, by the rules of the paper's tables.

`measure` is the loop, used by validation during training, `eval_psnr`, `test.py --config` and suites.
"""
import functools
import math
import os
import time
from typing import NamedTuple

import torch
from tqdm import tqdm

from datasets.loader import all_pixels, unpack
from engine.config import parse_eval_type
from engine.runtime import autocast, model_device
from models import decodes_grids
from utils import Averager, UserError, axis_coord, calc_psnr, denormalize, normalize


class Measured(NamedTuple):
    """A batch and how well it was predicted.

    names: file names of its images, or ''; batch: the loader's dict, with inp, coord, cell and gt as `unpack` returns
    them; pred: RGB in [0, 1], (B, Q, 3) or (B, 3, H, W); psnr: in dB, the squared error pooled over the batch;
    seconds: from the batch on the host to its PSNR.
    """
    names: str
    batch: dict
    pred: torch.Tensor
    psnr: float
    seconds: float

    @property
    def count(self):
        """Images in the batch."""
        return len(self.batch['inp'])


def measure(loader, predict, device, eval_type=None):
    """Yield a Measured for each batch of a loader.

    predict: batch, as `unpack` gives it -> RGB in [0, 1], (B, Q, 3) or (B, 3, H, W); eval_type: None (all pixels, RGB),
    'div2k-N' or 'benchmark-N'. Raises UserError, naming the images, for a batch that cannot be measured.
    """
    dataset, scale = parse_eval_type(eval_type)
    for batch in loader:
        started, names = time.perf_counter(), image_names(loader, batch)
        try:
            batch = {**batch, **unpack(batch, device)}
            pred, gt = predict(batch), batch['gt']
            if dataset is not None or pred.dim() == 4:
                pred, gt = (to_images(rgb, image_size(batch)) for rgb in (pred, gt))  # (B, 3, H, W), to be shaved
            psnr = calc_psnr(pred, gt, dataset, scale).item()
        except UserError as error:
            raise UserError(f'{names}: {error}' if names else str(error)) from None
        yield Measured(names, batch, pred, psnr, time.perf_counter() - started)


def image_size(batch):
    """(H, W) of the image whose pixels are queried. For batches without `size`, the published rule: one scale for both
    axes, computed from the number of queries."""
    if batch.get('size') is not None:
        return batch['size'][0].tolist()
    h, w = batch['inp'].shape[-2:]
    scale = math.sqrt(batch['coord'].shape[1] / (h * w))
    return round(h * scale), round(w * scale)


def to_images(rgb, size):
    """(B, H * W, 3) -> (B, 3, H, W); images stay as they are."""
    return rgb if rgb.dim() == 4 else rgb.view(len(rgb), *size, -1).permute(0, 3, 1, 2)


def image_names(loader, batch):
    """File names of a batch's images, comma-separated; '' for a loader that `make_loader` did not make."""
    wrapper = getattr(getattr(loader, 'dataset', None), 'wrapper', None)
    if wrapper is None or 'index' not in batch:
        return ''
    paths = (wrapper.path(i) if hasattr(wrapper, 'path') else str(i) for i in batch['index'].tolist())
    return ', '.join(os.path.basename(path if isinstance(path, str) else path[-1]) for path in paths)


# Prediction.

@torch.no_grad()
def predict_rgb(model, batch, data_norm=None, eval_bsize=None, precision=None, cell_clip=None):
    """RGB (B, Q, 3) in [0, 1], not rounded to 8 bits, of a batch as `unpack` gives it.

    data_norm: {inp, gt: {sub, div}}, None for none; eval_bsize: queries decoded at a time, None: chosen automatically;
    precision: as in `autocast`; cell_clip: the scale beyond which the decoder sees the cell of that scale (LTE's
    protocol), None for no limit.
    """
    norm = data_norm or {}
    inp = normalize(batch['inp'], norm.get('inp'), 1).contiguous(memory_format=torch.channels_last)  # (B, 3, h, w)
    if cell_clip is not None:
        smallest = 2 / (cell_clip * batch['cell'].new_tensor(inp.shape[-2:]))  # (2,)
        batch = {**batch, 'cell': torch.maximum(batch['cell'], smallest)}
    with autocast(inp.device, precision):
        rgb = predict(model, inp, batch, eval_bsize)
    return denormalize(rgb.float(), norm.get('gt'), -1).clamp_(0, 1)


def predict(model, inp, batch, eval_bsize=None):
    """RGB (B, Q, 3), normalized, of inp (B, 3, h, w), normalized. batch: coord may be None: all pixels of `size`."""
    coord, cell = batch['coord'], batch['cell']
    if coord is None:
        h, w = batch['size'][0].tolist()
        if decodes_grids(model):
            y, x = (axis_coord(n, device=inp.device) for n in (h, w))
            rgb = model.decode_grid(model.encode(inp), y, x, cell[0, 0], chunk=eval_bsize)  # (B, 3, H, W)
            return rgb.flatten(2).transpose(1, 2)  # (B, H * W, 3)
        coord = all_pixels(inp, batch['size'])
    cell = cell.expand_as(coord)
    if eval_bsize is None:
        return model(inp, coord, cell)
    return batched_predict(model, inp, coord, cell, eval_bsize)


def batched_predict(model, inp, coord, cell, bsize):
    """RGB (B, Q, 3), normalized, with the features computed once and at most `bsize` queries decoded at a time.

    inp: (B, 3, h, w), normalized; coord, cell: (B, Q, 2).
    """
    with torch.no_grad():
        model.gen_feat(inp)
        parts = [model.query_rgb(coord[:, i:i + bsize], cell[:, i:i + bsize]) for i in range(0, coord.shape[1], bsize)]
        return torch.cat(parts, dim=1)  # (B, Q, 3)


def eval_psnr(loader, model, data_norm=None, eval_type=None, eval_bsize=None, verbose=False):
    """Mean PSNR in dB over a loader: each batch pools its squared error, batches are averaged by their size.

    data_norm: {inp, gt: {sub, div}}, None for none; eval_type: None, 'div2k-N' or 'benchmark-N'; eval_bsize: queries
    decoded at a time, None to choose automatically; verbose: show a progress bar with the running mean.
    """
    model.eval()
    predict_batch = functools.partial(predict_rgb, model, data_norm=data_norm, eval_bsize=eval_bsize)
    total = len(loader) if hasattr(loader, '__len__') else None
    measured = measure(loader, predict_batch, model_device(model), eval_type)
    progress = tqdm(measured, desc='val', total=total, leave=False, disable=not verbose)
    mean = Averager()
    for part in progress:
        mean.add(part.psnr, part.count)
        progress.set_description(f'val {mean.item():.4f}')
    return mean.item()
