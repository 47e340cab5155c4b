"""Evaluation: PSNR of a model over a data set, by the rules of the paper's tables."""
import math

import torch
from tqdm import tqdm

from datasets.batch import unpack
from engine.runtime import model_device
from models import decodes_grids
from utils import Averager, UserError, calc_psnr, denormalize, make_coord, normalize


def parse_eval_type(eval_type):
    """'div2k-4' -> ('div2k', 4), 'benchmark-2' -> ('benchmark', 2), None -> (None, 1): calc_psnr's last arguments."""
    if eval_type is None:
        return None, 1
    name, _, scale = str(eval_type).partition('-')
    try:
        scale = float(scale)
    except ValueError:
        scale = math.nan
    if name not in ('div2k', 'benchmark') or not 0 < scale < math.inf:
        raise UserError(f'eval_type: found {eval_type!r}, wanted div2k-N, benchmark-N (N the scale) or none at all')
    return name, math.ceil(scale)  # pixels are shaved whole


def batched_predict(model, inp, coord, cell, bsize):
    """RGB (B, Q, 3), normalized, with the features computed once and at most `bsize` queries decoded at a time.

    inp: (B, 3, h, w), normalized; coord, cell: (B, Q, 2).
    """
    with torch.no_grad():
        model.gen_feat(inp)
        parts = [model.query_rgb(coord[:, i:i + bsize], cell[:, i:i + bsize]) for i in range(0, coord.shape[1], bsize)]
        return torch.cat(parts, dim=1)  # (B, Q, 3)


def predict(model, inp, batch, eval_bsize=None):
    """RGB (B, Q, 3), normalized, for a batch whose `coord` may be None: all the pixels of an image of `size`."""
    coord, cell = batch['coord'], batch['cell']
    with torch.no_grad():
        if coord is None:
            h, w = batch['size'][0].tolist()
            if decodes_grids(model):
                y, x = (make_coord((n,), device=inp.device).view(-1) for n in (h, w))
                rgb = model.decode_grid(model.encode(inp), y, x, cell[0, 0], chunk=eval_bsize)  # (B, 3, H, W)
                return rgb.flatten(2).transpose(1, 2)  # (B, Q, 3)
            coord = make_coord((h, w), device=inp.device).expand(len(inp), h * w, 2)
        cell = cell.expand_as(coord)
        if eval_bsize is None:
            return model(inp, coord, cell)
        return batched_predict(model, inp, coord, cell, eval_bsize)


def batch_psnr(model, batch, data_norm=None, eval_type=None, eval_bsize=None):
    """Predict a batch (as `unpack` gives it) and compare: (PSNR in dB, pooled over the batch; the prediction).

    The prediction is de-normalized and clamped to [0, 1], not rounded to 8 bits: (B, Q, 3), or images (B, 3, H, W)
    when an eval_type is given, since shaving needs them.
    """
    data_norm = data_norm or {}
    dataset, scale = parse_eval_type(eval_type)
    inp = normalize(batch['inp'], data_norm.get('inp'), 1).contiguous(memory_format=torch.channels_last)
    pred = predict(model, inp, batch, eval_bsize).float()
    pred = denormalize(pred, data_norm.get('gt'), -1).clamp_(0, 1)  # (B, Q, 3)
    gt = batch['gt']
    if dataset is not None:
        h, w = image_size(batch)
        pred, gt = (v.view(len(v), h, w, -1).permute(0, 3, 1, 2) for v in (pred, gt))  # (B, 3, H, W)
    return calc_psnr(pred, gt, dataset, scale).item(), pred


def image_size(batch):
    """(H, W) of the image whose pixels the queries are. Loaders that do not say get the published rule: one scale
    for both axes, from the number of pixels."""
    if batch.get('size') is not None:
        return batch['size'][0].tolist()
    h, w = batch['inp'].shape[-2:]
    scale = math.sqrt(batch['coord'].shape[1] / (h * w))
    return round(h * scale), round(w * scale)


def eval_psnr(loader, model, data_norm=None, eval_type=None, eval_bsize=None, verbose=False):
    """Mean PSNR in dB over a loader: each batch pools its squared error, batches are averaged by their size.

    data_norm: {inp, gt: {sub, div}}, identity when None; eval_type: None, 'div2k-N' or 'benchmark-N';
    eval_bsize: queries decoded at a time, None for as many as pay; verbose: a progress bar with the running mean.
    """
    model.eval()
    device = model_device(model)
    mean = Averager()
    progress = tqdm(loader, desc='val', leave=False, disable=not verbose)
    for batch in progress:
        psnr, _ = batch_psnr(model, unpack(batch, device), data_norm, eval_type, eval_bsize)
        mean.add(psnr, len(batch['inp']))
        progress.set_description(f'val {mean.item():.4f}')
    return mean.item()
