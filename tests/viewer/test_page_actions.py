"""The page in a browser: what a person does with it works."""
import base64
import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.viewer.browser import BAR, Page, region
from tests.viewer.common import PIXELS, exact, serving, small_viewer
from viewer import web


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
    page.finished()
    assert page.page.text_content('#method') == 'nearest' and page.page.text_content('.tag.before') == 'nearest'
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
        page.page.press('#rows', 'Enter')
    assert download.value.suggested_filename == 'photo-400x300.png'
    download.value.save_as(str(tmp_path / 'download.png'))
    found = np.asarray(Image.open(tmp_path / 'download.png')).astype(int)
    assert abs(found - exact(region(page.view()), (300, 400))).max() <= 1
    page.page.keyboard.press('d')
    page.page.keyboard.press('Escape')  # downloads nothing
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
    page.page.focus('#divider')
    for key, place in (('Home', '0'), ('End', '100'), ('ArrowLeft', '95')):
        keyboard.press(key)
        page.finished()
        assert page.page.get_attribute('#divider', 'aria-valuenow') == place
    keyboard.press('c')
    assert page.page.get_attribute('#divider', 'tabindex') == '-1'
    page.finished()


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

    def show(name):
        page.page.set_input_files('#file', str(tmp_path / name))
        page.until(f'document.getElementById("name").textContent === "{name}"')
        page.finished()

    with serving(viewer) as port:
        page, asked, held = Page(chromium, port), [], []
        assert page.page.input_value('#model') == 'clean'
        for name, model in (('a.jpg', 'photo'), ('b.png', 'clean'), ('a.jpg', 'photo')):
            show(name)
            page.until(f'document.getElementById("model").value === "{model}"')
        page.page.select_option('#model', 'clean')
        page.page.on('request', lambda request: asked.append(request.url))
        show('b.png')
        show('a.jpg')
        assert page.page.input_value('#model') == 'clean' and not [url for url in asked if '/model' in url]
        # Of two models chosen in a row the second is used, though the first takes longer.
        page.page.route('**/model?name=photo', lambda route: held.append(route))
        page.page.select_option('#model', 'photo')
        page.page.select_option('#model', 'clean')
        release(page, held, '**/model?name=photo')
        assert page.page.input_value('#model') == 'clean' and 'model=clean' in page.page.url
        page.context.close()
        assert not page.problems


def release(page, held, address):
    """Let go on what a route has held, once it has."""
    while not held:
        page.page.wait_for_timeout(10)
    with page.page.expect_response(address):
        held[0].continue_()
    page.finished()


def png(size):
    out = io.BytesIO()
    Image.fromarray(PIXELS[:size, :size]).save(out, 'png')
    return out.getvalue()


def test_of_two_files_the_last_is_shown(page):
    held = []
    page.page.route('**/pictures?name=slow.png', lambda route: held.append(route))
    page.drop('slow.png', png(60))
    page.drop('other.png', png(90))
    page.page.wait_for_selector('#name:has-text("other.png")')
    release(page, held, '**/pictures?name=slow.png')
    assert page.page.text_content('#name') == 'other.png' and page.page.text_content('#size') == '90 × 90'


def test_a_file_that_comes_before_the_page_is_ready(chromium, port):
    data = base64.b64encode(png(60)).decode()
    page = Page(chromium, port, script="""addEventListener('DOMContentLoaded', () => {
        const files = new DataTransfer(), bytes = Uint8Array.from(atob('%s'), c => c.charCodeAt(0));
        files.items.add(new File([bytes], 'early.png'));
        dispatchEvent(new DragEvent('drop', {dataTransfer: files}));
    });""" % data)
    page.page.wait_for_selector('#name:has-text("early.png")')
    assert page.page.is_hidden('#toast')
    page.context.close()
    assert not page.problems


def test_a_tile_that_failed_is_asked_for_again(page):
    failed = []

    def fail_once(route):
        failed.append(route)
        if len(failed) == 1:
            route.fulfill(status=500, body='{"error": "odd"}')
        else:
            route.continue_()

    page.page.route('**/tile?**', fail_once)
    page.show(20, 20, 6)
    page.until('document.body.dataset.state === "failed"')
    assert page.page.text_content('#toast') == 'odd'
    page.page.keyboard.press('ArrowLeft')
    page.finished()
    page.problems[:] = [text for text in page.problems if '500' not in text]


def test_more_tiles_in_view_than_the_memory_holds(chromium, server, tmp_path, monkeypatch):
    """The tiles that are kept are those nearest to the middle, and each is fetched twice: the draft, the final one."""
    shutil.copytree(web.PAGE, tmp_path / 'page')
    script = (tmp_path / 'page' / 'draw.js').read_text()
    assert script.count('512e6') == 1
    (tmp_path / 'page' / 'draw.js').write_text(script.replace('512e6', '2e6'))  # 8 tiles, of 12 and more in view
    monkeypatch.setattr(web, 'PAGE', str(tmp_path / 'page'))
    small = {'width': 240, 'height': 180}  # so that a frame is drawn between any two tiles
    page, asked = Page(chromium, server[1], '#x=150&y=100&s=2&d=0', viewport=small), []
    page.page.on('request', lambda request: asked.append(request.url))
    page.show(64, 64, 2, (240, 180))
    page.until('liif.ready()', 60)
    assert len(asked) == len(set(asked)) <= 16
    page.context.close()
    assert not page.problems
