"""demo.py on several files: names, folders, which are done already, which weights each gets."""
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import demo
from tests.common import ROOT
from tests.rendering.common import ENVIRONMENT, PHOTO, pixels, reference
from tests.rendering.test_api import stand_in_weights
from utils import UserError


@pytest.fixture
def album(tmp_path):
    folder = tmp_path / 'album'
    (folder / 'sub').mkdir(parents=True)
    (folder / '.cache').mkdir()
    for i, name in enumerate(['a.png', 'b.jpg', 'sub/c.bmp', '.hidden.png', '.cache/d.png']):
        Image.fromarray(PHOTO[i:]).save(folder / name)
    (folder / 'notes.txt').write_text('not an image')
    return folder


def run(checkpoints, *options):
    demo.main(['--model', checkpoints['liif'], '--gpu', 'cpu', '--precision', 'float32', '--scale', '2',
               *map(str, options)])


def tree(folder):
    return sorted(os.path.relpath(os.path.join(where, name), folder) for where, _, names in os.walk(folder)
                  for name in names)


def test_a_folder_is_mirrored_and_done_once(tmp_path, album, checkpoints, capsys):
    out = tmp_path / 'out'
    run(checkpoints, '--input', album, '--output', out)
    assert tree(out) == ['a.png', 'b.jpg', 'sub/c.png']
    assert Image.open(out / 'b.jpg').size == (126, 80)
    stamps = {name: os.stat(out / name).st_mtime_ns for name in tree(out)}
    assert '3 written, 0 already there, 0 failed' in capsys.readouterr().out
    run(checkpoints, '--input', album, '--output', out)
    assert '0 written, 3 already there' in capsys.readouterr().out
    assert stamps == {name: os.stat(out / name).st_mtime_ns for name in tree(out)}
    os.utime(out / 'b.jpg', (1, 1))  # older than its source
    Image.fromarray(PHOTO).save(out / 'a.png')  # of another size
    run(checkpoints, '--input', album, '--output', out)
    assert '2 written, 1 already there' in capsys.readouterr().out
    run(checkpoints, '--input', album, '--output', out, '--overwrite')
    assert '3 written' in capsys.readouterr().out


def test_names_that_are_not_utf8_or_long_do_not_stop_a_batch(tmp_path, checkpoints):
    folder, names = tmp_path / 'in', [b'caf\xe9.png', b'x' * 251 + b'.png', b'z.png']
    folder.mkdir()
    try:
        for name in names:
            with open(os.path.join(os.fsencode(folder), name), 'wb') as f:
                Image.fromarray(PHOTO[:9, :9]).save(f, 'PNG')
    except OSError:
        pytest.skip('this file system does not take such names')
    done = subprocess.run([sys.executable, 'demo.py', '--input', folder, '--model', checkpoints['liif'], '--scale', '2',
                           '--gpu', 'cpu', '--output', tmp_path / 'out'], cwd=ROOT, capture_output=True, text=True,
                          env={**ENVIRONMENT, 'PYTHONIOENCODING': 'utf-8:strict'})
    assert done.returncode == 0 and '3 written, 0 already there, 0 failed' in done.stdout, done.stderr
    assert sorted(os.listdir(os.fsencode(tmp_path / 'out'))) == sorted(names)


def test_the_output_folder_may_lie_in_the_input(album, checkpoints):
    for _ in range(2):
        run(checkpoints, '--input', album, '--output', album / 'large')
    assert tree(album / 'large') == ['a.png', 'b.jpg', 'sub/c.png']


def test_a_bad_file_does_not_stop_the_others(tmp_path, album, checkpoints, capsys):
    (album / 'aa.png').write_bytes((album / 'a.png').read_bytes()[:900])
    (album / 'ab.jpg').write_text('no image')
    with pytest.raises(SystemExit) as stop:
        run(checkpoints, '--input', album, '--output', tmp_path / 'out')
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert '3 written, 0 already there, 2 failed' in printed.out
    assert printed.err.count('aa.png') == printed.err.count('ab.jpg') == 2  # at once, and at the end
    assert tree(tmp_path / 'out') == ['a.png', 'b.jpg', 'sub/c.png']


def test_a_region_outside_of_one_image_does_not_cost_the_others(tmp_path, checkpoints, capsys):
    for name, size in (('a', (10, 10)), ('b', (30, 30))):
        Image.new('RGB', size).save(tmp_path / f'{name}.png')
    os.makedirs(tmp_path / 'out')
    Image.new('RGB', (40, 40)).save(tmp_path / 'out' / 'a.png')  # of an earlier run without a region
    with pytest.raises(SystemExit):
        demo.main([str(tmp_path / 'a.png'), str(tmp_path / 'b.png'), '--output', str(tmp_path / 'out'), '--gpu', 'cpu',
                   '--model', checkpoints['liif'], '--region', '12,12,4,4', '--precision', 'float32'])
    assert '1 written, 0 already there, 1 failed' in capsys.readouterr().out


