"""Tables from benchmarks/results/*.json:  python benchmarks/table.py

Writes what stands between the markers in docs/speed.md and, of the lattice decode, in README.md.
"""
import glob
import os

import _path

from benchmarks.common import RESULTS, read, result_path
from benchmarks.speed import PRECISIONS, SIDES
from engine import ROOT
from engine.evaluation.tables import markdown
from engine.runtime import run_program
from utils import counted, replace_between

DENSITIES = 'g=4', 'g=6'


def seconds(value):
    return 'not measured' if value is None else f'{value * 1000:.3g} ms' if value < 1 else f'{value:.3g} s'


def megabytes(value):
    return 'not measured' if value is None else f'{max(0, value):.0f} MB'


def times(*ratios):
    return [f'{ratio:.1f}x' for ratio in ratios]


def size_of(case):
    h, w = case['input']
    return f'{w}x{h} to {w * case["scale"]}x{h * case["scale"]} (x{case["scale"]})'


def decode_table(result):
    """Encoder and decoder together, against the textbook formula in the same precision."""
    rows = []
    for case in result['cases']:
        cells = [size_of(case)]
        for part in (case[name] for name in PRECISIONS):
            cells += [*(seconds(sum(part[side].values())) for side in SIDES), *times(part['ratio'])]
        rows.append(cells + times(case['bf16']['ratio_to_textbook_float32']))
    return markdown(['decode', 'textbook, float32', 'here, float32', 'ratio', 'textbook, bf16', 'here, bf16', 'ratio',
                     'float32 textbook / bf16 here'], rows)


def limits_table(result):
    """What limits decoding: products, and for the textbook formula also memory that is requested again."""
    rows = [[size_of(case), *(cell for part in (case[name] for name in PRECISIONS) for cell in (
        f'{part["decoder_gflops"]:.0f} of {part["product_gflops"]:.0f} ({part["share_of_product"]:.0%})',
        *times(part['ratio_both_keep'])))] for case in result['cases']]
    return markdown(['decoder', 'GFLOP/s, of what plain products reach, float32', 'ratio, both keep memory',
                     'GFLOP/s, of what plain products reach, bf16', 'ratio, both keep memory'], rows)


def train_table(result):
    """The textbook formula runs as by default and ours keeps freed memory, as train_liif.py does; in the last ratio
    both keep it."""
    rows = []
    for name in PRECISIONS:
        part = result[name]
        rows.append([name, *(seconds(part[side]['seconds']) for side in SIDES),
                     *times(part['ratio'], part['ratio_to_textbook_float32'], part['ratio_both_keep']),
                     f'{part["gflops"]:.0f}', *(megabytes(part[side]['peak_mb']) for side in SIDES)])
    return markdown(['training step', 'textbook', 'here', 'ratio', 'to float32 textbook', 'ratio, both keep memory',
                     'GFLOP/s here', 'peak memory, textbook', 'here'], rows)


def data_table(result):
    labels = {'float': 'straightforward, on floats', 'in_memory': 'here, `cache: in_memory`',
              'bin': 'here, `cache: bin`'}
    return markdown(['samples', 'per second and core', 'MB per image', 'ratio'], [
        [label, f'{result[key]["samples_per_second"]:.0f}', f'{result[key]["mb_per_image"]:.1f}',
         *times(result[key]['speedup'])] for key, label in labels.items()])


def memory_table(result):
    rows = [[size_of(case), *(megabytes(case[side]['beyond_output_mb']) for side in SIDES)] for case in result['cases']]
    large = result['large']
    rows.append([f'{size_of(large)}, in tiles, bf16', f'over {megabytes(large["textbook_unfolded_features_mb"])}',
                 megabytes(large['fast']['beyond_output_mb'])])
    return markdown(['peak memory beyond the 8-bit output', 'textbook', 'here'], rows)


