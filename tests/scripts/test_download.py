"""Downloads from a server on this machine: interrupted, resumed, checked, and answers that make no sense."""
import hashlib
import json
import os
import types

import numpy as np
import pytest

from datasets import fetch
from datasets.fetch import download
from tests.scripts.common import Server, tree
from utils import UserError


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
    with pytest.raises(UserError, match='ended after 100,000 of 300,000 bytes.*give its path'):
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
    for part in ('absent/a.zip: Not Found', 'bad/a.zip: its MD5 is', f'expected {MD5}', 'give its path'):
        assert part in str(error.value)
    assert tree(tmp_path) == [] and [name for name, _ in server.log] == ['absent/a.zip', 'bad/a.zip']
    download(urls, path, MD5, pause=0)
    assert open(path, 'rb').read() == BODY


def test_unreachable_server(tmp_path):
    with Server() as closed:
        url = closed.url + 'a.zip'
    with pytest.raises(UserError, match=r'could not download a.zip \(http://127.*refused.*give its path'):
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
