"""Which learning rate suits configs/train-your-images.yaml: short runs on ten photographs that are new to the weights.

    python benchmarks/fine_tuning.py --init save/_1h/epoch-last.pth [--rates 1e-4 3e-5 1e-5]

The committed table was made from the weights of configs/budget/1h.yaml: those in weights/ have seen all photographs
since. All runs see the same crops of load/photos/train (docs/budget.md), and are measured on the photographs of the
list `valid` in configs/budget/photos.json. Writes out/fine-tuning, benchmarks/results/fine_tuning.json (rates measured
before stay there) and the table in docs/budget.md.
"""
import json
import os
import re
import subprocess
import sys

import _path

from benchmarks.common import publish, read, result_path
from engine import ROOT
from engine.checkpoint import load_checkpoint
from engine.evaluation.tables import markdown
from engine.runtime import Parser, run_program
from utils import UserError

IMAGES, OUTPUT, SPLIT = os.path.abspath('load/photos'), os.path.join('out', 'fine-tuning'), 'photos.json'
# Fewer and smaller steps than the config's: 125 of 4 crops and 512 queries instead of 500 of 8 crops and 1024.
CHANGES = {'train_dataset.dataset.args.repeat': 10, 'train_dataset.wrapper.args.sample_q': 512,
           'train_dataset.batch_size': 4, 'epoch_max': 5, 'epoch_val': 5,
           'train_dataset.dataset.args.cache': 'in_memory', 'val_dataset.dataset.args.cache': 'in_memory',
           'val_dataset.dataset.args.repeat': 2}
STEPS = 10 * CHANGES['train_dataset.dataset.args.repeat'] // CHANGES['train_dataset.batch_size']  # of an epoch
PSNR = re.compile(r'^epoch (\d+)/.*val psnr ([\d.]+)|before training ([\d.]+)$', re.MULTILINE)


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('--init', required=True, metavar='M.pth', help='the weights to start from')
    parser.add_argument('--rates', nargs='+', default=['1e-4', '3e-5', '1e-5'])
    args = parser.parse_args(argv)
    check_start(args.init)
    os.makedirs(OUTPUT, exist_ok=True)
    with open(os.path.join(ROOT, 'configs', 'budget', 'photos.json')) as f:
        lists = json.load(f)
    with open(os.path.join(OUTPUT, SPLIT), 'w') as f:
        json.dump({'ten': ten_unseen(os.path.join(IMAGES, 'train'), lists['train']), 'valid': lists['valid']}, f)
    rows = {row['rate']: row for row in read(result_path('fine_tuning')).get('rows', [])}
    for rate in args.rates:
        rows[rate] = {'rate': rate, 'psnr': train(rate, args.init)}
        found = sorted(rows.values(), key=lambda row: -float(row['rate']))
        publish('fine_tuning', 'budget.md', table(found), changes=CHANGES, rows=found)


def check_start(path):
    """Raises UserError for weights that were trained on all of load/photos/train."""
    data = (load_checkpoint(path).get('config') or {}).get('train_dataset', {}).get('dataset', {}).get('args', {})
    folder = os.path.normpath(data.get('root_path') or '')
    if folder.endswith(os.path.join('photos', 'train')) and not data.get('split_file'):
        raise UserError(f'--init: {path} has seen all photographs of {folder}, expected weights that have not: name '
                        f'those of configs/budget/1h.yaml')


def ten_unseen(folder, seen):
    """Names of ten tiles, each of a photograph of which no tile is in `seen`, the list that configs/budget/1h.yaml
    trains on."""
    def photograph(name):
        return re.sub(r'(_\d+_\d+)?\.\w+$', '', name)
    known = {photograph(name) for name in seen}
    found = [name for name in sorted(os.listdir(folder)) if name.endswith('_1_1.png') and photograph(name) not in known]
    if len(found) < 10:
        raise UserError(f'{folder}: found {len(found)} photographs that the weights have not seen, expected at '
                        f'least 10: python scripts/prepare_data.py photos')
    return found[::len(found) // 10][:10]


def train(rate, init):
    """Fine-tune at a rate, from the weights at `init`: {steps made: PSNR in dB}."""
    changes = {**CHANGES, 'optimizer.args.lr': rate, 'init': os.path.abspath(init)}
    for section, folder, key in (('train_dataset', 'train', 'ten'), ('val_dataset', 'valid', 'valid')):
        args = {'root_path': os.path.join(IMAGES, folder), 'split_file': SPLIT, 'split_key': key}
        changes |= {f'{section}.dataset.args.{name}': value for name, value in args.items()}
    subprocess.run([sys.executable, os.path.join(ROOT, 'train_liif.py'), '--name', rate, '--resume', '--gpu', 'cpu',
                    '--config', os.path.join(ROOT, 'configs', 'train-your-images.yaml'),
                    *(part for key, value in changes.items() for part in ('--set', f'{key}={value}'))],
                   cwd=OUTPUT, check=True)
    with open(os.path.join(OUTPUT, 'save', rate, 'log.txt'), encoding='utf-8') as f:
        return {str(int(epoch or 0) * STEPS): float(psnr or before) for epoch, psnr, before in PSNR.findall(f.read())}


def table(rows):
    steps = sorted(rows[0]['psnr'], key=int)
    return markdown(['learning rate', *(f'{step} steps' if int(step) else 'before training' for step in steps)],
                    [[row['rate'], *(f'{row["psnr"][step]:.3f}' for step in steps)] for row in rows])


if __name__ == '__main__':
    run_program(main)
