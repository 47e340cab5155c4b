"""The members of archives and folders; hostile and damaged archives are refused."""
import gzip
import tarfile
import zipfile

import pytest

from datasets import fetch
from datasets.fetch import read_members
from tests.scripts.common import png, write_folder, write_tar, write_zip
from utils import UserError


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
