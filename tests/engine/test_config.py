"""Reading configs: what is accepted comes out complete; a mistake gives one clear line; nothing else ever does."""
import copy
import datetime
import math
import random
import re
from typing import Annotated

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import datasets
import models
from datasets.loader import make_loader
from engine.config import load_config
from engine.evaluation.evaluate import eval_psnr
from engine.optim import learning_rate, make_optimizer
from engine.schema import KINDS, keys_of
from utils import Integer, Number, UserError


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('config')
    (path / 'images').mkdir()
    (path / 'split.json').write_text('{"train": ["0.png"]}')
    Image.new('RGB', (16, 16)).save(path / 'images/0.png')
    return path


def data(folder):
    return {'dataset': {'name': 'image-folder', 'args': {'root_path': str(folder / 'images'), 'repeat': 2}},
            'wrapper': {'name': 'sr-implicit-downsampled', 'args': {'inp_size': 4, 'scale_max': 4, 'sample_q': 16}},
            'batch_size': 2}


def tiny(folder, kind='train'):
    norm = {'inp': {'sub': [0.5], 'div': [0.5]}, 'gt': {'sub': [0.5], 'div': [0.5, 0.5, 0.5]}}
    if kind == 'test':
        test = data(folder)
        test['wrapper']['args'] = {'scale_min': 2.5}
        return {'test_dataset': {**test, 'batch_size': 1}, 'data_norm': norm, 'eval_type': 'benchmark-2.5',
                'eval_bsize': 100}
    return {'train_dataset': data(folder), 'val_dataset': data(folder), 'data_norm': norm,
            'model': {'name': 'liif', 'args': {
                'encoder_spec': {'name': 'edsr-baseline',
                                 'args': {'n_resblocks': 1, 'n_feats': 4, 'no_upsampling': True}},
                'imnet_spec': {'name': 'mlp', 'args': {'out_dim': 3, 'hidden_list': [8]}}}},
            'optimizer': {'name': 'adam', 'args': {'lr': 1e-4}},
            'epoch_max': 2, 'lr_scheduler': {'name': 'cosine', 'args': {'warmup_epochs': 0.5}}, 'ema': 0.999}


def write(folder, config, name='config.yaml'):
    path = folder / name
    if isinstance(config, bytes):
        path.write_bytes(config)
    else:
        path.write_text(config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False))
    return str(path)


def load_or_message(path, overrides=(), kind='train'):
    """(config, None), or (None, the one line a user reads); anything but a UserError passes through."""
    try:
        return load_config(path, overrides, kind), None
    except UserError as error:
        message = str(error)
        assert message == ' '.join(message.splitlines()) and message.isprintable(), repr(message)
        assert len(message) < 1500
        return None, message


def test_defaults_are_filled_in(folder):
    config = load_config(write(folder, tiny(folder)))
    assert list(config) == list(keys_of(KINDS['train']))
    assert (config['seed'], config['precision'], config['epoch_val'], config['resume']) == (0, 'float32', 1, None)
    assert config['lr_scheduler'] == {'name': 'cosine', 'args': {'epochs': None, 'min_lr': 0, 'warmup_epochs': 0.5}}
    assert config['optimizer'] == {'name': 'adam', 'args': {'lr': 1e-4}}  # as the checkpoint will hold it
    assert config['model'] == tiny(folder)['model']
    optional = ('data_norm', 'val_dataset', 'lr_scheduler')
    bare = {key: value for key, value in tiny(folder).items() if key not in optional}
    config = load_config(write(folder, bare))
    assert (config['data_norm'], config['val_dataset'], config['lr_scheduler']) == (None, None, None)
    assert load_config(write(folder, tiny(folder, 'test')), kind='test')['eval_type'] == 'benchmark-2.5'
    assert load_config(write(folder, {**tiny(folder, 'test'), 'eval_type': 'none'}), kind='test')['eval_type'] is None


