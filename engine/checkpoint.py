"""Checkpoint files: written whole or not at all, and checked before anything in them is used.

A checkpoint is a dict that `torch.load(..., weights_only=True)` reads:
    model      {name, args, sd}, as `models.make(spec, load_sd=True)` takes it
    optimizer  {name, args, sd}
    epoch      how many epochs are complete
and, which files of the published code lack,
    data_norm  {inp, gt: {sub, div}}, what the model expects; absent: 0.5 and 0.5
    ema        {parameter name: averaged weight}
    config     the config of the run
    train      where in the run this is (engine/training/state.py)
"""
import contextlib
import glob
import hashlib
import io
import logging
import os
import re
import zipfile

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

import models
from engine import ROOT
from utils import UserError, atomic_write


# Normalizations: of the published configs, which checkpoints without `data_norm` were trained with; and none.
PUBLISHED_NORM = {part: {'sub': [0.5], 'div': [0.5]} for part in ('inp', 'gt')}
IDENTITY_NORM = {part: {'sub': [0.0], 'div': [1.0]} for part in ('inp', 'gt')}
log = logging.getLogger('liif')
LEGACY_MAGIC = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # how torch.save began files before torch 1.6
MAX_NORM = 1e6  # of the numbers of data_norm; pixels lie in [0, 1]
LAST, PREVIOUS = 'epoch-last.pth', 'epoch-last.prev.pth'
SUMS = 'SHA256SUMS'
WEIGHTS = os.path.join(ROOT, 'weights')  # trained weights, weights/<name>/model.pth
PUBLISHED = 'published'  # the name there of the authors' weights, which do not come with the project
# Short names: of the weights that weights/default.txt names, and of those trained on degraded images.
CLEAN, PHOTO = 'clean', 'photo'
FOLDERS = {PHOTO: 'edsr-baseline-liif-photo'}  # their folders, where the name is another
ABSENT = {PUBLISHED: 'get them with python scripts/prepare_data.py published-weights',
          PHOTO: 'docs/photos.md tells how they are trained'}
COMPRESSED = {'JPEG': 'JPEG', 'MPO': 'JPEG', 'WEBP': 'WebP'}  # Pillow's names of formats: what people call them


class Unreadable(UserError):
    """A file that the system does not give right now, which says nothing about what is in it."""


# Writing.

def to_bytes(checkpoint):
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)  # in memory: on a full disk torch.save itself fails badly and leaves half a file
    return buffer.getbuffer()


def save_checkpoint(path, checkpoint, previous=None):
    """Write a checkpoint (a dict, or its bytes), leaving the good file at `path` until the new one is safely on disk.
    previous: where the old file is kept then. Raises OSError when the disk does not take it."""
    data = to_bytes(checkpoint) if isinstance(checkpoint, dict) else checkpoint
    with atomic_write(path) as f:
        f.write(data)
        if previous is not None and os.path.exists(path):
            f.flush()
            os.fsync(f.fileno())
            os.replace(path, previous)


# Reading.

def load_checkpoint(path):
    """The checkpoint in a file of ours or of the published code, on the CPU. Raises UserError for a file that is
    missing, damaged, cut short, something else, or that would execute code; and for one that does not match the file
    SHA256SUMS in its folder (the weights that come with the project have one)."""
    return parse_checkpoint(read_file(path), path)


def load_model(path, device, ema=False):
    """The model of a checkpoint, ready to evaluate on `device`, and the normalization it expects:
    (model, {inp, gt: {sub, div}}). path: as in `model_path`; ema: with the averaged weights. Raises UserError as
    `load_checkpoint`."""
    path = model_path(path)
    checkpoint = load_checkpoint(path)
    spec = choose_weights(checkpoint, path, ema)
    model = build_model(spec, path).to(device, memory_format=torch.channels_last).eval()
    return model, checkpoint.get('data_norm') or PUBLISHED_NORM


