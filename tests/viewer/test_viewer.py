"""The viewer: views equal the picture rendered whole, the server minds its manners, the page works in a browser."""
import glob
import http.client
import io
import json
import os
import shutil
import socket
import struct
import sys
import tempfile
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

import models
from engine.rendering.api import to_numpy, to_tensor
from engine.rendering.pace import Pace, fastest
from engine.rendering.renderer import Renderer
from tests.common import small_model, small_spec
from tests.conftest import ROOT
from utils import UserError
from viewer import serve as program
from viewer.explore import GRID, Explorer


PIXELS = np.random.default_rng(5).integers(0, 256, (150, 200, 3), dtype=np.uint8)


class Slow(Pace):
    """The pace of a slow machine, by which views come in many pieces."""

    def __init__(self, encode=20_000, decode=30_000):
        self.encode, self.decode = encode, decode

    def learn(self, *args):
        pass


def explorer(model=None, **pace):
    return Explorer(Renderer(model or small_model()), PIXELS, Slow(**pace), threading.Lock())


def whole(region, size, model=None):
    scene = Renderer(model or small_model()).open(to_tensor(PIXELS))
    return to_numpy(scene.render(size, region, 'uint8')).astype(int)


# Views.

VIEWS = [((0, 0, 200, 150), (300, 400)), ((10.3, 20.7, 50.1, 40.2), (402, 501)), ((150, 100, 50, 50), (200, 200)),
         ((33, 41, 1.5, 1.2), (120, 150)), ((199.5, 0, 0.5, 150), (300, 20))]


@pytest.mark.parametrize('region, size', VIEWS)
def test_a_view_is_a_part_of_the_picture_rendered_whole(region, size):
    found = explorer(encode=5000).render(region, size)
    assert abs(found - whole(region, size)).max() <= 1


def test_pieces_cover_a_view_once_roughly_first():
    region, size = (5, 0, 190, 150), (600, 761)
    e = explorer(encode=5000)
    covered, grids = {}, []
    for grid, top, left, pixels in e.stream(region, size):
        if grid not in grids:
            grids.append(grid)
        covered.setdefault(grid, np.zeros(grid, int))[top:top + pixels.shape[0], left:left + pixels.shape[1]] += 1
    assert len(grids) == 2 and grids[1] == size and size[0] / 8 < grids[0][0] < size[0] / 2
    assert all((count == 1).all() for count in covered.values())
    assert len(e.windows) > 1


def test_what_is_encoded_stays_and_only_what_comes_into_sight_is_added():
    e = explorer(encode=100_000)
    encoded = []
    open_scene = e.renderer.open
    e.renderer.open = lambda img: encoded.append(img.shape[1] * img.shape[2]) or open_scene(img)
    e.render((40, 40, 64, 48), (96, 128))
    first = sum(encoded)
    assert first < PIXELS.size / 3
    e.render((50, 45, 20, 20), (200, 200))
    assert sum(encoded) == first
    e.render((56, 40, 64, 48), (96, 128))  # a strip of 16 more
    assert first < sum(encoded) < 2 * first
    assert abs(e.render((40, 40, 80, 48), (96, 160)) - whole((40, 40, 80, 48), (96, 160))).max() <= 1
    assert len(encoded) == 2


def test_windows_are_forgotten_beyond_the_budget():
    e = explorer(encode=5000)
    e.budget = 20_000
    for x in range(0, 150, 30):
        e.render((x, 0, 50, 150), (300, 100))
        assert len(e.windows) == 1 or sum(window[3] for window in e.windows) <= 20_000


def test_nothing_more_is_computed_once_nobody_looks():
    e = explorer(encode=5000)
    seen = []
    for piece in e.stream((0, 0, 200, 150), (600, 800), alive=lambda: len(seen) < 3):
        seen.append(piece)
    assert len(seen) == 3
    assert e.render((0, 0, 200, 150), (600, 800), alive=lambda: False) is None


def test_up_to_x1_the_picture_is_resized():
    e = explorer()
    for size in ((150, 200), (60, 80)):
        wanted = np.asarray(Image.fromarray(PIXELS).resize(size[::-1], Image.BICUBIC))
        (grid, top, left, pixels), = e.stream((0, 0, 200, 150), size)
        assert grid == size and (pixels == wanted).all() and not e.windows


def test_an_encoder_that_sees_everything_is_given_everything():
    spec = {**small_spec(), 'args': {**small_spec()['args'], 'encoder_spec': {
        'name': 'rcan', 'args': {'n_resgroups': 1, 'n_resblocks': 1, 'n_feats': 16, 'no_upsampling': True}}}}
    torch.manual_seed(0)
    model = models.make(spec)
    found = explorer(model).render(*VIEWS[1])
    assert abs(found - whole(*VIEWS[1], model)).max() <= 1


