"""Degraded inputs: each step against a direct computation, the shares, determinism, bad values."""
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
from datasets import degraded
from datasets.degraded import (add_noise, axis_filter, compress, convolve, degrade, gaussian_blur, gaussian_kernel,
                               low_pass, oblique_blur)
from datasets.loader import make_loader
from datasets.wrappers import resize
from engine.config import load_config
from utils import UserError


def photo(h, w, seed=0):
    """Something smooth with edges, uint8 (h, w, 3)."""
    small = np.random.default_rng(seed).integers(0, 256, (h // 8 + 1, w // 8 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((w, h), Image.BICUBIC))


def direct(image, kernel, mode):
    """Correlation by its definition: float64 (h, w, 3)."""
    r, (h, w) = len(kernel) // 2, image.shape[:2]
    padded = np.pad(image.astype(float), ((r, r), (r, r), (0, 0)), mode=mode)
    return sum(kernel[i, j] * padded[i:i + h, j:j + w] for i in range(2 * r + 1) for j in range(2 * r + 1))


@pytest.mark.parametrize('sigma', [0.8, 1.4, 2.5])
def test_a_gaussian_blur_is_the_convolution(sigma):
    image, t = photo(40, 53), np.arange(-15, 16)
    kernel = np.exp(-(t[:, None] ** 2 + t ** 2) / (2 * sigma ** 2))
    expected = direct(image, kernel / kernel.sum(), 'symmetric')
    assert np.abs(gaussian_blur(image, sigma) - expected).max() < 1.3  # 8 bits at the end, quarters between the passes


def test_an_oblique_blur_is_the_convolution():
    image = photo(37, 50)
    kernel = gaussian_kernel(1.4, 0.5, 0.6)
    assert kernel.sum() == 1 and np.array_equal(kernel, kernel[::-1, ::-1])
    np.testing.assert_array_equal(oblique_blur(image, 1.4, 0.5, 0.6), np.rint(direct(image, kernel, 'edge')))
    lopsided = np.zeros((3, 3), np.float32)
    lopsided[0, 2] = 1  # from above and the right
    np.testing.assert_array_equal(convolve(image, lopsided)[1:, :-1], image[:-1, 1:])


def test_the_kernel_has_its_widths_and_direction():
    kernel, t = gaussian_kernel(2.0, 1.0, 0.5).astype(float), np.arange(-6, 7)
    along, across = (t * math.cos(0.5) + t[:, None] * math.sin(0.5)), (t[:, None] * math.cos(0.5) - t * math.sin(0.5))
    assert (kernel * along ** 2).sum() == pytest.approx(4, rel=0.05)
    assert (kernel * across ** 2).sum() == pytest.approx(1, rel=0.05)


def test_the_low_pass_filter_keeps_what_is_below_its_cutoff_and_removes_the_rest():
    n, t = 64, np.arange(64) + 0.5
    low, high = (127 + 100 * np.cos(math.pi * k / n * t) for k in (20, 30))
    image = np.rint(np.stack([low, high, low], axis=1))[None].repeat(n, axis=0).astype(np.uint8)  # (64, 64, 3)
    result = low_pass(image, math.pi * 25 / n)
    assert np.abs(result[..., 0].astype(int) - image[..., 0]).max() <= 2
    assert np.abs(result[..., 1].astype(int) - 127).max() <= 2


def test_filters_do_not_depend_on_the_order_of_summation():
    """Products of float32 with these weights are exact, so that more threads give the same bits."""
    matrix, image = axis_filter(48, lambda omega: np.exp(-omega ** 2)), photo(48, 48)
    assert np.array_equal(matrix, np.rint(matrix)) and abs(matrix.sum(axis=1) - degraded.UNIT).max() < 48
    exact = matrix.astype(np.int64) @ image.reshape(48, -1).astype(np.int64)
    assert np.array_equal(matrix @ image.reshape(48, -1).astype(np.float32), exact)
    assert np.abs(exact).max() * 4 < 2 ** 24


@pytest.mark.parametrize('grey', [False, True])
def test_noise_has_the_mean_and_deviation_asked_for(grey):
    image = np.full((200, 200, 3), 120, np.uint8)
    noise = add_noise(image, 9.0, False, grey, np.random.default_rng(0)).astype(float) - 120
    assert abs(noise.mean()) < 0.15 and noise.std() == pytest.approx(9, rel=0.02)
    assert grey == all(np.array_equal(noise[..., 0], noise[..., c]) for c in (1, 2))
    if not grey:
        assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize('grey', [False, True])
def test_shot_noise_has_a_variance_proportional_to_the_brightness(grey):
    for level in (20, 60, 127, 200):
        image = np.full((200, 200, 3), level, np.uint8)
        noise = add_noise(image, 5.0, True, grey, np.random.default_rng(0)).astype(float) - level
        assert noise.var() - 1 / 12 == pytest.approx(25 * level / 127.5, rel=0.04)  # 1 / 12: of rounding


@pytest.mark.parametrize('webp, subsampled', [(False, True), (False, False), (True, False)])
def test_compression_is_pillows_with_blocks_that_start_anywhere(webp, subsampled):
    for seed, (top, left) in enumerate([(0, 0), (3, 11), (15, 8)]):
        image = photo(48 + seed, 41, seed)
        padded, buffer = np.pad(image, ((top, 0), (left, 0), (0, 0)), mode='edge'), io.BytesIO()
        options = {'method': 0} if webp else {'subsampling': '4:2:0' if subsampled else '4:4:4'}
        Image.fromarray(padded).save(buffer, 'WEBP' if webp else 'JPEG', quality=40, **options)
        expected = np.asarray(Image.open(buffer).convert('RGB'))[top:, left:]
        np.testing.assert_array_equal(compress(image, 40, webp, subsampled, (top, left)), expected)


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        Image.fromarray(photo(120, 130, i)).save(tmp_path / f'{i}.png')
    return str(tmp_path)


def wrapper(folder, **args):
    images = datasets.make({'name': 'image-folder', 'args': {'root_path': folder, 'repeat': 20}})
    return datasets.make({'name': 'sr-implicit-degraded', 'args': {
        'inp_size': 24, 'scale_max': 4, 'augment': True, 'sample_q': 64, **args}}, args={'dataset': images})


def test_samples_are_the_same_for_any_number_of_workers(folder):
    def batches(workers, epoch=0, seed=3):
        loader = make_loader(wrapper(folder), 30, seed, train=True, num_workers=workers)
        loader.batch_sampler.set_position(epoch)
        return list(loader)
    one, two, later, other = batches(0), batches(2), batches(0, epoch=1), batches(0, seed=4)
    for a, b in zip(one, two, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in ('inp', 'gt', 'coord', 'cell'))
    assert not any(torch.equal(one[0]['inp'], x[0]['inp']) for x in (later, other))


def test_a_share_is_only_reduced_and_the_truth_stays_clean(folder):
    data, clean = wrapper(folder, clean_prob=0.3), 0
    hr = photo(96, 96)
    for seed in range(1000):
        lr = data.reduce(hr, 24, 24, np.random.default_rng(seed))
        assert lr.shape == (24, 24, 3) and lr.dtype == np.uint8
        clean += np.array_equal(lr, resize(hr, 24, 24))
    assert 240 <= clean <= 370  # 300 expected, and the few whose degradation changes nothing
    same = {'sample_q': None, 'augment': False, 'scale_min': 2, 'scale_max': 2}
    none = wrapper(folder, clean_prob=1, **same).sample(0, np.random.default_rng(0))
    plain = datasets.make({'name': 'sr-implicit-downsampled', 'args': {'inp_size': 24, 'scale_min': 2}},
                          args={'dataset': data.dataset}).sample(0, np.random.default_rng(0))
    assert all(torch.equal(none[key], plain[key]) for key in plain)
    full = wrapper(folder, clean_prob=0, **same).sample(0, np.random.default_rng(0))
    assert torch.equal(full['gt'], plain['gt'])


def test_two_rounds_pass_through_an_intermediate_size(folder, monkeypatch):
    sizes = []
    monkeypatch.setattr(degraded, 'resize', lambda image, h, w, kernel=None: sizes.append(h) or resize(image, h, w))
    data = wrapper(folder, clean_prob=0, second_prob=1)
    for seed in range(200):
        data.reduce(photo(96, 96), 24, 24, np.random.default_rng(seed))
    first, last = sizes[::2], sizes[1::2]
    assert set(last) == {24} and set(first) == set(range(24, 37))
    sizes.clear()
    data.reduce(photo(24, 24), 24, 24, np.random.default_rng(0))
    assert sizes == [24, 24]  # nothing is enlarged on the way


def test_a_blur_after_the_reduction_is_the_wider_blur_before_it():
    hr = photo(192, 192)
    for s in (2, 3, 4):
        n = 192 // s
        before, after = resize(gaussian_blur(hr, 1.2 * s), n, n), gaussian_blur(resize(hr, n, n), 1.2)
        inside = (slice(6, -6),) * 2  # the borders are mirrored at different pixels
        assert np.abs(before[inside].astype(int) - after[inside]).mean() < 1


def test_fixed_degradations_depend_on_the_name_of_the_image_alone():
    image = photo(40, 40)
    first, again, other = (degrade(image, name, noise_sigma=8) for name in ('a.png', 'a.png', 'b.png'))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(degrade(image, 'a'), image)
    assert np.array_equal(degrade(image, 'a', blur_sigma=1.0, quality=75), compress(gaussian_blur(image, 1.0), 75))


WRONG = [('noise_prob', 1.5, '>= 0 and <= 1'), ('clean_prob', -0.1, '>= 0 and <= 1'),
         ('blur_sigma', [2, 1], 'low <= high'), ('noise_sigma', [0, 300], '<= 255'),
         ('quality', [0, 50], '1 <= low'), ('quality', [10, 101], '<= 100'),
         ('kernels', ['cubic'], 'bicubic, bilinear'), ('kernels', [], 'bicubic, bilinear')]


@pytest.mark.parametrize('key, value, wanted', WRONG)
def test_bad_values_are_one_line_with_the_path_of_the_key(folder, key, value, wanted):
    path = f'train_dataset.wrapper.args.{key}'
    with pytest.raises(UserError) as found:
        load_config('configs/train-real-photos.yaml', [f'{path}={value}'], kind='train', check_paths=False)
    assert f'{path}: found' in str(found.value) and wanted in str(found.value) and '\n' not in str(found.value)
    with pytest.raises(UserError, match=f': {key}: found') as found:
        wrapper(folder, **{key: value})
    assert wanted in str(found.value)


def test_an_image_too_small_for_the_crop_is_named(folder):
    with pytest.raises(UserError, match=r'png is 130x120, but crops have 192x192 pixels \(inp_size 48'):
        wrapper(folder, inp_size=48).sample(0, np.random.default_rng(0))
    with pytest.raises(UserError, match='inp_size: found null, expected an integer from 1 to 65536'):
        wrapper(folder, inp_size=None)
