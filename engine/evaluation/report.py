"""Results as tables beside the published figures (docs/paper_tables.json): Markdown, CSV, JSON, the README."""
import csv
import functools
import glob
import json
import os

from engine import ROOT
from engine.evaluation.measure import RUN_FORMAT, write_json
from engine.evaluation.suite import case_factor, scale_label
from utils import UserError, atomic_write


PAPER = os.path.join(ROOT, 'docs', 'paper_tables.json')
RESULTS_FORMAT = 'liif-results-1'
MARKERS = '<!-- results:start -->', '<!-- results:end -->'
BUDGET, BUDGET_MARKERS = os.path.join('docs', 'budget.md'), ('<!-- budget:start -->', '<!-- budget:end -->')
RUNS = os.path.join('weights', '*', 'run.json'), os.path.join('benchmarks', 'results', 'budget', '*', 'run.json')
COMMITTED = ('weights/**/*.json', 'benchmarks/results/*.json')
KINDS = {'div2k': 'RGB, scale + 6 pixels shaved', 'benchmark': 'luma, scale pixels shaved', None: 'RGB, all pixels'}
METRICS = {'psnr': ('PSNR in dB', 2), 'ssim': ('SSIM', 4), 'lpips': ('LPIPS (smaller is better)', 4)}


# The published figures.

@functools.lru_cache(maxsize=1)
def paper():
    with open(PAPER, encoding='utf-8') as f:
        return json.load(f)


def paper_figures(data):
    """{row: {scale: PSNR}} of all that was published on a data set."""
    rows = {}
    for table in paper()['tables'].values():
        for row, figures in table['data'].get(data, {}).items():
            rows.setdefault(row, {}).update({s: v for s, v in zip(table['scales'], figures) if v is not None})
    return rows


def paper_row(about, data):
    """The published row to compare a model with, on a data set; None where there is none.

    It is the row that the model is labelled as, else the one whose architecture, to the last layer, is the model's.
    """
    known = paper_figures(data)
    guess = architecture(about['spec'], about.get('trained_with') or {}, data)
    return next((row for row in (about['label'], guess) if row in known), None)


def architecture(spec, trained_with, data):
    """How the paper's tables call a model, by its spec and the wrapper it was trained with; None for another one."""
    if spec['name'] == 'bicubic':
        return 'Bicubic'
    args = spec['args']
    encoder = args.get('encoder_spec') or {}
    options = {key: value for key, value in (encoder.get('args') or {}).items()
               if key not in ('no_upsampling', 'scale', 'rgb_range')}
    published = {'edsr-baseline': ('EDSR-baseline', {'n_resblocks': 16, 'n_feats': 64, 'res_scale': 1}),
                 'rdn': ('RDN', {'G0': 64, 'RDNkSize': 3, 'RDNconfig': 'B'})}
    name, usual = published.get(encoder.get('name'), (None, {}))
    if name is None or spec['name'] not in ('liif', 'metasr') or {**usual, **options} != usual:
        return None
    faces, decoder = data == 'CelebA-HQ', args.get('imnet_spec')
    if spec['name'] == 'metasr':
        return f'{name}-MetaSR'
    if decoder is None:
        return 'up-sampling modules' if faces else name
    widths = (decoder.get('args') or {}).get('hidden_list')
    changes = [f' -{letter}' for letter, key in (('c', 'cell_decode'), ('u', 'feat_unfold'), ('e', 'local_ensemble'))
               if not args.get(key, True)]
    changes += [' -d'] if widths == [256] * 2 else []
    scales = trained_with.get('args') or {}
    if trained_with.get('name') == 'sr-implicit-downsampled':
        low = scales.get('scale_min', 1)
        changes += [f' x{low}'] if scales.get('scale_max', low) == low else []  # trained for one scale
    if decoder.get('name') != 'mlp' or widths not in ([256] * 4, [256] * 2) or len(changes) > 1:
        return None
    return 'LIIF' if faces and not changes else f'{name}-LIIF{"".join(changes)}'


# Tables.

