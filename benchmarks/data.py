"""Samples per second of one core by the data path and by the straightforward one on floats: a section of run.py."""
import os
import random
import statistics
import tempfile

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

import datasets
from benchmarks.common import by_turns, ratio
from benchmarks.speed import MB
from utils import to_pixel_samples

INP_SIZE, SCALE_MAX, SAMPLE_Q = 48, 4, 2304  # the paper's training samples


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


def our_path(folder, cache):
    """A function of (index, generator) that makes a sample."""
    images = datasets.make({'name': 'image-folder', 'args': {'root_path': folder, 'cache': cache}})
    args = {'inp_size': INP_SIZE, 'scale_max': SCALE_MAX, 'augment': True, 'sample_q': SAMPLE_Q, 'dataset': images}
    return datasets.make({'name': 'sr-implicit-downsampled', 'args': args}).sample


def cpu_seconds(paths, images, samples, rounds):
    """CPU seconds of a sample by each of `paths`, functions of (index, generator), by turns on one core."""
    threads, rng = torch.get_num_threads(), np.random.default_rng(0)
    torch.set_num_threads(1)
    times = by_turns({name: lambda sample=sample: [sample(i % images, rng) for i in range(samples)]
                      for name, sample in paths.items()}, rounds)
    torch.set_num_threads(threads)
    return {name: [t / samples for t in seconds] for name, seconds in times.items()}


def measure_data(device, quick):
    """{'float', 'in_memory', 'bin': {samples_per_second, mb_per_image, speedup}}; mb_per_image: pixels that an
    image keeps in private memory (tests/datasets/test_image_cache.py holds it)."""
    size = (256, 320) if quick else (1356, 2040)  # the commonest of DIV2K
    count, samples, rounds = (2, 5, 1) if quick else (8, 200, 7)
    pixels = 3 * size[0] * size[1] / MB
    memory = {'float': 4 * pixels, 'in_memory': pixels, 'bin': 0.0}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            small = np.random.default_rng(i).integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize(size[::-1]).save(os.path.join(folder, f'{i}.png'), compress_level=1)
        images = datasets.make({'name': 'image-folder', 'args': {'root_path': folder}})
        images = [images[i] for i in range(count)]
        paths = {'float': lambda index, rng: float_sample(images[index]),
                 **{cache: our_path(folder, cache) for cache in ('in_memory', 'bin')}}
        times = cpu_seconds(paths, count, samples, rounds)
    return {name: {'samples_per_second': 1 / statistics.median(times[name]), 'mb_per_image': memory[name],
                   'speedup': ratio(times['float'], times[name])} for name in paths}