def test_nothing_is_shared(folder):
    path = write(folder, tiny(folder))
    one, two = load_config(path), load_config(path)
    assert one == two
    one['model']['args']['encoder_spec']['args']['n_feats'] = 1000
    one['train_dataset']['wrapper']['args']['inp_size'] = 1000
    assert load_config(path) == two
    text = yaml.safe_dump({**tiny(folder), 'val_dataset': None}, sort_keys=False).replace('val_dataset: null', '')
    text = text.replace('train_dataset:', 'train_dataset: &data', 1) + 'val_dataset: *data\n'
    config = load_config(write(folder, text))
    assert config['val_dataset'] == config['train_dataset']
    config['train_dataset']['dataset']['args']['repeat'] = 7
    assert config['val_dataset']['dataset']['args']['repeat'] == 2


def test_numbers_are_read_as_people_mean_them(folder):
    text = yaml.safe_dump(tiny(folder)).replace('lr: 0.0001', 'lr: 1e-4').replace('epoch_max: 2', 'epoch_max: 1e3')
    config = load_config(write(folder, text), ['ema=.5', 'grad_clip=5.E-1', 'save_minutes=1.5e+1', 'init=e3'])
    assert config['optimizer']['args']['lr'] == 1e-4 and config['epoch_max'] == 1000
    assert (config['ema'], config['grad_clip'], config['save_minutes'], config['init']) == (0.5, 0.5, 15, 'e3')
    assert type(load_config(write(folder, text), ['seed=1E2'])['seed']) is int


def test_merges_within_reason(folder):
    text = yaml.safe_dump({**tiny(folder), 'val_dataset': None}, sort_keys=False).replace('val_dataset: null', '')
    text = text.replace('train_dataset:', 'train_dataset: &data', 1) + 'val_dataset:\n  <<: *data\n  batch_size: 7\n'
    config = load_config(write(folder, text))
    assert config['val_dataset'] == {**config['train_dataset'], 'batch_size': 7}


def test_schedule_as_long_as_its_warm_up(folder):
    config = load_config(write(folder, tiny(folder)), ['epoch_max=1', 'lr_scheduler.args.warmup_epochs=1'])
    assert [learning_rate(config, 1, step, 4) for step in range(4)] == pytest.approx([2.5e-5, 5e-5, 7.5e-5, 1e-4])


def test_overrides(folder):
    path = write(folder, tiny(folder))
    config = load_config(path, ['optimizer.args.lr=2e-4', 'seed=3', 'val_dataset=null', 'eval_type=div2k-4',
                                'model.args.imnet_spec.args.hidden_list=[4, 5]', 'optimizer.args.betas=[0.8, 99e-2]',
                                'data_norm.inp.sub=[0.1, 0.2, 0.3]', 'optimizer.args.lr=3e-4', 'save_minutes=1e1'])
    assert config['optimizer'] == {'name': 'adam', 'args': {'lr': 3e-4, 'betas': [0.8, 0.99]}}
    assert (config['seed'], config['val_dataset'], config['eval_type']) == (3, None, 'div2k-4')
    assert config['model']['args']['imnet_spec']['args']['hidden_list'] == [4, 5]
    assert config['data_norm']['inp']['sub'] == [0.1, 0.2, 0.3] and config['save_minutes'] == 10.0
    assert load_config(path, ['lr_scheduler=', 'multi_step_lr.milestones=[1]'])['multi_step_lr'] == \
        {'milestones': [1], 'gamma': 0.1}
    for text, words in {
        'optimizer.args.lr': ['optimizer.args.lr', 'KEY=VALUE'],
        '=3': ['=3', 'KEY=VALUE'], 'a..b=3': ['a..b=3'],
        'optimzer.args.lr=1': ['--set', 'optimzer', 'did you mean optimizer?'],
        'optimizer.args.lr=fast': ['with --set: optimizer.args.lr: ', "'fast'"],
        'seed.x.y=1': ['seed: found', "{'x': {'y': 1}}"], 'epoch_max.x=1': ['epoch_max', '2', 'mapping'],
        'seed=[': ['--set seed', 'YAML'], 'seed=1\n2': ['seed', '1 2'],
        '.'.join(['a'] * 5000) + '=1': ['KEY=VALUE'], 'a=' + '[' * 5000: ['nested too deeply'],
    }.items():
        config, message = load_or_message(path, [text])
        assert config is None and all(word in message for word in words), (text, message)


