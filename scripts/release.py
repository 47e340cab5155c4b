"""Make a folder of weights to publish from a finished run:

    python scripts/release.py save/_1h weights/edsr-baseline-liif

Writes model.pth (float32, without optimizer; it loads like any checkpoint), config.yaml, log.txt, curve.png, run.json,
and SHA256SUMS. README.md, the model card, gets the content of run.json between two markers; the text around them is
kept. Running the command again replaces all of it.

--blend interpolates: (1 - SHARE) * run + SHARE * M.pth, and measures the result on the validation samples of the run:
it is often better than either (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022). --facts writes
run.json and log.txt only: what docs/budget.md needs of a run whose weights are not published.
"""
import hashlib
import json
import math
import os
import re
import subprocess
import sys

from _path import ROOT

import torch

from engine.checkpoint import LAST, SUMS, build_model, load_checkpoint, save_checkpoint, choose_weights
from engine.evaluation.evaluate import eval_psnr
from engine.training.loop import open_data
from engine.training.run_folder import CONFIG, LOG
from engine.runtime import Parser, run_program
from utils import TIME_UNITS, UserError, counted, replace_between, time_text, write_file

MODEL, CARD, CURVE, RUN = 'model.pth', 'README.md', 'curve.png', 'run.json'


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('run', help='a run folder, such as save/_1h')
    parser.add_argument('output', help='a folder, such as weights/edsr-baseline-liif')
    parser.add_argument('--ema', action='store_true', help="the run's averaged weights, instead of the last ones")
    parser.add_argument('--blend', nargs=2, metavar=('M.pth', 'SHARE'), help='interpolate: (1 - SHARE) * run + SHARE * '
                        'M.pth, such as the weights it started from')
    parser.add_argument('--facts', action='store_true', help='write run.json and log.txt only')
    args = parser.parse_args(argv)

    path = os.path.join(args.run, LAST)
    checkpoint = load_checkpoint(path)
    if not checkpoint.get('config'):
        raise UserError(f'{path} holds no config: give a run folder of train_liif.py')
    done, expected = checkpoint['epoch'], checkpoint['config']['epoch_max']
    if done < expected:
        raise UserError(f'{path} has {done} of {counted(expected, "epoch")}: train to the end first (--resume)')
    weights = {name: value.float().contiguous() if value.is_floating_point() else value
               for name, value in choose_weights(checkpoint, path, args.ema)['sd'].items()}
    log, config = (read(os.path.join(args.run, name)) for name in (LOG, CONFIG))
    known = {'run': os.path.basename(os.path.abspath(args.run)).lstrip('_'), **facts(checkpoint, log, args.ema)}
    label = checkpoint['config']['val_dataset'] and validation_label(checkpoint['config'])
    if label in known and (args.ema or args.blend):  # the log has that of the last weights
        known[label] = validated(checkpoint, weights, path)
    if args.blend:
        weights = blended(weights, *args.blend)
        known['weights'] += ', blended with {1} of {0}'.format(*args.blend)
        if label in known:
            known[f'{label}, before blending'] = known.pop(label)
            known[f'{label}, after it'] = validated(checkpoint, weights, path)

    if not args.facts:  # first, since matplotlib may be missing
        draw_curve(args.run, os.path.join(args.output, CURVE))
    write_file(os.path.join(args.output, LOG), log)
    write_file(os.path.join(args.output, RUN), json.dumps(known, indent=1) + '\n')
    if args.facts:
        return
    target = os.path.join(args.output, MODEL)
    save_checkpoint(target, {'model': {**checkpoint['model'], 'sd': weights}, 'epoch': done,
                             'data_norm': checkpoint['data_norm'], 'config': checkpoint['config']})
    with open(target, 'rb') as f:
        digest = hashlib.sha256(f.read()).hexdigest()
    write_file(os.path.join(args.output, SUMS), f'{digest}  {MODEL}\n')
    write_file(os.path.join(args.output, CONFIG), config)
    write_card(args.output, {**known, 'sha256 of model.pth': f'`{digest}`'})
    print(f'{target}: {os.path.getsize(target):,} bytes, sha256 {digest}')