def choose_weights(checkpoint, path, ema=False):
    """The spec {name, args, sd} of a checkpoint's model; ema: with its averaged weights. Raises UserError when it holds
    none."""
    if ema and not checkpoint.get('ema'):
        raise UserError(f'checkpoint {path} holds no averaged weights (a config sets them by ema: 0.999): use its '
                        f'last weights')
    return {**checkpoint['model'], 'sd': checkpoint['ema']} if ema else checkpoint['model']


def read_file(path):
    """The bytes of a checkpoint file."""
    if os.path.isdir(path):
        inside = next((name for name in (LAST, 'model.pth') if os.path.isfile(os.path.join(path, name))), LAST)
        raise UserError(f'{path} is a folder: name the checkpoint in it, such as {os.path.join(path, inside)}')
    try:
        with open(path, 'rb') as f:
            data = f.read()
    except FileNotFoundError:
        names = ', '.join(weights_by_name())
        raise UserError(f'checkpoint {path} does not exist: correct the path'
                        + f', or name weights that are there: {names}' * bool(names)) from None
    except (OSError, ValueError) as error:
        raise Unreadable(f'checkpoint {path} cannot be read ({getattr(error, "strerror", None) or error}): it may be '
                         f'intact, so try again once the disk or the network answers') from None
    check_sum(data, path)
    return data


def parse_checkpoint(data, path):
    """The checkpoint in `data`, bytes of the file `path`, its structure checked."""
    check_archive(data, path)
    try:
        checkpoint = torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
    except Exception as error:  # damaged and hostile files make the reader fail in many ways
        text = str(error)
        unsafe = re.search(r'GLOBAL ([\w.]+)|(?:Unsupported (?:class|operand)|instantiate) ([\w.]+)', text)
        if unsafe:
            raise UserError(f'checkpoint {path} holds more than tensors and plain values '
                            f'({unsafe.group(1) or unsafe.group(2)}), which could execute code, so it is not loaded; '
                            f'get it from its authors as plain weights') from error
        raise UserError(f'checkpoint {path} cannot be read, it is damaged or no checkpoint '
                        f'({type(error).__name__}): use another copy') from error
    check_structure(checkpoint, len(data), path)
    for holder, key in ((checkpoint['model'], 'sd'), (checkpoint, 'ema')):
        if holder.get(key) and all(name.startswith('module.') for name in holder[key]):  # saved from DataParallel
            holder[key] = {name.removeprefix('module.'): value for name, value in holder[key].items()}
    return checkpoint


def check_sum(data, path):
    """Compare with SHA256SUMS (the format of sha256sum) in the same folder, if it exists and names the file."""
    folder, name = os.path.split(path)
    if not os.path.isfile(os.path.join(folder, SUMS)):  # a pipe would be waited for
        return
    try:
        with open(os.path.join(folder, SUMS), encoding='utf-8') as f:
            wanted = {line[66:].rstrip('\n'): line[:64] for line in f}
    except (OSError, ValueError):
        return
    found = hashlib.sha256(data).hexdigest()
    if wanted.get(name, found) != found:
        raise UserError(f'{path} does not match {os.path.join(folder, SUMS)} (its SHA-256 is {found[:12]}..., expected '
                        f'{wanted[name][:12]}...): restore it, git checkout -- {path}')


def check_archive(data, path):
    """Verify the checksums, which torch.load does not."""
    if not data.startswith(b'PK'):
        if data.startswith(LEGACY_MAGIC):
            return  # an old format without checksums
        raise UserError(f'{path} is not a checkpoint: expected a file of train_liif.py, or of the published code')
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise UserError(f'{path} is a compressed archive, not a checkpoint: unpack it first')
            if sum(info.file_size for info in archive.infolist()) > len(data):  # they overlap; each would be read
                raise UserError(f'{path} is not a checkpoint: its parts are larger than the file; do not use it')
            bad = archive.testzip()
    except UserError:
        raise
    except Exception as error:  # damaged archives make zipfile fail in many ways
        raise UserError(f'checkpoint {path} is cut short or damaged ({type(error).__name__}): use another copy') \
            from error
    if bad is not None:
        raise UserError(f'checkpoint {path} is damaged (the checksum of {bad!r} is wrong): use another copy')


