"""Tables and a figure from the results:  python benchmarks/table.py

Reads benchmarks/results/*.json and rewrites what stands between the markers `<!-- benchmarks:start -->` and
`<!-- benchmarks:end -->` in README.md (in short) and docs/speed.md (in full), and docs/figures/memory.png.
"""
import glob
import json
import os
import sys


ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[0] = ROOT
from utils import UserError, replace_between  # noqa: E402


RESULTS = os.path.join(ROOT, 'benchmarks', 'results')
MARKERS = '<!-- benchmarks:start -->', '<!-- benchmarks:end -->'


def rounded(value, digits=4):
    """Numbers to so many significant digits, throughout dicts and lists."""
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v, digits) for v in value]
    return float(f'{value:.{digits}g}') if isinstance(value, float) else value


def markdown(head, rows):
    lines = [head, ['---'] + ['---:'] * (len(head) - 1), *rows]
    return '\n'.join('| ' + ' | '.join(str(cell) for cell in line) + ' |' for line in lines)


def seconds(value):
    return f'{value * 1000:.3g} ms' if value < 1 else f'{value:.3g} s'


def megabytes(value):
    return 'not measured' if value is None else f'{max(0, value):.0f} MB'


def times(value):
    return f'{value:.1f}x'


def size_of(case):
    h, w = case['input']
    return f'{w}x{h} to {w * case["scale"]}x{h * case["scale"]} (x{case["scale"]})'


def decode_table(result):
    """Encoder and decoder together, against the textbook formula in the same precision."""
    rows = []
    for case in result['cases']:
        cells = [size_of(case)]
        for name in ('float32', 'bf16'):
            slow, fast = (sum(case[name][side].values()) for side in ('textbook', 'fast'))
            cells += [seconds(slow), seconds(fast), times(case[name]['ratio'])]
        rows.append(cells + [times(case['bf16']['ratio_to_textbook_float32'])])
    return markdown(['decode', 'textbook, float32', 'here, float32', 'ratio', 'textbook, bf16', 'here, bf16', 'ratio',
                     'bf16 here to float32 textbook'], rows)


def decoder_table(result):
    """The decoder alone, and how near it comes to doing nothing but its products."""
    rows = []
    for case in result['cases']:
        cells = [size_of(case)]
        for name in ('float32', 'bf16'):
            part = case[name]
            cells += [seconds(part['fast']['encode']), seconds(part['fast']['decode']), times(part['ratio_of_decoders']),
                      f'{part["decoder_gflops"]:.0f} of {part["product_gflops"]:.0f}', f'{part["share_of_product"]:.0%}']
            if result['peak_gflops']:
                cells.append(f'{part["share_of_peak"]:.1%}')
        rows.append(cells)
    head = ['decode']
    for name in ('float32', 'bf16'):
        head += [f'encoder, {name}', 'decoder', 'decoder\'s ratio', 'GFLOP/s, of a plain product\'s', 'share']
        if result['peak_gflops']:
            head.append('both of the peak')
    return markdown(head, rows)


def faults_table(result):
    """What a decode costs in a process that gives freed memory back to the system, as is the default, and in one that
    keeps it, on a CPU."""
    rows = []
    for case in result['cases']:
        for name in ('float32', 'bf16'):
            part = case[name]
            if 'kept' not in part:
                continue
            cells = [f'{size_of(case)}, {name}']
            for side in ('textbook', 'fast'):
                as_it_comes, kept, faults = sum(part[side].values()), part['kept'][side], part['page_faults'][side]
                cells += [seconds(as_it_comes), f'{faults / 1e3:.0f}k', seconds(kept)]
            rows.append(cells + [times(part['ratio']), times(part['kept']['ratio'])])
    return markdown(['decode', 'textbook as it comes', 'its page faults', 'memory kept', 'here as it comes',
                     'its page faults', 'memory kept', 'ratio as it comes', 'memory kept'], rows) if rows else ''


def train_table(result):
    """A step of training as both would be run; on a CPU the textbook's process gives freed memory back, ours keeps it."""
    kept, rows = result.get('keep_freed_memory', {}), []
    for name in ('float32', 'bf16'):
        part, ours = result[name], kept.get(f'step {name}', {})
        if 'ratio' in ours:
            slow, fast, ratio = (kept[f'textbook-step {name}']['given_back']['seconds'], ours['kept']['seconds'],
                                 ours['ratio'])
            whole = ours.get('ratio_to_textbook_float32', ratio)
        else:
            slow, fast, ratio = part['textbook']['seconds'], part['fast']['seconds'], part['ratio']
            whole = part.get('ratio_to_textbook_float32', ratio)
        rows.append([name, seconds(slow), seconds(fast), times(ratio), times(whole), times(part['ratio']),
                     times(part.get('ratio_to_textbook_float32', part['ratio'])),
                     f'{part["gflops"] * part["fast"]["seconds"] / fast:.0f}' +
                     (f' ({part["share_of_peak"]:.1%} of the peak)' if 'share_of_peak' in part else '')])
    return markdown(['training step', 'textbook', 'here', 'ratio', 'to the float32 textbook', 'ratio in one process',
                     'to the float32 textbook', 'GFLOP/s here'], rows)


