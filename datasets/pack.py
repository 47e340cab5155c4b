"""The `bin` cache: all decoded images of a folder in one memory-mapped file next to it.

Layout, little-endian: the pixels of every image (uint8, H * W * 3 bytes each, one after the other); a table of
int64 (n, 7): offset, H, W, checksum of the pixels, size, mtime (ns) and ctime (ns) of the source file; the n names as a
JSON list; a trailer with magic, n, length of the names and CRC-32 of table and names. H = 0 marks a source that could
not be decoded.

The file keeps every image that was ever asked for and whose source has not changed: data sets that use different parts
of a folder share it. It is written under another name and renamed, by one process at a time; a process that has the
old file mapped keeps it. The pixels of an image are compared with their checksum when a run first reads them.
"""
import contextlib
import errno
import fcntl
import glob
import json
import mmap
import os
import struct
import warnings
import zlib

import numpy as np
from tqdm import tqdm

from utils import UserError, atomic_write

from .images import BadImage, file_stamps, in_threads, read_image


MAGIC = b'LIIFPAK2'
TRAILER = struct.Struct('<8sQQI')
ROW = 56  # bytes of a row of the table
BLOCK = 4096  # bytes that are added up for the checksum


class Pack:
    """Images of a folder, by position in `names`: uint8 (H, W, 3), read-only views of the mapped file; None for a
    source that could not be decoded, and for pixels that do not match their checksum, with a warning."""

    def __init__(self, root, names, max_pixels, places, pixels):
        self.source = root, names, max_pixels
        self.places = places  # (n, 4) int64: offset, H, W, checksum
        self.pixels = pixels  # (bytes,) uint8, mapped
        self.state = mmap.mmap(-1, len(names))  # 0 not read yet, 1 intact, 2 damaged; shared with forked workers

    def __getitem__(self, i):
        offset, h, w, checksum = self.places[i].tolist()
        image = self.pixels[offset:offset + h * w * 3]
        if h and not self.state[i]:
            self.state[i] = 1 if _checksum(image) == checksum else 2
            if self.state[i] == 2:
                root, names, _ = self.source
                warnings.warn(f'the pixels of {names[i]} in the cache {pack_path(root)} are damaged: the image is '
                              f'decoded from its file instead; delete the cache to build it anew', stacklevel=2)
        return image.reshape(h, w, 3) if h and self.state[i] == 1 else None

    def size(self, i):
        """(H, W), without a look at the pixels; None for a source that could not be decoded."""
        h, w = self.places[i, 1:3].tolist()
        return (h, w) if h else None

    def __reduce__(self):  # to a worker that was not forked: map the file again rather than send its pixels
        return open_pack, self.source


def pack_path(root):
    """The path of the cache of the folder `root`: `_bin_<folder>.pack`, next to the folder."""
    parent, name = os.path.split(os.path.abspath(root))
    return os.path.join(parent, f'_bin_{name}.pack')


def open_pack(root, names, max_pixels):
    """The Pack of the files `names` of the folder `root`. Images that it lacks, or whose files have changed, are
    decoded and added first. Raises UserError when the cache cannot be written."""
    path = pack_path(root)
    try:
        pack = _load(path, root, names, max_pixels)
        if pack is None:
            with _lock(path) as alone:
                pack = _load(path, root, names, max_pixels)  # another process may have been faster
                if pack is None:
                    _build(path, root, names, max_pixels, alone)
            pack = pack or _load(path, root, names, max_pixels)
    except OSError as error:
        raise UserError(f'the cache {path} cannot be read or written ({error.strerror or error}): make its folder '
                        f'writable and free 3 bytes a pixel there, or use cache: in_memory or none') from error
    if pack is None:
        raise UserError(f'files of {root} change while the cache {path} is built: wait until they are complete')
    return pack


