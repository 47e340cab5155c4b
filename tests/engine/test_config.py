"""Configs that are accepted come out complete, with --set applied; things registered elsewhere are checked, too."""
from typing import Annotated

import pytest
import yaml

import datasets
import models
from engine.config import load_config
from engine.optim import learning_rate
from engine.schema import KINDS, keys_of
from tests.engine.configs import load_or_message, tiny, write
from utils import Integer, Number


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
    assert "resume: found 'gone.pth', expected a file that exists, since the config has no model" in \
        load_or_message(path, ['resume=gone.pth'])[1]
    assert load_config(write(folder, tiny(folder)), ['resume=gone.pth'])['resume'] == 'gone.pth'  # to begin anew


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
        'train_dataset.wrapper.args.blur=-1': 'train_dataset.wrapper.args.blur: found -1, expected a number >= 0',
        'model={name: fixed, args: {x: 1}}': 'model.args.x: found 1, an argument of fixed: none',
        'model={name: unet}': 'model.args.depth: found nothing',
        'model={name: unet, args: {depht: 3}}': 'model.args.depht: found 3, did you mean depth?',
    }.items():
        _, message = load_or_message(path, [overrides])
        assert message and all(word in message for word in part.split(', ')), message