def test_resume_needs_no_model(folder):
    path = write(folder, {key: value for key, value in tiny(folder).items() if key not in ('model', 'optimizer')})
    assert 'model: found nothing' in load_or_message(path)[1]
    checkpoint = write(folder, b'', 'epoch-last.pth')
    config = load_config(path, [f'resume={checkpoint}'])
    assert config['model'] is None and config['optimizer'] is None and config['resume'] == checkpoint
    assert "resume: found 'gone.pth', wanted a file that exists, since the config has no model" in \
        load_or_message(path, ['resume=gone.pth'])[1]
    assert load_config(write(folder, tiny(folder)), ['resume=gone.pth'])['resume'] == 'gone.pth'  # to begin anew


MISTAKES = [  # values of --set; what the message has to contain: key and value, what was wanted, what to do
    (['epoch_max=0'], ['epoch_max: found 0', 'wanted an integer from 1']),
    (['epoch_max=ten'], ["epoch_max: found 'ten'"]),
    (['epoch_max=true'], ['epoch_max: found True']),
    (['epoch_max=2.5'], ['epoch_max: found 2.5']),
    (['epoch_max="2"'], ["epoch_max: found '2'", 'remove the quotes']),
    (['epoch_max=.inf'], ['epoch_max: found inf']),
    (['train_dataset.batch_size=0'], ['train_dataset.batch_size: found 0']),
    (['train_dataset.batch_size=-3'], ['train_dataset.batch_size: found -3']),
    (['train_dataset.batchsize=4'], ['train_dataset.batchsize: found 4', 'did you mean batch_size?']),
    (['train_dataset=null'],
     ['train_dataset: found nothing', 'wanted a mapping with dataset, wrapper, batch_size; add it']),
    (['train_dataset=[1]'], ['train_dataset: found [1]', 'wanted a mapping']),
    (['val_dataset.wrapper=null'], ['val_dataset.wrapper: found nothing']),
    (['val_dataset.wrapper=5'], ['val_dataset.wrapper: found 5', 'wanted a mapping with name, args']),
    (['val_dataset.wrapper.arg=5'], ['val_dataset.wrapper.arg: found 5', 'did you mean args?']),
    (['val_dataset.wrapper.args=5'], ['val_dataset.wrapper.args: found 5', 'wanted a mapping']),
    (['val_dataset.wrapper.name=sr-implicit-downsample'],
     ["val_dataset.wrapper.name: found 'sr-implicit-downsample'", 'sr-implicit-paired',
      'did you mean sr-implicit-downsampled?']),
    (['val_dataset.wrapper.name=image-folder'],
     ["val_dataset.wrapper.name: found 'image-folder'", 'sr-implicit-paired']),
    (['val_dataset.dataset.name=sr-implicit-paired'],
     ['val_dataset.dataset.name: ', 'known dataset: image-folder, paired-image-folders']),
    (['val_dataset.dataset.name=paired-image-folders'],
     ['val_dataset.dataset.args.root_path: ', 'an unknown name', 'root_path_1']),
    (['val_dataset.wrapper.name=sr-implicit-paired', 'val_dataset.wrapper.args={}'],
     ["val_dataset.dataset.name: found 'image-folder'", 'wanted paired-image-folders']),
    (['train_dataset.dataset.args.root_path=./nowhere'],
     ["train_dataset.dataset.args.root_path: found './nowhere'", 'wanted a folder that exists', '--set']),
    (['train_dataset.dataset.args.root_path=7'], ['train_dataset.dataset.args.root_path: found 7']),
    (['train_dataset.dataset.args.split_file=no.json', 'train_dataset.dataset.args.split_key=x'],
     ["train_dataset.dataset.args.split_file: found 'no.json'"]),
    (['train_dataset.dataset.args.split_key=train'], ['train_dataset.dataset.args.split_file: found nothing']),
    (['train_dataset.dataset.args.cache=ram'],
     ["train_dataset.dataset.args.cache: found 'ram'", 'one of none, bin, in_memory']),
    (['train_dataset.dataset.args.repeat=0'], ['train_dataset.dataset.args.repeat: found 0']),
    (['train_dataset.wrapper.args.scale_min=0.5'],
     ['train_dataset.wrapper.args.scale_min: found 0.5', 'wanted a number >= 1']),
    (['train_dataset.wrapper.args.scale_min=5'], ['train_dataset.wrapper.args.scale_max: found 4', 'scale_min']),
    (['train_dataset.wrapper.args.scale_max=.nan'], ['train_dataset.wrapper.args.scale_max: found nan']),
    (['train_dataset.wrapper.args.sample_q=17'], ['train_dataset.wrapper.args.sample_q: found 17', 'at most 16']),
    (['train_dataset.wrapper.args.sample_q=null'],
     ['train_dataset.wrapper.args.sample_q: found nothing', 'batch_size: 1']),
    (['train_dataset.wrapper.args.augment=1'], ['train_dataset.wrapper.args.augment: found 1', 'true or false']),
    (['train_dataset.wrapper.args.inpsize=8'],
     ['train_dataset.wrapper.args.inpsize: found 8', 'did you mean inp_size?']),
    (['data_norm.gt.div=[0]'], ['data_norm.gt.div: found [0]', 'other than 0']),
    (['data_norm.gt.sub=[1, 2]'], ['data_norm.gt.sub: found [1, 2]', 'one or three']),
    (['data_norm.gt=null'], ['data_norm.gt: found nothing']),
    (['model.name=lif'], ["model.name: found 'lif'", 'known model: liif, metasr', 'did you mean liif?']),
    (['model={name: bicubic}'], ["model.name: found 'bicubic'", 'known model: liif, metasr']),
    (['model.name=mlp'], ["model.name: found 'mlp'", 'known model: liif, metasr']),
    (['model.args.encoder_spec=null'], ['model.args.encoder_spec: found nothing']),
    (['model.args.encoder_spec.name=edsr_baseline'],
     ["model.args.encoder_spec.name: found 'edsr_baseline'", 'edsr-baseline?']),
    (['model.args.encoder_spec.args.nfeats=8'],
     ['model.args.encoder_spec.args.nfeats: found 8', 'did you mean n_feats?']),
    (['model.args.encoder_spec.args.scale=5'],
     ['model.args.encoder_spec.args.scale: found 5', 'one of 1, 2, 3, 4, 8']),
    (['model.args.encoder_spec={name: rdn, args: {RDNconfig: C}}'],
     ["model.args.encoder_spec.args.RDNconfig: found 'C'", 'one of A, B']),
    (['model.args.encoder_spec={name: rcan, args: {n_feats: 8}}'],
     ['model.args.encoder_spec.args.reduction: found 16', 'at most n_feats, 8']),
    (['model.args.encoder_spec.args={}'],
     ['model.args.encoder_spec.args.no_upsampling: found nothing', 'wanted true']),
    (['model.args.imnet_spec=null'], ['model.args.imnet_spec: found nothing', 'a decoder', 'mlp']),
    (['model.args.imnet_spec.args.out_dim=4'], ['model.args.imnet_spec.args.out_dim: found 4', 'wanted 3']),
    (['model.args.imnet_spec.args.hidden_list=[8, x]'], ["model.args.imnet_spec.args.hidden_list: found [8, 'x']"]),
    (['model.args.imnet_spec.args={out_dim: 3}'], ['model.args.imnet_spec.args.hidden_list: found nothing']),
    (['optimizer.name=adan'],
     ["optimizer.name: found 'adan'", 'known optimizer: adam, muon, sgd', 'did you mean adam?']),
    (['optimizer.args=null'], ['optimizer.args.lr: found nothing']),
    (['optimizer.args.lr="1e-4"'], ["optimizer.args.lr: found '1e-4'", 'remove the quotes']),
    (['optimizer.args.lr="2.5e-4"'], ["optimizer.args.lr: found '2.5e-4'", 'remove the quotes']),
    (['optimizer.args.lr=-1.0'], ['optimizer.args.lr: found -1.0', 'wanted a number >= 0']),
    (['optimizer.args.momentum=0.9'], ['optimizer.args.momentum: found 0.9', 'an argument of adam: lr, betas']),
    (['optimizer.args.betas=[0.9, 1]'], ['optimizer.args.betas: found [0.9, 1]']),
    (['optimizer={name: sgd, args: {lr: 0.1, nesterov: true}}'], ['optimizer.args.nesterov: found true', 'momentum']),
    (['epoch_max="1e3"'], ["epoch_max: found '1e3'", 'remove the quotes']),
    (['multi_step_lr.milestones=[1]'], ["lr_scheduler: found 'cosine'", 'multi_step_lr', 'remove one']),
    (['lr_scheduler=null', 'multi_step_lr.milestones=[0.5]'], ['multi_step_lr.milestones: found [0.5]', 'integers']),
    (['lr_scheduler=null', 'multi_step_lr.gamma=0.5'], ['multi_step_lr.milestones: found nothing']),
    (['lr_scheduler.name=step'],
     ["lr_scheduler.name: found 'step'", 'known lr_scheduler: cosine, multi-step, trapezoid']),
    (['ema=1'], ['ema: found 1', '> 0 and < 1']),
    (['grad_clip=0'], ['grad_clip: found 0']),
    (['save_minutes=-1'], ['save_minutes: found -1']),
    (['precision=half'], ["precision: found 'half'", 'one of float32, tf32, bf16, fp16']),
    (['precision=off'], ['precision: found False']),
    (['on_bad_image=ignore'], ["on_bad_image: found 'ignore'", 'one of stop, skip']),
    (['seed=-1'], ['seed: found -1']),
    (['seed=99999999999999999999'], ['seed: found 99999999999999999999']),
    (['eval_type=div2k'], ["eval_type: found 'div2k'", 'div2k-N']),
    (['eval_type=benchmark-0'], ["eval_type: found 'benchmark-0'"]),
    (['eval_bsize=0'], ['eval_bsize: found 0']),
    (['epoch_val=0'], ['epoch_val: found 0']),
    (['epoch_save=x'], ["epoch_save: found 'x'"]),
    (['seed=2020-01-01'], ['seed: found 2020-01-01 (a date)', 'quotes']),
    (['seeed=1'], ['seeed: found 1', 'did you mean seed?']),
    (['num_workers=4'], ['num_workers: found 4', 'remove it']),
    (['resume=5'], ['resume: found 5', 'the path of a checkpoint']),
    (['lr_scheduler.args.warmup_epochs=3'], ['lr_scheduler.args.warmup_epochs: found 3', 'at most the 2 epochs']),
    (['epoch_max=1e3.5'], ["epoch_max: found '1e3.5'"]),
    (['batch_size=3'], ['batch_size: found 3', 'did you mean train_dataset.batch_size?']),
    (['lr=1e-4'], ['lr: found 0.0001', 'did you mean optimizer.args.lr?']),
    (['model.args.n_feats=8'], ['model.args.n_feats: found 8', 'did you mean model.args.encoder_spec.args.n_feats?']),
    (['init=3'], ['init: found 3', 'the path of a checkpoint']),
    (['eval_type=div2k-4'], ["eval_type: found 'div2k-4'", 'val_dataset.wrapper.args.sample_q']),
    (['eval_type=div2k-4', 'val_dataset.wrapper.args={inp_size: 10, scale_min: 2}'],
     ["eval_type: found 'div2k-4'", '20x20 pixels', 'leaves out 10']),
    (['train_dataset.wrapper.args.inp_size=null'],
     ['train_dataset.wrapper.args.inp_size: found nothing', 'samples between 1 and 4', 'set batch_size: 1']),
    (['train_dataset.wrapper.args.small_images=crop'],
     ["train_dataset.wrapper.args.small_images: found 'crop'", 'stop, fit']),
    (['model.args.local_ensemble="true"'], ["model.args.local_ensemble: found 'true'", 'remove the quotes']),
    (['optimizer={name: muon, args: {lr: 0.1, adam_betas: [1, 1]}}'], ['optimizer.args.adam_betas: found [1, 1]']),
    (['lr_scheduler={name: trapezoid}'], ['lr_scheduler.args.decay_epochs: found nothing']),
    (['lr_scheduler={name: trapezoid, args: {decay_epochs: 1, warmup_epochs: 3}}'],
     ['lr_scheduler.args.warmup_epochs: found 3']),
]


