"""What went wrong in runs of others, each fault with the test that showed it."""
import copy
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import train_liif
from datasets.check import changes, file_list
from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.config import load_config
from engine.runtime import StopSignals
from engine.training import loop, monitor
from engine.training.run_folder import RunFolder
from engine.training.state import State
from tests.common import ROOT
from tests.survival import finish, make_images, same, start, tiny_config, write_config
from utils import UserError


CPU = torch.device('cpu')
ARGUMENTS = ['--config', 'c.yaml', '--gpu', 'cpu', '--workers', '0']
RUN = 'save/_c'


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working folder, with images and the config of a run of one epoch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['train_liif.py', *ARGUMENTS])
    write_config('c.yaml', tiny_config(make_images(tmp_path / 'images'), epoch_max=1))
    return tmp_path


def train(*arguments):
    train_liif.main([*ARGUMENTS, *arguments])


def log_text():
    with open(f'{RUN}/log.txt') as f:
        return f.read()


# What the log says.

def test_bicubic_and_the_start_are_logged_before_the_first_step_and_at_each_validation():
    train('--set', 'epoch_max=2')
    text = log_text()
    first = re.search(r'^val psnr (bicubic [\d.]+, before training [\d.]+)$', text, re.M)
    assert first.start() < text.index('epoch 1/2')
    assert re.findall(r'^epoch \d/2: .*, val psnr .*; (.*)$', text, re.M) == [first[1]] * 2


def test_the_psnr_before_training_is_that_of_the_initial_weights():
    train()
    start = load_checkpoint(f'{RUN}/epoch-last.pth')['train']['reference']['before training']
    train('--set', 'optimizer.args.lr=0', '--tag', 'b')  # its weights stay
    assert load_checkpoint(f'{RUN}_b/epoch-last.pth')['train']['best'] == start


def test_sample_images_are_written_as_png():
    train()
    checked = load_config('c.yaml')
    batch = next(iter(loop.open_data(checked, 'val_dataset', CPU, 0)))
    assert sorted(os.listdir(f'{RUN}/samples')) == [f'val-{i}-{what}.png' for i in range(3)
                                                    for what in ('input', 'predicted')]
    for i in range(3):
        pixels = np.asarray(Image.open(f'{RUN}/samples/val-{i}-input.png'))
        assert (pixels == batch['inp'][i].permute(1, 2, 0).numpy()).all()
        assert Image.open(f'{RUN}/samples/val-{i}-predicted.png').size == tuple(batch['size'][i].tolist()[::-1])


def test_the_first_loss_of_the_progress_bar_is_that_of_a_step(monkeypatch):
    shown = []
    monkeypatch.setattr(monitor.tqdm, 'set_postfix_str', lambda self, text, refresh: shown.append(text))
    train('--set', 'val_dataset=null')
    assert len(shown) == 2 and not any('0.0000' in text for text in shown)  # of three steps, read one step late


def test_the_first_key_press_is_answered_at_once(capfd):
    with StopSignals():
        os.kill(os.getpid(), signal.SIGINT)
        assert 'stopping after this step, Ctrl-C again to stop at once' in capfd.readouterr().err


def test_an_epoch_that_begins_again_is_said(caplog, monkeypatch):
    config = load_config('c.yaml')
    saved = copy.deepcopy(State(config, CPU, 3).checkpoint())
    saved['train']['step'], saved['optimizer']['sd']['state'] = 2, {0: {}}
    state = State(config, CPU, 5, saved)
    assert state.step == 0 and 'an epoch has 5 steps, had 3, so epoch 1, of which 2 steps' in caplog.text


# Starting from weights.

def test_init_is_recorded_and_kept_on_resume():
    train('--tag', 'a')
    weights = f'{RUN}_a/epoch-last.pth'
    train('--init', weights, '--set', 'epoch_max=2')
    with open(f'{RUN}/config.yaml') as f:
        assert yaml.safe_load(f)['init'] == weights
    assert f'starting from the weights of {weights}' in log_text()
    shutil.rmtree(f'{RUN}_a')  # not needed any longer
    train('--resume', '--set', 'epoch_max=3', '--allow-change', 'epoch_max')
    assert load_checkpoint(f'{RUN}/epoch-last.pth')['config']['init'] == weights


def test_init_as_a_key_of_the_config_is_the_flag():
    train('--tag', 'a')
    for tag, arguments in (('b', ['--init', f'{RUN}_a/epoch-last.pth']),
                           ('c', ['--set', f'init={RUN}_a/epoch-last.pth'])):
        train('--tag', tag, *arguments)
    same(load_checkpoint(f'{RUN}_b/epoch-last.pth'), load_checkpoint(f'{RUN}_c/epoch-last.pth'))


