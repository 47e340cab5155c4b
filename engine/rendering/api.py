"""LIIF from Python, in three lines (docs/api.md):

    renderer = load_renderer('model.pth')
    scene = renderer.open(to_tensor('photo.png'))
    out = scene.render((1080, 1920))
"""
import contextlib
import os

import numpy as np
import torch
from PIL import Image

from datasets.images import image_format
from engine.checkpoint import CLEAN, load_model, model_path, suited_model
from engine.rendering.pace import fastest
from engine.rendering.reading import read_source
from engine.rendering.renderer import Renderer
from engine.runtime import say_once, select_device
from utils import UserError


def load_renderer(model=None, gpu=None, ema=False, precision='float32', image=None, **options):
    """A Renderer (engine/rendering/renderer.py) of a checkpoint.

    model: the path of a checkpoint, or a name in weights/, such as 'clean' or 'photo'; default: `choose_model(image)`,
        which is said on stderr
    gpu: the number of a GPU, or 'cpu'; default: the first GPU, else the CPU
    ema: use the checkpoint's averaged weights
    precision: 'float32', 'bf16', 'fp16' or 'tf32' (GPU only), or 'auto': bf16 if a trial is 1.5 times as fast with it
    image: the path of an image file, by which a model is chosen
    options: the others of Renderer
    Raises UserError for a file that is not a checkpoint, or whose model has no query_rgb.
    """
    path, sentence = choose_model(image) if model is None else (model, None)
    net, data_norm = load_model(path, select_device(None if gpu is None else str(gpu), announce=False), ema=ema)
    if not hasattr(net, 'query_rgb'):
        raise UserError(f'{path}: its model, {type(net).__name__}, has no decoder to ask for any size; expected one '
                        f'such as liif or metasr')
    renderer = Renderer(net, data_norm, 'float32' if precision == 'auto' else precision, **options)
    if sentence and (image is None or os.path.exists(image)):  # a missing file gets its error alone
        say_once(sentence)
    return fastest(renderer)[0] if precision == 'auto' else renderer


def choose_model(image=None):
    """(Name of the weights to use where none are named, a sentence that says so): by the content of the file `image`,
    as `suited_model` does; without one, 'clean'."""
    name, reason = (CLEAN, 'which come with the project') if image is None else suited_model(image_format(image))
    return name, f'using the weights {name} ({os.path.relpath(model_path(name))}), {reason}'


def to_tensor(image):
    """An image in any form as RGB float32 (3, h, w) in [0, 1], which is what `Renderer.open` takes.

    image: the path of a file; a PIL image, of modes I;16, I and F as its array; a numpy array (h, w, 3), (h, w, 1) or
    (h, w); a tensor (3, h, w) or (1, h, w). uint8 and uint16 are divided by 255 and 65535, floats are in [0, 1]
    already. Raises UserError.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_source(os.fspath(image)).for_network()
    if isinstance(image, Image.Image):
        image = np.asarray(image if image.mode.startswith(('I', 'F')) else image.convert('RGB'))
        if image.dtype == np.int32:  # mode I, in which some versions of Pillow hold 16-bit grey
            if image.min(initial=0) < 0 or image.max(initial=0) > 65535:
                raise UserError(f'a PIL image of mode I holds {image.min()} to {image.max()}: expected 0 to 65535')
            image = image.astype(np.uint16)
    if isinstance(image, np.ndarray):
        found = f'an array of shape {image.shape}'
        image = image[None] if image.ndim == 2 else image.transpose(2, 0, 1) if image.ndim == 3 else image
        image = image.astype(image.dtype.newbyteorder('='), order='C')
        with contextlib.suppress(TypeError):  # torch has no such type: refused below
            image = torch.from_numpy(image)
    elif torch.is_tensor(image):
        found = f'a tensor of shape {tuple(image.shape)}'
    else:
        raise UserError(f'an image is a path, a PIL image, an array or a tensor, found {type(image).__name__}')
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise UserError(f'{found} is not an image: expected an array (h, w, 3), or a tensor (3, h, w)')
    if not torch.is_tensor(image) or not (image.is_floating_point() or image.dtype in (torch.uint8, torch.uint16)):
        raise UserError(f'{found} holds {image.dtype}: expected uint8, uint16, or floats in [0, 1]')
    if not image.is_floating_point():
        image = image.to(torch.float32) / torch.iinfo(image.dtype).max
    if 0 in image.shape or not (0 <= image.min() and image.max() <= 1):  # also refuses NaN
        raise UserError(f'{found} holds nothing, or values outside of [0, 1]: give floats in [0, 1], or uint8')
    return image.to(torch.float32).expand(3, -1, -1)


def to_numpy(image):
    """What `Scene.render` returns, (3, H, W), as a numpy array (H, W, 3) of the same type."""
    return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
