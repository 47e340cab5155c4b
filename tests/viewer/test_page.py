"""The page in a browser: what it shows equals the exact render, and what a person does with it works."""
import base64
import io
import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from engine.rendering.api import load_renderer, to_numpy, to_tensor
from tests.common import small_model
from tests.viewer.common import PIXELS, exact, serving, small_viewer
from tests.viewer.test_lattice import drawing, psnr
from viewer.lattice import CLIP


FLAGS = ['--headless', '--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader',
         '--disable-background-networking', '--force-color-profile=srgb']
SIZE = {'width': 800, 'height': 600}
BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
BAR = 150  # rows that the page keeps free of a whole image, above and below together


@pytest.fixture(scope='module')
def chromium():
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    if BROWSER is None:
        pytest.skip('no Chromium is installed (apt-get install chromium)')
    with playwright.sync_playwright() as play:
        running = play.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield running
        running.close()


class Page:
    """A page of a running viewer. problems: what the browser complained of; script: runs before those of the page."""

    def __init__(self, chromium, port, fragment='', script='', **options):
        home = f'http://127.0.0.1:{port}/', 'blob:'
        self.context = chromium.new_context(**{'viewport': SIZE, 'accept_downloads': True, **options})
        self.page, self.problems = self.context.new_page(), []
        self.page.add_init_script(script)
        self.page.set_default_timeout(120_000)  # ms
        self.page.on('pageerror', lambda error: self.problems.append(str(error)))
        self.page.on('console', lambda m: self.problems.append(m.text) if m.type == 'error' else None)
        self.page.on('request', lambda r: None if r.url.startswith(home) else self.problems.append(r.url))
        self.page.goto(f'http://127.0.0.1:{port}/{fragment}')
        self.finished()

    def finished(self):
        """Wait until a view is complete, and return it."""
        self.page.wait_for_timeout(250)
        self.until('window.liif?.ready()')
        return self.view()

    def until(self, condition, seconds=600):
        """Wait for a condition; `wait_for_function` would evaluate it in a way that the page's policy forbids."""
        end = time.time() + seconds
        while not self.page.evaluate(condition):
            assert time.time() < end, f'{condition} is not true after {seconds} s'
            self.page.wait_for_timeout(50)

    def view(self):
        return self.page.evaluate('liif.view()')

    def canvas(self):
        """What the canvas shows: (H, W, 3) integers."""
        data = self.page.evaluate('liif.pixels()').split(',')[1]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert('RGB')).astype(int)

    def show(self, x, y, scale, size=(800, 600)):
        """Show a point of the image at a scale in the middle of the page, of `size` pixels (width, height)."""
        self.page.set_viewport_size({'width': size[0], 'height': size[1]})
        self.page.wait_for_timeout(250)
        self.page.evaluate(f'Object.assign(liif.view(), {{x: {x}, y: {y}, s: {scale}}}); '
                           f'liif.zoomTo({scale}, {size[0] / 2}, {size[1] / 2})')

    def drop(self, name, data):
        """Drop a file on the page."""
        self.page.evaluate("""([name, data]) => {
            const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), files = new DataTransfer();
            files.items.add(new File([bytes], name));
            dispatchEvent(new DragEvent('dragover', {dataTransfer: files, cancelable: true}));
            dispatchEvent(new DragEvent('drop', {dataTransfer: files, cancelable: true}));
        }""", [name, base64.b64encode(data).decode()])

    def look(self, name):
        """A screenshot, kept in the folder LIIF_SCREENSHOTS where it is set, to be looked at."""
        if os.environ.get('LIIF_SCREENSHOTS'):
            self.page.wait_for_timeout(400)  # messages fade
            self.page.screenshot(path=os.path.join(os.environ['LIIF_SCREENSHOTS'], name + '.png'))


@pytest.fixture
def server(tmp_path):
    """(viewer, port) of a small model that shows photo.png."""
    viewer = small_viewer(tmp_path / 'photo.png', max_bytes=200_000)
    with serving(viewer) as port:
        yield viewer, port


@pytest.fixture
def page(chromium, server):
    page = Page(chromium, server[1])
    yield page
    page.context.close()
    assert not page.problems


