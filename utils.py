"""Helpers everything else builds on: registries, value types, coordinates, metrics, normalization, errors, safe writes.

Nothing here imports from the rest of the project. Coordinates are (y, x), each axis spans [-1, 1] over the
whole image, and pixel i of n is centred at -1 + (2i + 1) / n. Images are (3, H, W) in [0, 1].
"""
import contextlib
import copy
import functools
import inspect
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch


class UserError(ValueError):
    """A mistake the user can fix. Its message says, in one line, what was found, what was wanted and what to
    do; the programs print it without a traceback and exit with code 2. Control characters, which a file may hold and a
    terminal would obey, become question marks."""

    def __str__(self):
        return re.sub(r'[\x00-\x1f\x7f-\x9f]', '?', super().__str__())


def first_line(error):
    """The first line of an exception's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Registry:
    """Name -> class (or factory) of one kind of thing ('model', 'dataset'), filled by `@register('name')`."""

    def __init__(self, kind):
        self.kind = kind
        self.entries = {}
        self.roles = {}

    def register(self, name, role='any'):
        """Decorator that makes a class or factory known as `name`.

        role: where a config may name it, such as 'encoder' or 'wrapper'; 'any': wherever this registry is used.
        Raises ValueError when the name is taken by something defined elsewhere (re-importing the same definition is
        fine).
        """
        def decorator(thing):
            known = self.entries.get(name)
            if known is not None and (known.__module__, known.__qualname__) != (thing.__module__, thing.__qualname__):
                raise ValueError(f'{self.kind} {name!r} is registered twice: {known.__module__}.{known.__qualname__} '
                                 f'and {thing.__module__}.{thing.__qualname__}; rename one')
            self.entries[name] = thing
            self.roles[name] = role
            return thing
        return decorator

    def names(self, *roles):
        """The names that are known, sorted; roles: only those registered with one of these."""
        return sorted(name for name in self.entries if not roles or self.roles.get(name, 'any') in roles)

    def get(self, name):
        """The class or factory called `name`; UserError listing the known names when there is none."""
        if name not in self.entries:
            raise UserError(f'{self.kind} {name!r} is not known; known: {", ".join(self.names())}')
        return self.entries[name]

    def make(self, spec, args=None):
        """Build what `spec` = {name, args} names; `args` are added to, and win over, the spec's own.

        The spec is not changed, nor shared with what is built. As in a config, null means the default. Raises UserError
        for a malformed spec, an unknown name, arguments that the constructor does not take or lacks, and values that
        their annotations do not accept.
        """
        if not isinstance(spec, dict) or not isinstance(spec.get('name'), str):
            raise UserError(f'a {self.kind} spec is {{name: ..., args: {{...}}}}, found {show(spec)}')
        thing = self.get(spec['name'])
        given = spec.get('args') or {}
        if not isinstance(given, dict):
            raise UserError(f'{self.kind} {spec["name"]!r}: args is a mapping, found {show(given)}')
        merged = {**copy.deepcopy(given), **(args or {})}
        signature = inspect.signature(thing)
        try:
            signature.bind(**merged)
        except TypeError as error:
            raise UserError(f'{self.kind} {spec["name"]!r}: {error}; it takes {", ".join(signature.parameters)}') \
                from None
        for name, kind in value_types(thing).items():
            value = merged.get(name)
            value = list(value) if isinstance(value, tuple) else \
                os.fspath(value) if isinstance(value, os.PathLike) else value
            if name not in merged or kind.accepts(value):
                continue
            if value is not None or signature.parameters[name].default is inspect.Parameter.empty:
                raise UserError(f'{self.kind} {spec["name"]!r}: {name}: found {show(value)}, expected {kind.text}')
            del merged[name]
        return thing(**merged)


def show(value, limit=80):
    """A value as a message shows it: on one line, and not too long."""
    text = repr(value) if value is not None else 'null'
    return text if len(text) <= limit else text[:limit - 3] + '...'


# Value types: what an argument may be. They annotate the arguments of everything that a config can name,
#     n_feats: Annotated[int, Integer(1, 8192), 'features'] = 64
# and from these annotations come the check of configs, docs/configs.md and configs/schema.json (engine/schema.py).

@dataclass(frozen=True, eq=False)
class ValueType:
    """text: what is accepted, as messages say it; accepts: value -> bool; json: the same as JSON Schema, as far as
    that can express it; exists: 'folder' or 'file' for a path that has to exist; role: of the thing a spec names."""
    text: str
    accepts: Callable
    json: dict
    exists: str = ''
    role: str = ''


def is_number(value, whole=False):
    """A finite number, true and false excluded (in Python they are integers)."""
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and \
        abs(value) < math.inf


def Integer(low, high=2 ** 31 - 1, odd=False):
    text, json = 'an odd integer' if odd else 'an integer', {'not': {'multipleOf': 2}} if odd else {}
    return ValueType(f'{text} from {low} to {high}' if high < 2 ** 31 - 1 else f'{text} >= {low}',
                     lambda v: is_number(v, whole=True) and low <= v <= high and (v % 2 == 1 or not odd),
                     {'type': 'integer', 'minimum': low, 'maximum': high, **json})


def Number(low, high=math.inf, above=False, below=False):
    """A number from `low` to `high`; above, below: the bound itself excluded."""
    text, json = f'a number {">" if above else ">="} {low}', {'exclusiveMinimum' if above else 'minimum': low}
    if high < math.inf:
        text += f' and {"<" if below else "<="} {high}'
        json['exclusiveMaximum' if below else 'maximum'] = high
    return ValueType(text, lambda v: is_number(v) and (v > low if above else v >= low) and
                     (v < high if below else v <= high), {'type': 'number', **json})


def OneOf(*values):
    return ValueType('one of ' + ', '.join(map(str, values)),
                     lambda v: any(v == known and type(v) is type(known) for known in values), {'enum': list(values)})


def ListOf(item, least=0, most=math.inf, text=''):
    """A list of `least` to `most` values of the type `item`."""
    return ValueType(text or f'a list, each {item.text}',
                     lambda v: isinstance(v, list) and least <= len(v) <= most and all(map(item.accepts, v)),
                     {'type': 'array', 'items': item.json, 'minItems': least,
                      **({'maxItems': most} if most < math.inf else {})})


def OrNull(kind):
    """For arguments whose null is a value, not the default."""
    return replace(kind, text=f'null or {kind.text}', accepts=lambda v: v is None or kind.accepts(v),
                   json={'anyOf': [kind.json, {'type': 'null'}]})


def Text(text='a string', pattern='.+'):
    return ValueType(text, lambda v: isinstance(v, str) and re.fullmatch(pattern, v, re.DOTALL) is not None,
                     {'type': 'string', 'pattern': f'^(?:{pattern})$'})


def Path(exists):
    """exists: 'folder' or 'file'."""
    return replace(Text(f'a {exists} that exists'), exists=exists)


def Spec(role):
    """A mapping {name, args} that names something registered with this role."""
    return ValueType('{name, args}', lambda v: isinstance(v, dict), {'$ref': f'#/definitions/{role}'}, role=role)


FLAG = ValueType('true or false', lambda v: isinstance(v, bool), {'type': 'boolean'})


def parameters_of(thing):
    """The parameters of a class or function by name; None for compiled code, which may not tell them."""
    for eval_str in (True, False):  # an annotation that is text may fail in any way when it is evaluated
        with contextlib.suppress(Exception):
            return dict(inspect.signature(thing, eval_str=eval_str).parameters)
    return None


def value_types(thing):
    """{name: ValueType} of the parameters of a class or function that are annotated with one."""
    return {name: note for name, parameter in (parameters_of(thing) or {}).items()
            for note in getattr(parameter.annotation, '__metadata__', ()) if isinstance(note, ValueType)}


# Coordinates.

def axis_coord(n, v0=-1.0, v1=1.0, device=None, dtype=torch.float32):
    """Centres of n equal intervals of [v0, v1]: (n,).

    The order of operations, (v0 + r) + 2r * i, is part of the format: nearest-neighbour look-ups at odd scales hit
    exact ties, which another order would break differently.
    """
    r = (v1 - v0) / (2 * n)
    return v0 + r + (2 * r) * torch.arange(n, device=device, dtype=dtype)  # (n,)


def make_coord(shape, ranges=None, flatten=True, device=None, dtype=torch.float32):
    """Coordinates of the pixel centres of a grid.

    shape: sizes, such as (H, W); ranges: one (low, high) per axis, [-1, 1] each when absent.
    Returns (H * W, 2), rows first, or (H, W, 2) with `flatten=False`; the last axis is (y, x).
    """
    ranges = ranges or [(-1, 1)] * len(shape)
    axes = [axis_coord(n, v0, v1, device, dtype) for n, (v0, v1) in zip(shape, ranges)]
    grid = torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1)  # (H, W, 2)
    return grid.view(-1, grid.shape[-1]) if flatten else grid


def to_pixel_samples(img):
    """An image (C, H, W) as coordinate-value pairs: coord (H * W, 2), rgb (H * W, C)."""
    coord = make_coord(img.shape[-2:], device=img.device)
    rgb = img.reshape(img.shape[0], -1).permute(1, 0)  # (H * W, C)
    return coord, rgb


def normalize(x, spec, channel_dim):
    """(x - sub) / div per channel. spec: {sub: [...], div: [...]} with one or three numbers each, None for none;
    channel_dim: where the channels of x are (1 for images (B, 3, h, w), -1 for samples (B, Q, 3))."""
    if not spec:
        return x
    sub, div = _per_channel(x, spec, channel_dim)
    return (x - sub) / div


def denormalize(x, spec, channel_dim):
    """Undo `normalize`: x * div + sub."""
    if not spec:
        return x
    sub, div = _per_channel(x, spec, channel_dim)
    return x * div + sub


def _per_channel(x, spec, channel_dim):
    shape = [1] * x.dim()
    shape[channel_dim] = -1
    return [torch.as_tensor(spec[key], dtype=x.dtype, device=x.device).view(shape) for key in ('sub', 'div')]


# Resampling. A resampled value is a weighted mean of source pixels around a position u (in pixels, 0 is the centre of
# the first one). When the image shrinks, the kernel is stretched by the number of source pixels per output pixel, which
# keeps it free of aliasing.

def cubic(x):
    """Keys' cubic kernel with a = -1/2, the one of MATLAB and PIL (torch's own has a = -3/4)."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, 0))


