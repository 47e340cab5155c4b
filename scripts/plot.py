"""Figures (with matplotlib, pip install matplotlib):

    python scripts/plot.py psnr out/results/continuous.json --data DIV2K --output psnr.png    # PSNR against scale
    python scripts/plot.py training save/_RUN save/_OTHER --output curves.png                 # from the runs' log.txt
    python scripts/plot.py cost benchmarks/results --output cost.png                          # time and memory

psnr takes what test.py --suite wrote, files or folders, and shows every model in them with the published numbers;
`test.py --suite continuous` measures at scales from x1 to x30. training draws over epochs, with --minutes over the time
of the run, all its parts added up when it was interrupted. cost takes what benchmarks/run.py wrote.
"""
import math
import os
import re

import _path

from engine.evaluation import tables
from engine.training.run_folder import LOG
from engine.runtime import Parser, run_program
from engine.evaluation.suite import case_factor
from utils import TIME_UNITS, UserError, atomic_write

EPOCH = re.compile(r'epoch (\d+)/\d+: rate \S+, loss (\S+?),(?: val psnr (\S+))?.* ([\d.]+)([dhms]) of')
TICKS = (1, 1.5, 2, 3, 4, 6, 8, 12, 18, 24, 30)


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('figure', choices=('psnr', 'training', 'cost'))
    parser.add_argument('paths', nargs='+', metavar='PATH', help='results, run folders, or results of benchmarks')
    parser.add_argument('--data', help='psnr: the data set, when the results are of several')
    parser.add_argument('--minutes', action='store_true', help='training: over minutes instead of epochs')
    parser.add_argument('--output', required=True, help='.png, .pdf or .svg')
    args = parser.parse_args(argv)
    if os.path.splitext(args.output)[1] not in ('.png', '.pdf', '.svg'):
        raise UserError(f'--output: found {args.output!r}, expected a name that ends in .png, .pdf or .svg')
    if args.figure == 'psnr':
        curves = psnr_curves(args.paths, args.data)
        figure = draw([('scale', 'PSNR in dB', curves, {'log': True, 'ticks': TICKS})])
    elif args.figure == 'training':
        losses, psnr = training_curves(args.paths, args.minutes)
        x = 'minutes' if args.minutes else 'epoch'
        figure = draw([(x, 'training loss', losses, {}), (x, 'validation PSNR in dB', psnr, {})])
    else:
        seconds, memory = cost_curves(args.paths)
        logs = {'log': True, 'log_y': True}
        figure = draw([('megapixels of output', 'seconds', seconds, logs),
                       ('megapixels of input', 'peak memory beyond the output, MB', memory, logs)])
    os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
    with atomic_write(args.output) as f:
        figure.savefig(f, format=os.path.splitext(args.output)[1][1:], dpi=150)
    print(args.output)


def psnr_curves(paths, data=None):
    """{label: [(scale, dB)]} of the results in the files, and of the published rows that tables list. Scales that
    differ between the axes, and infinite PSNR, are left out."""
    runs = tables.read_results(paths)
    found = sorted({run['data'] for run in runs})
    if data is None and len(found) > 1 or data is not None and data not in found:
        raise UserError(f'--data: the results are of {", ".join(found)}: choose one')
    curves, rows = {}, {}
    for run in runs:
        vertical, horizontal = case_factor(run['scale'])
        if run['data'] == (data or found[0]) and vertical == horizontal and math.isfinite(float(run['psnr'])):
            curves.setdefault(tables.label_of(run), []).append((vertical, run['psnr']))
            if tables.is_whole(run):
                rows[tables.published_row(run['model'], run['data'])] = True
    published = {f'{row} (published)': numbers for row, numbers in tables.published_numbers(data or found[0]).items()
                 if row in rows or rows and row.endswith(tables.LISTED)}
    others = tables.published_numbers(data or found[0], by_others=True) if rows else {}
    for label, numbers in {**others, **published}.items():
        curves[label] = [(case_factor(scale)[0], psnr) for scale, psnr in numbers.items()]
    return {label: sorted(points) for label, points in curves.items()}


