"""A run is a function of its config and seed, whatever happens to the process: killed, asked to stop, out of disk, its
newest checkpoint damaged. Cases and processes are in tests/survival.py."""
import os
import random
import re
import shutil
import signal

import pytest
import torch

from engine.checkpoint import load_checkpoint, save_checkpoint
from tests.common import seeds
from tests.survival import (
    POLITE,
    check_message,
    config_case,
    disk_case,
    epochs_of,
    good_checkpoints,
    kill_case,
    killed_and_resumed,
    make_images,
    run,
    same,
    steps_of,
    tiny_config,
    worker_case,
    write_config,
)


ARGUMENTS = ['--config', 'c.yaml', '--gpu', 'cpu', '--workers', '0']


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def whole(tmp_path_factory, images):
    """The folder of an uninterrupted run of tiny_config, to compare others with."""
    return whole_run(tmp_path_factory.mktemp('whole'), tiny_config(images))


@pytest.fixture(scope='module')
def finished(tmp_path_factory, images):
    return whole_run(tmp_path_factory.mktemp('finished'), tiny_config(images, epoch_max=1))


@pytest.fixture
def folder(tmp_path, finished):
    """The folder of a finished run of one epoch, to go on with or to spoil."""
    return shutil.copytree(finished, f'{tmp_path}/run')


def whole_run(folder, config, *arguments):
    """A folder with an uninterrupted run of the config."""
    os.makedirs(folder, exist_ok=True)
    write_config(f'{folder}/c.yaml', config)
    code, text = run(str(folder), *ARGUMENTS, *arguments)
    assert code == 0, text
    return str(folder)


def assert_same_end(a, b):
    assert steps_of(f'{a}/steps.txt') == steps_of(f'{b}/steps.txt')
    assert epochs_of(f'{a}/save/_c/log.txt') == epochs_of(f'{b}/save/_c/log.txt')
    same(load_checkpoint(f'{a}/save/_c/epoch-last.pth'), load_checkpoint(f'{b}/save/_c/epoch-last.pth'))


@pytest.mark.parametrize('workers, threads, epochs, changes', [
    # Saved after every step; a rate so high that validation has its ups and downs.
    (0, 1, 10, {'save_minutes': 1e-9, 'ema': 0.9, 'optimizer': {'name': 'adam', 'args': {'lr': 0.1}}}),
    (2, 1, 7, {'save_minutes': 1e-9, 'optimizer': {'name': 'sgd', 'args': {'lr': 0.01, 'momentum': 0.9}},
               'grad_clip': 0.3, 'multi_step_lr': None,
               'lr_scheduler': {'name': 'cosine', 'args': {'warmup_epochs': 1.5}}}),
    (0, 2, 16, {}),  # saved at the end of an epoch alone
    (0, 1, 10, {'save_minutes': 1e-9, 'optimizer': {'name': 'muon', 'args': {'lr': 0.02}}, 'multi_step_lr': None,
                'lr_scheduler': {'name': 'trapezoid', 'args': {'decay_epochs': 8, 'warmup_epochs': 1}}}),
])
def test_ten_kills_in_a_row_change_nothing(tmp_path, images, workers, threads, epochs, changes):
    """epochs: as many as ten kills need, and one more or two."""
    rng = random.Random(workers)
    steps = [rng.randint(1, 5) if 'save_minutes' in changes else rng.randint(1, 8) for _ in range(10)]
    config = tiny_config(images, epoch_max=epochs, **changes)
    assert killed_and_resumed(tmp_path, config, workers, [('step', n) for n in steps], threads) == 10
    if 'ema' in changes:
        log = open(f'{tmp_path}/whole/save/_c/log.txt').read()
        assert any(a != b for a, b in re.findall(r'val psnr ([\d.]+) \(best ([\d.]+)\)', log))


def test_kills_at_every_moment_of_the_end_of_an_epoch_change_nothing(tmp_path, images):
    """Killed before each rename in turn: config.yaml, epoch-best, epoch-N, epoch-last to its previous, epoch-last."""
    config = tiny_config(images, epoch_save=1, epoch_max=6)
    kills = [('replace', n) for n in range(1, 8)] + [('log', n) for n in (7, 8)] + [('validate', n) for n in (1, 2)]
    assert killed_and_resumed(tmp_path, config, 0, kills) >= 8


@pytest.mark.parametrize('seed', seeds(1, 2))
def test_kills_anywhere_change_nothing(tmp_path, seed):
    """Random configs, random moments."""
    assert kill_case(seed, tmp_path) > 0


@pytest.mark.parametrize('seed', seeds(1))
def test_signals_anywhere_change_nothing(tmp_path, seed):
    """The same with SIGTERM and SIGINT."""
    kill_case(seed, tmp_path, kills=4, numbers=POLITE)


@pytest.mark.skipif(shutil.which('pgrep') is None, reason='needs pgrep')
@pytest.mark.parametrize('seed', seeds(1))
def test_data_workers_killed_anywhere_change_nothing(tmp_path, seed):
    worker_case(seed, tmp_path)


