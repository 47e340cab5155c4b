"""The size of an enlarged image or video."""
import math

from datasets.images import TooLarge
from utils import UserError


MAX_OUTPUT = 1_000_000_000  # pixels
COUNTABLE = 1e18  # pixels, more than any disk holds


def check_region(region, h, w, name='region'):
    """Raise UserError for a region that is not (x, y, width, height) inside an image of h x w pixels.

    name: what the message calls it
    """
    try:
        left, top, width, height = map(float, region)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f'{name}: found {region!r}, expected x,y,width,height, four numbers') from None
    slack = 1e-9 * max(h, w)  # fractions add up with rounding
    if not (width > 0 and height > 0 and left >= 0 and top >= 0 and left + width <= w + slack
            and top + height <= h + slack):
        raise UserError(f'{name}: found {left:g},{top:g},{width:g},{height:g}, expected x,y,width,height inside the '
                        f'image of {w}x{h} pixels')


def size_rule(kind, values, region=None, limit=MAX_OUTPUT):
    """A function (h, w) of the source -> (H, W), each at least 1.

    kind, values: 'resolution' and (H, W); 'scale' and one factor or two, vertical and horizontal; or 'width', 'height',
    'max-side' and (pixels,), which keep the aspect
    region: (x, y, width, height), enlarged instead of the whole image; the function raises UserError where it is not
    inside the image
    limit: pixels of the output, beyond which the function raises TooLarge; None for COUNTABLE alone
    """
    def size_of(h, w):
        if region is not None:
            check_region(region, h, w)
            h, w = region[3], region[2]
        if kind == 'resolution':
            size = values
        else:
            side = {'scale': 1, 'width': w, 'height': h, 'max-side': max(h, w)}[kind]
            size = [max(1, float(n) * factor / side) for n, factor in zip((h, w), values * 2)]
        if not float(size[0]) * size[1] < COUNTABLE:
            raise UserError(f'the output would have {size[1]:.3g}x{size[0]:.3g} pixels: choose a smaller size')
        size = tuple(math.floor(n + 0.5) for n in size)
        pixels = size[0] * size[1]
        if limit is not None and pixels > limit:
            raise TooLarge.of(f'the output would have {size[1]}x{size[0]} pixels, {pixels / 1e9:.1f} gigapixels, above '
                              f'the limit of {limit / 1e9:.0f}', 'choose a smaller size')
        return size
    return size_of