def test_patterns_and_several_files(tmp_path, album, checkpoints):
    run(checkpoints, '--input', album / '*.png', '--output', tmp_path / 'out')
    assert tree(tmp_path / 'out') == ['a.png']
    run(checkpoints, '--input', album / '**' / '*', '--output', tmp_path / 'deep')
    assert tree(tmp_path / 'deep') == ['a.png', 'b.jpg', 'c.png']
    run(checkpoints, '--input', album / 'a.png', album / 'sub', '--output', tmp_path / 'two')
    assert tree(tmp_path / 'two') == ['a.png', 'c.png']
    run(checkpoints, '--input', album / 'a.png', '--output', f'{tmp_path}/two/new/')
    assert tree(tmp_path / 'two' / 'new') == ['a.png']
    odd = album / 'x[1].png'  # a name, though it looks like a pattern
    Image.fromarray(PHOTO).save(odd)
    run(checkpoints, '--input', odd, '--output', tmp_path / 'odd.png')
    assert (tmp_path / 'odd.png').exists()


def test_a_file_named_twice_is_enlarged_once(tmp_path, album, checkpoints, capsys, monkeypatch):
    monkeypatch.chdir(album)
    run(checkpoints, '.', 'a.png', './a.png', f'{album}/*.png', 'sub', '--output', tmp_path / 'out')
    assert '4 written, 0 already there, 0 failed' in capsys.readouterr().out
    assert tree(tmp_path / 'out') == ['a.png', 'b.jpg', 'c.png', 'sub/c.png']  # also at the top: sub was named
    run(checkpoints, 'a.png', './a.png', '--output', tmp_path / 'one.png')
    run(checkpoints, 'a.png', 'a.png')
    assert (tmp_path / 'one.png').exists() and [name for name in tree(album) if '_x' in name] == ['a_x2.png']


def test_without_an_output_a_new_name_is_found(tmp_path, checkpoints, capsys):
    for name in ('a.jpg', 'b.png'):
        Image.fromarray(PHOTO).save(tmp_path / name)
    for options, names in [([], ['a_x4.png', 'b_x4.png']), ([], ['a_x4-2.png', 'b_x4-2.png']),
                           (['--scale', '1.5'], ['a_x1.5.png', 'b_x1.5.png']),
                           (['--resolution', '50x9'], ['a_50x9.png', 'b_50x9.png'])]:
        before = {name: (tmp_path / name).read_bytes() for name in tree(tmp_path)}
        demo.main([str(tmp_path / 'a.jpg'), '--input', str(tmp_path / 'b.png'), '--model', checkpoints['liif'], '--gpu',
                   'cpu', '--precision', 'float32', *options])
        assert {*tree(tmp_path)} - {*before} == {*names}
        assert all((tmp_path / name).read_bytes() == data for name, data in before.items())
    assert capsys.readouterr().out.count('50x9 changes the aspect by 262%; --max-side 50 keeps it') == 2
    with pytest.raises(UserError, match='expected an output folder'):
        demo.main([str(tmp_path)])


def test_inputs_that_make_no_sense(tmp_path, album, checkpoints):
    (tmp_path / 'empty').mkdir()
    Image.fromarray(PHOTO).save(album / 'b.png')
    for inputs, output, message in [
            ([tmp_path / 'empty'], 'out', 'no image or video'), ([album / '*.xyz'], 'out', 'no image or video'),
            ([album / 'a.png', album / 'b.png'], album / 'b.jpg', 'found a file, expected a folder'),
            ([album], 'large.png', 'found the name of an image or video, expected a folder'),
            ([album / 'a.png', album / 'sub' / '..' / 'a.png'], album / '..' / 'album', 'would be overwritten'),
            ([album / 'a.png'], album / 'sub' / '..' / 'a.png', 'would be overwritten'),
            ([album, album / 'sub' / 'c.bmp', tmp_path / 'c.png'], 'out', None)]:
        if message:
            with pytest.raises(UserError, match=message):
                run(checkpoints, '--input', *inputs, '--output', tmp_path / output)
    Image.fromarray(PHOTO).save(album / 'a.bmp')
    with pytest.raises(UserError, match='a.bmp and .*a.png would both be written to .*a.png'):
        run(checkpoints, '--input', album, '--output', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_each_file_of_a_folder_gets_the_weights_for_its_kind(tmp_path, monkeypatch, capsys):
    weights, folder = stand_in_weights(tmp_path, monkeypatch), tmp_path / 'in'
    folder.mkdir()
    for name, kind in (('a.png', 'JPEG'), ('b.png', 'PNG'), ('c.png', 'JPEG')):  # the content tells
        Image.fromarray(PHOTO).save(folder / name, kind)
    arguments = [str(folder), '--scale', '2', '--gpu', 'cpu', '--precision', 'float32', '--output']
    demo.main([*arguments, str(tmp_path / 'out')])
    said = capsys.readouterr().err
    assert 'the weights photo (' in said and 'for JPEG images' in said and 'the weights clean (' in said
    assert said.count('\n') == 2
    photo = 'edsr-baseline-liif-photo'
    for name, model in (('a.png', photo), ('b.png', 'mine'), ('c.png', photo)):
        source = np.array(Image.open(folder / name))
        wanted = reference(os.path.join(weights, model, 'model.pth'), source, (82, 126))
        assert np.array_equal(pixels(tmp_path / 'out' / name), wanted)
    demo.main([*arguments, str(tmp_path / 'named'), '--model', 'photo'])
    assert not capsys.readouterr().err
    wanted = reference(os.path.join(weights, photo, 'model.pth'), PHOTO, (82, 126))
    assert np.array_equal(pixels(tmp_path / 'named' / 'b.png'), wanted)