def linear(x):
    return (1 - x.abs()).clamp_min(0)


WIDTH = {cubic: 4, linear: 2}  # where a kernel is not zero, in source pixels


def resampling_taps(u, stretch, n, kernel=cubic, border='symmetric'):
    """The source pixels and weights that make up resampled values along one axis.

    u: (...) positions in source pixels; stretch: source pixels per output pixel, broadcastable with u (1 and below:
    no stretching); n: source pixels. border: 'symmetric' mirrors the image at its edges (MATLAB), 'clip' leaves out
    what is beyond them (PIL), and a position there takes the value at the edge. Returns index (..., P) int64 in [0, n),
    weight (..., P) that sums to 1.
    """
    stretch = torch.as_tensor(stretch, dtype=u.dtype, device=u.device).clamp_min(1)
    half = stretch * (WIDTH[kernel] / 2)
    count = int(torch.ceil(2 * half.max())) + 1
    if border == 'clip':
        u = u.clamp(-0.5, n - 0.5)  # or a position outside would have no pixel
    first = torch.ceil(u - half)  # (...)
    index = first[..., None] + torch.arange(count, device=u.device, dtype=u.dtype)  # (..., P)
    weight = kernel((u[..., None] - index) / stretch[..., None])  # (..., P)
    index = index.long()
    if border == 'symmetric':
        index = index.remainder(2 * n)
        index = torch.minimum(index, 2 * n - 1 - index)
    else:
        weight = torch.where((index >= 0) & (index < n), weight, 0)
        index = index.clamp(0, n - 1)
    return index, weight / weight.sum(dim=-1, keepdim=True)


