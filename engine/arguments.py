"""Command-line arguments. Nothing here imports torch, so --help and mistyped flags answer at once."""
import argparse
import contextlib
import difflib
import math
import re
import sys


PRECISIONS = 'float32', 'tf32', 'bf16', 'fp16'
QUALITY = 95  # of JPEG, WebP and AVIF, unless --quality says otherwise
# What gives the size of an output or a part of the source: the meaning, how many numbers there may be, their type.
SIZES = {'resolution': ('H,W or WxH in pixels', (2,), int),
         'scale': ('a factor, or two: vertical,horizontal', (1, 2), float),
         'width': ('whole pixels', (1,), int), 'height': ('whole pixels', (1,), int),
         'max-side': ('whole pixels of the longer side', (1,), int),
         'region': ('x,y,width,height in source pixels', (4,), float)}


class Parser(argparse.ArgumentParser):
    """Prints the docstring unchanged, and mistakes in one line with exit code 2. Flags cannot be abbreviated: programs
    look for them in commands that they repeat."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                         allow_abbrev=False)

    def parse_args(self, args=None, namespace=None):
        flags = list(self._option_string_actions)
        for text in sys.argv[1:] if args is None else args:
            name = text.split('=')[0]
            if name == '--':
                break
            if name.startswith('--') and name not in flags:
                close = [flag for flag in flags if flag.startswith(name)] or \
                    difflib.get_close_matches(name, flags, 1, 0.7)
                self.error(f'{name} is not an option' + (f', did you mean {close[0]}?' if close else ''))
        return super().parse_args(args, namespace)

    def error(self, message):
        lost = 'unrecognized arguments' in message or message.endswith(' argument')  # perhaps a negative number
        minus = ' (a value that begins with a minus: --flag=-1)' if lost else ''
        self.exit(2, f'error: {message.removeprefix("argument ")}; see {self.prog} --help{minus}\n')


# Argument types: functions of the text that return the value, or raise ArgumentTypeError.

def device(text):
    """The value of --gpu for one process: the number of a GPU, or 'cpu', as text."""
    if not re.fullmatch('cpu|[0-9]+', text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a GPU's number such as 0, or cpu")
    return text


def file_name(text):
    """A path, not empty as that of an unset variable of the shell."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f'found {text!r}, expected the name of a file or folder')
    return text


def within(low, high=math.inf, kind=int, above=False):
    """The type of finite numbers from `low` to `high`; kind: int or float; above: `low` itself is refused."""
    bounds = {(True, False): 'above {0:g}', (True, True): 'above {0:g} and at most {1:g}',
              (False, False): 'of at least {0:g}', (False, True): 'from {0:g} to {1:g}'}[above, high < math.inf]
    wanted = f'{"a whole number" if kind is int else "a number"} {bounds.format(low, high)}'

    def parse(text):
        with contextlib.suppress(ValueError):
            value = kind(text)
            if (low < value if above else low <= value) and value <= high and value != math.inf:
                return value
        raise argparse.ArgumentTypeError(f'found {text}, expected {wanted}')
    return parse


def numbers(kind):
    """The type of a key of SIZES: a tuple of numbers, all above zero except a region's x and y."""
    meaning, counts, number = SIZES[kind]

    def parse(text):
        swapped = re.fullmatch(r'\s*(\d+)\s*[xX×]\s*(\d+)\s*', text) if kind == 'resolution' else None
        try:
            values = tuple(map(number, swapped.groups()[::-1] if swapped else text.split(',')))
            finite = all(map(math.isfinite, values))
        except (ValueError, OverflowError):  # a whole number can be too large to be a float
            values, finite = (), False
        if len(values) not in counts or not finite or min(values[-2:]) <= 0:
            raise argparse.ArgumentTypeError(f'found {text!r}, expected {meaning}, above zero and finite')
        return values
    return parse
