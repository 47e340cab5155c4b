"""The files of configs/: complete, as published, and each trains or measures; the schema and its page."""
import copy
import glob
import itertools
import json
import math
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
import models
from datasets.loader import make_loader, unpack
from engine.config import load_config, read_yaml
from engine.evaluation.evaluate import eval_psnr
from engine.optim import learning_rate
from engine.schema import KINDS, REGISTRIES, REQUIRED, generated, keys_of
from engine.training import loop
from engine.training.state import State
from tests.common import ROOT
from utils import parameters_of


FILES = sorted(os.path.relpath(path, os.path.join(ROOT, 'configs'))
               for path in glob.glob(os.path.join(ROOT, 'configs', '**', '*.yaml'), recursive=True)
               if os.path.basename(os.path.dirname(path)) != 'suites')
SUITES = sorted(f'suites/{name}' for name in os.listdir(os.path.join(ROOT, 'configs', 'suites')))
TRAIN = [name for name in FILES if not name.startswith('test/')]
TEST = [name for name in FILES if name.startswith('test/')]
DIV2K = [name for name in TRAIN if name.startswith('train-div2k')]
PHOTOS = 'configs/budget/photos.json'
CPU = torch.device('cpu')


def config_path(name):
    return os.path.join(ROOT, 'configs', name)


def kind_of(name):
    return 'test' if name in TEST else 'train'


# The files.

def test_every_experiment_of_the_paper_is_there():
    wanted = {f'train-div2k/train_{e}-{m}.yaml' for e in ('edsr-baseline', 'rdn')
              for m in ('liif', 'metasr', 'x2', 'x3', 'x4')}
    wanted |= {f'train-div2k/ablation/train_edsr-baseline-liif-{v}.yaml'
               for v in ('c', 'u', 'e', 'd', 'x2', 'x3', 'x4')}
    wanted |= {f'train-celebAHQ/train_celebAHQ-{s}_{m}.yaml'
               for s in ('32-256', '64-128') for m in ('liif', 'upsample')}
    wanted |= {f'test/test-{s}-{n}.yaml' for s in ('set5', 'set14', 'b100', 'urban100') for n in (2, 3, 4, 6, 8)}
    wanted |= {f'test/test-div2k-{n}.yaml' for n in (2, 3, 4, 6, 12, 18, 24, 30)}
    wanted |= {f'test/test-celebAHQ-{s}.yaml' for s in ('32-256', '64-128')} | {'train-your-images.yaml'}
    assert wanted <= set(FILES)


@pytest.mark.parametrize('name', FILES)
def test_file_is_valid_and_says_how_to_run_it(name):
    load_config(config_path(name), kind=kind_of(name), check_paths=False)
    with open(config_path(name)) as f:
        header = ''.join(itertools.takewhile(lambda line: line.startswith('#'), f))
    program = 'test.py' if name in TEST else 'train_liif.py'
    assert f'python {program} --config configs/{name}' in header
    assert 'Cost' in header and 'Expected' in header


@pytest.mark.parametrize('name', DIV2K)
def test_div2k_training_is_the_published_one(name):
    config = load_config(config_path(name), check_paths=False)
    train, val = config['train_dataset'], config['val_dataset']
    assert (train['batch_size'], val['batch_size']) == (16, 16)
    assert train['dataset']['args']['repeat'] == 20
    assert (val['dataset']['args']['first_k'], val['dataset']['args']['repeat']) == (10, 160)
    assert train['wrapper']['args']['inp_size'] == val['wrapper']['args']['inp_size'] == 48
    assert train['wrapper']['args']['augment'] is True and 'augment' not in val['wrapper']['args']
    assert config['optimizer'] == {'name': 'adam', 'args': {'lr': 1e-4}}
    assert config['multi_step_lr'] == {'milestones': [200, 400, 600, 800], 'gamma': 0.5}
    assert (config['epoch_max'], config['epoch_val'], config['epoch_save']) == (1000, 1, 100)
    assert config['data_norm'] == {key: {'sub': [0.5], 'div': [0.5]} for key in ('inp', 'gt')}
    fixed = re.search(r'(?:baseline|rdn)-x(\d)', name)
    if fixed:
        assert 'sample_q' not in train['wrapper']['args']
        assert config['model']['args']['encoder_spec']['args'] == {'scale': int(fixed.group(1))}
        assert all(f'/X{fixed.group(1)}' in data['dataset']['args']['root_path_1'] for data in (train, val))
    else:
        assert train['wrapper']['args']['sample_q'] == 2304
        assert config['model']['args']['encoder_spec']['args'] == {'no_upsampling': True}