def check_structure(checkpoint, size, path):
    wanted = 'expected a dict with model: {name, args, sd}'
    if not isinstance(checkpoint, dict):
        raise UserError(f'{path} holds a {type(checkpoint).__name__}, not a checkpoint: {wanted}')
    model = checkpoint.get('model')
    if not isinstance(model, dict):
        what = 'bare weights without the model they belong to' if checkpoint and all(map(torch.is_tensor,
               checkpoint.values())) else f'a dict with {", ".join(map(str, list(checkpoint)[:5])) or "nothing"}'
        raise UserError(f'{path} is another kind of checkpoint, {what}: {wanted}')
    sd = model.get('sd')
    if not isinstance(model.get('name'), str) or not isinstance(model.get('args') or {}, dict) \
            or not isinstance(sd, dict):
        raise UserError(f'{path} is another kind of checkpoint, its model is a dict with '
                        f'{", ".join(map(str, list(model)[:5]))}: {wanted}')
    for name, weights in (('model', sd), ('ema', checkpoint.get('ema') or {})):
        check_weights(weights, size, f'{path}: {name}')
    check_norm(checkpoint.get('data_norm'), path)
    for key, kind in (('epoch', int), ('optimizer', dict), ('config', dict), ('train', dict), ('data', dict)):
        if not isinstance(checkpoint.get(key, kind()), kind):
            raise UserError(f'{path} is another kind of checkpoint: its {key} is a '
                            f'{type(checkpoint[key]).__name__}, expected {kind.__name__}')
    for section, files in checkpoint.get('data', {}).items():  # of datasets/check.py
        if files and not (isinstance(files, dict) and isinstance(files.get('names'), str)
                          and torch.is_tensor(files.get('numbers'))):
            raise UserError(f'{path} is another kind of checkpoint: its data, {section!r}, is no list of files')


def check_weights(weights, size, where):
    """Refuse what is no plain tensor, or claims to be larger than the file of `size` bytes."""
    if not isinstance(weights, dict):
        raise UserError(f'{where} holds a {type(weights).__name__}, expected a dict of tensors')
    for key, value in weights.items():
        if not isinstance(key, str) or not torch.is_tensor(value) or value.layout is not torch.strided \
                or value.device.type != 'cpu' or value.is_quantized:
            raise UserError(f'{where}: {key!r} is not a plain tensor, so this is another kind of checkpoint')
    if sum(value.numel() * value.element_size() for value in weights.values()) > 4 * size:  # shared ones count twice
        raise UserError(f'{where}: its tensors claim to be larger than the whole file of {size} bytes; do not use it')


def check_norm(norm, path):
    def fits(part):
        return isinstance(part, dict) and all(
            isinstance(part.get(key), list) and len(part[key]) in (1, 3)
            and all(isinstance(v, (int, float)) and abs(v) <= MAX_NORM for v in part[key])
            for key in ('sub', 'div')) and 0 not in part['div']
    if norm is not None and not (isinstance(norm, dict) and fits(norm.get('inp')) and fits(norm.get('gt'))):
        raise UserError(f'checkpoint {path}: its data_norm is not {{inp, gt: {{sub: [...], div: [...]}}}}; do not use '
                        f'it')


# From a spec to a model.

def build_model(spec, path):
    """The model of a checkpoint's spec = {name, args, sd}, on the CPU. A spec that asks for a larger model than the
    file holds is refused before its memory is touched."""
    try:
        with at_most(len(spec['sd']), sum(value.numel() for value in spec['sd'].values())):
            return models.make(spec, load_sd=True)
    except UserError as error:
        raise UserError(f'checkpoint {path}: {error}') from None
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError, MemoryError) as error:
        raise UserError(f'checkpoint {path}: its model {spec["name"]!r} cannot be built from its arguments '
                        f'({type(error).__name__}: {str(error)[:100]})'.replace('\n', ' ')) from error


