"""Models measured, and results that are kept.

`measure` is the loop over a test's images, behind `test.py --config` and suites alike; `run_suite` takes every model
through every case. A result is a file of its own under <output>/runs, named by what it depends on, so that a suite that
is started again measures only what is missing.
"""
import datetime
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from tqdm import tqdm

import datasets
import models
from datasets.batch import unpack
from datasets.loader import make_loader
from engine import ROOT
from engine.checkpoint import HALF, build_model, parse_checkpoint, read_file
from engine.evaluation.evaluate import batch_psnr, image_size, parse_eval_type
from engine.evaluation.metrics import calc_ssim
from engine.evaluation.suite import open_data
from engine.rendering.renderer import Renderer
from engine.runtime import autocast, explain
from utils import Averager, UserError, atomic_write, calc_psnr


IDENTITY = {key: {'sub': [0.0], 'div': [1.0]} for key in ('inp', 'gt')}
RUN_FORMAT = 'liif-run-1'


# Models.

class Candidate(NamedTuple):
    """A model to measure. norm: what its checkpoint says it expects, None when it does not say; scale: its only scale,
    None for any; about: what its results say of it."""
    model: torch.nn.Module
    norm: Optional[dict]
    scale: Optional[float]
    about: dict


def split_label(text):
    """'LABEL=PATH', a path, or the name of an interpolation -> (label, path)."""
    if '=' in text and not os.path.exists(text):
        label, path = text.split('=', 1)
        return label.strip() or path, path
    folder, name = os.path.split(os.path.splitext(text)[0] if text.endswith('.pth') else text)
    parent = os.path.basename(folder).lstrip('_')
    if name in ('epoch-last', 'model') and parent:
        return parent, text
    return (f'{parent} {name}' if parent and name.startswith('epoch-') else name), text


def open_model(text, device, ema=False):
    """A Candidate from a checkpoint's path, a label and a path as LABEL=PATH, or bicubic, bilinear, nearest. Raises
    UserError for a file that is no model of RGB images."""
    label, path = split_label(text)
    if path in models.registry.names('interpolation'):
        spec, data, checkpoint = {'name': path, 'args': {}}, path.encode(), {}
        model = models.make(spec)
    else:
        data = read_file(path)
        checkpoint = parse_checkpoint(data, path)
        spec = checkpoint['model']
        if ema:
            if not checkpoint.get('ema'):
                raise UserError(f'checkpoint {path} holds no averaged weights (a config sets them by ema: 0.999): '
                                f'leave --ema out')
            spec = {**spec, 'sd': checkpoint['ema']}
        model = build_model(spec, path)
    model = model.to(device, memory_format=torch.channels_last).eval()
    args = spec.get('args') or {}
    check_channels(model, device, path)
    scale = None
    if getattr(model, 'imnet', model) is None:  # its encoder up-samples
        scale = args['encoder_spec'].get('args', {}).get('scale', 2)
    trained = (checkpoint.get('config') or {}).get('train_dataset')
    about = {'label': label, 'file': path, 'sha256': hashlib.sha256(data).hexdigest(), 'ema': ema,
             'spec': {'name': spec['name'], 'args': args}, 'epoch': checkpoint.get('epoch'),
             'parameters': sum(p.numel() for p in model.parameters()),
             'trained_with': trained and trained['wrapper']}
    return Candidate(model, checkpoint.get('data_norm'), scale, about)


@torch.no_grad()
def check_channels(model, device, path):
    coord = torch.zeros(1, 2, 2, device=device)
    try:
        model.gen_feat(torch.zeros(1, 3, 16, 16, device=device))
        channels = model.query_rgb(coord, torch.full_like(coord, 0.1)).shape[-1]
    except (RuntimeError, ValueError) as error:
        raise UserError(f'{path}: its model does not take images of three channels '
                        f'({str(error).splitlines()[0][:150]}); wanted a model of RGB images') from error
    if channels != 3:
        raise UserError(f'{path}: its model gives {channels} channels, wanted 3: red, green and blue')


def check_norm(candidate, data_norm):
    """UserError when the checkpoint was trained with another normalization than the test config has."""
    wanted, found = (json.dumps(widened(norm or IDENTITY)) for norm in (candidate.norm or data_norm, data_norm))
    if candidate.norm is not None and wanted != found:
        raise UserError(f'{candidate.about["file"]} was trained with data_norm {short_norm(candidate.norm)}, the test '
                        f'has {short_norm(data_norm or IDENTITY)}: use a test config with the same data_norm')


def widened(norm):
    return {part: {key: [float(v) for v in (norm[part][key] * 3)[:3]] if len(norm[part][key]) == 1
                   else [float(v) for v in norm[part][key]] for key in HALF} for part in ('inp', 'gt')}


def short_norm(norm):
    return ', '.join(f'{part} ({norm[part]["sub"]}, {norm[part]["div"]})' for part in ('inp', 'gt'))


# Measuring.

