"""Results as tables next to the published numbers (docs/paper_tables.json): Markdown, CSV, JSON, the README."""
import csv
import functools
import glob
import json
import os

from engine import ROOT
from engine.config import parse_eval_type
from engine.evaluation.runs import METRICS, RUN_FORMAT, write_json
from engine.evaluation.suite import case_factor, scale_label
from utils import UserError, atomic_write, counted, write_file


PAPER = os.path.join(ROOT, 'docs', 'paper_tables.json')
RESULTS_FORMAT = 'liif-results-1'
LISTED = 'LIIF', 'Bicubic'  # ends of the names of published rows that tables list
KINDS = {'div2k': 'RGB, scale + 6 pixels shaved', 'benchmark': 'luma, scale pixels shaved', None: 'RGB, all pixels'}
TITLES = {'psnr': ('PSNR in dB', 2), 'ssim': ('SSIM', 4), 'lpips': ('LPIPS (smaller is better)', 4)}  # and digits


# Published numbers.

@functools.lru_cache(maxsize=1)
def paper():
    """docs/paper_tables.json."""
    with open(PAPER, encoding='utf-8') as f:
        return json.load(f)


def published_numbers(data, by_others=False):
    """{row: {scale: PSNR}} of all that papers published on a data set; by_others: of trainings of the published code
    that others report."""
    rows = {}
    for table in paper()['tables'].values():
        if ('by_others' in table) == by_others:
            for row, numbers in table['data'].get(data, {}).items():
                name = f'{row} ({table["by_others"]})' if by_others else row
                rows.setdefault(name, {}).update({s: v for s, v in zip(table['scales'], numbers) if v is not None})
    return rows


def published_row(about, data):
    """The published row to compare a model with, on a data set; None where there is none.

    It is the row that the model is labelled as, else the one whose architecture, to the last layer, is the model's.
    """
    known = published_numbers(data)
    guess = architecture(about['spec'], about.get('trained_with') or {}, data)
    return next((row for row in (about['label'], guess) if row in known), None)


def published_number(run):
    """The PSNR in dB that was published for a result; None where none was, or only a part of the set was measured."""
    numbers = published_numbers(run['data']).get(published_row(run['model'], run['data']), {})
    return numbers.get(run['scale']) if is_whole(run) else None


def is_whole(run):
    """Whether a result is of all the images of a published set."""
    return run['images'] == paper()['images'].get(run['data'])


