"""The size of an enlarged image or video, from the text of options."""
import math
import re

from datasets.images import TooLarge
from utils import UserError


MAX_OUTPUT = 1_000_000_000  # pixels
MEANINGS = {'resolution': 'H,W or WxH in pixels', 'scale': 'a factor, or two: vertical,horizontal', 'width': 'pixels',
            'height': 'pixels', 'max_side': 'pixels of the longer side', 'region': 'x,y,width,height in source pixels'}
COUNTS = {'resolution': (2,), 'scale': (1, 2), 'region': (4,)}


def parse(kind, text, name=None):
    """The numbers of an option, integers except for 'scale' and 'region'; all above zero except a region's x and y.

    kind: a key of MEANINGS; text: what the user gave; name: what the user calls it, by default `kind`
    Raises UserError.
    """
    number = float if kind in ('scale', 'region') else int
    swapped = re.fullmatch(r'\s*(\d+)\s*[xX×]\s*(\d+)\s*', str(text)) if kind == 'resolution' else None
    try:
        values = tuple(map(number, swapped.groups()[::-1] if swapped else str(text).split(',')))
    except ValueError:
        values = ()
    positive = values[2:] if kind == 'region' else values
    if len(values) not in COUNTS.get(kind, (1,)) or not all(map(math.isfinite, values)) or min(positive) <= 0:
        name = name or kind.replace('_', '-')
        raise UserError(f'{name}: found {text!r}, expected {MEANINGS[kind]}, above zero')
    return values


def check_region(region, h, w):
    """Raise UserError for a region (x, y, width, height) that is not inside an image of h x w pixels."""
    left, top, width, height = region
    slack = 1e-9 * max(h, w)  # fractions add up with rounding
    if not (width > 0 and height > 0 and left >= 0 and top >= 0 and left + width <= w + slack
            and top + height <= h + slack):
        raise UserError(f'region: found {left:g},{top:g},{width:g},{height:g}, expected x,y,width,height inside the '
                        f'image of {w}x{h} pixels')


def parse_size(region=None, limit=MAX_OUTPUT, **options):
    """A function (h, w) of the source -> (H, W), each at least 1, from the one option that is given; x4 for none.

    region: (x, y, width, height), enlarged instead of the whole image; the function raises UserError where it is not
    inside the image
    limit: pixels of the output, beyond which the function raises TooLarge; None for no limit
    options: resolution, scale, width, height, max_side, as text, None if not given; all keep the aspect except
    resolution and a scale of two numbers
    Raises UserError for several options and for values that make no sense.
    """
    given = {kind: text for kind, text in options.items() if text is not None} or {'scale': '4'}
    if len(given) > 1:
        raise UserError(f'the size of the output: found {" and ".join(given)}, expected one of them')
    (kind, text), = given.items()
    values = parse(kind, text)

    def size_of(h, w):
        if region is not None:
            check_region(region, h, w)
            h, w = region[3], region[2]
        if kind == 'resolution':
            size = values
        else:
            side = {'scale': 1, 'width': w, 'height': h, 'max_side': max(h, w)}[kind]
            size = tuple(max(1, math.floor(n * factor / side + 0.5)) for n, factor in zip((h, w), values * 2))
        pixels = size[0] * size[1]
        if limit is not None and pixels > limit:
            raise TooLarge.of(f'the output would have {size[1]}x{size[0]} pixels, {pixels / 1e9:.1f} gigapixels, above '
                              f'the limit of {limit / 1e9:.0f}', 'choose a smaller size')
        return size
    return size_of
