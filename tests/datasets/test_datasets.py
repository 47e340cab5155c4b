"""The wrappers: golden values and the properties that hold for any image."""
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
from datasets.images import BadImage
from datasets.wrappers import detail, detailed_crop
from tests.common import golden
from tests.image_files import noise
from utils import UserError, make_coord


GOLDEN = golden('datasets.npz')


class Images:
    """An image set of arrays, or of tuples of arrays: images[i % n], counted as `length`."""

    def __init__(self, *images, length=None):
        self.images, self.length = images, length or len(images)

    def __len__(self):
        return self.length

    def image(self, i):
        return self.images[i % len(self.images)]

    def size(self, i):
        image = self.image(i)
        return tuple(part.shape[:2] for part in image) if isinstance(image, tuple) else image.shape[:2]

    def path(self, i):
        return f'{i}.png' if not isinstance(self.image(i), tuple) else (f'lr/{i}.png', f'hr/{i}.png')


def wrap(name, images, **args):
    return datasets.make({'name': name, 'args': args}, {'dataset': images})


# Golden values

def assert_golden(item, prefix, keys):
    for key in keys:
        want = GOLDEN[prefix + key]
        found = (item[key] * 255).round().byte() if want.dtype == np.uint8 else item[key][:len(want)]
        assert np.array_equal(found.numpy(), want), key


@pytest.mark.parametrize('scale', [1, 2, 3, 4, 2.5])
def test_downsampled_golden(scale):
    item = wrap('sr-implicit-downsampled', Images(GOLDEN['image']), scale_min=scale)[0]
    assert_golden(item, f'down_x{scale}/', ('inp', 'coord', 'cell', 'gt'))
    assert item['cell'].shape == item['coord'].shape
    assert {key: value.dtype for key, value in item.items()} == {
        **dict.fromkeys(('inp', 'coord', 'cell', 'gt'), torch.float32), 'size': torch.int64}


def test_paired_golden():
    lr = GOLDEN['paired_x3/lr'].transpose(1, 2, 0)
    item = wrap('sr-implicit-paired', Images((lr, GOLDEN['image'])))[0]
    assert_golden(item, 'paired_x3/', ('coord', 'cell', 'gt'))
    assert np.array_equal((item['inp'] * 255).round().byte().numpy(), GOLDEN['paired_x3/lr'])


@pytest.mark.parametrize('index, gt_resize', list(itertools.product((0, 2, 4), (None, 48))))
def test_varied_golden(index, gt_resize):
    pairs = Images((noise(20, 20, 3), GOLDEN['image'][:60, :60]), length=5)
    item = wrap('sr-implicit-uniform-varied', pairs, size_min=16, size_max=60, gt_resize=gt_resize)[index]
    assert_golden(item, f'varied_{index}_{gt_resize}/', ('cell', 'gt'))
    side = gt_resize or (16, None, 38, None, 60)[index]
    assert item['size'].tolist() == [side, side] and torch.equal(item['coord'], make_coord((side, side)))


# What a sample is

