"""scripts/setup.sh with stand-ins for Python and pip, and the sample photographs."""
import os
import shutil
import subprocess

import pytest

from datasets.images import image_size
from scripts import sample_photos
from tests.common import ROOT
from utils import UserError


posix = pytest.mark.skipif(shutil.which('bash') is None or os.name != 'posix', reason='needs bash')

# Makes a .venv whose Python notes what pip was asked to install.
PYTHON = '''#!/bin/sh
case "$*" in
  *version_info*) exit {old};;
  *ensurepip*) exit {bare};;
  --version) echo Python 3;;
  *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python;;
  *"-m pip"*) echo "$*" >> pip.log; exit {pip};;
esac
'''


@pytest.fixture
def clone(tmp_path):
    """A clone's scripts and requirement files; calling it runs setup.sh there with a Python that behaves as told."""
    (tmp_path / 'scripts').mkdir()
    shutil.copy(os.path.join(ROOT, 'scripts', 'setup.sh'), tmp_path / 'scripts')
    (tmp_path / 'requirements.txt').write_text('torch\n')
    (tmp_path / 'requirements-dev.txt').write_text('pytest\n')

    def run(*arguments, old=0, bare=0, pip=0):
        python = tmp_path / 'stub python'
        python.write_text(PYTHON.format(old=old, bare=bare, pip=pip))
        python.chmod(0o755)
        return subprocess.run(['bash', 'scripts/setup.sh', *arguments], cwd=tmp_path, text=True, capture_output=True,
                              env={**os.environ, 'PYTHON': str(python)})
    run.path = tmp_path
    return run


def installs(clone):
    log = clone.path / 'pip.log'
    return log.read_text().splitlines() if log.exists() else []


@posix
def test_installs_once(clone):
    assert clone().returncode == 0
    assert len(installs(clone)) == 1 and '-r requirements.txt' in installs(clone)[0]
    assert clone().returncode == 0
    assert len(installs(clone)) == 1
    assert clone('requirements.txt', 'requirements-dev.txt').returncode == 0
    assert len(installs(clone)) == 2 and '-r requirements-dev.txt' in installs(clone)[1]
    (clone.path / 'requirements.txt').write_text('torch\nnumpy\n')
    assert clone().returncode == 0
    assert len(installs(clone)) == 3


@posix
def test_an_environment_without_pip_gets_it_and_stays(clone):
    python = clone.path / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\ncase "$*" in *"import pip"*) [ -e pip ];; *ensurepip*) touch pip;; esac\n')
    python.chmod(0o755)
    (clone.path / '.venv' / 'mine').touch()
    assert clone().returncode == 0
    assert (clone.path / 'pip').exists() and (clone.path / '.venv' / 'mine').exists()


@posix
def test_failed_install_is_tried_again(clone):
    failed = clone(pip=1)
    assert failed.returncode == 2 and failed.stderr.splitlines()[-1].startswith('error: pip could not install')
    shutil.rmtree(clone.path / '.venv')  # the stand-in's copy in there goes on failing
    assert clone().returncode == 0
    assert len(installs(clone)) == 2


@posix
@pytest.mark.parametrize('python, message', [({'old': 1}, 'no Python of version 3.10 or newer'),
                                             ({'bare': 1}, 'apt install python3-venv')])
def test_unfit_python(clone, python, message):
    result = clone(**python)
    assert result.returncode == 2
    assert result.stderr.startswith('error: ') and message in result.stderr and result.stderr.count('\n') == 1
    assert not (clone.path / '.venv').exists()


def test_sample_photos(tmp_path):
    pytest.importorskip('skimage')
    folder = str(tmp_path / 'load' / 'sample')
    assert sample_photos.write_sample(folder) == 7
    sizes = {name: image_size(os.path.join(folder, name)) for name in sample_photos.PHOTOS}
    assert sizes['valid/chelsea.png'] == (300, 451) and sizes['valid/coffee.png'] == (400, 600)
    assert sizes['train/retina.jpg'] == (1411, 1411) and min(map(min, sizes.values())) >= 300
    assert sorted(os.listdir(folder)) == ['LICENSES.txt', 'train', 'valid']
    assert len(os.listdir(os.path.join(folder, 'train'))) == 5  # and no temporary file
    with open(os.path.join(folder, 'LICENSES.txt'), encoding='utf-8') as f:
        text = f.read()
    assert all(name in text for name in sample_photos.PHOTOS)

    cat = os.path.join(folder, 'valid', 'chelsea.png')
    with open(cat, 'rb') as f:
        data = f.read()
    os.remove(cat)
    other = os.path.join(folder, 'valid', 'coffee.png')
    before = os.stat(other).st_mtime_ns
    assert sample_photos.write_sample(folder) == 1
    with open(cat, 'rb') as f:
        assert f.read() == data
    assert os.stat(other).st_mtime_ns == before
    assert sample_photos.write_sample(folder) == 0


def test_without_scikit_image(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_photos.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='pip install'):
        sample_photos.write_sample(str(tmp_path / 'sample'))
    assert not (tmp_path / 'sample').exists()


@pytest.mark.parametrize('name', ['benchmark', 'div2k'])
def test_scripts_of_the_suites(name, tmp_path):
    python = tmp_path / 'python'  # stands for the interpreter and shows how it is called
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)

    def arguments(*given):
        out = subprocess.run(['bash', os.path.join(ROOT, 'scripts', f'test-{name}.sh'), *given], cwd=tmp_path,
                             capture_output=True, text=True, env={**os.environ, 'PYTHON': str(python)}, check=True)
        test, suite, part, data, load, *rest = out.stdout.splitlines()
        assert os.path.samefile(test, os.path.join(ROOT, 'test.py')) and (suite, part) == ('--suite', name)
        assert data == '--data' and os.path.realpath(load) == os.path.realpath(os.path.join(ROOT, 'load'))
        return rest

    assert arguments('a model.pth') == ['--model', 'a model.pth']
    assert arguments('a model.pth', 'cpu') == ['--model', 'a model.pth', '--gpu', 'cpu']
    assert arguments() == ['--model']  # test.py says what is missing
