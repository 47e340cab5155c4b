"""Batches are a function of (config, seed): whatever the workers, the processes, the interruption, the bad files."""
import multiprocessing
import os
import random
import signal

import numpy as np
import pytest
import torch

import datasets
from datasets.images import BadImage
from datasets.loader import BatchSampler, default_workers, make_loader, unpack
from tests.image_files import folder, make_folder, make_pairs
from utils import UserError, make_coord


pytestmark = pytest.mark.filterwarnings('ignore:This DataLoader will create')


def make_wrapper(root, **args):
    args = {'inp_size': 6, 'scale_max': 3, 'augment': True, 'sample_q': 20, **args}
    return datasets.make({'name': 'sr-implicit-downsampled', 'args': args}, {'dataset': make_folder(root, repeat=3)})


@pytest.fixture
def root(tmp_path):
    return folder(tmp_path / 'a', [f'{i}.png' for i in range(7)], size=(20, 24))


def batches(loader, epochs=(0,), step=0):
    out = []
    for epoch in epochs:
        loader.batch_sampler.set_position(epoch, step)
        out += list(loader)
    return out


def assert_equal(a, b):
    assert len(a) == len(b) > 0
    for x, y in zip(a, b):
        assert x.keys() == y.keys()
        assert all(torch.equal(x[key], y[key]) for key in x if key != 'reasons')


def test_without_workers_none_is_waited_for(root, monkeypatch):
    loader = make_loader(make_wrapper(root), 4, 0, True, 0)
    monkeypatch.setattr('time.sleep', lambda seconds: pytest.fail('waits for a process that is not there'))
    assert loader.dead_worker(patience=60) is None


def test_batches_are_compact(root):
    batch = batches(make_loader(make_wrapper(root), 4, 0, True, 0))[0]
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items()} == {
        'inp': ((4, 3, 6, 6), torch.uint8), 'gt': ((4, 20, 3), torch.uint8), 'coord': ((4, 20, 2), torch.float32),
        'cell': ((4, 1, 2), torch.float32), 'size': ((4, 2), torch.int64), 'index': ((4,), torch.int64),
        'skipped': ((4,), torch.int64)}


@pytest.mark.parametrize('train', [True, False])
def test_any_number_of_workers_gives_the_same_batches(root, train):
    runs = [batches(make_loader(make_wrapper(root), 4, 3, train, workers), epochs=(0, 1)) for workers in (0, 2, 8)]
    assert_equal(runs[0], runs[1])
    assert_equal(runs[0], runs[2])


def test_seed_and_epoch_decide(root):
    first, second, other = [batches(make_loader(make_wrapper(root), 21, seed, True, 0), epochs=(0, 1))
                            for seed in (0, 0, 1)]
    assert_equal(first, second)
    for a, b in ((first[0], first[1]), (first[0], other[0])):
        assert a['index'].tolist() != b['index'].tolist() and sorted(a['index'].tolist()) == list(range(21))
        assert sorted(a['gt'].flatten().tolist()) != sorted(b['gt'].flatten().tolist())
    same_image = [i for i in range(21) if first[0]['index'][i] % 7 == 0]
    assert len({first[0]['gt'][i].numpy().tobytes() for i in same_image}) == 3  # repeats are not the same crop


def test_a_run_goes_on_where_it_was_interrupted(root):
    whole = batches(make_loader(make_wrapper(root), 4, 0, True, 0), epochs=(5,))
    for workers in (0, 2):
        loader = make_loader(make_wrapper(root), 4, 0, True, workers)
        loader.batch_sampler.set_position(5)
        for step, _ in enumerate(loader):
            if step == 1:
                break
        assert_equal(whole[3:], batches(loader, epochs=(5,), step=3))
        assert len(loader) == len(whole) == 6


def test_evaluation_is_in_order_and_the_same_every_time(root):
    loader = make_loader(make_wrapper(root), 4, 0, False, 2)
    first, second = batches(loader, epochs=(0,)), batches(loader, epochs=(3,))
    assert_equal(first, second)
    assert torch.cat([batch['index'] for batch in first]).tolist() == list(range(21))


@pytest.mark.parametrize('world', [2, 3, 5])
def test_processes_share_each_global_batch(root, world):
    """21 samples in batches of 5, the last of 1: the parts add up, and the shares weigh them."""
    whole = batches(make_loader(make_wrapper(root), 5, 0, True, 0))
    loaders = [make_loader(make_wrapper(root), 5, 0, True, 0, rank=rank, world=world) for rank in range(world)]
    parts = [batches(loader) for loader in loaders]
    assert {len(part) for part in parts} == {len(whole)}  # every process takes every step
    for step, batch in enumerate(whole):
        shares = [loader.batch_sampler.share(step) for loader in loaders]
        assert sum(shares) == pytest.approx(1)
        counted = [part[step] for part, share in zip(parts, shares) if share > 0]
        assert sorted(torch.cat([part['index'] for part in counted]).tolist()) == sorted(batch['index'].tolist())
        mean = sum(part[step]['gt'].double().mean() * share for part, share in zip(parts, shares))
        assert mean.item() == pytest.approx(batch['gt'].double().mean().item())
        for part in counted:
            for i, index in enumerate(part['index'].tolist()):
                j = batch['index'].tolist().index(index)
                assert torch.equal(part['coord'][i], batch['coord'][j])
    assert BatchSampler(21, 5, 0, True).share(4) == 1


