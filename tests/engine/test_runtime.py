"""Devices, the end of programs, signals."""
import os
import signal

import pytest
import torch

from engine import runtime
from utils import UserError


@pytest.mark.parametrize('count, gpu, wanted', [
    (0, 'cpu', 'cpu'), (2, 'cpu', 'cpu'), (2, '1', 'cuda:1'), (2, None, 'cuda:0'), (0, None, 'cpu'),
    (0, '0', UserError), (2, '2', UserError), (2, '-1', UserError), (2, 'a', UserError), (2, '', UserError),
    (2, '0,0', UserError), (2, '0,cpu', UserError), (2, '0,1', UserError)])
def test_devices(monkeypatch, capsys, count, gpu, wanted):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: count > 0)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    current = []
    monkeypatch.setattr(torch.cuda, 'set_device', current.append)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,7')
    if wanted is UserError:
        with pytest.raises(UserError) as caught:
            runtime.select_device(gpu)
        assert '\n' not in str(caught.value)
    else:
        runtime.say_once.cache_clear()
        assert {str(runtime.select_device(gpu)) for _ in range(3)} == {wanted}
        assert capsys.readouterr().err.count('no CUDA GPU found') == (gpu is None and count == 0)
        assert list(map(str, current)) == [wanted] * (3 * (wanted != 'cpu'))
    assert os.environ['CUDA_VISIBLE_DEVICES'] == '5,7'


def test_processes_take_a_device_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda device: None)
    monkeypatch.setenv('LOCAL_RANK', '1')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    assert str(runtime.select_device(None)) == 'cuda:1'
    assert str(runtime.select_device('0,3')) == 'cuda:3'
    with pytest.raises(UserError, match='2 processes would share it'):
        runtime.select_device('3')


def test_programs_end_in_one_line_or_with_a_traceback(capsys):
    def ends(error):
        def main():
            raise error
        with pytest.raises(SystemExit) as caught:
            runtime.run_program(main)
        return caught.value.code, capsys.readouterr().err
    assert ends(UserError('what to do')) == (2, 'error: what to do\n')
    code, text = ends(OSError(28, 'No space left on device', 'out.png'))
    assert code == 2 and text.startswith('error: out.png cannot be written') and text.count('\n') == 1
    assert ends(SystemExit(143))[0] == 143
    assert ends(KeyboardInterrupt())[0] == 130
    with pytest.raises(KeyError):
        ends(KeyError('a bug'))


@pytest.mark.parametrize('error, words', [
    (NotADirectoryError(20, 'Not a directory', 'a/b'), 'a/b cannot be used (Not a directory)'),
    (PermissionError(13, 'Permission denied', 'a'), 'a cannot be used (Permission denied)'),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 'the memory is not enough'),
    (MemoryError(), 'the memory is not enough (MemoryError)'), (PermissionError('of a socket'), None),
    (RuntimeError('shapes differ'), None)])
def test_what_the_user_can_fix_is_a_line(error, words):
    assert words is None and runtime.explain(error) is None or runtime.explain(error).startswith(words)


def test_signals_are_remembered_and_a_second_key_press_is_obeyed():
    with runtime.StopSignals() as stop:
        assert not stop.asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 0)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
