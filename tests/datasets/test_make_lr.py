"""Low-resolution images: the kernel against MATLAB's own files, the rule for any scale, the program."""
import os

import numpy as np
import pytest
from PIL import Image

import datasets
from datasets.imresize import imresize, lr_size, make_lr_folder, parse_scale, scale_name, shave_width
from scripts.make_lr import default_output
from tests.common import ROOT
from tests.programs import program
from utils import UserError


DATA = os.path.join(os.environ.get('LIIF_DATA', os.path.join(ROOT, 'load')), 'benchmark')


def picture(h, w, channels=3, seed=0):
    rng = np.random.Generator(np.random.PCG64(seed))
    return rng.integers(0, 256, (h, w, channels) if channels > 1 else (h, w), dtype=np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.mark.parametrize('name', ['Set5', 'Set14', 'B100'])
def test_equal_to_the_published_files(name):
    hr_folder = os.path.join(DATA, name, 'HR')
    if not os.path.isdir(hr_folder):
        pytest.skip(f'no {name} in {DATA} (set LIIF_DATA)')
    names = sorted(os.listdir(hr_folder))[::1 if name == 'Set5' else 10]
    for scale in (2, 3, 4):
        for file in names:
            hr = np.asarray(Image.open(os.path.join(hr_folder, file)))
            stem = os.path.splitext(file)[0]
            lr = np.asarray(Image.open(os.path.join(DATA, name, f'LR_bicubic/X{scale}/{stem}x{scale}.png')))
            small, crop = lr_size(hr.shape[:2], scale)
            assert np.array_equal(imresize(hr[:crop[0], :crop[1]], small), lr), f'{file} x{scale}'


def test_matlab_kernel_by_hand():
    """x1/2 with stretched kernel: taps at 0.25, 0.75, ... of Keys' cubic, mirrored edges, halves rounded up."""
    weights = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256
    row = picture(1, 12, 1)[0]
    mirrored = np.concatenate([row[:3][::-1], row, row[-3:][::-1]]).astype(float)
    expected = [np.clip(np.floor(weights @ mirrored[2 * i:2 * i + 8] + 0.5), 0, 255) for i in range(6)]
    assert imresize(row[None], (1, 6))[0].tolist() == expected


def test_the_axis_that_shrinks_more_goes_first():
    img = picture(24, 24, seed=3)
    rows_first = imresize(imresize(img, (4, 24)), (4, 12))
    columns_first = imresize(imresize(img, (24, 12)), (4, 12))
    assert np.array_equal(imresize(img, (4, 12)), rows_first)
    assert not np.array_equal(rows_first, columns_first)  # each pass rounds, so the order shows


def test_pil_kernel_is_pil():
    img = picture(31, 45)
    expected = Image.fromarray(img).resize((17, 12), Image.BICUBIC)
    assert np.array_equal(imresize(img, (12, 17), 'pil'), np.asarray(expected))
    with pytest.raises(UserError, match='matlab, pil'):
        imresize(img, (12, 17), 'opencv')


def test_kernels_differ_by_a_grey_level_inside():
    smooth = np.asarray(Image.fromarray(picture(9, 9)).resize((90, 90), Image.BICUBIC))
    a, b = (imresize(smooth, (30, 30), kernel).astype(int) for kernel in ('matlab', 'pil'))
    assert np.abs(a - b)[4:-4, 4:-4].max() <= 1


@pytest.mark.parametrize('scale', [1, 2, 3, 4, 6, 30])
@pytest.mark.parametrize('size', [(321, 481), (60, 30), (1356, 2040)])
def test_integer_scales_follow_the_published_rule(size, scale):
    small, crop = lr_size(size, scale)
    assert small == (size[0] // scale, size[1] // scale)
    assert crop == (small[0] * scale, small[1] * scale)
    assert shave_width(scale) == shave_width((scale, scale)) == scale


def test_any_scale():
    for s in np.linspace(1, 12, 199):
        (h, w), (rows, columns) = lr_size((97, 203), (s, s / 2 + 0.5))
        assert rows <= 97 and columns <= 203 and 97 - rows <= s + 0.5 and 203 - columns <= s / 2 + 1
        assert abs(rows / h - s) <= 0.5 / h + 1e-9 and abs(columns / w - s / 2 - 0.5) <= 0.5 / w + 1e-9
    assert lr_size((100, 100), (2, 3)) == ((50, 33), (100, 99))
    assert lr_size((100, 100), 2.7) == ((37, 37), (100, 100))
    assert lr_size((99, 99), 1.1) == ((90, 90), (99, 99))  # 99 / 1.1 is 89.99999999999999 in floats
    assert shave_width(2.7) == 3 and shave_width((1.5, 4)) == 4 and shave_width(2.0000000001) == 2
    with pytest.raises(UserError, match='10x20 pixels is too small for x12'):
        lr_size((20, 10), 12)


def test_scales_are_the_wrappers():
    """`sr-implicit-downsampled` at a fixed scale takes the same crop and size."""
    for scale in (1.5, 2.7, 3, 3.3):
        args = {'dataset': OneImage(), 'scale_min': scale}
        item = datasets.make({'name': 'sr-implicit-downsampled', 'args': args})[0]
        small, crop = lr_size((61, 83), scale)
        assert tuple(item['inp'].shape[1:]) == small and tuple(item['size'].tolist()) == crop


class OneImage:
    def __len__(self):
        return 1

    def image(self, index):
        return picture(61, 83)

    def path(self, index):
        return 'one.png'


def test_scale_names():
    for text, scale, name in (('2', (2, 2), '2'), ('2.70', (2.7, 2.7), '2.7'), ('2x3', (2, 3), '2x3'),
                              ('30', (30, 30), '30')):
        assert parse_scale(text) == scale and scale_name(scale) == name
    for text in ('', 'x2', '2x3x4', '0.5', '-2', 'nan', 'inf', 'two'):
        with pytest.raises(UserError, match='a scale is a number'):
            parse_scale(text)


def test_folder(tmp_path):
    hr = tmp_path / 'Some' / 'HR'
    save(hr / 'colour.png', picture(61, 50))
    save(hr / 'grey.png', picture(40, 41, 1))
    save(hr / 'photo.jpg', picture(30, 30))
    save(hr / 'alpha.png', picture(30, 30, 4))
    (hr / '.hidden.png').write_bytes(b'')
    (hr / 'notes.txt').write_text('not an image')
    out = tmp_path / 'Some' / 'LR_bicubic'
    scales = [(2.0, 2.0), (2.5, 3.0)]
    assert make_lr_folder(str(hr), str(out), scales) == (8, 0, [])
    assert sorted(os.listdir(out)) == ['X2', 'X2.5x3']
    assert sorted(os.listdir(out / 'X2')) == ['alphax2.png', 'colourx2.png', 'greyx2.png', 'photox2.png']
    grey = Image.open(out / 'X2' / 'greyx2.png')
    assert grey.mode == 'L' and grey.size == (20, 20)
    colour = np.asarray(Image.open(out / 'X2.5x3' / 'colourx2.5x3.png'))
    assert np.array_equal(colour, imresize(picture(61, 50)[:60, :48], (24, 16)))

    # A second run keeps what is there, makes what is missing, and says what cannot belong.
    kept = out / 'X2' / 'colourx2.png'
    before = kept.stat().st_mtime_ns
    (out / 'X2' / 'greyx2.png').unlink()
    save(out / 'X2' / 'photox2.png', picture(3, 3))
    made, skipped, bad = make_lr_folder(str(hr), str(out), scales)
    assert (made, skipped) == (1, 6) and kept.stat().st_mtime_ns == before
    assert len(bad) == 1 and 'photox2.png is 3x3, expected 15x15' in bad[0]
    assert make_lr_folder(str(hr), str(out), scales, overwrite=True) == (8, 0, [])


def test_processes_make_the_same(tmp_path):
    for i in range(3):
        save(tmp_path / 'HR' / f'{i}.png', picture(30 + i, 40, seed=i))
    for workers, name in ((1, 'a'), (2, 'b')):
        make_lr_folder(str(tmp_path / 'HR'), str(tmp_path / name), [(3.0, 3.0)], workers=workers)
    for i in range(3):
        a, b = ((tmp_path / name / 'X3' / f'{i}x3.png').read_bytes() for name in 'ab')
        assert a == b


def test_two_images_for_one_name(tmp_path):
    save(tmp_path / 'a.png', picture(8, 8))
    save(tmp_path / 'a.jpg', picture(8, 8))
    with pytest.raises(UserError, match='a.jpg and a.png'):
        make_lr_folder(str(tmp_path), str(tmp_path / 'out'), [(2.0, 2.0)])


def test_default_output():
    assert default_output('load/benchmark/Set5/HR/', 'matlab') == 'load/benchmark/Set5/LR_bicubic'
    assert default_output('load/div2k/DIV2K_valid_HR', 'pil') == 'load/div2k/DIV2K_valid_LR_pil'
    with pytest.raises(UserError, match='pass --output'):
        default_output('photos', 'matlab')


def test_program_reports_bad_files_at_the_end(tmp_path):
    save(tmp_path / 'HR' / 'good.png', picture(20, 20))
    save(tmp_path / 'HR' / 'tiny.png', picture(2, 9))
    whole = (tmp_path / 'HR' / 'good.png').read_bytes()
    (tmp_path / 'HR' / 'cut.png').write_bytes(whole[:len(whole) // 2])
    (tmp_path / 'HR' / 'text.png').write_text('hello')
    run = program('scripts/make_lr.py', tmp_path / 'HR', '--scale', '3')
    assert run.returncode == 2 and 'Traceback' not in run.stderr
    assert os.listdir(tmp_path / 'LR_bicubic' / 'X3') == ['goodx3.png']
    assert '1 made, 0 kept' in run.stdout
    lines = run.stderr.strip().splitlines()
    for name in ('cut.png', 'text.png', 'tiny.png'):
        assert len([line for line in lines[-4:-1] if name in line]) == 1, lines
    assert lines[-1].startswith('error: 3 images could not be made smaller')
