"""scripts/prepare_data.py lays out every known archive and folder, and what it downloads."""
import hashlib
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from scripts import prepare_data
from tests.common import ROOT
from tests.programs import program
from tests.scripts.common import png, tree, write_folder, write_tar, write_zip
from utils import UserError


DATA = os.path.join(os.environ.get('LIIF_DATA', os.path.join(ROOT, 'load')), 'benchmark')


def prepare(tmp_path, *args):
    prepare_data.main([*args, '--root', str(tmp_path / 'load'), '--workers', '1'])
    return tree(tmp_path / 'load')


@pytest.mark.parametrize('container', ['zip', 'tar', 'folder', 'inner folder', 'folder of archives'])
def test_benchmark_layout_of_edsr(tmp_path, container, capsys):
    files = {'benchmark/Set5/HR/baby.png': png(24, 25), 'benchmark/Set5/bin/baby.pt': b'pickle',
             **{f'benchmark/Set5/LR_bicubic/X{s}/babyx{s}.png': png(24 // s, 25 // s, s) for s in (2, 3)},
             'benchmark/B100/HR/3096.png': png(12, 16)}
    source = {'zip': lambda: write_zip(tmp_path / 'x.zip', files), 'tar': lambda: write_tar(tmp_path / 'x.tar', files),
              'folder': lambda: write_folder(tmp_path / 'x', files),
              'inner folder': lambda: write_folder(tmp_path / 'x', files) + '/benchmark/Set5',
              'folder of archives': lambda: os.path.dirname(write_tar(tmp_path / 'x.tgz', files))}[container]()
    placed = prepare(tmp_path, 'benchmark', '--from', source)
    expected = ['benchmark/Set5/HR/baby.png'] + [f'benchmark/Set5/LR_bicubic/X{s}/babyx{s}.png' for s in (2, 3, 4)]
    if container != 'inner folder':
        expected += ['benchmark/B100/HR/3096.png'] + [f'benchmark/B100/LR_bicubic/X{s}/3096x{s}.png' for s in (2, 3, 4)]
    assert placed == sorted(expected)
    for s in (2, 3):  # given, not made
        name = f'benchmark/Set5/LR_bicubic/X{s}/babyx{s}.png'
        assert (tmp_path / 'load' / name).read_bytes() == files[name]
    out = capsys.readouterr().out
    assert 'Set5/HR: 1 of 5 images' in out and 'Urban100/HR: 0 of 100' in out
    before = {name: os.stat(tmp_path / 'load' / name).st_mtime_ns for name in placed}
    prepare(tmp_path, 'benchmark', '--from', source)
    assert {name: os.stat(tmp_path / 'load' / name).st_mtime_ns for name in placed} == before


def test_benchmark_other_layouts(tmp_path, capsys):
    modcrop = {'Set5/GTmod12/bird.png': png(24, 24), 'Set5/LRbicx2/bird.png': png(12, 12),
               'Set5/LRbicx3/bird.png': png(8, 8), 'Set5/LRbicx4/bird.png': png(6, 6)}
    srf = {**{f'BSD100/image_SRF_{n}/img_001_SRF_{n}_HR.png': png(25 // n * n, 26 // n * n, n) for n in (2, 3, 4)},
           **{f'BSD100/image_SRF_{n}/img_001_SRF_{n}_LR.png': png(25 // n, 26 // n, n) for n in (2, 3, 4)},
           'BSD100/image_SRF_2/img_001_SRF_2_bicubic.png': png(24, 26)}
    plain = {'Urban100_HR/img_001.png': png(25, 26)}
    both = {**{name.replace('Set5', 'Set14'): data for name, data in modcrop.items()},
            'Set14/original/bird.bmp': png(26, 27)}
    placed = prepare(tmp_path, 'benchmark', '--from', write_zip(tmp_path / 'Set5.zip', modcrop),
                     write_folder(tmp_path / 'SelfExSR', srf), write_tar(tmp_path / 'Urban100_HR.tar.gz', plain),
                     write_folder(tmp_path / 'more', both))
    root = tmp_path / 'load' / 'benchmark'
    assert len(placed) == 16
    for target, data in {'Set5/HR/bird.png': png(24, 24), 'Set5/LR_bicubic/X3/birdx3.png': png(8, 8),
                         'B100/HR/img_001.png': png(24, 26, 2), 'B100/LR_bicubic/X2/img_001x2.png': png(12, 13, 2),
                         'Urban100/HR/img_001.png': png(25, 26), 'Set14/HR/bird.bmp': png(26, 27)}.items():
        assert (root / target).read_bytes() == data
    assert Image.open(root / 'B100/LR_bicubic/X3/img_001x3.png').size == (8, 8)
    assert Image.open(root / 'Set14/LR_bicubic/X2/birdx2.png').size == (13, 13)
    out = capsys.readouterr().out
    assert 'Set5: these images were cropped' in out and 'B100: these' in out and 'Set14: these' not in out


def test_what_is_there_is_not_replaced(tmp_path):
    write_folder(tmp_path / 'load', {'benchmark/Set5/HR/baby.png': png(9, 9)})
    with pytest.raises(UserError, match='baby.png is there and is not .*remove it'):
        prepare(tmp_path, 'benchmark', '--from', write_zip(tmp_path / 'x.zip', {'Set5/HR/baby.png': png(24, 24)}))


def test_nothing_known_in_the_source(tmp_path):
    with pytest.raises(UserError, match='--from: found no file of benchmark'):
        prepare(tmp_path, 'benchmark', '--from', write_zip(tmp_path / 'x.zip', {'cats/1.png': png(9, 9)}))


DIV2K_FILES = {
    'DIV2K_valid_HR.zip': {'DIV2K_valid_HR/0801.png': png(26, 28)},
    'DIV2K_train_HR.zip': {'DIV2K_train_HR/0001.png': png(12, 12, 1), 'DIV2K_train_HR/0800.png': png(12, 13, 2)}}
for s in (2, 3, 4):
    DIV2K_FILES[f'DIV2K_valid_LR_bicubic_X{s}.zip'] = {
        f'DIV2K_valid_LR_bicubic/X{s}/0801x{s}.png': png(26 // s, 28 // s, s)}
DIV2K_TREE = ['div2k/' + name for names in DIV2K_FILES.values() for name in names]


def test_div2k_from_archives_and_folders(tmp_path):
    zips = [write_zip(tmp_path / name, files) for name, files in DIV2K_FILES.items() if 'LR' not in name]
    placed = prepare(tmp_path, 'div2k', '--from', *zips)
    assert placed == sorted(DIV2K_TREE)  # the low-resolution images were made
    assert (tmp_path / 'load/div2k/DIV2K_valid_HR/0801.png').read_bytes() == png(26, 28)

    # EDSR's tar keeps all 900 images in the train folders; --train-lr lays out those too.
    edsr = {'DIV2K/DIV2K_train_HR/0001.png': png(12, 12, 1), 'DIV2K/DIV2K_train_HR/0801.png': png(26, 28),
            'DIV2K/DIV2K_train_LR_bicubic/X2/0801x2.png': png(13, 14, 2), 'DIV2K/bin/DIV2K_train_HR/0001.pt': b''}
    placed = prepare(tmp_path / 'b', 'div2k', '--train-lr', '--from', write_tar(tmp_path / 'DIV2K.tar', edsr))
    assert placed == sorted(f'div2k/DIV2K_{split}_{name}' for split, i in (('train', '0001'), ('valid', '0801'))
                            for name in (f'HR/{i}.png', *(f'LR_bicubic/X{s}/{i}x{s}.png' for s in (2, 3, 4))))
    folder = write_folder(tmp_path / 'c' / 'DIV2K_train_HR', {'0007.png': png(9, 9)})
    assert 'div2k/DIV2K_train_HR/0007.png' in prepare(tmp_path / 'c', 'div2k', '--from', folder)


def test_div2k_download(server, tmp_path, monkeypatch):
    table = {}
    for name, files in DIV2K_FILES.items():
        server.files['mirror/' + name] = open(write_zip(tmp_path / name, files), 'rb').read()
        table[name] = (hashlib.md5(server.files['mirror/' + name]).hexdigest(), prepare_data.DIV2K[name][1])
    monkeypatch.setattr(prepare_data, 'DIV2K', table)
    monkeypatch.setattr(prepare_data, 'DIV2K_URLS', (server.url + 'official/{}', server.url + 'mirror/{}'))
    monkeypatch.setattr(prepare_data, 'div2k_count', lambda target: 2 if 'train' in target else 1)
    assert prepare(tmp_path, 'div2k') == sorted(DIV2K_TREE)  # and no archive is left
    asked = len(server.log)
    os.unlink(tmp_path / 'load/div2k/DIV2K_valid_LR_bicubic/X3/0801x3.png')
    assert prepare(tmp_path, 'div2k') == sorted(DIV2K_TREE)
    assert {name for name, _ in server.log[asked:]} == {f'{mirror}/DIV2K_valid_LR_bicubic_X3.zip'
                                                        for mirror in ('official', 'mirror')}


def test_benchmark_download_falls_back_to_single_sets(server, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_data, 'BENCHMARK_URL', server.url + 'benchmark.tar')
    monkeypatch.setattr(prepare_data, 'SET_URL', server.url + '{0}_HR.tar.gz')
    for name in ('Set5', 'Set14', 'BSD100', 'Urban100'):
        path = write_tar(tmp_path / f'{name}_HR.tar.gz', {f'{name}_HR/a.png': png(12, 12)})
        server.files[f'{name}_HR.tar.gz'] = open(path, 'rb').read()
    placed = prepare(tmp_path, 'benchmark')
    assert placed == sorted(f'benchmark/{name}/{file}' for name in prepare_data.COUNTS
                            for file in ('HR/a.png', *(f'LR_bicubic/X{s}/ax{s}.png' for s in (2, 3, 4))))


def test_real_benchmark_folder(tmp_path):
    source = os.path.join(DATA, 'Set5')
    if not os.path.isdir(source):
        pytest.skip(f'no Set5 in {DATA} (set LIIF_DATA)')
    files = {name: open(os.path.join(source, name), 'rb').read() for name in tree(source)}
    hr_only = {'Set5/' + name: data for name, data in files.items() if name.startswith('HR/')}
    given = prepare(tmp_path / 'a', 'benchmark', '--from', source)
    made = prepare(tmp_path / 'b', 'benchmark', '--from', write_zip(tmp_path / 'hr.zip', hr_only))
    assert given == made and len(given) == 20
    for name in given:
        a, b = (np.asarray(Image.open(tmp_path / side / 'load' / name)) for side in 'ab')
        assert np.array_equal(a, b), name
        assert (tmp_path / 'a' / 'load' / name).read_bytes() == files[name[len('benchmark/Set5/'):]]


def test_celeba_hq(tmp_path):
    faces = {f'data1024x1024/{i:05d}.jpg': png(300, 300, i) for i in range(7)}
    source = write_zip(tmp_path / 'data1024x1024.zip', faces)
    placed = prepare(tmp_path, 'celebAHQ', '--from', source)
    root = tmp_path / 'load' / 'celebAHQ'
    assert placed == sorted([f'celebAHQ/{size}/{i:05d}.png' for size in (256, 128, 64, 32) for i in range(7)]
                            + ['celebAHQ/split.json'])
    original = Image.open(io.BytesIO(faces['data1024x1024/00003.jpg']))
    for size in (256, 32):
        assert np.array_equal(np.asarray(Image.open(root / f'{size}/00003.png')),
                              np.asarray(original.resize((size, size), Image.BICUBIC)))
    split = json.loads((root / 'split.json').read_text())
    assert sorted(split['train'] + split['val']) == [f'{i:05d}.png' for i in range(7)] and len(split['val']) == 1

    # Again, with one image lost and a split given; then a split that belongs to other images.
    (root / '64' / '00002.png').unlink()
    given = tmp_path / 'given.json'
    given.write_text(json.dumps({'train': ['00000.jpg', '00002.jpg'], 'val': ['00001.png']}))
    assert prepare(tmp_path, 'celebAHQ', '--from', source, '--split', str(given)) == placed
    assert json.loads((root / 'split.json').read_text()) == {'train': ['00000.png', '00002.png'], 'val': ['00001.png']}
    for text, message in ((json.dumps({'train': ['99999.png']}), "such as '99999'"), ('[1]', 'cannot be used'),
                          ('{', 'cannot be used')):
        given.write_text(text)
        with pytest.raises(UserError, match=message):
            prepare(tmp_path, 'celebAHQ', '--from', source, '--split', str(given))


def test_celeba_hq_bad_faces(tmp_path, capsys):
    files = {'1.png': png(300, 300), '2.png': png(300, 200), '3.png': png(300, 300)[:5000],
             'split.json': b'{"val": ["1.png"]}'}
    with pytest.raises(UserError, match='2 images could not be used'):
        prepare(tmp_path, 'celebAHQ', '--from', write_folder(tmp_path / 'faces', files))
    assert os.listdir(tmp_path / 'load/celebAHQ/32') == ['1.png']
    assert json.loads((tmp_path / 'load/celebAHQ/split.json').read_text()) == {'val': ['1.png']}
    err = capsys.readouterr().err
    assert '2.png: found 200x300 pixels, expected a square' in err and '3.png cannot be read' in err
    with pytest.raises(UserError, match='would get one name'):
        source = write_folder(tmp_path / 'x', {'a/1.png': png(256, 256), 'b/1.png': b''})
        prepare(tmp_path / 'b', 'celebAHQ', '--from', source)
    with pytest.raises(UserError, match='no images are in there'):
        prepare(tmp_path / 'c', 'celebAHQ', '--from', write_folder(tmp_path / 'y', {'notes.txt': b''}))
    with pytest.raises(UserError, match='pass their folder or archive with --from'):
        prepare(tmp_path, 'celebAHQ')


def test_sample(tmp_path):
    pytest.importorskip('skimage')
    placed = prepare(tmp_path, 'sample')
    assert 'sample/valid/chelsea.png' in placed and 'sample/train/astronaut.png' in placed


def test_program(tmp_path):
    run = program('scripts/prepare_data.py', 'div2k', '--root', tmp_path, '--from', tmp_path / 'absent.zip')
    assert run.returncode == 2 and 'Traceback' not in run.stderr
    assert run.stderr.strip().splitlines()[-1] == f'error: there is no file or folder {tmp_path}/absent.zip'


def test_photos(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare_data, 'TILE', 4)
    grey = io.BytesIO()
    Image.open(io.BytesIO(png(5, 4, 3))).convert('L').save(grey, format='png')
    large = png(7, 9, 1)
    archive = write_zip(tmp_path / 'a.zip', {
        'repository-main/images/train/100007.jpg': png(5, 4), 'repository-main/images/train/1001682.png': large,
        'repository-main/images/train/1028637.png': grey.getvalue(), 'b100/3096.jpg': png(6, 5)})
    folder = write_folder(tmp_path / 'b', {'validation/70497.png': png(7, 6),
                                           'validation/100a02c269c5948392f283b2aa3bb4da.png': png(8, 6)})
    for sources in ([archive], [folder], [archive, folder]):
        placed = prepare(tmp_path, 'photos', '--from', *sources)
    tiles = [f'1001682_{i}_{j}.png' for i in (0, 1) for j in (0, 1)]  # 7 rows are nearer to two tiles of 4 than to one
    assert placed == sorted([f'photos/train/{name}' for name in ['100007.png', '1028637.png', *tiles]] + [
        'photos/valid/70497.png', 'photos/valid/clic2025val_100a02c269c5948392f283b2aa3bb4da.png'])
    whole = np.asarray(Image.open(io.BytesIO(large)))
    train = tmp_path / 'load' / 'photos' / 'train'
    pieces = [np.asarray(Image.open(train / name)) for name in tiles]
    assert [piece.shape[:2] for piece in pieces] == [(3, 4), (3, 5), (4, 4), (4, 5)]
    assert np.array_equal(np.vstack([np.hstack(pieces[:2]), np.hstack(pieces[2:])]), whole)
    assert Image.open(train / '1028637.png').mode == 'RGB'
    assert 'train: 6 of 1008 images' in capsys.readouterr().out

    # An interrupted run cuts the missing tiles; a damaged image is named at the end.
    (train / tiles[2]).unlink()
    before = (train / tiles[1]).stat().st_mtime_ns
    damaged = write_folder(tmp_path / 'c', {'100039.jpg': png(9, 9)[:50]})
    with pytest.raises(UserError, match='1 image could not be used'):
        prepare(tmp_path, 'photos', '--from', archive, damaged)
    assert '100039.jpg cannot be read' in capsys.readouterr().err
    assert sorted(os.listdir(train)) == sorted(['100007.png', '1028637.png', *tiles])
    assert (train / tiles[1]).stat().st_mtime_ns == before
    with pytest.raises(UserError, match='docs/budget.md'):
        prepare(tmp_path / 'x', 'photos')