@pytest.mark.parametrize('seed', range(8))
def test_queries_are_distinct_pixels_of_the_crop_with_the_coordinates_of_make_coord(seed):
    image = np.arange(70 * 90, dtype=np.int64)  # every pixel has another value
    image = np.stack([image % 251, image // 251, image * 0], axis=-1).astype(np.uint8).reshape(70, 90, 3)
    wrapper = wrap('sr-implicit-downsampled', Images(image), inp_size=9, scale_min=1, scale_max=7, augment=True,
                   sample_q=81)
    item = wrapper.sample(0, np.random.default_rng(seed))
    h, w = item['size'].tolist()
    assert h == w and 9 <= h <= 63
    assert torch.equal(item['cell'], torch.tensor([[2 / h, 2 / w]]))
    rows = (item['coord'].unsqueeze(1) == make_coord((h, w))).all(-1).float()  # (81, h * w)
    assert (rows.sum(dim=1) == 1).all() and (rows.sum(dim=0) <= 1).all()  # bit-equal to one pixel each, none twice
    # The pixels, put where their coordinates say, are a flipped or transposed piece of the image.
    gt = item['gt'].long()
    y, x = np.divmod((gt[:, 1] * 251 + gt[:, 0]).numpy(), 90)
    place = rows.argmax(dim=1).numpy()
    flipped = np.stack([place // w, place % w])
    fits = [(np.ptp(a * flipped[0] - y), np.ptp(b * flipped[1] - x)) == (0, 0) or
            (np.ptp(a * flipped[1] - y), np.ptp(b * flipped[0] - x)) == (0, 0)
            for a, b in itertools.product((1, -1), repeat=2)]
    assert sum(fits) == 1


def test_queries_come_in_random_order():
    """Every pixel is equally likely at every position; counts of 20 draws on average lie below 45, 5 deviations off."""
    wrapper = wrap('sr-implicit-downsampled', Images(noise(10, 10, 3)), inp_size=10, scale_max=1, sample_q=50)
    counts = torch.zeros(2, 100)
    for seed in range(2000):
        coord = wrapper.sample(0, np.random.default_rng(seed))['coord'][[0, -1]]  # (2, 2)
        y, x = ((coord + 1) * 5).long().unbind(1)
        counts[[0, 1], y * 10 + x] += 1
    assert counts.sum() == 4000 and counts.max() < 45


def test_of_several_candidates_the_most_detailed_crop_is_kept():
    """One candidate is the published random crop. Of an image that is noise in one quarter and grey elsewhere, more
    candidates reach the noise more often, and the crop kept has at least the detail of the first one drawn."""
    image = np.full((64, 64, 3), 128, np.uint8)
    image[:32, :32] = noise(32, 32, 3)
    args = dict(inp_size=8, scale_max=2, sample_q=64)
    one, many = (wrap('sr-implicit-downsampled', Images(image), candidates=n, **args) for n in (1, 8))
    plain = wrap('sr-implicit-downsampled', Images(image), **args)
    spread = {1: [], 8: []}
    for seed in range(50):
        items = [w.sample(0, np.random.default_rng(seed)) for w in (one, plain, many)]
        assert all(torch.equal(items[0][key], items[1][key]) for key in items[0])
        spread[1].append(items[0]['inp'].float().std() > 1)
        spread[8].append(items[2]['inp'].float().std() > 1)
        rngs = [np.random.default_rng(seed) for _ in range(2)]
        first, kept = (detail(detailed_crop(image, 16, rng, n)) for rng, n in zip(rngs, (1, 8)))
        assert kept >= first
    assert sum(spread[1]) < 35 and sum(spread[8]) > 45


def test_candidates_need_a_crop():
    with pytest.raises(UserError, match='set inp_size'):
        wrap('sr-implicit-downsampled', Images(noise(24, 30, 3)), inp_size=None, scale_min=2, candidates=2)


def test_without_sample_q_all_pixels_come_in_order():
    hr = noise(24, 30, 3)
    item = wrap('sr-implicit-downsampled', Images(hr), inp_size=None, scale_min=2).sample(0, np.random.default_rng(0))
    assert 'coord' not in item and torch.equal(item['gt'].view(24, 30, 3), torch.from_numpy(hr))
    assert item['inp'].dtype == item['gt'].dtype == torch.uint8 and item['cell'].shape == (1, 2)


@pytest.mark.parametrize('name', ['sr-implicit-downsampled', 'sr-implicit-paired'])
def test_augmentation_is_the_eight_symmetries_applied_to_both(name):
    lr = noise(5, 5, 3)
    hr = lr.repeat(4, axis=0).repeat(4, axis=1)
    images, args = (Images(hr), {'scale_min': 4}) if name == 'sr-implicit-downsampled' else (Images((lr, hr)), {})
    upright = pixels(wrap(name, images, **args).sample(0, np.random.default_rng(0)))
    symmetries = [lambda x, turns=turns, axis=axis: np.rot90(np.flip(x, axis), turns)
                  for turns in range(4) for axis in ((), (0,))]
    seen = set()
    for seed in range(60):
        inp, gt = pixels(wrap(name, images, augment=True, **args).sample(0, np.random.default_rng(seed)))
        found = [i for i, turned in enumerate(symmetries) if np.array_equal(turned(upright[1]), gt)]
        assert len(found) == 1 and np.array_equal(symmetries[found[0]](upright[0]), inp)
        seen.add(found[0])
    assert len(seen) == 8


def pixels(item):
    """Input and ground truth of a sample with all pixels: (h, w, 3), (H, W, 3)."""
    return item['inp'].permute(1, 2, 0).numpy(), item['gt'].view(*item['size'].tolist(), 3).numpy()


@pytest.mark.parametrize('gt_resize', [None, 8])
def test_varied_keeps_the_aspect(gt_resize):
    """torchvision's Resize with one number, which the published wrapper uses: the shorter side gets this size, the
    longer one is rounded down. 13 of 21x34 is 13x21.05, of 34x21 likewise; 8 of 13x21 is 8x12.9."""
    wide, tall = noise(21, 34, 3), noise(34, 21, 3, seed=1)
    for hr, size in ((wide, (13, 21)), (tall, (21, 13))):
        item = wrap('sr-implicit-uniform-varied', Images((hr, hr)), size_min=13, gt_resize=gt_resize)[0]
        want = np.asarray(Image.fromarray(hr).resize(size[::-1], Image.BICUBIC))
        if gt_resize is not None:
            size = tuple(12 if side == 21 else 8 for side in size)
            want = np.asarray(Image.fromarray(want).resize(size[::-1], Image.BICUBIC))
        assert tuple(item['size'].tolist()) == size
        assert torch.equal(item['coord'], make_coord(size))
        assert torch.allclose(item['cell'], torch.tensor([2 / size[0], 2 / size[1]]))
        assert np.array_equal((item['gt'].view(*size, 3) * 255).round().byte().numpy(), want)


def test_varied_flips_left_right_only_and_both_images():
    lr, hr = noise(8, 8, 3), noise(16, 16, 3, seed=1)
    wrapper = wrap('sr-implicit-uniform-varied', Images((lr, hr)), size_min=16, augment=True)
    seen = set()
    for seed in range(20):
        item = wrapper.sample(0, np.random.default_rng(seed))
        mirrored = bool((item['inp'].permute(1, 2, 0).numpy() == lr[:, ::-1]).all())
        want = hr[:, ::-1] if mirrored else hr
        assert np.array_equal(item['gt'].view(16, 16, 3).numpy(), want)
        seen.add(mirrored)
    assert seen == {True, False}


def test_paired_crops_lie_over_each_other():
    lr = noise(14, 17, 3)
    hr = lr.repeat(3, axis=0).repeat(3, axis=1)
    wrapper = wrap('sr-implicit-paired', Images((lr, np.pad(hr, ((0, 2), (0, 1), (0, 0))))), inp_size=6)
    corners = set()
    for seed in range(40):
        item = wrapper.sample(0, np.random.default_rng(seed))
        assert torch.equal(item['inp'].permute(1, 2, 0), item['gt'].view(18, 18, 3)[::3, ::3])
        corners.add(item['inp'][:, 0, 0].numpy().tobytes())
    assert len(corners) > 20


def test_scales_are_spread_over_their_range():
    wrapper = wrap('sr-implicit-downsampled', Images(noise(100, 100, 3)), inp_size=10, scale_min=2, scale_max=4)
    sizes = [wrapper.sample(0, np.random.default_rng(seed))['size'][0].item() for seed in range(300)]
    assert min(sizes) == 20 and max(sizes) == 40 and abs(np.mean(sizes) - 30) < 1.5


def test_a_sample_never_shares_memory_with_a_cache():
    image = noise(6, 6, 3)
    kept = image.copy()
    for name, images, args in (('sr-implicit-downsampled', Images(image), {}),
                               ('sr-implicit-paired', Images((image, image)), {}),
                               ('sr-implicit-uniform-varied', Images((image, image)), {'size_min': 6})):
        item = wrap(name, images, **args).sample(0, np.random.default_rng(0))
        item['inp'].zero_(), item['gt'].zero_()
        assert np.array_equal(image, kept)


def test_global_seeds_decide_what_the_published_form_draws():
    import random
    wrapper = wrap('sr-implicit-downsampled', Images(noise(40, 40, 3)), inp_size=5, scale_max=4, sample_q=9)
    random.seed(5)
    first = wrapper[0]
    random.seed(5)
    second, third = wrapper[0], wrapper[0]
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(second['coord'], third['coord'])


# Images that do not fit

def test_image_smaller_than_the_crop_names_file_sizes_and_remedies():
    args = dict(inp_size=16, scale_min=1, scale_max=4)
    wrapper = wrap('sr-implicit-downsampled', Images(noise(40, 90, 3)), **args)
    for call in (lambda: wrapper.sample(0, np.random.default_rng(0)), lambda: wrapper.check(0)):
        with pytest.raises(BadImage, match='0.png is 90x40, but crops have 64x64 pixels.*small_images: fit'):
            call()
    wrapper = wrap('sr-implicit-downsampled', Images(noise(40, 90, 3)), small_images='fit', **args)
    wrapper.check(0)
    sizes = [wrapper.sample(0, np.random.default_rng(seed))['size'][0].item() for seed in range(50)]
    assert 16 <= min(sizes) and 36 < max(sizes) <= 40
    wrapper = wrap('sr-implicit-downsampled', Images(noise(15, 90, 3)), small_images='fit', **args)
    with pytest.raises(BadImage, match='crops have 16x16 pixels'):
        wrapper.check(0)


@pytest.mark.parametrize('lr, hr', [((10, 10), (9, 30)), ((10, 10), (20, 30)), ((513, 8), (1025, 16)),
                                    ((10, 10), (29, 29))])
def test_pairs_that_are_no_whole_multiple_are_refused(lr, hr):
    wrapper = wrap('sr-implicit-paired', Images((noise(*lr, 3), noise(*hr, 3))))
    for call in (lambda: wrapper.sample(0, np.random.default_rng(0)), lambda: wrapper.check(0)):
        with pytest.raises(BadImage, match=r'lr/0.png is \d+x\d+ and hr/0.png is'):
            call()


@pytest.mark.parametrize('name, images, args', [
    ('sr-implicit-downsampled', Images(noise(5, 5, 3)), dict(scale_min=2, sample_q=17)),
    ('sr-implicit-paired', Images((noise(2, 2, 3), noise(4, 4, 3))), dict(sample_q=17)),
    ('sr-implicit-paired', Images((noise(2, 2, 3), noise(4, 4, 3))), dict(inp_size=1, sample_q=5)),
])
def test_more_queries_than_pixels(name, images, args):
    wrapper = wrap(name, images, **args)
    for call in (lambda: wrapper.sample(0, np.random.default_rng(0)), lambda: wrapper.check(0)):
        with pytest.raises(BadImage, match='sample_q'):
            call()


@pytest.mark.parametrize('name, args, word', [
    ('sr-implicit-downsampled', dict(inp_size=4, sample_q=17), 'sample_q 17'),
    ('sr-implicit-downsampled', dict(inp_size=0), 'inp_size'),
    ('sr-implicit-downsampled', dict(inp_size='48'), 'inp_size'),
    ('sr-implicit-downsampled', dict(scale_min='2'), 'scale_min'),
    ('sr-implicit-downsampled', dict(scale_min=float('nan')), 'scale_min'),
    ('sr-implicit-downsampled', dict(scale_min=3, scale_max=2), 'scale_max'),
    ('sr-implicit-downsampled', dict(augment='yes'), 'augment'),
    ('sr-implicit-downsampled', dict(small_images='grow'), 'small_images'),
    ('sr-implicit-paired', dict(sample_q=-1), 'sample_q'),
    ('sr-implicit-uniform-varied', dict(size_min=-4), 'size_min'),
    ('sr-implicit-uniform-varied', dict(size_min=4, sample_q=17), 'sample_q'),
    ('sr-implicit-uniform-varied', dict(size_min=4, gt_resize=2.5), 'gt_resize'),
    ('sr-implicit-uniform-varied', dict(), 'size_min'),
    ('sr-implicit-unheard-of', dict(), 'sr-implicit-downsampled'),
    ('sr-implicit-paired', dict(input_size=3), 'inp_size'),
])
def test_wrong_arguments_are_named(name, args, word):
    with pytest.raises(UserError, match=word):
        wrap(name, Images(noise(9, 9, 3)), **args)
