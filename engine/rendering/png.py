"""PNG as Pillow does not do it: 16 bits a sample read and written as they are, and files of any size written row by
row, in flat memory, compressed in threads beside whatever makes the rows.
"""
import functools
import struct
import zlib

import numpy as np

from datasets.images import in_threads


COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # by the number of channels: grey, grey + alpha, RGB, RGBA
BLOCK = 1 << 20  # bytes filtered and compressed together
MAGIC = b'\x89PNG\r\n\x1a\n'
# The seven passes of an interlaced file: first row and column, steps between rows and columns.
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


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


def read_chunks(data, names=None):
    """Yield the chunks (name, data) of a PNG file, given as bytes; only those of some names when they are given."""
    at = len(MAGIC)
    while at + 8 <= len(data):
        length, name = struct.unpack_from('>I4s', data, at)
        if names is None or name in names:
            yield name, data[at + 8:at + 8 + length]
        at += 12 + length


def read_png16(data):
    """The samples of a 16-bit PNG file, given as bytes: uint16 (H, W, C). Raises ValueError for damaged data (the
    checksums of chunks are not looked at)."""
    parts = list(read_chunks(data, (b'IHDR', b'IDAT')))
    width, height, depth, kind, _, _, interlaced = struct.unpack('>IIBBBBB', parts[0][1])
    channels = {number: count for count, number in COLOUR_TYPE.items()}.get(kind)
    if depth != 16 or channels is None:
        raise ValueError(f'{depth} bits of colour type {kind}')
    pixel = 2 * channels
    passes = [(top, left, down, right, -(-(height - top) // down), -(-(width - left) // right))
              for top, left, down, right in (ADAM7 if interlaced else [(0, 0, 1, 1)])]
    passes = [part for part in passes if part[4] > 0 and part[5] > 0]
    size = sum(h * (1 + w * pixel) for *_, h, w in passes)
    try:
        raw = zlib.decompressobj().decompress(b''.join(part for name, part in parts if name == b'IDAT'), size)
    except zlib.error as error:
        raise ValueError(f'its compressed data is damaged: {error}') from None
    if len(raw) < size:
        raise ValueError('its end is missing')
    out, at = np.empty((height, width, channels), np.uint16), 0
    for top, left, down, right, h, w in passes:
        rows = np.frombuffer(raw, np.uint8, h * (1 + w * pixel), at).reshape(h, -1)
        out[top::down, left::right] = _unfilter(rows[:, 1:].reshape(h, w, pixel), rows[:, 0]).view('>u2')
        at += rows.size
    return out


def _unfilter(rows, kind):
    """Undo the filters `kind` (h,) of rows (h, w, bytes of a pixel): uint8, likewise.

    A pixel needs the one to its left and those above, so pixels are done a diagonal at a time: row r, column c goes to
    place (c + r, r) of a skewed array, in which one diagonal is one row.
    """
    if kind.max() > 4:
        raise ValueError('it uses a filter that does not exist')
    h, w, pixel = rows.shape
    skewed = np.zeros((w + h + 1, h + 1, pixel), np.uint8)  # with two diagonals and a row of zeros before it
    place = np.lib.stride_tricks.as_strided(skewed[2:, 1:], rows.shape, ((h + 2) * pixel, (h + 1) * pixel, 1))
    place[:] = rows
    use = [np.flatnonzero(kind == number) for number in (1, 2, 3, 4)]
    for t in range(2, w + h + 1):
        here, before = skewed[t, 1:], skewed[t - 1]
        left, up, corner = before[1:], before[:-1], skewed[t - 2, :-1]
        for number, at in enumerate(use, 1):
            if len(at) == 0:
                continue
            at = slice(None) if len(at) == h else at
            if number == 1:
                here[at] += left[at]
            elif number == 2:
                here[at] += up[at]
            elif number == 3:
                here[at] += ((left[at].astype(np.uint16) + up[at]) >> 1).astype(np.uint8)
            else:
                here[at] += _paeth(left[at], up[at], corner[at])
    return np.ascontiguousarray(place)


def _paeth(left, up, corner):
    """Which of the three is nearest to left + up - corner; the first of them on a tie."""
    a, b, c = (v.astype(np.int16) for v in (left, up, corner))
    by_a, by_b, by_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    return np.where((by_a <= by_b) & (by_a <= by_c), left, np.where(by_b <= by_c, up, corner))


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
    candidates = [(1, rows - left), (2, rows - up), (4, rows - _paeth(left, up, corner))]
    cost = [np.minimum(d, -d).sum(axis=1, dtype=np.int64) for _, d in candidates]  # |d| as signed bytes
    best = np.argmin(cost, axis=0)
    out = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    for i, (number, difference) in enumerate(candidates):
        out[best == i, 0] = number
        out[best == i, 1:] = difference[best == i]
    return out
