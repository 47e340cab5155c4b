"""The page without a server, in a browser: what it shows, from a folder that a plain file server hands out."""
import contextlib
import functools
import http.server
import io
import os
import threading

import numpy as np
import pytest
from PIL import Image

from engine.checkpoint import PUBLISHED_NORM
from engine.rendering.api import load_renderer, to_numpy
from engine.rendering.renderer import Renderer
from tests.common import small_model
from tests.conftest import ROOT
from tests.viewer import common
from tests.viewer.browser import BROWSER, FLAGS, NO_WEBGL2, SCALES, SIZE, Page, above_50_db, frame_rate, region
from tests.viewer.common import drawing, exact, psnr
from utils import UserError
from viewer import static
from viewer.lattice import CLIP


PIXELS = common.PIXELS[:60, :80]  # shown whole at x7.5, 450 x 600 pixels large


@pytest.fixture(scope='module')
def runtime():
    """onnxruntime-web, from the folder LIIF_ORT where it is set."""
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package, reason=f'{package} is not installed (requirements-optional.txt)')
    try:
        return static.runtime(os.environ.get('LIIF_ORT'))
    except UserError as error:
        if not str(error).startswith('npm cannot fetch'):
            raise
        pytest.skip(str(error))


@contextlib.contextmanager
def published(folder, model, pixels, runtime):
    """(port, folder) of a plain file server of the page, with an image in place of the sample."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(os.path.join(ROOT, 'scripts'))
        import export_onnx
        Image.fromarray(pixels).save(folder / 'photo.png')
        patch.setattr(static, 'SAMPLE', str(folder / 'photo.png'))
        files = static.page_files(model, export_onnx.web_graphs(model, PUBLISHED_NORM), runtime)
    static.write_folder(folder / 'web', files)
    with file_server(folder / 'web') as port:
        yield port, folder / 'web'


@contextlib.contextmanager
def file_server(folder, headers=()):
    """The port of a server of the files in a folder, which sends {name: value} with each."""
    class Files(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def end_headers(self):
            for header in dict(headers).items():
                self.send_header(*header)
            super().end_headers()

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Files, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope='module')
def small(tmp_path_factory, runtime):
    with published(tmp_path_factory.mktemp('small'), small_model(), PIXELS, runtime) as found:
        yield found


@pytest.fixture
def port(small):
    return small[0]


def shows_liif(page):
    """Whether the right half of the image is LIIF's; the small model makes noise of it, the worst for a lattice."""
    found = page.canvas()[75:525, 400:700]
    return psnr(found / 255, exact((40, 0, 40, 60), (450, 300), PIXELS) / 255) > 45


def downloaded(page):
    """What the button of the open dialog brings: the file's name, and (H, W, 4)."""
    with page.page.expect_download() as download:
        page.page.click('#go')
    with Image.open(download.value.path(), formats=['png']) as img:
        return download.value.suggested_filename, np.asarray(img.convert('RGBA')).astype(int)


def test_what_it_offers(page):
    page.look('static')
    assert not page.page.is_visible('#link') and not page.page.is_visible('#model')
    assert page.page.text_content('#about') == 'LIIF in float32 on the CPU (WebAssembly)'
    assert shows_liif(page)
    page.page.set_viewport_size({'width': 390, 'height': 760})
    page.finished()
    page.look('static-phone')
    page.page.set_viewport_size(SIZE)
    assert page.finished()['s'] == 7.5 and page.canvas().shape == (600, 800, 3)


FIRST_TILE = """
    window.reached = {};  // nodes per piece -> ms after the load began at which the first tile had them
    setInterval(() => {
        const steps = window.liif?.painter()?.grid ? liif.painter().steps(0, 0) : 0;
        if (steps) reached[steps] ??= performance.now();
    }, 10);
"""


def test_views_of_the_trained_model_and_what_they_cost(chromium, tmp_path, runtime, record_property):
    renderer, pixels = load_renderer(gpu='cpu', cell_clip=CLIP), to_numpy((drawing(27, 34) * 255).byte())
    with published(tmp_path, load_renderer(gpu='cpu').model, pixels, runtime) as (port, _):
        page = Page(chromium, port, '#x=17&y=13.5&s=4&d=0', FIRST_TILE)
        reached, done = page.page.evaluate('[reached, performance.now()]')
        found = {'draft_s': reached['3'] / 1000, 'tile_s': reached['6'] / 1000, 'both_tiles_s': done / 1000}
        found['frames_per_second'] = frame_rate(page)
        for name, value in found.items():
            record_property(name, value)
        print(found)
        for scale, size in SCALES.items():
            page.show(17, 13.5, scale, size)
            page.finished()
            page.look(f'static-x{scale}')
            assert above_50_db(page, renderer, pixels)
        page.context.close()
        assert not page.problems