class Options(NamedTuple):
    """What is asked of every case. precision: instead of the config's; lpips: a function of `make_lpips`."""
    precision: Optional[str] = None
    self_ensemble: bool = False
    tile: Optional[int] = None
    ssim: bool = False
    lpips: Any = None
    ema: bool = False

    def key(self):
        return {**self._asdict(), 'lpips': self.lpips is not None}


def check_scale(batch, eval_type):
    """UserError for images of another scale than `eval_type` names, whose wrong shave would go unnoticed."""
    if eval_type in (None, 'none') or batch['size'] is None:
        return
    wanted = float(eval_type.split('-')[1])
    found = [whole / part for whole, part in zip(batch['size'][0].tolist(), batch['inp'].shape[-2:])]
    if all(abs(f - wanted) > 0.1 + 0.1 * wanted for f in found):
        raise UserError(f'the ground truth is {found[0]:.3g} times as large as the input, but eval_type is {eval_type}: '
                        f'name the low-resolution images of that scale, or correct eval_type')


def measure(candidate, config, data, device, options=Options(), workers=None):
    """Yield a dict for each batch of a test: image (the files' names), count, psnr in dB (pooled over the batch),
    seconds (from the host to the figure), and ssim, lpips when asked for.

    Raises UserError, naming the image, for one that cannot be measured.
    """
    check_norm(candidate, config['data_norm'])
    model, norm = candidate.model, config['data_norm']
    dataset, scale = parse_eval_type(config['eval_type'])
    precision = options.precision or config['precision']
    renderer = None
    if options.self_ensemble or options.tile is not None:
        renderer = Renderer(model, norm or IDENTITY, precision, options.tile, config['eval_bsize'],
                            self_ensemble=options.self_ensemble)
    loader = make_loader(data, config['test_dataset']['batch_size'], seed=config['seed'], train=False,
                         num_workers=workers, device_type=device.type)
    for batch in loader:
        row = {'image': names_of(data, batch['index']), 'count': len(batch['inp'])}
        start = time.perf_counter()
        try:
            on_device = unpack(batch, device)
            check_scale(on_device, config['eval_type'])
            whole = on_device['coord'] is None or dataset is not None
            if not whole and (renderer or options.ssim or options.lpips):
                raise UserError('its queries are random pixels (sample_q), not an image: leave --self-ensemble, '
                                '--tile, --ssim and --lpips out')
            if renderer is None:
                with torch.no_grad(), autocast(device, precision):
                    psnr, pred = batch_psnr(model, on_device, norm, config['eval_type'], config['eval_bsize'])
            else:
                size = image_size(on_device)
                pred = torch.stack([renderer.open(img).render(size) for img in on_device['inp']]).to(device)
                psnr = calc_psnr(pred, as_image(on_device['gt'], size), dataset, scale).item()
            row.update(psnr=psnr, seconds=time.perf_counter() - start)
            if math.isnan(psnr):
                raise UserError('the model gives values that are not numbers' + ('' if precision == 'float32' else
                                f' in {precision}: use --precision float32'))
            if options.ssim or options.lpips:
                size = image_size(on_device)
                pair = as_image(pred, size), as_image(on_device['gt'], size)
                row.update({name: function(*pair, dataset, scale).item() for name, function in
                            (('ssim', options.ssim and calc_ssim), ('lpips', options.lpips)) if function})
        except UserError as error:
            raise UserError(f'{row["image"]}: {error}') from None
        yield row


def as_image(x, size):
    """(B, Q, 3) -> (B, 3, H, W); images stay."""
    return x if x.dim() == 4 else x.view(len(x), *size, -1).permute(0, 3, 1, 2)


def names_of(data, index):
    """File names of the samples of a batch."""
    paths = (data.path(i) if hasattr(data, 'path') else str(i) for i in index.tolist())
    return ', '.join(os.path.basename(path if isinstance(path, str) else path[-1]) for path in paths)


def mean_of(rows, key='psnr'):
    """The mean over images of what `measure` gave."""
    mean = Averager()
    for row in rows:
        mean.add(row[key], row['count'])
    return mean.item()


# Suites.

class Outcome(NamedTuple):
    """runs: results, as in their files; problems: (model's label, case's name, message); missing: cases whose data is
    not there; left_out: lines on what does not apply."""
    runs: list
    problems: list
    missing: list
    left_out: list


def run_suite(cases, texts, device, output, options=Options(), workers=None, fresh=False):
    """Measure the models `texts` (see `open_model`) over all cases: an Outcome. What `output`/runs holds already is
    taken from there unless `fresh`. A mistake costs the case, or the model, that it concerns."""
    outcome, ready = Outcome([], [], [], []), []
    for case in cases:
        try:
            if case.missing is None:
                ready.append((case, *fingerprint(case)))
            else:
                outcome.missing.append(case)
        except UserError as error:
            outcome.problems.append(('', case.name, str(error)))
    os.makedirs(os.path.join(output, 'runs'), exist_ok=True)
    with tqdm(total=len(texts) * sum(count for _, count, _ in ready), unit='image', disable=None) as bar:
        for text in texts if ready else ():
            try:
                candidate = open_model(text, device, options.ema)
            except UserError as error:
                outcome.problems.append((split_label(text)[0], '', str(error)))
                bar.update(sum(count for _, count, _ in ready))
                continue
            others = [case.name for case, *_ in ready if not fits(candidate, case)]
            if others:
                outcome.left_out.append(f'{candidate.about["label"]} enlarges by {candidate.scale} alone: not '
                                        f'{", ".join(others)}')
            for case, count, files in ready:
                done = bar.n
                if fits(candidate, case):
                    bar.set_description(f'{candidate.about["label"]}, {case.name}')
                    try:
                        outcome.runs.append(one_run(candidate, case, files, device, output, options, workers, fresh,
                                                    bar))
                    except (UserError, torch.OutOfMemoryError) as error:
                        outcome.problems.append((candidate.about['label'], case.name, explain(error)))
                bar.update(done + count - bar.n)
    return outcome