def blended(weights, path, share):
    """{name: (1 - share) * weight + share * that of the checkpoint at `path`}. Raises UserError for a share that is not
    between 0 and 1, and for weights that do not match."""
    try:
        share = float(share)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise UserError('--blend: expected a share between 0 and 1, such as 0.25')
    others = load_checkpoint(path)['model']['sd']
    if {name: value.shape for name, value in others.items()} != {name: value.shape for name, value in weights.items()}:
        raise UserError(f'{path} is of another model than the run: give weights of the same one')
    return {name: torch.lerp(value, others[name].float(), share) for name, value in weights.items()}


def validated(checkpoint, weights, path):
    """PSNR of weights on the validation samples of the run, in float32, as text. Raises UserError without the data."""
    config = checkpoint['config']
    loader = open_data(config, 'val_dataset', torch.device('cpu'), workers=0)
    model = build_model({**checkpoint['model'], 'sd': weights}, path)
    psnr = eval_psnr(loader, model, config['data_norm'], config['eval_type'], config['eval_bsize'])
    print(f'validation PSNR of these weights: {psnr:.4f} dB')
    return f'{psnr:.4f} dB'


def draw_curve(run, path):
    program = os.path.join(ROOT, 'scripts', 'plot.py')
    done = subprocess.run([sys.executable, program, 'training', run, '--output', path], stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(done.returncode)  # it said why


def facts(checkpoint, log, ema):
    """{name of a fact: text} of the run, from its checkpoint and log."""
    config, train = checkpoint['config'], checkpoint['config']['train_dataset']
    wrapper, steps = train['wrapper']['args'], checkpoint['train']['steps']
    known = {'parameters': f'{sum(v.numel() for v in checkpoint["model"]["sd"].values()):,}',
             'steps': f'{checkpoint["epoch"] * steps:,} ({counted(checkpoint["epoch"], "epoch")} of {steps})',
             'a step': f'{train["batch_size"]} crops, inputs of {wrapper.get("inp_size")} pixels a side, '
                       f'{wrapper.get("sample_q")} queries each',
             'optimizer': ', '.join([config['optimizer']['name'], *(
                 f'{name} {value}' for name, value in config['optimizer']['args'].items())]),
             'seed': str(config['seed']), 'precision of the training': config['precision'],
             'weights': f'averaged over the last steps (decay {config["ema"]})' if ema else 'of the last step'}
    if config.get('init'):
        known['starts from'] = config['init']
    device = re.findall(r'^model: .* parameters, \w+, (.*), torch (\S+)', log, re.M)
    begun = re.findall(r'^begun at (\S+) .* by code (\S+)', log, re.M)
    parts = [re.findall(r'^epoch .*, ([\d.]+)([dhms]) of', part, re.M)
             for part in re.split('^begun at', log, flags=re.M)]
    psnr = re.findall(r'^epoch (\d+)/.*val psnr (\S+) ', log, re.M)
    if device:
        known['device'] = f'{device[-1][0]}, torch {device[-1][1]}'
    if any(parts):  # each part counts from its own start
        seconds = sum(float(part[-1][0]) * TIME_UNITS[part[-1][1]] for part in parts if part)
        known['time'] = time_text(seconds)
        if len(begun) > 1:
            known['time'] += f', with {counted(len(begun) - 1, "interruption")}'
    if begun:
        known['date, commit'] = f'{begun[0][0]}, {begun[0][1]}'
    if psnr:
        epoch, value = psnr[-1]
        earlier = '' if int(epoch) == checkpoint['epoch'] else f', after epoch {epoch}'
        known[validation_label(config)] = f'{value} dB{earlier}'
    return known


def validation_label(config):
    """What the validation of a run measures: its colours, and the scales of its samples where they are random."""
    args, label = config['val_dataset']['wrapper']['args'], f'validation PSNR, {config["eval_type"] or "RGB"}'
    if not args.get('scale_max'):
        return label
    return f'{label}, crops at x{args.get("scale_min", 1):g} to x{args["scale_max"]:g}'


def write_card(folder, known):
    text = '| | |\n|---|---|\n' + ''.join(f'| {key} | {value} |\n' for key, value in known.items())
    path = os.path.join(folder, CARD)
    if not os.path.exists(path):
        title = os.path.basename(os.path.abspath(folder))
        write_file(path, f'# {title}\n\n<!-- facts:start -->\n<!-- facts:end -->\n')
    replace_between(path, text, 'facts')


def read(path):
    try:
        with open(path, encoding='utf-8') as f:
            return f.read()
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}): give a run folder of train_liif.py') from None


if __name__ == '__main__':
    run_program(main)
