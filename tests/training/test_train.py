"""The training step, the schedules, what may be resumed, and a small run from its config to its PSNR."""
import copy
import itertools
import logging
import math
import os
import random
import re
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

import test
import train_liif
from datasets.loader import unpack
from engine.checkpoint import load_checkpoint, load_model, parse_checkpoint, to_bytes
from engine.config import load_config
from engine.optim import learning_rate, make_optimizer
from engine.training import loop, monitor
from engine.training.state import State, check_resumable, compare
from tests.common import ROOT
from tests.survival import make_images, same, tiny_config, write_config
from tests.training.test_run_folder import read_events
from utils import UserError


CPU = torch.device('cpu')
log = logging.getLogger('liif')


@pytest.fixture
def config(tmp_path):
    """A checked tiny config."""
    return load_config(write_config(tmp_path / 'c.yaml', tiny_config(make_images(tmp_path / 'images'))))


def loader_of(config):
    return loop.open_data(config, 'train_dataset', CPU, 0)


def steps(config, count, state=None):
    """The state after some steps, and their (loss, norm)."""
    loader = loader_of(config)
    loop.seed_globals(0)
    state = state or State(config, CPU, len(loader.batch_sampler))
    found = []
    for batch in itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), count):
        loss, norm = loop.train_step(state.model, state, unpack(batch, CPU), config['optimizer']['args']['lr'])
        found.append((loss.item(), norm.item()))
    return state, found


# The step.

