"""Looking data over: the check of headers before a run, scripts/check_data.py, and scripts/resize.py."""
import os

import numpy as np
import pytest
import yaml
from PIL import Image

import datasets
from datasets.check import check_batches, check_headers, problems
from scripts import check_data, resize
from tests.image_files import folder, hostile_pngs, make_folder, make_pairs, noise, save
from tests.programs import program
from utils import UserError


def wrapper_over(images, name='sr-implicit-downsampled', **args):
    return datasets.make({'name': name, 'args': args}, {'dataset': images})


def test_headers_tell_what_is_too_small_or_no_image(tmp_path):
    root = folder(tmp_path / 'a', [f'{i}.png' for i in range(5)], size=(30, 40))
    wrapper = wrapper_over(make_folder(root, repeat=100), inp_size=10, scale_max=3)
    assert check_headers(wrapper) == []
    folder(tmp_path / 'a', ['1.png'], size=(20, 40))
    with pytest.raises(UserError, match=r'1.png is 40x20.*crops have 30x30 pixels') as error:
        check_headers(wrapper)
    assert '\n' not in str(error.value)
    (tmp_path / 'a' / '3.png').write_bytes(b'broken')
    with pytest.raises(UserError, match=r'1.png.*2 of 5 images.*check_data.py'):
        check_headers(wrapper)
    bad = check_headers(wrapper, on_bad_image='skip')
    assert len(bad) == 2 and '1.png' in bad[0] and '3.png' in bad[1]
    wrapper = wrapper_over(make_folder(root), inp_size=100)
    with pytest.raises(UserError, match=r'5 of 5 images cannot be used: see python scripts/check_data.py CONFIG\)'):
        check_headers(wrapper, on_bad_image='skip')


def test_samples_of_a_batch_need_one_size(tmp_path, monkeypatch):
    monkeypatch.setattr('datasets.image_folder.read_image', None)  # headers alone tell
    root = folder(tmp_path / 'a', ['0.png', '1.png'], size=(40, 40))
    square = wrapper_over(make_folder(root, repeat=9), scale_min=2)
    check_batches(square, 4)
    check_batches(wrapper_over(make_folder(root), scale_min=2, augment=True), 4)
    folder(tmp_path / 'a', ['1.png'], size=(40, 30))
    check_batches(square, 1)
    check_batches(wrapper_over(make_folder(root), inp_size=10, scale_min=2), 4)
    words = r'cannot form a batch of 4 \(inputs of 20x20 and 1600 queries of .*0.png or 15x20 and 1200 queries of ' \
            r'.*1.png\): set batch_size: 1, or inp_size'
    with pytest.raises(UserError, match=words) as error:
        check_batches(square, 4)
    assert '\n' not in str(error.value)
    (tmp_path / 'a' / '0.png').write_bytes(b'broken')  # reported elsewhere
    check_batches(square, 4)
    with pytest.raises(UserError, match='15x20 .*1.png or 20x15'):  # transposed at random
        check_batches(wrapper_over(make_folder(root), scale_min=2, augment=True), 4)


def test_pairs_of_a_batch_need_one_size(tmp_path):
    hr = folder(tmp_path / 'hr', ['a.png', 'b.png'], size=(16, 16))
    lr = folder(tmp_path / 'lr', ['a.png', 'b.png'], size=(8, 8))
    varied = {'name': 'sr-implicit-uniform-varied', 'size_min': 12}
    for args in ({'name': 'sr-implicit-paired'}, varied, {**varied, 'size_max': 14, 'gt_resize': 12},
                 {**varied, 'size_max': 14, 'sample_q': 10}):
        check_batches(wrapper_over(make_pairs(lr, hr), **args), 2)
    with pytest.raises(UserError, match='8x8 and 144 queries .* or 8x8 and 196 .*: set batch_size: 1, or sample_q'):
        check_batches(wrapper_over(make_pairs(lr, hr), **varied, size_max=14), 2)
    folder(tmp_path / 'lr', ['b.png'], size=(4, 4))
    check_batches(wrapper_over(make_pairs(lr, hr), 'sr-implicit-paired', inp_size=4, sample_q=9), 2)
    with pytest.raises(UserError, match='4x4 and 64 queries .* or 4x4 and 256 .*: set batch_size: 1, or sample_q'):
        check_batches(wrapper_over(make_pairs(lr, hr), 'sr-implicit-paired', inp_size=4), 2)
    with pytest.raises(UserError, match='set batch_size: 1$'):
        check_batches(wrapper_over(make_pairs(lr, hr), **varied), 2)


@pytest.mark.parametrize('name, args', [
    ('sr-implicit-downsampled', {'scale_min': 2.3}), ('sr-implicit-downsampled', {'inp_size': 9, 'scale_min': 1.5}),
    ('sr-implicit-downsampled', {'scale_min': 2, 'augment': True, 'sample_q': 5}),
    ('sr-implicit-degraded', {'inp_size': 8, 'scale_min': 2}), ('sr-implicit-paired', {}),
    ('sr-implicit-paired', {'inp_size': 5}), ('sr-implicit-paired', {'augment': True}),
    ('sr-implicit-uniform-varied', {'size_min': 7, 'size_max': 21}),
    ('sr-implicit-uniform-varied', {'size_min': 7, 'size_max': 21, 'gt_resize': 10, 'augment': True})])