@pytest.mark.parametrize('name', TEST)
def test_test_config_measures_what_its_name_says(name):
    config = load_config(config_path(name), kind='test', check_paths=False)
    assert config['eval_bsize'] == 30000 and config['test_dataset']['batch_size'] == 1
    data, scale = re.match(r'test/test-(\w+)-(.+)\.yaml', name).groups()
    args, wrapper = config['test_dataset']['dataset']['args'], config['test_dataset']['wrapper']
    if data == 'celebAHQ':
        assert config['eval_type'] is None and args['root_path_2'].endswith('/' + scale.split('-')[1])
        return
    assert config['eval_type'] == f'{"div2k" if data == "div2k" else "benchmark"}-{scale}'
    if int(scale) <= 4:
        assert args['root_path_1'].endswith(f'LR_bicubic/X{scale}') and wrapper['name'] == 'sr-implicit-paired'
    else:
        assert wrapper == {'name': 'sr-implicit-downsampled', 'args': {'scale_min': int(scale)}}


def test_photographs_of_the_budget_configs():
    with open(os.path.join(ROOT, PHOTOS)) as f:
        lists = json.load(f)
    parts = {key: set(names) for key, names in lists.items()}
    assert {key: len(names) for key, names in lists.items()} == {k: len(v) for k, v in parts.items()}  # none twice
    assert parts['valid-512'] | parts['valid-2048'] == parts['valid'] and not parts['valid-512'] & parts['valid-2048']
    assert not parts['sources'] & parts['valid'] and '302003.jpg' not in parts['sources']
    assert parts['train'] <= {os.path.splitext(name)[0] + '.png' for name in parts['sources']}
    for name in ('10min', '1h'):
        config = load_config(config_path(f'budget/{name}.yaml'), check_paths=False)
        for section, key in (('train_dataset', 'train'), ('val_dataset', 'valid')):
            args = config[section]['dataset']['args']
            assert (args['split_file'], args['split_key']) == (PHOTOS, key)
        count = len(parts['train']) * config['train_dataset']['dataset']['args']['repeat']
        with open(config_path(f'budget/{name}.yaml')) as f:
            assert f'# Cost: {count // config["train_dataset"]["batch_size"] * config["epoch_max"]:,} steps' in f.read()


SECTIONS = ('train_dataset', 'val_dataset', 'test_dataset')


def folders(config):
    """(key's path, folder or file) of everything below ./load that a config names."""
    for section in SECTIONS:
        args = config[section]['dataset']['args'] if config.get(section) else {}
        for key, value in args.items():
            if isinstance(value, str) and value.startswith('./load/'):
                yield f'{section}.dataset.args.{key}', value[len('./load/'):]


@pytest.fixture(scope='module')
def load(tmp_path_factory):
    """What load/ would hold, with three small smooth images in every folder that a config names: 96x96, less by the
    scale for LR, a quarter of the side for CelebA-HQ."""
    root = tmp_path_factory.mktemp('load')
    yy, xx = np.mgrid[:96, :96]
    pictures = {f'{i}.png': Image.fromarray(np.stack([128 + 100 * np.sin((i + 1) * yy / 9 + c) * np.cos(xx / (7 + i))
                                                      for c in range(3)], axis=-1).astype(np.uint8)) for i in range(3)}
    configs = [load_config(config_path(name), kind=kind_of(name), check_paths=False) for name in FILES]
    for place in {place for config in configs for _, place in folders(config)}:
        if place.endswith('split.json'):
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).write_text(json.dumps({key: list(pictures) for key in ('train', 'val', 'test')}))
            continue
        (root / place).mkdir(parents=True)
        scale, faces = re.search(r'/X(\d)$', place), re.search(r'celebAHQ/(\d+)$', place)
        side = 96 // int(scale.group(1)) if scale else int(faces.group(1)) // 4 if faces else 96
        for name, picture in pictures.items():
            picture.resize((side, side), Image.BICUBIC).save(root / place / name)
    return root


