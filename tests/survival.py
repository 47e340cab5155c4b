"""Runs that are killed, run out of disk space, read damaged files or wrong configs, for the tests of several rooms.
Every case is a function of its seed; an AssertionError is a broken guarantee.

Runs are real processes, forked from a server that has torch loaded, so one costs a fraction of a second.
"""
import contextlib
import fcntl
import multiprocessing
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import torch
import torch.utils.data.dataloader as torch_loader
import yaml
from PIL import Image

import train_liif
from datasets.images import known_formats
from engine.checkpoint import build_model, load_checkpoint, parse_checkpoint
from engine.runtime import run_program
from engine.training import loop, run_folder
from utils import UserError


EVENTS = ('step', 'fsync', 'replace', 'validate', 'log')
POLITE = (signal.SIGTERM, signal.SIGINT)

processes = multiprocessing.get_context('forkserver')
# A training step imports torch._dynamo, which takes a second: once for all runs.
processes.set_forkserver_preload(['tests.survival', 'torch._dynamo', 'tensorboardX'])
known_formats()  # loads Pillow's plugins, once, too


# Tiny runs.

def make_images(folder, count=6, size=(30, 24)):
    """Images of noise in a folder; its path."""
    os.makedirs(folder, exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(os.path.join(folder, f'{i}.png'))
    return str(folder)


def tiny_config(images, **changes):
    """A config of 3 steps an epoch, the last with a smaller batch: 2 blocks of 8 features."""
    def data(batch_size, repeat, **args):
        return {'dataset': {'name': 'image-folder', 'args': {'root_path': images, 'repeat': repeat}},
                'wrapper': {'name': 'sr-implicit-downsampled',
                            'args': {'inp_size': 6, 'scale_max': 3, 'sample_q': 20, **args}},
                'batch_size': batch_size}
    return {
        'train_dataset': data(5, 2, augment=True), 'val_dataset': data(4, 1),
        'data_norm': {part: {'sub': [0.5], 'div': [0.5]} for part in ('inp', 'gt')},
        'model': {'name': 'liif', 'args': {
            'encoder_spec': {'name': 'edsr-baseline', 'args': {'n_resblocks': 2, 'n_feats': 8, 'no_upsampling': True}},
            'imnet_spec': {'name': 'mlp', 'args': {'out_dim': 3, 'hidden_list': [16, 16]}}}},
        'optimizer': {'name': 'adam', 'args': {'lr': 1e-3}},
        'epoch_max': 4, 'multi_step_lr': {'milestones': [2], 'gamma': 0.5}, 'epoch_save': 2, **changes,
    }


def write_config(path, config):
    with open(path, 'w') as f:
        yaml.safe_dump(config, f)
    return str(path)


# Processes.

LIMIT = 300  # seconds after which a run counts as hanging


def run(folder, *arguments, **options):
    """train_liif.py in `folder` with these arguments, as a separate process: (exit code, stdout and stderr).

    kill: (event, n), SIGKILL at the n-th `event` of EVENTS; or (event, n, signal). disk: no file may grow beyond so
    many bytes. Each step's (epoch, step, loss, rate) is appended to the file `record`.
    """
    return finish(start(folder, *arguments, **options))


def run_together(folder, count, *arguments, each=None, **options):
    """The same as `count` processes that train together, as torchrun would start them: a list of what `run` returns.
    each: {rank: further options}."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    shared = {'WORLD_SIZE': count, 'LOCAL_WORLD_SIZE': count, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    running = [start(folder, *arguments, **{'environment': {**shared, 'RANK': rank, 'LOCAL_RANK': rank},
                                            'record': f'steps{rank}.txt', **options, **(each or {}).get(rank, {})})
               for rank in range(count)]
    return [finish(process) for process in running]


def start(folder, *arguments, kill=None, disk=None, record='steps.txt', environment=None, threads=1):
    reader, writer = processes.Pipe(duplex=False)  # not a file, which a full disk would cut, too
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 2 ** 20)
    process = processes.Process(target=_child, args=(str(folder), arguments, kill, disk, record, writer, environment,
                                                     threads))
    process.start()
    writer.close()
    return process, reader


def killed_at_limit(process):
    """Wait for a process's end. One that has not ended after LIMIT seconds is killed: whether that was needed."""
    process.join(LIMIT)
    hangs = process.is_alive()
    if hangs:
        process.kill()
        process.join()
    return hangs


def finish(started):
    process, reader = started
    hangs = killed_at_limit(process)
    os.set_blocking(reader.fileno(), False)  # data workers of a killed process hold the other end for a while
    text = b''
    with contextlib.suppress(BlockingIOError):
        while part := os.read(reader.fileno(), 2 ** 16):
            text += part
    reader.close()
    text = text.decode(errors='replace')
    assert not hangs, f'the run hangs: {text}'
    return process.exitcode, text


def _child(folder, arguments, kill, disk, record, output, environment, threads):
    os.chdir(folder)
    os.environ.update({key: str(value) for key, value in (environment or {}).items()})
    for i in (1, 2):
        os.dup2(output.fileno(), i)
    sys.stdout, sys.stderr = (open(i, 'w', buffering=1, closefd=False) for i in (1, 2))
    multiprocessing.set_start_method('fork', force=True)  # as a program's: workers of a fork server outlive a SIGKILL
    torch.set_num_threads(threads)
    look_often_for_dead_workers()
    sys.argv = ['train_liif.py', *arguments]
    watch(kill, record)
    if disk is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (disk, disk))
    run_program(lambda: train_liif.main(list(arguments)))