def test_files_that_are_dropped(page):
    data = io.BytesIO()
    Image.fromarray(PIXELS[:30, :40]).save(data, 'png')
    page.drop('other.png', data.getvalue())
    page.page.wait_for_selector('#name:has-text("other.png")')
    found, part = page.finished(), page.canvas()[200:400, 400:600]
    x, y, w, h = region(found, 200, 200)
    assert psnr(part / 255, exact((x + w / 2, y, w, h), (200, 200), PIXELS[:30, :40]) / 255) > 45
    for name, broken in (('odd.png', b'hello'), ('cut.png', data.getvalue()[:60])):
        page.drop(name, broken)
        page.page.wait_for_selector(f'#toast:has-text("{name}")')
        page.look('static-damaged')
        page.page.evaluate('document.getElementById("toast").hidden = true')
    assert page.page.text_content('#size') == '40 × 30'


def test_downloads(page):
    page.page.click('#save')
    page.page.fill('#columns', '1000')  # larger than what is drawn at a time
    before = page.canvas()
    name, found = downloaded(page)
    assert name == 'photo-1000x750.png' and found.shape == (750, 1000, 4) and (found[..., 3] == 255).all()
    assert psnr(found[..., :3] / 255, exact((0, 0, 80, 60), (750, 1000), PIXELS) / 255) > 45
    assert (page.canvas() == before).all()


def test_a_download_keeps_transparency(page):
    pixels, data = np.zeros((24, 30, 4), np.uint8), io.BytesIO()
    pixels[8:16] = 200, 100, 50, 255
    Image.fromarray(pixels).save(data, 'png')
    page.drop('alpha.png', data.getvalue())
    page.page.wait_for_selector('#name:has-text("alpha.png")')
    page.finished()
    page.look('static-alpha')
    page.page.keyboard.press('d')
    page.page.check('input[value=all]')
    page.page.fill('#columns', '240')
    _, found = downloaded(page)
    assert found.shape == (192, 240, 4) and (found[:40, :, 3] == 0).all() and (found[90:100, :, 3] == 255).all()
    constant = np.broadcast_to(np.array((200, 100, 50), np.uint8), (24, 30, 3))  # the colour spreads, alpha does not
    difference = abs(found[..., :3] - exact((0, 0, 30, 24), (192, 240), constant))
    assert difference[found[..., 3] > 128].max() < 8


def test_half_transparent_pixels_keep_their_colours(page):
    pixels, data = np.concatenate([PIXELS[:24, :30], np.full((24, 30, 1), 128, np.uint8)], axis=2), io.BytesIO()
    Image.fromarray(pixels).save(data, 'png')
    page.drop('half.png', data.getvalue())
    page.page.wait_for_selector('#name:has-text("half.png")')
    page.finished()
    page.page.keyboard.press('d')
    page.page.check('input[value=all]')
    page.page.fill('#columns', '30')
    _, found = downloaded(page)
    assert abs(found - pixels).max() <= 2  # a canvas multiplies by alpha


def test_it_opens_again_without_a_network_and_with_threads(page):
    assert page.page.evaluate('crossOriginIsolated') is False  # the server sends no headers
    page.context.set_offline(True)
    page.page.reload()
    page.finished()
    assert page.page.evaluate('crossOriginIsolated') is True  # sw.js does
    assert shows_liif(page)


def test_other_files_of_the_host_are_left_alone(page, small):
    """sw.js answers for the files of the page only; a redirect to one that is not a file of the page works."""
    text = """fetch('notes/?' + Math.random()).then(
        async found => [await found.text(), found.headers.get('Cross-Origin-Opener-Policy')])"""
    page.page.reload()
    page.finished()
    assert page.page.evaluate('Boolean(navigator.serviceWorker.controller)')
    (small[1] / 'notes').mkdir()
    for words in ('old', 'new'):
        (small[1] / 'notes' / 'index.html').write_text(words)
        assert page.page.evaluate(text) == [words, None]
    page.page.goto(page.page.url.split('#')[0] + 'notes')  # the host adds a slash
    assert page.page.text_content('body') == 'new'
    page.problems.clear()  # that page has no icon


