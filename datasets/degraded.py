"""Degraded inputs: blurred, noisy and compressed, as photographs on the web and from phones are.

The order of the steps follows Real-ESRGAN's second-order model (Wang et al., ICCV Workshops 2021, section 3), applied
to the small image:

    HR crop -> reduction by a random kernel -> [blur -> noise -> compression] -> inp
    HR crop -> reduction to an intermediate size -> [...] -> reduction -> [...] -> inp      with `second_prob`

Every strength is in pixels or grey levels of the image it acts on, which has the size of the input (up to 1.5 times
that in the first of two rounds), so it means the same at every scale and costs the same. A blur after the antialiased
reduction equals a blur of s times the width before it up to aliasing: 51 to 57 dB between the two in the mean over
384x384 pixels of the Kodak photographs, for standard deviations of 0.5 to 1.4 pixels at s = 2, 3, 4.

Results do not depend on the number of threads: weights are rounded to multiples of a power of two, so that float32
holds every sum exactly, in any order.
"""
import functools
import io
import math
import zlib
from dataclasses import replace
from typing import Annotated

import numpy as np
from numpy.lib.stride_tricks import as_strided
from PIL import Image

from utils import Integer, ListOf, Number, OneOf, value_types

from .datasets import register
from .wrappers import (Augment, Candidates, SampleQ, ScaleMax, ScaleMin, SmallImages, SRImplicitDownsampled,
                       resize)

KERNELS = {'bicubic': Image.BICUBIC, 'bilinear': Image.BILINEAR, 'lanczos': Image.LANCZOS, 'box': Image.BOX}
LARGEST_INTERMEDIATE = 1.5  # times the size of the input, in the first of two rounds
NARROWEST = 0.35  # pixels: the standard deviation below which an oblique line falls between the pixels
B = 16  # pixels of a row that `convolve` computes together
UNIT = 4096  # weights of blurs along an axis are multiples of 1 / UNIT
BLOCK = 16  # pixels of a JPEG block with halved chroma; crops start anywhere in it
DRAWS = 40  # uniform numbers for the decisions of one sample: drawing them together is faster


def Interval(low, high):
    """A list [a, b] with low <= a <= b <= high."""
    pair = ListOf(Number(low, high), 2, 2, f'[low, high] with {low} <= low <= high <= {high}')
    return replace(pair, accepts=lambda v: pair.accepts(v) and v[0] <= v[1])


PROBABILITY = Number(0, 1)
SIGMA, LEVELS, QUALITY = Interval(0, 100), Interval(0, 255), Interval(1, 100)


