"""demo.py on mistakes: it finds those of arguments before torch is imported, those of inputs and outputs before a
checkpoint is read."""
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

import demo
from engine.rendering.renderer import Renderer
from models.lattice import FINEST
from tests.common import ROOT
from tests.programs import program
from tests.rendering.common import ENVIRONMENT, PHOTO
from utils import UserError


@pytest.mark.parametrize('options, message', [
    (['--sclae', '2'], '--sclae is not an option, did you mean --scale?'), (['--nonsense=1'], '--nonsense is not'),
    (['--overwr'], '--overwr is not an option, did you mean --overwrite?'),
    (['--res=9,9'], '--res is not an option, did you mean --resolution?'),
    (['--scale', '2', '--width', '5'], '--width: not allowed with argument --scale'),
    (['--resolution', '0,5'], "--resolution: found '0,5', expected H,W"), (['--resolution', '5'], 'expected H,W'),
    (['--resolution', '5.5,5'], 'expected H,W'), (['--scale', '0'], "--scale: found '0'"),
    (['--scale', 'nan'], "found 'nan'"), (['--scale', '1,2,3'], 'expected a factor'), (['--scale=-2'], "found '-2'"),
    (['--max-side', '1.5'], 'expected whole pixels'), (['--output', ''], "--output: found '', expected the name of a"),
    (['--width', 'wide'], "--width: found 'wide'"), (['--width', '9' * 310], '--width: found'),
    (['--region', '0,0,0,5'], '--region: found'),
    (['--region', '0,nan,4,4'], 'error: --region: found'), (['--quality', '0'], '--quality: found 0'),
    (['--tile', '0'], '--tile: found 0, expected a whole number of at least 1'), (['--tile', '1.5'], 'found 1.5'),
    (['--lattice', '0'], '--lattice: found 0, expected a whole number from 1 to 32'),
    (['--lattice', str(FINEST + 1)], '--lattice: found'),
    (['--lattice', '3', '--decode', 'exact'], '--lattice: found --decode exact'),
    (['--overwrite'], '--overwrite: found no --output'),
    (['--decode', 'fast'], "--decode: invalid choice: 'fast'"), (['--gpu', 'first'], "--gpu: found 'first'"),
    (['--gpu', '0,1'], "--gpu: found '0,1'"), (['--model', ''], '--model: found an empty name'),
    (['--cell-clip', '0.5'], '--cell-clip: found 0.5'), (['--cell-clip', 'x'], '--cell-clip: found x'),
    (['--precision', 'fp8'], "invalid choice: 'fp8' (choose from 'auto', 'float32', 'tf32', 'bf16', 'fp16')")])
def test_wrong_arguments(options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        demo.parse_arguments(['x.png', *options])
    said = capsys.readouterr()
    assert stop.value.code == 2 and message in said.err and said.err.count('\n') == 1 and not said.out
    assert 'minus' not in said.err


@pytest.mark.parametrize('arguments, code', [(['x.png', '--lattice', '0'], 2), (['x.png', '--scale', 'x'], 2),
                                             (['x.png', '--gpu', 'x'], 2), ([], 2), (['--help'], 0)])
def test_arguments_are_checked_before_torch_is_imported(arguments, code):
    script = f'import sys, demo\ntry: demo.main({arguments})\nexcept SystemExit as e: ' \
             f'sys.exit(e.code if "torch" not in sys.modules else 99)'
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize('options, decode', [
    ([], None), (['--lattice', '8'], 'lattice'), (['--lattice', str(FINEST), '--decode', 'auto'], 'auto')])
def test_a_density_alone_selects_the_lattice(options, decode):
    assert demo.parse_arguments(['x.png', *options]).decode == decode


@pytest.mark.parametrize('options, message', [
    (['--gpu', '99'], 'GPU 99 does not exist'), (['--precision', 'fp16'], 'fp16'),
    (['--region', '60,0,4,4'], '^region: found 60,0,4,4, expected .*inside the image of 63x41'),
    (['--region=-1,0,4,4'], 'inside the image'),
    (['--quality', '80'], '^--quality: found no --output, expected'),
    (['--quality', '80', '--output', 'x.png'], '^--quality: found x.png, expected'),
    (['--quality', '80', '--output', 'new/'], '^--quality: found new/in.png, expected'),
    (['--scale', '9000'], '567000x369000 pixels, 209.2 gigapixels.*--insist'),
    (['--scale', '1e200'], '6.3e.201x4.1e.201 pixels: choose a smaller size'),
    (['--scale', '1e308', '--insist'], 'infxinf pixels: choose'), (['--height', '9' * 308], 'infxinf pixels: choose'),
    (['--region', '0,0,1e-320,1', '--width', '64'], '64xinf pixels: choose'),
    (['--output', 'out/x.xyz'], "found '.xyz', expected a name that ends in"),
    (['--output', 'in.png/x.png'], 'in.png is not a folder that can be written to'),
    (['--output', 'x.webp', '--resolution', '2,17000'], 'expected at most 16383 per side for WEBP'),
    (['--output', 'x.mp4'], "found '.mp4', expected"), (['--input', 'text.png'], 'text.png'),
    (['--input', 'absent.png'], 'absent.png does not exist')])
def test_mistakes_are_found_before_a_checkpoint_is_read(tmp_path, monkeypatch, capsys, options, message):
    def read(*args, **kwargs):
        raise AssertionError('a checkpoint is read')
    monkeypatch.setattr('engine.rendering.api.load_model', read)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PHOTO).save('in.png')
    (tmp_path / 'text.png').write_text('no image')
    inputs = [] if '--input' in options else ['in.png']
    with pytest.raises(UserError, match=message) as error:
        demo.main([*inputs, '--gpu', 'cpu', *options])
    assert '\n' not in str(error.value) and capsys.readouterr() == ('', '')
    assert sorted(os.listdir(tmp_path)) == ['in.png', 'text.png']


