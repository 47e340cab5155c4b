"""Wrappers: from images to what the network trains on, (inp, coord, cell, gt), as in Section 4 of the paper.

All work is done on uint8: crop first, resize the crop only, look up the sampled pixels only. `sample(index, rng)`
returns the small form that travels to the device, a dict of tensors:
    inp    uint8 (3, h, w)    the input
    gt     uint8 (Q, 3)       ground truth at the queries
    cell   float32 (1, 2)     size of one query pixel, (2 / H, 2 / W)
    size   int64 (2,)         (H, W) of the image the queries come from
    coord  float32 (Q, 2)     centres of the queries; absent when they are all H * W pixels in `make_coord` order
`wrapper[i]` is the published form: the same as floats in [0, 1], with coord (Q, 2) and cell (Q, 2) written out.
"""
import functools
import random
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from utils import FLAG, Integer, Number, OneOf, UserError, axis_coord, make_coord

from .datasets import register
from .images import BadImage
from .imresize import lr_size


# Arguments of several wrappers.
InpSize = Annotated[int, Integer(1, 2 ** 16), 'side of the input, a random crop; null: the whole image']
ScaleMin = Annotated[float, Number(1, 1024), 'smallest factor by which the image is reduced']
ScaleMax = Annotated[float, Number(1, 1024), 'largest factor, drawn uniformly; null: scale_min']
SmallImages = Annotated[str, OneOf('stop', 'fit'), 'image smaller than the largest crop: stop, or fit (smaller scales)']
Augment = Annotated[bool, FLAG, 'random flips and transposition']
SampleQ = Annotated[int, Integer(1), 'random pixels queried in a sample; null: all']
Candidates = Annotated[int, Integer(1, 1000), 'random crops drawn, of which the most detailed one is kept']


class Wrapper(Dataset):
    """The base class. A wrapper defines `sample(index, rng)`, and may define, from sizes alone, `check(index)`, which
    raises BadImage for an image that `sample` would refuse, and `shapes(index)`, all the shapes (h, w, Q) that the
    sample can have."""

    def __init__(self, dataset, augment, sample_q):
        self.dataset, self.augment, self.sample_q = dataset, augment, sample_q

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        """The published item; its random choices follow Python's own generator."""
        item = self.sample(index, np.random.default_rng(random.getrandbits(64)))
        coord = item['coord'] if 'coord' in item else make_coord(item['size'].tolist())  # (Q, 2)
        return {'inp': item['inp'].float() / 255, 'coord': coord, 'cell': item['cell'].repeat(len(coord), 1),
                'gt': item['gt'].float() / 255, 'size': item['size']}

    def path(self, index):
        """The file of the image, or (LR, HR) files, for messages."""
        return self.dataset.path(index)

    def _check_queries(self, index, h, w):
        if self.sample_q is not None and self.sample_q > h * w:
            raise BadImage(f'{_name(self.path(index))}: {w}x{h} pixels can be queried, fewer than sample_q '
                           f'{self.sample_q}: lower sample_q, or use a larger image, crop or scale')

    def _shapes(self, lr_size, hr_size, transposed=False):
        """`shapes` for (h, w) of the input and (H, W) of the ground truth; transposed: whether samples can be."""
        queries = self.sample_q or hr_size[0] * hr_size[1]
        return {(*lr_size, queries), (*lr_size[::-1], queries)} if transposed else {(*lr_size, queries)}

    def make_item(self, lr, hr, flips, rng):
        """The sample of an input (h, w, 3) and its ground truth (H, W, 3), uint8; every wrapper uses it.
        flips: (left-right, up-down, transpose), the same for both; `sample_q` of the pixels, each at most once."""
        h, w = hr.shape[1::-1] if flips[2] else hr.shape[:2]
        item = {'inp': _copy(flip(lr, flips).transpose(2, 0, 1)), 'size': torch.from_numpy(np.array([h, w])),
                'cell': torch.from_numpy(np.array([[2 / h, 2 / w]], dtype=np.float32))}
        if self.sample_q is None:
            return {**item, 'gt': _copy(flip(hr, flips)).view(-1, 3)}
        # Pixels are drawn before flipping: then only their coordinates are flipped, not the image.
        height, width = hr.shape[:2]
        drawn = rng.choice(height * width, self.sample_q, replace=False)  # (Q,), in random order
        y, x = np.divmod(drawn, width)
        axis_y, axis_x = _axis(height)[::-1 if flips[1] else 1], _axis(width)[::-1 if flips[0] else 1]
        axes = [axis_x[x], axis_y[y]] if flips[2] else [axis_y[y], axis_x[x]]
        gt = np.ascontiguousarray(hr).reshape(-1, 3).take(drawn, axis=0)  # (Q, 3)
        return {**item, 'coord': torch.from_numpy(np.stack(axes, axis=1)), 'gt': torch.from_numpy(gt)}