def region(view, width=800, height=600):
    """The part of the image that fills the canvas: (x, y, width, height)."""
    s = view['s']
    return view['x'] - width / 2 / s, view['y'] - height / 2 / s, width / s, height / s


def bicubic(part, size, pixels=PIXELS):
    """Pillow's bicubic interpolation, in floats: integers it rounds and clips between two passes."""
    box = (part[0], part[1], part[0] + part[2], part[1] + part[3])
    channels = [Image.fromarray(pixels[..., k].astype(np.float32)).resize(size[::-1], Image.BICUBIC, box=box)
                for k in range(3)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 255)


def test_the_first_view_and_its_divider(page):
    view = page.finished()
    page.look('first')
    assert view['s'] == 6 and page.page.text_content('#scale') == '×6.00'
    found, part = page.canvas(), region(view)
    assert abs(found[:, :400] - bicubic(part, (600, 800))[:, :400]).max() <= 1
    assert psnr(found[:, 400:] / 255, exact(part, (600, 800))[:, 400:] / 255) > 45  # noise, the worst for a lattice
    # The divider moves: what was bicubic is LIIF.
    page.page.mouse.move(400, 400)
    page.page.mouse.down()
    page.page.mouse.move(200, 400, steps=5)
    page.page.mouse.up()
    page.finished()
    assert (page.canvas()[:, 210:400] != found[:, 210:400]).mean() > 0.5
    assert (page.canvas()[:, :190] == found[:, :190]).all()


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """(page-ready viewer, its renderer) of the weights that come with the project, on a small image."""
    renderer = load_renderer(gpu='cpu', cell_clip=CLIP)
    pixels = to_numpy((drawing(27, 34) * 255).byte())
    viewer = small_viewer(tmp_path_factory.mktemp('trained') / 'drawing.png', pixels)
    viewer.renderers['small'] = renderer
    with serving(viewer) as port:
        yield port, pixels, renderer


SCALES = {4: (136, 108), 12: (320, 240), 30: (320, 240)}  # -> (width, height) of a page that shows the drawing


def above_50_db(page, renderer, pixels):
    """Whether the canvas shows what `renderer` decodes exactly there."""
    found = page.canvas()
    part = region(page.view(), *found.shape[1::-1])
    wanted = to_numpy(renderer.open(to_tensor(pixels)).render(found.shape[:2], part, 'uint8'))
    return psnr(found / 255, wanted / 255) > 50


@pytest.mark.parametrize('scale', SCALES)
def test_views_of_the_trained_model_are_close_to_the_exact_render(chromium, trained, scale):
    port, pixels, renderer = trained
    page = Page(chromium, port, f'#x=17&y=13.5&s={scale}&d=0', viewport=dict(zip(('width', 'height'), SCALES[scale])))
    page.look(f'trained-x{scale}')
    assert above_50_db(page, renderer, pixels) and not page.problems
    page.context.close()


def test_wheel_drag_and_double_click(page):
    first = page.view()
    page.page.mouse.move(600, 250)
    for _ in range(5):
        page.page.mouse.wheel(0, -120)
    view = page.finished()
    assert 18 < view['s'] < 22
    for axis, at in (('x', 600 - 400), ('y', 250 - 300)):  # the point under the wheel stays
        assert first[axis] + at / first['s'] == pytest.approx(view[axis] + at / view['s'], abs=0.02)
    page.page.mouse.move(300, 200)
    page.page.mouse.down()
    page.page.mouse.move(260, 230, steps=4)
    page.page.mouse.up()
    before, view = view, page.finished()
    assert view['x'] - before['x'] == pytest.approx(40 / view['s'], abs=1e-3)
    assert view['y'] - before['y'] == pytest.approx(-30 / view['s'], abs=1e-3)
    page.page.mouse.dblclick(600, 250)
    assert page.finished()['s'] == pytest.approx(2 * view['s'])


