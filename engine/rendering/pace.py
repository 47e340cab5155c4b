"""How fast a renderer is on this machine, and the precision to use."""
import dataclasses
import time

import torch

from engine.runtime import has_bf16


class Pace:
    """Pixels per second that a renderer encodes and decodes, from a trial of a second or so."""

    def __init__(self, renderer):
        self.tile, self.halo = renderer.tile, getattr(renderer.model, 'halo', None)
        renderer = dataclasses.replace(renderer, tile=None, self_ensemble=False, decode='exact')
        img, size = torch.rand(3, 64, 64), (96, 96) if renderer.scale is None else (64 * renderer.scale,) * 2
        for _ in range(2):  # the first round includes getting ready
            start, scene = time.perf_counter(), renderer.open(img)
            scene.render(size)
            middle = time.perf_counter()
            scene.render(size)  # from the codes of the first time
            both, decode = middle - start, time.perf_counter() - middle
            self.encode, self.decode = 64 * 64 / max(both - decode, 0.05 * both), size[0] * size[1] / decode

    def seconds(self, source, output):
        """Seconds to encode `source` pixels and decode `output` pixels."""
        again = 1.0  # how often a source pixel is encoded: tiles include what surrounds them, up to the whole image
        if self.tile is not None:
            again = max(1.0, min((self.tile + 2 * (self.halo + 1)) ** 2, source) / self.tile ** 2)
        return source * again / self.encode + output / self.decode


def fastest(renderer):
    """The renderer, or one in bfloat16 if a trial at x4 is 1.5 times as fast with it; and its Pace."""
    pace = Pace(renderer)
    if renderer.device.type == 'mps' or not has_bf16(renderer.device):
        return renderer, pace
    half = dataclasses.replace(renderer, precision='bf16')
    quick = Pace(half)
    return (half, quick) if 1.5 * quick.seconds(1, 16) < pace.seconds(1, 16) else (renderer, pace)
