"""Render any region of an image at any size, in memory that does not grow with the output.

    renderer = Renderer(model, data_norm)
    scene = renderer.open(img)                         # img: (3, h, w) in [0, 1]
    out = scene.render((H, W))                         # the whole image
    out = scene.render((H, W), region=(x, y, w, h))    # a part of it, in source pixels, fractions allowed

An image whose codes exceed the memory budget is encoded in tiles, each with the surroundings that its encoder sees, so
the result equals that of the whole image to float rounding. Codes are kept between renders as far as the budget allows.
"""
import contextlib
import logging
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple, Optional

import torch
from torch import nn

from engine.checkpoint import PUBLISHED_NORM
from engine.rendering.sizes import check_region
from engine.runtime import autocast, model_device
from models import decodes_grids
from models.lattice import check_density, code_span, has_lattice, make_lattice, relative_cost, resample
from models.liif import grow
from utils import UserError, axis_coord, denormalize, normalize


GENERAL_CHUNK = 30000  # queries at a time for models that only have query_rgb
STRIP = 1 << 18  # output pixels rendered at a time
SMALLEST_TILE = 32
DECODES = ('exact', 'lattice', 'auto')
AUTO_COST = 0.6  # `auto` takes the lattice up to this many decoder evaluations, relative to the exact decode


@dataclass(eq=False)
class Renderer:
    """A model with its rendering options; `dataclasses.replace` makes one with other options.

    model: a module with gen_feat and query_rgb; its `encode` and `decode_grid` are used where it has them
    data_norm: {inp, gt: {sub, div}}; default: 0.5 and 0.5, as published
    precision: 'float32', 'bf16', 'fp16' (GPU only) or 'tf32' (float32 except on GPUs)
    tile: side of the tiles in source pixels; default: chosen from `memory`
    chunk: queries decoded at a time; default: chosen by the model
    memory: bytes for encoding a tile, and again for kept codes; default: half of a GPU's free memory, else 2 GiB
    cell_clip: largest scale of training, beyond which the cell stays constant; default: no limit
    self_ensemble: average over the eight flips and transposes
    decode: 'exact'; 'lattice', an approximation whose cost does not grow with the output (models/lattice.py); 'auto',
        the lattice where it needs at most 60% of the exact evaluations. A model without a lattice decodes exactly
    lattice: the density g of the lattice, 1 to 32
    Raises UserError for another precision, decode or density, for a tile size below 1, and for one given for a model
    that cannot be tiled.
    """
    model: nn.Module
    data_norm: Optional[dict] = None
    precision: str = 'float32'
    tile: Optional[int] = None
    chunk: Optional[int] = None
    memory: Optional[int] = None
    cell_clip: Optional[float] = None
    self_ensemble: bool = False
    decode: str = 'exact'
    lattice: int = 6

    def __post_init__(self):
        self.model.eval()
        self.device = model_device(self.model)
        self.data_norm = self.data_norm or PUBLISHED_NORM
        if not self.memory:
            self.memory = torch.cuda.mem_get_info(self.device)[0] // 2 if self.device.type == 'cuda' else 2 << 30
        autocast(self.device, self.precision)  # checks it
        if self.tile is not None and self.tile < 1:
            raise UserError(f'tile: found {self.tile}, expected at least 1 pixel')
        if self.tile is not None:
            check_tiles(self.model)
        if self.decode not in DECODES:
            raise UserError(f'decode: found {self.decode!r}, expected one of {", ".join(DECODES)}')
        check_density(self.lattice)
        if self.decode != 'exact' and not has_lattice(self.model):
            if self.decode == 'lattice':
                logging.getLogger(__name__).warning('%s has no lattice decode (only LIIF with an MLP has): decoding '
                                                    'exactly', type(self.model).__name__)
            self.decode = 'exact'
        self.scale = fixed_scale(self.model)

    def open(self, img):
        """A Scene of an image; it is encoded when it is first rendered, or by `Scene.encode`.

        img: (3, h, w), float in [0, 1], torch or numpy
        Raises UserError for anything else.
        """
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            img = torch.as_tensor(img)
        if not torch.is_tensor(img) or not img.is_floating_point() or img.dim() != 3 or img.shape[0] != 3 \
                or 0 in img.shape:
            found = f'{img.dtype} {tuple(img.shape)}' if torch.is_tensor(img) else type(img).__name__
            raise UserError(f'an image to render is (3, height, width), floats in [0, 1], found {found}: '
                            f'engine.rendering.api.to_tensor converts files, PIL images and other types')
        return Scene(self, img.float(), TURNS[1:] if self.self_ensemble else ())