# Metrics.

LUMA = (65.738, 129.057, 25.064)  # weights of R, G, B over 256: ITU-R BT.601 in its range of 16 to 235


def shaved_pixels(dataset, scale):
    """The number of pixels that the metrics leave out on each side: none (dataset None), `scale` ('benchmark'),
    `scale` + 6 ('div2k'). Raises UserError for another dataset."""
    widths = {None: 0, 'benchmark': scale, 'div2k': scale + 6}
    if dataset not in widths:
        raise UserError(f"metrics are defined for dataset None, 'benchmark' or 'div2k', found {dataset!r}")
    return widths[dataset]


def shaved(img, dataset=None, scale=1, least=1):
    """An image (..., H, W) without the `shaved_pixels` on each side. Raises UserError when a side of what is left is
    shorter than `least` pixels."""
    n, (h, w) = shaved_pixels(dataset, scale), img.shape[-2:]
    if min(h, w) - 2 * n < least:
        raise UserError(f'found an image of {w}x{h} pixels, expected at least {least + 2 * n} on each side, of which '
                        f'{n} pixels at each border are left out: use a larger image or a smaller scale')
    return img[..., n:h - n, n:w - n]


def calc_psnr(sr, hr, dataset=None, scale=1, rgb_range=1):
    """Peak signal-to-noise ratio in dB, by the rules of the paper's tables: a 0-d tensor, inf for equal images.

    sr, hr: (B, C, H, W) in [0, rgb_range]; the squared error is pooled over the batch.
    dataset: None and 'div2k' compare RGB, 'benchmark' luma (one channel is used as it is), each without the
    `shaved_pixels` at the border.
    """
    diff = (sr - hr) / rgb_range  # (B, C, H, W)
    if dataset == 'benchmark' and diff.shape[1] > 1:
        luma = diff.new_tensor(LUMA).view(1, 3, 1, 1) / 256
        diff = (diff * luma).sum(dim=1)  # (B, H, W)
    return -10 * torch.log10(shaved(diff, dataset, scale).pow(2).mean())


