"""The size of an enlarged picture or video, from what the command line says."""
import math

from utils import UserError


MAX_OUTPUT = 1_000_000_000  # pixels rendered without insisting
MEANINGS = {'resolution': 'H,W in pixels', 'scale': 'a factor, or two: vertical,horizontal', 'width': 'pixels',
            'height': 'pixels', 'max_side': 'pixels of the longer side', 'region': 'x,y,width,height in source pixels'}
COUNTS = {'resolution': (2,), 'scale': (1, 2), 'region': (4,)}


def parse(name, text):
    """The numbers of an option: whole ones but for 'scale' and 'region'; all above zero but a region's x and y.
    Raises UserError."""
    number = float if name in ('scale', 'region') else int
    try:
        values = tuple(number(part) for part in str(text).split(','))
    except ValueError:
        values = ()
    positive = values[2:] if name == 'region' else values
    if len(values) not in COUNTS.get(name, (1,)) or not all(map(math.isfinite, values)) or min(positive) <= 0:
        raise UserError(f'--{name.replace("_", "-")}: found {text!r}, wanted {MEANINGS[name]}, above zero')
    return values


def parse_size(region=None, insist=False, **options):
    """A function (h, w) of the source -> (H, W), whole numbers of 1 or more, from the one option that is given.

    options: resolution, scale, width, height, max_side, as text, None when absent; all but the first keep the aspect
    (a scale of two numbers aside). region: (x, y, width, height), what is enlarged instead of the whole.
    Raises UserError for none or several options and for values that make no sense; the function for an output too
    large to be meant, unless `insist`.
    """
    given = {name: text for name, text in options.items() if text is not None}
    if len(given) != 1:
        names = ', '.join('--' + name.replace('_', '-') for name in options)
        found = ' and '.join('--' + name.replace('_', '-') for name in given) or 'none'
        raise UserError(f'the size of the output: found {found}, wanted one of {names}'
                        + ('; --resolution H,W sets both sides' if given else ''))
    (name, text), = given.items()
    values = parse(name, text)

    def size_of(h, w):
        if region is not None:
            h, w = region[3], region[2]
        if name == 'resolution':
            size = values
        else:
            side = {'scale': 1, 'width': w, 'height': h, 'max_side': max(h, w)}[name]
            size = tuple(max(1, math.floor(n * factor / side + 0.5)) for n, factor in zip((h, w), values * 2))
        pixels = size[0] * size[1]
        if pixels > MAX_OUTPUT and not insist:
            raise UserError(f'the output would have {size[1]}x{size[0]} pixels, {pixels / 1e9:.1f} gigapixels, above '
                            f'the limit of {MAX_OUTPUT / 1e9:.0f}: choose a smaller size, or add --insist if meant')
        return size
    return size_of
