"""Several processes train as one (gloo on the CPU; NCCL differs in `join` alone)."""
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from engine import distributed
from engine.checkpoint import load_checkpoint
from tests.common import ROOT
from tests.survival import (
    epochs_of,
    good_checkpoints,
    make_images,
    run,
    run_together,
    same,
    steps_of,
    tiny_config,
    write_config,
)


ARGUMENTS = ['--config', 'c.yaml', '--gpu', 'cpu', '--workers', '0']
# 12 samples in batches of 5: 5, 5, 2. Two processes get 3 + 2, 3 + 2, 1 + 1; three get nothing of the last for one.
SGD = {'optimizer': {'name': 'sgd', 'args': {'lr': 0.05, 'momentum': 0.9}}, 'epoch_max': 3, 'grad_clip': 1.0,
       'ema': 0.9}

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='processes are forked')


def prepare(folder, **changes):
    """Write a config and its images into `folder`; its path."""
    os.makedirs(folder, exist_ok=True)
    write_config(f'{folder}/c.yaml', tiny_config(make_images(f'{folder}/images'), **{**SGD, **changes}))
    return str(folder)


def test_the_command_that_resumes(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['train_liif.py', '--config', 'c.yaml', '--overwrite'])
    for name in ('RANK', 'LIIF_LAUNCHER'):
        monkeypatch.delenv(name, raising=False)
    assert distributed.resume_command() == 'python train_liif.py --config c.yaml --resume'
    monkeypatch.setenv('RANK', '0')
    assert distributed.resume_command() == 'the same torchrun command with --resume'
    monkeypatch.setenv('LIIF_LAUNCHER', '7')
    assert distributed.resume_command() == 'python train_liif.py --config c.yaml --resume'


@pytest.fixture(scope='module')
def one(tmp_path_factory):
    """The folder of a run of one process, to compare with."""
    path = prepare(tmp_path_factory.mktemp('one'))
    code, text = run(path, *ARGUMENTS)
    assert code == 0, text
    return path


def assert_close_runs(one, many, record='steps0.txt'):
    """The same losses, rates, validation and weights to float rounding."""
    a, b = (steps_of(path) for path in (f'{one}/steps.txt', f'{many}/{record}'))
    assert a.keys() == b.keys()
    assert [rate for _, rate in a.values()] == [rate for _, rate in b.values()]
    numbers = [{name: [float(x) for x in re.findall(r'(?:loss|psnr) ([\d.]+)', text)] for name, text in
                epochs_of(f'{path}/save/_c/log.txt').items()} for path in (one, many)]
    assert numbers[0].keys() == numbers[1].keys()
    for name in numbers[0]:
        assert numbers[0][name] == pytest.approx(numbers[1][name], rel=1e-5, abs=2e-6)
    ends = [load_checkpoint(f'{path}/save/_c/epoch-last.pth') for path in (one, many)]
    for key in ('sd', 'ema'):
        weights = [(end['model']['sd'] if key == 'sd' else end['ema']) for end in ends]
        for name in weights[0]:
            assert (weights[0][name] - weights[1][name]).abs().max() <= 2e-6, name
    assert ends[0]['epoch'] == ends[1]['epoch'] and ends[0]['train']['best'] == pytest.approx(ends[1]['train']['best'])


@pytest.mark.parametrize('count', [2, 3])
def test_several_processes_make_the_steps_of_one(tmp_path, one, count):
    many = prepare(tmp_path)
    found = run_together(many, count, *ARGUMENTS)
    assert [code for code, _ in found] == [0] * count, found
    assert_close_runs(one, many)
    log = open(f'{many}/save/_c/log.txt').read()
    assert log.count('epoch 1/3') == 1 and f'{count} processes' in log  # process 0 alone writes


def test_a_run_may_go_on_with_other_numbers_of_processes(tmp_path, one):
    many = prepare(tmp_path, save_minutes=1e-9)
    assert run(many, *ARGUMENTS, kill=('step', 3), record='steps0.txt')[0] == -signal.SIGKILL
    stop = {rank: {'kill': ('step', 3, signal.SIGTERM)} for rank in (1,)}  # one process alone is told to stop
    found = run_together(many, 2, *ARGUMENTS, '--resume', each=stop)
    assert found[0][0] == found[1][0] == 128 + signal.SIGTERM and '--resume' in found[0][1], found
    code, text = run(many, *ARGUMENTS, '--resume', record='steps0.txt')
    assert code == 0, text
    made = {tuple(map(int, line.split()[:2])) for line in open(f'{many}/steps0.txt')}
    assert made == set(steps_of(f'{one}/steps.txt'))
    ends = [load_checkpoint(f'{path}/save/_c/epoch-last.pth')['model']['sd'] for path in (one, many)]
    assert all((ends[0][name] - ends[1][name]).abs().max() <= 2e-6 for name in ends[0])


def test_a_process_that_dies_ends_the_others(tmp_path):
    path = prepare(tmp_path, save_minutes=1e-9)
    found = run_together(path, 2, *ARGUMENTS, each={1: {'kill': ('step', 4)}})
    assert found[1][0] == -signal.SIGKILL and found[0][0] == 2, found
    assert 'has died' in found[0][1] and 'Traceback' not in found[0][1]
    assert good_checkpoints(path)['epoch-last.pth'] >= (0, 2)
    found = run_together(path, 2, *ARGUMENTS, '--resume')
    assert [code for code, _ in found] == [0, 0], found