@register('sr-implicit-degraded', 'wrapper')
class SRImplicitDegraded(SRImplicitDownsampled):
    """`sr-implicit-downsampled` with degraded inputs; the ground truth stays clean.

    The arguments up to candidates are as there, but inp_size is required; each of the others is described where it
    is declared. Probabilities but clean_prob apply to the samples that do not stay clean.
    """

    def __init__(self, dataset, inp_size: Annotated[int, Integer(1, 2 ** 16), 'side of the input, a random crop'],
                 scale_min: ScaleMin = 1, scale_max: ScaleMax = None, augment: Augment = False,
                 sample_q: SampleQ = None, small_images: SmallImages = 'stop', candidates: Candidates = 1,
                 clean_prob: Annotated[float, PROBABILITY, 'share of inputs that are only reduced, by bicubic'] = 0.15,
                 kernels: Annotated[list, ListOf(OneOf(*KERNELS), least=1), 'to reduce with, drawn evenly'] =
                 ('bicubic', 'bilinear', 'lanczos', 'box'),
                 second_prob: Annotated[float, PROBABILITY, 'probability of a second round of degradations'] = 0.4,
                 blur_prob: Annotated[float, PROBABILITY, 'probability of a blur'] = 0.6,
                 blur_sigma: Annotated[list, SIGMA, 'standard deviation of the blur, in input pixels'] = (0.2, 1.4),
                 anisotropic_prob: Annotated[float, PROBABILITY, 'share of blurs with a random direction'] = 0.4,
                 sinc_prob: Annotated[float, PROBABILITY, 'share of blurs that ring (ideal low-pass filters)'] = 0.1,
                 noise_prob: Annotated[float, PROBABILITY, 'probability of noise'] = 0.5,
                 noise_sigma: Annotated[list, LEVELS, 'standard deviation of the noise, in grey levels'] = (0.5, 12.0),
                 poisson_prob: Annotated[float, PROBABILITY, 'share of noise that grows with brightness'] = 0.4,
                 grey_prob: Annotated[float, PROBABILITY, 'share of noise that is equal in all channels'] = 0.4,
                 compression_prob: Annotated[float, PROBABILITY, 'probability of JPEG or WebP'] = 0.9,
                 quality: Annotated[list, QUALITY, 'quality of JPEG and WebP'] = (30, 95),
                 webp_prob: Annotated[float, PROBABILITY, 'share of WebP among the compressed'] = 0.1,
                 subsampling_prob: Annotated[float, PROBABILITY, 'share of JPEG with chroma halved (4:2:0)'] = 0.7):
        own = {name: value for name, value in locals().items() if name in OWN}
        super().__init__(dataset, inp_size, scale_min, scale_max, augment, sample_q, small_images, candidates)
        self.degradation = own

    def reduce(self, hr, h, w, rng):
        """A degraded input, uint8 (h, w, 3), of hr (H, W, 3)."""
        draw, own = iter(rng.random(DRAWS).tolist()).__next__, self.degradation
        if draw() < own['clean_prob']:
            return resize(hr, h, w)
        if draw() < own['second_prob']:
            most = max(1, min(LARGEST_INTERMEDIATE, hr.shape[0] / h, hr.shape[1] / w))
            r = uniform((1, most), draw)
            hr = self._round(resize(hr, round(r * h), round(r * w), self._kernel(draw)), draw, rng)
        return self._round(resize(hr, h, w, self._kernel(draw)), draw, rng)

    def _kernel(self, draw):
        names = self.degradation['kernels']
        return KERNELS[names[int(draw() * len(names))]]

    def _round(self, image, draw, rng):
        """Blur, noise, compression, each with its probability: uint8 (h, w, 3) to the same. draw: gives the next
        uniform number of [0, 1)."""
        own = self.degradation
        if draw() < own['blur_prob']:
            sigma = uniform(own['blur_sigma'], draw)
            if draw() < own['sinc_prob']:
                image = low_pass(image, math.pi / (1 + sigma))
            elif draw() < own['anisotropic_prob']:
                image = oblique_blur(image, sigma, uniform((0.2, 1), draw) * sigma, math.pi * draw())
            else:
                image = gaussian_blur(image, sigma)
        if draw() < own['noise_prob']:
            image = add_noise(image, uniform(own['noise_sigma'], draw), draw() < own['poisson_prob'],
                              draw() < own['grey_prob'], rng)
        if draw() < own['compression_prob']:
            quality, phase = round(uniform(own['quality'], draw)), (int(BLOCK * draw()), int(BLOCK * draw()))
            image = compress(image, quality, draw() < own['webp_prob'], draw() < own['subsampling_prob'], phase)
        return image


OWN = value_types(SRImplicitDegraded).keys() - value_types(SRImplicitDownsampled).keys()  # the arguments added here