@register('sr-implicit-downsampled', 'wrapper')
class SRImplicitDownsampled(Wrapper):
    """Pairs made from HR images: the input is a random crop, shrunk by a random scale with PIL's bicubic.

    dataset: HR images. The scale s is uniform in [scale_min, scale_max] (scale_max absent: always scale_min).
    inp_size: the crop is round(inp_size * s) square and becomes inp_size square; when absent, the image is cropped to
    (round(h s), round(w s)) from the top left, where h = floor(H / s), and likewise w, is the input's size.
    augment: flips and transposes, the eight symmetries of the square. sample_q: number of random queries; all pixels
    when absent. small_images: an image smaller than the largest crop is refused ('stop'), or gets scales that fit, up
    to min(H, W) / inp_size ('fit'). candidates: that many crops are drawn, and the one with the most detail is kept.
    With more than the paper's 1, training sees less of skies and walls, similar to SamplingAug (Wang et al., 2021).
    """

    def __init__(self, dataset, inp_size: InpSize = None,
                 scale_min: ScaleMin = 1, scale_max: ScaleMax = None, augment: Augment = False,
                 sample_q: SampleQ = None, small_images: SmallImages = 'stop', candidates: Candidates = 1):
        super().__init__(dataset, augment, sample_q)
        scale_max = scale_min if scale_max is None else scale_max
        if scale_max < scale_min:
            raise UserError(f'scale_max {scale_max} is less than scale_min {scale_min}')
        if None not in (inp_size, sample_q) and sample_q > round(inp_size * scale_min) ** 2:
            raise UserError(f'sample_q {sample_q} is more than the {round(inp_size * scale_min) ** 2} pixels of the '
                            f'smallest crop (inp_size {inp_size}, scale_min {scale_min}): lower it')
        if inp_size is None and candidates > 1:
            raise UserError(f'candidates {candidates} needs crops to choose from: set inp_size, or leave it out')
        self.inp_size, self.scale_min, self.scale_max, self.small_images = inp_size, scale_min, scale_max, small_images
        self.candidates = candidates

    def sample(self, index, rng):
        image = self.dataset.image(index)
        largest = self._largest_scale(index, *image.shape[:2])
        s = self.scale_min + (largest - self.scale_min) * rng.random()
        if self.inp_size is None:
            (h, w), (height, width) = lr_size(image.shape[:2], s)
            self._check_queries(index, height, width)
            hr = image[:height, :width]
        else:
            h = w = self.inp_size
            hr = np.ascontiguousarray(detailed_crop(image, round(self.inp_size * s), rng, self.candidates))
        flips = rng.random(3) < 0.5 if self.augment else (False,) * 3
        return self.make_item(self.reduce(hr, h, w, rng), hr, flips, rng)

    def reduce(self, hr, h, w, rng):
        """The input, uint8 (h, w, 3), of the ground truth hr (H, W, 3)."""
        return resize(hr, h, w)

    def check(self, index):
        height, width = self.dataset.size(index)
        self._largest_scale(index, height, width)
        if self.inp_size is None:
            self._check_queries(index, *lr_size((height, width), self.scale_max)[1])

    def shapes(self, index):
        if self.inp_size is not None:
            return self._shapes((self.inp_size,) * 2, (round(self.inp_size * self.scale_max),) * 2)
        return self._shapes(*lr_size(self.dataset.size(index), self.scale_max), self.augment)

    def _largest_scale(self, index, height, width):
        if self.inp_size is None:
            if min(height, width) / self.scale_max + 1e-9 < 1:
                raise BadImage(f'image {self.path(index)} is {width}x{height}: nothing is left of it at scale '
                               f'{self.scale_max}; remove it or lower the scale')
            return self.scale_max
        least = round(self.inp_size * (self.scale_min if self.small_images == 'fit' else self.scale_max))
        if min(height, width) < least:
            remedy = 'lower scale_min' if self.small_images == 'fit' else 'lower scale_max, or set small_images: fit'
            raise BadImage(f'image {self.path(index)} is {width}x{height}, but crops have {least}x{least} '
                           f'pixels (inp_size {self.inp_size} times the scale): remove it, lower inp_size, or {remedy}')
        return max(self.scale_min, min(self.scale_max, min(height, width) / self.inp_size))


