"""The viewer's server: views equal the exact render, and strangers, damaged files and slow senders get nowhere."""
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from engine.rendering.api import to_tensor
from engine.rendering.renderer import Renderer
from tests.conftest import ROOT
from tests.programs import program
from tests.viewer.common import PIXELS, VIEWS, ask, exact, query, serving, small_viewer
from utils import UserError
from viewer import images, serve, web
from viewer.lattice import CLIP, lattice_tile


@pytest.fixture
def served(tmp_path):
    """(viewer, port) of a running server that shows photo.png."""
    viewer = small_viewer(tmp_path / 'photo.png', max_bytes=200_000, max_pixels=50_000)
    with serving(viewer) as port:
        yield viewer, port


def opened(data):
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def test_what_is_sent(served):
    viewer, port = served
    start = json.loads(ask(port, '/start')[1])
    key = start['picture']['id']
    assert start['picture'] == {'id': key, 'name': 'photo.png', 'width': 200, 'height': 150, 'model': None}
    assert (opened(ask(port, f'/source?id={key}')[1]) == PIXELS).all()
    about = json.loads(ask(port, f'/model?name={start["models"][0]}')[1])
    assert about['lattice'] and about['kind'] == 'LIIF'
    image = to_tensor(viewer.picture(key).pixels[..., :3])
    scene = viewer.scenes[key, 'small'] if viewer.scenes else viewer.renderers['small'].open(image)
    for steps in about['steps']:
        data = ask(port, f'/tile?id={key}&model=small&row=4&column=6&steps={steps}')[1]
        wanted = lattice_tile(scene, 4, 6, steps)  # the last one, which is smaller
        assert wanted.shape == (23 * steps + 1, 9 * steps + 1, 3) and data == wanted.tobytes()


@pytest.mark.parametrize('region, size', VIEWS)
def test_views_are_exact(served, region, size):
    viewer, port = served
    status, data, headers = ask(port, '/render?' + query(viewer, region, size))
    assert status == 200 and 'Content-Disposition' not in headers
    assert abs(opened(data) - exact(region, size)).max() <= 1


@pytest.mark.parametrize('path', ['/', '/start', '/source', '/render', '/nothing'])
def test_head_is_get_without_a_body(served, path):
    viewer, port = served
    path += {'/source': f'?id={next(iter(viewer.pictures))}', '/render': '?' + query(viewer, *VIEWS[0])}.get(path, '')
    wanted, found = ask(port, path), ask(port, path, 'HEAD')
    assert found[0] == wanted[0] and found[1] == b'' and wanted[1]
    without = {'Date'}
    assert {k: v for k, v in found[2].items() if k not in without} == \
        {k: v for k, v in wanted[2].items() if k not in without}


def test_downloads_in_bands(served, monkeypatch):
    monkeypatch.setattr(images, 'BAND', 40_000)
    viewer, port = served
    status, data, headers = ask(port, '/render?' + query(viewer, (0, 0, 200, 150), (301, 401), save=1))
    assert status == 200 and headers['Content-Disposition'] == 'attachment'  # the page gives the name
    assert abs(opened(data) - exact((0, 0, 200, 150), (301, 401))).max() <= 1


@pytest.mark.parametrize('size', [(150, 200), (60, 80)])
def test_up_to_x1_the_image_is_resized(served, size):
    viewer, port = served
    found = opened(ask(port, '/render?' + query(viewer, (0, 0, 200, 150), size))[1])
    assert (found == np.asarray(Image.fromarray(PIXELS).resize(size[::-1], Image.BICUBIC))).all()


def test_transparency_is_kept(served, tmp_path):
    viewer, port = served
    pixels = np.zeros((40, 60, 4), np.uint8)
    pixels[:20] = 200, 100, 50, 255
    Image.fromarray(pixels).save(tmp_path / 'alpha.png')
    key = viewer.open(str(tmp_path / 'alpha.png'))
    sent = opened(ask(port, f'/source?id={key}')[1])
    assert (sent[..., 3] == pixels[..., 3]).all() and abs(sent[..., :3] - (200, 100, 50)).max() <= 1  # not black below
    found = opened(ask(port, '/render?' + query(viewer, (0, 0, 60, 40), (80, 120), save=1))[1])
    assert found.shape == (80, 120, 4) and (found[:36, :, 3] == 255).all() and (found[44:, :, 3] == 0).all()
    assert abs(found[..., :3] - exact(None, (80, 120), sent[..., :3].astype(np.uint8))).max() <= 1


