"""The caches give what the files give, survive several builders, and follow the files when these change."""
import json
import multiprocessing
import os
import pickle
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from datasets import pack
from datasets.images import BadImage, read_image
from tests.image_files import folder, make_folder, make_pairs, noise, save, write_png
from utils import UserError


def all_kinds(path):
    path.mkdir()
    deep = noise(11, 6, 4, seed=2, dtype=np.uint16)
    save(path / 'grey.png', noise(9, 7))
    save(path / 'rgb.jpg', noise(12, 10, 3))
    save(path / 'rgba.png', noise(8, 9, 4))
    Image.fromarray(noise(7, 7, 3)).quantize(16).save(path / 'palette.png')
    save(path / 'grey16.png', deep[..., 0].copy())
    write_png(path / 'rgb16.png', deep[..., :3], 2)
    write_png(path / 'rgba16.png', deep, 6)
    return str(path)


def assert_same(a, b):
    assert len(a) == len(b) > 0
    for i in range(len(a)):
        assert np.array_equal(a.image(i), b.image(i)) and a.size(i) == b.size(i) == a.image(i).shape[:2]


def test_all_modes_give_the_same_pixels(tmp_path):
    root = all_kinds(tmp_path / 'a')
    plain = make_folder(root)
    for cache in ('in_memory', 'bin', 'bin'):  # built, then read back
        assert_same(plain, make_folder(root, cache=cache))
    assert sorted(os.listdir(tmp_path)) == ['._bin_a.pack.lock', '_bin_a.pack', 'a']


@pytest.mark.parametrize('cache', ['in_memory', 'bin'])
def test_a_cache_spares_the_files(tmp_path, cache, monkeypatch):
    root = folder(tmp_path / 'a', ['0.png', '1.png'])
    want = [make_folder(root).image(i) for i in range(2)]
    images = make_folder(root, cache=cache, repeat=2)
    monkeypatch.setattr('datasets.image_folder.read_image', None)
    for i in range(4):
        assert np.array_equal(images.image(i), want[i % 2])
        with pytest.raises(ValueError):
            images.image(i)[0] = 0  # the cache cannot be spoiled


def count_reads(monkeypatch):
    reads = []
    read = pack.read_image
    monkeypatch.setattr(pack, 'read_image',
                        lambda path, limit: reads.append(os.path.basename(path)) or read(path, limit))
    return reads


def test_parts_of_a_folder_share_one_file(tmp_path, monkeypatch):
    root = folder(tmp_path / 'a', [f'{i}.png' for i in range(6)])
    reads = count_reads(monkeypatch)
    few = make_folder(root, cache='bin', first_k=2)
    assert sorted(reads) == ['0.png', '1.png']  # no more than was asked for
    every = make_folder(root, cache='bin')
    assert sorted(reads) == [f'{i}.png' for i in range(6)]  # what was there was not read again
    again = make_folder(root, cache='bin', first_k=2)
    assert len(reads) == 6
    for images in (few, every, again):
        assert_same(images, make_folder(root, first_k=len(images)))


