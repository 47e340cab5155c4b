"""Looking data over before it is used."""
import numpy as np

from utils import UserError

from .images import BadImage, in_threads


def problems(wrapper, read=False, most=None):
    """Yield, for every different image of a wrapper's image set, None or what keeps it from being used, in a line.

    read: decode the pixels; otherwise headers alone tell. most: look at so many at most, evenly spread.
    A wrapper is asked by its `check(index)`; one without is only asked for what its image set finds.
    """
    images = getattr(wrapper, 'dataset', wrapper)
    count = getattr(images, 'distinct', len(wrapper))
    look = [getattr(images, name) for name in ('image',) * read + ('size',) if hasattr(images, name)]
    look += [wrapper.check] if hasattr(wrapper, 'check') else []

    def problem(index):
        try:
            for function in look:
                function(index)
        except BadImage as error:
            return str(error)
    chosen = np.linspace(0, count - 1, min(count, most or count)).round().astype(int)
    return in_threads(problem, chosen.tolist())


def check_headers(wrapper, on_bad_image='stop', most=10_000):
    """The cheap check before training: what headers tell of up to `most` images (about a second). Raises UserError
    naming the first bad image and their number; where they are to be skipped, returns what is wrong with them, a line
    each, and raises only when no image is left."""
    found = list(problems(wrapper, most=most))
    bad = [problem for problem in found if problem is not None]
    if bad and (on_bad_image == 'stop' or len(bad) == len(found)):
        rest = f' ({len(bad)} of {len(found)} images cannot be used: see python scripts/check_data.py CONFIG, or set ' \
               f'on_bad_image: skip)' if len(bad) > 1 else ''
        raise UserError(bad[0] + rest)
    return bad
