"""What the quickstart shows: PSNR beside bicubic on photographs not trained on, and one of them enlarged.

    python scripts/quickstart_report.py --model save/_quickstart/epoch-last.pth --output out/quickstart
"""
import os

import numpy as np
from PIL import Image

import _path
import datasets
import models
from datasets.loader import make_loader
from engine.checkpoint import load_model
from engine.evaluation.evaluate import eval_psnr
from engine.rendering.renderer import Renderer
from engine.runtime import Parser, run_program, select_device
from utils import atomic_write

SCALES = (2, 3, 4, 6, 8)
PICTURE, SCALE = 'chelsea.png', 4


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('--model', required=True)
    parser.add_argument('--photos', default='load/sample/valid', help='a folder of photographs')
    parser.add_argument('--output', required=True, help='a folder for the pictures')
    args = parser.parse_args(argv)

    device = select_device(None)
    model, norm = load_model(args.model, device)
    bicubic = models.make({'name': 'bicubic', 'args': {'kernel': 'pil'}}).to(device)
    photos = datasets.make({'name': 'image-folder', 'args': {'root_path': args.photos, 'cache': 'in_memory'}})

    print(f'\nPSNR in dB (RGB, all pixels), mean over {len(photos)} photographs it was not trained on:\n')
    print(f'{"":8}' + ''.join(f'{f"x{s}":>8}' for s in SCALES))
    rows = {}
    for name, method in (('bicubic', bicubic), ('LIIF', model)):
        rows[name] = []
        for scale in SCALES:
            data = datasets.make({'name': 'sr-implicit-downsampled', 'args': {'dataset': photos, 'scale_min': scale}})
            loader = make_loader(data, batch_size=1, seed=0, train=False, num_workers=0)
            rows[name].append(eval_psnr(loader, method, norm))
        print(f'{name:8}' + ''.join(f'{v:8.2f}' for v in rows[name]), flush=True)
    print(f'{"gain":8}' + ''.join(f'{a - b:+8.2f}' for a, b in zip(rows['LIIF'], rows['bicubic'])))

    picture = os.path.join(args.photos, PICTURE)
    written = enlarge(picture, Renderer(model, norm), args.output)
    print(f'\n{picture} reduced to a quarter and enlarged again, bicubic beside LIIF:\n  {written}')


def enlarge(path, renderer, folder):
    """Write the picture, reduced by SCALE, enlarged by bicubic and by LIIF, and both side by side. Returns the last."""
    photo = Image.open(path).convert('RGB')
    w, h = photo.width // SCALE, photo.height // SCALE
    small = photo.resize((w, h), Image.BICUBIC)
    size = w * SCALE, h * SCALE
    rgb = np.asarray(small, dtype=np.float32).transpose(2, 0, 1) / 255
    ours = renderer.open(rgb).render(size[::-1], dtype='uint8')  # (3, H, W)
    pictures = {'small': small, 'bicubic': small.resize(size, Image.BICUBIC),
                'liif': Image.fromarray(np.ascontiguousarray(ours.permute(1, 2, 0).numpy()))}
    pictures['side-by-side'] = Image.new('RGB', (2 * size[0] + 8, size[1]), 'white')
    pictures['side-by-side'].paste(pictures['bicubic'], (0, 0))
    pictures['side-by-side'].paste(pictures['liif'], (size[0] + 8, 0))
    os.makedirs(folder, exist_ok=True)
    for name, picture in pictures.items():
        written = os.path.join(folder, f'{os.path.splitext(os.path.basename(path))[0]}_x{SCALE}_{name}.png')
        with atomic_write(written) as f:
            picture.save(f, format='PNG')
    return written


if __name__ == '__main__':
    run_program(main)
