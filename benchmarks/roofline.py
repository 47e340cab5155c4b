"""What decoding costs on paper, and what GPUs can reach at most: operations and bytes per output pixel.

    python benchmarks/roofline.py

For EDSR-baseline-LIIF at the paper's sizes; docs/scaling.md explains the counts. Nothing is measured. Writes
benchmarks/results/roofline.json and the tables in docs/scaling.md.
"""
import itertools
from typing import NamedTuple

import _path

import numpy as np

from benchmarks.common import publish
from engine.evaluation.tables import markdown
from engine.runtime import Parser, run_program

FEATURES, WIDTH, HIDDEN, CORNERS = 64, 256, 3, 4  # of the encoder; of the decoder's layers; WIDTH x WIDTH layers
BLOCKS = 16  # of the encoder, two convolutions each
NODES, TAPS = 13, 8  # of the lattice with g = 6: per code and axis; read per output pixel and axis
SPLINES = 2 * 2 * 3 * NODES  # operations per evaluation of the lattice, for coefficients of splines instead of values
LARGE = 'exact, chunks beyond L2'
CASES = [('textbook', 4), (LARGE, 4), *((decode, scale) for decode in ('exact', 'lattice') for scale in (4, 12, 30))]
SIZE = {'bf16': 2, 'tf32': 4, 'float32': 4}  # bytes of a number


class GPU(NamedTuple):
    """What its maker states: dense products, with sums in float32, in operations a second; bytes a second of the device
    memory; bytes of the L2 cache."""
    name: str
    peak: dict
    memory: float
    l2: float


GPUS = [GPU('H100 SXM', {'bf16': 989.4e12, 'tf32': 494.7e12, 'float32': 66.9e12}, 3.35e12, 50e6),
        GPU('RTX 4090', {'bf16': 165.2e12, 'tf32': 82.6e12, 'float32': 82.6e12}, 1.008e12, 72e6)]


# Costs are arrays of three numbers: operations, two per multiply-add; bytes that pass through the device memory; bytes
# of the chunks' layers, which pass through the L2 cache.

def encode_cost(precision):
    """Per input pixel: every convolution, ReLU and sum reads from the device memory and writes to it."""
    products = 9 * FEATURES * (3 + (2 * BLOCKS + 1) * FEATURES)
    convolutions = 3 + FEATURES + 2 * FEATURES * (2 * BLOCKS + 1)
    others = 2 * FEATURES * BLOCKS + 3 * FEATURES * (BLOCKS + 1)
    return np.array([2 * products, SIZE[precision] * (convolutions + others), 0])


def table_cost(precision):
    """Per input pixel: the first layer's share of the features, read from the feature map and written."""
    return np.array([2 * 9 * FEATURES * WIDTH, SIZE[precision] * (FEATURES + WIDTH), 0])


def evaluation_cost(precision):
    """Of the decoder for one code and offset, from the table, in chunks that stay in the L2 cache; only the index and
    the query's numbers pass through the memory, written and read."""
    half, size = precision == 'bf16', SIZE[precision]
    inputs = 8 if half else 4  # that depend on the query: offset and cell, in bf16 in two parts
    layers = 2 * WIDTH + 2 * WIDTH + 2 * WIDTH * HIDDEN + WIDTH + 3  # gather, first layer, hidden layers, last layer
    query = 2 * (8 + 4 * 4) + (2 * size * inputs if half else 0)  # index, float32 query and its two parts
    return np.array([2 * (inputs * WIDTH + HIDDEN * WIDTH ** 2 + 3 * WIDTH), query, size * layers])