def small(name, load, **values):
    """The overrides that point a config of configs/ to the tiny images, its model as it is. values: what arguments of
    the wrappers and batch_size become, where they are given."""
    config = load_config(config_path(name), kind=kind_of(name), check_paths=False)
    overrides = [f'{key}={load / place}' for key, place in folders(config)]
    for section in SECTIONS:
        if config.get(section) is None:
            continue
        args = config[section]['wrapper']['args']
        overrides.append(f'{section}.dataset.args.cache=none')
        if config[section]['dataset']['args'].get('split_file') == PHOTOS:  # names photographs
            overrides += [f'{section}.dataset.args.{key}=null' for key in ('split_file', 'split_key')]
        overrides += [f'{section}.wrapper.args.{key}={args[key] // 4}' for key in ('size_min', 'size_max', 'gt_resize')
                      if key in args]
        overrides += [f'{section}.wrapper.args.{key}={value}' for key, value in values.items() if key in args]
        if 'batch_size' in values:
            overrides.append(f'{section}.batch_size={values["batch_size"]}')
    return overrides


@pytest.mark.parametrize('name', TRAIN)
def test_trains_two_steps_at_its_real_depth(name, load):
    config = load_config(config_path(name), small(name, load, inp_size=8, sample_q=32, batch_size=2))
    loader = loop.open_data(config, 'train_dataset', CPU, workers=0)
    torch.manual_seed(0)
    state = State(config, CPU, len(loader.batch_sampler))
    before = copy.deepcopy(state.model.state_dict())
    for step, batch in enumerate(itertools.islice(loader, 2)):
        rate = learning_rate(config, 1, step, state.steps)
        assert math.isfinite(loop.train_step(state.model, state, unpack(batch, CPU), rate)[0])
    moved = [key for key, value in state.model.state_dict().items() if not torch.equal(value, before[key])]
    assert {key for key, p in state.model.named_parameters() if p.requires_grad} == set(moved)
    batch = unpack(next(iter(loop.open_data(config, 'val_dataset', CPU, workers=0))), CPU)
    with torch.no_grad():
        assert math.isfinite(loop.batch_loss(state.model.eval(), config, batch))


# PSNR of bicubic on the tiny images, by the metric of the set.
BICUBIC = {'benchmark': {'2': 59.24, '3': 55.03, '4': 48.71, '6': 38.42, '8': 31.13},
           'div2k': {'2': 55.45, '3': 52.72, '4': 46.78, '6': 36.13, '12': 19.50, '18': 15.97, '24': 14.54,
                     '30': 14.76},
           'celebAHQ': {'64-128': 32.11, '32-256': 19.06}}


@pytest.mark.parametrize('name', TEST)
def test_test_config_runs(name, load):
    config = load_config(config_path(name), small(name, load), kind='test')
    images = datasets.make(config['test_dataset']['dataset'])
    wrapper = datasets.make(config['test_dataset']['wrapper'], args={'dataset': images})
    loader = make_loader(wrapper, 1, config['seed'], train=False, num_workers=0)
    psnr = eval_psnr(loader, models.make({'name': 'bicubic'}), config['data_norm'], config['eval_type'],
                     config['eval_bsize'])
    data, scale = re.match(r'test/test-(\w+?)-(.+)\.yaml', name).groups()
    assert psnr == pytest.approx(BICUBIC.get(data, BICUBIC['benchmark'])[scale], abs=0.05)


# The schema.

def test_documentation_and_json_schema_are_the_generated_ones():
    for path, text in generated().items():
        with open(path, encoding='utf-8') as f:
            assert f.read() == text, f'{path}: run python -m engine.schema --write'


def test_documentation_shows_every_group():
    with open(os.path.join(ROOT, 'docs', 'configs.md'), encoding='utf-8') as f:
        assert sorted(re.findall(r'<!-- schema: (\w+) -->', f.read())) == sorted([*KINDS, *REGISTRIES])