def markdown(head, rows):
    """A table whose columns line up in a terminal, too."""
    rows = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(head))]
    lines = ['| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths)) + ' |' for row in rows]
    return '\n'.join([lines[0], '|' + '|'.join('-' * (width + 2) for width in widths) + '|', *lines[1:]])


def tables(runs, published=('LIIF', 'Bicubic')):
    """The tables of some results, as Markdown: one for each way to measure PSNR, then SSIM and LPIPS where they were
    asked for. A cell reads: measured (published, difference).

    published: the published rows that stand below, by the ends of their names, unless a measured one is compared with
    them.
    """
    blocks = []
    for metric, (title, digits) in METRICS.items():
        for kind, shaved in KINDS.items():
            chosen = [run for run in runs if metric in run and kind_of(run) == kind]
            if chosen:
                blocks.append(f'{title}, {shaved}' + '; measured (published, difference):' * (metric == 'psnr')
                              + ':' * (metric != 'psnr'))
                blocks.append(table(chosen, metric, digits, published))
    return '\n\n'.join(blocks)


def kind_of(run):
    return (run['config']['eval_type'] or '').split('-')[0] or None


def table(runs, metric, digits, published):
    columns = sorted({run['scale'] for run in runs}, key=lambda scale: (case_factor(scale), scale))
    rows = []
    for data in dict.fromkeys(run['data'] for run in runs):
        figures, compared = paper_figures(data) if metric == 'psnr' else {}, set()
        for label in dict.fromkeys(label_of(run) for run in runs if run['data'] == data):
            found = {run['scale']: run for run in runs if (run['data'], label_of(run)) == (data, label)}
            reference = {}
            for run in found.values():
                row = paper_row(run['model'], data)
                compared.add(row)
                reference.update(figures.get(row, {}))
            rows.append([data, label, *(cell(found.get(scale, {}).get(metric), reference.get(scale), digits)
                                        for scale in columns)])
        for row, values in figures.items():
            if row.endswith(published) and row not in compared and any(scale in values for scale in columns):
                rows.append([data, f'{row} (published)', *(cell(values.get(scale), None, digits) for scale in columns)])
    return markdown(['data', 'model', *map(scale_label, columns)], rows)


def cell(value, reference, digits):
    if value is None:
        return '' if reference is None else f'({reference:.{digits}f})'
    value = float(value)
    text = f'{value:.{digits}f}'
    return text if reference is None else f'{text} ({reference:.{digits}f}, {value - reference:+.{digits}f})'


def label_of(run):
    """The model's label and what of the options changes a result."""
    options = run['options']
    extra = [options['precision']] if options['precision'] != 'float32' else []
    extra += ['self-ensemble'] if options['self_ensemble'] else []
    extra += ['ema'] if options['ema'] and run['model']['parameters'] else []
    return ', '.join([run['model']['label'], *extra])


def notes(runs):
    """What a reader of the tables has to know, a line each."""
    lines = []
    for label in dict.fromkeys(label_of(run) for run in runs):
        run = next(run for run in runs if label_of(run) == label)
        model = run['model']
        text = f'{model["parameters"]:,} parameters, sha256 {model["sha256"][:12]}' if model['parameters'] \
            else 'interpolation'
        epoch = f', epoch {model["epoch"]}' if model.get('epoch') else ''
        lines.append(f'{label}: {text}{epoch}; measured on {run["device"]}, torch {run["versions"]["torch"]}')
    for note in paper()['notes']:
        if any(run['data'] == note['data'] and paper_row(run['model'], run['data']) == note['row'] for run in runs):
            lines.append(f'{note["data"]}, {note["row"]}: {note["note"]}')
    pooled = sorted({(run['data'], run['pooled_over']) for run in runs if run['pooled_over'] > 1})
    lines += [f'{data}: the squared error is pooled over batches of {n} images' for data, n in pooled]
    return lines


def not_measured(outcome):
    """Lines on what an `Outcome` lacks, and why."""
    lines = []
    for data in dict.fromkeys(case.data for case in outcome.missing):
        cases = [case for case in outcome.missing if case.data == data]
        more = len({case.missing for case in cases}) - 1
        lines.append(f'{data} {", ".join(scale_label(case.scale) for case in cases)}: there is no {cases[0].missing}'
                     + (f', and {more} more' if more else ''))
    return lines + outcome.left_out + problem_lines(outcome.problems)


def problem_lines(problems):
    """One line for each different message."""
    cases = {}
    for label, name, message in problems:
        cases.setdefault((label, message), []).append(name)
    return [': '.join(part for part in (label, ', '.join(filter(None, names)), message) if part)
            for (label, message), names in cases.items()]


# Files.

def write(output, name, outcome, **options):
    """<output>/<name>.md, .csv and .json; returns the Markdown. options: of `tables`."""
    text = tables(outcome.runs, **options)
    for title, lines in (('', notes(outcome.runs)), ('Not measured:\n\n', not_measured(outcome))):
        if lines:
            text += '\n\n' + title + '\n'.join(f'- {line}' for line in lines)
    with atomic_write(os.path.join(output, f'{name}.md'), 'w', encoding='utf-8') as f:
        f.write(text.strip() + '\n')
    with atomic_write(os.path.join(output, f'{name}.csv'), 'w', encoding='utf-8', newline='') as f:
        writer = csv.writer(f)
        writer.writerow(['model', 'data', 'scale', 'image', 'psnr', 'ssim', 'lpips', 'seconds'])
        for run in outcome.runs:
            writer.writerows([label_of(run), run['data'], run['scale'], row['image'], row['psnr'], row.get('ssim'),
                              row.get('lpips'), row['seconds']] for row in run['per_image'])
    write_json(os.path.join(output, f'{name}.json'), {
        'format': RESULTS_FORMAT, 'suite': name, 'runs': [summary(run) for run in outcome.runs]})
    return text.strip()


def summary(run):
    """A result without its images, with the published figure."""
    row = paper_row(run['model'], run['data'])
    figure = paper_figures(run['data']).get(row, {}).get(run['scale'])
    published = None if figure is None else {'row': row, 'psnr': figure, 'difference': float(run['psnr']) - figure}
    return {**{key: value for key, value in run.items() if key != 'per_image'}, 'published': published}


def read_results(paths):
    """The results in files of `write`, of single runs, and in folders of these, the newest of each kind only. Files of
    another kind are passed over. Raises UserError when there is none."""
    files = []
    for path in paths:
        if not os.path.exists(path):
            raise UserError(f'{path} does not exist: give the output folder of test.py --suite, or a .json file of it')
        files += sorted(glob.glob(os.path.join(glob.escape(path), '**', '*.json'), recursive=True)) \
            if os.path.isdir(path) else [path]
    newest = {}
    for path in files:
        try:
            with open(path, encoding='utf-8') as f:
                value = json.load(f)
        except (OSError, ValueError) as error:
            raise UserError(f'{path} cannot be read as JSON ({error}): remove it or measure again') from None
        kind = value.get('format') if isinstance(value, dict) else None
        for run in value['runs'] if kind == RESULTS_FORMAT else [value] if kind == RUN_FORMAT else []:
            key = label_of(run), run['data'], run['scale']
            if key not in newest or newest[key]['date'] <= run['date']:
                newest[key] = run
    if not newest:
        raise UserError(f'no results of test.py --suite in {", ".join(paths) or "weights/ or benchmarks/results"}: '
                        f'measure first')
    return list(newest.values())


def write_readme(path, root=ROOT):
    """Put the tables of the committed results between the markers of the README at `path`; UserError without them."""
    files = sorted(file for pattern in COMMITTED for file in glob.glob(os.path.join(root, pattern), recursive=True))
    runs = sorted(read_results(files), key=lambda run: run['model']['parameters'] or 0)  # interpolation first
    text = tables(runs) + '\n\n' + '\n'.join(f'- {line}' for line in notes(runs))
    insert(path, text, MARKERS)
    return text


def write_budget(root=ROOT, path=None):
    """Put what runs of small budgets cost and reached into docs/budget.md."""
    text = budget_table(root)
    insert(path or os.path.join(root, BUDGET), text, BUDGET_MARKERS)
    return text


def budget_table(root, data='Set5', scales=('2', '3', '4')):
    """A row for each run.json (scripts/release.py) with results beside it, between bicubic and the paper; the fewest
    steps first."""
    head = ['command', 'device', 'time', 'steps', *(f'{data} {scale_label(scale)}' for scale in scales)]
    rows, plain, runs = [], {}, []
    for pattern in RUNS:
        for file in glob.glob(os.path.join(root, pattern)):
            with open(file, encoding='utf-8') as f:
                runs.append((json.load(f), file))
    for run, file in sorted(runs, key=lambda item: int(item[0]['steps'].split()[0].replace(',', ''))):
        found = {}
        for result in read_results([os.path.dirname(file)]):
            if result['data'] == data:
                (found if result['model']['parameters'] else plain)[result['scale']] = f'{float(result["psnr"]):.2f}'
        rows.append([f'`train_liif.py --config configs/budget/{run["run"]}.yaml`', run['device'], run['time'],
                     run['steps'], *(found.get(scale, '') for scale in scales)])
    published = paper_figures(data)['RDN-LIIF']
    return markdown(head, [['bicubic', '', '', '', *(plain.get(scale, '') for scale in scales)], *rows, [
        "the paper's RDN-LIIF (published)", 'GPU', '', '1,000,000',
        *(f'{published[scale]:.2f}' for scale in scales)]])


def insert(path, text, markers):
    """Put a text between the markers of a file. Raises UserError for a file without them."""
    with open(path, encoding='utf-8') as f:
        old = f.read()
    start, end = (old.find(marker) for marker in markers)
    if not 0 <= start < end:
        raise UserError(f'{path} has no lines {markers[0]} and {markers[1]} for the tables: add them where they belong')
    with atomic_write(path, 'w', encoding='utf-8') as f:
        f.write(f'{old[:start]}{markers[0]}\n{text}\n{old[end:]}')
