"""Tables from benchmarks/results/*.json:  python benchmarks/table.py

Writes what stands between the markers in docs/speed.md and, of the lattice decode, in README.md.
"""
import glob
import json
import os

import _path

from engine import ROOT
from engine.evaluation.tables import markdown
from engine.runtime import run_program
from utils import counted, replace_between

RESULTS = os.path.join(ROOT, 'benchmarks', 'results')
MARKERS = '<!-- benchmarks:start -->', '<!-- benchmarks:end -->'
LATTICE_MARKERS = '<!-- lattice:start -->', '<!-- lattice:end -->'
PRECISIONS, SIDES = ('float32', 'bf16'), ('textbook', 'fast')


def seconds(value):
    return 'not measured' if value is None else f'{value * 1000:.3g} ms' if value < 1 else f'{value:.3g} s'


def megabytes(value):
    return 'not measured' if value is None else f'{max(0, value):.0f} MB'


def size_of(case):
    h, w = case['input']
    return f'{w}x{h} to {w * case["scale"]}x{h * case["scale"]} (x{case["scale"]})'


def decode_table(result):
    """Encoder and decoder together, against the textbook formula in the same precision."""
    rows = []
    for case in result['cases']:
        cells = [size_of(case)]
        for part in (case[name] for name in PRECISIONS):
            cells += [*(seconds(sum(part[side].values())) for side in SIDES), f'{part["ratio"]:.1f}x']
        rows.append(cells + [f'{case["bf16"]["ratio_to_textbook_float32"]:.1f}x'])
    return markdown(['decode', 'textbook, float32', 'here, float32', 'ratio', 'textbook, bf16', 'here, bf16', 'ratio',
                     'bf16 here to float32 textbook'], rows)


def limits_table(result):
    """What limits decoding: products, and for the textbook formula also memory that is asked for anew."""
    rows = []
    for case in result['cases']:
        cells = [size_of(case)]
        for part in (case[name] for name in PRECISIONS):
            cells += [f'{part["decoder_gflops"]:.0f} of {part["product_gflops"]:.0f} ({part["share_of_product"]:.0%})',
                      f'{part["kept"]["ratio"]:.1f}x' if 'kept' in part else '']
        rows.append(cells)
    return markdown(['decoder', 'GFLOP/s of plain products\', float32', 'ratio, both keep memory',
                     'GFLOP/s of plain products\', bf16', 'ratio, both keep memory'], rows)


def train_table(result):
    """On a CPU the textbook formula runs as by default and ours keeps freed memory, as train_liif.py does; in the last
    column but one both keep it."""
    kept, rows = result.get('keep_freed_memory', {}), []
    for name in PRECISIONS:
        part, ours = result[name], kept.get(f'step {name}', result[name])
        slow = kept[f'textbook-step {name}']['given_back'] if kept else part['textbook']
        rows.append([name, seconds(slow['seconds']), seconds(part['fast']['seconds']), f'{ours["ratio"]:.1f}x',
                     f'{ours.get("ratio_to_textbook_float32", ours["ratio"]):.1f}x', f'{part["ratio"]:.1f}x',
                     f'{part["gflops"]:.0f}'])
    return markdown(['training step', 'textbook', 'here', 'ratio', 'to float32 textbook', 'ratio, both keep memory',
                     'GFLOP/s here'], rows)


def data_table(result):
    labels = {'float': 'straightforward, on floats', 'in_memory': 'here, `cache: in_memory`',
              'bin': 'here, `cache: bin`'}
    return markdown(['samples', 'per second and core', 'MB per image', 'ratio'], [
        [label, f'{result[key]["samples_per_second"]:.0f}', f'{result[key]["mb_per_image"]:.1f}',
         f'{result[key].get("speedup", 1):.1f}x'] for key, label in labels.items()])


def memory_table(result):
    rows = [[size_of(case), *(megabytes(case[side]['beyond_output_mb']) for side in SIDES)] for case in result['cases']]
    large = result['large']
    rows.append([f'{size_of(large)}, in tiles, bf16', f'over {megabytes(large["textbook_unfolded_features_mb"])}',
                 megabytes(large['fast']['beyond_output_mb'])])
    rows += [[f'training step, {name}', *(megabytes(result['train'][f'{what} {name}']['peak_mb'])
                                          for what in ('textbook-step', 'step'))] for name in PRECISIONS]
    return markdown(['peak memory (decoding: beyond the 8-bit output)', 'textbook', 'here'], rows)


