"""Samples per second and core, and memory, of the data path against the straightforward one on floats.

    python benchmarks/data.py

Both make the samples of the paper's training (48x48 inputs, scales 1 to 4, augmentation, 2304 queries) from images of
DIV2K's size held in memory. The straightforward path is the textbook order of steps: images as float tensors, crop,
to PIL and back for the resize, flips, all coordinates, then a choice among them. Both are timed in turns, on one core.
"""
import functools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time


sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision import transforms  # noqa: E402

import datasets  # noqa: E402
from utils import to_pixel_samples  # noqa: E402


SIZE = 1356, 2040  # (H, W), the commonest of DIV2K
INP_SIZE, SCALE_MAX, SAMPLE_Q = 48, 4, 2304


def float_sample(image):
    """One training sample the straightforward way; image: float32 (3, H, W) in [0, 1]."""
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
    coord, rgb = coord[chosen], rgb[chosen]
    return {'inp': lr, 'coord': coord, 'cell': torch.ones_like(coord) * 2 / size, 'gt': rgb}


def make_folder(folder, images, size):
    for i in range(images):
        rng = np.random.default_rng(i)
        small = Image.fromarray(rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8))
        small.resize(size[::-1], Image.BICUBIC).save(os.path.join(folder, f'{i}.png'), compress_level=1)


def our_path(folder, cache):
    """(what is kept, function of (index, rng) that makes a sample), with 8-bit pixels in memory or in a mapped file."""
    images = datasets.make({'name': 'image-folder', 'args': {'root_path': folder, 'cache': cache}})
    wrapper = datasets.make({'name': 'sr-implicit-downsampled', 'args': {
        'inp_size': INP_SIZE, 'scale_max': SCALE_MAX, 'augment': True, 'sample_q': SAMPLE_Q}}, {'dataset': images})
    return images, wrapper.sample


def float_path(folder):
    """The same for the straightforward path, which draws from the global generators."""
    images = datasets.make({'name': 'image-folder', 'args': {'root_path': folder}})
    images = [images[i] for i in range(len(images))]
    return images, lambda index, rng: float_sample(images[index])


PATHS = {'in_memory': functools.partial(our_path, cache='in_memory'), 'bin': functools.partial(our_path, cache='bin'),
         'float': float_path}


def measure(images=8, samples=200, rounds=7, size=SIZE):
    """A dict with, for the path on floats and for ours with each cache, `samples_per_second` of one core and
    `mb_per_image`, the private memory that an image held ready costs; ours also as ratios to the path on floats,
    `speedup` and `memory_ratio`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            make_folder(folder, images, size)
            paths = {name: path(folder) for name, path in PATHS.items()}
            seconds = {name: [] for name in paths}
            for round_ in range(rounds + 1):  # the first warms up
                for name, (_, sample) in paths.items():
                    start = time.process_time()
                    for i in range(samples):
                        sample(i % images, np.random.default_rng([round_, i]))
                    seconds[name].append((time.process_time() - start) / samples)
            seconds = {name: statistics.median(times[1:]) for name, times in seconds.items()}
            memory = {name: _mb_per_image(name, folder) for name in paths}
    finally:
        torch.set_num_threads(threads)
    result = {name: {'samples_per_second': 1 / seconds[name], 'mb_per_image': memory[name]} for name in paths}
    for name in ('in_memory', 'bin'):
        result[name].update(speedup=seconds['float'] / seconds[name], memory_ratio=memory[name] / memory['float'])
    return result


def _mb_per_image(name, folder):
    run = subprocess.run([sys.executable, os.path.abspath(__file__), '--memory', name, folder], check=True,
                         capture_output=True, text=True)
    return float(run.stdout)


def _print_memory(name, folder):
    """What reading the folder a second time adds: whatever is paid once, such as what the allocator keeps back from
    decoding, is paid at the first."""
    torch.set_num_threads(1)
    held = []
    for _ in range(2):
        before = _private_mb()
        images, sample = PATHS[name](folder)
        held.append(images)
        for i in range(50):
            sample(i % len(images), np.random.default_rng(i))
    print((_private_mb() - before) / len(images))


def _private_mb():
    with open('/proc/self/status') as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith('RssAnon'))


if __name__ == '__main__':
    if sys.argv[1:2] == ['--memory']:
        _print_memory(*sys.argv[2:])
    else:
        print(json.dumps(measure(), indent=1))