def lattice_table(result):
    """The lattice decode against the others, and frames from a kept lattice."""
    rows = [[f'x{row["scale"]}', *times(*(row[name][f'times_faster_than_{side}'] for side in ('exact', 'textbook')
                                          for name in DENSITIES))] for row in result['decode']]
    frame = next(row for row in result['frames'] if row['g'] == 6)
    h, w = frame['size']
    return markdown(['scale', 'g = 4 against exact', 'g = 6', 'g = 4 against textbook', 'g = 6'], rows) + \
        f'\n\nA frame of {w}x{h} from a kept lattice, g = 6: {1 / frame["wall_seconds"]:.0f} a second.'


def accuracy_table(rows):
    """What benchmarks/accuracy.py measured: what each way loses against the ground truth, and how far it is from the
    exact decode."""
    ways = [name for name, value in rows[0].items() if isinstance(value, dict)]
    return markdown(['images', 'scale', 'n', 'exact, dB', *(head for way in ways for head in (
        f'{way.replace("=", " = ")} loses, dB', 'from exact, dB'))],
        [[row['set'], f'x{row["scale"]}', row['images'], f'{row["exact"]:.2f}',
          *(f'{row[way][key]:.{digits}f}' for way in ways for key, digits in (('loss', 4), ('distance', 1)))]
         for row in rows])


def lattice_summary(results, accuracy):
    """How much faster the decodes are than the textbook formula, and the PSNR they lose, in four rows."""
    rows = []
    for label, name in (('textbook formula', 'textbook'), ('exact', 'exact'), ('lattice, g = 6', 'g=6'),
                        ('lattice, g = 4', 'g=4')):
        faster = {row['scale']: row[name].get('times_faster_than_textbook') or
                  row['textbook']['cpu_seconds'] / row[name]['cpu_seconds']
                  for row in results['lattice']['result']['decode']}
        loss = max(row[name]['loss'] for row in accuracy) if name in DENSITIES else 0
        rows.append([label, *times(*(faster[scale] for scale in (8, 12, 30))), f'{loss:.3f} dB'])
    return markdown([f'decode, speed on {results["machine"]["name"]}', 'x8', 'x12', 'x30', 'largest mean loss'], rows)


TABLES = {'decode': [decode_table, limits_table], 'train': [train_table],
          'data': [data_table], 'memory': [memory_table], 'lattice': [lattice_table]}


def report(results, sections=tuple(TABLES)):
    """The tables of what was measured on one device, in markdown."""
    lines, last = [], None
    for name in sections:
        if name in results:
            info = results[name].get('machine', results['machine'])
            head = f'**{info["name"]}**, {counted(info["threads"], "thread")}, torch {info["versions"]["torch"]}'
            lines += [head] * (head != last) + [make(results[name]['result']) for make in TABLES[name]]
            last = head
    return '\n\n'.join(lines)


def pages():
    """[(page, marker, text)] of all that is written."""
    found = [read(path) for path in sorted(glob.glob(os.path.join(RESULTS, 'c*.json')))]
    sections = [name for name in TABLES if name != 'lattice']
    speed = [report(results, sections) for results in found if 'decode' in results]
    if all(results['machine']['device'] == 'cpu' for results in found):
        speed.append('On a CUDA GPU: not measured.')
    lattices = [results for results in found if 'lattice' in results]
    accuracy = {name: read(result_path(name))['rows'] for name in ('precision', 'lattice')}
    page = os.path.join('docs', 'speed.md')
    return [(page, 'benchmarks', '\n\n'.join(speed)), (page, 'precision', accuracy_table(accuracy['precision'])),
            (page, 'lattice', '\n\n'.join([*(report(results, ['lattice']) for results in lattices),
                                           accuracy_table(accuracy['lattice'])])),
            ('README.md', 'lattice', lattice_summary(lattices[0], accuracy['lattice']))]


def write():
    for page, name, text in pages():
        replace_between(os.path.join(ROOT, page), text, name)


if __name__ == '__main__':
    run_program(write)