def degrade(image, name, blur_sigma: Annotated[float, Number(0, 100), 'standard deviation of the blur, in pixels'] = 0,
            noise_sigma: Annotated[float, Number(0, 255), 'standard deviation of the noise, in grey levels'] = 0,
            quality: Annotated[int, Integer(1, 100), 'of JPEG; null: not compressed'] = None):
    """The same degradation every time, for measuring: blur, colour noise, JPEG (4:2:0), those that are given.

    image: uint8 (h, w, 3); name: of the image's file, which determines the noise. Returns uint8 (h, w, 3).
    """
    if blur_sigma:
        image = gaussian_blur(image, blur_sigma)
    if noise_sigma:
        image = add_noise(image, noise_sigma, False, False, np.random.default_rng(zlib.crc32(name.encode())))
    return image if quality is None else compress(image, quality)


# Blur.

def gaussian_blur(image, sigma):
    """uint8 (h, w, 3) blurred by a Gaussian, mirrored at the borders; sigma: its standard deviation in pixels."""
    return separable(image, lambda omega: np.exp(-(sigma * omega) ** 2 / 2))


def low_pass(image, cutoff):
    """uint8 (h, w, 3) without the frequencies above `cutoff`, in radians per pixel (pi is the finest detail), along
    each axis."""
    return separable(image, lambda omega: omega <= cutoff)


def separable(image, response):
    """uint8 (h, w, 3) filtered along both axes. response: factors of angular frequencies (n,), in radians per pixel.

    As in Pillow's resizing the values between the two passes are clipped to [0, 255] and rounded, here to quarters.
    """
    h, w = image.shape[:2]
    columns = axis_filter(w, response)
    rows = columns if h == w else axis_filter(h, response)
    x = rows @ image.reshape(h, -1).astype(np.float32)  # (h, w * 3)
    x *= np.float32(4 / UNIT)
    x = np.rint(x, out=x).clip(0, 4 * 255, out=x).reshape(h, w, 3).swapaxes(0, 1).reshape(w, -1)  # (w, h * 3)
    x = columns @ x
    x *= np.float32(0.25 / UNIT)
    return to_uint8(x).reshape(w, h, 3).swapaxes(0, 1)


def axis_filter(n, response):
    """UNIT times the matrix (n, n) of a filter along one axis of n pixels, mirrored at the ends: whole numbers, as
    float32.

    The filter multiplies the coefficients of the cosine transform, whose basis is mirrored so:
    (i, j) is the mean over the frequencies k of f_k (cos(pi k (i - j) / n) + cos(pi k (i + j + 1) / n)), f_0 halved.
    """
    factors = response(np.arange(n) * (math.pi / n))  # (n,)
    wave = cosines(n) @ factors  # (3n,): of -(n - 1), ..., 2n
    step = wave.strides[0]
    difference = as_strided(wave[n - 1:], (n, n), (step, -step))
    total = as_strided(wave[n:], (n, n), (step, step))
    return np.rint(difference + total).astype(np.float32)


@functools.lru_cache(maxsize=128)
def cosines(n):
    """UNIT / n cos(pi k m / n) for m from -(n - 1) to 2n and the frequencies k, the first halved: (3n, n)."""
    k, m = np.arange(n), np.arange(1 - n, 2 * n + 1)
    return np.cos(k * m[:, None] % (2 * n) * (math.pi / n)) * (UNIT / n * np.where(k, 1, 0.5))


def oblique_blur(image, sigma, across, angle):
    """uint8 (h, w, 3) blurred by an elongated Gaussian; the borders are repeated.

    sigma, across: standard deviations in pixels along and across the direction `angle`, in radians from the x axis to
    the y axis; below NARROWEST they count as that.
    """
    return convolve(image, gaussian_kernel(max(sigma, NARROWEST), max(across, NARROWEST), angle))


