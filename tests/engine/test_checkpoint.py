"""Checkpoint files are looked over before anything in them is believed."""
import copy
import logging
import math
import os
import pickle
import resource
import zipfile

import numpy as np
import pytest
import torch

import models
from engine.checkpoint import (
    PUBLISHED_NORM,
    build_model,
    find_resume,
    load_checkpoint,
    load_model,
    parse_checkpoint,
    save_checkpoint,
    to_bytes,
)
from tests.common import seeds, small_spec
from tests.survival import damage_case, same
from utils import UserError


CPU = torch.device('cpu')


def checkpoint(**changes):
    """A small checkpoint with an optimizer state."""
    torch.manual_seed(0)
    spec = small_spec()
    model = models.make(spec)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    inp, coord, cell = torch.rand(1, 3, 5, 6), torch.rand(1, 7, 2), torch.rand(1, 7, 2)
    model(inp, coord, cell).sum().backward()
    optimizer.step()
    return {'model': {**spec, 'sd': model.state_dict()},
            'optimizer': {'name': 'adam', 'args': {'lr': 1e-3}, 'sd': optimizer.state_dict()}, 'epoch': 3, **changes}


def refused(path):
    """The message with which a file is refused: one line that names it."""
    with pytest.raises(UserError) as caught:
        load_model(str(path), CPU)
    message = str(caught.value)
    assert '\n' not in message and os.path.basename(path) in message
    return message


@pytest.mark.parametrize('zipped', [True, False])  # torch.save wrote another format before 1.6
def test_round_trip(tmp_path, zipped):
    wanted, path = checkpoint(), tmp_path / 'a.pth'
    torch.save(wanted, path, _use_new_zipfile_serialization=zipped)
    same(load_checkpoint(path), wanted)
    model, norm = load_model(path, CPU)
    assert norm == PUBLISHED_NORM and not model.training
    same(dict(model.state_dict()), dict(wanted['model']['sd']))


def test_our_own_normalization_and_averaged_weights(tmp_path):
    found = checkpoint(data_norm={'inp': {'sub': [0.1], 'div': [1.0]}, 'gt': {'sub': [0.2, 0.2, 0.2], 'div': [1.0]}})
    found['ema'] = {key: value + 1 for key, value in found['model']['sd'].items()}
    save_checkpoint(tmp_path / 'a.pth', found)
    model, norm = load_model(tmp_path / 'a.pth', CPU, ema=True)
    assert norm == found['data_norm']
    same(dict(model.state_dict()), found['ema'])
    save_checkpoint(tmp_path / 'b.pth', checkpoint())
    with pytest.raises(UserError, match='no averaged weights'):
        load_model(tmp_path / 'b.pth', CPU, ema=True)


def test_weights_saved_from_data_parallel(tmp_path):
    found = checkpoint()
    wanted = found['model']['sd']
    found['model']['sd'] = {f'module.{key}': value for key, value in wanted.items()}
    save_checkpoint(tmp_path / 'a.pth', {**found, 'ema': found['model']['sd']})
    same(dict(load_model(tmp_path / 'a.pth', CPU)[0].state_dict()), dict(wanted))
    same(load_checkpoint(tmp_path / 'a.pth')['ema'], dict(wanted))


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize('zipped', [True, False])
def test_code_is_not_executed(tmp_path, zipped):
    torch.save(checkpoint(extra=Hostile(str(tmp_path / 'executed'))), tmp_path / 'a.pth',
               _use_new_zipfile_serialization=zipped)
    assert 'posix.mkdir' in refused(tmp_path / 'a.pth') and not (tmp_path / 'executed').exists()
    with open(tmp_path / 'b.pth', 'wb') as f:
        pickle.dump(Hostile(str(tmp_path / 'executed')), f)
    assert 'not a checkpoint' in refused(tmp_path / 'b.pth') and not (tmp_path / 'executed').exists()


