"""What the scripts that make figures share: the model's options, captions, views without aliasing, animations."""
import os
import tempfile
from fractions import Fraction

import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

import models
from engine.arguments import PRECISIONS
from engine.rendering.api import load_renderer, to_numpy
from engine.rendering.renderer import Renderer
from engine.rendering.video import WRITES, write_video
from engine.rendering.writing import file_format, pillow_bytes, writable
from utils import UserError, atomic_write


MOST = 100_000_000  # pixels of an image that is held in memory as floats
INK, SOFT, PAPER, GROUND, ACCENT = '#1b1f24', '#5f6873', '#ffffff', '#eceef1', '#d1362f'


def add_model_arguments(parser, precision='auto'):
    """The options that `renderer_of` reads."""
    parser.add_argument('--model', help='a checkpoint, or a name in weights/; default: photo for JPEG and WebP, else '
                        'clean')
    parser.add_argument('--gpu', help="a GPU's number, or cpu; default: the first GPU, else the CPU")
    parser.add_argument('--precision', default=precision, choices=['auto', *PRECISIONS],
                        help=f'auto: bf16 if a trial is 1.5 times as fast with it; default: {precision}')


def renderer_of(args, decode='exact'):
    return load_renderer(args.model, gpu=args.gpu, precision=args.precision, image=args.image, decode=decode)


def baseline(name):
    """A Renderer that interpolates: 'nearest', 'bilinear' or 'bicubic'."""
    return Renderer(models.make({'name': name}))


class View:
    """An image to be shown at any size, also below x1, where a network trained to enlarge would alias."""

    def __init__(self, renderer, img):
        self.scene = renderer.open(img)
        self.plain = baseline('bicubic').open(img)
        self.size = self.scene.size

    def render(self, size, region=None):
        """uint8 (H, W, 3): bicubic with antialiasing up to x1, LIIF from x1.5 on, a cross-fade between."""
        extent = self.size if region is None else (region[3], region[2])
        scale = min(size[0] / extent[0], size[1] / extent[1])
        share = min(max((scale - 1) * 2, 0), 1)
        out = torch.zeros(3, *size)
        for scene, weight in ((self.scene, share), (self.plain, 1 - share)):
            if weight:
                out += weight * scene.render(size, region)
        return to_numpy((out * 255 + 0.5).to(torch.uint8))


def ease(t):
    """Progress 0..1 -> 0..1 that starts and ends at rest: a quarter of the time to speed up, a quarter to slow down."""
    if t < 0.25:
        return t * t * 8 / 3
    return 1 - ease(1 - t) if t > 0.75 else (t - 0.125) * 4 / 3


# Text and frames.

def font(size):
    return ImageFont.load_default(size)  # Pillow's sans-serif, the same everywhere


def tag(image, text, corner):
    """Write text on a soft dark plate in a corner of an image: 'left' or 'right', at the top."""
    size = max(11, round(min(image.size) / 26))
    draw = ImageDraw.Draw(image, 'RGBA')
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font(size), anchor='lt')
    pad = round(size * 0.55)
    x = pad if corner == 'left' else image.width - 3 * pad - right
    draw.rounded_rectangle((x, pad, x + right + 2 * pad, pad + size + 1.1 * pad), pad, fill=(16, 18, 22, 170))
    draw.text((x + pad, pad + (size + 1.1 * pad) / 2), text, font=font(size), fill='white', anchor='lm')


def save_image(image, path):
    """Write a PIL image, completely or not at all, in the format of the name's suffix. Raises UserError."""
    kind = file_format(path, image.size[::-1])
    options = {'quality': 92, 'subsampling': 0} if kind == 'JPEG' else {}
    with writable(path), atomic_write(path) as f:
        f.write(pillow_bytes(image, kind, **options))


def save_animation(path, frames, count, size, fps, desc):
    """Write `count` frames, uint8 (H, W, 3), to a video, a GIF, or, for a name without suffix, a folder of PNG files.
    Nothing is left at `path` unless all of them were written."""
    frames = tqdm(frames, total=count, desc=desc, unit='frame', disable=None)
    suffix = os.path.splitext(path)[1].lower()
    if suffix in WRITES:
        tick = 1 / Fraction(fps).limit_denominator(1000)
        write_video(path, ((frame, i) for i, frame in enumerate(frames)), size, tick)
    elif suffix:
        raise UserError(f'output {path}: expected a name that ends in {", ".join(WRITES)}, or one without suffix for a '
                        f'folder of PNG frames')
    else:
        _save_frames(path.rstrip('/'), frames)


def _save_frames(path, frames):
    if os.path.exists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise UserError(f'output {path} exists already: name a new folder, or remove it')
    with writable(path), tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(path)),
                                                     prefix='.frames') as temporary:
        folder = os.path.join(temporary, 'frames')
        os.mkdir(folder)
        for i, frame in enumerate(frames):
            Image.fromarray(frame).save(os.path.join(folder, f'{i:05d}.png'))
        os.replace(folder, path)


def check_size(size):
    """Raises UserError for an image (H, W) too large for these scripts."""
    if size[0] * size[1] > MOST:
        raise UserError(f'the image would have {size[1]}x{size[0]} pixels, expected at most {MOST // 10 ** 6} million: '
                        f'choose a smaller size (demo.py has no such limit)')


def blank(size, colour=PAPER):
    """A PIL image of size (H, W)."""
    return Image.new('RGB', (size[1], size[0]), colour)