class Averager:
    """A running weighted mean: `add(value, weight)` with a weight > 0, then `item()`; 0.0 before anything was added."""

    def __init__(self):
        self.n = 0.0
        self.v = 0.0

    def add(self, v, n=1.0):
        self.n += n
        if not math.isinf(self.v):  # the PSNR of equal images, which a mean keeps
            self.v += (v - self.v) * n / self.n

    def item(self):
        return self.v


@contextlib.contextmanager
def atomic_write(path, mode='wb', **kwargs):
    """Open a temporary file next to `path`. On success it is flushed to disk and renamed to `path`; on any error it is
    removed, and an older file at `path` stays. Readers never see a partial file."""
    folder, name = os.path.split(os.path.abspath(path))
    name = os.fsdecode(os.fsencode(name)[:200])  # names have at most 255 bytes on most file systems
    temporary = os.path.join(folder, f'.{name}.{secrets.token_hex(8)}')
    try:
        with open(temporary, mode, **kwargs) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_file(path, data):
    """Write bytes, or text as UTF-8, by `atomic_write`; the folder is made if it is missing."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with atomic_write(path) as f:
        f.write(data.encode() if isinstance(data, str) else data)


def replace_between(path, text, name):
    """Replace the text between the lines <!-- name:start --> and <!-- name:end --> of a file. Raises UserError for a
    file without them."""
    markers = f'<!-- {name}:start -->', f'<!-- {name}:end -->'
    with open(path, encoding='utf-8') as f:
        old = f.read()
    start, end = (old.find(marker) for marker in markers)
    if not 0 <= start < end:
        raise UserError(f'{path} has no lines {markers[0]} and {markers[1]}: add them where the text belongs')
    write_file(path, f'{old[:start]}{markers[0]}\n{text.rstrip()}\n{old[end:]}')


def counted(number, noun):
    """'1 thread', '2 threads', '1,000 steps'."""
    return f'{number:,} {noun}{"s" * (number != 1)}'


# Helpers of the published code, which decoders and scripts of the LIIF family import. Our programs use
# engine/optim.py, logging and engine/training/run_folder.py instead, and of these only `time_text`.

def make_optimizer(param_list, optimizer_spec, load_sd=False):
    """An optimizer of torch.optim by its name in lower case, such as 'adam' or 'sgd'.

    param_list: parameters or groups of them; optimizer_spec: {name, args}, and the state 'sd' for `load_sd`. Raises
    UserError for an unknown name.
    """
    known = {name.lower(): kind for name, kind in vars(torch.optim).items() if isinstance(kind, type)
             and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer}
    if optimizer_spec['name'] not in known:
        raise UserError(f'optimizer {optimizer_spec["name"]!r} is not known; known: {", ".join(sorted(known))}')
    optimizer = known[optimizer_spec['name']](param_list, **optimizer_spec['args'])
    if load_sd:
        optimizer.load_state_dict(optimizer_spec['sd'])
    return optimizer


class Timer:
    """Seconds since it was made, or since the last `s()`: `t()`."""

    def __init__(self):
        self.s()

    def s(self):
        self.v = time.monotonic()

    def t(self):
        return time.monotonic() - self.v


TIME_UNITS = {'d': 86400, 'h': 3600, 'm': 60, 's': 1}  # in seconds


def time_text(t):
    """t: seconds. As 5.0s, 1.5m, 2.0h or 3.2d."""
    for (unit, size), smaller in zip(TIME_UNITS.items(), [*TIME_UNITS.values(), 1][1:]):
        if round(t / smaller, 1) * smaller >= size or unit == 's':  # 59.97 would be 60.0s
            return f'{t / size:.1f}{unit}'


def compute_num_params(model, text=False):
    """The number of a module's parameters; text: as 1.6M or 12.3K."""
    total = sum(p.numel() for p in model.parameters())
    if not text:
        return total
    return f'{total / 1e6:.1f}M' if total >= 1e6 else f'{total / 1e3:.1f}K'


def ensure_path(path, remove=True):
    """Make a folder. remove: what an existing one holds is deleted, at once if its name begins with _, else if the user
    answers y."""
    if remove and os.path.exists(path) and (os.path.basename(os.path.abspath(path)).startswith('_')
                                            or input(f'{path} exists: delete what it holds? y or [n] ') == 'y'):
        shutil.rmtree(path)
    os.makedirs(path, exist_ok=True)


def log(obj, filename='log.txt', folder=None):
    """Print `obj`; folder: also append it to `filename` there."""
    print(obj)
    if folder is not None:
        with open(os.path.join(folder, filename), 'a', encoding='utf-8') as f:
            print(obj, file=f)


def set_save_path(save_path, remove=True):
    """Make a run folder (`ensure_path`). Returns (`log` that writes there too, a tensorboardX writer)."""
    from tensorboardX import SummaryWriter
    ensure_path(save_path, remove)
    return functools.partial(log, folder=save_path), SummaryWriter(os.path.join(save_path, 'tensorboard'))