def test_the_best_epoch_is_better_than_the_weights_it_started_from():
    train('--tag', 'a')
    train('--init', f'{RUN}_a/epoch-last.pth', '--set', 'optimizer.args.lr=0')  # nothing is gained
    found = load_checkpoint(f'{RUN}/epoch-last.pth')['train']
    assert found['best'] == found['reference']['before training'] and found['best_epoch'] == 0
    assert not os.path.exists(f'{RUN}/epoch-best.pth') and os.path.exists(f'{RUN}_a/epoch-best.pth')


def test_init_takes_the_name_of_weights_that_come_with_the_project():
    with pytest.raises(UserError, match='the weights of edsr-baseline-liif are not for this model'):
        train('--init', 'edsr-baseline-liif')


def test_init_with_another_architecture_names_the_difference():
    train('--tag', 'a')
    with pytest.raises(UserError, match=r'n_feats is 4, that of the weights 8; take the model of the weights'):
        train('--init', f'{RUN}_a/epoch-last.pth', '--set', 'model.args.encoder_spec.args.n_feats=4')


# Interruptions.

def test_a_validation_that_fails_does_not_cost_the_epoch(monkeypatch):
    train('--tag', 'whole')

    def fail(*args):
        raise UserError('validation fails')
    with monkeypatch.context() as patched, pytest.raises(UserError, match='validation fails'):
        patched.setattr(loop, 'validate', fail)
        train()
    saved = load_checkpoint(f'{RUN}/epoch-last.pth')
    assert (saved['epoch'], saved['train']['step'], saved['train']['steps']) == (0, 3, 3)
    monkeypatch.setattr(loop, 'train_step', None)  # no step is left
    train('--resume')
    same(load_checkpoint(f'{RUN}/epoch-last.pth'), load_checkpoint(f'{RUN}_whole/epoch-last.pth'))


def test_killed_while_it_deletes_the_old_run_a_run_does_not_continue_it(monkeypatch):
    train()

    def killed(path):
        os.unlink(os.path.join(path, 'log.txt'))
        raise KeyboardInterrupt
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, 'rmtree', killed)
        train('--overwrite')
    assert not os.path.exists(RUN)
    train('--overwrite')  # deletes what is left of the old run
    assert os.listdir('save') == ['_c']


HOLD = f'import sys, time; sys.path.insert(0, {ROOT!r})\n' \
       'from engine.training.run_folder import RunFolder\n' \
       'folder = RunFolder(sys.argv[1], resume=True); folder.begin({}); print("ready", flush=True); time.sleep(600)'


def test_two_runs_of_one_name_do_not_share_a_folder():
    train()
    before = load_checkpoint(f'{RUN}/epoch-last.pth')
    other = subprocess.Popen([sys.executable, '-c', HOLD, RUN], stdout=subprocess.PIPE, text=True)
    while 'ready' not in other.stdout.readline():
        assert other.poll() is None
    for flag in ('--resume', '--overwrite'):
        with pytest.raises(UserError, match='is in use by another run'):
            train(flag)
    same(before, load_checkpoint(f'{RUN}/epoch-last.pth'))
    other.kill()
    other.communicate()
    train('--resume')  # the lock ends with its process


def test_a_killed_data_worker_is_named_with_the_command_that_resumes(folder):
    """Without waiting for the others, and without tracebacks."""
    make_images('images', 40)
    started = start(folder, *ARGUMENTS[:-1], '2', '--set', 'epoch_max=10000', '--set', 'val_dataset=null')
    while not (os.path.exists(f'{RUN}/log.txt') and 'epoch 1/' in log_text()):
        assert started[0].is_alive()
        time.sleep(0.05)
    workers = [int(pid) for pid in
               subprocess.run(['pgrep', '-P', str(started[0].pid)], capture_output=True, text=True).stdout.split()]
    os.kill(workers[0], signal.SIGKILL)
    code, text = finish(started)
    assert code == 2 and 'Traceback' not in text and 'Alarm clock' not in text, text
    assert f'process {workers[0]}, which reads images, was ended by SIGKILL' in text and '--resume' in text


@pytest.mark.parametrize('section', ['train_dataset', 'val_dataset'])
def test_images_of_different_size_in_a_batch_are_found_before_the_first_step(folder, monkeypatch, section):
    config = tiny_config(f'{folder}/images', epoch_max=1)
    config[section]['wrapper']['args'] = {'scale_min': 2, 'sample_q': 20}  # whole images
    write_config('c.yaml', config)
    train('--tag', 'equal')
    make_images(folder / 'images', 1, (20, 24))
    monkeypatch.setattr('datasets.image_folder.read_image', None)
    with pytest.raises(UserError, match='samples of different size cannot form a batch of .*: set batch_size: 1'):
        train()
    assert not os.path.exists(RUN)


