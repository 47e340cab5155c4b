"""Image folders, reading of files, and the wrappers: golden values and the properties that hold for any image."""
import itertools
import json
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
from datasets.images import BadImage, image_size, read_image
from tests.common import golden, seeds
from tests.image_files import folder, make_folder, make_pairs, noise, save, write_png
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
    image = np.arange(70 * 90, dtype=np.int64)  # every pixel has a value of its own
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


def test_without_sample_q_all_pixels_come_in_order():
    hr = noise(24, 30, 3)
    item = wrap('sr-implicit-downsampled', Images(hr), inp_size=None, scale_min=2).sample(0, np.random.default_rng(0))
    assert 'coord' not in item and torch.equal(item['gt'].view(24, 30, 3), torch.from_numpy(hr))
    assert item['inp'].dtype == item['gt'].dtype == torch.uint8 and item['cell'].shape == (1, 2)


@pytest.mark.parametrize('name', ['sr-implicit-downsampled', 'sr-implicit-paired'])
def test_augmentation_is_the_eight_symmetries_applied_to_both(name):
    lr = noise(5, 5, 3)
    hr = lr.repeat(4, axis=0).repeat(4, axis=1)
    images = Images(hr) if name == 'sr-implicit-downsampled' else Images((lr, hr))
    scale = {'scale_min': 4} if name == 'sr-implicit-downsampled' else {}
    wrapper = wrap(name, images, augment=True, **scale)
    seen = set()
    for seed in range(60):
        item = wrapper.sample(0, np.random.default_rng(seed))
        gt = item['gt'].view(20, 20, 3).permute(2, 0, 1)
        if name == 'sr-implicit-paired':
            assert torch.equal(item['inp'], gt[:, ::4, ::4])
        else:  # the input of the flipped image is the flipped input, which PIL gives for the upright one
            upright = wrap(name, images, **scale).sample(0, np.random.default_rng(0))
            assert torch.equal(item['inp'].sort(dim=-1)[0].sum(), upright['inp'].sum())
        seen.add(gt.numpy().tobytes())
    assert len(seen) == 8


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
        with pytest.raises(BadImage, match='0.png is 90x40, but crops of 64x64.*small_images: fit'):
            call()
    wrapper = wrap('sr-implicit-downsampled', Images(noise(40, 90, 3)), small_images='fit', **args)
    wrapper.check(0)
    sizes = [wrapper.sample(0, np.random.default_rng(seed))['size'][0].item() for seed in range(50)]
    assert 16 <= min(sizes) and 36 < max(sizes) <= 40
    wrapper = wrap('sr-implicit-downsampled', Images(noise(15, 90, 3)), small_images='fit', **args)
    with pytest.raises(BadImage, match='crops of 16x16'):
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


# Reading files

def test_every_kind_of_file_becomes_8_bit_rgb(tmp_path):
    grey, rgba = noise(9, 7), noise(9, 7, 4, seed=1)
    rgb = rgba[..., :3].copy()
    assert np.array_equal(read_image(save(tmp_path / 'grey.png', grey)), grey[..., None].repeat(3, axis=-1))
    assert np.array_equal(read_image(save(tmp_path / 'rgba.png', rgba)), rgb)  # alpha dropped, not blended
    assert np.array_equal(read_image(save(tmp_path / 'rgb.bmp', rgb)), rgb)
    assert np.array_equal(read_image(save(tmp_path / 'grey_alpha.png', rgba[..., :2].copy())),
                          rgba[..., :1].repeat(3, axis=-1))
    palette = Image.fromarray(rgb).quantize(16)
    palette.save(tmp_path / 'palette.png', transparency=bytes(range(16)))
    assert np.array_equal(read_image(str(tmp_path / 'palette.png')), np.asarray(palette.convert('RGB')))
    black_white = grey > 127
    assert np.array_equal(read_image(save(tmp_path / 'bits.png', black_white)),
                          black_white[..., None].repeat(3, axis=-1) * np.uint8(255))
    deep = noise(9, 7, 4, seed=2, dtype=np.uint16)
    want = np.round(deep / 257).astype(np.uint8)
    assert np.array_equal(read_image(save(tmp_path / 'grey16.png', deep[..., 0].copy())), want[..., [0, 0, 0]])
    assert np.array_equal(read_image(save(tmp_path / 'grey16.tif', deep[..., 0].copy())), want[..., [0, 0, 0]])
    assert np.array_equal(read_image(write_png(tmp_path / 'rgb16.png', deep[..., :3], 2)), want[..., :3])
    assert np.array_equal(read_image(write_png(tmp_path / 'rgba16.png', deep, 6)), want[..., :3])
    assert np.array_equal(read_image(write_png(tmp_path / 'ga16.png', deep[..., :2], 4)), want[..., [0, 0, 0]])
    for name in os.listdir(tmp_path):
        assert image_size(str(tmp_path / name)) == (9, 7)


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    path = save(tmp_path / 'turned.png', noise(9, 7, 3), exif=exif)
    assert read_image(path).shape == (9, 7, 3) and image_size(path) == (9, 7)