@pytest.mark.parametrize('overrides, parts', MISTAKES, ids=lambda value: re.sub(r'\W+', '_', value[0]))
def test_a_mistake_names_its_key_value_and_remedy(folder, overrides, parts):
    _, message = load_or_message(write(folder, tiny(folder)), overrides)
    assert message is not None, 'accepted'
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize('mistake, words', [('seeed=1', 'did you mean seed?'), ('epoch_max=0', 'epoch_max: found 0'),
                                            ('train_dataset.wrapper.args.sample_q=17', 'at most 16')])
def test_a_missing_folder_is_reported_after_all_other_mistakes(folder, mistake, words):
    absent = 'train_dataset.dataset.args.root_path=./nowhere'
    assert words in load_or_message(write(folder, tiny(folder)), [absent, mistake])[1]
    assert "found './nowhere'" in load_or_message(write(folder, tiny(folder)), [absent])[1]


@pytest.mark.parametrize('root, remedy', [
    ('./load/your-images/train', ': put your images there, or name another'),
    ('load/div2k/DIV2K_train_HR', ': get it with python scripts/prepare_data.py div2k, or name another'),
    ('./load/sample/train', 'prepare_data.py sample, '), ('/nowhere', 'put your images there')])
def test_the_message_of_a_missing_folder_says_where_its_images_come_from(folder, monkeypatch, root, remedy):
    monkeypatch.chdir(folder)
    message = load_or_message(write(folder, tiny(folder)), [f'train_dataset.dataset.args.root_path={root}'])[1]
    assert remedy in message and ('prepare_data' in message) == ('prepare_data' in remedy)


