"""Render any region of an image at any size, in memory that does not grow with the output.

    renderer = Renderer(model, data_norm)
    scene = renderer.encode(img)                       # img: (3, h, w) in [0, 1]
    out = scene.render((H, W))                         # the whole image
    out = scene.render((H, W), region=(x, y, w, h))    # a part of it, in source pixels, fractions allowed

An image whose codes exceed the memory budget is encoded tile by tile, each tile with the surroundings that its
encoder sees, so that tiles equal the whole to float rounding. Codes are kept between renders as far as they fit.
"""
from collections import OrderedDict
from numbers import Integral

import torch

from engine.runtime import autocast, model_device
from models import decodes_grids
from utils import UserError, axis_coord, denormalize, normalize


DEFAULT_NORM = {'inp': {'sub': [0.5], 'div': [0.5]}, 'gt': {'sub': [0.5], 'div': [0.5]}}
GENERAL_CHUNK = 30000  # queries at a time for models that only have query_rgb
STRIP = 1 << 18  # output pixels rendered at a time
SMALLEST_TILE = 32


class Renderer:
    """A model with the options of rendering.

    precision: 'float32', 'bf16' or 'fp16' (CUDA); tile: side of the tiles in source pixels, chosen from `memory`
    when None; chunk: queries decoded at a time; memory: bytes to spend on encoding a tile, and at most as many again on
    codes that are kept, by default half of what is free on a GPU, else 2 GiB; cell_clip: the largest scale of
    training, beyond which the cell stays (None: never); self_ensemble: average over the eight flips and transposes.
    """

    def __init__(self, model, data_norm=None, precision='float32', tile=None, chunk=None, memory=None, cell_clip=None,
                 self_ensemble=False):
        self.model = model.eval()
        self.data_norm = data_norm or DEFAULT_NORM
        self.device = model_device(model)
        self.precision = precision
        self.tile = tile
        self.chunk = chunk
        self.memory = memory or default_memory(self.device)
        self.cell_clip = cell_clip
        self.self_ensemble = self_ensemble
        self.encoded = None  # the scene whose features a model without `encode` holds
        if tile is not None and tile < 1:
            raise UserError(f'tile: found {tile}, wanted at least 1 pixel')
        if tile is not None and getattr(model, 'halo', None) is None:
            raise UserError('this model looks at the whole image, so it cannot be rendered in tiles exactly; '
                            'leave the tile size out')

    def encode(self, img):
        """img: (3, h, w), float in [0, 1], torch or numpy. Returns a Scene."""
        try:
            img = torch.as_tensor(img, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            raise UserError(f'an image to render is (3, height, width), floats in [0, 1], found {type(img).__name__}: '
                            f'engine.rendering.api.to_tensor makes one of files and pictures') from None
        if img.dim() != 3 or img.shape[0] != 3 or 0 in img.shape:
            raise UserError(f'an image to render is (3, height, width), found {tuple(img.shape)}')
        return Scene(self, img)


class Scene:
    """An image under a renderer: its features are computed once and serve every size and region."""

    def __init__(self, renderer, img):
        self.renderer = renderer
        self.precision = renderer.precision
        self.redone = False  # whether half precision overflowed and float32 took over
        self.size = tuple(img.shape[-2:])
        norm = renderer.data_norm.get('inp')
        self.inp = normalize(img.to(renderer.device)[None], norm, 1).contiguous(memory_format=torch.channels_last)
        self.tile = renderer.tile or self._fitting_tile()
        self.codes = OrderedDict()  # window -> Codes, the least recently used first
        self.turned = []
        if renderer.self_ensemble:
            options = dict(vars(renderer), self_ensemble=False)
            options.pop('device'), options.pop('encoded')
            for turn in TURNS[1:]:
                self.turned.append((turn, Renderer(**options).encode(_turn(img, turn))))

    def render(self, size, region=None, dtype=torch.float32, progress=None):
        """The image, or its part `region` = (x, y, width, height) in source pixels, at size = (H, W).

        Returns (3, H, W) on the CPU: float32 in [0, 1], or uint8 or uint16 rounded from it.
        progress: called with the number of pixels each time some are finished.
        """
        dtype = {'uint16': torch.uint16, 'uint8': torch.uint8, 'float32': torch.float32}.get(dtype, dtype)
        if dtype not in (torch.float32, torch.uint8, torch.uint16):
            raise UserError(f'dtype: found {dtype!r}, wanted float32, uint8 or uint16')
        if not isinstance(size, (tuple, list)) or len(size) != 2 \
                or not all(isinstance(n, Integral) and n > 0 for n in size):
            raise UserError(f'the output size is (height, width), whole numbers, at least 1 pixel each, found {size!r}')
        out = torch.empty(3, *size, dtype=dtype)
        for top, left, rgb in self.rectangles(size, region):
            out[:, top:top + rgb.shape[1], left:left + rgb.shape[2]] = quantize(rgb, dtype).cpu()
            if progress is not None:
                progress(rgb.shape[1] * rgb.shape[2])
        return out

    def rectangles(self, size, region=None):
        """Yield (top, left, RGB (3, rows, columns) in [0, 1] on the device), which cover the output once."""
        y, x, cell = self._grid(size, region)
        norm = self.renderer.data_norm.get('gt')
        for top, left, rgb in self._decode(y, x, cell):
            if self.turned:
                rows, columns = y[top:top + rgb.shape[1]], x[left:left + rgb.shape[2]]
                for turn, scene in self.turned:
                    rgb += _unturn(scene._assemble(*_turn_grid(rows, columns, cell, turn)), turn)
                rgb /= 1 + len(self.turned)
            yield top, left, denormalize(rgb, norm, 0).clamp_(0, 1)

    def _grid(self, size, region):
        """Coordinates of the output's rows (H,) and columns (W,), and the cell (2,)."""
        if min(size) < 1:
            raise UserError(f'the output size is (height, width) of at least 1 pixel each, found {tuple(size)}')
        h, w = self.size
        left, top, width, height = region or (0, 0, w, h)
        slack = 1e-9 * max(h, w)  # fractions add up with rounding
        if not (width > 0 and height > 0 and left >= 0 and top >= 0 and left + width <= w + slack
                and top + height <= h + slack):
            raise UserError(f'region: found {left},{top},{width},{height}, wanted x,y,width,height inside the image of '
                            f'{w}x{h} pixels')
        axes, cell = [], []
        for start, extent, source, n in ((top, height, h, size[0]), (left, width, w, size[1])):
            if region is None:
                axes.append(axis_coord(n, device=self.inp.device))  # the published coordinates, to the bit
            else:
                ends = -1 + 2 * start / source, -1 + 2 * (start + extent) / source
                axes.append(axis_coord(n, *ends, dtype=torch.float64).float().to(self.inp.device))
            pixel = 2 * extent / (source * n)
            clip = self.renderer.cell_clip
            cell.append(max(pixel, 2 / (source * clip)) if clip else pixel)
        return *axes, torch.tensor(cell, device=self.inp.device)

    def _decode(self, y, x, cell):
        """Yield (top, left, normalized RGB (3, rows, columns)) over the tiles that the grid touches, each tile in
        strips, so that what is held in floats does not grow with the output."""
        for (top, bottom), (t, b) in self._spans(y, self.size[0]):
            for (left, right), (l, r) in self._spans(x, self.size[1]):
                rows = max(1, STRIP // (r - l))
                for i in range(t, b, rows):
                    yield from self._decode_tile((top, left, bottom, right), y[i:min(i + rows, b)], x[l:r], cell, i, l)

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

    def _decode_tile(self, window, y, x, cell, top, left):
        try:
            rgb = self._decode_window(window, y, x, cell)
            if self.precision != 'float32' and not rgb.isfinite().all():
                self.precision, self.redone = 'float32', True
                self.codes.clear()
                self.renderer.encoded = None
                rgb = self._decode_window(window, y, x, cell)
            yield top, left, rgb
            return
        except torch.OutOfMemoryError:  # a GPU's: less at a time, from here on
            self.codes.clear()
            side = max(window[2] - window[0], window[3] - window[1])
            if getattr(self.renderer.model, 'halo', None) is None or side <= SMALLEST_TILE:
                raise
            self.tile = max(SMALLEST_TILE, side // 2)
        torch.cuda.empty_cache()
        for t, l, rgb in self._decode(y, x, cell):
            yield top + t, left + l, rgb

    @torch.no_grad()
    def _decode_window(self, window, y, x, cell):
        """Normalized RGB (3, rows, columns) of a grid whose nearest codes all lie in the window."""
        renderer, model = self.renderer, self.renderer.model
        with autocast(renderer.device, self.precision):
            if decodes_grids(model):
                return model.decode_grid(self._codes(window), y, x, cell, renderer.chunk)[0].float()
            if renderer.encoded is not self:
                model.gen_feat(self.inp)
                renderer.encoded = self
            coord = torch.stack(torch.meshgrid(y, x, indexing='ij'), dim=-1).view(1, -1, 2)
            rgb = torch.cat([model.query_rgb(part, cell.expand_as(part))
                             for part in coord.split(renderer.chunk or GENERAL_CHUNK, dim=1)], dim=1)  # (1, Q, 3)
            return rgb[0].float().t().reshape(-1, len(y), len(x))

    def _codes(self, window):
        """The codes of a tile and of the neighbours its ensemble reaches, kept as long as the budget allows."""
        if window in self.codes:
            self.codes.move_to_end(window)
            return self.codes[window]
        h, w = self.size
        top, left, bottom, right = window
        model = self.renderer.model
        if window == (0, 0, h, w):
            codes = model.encode(self.inp)
        else:
            codes = model.encode(self.inp, (max(top - 1, 0), max(left - 1, 0), min(bottom + 1, h), min(right + 1, w)))
        self.codes[window] = codes
        size = sum(t.numel() * t.element_size() for t in (codes.feat, codes.table) if t is not None)
        while len(self.codes) > max(1, self.renderer.memory // size):
            self.codes.popitem(last=False)
        return codes

    def _fitting_tile(self):
        """The largest tile whose encoding, surroundings included, fits the budget; the whole image where it fits or
        the model cannot be tiled."""
        h, w = self.size
        halo = getattr(self.renderer.model, 'halo', None)
        if halo is None:
            return max(h, w)
        pixels = self.renderer.memory / (4 * self.renderer.model.floats_per_pixel)
        if h * w <= pixels:
            return max(h, w)
        return max(SMALLEST_TILE, int(pixels ** 0.5) - 2 * (halo + 1))

    def _assemble(self, y, x, cell):
        out = self.inp.new_empty(3, len(y), len(x))
        for top, left, rgb in self._decode(y, x, cell):
            out[:, top:top + rgb.shape[1], left:left + rgb.shape[2]] = rgb
        return out


def quantize(rgb, dtype):
    """[0, 1] floats to uint8 or uint16, rounded; floats as they are."""
    if dtype.is_floating_point:
        return rgb.to(dtype)
    levels = torch.iinfo(dtype).max
    return (rgb * levels + 0.5).to(torch.int32).to(dtype)


def default_memory(device):
    """Bytes to spend on encoder activations, and as many on kept codes: half of a GPU's free memory, else 2 GiB."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0] // 2
    return 2 << 30


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
    """The grid of the turned image that shows the same picture as (y, x) of the original, turned."""
    rows, columns, transpose = turn
    y = -y.flip(0) if rows else y
    x = -x.flip(0) if columns else x
    return (x, y, cell.flip(0)) if transpose else (y, x, cell)
