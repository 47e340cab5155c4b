"""The images and models of a running viewer: what its server answers with."""
import collections
import os
import secrets
import threading

import numpy as np
import torch
from PIL import Image

from datasets.images import TooLarge
from engine.checkpoint import default_model, suited_model, weights_by_name
from engine.rendering.api import load_renderer, to_numpy, to_tensor
from engine.rendering.reading import read_source
from engine.rendering.renderer import quantize
from models import decodes_grids
from utils import UserError
from viewer.lattice import CLIP, STEPS, TILE, is_continuous, lattice_tile, tiles


KEPT = 4  # images held in memory
SCENES = 2  # images whose codes are held
BAND = 4 << 20  # pixels of a download that are rendered together


class Gone(UserError):
    """An image that is no longer open."""


class Opened:
    """An image that is open: its name, its file's format, pixels as the page gets them, with alpha or without."""

    def __init__(self, name, image):
        img = image.for_network()  # (3, h, w), coloured under transparent pixels, too
        if image.alpha is not None:
            img = torch.cat([img, image.alpha])
        self.name, self.format = name, image.format
        self.pixels = to_numpy(quantize(img, torch.uint8))  # (h, w, 3 or 4)
        self.size = self.pixels.shape[:2]

    def resized(self, region, size, channels=slice(None)):
        """The region (x, y, width, height) at size (H, W) by Pillow's bicubic interpolation: (H, W, channels)."""
        x, y, w, h = region
        box = (x, y, min(x + w, self.size[1]), min(y + h, self.size[0]))
        found = [np.asarray(Image.fromarray(channel).resize(size[::-1], Image.BICUBIC, box=box))
                 for channel in np.moveaxis(self.pixels[..., channels], -1, 0)]
        return np.stack(found, axis=-1) if found else np.empty((*size, 0), np.uint8)


class Viewer:
    """The models and the images of a running viewer.

    models: {name: path of a checkpoint}, the default first; max_bytes, max_pixels: of an image; gpu: as `load_renderer`
    takes it; hosts: names under which the page may be asked for, besides localhost and plain addresses; suit: whether
    the page takes the model that suits the kind of the image, instead of the first.
    """

    def __init__(self, models, max_bytes=64_000_000, max_pixels=40_000_000, gpu=None, hosts=(), suit=True):
        self.models, self.gpu, self.suit = models, gpu, suit
        self.max_bytes, self.max_pixels = max_bytes, max_pixels
        self.hosts = {'localhost', *filter(None, hosts)}
        self.computing = threading.Lock()  # one model computes at a time; also guards `renderers` and `scenes`
        self.opening = threading.Lock()  # one file is decoded at a time: a small one can unpack to gigabytes
        self.renderers = {}  # name -> Renderer, of the models that were used
        self.pictures = collections.OrderedDict()  # id -> Opened, the least recently used first
        self.scenes = collections.OrderedDict()  # (id, model) -> Scene, likewise

    def renderer(self, name):
        """The Renderer of a model by its name. Raises UserError for an unknown name and for a checkpoint that cannot be
        used."""
        if name not in self.models:
            raise UserError(f'model: found {name}, expected one of {", ".join(self.models)}')
        if name not in self.renderers:
            renderer = load_renderer(self.models[name], self.gpu, precision='auto', cell_clip=CLIP)
            if renderer.device.type == 'cpu' and decodes_grids(renderer.model) and renderer.model.halo is not None:
                renderer.tile = 6 * TILE  # larger ones keep people waiting for the first tile
            self.renderers[name] = renderer
        return self.renderers[name]

    def open(self, name, data=None):
        """Read an image, of the file `name` or from bytes; its id. Raises UserError."""
        with self.opening:
            try:
                found = Opened(os.path.basename(name), read_source(name, self.max_pixels, data))
            except TooLarge as error:
                raise UserError(f'{error.found}: start the viewer with a larger --max-pixels') from None
            key = secrets.token_urlsafe(12)
            self.pictures[key] = found
            while len(self.pictures) > KEPT:
                self.pictures.popitem(last=False)
        return key

    def picture(self, key):
        """The Opened of an id. Raises Gone."""
        try:
            self.pictures.move_to_end(key)
            return self.pictures[key]
        except KeyError:
            raise Gone('this image is no longer open: open it again') from None

    def describe(self, key):
        """What the page has to know of an image; `model`: the name of the one to show it with, None for any."""
        found = self.picture(key)
        model = suited_model(found.format)[0] if self.suit else None
        return {'id': key, 'name': found.name, 'width': found.size[1], 'height': found.size[0],
                'model': model if model in self.models else None}

    def about(self, name):
        """What the page has to know of a model."""
        with self.computing:
            renderer = self.renderer(name)
        return {'name': name, 'kind': type(renderer.model).__name__, 'precision': renderer.precision,
                'device': renderer.device.type, 'lattice': is_continuous(renderer.model), 'steps': STEPS, 'tile': TILE}

    def tile(self, key, name, row, column, steps, check=lambda: None):
        """A tile of the lattice, float16 (rows, columns, 3). check: called when its turn has come; what it raises ends
        the work."""
        (h, w) = self.picture(key).size
        if not (0 <= row < tiles(h) and 0 <= column < tiles(w)):
            raise UserError(f'tile: found {row},{column}, expected less than {tiles(h)},{tiles(w)}')
        if steps not in STEPS:
            raise UserError(f'steps: found {steps}, expected one of {STEPS}')
        with self.computing:
            check()
            if not is_continuous(self.renderer(name).model):
                raise UserError(f'{name} has no lattice, since its decoded image has steps')
            return lattice_tile(self._scene(key, name), row, column, steps)

    def bands(self, key, name, region, size, check=lambda: None):
        """Yield bands of rows, uint8 (rows, W, 3 or 4), of the region (x, y, width, height) in source pixels, rendered
        exactly at size (H, W). Up to x1 the image is only resized. check: as in `tile`, for each band."""
        found, (x, y, w, h) = self.picture(key), region
        rows = max(1, min(size[0], BAND // size[1]))
        for top in range(0, size[0], rows):
            n = min(rows, size[0] - top)
            part = (x, y + h * top / size[0], w, h * n / size[0])
            if min(size[0] / h, size[1] / w) <= 1:
                yield found.resized(part, (n, size[1]))
                continue
            with self.computing:
                check()
                inside = (x, part[1], min(w, found.size[1] - x), min(part[3], found.size[0] - part[1]))
                band = to_numpy(self._scene(key, name).render((n, size[1]), inside, 'uint8'))
            yield np.concatenate([band, found.resized(part, (n, size[1]), slice(3, None))], axis=-1)

    def _scene(self, key, name):
        if (key, name) not in self.scenes:
            self.scenes[key, name] = self.renderer(name).open(to_tensor(self.picture(key).pixels[..., :3]))
            while len(self.scenes) > SCENES:
                self.scenes.popitem(last=False)
        self.scenes.move_to_end((key, name))
        return self.scenes[key, name]


def find_models(path=None):
    """{name: path} of the checkpoint `path`, if given, and of those in weights/, 'clean' and 'photo' first. Raises
    UserError when there is none."""
    found = {**({} if path is None else {path: path}), **weights_by_name()}
    if not found:
        default_model()  # says what to do
    return found
