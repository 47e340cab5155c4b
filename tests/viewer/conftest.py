"""A browser, and a page of a running viewer in it."""
import pytest

from tests.viewer.browser import BROWSER, FLAGS, Page
from tests.viewer.common import serving, small_viewer


@pytest.fixture(scope='session')
def chromium():
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    if BROWSER is None:
        pytest.skip('no Chromium is installed (apt-get install chromium)')
    with playwright.sync_playwright() as play:
        running = play.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def server(tmp_path):
    """(viewer, port) of a small model that shows photo.png."""
    viewer = small_viewer(tmp_path / 'photo.png', max_bytes=200_000)
    with serving(viewer) as port:
        yield viewer, port


@pytest.fixture
def port(server):
    return server[1]


@pytest.fixture
def page(chromium, port):
    page = Page(chromium, port)
    yield page
    page.context.close()
    assert not page.problems