def convolve(image, kernel):
    """uint8 (h, w, 3) correlated with kernel, float32 (2r + 1, 2r + 1), the borders repeated.

    As one matrix product, which for small images takes a third of the time of torch's convolution: each row is cut into
    blocks of B pixels, and the (2r + 1) x (B + 2r) pixels around a block times a banded matrix give the block.
    """
    (h, w), k = image.shape[:2], len(kernel)
    r, blocks = k // 2, -(-w // B)
    padded = np.zeros((h + k - 1, 3, blocks * B + k - 1), np.float32)
    padded[r:r + h, :, r:r + w] = image.swapaxes(1, 2)
    padded[:r], padded[r + h:] = padded[r], padded[r + h - 1]
    padded[:, :, :r], padded[:, :, r + w:] = padded[:, :, r:r + 1], padded[:, :, r + w - 1:r + w]
    row, channel, column = padded.strides
    around = as_strided(padded, (h, 3, blocks, k, B + k - 1), (row, channel, B * column, row, column))
    banded = np.zeros((k, B + k - 1, B), np.float32)  # banded[y, j + x, j] = kernel[y, x]
    line, item = banded.strides[1:]
    as_strided(banded, (k, k, B), (banded.strides[0], line, line + item))[:] = kernel[:, :, None]
    y = around.reshape(h * 3 * blocks, -1) @ banded.reshape(-1, B)  # (h * 3 * blocks, B)
    return to_uint8(y.reshape(h, 3, -1)[:, :, :w]).swapaxes(1, 2)


def gaussian_kernel(sigma, across, angle):
    """An elongated Gaussian sampled at the pixels, to three standard deviations: float32 (2r + 1, 2r + 1), which sums
    to 1; its values are multiples of 2^-14."""
    c, s, r = math.cos(angle), math.sin(angle), math.ceil(3 * max(sigma, across))
    t = np.arange(-r, r + 1)
    y, x = t[:, None], t
    kernel = np.exp(-(((c * x + s * y) / sigma) ** 2 + ((c * y - s * x) / across) ** 2) / 2)
    kernel = np.rint(kernel * (16384 / kernel.sum()))
    kernel[r, r] += 16384 - kernel.sum()
    return (kernel * (1 / 16384)).astype(np.float32)


# Noise and compression.

def add_noise(image, sigma, poisson, grey, rng):
    """uint8 (h, w, 3) with noise of standard deviation sigma, in grey levels. poisson: shot noise, whose variance is
    proportional to the brightness and equals sigma squared at 127.5; grey: equal in all channels."""
    noise = rng.standard_normal((*image.shape[:2], 1) if grey else image.shape, dtype=np.float32)
    noise *= np.float32(sigma)
    if poisson:  # of many photons, so nearly normal
        level = image.sum(axis=2, keepdims=True, dtype=np.float32) / 3 if grey else image.astype(np.float32)
        noise *= np.sqrt(level * np.float32(1 / 127.5))
    return to_uint8(noise + image)


def compress(image, quality, webp=False, subsampled=True, phase=(0, 0)):
    """uint8 (h, w, 3) after JPEG or WebP.

    quality: 1 to 100; subsampled: JPEG's chroma at half the resolution; phase: (rows, columns) by which the grid of
    blocks is shifted, as in a crop that starts anywhere.
    """
    (h, w), (top, left) = image.shape[:2], phase
    padded = np.empty((top + h, left + w, 3), np.uint8)
    padded[top:, left:] = image
    padded[:top, left:] = image[0]
    padded[:, :left] = padded[:, left:left + 1]
    small, buffer = Image.fromarray(padded), io.BytesIO()
    if webp:
        small.save(buffer, 'WEBP', quality=quality, method=0)
        return np.asarray(Image.open(buffer, formats=['WEBP']))[top:, left:]
    small.save(buffer, 'JPEG', quality=quality, subsampling=2 if subsampled else 0)
    decoded = Image.frombytes('RGB', small.size, buffer.getvalue(), 'jpeg', 'RGB', '')  # half the time of Image.open
    return np.asarray(decoded)[top:, left:]


def to_uint8(x):
    """Rounds float32 in place, clips to [0, 255]."""
    return np.rint(x, out=x).clip(0, 255, out=x).astype(np.uint8)


def uniform(interval, draw):
    return interval[0] + (interval[1] - interval[0]) * draw()
