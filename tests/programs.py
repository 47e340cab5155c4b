"""The project's programs as real processes that start quickly: they are forked from the server of tests/survival.py,
which has torch loaded. Tests of how a program starts from nothing use subprocess instead."""
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile

import torch

from tests.common import ROOT
from tests.survival import killed_at_limit, look_often_for_dead_workers, processes


OUTPUTS = 'stdout', 'stderr'


def program(path, *arguments, cwd=ROOT):
    """Run a program of the project, such as 'demo.py', or '-c' and code, in the folder `cwd`: as `finish`."""
    return finish(start(path, *arguments, cwd=cwd))


def start(path, *arguments, cwd=ROOT):
    """The same without waiting for its end: (process, folder of its output), for `finish`."""
    folder = tempfile.TemporaryDirectory()
    process = processes.Process(target=_child, args=(path, [str(a) for a in arguments], str(cwd), folder.name))
    process.start()
    return process, folder


def finish(started):
    """Wait for a program's end: a CompletedProcess with texts."""
    process, folder = started
    hangs = killed_at_limit(process)
    texts = []
    for name in OUTPUTS:
        with open(os.path.join(folder.name, name)) as f:
            texts.append(f.read())
    folder.cleanup()
    assert not hangs, f'the program hangs: {texts}'
    return subprocess.CompletedProcess(None, process.exitcode, *texts)


def _child(path, arguments, cwd, outputs):
    os.chdir(cwd)
    for i, name in enumerate(OUTPUTS, 1):
        with open(os.path.join(outputs, name), 'w') as f:
            os.dup2(f.fileno(), i)
    sys.stdout, sys.stderr = (open(i, 'w', buffering=1, closefd=False) for i in (1, 2))
    multiprocessing.set_start_method('fork', force=True)  # as in a new interpreter
    torch.set_num_threads(1)
    look_often_for_dead_workers()
    # The project's modules are found and loaded anew, as by a new interpreter.
    for name, module in list(sys.modules.items()):
        if _is_ours(getattr(module, '__file__', None) or sys.prefix):
            del sys.modules[name]
    code = arguments.pop(0) if path == '-c' else None
    path = os.path.join(ROOT if code is None else cwd, path)
    sys.path[:] = [os.path.dirname(path)] + [folder for folder in sys.path if not _is_ours(folder or '.')]
    sys.argv = [path, *arguments]
    if code is None:
        runpy.run_path(path, run_name='__main__')
    else:
        exec(code, {'__name__': '__main__'})


def _is_ours(path):
    path = os.path.abspath(path)
    return (path + os.sep).startswith(ROOT + os.sep) and not path.startswith(sys.prefix)
