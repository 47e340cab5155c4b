"""Low-resolution images: the size and crop a scale asks for, the kernel, and folders of them.

The rule, for any real scale s >= 1, on each axis by itself (s may differ between them):

    low-resolution size   h = floor(H / s)
    crop                  the first round(h * s) of the H rows: the bottom and the right are cut
    resizing              round(h * s) rows to h, as MATLAB's imresize(crop, [h w])
    shave                 ceil(s) pixels from each side before an image is measured, the larger s of the two axes
                          (and 6 more for DIV2K)

At integers this is the rule of the published benchmarks: crop to a multiple of s, shave s. The crop is also the one
that the training wrapper `sr-implicit-downsampled` takes.
"""
import concurrent.futures.process
import functools
import itertools
import math
import multiprocessing
import os
import re

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from datasets.images import cores, image_names, image_size, in_order, open_header, read_image
from utils import UserError, atomic_write, resampling_taps


KERNELS = ('matlab', 'pil')


def parse_scale(text):
    """'2', '2.7', or '2x3' (vertical x horizontal) -> (vertical, horizontal) floats; UserError for anything else."""
    try:
        parts = [float(part) for part in str(text).lower().split('x')]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 2 or not all(1 <= part < math.inf for part in parts):
        raise UserError(f"a scale is a number from 1 on such as 2 or 2.7, or two as in 2x3 (vertical x horizontal), "
                        f"found {text!r}")
    return parts[0], parts[-1]


def canonical_scale(text):
    """'2.0' -> '2', '2,3.5' -> '2x3.5' (vertical, horizontal); '64-128' stays. Raises UserError for other text."""
    text = str(text).strip()
    if re.fullmatch(r'[1-9]\d{0,4}-[1-9]\d{0,4}', text):
        return text
    return scale_name(parse_scale(text.lower().lstrip('x').replace(',', 'x')))


def scale_name(scale):
    """(2.0, 2.0) -> '2', (2.7, 2.7) -> '2.7', (2.0, 3.0) -> '2x3': what stands after X in folders and file names."""
    return 'x'.join(f'{s:.10g}' for s in (scale[:1] if scale[0] == scale[1] else scale))


def lr_size(size, scale):
    """What a scale makes of an image: the low-resolution size (h, w) and the crop (rows, columns) it stands for.

    size: (H, W); scale: a number or (vertical, horizontal). Raises UserError when nothing would be left.
    """
    scales = scale if isinstance(scale, (tuple, list)) else (scale, scale)
    small = tuple(math.floor(n / s + 1e-9) for n, s in zip(size, scales))  # 1e-9: 60 / 2.4 falls short of 25
    if min(small) < 1:
        raise UserError(f'an image of {size[1]}x{size[0]} pixels is too small for x{scale_name(scales)}: '
                        f'use a smaller scale or leave the image out')
    return small, tuple(round(n * s) for n, s in zip(small, scales))


def shave_width(scale):
    """Pixels that metrics leave out on each side, for a number or a (vertical, horizontal) pair."""
    return math.ceil(max(scale) - 1e-9) if isinstance(scale, (tuple, list)) else math.ceil(scale - 1e-9)


def imresize(img, size, kernel='matlab'):
    """Bicubic resizing with antialiasing. img: uint8 (H, W) or (H, W, C); size: (h, w). Returns uint8.

    kernel 'matlab': MATLAB's imresize, the one behind LR_bicubic of DIV2K and of the benchmark sets: borders are
    mirrored, the axis that shrinks more goes first (rows when both do alike), each pass is rounded to 8 bits.
    kernel 'pil': Pillow's, the one LIIF trains with: the kernel is cut at the borders, columns go first.
    """
    assert img.dtype == np.uint8 and img.ndim in (2, 3)
    if kernel == 'pil':
        return np.asarray(Image.fromarray(img).resize((size[1], size[0]), Image.BICUBIC))
    if kernel != 'matlab':
        raise UserError(f'the kernel is one of {", ".join(KERNELS)}, found {kernel!r}')
    x = torch.from_numpy(np.array(img))  # a copy: what PIL hands out is read-only
    for axis in sorted((0, 1), key=lambda a: size[a] / img.shape[a]):  # sorted() keeps rows first on a tie
        if size[axis] != img.shape[axis]:
            x = _resize_rows(x.transpose(0, axis), size[axis]).transpose(0, axis)
    return x.contiguous().numpy()