THREADS = """async () => (await import(new URL('ort/ort.wasm.min.mjs', location.href).href)).env.wasm.numThreads"""
ISOLATED = {'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp'}


@pytest.mark.parametrize('headers', [ISOLATED, {}], ids=['isolated', 'not isolated'])
def test_threads_where_the_host_sends_the_headers(chromium, small, headers):
    with file_server(small[1], headers) as port:
        page = Page(chromium, port)
        worker = next(w for w in page.page.workers if w.url.endswith('/worker.js'))
        cores = page.page.evaluate('navigator.hardwareConcurrency')
        assert page.page.evaluate('crossOriginIsolated') is bool(headers)
        assert worker.evaluate(THREADS) == (min(8, cores) if headers else 1)
        running = [w for w in page.page.workers if w.url.endswith('/ort-wasm-simd-threaded.mjs')]
        assert bool(running) == (bool(headers) and cores > 1)
        assert shows_liif(page)
        page.context.close()
        assert not page.problems


def test_webgpu_draws_what_pytorch_renders(chromium, small):
    browser = chromium.browser_type.launch(executable_path=BROWSER, args=[*FLAGS, '--enable-unsafe-webgpu'])
    try:
        blank = browser.new_page()
        blank.goto(f'http://127.0.0.1:{small[0]}/about.json')
        if not blank.evaluate('navigator.gpu?.requestAdapter().then(Boolean, () => false) ?? false'):
            pytest.skip('this Chromium has no WebGPU adapter')
        page, pixels, data = Page(browser, small[0]), to_numpy((drawing(27, 34) * 255).byte()), io.BytesIO()
        Image.fromarray(pixels).save(data, 'png')
        page.drop('drawing.png', data.getvalue())
        page.page.wait_for_selector('#name:has-text("drawing.png")')
        for _ in range(10):
            page.page.keyboard.press('[')  # LIIF everywhere
        page.show(17, 13.5, 12, SCALES[12])
        page.finished()
        page.look('static-webgpu')
        assert page.page.text_content('#about') == 'LIIF in float32 on the GPU (WebGPU)'  # it did not fall back
        assert above_50_db(page, Renderer(small_model(), cell_clip=CLIP), pixels) and not page.problems
    finally:
        browser.close()


MESSAGES = """addEventListener('DOMContentLoaded', () => {
    window.messages = [];
    const toast = document.getElementById('toast');
    new MutationObserver(() => messages.push(toast.textContent)).observe(toast, {childList: true});
});"""


@pytest.mark.parametrize('adapter, told', [
    ('async () => null', []), ('async () => { throw new Error("blocked"); }', []),
    ('async () => ({features: new Set(), limits: {}, info: {}, requestDevice: () => Promise.reject(Error("lost"))})',
     ['WebGPU failed in this browser, so the CPU computes.'])], ids=['none', 'refused', 'fails later'])
def test_a_gpu_that_fails_is_replaced_by_the_cpu(chromium, small, adapter, told):
    worker = small[1] / 'worker.js'
    original = worker.read_bytes()
    worker.write_bytes(f"Object.defineProperty(navigator, 'gpu', {{value: {{requestAdapter: {adapter}}}}});".encode()
                       + original)
    try:
        page = Page(chromium, small[0], script=MESSAGES)
    finally:
        worker.write_bytes(original)
    page.look('static-no-gpu')
    assert page.page.evaluate('messages') == told
    assert page.page.text_content('#about') == 'LIIF in float32 on the CPU (WebAssembly)'
    assert shows_liif(page)
    page.context.close()
    assert not page.problems


def test_without_webgl2_it_says_so(chromium, small):
    page = Page(chromium, small[0], script=NO_WEBGL2)
    assert 'no WebGL2' in page.page.text_content('#toast')
    page.look('static-plain')
    assert not page.page.is_visible('#divider') and not page.page.is_visible('#save')
    page.context.close()
    assert not page.problems


def test_graphs_have_fixed_shapes_and_no_gathers(small):
    import onnx
    for name in ('encoder', 'lattice3', 'lattice6'):
        graph = onnx.load(str(small[1] / f'{name}.onnx')).graph
        assert all(d.dim_value > 0 for i in graph.input for d in i.type.tensor_type.shape.dim)
        assert not {'GridSample', 'Gather', 'GatherND', 'GatherElements'} & {node.op_type for node in graph.node}