def architecture(spec, trained_with, data):
    """A model's name in the paper's tables, by its spec and the wrapper it was trained with; None for other models."""
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
    """A table whose columns also line up in a terminal."""
    rows = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(head))]
    lines = ['| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths)) + ' |' for row in rows]
    return '\n'.join([lines[0], '|' + '|'.join('-' * (width + 2) for width in widths) + '|', *lines[1:]])


def make_tables(runs, published=LISTED):
    """The tables of some results, as Markdown: one for each way to measure PSNR, then SSIM and LPIPS where they were
    asked for. A cell reads: measured (published, difference).

    published: ends of the names of published rows to list below, where no measured row is compared with them.
    """
    blocks = []
    for metric, (title, digits) in TITLES.items():
        for kind, shaved in KINDS.items():
            chosen = [run for run in runs if metric in run and parse_eval_type(run['config']['eval_type'])[0] == kind]
            if chosen:
                cells = '; measured (published, difference)' if metric == 'psnr' else ''
                blocks += [f'{title}, {shaved}{cells}:', make_table(chosen, metric, digits, published)]
    return '\n\n'.join(blocks)


def make_table(runs, metric, digits, published):
    """One table: a row for each data set, number of images and model, then published rows; a column for each scale."""
    columns = sorted({run['scale'] for run in runs}, key=lambda scale: (case_factor(scale), scale))
    rows = []
    for data, images in dict.fromkeys((run['data'], run['images']) for run in runs):
        chosen, compared = [run for run in runs if (run['data'], run['images']) == (data, images)], set()
        where = f'{data} ({images} image{"s" * (images != 1)})'
        measured = {label_of(run): dict.fromkeys(columns, '') for run in chosen}
        for run in chosen:
            number = published_number(run) if metric == 'psnr' else None
            compared |= {published_row(run['model'], data)} if number is not None else set()
            measured[label_of(run)][run['scale']] = cell(run.get(metric), number, digits)
        rows += [[where, label, *cells.values()] for label, cells in measured.items()]
        if metric == 'psnr':
            others = {**published_numbers(data, by_others=True), **{
                f'{row} (published)': numbers for row, numbers in published_numbers(data).items()
                if row.endswith(published) and row not in compared}}
            rows += [[f'{data} ({paper()["images"][data]} images)', row,
                      *(cell(numbers.get(scale), None, digits) for scale in columns)]
                     for row, numbers in others.items() if any(scale in numbers for scale in columns)]
    return markdown(['data', 'model', *map(scale_label, columns)], rows)


def cell(value, number, digits):
    """The text of a measured value and of the published number, each of which may be None."""
    if value is None:
        return ''
    text = f'{float(value):.{digits}f}'
    return text if number is None else f'{text} ({number:.{digits}f}, {float(value) - number:+.{digits}f})'


def label_of(run):
    """The model's label and those options that change a result."""
    options = run['options']
    extra = [options['precision']] if options['precision'] != 'float32' else []
    extra += ['self-ensemble'] if options['self_ensemble'] else []
    extra += [f'cell clip {options["cell_clip"]:g}'] if options.get('cell_clip') else []
    extra += [f'decode {options["decode"]}'] if options.get('decode') else []
    extra += ['ema'] if options['ema'] and run['model']['parameters'] else []
    return ', '.join([run['model']['label'], *extra])


def notes(runs):
    """Remarks for the readers of the tables, a line each."""
    lines = []
    for label in dict.fromkeys(label_of(run) for run in runs):
        run = next(run for run in runs if label_of(run) == label)
        model = run['model']
        text = f'{model["parameters"]:,} parameters, sha256 {model["sha256"][:12]}' if model['parameters'] \
            else 'interpolation'
        epoch = f', epoch {model["epoch"]}' if model.get('epoch') else ''
        lines.append(f'{label}: {text}{epoch}; measured on {run["device"]}, torch {run["versions"]["torch"]}')
    for note in paper()['notes']:
        rows = {published_row(run['model'], note['data']) for run in runs if run['data'] == note['data']}
        if note['row'] in rows or rows and note['row'] in published_numbers(note['data'], by_others=True):
            lines.append(f'{note["data"]}, {note["row"]}: {note["note"]}')
    pooled = sorted({(run['data'], run['pooled_over']) for run in runs if run['pooled_over'] > 1})
    lines += [f'{data}: the squared error is pooled over batches of {n} images' for data, n in pooled]
    return lines


def not_measured(outcome):
    """Lines on what an `Outcome` lacks, and why."""
    lines = []
    for data in dict.fromkeys(case.data for case in outcome.missing):
        cases = [case for case in outcome.missing if case.data == data]
        more, path = len({case.missing for case in cases}) - 1, cases[0].missing
        problem = 'is a file, not a folder' if os.path.isfile(path) else \
            'is a folder, not a file' if os.path.isdir(path) else \
            f'and {counted(more, "other path")} do not exist' if more else 'does not exist'
        lines.append(f'{data} {", ".join(scale_label(case.scale) for case in cases)}: {path} {problem}')
    return lines + outcome.left_out + problem_lines(outcome.problems)


def problem_lines(problems):
    """One line for each different message."""
    cases = {}
    for label, name, message in problems:
        cases.setdefault((label, message), []).append(name)
    return [': '.join(part for part in (label, ', '.join(filter(None, names)), message) if part)
            for (label, message), names in cases.items()]


# Files.

def write_results(output, name, outcome, **options):
    """<output>/<name>.md, .csv and .json; returns the Markdown. options: of `make_tables`."""
    text = make_tables(outcome.runs, **options)
    for title, lines in (('', notes(outcome.runs)), ('Not measured:\n\n', not_measured(outcome))):
        if lines:
            text += '\n\n' + title + '\n'.join(f'- {line}' for line in lines)
    write_file(os.path.join(output, f'{name}.md'), text.strip() + '\n')
    with atomic_write(os.path.join(output, f'{name}.csv'), 'w', encoding='utf-8', newline='') as f:
        writer = csv.writer(f)
        writer.writerow(['model', 'data', 'scale', 'image', *METRICS, 'seconds'])
        for run in outcome.runs:
            writer.writerows([label_of(run), run['data'], run['scale'], row['image'], *map(row.get, METRICS),
                              row['seconds']] for row in run['per_image'])
    write_json(os.path.join(output, f'{name}.json'), {
        'format': RESULTS_FORMAT, 'suite': name, 'runs': [summary(run) for run in outcome.runs]})
    return text.strip()


def summary(run):
    """A result without its images, with the published number."""
    number = published_number(run)
    published = None if number is None else {'row': published_row(run['model'], run['data']), 'psnr': number,
                                             'difference': float(run['psnr']) - number}
    return {**{key: value for key, value in run.items() if key != 'per_image'}, 'published': published}


def read_json_files(paths):
    """Yield the contents of JSON files, and of those in folders. Raises UserError for what cannot be read."""
    for path in paths:
        if not os.path.exists(path):
            raise UserError(f'{path} does not exist: give a .json file of results, or a folder of them')
        files = sorted(glob.glob(os.path.join(glob.escape(path), '**', '*.json'), recursive=True)) \
            if os.path.isdir(path) else [path]
        for file in files:
            try:
                with open(file, encoding='utf-8') as f:
                    yield json.load(f)
            except (OSError, ValueError) as error:
                raise UserError(f'{file} cannot be read as JSON ({error}): remove it or measure again') from None


def read_results(paths):
    """The results in files of `write_results`, of single runs, and in folders of these, the newest of each kind only.
    Files of another kind are passed over. Raises UserError when there is none."""
    newest = {}
    for value in read_json_files(paths):
        kind = value.get('format') if isinstance(value, dict) else None
        for run in value['runs'] if kind == RESULTS_FORMAT else [value] if kind == RUN_FORMAT else []:
            key = label_of(run), run['data'], run['images'], run['scale']
            if key not in newest or newest[key]['date'] <= run['date']:
                newest[key] = run
    if not newest:
        raise UserError(f'no results of test.py --suite in {", ".join(paths) or "weights/ or benchmarks/results"}: '
                        f'measure first')
    return list(newest.values())
