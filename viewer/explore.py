"""Look around in an image: any view of it, rendered piece by piece, roughly first, given up when nobody looks any more.

Only what is visible is encoded, in windows that are kept, so moving costs what comes into sight, and going back
nothing. A window is cut out with the surroundings that its encoder sees, hence equal to that part of the whole image
to float rounding.
"""
import math
import time

import numpy as np
import torch
from PIL import Image

from engine.rendering.api import to_numpy


GRID = 16  # windows begin and end at multiples of this many source pixels
STEP = 0.25  # seconds of decoding after which it is asked whether to go on
FIRST = 0.5  # seconds that decoding a first, rough view should take
WINDOW = 1.5  # seconds that encoding a window may take; small ones, surroundings included, cost more in all
BENEFIT = 1.25  # how many times finer than the source a rough view is at least; else it would show nothing new


class Explorer:
    """One image under a renderer. pixels: uint8 (h, w, 3); pace: a Pace; lock: held while the model computes, by all
    explorers of a renderer."""

    def __init__(self, renderer, pixels, pace, lock):
        self.renderer, self.pixels, self.pace, self.lock = renderer, pixels, pace, lock
        self.size = pixels.shape[:2]
        self.image = Image.fromarray(pixels)
        self.windows = []  # (rectangle it serves, its origin, Scene, source pixels it holds), the latest first
        self.halo = getattr(renderer.model, 'halo', None)
        self.budget = renderer.memory // (4 * getattr(renderer.model, 'floats_per_pixel', 1000))  # source pixels

    def bicubic(self, region, size):
        """The region (x, y, width, height) at size (H, W) by Pillow's bicubic interpolation: uint8 (H, W, 3)."""
        x, y, w, h = region
        box = (x, y, min(x + w, self.size[1]), min(y + h, self.size[0]))
        return np.asarray(self.image.resize(size[::-1], Image.BICUBIC, box=box))

    def stream(self, region, size, alive=lambda: True, rough=True):
        """Yield (grid, top, left, uint8 (rows, columns, 3)): pieces of the region (x, y, width, height) at size (H, W).

        Pieces lie on a grid (H', W') that is coarser than `size` at first, if `rough` and if it pays, and equal to it
        in the end; those in the middle come first. Ends early once `alive()` is false. Up to x1 there is nothing for
        LIIF to add, and the picture is only resized.
        """
        scale = min(size[0] / region[3], size[1] / region[2])
        if scale <= 1:
            yield size, 0, 0, self.bicubic(region, size)
            return
        middle = region[0] + region[2] / 2, region[1] + region[3] / 2
        pieces = sorted(self._pieces(region), key=lambda r: math.dist(middle, ((r[0] + r[2]) / 2, (r[1] + r[3]) / 2)))
        for grid in ([self._rough(size, scale)] if rough else []) + [size]:
            for piece in pieces if grid else ():
                for part in self._render(piece, region, grid, alive):
                    yield grid, *part
                if not alive():
                    return

    def render(self, region, size, alive=lambda: True):
        """The region at size (H, W), finished: uint8 (H, W, 3); None when `alive()` became false."""
        out = np.empty((*size, 3), np.uint8)
        for _, top, left, pixels in self.stream(region, size, alive=alive, rough=False):
            out[top:top + pixels.shape[0], left:left + pixels.shape[1]] = pixels
        return out if alive() else None

    def bands(self, region, size, alive=lambda: True):
        """Yield bands of rows, uint8 (rows, W, 3), that make up the region at size (H, W), however large."""
        x, y, w, h = region
        rows = max(1, min(math.ceil(64 * size[0] / h), (4 << 20) // size[1]))
        for top in range(0, size[0], rows):
            n = min(rows, size[0] - top)
            band = self.render((x, y + h * top / size[0], w, h * n / size[0]), (n, size[1]), alive)
            if band is None:
                return
            yield band

    def _rough(self, size, scale):
        """The grid of a first view: None where the finished one is as quick, or a coarser one would show nothing."""
        pixels = size[0] * size[1]
        times = math.ceil(math.sqrt(pixels / (self.pace.decode * FIRST)))
        times = min(times, int(scale / BENEFIT))
        return None if times < 2 else tuple(max(1, round(n / times)) for n in size)

    def _pieces(self, region):
        """Rectangles (left, top, right, bottom) of the source that cover the region, each in one window or in none."""
        h, w = self.size
        if self.halo is None:
            return [(0, 0, w, h)]
        x, y, width, height = region
        left, top = (math.floor(v / GRID) * GRID for v in (x, y))
        right, bottom = (math.ceil(v / GRID) * GRID for v in (x + width, y + height))
        seen = (max(left, 0), max(top, 0), min(right, w), min(bottom, h))
        side = math.sqrt(self.pace.encode * WINDOW) - 2 * self.halo
        side = max(6 * GRID, min(64 * GRID, int(side / GRID) * GRID))
        found = []
        for rectangle, known in _split(seen, [window[0] for window in self.windows]):
            found += [rectangle] if known else _parts(rectangle, side)
        return found

    def _window(self, piece):
        """(origin, Scene) of a window that holds the piece, encoded now if there is none."""
        for i, window in enumerate(self.windows):
            if _inside(piece, window[0]):
                self.windows.insert(0, self.windows.pop(i))
                return window[1:3]
        h, w = self.size
        margin = max(h, w) if self.halo is None else self.halo + 2
        left, top = max(piece[0] - margin, 0), max(piece[1] - margin, 0)
        crop = self.pixels[top:min(piece[3] + margin, h), left:min(piece[2] + margin, w)]
        start = time.perf_counter()
        scene = self.renderer.open(torch.from_numpy(crop.transpose(2, 0, 1).astype(np.float32)) / 255).encode()
        count = crop.shape[0] * crop.shape[1]
        self.pace.learn('encode', count, time.perf_counter() - start)
        self.windows.insert(0, (piece, (left, top), scene, count))
        while len(self.windows) > 1 and sum(window[3] for window in self.windows) > self.budget:
            self.windows.pop()
        return (left, top), scene

    def _render(self, piece, region, grid, alive):
        """Yield (top, left, pixels) of a grid's rows and columns whose centres lie in the piece, in bands."""
        x, y, width, height = region
        t, b = (min(max(math.ceil((edge - y) * grid[0] / height - 0.5), 0), grid[0]) for edge in piece[1::2])
        l, r = (min(max(math.ceil((edge - x) * grid[1] / width - 0.5), 0), grid[1]) for edge in piece[::2])
        if t >= b or l >= r:
            return
        rows = max(1, int(self.pace.decode * STEP / (r - l)))
        for top in range(t, b, rows):
            n = min(rows, b - top)
            if not alive():
                return
            with self.lock:
                (left0, top0), scene = self._window(piece)
                start = time.perf_counter()
                part = (x + l * width / grid[1] - left0, y + top * height / grid[0] - top0,
                        (r - l) * width / grid[1], n * height / grid[0])
                pixels = to_numpy(scene.render((n, r - l), _clamped(part, scene.size), 'uint8'))
                self.pace.learn('decode', n * (r - l), time.perf_counter() - start)
            yield top, l, pixels


def _clamped(region, size):
    """A region whose edges rounding may have put just outside of an image of size (h, w)."""
    left, top = max(region[0], 0), max(region[1], 0)
    return left, top, min(region[0] + region[2], size[1]) - left, min(region[1] + region[3], size[0]) - top


def _inside(a, b):
    return a[0] >= b[0] and a[1] >= b[1] and a[2] <= b[2] and a[3] <= b[3]


def _split(rectangle, windows):
    """Cut a rectangle along the edges of windows: [(part, whether a window holds it)]."""
    for i, window in enumerate(windows):
        l, t = max(rectangle[0], window[0]), max(rectangle[1], window[1])
        r, b = min(rectangle[2], window[2]), min(rectangle[3], window[3])
        if l < r and t < b:
            left, top, right, bottom = rectangle
            around = [(left, top, right, t), (left, t, l, b), (r, t, right, b), (left, b, right, bottom)]
            rest = [part for part in around if part[0] < part[2] and part[1] < part[3]]
            return [((l, t, r, b), True)] + [found for part in rest for found in _split(part, windows[i + 1:])]
    return [(rectangle, False)]


def _parts(rectangle, side):
    """Cut a rectangle into parts of about equal size, at most about `side` wide and high."""
    left, top, right, bottom = rectangle
    across, down = math.ceil((right - left) / side), math.ceil((bottom - top) / side)
    xs = [left + round((right - left) * i / across / GRID) * GRID for i in range(across)] + [right]
    ys = [top + round((bottom - top) * i / down / GRID) * GRID for i in range(down)] + [bottom]
    return [(l, t, r, b) for t, b in zip(ys, ys[1:]) for l, r in zip(xs, xs[1:]) if l < r and t < b]