def data_table(result):
    rows = [[label, f'{result[key]["samples_per_second"]:.0f}', f'{result[key]["mb_per_image"]:.1f}',
             times(result[key].get('speedup', 1))] for key, label in
            (('float', 'straightforward, on floats'), ('in_memory', 'here, `cache: in_memory`'), ('bin', 'here, `cache: bin`'))]
    return markdown(['samples', 'a second and core', 'MB an image', 'ratio'], rows)


def memory_table(result):
    chosen = result['cases'] + [case for case in result['curve'] if case not in result['cases']]
    rows = [[size_of(case), *(megabytes(case[side]['beyond_output_mb']) for side in ('textbook', 'fast'))]
            for case in chosen]
    large = result['large']
    rows.append([f'{size_of(large)}, in tiles, bf16', megabytes(large['textbook_unfolded_features_mb']) + ' and more',
                 megabytes(large['fast']['beyond_output_mb'])])
    for name in ('float32', 'bf16'):
        if f'step {name}' not in result['train']:
            continue
        rows.append([f'training step, {name}', *(megabytes(result['train'][f'{what} {name}']['peak_mb'])
                                                 for what in ('textbook-step', 'step'))])
    return markdown(['peak memory (decoding: beyond the 8-bit output)', 'textbook', 'here'], rows)


def keeping_table(result):
    """What `keep_freed_memory` changes in training, on a CPU."""
    names = {'step': 'training step', 'textbook-step': 'training step, textbook'}
    rows = [[f'{names[what.split()[0]]}, {what.split()[1]}',
             *(f'{seconds(v["seconds"])}, {megabytes(v["peak_mb"])}' for v in (found['given_back'], found['kept'])),
             times(found['given_back']['seconds'] / found['kept']['seconds'])]
            for what, found in result.get('keep_freed_memory', {}).items()]
    return markdown(['freed memory', 'given back to the system', 'kept', 'ratio'], rows) if rows else ''


def precision_table(result):
    if 'not_measured' in result:
        return f'Precision: not measured ({result["not_measured"]}).'
    rows = [[f'{v["image"]}, x{v["scale"]}', f'{v["bf16_against_float32"]:.1f} dB', f'{v["float32_against_truth"]:.2f} dB',
             f'{v["bf16_against_truth"]:.2f} dB', f'{v["cost"]:.4f} dB'] for v in result['images']]
    return markdown([f'weights: {result["weights"]}', 'bf16 against float32', 'float32 against the truth',
                     'bf16 against the truth', 'cost'], rows)


def profile_table(profiles):
    rows = [[i + 1, *(f'{p[i]["operator"]}, {p[i]["share"]:.0%}' if i < len(p) else '' for p in profiles.values())]
            for i in range(5)]
    return markdown(['largest terms', *profiles], rows)


def report(results, full=True):
    """The tables of one device, in markdown; sections that were not measured say so."""
    info = results['machine']
    lines = [f'**{info["name"]}**, {info["threads"]} threads, torch {info["versions"]["torch"]}' if info['device'] == 'cpu'
             else f'**{info["name"]}**, torch {info["versions"]["torch"]}, CUDA {info["versions"]["cuda"]}']
    tables = {'decode': [decode_table, decoder_table, faults_table], 'train': [train_table, keeping_table], 'data': [data_table],
              'memory': [memory_table], 'precision': [precision_table]}
    for name, makers in tables.items():
        if name not in results:
            lines.append(f'{name}: not measured')
            continue
        result = results[name]['result']
        lines += [maker(result) for maker in (makers if full else makers[:1])]
        if full and 'profile' in result:
            profiles = {k: result['profile'][k] for k in ('float32', 'bf16')}
            lines.append(profile_table(profiles))
    return '\n\n'.join(line for line in lines if line) + '\n'


def figure(results, path):
    """Peak memory beyond the 8-bit output over the scale, of one image."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    curve = results['memory']['result']['curve']
    scales = [case['scale'] for case in curve]
    fig, axes = plt.subplots(figsize=(5, 3), layout='constrained')
    for side, label in (('textbook', 'textbook formula'), ('fast', 'here')):
        axes.plot(scales, [case[side]['beyond_output_mb'] for case in curve], marker='o', label=label)
    h, w = curve[0]['input']
    axes.set(xlabel=f'scale of a {w}x{h} image', ylabel='peak memory beyond\nthe 8-bit output, MB', ylim=(0, None))
    axes.set_xticks(scales)
    axes.legend()
    fig.savefig(path, dpi=120)
    plt.close(fig)


def write():
    """Bring README.md, docs/speed.md and docs/figures/memory.png up to date with the results."""
    found = []
    for path in sorted(glob.glob(os.path.join(RESULTS, '*.json'))):
        with open(path) as f:
            found.append(json.load(f))
    found = [results for results in found if 'machine' in results]  # other programs' results lie there too
    for name, full in (('README.md', False), (os.path.join('docs', 'speed.md'), True)):
        text = '\n'.join(report(results, full) for results in found)
        if not any(results['machine']['device'] == 'cuda' for results in found):
            text += '\nOn a CUDA GPU: not measured.\n'
        try:
            replace_between(os.path.join(ROOT, name), text, MARKERS)
        except UserError as error:
            print(error, file=sys.stderr)
    for results in found:
        if results['machine']['device'] == 'cpu' and 'memory' in results:
            figure(results, os.path.join(ROOT, 'docs', 'figures', 'memory.png'))


if __name__ == '__main__':
    write()
