"""Laying data out: downloads from a server on this machine, archives of every known layout, and hostile ones."""
import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import types
import zipfile

import numpy as np
import pytest
from PIL import Image

from datasets import fetch
from datasets.fetch import download, read_members
from scripts import prepare_data
from tests.common import ROOT
from utils import UserError


DATA = os.path.join(os.environ.get('LIIF_DATA', os.path.join(ROOT, 'load')), 'benchmark')


def png(h, w, seed=0):
    rng = np.random.Generator(np.random.PCG64(seed))
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)).save(buffer, format='png')
    return buffer.getvalue()


def write_zip(path, files):
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


def write_tar(path, files):
    with tarfile.open(path, 'w:gz' if str(path).endswith('gz') else 'w') as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def write_folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return str(path)


def tree(folder):
    return sorted(os.path.relpath(os.path.join(root, name), folder).replace(os.sep, '/')
                  for root, _, names in os.walk(folder) for name in names)


class Server(http.server.ThreadingHTTPServer):
    """Files at paths, with ranges; `cut` holds byte counts after which the next answers break off, `raw` whole answers
    that are given instead."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.cut, self.raw, self.log, self.etag, self.ranges = {}, [], [], [], '"one"', True
        self.url = f'http://127.0.0.1:{self.server_port}/'


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server, start = self.server, 0
        data = server.files.get(self.path[1:])
        wanted = self.headers.get('Range')
        server.log.append((self.path[1:], wanted))
        if server.raw:
            self.close_connection = True
            with contextlib.suppress(ConnectionError):  # of a client that has had enough
                self.wfile.write(server.raw.pop(0))
            return None
        if data is None:
            return self.send_error(404)
        if wanted and server.ranges and self.headers.get('If-Range') == server.etag:
            start = int(wanted[len('bytes='):-1])
        if start >= len(data):
            self.send_response(416)
            self.send_header('Content-Range', f'bytes */{len(data)}')
            self.send_header('Content-Length', '0')
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(data) - 1}/{len(data)}')
        self.send_header('Content-Length', str(len(data) - start))
        if server.etag:
            self.send_header('ETag', server.etag)
        self.end_headers()
        end = start + server.cut.pop(0) if server.cut else len(data)
        self.wfile.write(data[start:end])
        if end < len(data):
            self.close_connection = True


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


BODY = np.random.Generator(np.random.PCG64(7)).bytes(300_000)
MD5 = hashlib.md5(BODY).hexdigest()


def test_download(server, tmp_path):
    server.files['a.zip'] = BODY
    path = str(tmp_path / 'sub' / 'a.zip')
    download([server.url + 'a.zip'], path, MD5)
    assert open(path, 'rb').read() == BODY and tree(tmp_path) == ['sub/a.zip']
    download([server.url + 'a.zip'], path, MD5)
    assert len(server.log) == 1  # what is there is not asked for again


def test_interruptions_are_resumed(server, tmp_path):
    server.files['a.zip'], server.cut = BODY, [100_000, 50_000]
    path = str(tmp_path / 'a.zip')
    download([server.url + 'a.zip'], path, MD5, pause=0)
    assert open(path, 'rb').read() == BODY
    assert [wanted for _, wanted in server.log] == [None, 'bytes=100000-', 'bytes=150000-']


def test_a_later_call_resumes(server, tmp_path):
    server.files['a.zip'], server.cut = BODY, [100_000]
    path = str(tmp_path / 'a.zip')
    with pytest.raises(UserError, match='ended after 100,000 of 300,000 bytes.*--from'):
        download([server.url + 'a.zip'], path, MD5, attempts=1)
    assert not os.path.exists(path) and os.path.getsize(path + '.part') == 100_000
    download([server.url + 'a.zip'], path, MD5, attempts=1)
    assert open(path, 'rb').read() == BODY and server.log[-1][1] == 'bytes=100000-'
    assert tree(tmp_path) == ['a.zip']


@pytest.mark.parametrize('change', ['other file', 'no ranges', 'no validator'])
def test_a_part_that_cannot_be_continued_is_dropped(server, tmp_path, change):
    server.files['a.zip'], server.cut = BODY, [100_000]
    server.etag = None if change == 'no validator' else '"one"'
    path = str(tmp_path / 'a.zip')
    with pytest.raises(UserError):
        download([server.url + 'a.zip'], path, attempts=1)
    expected = BODY
    if change == 'other file':
        server.files['a.zip'], server.etag = (expected := BODY[::-1]), '"two"'
    server.ranges = change != 'no ranges'
    download([server.url + 'a.zip'], path, attempts=1)
    assert open(path, 'rb').read() == expected


def test_nothing_was_missing(server, tmp_path):
    server.files['a.zip'], path = BODY, str(tmp_path / 'a.zip')
    with open(path + '.part', 'wb') as f:
        f.write(BODY)
    with open(path + '.part.json', 'w') as f:
        json.dump({'url': server.url + 'a.zip', 'validator': server.etag}, f)
    download([server.url + 'a.zip'], path, MD5)
    assert open(path, 'rb').read() == BODY and server.log == [('a.zip', 'bytes=300000-')]


def test_checksum_and_mirrors(server, tmp_path):
    server.files.update({'bad/a.zip': BODY[:-1] + b'x', 'good/a.zip': BODY})
    path = str(tmp_path / 'a.zip')
    urls = [server.url + f'{name}/a.zip' for name in ('absent', 'bad', 'good')]
    with pytest.raises(UserError) as error:
        download(urls[:2], path, MD5, pause=0)
    for part in ('absent/a.zip: Not Found', 'bad/a.zip: its MD5 is', f'expected {MD5}', '--from'):
        assert part in str(error.value)
    assert tree(tmp_path) == [] and [name for name, _ in server.log] == ['absent/a.zip', 'bad/a.zip']
    download(urls, path, MD5, pause=0)
    assert open(path, 'rb').read() == BODY


def test_unreachable_server(tmp_path):
    with Server() as closed:
        url = closed.url + 'a.zip'
    with pytest.raises(UserError, match=r'could not download a.zip \(http://127.*refused.*--from'):
        download([url], str(tmp_path / 'a.zip'), pause=0)


def test_disk_space_is_asked_first(server, tmp_path, monkeypatch):
    server.files['a.zip'] = BODY
    monkeypatch.setattr(fetch.shutil, 'disk_usage', lambda path: types.SimpleNamespace(free=1000))
    with pytest.raises(UserError, match='needs 300,000 more bytes and the disk has 1,000'):
        download([server.url + 'a.zip'], str(tmp_path / 'a.zip'))
    assert tree(tmp_path) == []


def answer(status, *headers, body=b''):
    return '\r\n'.join([f'HTTP/1.1 {status}', *headers, '', '']).encode() + body


@pytest.mark.parametrize('raw, message', [
    (answer('200 OK', 'Content-Length: many'), "a length of 'many'"),
    (answer('200 OK', 'Content-Length: -5'), "a length of '-5'"),
    (answer('302 Found', 'Location: http://['), 'redirects to an address that cannot be used'),
    (answer('302 Found', 'Location: file:///etc/passwd'), "Redirection to url 'file:///etc/passwd' is not allowed"),
    (b'not HTTP at all', 'a.zip: '), (answer('200 OK', 'X: ' + 'x' * 70_000), 'got more than 65536 bytes')])
def test_answers_that_make_no_sense(server, tmp_path, raw, message):
    server.raw = [raw]
    with pytest.raises(UserError) as error:
        download([server.url + 'a.zip'], str(tmp_path / 'a.zip'), attempts=1)
    assert message in str(error.value) and '\n' not in str(error.value) and not (tmp_path / 'a.zip').exists()


def test_redirections_in_a_circle(server, tmp_path):
    server.raw = [answer('302 Found', f'Location: {server.url}a.zip', 'Content-Length: 0')] * 20
    with pytest.raises(UserError) as error:
        download([server.url + 'a.zip'], str(tmp_path / 'a.zip'), attempts=1)
    assert 'infinite loop' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('raw', [
    answer('206 Partial Content', 'Content-Range: bytes 100000-199999/300000', 'Content-Length: 100000', 'ETag: "one"',
           body=BODY[100_000:200_000]),  # a part of what was asked for
    answer('206 Partial Content', 'Content-Range: bytes 100000-199999/200000', 'Content-Length: 100000', 'ETag: "one"',
           body=BODY[100_000:200_000]),  # of a file that is shorter than before
    answer('206 Partial Content', 'Content-Range: bytes 100000-299999/300000', 'Content-Length: 200000', 'ETag: "two"',
           body=bytes(200_000)),  # of a file that changed, in spite of If-Range
    answer('416 Range Not Satisfiable', 'Content-Range: bytes */100000', 'Content-Length: 0')])  # "that was all"
def test_short_and_changed_answers_do_not_pass_as_complete(server, tmp_path, raw):
    server.files['a.zip'], server.cut = BODY, [100_000]
    path = str(tmp_path / 'a.zip')
    with pytest.raises(UserError):
        download([server.url + 'a.zip'], path, attempts=1)
    server.raw = [raw]
    download([server.url + 'a.zip'], path, pause=0)  # without a checksum
    assert open(path, 'rb').read() == BODY


def test_an_endless_body(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, 'MAX_DOWNLOAD', 100_000)
    server.raw = [answer('200 OK', body=bytes(10_000_000))]  # no length: up to the end of the connection
    with pytest.raises(UserError, match='did not end after 100,000 bytes'):
        download([server.url + 'a.zip'], str(tmp_path / 'a.zip'), attempts=1)
    assert tree(tmp_path) == []


def everything(path):
    return {name: read() for name, _, read in read_members(path, lambda name: True)}


def test_members_of_every_container(tmp_path):
    files = {'a/b.png': png(4, 5), 'c.png': png(3, 3, 1), '.hidden': b'', '__MACOSX/a/._b.png': b'x'}
    for path in (write_zip(tmp_path / 'data.zip', files), write_tar(tmp_path / 'data.tar', files),
                 write_tar(tmp_path / 'data.tar.gz', files)):
        assert everything(path) == {'data/a/b.png': files['a/b.png'], 'data/c.png': files['c.png']}
    folder = write_folder(tmp_path / 'up' / 'data', files)
    assert everything(folder) == {'up/data/a/b.png': files['a/b.png'], 'up/data/c.png': files['c.png']}


@pytest.mark.parametrize('name', ['../x.png', 'a/../../x.png', '/etc/x.png', 'C:/x.png', '..\\x.png'])
def test_paths_that_lead_out(tmp_path, name):
    for path in (write_zip(tmp_path / 'a.zip', {name: b'1'}), write_tar(tmp_path / 'a.tar', {name: b'1'})):
        with pytest.raises(UserError, match='leads out'):
            everything(path)


def test_links_bombs_and_sizes(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / 'link.tar', 'w') as archive:
        info = tarfile.TarInfo('Set5/HR/x.png')
        info.type, info.linkname = tarfile.SYMTYPE, '/etc/passwd'
        archive.addfile(info)
    with zipfile.ZipFile(tmp_path / 'link.zip', 'w') as archive:
        info = zipfile.ZipInfo('x.png')
        info.external_attr = 0o120777 << 16
        archive.writestr(info, '/etc/passwd')
    for name in ('link.tar', 'link.zip'):
        with pytest.raises(UserError, match='a link'):
            everything(str(tmp_path / name))
    with zipfile.ZipFile(tmp_path / 'bomb.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('x.png', bytes(5_000_000))
    with pytest.raises(UserError, match='5,000,000: no image'):
        everything(str(tmp_path / 'bomb.zip'))
    monkeypatch.setattr(fetch, 'MAX_FILE', 1000)
    with pytest.raises(UserError, match='more than 1,000'):
        everything(write_tar(tmp_path / 'large.tar', {'x.png': bytes(1001)}))


def test_long_names_and_header_bombs(tmp_path):
    name = 'x' * 230 + '.png'
    for path in (write_zip(tmp_path / 'a.zip', {name: b'1'}), write_tar(tmp_path / 'a.tar', {name: b'1'})):
        with pytest.raises(UserError, match='a name that is too long'):
            everything(path)
    headers = {}
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):  # 50 MB of name, packed to 50 kB
        info = tarfile.TarInfo('name')
        info.type, info.size = kind, 50_000_000
        headers[kind] = info.tobuf(tarfile.GNU_FORMAT) + bytes(50_000_256)
    info = tarfile.TarInfo('name')
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 4
    headers['nested'] = (info.tobuf(tarfile.GNU_FORMAT) + b'abc'.ljust(512, b'\0')) * 3000
    for header in headers.values():
        (tmp_path / 'bomb.tar.gz').write_bytes(gzip.compress(header, 1))
        with pytest.raises(UserError, match='damaged, incomplete or no zip or tar'):
            everything(str(tmp_path / 'bomb.tar.gz'))


def test_false_packed_size(tmp_path):
    path = tmp_path / 'bomb.zip'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('x.png', bytes(5_000_000))
    data = bytearray(path.read_bytes())
    at = data.rindex(b'PK\1\2') + 20  # the packed size in the directory: as if it were a 50th of the unpacked
    data[at:at + 4] = (100_000).to_bytes(4, 'little')
    path.write_bytes(data)
    with pytest.raises(UserError, match='packed sizes are false'):
        everything(str(path))


def test_damaged_archives(tmp_path):
    files = {f'{i}.png': png(40, 40, i) for i in range(3)}
    for path in (write_zip(tmp_path / 'a.zip', files), write_tar(tmp_path / 'a.tar.gz', files),
                 write_tar(tmp_path / 'a.tar', files)):
        whole = open(path, 'rb').read()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 255
        for damaged in (whole[:len(whole) // 2], b'no archive', b'', bytes(flipped)):
            open(path, 'wb').write(damaged)
            if damaged == bytes(flipped) and path.endswith('.tar'):
                continue  # a plain tar has no checksum of its contents
            with pytest.raises(UserError, match='damaged, incomplete or no'):
                everything(path)
    with pytest.raises(UserError, match='no file or folder'):
        everything(str(tmp_path / 'absent.zip'))


def prepare(tmp_path, *args):
    prepare_data.main([*args, '--root', str(tmp_path / 'load'), '--workers', '1'])
    return tree(tmp_path / 'load')


@pytest.mark.parametrize('container', ['zip', 'tar', 'folder', 'inner folder', 'folder of archives'])
def test_benchmark_layout_of_edsr(tmp_path, container, capsys):
    files = {'benchmark/Set5/HR/baby.png': png(24, 25), 'benchmark/Set5/bin/baby.pt': b'pickle',
             **{f'benchmark/Set5/LR_bicubic/X{s}/babyx{s}.png': png(24 // s, 25 // s, s) for s in (2, 3)},
             'benchmark/B100/HR/3096.png': png(12, 16)}
    source = {'zip': lambda: write_zip(tmp_path / 'x.zip', files), 'tar': lambda: write_tar(tmp_path / 'x.tar', files),
              'folder': lambda: write_folder(tmp_path / 'x', files),
              'inner folder': lambda: write_folder(tmp_path / 'x', files) + '/benchmark/Set5',
              'folder of archives': lambda: os.path.dirname(write_tar(tmp_path / 'x.tgz', files))}[container]()
    placed = prepare(tmp_path, 'benchmark', '--from', source)
    expected = ['benchmark/Set5/HR/baby.png'] + [f'benchmark/Set5/LR_bicubic/X{s}/babyx{s}.png' for s in (2, 3, 4)]
    if container != 'inner folder':
        expected += ['benchmark/B100/HR/3096.png'] + [f'benchmark/B100/LR_bicubic/X{s}/3096x{s}.png' for s in (2, 3, 4)]
    assert placed == sorted(expected)
    for s in (2, 3):  # given, not made
        name = f'benchmark/Set5/LR_bicubic/X{s}/babyx{s}.png'
        assert (tmp_path / 'load' / name).read_bytes() == files[name]
    out = capsys.readouterr().out
    assert 'Set5/HR: 1 of 5 images' in out and 'Urban100/HR: 0 of 100' in out
    before = {name: os.stat(tmp_path / 'load' / name).st_mtime_ns for name in placed}
    prepare(tmp_path, 'benchmark', '--from', source)
    assert {name: os.stat(tmp_path / 'load' / name).st_mtime_ns for name in placed} == before


def test_benchmark_other_layouts(tmp_path, capsys):
    modcrop = {'Set5/GTmod12/bird.png': png(24, 24), 'Set5/LRbicx2/bird.png': png(12, 12),
               'Set5/LRbicx3/bird.png': png(8, 8), 'Set5/LRbicx4/bird.png': png(6, 6)}
    srf = {**{f'BSD100/image_SRF_{n}/img_001_SRF_{n}_HR.png': png(25 // n * n, 26 // n * n, n) for n in (2, 3, 4)},
           **{f'BSD100/image_SRF_{n}/img_001_SRF_{n}_LR.png': png(25 // n, 26 // n, n) for n in (2, 3, 4)},
           'BSD100/image_SRF_2/img_001_SRF_2_bicubic.png': png(24, 26)}
    plain = {'Urban100_HR/img_001.png': png(25, 26)}
    both = {**{name.replace('Set5', 'Set14'): data for name, data in modcrop.items()},
            'Set14/original/bird.bmp': png(26, 27)}
    placed = prepare(tmp_path, 'benchmark', '--from', write_zip(tmp_path / 'Set5.zip', modcrop),
                     write_folder(tmp_path / 'SelfExSR', srf), write_tar(tmp_path / 'Urban100_HR.tar.gz', plain),
                     write_folder(tmp_path / 'more', both))
    root = tmp_path / 'load' / 'benchmark'
    assert len(placed) == 16
    for target, data in {'Set5/HR/bird.png': png(24, 24), 'Set5/LR_bicubic/X3/birdx3.png': png(8, 8),
                         'B100/HR/img_001.png': png(24, 26, 2), 'B100/LR_bicubic/X2/img_001x2.png': png(12, 13, 2),
                         'Urban100/HR/img_001.png': png(25, 26), 'Set14/HR/bird.bmp': png(26, 27)}.items():
        assert (root / target).read_bytes() == data
    assert Image.open(root / 'B100/LR_bicubic/X3/img_001x3.png').size == (8, 8)
    assert Image.open(root / 'Set14/LR_bicubic/X2/birdx2.png').size == (13, 13)
    out = capsys.readouterr().out
    assert 'Set5: these images were cropped' in out and 'B100: these' in out and 'Set14: these' not in out


def test_what_is_there_is_not_replaced(tmp_path):
    write_folder(tmp_path / 'load', {'benchmark/Set5/HR/baby.png': png(9, 9)})
    with pytest.raises(UserError, match='baby.png is there and is not .*remove it'):
        prepare(tmp_path, 'benchmark', '--from', write_zip(tmp_path / 'x.zip', {'Set5/HR/baby.png': png(24, 24)}))


def test_nothing_known_in_the_source(tmp_path):
    with pytest.raises(UserError, match='none of the layouts known for benchmark'):
        prepare(tmp_path, 'benchmark', '--from', write_zip(tmp_path / 'x.zip', {'cats/1.png': png(9, 9)}))


DIV2K_FILES = {
    'DIV2K_valid_HR.zip': {'DIV2K_valid_HR/0801.png': png(26, 28)},
    'DIV2K_train_HR.zip': {'DIV2K_train_HR/0001.png': png(12, 12, 1), 'DIV2K_train_HR/0800.png': png(12, 13, 2)}}
for s in (2, 3, 4):
    DIV2K_FILES[f'DIV2K_valid_LR_bicubic_X{s}.zip'] = {
        f'DIV2K_valid_LR_bicubic/X{s}/0801x{s}.png': png(26 // s, 28 // s, s)}
DIV2K_TREE = ['div2k/' + name for names in DIV2K_FILES.values() for name in names]


def test_div2k_from_archives_and_folders(tmp_path):
    zips = [write_zip(tmp_path / name, files) for name, files in DIV2K_FILES.items() if 'LR' not in name]
    placed = prepare(tmp_path, 'div2k', '--from', *zips)
    assert placed == sorted(DIV2K_TREE)  # the low-resolution images were made
    assert (tmp_path / 'load/div2k/DIV2K_valid_HR/0801.png').read_bytes() == png(26, 28)

    # EDSR's tar keeps all 900 images in the train folders; --train-lr lays out those too.
    edsr = {'DIV2K/DIV2K_train_HR/0001.png': png(12, 12, 1), 'DIV2K/DIV2K_train_HR/0801.png': png(26, 28),
            'DIV2K/DIV2K_train_LR_bicubic/X2/0801x2.png': png(13, 14, 2), 'DIV2K/bin/DIV2K_train_HR/0001.pt': b''}
    placed = prepare(tmp_path / 'b', 'div2k', '--train-lr', '--from', write_tar(tmp_path / 'DIV2K.tar', edsr))
    assert placed == sorted(f'div2k/DIV2K_{split}_{name}' for split, i in (('train', '0001'), ('valid', '0801'))
                            for name in (f'HR/{i}.png', *(f'LR_bicubic/X{s}/{i}x{s}.png' for s in (2, 3, 4))))
    folder = write_folder(tmp_path / 'c' / 'DIV2K_train_HR', {'0007.png': png(9, 9)})
    assert 'div2k/DIV2K_train_HR/0007.png' in prepare(tmp_path / 'c', 'div2k', '--from', folder)


def test_div2k_download(server, tmp_path, monkeypatch):
    table = {}
    for name, files in DIV2K_FILES.items():
        server.files['mirror/' + name] = open(write_zip(tmp_path / name, files), 'rb').read()
        table[name] = (hashlib.md5(server.files['mirror/' + name]).hexdigest(), prepare_data.DIV2K[name][1])
    monkeypatch.setattr(prepare_data, 'DIV2K', table)
    monkeypatch.setattr(prepare_data, 'DIV2K_URLS', (server.url + 'official/{}', server.url + 'mirror/{}'))
    monkeypatch.setattr(prepare_data, 'div2k_count', lambda target: 2 if 'train' in target else 1)
    assert prepare(tmp_path, 'div2k') == sorted(DIV2K_TREE)  # and no archive is left
    asked = len(server.log)
    os.unlink(tmp_path / 'load/div2k/DIV2K_valid_LR_bicubic/X3/0801x3.png')
    assert prepare(tmp_path, 'div2k') == sorted(DIV2K_TREE)
    assert {name for name, _ in server.log[asked:]} == {f'{mirror}/DIV2K_valid_LR_bicubic_X3.zip'
                                                        for mirror in ('official', 'mirror')}


def test_benchmark_download_falls_back_to_single_sets(server, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_data, 'BENCHMARK_URL', server.url + 'benchmark.tar')
    monkeypatch.setattr(prepare_data, 'SET_URL', server.url + '{0}_HR.tar.gz')
    for name in ('Set5', 'Set14', 'BSD100', 'Urban100'):
        path = write_tar(tmp_path / f'{name}_HR.tar.gz', {f'{name}_HR/a.png': png(12, 12)})
        server.files[f'{name}_HR.tar.gz'] = open(path, 'rb').read()
    placed = prepare(tmp_path, 'benchmark')
    assert placed == sorted(f'benchmark/{name}/{file}' for name in prepare_data.COUNTS
                            for file in ('HR/a.png', *(f'LR_bicubic/X{s}/ax{s}.png' for s in (2, 3, 4))))


def test_real_benchmark_folder(tmp_path):
    source = os.path.join(DATA, 'Set5')
    if not os.path.isdir(source):
        pytest.skip(f'no Set5 in {DATA} (set LIIF_DATA)')
    files = {name: open(os.path.join(source, name), 'rb').read() for name in tree(source)}
    hr_only = {'Set5/' + name: data for name, data in files.items() if name.startswith('HR/')}
    given = prepare(tmp_path / 'a', 'benchmark', '--from', source)
    made = prepare(tmp_path / 'b', 'benchmark', '--from', write_zip(tmp_path / 'hr.zip', hr_only))
    assert given == made and len(given) == 20
    for name in given:
        a, b = (np.asarray(Image.open(tmp_path / side / 'load' / name)) for side in 'ab')
        assert np.array_equal(a, b), name
        assert (tmp_path / 'a' / 'load' / name).read_bytes() == files[name[len('benchmark/Set5/'):]]


def test_celeba_hq(tmp_path):
    faces = {f'data1024x1024/{i:05d}.jpg': png(300, 300, i) for i in range(7)}
    source = write_zip(tmp_path / 'data1024x1024.zip', faces)
    placed = prepare(tmp_path, 'celebAHQ', '--from', source)
    root = tmp_path / 'load' / 'celebAHQ'
    assert placed == sorted([f'celebAHQ/{size}/{i:05d}.png' for size in (256, 128, 64, 32) for i in range(7)]
                            + ['celebAHQ/split.json'])
    original = Image.open(io.BytesIO(faces['data1024x1024/00003.jpg']))
    for size in (256, 32):
        assert np.array_equal(np.asarray(Image.open(root / f'{size}/00003.png')),
                              np.asarray(original.resize((size, size), Image.BICUBIC)))
    split = json.loads((root / 'split.json').read_text())
    assert sorted(split['train'] + split['val']) == [f'{i:05d}.png' for i in range(7)] and len(split['val']) == 1

    # Again, with one image lost and a split given; then a split that belongs to other images.
    (root / '64' / '00002.png').unlink()
    given = tmp_path / 'given.json'
    given.write_text(json.dumps({'train': ['00000.jpg', '00002.jpg'], 'val': ['00001.png']}))
    assert prepare(tmp_path, 'celebAHQ', '--from', source, '--split', str(given)) == placed
    assert json.loads((root / 'split.json').read_text()) == {'train': ['00000.png', '00002.png'], 'val': ['00001.png']}
    for text, message in ((json.dumps({'train': ['99999.png']}), "such as '99999'"), ('[1]', 'cannot be used'),
                          ('{', 'cannot be used')):
        given.write_text(text)
        with pytest.raises(UserError, match=message):
            prepare(tmp_path, 'celebAHQ', '--from', source, '--split', str(given))


def test_celeba_hq_bad_faces(tmp_path, capsys):
    files = {'1.png': png(300, 300), '2.png': png(300, 200), '3.png': png(300, 300)[:5000],
             'split.json': b'{"val": ["1.png"]}'}
    with pytest.raises(UserError, match='2 images could not be used'):
        prepare(tmp_path, 'celebAHQ', '--from', write_folder(tmp_path / 'faces', files))
    assert os.listdir(tmp_path / 'load/celebAHQ/32') == ['1.png']
    assert json.loads((tmp_path / 'load/celebAHQ/split.json').read_text()) == {'val': ['1.png']}
    err = capsys.readouterr().err
    assert '2.png: found 200x300 pixels, expected a square' in err and '3.png cannot be read' in err
    with pytest.raises(UserError, match='would get one name'):
        source = write_folder(tmp_path / 'x', {'a/1.png': png(256, 256), 'b/1.png': b''})
        prepare(tmp_path / 'b', 'celebAHQ', '--from', source)
    with pytest.raises(UserError, match='no images are in there'):
        prepare(tmp_path / 'c', 'celebAHQ', '--from', write_folder(tmp_path / 'y', {'notes.txt': b''}))
    with pytest.raises(UserError, match='pass their folder or archive with --from'):
        prepare(tmp_path, 'celebAHQ')


def test_sample(tmp_path):
    pytest.importorskip('skimage')
    placed = prepare(tmp_path, 'sample')
    assert 'sample/valid/chelsea.png' in placed and 'sample/train/astronaut.png' in placed


def test_program(tmp_path):
    command = [sys.executable, os.path.join(ROOT, 'scripts', 'prepare_data.py'), 'div2k', '--root', str(tmp_path)]
    run = subprocess.run([*command, '--from', str(tmp_path / 'absent.zip')], capture_output=True, text=True)
    assert run.returncode == 2 and 'Traceback' not in run.stderr
    assert run.stderr.strip().splitlines()[-1] == f'error: there is no file or folder {tmp_path}/absent.zip'


def test_photos(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare_data, 'TILE', 4)
    grey = io.BytesIO()
    Image.open(io.BytesIO(png(5, 4, 3))).convert('L').save(grey, format='png')
    large = png(7, 9, 1)
    archive = write_zip(tmp_path / 'a.zip', {
        'repository-main/images/train/100007.jpg': png(5, 4), 'repository-main/images/train/1001682.png': large,
        'repository-main/images/train/1028637.png': grey.getvalue(), 'b100/3096.jpg': png(6, 5)})
    folder = write_folder(tmp_path / 'b', {'validation/70497.png': png(7, 6),
                                           'validation/100a02c269c5948392f283b2aa3bb4da.png': png(8, 6)})
    for sources in ([archive], [folder], [archive, folder]):
        placed = prepare(tmp_path, 'photos', '--from', *sources)
    tiles = [f'1001682_{i}_{j}.png' for i in (0, 1) for j in (0, 1)]  # 7 rows are nearer to two tiles of 4 than to one
    assert placed == sorted([f'photos/train/{name}' for name in ['100007.png', '1028637.png', *tiles]] + [
        'photos/valid/70497.png', 'photos/valid/clic2025val_100a02c269c5948392f283b2aa3bb4da.png'])
    whole = np.asarray(Image.open(io.BytesIO(large)))
    train = tmp_path / 'load' / 'photos' / 'train'
    pieces = [np.asarray(Image.open(train / name)) for name in tiles]
    assert [piece.shape[:2] for piece in pieces] == [(3, 4), (3, 5), (4, 4), (4, 5)]
    assert np.array_equal(np.vstack([np.hstack(pieces[:2]), np.hstack(pieces[2:])]), whole)
    assert Image.open(train / '1028637.png').mode == 'RGB'
    assert 'train: 6 of 1008 images' in capsys.readouterr().out

    # An interrupted run cuts the missing tiles; a damaged image is named at the end.
    (train / tiles[2]).unlink()
    before = (train / tiles[1]).stat().st_mtime_ns
    damaged = write_folder(tmp_path / 'c', {'100039.jpg': png(9, 9)[:50]})
    with pytest.raises(UserError, match='1 images could not be used'):
        prepare(tmp_path, 'photos', '--from', archive, damaged)
    assert '100039.jpg cannot be read' in capsys.readouterr().err
    assert sorted(os.listdir(train)) == sorted(['100007.png', '1028637.png', *tiles])
    assert (train / tiles[1]).stat().st_mtime_ns == before
    with pytest.raises(UserError, match='docs/budget.md'):
        prepare(tmp_path / 'x', 'photos')