def training_curves(folders, minutes=False):
    """({run: [(epoch, loss)]}, {run: [(epoch, dB)]}) from the logs of run folders; of an epoch that was repeated after
    an interruption, the last. minutes: instead of epochs."""
    losses, psnr = {}, {}
    for folder in folders:
        try:
            with open(os.path.join(folder, LOG), encoding='utf-8') as f:
                epochs = read_epochs(f)
        except OSError as error:
            raise UserError(f'{folder} has no {LOG} ({error.strerror}): give run folders, such as save/_NAME') from None
        if not epochs:
            raise UserError(f'{os.path.join(folder, LOG)} has no complete epoch, expected at least one: wait for the '
                            f'first to end')
        name = os.path.basename(os.path.normpath(folder)).lstrip('_')
        points = [(seconds / 60 if minutes else epoch, m) for epoch, (seconds, m) in sorted(epochs.items())]
        losses[name] = [(x, float(m.group(2))) for x, m in points]
        measured = [(x, float(m.group(3))) for x, m in points if m.group(3)]
        if measured:
            psnr[name] = measured
    return losses, psnr


def read_epochs(lines):
    """{epoch: (seconds since the run first began, match of EPOCH)} of a log, each of whose parts counts from its own
    start; of an epoch that was repeated, the last."""
    epochs, before, seconds = {}, 0, 0
    for line in lines:
        if line.startswith('begun at'):
            before = seconds
        elif m := EPOCH.match(line):
            seconds = before + float(m.group(4)) * TIME_UNITS[m.group(5)]
            epochs[int(m.group(1))] = seconds, m
    return epochs


def cost_curves(paths):
    """({curve: [(megapixels, seconds)]}, {curve: [(megapixels, MB)]}) of decoding, by method, precision and, of several
    devices, the device. Seconds are over the output's size, memory over the input's, with which each grows."""
    seconds, memory, devices = {}, {}, set()
    for results in tables.read_json_files(paths):
        if not isinstance(results, dict) or 'machine' not in results:
            continue
        device = results['machine']['name']
        devices.add(device)
        for case in results.get('decode', {}).get('result', {}).get('cases', []):
            for precision in ('float32', 'bf16'):
                for side, name in (('fast', 'here'), ('textbook', 'textbook')):
                    seconds.setdefault((f'{name}, {precision}', device), []).append(
                        (math.prod(case['input']) * case['scale'] ** 2 / 1e6, sum(case[precision][side].values())))
        for case in results.get('memory', {}).get('result', {}).get('cases', []):
            for side, name in (('fast', 'here'), ('textbook', 'textbook')):
                megabytes = case[side]['beyond_output_mb']
                if megabytes is not None:
                    memory.setdefault((name, device), []).append((math.prod(case['input']) / 1e6, megabytes))
    if not seconds and not memory:
        raise UserError(f'no results of benchmarks/run.py in {", ".join(paths)}: run it first')
    return [{', '.join(key[:1 + (len(devices) > 1)]): sorted(points) for key, points in curves.items()}
            for curves in (seconds, memory)]


def draw(panels):
    """A figure of panels side by side. panels: [(x label, y label, {label: [(x, y)]}, {log, log_y, ticks})]; a panel
    without curves is left out."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullLocator
    except ImportError:
        raise UserError('figures need matplotlib: pip install matplotlib') from None
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        raise UserError('found nothing to draw in these files, expected at least one finite value')
    figure = Figure(figsize=(7 * len(panels), 4.5), layout='constrained')
    for axes, (x_label, y_label, curves, options) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for label, points in curves.items():
            dotted = label.endswith(')')  # published, or reported by others
            axes.plot(*zip(*points), label=label, marker='x' if dotted else '.', linestyle=':' if dotted else '-')
        axes.set(xlabel=x_label, ylabel=y_label)
        for letter, option in (('x', 'log'), ('y', 'log_y')):
            if options.get(option):
                axis = getattr(axes, f'{letter}axis')
                axes.set(**{f'{letter}scale': 'log'})
                axis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter='{x:g}', minor_locator=NullLocator())
        if options.get('ticks'):
            low, high = axes.get_xlim()
            shown = [tick for tick in options['ticks'] if low <= tick <= high]
            axes.set_xticks(shown, [f'x{tick:g}' for tick in shown])
            axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


if __name__ == '__main__':
    run_program(main)
