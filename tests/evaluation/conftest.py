"""Data and a model for the tests of this folder, made once."""
import pytest

from scripts.reproduce import write_tiny_data
from tests.evaluation.common import save_model


@pytest.fixture(scope='session')
def load(tmp_path_factory):
    """What load/ holds for all of the paper, tiny."""
    root = str(tmp_path_factory.mktemp('data') / 'load')
    write_tiny_data(root)
    return root


@pytest.fixture(scope='session')
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp('models') / 'small.pth')