def test_text_of_a_file_does_not_reach_the_terminal_as_commands(tmp_path):
    hostile = 'a\x1b]0;title\x07\x9b2J'
    sd = checkpoint()['model']['sd']
    for found in ({hostile: 1}, {'model': {hostile: 'liif'}}, {'model': {**checkpoint()['model'], 'name': hostile}},
                  {'model': {**checkpoint()['model'], 'sd': {**sd, hostile: sd['imnet.layers.0.weight']}}}):
        torch.save(found, tmp_path / 'a.pth')
        message = refused(tmp_path / 'a.pth')
        assert message.isprintable() and 'a?]0;title??2J' in message or r"a\x1b]0;title" in message


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs named pipes')
def test_a_pipe_called_sha256sums_is_not_waited_for(tmp_path):
    torch.save(checkpoint(), tmp_path / 'a.pth')
    os.mkfifo(tmp_path / 'SHA256SUMS')
    load_model(str(tmp_path / 'a.pth'), CPU)


def test_files_of_another_kind(tmp_path):
    path = tmp_path / 'a.pth'
    assert 'does not exist' in refused(path) and 'weights that are there: clean' in refused(path)
    assert 'epoch-last.pth' in refused(tmp_path)
    for content, words in [
            (checkpoint()['model']['sd'], 'bare weights'),
            ({'state_dict': {}, 'epoch': 3}, 'a dict with state_dict, epoch'),
            (torch.zeros(3), 'a Tensor'),
            ([1, 2], 'a list'),
            ({}, 'a dict with nothing'),
            ({'model': {'name': 'liif'}}, 'its model is a dict with name'),
            (checkpoint(epoch='three'), 'its epoch is a str'),
            (checkpoint(data_norm={'inp': 0.5}), 'its data_norm'),
            (checkpoint(data_norm={'inp': {'sub': [0.5], 'div': [0]}, 'gt': {'sub': [0.5], 'div': [1]}}), 'data_norm'),
            (checkpoint(ema=[1]), 'ema holds a list'),
            ({'model': {'name': 'liif', 'args': {}, 'sd': {'a': np.zeros(3)}}}, 'more than tensors')]:
        torch.save(content, path)
        assert words in refused(path)
    for content in (b'', b'hello', b'PK', b'PK\x03\x04' + bytes(100)):
        path.write_bytes(content)
        refused(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('readme.txt', 'hello')
    refused(path)
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:  # would unpack to a thousand times its size
        archive.writestr('archive/data.pkl', bytes(10 ** 7))
    assert 'compressed' in refused(path)


def test_weights_that_are_not_those_of_the_spec(tmp_path):
    path = tmp_path / 'a.pth'

    def spoilt(change):
        found = copy.deepcopy({'model': checkpoint()['model']})
        change(found['model'])
        torch.save(found, path)
        return refused(path)

    key = 'imnet.layers.0.weight'
    assert key in spoilt(lambda m: m['sd'].pop(key))
    assert key in spoilt(lambda m: m['sd'].update({key: m['sd'][key][:1].clone()}))
    assert 'odd' in spoilt(lambda m: m['sd'].update(odd=torch.zeros(1)))
    assert 'not a plain tensor' in spoilt(lambda m: m['sd'].update({key: 3}))
    assert 'not a plain tensor' in spoilt(lambda m: m['sd'].update({key: m['sd'][key].to('meta')}))
    assert "model 'nope' is not known; known: bicubic, bilinear, edsr" in spoilt(lambda m: m.update(name='nope'))
    assert 'imnet_spc' in spoilt(lambda m: m['args'].update(imnet_spc=1))
    spoilt(lambda m: m['args']['imnet_spec']['args'].update(hidden_list='abc'))
    spoilt(lambda m: m['args']['encoder_spec']['args'].update(n_resblocks='many'))
    assert "model 'edsr-baseline': res_scale: found nan, expected a number >= 0" in \
        spoilt(lambda m: m['args']['encoder_spec']['args'].update(res_scale=float('nan')))


@pytest.mark.parametrize('change', [
    lambda args: args['imnet_spec']['args'].update(hidden_list=[10 ** 6] * 3),  # 16 TB
    lambda args: args['imnet_spec']['args'].update(hidden_list=[60000] * 60),  # 860 GB in pieces of 14 GB
    lambda args: args['encoder_spec'].update(name='rcan', args={'n_resgroups': 10 ** 6, 'n_resblocks': 10 ** 6,
                                                                'n_feats': 1, 'reduction': 1, 'no_upsampling': True}),
])
def test_a_spec_that_asks_for_an_absurd_model_takes_neither_memory_nor_time(tmp_path, change):
    found = {'model': checkpoint()['model']}
    change(found['model']['args'])
    torch.save(found, tmp_path / 'a.pth')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / 'a.pth')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_tensor_that_claims_more_than_the_file_holds(tmp_path):
    found = {'model': checkpoint()['model']}
    sd = found['model']['sd']
    sd['imnet.layers.0.weight'] = torch.zeros(1).expand(10 ** 6, 10 ** 6)
    torch.save(found, tmp_path / 'a.pth')
    assert 'larger than the whole file' in refused(tmp_path / 'a.pth')