def look_often_for_dead_workers():
    """Have PyTorch look every 0.2 seconds, not every 5, whether a data worker that it waits for is alive."""
    torch_loader._MultiProcessingDataLoaderIter._try_get_data.__defaults__ = (0.2,)


def watch(kill, record):
    """Count events of this process, end it at the chosen one, record the losses."""
    counts, position = dict.fromkeys(EVENTS, 0), [None]

    def counted(event, function):
        def wrapped(*args, **kwargs):
            counts[event] += 1
            if kill is not None and (event, counts[event]) == kill[:2]:
                os.kill(os.getpid(), *(kill[2:] or (signal.SIGKILL,)))
            return function(*args, **kwargs)
        return wrapped

    def seed_globals(*key, function=loop.seed_globals):
        position[0] = key[1:3]
        return function(*key)

    def train_step(net, state, batch, rate, share, function=loop.train_step):
        loss, norm = function(net, state, batch, rate, share)
        with open(record, 'a') as f:
            f.write(f'{position[0][0]} {position[0][1]} {loss.item().hex()} {float(rate).hex()}\n')
        return loss, norm

    loop.seed_globals, loop.train_step = seed_globals, counted('step', train_step)
    # No flush waits for the disk: a killed process loses nothing that it has written.
    os.fsync, os.replace = counted('fsync', lambda file: None), counted('replace', os.replace)
    loop.validate = counted('validate', loop.validate)
    run_folder.LogFile.emit = counted('log', run_folder.LogFile.emit)


def steps_of(path):
    """{(epoch, step): (loss, rate)} of a record; a step made twice must have been the same step."""
    found = {}
    with open(path) as f:
        for line in f:
            epoch, step, *values = line.split()
            assert found.setdefault((int(epoch), int(step)), values) == values, f'epoch {epoch}, step {step} changed'
    return found


def epochs_of(path):
    """{epoch: what log.txt says of it}, without the times; an epoch logged twice must read the same."""
    found = {}
    with open(path) as f:
        for line in f:
            if line.startswith('epoch ') and ', loss ' in line:
                name, text = line.split(':')[0], re.sub(r', [\d.]+[smhd] of [\d.]+[smhd]', '', line)
                assert found.setdefault(name, text) == text, f'{text} was {found[name]}'
    return found