FILES_THAT_ARE_NO_CONFIG = {
    'empty': (b'', 'found nothing'),
    'a list': (b'- 1\n- 2\n', 'found a list'),
    'a text': (b'hello', 'found a str'),
    'binary': (bytes(range(256)), 'binary'),
    'a checkpoint': (b'PK\x03\x04' + b'\0' * 100, 'binary'),
    'huge': (b'#' * 2 ** 20, 'very large'),
    'unclosed': (b'a: [1, 2\nb: 3\n', 'line 2'),
    'a tab': (b'a:\n\tb: 1\n', 'line 2, column 1'),
    'twice': (b'seed: 1\nepoch_max: 3\nseed: 2\n', "line 3, column 1 (the key 'seed' is given twice)"),
    'twice inside': (b'optimizer:\n  name: adam\n  name: sgd\n', "'name' is given twice"),
    'python objects': (b'a: !!python/object/apply:os.system ["true"]\n', 'python/object'),
    'number as a key': (b'1: 2\n', 'the key 1'),
    'word as a key': (b'on: 2\n', 'the key True'),
    'list as a key': (b'[1]: 2\n', 'unhashable'),
    'bad integer': (b'a: !!int x\n', 'not valid YAML'),
    'bad date': (b'a: !!timestamp x\n', 'not valid YAML'),
    'long integer': (b'seed: 0x' + b'f' * 5000, 'an integer of 20000 bits'),
    'very long integer': (b'seed: ' + b'9' * 9999, 'not valid YAML'),
    'itself': (b'train_dataset: &a\n  dataset: *a\n', 'endless aliases or nesting'),
    'a hundred thousand lists': (b'[' * 100000, 'not valid YAML'),
    'a billion laughs': (b'a: &a0 [x, x]\n' + b''.join(b'a%d: &a%d [%s]\n' % (i, i, b', '.join([b'*a%d' % (i - 1)] * 9))
                                                     for i in range(1, 30)), 'endless aliases or nesting'),
    'laughs in a list': (b'- &a0 [x, x]\n' + b''.join(b'- &a%d [%s]\n' % (i, b', '.join([b'*a%d' % (i - 1)] * 9))
                                                    for i in range(1, 30)), 'found a list'),
    'line separator': ('"a\\u2028b\\nc": 1\n'.encode(), 'unknown name'),
    'lone surrogate': (b'"\\uD800": "\\uDFFF"\n', 'unknown name'),
    'long key': (b'? ' + b'k' * 5000 + b'\n: 1\n', 'at most 100 characters'),
    'a set': (b'a: !!set {x, y}\n', 'a set'),
    'two documents': (b'a: 1\n---\nb: 2\n', 'not valid YAML'),
    'nested merges': (b'a0: &a0 {k: 1}\n' + b''.join(b'a%d: &a%d\n  k%d: 1\n  <<: [%s]\n' % (
        i, i, i, b', '.join([b'*a%d' % (i - 1)] * 9)) for i in range(1, 30)),
                      ('merges of more than 20000 values', 'unknown name')),  # PyYAML 6.0.4 keeps such merges small
    'one long merge': (b'a: &a {' + b', '.join(b'k%d: 1' % i for i in range(2000)) + b'}\nb:\n  <<: [' +
                       b','.join([b'*a'] * 9999) + b']\n', 'merges of more than 20000 values'),
}


