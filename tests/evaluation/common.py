"""What the tests of this folder share: checkpoints, suites, results."""
import json

import torch

import models
from engine.checkpoint import PUBLISHED_NORM, save_checkpoint
from engine.evaluation.runs import run_suite
from engine.evaluation.suite import read_suite
from tests.common import fill_model, small_spec


CPU = torch.device('cpu')


def save_model(path, spec=None, **more):
    spec = spec or small_spec()
    model = fill_model(models.make(spec))
    save_checkpoint(path, {'model': {**spec, 'sd': model.state_dict()}, 'epoch': 2, 'data_norm': PUBLISHED_NORM,
                           **more})
    return str(path)


def write_suite(path, *tests):
    path.write_text(json.dumps({'tests': list(tests)}))  # JSON is YAML
    return str(path)


def set5(scales):
    return {'data': 'Set5', 'config': 'configs/test/test-set5-{scale}.yaml', 'scales': scales}


def made_up(label, scale, psnr, data='DIV2K', images=100, date='2024-01-01', **options):
    return {'format': 'liif-run-1',
            'model': {'label': label, 'spec': small_spec(), 'parameters': 10, 'sha256': '0' * 64, 'epoch': None},
            'data': data, 'images': images, 'scale': scale, 'config': {'eval_type': 'div2k-2'}, 'date': date,
            'pooled_over': 1, 'options': {'precision': 'float32', 'self_ensemble': False, 'ema': False, **options},
            'psnr': psnr, 'device': 'cpu', 'versions': {'torch': '2'}, 'per_image': []}


def one_case(path, test, scales=None, data=None):
    """The only case of a suite with one test."""
    case, = read_suite(write_suite(path, test), scales, data)
    return case


def run_case(case, model, output, *options):
    """The result of a model in a case."""
    run, = run_suite([case], [model], CPU, str(output), *options).runs
    return run


def cells_of(markdown):
    """The cells of the rows of tables, heads first."""
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in markdown.splitlines() if line.startswith('|')]
    return [row for row in rows if set(''.join(row)) != {'-'}]