def test_bands_join_to_the_view():
    e = explorer()
    region, size = (3.5, 2, 60.2, 140), (700, 301)
    bands = list(e.bands(region, size))
    assert len(bands) > 1 and (abs(np.concatenate(bands).astype(int) - e.render(region, size)) <= 1).all()


def test_the_pace_is_measured_and_the_precision_chosen_by_it():
    renderer, pace = fastest(Renderer(small_model()))
    assert renderer.precision in ('float32', 'bf16') and pace.encode > 0 and pace.decode > 0
    before = pace.decode
    pace.learn('decode', 10_000, 10_000 / before / 3)
    assert pace.decode == pytest.approx(2 * before)
    assert GRID % 2 == 0


# The server.

@pytest.fixture
def served(tmp_path):
    """(viewer, port) of a running server that shows photo.png."""
    Image.fromarray(PIXELS).save(tmp_path / 'photo.png')
    viewer = program.Viewer(Renderer(small_model()), max_bytes=200_000, max_pixels=50_000)
    viewer.renderer, viewer.pace = Renderer(viewer.renderer.model), Slow()
    viewer.open(str(tmp_path / 'photo.png'))
    server = program.make_server(viewer)
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True)
    thread.start()
    yield viewer, server.server_address[1]
    server.shutdown()
    server.server_close()


def ask(port, path, method='GET', body=None, headers=()):
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
    connection.request(method, path, body, dict(headers))
    answer = connection.getresponse()
    found = answer.status, answer.read(), answer.headers
    connection.close()
    return found


def query(viewer, region, size, **more):
    (key, _), = list(viewer.pictures.items())[-1:]
    values = {'id': key, **dict(zip('xywh', region)), 'rows': size[0], 'columns': size[1], 'page': 'p', 'view': 1}
    values.update(more)
    return '&'.join(f'{name}={value}' for name, value in values.items())


def parse(data, size):
    """The finished picture in a stream of pieces, and whether the stream says that it is finished."""
    out, covered, stream = np.zeros((*size, 3), int), np.zeros(size, int), io.BytesIO(data)
    while head := stream.read(24):
        width, height, left, top, columns, rows = struct.unpack('<6I', head)
        if not columns:
            return out, (covered == 1).all() and not stream.read()
        pixels = np.frombuffer(stream.read(3 * rows * columns), np.uint8).reshape(rows, columns, 3)
        if (height, width) == size:
            out[top:top + rows, left:left + columns] = pixels
            covered[top:top + rows, left:left + columns] += 1
    return out, False


def test_views_and_downloads_over_http(served):
    viewer, port = served
    region, size = VIEWS[1]
    found, finished = parse(ask(port, '/liif?' + query(viewer, region, size))[1], size)
    assert finished and abs(found - whole(region, size)).max() <= 1
    found, finished = parse(ask(port, '/bicubic?' + query(viewer, region, size))[1], size)
    x, y, w, h = region
    wanted = Image.fromarray(PIXELS).resize(size[::-1], Image.BICUBIC, box=(x, y, x + w, y + h))
    assert finished and (found == np.asarray(wanted)).all()
    status, data, headers = ask(port, '/download?' + query(viewer, (0, 0, 200, 150), (301, 401)))
    assert status == 200 and headers['Content-Disposition'] == 'attachment; filename="photo-401x301.png"'
    assert abs(np.asarray(Image.open(io.BytesIO(data))).astype(int) - whole(None, (301, 401))).max() <= 1
    key = json.loads(ask(port, '/start')[1])['picture']['id']
    assert (np.asarray(Image.open(io.BytesIO(ask(port, f'/source?id={key}')[1]))) == PIXELS).all()