@pytest.mark.parametrize('case', FILES_THAT_ARE_NO_CONFIG)
def test_a_file_that_is_no_config(folder, case):
    content, words = FILES_THAT_ARE_NO_CONFIG[case]
    path = write(folder, content)
    _, message = load_or_message(path)
    assert message is not None and message.startswith(path), message
    assert any(text in message for text in ([words] if isinstance(words, str) else words)), message


def test_a_path_that_cannot_be_read(folder):
    for path in (folder / 'missing.yaml', folder, 'a\0b', 'new\nline.yaml'):
        assert 'cannot be read' in load_or_message(str(path))[1]


def test_train_and_test_configs_are_told_apart(folder):
    train, test = write(folder, tiny(folder)), write(folder, tiny(folder, 'test'), 'test.yaml')
    assert 'this is a config for test.py' in load_or_message(test)[1]
    assert 'this is a config for train_liif.py' in load_or_message(train, kind='test')[1]


def test_things_registered_elsewhere_are_checked_by_their_signature(folder, monkeypatch):
    monkeypatch.setattr(models.registry, 'entries', dict(models.registry.entries))
    monkeypatch.setattr(datasets.registry, 'entries', dict(datasets.registry.entries))

    @models.register('lte')
    class LTE:
        def __init__(self, encoder_spec, imnet_spec=None, hidden_dim=256):
            pass

    @models.register('swinir')
    def swinir(no_upsampling=True, **kwargs):
        pass

    @models.register('unet')
    def unet(depth: Annotated[int, Integer(1, 9), 'levels'], width: 'Nothing' = 3):
        pass

    @models.register('fixed')
    def fixed():
        pass

    @datasets.register('my-wrapper')
    class MyWrapper:
        def __init__(self, dataset, window, blur: Annotated[float, Number(0), 'in pixels'] = 0):
            pass

    config = tiny(folder)
    config['model'] = {'name': 'lte', 'args': {
        'hidden_dim': 8, 'encoder_spec': {'name': 'swinir', 'args': {'depth': 3}},
        'imnet_spec': {'name': 'mlp', 'args': {'out_dim': 3}}}}
    config['train_dataset']['wrapper'] = {'name': 'my-wrapper', 'args': {'window': 7}}
    path = write(folder, config)
    assert load_config(path)['model'] == config['model']
    for overrides, part in {
        'model.args.hiddendim=3': 'model.args.hiddendim: found 3, did you mean hidden_dim?',
        'model.args.encoder_spec.name=swin': "model.args.encoder_spec.name: found 'swin'",
        'model.args.encoder_spec.name=[1]': 'model.args.encoder_spec.name: found [1]',
        'model.args.imnet_spec.args.widths=3': 'model.args.imnet_spec.args.widths: found 3',
        'model.args={}': 'model.args.encoder_spec: found nothing, lte needs',
        'train_dataset.wrapper.args={}': 'train_dataset.wrapper.args.window: found nothing',
        'train_dataset.wrapper.args.x=1': 'train_dataset.wrapper.args.x: found 1, window',
        'train_dataset.wrapper.args.blur=-1': 'train_dataset.wrapper.args.blur: found -1, wanted a number >= 0',
        'model={name: fixed, args: {x: 1}}': 'model.args.x: found 1, an argument of fixed: none',
        'model={name: unet}': 'model.args.depth: found nothing',
        'model={name: unet, args: {depht: 3}}': 'model.args.depht: found 3, did you mean depth?',
    }.items():
        _, message = load_or_message(path, [overrides])
        assert message and all(word in message for word in part.split(', ')), message


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