def test_strangers_are_turned_away(served):
    viewer, port = served
    for host, status in (('127.0.0.1', 200), (f'localhost:{port}', 200), (f'[::1]:{port}', 200), ('192.168.7.7:1', 200),
                         ('evil.example', 403), (f'evil.example:{port}', 403), ('localhost.evil.example', 403),
                         ('127.0.0.1.evil.example', 403), ('a@127.0.0.1', 200), ('2130706433', 403), ('', 403)):
        assert ask(port, '/start', headers={'Host': host})[0] == status, host
    own = f'http://127.0.0.1:{port}'
    for headers, status in (({'Origin': own}, 200), ({'Sec-Fetch-Site': 'same-origin'}, 200),
                            ({'Origin': 'http://evil.example'}, 403), ({'Origin': 'null'}, 403),
                            ({'Origin': 'http://['}, 403), ({'Sec-Fetch-Site': 'cross-site'}, 403),
                            ({'Sec-Fetch-Site': 'same-site'}, 403)):
        assert ask(port, '/start', headers=headers)[0] == status, headers
        assert ask(port, '/', headers=headers)[0] == 200  # a link to the page is fine
        if status == 403:
            assert ask(port, '/pictures?name=a.png', 'POST', b'x', headers)[0] == 403
    status, page, headers = ask(port, '/')
    assert "default-src 'none'" in headers['Content-Security-Policy'] and b'<script>' not in page
    assert headers['Cache-Control'] == 'no-store' and headers['Cross-Origin-Resource-Policy'] == 'same-origin'
    assert ask(port, '/../utils.py')[0] == 404 and ask(port, '/serve.py')[0] == 404
    assert ask(port, '/main.js')[2]['Content-Type'].startswith('text/javascript')


def exchange(port, data, timeout=10):
    """All that a connection answers to some bytes, until it is closed."""
    with socket.create_connection(('127.0.0.1', port), timeout=timeout) as raw:
        raw.sendall(data)
        found = b''
        while part := raw.recv(65536):
            found += part
        return found


def test_the_body_of_a_get_is_no_request(served, capfd):
    _, port = served
    inner = b'GET /start HTTP/1.1\r\nHost: localhost\r\n\r\n'
    for head in (b'Content-Length: %d' % len(inner), b'Transfer-Encoding: chunked'):
        found = exchange(port, b'GET /start HTTP/1.1\r\nHost: localhost\r\n' + head + b'\r\n\r\n' + inner)
        assert found.count(b'HTTP/1.1') == 1
    assert b' 400 ' in exchange(port, b'GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n')
    assert capfd.readouterr().err == ''


def test_dripped_headers_end_at_the_timeout(served, monkeypatch):
    _, port = served
    monkeypatch.setattr(web.Handler, 'timeout', 1)
    with socket.create_connection(('127.0.0.1', port), timeout=20) as raw:
        raw.sendall(b'GET /start HTTP/1.1\r\n')
        with pytest.raises(OSError):
            for _ in range(100):
                raw.sendall(b'X: y\r\n')
                time.sleep(0.1)
    assert ask(port, '/start')[0] == 200


def test_it_listens_to_this_machine_alone():
    server = web.make_server(None)
    try:
        assert server.server_address[0] == '127.0.0.1'
        with pytest.raises(UserError, match='--port'):
            web.make_server(None, port=server.server_address[1])
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
                        (b'', 'the file is empty')):
        status, data, _ = ask(port, '/pictures?name=a.png', 'POST', body)
        assert status == 400 and words in json.loads(data)['error'], words
    for length in (b'99000000000', b'-1', b'1e3'):  # refused before anything of it is read
        assert b' 400 ' in exchange(port, b'POST /pictures?name=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: '
                                    + length + b'\r\n\r\n')
    first = next(iter(viewer.pictures))
    for _ in range(images.KEPT):
        ask(port, '/pictures?name=b.png', 'POST', png((5, 5)))
    assert len(viewer.pictures) == images.KEPT
    assert ask(port, f'/source?id={first}')[0] == 410
    assert json.loads(ask(port, f'/start?id={first}')[1])['gone']
    assert [sorted(os.listdir(place)) for place in places[2:]] == before[:1]
    assert not [name for name in set(os.listdir(places[1])) - before[1] if name.endswith(('.png', '.gif'))]


