"""Writing PNG as Pillow does not: 16 bits per sample, and files of any size row by row in constant memory, compressed
in threads while the next rows are made. `isal` (optional) makes the compression several times faster.
"""
import functools
import struct
import zlib

import numpy as np

from datasets.images import in_threads


try:
    from isal import isal_zlib
except ImportError:
    isal_zlib = None

COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # by the number of channels: grey, grey + alpha, RGB, RGBA
BLOCK = 1 << 20  # bytes filtered and compressed together


def write_png(f, bands, size, channels, depth, chunks=()):
    """Write a PNG file to the binary file `f`.

    bands: uint8 or uint16 arrays (rows, W, channels), from the top down; size: (H, W) of all of them; channels: 1 to
    4; depth: 8 or 16 bits; chunks: (name, data) pairs that go before the pixels, such as (b'pHYs', ...).
    """
    height, width = size
    f.write(b'\x89PNG\r\n\x1a\n')
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


def _chunk(f, name, data):
    f.write(struct.pack('>I', len(data)) + name)
    f.write(data)
    f.write(struct.pack('>I', zlib.crc32(data, zlib.crc32(name))))


def _blocks(bands, depth):
    """Yield (row above the first, rows (n, bytes of a row)) in blocks: the filters need the row above."""
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
    """(deflated bytes, the filtered rows (n, 1 + bytes of a row) in them); pixel: bytes of one pixel."""
    filtered = _filter(*block, pixel)
    if isal_zlib:
        deflate = isal_zlib.compressobj(2, isal_zlib.DEFLATED, -15)
    else:
        deflate = zlib.compressobj(6, zlib.DEFLATED, -15, 9, zlib.Z_FILTERED)
    return deflate.compress(filtered) + deflate.flush(zlib.Z_FULL_FLUSH), filtered


def _filter(above, rows, pixel):
    """Filter each row by left, up or Paeth, whichever leaves the smallest differences; its number goes first."""
    up = np.concatenate([above[None], rows[:-1]])
    left, corner = np.zeros_like(rows), np.zeros_like(rows)
    left[:, pixel:], corner[:, pixel:] = rows[:, :-pixel], up[:, :-pixel]
    candidates = [(1, rows - left), (2, rows - up), (4, rows - _paeth(left, up, corner))]
    cost = [np.minimum(d, -d).sum(axis=1, dtype=np.int64) for _, d in candidates]  # |d| as signed bytes
    best = np.argmin(cost, axis=0)
    out = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    for i, (number, difference) in enumerate(candidates):
        out[best == i, 0] = number
        out[best == i, 1:] = difference[best == i]
    return out


def _paeth(left, up, corner):
    """Which of the three is nearest to left + up - corner; the first of them on a tie."""
    a, b, c = (v.astype(np.int16) for v in (left, up, corner))
    by_a, by_b, by_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    return np.where((by_a <= by_b) & (by_a <= by_c), left, np.where(by_b <= by_c, up, corner))