def _checksum(pixels):
    """CRC-32 of the sums of blocks of uint8 (bytes,). Sums take a tenth of the time of a CRC of all bytes; a flipped
    bit changes one of them."""
    whole = len(pixels) // BLOCK * BLOCK
    words = np.ascontiguousarray(pixels[:whole]).view(np.uint64).reshape(-1, BLOCK // 8)  # (blocks, words)
    return zlib.crc32(pixels[whole:].tobytes(), zlib.crc32(words.sum(axis=1).tobytes()))


def _load(path, root, names, max_pixels):
    """The Pack at `path` if it holds all of `names` as they are now, else None."""
    stored = _read(path)
    if stored is None:
        return None
    pixels, known, table = stored
    row = dict(zip(known, range(len(known))))
    rows = np.array([row.get(name, -1) for name in names], dtype=np.int64)
    if (rows < 0).any() or not np.array_equal(table[rows, 4:], file_stamps(root, names)):
        return None
    return Pack(root, names, max_pixels, table[rows, :4].copy(), pixels)


def _read(path):
    """(mapped pixels, names, table) of the file at `path`; None if it is missing or not complete."""
    try:
        data = np.asarray(np.memmap(path, dtype=np.uint8, mode='r'))
    except (FileNotFoundError, IsADirectoryError, ValueError):  # ValueError: an empty file
        return None
    if len(data) < TRAILER.size:
        return None
    magic, n, length, crc = TRAILER.unpack(data[-TRAILER.size:].tobytes())
    start = len(data) - TRAILER.size - length - n * ROW
    if magic != MAGIC or start < 0 or zlib.crc32(data[start:-TRAILER.size]) != crc:
        return None
    table = np.frombuffer(data[start:start + n * ROW].tobytes(), dtype='<i8').reshape(n, 7)
    if (table[:, 0] + table[:, 1] * table[:, 2] * 3).max(initial=0) != start:  # part of the pixels is lost
        return None
    names = json.loads(data[start + n * ROW:len(data) - TRAILER.size].tobytes())
    return data[:start], names, table


def _build(path, root, names, max_pixels, alone):
    """Write the file anew: its images whose files have not changed, then the missing ones of `names`."""
    if alone:  # what a killed build left behind
        for leftover in glob.glob(os.path.join(glob.escape(os.path.dirname(path)), f'.{os.path.basename(path)}.*')):
            if not leftover.endswith('.lock'):
                os.unlink(leftover)
    pixels, known, table = _read(path) or (np.zeros(0, np.uint8), [], np.zeros((0, 7), np.int64))
    valid = (table[:, 4:] == file_stamps(root, known)).all(axis=1) & (table[:, 4] >= 0)
    kept = {known[i]: i for i in np.flatnonzero(valid)}
    missing = [name for name in dict.fromkeys(names) if name not in kept]
    stamps = file_stamps(root, missing)  # before reading: a file that changes meanwhile is read again next time
    sources = tqdm([os.path.join(root, name) for name in missing], desc=f'packing {os.path.basename(path)}',
                   leave=False, disable=None)
    rows = []
    with atomic_write(path) as f:
        for i in kept.values():
            offset, h, w, checksum = table[i, :4].tolist()
            rows.append([f.tell(), h, w, checksum, *table[i, 4:].tolist()])
            f.write(pixels[offset:offset + h * w * 3].data)
        for image, stamp in zip(in_threads(lambda source: _decoded(source, max_pixels), sources), stamps.tolist()):
            h, w = image.shape[:2]
            image = np.ascontiguousarray(image).reshape(-1)
            rows.append([f.tell(), h, w, _checksum(image), *stamp])
            f.write(image.data)
        index = np.array(rows, dtype='<i8').tobytes() + json.dumps([*kept, *missing]).encode()
        f.write(index + TRAILER.pack(MAGIC, len(rows), len(index) - len(rows) * ROW, zlib.crc32(index)))


def _decoded(source, max_pixels):
    try:
        return read_image(source, max_pixels)
    except BadImage:  # reported, from the file itself, when the image is asked for
        return np.empty((0, 0, 3), np.uint8)


@contextlib.contextmanager
def _lock(path):
    """Held by one process of a machine at a time. Yields whether the lock was taken: some network file systems have no
    locks, and then several processes may do the same work, each writing a complete file."""
    with open(os.path.join(os.path.dirname(path), f'.{os.path.basename(path)}.lock'), 'w') as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX)
            alone = True
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                raise
            alone = False
        yield alone