def test_images_in_several_textures(chromium, tmp_path):
    pixels = np.random.default_rng(6).integers(0, 256, (40, 1100, 3), dtype=np.uint8)
    with serving(small_viewer(tmp_path / 'wide.png', pixels)) as port:
        page = Page(chromium, port, '#x=1030&y=20&s=12&d=0.5', viewport={'width': 400, 'height': 300})
        assert page.page.evaluate('liif.painter().sources.length') == 2
        found, part = page.canvas(), region(page.view(), 400, 300)
        page.context.close()
    assert abs(found[:, :200] - bicubic(part, (300, 400), pixels)[:, :200]).max() <= 1
    wanted = exact(part, (300, 400), pixels)[:, 200:]
    assert psnr(found[:, 200:] / 255, wanted / 255) > 45 and not page.problems


def test_pinching(page):
    before = page.view()
    page.page.evaluate("""() => {
        const stage = document.getElementById('stage');
        stage.setPointerCapture = () => {};
        const send = (type, id, x, y) =>
            stage.dispatchEvent(new PointerEvent(type, {pointerId: id, clientX: x, clientY: y}));
        send('pointerdown', 11, 350, 300); send('pointerdown', 12, 450, 300);
        send('pointermove', 11, 300, 300); send('pointermove', 12, 500, 300);
        send('pointerup', 11, 300, 300); send('pointerup', 12, 500, 300);
    }""")
    after = page.finished()
    assert after['s'] == pytest.approx(2 * before['s']) and after['x'] == pytest.approx(before['x'], abs=1e-6)


def test_keys(page):
    keyboard, first = page.page.keyboard, page.canvas()
    keyboard.press('0')
    assert page.finished()['s'] == pytest.approx((600 - BAR) / 150)
    page.look('fit')
    keyboard.press('1')
    assert page.finished()['s'] == 1 and page.page.text_content('#scale') == '×1.00'
    keyboard.press('+')
    page.finished()
    keyboard.press('ArrowLeft')
    view = page.finished()
    assert view['s'] == pytest.approx(1.5) and view['x'] < 100
    keyboard.press('c')
    page.finished()
    page.look('beside')
    assert page.page.get_attribute('#beside', 'aria-pressed') == 'true'
    keyboard.press('c')
    keyboard.press('n')
    assert page.page.text_content('#method') == 'Nearest' and page.page.text_content('.tag.before') == 'nearest'
    page.finished()
    page.page.evaluate('liif.zoomTo(8, 400, 300)')
    view = page.finished()
    x, y, _, _ = region(view)
    rows, columns = ((np.arange(n) + 0.5) / 8 + start for n, start in ((600, y), (400, x)))
    inside = (rows > 0) & (rows < 150), (columns > 0) & (columns < 200)
    wanted = PIXELS[np.floor(rows[inside[0]]).astype(int)][:, np.floor(columns[inside[1]]).astype(int)]
    assert (page.canvas()[:, :400][np.ix_(*inside)] == wanted).all()
    # While Space is held, the methods swap sides; help closes with the key that opened it.
    before = page.canvas()
    keyboard.down(' ')
    assert (page.canvas() != before).mean() > 0.3 and page.page.text_content('.tag.after') == 'nearest'
    keyboard.up(' ')
    assert (page.canvas() == before).all() and first.shape == before.shape
    keyboard.press('?')
    assert page.page.is_visible('#keys')
    page.look('help')
    keyboard.press('?')
    assert not page.page.is_visible('#keys')


def test_downloads(page, tmp_path):
    page.page.click('#save')
    page.look('download')
    page.page.fill('#columns', '400')
    assert page.page.input_value('#rows') == '300'
    with page.page.expect_download() as download:
        page.page.click('#go')
    assert download.value.suggested_filename == 'photo-400x300.png'
    download.value.save_as(str(tmp_path / 'download.png'))
    found = np.asarray(Image.open(tmp_path / 'download.png')).astype(int)
    assert abs(found - exact(region(page.view()), (300, 400))).max() <= 1
    with page.page.expect_download() as download:
        page.page.keyboard.press('s')
    assert download.value.suggested_filename == 'photo-comparison.png'
    download.value.save_as(str(tmp_path / 'shot.png'))
    found = np.asarray(Image.open(tmp_path / 'shot.png').convert('RGB')).astype(int)
    assert (found[100:, :380] == page.canvas()[100:, :380]).all() and (found[100:, 400] == 255).all()
    if os.environ.get('LIIF_SCREENSHOTS'):
        shutil.copy(tmp_path / 'shot.png', os.environ['LIIF_SCREENSHOTS'])


