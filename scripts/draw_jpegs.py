"""Draw the rows of docs/pictures.md that show JPEGs enlarged: input, bicubic, clean, photo.

    python scripts/sample_photos.py          # writes load/sample
    python scripts/draw_jpegs.py             # writes docs/figures/jpeg-*.png

Each photograph is reduced to half its size by MATLAB's bicubic kernel and saved as a JPEG (4:2:0), of which a part is
enlarged by each method. Every panel has the pixels of the result, or whole multiples of those of the input.
"""
import io
import os

from _path import ROOT

from PIL import Image, ImageDraw

from datasets.imresize import imresize
from datasets.images import read_image
from engine.rendering.api import load_renderer, to_numpy, to_tensor
from engine.rendering.figures import INK, PAPER, SOFT, baseline, blank, font, save_image
from engine.runtime import Parser, run_program
from utils import UserError

# Name of the figure: the photograph in load/sample (public domain or CC0, scripts/sample_photos.py), and the middle
# (x, y) of the part that is shown, in pixels of the JPEG.
PHOTOS = {'cat': ('valid/chelsea.png', (86, 60)), 'spoon': ('valid/coffee.png', (181, 140)),
          'face': ('train/astronaut.png', (112, 58))}
QUALITIES = {3: 82, 4: 75}  # of the JPEG, by the scale
SIDE, GAP, LINE = 240, 8, 22  # pixels: of a panel, between panels, of a line of text


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('--photos', default=os.path.join('load', 'sample'), help='the folder of the photographs')
    parser.add_argument('--output', default=os.path.join(ROOT, 'docs', 'figures'), help='a folder')
    parser.add_argument('--clean', default='clean', help='its weights, a checkpoint or a name in weights/')
    parser.add_argument('--photo', default='photo', help='likewise, the weights called photo')
    args = parser.parse_args(argv)

    methods = {'input': baseline('nearest'), 'bicubic': baseline('bicubic'),
               'clean': load_renderer(args.clean), 'photo': load_renderer(args.photo)}
    for name, (file, middle) in PHOTOS.items():
        path = os.path.join(args.photos, file)
        if not os.path.exists(path):
            raise UserError(f'{path} does not exist: get it with python scripts/sample_photos.py, or correct --photos')
        for scale, quality in QUALITIES.items():
            image = row(compressed(read_image(path), quality), middle, scale, methods, f'JPEG {quality}')
            target = os.path.join(args.output, f'jpeg-{name}-x{scale}.png')
            save_image(image, target)
            print(target)


def compressed(image, quality):
    """uint8 (H, W, 3) reduced to half its size, as a JPEG: the file's bytes."""
    buffer = io.BytesIO()
    small = imresize(image, tuple(n // 2 for n in image.shape[:2]))
    Image.fromarray(small).save(buffer, 'JPEG', quality=quality, subsampling=2)
    return buffer.getvalue()


def row(data, middle, scale, methods, label):
    """The figure: the same part of a JPEG file's bytes by each method, {name: Renderer}, in a row."""
    image = to_tensor(Image.open(io.BytesIO(data)))
    n = SIDE // scale
    region = (middle[0] - n // 2, middle[1] - n // 2, n, n)
    figure = blank((SIDE + LINE + 2 * GAP, len(methods) * (SIDE + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(figure)
    for i, (name, renderer) in enumerate(methods.items()):
        x, y = GAP + i * (SIDE + GAP), SIDE + LINE
        panel = renderer.open(image).render((SIDE, SIDE), region, 'uint8')
        figure.paste(Image.fromarray(to_numpy(panel)), (x, GAP))
        draw.text((x, y), name, fill=INK, font=font(15), anchor='ls')
        draw.text((x + SIDE, y), label if i == 0 else f'x{scale}', fill=SOFT, font=font(15), anchor='rs')
    return figure


if __name__ == '__main__':
    run_program(main)