def test_the_shapes_that_wrappers_announce_are_those_of_their_samples(tmp_path, name, args):
    hr = folder(tmp_path / 'hr', ['a.png', 'b.png', 'c.png'], size=(36, 28))
    lr = folder(tmp_path / 'lr', ['a.png', 'b.png', 'c.png'], size=(18, 14))
    pairs = name in ('sr-implicit-paired', 'sr-implicit-uniform-varied')
    wrapper = wrapper_over(make_pairs(lr, hr) if pairs else make_folder(hr), name, **args)
    for index in range(3):
        found = [wrapper.sample(index, np.random.default_rng(seed)) for seed in range(20)]
        assert {(*item['inp'].shape[1:], len(item['gt'])) for item in found} == wrapper.shapes(index)


def test_headers_alone_are_read_unless_told(tmp_path, monkeypatch):
    root = folder(tmp_path / 'a', [f'{i}.png' for i in range(20)])
    path = tmp_path / 'a' / '7.png'  # the 17th in the order of names
    path.write_bytes(path.read_bytes()[:-40])  # only decoding tells
    wrapper = wrapper_over(make_folder(root))
    assert list(problems(wrapper)) == [None] * 20
    assert [i for i, problem in enumerate(problems(wrapper, read=True)) if problem] == [17]
    monkeypatch.setattr('datasets.image_folder.read_image', None)
    assert list(problems(wrapper, most=3)) == [None] * 3
    monkeypatch.undo()
    with pytest.raises(UserError, match='7.png'):  # a cache has decoded it
        check_headers(wrapper_over(make_folder(root, cache='in_memory')))


def test_pairs_of_other_sizes_and_wrappers_of_others(tmp_path):
    hr = folder(tmp_path / 'hr', ['a.png', 'b.png'], size=(16, 16))
    lr = folder(tmp_path / 'lr', ['ax2.png', 'bx2.png'], size=(8, 8))
    assert check_headers(wrapper_over(make_pairs(lr, hr), 'sr-implicit-paired')) == []
    folder(tmp_path / 'lr', ['bx2.png'], size=(8, 5))
    with pytest.raises(UserError, match='bx2.png is 5x8 and .*b.png is 16x16'):
        check_headers(wrapper_over(make_pairs(lr, hr), 'sr-implicit-paired'))
    assert check_headers(wrapper_over(make_pairs(lr, hr), 'sr-implicit-uniform-varied', size_min=9)) == []

    class Foreign:
        def __init__(self, dataset):
            self.dataset = dataset

        def __len__(self):
            return 2
    assert check_headers(Foreign(make_pairs(lr, hr))) == []
    (tmp_path / 'hr' / 'b.png').write_bytes(b'')
    with pytest.raises(UserError, match='b.png'):
        check_headers(Foreign(make_pairs(lr, hr)))


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A test config over four good pairs."""
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / 'hr', [f'{i}.png' for i in range(4)], size=(16, 18))
    folder(tmp_path / 'lr', [f'{i}x2.png' for i in range(4)], size=(8, 9))
    dataset = {'name': 'paired-image-folders', 'args': {'root_path_1': 'lr', 'root_path_2': 'hr', 'cache': 'bin'}}
    spec = {'dataset': dataset, 'wrapper': {'name': 'sr-implicit-paired'}, 'batch_size': 1}
    (tmp_path / 'test.yaml').write_text(yaml.safe_dump({'test_dataset': spec}))
    return tmp_path / 'test.yaml'


def run(capsys, config, *args):
    """(lines printed, error or None) of scripts/check_data.py."""
    try:
        check_data.main([str(config), *args])
        error = None
    except UserError as raised:
        error = str(raised)
    return capsys.readouterr().out.splitlines(), error


def test_check_data_reports_everything_at_once(config, tmp_path, capsys):
    lines, error = run(capsys, config)
    assert error is None and lines == ['test_dataset: 4 images of lr', 'test_dataset: 4 images of hr',
                                       'everything can be used']
    assert not list(tmp_path.glob('_bin*'))  # no cache is made
    (tmp_path / 'lr' / '0x2.png').write_bytes((tmp_path / 'lr' / '0x2.png').read_bytes()[:90])
    folder(tmp_path / 'hr', ['2.png'], size=(16, 13))
    (tmp_path / 'hr' / '3.png').write_text('not an image')
    lines, error = run(capsys, config)
    assert error.startswith('3 problems found') and len(lines) == 5
    for line, words in zip(lines[2:], ('0x2.png cannot be read', '2x2.png is 9x8 and hr/2.png is 13x16',
                                       '3.png cannot be read (not an image')):
        assert words in line and line.startswith('  test_dataset: ')


def test_check_data_reports_folders(config, tmp_path, capsys):
    os.remove(tmp_path / 'lr' / '3x2.png')
    assert 'lr holds 3 images and hr 4' in run(capsys, config)[0][-1]
    assert run(capsys, config, '--set', 'test_dataset.dataset.args.first_k=3')[1] is None
    for name in ('lr', 'hr'):
        os.rename(tmp_path / name, tmp_path / f'{name}_moved')
    lines, error = run(capsys, config)
    assert len(lines) == 2 and all(f"'{name}' does not exist" in line for name, line in zip(('lr', 'hr'), lines))
    (tmp_path / 'lr').mkdir()
    assert "'lr' holds no images" in run(capsys, config)[0][0]


def test_check_data_as_a_program(config, tmp_path):
    (tmp_path / 'hr' / '3.png').write_text('not an image')
    result = program('scripts/check_data.py', config, cwd=tmp_path)
    assert result.returncode == 2 and 'hr/3.png cannot be read' in result.stdout
    assert result.stderr.splitlines()[-1].startswith('error: 1 problem found') and 'Traceback' not in result.stderr


READ_ALL = """
import sys
from datasets.images import BadImage, read_image
from tests.image_files import make_folder
for cache in ('none', 'in_memory', 'bin'):
    images, refused = make_folder(sys.argv[1], cache=cache), 0
    for i in range(len(images)):
        try:
            images[i]
        except BadImage as error:
            assert str(error).count(chr(10)) == 0
            refused += 1
    print(cache, refused)
