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
from tests.survival import LIMIT, processes


def program(path, *arguments, cwd=ROOT):
    """Run a program of the project, such as 'demo.py', or '-c' and code, in the folder `cwd`: a CompletedProcess with
    texts."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [os.path.join(folder, name) for name in ('stdout', 'stderr')]
        process = processes.Process(target=_child, args=(path, [str(a) for a in arguments], str(cwd), outputs))
        process.start()
        process.join(LIMIT)
        hangs = process.is_alive()
        if hangs:
            process.kill()
            process.join()
        texts = []
        for output in outputs:
            with open(output) as f:
                texts.append(f.read())
    assert not hangs, f'{path} hangs: {texts}'
    return subprocess.CompletedProcess([path, *arguments], process.exitcode, *texts)


def _child(path, arguments, cwd, outputs):
    os.chdir(cwd)
    for i, output in enumerate(outputs, 1):
        with open(output, 'w') as f:
            os.dup2(f.fileno(), i)
    sys.stdout, sys.stderr = (open(i, 'w', buffering=1, closefd=False) for i in (1, 2))
    multiprocessing.set_start_method('fork', force=True)  # as in a new interpreter
    torch.set_num_threads(1)
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