@contextlib.contextmanager
def at_most(parameters, numbers):
    """Within `with`, refuse to build a model of more than about four times `parameters` tensors or `numbers` values
    (some models register a parameter twice). It is refused when registered, before its memory is filled."""
    parameters, numbers = 4 * parameters + 100, 4 * numbers + 10 ** 6

    def take(module, name, parameter):
        nonlocal parameters, numbers
        parameters -= 1
        numbers -= 0 if parameter is None else parameter.numel()
        if min(parameters, numbers) < 0:
            raise UserError('the model it describes is larger than the weights it holds; do not use it')

    handle = register_module_parameter_registration_hook(take)
    try:
        yield
    finally:
        handle.remove()


# Which to resume from.

def find_resume(folder):
    """The newest usable checkpoint of a run folder: (path, bytes), or None when it holds none at all.

    A damaged one is named in the log and the one before it is taken; UserError when all are damaged, and at once when
    one cannot be read, since it may be intact.
    """
    numbers = [match[1] for match in (re.fullmatch(r'epoch-(\d+)\.pth', name) for name in os.listdir(folder)) if match]
    numbered = [f'epoch-{number}.pth' for number in sorted(numbers, key=int, reverse=True)]
    problems = []
    for name in (LAST, PREVIOUS, *numbered, 'epoch-best.pth'):
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            continue
        try:
            data = read_file(path)
            parse_checkpoint(data, path)
            return path, data
        except Unreadable:
            raise
        except UserError as error:
            problems.append(str(error))
            log.warning(f'passing over a checkpoint: {error}')
    if problems:
        raise UserError(f'no checkpoint in {folder} is usable ({problems[0]}); overwrite the run')
    return None


# Which file a name means.

def model_path(name, folder=None):
    """The file weights/<name>/model.pth for the name of a folder there, such as 'published', and for 'clean' and
    'photo'; any other name is a path and stays. Raises UserError for known weights that are not there."""
    if os.path.isfile(name) or os.path.basename(name) != str(name):
        return name
    if name == CLEAN:
        return default_model(folder)
    path = os.path.join(folder or WEIGHTS, FOLDERS.get(name, name), 'model.pth')
    if name in ABSENT and not os.path.isfile(path):
        raise UserError(f'the {name} weights are not here yet: {ABSENT[name]}')
    return path if os.path.isfile(path) else name


def suited_model(image_format, folder=None):
    """(Name of the weights for an image file when none are named, the reason as a part of a sentence): 'photo' for
    JPEG and WebP, as soon as these weights are there; 'clean' for all others.

    image_format: as Pillow names it, by the content of the file; None for a file that is no image
    """
    if image_format not in COMPRESSED:
        return CLEAN, f'for {image_format} images' if image_format else 'since it is no JPEG or WebP'
    reason = f'for {COMPRESSED[image_format]} images'
    try:
        model_path(PHOTO, folder)
    except UserError:
        return CLEAN, f'{reason}, since the {PHOTO} weights are not here yet'
    return PHOTO, f'{reason}, which are compressed'


def weights_by_name(folder=None):
    """{name: path} of the checkpoints in weights/: 'clean' and 'photo', where they are there, then the others."""
    found = {}
    for name in (CLEAN, PHOTO):
        with contextlib.suppress(UserError):
            found[name] = model_path(name, folder)
    for path in sorted(glob.glob(os.path.join(folder or WEIGHTS, '*', 'model.pth'))):
        if path not in found.values():
            found[os.path.basename(os.path.dirname(path))] = path
    return found


def default_model(folder=None):
    """The checkpoint to use when none is named: that of the name in weights/default.txt, else the newest one. Raises
    UserError when there is none."""
    folder = folder or WEIGHTS
    try:
        with open(os.path.join(folder, 'default.txt')) as f:
            found = [os.path.join(folder, f.read().strip(), 'model.pth')]
    except FileNotFoundError:
        found = sorted(glob.glob(os.path.join(folder, '*', 'model.pth')), key=os.path.getmtime)
    if not found or not os.path.isfile(found[-1]):
        raise UserError('no weights come with this copy of the project: name a checkpoint, such as save/.../'
                        'epoch-last.pth (bash scripts/quickstart.sh trains a small one in minutes)')
    return found[-1]
