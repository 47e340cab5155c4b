"""The models' registry: `@register('name')` on a class or factory, `make(spec)` to build one."""
from typing import Annotated

import torch

from utils import Registry, Spec, UserError


registry = Registry('model')
register = registry.register
EncoderSpec = Annotated[dict, Spec('encoder'), 'the network that turns the image into latent codes']


def make(spec, args=None, load_sd=False):
    """Build the model that `spec` = {name, args[, sd]} names.

    args: further arguments, which win over the spec's own. load_sd: also load the parameters in spec['sd'].
    Raises UserError for an unknown name, unfitting arguments, and parameters of another model (the first
    differences are named).
    """
    model = registry.make(spec, args)
    if load_sd:
        _load_state(model, spec)
    return model


def decodes_grids(model):
    """Whether `model.encode` and `model.decode_grid` give what its `gen_feat` and `query_rgb` give, so that callers may
    use the faster pair: it has them, and no subclass (or assignment to the object) replaced the protocol below them."""
    def depth(name):  # how far up the classes of the object it is defined
        owners = (vars(model), *map(vars, type(model).__mro__))
        return next((i for i, owner in enumerate(owners) if name in owner), len(owners))

    return hasattr(model, 'decode_grid') and all(
        depth('decode_grid') <= depth(name) for name in ('gen_feat', 'query_rgb', 'forward'))


def features(encoder, inp):
    """The features (B, C, h, w) of inp (B, 3, h, w) for a decoder, one code per pixel.

    Transformers such as SwinIR pad the image below and on the right to a multiple of `window_size` and return features
    of all of it: what was added is cut off, or every coordinate would be off. Raises UserError for features of another
    image that is larger than the input by no whole factor.
    """
    feat = encoder(inp)
    (h, w), found, window = inp.shape[-2:], tuple(feat.shape[-2:]), getattr(encoder, 'window_size', None)
    if isinstance(window, int) and found == tuple(n + -n % window for n in (h, w)):
        return feat[..., :h, :w]
    if any(n > size and n % size for n, size in zip(found, (h, w))):
        raise UserError(f'the encoder {type(encoder).__name__} gives {found[1]}x{found[0]} features for an image of '
                        f'{w}x{h} pixels, so its codes do not lie over the pixels: set its window_size if it pads '
                        f'images to a multiple of that, or give it images that need no padding')
    return feat


def _load_state(model, spec):
    want = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) if torch.is_tensor(value) else None for key, value in spec['sd'].items()}
    if want != found:
        odd = [f'{key} is {found.get(key, "absent")}, expected {want.get(key, "none")}'
               for key in [*want, *(k for k in found if k not in want)] if want.get(key) != found.get(key)]
        raise UserError(f'the parameters are not those of model {spec["name"]!r} with these arguments: '
                        f'{"; ".join(odd[:3])}' + (f' and {len(odd) - 3} more' if len(odd) > 3 else ''))
    model.load_state_dict(spec['sd'])