def test_a_step_is_l1_on_normalized_values_and_adam(config):
    """Against the same written out by hand, from the published form of the batch."""
    loader = loader_of(config)
    torch.manual_seed(3)
    state = State(config, CPU, 3)
    model = copy.deepcopy(state.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for batch in loader:
        loss, _ = loop.train_step(state.model, state, unpack(batch, CPU), 1e-3)
        inp, gt = batch['inp'].float() / 255 * 2 - 1, batch['gt'].float() / 255 * 2 - 1
        wanted = (model(inp, batch['coord'], batch['cell'].expand_as(batch['coord'])) - gt).abs().mean()
        optimizer.zero_grad()
        wanted.backward()
        optimizer.step()
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    for a, b in zip(state.model.parameters(), model.parameters()):
        assert (a - b).abs().max() <= 2e-4  # Adam divides by the gradient's size: rounding of tiny ones shows


def test_all_pixels_as_queries_give_the_loss_of_their_coordinates(config):
    del config['train_dataset']['wrapper']['args']['sample_q']
    config['train_dataset']['wrapper']['args'].update(scale_min=2, scale_max=2)
    batch = unpack(next(iter(loader_of(config))), CPU)
    assert batch['coord'] is None
    losses = []
    for coord in (None, loop.all_pixels(batch['inp'], batch['size'])):
        torch.manual_seed(0)
        state = State(config, CPU, 3)
        losses.append(loop.train_step(state.model, state, {**batch, 'coord': coord}, 1e-3)[0].item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize('name, formula', [(None, lambda e: e.abs()), ('l1', lambda e: e.abs()),
                                           ('l2', lambda e: e ** 2),
                                           ('charbonnier', lambda e: (e ** 2 + 1e-6).sqrt())])
def test_losses_are_their_formulas(config, name, formula):
    config['loss'] = name
    batch, model = unpack(next(iter(loader_of(config))), CPU), State(config, CPU, 3).model
    gt = batch['gt'] * 2 - 1
    with torch.no_grad():
        error = model(batch['inp'] * 2 - 1, batch['coord'], batch['cell'].expand_as(batch['coord'])) - gt
        assert loop.batch_loss(model, config, batch).item() == pytest.approx(formula(error).mean().item(), rel=1e-5)


@pytest.mark.parametrize('optimizer', [{'name': 'adam', 'args': {'lr': 1e-2}},
                                       {'name': 'sgd', 'args': {'lr': 0.02, 'momentum': 0.9}}])
@pytest.mark.parametrize('precision', ['float32', 'bf16'])
def test_training_lowers_the_loss(tmp_path, optimizer, precision):
    """On images of one colour each, which can be learned."""
    folder = make_images(tmp_path / 'images')
    for i, name in enumerate(sorted(os.listdir(folder))):
        Image.fromarray(np.full((24, 30, 3), 40 * i, dtype=np.uint8)).save(os.path.join(folder, name))
    changes = {'optimizer': optimizer, 'precision': precision}
    _, found = steps(load_config(write_config(tmp_path / 'c.yaml', tiny_config(folder, **changes))), 90)
    losses = [loss for loss, _ in found]
    assert sum(losses[-15:]) < 0.5 * sum(losses[:15])


def test_gradient_clipping_bounds_the_step(config):
    config = {**config, 'optimizer': {'name': 'sgd', 'args': {'lr': 1.0}}, 'grad_clip': 1e-3}
    state = State(config, CPU, 3)
    before = [p.detach().clone() for p in state.model.parameters()]
    state, found = steps(config, 1, state)
    moved = math.sqrt(sum((p - b).pow(2).sum().item() for p, b in zip(state.model.parameters(), before)))
    assert found[0][1] > 1e-3 and moved == pytest.approx(1e-3, rel=1e-3)


def test_averaged_weights_are_the_formula(config):
    config = {**config, 'ema': 0.75}
    state = State(config, CPU, 3)
    wanted = {key: value.clone() for key, value in state.model.state_dict().items()}
    for _ in range(3):
        state, _ = steps(config, 1, state)
        wanted = {key: 0.75 * wanted[key] + 0.25 * value for key, value in state.model.state_dict().items()}
    found = state.ema.module.state_dict()
    assert all(torch.allclose(found[key], wanted[key], atol=1e-7) for key in wanted)
    key = 'imnet.layers.0.weight'
    assert not torch.equal(found[key], state.model.state_dict()[key])


def test_half_precision_needs_cuda(config):
    with pytest.raises(UserError, match='fp16 is for CUDA'):
        State({**config, 'precision': 'fp16'}, CPU, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
def test_half_precision_on_cuda(config):
    device = torch.device('cuda')
    state = State({**config, 'precision': 'fp16'}, device, 3)
    for batch in loader_of(config):
        loss, _ = loop.train_step(state.model, state, unpack(batch, device), 1e-3)
    assert math.isfinite(loss.item()) and state.checkpoint()['train']['scaler']


@pytest.mark.parametrize('spec, words', [
    ({'name': 'adamm', 'args': {'lr': 1}}, 'known: adam, muon, sgd, soap'),
    ({'name': 'adam', 'args': {'lr': 1, 'momentum': 0.9}}, 'momentum'),
    ({'name': 'adam', 'args': {'lr': -1}}, 'lr: found -1, expected a number >= 0')])
def test_wrong_optimizers(spec, words):
    with pytest.raises(UserError, match=words):
        make_optimizer([torch.nn.Parameter(torch.zeros(1))], spec)


def test_a_processes_generators_follow_from_the_key():
    found = []
    for key in ((1, 2, 3, 0), (1, 2, 3, 0), (1, 2, 3, 1), (1, 2, 4, 0)):
        loop.seed_globals(*key)
        found.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert found[0] == found[1] and len({*found}) == 3


@pytest.mark.parametrize('section, alike', [('train_dataset', False), ('val_dataset', True)])
def test_runs_of_other_seeds_validate_on_the_same_samples(config, section, alike):
    first, other = [next(iter(loop.open_data({**config, 'seed': seed}, section, CPU, 0))) for seed in (0, 1)]
    assert (torch.equal(first['cell'], other['cell']) and torch.equal(first['inp'], other['inp'])) == alike


# The schedule.

def schedule(epochs, count, **config):
    """The rate of every step of `epochs` epochs of `count` steps."""
    config = {'optimizer': {'args': {'lr': 0.8}}, 'epoch_max': epochs, **config}
    return [learning_rate(config, epoch, step, count) for epoch in range(1, epochs + 1) for step in range(count)]


def test_multi_step_is_that_of_torch_once_an_epoch():
    args = {'milestones': [2, 3, 7], 'gamma': 0.5}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, **args)
    wanted = []
    for _ in range(9):
        wanted += [optimizer.param_groups[0]['lr']] * 4
        optimizer.step()
        scheduler.step()
    assert schedule(9, 4, multi_step_lr=args) == pytest.approx(wanted)
    assert schedule(9, 4, lr_scheduler={'name': 'multi-step', 'args': args}) == pytest.approx(wanted)
    assert schedule(2, 4) == [0.8] * 8


def test_cosine_and_warm_up():
    found = schedule(10, 5, lr_scheduler={'name': 'cosine', 'args': {'min_lr': 0.1}})
    assert found == pytest.approx([0.1 + 0.7 * (1 + math.cos(math.pi * i / 50)) / 2 for i in range(50)])
    found = schedule(10, 5, lr_scheduler={'name': 'cosine', 'args': {'warmup_epochs': 2, 'epochs': 8}})
    assert found[:10] == pytest.approx([0.8 * (i + 1) / 10 for i in range(10)])
    assert found[25] == pytest.approx(0.4) and found[40:] == pytest.approx([0] * 10)  # half way; at the end
    found = schedule(4, 5, lr_scheduler={'name': 'multi-step', 'args': {'milestones': [2], 'warmup_epochs': 1}})
    assert found == pytest.approx([0.8 * (i + 1) / 5 for i in range(5)] + [0.8] * 5 + [0.08] * 10)
    with pytest.raises(UserError, match='known: cosine, multi-step'):
        schedule(1, 1, lr_scheduler={'name': 'linear', 'args': {}})


# What may be resumed.

def test_differences_of_configs():
    assert compare({'a': {'b': 1, 'c': [1, 2]}, 'd': None}, {'a': {'b': 1.0, 'c': [1, 2]}, 'e': {}}) == []
    assert compare({'a': {'b': 1}}, {'a': {'b': True}, 'c': 'x'}) == [('a.b', 1, True), ('c', None, 'x')]


def test_a_longer_run_needs_one_allowed_change(config):
    def scheduled(epochs, epoch_max):
        schedule = {'name': 'cosine', 'args': {'epochs': epochs, 'min_lr': 0, 'warmup_epochs': 0}}
        return {**config, 'epoch_max': epoch_max, 'multi_step_lr': None, 'lr_scheduler': schedule}
    for written in (None, 7):  # earlier versions wrote epoch_max there
        saved = copy.deepcopy(State(scheduled(written, 7), CPU, 3).checkpoint())
        assert check_resumable(scheduled(None, 9), saved, 'a.pth', ['epoch_max'])['epoch_max'] == 9
        with pytest.raises(UserError, match='lr_scheduler.args.epochs is 8'):
            check_resumable(scheduled(8, 9), saved, 'a.pth', ['epoch_max'])


def test_an_unknown_key_cannot_be_allowed_to_change(config):
    saved = copy.deepcopy(State(config, CPU, 3).checkpoint())
    with pytest.raises(UserError, match='found epochmax allowed to change, expected a key of the config; did you mean '
                                         'epoch_max'):
        check_resumable(config, saved, 'a.pth', ['epochmax'])


def test_the_checkpoints_model_wins(config):
    state = State(config, CPU, 3)
    saved = copy.deepcopy(state.checkpoint())
    changed = copy.deepcopy(config)
    changed['model']['args']['imnet_spec']['args']['hidden_list'] = [4]
    changed['optimizer']['args']['lr'] = 0.5
    with pytest.raises(UserError, match=r'hidden_list is \[4\], was \[16, 16\]; optimizer.args.lr is 0.5, was 0.001'):
        check_resumable(changed, saved, 'a.pth')
    found = check_resumable(changed, saved, 'a.pth', ['model', 'optimizer.args.lr'])
    assert found['model'] == config['model'] and found['optimizer']['args']['lr'] == 0.5
    state = State(found, CPU, 3, saved)
    assert state.optimizer.param_groups[0]['betas'] == (0.9, 0.999)
    with pytest.raises(UserError, match='cannot be used by sgd: change it back, or start'):
        check_resumable({**config, 'optimizer': {'name': 'sgd', 'args': {'lr': 1}}}, saved, 'a.pth', ['optimizer'])


@pytest.mark.parametrize('optimizer', [{'name': 'adam', 'args': {'lr': 1e-3}},
                                       {'name': 'muon', 'args': {'lr': 0.02}}])
def test_an_optimizer_state_of_another_model_is_refused(config, optimizer):
    config = {**config, 'optimizer': optimizer}
    state = State(config, CPU, 3)
    steps(config, 1, state)
    for change in (lambda sd: sd['param_groups'][0]['params'].pop(),
                   lambda sd: next(iter(sd['state'].values())).update(dict.fromkeys(
                       ('exp_avg', 'momentum_buffer'), torch.zeros(7))),
                   lambda sd: sd['state'].update({1000: {'exp_avg': torch.zeros(7)}}),
                   lambda sd: sd['state'].clear(),
                   lambda sd: sd.pop('state')):
        saved = copy.deepcopy(state.checkpoint())
        saved['train']['step'] = 1
        change(saved['optimizer']['sd'])
        with pytest.raises(UserError, match='with init'):
            State(config, CPU, 3, saved)


@pytest.mark.parametrize('name, args', [('adam', {'amsgrad': True}), ('sgd', {'momentum': 0.9}), ('muon', {}),
                                        ('soap', {'precondition_frequency': 2})])
def test_a_state_goes_on_bit_for_bit_through_a_file(config, name, args):
    if name == 'soap':
        pytest.importorskip('pytorch_optimizer')
    config = {**config, 'optimizer': {'name': name, 'args': {'lr': 0.01, **args}}}
    state, _ = steps(config, 3)
    state.step = 3
    resumed = State(config, CPU, state.steps, parse_checkpoint(bytes(to_bytes(state.checkpoint())), 'saved'))
    assert steps(config, 4, state)[1] == steps(config, 4, resumed)[1]
    same(state.checkpoint(), resumed.checkpoint())


# From a config to a number.

def test_what_is_trained_here_measures_the_same_through_test_py(tmp_path, monkeypatch, capsys):
    """Validation PSNR of the last epoch = test.py's result = a mean written out by hand."""
    monkeypatch.chdir(tmp_path)
    tiny = tiny_config(make_images(tmp_path / 'images'), epoch_max=2)
    monkeypatch.setattr(sys, 'argv', ['train_liif.py', '--config', write_config('c.yaml', tiny)])
    train_liif.main(['--config', 'c.yaml', '--gpu', 'cpu', '--workers', '0'])
    logged = float(re.findall(r'val psnr ([\d.]+)', open('save/_c/log.txt').read())[-1])
    write_config('t.yaml', {'test_dataset': tiny['val_dataset'], 'data_norm': tiny['data_norm']})
    capsys.readouterr()
    test.main(['--config', 't.yaml', '--model', 'save/_c/epoch-last.pth', '--gpu', 'cpu', '--workers', '0'])
    assert float(capsys.readouterr().out.split('result: ')[1]) == pytest.approx(logged, abs=1e-4)

    model, norm = load_model('save/_c/epoch-last.pth', CPU)
    assert norm == tiny['data_norm']
    config = load_config('c.yaml')
    loader = loop.open_data(config, 'val_dataset', CPU, 0)
    total = 0
    for batch in loader:
        with torch.no_grad():
            rgb = model(batch['inp'] / 127.5 - 1, batch['coord'], batch['cell'].expand_as(batch['coord']))
        error = (rgb / 2 + 0.5).clamp(0, 1).double() - batch['gt'].double() / 255
        total += -10 * math.log10(error.pow(2).mean().item()) * len(batch['inp'])
    assert total / len(loader.dataset) == pytest.approx(logged, abs=1e-4)
    found = load_checkpoint('save/_c/epoch-last.pth')
    assert found['epoch'] == 2 and found['train']['best'] == pytest.approx(max(logged, found['train']['best']))
    curves = [(value.tag, event.step) for event in read_events(tmp_path / 'save' / '_c')
              for value in event.summary.value if value.HasField('simple_value')]
    assert curves == [(name, epoch) for epoch in (1, 2) for name in ('lr', 'loss/train', 'psnr/val')]


def test_bad_images_are_passed_over_and_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = make_images(tmp_path / 'images')
    with open(tmp_path / 'images' / '2.png', 'r+b') as f:
        f.truncate(400)
    monkeypatch.setattr(sys, 'argv', ['train_liif.py'])
    write_config('c.yaml', tiny_config(images, epoch_max=1))
    with pytest.raises(UserError, match='2.png'):
        train_liif.main(['--config', 'c.yaml', '--gpu', 'cpu', '--workers', '0'])
    train_liif.main(['--config', 'c.yaml', '--gpu', 'cpu', '--workers', '0', '--set', 'on_bad_image=skip',
                     '--tag', 'b'])
    text = capsys.readouterr().out
    assert '2.png' in text and '2 samples of bad images replaced so far' in text and text.count('2.png') == 1
    assert load_checkpoint('save/_c_b/epoch-last.pth')['train']['skipped'] == 2


def test_a_loader_that_keeps_the_model_waiting_is_named(config, monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(monitor.time, 'perf_counter', lambda: now[0])
    monkeypatch.setattr(log, 'handlers', [caplog.handler])
    monkeypatch.setattr(log, 'level', logging.INFO)

    def slow():
        for _ in range(3):
            now[0] += 3
            yield {}
    folder = types.SimpleNamespace(is_main=False)
    for _ in monitor.Monitor(State(config, CPU, 3), None, folder, None).batches(slow()):
        now[0] += 1
    assert 'waited for data 75% of the time' in caplog.messages[-1]


@pytest.mark.parametrize('native, precision, warned', [(False, 'bf16', True), (False, 'float32', False),
                                                       (True, 'bf16', False)])
def test_emulated_bf16_is_warned_of(config, monkeypatch, caplog, native, precision, warned):
    monkeypatch.setattr(log, 'handlers', [caplog.handler])
    monkeypatch.setattr(loop, 'has_bf16', lambda device: native)
    state = State({**config, 'precision': precision}, CPU, 3)
    folder = types.SimpleNamespace(begin=lambda *args, **kwargs: None, open_curves=lambda epoch: None)
    loop.begin(state, folder, CPU, None)
    assert any('--set precision=float32' in message for message in caplog.messages) == warned


def test_reliability_md_names_tests_that_exist():
    """Each in the file of its letter."""
    with open(os.path.join(ROOT, 'docs', 'reliability.md')) as f:
        text = f.read()
    files = {'': 'tests/training/test_resume.py'}
    files.update(re.findall(r'\b([A-Z])\s+in\s+`(tests/\w+/test_\w+\.py)`', text))
    named = [(files[letter], name) for letter, names in re.findall(r'(?:\b([A-Z]): )?((?:`test_\w+`(?:, )?)+)', text)
             for name in re.findall(r'test_\w+', names)]
    texts = {}
    for path in files.values():
        with open(os.path.join(ROOT, path)) as f:
            texts[path] = f.read()
    assert len(named) > 40 and [name for path, name in named if f'\ndef {name}(' not in texts[path]] == []