@pytest.mark.filterwarnings('ignore:Corrupt EXIF', 'ignore:Truncated File')
@pytest.mark.parametrize('seed', seeds(0))
def test_damaged_files_are_refused_or_read_right(tmp_path, seed):
    """Random truncations and bit flips: a PNG never decodes to wrong pixels, and nothing but BadImage is raised."""
    rng = np.random.default_rng(seed)
    refused = 0
    for suffix in ('.png', '.jpg', '.tif', '.gif', '.webp', '.bmp'):
        path = tmp_path / f'image{suffix}'
        smooth = Image.fromarray(noise(4, 4, 3)).resize((24, 20), Image.BICUBIC)
        smooth.save(path)
        whole, pixels = path.read_bytes(), read_image(str(path))
        for case in range(60):
            data = bytearray(whole[:rng.integers(len(whole))] if case % 2 else whole)
            if case % 2 == 0:
                data[rng.integers(len(data))] ^= 1 << rng.integers(8)
            path.write_bytes(data)
            try:
                found = read_image(str(path), max_pixels=10_000)
                assert suffix != '.png' or np.array_equal(found, pixels)
                assert found.dtype == np.uint8 and found.shape[2] == 3
            except BadImage as error:
                refused += 1
                assert str(path) in str(error) and '\n' not in str(error)
    assert refused > 150


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / 'notes.png').write_text('not an image')
    (tmp_path / 'empty.png').write_bytes(b'')
    (tmp_path / 'program.png').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n')  # no interpreter runs
    Image.fromarray(noise(4, 4).astype(np.float32)).save(tmp_path / 'float.tif')
    for name in ('notes.png', 'empty.png', 'program.png', 'float.tif', 'absent.png'):
        with pytest.raises(BadImage, match=name):
            read_image(str(tmp_path / name))


def test_the_pixel_limit_and_how_to_lift_it(tmp_path):
    save(tmp_path / 'big.png', noise(30, 40, 3))
    limit = Image.MAX_IMAGE_PIXELS
    for read in (read_image, image_size):
        with pytest.raises(BadImage, match='big.png has 40x30 pixels, more than the limit of 1000.*max_pixels'):
            read(str(tmp_path / 'big.png'), max_pixels=1000)
        read(str(tmp_path / 'big.png'), max_pixels=None)
    assert Image.MAX_IMAGE_PIXELS == limit
    images = datasets.make({'name': 'image-folder', 'args': {'root_path': str(tmp_path), 'max_pixels': 1199}})
    with pytest.raises(BadImage, match='big.png'):
        images[0]
    bomb = write_png(tmp_path / 'bomb.png', np.zeros((1, 1, 3), np.uint16), 2)
    data = bytearray(open(bomb, 'rb').read())
    data[16:24] = struct.pack('>II', 60000, 60000)
    data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
    open(bomb, 'wb').write(data)
    with pytest.raises(BadImage, match='60000x60000'):
        read_image(bomb)


# Folders

def test_folder_lists_images_in_order_and_ignores_the_rest(tmp_path):
    root = folder(tmp_path / 'a', ['b.png', 'a.PNG', 'c.jpg', '.hidden.png'])
    (tmp_path / 'a' / 'notes.txt').write_text('x')
    (tmp_path / 'a' / 'Thumbs.db').write_text('x')
    (tmp_path / 'a' / 'folder.png').mkdir()
    images = make_folder(root)
    assert [os.path.basename(images.path(i)) for i in range(len(images))] == ['a.PNG', 'b.png', 'c.jpg']
    assert images[1].dtype == torch.float32 and images[1].shape == (3, 8, 8)
    assert torch.equal((images[1] * 255).round().byte(), torch.tensor(images.image(1)).permute(2, 0, 1))
    assert len(list(images)) == 3  # iteration ends


