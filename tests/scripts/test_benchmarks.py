"""The benchmark programs run, at tiny sizes, and the pages show the committed results."""
import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import models
import utils
from benchmarks import accuracy, common, degraded, fine_tuning, lr_kernels, roofline, speed, table
from engine.config import load_config
from models import decode, lattice, textbook
from tests.common import ROOT
from tests.image_files import folder
from tests.programs import program


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [n for v in value for n in numbers(v)]
    return [value] if isinstance(value, (int, float)) else []


def results(name):
    return common.read(common.result_path(name))['rows']


def read(*path):
    with open(os.path.join(ROOT, *path), encoding='utf-8') as f:
        return f.read()


@pytest.mark.skipif(shutil.which('bash') is None, reason='needs bash')
def test_everything_for_a_machine_with_a_gpu(tmp_path):
    """benchmarks/gpu.sh at tiny sizes on the CPU: tests, measurements, two ranks, a training; then nothing again."""
    for part, names in (('train', 'abcd'), ('valid', 'e')):
        folder(tmp_path / part, [f'{name}.png' for name in names], size=(60, 70))
    output = tmp_path / 'out'
    command = ['bash', os.path.join(ROOT, 'benchmarks', 'gpu.sh'), str(tmp_path), '--output', str(output), '--device',
               'cpu', '--quick']
    environment = {**os.environ, 'PYTHON': sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert 'loss of one process' in done.stdout and 'passed' in (output / 'tests.log').read_text()
    assert (output / 'save' / 'gpu-20min' / 'epoch-last.pth').exists()
    assert_quick_results(json.loads((output / 'speed.json').read_text()), done.stdout)
    rows = json.loads((output / 'precision.json').read_text())['rows']
    assert table.accuracy_table(rows) in done.stdout and all(row['tf32']['distance'] > row['bf16']['distance'] > 40
                                                             for row in rows)
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert again.returncode == 0 and again.stdout.count('done before') == 5
    wrong = subprocess.run([*command[:2], str(output)], capture_output=True, text=True, env=environment)
    assert wrong.returncode == 2 and wrong.stderr.startswith('error: ') and wrong.stderr.count('\n') == 1


def assert_quick_results(results, printed):
    for name in table.TABLES:
        assert results[name]['quick'] and all(map(math.isfinite, numbers(results[name]))), name
    for case in results['decode']['result']['cases']:
        assert case['float32']['ratio'] > 0 and case['bf16']['share_of_product'] > 0
    assert table.report(results) in printed and 'nan' not in table.report(results)
    blocks = [block.strip().split('\n') for block in table.report(results).split('\n\n') if block.startswith('|')]
    assert len(blocks) == sum(map(len, table.TABLES.values()))
    assert all(len(lines) > 2 and len({line.count('|') for line in lines}) == 1 for lines in blocks)
    memory = results.pop('memory')
    assert 'peak memory beyond' not in table.report(results) and memory['result']['cases']


def test_a_measurement_in_its_own_process():
    found = speed.measure_apart('product', 'float32', True, torch.device('cpu'), quick=True, calls=2)
    assert len(found['seconds']) == 1 and found['seconds'][0] > 0 and found['flops'] > 1e6


class Operations(TorchDispatchMode):
    """Counts the operations of products within `with`: two per multiply-add."""
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out, name = function(*args, **(kwargs or {})), function.name().removeprefix('aten::').split('.')[0]
        if name in accuracy.FACTORS:
            a, b = (args[i] for i in accuracy.FACTORS[name])
            self.count += 2 * out.numel() * (b[0].numel() if name == 'convolution' else a.shape[-1])
        return out


@pytest.mark.parametrize('what', ['encoder', 'exact', 'textbook', 'lattice'])
def test_the_roofline_counts_the_operations_that_are_computed(what, monkeypatch):
    monkeypatch.setattr('models.decode.fuses_bias', lambda dtype: False)  # oneDNN's product is not counted
    config = load_config(os.path.join(ROOT, 'configs/train-div2k/train_edsr-baseline-liif.yaml'), check_paths=False)
    model, n, scale = models.make(config['model']).eval(), 4, 3
    y, cell = utils.axis_coord(n * scale), torch.full((2,), 2 / (n * scale))
    with torch.no_grad():
        feat = model.encoder(torch.zeros(1, 3, n, n))
        with Operations() as found:
            if what == 'encoder':
                model.encoder(torch.zeros(1, 3, n, n))
            elif what == 'exact':
                decode.on_grid(model, model.encode_features(feat), y, y, cell)
            elif what == 'lattice':
                lattice.make_lattice(model, model.encode_features(feat), cell)
            else:
                coord = utils.make_coord((n * scale,) * 2)[None]
                textbook.query(model, feat, coord, cell.expand_as(coord))
    if what == 'encoder':
        expected = n ** 2 * roofline.encode_cost('float32')[0]
    elif what == 'lattice':
        k, one = roofline.NODES, roofline.evaluation_cost('float32')
        expected = n ** 2 * (k ** 2 * (one[0] + roofline.SPLINES) + roofline.table_cost('float32')[0])
        expected += 2 * k * (k + 4) * k  # the splines' basis, once
        assert roofline.TAPS == 2 * lattice.TAPS
    else:
        expected = (n * scale) ** 2 * roofline.decode_cost(what, scale, 'float32')[0]
    assert found.count == round(expected)


def test_the_roofline_has_the_chunks_of_the_decoder(monkeypatch):
    gpu = roofline.GPUS[0]
    monkeypatch.setattr(decode, 'chunk_bytes', lambda device: gpu.l2 // 2)
    for precision, dtype in (('bf16', torch.bfloat16), ('float32', torch.float32)):
        rows = decode.rows_per_chunk(torch.empty(0, roofline.WIDTH, dtype=dtype))
        assert roofline.chunk(gpu, precision) == rows // roofline.CORNERS


def test_a_bound_is_the_slower_of_products_and_memory():
    gpu = roofline.GPU('x', {'bf16': 100.0}, 10.0, 1.0)
    assert roofline.bound(gpu, (50, 2, 8), 'bf16') == (2e-6, 'products', 16)
    assert roofline.bound(gpu, (50, 20, 0), 'bf16') == (0.5e-6, 'memory', 0)


def test_tf32_keeps_ten_bits_of_factors_alone():
    exact = torch.tensor([1 + 2 ** -10, -3.5, 2 ** 100, 0.0])
    assert torch.equal(accuracy.rounded(exact), exact)
    half = torch.tensor([1 + 2 ** -11, -1 - 2 ** -11, 1 + 2 ** -11 - 2 ** -20])
    assert accuracy.rounded(half).tolist() == [1 + 2 ** -10, -1 - 2 ** -10, 1]  # ties away from zero
    torch.manual_seed(0)
    x, w, b = torch.randn(1, 5, 9, 9), torch.randn(4, 5, 3, 3), torch.randn(4)
    a, c = torch.randn(7, 6), torch.randn(6, 4)
    with accuracy.TF32():
        found = torch.conv2d(x, w, b), torch.addmm(b, a, c), torch.nn.functional.linear(a, c.t(), b), a.mm(c), a + 0
    short = [accuracy.rounded(t) for t in (x, w, a, c)]
    expected = torch.conv2d(short[0], short[1], b), torch.addmm(b, short[2], short[3]), \
        torch.addmm(b, short[2], short[3]), short[2].mm(short[3]), a
    assert all(torch.equal(f, t) for f, t in zip(found, expected))


def test_your_images_are_trained_at_the_rate_that_did_not_get_worse():
    path = os.path.join(ROOT, 'configs', 'train-your-images.yaml')
    rate = load_config(path, check_paths=False)['optimizer']['args']['lr']
    found = {float(row['rate']): row['psnr'] for row in results('fine_tuning')}
    gains = {rate: psnr[max(psnr, key=int)] - psnr['0'] for rate, psnr in found.items()}
    assert len(gains) >= 3 and gains[rate] == max(gains.values()) and gains[rate] > 0


def test_fine_tuning_starts_from_weights_that_have_not_seen_the_photographs(tmp_path):
    def checkpoint(name, **args):
        data = {'name': 'image-folder', 'args': {'root_path': './load/photos/train', **args}}
        torch.save({'model': {'name': 'liif', 'args': {}, 'sd': {}}, 'config': {'train_dataset': {'dataset': data}}},
                   tmp_path / name)
        return str(tmp_path / name)

    fine_tuning.check_start(checkpoint('some.pth', split_file='configs/budget/photos.json'))
    with pytest.raises(utils.UserError, match='--init: .*has seen all photographs'):
        fine_tuning.check_start(checkpoint('all.pth'))
    assert fine_tuning.STEPS == 25  # as in the committed table, which has 125 after 5 epochs


def test_pages_show_the_committed_results():
    written = table.pages()
    assert len(written) == 4 and all(text in read(page) and len(text) > 100 for page, _, text in written)
    for name, page, module in (('lr_kernels', 'lr-kernels', lr_kernels), ('fine_tuning', 'budget', fine_tuning),
                               ('degraded', 'photos', degraded)):
        assert module.table(results(name)) in read('docs', f'{page}.md')
    rows = list(roofline.rows())
    assert roofline.tables(rows) in read('docs', 'scaling.md')
    assert results('roofline') == common.rounded(rows)


def test_by_turns_leaves_the_first_round_out():
    calls, clock = [], iter(range(100))
    times = common.by_turns({'a': lambda: calls.append('a'), 'b': lambda: calls.append('b')}, 2, lambda: next(clock))
    assert calls == list('ababab') and times == {'a': [1, 1], 'b': [1, 1]}
    assert common.ratio([2, 6, 4], [1, 2, 4]) == 2


def test_an_unknown_section_is_reported_in_one_line():
    done = program('benchmarks/run.py', '--only', 'decoding')
    assert done.returncode == 2 and done.stderr.startswith('error: --only') and done.stderr.count('\n') == 1