def fits(candidate, case):
    return candidate.scale is None or case.factor == (candidate.scale, candidate.scale)


def one_run(candidate, case, files, device, output, options, workers, fresh, bar):
    """The result of a model in a case: the one that is kept, or a new one, then kept."""
    key = digest([candidate.about['sha256'], candidate.about['ema'], case.data, case.scale, case.config, files,
                  options.key()])
    slug = re.sub(r'[^A-Za-z0-9.]+', '-', f'{case.data}-{case.scale}')
    path = os.path.join(output, 'runs', f'{slug}-{key[:16]}.json')
    run = None if fresh else read_run(path)
    if run is not None:
        run['model'] = {**run['model'], 'label': candidate.about['label'], 'file': candidate.about['file']}
        bar.write(f'{candidate.about["label"]}, {case.name}: {float(run["psnr"]):.4f} dB, measured before')
        return run
    reset_peak(device)
    rows = []
    for row in measure(candidate, case.config, open_data(case.config, case.dataset), device, options, workers):
        rows.append(row)
        bar.update(row['count'])
    run = {'format': RUN_FORMAT, 'model': candidate.about, 'data': case.data, 'scale': case.scale,
           'config': case.config,
           'options': {**options.key(), 'precision': options.precision or case.config['precision']},
           'images': sum(row['count'] for row in rows), 'pooled_over': case.config['test_dataset']['batch_size'],
           **{metric: mean_of(rows, metric) for metric in ('psnr', 'ssim', 'lpips') if metric in rows[0]},
           'seconds': sum(row['seconds'] for row in rows), 'peak_memory_mb': peak_memory(device),
           'device': device_name(device), 'versions': versions(),
           'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'), 'per_image': rows}
    write_json(path, run)
    bar.write(f'{candidate.about["label"]}, {case.name}: {run["psnr"]:.4f} dB, {run["seconds"]:.1f} s')
    return run


def fingerprint(case):
    """(How many samples, a digest of their files' names, sizes and times) without reading an image."""
    args = {key: value for key, value in case.dataset['args'].items() if key != 'cache'}
    images = datasets.make({**case.dataset, 'args': args})
    paths = [images.path(i) for i in range(len(images))] if hasattr(images, 'path') else []
    stats = []
    for path in sorted({p for pair in paths for p in ([pair] if isinstance(pair, str) else pair)}):
        found = os.stat(path)
        stats.append([os.path.basename(path), found.st_size, found.st_mtime_ns])
    return len(images), digest([len(images), stats])


def read_run(path):
    """The result in a file; None when there is none, or none that can be used."""
    try:
        with open(path, encoding='utf-8') as f:
            run = json.load(f)
    except (OSError, ValueError):
        return None
    return run if isinstance(run, dict) and run.get('format') == RUN_FORMAT else None


def write_json(path, value):
    """JSON as everyone reads it: infinite PSNR is written as text, which float() takes back."""
    def strict(value):
        if isinstance(value, dict):
            return {key: strict(v) for key, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [strict(v) for v in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value
    with atomic_write(path, 'w', encoding='utf-8') as f:
        json.dump(strict(value), f, indent=1, allow_nan=False)
        f.write('\n')


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def reset_peak(device):
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == 'linux':
        try:
            with open('/proc/self/clear_refs', 'w') as f:
                f.write('5')  # the peak counts from here
        except OSError:
            pass  # then it is that of the process so far


def peak_memory(device):
    """Megabytes (2**20 bytes): what torch allocated on a GPU, all of the process on a CPU; None where unknown."""
    if device.type == 'cuda':
        return round(torch.cuda.max_memory_allocated(device) / 2 ** 20, 1)
    try:
        with open('/proc/self/status') as f:
            return next(round(int(line.split()[1]) / 1024, 1) for line in f if line.startswith('VmHWM'))
    except (OSError, StopIteration):
        return None


def device_name(device):
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else \
        f'{device.type}, {torch.get_num_threads()} threads'


def versions():
    try:
        code = subprocess.run(['git', '-C', ROOT, 'describe', '--always', '--dirty'], capture_output=True, text=True,
                              timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        code = None
    return {'code': code, 'torch': torch.__version__, 'cuda': torch.version.cuda, 'numpy': np.__version__,
            'python': platform.python_version()}

