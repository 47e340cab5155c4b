"""What the published `utils` also exports, for decoders and scripts of the LIIF family."""
import os

import pytest
import torch

import utils
from engine import runtime
from utils import UserError


def test_make_optimizer_by_name_and_with_its_state():
    p = torch.nn.Parameter(torch.ones(3))
    adam = utils.make_optimizer([p], {'name': 'adam', 'args': {'lr': 1e-2}})
    assert type(adam) is torch.optim.Adam and adam.param_groups[0]['lr'] == 1e-2
    p.sum().backward()
    adam.step()
    again = utils.make_optimizer([p], {'name': 'adam', 'args': {'lr': 1}, 'sd': adam.state_dict()}, load_sd=True)
    assert again.param_groups[0]['lr'] == 1e-2 and again.state[p]['step'] == 1
    assert torch.equal(again.state[p]['exp_avg'], adam.state[p]['exp_avg'])
    assert type(utils.make_optimizer([p], {'name': 'sgd', 'args': {'lr': 1}})) is torch.optim.SGD
    for name in ('optimizer', 'lr_scheduler', 'adma'):
        with pytest.raises(UserError, match=f"'{name}' is not known; known: .*adam.*sgd"):
            utils.make_optimizer([p], {'name': name, 'args': {'lr': 1}})


def test_messages_are_one_line():
    assert str(UserError('folder a\nb: found none')) == 'folder a?b: found none'
    assert [utils.first_line(error) for error in (ValueError('a\nb'), ValueError(), KeyError(' '))] == \
        ['a', 'ValueError', "' '"]


@pytest.mark.parametrize('u', [-7.0, -0.6, 4.6, 99.0])
def test_positions_outside_of_the_image_take_the_value_at_its_edge(u):
    taps = [utils.resampling_taps(torch.tensor([at]), 1, 5, border='clip') for at in (u, -0.5 if u < 0 else 4.5)]
    assert all(torch.equal(a, b) for a, b in zip(*taps)) and taps[0][1].sum().item() == pytest.approx(1)


def test_counted():
    assert [utils.counted(n, 'step') for n in (0, 1, 2, 1500, 1.5)] == ['0 steps', '1 step', '2 steps', '1,500 steps',
                                                                       '1.5 steps']


def test_one_thread_is_one_thread(monkeypatch, capsys):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 1)
    assert runtime.describe_device(torch.device('cpu')).startswith('cpu (1 thread of ')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    runtime.say_once.cache_clear()
    runtime.select_device()
    assert 'the CPU (1 thread)' in capsys.readouterr().err


def test_timer(monkeypatch):
    now = iter([10.0, 12.5, 20.0, 21.0])
    monkeypatch.setattr(utils.time, 'monotonic', lambda: next(now))
    timer = utils.Timer()
    assert timer.t() == 2.5
    timer.s()
    assert timer.t() == 1.0


def test_time_text():
    assert [utils.time_text(t) for t in (0, 59.9, 59.97, 60, 90, 3480, 3599, 86399, 86400 * 2.5)] == \
        ['0.0s', '59.9s', '1.0m', '1.0m', '1.5m', '58.0m', '1.0h', '1.0d', '2.5d']


def test_compute_num_params():
    small, large = torch.nn.Linear(10, 20), torch.nn.Linear(1000, 1500)
    assert utils.compute_num_params(small) == 220 and utils.compute_num_params(small, text=True) == '0.2K'
    assert utils.compute_num_params(large, text=True) == '1.5M'


@pytest.mark.parametrize('name, answer, emptied', [('_run', None, True), ('_run/', None, True), ('run', 'y', True),
                                                   ('run', 'n', False), ('run', '', False)])
def test_ensure_path_asks_before_it_deletes(tmp_path, monkeypatch, name, answer, emptied):
    asked = []
    monkeypatch.setattr('builtins.input', lambda text: asked.append(text) or answer)
    path = f'{tmp_path}/{name}'
    utils.ensure_path(path)
    kept = os.path.join(path, 'kept')
    open(kept, 'w').close()
    utils.ensure_path(path, remove=False)
    assert os.path.exists(kept) and not asked
    utils.ensure_path(path)
    assert os.path.isdir(path) and os.path.exists(kept) is not emptied and len(asked) == (answer is not None)


def test_set_save_path_and_log(tmp_path, capsys):
    path = tmp_path / '_run'
    log, writer = utils.set_save_path(str(path))
    log('one'), log({'two': 2}), log('three', filename='other.txt'), utils.log('four')
    writer.add_scalar('loss', 0.5, 1)
    writer.close()
    assert capsys.readouterr().out == "one\n{'two': 2}\nthree\nfour\n"
    assert (path / 'log.txt').read_text() == "one\n{'two': 2}\n" and (path / 'other.txt').read_text() == 'three\n'
    assert len(os.listdir(path / 'tensorboard')) == 1