def test_strangers_are_turned_away(served):
    viewer, port = served
    for host, status in (('127.0.0.1', 200), (f'localhost:{port}', 200), (f'[::1]:{port}', 200), ('192.168.7.7:1', 200),
                         ('evil.example', 403), (f'evil.example:{port}', 403), ('localhost.evil.example', 403),
                         ('127.0.0.1.evil.example', 403), ('a@127.0.0.1', 200), ('2130706433', 403), ('', 403)):
        assert ask(port, '/start', headers={'Host': host})[0] == status, host
    own = f'http://127.0.0.1:{port}'
    for headers, status in (({'Origin': own}, 200), ({'Sec-Fetch-Site': 'same-origin'}, 200),
                            ({'Origin': 'http://evil.example'}, 403), ({'Origin': 'null'}, 403),
                            ({'Sec-Fetch-Site': 'cross-site'}, 403), ({'Sec-Fetch-Site': 'same-site'}, 403)):
        assert ask(port, '/start', headers=headers)[0] == status, headers
        assert ask(port, '/', headers=headers)[0] == 200  # a link to the page is fine
        if status == 403:
            assert ask(port, '/pictures?name=a.png', 'POST', b'x', headers)[0] == 403
    status, page, headers = ask(port, '/')
    assert b'NONCE' not in page and "default-src 'none'" in headers['Content-Security-Policy']
    assert headers['Cache-Control'] == 'no-store' and headers['Cross-Origin-Resource-Policy'] == 'same-origin'
    assert ask(port, '/../utils.py')[0] == 404 and ask(port, '/viewer.py')[0] == 404


def test_it_listens_to_this_machine_alone():
    server = program.make_server(None)
    try:
        assert server.server_address[0] == '127.0.0.1'
        with pytest.raises(UserError, match='--port'):
            program.make_server(None, port=server.server_address[1])
    finally:
        server.server_close()


def png(shape):
    f = io.BytesIO()
    Image.fromarray(np.zeros(shape, np.uint8)).save(f, 'PNG')
    return f.getvalue()


def test_uploads_are_limited_and_leave_nothing(served, tmp_path):
    viewer, port = served
    places = [os.getcwd(), tempfile.gettempdir(), str(tmp_path)]
    before = [sorted(os.listdir(place)) for place in places[2:]] + [set(os.listdir(places[1]))]
    status, data, _ = ask(port, '/pictures?name=..%2Fgrey.png', 'POST', png((30, 40)))
    found = json.loads(data)
    assert status == 200 and found['name'] == 'grey.png' and (found['width'], found['height']) == (40, 30)
    for body, words in ((png((300, 300)), 'larger --max-pixels'), (b'GIF89a', 'a.png'), (png((9, 9))[:40], 'a.png'),
                        (b'', 'at most 0 MB')):
        status, data, _ = ask(port, '/pictures?name=a.png', 'POST', body)
        assert status == 400 and words in json.loads(data)['error'], words
    with socket.create_connection(('127.0.0.1', port)) as raw:  # refused before anything of it is read
        raw.sendall(b'POST /pictures?name=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99000000000\r\n\r\n')
        assert b' 400 ' in raw.recv(100)
    first = next(iter(viewer.pictures))
    for _ in range(program.KEPT):
        ask(port, '/pictures?name=b.png', 'POST', png((5, 5)))
    assert len(viewer.pictures) == program.KEPT
    assert ask(port, f'/source?id={first}')[0] == 410
    assert [sorted(os.listdir(place)) for place in places[2:]] == before[:1]
    assert not [name for name in set(os.listdir(places[1])) - before[1] if name.endswith(('.png', '.gif'))]


def test_transparency_is_laid_on_white(served, tmp_path):
    viewer, _ = served
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[:2] = 200, 100, 50, 255
    Image.fromarray(pixels).save(tmp_path / 'alpha.png')
    found = viewer.picture(viewer.open(str(tmp_path / 'alpha.png')))[1].pixels
    assert (found[:2] == (200, 100, 50)).all() and (found[2:] == 255).all()


@pytest.mark.parametrize('change, status', [
    ({'rows': 0}, 400), ({'rows': 200_000}, 400), ({'x': -1}, 400), ({'w': 'nan'}, 400), ({'w': 201}, 400),
    ({'h': 0}, 400), ({'id': 'x'}, 410), ({'view': 'x'}, 400), ({'columns': '1e9'}, 400)])
def test_senseless_views_are_refused(served, change, status):
    viewer, port = served
    found, data, _ = ask(port, '/liif?' + query(viewer, (0, 0, 200, 150), (300, 400), **change))
    assert found == status and json.loads(data)['error']