@register('sr-implicit-paired', 'wrapper')
class SRImplicitPaired(Wrapper):
    """Pairs from two folders, for the fixed-scale networks and the benchmarks.

    dataset: (LR, HR) images; the scale s is H // h, the same for both axes. inp_size: a random LR crop of that size
    and the HR crop over it; when absent, the whole LR image, and HR cropped to (h s, w s) from the top left.
    augment, sample_q: as in `sr-implicit-downsampled`.
    """

    def __init__(self, dataset, inp_size: InpSize = None, augment: Augment = False, sample_q: SampleQ = None):
        super().__init__(dataset, augment, sample_q)
        self.inp_size = inp_size

    def sample(self, index, rng):
        lr, hr = self.dataset.image(index)
        s = self._scale(index, lr.shape[:2], hr.shape[:2])
        top, left, h, w = 0, 0, *lr.shape[:2]
        if self.inp_size is not None:
            top, left = rng.integers(h - self.inp_size + 1), rng.integers(w - self.inp_size + 1)
            h = w = self.inp_size
        lr = lr[top:top + h, left:left + w]
        hr = hr[top * s:(top + h) * s, left * s:(left + w) * s]
        flips = rng.random(3) < 0.5 if self.augment else (False,) * 3
        return self.make_item(lr, hr, flips, rng)

    def check(self, index):
        self._scale(index, *self.dataset.size(index))

    def shapes(self, index):
        lr_size, hr_size = self.dataset.size(index)
        s, crop = self._scale(index, lr_size, hr_size), self.inp_size is not None
        h, w = (self.inp_size,) * 2 if crop else lr_size
        return self._shapes((h, w), (h * s, w * s), self.augment)

    def _scale(self, index, lr_size, hr_size):
        scales = [large / small for small, large in zip(lr_size, hr_size)]
        s = int(scales[0])
        # A remainder below half a scale is cropped; a ratio of 1.9, however, is a damaged x2 pair, not a x1 pair.
        if s < 1 or int(scales[1]) != s or max(scales) - s >= 0.5:
            lr_path, hr_path = self.path(index)
            raise BadImage(f'{lr_path} is {lr_size[1]}x{lr_size[0]} and {hr_path} is {hr_size[1]}x{hr_size[0]}: HR '
                           f'must be a whole multiple of LR, the same for both axes; replace or remove the pair')
        size = lr_size
        if self.inp_size is not None:
            size = self.inp_size, self.inp_size
            if min(lr_size) < self.inp_size:
                raise BadImage(f'image {self.path(index)[0]} is {lr_size[1]}x{lr_size[0]}, but crops have '
                               f'{self.inp_size}x{self.inp_size} pixels (inp_size): remove the pair or lower '
                               f'inp_size')
        self._check_queries(index, size[0] * s, size[1] * s)
        return s