def test_first_k_and_repeat(tmp_path):
    images = make_folder(folder(tmp_path / 'a', [f'{i}.png' for i in range(5)]), first_k=2, repeat=3)
    assert len(images) == 6
    assert [os.path.basename(images.path(i)) for i in range(6)] == ['0.png', '1.png'] * 3
    assert torch.equal(images[1], images[5])
    with pytest.raises(IndexError):
        images[6]


def test_split_file(tmp_path):
    root = folder(tmp_path / 'a', [f'{i}.png' for i in range(4)])
    split = tmp_path / 'split.json'
    split.write_text(json.dumps({'train': ['3.png', '1.png', '0.png'], 'gone': ['1.png', '9.png'], 'odd': 'x'}))
    images = make_folder(root, split_file=str(split), split_key='train', first_k=2)
    assert images.names == ['3.png', '1.png']
    for key, words in (('val', "no split_key 'val'.*train"), ('gone', "1 of the 2 files.*9.png"), ('odd', 'list')):
        with pytest.raises(UserError, match=words):
            make_folder(root, split_file=str(split), split_key=key)
    split.write_text('{')
    with pytest.raises(UserError, match='not JSON'):
        make_folder(root, split_file=str(split), split_key='train')
    with pytest.raises(UserError, match='absent.json'):
        make_folder(root, split_file=str(tmp_path / 'absent.json'), split_key='train')


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match='absent.*does not exist'):
        make_folder(str(tmp_path / 'absent'))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='empty.*holds no images'):
        make_folder(str(tmp_path / 'empty'))
    root = folder(tmp_path / 'a', ['0.png'])
    for args, word in ((dict(first_k=0), 'first_k'), (dict(repeat=1.5), 'repeat'), (dict(cache='ram'), 'in_memory'),
                       (dict(root_path=None), 'root_path'), (dict(rot_path=root), 'root_path')):
        with pytest.raises(UserError, match=word):
            make_folder(**{'root': root, **args}) if 'root_path' not in args else make_folder(None)


def test_pairs_are_matched_by_order_and_checked_by_stem(tmp_path):
    hr = folder(tmp_path / 'hr', ['0801.png', '0802.png', '10.png'])
    lr = folder(tmp_path / 'lr', ['0801x2.png', '0802x2.png', '10x2.png'], size=(4, 4))
    pairs = make_pairs(lr, hr, repeat=2)
    assert len(pairs) == 6 and [part.shape for part in pairs[4]] == [(3, 4, 4), (3, 8, 8)]
    assert pairs.size(0) == ((4, 4), (8, 8)) and [os.path.basename(p) for p in pairs.path(5)] == ['10x2.png', '10.png']
    os.remove(os.path.join(lr, '0801x2.png'))
    with pytest.raises(UserError, match=r'lr holds 2 images and .*hr 3'):
        make_pairs(lr, hr)
    with pytest.raises(UserError, match=r'0802x2.png of .*lr does not belong to 0801.png'):
        make_pairs(lr, hr, first_k=2)


@pytest.mark.parametrize('lr, hr, good', [
    ('a', 'a', True), ('ax3', 'a', True), ('a_x3.5', 'a', True), ('img_001_SRF_2_LR', 'img_001_SRF_2_HR', True),
    ('Canon_LR4', 'Canon_HR', True), ('a_bicubic', 'a', True), ('x2', 'x2', True),
    ('10x2', '1', False), ('ab', 'a', False), ('b', 'a', False), ('a', 'ab', False)])
def test_stems(tmp_path, lr, hr, good):
    roots = folder(tmp_path / 'lr', [lr + '.png']), folder(tmp_path / 'hr', [hr + '.png'])
    if good:
        assert len(make_pairs(*roots)) == 1
    else:
        with pytest.raises(UserError, match='does not belong'):
            make_pairs(*roots)