@pytest.mark.parametrize('seed', seeds(0))
def test_damaged_checkpoints_are_refused_or_read_right(seed):
    """200 cut short, with bits flipped, with stretches overwritten: never another model, never a traceback."""
    data = bytes(to_bytes(checkpoint(train={'step': 1})))
    wanted = parse_checkpoint(data, 'whole')
    found = [damage_case(200 * seed + i, data, wanted) for i in range(200)]
    assert found.count('refused') >= 185  # the rest: bits of a date, or of the padding


def test_every_bit_of_every_tensor_is_guarded():
    """torch.load alone accepts a flipped bit in a tensor without a word."""
    wanted = {'model': checkpoint()['model']}
    data = bytearray(to_bytes(wanted))
    for value in list(wanted['model']['sd'].values()):
        start = data.find(value.contiguous().numpy().tobytes())
        assert start > 0
        data[start] ^= 1
        with pytest.raises(UserError, match='checksum'):
            parse_checkpoint(bytes(data), 'flipped')
        data[start] ^= 1
    build_model(parse_checkpoint(bytes(data), 'whole')['model'], 'whole')


def test_the_good_file_stays_until_the_new_one_is_written(tmp_path, monkeypatch):
    path, previous = tmp_path / 'epoch-last.pth', tmp_path / 'epoch-last.prev.pth'
    for epoch in (1, 2):
        save_checkpoint(path, checkpoint(epoch=epoch), previous)
    assert (load_checkpoint(path)['epoch'], load_checkpoint(previous)['epoch']) == (2, 1)

    def full(fd):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError):
        save_checkpoint(path, checkpoint(epoch=3), previous)
    assert (load_checkpoint(path)['epoch'], load_checkpoint(previous)['epoch']) == (2, 1)
    assert sorted(os.listdir(tmp_path)) == ['epoch-last.prev.pth', 'epoch-last.pth']


def test_the_newest_usable_checkpoint(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    assert find_resume(tmp_path) is None
    for name in ('epoch-best', 'epoch-9', 'epoch-10', 'epoch-last.prev', 'epoch-last'):
        path = str(tmp_path / f'{name}.pth')
        save_checkpoint(path, checkpoint())
        assert find_resume(tmp_path)[0] == path
    assert not caplog.messages
    for name in ('epoch-last', 'epoch-last.prev', 'epoch-10'):
        path = tmp_path / f'{name}.pth'
        path.write_bytes(path.read_bytes()[:-100])
    assert find_resume(tmp_path)[0] == str(tmp_path / 'epoch-9.pth')
    assert len(caplog.messages) == 3 and 'epoch-last.pth' in caplog.messages[0]


def test_overlapping_members_of_an_archive_are_refused_before_they_are_read(tmp_path):
    """1 MB of zeros that 2,000 entries of the directory share would be 2 GB to read."""
    path = tmp_path / 'a.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a/data.pkl', bytes(2 ** 20))
        archive.filelist *= 2000
    assert 'larger than the file' in refused(path)


@pytest.mark.parametrize('args, words', [({'res_scale': math.nan}, 'res_scale'), ({'n_resblocks': -1}, 'n_resblocks')])
def test_a_spec_outside_the_schema_is_refused(tmp_path, args, words):
    found = checkpoint()
    found['model']['args']['encoder_spec']['args'].update(args)
    save_checkpoint(tmp_path / 'a.pth', found)
    assert words in refused(tmp_path / 'a.pth')


@pytest.mark.parametrize('number', [10 ** 400, 1e30, math.nan, math.inf])
def test_an_absurd_normalization_is_refused(tmp_path, number):
    norm = copy.deepcopy(PUBLISHED_NORM)
    norm['inp']['sub'] = [number]
    save_checkpoint(tmp_path / 'a.pth', checkpoint(data_norm=norm))
    assert 'data_norm' in refused(tmp_path / 'a.pth')
