"""What the tests of configs share."""
import pytest
from PIL import Image


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('config')
    (path / 'images').mkdir()
    (path / 'split.json').write_text('{"train": ["0.png"]}')
    Image.new('RGB', (16, 16)).save(path / 'images/0.png')
    return path