def test_the_divider(page):
    keyboard, bicubic_side = page.page.keyboard, page.canvas()
    page.page.click('#method')
    page.finished()
    nearest_side = page.canvas()
    assert (nearest_side[:, :400] != bicubic_side[:, :400]).mean() > 0.3
    assert (nearest_side[:, 400:] == bicubic_side[:, 400:]).all()
    page.look('nearest')
    for key, place in (('[', 360), (']', 400)):
        keyboard.press(key)
        page.finished()
        assert page.page.get_attribute('#divider', 'aria-valuenow') == str(place // 8)
        assert page.page.evaluate('document.getElementById("divider").style.left') == f'{place}px'
    assert (page.canvas() == nearest_side).all()


def test_full_screen(page):
    for shown in (True, False):
        page.page.click('#full')
        page.until(f'Boolean(document.fullscreenElement) === {str(shown).lower()}')
    page.finished()


def test_a_link_is_copied(page):
    page.context.grant_permissions(['clipboard-read', 'clipboard-write'])
    page.page.click('#link')
    page.page.wait_for_selector('#status:has-text("copied")')
    link = page.page.evaluate('navigator.clipboard.readText()')
    assert link == page.page.url and 's=6' in link


def test_flying(page):
    page.page.keyboard.press('0')
    fitting = page.finished()['s']
    page.page.click('#fly')
    page.until('liif.view().s > 20')
    page.look('flying')
    page.page.keyboard.press('v')
    assert page.page.get_attribute('#fly', 'aria-pressed') == 'false'
    assert page.finished()['s'] > fitting


def test_files_that_are_opened_and_links(page, chromium, server, tmp_path):
    viewer, port = server
    link = page.page.url
    Image.fromarray(PIXELS[:90, :120]).save(tmp_path / 'other.png')
    page.drop('other.png', (tmp_path / 'other.png').read_bytes())
    page.page.wait_for_selector('#name:has-text("other.png")')
    assert page.finished()['x'] == 60 and page.page.text_content('#size') == '120 × 90'
    for name, data, words in (('large.png', b'x' * 300_000, 'more than the 0 MB'), ('odd.png', b'hello', 'odd.png'),
                              ('cut.png', (tmp_path / 'other.png').read_bytes()[:5000], 'cut.png')):
        page.drop(name, data)
        page.page.wait_for_selector(f'#toast:has-text("{words}")')
        page.look('damaged')
        page.page.evaluate('document.getElementById("toast").hidden = true')
    assert page.page.text_content('#size') == '120 × 90' and len(viewer.pictures) == 2
    page.problems[:] = [text for text in page.problems if '400 (Bad Request)' not in text]
    # The link to the first view still shows it; one to an image that is closed says so.
    other = Page(chromium, port, link[link.index('#'):])
    assert other.page.text_content('#name') == 'photo.png' and other.view()['s'] == 6
    other.page.goto('about:blank')
    other.page.goto(f'http://127.0.0.1:{port}/#id=gone&x=1&y=1&s=50')
    other.page.wait_for_selector('#toast:has-text("no longer open")')
    other.context.close()


def test_the_kind_of_a_file_chooses_the_weights_until_a_hand_does(chromium, tmp_path, monkeypatch):
    monkeypatch.setattr('viewer.images.suited_model', lambda kind: ('photo' if kind == 'JPEG' else 'clean', ''))
    viewer = small_viewer(tmp_path / 'photo.png')
    viewer.models, viewer.renderers = {'clean': '', 'photo': ''}, dict.fromkeys(
        ('clean', 'photo'), viewer.renderers['small'])
    for name in ('a.jpg', 'b.png'):
        Image.fromarray(PIXELS).save(tmp_path / name)

    def shown_with(name):
        page.page.set_input_files('#file', str(tmp_path / name))
        page.until(f'document.getElementById("name").textContent === "{name}"')
        page.finished()
        page.page.wait_for_timeout(500)
        return page.page.input_value('#model')

    with serving(viewer) as port:
        page = Page(chromium, port)
        assert page.page.input_value('#model') == 'clean'
        assert [shown_with(name) for name in ('a.jpg', 'b.png', 'a.jpg')] == ['photo', 'clean', 'photo']
        page.page.select_option('#model', 'clean')
        assert shown_with('a.jpg') == 'clean'
        page.context.close()
        assert not page.problems


def test_resizing(page):
    view = page.view()
    page.page.set_viewport_size({'width': 500, 'height': 700})
    assert page.finished() == view and page.canvas().shape == (700, 500, 3)
    page.page.keyboard.press('0')
    page.finished()
    page.page.set_viewport_size(SIZE)
    assert page.finished()['s'] == pytest.approx((600 - BAR) / 150)  # still whole


def test_a_phone_at_night(chromium, server):
    _, port = server
    page = Page(chromium, port, viewport={'width': 390, 'height': 760}, device_scale_factor=2, color_scheme='dark',
                has_touch=True, is_mobile=True)
    page.look('phone')
    boxes = [page.page.locator(name).bounding_box() for name in ('#top', '#actions', '#controls')]
    assert all(box['x'] >= 0 and box['x'] + box['width'] <= 390 for box in boxes)
    assert page.canvas().shape == (1520, 780, 3) and page.view()['s'] == 12
    page.context.close()
    assert not page.problems


NO_WEBGL2 = """{
    const get = HTMLCanvasElement.prototype.getContext;
    HTMLCanvasElement.prototype.getContext = function(kind, ...rest) {
        return kind === 'webgl2' ? null : get.call(this, kind, ...rest);
    };
}"""


@pytest.mark.parametrize('reason', ['without WebGL2', 'without a lattice'])
def test_plain_views(chromium, server, tmp_path, reason):
    viewer, _ = server
    if reason == 'without a lattice':
        viewer = small_viewer(tmp_path / 'photo.png', model=small_model(local_ensemble=False))
    with serving(viewer) as port:
        page = Page(chromium, port, script=NO_WEBGL2 if reason == 'without WebGL2' else '')
        assert reason.split()[-1] in page.page.text_content('#toast')
        page.look('plain')
        page.page.keyboard.press('+')  # until the image fills the page
        view = page.finished()
        model = viewer.renderers['small'].model
        assert abs(page.canvas() - exact(region(view), (600, 800), model=model))[:, 410:].max() <= 1
        page.page.keyboard.press('+')
        assert page.finished()['s'] == pytest.approx(1.5 * view['s'])
        page.context.close()
        assert not page.problems


def test_transparency_is_a_checkerboard(page, tmp_path):
    pixels = np.zeros((60, 80, 4), np.uint8)
    pixels[20:40] = 200, 100, 50, 255
    Image.fromarray(pixels).save(tmp_path / 'alpha.png')
    page.page.set_input_files('#file', str(tmp_path / 'alpha.png'))
    page.page.wait_for_selector('#name:has-text("alpha.png")')
    view = page.finished()
    page.look('alpha')
    row = page.canvas()[int(300 + (10 - view['y']) * view['s'])]  # in the upper, transparent third
    assert {tuple(v) for v in row[250:550].tolist()} == {(204, 204, 204), (153, 153, 153)}
    row = page.canvas()[300]
    assert (row[250:390] == (200, 100, 50)).all()


def frame_rate(page):
    """Frames per second while the page zooms."""
    return page.page.evaluate("""() => new Promise(done => {
        const first = liif.frames.count, begun = performance.now();
        const step = now => {
            const t = (now - begun) / 1000;
            liif.zoomTo(6 * Math.exp(Math.sin(t)), 400, 300);
            if (t < 3) requestAnimationFrame(step); else done((liif.frames.count - first) / t);
        };
        requestAnimationFrame(step);
    })""")


def test_the_rate_of_frames_is_reported(page, record_property):
    rate = frame_rate(page)
    record_property('frames_per_second', rate)
    print(f'{rate:.1f} frames per second at 800x600')
    page.finished()
    assert rate > 0
