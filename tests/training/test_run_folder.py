"""The run folder: its name, what it holds, and that it is neither written nor deleted too early."""
import logging
import os
import sys

import pytest
import torch

from engine.training.run_folder import RunFolder, folder_name
from utils import UserError


log = logging.getLogger('liif')


def test_names_of_run_folders():
    assert folder_name('configs/a/train_x.yaml') == os.path.join('save', '_train_x')
    assert folder_name('x.yaml', None, 'b') == os.path.join('save', '_x_b')
    assert folder_name('x.yaml', 'n', 'b') == os.path.join('save', 'n_b')
    for name in ('', '..', 'a/b', '../a', '/tmp'):
        with pytest.raises(UserError, match='name, tag: found'):
            folder_name('x.yaml', name)


def test_nothing_is_written_or_deleted_before_training_begins(tmp_path):
    path = tmp_path / 'run'
    folder = RunFolder(str(path))
    log.info('early')
    assert not path.exists()
    folder.begin({'seed': 0})
    log.info('late')
    assert (path / 'log.txt').read_text().splitlines()[0] == 'early' and (path / 'config.yaml').exists()
    with pytest.raises(UserError, match='resume it, overwrite it'):
        RunFolder(str(path))
    again = RunFolder(str(path), overwrite=True)
    log.info('early')
    assert 'late' in (path / 'log.txt').read_text()
    again.begin({'seed': 0})
    assert 'late' not in (path / 'log.txt').read_text()


def test_without_tensorboardx_training_goes_on_and_says_so(tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split('.')[0] == 'tensorboardX'] + ['tensorboardX']:
        monkeypatch.setitem(sys.modules, name, None)
    folder = RunFolder(str(tmp_path / 'run'))
    folder.begin({})
    folder.open_curves(0)
    folder.scalars({'loss': 1.0}, 0)
    assert 'tensorboardX is not installed' in capsys.readouterr().out


def read_events(run):
    event_pb2 = pytest.importorskip('tensorboardX.proto.event_pb2')
    path, = (run / 'tensorboard').iterdir()
    data, events = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], 'little')
        events.append(event_pb2.Event.FromString(data[12:12 + size]))
        data = data[16 + size:]
    return events


def test_curves_can_be_read_back(tmp_path):
    folder = RunFolder(str(tmp_path / 'run'))
    folder.begin({})
    folder.open_curves(7)
    folder.scalars({'loss/train': 0.25}, 8)
    folder.images({'val/0/input': torch.rand(3, 5, 6)}, 8)
    events = read_events(tmp_path / 'run')
    assert events[0].file_version and events[1].session_log.status == 1  # a start
    assert events[1].step == 7 and events[2].summary.value[0].simple_value == 0.25
    assert (events[3].summary.value[0].image.height, events[3].summary.value[0].image.width) == (5, 6)
