"""Samples per second of one core by the data path and by the straightforward one on floats; and what half precision
costs on photographs."""
import os
import random
import statistics
import tempfile
import time

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

import datasets
from benchmarks import cases, worker
from engine.checkpoint import load_model
from engine.rendering.renderer import Renderer
from utils import calc_psnr, to_pixel_samples

INP_SIZE, SCALE_MAX, SAMPLE_Q = 48, 4, 2304  # the paper's training samples
PHOTOGRAPHS, SCALES = ('astronaut', 'chelsea', 'coffee'), (2, 3, 4)  # of scikit-image, free to use


def float_sample(image):
    """A training sample by the textbook's order of steps; image: float32 (3, H, W) in [0, 1]."""
    s = random.uniform(1, SCALE_MAX)
    size = round(INP_SIZE * s)
    top, left = random.randint(0, image.shape[1] - size), random.randint(0, image.shape[2] - size)
    hr = image[:, top:top + size, left:left + size]  # (3, size, size)
    shrink = transforms.Resize(INP_SIZE, transforms.InterpolationMode.BICUBIC)
    lr = transforms.ToTensor()(shrink(transforms.ToPILImage()(hr)))  # (3, 48, 48)
    for axis in (-2, -1):
        if random.random() < 0.5:
            lr, hr = lr.flip(axis), hr.flip(axis)
    if random.random() < 0.5:
        lr, hr = lr.transpose(-2, -1), hr.transpose(-2, -1)
    coord, rgb = to_pixel_samples(hr)  # (size * size, 2), (size * size, 3)
    chosen = np.random.choice(len(coord), SAMPLE_Q, replace=False)
    return {'inp': lr, 'coord': coord[chosen], 'cell': torch.ones(SAMPLE_Q, 2) * 2 / size, 'gt': rgb[chosen]}


def float_path(folder):
    """A function of (index, generator) that makes a sample."""
    images = datasets.make({'name': 'image-folder', 'args': {'root_path': folder}})
    images = [images[i] for i in range(len(images))]
    return lambda index, rng: float_sample(images[index])


def our_path(folder, cache):
    images = datasets.make({'name': 'image-folder', 'args': {'root_path': folder, 'cache': cache}})
    args = {'inp_size': INP_SIZE, 'scale_max': SCALE_MAX, 'augment': True, 'sample_q': SAMPLE_Q, 'dataset': images}
    return datasets.make({'name': 'sr-implicit-downsampled', 'args': args}).sample


def measure_data(device, quick):
    """{'float', 'in_memory', 'bin': {samples_per_second, mb_per_image, speedup}}, on one core, by turns; mb_per_image:
    pixels that a held image keeps in private memory (tests/datasets/test_image_cache.py holds it)."""
    size = (256, 320) if quick else (1356, 2040)  # the commonest of DIV2K
    count, samples, rounds = (2, 5, 1) if quick else (8, 200, 7)
    pixels, threads = 3 * size[0] * size[1] / worker.MB, torch.get_num_threads()
    memory, times = {'float': 4 * pixels, 'in_memory': pixels, 'bin': 0.0}, []
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            small = np.random.default_rng(i).integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize(size[::-1]).save(os.path.join(folder, f'{i}.png'), compress_level=1)
        paths = {'float': float_path(folder), **{cache: our_path(folder, cache) for cache in ('in_memory', 'bin')}}
        for round_ in range(rounds + 1):
            times.append({})
            for name, sample in paths.items():
                start = time.process_time()
                for i in range(samples):
                    sample(i % count, np.random.default_rng([round_, i]))
                times[-1][name] = (time.process_time() - start) / samples
    torch.set_num_threads(threads)
    seconds = {name: statistics.median(t[name] for t in times[1:]) for name in paths}  # the first round warms up
    return {name: {'samples_per_second': 1 / seconds[name], 'mb_per_image': memory[name],
                   'speedup': seconds['float'] / seconds[name]} for name in paths}


def measure_precision(device, quick, path=None):
    """PSNR in dB per photograph and scale: bf16 against float32, and both against the truth. `weights` says whose: the
    checkpoint's at `path`, or random ones, whose images are noise but whose rounding is alike."""
    try:
        import skimage.data
    except ImportError:
        return {'not_measured': 'scikit-image, which brings the photographs, is not installed'}
    model, norm = load_model(path, device) if path else (cases.make_model(device, quick), None)
    model = model.to(memory_format=torch.channels_last)
    result = {'weights': path or 'random (untrained)', 'images': []}
    for name in PHOTOGRAPHS[:1] if quick else PHOTOGRAPHS:
        image = getattr(skimage.data, name)()[:64 if quick else None]
        for scale in SCALES[:1] if quick else SCALES:
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