@register('sr-implicit-uniform-varied', 'wrapper')
class SRImplicitUniformVaried(Wrapper):
    """Pairs whose ground truth varies in size (the paper's CelebA-HQ experiments).

    dataset: (LR, HR) images. The shorter side of HR becomes round(size_min + (size_max - size_min) p) pixels, p =
    index / (n - 1), so that the sizes are spread evenly over the data set (size_max absent: always size_min); the
    longer one keeps the aspect. gt_resize: then the shorter side becomes this, for networks of a fixed scale.
    augment: left-right flips only (faces). sample_q: as above.
    """

    def __init__(self, dataset,
                 size_min: Annotated[int, Integer(1, 2 ** 16), 'shorter side of the ground truth of the first image'],
                 size_max: Annotated[int, Integer(1, 2 ** 16), 'the same of the last image; null: size_min'] = None,
                 augment: Annotated[bool, FLAG, 'random left-right flips'] = False,
                 gt_resize: Annotated[int, Integer(1, 2 ** 16), 'shorter side after another resizing'] = None,
                 sample_q: SampleQ = None):
        super().__init__(dataset, augment, sample_q)
        size_max = size_min if size_max is None else size_max
        self.size_min, self.size_max, self.gt_resize = size_min, size_max, gt_resize
        least = gt_resize or max(1, round(min(size_min, size_max)))
        if sample_q is not None and sample_q > least ** 2:
            raise UserError(f'sample_q {sample_q} is more than the {least}x{least} pixels of the smallest ground '
                            f'truth: lower it')

    def sample(self, index, rng):
        lr, hr = self.dataset.image(index)
        for side in self._sides(index):
            hr = resize(hr, *size_of_shorter(hr.shape[:2], side))
        left_right = self.augment and rng.random() < 0.5
        return self.make_item(lr, hr, (left_right, False, False), rng)

    def check(self, index):
        self.dataset.size(index)

    def shapes(self, index):
        lr_size, hr_size = self.dataset.size(index)
        for side in self._sides(index):
            hr_size = size_of_shorter(hr_size, side)
        return self._shapes(lr_size, hr_size)

    def _sides(self, index):
        """What the shorter side of HR is resized to, in turn."""
        p = index / max(1, len(self) - 1)
        side = max(1, round(self.size_min + (self.size_max - self.size_min) * p))
        return (side,) if self.gt_resize is None else (side, self.gt_resize)


def resize(image, height, width, kernel=Image.BICUBIC):
    """uint8 (H, W, 3) to (height, width, 3) with a kernel of PIL, antialiased; the paper's is bicubic (a = -0.5)."""
    image = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(image.resize((width, height), kernel))


def size_of_shorter(size, side):
    """(H, W) of an image of `size` whose shorter side becomes `side`; the longer one keeps the aspect, rounded down."""
    height, width = size
    return int(side * height / min(size)), int(side * width / min(size))


def detailed_crop(image, size, rng, candidates):
    """Of `candidates` random crops, every position equally likely, the one with the most `detail`: a size x size view
    of (H, W, 3)."""
    corners = [[rng.integers(n - size + 1) for n in image.shape[:2]] for _ in range(candidates)]
    crops = [image[top:top + size, left:left + size] for top, left in corners]
    return max(crops, key=detail) if candidates > 1 else crops[0]


def detail(image):
    """Mean absolute difference of vertical neighbours plus that of horizontal ones: of the green channel of uint8
    (H, W, 3), in grey levels."""
    green = image[..., 1].astype(np.int16)
    return sum(np.abs(np.diff(green, axis=axis)).mean() for axis in (0, 1))


def flip(image, flips):
    """(H, W, 3) mirrored left-right, up-down, then transposed, each where its flag is set: a view."""
    left_right, up_down, transpose = flips
    image = image[:, ::-1] if left_right else image
    image = image[::-1] if up_down else image
    return image.transpose(1, 0, 2) if transpose else image


@functools.lru_cache(maxsize=1024)
def _axis(n):
    return axis_coord(n).numpy()


def _copy(view):
    return torch.from_numpy(np.array(view, order='C'))  # a cache's pixels are never shared


def _name(path):
    return path if isinstance(path, str) else ' with '.join(path)