def _resize_rows(x, n):
    """uint8 (H, ...) -> (n, ...). In float64, as MATLAB does it: halves decide which of two grey levels results."""
    ratio = x.shape[0] / n
    u = (torch.arange(n, dtype=torch.float64) + 0.5) * ratio - 0.5
    index, weight = resampling_taps(u, ratio, x.shape[0])  # (n, P)
    rows = x.reshape(x.shape[0], -1).double()
    out = torch.zeros(n, rows.shape[1], dtype=torch.float64)
    for i, w in zip(index.unbind(1), weight.unbind(1)):
        out += rows.index_select(0, i) * w[:, None]
    return (out + 0.5).floor_().clamp_(0, 255).to(torch.uint8).view(n, *x.shape[1:])


def make_lr_folder(hr_folder, lr_folder, scales, kernel='matlab', workers=None, overwrite=False):
    """Write <lr_folder>/X<s>/<name>x<s>.png for every image of `hr_folder` and every scale.

    Files that exist with the right size are kept (`overwrite` redoes them), each file is written whole or not at
    all, and a bad image does not stop the others. scales: (vertical, horizontal) pairs; workers: processes, chosen
    by the number of images when None. Returns (made, kept, bad): two counts, and what was wrong, a line each.
    """
    if kernel not in KERNELS:
        raise UserError(f'the kernel is one of {", ".join(KERNELS)}, found {kernel!r}')
    names = list_images(hr_folder)
    for scale in scales:
        os.makedirs(os.path.join(lr_folder, 'X' + scale_name(scale)), exist_ok=True)
    if workers is None:  # a worker takes seconds to start
        workers = min(cores(), len(names) // 16)
    jobs = [(os.path.join(hr_folder, name), lr_folder, scales, kernel, overwrite) for name in names]
    made, kept, bad = 0, 0, []
    for result in in_processes(_make_lr, jobs, workers, f'{hr_folder} -> {lr_folder}'):
        made, kept, bad = made + result[0], kept + result[1], bad + result[2]
    return made, kept, sorted(bad)


def list_images(folder):
    """The `image_names` of a folder. Raises UserError also for two that differ in their suffix only: what is made of
    them would get one name."""
    if not os.path.isdir(folder):
        raise UserError(f'there is no folder {folder}: give the one that holds the high-resolution images')
    names = image_names(folder)
    for one, other in itertools.pairwise(sorted(names, key=os.path.splitext)):
        if os.path.splitext(one)[0] == os.path.splitext(other)[0]:
            raise UserError(f'{folder} holds both {one} and {other}, and what is made of them would have one name: '
                            f'remove or rename one')
    return names


def in_processes(function, jobs, workers, label):
    """Yield function(*job) in order, with a progress bar; in this process for fewer than two workers."""
    total = len(jobs) if hasattr(jobs, '__len__') else None
    progress = functools.partial(tqdm, total=total, desc=label, unit='image', disable=None)
    if workers < 2:
        yield from progress(itertools.starmap(function, jobs))
        return
    # Spawned, not forked: PyTorch's threads do not survive a fork.
    with concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'),
                                                initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            # A few jobs ahead, since they may carry whole images.
            yield from progress(in_order(pool, ((function, *job) for job in jobs), 4 * workers))
        except concurrent.futures.process.BrokenProcessPool:
            raise UserError('a worker process was killed, most likely for lack of memory: use fewer workers') \
                from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _make_lr(hr_path, lr_folder, scales, kernel, overwrite):
    """All scales of one image: (made, kept, problems)."""
    made, kept, problems, hr = 0, 0, [], None
    stem = os.path.splitext(os.path.basename(hr_path))[0]
    for scale in scales:
        name = scale_name(scale)
        path = os.path.join(lr_folder, f'X{name}', f'{stem}x{name}.png')
        try:
            small, crop = lr_size(image_size(hr_path), scale)
            if os.path.exists(path) and not overwrite:
                found = image_size(path)
                if found != small:
                    raise UserError(f'{path} is {found[1]}x{found[0]}, expected {small[1]}x{small[0]}: it belongs to '
                                    f'another image; remove it or overwrite it')
                kept += 1
                continue
            if hr is None:
                hr = _read_pixels(hr_path)
            lr = imresize(hr[:crop[0], :crop[1]], small, kernel)
            with atomic_write(path) as f:
                Image.fromarray(lr).save(f, format='png')
            made += 1
        except UserError as error:
            text = str(error) if hr_path in str(error) or path in str(error) else f'{hr_path}: {error}'
            problems += [text] if text not in problems else []
    return made, kept, problems


def _read_pixels(path):
    """uint8 (H, W) for 8-bit grey images, whose low-resolution images stay grey, (H, W, 3) for all others."""
    img = read_image(path)
    with open_header(path) as image:
        return img[..., 0] if image.mode == 'L' else img
