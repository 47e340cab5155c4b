"""Random configs, overrides and files: they load, and then they can be built and validated, or they give one line."""
import copy
import datetime
import math
import random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import datasets
import models
from datasets.loader import make_loader
from engine.evaluation.evaluate import eval_psnr
from engine.optim import make_optimizer
from engine.schema import KINDS, keys_of
from tests.engine.configs import load_or_message, tiny, write
from utils import UserError


# What is accepted can be validated.

def random_test_config(rng, folder):
    """A test config of images of one size, with a wrapper's arguments as people combine them."""
    choices = {'inp_size': [None, 8, 12, 16], 'scale_min': [1, 2, 2.5], 'scale_max': [None, 2, 4],
               'augment': [False, True], 'sample_q': [None, 8, 64],
               'size_min': [16, 32], 'size_max': [None, 32, 48], 'gt_resize': [None, 24]}
    name = rng.choice(list(WRAPPERS))
    args = {key: rng.choice(choices[key]) for key in WRAPPERS[name]}
    folders = {'root_path': folder} if name == 'sr-implicit-downsampled' else \
        {'root_path_1': folder, 'root_path_2': folder}
    dataset = {'name': 'image-folder' if len(folders) == 1 else 'paired-image-folders', 'args': folders}
    return {'test_dataset': {'dataset': dataset, 'wrapper': {'name': name, 'args': args},
                             'batch_size': rng.choice([1, 1, 2, 3])},
            'eval_type': rng.choice([None, 'benchmark-2', 'div2k-2.5', 'div2k-4']),
            'eval_bsize': rng.choice([None, 99])}


WRAPPERS = {'sr-implicit-downsampled': ['inp_size', 'scale_min', 'scale_max', 'augment', 'sample_q'],
            'sr-implicit-paired': ['augment', 'sample_q'],
            'sr-implicit-uniform-varied': ['size_min', 'size_max', 'gt_resize', 'augment', 'sample_q']}


def test_accepted_configs_do_not_fail_at_the_first_validation(tmp_path):
    for i in range(2):
        Image.effect_noise((64, 64), 50 + i).convert('RGB').save(tmp_path / f'{i}.png')
    rng, accepted = random.Random(0), 0
    for _ in range(100):
        config, _ = load_or_message(write(tmp_path, random_test_config(rng, str(tmp_path))), kind='test')
        if config is None:
            continue
        accepted += 1
        data = config['test_dataset']
        wrapper = datasets.make(data['wrapper'], args={'dataset': datasets.make(data['dataset'])})
        loader = make_loader(wrapper, data['batch_size'], 0, train=False, num_workers=0)
        assert not math.isnan(eval_psnr(loader, models.make({'name': 'bicubic'}), None, config['eval_type'],
                                        config['eval_bsize']))
    assert 30 < accepted < 70, accepted


# Fuzzing.

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 3), st.floats(), st.text(max_size=8),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e-300, 2 ** 31, 10 ** 30, -1, '1e-4', '1e5', '', 'none',
                     'liif', 'mlp', 'sgd', 'rdn', 'image-folder', 'paired-image-folders', 'sr-implicit-paired',
                     'benchmark-2', '../..', '\0', 'a\nb', datetime.date(2020, 1, 1), b'bytes']))
NAMES = st.one_of(st.text(max_size=6), st.sampled_from(
    ['name', 'args', 'seed', 'resume', 'multi_step_lr', 'milestones', 'gamma', 'optimizer', 'scale', 'sample_q',
     'inp_size', 'encoder_spec', 'imnet_spec', 'epochs', 'precision', 'split_key', 'in_dim', 'batchsize', 'cache']))
JUNK = st.recursive(SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3),
                                                     st.dictionaries(NAMES, inner, max_size=3)), max_leaves=6)


def places(value, path=()):
    """The paths of everything inside a nested mapping or list."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def mutations(draw, config):
    """`config` with one to three random changes: a key deleted or added, a value replaced, by much or a little."""
    config = copy.deepcopy(config)
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        *path, key = draw(st.sampled_from(list(places(config)) or [('seed',)]))
        parent = config
        for step in path:
            parent = parent[step]
        action = draw(st.sampled_from(['delete', 'scalar', 'junk', 'add', 'known'] + ['mild'] * 3))
        if action == 'delete':
            parent.pop(key, None) if isinstance(parent, dict) else parent.pop(key)
        elif action == 'add' and isinstance(parent, dict):
            parent[draw(NAMES)] = draw(JUNK)
        elif action == 'known' and isinstance(config, dict):
            config[draw(st.sampled_from([*keys_of(KINDS['train']), *keys_of(KINDS['test'])]))] = draw(JUNK)
        elif action == 'mild' and isinstance(parent[key], (int, float)):
            parent[key] = draw(st.one_of(st.booleans(), st.integers(0, 9)))
        else:
            parent[key] = draw(JUNK if action == 'junk' else SCALARS)
    return config


@pytest.mark.parametrize('kind', ['train', 'test'])
def test_fuzzed_configs_load_or_give_one_line(folder, kind):
    outcomes = []

    @settings(derandomize=True, deadline=None, max_examples=200)
    @given(mutations(tiny(folder, kind)))
    @example(tiny(folder, kind))  # as it is: to be accepted
    def run(mutated):
        config, message = load_or_message(write(folder, mutated, 'fuzz.yaml'), kind=kind)
        outcomes.append(message is None)
        if config is not None:
            assert_buildable(config)

    run()
    assert 0 < sum(outcomes) < len(outcomes) - 50, sum(outcomes)  # neither everything nor nothing is accepted


def assert_buildable(config):
    """What passed the check can be made; a data set may be refused for what only its files can tell."""
    for section in ('train_dataset', 'val_dataset', 'test_dataset'):
        if config.get(section) is not None:
            try:
                images = datasets.make(config[section]['dataset'])
            except UserError:
                images = None
            datasets.make(config[section]['wrapper'], args={'dataset': images})
    if config.get('model') is not None:
        with torch.device('meta'):  # sizes alone, no memory
            model = models.make(config['model'])
            make_optimizer(model.parameters(), config['optimizer'])


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.one_of(st.text(max_size=30), st.builds(
    '{}={}'.format, st.lists(NAMES, min_size=1, max_size=4).map('.'.join), JUNK)), max_size=3))
def test_fuzzed_overrides_load_or_give_one_line(folder, overrides):
    load_or_message(write(folder, tiny(folder)), overrides)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.one_of(st.binary(max_size=60),
                 st.text(alphabet='abc:-[]{}&*!<>|"\'#%@,? \n\t0.1e', max_size=60).map(str.encode)))
def test_fuzzed_files_give_one_line(folder, content):
    assert load_or_message(write(folder, content, 'junk.yaml'))[1] is not None
