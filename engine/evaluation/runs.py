"""Suites measured, and results that are kept.

`measure_case` measures a model on one test, for `test.py --config` and suites alike; `run_suite` measures all models on
all cases. Each result is a file in <output>/runs, named by a hash of model, data and options, so that a suite that is
started again measures only what is missing; use --fresh after the code or the machine has changed.
"""
import contextlib
import datetime
import functools
import hashlib
import json
import math
import os
import platform
import re
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from tqdm import tqdm

import datasets
import models
from datasets.check import check_batches, file_list
from datasets.loader import closing_workers, make_loader
from engine import ROOT
from engine.checkpoint import IDENTITY_NORM, build_model, choose_weights, model_path, parse_checkpoint, read_file
from engine.config import parse_eval_type
from engine.evaluation.evaluate import image_size, measure, predict_rgb, to_images
from engine.evaluation.metrics import calc_ssim
from engine.evaluation.suite import FROM_HR, open_data
from engine.rendering.renderer import Renderer, fixed_scale
from engine.runtime import autocast, code_version, explain, peak_memory, reset_peak_memory
from utils import Averager, UserError, counted, first_line, write_file


RUN_FORMAT = 'liif-run-1'
METRICS = 'psnr', 'ssim', 'lpips'


# Models.

class Candidate(NamedTuple):
    """A model to measure. norm: the normalization in its checkpoint, or None; scale: the only scale of a network
    without a decoder, else None; about: what its results record."""
    model: torch.nn.Module
    norm: Optional[dict]
    scale: Optional[float]
    about: dict


def split_label(text):
    """'LABEL=MODEL' -> (label, model); a model alone is labelled by its run folder or file name."""
    if '=' in text and not os.path.exists(text):
        label, path = text.split('=', 1)
        return label.strip() or path, path
    folder, name = os.path.split(text.removesuffix('.pth'))
    parent = os.path.basename(folder).lstrip('_')
    if name in ('epoch-last', 'model') and parent:
        return parent, text
    return (f'{parent} {name}' if parent and name.startswith('epoch-') else name), text


def open_model(text, device, ema=False):
    """The Candidate of [LABEL=]MODEL: a checkpoint's path, a name in weights/, bicubic, bilinear or nearest. ema: with
    the averaged weights. Raises UserError for a file that holds no model of RGB images."""
    label, path = split_label(text)
    if path in models.registry.names('interpolation'):
        spec, data, checkpoint = {'name': path, 'args': {}}, path.encode(), {}
        model = models.make(spec)
    else:
        path = model_path(path)
        data = read_file(path)
        checkpoint = parse_checkpoint(data, path)
        spec = choose_weights(checkpoint, path, ema)
        model = build_model(spec, path)
    model = model.to(device, memory_format=torch.channels_last).eval()
    check_channels(model, device, path)
    trained = (checkpoint.get('config') or {}).get('train_dataset') or {}
    about = {'label': label, 'file': path.removeprefix(ROOT + os.sep),  # results name no folder of this machine
             'sha256': hashlib.sha256(data).hexdigest(), 'ema': ema,
             'spec': {'name': spec['name'], 'args': spec.get('args') or {}}, 'epoch': checkpoint.get('epoch'),
             'parameters': sum(p.numel() for p in model.parameters()), 'trained_with': trained.get('wrapper')}
    return Candidate(model, checkpoint.get('data_norm'), fixed_scale(model), about)


@torch.no_grad()
def check_channels(model, device, path):
    """Raises UserError for a model without a decoder, and for one that does not map an RGB image (tried: 16x16) to
    RGB."""
    if not hasattr(model, 'query_rgb'):
        raise UserError(f'{path}: its model, {type(model).__name__}, has no decoder to ask for any size; expected one '
                        f'such as liif or metasr')
    coord = torch.zeros(1, 2, 2, device=device)
    try:
        model.gen_feat(torch.zeros(1, 3, 16, 16, device=device))
        channels = model.query_rgb(coord, torch.full_like(coord, 0.1)).shape[-1]
    except (RuntimeError, ValueError) as error:
        raise UserError(f'{path}: its model does not take images of three channels '
                        f'({first_line(error)[:150]}); expected a model of RGB images') from error
    if channels != 3:
        raise UserError(f'{path}: its model gives {channels} channels, expected 3: red, green and blue')


def check_same_norm(candidate, data_norm):
    """Raises UserError when the checkpoint was trained with another normalization than the test config has."""
    trained, tested = (norm_text(norm or IDENTITY_NORM) for norm in (candidate.norm, data_norm))
    if candidate.norm is not None and trained != tested:
        raise UserError(f'the test has data_norm {tested}, expected that of {candidate.about["file"]}, {trained}: use '
                        f'a test config with the same data_norm')


def norm_text(norm):
    """A normalization as text; one number for all channels is written three times."""
    values = {f'{part}.{key}': list(map(float, norm[part][key])) for part in ('inp', 'gt') for key in ('sub', 'div')}
    return ', '.join(f'{name} {value * (3 // len(value))}' for name, value in values.items())


