"""Looking data over before it is used."""
import numpy as np
import torch

from utils import UserError

from .images import BadImage, file_stamps, in_threads


def problems(wrapper, read=False, most=None):
    """Yield, for every different image of a wrapper's image set, None or what keeps it from being used, in a line.

    read: decode the pixels; otherwise headers alone tell. most: how many to look at, at most, evenly spread.
    A wrapper is asked by its `check(index)`; one without is only asked for what its image set finds.
    """
    images = getattr(wrapper, 'dataset', wrapper)
    look = [getattr(images, name) for name in ('image',) * read + ('size',) if hasattr(images, name)]
    look += [wrapper.check] if hasattr(wrapper, 'check') else []

    def problem(index):
        try:
            for function in look:
                function(index)
        except BadImage as error:
            return str(error)
    return in_threads(problem, spread(wrapper, most))


def check_headers(wrapper, on_bad_image='stop', most=10_000):
    """The cheap check before training: reads the headers of up to `most` images (about a second). Raises UserError
    naming the first bad image and their number; where they are to be skipped, returns what is wrong with them, a line
    each, and raises only when no image is left."""
    found = list(problems(wrapper, most=most))
    bad = [problem for problem in found if problem is not None]
    if bad and (on_bad_image == 'stop' or len(bad) == len(found)):
        skip = ', or set on_bad_image: skip' if len(bad) < len(found) else ''
        rest = f' ({len(bad)} of {len(found)} images cannot be used: see python scripts/check_data.py CONFIG{skip})' \
            if len(bad) > 1 else ''
        raise UserError(bad[0] + rest)
    return bad


def check_batches(wrapper, batch_size, most=10_000):
    """The cheap check, by the headers of up to `most` images, that all samples have one size if several form a
    batch. Raises UserError naming two that differ. Passes over bad images, and wrappers without `shapes`."""
    if batch_size == 1 or not hasattr(wrapper, 'shapes'):
        return

    def shapes(index):
        try:
            return index, wrapper.shapes(index)
        except BadImage:  # `check_headers` reports it, or the loop does
            return index, ()
    first = {}  # shape -> index of a sample that has it
    for index, found in in_threads(shapes, spread(wrapper, most)):
        for shape in found:
            first.setdefault(shape, index)
        if len(first) > 1:
            break
    if len(first) > 1:
        ways = [f'{width}x{height} and {queries} queries of {wrapper.path(index)}'
                for (height, width, queries), index in list(first.items())[:2]]
        same_input = len({shape[:2] for shape in first}) == 1
        remedy = ', or sample_q' if same_input else ', or inp_size' if hasattr(wrapper, 'inp_size') else ''
        raise UserError(f'samples of different size cannot form a batch of {batch_size} (inputs of '
                        f'{" or ".join(ways)}): set batch_size: 1{remedy}')


def spread(wrapper, most=None):
    """Indices of the different images of a wrapper's image set, `most` of them at most, evenly spread."""
    count = getattr(getattr(wrapper, 'dataset', wrapper), 'distinct', len(wrapper))
    return np.linspace(0, count - 1, min(count, most or count)).round().astype(int).tolist()


def file_list(wrapper):
    """The files of a wrapper's image set, for `changes`: {names: paths joined by NUL, numbers: int64 (N, 2), size in
    bytes and time of the last change in ns}. Empty for an image set that does not tell its files."""
    images = getattr(wrapper, 'dataset', wrapper)
    paths = [images.path(i) for i in range(getattr(images, 'distinct', len(images)))] if hasattr(images, 'path') else []
    paths = [path for group in paths for path in ((group,) if isinstance(group, str) else group)]
    return {'names': '\0'.join(paths), 'numbers': torch.from_numpy(file_stamps('', paths)[:, :2].copy())}


def changes(before, now):
    """What differs between two results of `file_list`, a line each. before: None for a checkpoint without one."""
    if not before or not before.get('names'):
        return []
    was, are = (dict(zip(found['names'].split('\0'), found['numbers'].tolist())) for found in (before, now))
    groups = {'removed': [name for name in was if name not in are], 'added': [name for name in are if name not in was],
              'altered': [name for name in are if name in was and was[name][0] != are[name][0]],
              'written again (same size, other time)': [name for name in are if name in was and was[name] != are[name]
                                                        and was[name][0] == are[name][0]]}
    return [f'{len(names)} of {len(are)} images {what}, {names[0]} first' for what, names in groups.items() if names]
