"""Image files become 8-bit RGB or are refused; folders list, split and pair them."""
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
from tests.common import seeds
from tests.image_files import folder, make_folder, make_pairs, noise, save, write_png
from utils import UserError


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