# Measuring.

class Options(NamedTuple):
    """How every case is measured. precision: instead of the config's; cell_clip: as in `predict_rgb`; lpips: a function
    that `make_lpips` returned, or None; decode: as of `Renderer`."""
    precision: Optional[str] = None
    self_ensemble: bool = False
    tile: Optional[int] = None
    ssim: bool = False
    lpips: Any = None
    ema: bool = False
    cell_clip: Optional[float] = None
    decode: str = 'exact'

    def key(self):
        """The options as a dict for JSON. Those that kept results do not know yet are left out at their defaults."""
        added = {key: self._field_defaults[key] for key in ('cell_clip', 'decode')}
        return {key: value for key, value in {**self._asdict(), 'lpips': self.lpips is not None}.items()
                if key not in added or value != added[key]}


def measure_case(candidate, config, data, device, options=Options(), workers=None):
    """Yield a dict for each batch of a test: image (file names), count, psnr in dB (pooled over the batch), seconds;
    ssim and lpips when asked for. Raises UserError, naming the image, for one that cannot be measured."""
    check_same_norm(candidate, config['data_norm'])
    dataset, scale = parse_eval_type(config['eval_type'])
    precision = options.precision or config['precision']
    check_precision(precision, device)
    batch_size = config['test_dataset']['batch_size']
    check_batches(data, batch_size)
    loader = make_loader(data, batch_size, seed=config['seed'], train=False, num_workers=workers,
                         device_type=device.type)
    metrics = {**({'ssim': calc_ssim} if options.ssim else {}), **({'lpips': options.lpips} if options.lpips else {})}
    measured = measure(loader, make_predict(candidate.model, config, precision, options), device, config['eval_type'])
    with closing_workers([loader], 'start again'):
        for part in tqdm(measured, candidate.about['label'], len(loader), leave=False, disable=None):
            row = {'image': part.names, 'count': part.count, 'psnr': part.psnr, 'seconds': part.seconds}
            if math.isnan(part.psnr):
                raise UserError(f'{part.names}: the model gives NaN in {precision}, expected numbers: ' + (
                    'use another checkpoint' if precision == 'float32' else 'measure in float32'))
            for name, function in metrics.items():
                images = (to_images(rgb, image_size(part.batch)) for rgb in (part.pred, part.batch['gt']))
                row[name] = function(*images, dataset, scale).item()
            yield row


def check_precision(precision, device):
    """Raises UserError for a precision that the device does not have; results are labelled with it. precision: as in
    `autocast`."""
    autocast(device, precision)
    if precision == 'tf32' and device.type != 'cuda':
        raise UserError(f'precision: tf32 is for CUDA GPUs, this is {device}; use float32')


def make_predict(model, config, precision, options):
    """The function of a batch that `measure` takes: batch -> RGB in [0, 1]."""
    norm, renderer = config['data_norm'], None
    if options.self_ensemble or options.tile is not None or options.decode != 'exact':
        renderer = Renderer(model, norm or IDENTITY_NORM, precision, options.tile, config['eval_bsize'],
                            cell_clip=options.cell_clip, self_ensemble=options.self_ensemble, decode=options.decode)
    direct = functools.partial(predict_rgb, model, data_norm=norm, eval_bsize=config['eval_bsize'], precision=precision,
                               cell_clip=options.cell_clip)

    def predict_batch(batch):
        if config['test_dataset']['wrapper']['name'] != FROM_HR:  # its scale is right, and may be fractional
            check_eval_scale(batch, config['eval_type'])
        whole = batch['coord'] is None or config['eval_type'] is not None
        if not whole and (renderer or options.ssim or options.lpips):
            raise UserError('found queries of random pixels (sample_q), expected those of whole images, which '
                            'self-ensemble, tiles, lattice decoding, SSIM and LPIPS need: measure PSNR alone')
        if renderer is None:
            return direct(batch)
        images = [renderer.open(img).render(image_size(batch)) for img in batch['inp']]
        return torch.stack(images).to(batch['gt'].device)  # (B, 3, H, W)

    return predict_batch


def check_eval_scale(batch, eval_type):
    """Raises UserError for a ground truth whose height and width, in multiples of the input's, both differ by more than
    0.1 + 10% from the scale that `eval_type` names: the wrong shave would go unnoticed."""
    if eval_type is None or batch['size'] is None:
        return
    expected = float(eval_type.split('-')[1])
    found = [whole / part for whole, part in zip(batch['size'][0].tolist(), batch['inp'].shape[-2:])]
    if all(abs(f - expected) > 0.1 + 0.1 * expected for f in found):
        raise UserError(f'found a ground truth {found[0]:.3g} times as large as the input, expected {expected:g} times '
                        f'by eval_type {eval_type}: name the low-resolution images of that scale, or correct eval_type')


def mean_of(rows, key='psnr'):
    """The mean over images of what `measure_case` gave."""
    mean = Averager()
    for row in rows:
        mean.add(row[key], row['count'])
    return mean.item()


# Suites.