# Changed data.

def test_changed_images_are_named_on_resume(folder, caplog):
    train()
    assert 'has changed' not in log_text()
    train('--resume', '--set', 'epoch_max=2', '--allow-change', 'epoch_max')
    assert 'has changed' not in log_text()
    Image.new('RGB', (30, 24)).save(folder / 'images' / '3.png')
    train('--resume', '--set', 'epoch_max=3', '--allow-change', 'epoch_max')
    assert 'train_dataset has changed since the checkpoint: 1 of 6 images altered, images/3.png first' in \
        log_text().replace(f'{folder}/', '')


def test_every_kind_of_change_is_told_apart(folder):
    data = loop.open_data(load_config('c.yaml'), 'train_dataset', CPU, 0).dataset.wrapper
    before = file_list(data)
    assert changes(before, copy.deepcopy(before)) == changes(None, before) == []
    os.utime(folder / 'images' / '1.png', (1, 1))
    os.unlink(folder / 'images' / '2.png')
    (folder / 'images' / '9.png').write_bytes((folder / 'images' / '1.png').read_bytes())
    data = loop.open_data(load_config('c.yaml'), 'train_dataset', CPU, 0).dataset.wrapper
    found = [re.sub(f'{folder}/images/', '', line) for line in changes(before, file_list(data))]
    assert found == ['1 of 6 images removed, 2.png first', '1 of 6 images added, 9.png first',
                     '1 of 6 images written again (same size, other time), 1.png first']


# Checkpoints.

@pytest.mark.parametrize('change', [
    lambda c: c['train'].update(step=-1), lambda c: c['train'].update(step=4), lambda c: c['train'].update(step=1.5),
    lambda c: c['train'].update(loss=[-1, 0.5]), lambda c: c['train'].update(loss=[1, float('nan')]),
    lambda c: c['train'].update(best=float('nan')), lambda c: c['train'].update(skipped=-3),
    lambda c: c.update(epoch=-2), lambda c: c['train'].update(loss=3), lambda c: c['train'].pop('best'),
    lambda c: c['optimizer']['sd']['state'].clear()])
def test_a_training_state_that_no_run_reaches_is_refused(change):
    train()
    saved = load_checkpoint(f'{RUN}/epoch-last.pth')
    change(saved)
    with pytest.raises(UserError, match='cannot be resumed from') as caught:
        State(load_config('c.yaml'), CPU, 3, saved)
    assert '\n' not in str(caught.value)


def test_the_saved_rate_is_the_one_that_the_published_code_saves():
    """Its scheduler has stepped when the checkpoint of an epoch is written."""
    schedule = {'milestones': [1, 3], 'gamma': 0.5}
    train('--set', f'multi_step_lr={schedule}', 'epoch_max=4', '--set', 'epoch_save=1',
          '--set', 'val_dataset=null')
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, **schedule)
    for epoch in range(1, 5):
        optimizer.step()
        scheduler.step()
        saved = load_checkpoint(f'{RUN}/epoch-{epoch}.pth')['optimizer']['sd']['param_groups'][0]['lr']
        assert saved == optimizer.state_dict()['param_groups'][0]['lr']


def test_a_passing_read_error_is_not_damage(monkeypatch):
    train()
    path, real = f'{RUN}/epoch-last.pth', open

    def fails(name, *args, **options):
        if str(name) == path:
            raise OSError(5, 'Input/output error')
        return real(name, *args, **options)
    with monkeypatch.context() as patched:
        patched.setattr('builtins.open', fails)
        with pytest.raises(UserError, match='cannot be read .Input/output error.: it may be intact') as caught:
            train('--resume')
    assert 'overwrite' not in str(caught.value)
    assert os.path.exists(path) and not os.path.exists(f'{path}.damaged')


def test_the_optimizer_of_a_run_folder_that_is_closed_logs_nowhere(folder):
    run = RunFolder('save/x')
    run.begin({})
    run.close()
    logging.getLogger('liif').warning('late')
    assert 'late' not in (folder / 'save/x/log.txt').read_text()


def test_an_ema_of_an_earlier_version_resumes():
    """A plain dict of averaged weights, in the order of the model."""
    train('--set', 'ema=0.9')
    saved = load_checkpoint(f'{RUN}/epoch-last.pth')
    assert list(saved['ema']) == list(saved['model']['sd'])
    save_checkpoint(f'{RUN}/epoch-last.pth', {**saved, 'ema': dict(saved['ema'])})
    state = State(load_config('c.yaml', ['ema=0.9']), CPU, 3, load_checkpoint(f'{RUN}/epoch-last.pth'))
    same(dict(state.ema.module.state_dict()), dict(saved['ema']))