def start_view(viewer, port, number):
    """A long view asked for, the beginning of its answer read."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
    connection.request('GET', '/liif?' + query(viewer, (0, 0, 200, 150), (5000, 8000), view=number))
    answer = connection.getresponse()
    return connection, answer, answer.read(24)


def goes_on(viewer, seconds):
    """Whether the model computes all that time, without a pause."""
    model, calls = viewer.renderer.model, []
    decode = model.decode_grid
    model.decode_grid = lambda *args: calls.append(1) or decode(*args)
    end = time.time() + seconds
    while time.time() < end:
        before = len(calls)
        time.sleep(0.7)
        if len(calls) == before:
            return False
    return True


def test_work_goes_on_while_somebody_looks(served):
    viewer, port = served
    connection, answer, _ = start_view(viewer, port, 1)
    reading = threading.Thread(target=answer.read)
    reading.start()
    assert goes_on(viewer, 1.5)  # what the next two tests find is no accident
    viewer.looks_at('p', 2)
    reading.join(30)
    connection.close()


def test_work_ends_when_the_browser_hangs_up(served):
    viewer, port = served
    connection, answer, _ = start_view(viewer, port, 1)
    answer.close()
    connection.close()
    assert not goes_on(viewer, 8)


def test_work_ends_when_the_page_looks_elsewhere(served):
    viewer, port = served
    connection, answer, head = start_view(viewer, port, 1)
    assert parse(ask(port, '/liif?' + query(viewer, (0, 0, 20, 15), (30, 40), view=2))[1], (30, 40))[1]
    assert parse(head + answer.read(), (5000, 8000))[1] is False  # cut short, without the mark of the end
    connection.close()
    assert not goes_on(viewer, 8)


# The page.

@pytest.fixture
def page(served):
    """(page in a browser, viewer), the first view of photo.png finished."""
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    browser = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if browser is None:
        pytest.skip('no Chromium is installed (apt-get install chromium)')
    viewer, port = served
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=[
            '--headless', '--no-sandbox', '--disable-gpu', '--force-color-profile=srgb'])
        page = chromium.new_page(viewport={'width': 900, 'height': 600}, accept_downloads=True)
        page.problems = []
        page.on('pageerror', lambda error: page.problems.append(str(error)))
        page.on('console', lambda message: page.problems.append(message.text) if message.type == 'error' else None)
        page.on('request', lambda request: None if request.url.startswith(f'http://127.0.0.1:{port}/')
                else page.problems.append(request.url))
        page.goto(f'http://127.0.0.1:{port}/')
        finished(page)
        yield page, viewer
        assert not page.problems
        chromium.close()


def finished(page):
    page.wait_for_timeout(250)
    page.wait_for_selector('body[data-state=done]', timeout=60_000)
    page.wait_for_timeout(700)  # what is written across the picture fades
    return {name: float(page.get_attribute('#stage', 'data-' + name)) for name in ('scale', 'x', 'y')}


def screen(page):
    keep = os.environ.get('LIIF_SCREENSHOTS')  # a folder, to look at what was tested
    data = page.screenshot()
    if keep:
        with open(os.path.join(keep, f'{len(os.listdir(keep)):02}.png'), 'wb') as f:
            f.write(data)
    return np.asarray(Image.open(io.BytesIO(data)).convert('RGB')).astype(int)


def both(state, width=900, height=600):
    """What the screen's two methods show of a view that fills it: bicubic and LIIF (height, width, 3)."""
    s = state['scale']
    region = (state['x'] - width / 2 / s, state['y'] - height / 2 / s, width / s, height / s)
    box = (*region[:2], region[0] + region[2], region[1] + region[3])
    bicubic = Image.fromarray(PIXELS).resize((width, height), Image.BICUBIC, box=box)
    return np.asarray(bicubic).astype(int), whole(region, (height, width))


def alike(found, wanted):
    return abs(found - wanted).max() <= 2


