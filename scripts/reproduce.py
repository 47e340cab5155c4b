"""The paper's tables, from training to the table:

    python scripts/reproduce.py 1            # DIV2K (1), benchmark sets (2), ablations (3), CelebA-HQ (4)
    python scripts/reproduce.py 1 2 --plan   # only print what is done, what is missing and what it costs
    python scripts/reproduce.py --smoke      # all four on tiny data and tiny networks, as a test
    python scripts/reproduce.py --readme     # write the committed results into README.md and docs/

Trains what is not trained yet (save/_<config name>, going on where a run stopped), measures what is not measured yet
(out/tables) and prints the table with the published numbers. It may be interrupted and started again at any time.
"""
import glob
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import tempfile

from _path import ROOT

import numpy as np
from PIL import Image

from engine.checkpoint import LAST, load_checkpoint
from engine.config import load_config
from datasets.imresize import make_lr_folder
from engine.evaluation import tables
from engine.evaluation.runs import Options, Outcome, run_suite
from engine.training.run_folder import folder_name
from engine.arguments import PRECISIONS
from engine.runtime import Parser, run_program, select_device
from engine.evaluation.suite import locate, read_suite, scale_label
from utils import UserError, atomic_write, counted, replace_between, write_file

COMMITTED = 'weights/**/*.json', 'benchmarks/results/*.json', 'benchmarks/results/published/*.json'
SUMMARY = 'benchmarks/results/summary/summary.json'  # of one run of the suite `summary`
REAL = 'benchmarks/results/real/real.json'  # of photographs with degradations, which have a page
FIT = 'benchmarks/results/budget/fit/fit.json'  # of photographs that weights were trained on, and others
RUNS = 'weights/*/run.json', 'benchmarks/results/budget/*/run.json'
TRIALS = 'benchmarks/results/budget/trials/*/run.json'
FIXED = [f'train-div2k/train_{{}}-x{scale}' for scale in (2, 3, 4)]
LIIF = 'train-div2k/train_edsr-baseline-liif'
ABLATION = 'train-div2k/ablation/train_edsr-baseline-liif-'
FACES = 'train-celebAHQ/train_celebAHQ-'
# {table: (suite, {row: {config of a network to train: the scales to measure it at, None for all that it can do}})};
# rows of a fixed scale need a network for each scale.
TABLES = {
    '1': ('div2k', {
        'Bicubic': {'bicubic': None},
        'EDSR-baseline': {name.format('edsr-baseline'): None for name in FIXED},
        'EDSR-baseline-MetaSR': {'train-div2k/train_edsr-baseline-metasr': None},
        'EDSR-baseline-LIIF': {LIIF: None},
        'RDN-MetaSR': {'train-div2k/train_rdn-metasr': None},
        'RDN-LIIF': {'train-div2k/train_rdn-liif': None}}),
    '2': ('benchmark', {
        'Bicubic': {'bicubic': None},
        'RDN': {name.format('rdn'): None for name in FIXED},
        'RDN-MetaSR': {'train-div2k/train_rdn-metasr': None},
        'RDN-LIIF': {'train-div2k/train_rdn-liif': None}}),
    '3': ('div2k', {
        'EDSR-baseline-LIIF': {LIIF: None},
        **{f'EDSR-baseline-LIIF -{letter}': {ABLATION + letter: None} for letter in 'cued'},
        **{f'EDSR-baseline-LIIF x{scale}': {f'{ABLATION}x{scale}': None} for scale in (2, 3, 4)}}),
    '4': ('celebAHQ', {
        'up-sampling modules': {f'{FACES}{scale}_upsample': [scale] for scale in ('64-128', '32-256')},
        'LIIF': {f'{FACES}{scale}_liif': [scale] for scale in ('64-128', '32-256')}}),
}


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('tables', nargs='*', metavar='TABLE', help='1, 2, 3, 4')
    parser.add_argument('--rows', nargs='+', metavar='ROW', help='only these rows of the tables, such as RDN-LIIF')
    parser.add_argument('--plan', action='store_true', help='only print what would be done')
    parser.add_argument('--smoke', action='store_true', help='on tiny data in a temporary folder; default: all tables')
    parser.add_argument('--readme', action='store_true',
                        help='write the results in weights/ and benchmarks/results into the documentation')
    parser.add_argument('--gpu', help='as of train_liif.py: 0, or 0,1,2,3 to train on several, or cpu')
    parser.add_argument('--precision', choices=PRECISIONS, help='of measuring')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        help='override a key of trainings')
    parser.add_argument('--tag', help='appended to the names of the run folders')
    parser.add_argument('--workers', type=int, help='processes that read images')
    parser.add_argument('--output', default=os.path.join('out', 'tables'), help='folder of results; out/tables')
    args = parser.parse_args(argv)

    if args.readme:
        for name in PAGES:
            print(write_page(name))
        return
    numbers = args.tables or (list(TABLES) if args.smoke else [])
    if not numbers or not set(numbers) <= set(TABLES):
        raise UserError(f'found the tables {", ".join(numbers) or "none"}, expected some of 1 (DIV2K), 2 (benchmark '
                        f'sets), 3 (ablations), 4 (CelebA-HQ)')
    rows = dict.fromkeys(row for number in numbers for row in TABLES[number][1])
    unknown = set(args.rows or ()) - set(rows)
    if unknown:
        raise UserError(f'--rows: found {", ".join(sorted(unknown))}, expected some of: {", ".join(rows)}')
    rows = args.rows or list(rows)
    if not args.smoke:
        return reproduce(numbers, rows, args)
    with tempfile.TemporaryDirectory(prefix='liif-smoke-') as folder:
        before = os.getcwd()
        os.chdir(folder)  # where the configs' ./load and the runs' save/ are
        try:
            write_tiny_data('load')
            reproduce(numbers, rows, args)
        finally:
            os.chdir(before)
    print('\nsmoke: every cell of every table was trained for and measured')