def precision_table(result):
    if 'not_measured' in result:
        return f'Precision: not measured ({result["not_measured"]}).'
    columns = {'bf16_against_float32': 1, 'float32_against_truth': 2, 'bf16_against_truth': 2, 'cost': 4}
    return markdown([f'weights: {result["weights"]}', *(key.replace('_', ' ') for key in columns)], [
        [f'{v["image"]}, x{v["scale"]}', *(f'{v[key]:.{digits}f} dB' for key, digits in columns.items())]
        for v in result['images']])


def profile_table(result):
    """Where the time goes, largest first."""
    profiles = [result['profile'][name] for name in PRECISIONS]
    return markdown(['largest terms', *PRECISIONS], [
        [i + 1, *(f'{part[i]["operator"]}, {part[i]["share"]:.0%}' for part in profiles)]
        for i in range(min(5, *map(len, profiles)))])


TABLES = {'decode': [decode_table, limits_table, profile_table], 'train': [train_table, profile_table],
          'data': [data_table], 'memory': [memory_table], 'precision': [precision_table]}


def lattice_tables(results):
    """What benchmarks/lattice.py measured: speed against the exact decode, and what the lattice costs."""
    speed, truth = results['speed'], results['truth']
    names = ('g=4', 'g=6')
    rows = [[f'x{row["scale"]}', *(f'{row[name]["times_faster_than_exact"]:.1f}x' for name in names),
             *(f'{row[name]["times_faster_than_textbook"]:.1f}x' for name in names)] for row in speed['decode']]
    cost = [[row['set'], f'x{row["scale"]}', row['images'], f'{row["exact"]:.2f}',
             *(f'{row[name][key]:.{digits}f}' for name in names for key, digits in (('loss', 4), ('distance', 1)))]
            for row in truth['rows']]
    head = f'**{speed["machine"]["name"]}**, {counted(speed["machine"]["threads"], "thread")}, torch ' \
           f'{speed["machine"]["versions"]["torch"]}, load {speed["load_before"]:.0f}'
    frame = next(row for row in speed['frames'] if row['g'] == 6)
    h, w = frame['size']
    return '\n\n'.join([
        head, markdown(['scale', 'g = 4 against exact', 'g = 6', 'g = 4 against textbook', 'g = 6'], rows),
        f'A frame of {w}x{h} from a kept lattice, g = 6: {1 / frame["wall_seconds"]:.0f} a second.',
        markdown(['images', 'scale', 'n', 'exact, dB', 'g = 4 loses, dB', 'from exact, dB', 'g = 6 loses, dB',
                  'from exact, dB'], cost)])


def lattice_summary(results):
    """How much faster the decodes are than the textbook formula, and the PSNR they lose, in four rows."""
    speed, rows = results['speed'], []
    for label, name in (('textbook formula', 'textbook'), ('exact', 'exact'), ('lattice, g = 6', 'g=6'),
                        ('lattice, g = 4', 'g=4')):
        faster = {row['scale']: row[name].get('times_faster_than_textbook') or
                  row['textbook']['cpu_seconds'] / row[name]['cpu_seconds'] for row in speed['decode']}
        loss = max(row[name]['loss'] for row in results['truth']['rows']) if name.startswith('g=') else 0
        rows.append([label, *(f'{faster[scale]:.1f}x' for scale in (8, 12, 30)), f'{loss:.3f} dB'])
    return markdown([f'decode, speed on {speed["machine"]["name"]}', 'x8', 'x12', 'x30', 'loses at most'], rows)


def report(results):
    """The tables of one device in markdown; says what was not measured."""
    info = results['machine']
    lines = [f'**{info["name"]}**, {counted(info["threads"], "thread")}, torch {info["versions"]["torch"]}']
    for name, makers in TABLES.items():
        lines += [make(results[name]['result']) for make in makers] if name in results else [f'{name}: not measured']
    return '\n\n'.join(lines)


def write():
    found = []
    for path in sorted(glob.glob(os.path.join(RESULTS, '*.json'))):
        with open(path) as f:
            found.append(json.load(f))
    lattices = [results for results in found if 'truth' in results]
    found = [results for results in found if TABLES.keys() & results.keys()]  # other programs' results lie there too
    gpu = '' if any(results['machine']['device'] == 'cuda' for results in found) else '\n\nOn a CUDA GPU: not measured.'
    text = '\n\n'.join(map(report, found)) + gpu
    page = os.path.join(ROOT, 'docs', 'speed.md')
    replace_between(page, text, MARKERS)
    replace_between(page, '\n\n'.join(map(lattice_tables, lattices)), LATTICE_MARKERS)
    replace_between(os.path.join(ROOT, 'README.md'), lattice_summary(lattices[0]), LATTICE_MARKERS)


if __name__ == '__main__':
    run_program(write)
