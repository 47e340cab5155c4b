"""Several processes that train as one: started by torchrun, on one machine or many, or by `launch` below.

Nothing else in the project knows how processes talk. With one process, what they exchange stays as it is.
"""
import datetime
import os
import shlex
import signal
import socket
import subprocess
import sys
import time

import torch
import torch.distributed as dist

from datasets.images import cores
from utils import UserError, first_line


TIMEOUT = datetime.timedelta(minutes=30)
GRACE = 20  # seconds that processes get to finish their step after a signal, or after one of them died


def rank():
    """Which process this is, from 0; known before `join`."""
    return int(os.environ.get('RANK', 0))


def is_main():
    """Whether this process has rank 0, which writes files and logs."""
    return rank() == 0


def world():
    """How many processes train together."""
    return int(os.environ.get('WORLD_SIZE', 1))


def join(device):
    """Meet the other processes; returns when all are there."""
    if world() == 1:
        return
    try:
        if device.type == 'cuda':
            dist.init_process_group('nccl', timeout=TIMEOUT, device_id=device)
        else:
            dist.init_process_group('gloo', timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        where = f'{os.environ.get("MASTER_ADDR", "?")}:{os.environ.get("MASTER_PORT", "?")}'
        raise UserError(f'process {rank()} of {world()} cannot reach the others at {where} ({first_line(error)}): '
                        f'check the address and the port that torchrun was given') from error


def joined():
    return dist.is_available() and dist.is_initialized()


def all_sum(tensor):
    """The sum of a tensor over all processes, in place; exact where all but one hold zeros."""
    if joined():
        dist.all_reduce(tensor)
    return tensor


def wait():
    """Until all processes are here."""
    if joined():
        dist.barrier()


def from_first(data, device):
    """The bytes (or None) that process 0 has, on every process: a file need not be on every machine."""
    holder = [data]
    if joined():
        dist.broadcast_object_list(holder, device=device)
    return holder[0]


def wrap(model, device):
    """The model whose backward pass averages the gradients of all processes."""
    if not joined():
        return model
    return torch.nn.parallel.DistributedDataParallel(
        model, device_ids=[device] if device.type == 'cuda' else None, gradient_as_bucket_view=True)


def leave(code):
    """End this process with an exit code, together with the others when all went well.

    The interpreter is left at once: with communication threads around, its orderly end sometimes aborts.
    """
    if code == 0:
        wait()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def lost_peer(error):
    """Whether an exception says that another process went away."""
    text = str(error)
    return joined() and isinstance(error, RuntimeError) and any(
        word in text for word in ('gloo', 'NCCL', 'Connection closed by peer', 'Connection reset by peer'))


def launch(count):
    """Run this very command as `count` processes of one machine and wait for them; returns the exit code.

    Signals to end are passed on. When one process fails, the others are ended too.
    """
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    shared = {**os.environ, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'WORLD_SIZE': str(count),
              'LOCAL_WORLD_SIZE': str(count), 'LIIF_LAUNCHER': str(os.getpid())}
    shared.setdefault('OMP_NUM_THREADS', str(max(1, cores() // count)))
    # Their own sessions: a key press reaches them once, through us, as one signal.
    processes = [subprocess.Popen([sys.executable, *sys.orig_argv[1:]], start_new_session=True,
                                  env={**shared, 'RANK': str(i), 'LOCAL_RANK': str(i)}) for i in range(count)]

    def pass_on(number, frame=None):
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        codes = [None]
        while None in codes and not any(codes):
            time.sleep(0.1)
            codes = [process.poll() for process in processes]
        if not any(codes):
            return 0
        end(processes)
        failed = min((i for i in range(count) if codes[i]), key=lambda i: codes[i] > 0)  # who was killed, if any
        code = codes[failed]
        if code < 0:
            print(f'error: process {failed} of {count} was ended by {signal.Signals(-code).name}, so the run was '
                  f'stopped; go on with: {resume_command()}', file=sys.stderr)
        return code if code > 0 else 128 - code
    finally:
        end(processes)
        for number, handler in before.items():
            signal.signal(number, handler)


def end(processes):
    """Let processes finish within the grace period, then end them."""
    deadline = time.monotonic() + GRACE
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def resume_command(*more):
    """The command, as text, that goes on with this run; more: further arguments."""
    if 'RANK' in os.environ and 'LIIF_LAUNCHER' not in os.environ:
        return f'the same torchrun command with {shlex.join(["--resume", *more])}'
    arguments = [argument for argument in sys.argv if argument not in ('--overwrite', '--resume')]
    return shlex.join(['python', *arguments, '--resume', *more])