def test_one_file_is_decoded_at_a_time(served, monkeypatch):
    viewer, port = served
    running, most, read = [], [], images.read_source

    def slow(*args):
        running.append(1)
        most.append(len(running))
        time.sleep(0.2)
        running.pop()
        return read(*args)

    monkeypatch.setattr(images, 'read_source', slow)
    statuses = []
    upload = '/pictures?name=a.png', 'POST', png((9, 9))
    threads = [threading.Thread(target=lambda: statuses.append(ask(port, *upload)[0]))
               for _ in range(web.UPLOADS + 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and set(statuses) <= {200, 503} and statuses.count(200) >= web.UPLOADS


@pytest.mark.parametrize('path, change, status', [
    ('/render', {'rows': 0}, 400), ('/render', {'rows': 200_000}, 400), ('/render', {'x': -1}, 400),
    ('/render', {'w': 'nan'}, 400), ('/render', {'w': 201}, 400), ('/render', {'h': 0}, 400),
    ('/render', {'id': 'x'}, 410), ('/render', {'model': 'x'}, 400), ('/render', {'columns': '1e9'}, 400),
    ('/render', {'rows': 1, 'columns': 100_001}, 400),
    ('/tile', {'model': 'x', 'row': 0, 'column': 0, 'steps': 3}, 400),
    ('/tile', {'row': 5, 'column': 0, 'steps': 3}, 400), ('/tile', {'row': -1, 'column': 0, 'steps': 3}, 400),
    ('/tile', {'row': 0, 'column': 0, 'steps': 9}, 400), ('/tile', {'row': 0, 'column': 'x', 'steps': 3}, 400)])
def test_senseless_requests_are_refused(served, path, change, status):
    viewer, port = served
    found, data, _ = ask(port, f'{path}?' + query(viewer, (0, 0, 200, 150), (300, 400), **change))
    message = json.loads(data)['error']
    assert found == status and message and 'convert' not in message


def test_tiles_of_a_model_without_lattice_are_refused(tmp_path):
    from tests.common import small_model
    viewer = small_viewer(tmp_path / 'photo.png', model=small_model(local_ensemble=False))
    with serving(viewer) as port:
        assert json.loads(ask(port, '/model?name=small')[1])['lattice'] is False
        status, data, _ = ask(port, '/tile?' + query(viewer, (0, 0, 9, 9), (9, 9), row=0, column=0, steps=3))
        assert status == 400 and 'no lattice' in json.loads(data)['error']


def test_work_ends_when_the_browser_hangs_up(served, monkeypatch):
    monkeypatch.setattr(images, 'BAND', 100_000)
    viewer, port = served
    calls, decode = [], viewer.renderers['small'].model.decode_grid
    monkeypatch.setattr(viewer.renderers['small'].model, 'decode_grid', lambda *args: calls.append(1) or decode(*args))
    request = '/render?' + query(viewer, (0, 0, 200, 150), (5000, 8000))
    threads = threading.active_count()
    with socket.create_connection(('127.0.0.1', port), timeout=30) as raw:
        raw.sendall(f'GET {request} HTTP/1.1\r\nHost: localhost\r\n\r\n'.encode())
        raw.recv(10)
        while len(calls) < 3:
            raw.recv(1 << 20)
    end = time.time() + 60
    while threading.active_count() > threads:  # that of the connection is at work
        assert time.time() < end
        time.sleep(0.05)
    assert 0 < len(calls) < 300  # of 400 bands


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A folder to be used as weights/, with four sets of weights."""
    for name in ('a', 'b', 'edsr-baseline-liif-photo', 'published'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'model.pth').write_bytes(b'')
    (tmp_path / 'default.txt').write_text('b\n')
    monkeypatch.setattr('engine.checkpoint.WEIGHTS', str(tmp_path))
    return tmp_path


def test_models_that_can_be_chosen(weights, monkeypatch):
    assert list(images.find_models()) == ['clean', 'photo', 'a', 'published']
    assert list(images.find_models('my.pth')) == ['my.pth', 'clean', 'photo', 'a', 'published']
    assert list(images.find_models('photo')) == ['photo', 'clean', 'a', 'published']
    (weights / 'edsr-baseline-liif-photo' / 'model.pth').unlink()
    assert list(images.find_models()) == ['clean', 'a', 'published']
    monkeypatch.setattr('engine.checkpoint.WEIGHTS', str(weights / 'none'))
    with pytest.raises(UserError, match='name a checkpoint'):
        images.find_models()


def test_the_kind_of_the_file_chooses_the_model(weights, tmp_path):
    files = {'a.jpg': ('JPEG', 'photo'), 'b.png': ('WEBP', 'photo'), 'c.webp': ('PNG', 'clean')}
    for name, (kind, _) in files.items():
        Image.fromarray(PIXELS).save(tmp_path / name, kind)
    for suit in (True, False):
        viewer = images.Viewer(images.find_models(), suit=suit)
        for name, (_, model) in files.items():
            found = viewer.describe(viewer.open(str(tmp_path / name)))['model']
            assert found == (model if suit else None), name
    (weights / 'edsr-baseline-liif-photo' / 'model.pth').unlink()
    viewer = images.Viewer(images.find_models())
    assert viewer.describe(viewer.open(str(tmp_path / 'a.jpg')))['model'] == 'clean'


def test_codes_of_few_images_are_held(served, tmp_path):
    viewer, _ = served
    keys = [viewer.open(str(tmp_path / 'photo.png')) for _ in range(3)]
    for key in keys:
        viewer.tile(key, 'small', 0, 0, 3)
    assert list(viewer.scenes) == [(key, 'small') for key in keys[-images.SCENES:]]
    assert isinstance(viewer.renderers['small'], Renderer) and viewer.renderers['small'].cell_clip == CLIP


@pytest.mark.parametrize('error, words', [(RuntimeError('odd'), 'its terminal says why'),
                                          (torch.OutOfMemoryError('no room'), 'open a smaller image')])
def test_failures_are_answered_and_printed(served, monkeypatch, capfd, error, words):
    viewer, port = served

    def fail(*args):
        raise error

    monkeypatch.setattr(viewer, '_scene', fail)
    for path, more in (('/tile', {'row': 0, 'column': 0, 'steps': 3}), ('/render', {})):
        status, data, _ = ask(port, f'{path}?' + query(viewer, (0, 0, 9, 9), (90, 90), **more))
        assert status == 500 and words in json.loads(data)['error']
        assert 'Traceback' in capfd.readouterr().err
    assert ask(port, '/start')[0] == 200


def test_a_file_that_is_refused_gets_its_answer(served):
    """Although the sender first sends all of it: a connection that is closed with unread bytes is reset."""
    _, port = served
    for path, headers, status in (('/nothing', {}, 404), ('/pictures', {'Origin': 'http://evil.example'}, 403)):
        for _ in range(5):
            found, data, _ = ask(port, path, 'POST', bytes(199_000), headers)
            assert found == status and json.loads(data)['error']


@pytest.mark.parametrize('flags', [['--host', ''], ['--max-pixels', 'inf'], ['--max-upload', 'nan']])
def test_flags_that_make_no_sense(flags, capsys):
    with pytest.raises((UserError, SystemExit)) as error:
        serve.main(flags)
    assert f'{flags[0]}: found' in f'{error.value}{capsys.readouterr().err}'


def test_the_program(tmp_path):
    from tests.rendering.test_api import save_small
    Image.fromarray(PIXELS).save(tmp_path / 'photo.png')
    script, *flags = 'scripts/viewer.py', '--model', save_small(tmp_path / 'm.pth'), '--gpu', 'cpu', '--port', '0'
    done = program(script, *flags, tmp_path / 'none.png')
    assert done.returncode == 2 and re.fullmatch(r'error: .*none\.png does not exist.*\n', done.stderr)
    process = subprocess.Popen([sys.executable, os.path.join(ROOT, script), *flags, str(tmp_path / 'photo.png')],
                               stdout=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # shells' & ignores it
    try:
        port = int(re.match(r'http://127\.0\.0\.1:(\d+)/', process.stdout.readline()).group(1))
        assert json.loads(ask(port, '/start')[1])['picture']['name'] == 'photo.png'
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