def test_processes_share_evaluation_by_whole_batches(root):
    whole = batches(make_loader(make_wrapper(root), 4, 0, False, 0))
    loaders = [make_loader(make_wrapper(root), 4, 0, False, 0, rank=rank, world=4) for rank in range(4)]
    parts = [batches(loader) for loader in loaders]
    assert [len(loader) for loader in loaders] == [len(part) for part in parts] == [2, 2, 1, 1]
    assert_equal(whole, [parts[step % 4][step // 4] for step in range(6)])
    alone = [batches(make_loader(make_wrapper(root), 21, 0, False, 0, rank=rank, world=2)) for rank in range(2)]
    assert [len(part) for part in alone] == [1, 0]


# Wrappers of others

class Foreign:
    """A wrapper as others write them: it draws from all three global generators, and knows no `sample`."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image = self.dataset[index]
        draws = torch.tensor([random.random(), np.random.rand(), torch.rand(1).item()], dtype=torch.float64)
        return {'inp': image[:, :4, :4], 'coord': make_coord((4, 4)), 'cell': torch.full((16, 2), 0.5),
                'gt': torch.rand(16, 3), 'draws': draws}


def test_wrappers_with_global_randomness_are_seeded_and_the_parents_state_is_kept(root):
    runs = []
    for workers in (0, 2):
        random.seed(1), np.random.seed(2), torch.manual_seed(3)
        before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
        runs.append(batches(make_loader(Foreign(make_folder(root)), 2, 0, True, workers), epochs=(0, 1)))
        assert random.getstate() == before[0] and (np.random.get_state()[1] == before[1]).all()
        assert torch.equal(torch.get_rng_state(), before[2])
    assert_equal(*runs)
    draws = torch.cat([batch['draws'] for batch in runs[0]])
    assert draws.shape == (14, 3) and all(len(set(column)) == 14 for column in draws.T.tolist())


def test_the_parents_generators_are_kept_with_our_wrappers_too(root):
    for workers in (0, 2):
        torch.manual_seed(0)
        before = torch.get_rng_state(), random.getstate()
        batches(make_loader(make_wrapper(root), 4, 0, True, workers))
        assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


# Bad input

@pytest.mark.parametrize('workers', [0, 2])
def test_a_bad_file_stops_with_one_line_naming_it(root, tmp_path, workers):
    (tmp_path / 'a' / '3.png').write_bytes(b'broken')
    with pytest.raises(UserError, match='3.png cannot be read') as error:
        batches(make_loader(make_wrapper(root), 4, 0, True, workers))
    assert '\n' not in str(error.value)


def test_bad_files_are_skipped_the_same_way_every_time(root, tmp_path):
    for name in ('3.png', '4.png'):
        (tmp_path / 'a' / name).write_bytes(b'broken')
    runs = [batches(make_loader(make_wrapper(root), 4, 0, True, workers, on_bad_image='skip')) for workers in (0, 2)]
    assert_equal(*runs)
    assert sum(batch['skipped'].sum().item() for batch in runs[0]) == 3 * (2 + 1)  # 3 skips over 4, repeated thrice
    assert sum((batch['index'] % 7 == 5).sum().item() for batch in runs[0]) == 9
    reasons = [reason for batch in runs[0] for reason in batch.get('reasons', [])]
    assert len(reasons) == 9 and {reason.split('/')[-1][:5] for reason in reasons} == {'3.png', '4.png'}
    draws = [batch['coord'][i].numpy().tobytes() for batch in runs[0] for i in range(len(batch['index']))]
    assert len(set(draws)) == 21  # a replacement has other draws
    for i in range(7):
        (tmp_path / 'a' / f'{i}.png').write_bytes(b'broken')
    with pytest.raises(UserError, match='21 images in a row cannot be used'):
        batches(make_loader(make_wrapper(root), 4, 0, True, 0, on_bad_image='skip'))


def test_images_too_small_can_be_skipped_but_not_wrong_settings(root, tmp_path):
    folder(tmp_path / 'a', ['3.png'], size=(10, 10))
    assert sum(batch['skipped'].sum().item() for batch in
               batches(make_loader(make_wrapper(root), 4, 0, True, 0, on_bad_image='skip'))) == 3
    with pytest.raises(UserError, match='on_bad_image'):
        make_loader(make_wrapper(root), 4, 0, True, 0, on_bad_image='ignore')
    with pytest.raises(UserError, match='batch_size 2.*3 processes'):
        make_loader(make_wrapper(root), 2, 0, True, 0, rank=0, world=3)
    with pytest.raises(UserError, match='seed'):
        make_loader(make_wrapper(root), 2, -1, True, 0)


@pytest.mark.parametrize('workers', [0, 2])
def test_images_of_different_size_ask_for_batch_size_1(tmp_path, workers):
    root = folder(tmp_path / 'a', ['0.png'], size=(12, 12))
    folder(tmp_path / 'a', ['1.png'], size=(12, 14))
    wrapper = datasets.make({'name': 'sr-implicit-downsampled', 'args': {'scale_min': 2}},
                            {'dataset': make_folder(root)})
    with pytest.raises(UserError, match='different size.*batch_size: 1, or inp_size') as error:
        batches(make_loader(wrapper, 2, 0, False, workers))
    assert '\n' not in str(error.value)
    assert len(batches(make_loader(wrapper, 1, 0, False, workers))) == 2


def test_a_fault_in_a_wrapper_keeps_its_traceback(root):
    class Broken(Foreign):
        def __getitem__(self, index):
            raise KeyError('a bug')
    with pytest.raises(KeyError):
        batches(make_loader(Broken(make_folder(root)), 2, 0, True, 0))


def test_workers_outlast_signals_to_end_and_compute_on_one_thread(root):
    class Probe(Foreign):
        def __getitem__(self, index):
            os.kill(os.getpid(), signal.SIGINT), os.kill(os.getpid(), signal.SIGTERM)
            return {'alarm': signal.alarm(0), 'threads': torch.get_num_threads(), 'pid': os.getpid()}
    loader = make_loader(Probe(make_folder(root)), 2, 0, True, 1)
    found = batches(loader, epochs=(0, 1))
    assert all((batch['threads'] == 1).all() and (batch['alarm'] > 0).all() for batch in found)
    assert len({pid for batch in found for pid in batch['pid'].tolist()}) == 1  # the same worker all along


def test_a_dead_worker_interrupts_nothing(root):
    before = signal.getsignal(signal.SIGCHLD)
    loader = make_loader(make_wrapper(root), 4, 0, True, 2)
    loader.batch_sampler.set_position(0)
    next(iter(loader))
    assert signal.getsignal(signal.SIGCHLD) == before  # PyTorch's own would raise anywhere
    loader.close()


def test_workers_end_at_once_after_an_error(root, tmp_path):
    (tmp_path / 'a' / '3.png').write_bytes(b'broken')
    with pytest.raises(UserError):
        batches(make_loader(make_wrapper(root), 4, 0, True, 2))
    assert not multiprocessing.active_children()


def test_workers_by_default(monkeypatch):
    monkeypatch.delenv('LOCAL_WORLD_SIZE', raising=False)
    monkeypatch.setattr('datasets.loader.cores', lambda: 12)
    assert [default_workers(16000, device) for device in ('cuda', 'mps', 'cpu')] == [8, 8, 3]
    assert default_workers(10, 'cuda') == 0
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')  # as torchrun tells
    assert default_workers(16000, 'cuda') == 3
    monkeypatch.setattr('datasets.loader.cores', lambda: 2)
    assert default_workers(16000, 'cuda') == 0


# To the device

def test_unpack_takes_the_compact_and_the_published_form_alike(root):
    wrapper = make_wrapper(root)
    compact = batches(make_loader(wrapper, 3, 0, False, 0))[0]
    batch = unpack(compact, torch.device('cpu'))
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items()} == {
        'inp': ((3, 3, 6, 6), torch.float32), 'coord': ((3, 20, 2), torch.float32),
        'cell': ((3, 1, 2), torch.float32), 'gt': ((3, 20, 3), torch.float32), 'size': ((3, 2), torch.int64)}
    assert torch.equal((batch['inp'] * 255).round().byte(), compact['inp'])

    class Published(Foreign):  # the same samples in the published form
        def __getitem__(self, index):
            random.seed(index)
            return wrapper[index]
    floats = unpack(batches(make_loader(Published(wrapper), 3, 0, False, 0))[0], torch.device('cpu'))
    random.seed(0)
    assert torch.equal(floats['inp'][0], wrapper[0]['inp']) and floats['cell'].shape == (3, 20, 2)
    third = unpack({'inp': torch.rand(1, 3, 4, 4, dtype=torch.float64), 'coord': torch.rand(1, 5, 2),
                    'cell': torch.rand(1, 5, 2), 'gt': torch.rand(1, 5, 3)}, 'cpu')
    assert third['size'] is None and third['inp'].dtype == torch.float32


def test_full_images_travel_without_coordinates(tmp_path):
    pairs = make_pairs(folder(tmp_path / 'lr', ['0x2.png'], size=(5, 6)), folder(tmp_path / 'hr', ['0.png'], (10, 12)))
    wrapper = datasets.make({'name': 'sr-implicit-paired'}, {'dataset': pairs})
    batch = unpack(batches(make_loader(wrapper, 1, 0, False, 0))[0], 'cpu')
    assert batch['coord'] is None and batch['size'].tolist() == [[10, 12]] and batch['gt'].shape == (1, 120, 3)
    assert torch.equal(wrapper[0]['coord'], make_coord((10, 12)))
    with pytest.raises(BadImage, match='lr/0x2.png is 6x5, but crops have 7x7 pixels'):
        datasets.make({'name': 'sr-implicit-paired', 'args': {'inp_size': 7}}, {'dataset': pairs}).check(0)