def test_changed_added_and_removed_sources(tmp_path, monkeypatch):
    root = folder(tmp_path / 'a', ['0.png', '1.png', '2.png'])
    before = make_folder(root, cache='bin')
    old = before.image(1).copy()
    reads = count_reads(monkeypatch)
    folder(tmp_path / 'a', ['1.png'], size=(5, 6), seed=9)
    assert_same(make_folder(root, cache='bin'), make_folder(root))
    assert reads == ['1.png']
    stat = os.stat(tmp_path / 'a' / '1.png')
    save(tmp_path / 'a' / '1.png', noise(5, 6, 3, seed=9))  # the same bytes at a later date
    os.utime(tmp_path / 'a' / '1.png', ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    make_folder(root, cache='bin')
    assert reads == ['1.png', '1.png']
    os.remove(tmp_path / 'a' / '0.png')
    folder(tmp_path / 'a', ['3.png'], seed=7)
    assert_same(make_folder(root, cache='bin'), make_folder(root))
    assert reads == ['1.png', '1.png', '3.png']
    assert np.array_equal(before.image(1), old)  # who had the file mapped keeps what it had


def test_a_damaged_cache_file_is_made_anew(tmp_path):
    root = folder(tmp_path / 'a', ['0.png', '1.png'])
    plain = make_folder(root)
    make_folder(root, cache='bin')
    path = tmp_path / '_bin_a.pack'
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for case in range(40):
        data = bytearray(whole[:rng.integers(len(whole))] if case % 2 else whole)
        if case % 2 == 0:
            data[rng.integers(2 * 192, len(data))] ^= 1 << rng.integers(8)  # in the index
        path.write_bytes(data)
        assert_same(plain, make_folder(root, cache='bin'))
        assert path.read_bytes() == whole
    path.write_bytes(b'')
    assert_same(plain, make_folder(root, cache='bin'))


def test_damaged_pixels_are_noticed_and_decoded_again(tmp_path):
    root = folder(tmp_path / 'a', ['0.png', '1.png'], size=(70, 90))
    plain = make_folder(root)
    make_folder(root, cache='bin')
    path = tmp_path / '_bin_a.pack'
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(30):
        data = bytearray(whole)
        at = rng.integers(2 * 70 * 90 * 3)
        data[at] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        images = make_folder(root, cache='bin')
        with pytest.warns(UserWarning, match=f'{at // (70 * 90 * 3)}.png in the cache .*_bin_a.pack are damaged'):
            assert_same(plain, images)
        with warnings.catch_warnings():
            warnings.simplefilter('error')  # once
            assert_same(plain, images)
    path.write_bytes(whole[:4096] + bytes(4096) + whole[8192:])  # a lost block
    with pytest.warns(UserWarning, match='damaged'):
        assert_same(plain, make_folder(root, cache='bin'))


def test_forked_workers_share_which_images_were_compared(tmp_path, monkeypatch):
    images = make_folder(folder(tmp_path / 'a', ['0.png', '1.png']), cache='bin')
    worker = multiprocessing.get_context('fork').Process(target=images.image, args=(0,))
    worker.start()
    worker.join(timeout=60)
    compared = []
    checksum = pack._checksum
    monkeypatch.setattr(pack, '_checksum', lambda pixels: compared.append(1) or checksum(pixels))
    images.image(0), images.image(1), images.image(1)
    assert len(compared) == 1


def test_a_lost_beginning_is_noticed(tmp_path):
    root = folder(tmp_path / 'a', ['0.png', '1.png'])
    make_folder(root, cache='bin')
    path = tmp_path / '_bin_a.pack'
    whole = path.read_bytes()
    for lost in (1, 192, 384):
        path.write_bytes(whole[lost:])
        assert_same(make_folder(root), make_folder(root, cache='bin'))
        assert path.read_bytes() == whole


def test_a_source_replaced_by_one_of_equal_size_and_date_is_noticed(tmp_path):
    root = folder(tmp_path / 'a', ['0.bmp'])
    make_folder(root, cache='bin')
    path = tmp_path / 'a' / '0.bmp'
    before = os.stat(path)
    save(path, noise(8, 8, 3, seed=5))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (os.stat(path).st_size, os.stat(path).st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert np.array_equal(make_folder(root, cache='bin').image(0), noise(8, 8, 3, seed=5))


def test_bad_files_are_reported_when_they_are_asked_for(tmp_path):
    root = folder(tmp_path / 'a', ['0.png', '1.png', '2.png'])
    (tmp_path / 'a' / '1.png').write_bytes((tmp_path / 'a' / '1.png').read_bytes()[:50])
    for cache in ('none', 'in_memory', 'bin', 'bin'):
        images = make_folder(root, cache=cache)
        assert images.image(0).shape == images.image(2).shape == (8, 8, 3)
        with pytest.raises(BadImage, match='1.png'):
            images.image(1)
    save(tmp_path / 'a' / '1.png', noise(8, 8, 3))
    assert np.array_equal(make_folder(root, cache='bin').image(1), noise(8, 8, 3))


def test_where_no_cache_can_be_written(tmp_path):
    root = folder(tmp_path / 'a', ['0.png'])
    (tmp_path / '_bin_a.pack').mkdir()  # nothing can take its place, whoever runs this
    with pytest.raises(UserError, match='_bin_a.pack cannot be read or written.*in_memory or none'):
        make_folder(root, cache='bin')
    assert sorted(os.listdir(tmp_path)) == ['._bin_a.pack.lock', '_bin_a.pack', 'a']  # nothing half-written


def test_leftovers_of_a_killed_build_are_removed(tmp_path):
    root = folder(tmp_path / 'a', ['0.png'])
    (tmp_path / '._bin_a.pack.k1ll3d').write_bytes(b'x' * 1000)
    make_folder(root, cache='bin')
    assert sorted(os.listdir(tmp_path)) == ['._bin_a.pack.lock', '_bin_a.pack', 'a']


def build(root, first_k, start, reads):
    read = pack.read_image

    def counted(path, limit):
        with reads.get_lock():
            reads.value += 1
        return read(path, limit)
    pack.read_image = counted
    start.wait(timeout=60)
    assert_same(make_folder(root, first_k=first_k), make_folder(root, cache='bin', first_k=first_k))


def test_several_processes_may_start_at_once(tmp_path):
    root = folder(tmp_path / 'a', [f'{i}.png' for i in range(40)], size=(40, 50))
    context = multiprocessing.get_context('fork')
    start, reads = context.Barrier(4), context.Value('i', 0)
    builders = [context.Process(target=build, args=(root, first_k, start, reads)) for first_k in (40, 40, 15, 30)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(timeout=120)
    assert [builder.exitcode for builder in builders] == [0] * 4
    assert reads.value == 40  # each image was decoded once, by whoever held the lock
    assert sorted(os.listdir(tmp_path)) == ['._bin_a.pack.lock', '_bin_a.pack', 'a']


def private_mb():
    with open('/proc/self/status') as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith('RssAnon'))


@pytest.mark.skipif(not os.path.exists('/proc/self/fd'), reason='counts open files and memory where Linux tells them')
def test_ten_thousand_images_cost_one_file_and_no_memory_of_their_own(tmp_path):
    root = folder(tmp_path / 'a', ['0.png'], size=(300, 300))
    for i in range(1, 10_000):
        os.link(tmp_path / 'a' / '0.png', tmp_path / 'a' / f'{i}.png')
    make_folder(root, cache='bin', first_k=20)
    with open(tmp_path / '_bin_a.pack', 'rb') as f:
        pixels = f.read(20 * 300 * 300 * 3)
    # The same 20 images stand for all: an index of 10,000 names over the same pixels.
    table = np.zeros((10_000, 7), dtype='<i8')
    names = sorted(os.listdir(root))
    table[:, 0] = np.arange(10_000) % 20 * 300 * 300 * 3
    table[:, 1:3] = 300
    table[:, 3] = pack._checksum(np.frombuffer(pixels[:300 * 300 * 3], np.uint8))
    table[:, 4:] = pack.file_stamps(root, names)
    index = table.tobytes() + json.dumps(names).encode()
    (tmp_path / '_bin_a.pack').write_bytes(pixels + index + pack.TRAILER.pack(
        pack.MAGIC, 10_000, len(index) - 560_000, zlib.crc32(index)))
    files, memory = len(os.listdir('/proc/self/fd')), private_mb()
    images = make_folder(root, cache='bin')
    total = sum(int(images.image(i)[::50, ::50].sum()) for i in range(10_000))
    assert total == 500 * sum(int(read_image(images.path(0))[::50, ::50].sum()) for _ in range(20))
    assert len(os.listdir('/proc/self/fd')) <= files + 1
    assert private_mb() - memory < 30  # of 2700 MB of pixels


def test_a_worker_that_was_not_forked_maps_the_file_again(tmp_path):
    root = folder(tmp_path / 'a', [f'{i}.png' for i in range(4)], size=(100, 100))
    images = make_folder(root, cache='bin', first_k=2)
    data = pickle.dumps(images)
    assert len(data) < 2000
    make_folder(root, cache='bin')  # the file is another one by now
    assert_same(pickle.loads(data), images)


def test_sizes_need_no_look_at_the_pixels(tmp_path):
    root = folder(tmp_path / 'images', ['a.png', 'b.png'])
    (tmp_path / 'images' / 'c.png').write_bytes(b'no image')
    images = make_folder(root, cache='bin')
    assert [images.size(i) for i in range(2)] == [images.image(i).shape[:2] for i in range(2)]
    again = make_folder(root, cache='bin')
    again.size(0)
    assert again.cached.state[0] == 0  # not compared with its checksum
    with pytest.raises(BadImage, match='c.png'):
        again.size(2)


def test_a_cache_that_cannot_be_read_is_a_line(tmp_path, monkeypatch):
    def refuse(*arguments, **more):
        raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(np, 'memmap', refuse)
    with pytest.raises(UserError, match='cannot be read or written .Permission denied'):
        make_folder(folder(tmp_path / 'images', ['a.png']), cache='bin')


def test_pairs_are_cached_each_next_to_its_folder(tmp_path):
    hr = folder(tmp_path / 'hr', ['a.png', 'b.png'])
    lr = folder(tmp_path / 'lr', ['ax2.png', 'bx2.png'], size=(4, 4))
    plain = make_pairs(lr, hr)
    for cache in ('in_memory', 'bin'):
        cached = make_pairs(lr, hr, cache=cache)
        for i in range(2):
            assert all(np.array_equal(a, b) for a, b in zip(plain.image(i), cached.image(i)))
    assert (tmp_path / '_bin_lr.pack').exists() and (tmp_path / '_bin_hr.pack').exists()
    os.remove(tmp_path / '_bin_lr.pack')
    os.rename(tmp_path / 'hr' / 'a.png', tmp_path / 'hr' / 'z.png')
    with pytest.raises(UserError, match='does not belong'):
        make_pairs(lr, hr, cache='bin')
    assert not (tmp_path / '_bin_lr.pack').exists()  # found out before a cache is made