def test_the_number_of_workers_changes_nothing(tmp_path, images, whole):
    for workers in ('1', '4'):
        assert_same_end(whole, whole_run(tmp_path / workers, tiny_config(images), '--workers', workers))


@pytest.mark.parametrize('number, event', [(signal.SIGTERM, ('step', 5)), (signal.SIGINT, ('step', 3)),
                                           (signal.SIGTERM, ('validate', 2))])
def test_a_signal_finishes_the_step_saves_and_names_the_command(tmp_path, images, whole, number, event):
    folder = str(tmp_path)
    write_config(f'{folder}/c.yaml', tiny_config(images))
    code, text = run(folder, *ARGUMENTS, kill=(*event, number))
    assert code == 128 + number and 'Traceback' not in text
    assert 'python train_liif.py --config c.yaml --gpu cpu --workers 0 --resume' in text
    saved = load_checkpoint(f'{folder}/save/_c/epoch-last.pth')
    made = event[1] if event[0] == 'step' else 6
    assert 3 * saved['epoch'] + saved['train']['step'] in (made, made + 1)  # a step is read one step late
    code, text = run(folder, *ARGUMENTS, '--resume')
    assert code == 0, text
    assert_same_end(whole, folder)


def stopped_run(folder, config, steps=8):
    """A run that saved after every step and was killed at step `steps`."""
    os.makedirs(folder)
    write_config(f'{folder}/c.yaml', {**config, 'save_minutes': 1e-9})
    assert run(str(folder), *ARGUMENTS, kill=('step', steps))[0] == -signal.SIGKILL
    return str(folder)


def flip_bit(path):
    with open(path, 'r+b') as f:
        f.seek(os.path.getsize(path) // 2)
        byte = f.read(1)[0]
        f.seek(-1, 1)
        f.write(bytes([byte ^ 4]))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, images):
    config = tiny_config(images)
    whole = whole_run(tmp_path / 'whole', {**config, 'save_minutes': 1e-9})
    folder = stopped_run(tmp_path / 'broken', config)
    flip_bit(f'{folder}/save/_c/epoch-last.pth')
    code, text = run(folder, *ARGUMENTS, '--resume')
    assert code == 0 and 'passing over' in text and 'resuming from save/_c/epoch-last.prev.pth' in text
    assert os.path.exists(f'{folder}/save/_c/epoch-last.pth.damaged')
    assert_same_end(whole, folder)


def test_nothing_but_damaged_checkpoints_is_an_error_and_not_a_new_run(tmp_path, images):
    folder = stopped_run(tmp_path / 'broken', tiny_config(images))
    for name in good_checkpoints(folder):
        flip_bit(f'{folder}/save/_c/{name}')
    code, text = run(folder, *ARGUMENTS, '--resume')
    assert code == 2 and 'no checkpoint in save/_c is usable' in text
    check_message(text)


def test_a_run_folder_is_kept_unless_asked(folder):
    before = good_checkpoints(folder)
    code, text = run(folder, *ARGUMENTS)
    assert code == 2 and 'resume it, overwrite it, or keep both' in text and good_checkpoints(folder) == before
    open(f'{folder}/save/_c/old', 'w').close()
    code, text = run(folder, *ARGUMENTS, '--overwrite')
    assert code == 0 and not os.path.exists(f'{folder}/save/_c/old')
    code, text = run(folder, *ARGUMENTS, '--name', '../elsewhere')
    assert code == 2 and not os.path.exists(f'{folder}/elsewhere')


def test_resuming_nothing_begins_and_resuming_the_end_does_nothing(tmp_path, images):
    folder = whole_run(tmp_path / 'run', tiny_config(images, epoch_max=1, resume='gone.pth'), '--resume')
    with open(f'{folder}/save/_c/log.txt') as f:
        assert 'WARNING: resume: there is no file gone.pth, so training begins anew\n' in f.readlines()[:2]
    before = load_checkpoint(f'{folder}/save/_c/epoch-last.pth')
    code, text = run(folder, *ARGUMENTS, '--resume')
    assert code == 0 and 'nothing left to train' in text and 'root_path' not in text  # nor is the config shown again
    same(before, load_checkpoint(f'{folder}/save/_c/epoch-last.pth'))


def test_a_config_that_disagrees_is_shown_and_may_be_allowed(tmp_path, images, whole):
    folder = whole_run(tmp_path / 'short', tiny_config(images, epoch_max=2))
    code, text = run(folder, *ARGUMENTS, '--resume', '--set', 'epoch_max=4', '--set', 'optimizer.args.lr=0.5')
    assert code == 2 and 'epoch_max is 4, was 2' in text and 'optimizer.args.lr is 0.5, was 0.001' in text
    check_message(text)
    code, text = run(folder, *ARGUMENTS, '--resume', '--set', 'epoch_max=4', '--allow-change', 'epoch_max')
    assert code == 0, text
    assert steps_of(f'{folder}/steps.txt') == steps_of(f'{whole}/steps.txt')
    ends = [load_checkpoint(f'{path}/save/_c/epoch-last.pth') for path in (whole, folder)]
    same(ends[0], ends[1])
    code, text = run(folder, *ARGUMENTS, '--resume', '--set', 'model.args.imnet_spec.args.hidden_list=[32]')
    assert code == 2 and 'model.args.imnet_spec.args.hidden_list is [32], was [16, 16]' in text