@pytest.mark.parametrize('role', REGISTRIES)
def test_every_argument_is_annotated_and_its_default_accepted(role):
    for name in REGISTRIES[role].names(role):
        thing = REGISTRIES[role].get(name)
        takes = {key for key, p in parameters_of(thing).items() if p.kind is not p.POSITIONAL_ONLY}
        keys = keys_of(thing)
        assert takes - {'dataset', 'params'} == set(keys), name
        for key, (kind, default, meaning) in keys.items():
            assert meaning and (default in (None, REQUIRED) or kind.accepts(default)), (name, key)


def test_every_registered_thing_of_ours_has_a_role():
    for registry in {id(registry): registry for registry in REGISTRIES.values()}.values():
        for name, thing in registry.entries.items():
            if thing.__module__.split('.')[0] in ('datasets', 'models', 'engine'):
                assert registry.roles[name] in REGISTRIES, name


@pytest.fixture(scope='module')
def validator():
    jsonschema = pytest.importorskip('jsonschema')
    with open(os.path.join(ROOT, 'configs', 'schema.json')) as f:
        schema = json.load(f)
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


@pytest.mark.parametrize('name', FILES + SUITES)
def test_file_names_the_json_schema_and_satisfies_it(name, validator):
    with open(config_path(name)) as f:
        first = f.readline()
    schema = re.fullmatch(r'# yaml-language-server: \$schema=(.*)\n', first).group(1)
    assert os.path.samefile(os.path.join(os.path.dirname(config_path(name)), schema), config_path('schema.json'))
    assert not list(validator.iter_errors(read_yaml(config_path(name))))


@pytest.mark.parametrize('change, path', [
    (lambda c: c.update(epoch_max='ten'), 'epoch_max'),
    (lambda c: c.update(seeed=1), ''),
    (lambda c: c['train_dataset'].pop('batch_size'), 'train_dataset'),
    (lambda c: c['model'].update(name='lif'), 'model.name'),
    (lambda c: c['model']['args']['encoder_spec']['args'].update(nfeats=3), 'model.args.encoder_spec.args'),
    (lambda c: c['train_dataset']['wrapper']['args'].update(scale_min=0.5), 'train_dataset.wrapper.args.scale_min'),
    (lambda c: c['optimizer'].pop('args'), 'optimizer'),
    (lambda c: c.update(eval_type='div2k-0'), 'eval_type'),
])
def test_json_schema_finds_mistakes(change, path, validator):
    config = read_yaml(config_path('train-div2k/train_edsr-baseline-liif.yaml'))
    change(config)
    found = [error for error in validator.iter_errors(config)]
    assert ['.'.join(map(str, error.absolute_path)) for error in innermost(found)] == [path]


@pytest.mark.parametrize('change, path', [
    (lambda s: s['tests'][0].update(crops=64), 'tests.0'),
    (lambda s: s['tests'][0].update(crop=63), 'tests.0.crop'),
    (lambda s: s['tests'][0]['degradations'].update(mine={'quality': 101}), 'tests.0.degradations.mine.quality'),
    (lambda s: s['tests'][0]['degradations'].update(mine={'qualty': 75}), 'tests.0.degradations.mine'),
    (lambda s: s['tests'][0].update(scales=[2, 'abc']), 'tests.0.scales.1'),
    (lambda s: s['tests'][0].update(config='a.yaml'), 'tests.0'),
    (lambda s: s['tests'][0].pop('metric'), 'tests.0'),
    (lambda s: s['tests'][0].pop('split_key'), 'tests.0'),
    (lambda s: s.update(suites=['div2k']), ''),
])
def test_json_schema_finds_mistakes_in_suites(change, path, validator):
    suite = json.loads(json.dumps(read_yaml(config_path('suites/real.yaml'))))  # without shared parts
    change(suite)
    found = [error for error in validator.iter_errors(suite)]
    assert {'.'.join(map(str, error.absolute_path)) for error in innermost(found)} == {path}, found


def innermost(errors):
    """The errors of which the given ones consist."""
    return [inner for error in errors for inner in
            (innermost([e for e in error.context if e.schema != {'type': 'null'}]) if error.context else [error])]