def test_looking_around_in_a_browser(page, tmp_path):
    page, viewer = page
    first = finished(page)
    assert first['scale'] == pytest.approx((600 - 150) / 150)  # with room above and below for the bars
    assert page.text_content('#scale') == '×3.00'
    # The wheel zooms; the point under it stays.
    page.mouse.move(600, 250)
    for _ in range(5):
        page.mouse.wheel(0, -120)
    state = finished(page)
    assert 8 < state['scale'] < 12
    for axis, at in (('x', 600 - 450), ('y', 250 - 300)):
        assert first[axis] + at / first['scale'] == pytest.approx(state[axis] + at / state['scale'], abs=0.02)
    # Bicubic on the left of the divider, LIIF on the right, to the pixel.
    bicubic, liif = both(state)
    assert abs(bicubic - liif).mean() > 5  # the tiny model is no good
    shown, rows = screen(page), slice(140, 460)
    left, right = slice(20, 420), slice(480, 700)
    assert alike(shown[rows, left], bicubic[rows, left]) and alike(shown[rows, right], liif[rows, right])
    # Dragging moves.
    page.mouse.move(300, 200)
    page.mouse.down()
    page.mouse.move(260, 230, steps=4)
    page.mouse.up()
    before, state = state, finished(page)
    assert state['x'] - before['x'] == pytest.approx(40 / state['scale'], abs=1e-3)
    assert state['y'] - before['y'] == pytest.approx(-30 / state['scale'], abs=1e-3)
    # The divider moves: what was bicubic is LIIF.
    bicubic, liif = both(state)
    page.mouse.move(450, 400)
    page.mouse.down()
    page.mouse.move(200, 400, steps=5)
    page.mouse.up()
    finished(page)
    shown = screen(page)
    assert alike(shown[rows, 20:170], bicubic[rows, 20:170]) and alike(shown[rows, 230:700], liif[rows, 230:700])
    # A download of what is in view, at another size.
    page.click('#save')
    page.fill('#columns', '450')
    assert page.input_value('#rows') == '300'
    with page.expect_download() as download:
        page.click('#go')
    assert download.value.suggested_filename == 'photo-450x300.png'
    download.value.save_as(str(tmp_path / 'download.png'))
    s = state['scale']
    region = (state['x'] - 450 / s, state['y'] - 300 / s, 900 / s, 600 / s)
    assert alike(np.asarray(Image.open(tmp_path / 'download.png')).astype(int), whole(region, (300, 450)))
    # Side by side.
    page.keyboard.press('c')
    state = finished(page)
    bicubic, liif = both(state, 450)
    shown = screen(page)
    assert alike(shown[rows, 20:400], bicubic[rows, 20:400]) and alike(shown[rows, 500:700], liif[rows, 50:250])
    # Keys: the whole picture, pixel by pixel, in, left.
    page.keyboard.press('0')
    assert finished(page)['scale'] == pytest.approx(450 / 200)
    page.keyboard.press('1')
    assert finished(page)['scale'] == 1 and page.text_content('#scale') == '×1.00'
    page.keyboard.press('+')
    page.keyboard.press('ArrowLeft')
    state = finished(page)
    assert state['scale'] == pytest.approx(1.5) and state['x'] < 100


def test_pictures_dropped_on_the_page(page, tmp_path):
    page, viewer = page
    Image.fromarray(PIXELS[:90, :120]).save(tmp_path / 'other.png')
    page.set_input_files('#file', str(tmp_path / 'other.png'))
    page.wait_for_selector('#name:has-text("other.png")')
    assert finished(page)['x'] == 60 and len(viewer.pictures) == 2
    for name, data, words in (('large.png', b'x' * 300_000, 'more than the 0 MB'), ('odd.png', b'hello', 'odd.png')):
        (tmp_path / name).write_bytes(data)
        page.set_input_files('#file', str(tmp_path / name))
        page.wait_for_selector(f'#toast:has-text("{words}")')
        page.evaluate('document.getElementById("toast").hidden = true')
    page.problems[:] = [text for text in page.problems if '400 (Bad Request)' not in text]
    assert page.text_content('#size') == '120 × 90'


def test_pinching(page):
    page, _ = page
    before = finished(page)
    page.evaluate("""() => {
        const stage = document.getElementById('stage');
        stage.setPointerCapture = () => {};
        const send = (type, id, x, y) =>
            stage.dispatchEvent(new PointerEvent(type, {pointerId: id, clientX: x, clientY: y}));
        send('pointerdown', 11, 400, 300); send('pointerdown', 12, 500, 300);
        send('pointermove', 11, 350, 300); send('pointermove', 12, 550, 300);
        send('pointerup', 11, 350, 300); send('pointerup', 12, 550, 300);
    }""")
    after = finished(page)
    assert after['scale'] == pytest.approx(2 * before['scale']) and after['x'] == pytest.approx(before['x'], abs=1e-6)


def test_the_program(tmp_path):
    import re
    import signal
    import subprocess

    from tests.rendering.test_api import save_small
    Image.fromarray(PIXELS).save(tmp_path / 'photo.png')
    command = [sys.executable, os.path.join(ROOT, 'scripts', 'viewer.py'), '--model', save_small(tmp_path / 'm.pth'),
               '--gpu', 'cpu', '--port', '0']
    done = subprocess.run([*command, str(tmp_path / 'none.png')], capture_output=True, text=True)
    assert done.returncode == 2 and re.fullmatch(r'error: .*none\.png does not exist.*\n', done.stderr)
    process = subprocess.Popen([*command, str(tmp_path / 'photo.png')], stdout=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # shells' & ignores it
    try:
        port = int(re.match(r'http://127\.0\.0\.1:(\d+)/', process.stdout.readline()).group(1))
        assert json.loads(ask(port, '/start')[1])['picture']['name'] == 'photo.png'
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
