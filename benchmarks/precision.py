"""What half precision changes: bf16 output against float32 output, and its cost against the truth, on photographs."""
import numpy as np
import torch
from PIL import Image

from benchmarks import cases
from engine.rendering.renderer import Renderer
from utils import calc_psnr


PHOTOGRAPHS = 'astronaut', 'chelsea', 'coffee'  # freely usable, part of scikit-image
SCALES = 2, 3, 4


def measure(device, quick, path=None):
    """Per photograph and scale, PSNR in dB of bf16 against float32 and of both against the truth. `weights` says whose:
    those of the checkpoint at `path`, or ones made by rule, whose images are noise but whose rounding is alike."""
    try:
        import skimage.data
    except ImportError:
        return {'not_measured': 'scikit-image, which brings the photographs, is not installed'}
    model, norm, weights = cases.make_model(device, quick), None, 'by rule (untrained)'
    if path:
        from engine.checkpoint import load_model
        model, norm = load_model(path, device)
        weights = path
    model = model.to(memory_format=torch.channels_last)
    result = {'weights': weights, 'images': []}
    for name in PHOTOGRAPHS[:1] if quick else PHOTOGRAPHS:
        photograph = getattr(skimage.data, name)()
        for scale in SCALES[:1] if quick else SCALES:
            image = photograph[:64, :64] if quick else photograph
            h, w = image.shape[0] // scale, image.shape[1] // scale
            truth = image[:h * scale, :w * scale]
            small = np.asarray(Image.fromarray(truth).resize((w, h), Image.BICUBIC))
            inp, truth = (torch.from_numpy(v.copy()).permute(2, 0, 1) / 255 for v in (small, truth))
            exact, half = (Renderer(model, norm, precision=p).open(inp).render(truth.shape[1:])
                           for p in ('float32', 'bf16'))
            against = [calc_psnr(v[None], truth[None], 'div2k', scale).item() for v in (exact, half)]
            result['images'].append({
                'image': name, 'scale': scale, 'bf16_against_float32': calc_psnr(half[None], exact[None]).item(),
                'float32_against_truth': against[0], 'bf16_against_truth': against[1], 'cost': against[0] - against[1]})
    return result
