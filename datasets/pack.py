"""The `bin` cache: all decoded images of a folder in one memory-mapped file beside it.

Layout, little-endian: the pixels of every image (uint8, H * W * 3 bytes each, one after the other); a table of
int64 (n, 5): offset, H, W, size and mtime (ns) of the source file; the n names as a JSON list; a trailer with magic,
n, length of the names and CRC-32 of table and names. H = 0 marks a source that could not be decoded.

The file holds every image that was ever asked for and still is what it was: data sets that use different parts of
a folder share it. It is written aside and renamed, by one process at a time; a process that has the old file mapped
keeps it.
"""
import contextlib
import errno
import fcntl
import glob
import json
import os
import struct
import zlib

import numpy as np
from tqdm import tqdm

from utils import UserError, atomic_write

from .images import BadImage, in_threads, read_image


MAGIC = b'LIIFPAK1'
TRAILER = struct.Struct('<8sQQI')


class Pack:
    """Images of a folder, by position in `names`: uint8 (H, W, 3), read-only views of the mapped file; None for a
    source that could not be decoded."""

    def __init__(self, root, names, max_pixels, places, pixels):
        self.source = root, names, max_pixels
        self.places = places  # (n, 3) int64: offset, H, W
        self.pixels = pixels  # (bytes,) uint8, mapped

    def __getitem__(self, i):
        offset, h, w = self.places[i].tolist()
        return self.pixels[offset:offset + h * w * 3].reshape(h, w, 3) if h else None

    def __reduce__(self):  # to a worker that was not forked: map the file again rather than send its pixels
        return open_pack, self.source


def pack_path(root):
    """Where the cache of the folder `root` lies: `_bin_<folder>.pack`, beside the folder."""
    parent, name = os.path.split(os.path.abspath(root))
    return os.path.join(parent, f'_bin_{name}.pack')


def open_pack(root, names, max_pixels):
    """The Pack of the files `names` of the folder `root`. What it lacks, or holds of another size or date, is decoded
    and added first. Raises UserError when the cache cannot be written."""
    path = pack_path(root)
    pack = _load(path, root, names, max_pixels)
    if pack is None:
        try:
            with _lock(path) as alone:
                pack = _load(path, root, names, max_pixels)  # another process may have been faster
                if pack is None:
                    _build(path, root, names, max_pixels, alone)
        except OSError as error:
            raise UserError(f'the cache {path} cannot be written ({error.strerror or error}): make its folder writable '
                            f'and free 3 bytes a pixel there, or use cache: in_memory or none') from error
        pack = pack or _load(path, root, names, max_pixels)
        if pack is None:
            raise UserError(f'files of {root} change while the cache {path} is built: wait until they are complete')
    return pack


def _stamps(root, names):
    """(n, 2) int64: size and mtime (ns) of each file, -1 for one that is missing."""
    stamps = np.full((len(names), 2), -1, dtype=np.int64)
    for i, name in enumerate(names):
        with contextlib.suppress(OSError):
            stat = os.stat(os.path.join(root, name))
            stamps[i] = stat.st_size, stat.st_mtime_ns
    return stamps


def _load(path, root, names, max_pixels):
    """The Pack at `path` when it holds all of `names` as they are now, else None."""
    stored = _read(path)
    if stored is None:
        return None
    pixels, known, table = stored
    row = dict(zip(known, range(len(known))))
    rows = np.array([row.get(name, -1) for name in names], dtype=np.int64)
    if (rows < 0).any() or not np.array_equal(table[rows, 3:], _stamps(root, names)):
        return None
    return Pack(root, names, max_pixels, table[rows, :3].copy(), pixels)


def _read(path):
    """(mapped pixels, names, table) of the file at `path`; None when there is none, or one that is not whole."""
    try:
        data = np.asarray(np.memmap(path, dtype=np.uint8, mode='r'))
    except (FileNotFoundError, IsADirectoryError, ValueError):  # ValueError: an empty file
        return None
    if len(data) < TRAILER.size:
        return None
    magic, n, length, crc = TRAILER.unpack(data[-TRAILER.size:].tobytes())
    start = len(data) - TRAILER.size - length - n * 40
    if magic != MAGIC or start < 0 or zlib.crc32(data[start:-TRAILER.size]) != crc:
        return None
    table = np.frombuffer(data[start:start + n * 40].tobytes(), dtype='<i8').reshape(n, 5)
    names = json.loads(data[start + n * 40:len(data) - TRAILER.size].tobytes())
    return data[:start], names, table


def _build(path, root, names, max_pixels, alone):
    """Write the file anew: the images it holds that are still as they were, then the missing ones of `names`."""
    if alone:  # what a killed build left behind
        for leftover in glob.glob(os.path.join(glob.escape(os.path.dirname(path)), f'.{os.path.basename(path)}.*')):
            if not leftover.endswith('.lock'):
                os.unlink(leftover)
    pixels, known, table = _read(path) or (np.zeros(0, np.uint8), [], np.zeros((0, 5), np.int64))
    valid = (table[:, 3:] == _stamps(root, known)).all(axis=1) & (table[:, 3] >= 0)
    kept = {known[i]: i for i in np.flatnonzero(valid)}
    missing = [name for name in dict.fromkeys(names) if name not in kept]
    stamps = _stamps(root, missing)  # before reading: a file that changes meanwhile is read again next time
    sources = tqdm([os.path.join(root, name) for name in missing], desc=f'packing {os.path.basename(path)}',
                   leave=False, disable=None)
    rows = []
    with atomic_write(path) as f:
        for i in kept.values():
            offset, h, w = table[i, :3].tolist()
            rows.append([f.tell(), h, w, *table[i, 3:].tolist()])
            f.write(pixels[offset:offset + h * w * 3].data)
        for image, stamp in zip(in_threads(lambda source: _decoded(source, max_pixels), sources), stamps.tolist()):
            h, w = (0, 0) if image is None else image.shape[:2]
            rows.append([f.tell(), h, w, *stamp])
            if h:
                f.write(np.ascontiguousarray(image).data)
        index = np.array(rows, dtype='<i8').tobytes() + json.dumps([*kept, *missing]).encode()
        f.write(index + TRAILER.pack(MAGIC, len(rows), len(index) - len(rows) * 40, zlib.crc32(index)))


def _decoded(source, max_pixels):
    try:
        return read_image(source, max_pixels)
    except BadImage:  # reported, from the file itself, when it is asked for
        return None


@contextlib.contextmanager
def _lock(path):
    """Held by one process of a machine at a time. Yields whether it could be had: some network file systems have
    none, and then several processes may do the same work, each writing a whole file."""
    with open(os.path.join(os.path.dirname(path), f'.{os.path.basename(path)}.lock'), 'w') as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX)
            alone = True
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                raise
            alone = False
        yield alone
