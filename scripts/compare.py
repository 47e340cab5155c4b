"""The figure input | nearest | bilinear | bicubic | model | ground truth, with a marked inset and PSNR.

    python scripts/compare.py photo.png --scale 4 --output figure.png
    python scripts/compare.py small.png --input-only --scale 8 --region 40,22,24,18 --output figure.png

In the first form the image is the ground truth, and the input is its reduction by --scale (any number) with MATLAB's
bicubic kernel; in the second the image is the input, and there is no ground truth.
"""
import sys

import _path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from engine.arguments import numbers, within
from engine.checkpoint import model_path
from engine.evaluation.runs import split_label
from engine.rendering.api import choose_model, to_numpy, to_tensor
from engine.rendering.figures import (ACCENT, GROUND, INK, PAPER, SOFT, add_model_arguments, baseline,
                                      blank, check_size, font, renderer_of, save_image)
from datasets.imresize import imresize, lr_size
from engine.rendering.renderer import quantize
from engine.rendering.sizes import check_region
from engine.runtime import Parser, run_program
from utils import UserError, calc_psnr

METHODS = ('nearest', 'bilinear', 'bicubic')
ASPECTS = 0.75, 2  # the inset has the aspect of the image, but none beyond these


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('image')
    parser.add_argument('--output', required=True, help='the figure, .png, .jpg or .webp')
    parser.add_argument('--scale', type=within(0, 1e9, float, above=True), default=4, help='default: 4')
    parser.add_argument('--input-only', action='store_true', help='the image is the input, there is no ground truth')
    parser.add_argument('--region', type=numbers('region'), metavar='X,Y,W,H',
                        help='the inset, in pixels of the input; default: where there is most detail')
    parser.add_argument('--width', type=within(300, 20_000), default=1680,
                        help='of the figure, in pixels; default: 1680')
    add_model_arguments(parser, precision='float32')
    args = parser.parse_args(argv)

    low, truth = inputs(to_tensor(args.image), args.scale, args.input_only)
    h, w = low.shape[-2:]
    size = truth.shape[-2:] if truth is not None else (max(1, round(h * args.scale)), max(1, round(w * args.scale)))
    check_size(size)
    if args.region is not None:
        check_region(args.region, h, w, '--region')
    region = args.region or busiest(low)
    panels = [(name, baseline(name).open(low)) for name in METHODS]
    if args.model is None:
        chosen, sentence = choose_model(args.image if args.input_only else None)
        print(sentence, file=sys.stderr)
        args.model = model_path(chosen)
    name, args.model = split_label(args.model)
    panels.append((name, renderer_of(args).open(low)))
    panels, notes = render(panels, low, truth, size, region, args.width)
    scale = f'x{args.scale:g}'
    foot = f'{w} x {h} to {size[1]} x {size[0]} pixels, {scale}'
    if truth is not None:
        foot += '. PSNR in RGB, of the whole image'
    save_image(figure(panels, notes, foot, args.width), args.output)
    print(f'{args.output}: {foot}')
    for (name, _), note in zip(panels, notes):
        print(f'  {name:20}{note}')


def inputs(img, scale, input_only):
    """(input (3, h, w), ground truth (3, H, W) or None)."""
    if input_only:
        return img, None
    if scale < 1:
        raise UserError(f'--scale: found {scale:g}, expected 1 or more, by which the image is reduced')
    small, (rows, columns) = lr_size(img.shape[-2:], scale)
    truth = quantize(img[:, :rows, :columns], torch.uint8)
    return to_tensor(imresize(to_numpy(truth), small)), truth / 255


def busiest(low):
    """The region (x, y, w, h), about a quarter of the sides, whose brightness changes most."""
    h, w = low.shape[-2:]
    aspect = min(max(w / h, ASPECTS[0]), ASPECTS[1])
    width = max(1, min(w, round(max(w, h * aspect) / 4)))
    height = max(1, min(h, round(width / aspect)))
    grey = low.mean(0, keepdim=True)[None]  # (1, 1, h, w)
    change = F.pad(grey.diff(dim=-1).abs(), (0, 1)) + F.pad(grey.diff(dim=-2).abs(), (0, 0, 0, 1))
    sums = F.avg_pool2d(change, (height, width), stride=1)[0, 0]
    y, x = divmod(sums.argmax().item(), sums.shape[1])
    return x, y, width, height