def decode_cost(decode, scale, precision):
    """Of an output pixel at a scale, without the encoder."""
    size, one = SIZE[precision], evaluation_cost(precision)
    if decode == 'textbook':  # every operation reads and writes the memory: gathering, joining, layers, ReLUs
        inputs = 9 * FEATURES + 4
        layers = 2 * 9 * FEATURES + 2 * inputs + (inputs + 3 * WIDTH) + HIDDEN * 4 * WIDTH + WIDTH + 3
        operations = 2 * CORNERS * (inputs * WIDTH + HIDDEN * WIDTH ** 2 + 3 * WIDTH)
        return np.array([operations, CORNERS * size * layers + 3 * size, 0])
    table = (table_cost(precision) + [0, size * WIDTH, 0]) / scale ** 2  # each row of it is gathered once
    if decode == 'lattice':
        codes = NODES ** 2 / scale ** 2  # evaluations per output pixel
        resampling = 2 * 3 * TAPS * (1 + NODES / scale)
        # Numbers written or read: values, the bias added, two spline products, the copy in another order, each both
        # ways; the strip after the rows, both ways; the result.
        strip = 4 * 3 * (10 * codes + 2 * NODES / scale + 1)
        return codes * (one + [SPLINES, 0, 0]) + table + [resampling, strip, 0]
    cost = CORNERS * (one + [0, 4, 0]) + table + [0, 3 * 4, 0]  # the corner's weight; the result
    return cost if decode == 'exact' else np.array([cost[0], cost[1] + cost[2], 0])


def bound(gpu, cost, precision):
    """(Megapixels a second at most, what limits them, products or memory, bytes a second of the L2 cache for them)."""
    seconds, limit = max((cost[0] / gpu.peak[precision], 'products'), (cost[1] / gpu.memory, 'memory'))
    return 1e-6 / seconds, limit, cost[2] / seconds


def chunk(gpu, precision):
    """Queries decoded at a time: a layer of their corners takes half the L2 cache (models/decode.py)."""
    return int(gpu.l2 / 2 / (WIDTH * SIZE[precision] * CORNERS))


def rows():
    for (decode, scale), precision in itertools.product(CASES, SIZE):
        cost = decode_cost(decode, scale, precision)
        yield {'decode': decode, 'scale': scale, 'precision': precision,
               **dict(zip(('operations', 'memory', 'cache'), cost.tolist())),
               'at_most': {gpu.name: dict(zip(('megapixels', 'limit', 'cache_bandwidth'), bound(gpu, cost, precision)))
                           for gpu in GPUS}}


def tables(found):
    counts = [[row['decode'], f'x{row["scale"]}', f'{row["operations"] / 1e6:.3f}', f'{row["memory"]:,.0f}',
               f'{row["cache"]:,.0f}'] for row in found if row['precision'] == 'bf16']
    operations, memory, _ = encode_cost('bf16')
    counts.append(['encoder, per input pixel', '', f'{operations / 1e6:.3f}', f'{memory:,.0f}', ''])
    reach = []
    for row in found:
        cells = [row['decode'], f'x{row["scale"]}', row['precision']]
        for gpu in GPUS:
            most = row['at_most'][gpu.name]
            cells += [f'{most["megapixels"]:,.0f}', most['limit'], f'{most["cache_bandwidth"] / 1e12:.1f} TB/s'
                      if row['cache'] else '']
        reach.append(cells)
    chunks = '; '.join(f'{gpu.name} {chunk(gpu, "bf16"):,} (bf16), {chunk(gpu, "float32"):,} (float32)' for gpu in GPUS)
    return '\n\n'.join([
        markdown(['bf16, per output pixel', 'scale', 'million operations', 'bytes of device memory',
                  'bytes of L2 cache'], counts),
        f'Queries in a chunk: {chunks}.',
        markdown(['decode', 'scale', 'precision', *(head for gpu in GPUS for head in (
            f'{gpu.name}, megapixels/s', 'limited by', 'L2 cache'))], reach)])


def main(argv=None):
    Parser(__doc__).parse_args(argv)
    found = list(rows())
    publish('roofline', 'scaling.md', tables(found), gpus=[gpu._asdict() for gpu in GPUS], rows=found)


if __name__ == '__main__':
    run_program(main)
