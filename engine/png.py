"""Write PNG files of 8 or 16 bits row by row, in memory that does not grow with the picture.

Pillow writes 16-bit grey alone, and every picture from memory. Filtering and compression run in threads beside
whatever makes the rows.
"""
import functools
import struct
import zlib

import numpy as np

from datasets.images import in_threads

COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # by the number of channels: grey, grey + alpha, RGB, RGBA
BLOCK = 1 << 20  # bytes filtered and compressed together
MAGIC = b'\x89PNG\r\n\x1a\n'


def write_png(f, bands, size, channels, depth, chunks=()):
    """bands: uint8 or uint16 arrays (rows, W, C), from the top down, (H, W) = size in all; depth: 8 or 16;
    chunks: (name, data) pairs that go before the pixels, such as (b'pHYs', ...)."""
    height, width = size
    f.write(MAGIC)
    _chunk(f, b'IHDR', struct.pack('>IIBBBBB', width, height, depth, COLOUR_TYPE[channels], 0, 0, 0))
    for name, data in chunks:
        _chunk(f, name, data)
    # One zlib stream from parts deflated separately: header, parts that end on a byte, an empty last part, checksum.
    checksum, rows = 1, 0
    _chunk(f, b'IDAT', b'\x78\x9c')
    for compressed, filtered in in_threads(functools.partial(_compress, channels * depth // 8), _blocks(bands, depth)):
        checksum = zlib.adler32(filtered, checksum)
        rows += len(filtered)
        _chunk(f, b'IDAT', compressed)
    assert rows == height, f'{rows} rows of {height} were written'
    _chunk(f, b'IDAT', b'\x03\x00' + struct.pack('>I', checksum))
    _chunk(f, b'IEND', b'')


def read_chunks(data, names):
    """The chunks (name, data) of these names that stand before the pixels of a PNG file, given as bytes."""
    found, at = [], len(MAGIC)
    while at + 8 <= len(data):
        length, name = struct.unpack_from('>I4s', data, at)
        if name == b'IDAT':
            break
        if name in names:
            found.append((name, data[at + 8:at + 8 + length]))
        at += 12 + length
    return found


def _chunk(f, name, data):
    f.write(struct.pack('>I', len(data)) + name)
    f.write(data)
    f.write(struct.pack('>I', zlib.crc32(data, zlib.crc32(name))))


def _blocks(bands, depth):
    """Rows as bytes, (n, W * C * depth / 8), each with the row above the first, which filters need."""
    above = None
    for band in bands:
        rows = np.ascontiguousarray(band, dtype='>u2' if depth == 16 else np.uint8)
        rows = rows.view(np.uint8).reshape(len(rows), -1)
        above = np.zeros_like(rows[0]) if above is None else above
        step = max(1, BLOCK // rows.shape[1])
        for top in range(0, len(rows), step):
            yield above, rows[top:top + step]
            above = rows[min(top + step, len(rows)) - 1]


def _compress(pixel, block):
    """Deflated bytes, and the filtered rows (n, 1 + bytes of a row) they stand for; pixel: bytes of one pixel."""
    filtered = _filter(*block, pixel)
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15, 9, zlib.Z_FILTERED)
    return deflate.compress(filtered) + deflate.flush(zlib.Z_FULL_FLUSH), filtered


def _filter(above, rows, pixel):
    """Each row by the filter (left, up or Paeth, whose number goes first) that leaves the smallest differences."""
    up = np.concatenate([above[None], rows[:-1]])
    left, corner = np.zeros_like(rows), np.zeros_like(rows)
    left[:, pixel:], corner[:, pixel:] = rows[:, :-pixel], up[:, :-pixel]
    a, b, c = (v.astype(np.int16) for v in (left, up, corner))
    by_a, by_b, by_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)  # distances from left + up - corner
    paeth = np.where((by_a <= by_b) & (by_a <= by_c), left, np.where(by_b <= by_c, up, corner))
    candidates = [(1, rows - left), (2, rows - up), (4, rows - paeth)]
    cost = [np.minimum(d, -d).sum(axis=1, dtype=np.int64) for _, d in candidates]  # |d| as signed bytes
    best = np.argmin(cost, axis=0)
    out = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    for i, (number, difference) in enumerate(candidates):
        out[best == i, 0] = number
        out[best == i, 1:] = difference[best == i]
    return out
