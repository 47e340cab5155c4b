"""What decoding costs on paper, and what GPUs can reach at most: operations and bytes per output pixel.

    python benchmarks/roofline.py

For EDSR-baseline-LIIF at the paper's sizes; docs/scaling.md explains the counts. Nothing is measured. Writes
benchmarks/results/roofline.json and the tables in docs/scaling.md.
"""
from typing import NamedTuple

import _path

from benchmarks.common import publish
from engine.evaluation.tables import markdown
from engine.runtime import Parser, run_program

FEATURES, WIDTH, HIDDEN, CORNERS = 64, 256, 3, 4  # of the encoder; of the decoder's layers; WIDTH x WIDTH layers
BLOCKS = 16  # of the encoder, two convolutions each
NODES, TAPS = 13, 8  # of the lattice with g = 6: per code and axis; read per output pixel and axis
LARGE = 'exact, chunks beyond L2'
CASES = [('textbook', 4), (LARGE, 4), *((decode, scale) for decode in ('exact', 'lattice') for scale in (4, 12, 30))]
PRECISIONS = 'bf16', 'tf32', 'float32'


class GPU(NamedTuple):
    """What its maker states: dense products, with sums in float32, in operations a second; bytes a second of the device
    memory; bytes of the L2 cache."""
    name: str
    peak: dict
    memory: float
    l2: float


GPUS = [GPU('H100 SXM', {'bf16': 989.4e12, 'tf32': 494.7e12, 'float32': 66.9e12}, 3.35e12, 50e6),
        GPU('RTX 4090', {'bf16': 165.2e12, 'tf32': 82.6e12, 'float32': 82.6e12}, 1.008e12, 72e6)]


class Cost(NamedTuple):
    """Per output pixel. operations: two per multiply-add; memory: bytes that pass through the device memory; cache:
    bytes of the chunks' layers, which pass through the L2 cache."""
    operations: float
    memory: float
    cache: float = 0.0


def width_of(precision):
    return 2 if precision == 'bf16' else 4  # bytes


def query_inputs(precision):
    """Inputs of the first layer that depend on the query: offset and cell, in bf16 in two parts."""
    return 8 if precision == 'bf16' else 4


def encode_cost(precision):
    """Per input pixel: every convolution, ReLU and sum reads from the device memory and writes to it."""
    products = 9 * FEATURES * (3 + (2 * BLOCKS + 1) * FEATURES)
    convolutions = 3 + FEATURES + 2 * FEATURES * (2 * BLOCKS + 1)
    others = 2 * FEATURES * BLOCKS + 3 * FEATURES * (BLOCKS + 1)
    return Cost(2 * products, width_of(precision) * (convolutions + others))


def table_cost(precision):
    """Per input pixel: the first layer's share of the features, read from the feature map and written."""
    return Cost(2 * 9 * FEATURES * WIDTH, width_of(precision) * (FEATURES + WIDTH))


def evaluation_cost(precision):
    """Of the decoder for one code and offset, from the table, in chunks that stay in the L2 cache; only the index and
    the query's numbers pass through the memory, written and read."""
    inputs, size = query_inputs(precision), width_of(precision)
    layers = 2 * WIDTH + 2 * WIDTH + 2 * WIDTH * HIDDEN + WIDTH + 3  # gather, first layer, hidden layers, last layer
    query = 2 * (8 + 4 * 4) + (2 * size * inputs if inputs > 4 else 0)  # index, float32 query and its two parts
    return Cost(2 * (inputs * WIDTH + HIDDEN * WIDTH ** 2 + 3 * WIDTH), query, size * layers)


def spline_operations():
    """Per evaluation of the lattice: the products that make the values of a code the coefficients of splines."""
    return 2 * 2 * 3 * NODES


def decode_cost(decode, scale, precision):
    """Of an output pixel at a scale, without the encoder."""
    size, one = width_of(precision), evaluation_cost(precision)
    table = table_cost(precision)
    if decode == 'textbook':  # every operation reads and writes the memory: gathering, joining, layers, ReLUs
        inputs = 9 * FEATURES + 4
        layers = 2 * 9 * FEATURES + 2 * inputs + (inputs + 3 * WIDTH) + HIDDEN * 4 * WIDTH + WIDTH + 3
        operations = 2 * CORNERS * (inputs * WIDTH + HIDDEN * WIDTH ** 2 + 3 * WIDTH)
        return Cost(operations, CORNERS * size * layers + 3 * size)
    per_code = (size * WIDTH + table.memory) / scale ** 2  # each row of the table is gathered once
    if decode in ('exact', LARGE):
        memory, cache = CORNERS * (one.memory + 4) + per_code + 3 * 4, CORNERS * one.cache  # 4: the corner's weight
        return Cost(CORNERS * one.operations + table.operations / scale ** 2,
                    *((memory, cache) if decode == 'exact' else (memory + cache, 0)))
    codes = NODES ** 2 / scale ** 2  # evaluations per output pixel
    # Written and read: values, with their bias, after either spline product, reordered; half-resampled strip. Result.
    strip = 4 * 3 * (10 * codes + 2 * NODES / scale + 1)
    return Cost(codes * (one.operations + spline_operations()) + table.operations / scale ** 2
                + 2 * 3 * TAPS * (1 + NODES / scale),
                codes * one.memory + per_code + strip, codes * one.cache)


def bound(gpu, cost, precision):
    """(Megapixels a second at most, what limits them, products or memory, bytes a second of the L2 cache for them)."""
    times = {'products': cost.operations / gpu.peak[precision], 'memory': cost.memory / gpu.memory}
    limit = max(times, key=times.get)
    return 1e-6 / times[limit], limit, cost.cache / times[limit]


def chunk(gpu, precision):
    """Queries decoded at a time: a layer of their corners takes half the L2 cache (models/decode.py)."""
    return int(gpu.l2 / 2 / (WIDTH * width_of(precision) * CORNERS))


def rows():
    for decode, scale in CASES:
        for precision in PRECISIONS:
            cost = decode_cost(decode, scale, precision)
            yield {'decode': decode, 'scale': scale, 'precision': precision, **cost._asdict(), 'at_most': {
                gpu.name: dict(zip(('megapixels', 'limit', 'cache_bandwidth'), bound(gpu, cost, precision)))
                for gpu in GPUS}}


def tables(found):
    counts = [[row['decode'], f'x{row["scale"]}', f'{row["operations"] / 1e6:.3f}', f'{row["memory"]:,.0f}',
               f'{row["cache"]:,.0f}'] for row in found if row['precision'] == 'bf16']
    encoder = encode_cost('bf16')
    counts.append(['encoder, per input pixel', '', f'{encoder.operations / 1e6:.3f}', f'{encoder.memory:,.0f}', ''])
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