@pytest.mark.parametrize('wrong, message', [
    (['--resolution', '0,5'], "resolution: found '0,5'"), (['--region', '60,0,4,4'], 'inside the image'),
    (['--gpu', '99'], 'GPU 99 does not exist'), (['--resolution', '9,9', '--input', 'text.png'], 'text.png')])
def test_mistakes_as_a_process(tmp_path, wrong, message):
    (tmp_path / 'text.png').write_text('no image')
    Image.fromarray(PHOTO).save(tmp_path / 'in.png')
    done = program('demo.py', '--input', 'in.png', '--output', 'out.png', '--gpu', 'cpu', *wrong, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
    assert message in done.stderr and not done.stdout and sorted(os.listdir(tmp_path)) == ['in.png', 'text.png']


def test_a_terminated_run_leaves_nothing(tmp_path, checkpoints):
    Image.fromarray(PHOTO).save(tmp_path / 'in.png')
    output = tmp_path / 'new' / 'deep' / 'out.png'
    process = subprocess.Popen([sys.executable, 'demo.py', '--input', tmp_path / 'in.png', '--model',
                                checkpoints['liif'], '--resolution', '9000,9000', '--output', output],
                               cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if os.path.isdir(output.parent) and os.listdir(output.parent) or process.poll() is not None:
                break
            time.sleep(0.1)
        assert len(os.listdir(output.parent)) == 1 and not output.exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
    assert os.listdir(tmp_path) == ['in.png']


def test_a_region_is_checked_before_an_estimate_is_made(tmp_path, upscale, monkeypatch, capsys):
    monkeypatch.setattr(demo, 'SLOW', 0)
    with pytest.raises(UserError, match='inside the image of 63x41'):
        upscale(PHOTO, '--precision', 'auto', '--region', '60,0,4,4')
    assert 'this takes' not in capsys.readouterr().out
    upscale(PHOTO, '--precision', 'auto')
    assert 'this takes' in capsys.readouterr().out


@pytest.mark.parametrize('model, message', [
    ('encoder', 'has no decoder'), ('fixed', 'only pixels at x2'), ('cut', 'cut short'), ('text', 'not a checkpoint'),
    ('broken', 'NaN in float32')])
def test_unfit_checkpoints(tmp_path, upscale, model, message):
    with pytest.raises(UserError, match=message):
        upscale(PHOTO, '--scale', '3', model=model)
    assert os.listdir(tmp_path) == ['in.png']


def test_outputs_that_cannot_be_written(tmp_path, upscale):
    (tmp_path / 'file').write_text('')
    for name, message in [('file/x.png', 'file'), ('x.xyz', 'xyz'), ('x.mp4', 'mp4'), ('x.webp', '16383')]:
        with pytest.raises(UserError, match=message):
            upscale(PHOTO, '--resolution', '2,17000', name=name)
    assert sorted(os.listdir(tmp_path)) == ['file', 'in.png']
    with pytest.raises(UserError, match='/dev/full|/proc|cannot be written|Read-only|Permission|No such file'):
        upscale(PHOTO, '--scale', '2', name='/proc/1/none/x.png')


@pytest.mark.parametrize('error', [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_one_line(tmp_path, upscale, monkeypatch, error):
    def refuse(self, image):
        raise error
    monkeypatch.setattr(Renderer, 'open', refuse)
    with pytest.raises(UserError, match='in.png: not enough memory.*tile 128'):
        upscale(PHOTO, '--scale', '2')


def test_every_option_is_documented(capsys):
    with pytest.raises(SystemExit):
        demo.main(['--help'])
    options = set(re.findall(r'--[a-z][a-z-]+', capsys.readouterr().out)) - {'--help'}
    with open(os.path.join(ROOT, 'docs', 'demo.md')) as f:
        documented = set(re.findall(r'--[a-z][a-z-]+', f.read()))
    assert options == documented and len(options) > 15
