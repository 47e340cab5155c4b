"""Command-line arguments. Nothing here imports torch, so --help and mistyped flags answer at once."""
import argparse
import difflib
import math
import sys


PRECISIONS = 'float32', 'tf32', 'bf16', 'fp16'


class Parser(argparse.ArgumentParser):
    """Prints the docstring unchanged, and mistakes in one line with exit code 2."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_args(self, args=None, namespace=None):
        flags = list(self._option_string_actions)
        for text in sys.argv[1:] if args is None else args:
            name = text.split('=')[0]
            if name == '--':
                break
            if name.startswith('--') and not any(flag.startswith(name) for flag in flags):
                close = difflib.get_close_matches(name, flags, 1)
                self.error(f'{name} is not an option' + (f', did you mean {close[0]}?' if close else ''))
        return super().parse_args(args, namespace)

    def error(self, message):
        lost = 'unrecognized arguments' in message or message.endswith(' argument')  # perhaps a negative number
        minus = ' (a value that begins with a minus: --flag=-1)' if lost else ''
        self.exit(2, f'error: {message}; see {self.prog} --help{minus}\n')


def largest_scale(text):
    """The value of --cell-clip."""
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 1 <= scale < math.inf:
        raise argparse.ArgumentTypeError(f'found {text}, expected the largest scale of training, 1 or more')
    return scale
