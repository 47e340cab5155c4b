"""The datasets' registry: `@register('name')` on a class or factory, `make(spec)` to build one.

Two kinds of thing share it. An image set offers `len`, `[i]` (float32 (3, H, W) in [0, 1], or a pair of them),
`.image(i)` (uint8 (H, W, 3), or a pair), `.size(i)` ((H, W), or a pair; the pixels are not decoded) and `.path(i)`.
A wrapper, built by `make(spec, args={'dataset': images})`, takes an image set as `dataset` and turns its images into
`inp`, `coord`, `cell`, `gt`; when it offers `.sample(index, rng)`, all its choices come from that generator, otherwise
from Python's, numpy's and torch's own.
"""
from utils import Registry


registry = Registry('dataset')
register = registry.register
make = registry.make