def test_a_file_that_only_one_process_reads_is_named(tmp_path):
    path = prepare(tmp_path, val_dataset=None)
    image = f'{path}/images/3.png'
    with open(image, 'r+b') as f:  # its header stays good
        f.truncate(os.path.getsize(image) // 2)
    found = run_together(path, 2, *ARGUMENTS)
    assert all(code == 2 for code, _ in found), found
    assert any('3.png' in text for _, text in found) and not any('Traceback' in text for _, text in found)


ENVIRONMENT = {**os.environ, 'OMP_NUM_THREADS': '1'}


def execute(*arguments, cwd):
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True,
                          timeout=300)


def launching(kill=None):
    """Code for `python -c` that is train_liif.py with its steps recorded; process 1 is killed at `kill`."""
    return f'import os, sys; sys.path.insert(0, {ROOT!r})\n' \
           f'import train_liif; from engine.runtime import run_program; from tests.survival import watch\n' \
           f'rank = os.environ.get("RANK", "")\n' \
           f'watch({kill!r} if rank == "1" else None, f"steps{{rank}}.txt")\n' \
           f'run_program(train_liif.main)'


TWO = ['--config', 'c.yaml', '--gpu', 'cpu,cpu', '--workers', '0']  # stands for --gpu 0,1: started the same way


def test_gpu_list_starts_a_process_each(tmp_path, one):
    many = prepare(tmp_path)
    done = execute('-c', launching(), *TWO, cwd=many)
    assert done.returncode == 0, done.stderr
    assert_close_runs(one, many)


def test_launched_processes_end_with_one_that_dies(tmp_path):
    path = prepare(tmp_path, epoch_max=200, save_minutes=1e-9)
    done = execute('-c', launching(('step', 5)), *TWO, cwd=path)
    assert done.returncode != 0 and 'process 1 of 2 was ended by SIGKILL' in done.stderr, done.stderr
    assert '--resume' in done.stderr and 'Traceback' not in done.stderr
    assert good_checkpoints(path)['epoch-last.pth'] >= (0, 3)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_launched_processes_stop_with_their_launcher(tmp_path, number):
    """A signal to end is passed on; processes whose launcher is gone stop, too."""
    path = prepare(tmp_path, epoch_max=10 ** 6)
    log, deadline = f'{path}/save/_c/log.txt', time.monotonic() + 200
    with open(f'{path}/output.txt', 'w') as f:
        launcher = subprocess.Popen([sys.executable, '-c', launching(), *TWO], cwd=path, env=ENVIRONMENT, stdout=f,
                                    stderr=f)

    def wait_for(text):
        while not os.path.exists(log) or text not in open(log).read():
            assert time.monotonic() < deadline, open(f'{path}/output.txt').read()
            time.sleep(0.05)
    wait_for('epoch 2/')
    launcher.send_signal(number)
    wait_for('stopped by a signal')
    assert launcher.wait(60) == (128 + number if number == signal.SIGTERM else -number)
    assert load_checkpoint(f'{path}/save/_c/epoch-last.pth')['epoch'] >= 1


def test_torchrun(tmp_path, one):
    many = prepare(tmp_path)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    done = execute('-m', 'torch.distributed.run', '--nproc-per-node', '2', '--master-addr', '127.0.0.1',
                   '--master-port', str(port), f'{ROOT}/train_liif.py', *ARGUMENTS, cwd=many)
    assert done.returncode == 0, done.stderr
    ends = [load_checkpoint(f'{path}/save/_c/epoch-last.pth') for path in (one, many)]
    assert ends[0]['train']['best'] == pytest.approx(ends[1]['train']['best'], rel=1e-5)
    assert all((ends[0]['ema'][k] - ends[1]['ema'][k]).abs().max() <= 2e-6 for k in ends[0]['ema'])


@pytest.mark.parametrize('event', [('step', 4, signal.SIGTERM), ('validate', 1, signal.SIGINT)])
def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path, event):
    path = prepare(tmp_path)
    found = run_together(path, 2, *ARGUMENTS, each={1: {'kill': event}})
    assert all(code in (128 + event[2], 128 + signal.SIGTERM) for code, _ in found), found
    made = [set(steps_of(f'{path}/steps{rank}.txt')) for rank in (0, 1)]
    assert made[0] == made[1]
    saved = load_checkpoint(f'{path}/save/_c/epoch-last.pth')
    assert 3 * saved['epoch'] + saved['train']['step'] == len(made[0])


def test_muon_resumed_in_the_middle_of_an_epoch_on_two_processes_is_the_same_run(tmp_path):
    """Bit for bit: two processes are stopped after four steps of three an epoch."""
    changes = {'optimizer': {'name': 'muon', 'args': {'lr': 0.02}}}
    whole, path = prepare(tmp_path / 'whole', **changes), prepare(tmp_path / 'stopped', **changes)
    assert [code for code, _ in run_together(whole, 2, *ARGUMENTS)] == [0, 0]
    found = run_together(path, 2, *ARGUMENTS, each={0: {'kill': ('step', 4, signal.SIGTERM)}})
    assert [code for code, _ in found] == [128 + signal.SIGTERM] * 2, found
    assert load_checkpoint(f'{path}/save/_c/epoch-last.pth')['train']['step'] in (1, 2)
    found = run_together(path, 2, *ARGUMENTS, '--resume')
    assert [code for code, _ in found] == [0, 0], found
    for rank in (0, 1):
        assert steps_of(f'{path}/steps{rank}.txt') == steps_of(f'{whole}/steps{rank}.txt')
    ends = [load_checkpoint(f'{folder}/save/_c/epoch-last.pth') for folder in (whole, path)]
    for key in ('model', 'optimizer', 'ema', 'train'):
        same(ends[0][key], ends[1][key], key)