"""


def test_hostile_16_bit_pngs_are_reported_and_kill_nothing(tmp_path):
    (tmp_path / 'hr').mkdir()
    for name, data in hostile_pngs().items():
        (tmp_path / 'hr' / f'{name}.png').write_bytes(data)
    spec = {'dataset': {'name': 'image-folder', 'args': {'root_path': 'hr'}},
            'wrapper': {'name': 'sr-implicit-downsampled', 'args': {'inp_size': 1}}, 'batch_size': 1}
    (tmp_path / 'test.yaml').write_text(yaml.safe_dump({'test_dataset': spec}))
    check = program('scripts/check_data.py', 'test.yaml', cwd=tmp_path)
    assert check.returncode == 2 and check.stderr.splitlines()[-1].startswith('error: 13 problems found'), check.stderr
    assert check.stdout.count('cannot be read') == 13 and 'Traceback' not in check.stderr
    read = program('-c', READ_ALL, tmp_path / 'hr')
    assert read.stdout.split() == ['none', '13', 'in_memory', '13', 'bin', '13'], read.stderr


def test_resize(tmp_path, capsys):
    root = folder(tmp_path / 'a', ['0.png', '1.jpg'], size=(40, 60))
    save(tmp_path / 'a' / '2.png', noise(40, 40))
    resize.main([root, str(tmp_path / 'out'), '--sizes', '20', '10', '--workers', '1'])
    assert sorted(os.listdir(tmp_path / 'out')) == ['10', '20']
    assert sorted(os.listdir(tmp_path / 'out' / '10')) == ['0.png', '1.png', '2.png']
    with Image.open(tmp_path / 'a' / '0.png') as image:
        want = np.asarray(image.resize((15, 10), Image.BICUBIC))
    assert np.array_equal(make_folder(str(tmp_path / 'out' / '10')).image(0), want)
    # What is there is kept; a changed source and a missing size are made again.
    (tmp_path / 'out' / '20' / '0.png').write_bytes(b'kept')
    os.remove(tmp_path / 'out' / '10' / '2.png')
    save(tmp_path / 'a' / '1.jpg', noise(40, 44, 3))
    os.utime(tmp_path / 'a' / '1.jpg', (2e9, 2e9))
    capsys.readouterr()
    resize.main([root, str(tmp_path / 'out'), '--sizes', '20', '10', '--workers', '1'])
    assert '2 images resized' in capsys.readouterr().out
    assert (tmp_path / 'out' / '20' / '0.png').read_bytes() == b'kept'
    assert make_folder(str(tmp_path / 'out' / '20')).size(1) == (20, 22)


def test_resize_names_what_it_cannot_use_and_does_the_rest(tmp_path, capsys):
    root = folder(tmp_path / 'a', ['0.png', '1.png', '2.png'], size=(20, 20))
    (tmp_path / 'a' / '0.png').write_bytes(b'broken')
    folder(tmp_path / 'a', ['1.png'], size=(20, 8))
    with pytest.raises(UserError, match='2 of 3 images'):
        resize.main([root, str(tmp_path / 'out'), '--sizes', '10', '--workers', '1'])
    printed = capsys.readouterr().err
    assert '0.png cannot be read' in printed and '1.png: found 8x20 pixels, expected at least 10' in printed
    assert os.listdir(tmp_path / 'out' / '10') == ['2.png']
    folder(tmp_path / 'a', ['2.jpg'], size=(20, 20))
    with pytest.raises(UserError, match='2.jpg and 2.png'):
        resize.main([root, str(tmp_path / 'out')])