def reproduce(numbers, rows, args):
    jobs = dict.fromkeys(name for number in numbers for row, parts in TABLES[number][1].items() if row in rows
                         for name in parts if name != 'bicubic')
    jobs = [Job(name, args) for name in jobs]
    print('To train:' if jobs else 'Nothing to train.')
    for job in jobs:
        print(f'  {job.name}: {job.describe()}')
    print(f'To measure into {args.output}:')
    for number in numbers:
        suite, parts = TABLES[number]
        cases = read_suite(suite)
        lacking = sorted({case.missing for case in cases if case.missing})
        print(f'  table {number}: {len([row for row in parts if row in rows])} rows at '
              f'{", ".join(dict.fromkeys(case.name for case in cases))}'
              + (f'; missing: {", ".join(lacking)}' if lacking else ''))
    sys.stdout.flush()
    if args.plan:
        return
    problems = [problem for job in jobs if (problem := train(job, args))]
    device = select_device((args.gpu or '').split(',')[0] or None)
    for number in numbers:
        problems += make_table(number, rows, {job.name: job for job in jobs}, device, args)
    if problems:
        raise UserError(f'{counted(len(problems), "part")} incomplete: ' + '; '.join(problems))


class Job:
    """A network to train. done: of its `epochs`; missing: a path of its data that does not exist, or None."""

    def __init__(self, name, args):
        self.name, self.config_path = name, os.path.join(ROOT, 'configs', f'{name}.yaml')
        self.sets = smoke_overrides(self.config_path) if args.smoke else []
        self.sets += args.set
        config = load_config(self.config_path, self.sets, check_paths=False)
        self.checkpoint = os.path.join(folder_name(self.config_path, None, args.tag), LAST)
        self.epochs, self.done = config['epoch_max'], 0
        if os.path.exists(self.checkpoint):
            self.done = load_checkpoint(self.checkpoint).get('epoch', 0)
        found = [locate(config[key]['dataset'])[1] for key in ('train_dataset', 'val_dataset') if config[key]]
        self.missing = next(filter(None, found), None)

    @property
    def complete(self):
        return self.done >= self.epochs

    def describe(self):
        if self.complete:
            return f'done ({self.checkpoint})'
        text = f'{self.done} of {counted(self.epochs, "epoch")} done'
        with open(self.config_path, encoding='utf-8') as f:
            cost = re.search(r'^# Cost: (.*)', f.read(), re.MULTILINE)
        text += f'; cost of all: {cost.group(1).rstrip(".")}' if cost else ''
        return text + (f'; CANNOT BE TRAINED, there is no {self.missing}' if self.missing else '')