class Outcome(NamedTuple):
    """runs: results, as in their files; problems: (model's label, case's name, message); missing: cases without data;
    left_out: lines about cases that a model cannot do."""
    runs: list
    problems: list
    missing: list
    left_out: list


def run_suite(cases, texts, device, output, options=Options(), workers=None, fresh=False):
    """Measure the models `texts` (see `open_model`) over all cases: an Outcome. What `output`/runs holds already is
    taken from there unless `fresh`. A mistake costs the case, or the model, that it concerns; but UserError is raised
    for two models with one label."""
    check_labels(texts, device, options.ema)
    outcome, ready = Outcome([], [], [], []), []
    for case in cases:
        try:
            if case.missing is None:
                ready.append((case, fingerprint(case)))
            else:
                outcome.missing.append(case)
        except UserError as error:
            outcome.problems.append(('', case.name, str(error)))
    if ready:
        os.makedirs(os.path.join(output, 'runs'), exist_ok=True)
    for text in texts:  # without data, too: a mistyped name is said now, not after the download
        try:
            candidate = open_model(text, device, options.ema)
        except UserError as error:
            outcome.problems.append((split_label(text)[0], '', str(error)))
            continue
        label = candidate.about['label']
        fitting = [job for job in ready if candidate.scale is None or job[0].factor == (candidate.scale,) * 2]
        others = [job[0].name for job in ready if job not in fitting]
        if others:
            outcome.left_out.append(f'{label} enlarges by {candidate.scale} alone: not {", ".join(others)}')
        for case, files in fitting:
            try:
                outcome.runs.append(one_run(candidate, case, files, device, output, options, workers, fresh))
            except (UserError, RuntimeError, MemoryError) as error:  # a lack of memory is one of these
                message = explain(error)
                if message is None:
                    raise
                outcome.problems.append((label, case.name, message))
    return outcome


def check_labels(texts, device, ema):
    """Raises UserError for models with one label, whose results would share a row; networks of different scales may."""
    labels = [split_label(text)[0] for text in texts]
    for label in dict.fromkeys(labels):
        same = [text for text, other in zip(texts, labels) if other == label]
        scales = [open_model(text, device, ema).scale for text in same] if len(same) > 1 else []
        if None in scales or len({*scales}) < len(scales):
            raise UserError(f'two models are labelled {label}: name them LABEL=MODEL')


def one_run(candidate, case, files, device, output, options, workers, fresh):
    """The result of a model in a case: the one that is kept, or a new one, which is kept then."""
    about = candidate.about
    key = digest([about['sha256'], about['ema'], case.data, case.scale, case.config, files, options.key()])
    slug = re.sub(r'[^A-Za-z0-9.]+', '-', f'{case.data}-{case.scale}')
    path = os.path.join(output, 'runs', f'{slug}-{key[:16]}.json')
    run = None
    if not fresh:
        with contextlib.suppress(OSError, ValueError), open(path, encoding='utf-8') as f:
            run = json.load(f)
    if isinstance(run, dict) and run.get('format') == RUN_FORMAT:
        run['model'] = {**run['model'], 'label': about['label'], 'file': about['file']}
        tqdm.write(f'{about["label"]}, {case.name}: {float(run["psnr"]):.4f} dB, measured before')
        return run
    reset_peak_memory(device)
    rows = list(measure_case(candidate, case.config, open_data(case.config, case.dataset), device, options, workers))
    run = {'format': RUN_FORMAT, 'model': about, 'data': case.data, 'scale': case.scale, 'config': case.config,
           'options': {**options.key(), 'precision': options.precision or case.config['precision']},
           'images': sum(row['count'] for row in rows), 'pooled_over': case.config['test_dataset']['batch_size'],
           **{metric: mean_of(rows, metric) for metric in METRICS if metric in rows[0]},
           'seconds': sum(row['seconds'] for row in rows), 'peak_memory_mb': peak_memory(device),
           'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else
           f'{device.type}, {counted(torch.get_num_threads(), "thread")}',
           'versions': {'code': code_version(), 'torch': torch.__version__, 'cuda': torch.version.cuda,
                        'numpy': np.__version__, 'python': platform.python_version()},
           'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'), 'per_image': rows}
    write_json(path, run)
    tqdm.write(f'{about["label"]}, {case.name}: {run["psnr"]:.4f} dB, {run["seconds"]:.1f} s')
    return run


def fingerprint(case):
    """A digest of the names, sizes and times of a case's images, without reading one."""
    args = {key: value for key, value in case.dataset['args'].items() if key != 'cache'}
    images = datasets.make({**case.dataset, 'args': args})
    files = file_list(images)
    stats = dict(zip(files['names'].split('\0'), files['numbers'].tolist()))
    return digest([len(images), [[os.path.basename(path), *stats[path]] for path in sorted(stats)]])


def write_json(path, value):
    """Write strict JSON: infinite PSNR becomes text, which float() takes back."""
    strict = json.loads(json.dumps(value), parse_constant=str)
    write_file(path, json.dumps(strict, indent=1, allow_nan=False) + '\n')


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