def published(checkpoint, rate):
    """What the published code would have written in its place: steps as plain numbers, the decayed rate in the
    optimizer's groups, nothing but model, optimizer and epoch."""
    found = {key: checkpoint[key] for key in ('model', 'optimizer', 'epoch')}
    sd = found['optimizer']['sd']
    groups = [{'lr': rate, 'betas': (0.9, 0.999), 'eps': 1e-8, 'weight_decay': 0, 'amsgrad': False,
               'initial_lr': 1e-3, 'params': sd['param_groups'][0]['params']}]
    state = {i: {**values, 'step': int(values['step'])} for i, values in sd['state'].items()}
    return {**found, 'optimizer': {**found['optimizer'], 'sd': {'state': state, 'param_groups': groups}}}


@pytest.mark.parametrize('through', ['key', 'folder'])
def test_a_checkpoint_of_the_published_code_goes_on_and_decays_once(tmp_path, images, through):
    config = tiny_config(images, multi_step_lr={'milestones': [1, 3], 'gamma': 0.5})
    whole = whole_run(tmp_path / 'whole', config)
    folder = tmp_path / 'resumed'
    os.makedirs(folder / 'save/_c')
    middle = load_checkpoint(f'{whole}/save/_c/epoch-2.pth')
    path = folder / ('old.pth' if through == 'key' else 'save/_c/epoch-last.pth')
    torch.save(published(middle, rate=0.0005), path, _use_new_zipfile_serialization=through == 'key')
    if through == 'key':
        config = {k: v for k, v in config.items() if k not in ('model', 'optimizer')}
        config['resume'] = str(path)
    write_config(folder / 'c.yaml', config)
    code, text = run(str(folder), *ARGUMENTS, *(['--resume'] if through == 'folder' else []))
    assert code == 0, text
    wanted, found = steps_of(f'{whole}/steps.txt'), steps_of(f'{folder}/steps.txt')
    assert sorted(found) == [(epoch, step) for epoch in (3, 4) for step in range(3)]
    assert all(found[key] == wanted[key] for key in found)
    same(load_checkpoint(f'{whole}/save/_c/epoch-last.pth')['model'],
         load_checkpoint(f'{folder}/save/_c/epoch-last.pth')['model'])


def test_weights_without_an_optimizer_are_for_init_only(folder):
    weights = {'model': load_checkpoint(f'{folder}/save/_c/epoch-last.pth')['model']}
    save_checkpoint(f'{folder}/weights.pth', weights)
    code, text = run(folder, *ARGUMENTS, '--tag', 'a', '--set', 'resume=weights.pth')
    assert code == 2 and 'init: weights.pth' in text
    check_message(text)
    code, text = run(folder, *ARGUMENTS, '--tag', 'b', '--init', 'weights.pth', '--set', 'optimizer.args.lr=0')
    assert code == 0, text
    same(load_checkpoint(f'{folder}/save/_c_b/epoch-last.pth')['model'], weights['model'])


@pytest.mark.parametrize('seed', seeds(0, 1, 2, 3))
def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(tmp_path, seed):
    disk_case(seed, str(tmp_path))


def test_a_loss_that_is_not_finite_names_step_rate_and_samples(tmp_path, images):
    config = tiny_config(images, optimizer={'name': 'sgd', 'args': {'lr': 1e30}}, save_minutes=1e-9)
    write_config(tmp_path / 'c.yaml', config)
    code, text = run(str(tmp_path), *ARGUMENTS)
    assert code == 2
    check_message(text)
    message = text[text.index('error: '):]
    assert 'epoch 1, step 2: the loss is' in message and 'rate 1e+30' in message
    assert len(message.split('samples ')[1].split(': ')[0].split(', ')) == 5
    assert good_checkpoints(str(tmp_path)) == {'epoch-last.pth': (0, 1)}


@pytest.mark.parametrize('seed', seeds(*range(10)))
def test_wrong_configs_run_or_say_in_one_line_why_not(tmp_path, seed):
    assert config_case(seed, str(tmp_path)) in ('ran', 'refused')


def test_mistakes_leave_no_folder_and_delete_none(folder):
    before = good_checkpoints(folder)
    last = f'{folder}/save/_c/epoch-last.pth'
    for arguments in (['--init', 'nowhere.pth'], ['--allow-change', 'epoch_max'],
                      ['--init', last, '--set', 'model.args.imnet_spec.args.hidden_list=[4]'], ['--gpu', '99'],
                      ['--workers', '-1'], ['--set', 'optimizer.args.lr=x']):
        for more in (['--overwrite'], ['--tag', 'b']):
            code, text = run(folder, *ARGUMENTS, *arguments, *more)
            assert code == 2 and os.listdir(f'{folder}/save') == ['_c'] and good_checkpoints(folder) == before, text
            check_message(text)
    code, text = run(folder, *ARGUMENTS, '--init', 'save/_c/epoch-last.pth', '--overwrite')  # reads it, then deletes it
    assert code == 0, text