def train(job, args):
    """Train the epochs that a job lacks. Returns None, or one line on what went wrong."""
    if job.complete:
        return None
    if job.missing:
        return f'{job.name}: there is no {job.missing}, python scripts/prepare_data.py gets the data of the paper'
    command = [os.path.join(ROOT, 'train_liif.py'), '--config', job.config_path, '--resume']
    for flag, value in (('--tag', args.tag), ('--gpu', args.gpu), ('--workers', args.workers)):
        command += [] if value is None else [flag, str(value)]
    for value in job.sets:
        command += ['--set', value]
    print(f'\n== {job.name}\n{shlex.join(["python", *command])}', flush=True)
    # Several GPUs need a separate process. Tiny runs share this one, because starting takes longer than they do.
    code = run_here(command) if args.smoke else run_apart(command)
    if code < 0 or code > 128:  # a signal: the run is saved, and the user wants to stop
        sys.exit(code if code > 0 else 128 - code)
    if code:
        return f'{job.name}: train_liif.py ended with {code}, its message is above'
    job.done = job.epochs
    return None


def run_apart(command):
    """Run a program as a process; returns its exit code. SIGINT and SIGTERM are passed on to it, once each."""
    process = subprocess.Popen([sys.executable, *command], start_new_session=True)
    before = {number: signal.signal(number, lambda number, frame: process.send_signal(number))
              for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_here(command):
    """Run a program in this process; returns its exit code."""
    argv, sys.argv = sys.argv, command
    try:
        runpy.run_path(command[0], run_name='__main__')
    except SystemExit as stop:
        return stop.code or 0
    finally:
        sys.argv = argv
    return 0


def make_table(number, rows, jobs, device, args):
    """Measure a table's rows and print it. Returns a line for each problem."""
    suite, parts = TABLES[number]
    by_scales = {}
    for row, networks in parts.items():
        for name, scales in networks.items() if row in rows else ():
            if name == 'bicubic' or jobs[name].complete:
                model = 'bicubic' if name == 'bicubic' else jobs[name].checkpoint
                by_scales.setdefault(tuple(scales or ()), []).append(f'{row}={model}')
    print(f'\n== table {number}: measuring', flush=True)
    outcome = Outcome([], [], [], [])
    for scales, texts in by_scales.items():
        part = run_suite(read_suite(suite, scales or None), texts, device, args.output,
                         Options(precision=args.precision), args.workers)
        for ours, more in zip(outcome, part):
            ours += [item for item in more if item not in ours]
    title = tables.paper()['tables'][number]
    print(f'\nTable {number}: {title["title"]}\n')
    if outcome.runs:
        os.makedirs(args.output, exist_ok=True)
        print(tables.write_results(args.output, f'table{number}', outcome, published=tuple(parts)))
        print(f'\n{os.path.join(args.output, f"table{number}")}.md, .csv, .json')
    problems = tables.problem_lines(outcome.problems)
    if args.smoke or not outcome.runs:
        problems += [f'there is no {case.missing}' for case in outcome.missing]
    return [f'table {number}: {problem}' for problem in dict.fromkeys(problems)]


# Committed results in the documentation.

def committed_files(root, *patterns):
    return [file for pattern in patterns for file in sorted(glob.glob(os.path.join(root, pattern), recursive=True))]


def write_page(name, root=ROOT):
    """Put one of PAGES between its markers, and return it. Raises UserError for a page without markers."""
    page, make = PAGES[name]
    text = make(root)
    replace_between(os.path.join(root, page), text, name)
    return text


def results_page(root):
    """All tables of the committed results, interpolation first."""
    runs = tables.read_results(committed_files(root, *COMMITTED))
    runs.sort(key=lambda run: run['model']['parameters'] or 0)
    return tables.make_tables(runs) + '\n\n' + '\n'.join(f'- {line}' for line in tables.notes(runs))


def summary(root, data='Set5', scales=('2', '3', '4')):
    """PSNR on one set, and the seconds it took."""
    runs = tables.read_results(committed_files(root, SUMMARY))
    rows = []
    for label in dict.fromkeys(map(tables.label_of, runs)):
        found = {run['scale']: run for run in runs if tables.label_of(run) == label}
        if set(found) == set(scales):
            rows.append([label, *(f'{float(found[scale]["psnr"]):.2f}' for scale in scales),
                         f'{sum(found[scale]["seconds"] for scale in scales):.1f} ({found[scales[0]]["device"]})'])
    published = tables.published_numbers(data)['RDN-LIIF']
    rows.append(['RDN-LIIF (published)', *(f'{published[scale]:.2f}' for scale in scales), ''])
    return tables.markdown(['weights', *(f'{data} {scale_label(scale)}' for scale in scales), 'seconds'], rows)


def budget_table(root, data='Set5', scales=('2', '3', '4')):
    """A row for each run.json (scripts/release.py) with results in its folder, between bicubic and the paper; sorted
    by steps."""
    head = ['command', 'device', 'time', 'steps', *(f'{data} {scale_label(scale)}' for scale in scales)]
    rows, plain, files = [], {}, committed_files(root, *RUNS)
    runs = [(run, file) for run, file in zip(tables.read_json_files(files), files)
            if os.path.exists(os.path.join(ROOT, 'configs', 'budget', f'{run["run"]}.yaml'))]  # not of another kind
    for run, file in sorted(runs, key=lambda item: int(item[0]['steps'].split()[0].replace(',', ''))):
        found = {}
        for result in tables.read_results([os.path.dirname(file)]):
            if result['data'] == data:
                (found if result['model']['parameters'] else plain)[result['scale']] = f'{float(result["psnr"]):.2f}'
        start = f', from {run["starts from"]}' if 'starts from' in run else ''
        rows.append([f'`train_liif.py --config configs/budget/{run["run"]}.yaml`', run['device'], run['time'],
                     run['steps'] + start, *(found.get(scale, '') for scale in scales)])
    published = tables.published_numbers(data)['RDN-LIIF']
    return tables.markdown(head, [['bicubic', '', '', '', *(plain.get(scale, '') for scale in scales)], *rows, [
        "the paper's RDN-LIIF (published)", 'GPU', '', '1,000,000',
        *(f'{published[scale]:.2f}' for scale in scales)]])


def trials_table(root):
    """A row for each trial of configs/budget/trial.yaml (scripts/release.py --facts), by budget, the best first."""
    facts = 'run', 'optimizer', 'precision of the training', 'steps', 'time', 'validation PSNR, RGB, crops at x1 to x4'
    head = 'run', 'optimizer', 'precision', 'steps', 'time', 'validation PSNR'
    rows = [[run[fact] for fact in facts] for run in tables.read_json_files(committed_files(root, TRIALS))]
    return tables.markdown(head, sorted(rows, key=lambda row: (int(row[0].rsplit('-')[-1]), row[-1]), reverse=True))


def fit_page(root):
    return tables.make_tables(tables.read_results(committed_files(root, FIT)))


def real_page(root):
    """The results of the suite `real`, all models side by side, or a line that says that there are none."""
    file = os.path.join(root, REAL)
    if not os.path.exists(file):
        return 'Not measured yet.'
    runs = tables.read_results([file])
    return '\n\n'.join([*(f'{title}:\n\n{side_by_side(runs, metric, digits)}'
                          for metric, (title, digits) in tables.TITLES.items() if metric in runs[0]),
                        '\n'.join(f'- {line}' for line in tables.notes(runs))])


def side_by_side(runs, metric, digits):
    """A row for each kind of input and data set, a column for each scale and model."""
    found = {(*run['data'].split(', ')[::-1], run['scale'], tables.label_of(run)): run[metric] for run in runs}
    kinds, sets, scales, labels = (list(dict.fromkeys(part)) for part in zip(*found))
    scales = sorted(scales, key=float)
    first = [label for label in ('bicubic', 'clean', 'photo') if label in labels]
    labels = list(dict.fromkeys([*first, *labels]))
    rows = [[kind, data, *(tables.cell(found.get((kind, data, scale, label)), None, digits)
                           for scale in scales for label in labels)] for kind in kinds for data in sets]
    return tables.markdown(['inputs', 'data', *(f'{scale_label(scale)} {label}' for scale in scales
                                                for label in labels)], rows)


PAGES = {  # name of the markers: the page, and what makes the text
    'results': ('docs/results.md', results_page), 'summary': ('README.md', summary),
    'budget': ('docs/budget.md', budget_table), 'trials': ('docs/budget.md', trials_table),
    'fit': ('docs/budget.md', fit_page), 'real': ('docs/photos.md', real_page)}


# Tiny data and networks.

def smoke_overrides(path):
    """Overrides that make a training of the paper last a second: an EDSR of two blocks, tiny crops, one epoch."""
    config = load_config(path, check_paths=False)
    sets = ['epoch_max=1', 'epoch_save=1']
    for section in ('train_dataset', 'val_dataset'):
        data = config[section]
        sets.append(f'{section}.batch_size=2')
        sets += [f'{section}.dataset.args.repeat=1'] if 'repeat' in data['dataset']['args'] else []
        sets += [f'{section}.wrapper.args.{key}={value}' for key, value in (('inp_size', 8), ('sample_q', 32))
                 if key in data['wrapper']['args']]
    args = config['model']['args']
    encoder = {**args['encoder_spec']['args'], 'n_resblocks': 2, 'n_feats': 8}
    sets.append(f'model.args.encoder_spec={json.dumps({"name": "edsr-baseline", "args": encoder})}')
    if args.get('imnet_spec'):
        sets.append('model.args.imnet_spec.args.hidden_list=[16, 16]')
    return sets


def write_tiny_data(root):
    """Make every folder that the paper's configs name, with one to three smooth images in each."""
    def write_images(folder, count, h, w):
        os.makedirs(folder)
        yy, xx = np.mgrid[:h, :w]
        for i in range(count):
            waves = [np.sin((i + 2) * yy / (9 + c)) * np.cos(xx / (5 + i + c)) for c in range(3)]
            img = np.stack([128 + 90 * wave + 30 * (xx > w // 2) for wave in waves], axis=-1)
            with atomic_write(os.path.join(folder, f'{i:04}.png')) as f:
                Image.fromarray(img.clip(0, 255).astype(np.uint8)).save(f, format='PNG')

    scales = [(float(s), float(s)) for s in (2, 3, 4)]
    for part, count in (('train', 3), ('valid', 2)):
        hr = os.path.join(root, 'div2k', f'DIV2K_{part}_HR')
        write_images(hr, count, 96, 120)
        make_lr_folder(hr, hr[:-2] + 'LR_bicubic', scales, workers=0)
    for name in ('Set5', 'Set14', 'B100', 'Urban100'):
        hr = os.path.join(root, 'benchmark', name, 'HR')
        write_images(hr, 1, 48, 60)
        make_lr_folder(hr, hr[:-2] + 'LR_bicubic', scales, workers=0)
    for size in (256, 128, 64, 32):
        write_images(os.path.join(root, 'celebAHQ', str(size)), 3, size, size)
    split = {'train': ['0000.png', '0001.png'], 'val': ['0002.png']}
    write_file(os.path.join(root, 'celebAHQ', 'split.json'), json.dumps(split))


if __name__ == '__main__':
    run_program(main)