def same(a, b, path=''):
    """Assert that two checkpoints are equal, bit for bit."""
    assert type(a) is type(b), f'{path}: {type(a)} is not {type(b)}'
    if torch.is_tensor(a):
        assert a.dtype == b.dtype and torch.equal(a, b), f'{path}: tensors differ'
    elif isinstance(a, dict):
        assert list(a) == list(b), f'{path}: {list(a)} is not {list(b)}'
        for key in a:
            same(a[key], b[key], f'{path}.{key}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            same(x, y, f'{path}[{i}]')
    else:
        assert a == b, f'{path}: {a} is not {b}'


# Killed and resumed.

def variant(rng, images):
    """A random tiny config and its number of workers."""
    changes = {'epoch_max': 8, 'seed': rng.randrange(1000), 'epoch_save': 3}
    if rng.random() < 0.5:
        changes['save_minutes'] = 1e-9  # after every step
    changes['optimizer'] = rng.choice([
        {'name': 'adam', 'args': {'lr': 1e-3}}, {'name': 'sgd', 'args': {'lr': 0.01, 'momentum': 0.9}},
        {'name': 'muon', 'args': {'lr': 0.02}}])
    if rng.random() < 0.5:
        changes['multi_step_lr'] = None
        changes['lr_scheduler'] = {'name': 'cosine', 'args': {'warmup_epochs': 1.5}}
    if rng.random() < 0.5:
        changes.update(ema=0.9, grad_clip=0.5)
    if rng.random() < 0.3:
        changes['precision'] = 'bf16'
    return tiny_config(images, **changes), rng.choice([0, 0, 0, 1, 3])


def killed_and_resumed(folder, config, workers, kills, threads=1):
    """Run a config to its end, and again with SIGKILL at each of `kills` in a row: asserts that both end alike."""
    whole, broken = os.path.join(folder, 'whole'), os.path.join(folder, 'broken')
    for path in (whole, broken):
        os.makedirs(path)
        write_config(os.path.join(path, 'c.yaml'), config)
    arguments = ['--config', 'c.yaml', '--gpu', 'cpu', '--workers', str(workers)]
    code, text = run(whole, *arguments, threads=threads)
    assert code == 0, text
    happened = 0
    for kill in kills:
        code, text = run(broken, *arguments, '--resume', kill=kill, threads=threads)
        number = kill[2] if len(kill) > 2 else signal.SIGKILL
        # A signal to end that comes before training or in its last moment has its usual effect, or none.
        assert code in (0, -number, 128 + number), text
        assert 'Traceback' not in text, text
        happened += code != 0
    code, text = run(broken, *arguments, '--resume', threads=threads)
    assert code == 0, text
    same_runs(whole, broken)
    return happened


def same_runs(whole, broken):
    """Assert that two folders hold the same run, bit for bit, and nothing unfinished."""
    assert steps_of(f'{broken}/steps.txt') == steps_of(f'{whole}/steps.txt')
    assert epochs_of(f'{broken}/save/_c/log.txt') == epochs_of(f'{whole}/save/_c/log.txt')
    names = [name for name in sorted(os.listdir(f'{whole}/save/_c')) if name.endswith('.pth')]
    for name in names:
        if 'prev' not in name:
            same(load_checkpoint(f'{whole}/save/_c/{name}'), load_checkpoint(f'{broken}/save/_c/{name}'), name)
    leftover = [name for name in os.listdir(f'{broken}/save/_c') if name.startswith('.')]
    assert not leftover, leftover


def kill_case(seed, folder, kills=10, numbers=(signal.SIGKILL,)):
    """A random config ended by signals at random events in a row. Returns how many happened before the end."""
    rng = random.Random(seed)
    config, workers = variant(rng, make_images(os.path.join(folder, 'images')))
    at = []
    for _ in range(kills):
        event = rng.choice(('step', 'step', 'step', 'fsync', 'replace', 'validate', 'log'))
        at.append((event, rng.randint(1, {'step': 7, 'validate': 2, 'log': 12}.get(event, 9)), rng.choice(numbers)))
    return killed_and_resumed(folder, config, workers, at)


def worker_case(seed, folder, kills=3):
    """A random run with two data workers, one of which is killed at a random moment, and resumed, several times: each
    time it ends in one line. Returns how many happened before the end."""
    rng = random.Random(seed)
    config, _ = variant(rng, make_images(os.path.join(folder, 'images')))
    config['epoch_max'] = 20
    whole, broken = os.path.join(folder, 'whole'), os.path.join(folder, 'broken')
    for path in (whole, broken):
        os.makedirs(path)
        write_config(os.path.join(path, 'c.yaml'), config)
    arguments = ['--config', 'c.yaml', '--gpu', 'cpu', '--workers', '2']
    code, text = run(whole, *arguments)
    assert code == 0, text
    happened = 0
    for kill in [*range(kills), None]:
        started = start(broken, *arguments, '--resume')
        if kill is not None:
            kill_worker(rng, started[0])
        code, text = finish(started)
        assert code in (0, 2) if kill is not None else code == 0, text
        if code == 2:
            check_message(text)
            assert 'which reads images, was ended by SIGKILL' in text, text
            happened += 1
    same_runs(whole, broken)
    return happened


def kill_worker(rng, process):
    """Wait for data workers of a process, then for a random time, and kill one of them if the process still runs."""
    def children():
        found = subprocess.run(['pgrep', '-P', str(process.pid)], capture_output=True, text=True).stdout
        return [int(pid) for pid in found.split()]
    while process.is_alive() and len(children()) < 2:
        time.sleep(0.05)
    process.join(rng.choice([0, 0.5, 2]) * rng.random())
    with contextlib.suppress(ProcessLookupError, IndexError):  # it, or they, have ended
        os.kill(rng.choice(children()), signal.SIGKILL)


# A full disk.

def disk_case(seed, folder):
    """A run whose files may not grow beyond a random size: it ends in one line, and every checkpoint there is good."""
    rng = random.Random(seed)
    config, workers = variant(rng, make_images(os.path.join(folder, 'images')))
    write_config(os.path.join(folder, 'c.yaml'), config)
    arguments = ['--config', 'c.yaml', '--gpu', 'cpu', '--workers', str(workers)]
    stop = rng.randint(1, 12)
    code, text = run(folder, *arguments, kill=('step', stop))
    assert code == -signal.SIGKILL, text
    before = good_checkpoints(folder)
    code, text = run(folder, *arguments, '--resume', disk=rng.choice([2000, 5000, 20000, 40000]))
    assert code == 2, text
    check_message(text)
    after = good_checkpoints(folder)
    assert set(before) <= set(after), (before, after)
    if 'epoch-last.pth' in before:
        assert after['epoch-last.pth'] >= before['epoch-last.pth']
    code, text = run(folder, *arguments, '--resume')  # there is room again
    assert code == 0, text


def good_checkpoints(folder):
    """{name: (epoch, step)} of the checkpoints of a run folder, all of which have to load."""
    path = os.path.join(folder, 'save/_c')
    names = [name for name in os.listdir(path) if name.endswith('.pth') and not name.startswith('.')] \
        if os.path.isdir(path) else []
    found = {name: load_checkpoint(os.path.join(path, name)) for name in names}
    return {name: (c['epoch'], c['train']['step']) for name, c in found.items()}


def check_message(text):
    """One `error:` line, no traceback."""
    errors = [line for line in text.splitlines() if line.startswith('error')]
    assert len(errors) == 1 and 'Traceback' not in text, text


# Damaged checkpoints.

def damage(rng, data):
    """Cut the bytes of a file somewhere, or flip a few bits, or overwrite a stretch."""
    data = bytearray(data)
    how = rng.random()
    if how < 0.4:
        return bytes(data[:rng.randrange(len(data))])
    if how < 0.8:
        for _ in range(rng.choice([1, 1, 1, 2, 10])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    else:
        start = rng.randrange(len(data))
        stretch = rng.choice([bytes(rng.randrange(1, 600)), rng.randbytes(rng.randrange(1, 600))])
        data[start:start + len(stretch)] = stretch
    return bytes(data)


def damage_case(seed, data, wanted):
    """Damage the bytes of a checkpoint `wanted`: they have to be refused, or give the very same. Returns which."""
    damaged = damage(random.Random(seed), data)
    try:
        found = parse_checkpoint(damaged, 'damaged.pth')
        build_model(found['model'], 'damaged.pth')
    except UserError as error:
        assert '\n' not in str(error)
        return 'refused'
    same(wanted, found)
    return 'same'


# Wrong configs.

def config_case(seed, folder):
    """A config with random mistakes, through the program: it runs, or says in one line why not. Returns which."""
    rng = random.Random(seed)
    config = tiny_config(make_images(os.path.join(folder, 'images')), epoch_max=1)
    for _ in range(rng.randint(1, 3)):
        spoil(rng, config)
    text = yaml.safe_dump(config)
    if rng.random() < 0.1:
        text = damage(rng, text.encode()).decode('latin-1')
    with open(os.path.join(folder, 'c.yaml'), 'w') as f:
        f.write(text)
    code, text = run(folder, '--config', 'c.yaml', '--gpu', 'cpu', '--workers', '0')
    assert code in (0, 2), text
    if code == 2:
        check_message(text)
        assert not good_checkpoints(folder), 'a config was refused too late'
    return 'ran' if code == 0 else 'refused'


def spoil(rng, config):
    """Change one place of a config."""
    places = []

    def walk(node):
        for key in list(node):
            places.append((node, key))
            if isinstance(node[key], dict):
                walk(node[key])
    walk(config)
    node, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.2:
        del node[key]
    elif kind < 0.4:
        node[rng.choice(['scale', 'lr', 'epoch', 'nmae', 'args', 'seed', 'ema'])] = node.pop(key)
    elif kind < 0.7 and isinstance(node[key], (int, float)):
        node[key] = node[key] * rng.choice([-1, 0, 2, 0.5, 1000])
    else:
        node[key] = rng.choice([None, -1, 0, 1, 3, 0.5, '1e-4', 'liif', 'adam', True, [], [1], {}, '/nowhere', 1e9])