def check_tiles(model):
    """UserError for a model that cannot be encoded in tiles exactly."""
    name = type(model).__name__
    if not decodes_grids(model):
        raise UserError(f'{name} has its own gen_feat, query_rgb or forward, which take the whole image: leave out the '
                        f'tile size')
    if getattr(model, 'halo', None) is None:
        encoder = type(getattr(model, 'encoder', model)).__name__
        raise UserError(f'{name} cannot be encoded in tiles exactly, because its encoder, {encoder}, changes the size, '
                        f'sees the whole image or does not say how far it sees (receptive_radius): leave out the tile '
                        f'size')


class Scene:
    """An image under a renderer: its features are computed once and serve every size and region."""

    def __init__(self, renderer, img, turns=()):
        self.renderer = renderer
        self.precision = renderer.precision
        self.size = tuple(img.shape[-2:])
        norm = renderer.data_norm.get('inp')
        self.inp = normalize(img.to(renderer.device)[None], norm, 1).contiguous(memory_format=torch.channels_last)
        self.tile = renderer.tile or self._fitting_tile()
        self.codes = OrderedDict()  # window -> Codes, the least recently used first
        self.lattices = {}  # window -> Lattice, kept with the codes
        self.mark = object()  # what `_gen_feat` leaves on the model
        self.turned = [(turn, Scene(renderer, _turn(img, turn))) for turn in turns]

    @property
    def redone(self):
        """Whether half precision overflowed, here or in a turned image, and float32 took over."""
        return self.precision != self.renderer.precision or any(scene.redone for _, scene in self.turned)

    @torch.no_grad()
    def encode(self):
        """Encode now what the first render would encode, unless tiles are needed. Returns the scene."""
        model = self.renderer.model
        with autocast(self.renderer.device, self.precision):
            if not decodes_grids(model):
                self._gen_feat()
            elif self.tile >= max(self.size):
                self._codes((0, 0, *self.size))
        for _, scene in self.turned:
            scene.encode()
        return self

    def render(self, size, region=None, dtype=torch.float32):
        """The image, or its part `region` = (x, y, width, height) in source pixels, at size = (H, W).

        dtype: torch.float32, uint8 or uint16, or its name, such as 'uint8'
        Returns (3, H, W) on the CPU: float32 in [0, 1], or integers rounded from it.
        Raises UserError for another dtype, a size that is not two whole numbers above zero, and a region that is not
        inside the image.
        """
        dtype = {'uint16': torch.uint16, 'uint8': torch.uint8, 'float32': torch.float32}.get(dtype, dtype)
        if dtype not in (torch.float32, torch.uint8, torch.uint16):
            raise UserError(f'dtype: found {dtype!r}, expected float32, uint8 or uint16')
        if not isinstance(size, (tuple, list)) or len(size) != 2 \
                or not all(isinstance(n, Integral) and n > 0 for n in size):
            raise UserError(f'the output size is (height, width), whole numbers, at least 1 pixel each, found {size!r}')
        out = torch.empty(3, *size, dtype=dtype)
        for top, left, rgb in self.rectangles(size, region):
            out[:, top:top + rgb.shape[1], left:left + rgb.shape[2]] = quantize(rgb, dtype).cpu()
        return out

    def rectangles(self, size, region=None):
        """Yield rectangles that cover the output once: (top, left, RGB (3, rows, columns) in [0, 1] on the device)."""
        y, x, cell = self._grid(size, region)
        norm = self.renderer.data_norm.get('gt')
        for top, left, rgb in self._decode(y.ahead, x.ahead, cell):
            if self.turned:
                rows, columns = y.part(top, rgb.shape[1]), x.part(left, rgb.shape[2])
                for turn, scene in self.turned:
                    rgb += _unturn(scene._assemble(*_turn_grid(rows, columns, cell, turn)), turn)
                rgb /= 1 + len(self.turned)
            yield top, left, denormalize(rgb, norm, 0).clamp_(0, 1)

    def sample(self, y, x, cell):
        """RGB (3, H, W) on the device, not clamped, at the crossings of rows y (H,) and columns x (W,), ascending.

        y, x: coordinates; those outside of [-1, 1] continue the nearest code; cell: (2,), the pixel's height and width
        """
        y, x, cell = (torch.as_tensor(v, dtype=torch.float32, device=self.inp.device) for v in (y, x, cell))
        return denormalize(self._assemble(y, x, cell), self.renderer.data_norm.get('gt'), 0)

    def _grid(self, size, region):
        """The Axis of the output's rows and that of its columns, and the cell (2,)."""
        if min(size) < 1:
            raise UserError(f'the output size is (height, width) of at least 1 pixel each, found {tuple(size)}')
        h, w = self.size
        if region is not None:
            check_region(region, h, w)
        left, top, width, height = (0, 0, w, h) if region is None else region
        scale = self.renderer.scale
        if scale is not None and (region is not None or tuple(size) != (h * scale, w * scale)):
            raise UserError(f'this model has no decoder, only pixels at x{scale}: found a size of {size[1]}x{size[0]}, '
                            f'expected {w * scale}x{h * scale}, the whole image')
        y, x = grid_axis(size[0], h, top, height), grid_axis(size[1], w, left, width)
        clip = self.renderer.cell_clip
        cell = [max(axis.pixel, 2 / (n * clip)) if clip else axis.pixel for axis, n in ((y, h), (x, w))]
        device = self.inp.device
        return y.to(device), x.to(device), torch.tensor(cell, device=device)

    def _decode(self, y, x, cell):
        """Yield (top, left, normalized RGB (3, rows, columns)) over the tiles that the grid touches, each tile in
        strips, so that what is held in floats does not grow with the output."""
        for (top, bottom), (t, b) in self._spans(y, self.size[0]):
            for (left, right), (l, r) in self._spans(x, self.size[1]):
                rows = max(1, STRIP // (r - l))
                for i in range(t, b, rows):
                    yield from self._decode_tile((top, left, bottom, right), y[i:min(i + rows, b)], x[l:r], cell, i, l,
                                                 y[t:b])

    def _spans(self, coord, n):
        """An axis of n codes: [(first code, end) of a tile, (first, end) of the coordinates nearest to its codes]."""
        nearest = ((coord.cpu().double() + 1) * n / 2).floor().clamp(0, n - 1).long()  # (H,), ascending
        spans = []
        for first in range(0, n, self.tile):
            end = min(first + self.tile, n)
            a, b = torch.searchsorted(nearest, torch.tensor([first, end])).tolist()
            if a < b:
                spans.append(((first, end), (a, b)))
        return spans

    def _decode_tile(self, window, y, x, cell, top, left, rows):
        try:
            rgb = self._decode_window(window, y, x, cell, rows)
            if self.precision != 'float32' and not rgb.isfinite().all():
                self.precision = 'float32'
                self._forget()
                rgb = self._decode_window(window, y, x, cell, rows)
            yield top, left, rgb
            return
        except torch.OutOfMemoryError:  # a GPU's: less at a time, from here on
            self._forget()
            side = max(window[2] - window[0], window[3] - window[1])
            if getattr(self.renderer.model, 'halo', None) is None or side <= SMALLEST_TILE:
                raise
            self.tile = max(SMALLEST_TILE, side // 2)
        torch.cuda.empty_cache()
        for t, l, rgb in self._decode(y, x, cell):
            yield top + t, left + l, rgb

    @torch.no_grad()
    def _decode_window(self, window, y, x, cell, rows):
        """Normalized RGB (3, H, W) of a grid whose nearest codes all lie in the window; rows: of all its strips."""
        renderer, model = self.renderer, self.renderer.model
        with autocast(renderer.device, self.precision):
            lattice = self._lattice(window, rows, x, cell)
            if lattice is not None:
                return resample(model, lattice, y, x)[0].float()
            if decodes_grids(model):
                return model.decode_grid(self._codes(window), y, x, cell, renderer.chunk)[0].float()
            self._gen_feat()
            coord = torch.stack(torch.meshgrid(y, x, indexing='ij'), dim=-1).view(1, -1, 2)
            rgb = torch.cat([model.query_rgb(part, cell.expand_as(part))
                             for part in coord.split(renderer.chunk or GENERAL_CHUNK, dim=1)], dim=1)  # (1, Q, 3)
            return rgb[0].float().t().reshape(-1, len(y), len(x))

    def _lattice(self, window, y, x, cell):
        """The lattice for rows y and columns x: the kept one where it serves, else a new one; None: decode exactly."""
        renderer, model = self.renderer, self.renderer.model
        if renderer.decode == 'exact':
            return None
        codes = self._codes(window)
        span, kept = code_span(model, codes, y, x), self.lattices.get(window)
        if kept is not None and kept.covers(span) and torch.equal(kept.cell, cell):
            return kept
        if renderer.decode == 'auto' and relative_cost(model, span, len(y) * len(x), renderer.lattice) > AUTO_COST:
            return None
        kept = None
        self.lattices.pop(window, None)  # frees its memory before the new one is made
        self.lattices[window] = make_lattice(model, codes, cell, renderer.lattice, span)
        return self.lattices[window]

    def _lattice_floats(self):
        """Numbers of a lattice per code."""
        return 0 if self.renderer.decode == 'exact' else 3 * (2 * self.renderer.lattice + 1) ** 2

    def _forget(self):
        self.codes.clear()
        self.lattices.clear()
        self.mark = object()

    def _gen_feat(self):
        """Have the model hold the features of this scene. Every scene, of any Renderer, leaves its mark on the model; a
        gen_feat from outside shows in `feat`, where models usually keep the features."""
        model = self.renderer.model
        if getattr(model, 'held_scene', None) is not self.mark or getattr(model, 'feat', None) is not self.feat():
            model.gen_feat(self.inp)
            model.held_scene, feat = self.mark, getattr(model, 'feat', None)
            self.feat = weakref.ref(feat) if torch.is_tensor(feat) else lambda: feat

    def _codes(self, window):
        """The codes of a tile and of the neighbours its ensemble reaches, kept as long as the budget allows."""
        if window in self.codes:
            self.codes.move_to_end(window)
            return self.codes[window]
        part = [] if window == (0, 0, *self.size) else [grow(window, 1, *self.size)]
        codes = self.codes[window] = self.renderer.model.encode(self.inp, *part)
        size = sum(t.numel() * t.element_size() for t in (codes.feat, codes.table) if t is not None)
        size += 4 * self._lattice_floats() * codes.feat[0, 0].numel()
        while len(self.codes) > max(1, self.renderer.memory // size):
            self.lattices.pop(self.codes.popitem(last=False)[0], None)
        return codes

    def _fitting_tile(self):
        """The largest tile whose encoding, surroundings included, fits the budget; the whole image where it fits or
        the model cannot be tiled."""
        h, w = self.size
        halo = getattr(self.renderer.model, 'halo', None)
        if halo is None:
            return max(h, w)
        pixels = self.renderer.memory / (4 * (self.renderer.model.floats_per_pixel + self._lattice_floats()))
        if h * w <= pixels:
            return max(h, w)
        return max(SMALLEST_TILE, int(pixels ** 0.5) - 2 * (halo + 1))

    def _assemble(self, y, x, cell):
        out = self.inp.new_empty(3, len(y), len(x))
        for top, left, rgb in self._decode(y, x, cell):
            out[:, top:top + rgb.shape[1], left:left + rgb.shape[2]] = rgb
        return out


@torch.no_grad()
def fixed_scale(model):
    """The scale of a model without a decoder, which only has the pixels of an up-sampling encoder; None for others, and
    where the model has no `encode` to tell."""
    if getattr(model, 'imnet', model) is not None or not hasattr(model, 'encode'):
        return None
    return model.encode(torch.zeros(1, 3, 16, 16, device=model_device(model))).shape[0] // 16


class Axis(NamedTuple):
    """Output pixels along one axis. ahead: their coordinates (n,); back: their coordinates (n,) in the flipped image;
    pixel: their size."""
    ahead: torch.Tensor
    back: torch.Tensor
    pixel: float

    def part(self, first, count):
        """The Axis of `count` of these pixels, from number `first` on."""
        return self._replace(ahead=self.ahead[first:first + count], back=self.back[first:first + count])

    def to(self, device):
        return self._replace(ahead=self.ahead.to(device), back=self.back.to(device))


def grid_axis(n, source, start, extent):
    """The Axis of n output pixels that show [start, start + extent) of an axis of `source` pixels.

    If they are pixels of a render of the whole axis, they get the published coordinates of that render, to the bit, so
    that queries half-way between two codes, as odd scales have them, pick the same codes. It matters most at the end of
    an axis, where all four areas of the ensemble can vanish in float32.
    """
    whole, first = n * source / extent, n * start / extent
    if whole < 1 << 24 and abs(whole - round(whole)) + abs(first - round(first)) < 1e-6:
        coord, first = axis_coord(round(whole)), round(first)
        return Axis(coord[first:first + n], coord.flip(0)[first:first + n], 2 / round(whole))
    ends = -1 + 2 * start / source, -1 + 2 * (start + extent) / source
    coord = axis_coord(n, *ends, dtype=torch.float64).float()
    return Axis(coord, -coord, 2 * extent / (source * n))


def quantize(rgb, dtype):
    """[0, 1] floats to uint8 or uint16, rounded; floats as they are."""
    if dtype.is_floating_point:
        return rgb.to(dtype)
    levels = torch.iinfo(dtype).max
    return (rgb * levels + 0.5).to(torch.int32).to(dtype)


# The eight symmetries of a square: (flip rows, flip columns, transpose), applied in this order.
TURNS = [(v, u, t) for t in (False, True) for v in (False, True) for u in (False, True)]


def _turn(img, turn):
    rows, columns, transpose = turn
    img = img.flip([d for d, on in ((-2, rows), (-1, columns)) if on])
    return img.transpose(-2, -1) if transpose else img


def _unturn(img, turn):
    rows, columns, transpose = turn
    img = img.transpose(-2, -1) if transpose else img
    return img.flip([d for d, on in ((-2, rows), (-1, columns)) if on])


def _turn_grid(y, x, cell, turn):
    """The grid (rows, columns, cell) of the turned image that shows what the axes y and x show of the original."""
    rows, columns, transpose = turn
    y = y.back.flip(0) if rows else y.ahead
    x = x.back.flip(0) if columns else x.ahead
    return (x, y, cell.flip(0)) if transpose else (y, x, cell)