def render(scenes, low, truth, size, region, width):
    """Panels (name, PIL image) and the note under each."""
    h, w = low.shape[-2:]
    extent = max(1, round(region[3] * size[0] / h)), max(1, round(region[2] * size[1] / w))  # the inset's own pixels
    cell = cell_size(width, region[2] / region[3])
    panels, notes = [('input', marked(low, region, cell))], [f'{w} x {h}']
    for name, scene in scenes:
        panels.append((name, shown(scene.render(extent, region), cell)))
        notes.append('' if truth is None else f'{calc_psnr(scene.render(size)[None], truth[None]).item():.2f} dB')
    if truth is not None:
        top, left = (round(v * n / m) for v, n, m in ((region[1], size[0], h), (region[0], size[1], w)))
        panels.append(('ground truth', shown(truth[:, top:top + extent[0], left:left + extent[1]], cell)))
        notes.append('')
    return panels, notes


def shown(img, cell):
    """An inset in a cell (H, W). Enlarging repeats its pixels, so the figure adds no smoothness."""
    image = Image.fromarray(to_numpy(quantize(img, torch.uint8)))
    if image.width >= cell[1]:
        return image.resize(cell[::-1], Image.LANCZOS)
    times = -(-cell[1] // image.width)
    image = image.resize((image.width * times, image.height * times), Image.NEAREST)
    return image.resize(cell[::-1], Image.BOX)


def marked(low, region, cell):
    """The whole input in a cell, with a frame around the region."""
    h, w = low.shape[-2:]
    scale = min(cell[0] / h, cell[1] / w)
    fitting = [max(1, round(n * scale)) for n in (h, w)]
    whole = shown(low, tuple(full if full - n < 5 else n for n, full in zip(fitting, cell)))  # no hair-thin borders
    image = blank(cell, GROUND)
    left, top = (cell[1] - whole.width) // 2, (cell[0] - whole.height) // 2
    image.paste(whole, (left, top))
    x, y, width, height = (v * scale for v in region)
    box = [round(v) for v in (left + x, top + y, left + x + width, top + y + height)]
    line = max(2, round(cell[1] / 160))
    draw = ImageDraw.Draw(image)
    for by, colour, thick in ((line + 1, 'white', 1), (line, ACCENT, line)):
        draw.rectangle([box[0] - by, box[1] - by, box[2] + by, box[3] + by], outline=colour, width=thick)
    return image


def cell_size(width, aspect):
    """(H, W) of a panel: three in a row."""
    columns = (width - 4 * gap(width)) // 3
    return max(1, round(columns / aspect)), columns


def gap(width):
    return round(width / 60)


def figure(panels, notes, foot, width):
    """Six panels (five without ground truth) in two rows, each with its name on the left and its note on the right."""
    height, columns = panels[1][1].height, panels[1][1].width
    step, size = gap(width), round(width / 52)
    row = height + round(size * 2.4)
    image = blank((2 * row + step + round(size * 1.8), width), PAPER)
    draw = ImageDraw.Draw(image)
    for i, ((name, panel), note) in enumerate(zip(panels, notes)):
        x, y = step + (i % 3) * (columns + step), step + (i // 3) * row
        image.paste(panel, (x, y))
        base = y + height + round(size * 1.35)
        draw.text((x, base), name, fill=INK, font=font(size), anchor='ls')
        draw.text((x + columns, base), note, fill=SOFT, font=font(size), anchor='rs')
    draw.text((step, step + 2 * row + size * 0.8), foot, fill=SOFT, font=font(round(size * 0.8)), anchor='ls')
    return image


if __name__ == '__main__':
    run_program(main)
