"""Files from elsewhere: downloads that resume and are checked, archives that are read without trusting them."""
import bz2
import contextlib
import errno
import gzip
import hashlib
import http.client
import json
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib

from tqdm import tqdm

from utils import UserError, first_line, write_file


BLOCK = 1 << 20
MAX_FILE = 1 << 30  # bytes of one file in an archive; the largest images of the data sets have 20 MB
MAX_FILES = 1_000_000
MAX_NAME = 200  # bytes of one part of a name; file systems take 255, and a temporary file's is longer
MAX_DOWNLOAD = 1 << 34  # bytes of an answer that does not state its length
MAX_RATIO = 200  # unpacked to packed, for files beyond a megabyte: images do not compress, bombs do


def download(urls, path, md5=None, attempts=4, pause=2.0, timeout=30):
    """Fetch to `path` the one file that all `urls` (mirrors) hold; an existing `path` is left as it is.

    What arrived before an interruption stands in `path`.part and is continued, by this call and by later ones; the
    server's validator makes sure that it is still the same file. md5: hexadecimal, checked at the end.
    Raises UserError naming each URL and what was wrong with it.
    """
    if os.path.exists(path):
        return
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    problems = []
    for url in urls:
        try:
            _download_one(url, path + '.part', attempts, pause, timeout)
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, 'errno', None) == errno.ENOSPC:
                raise
            reason = getattr(error, 'reason', None) or error
            problems.append(f'{url}: {" ".join(str(reason).split()) or type(error).__name__}')
            continue
        found = _md5(path + '.part') if md5 else None
        if found != md5:
            _forget(path + '.part')
            problems.append(f'{url}: its MD5 is {found}, expected {md5}')
            continue
        os.replace(path + '.part', path)
        _forget(path + '.part')
        return
    raise UserError(f'could not download {os.path.basename(path)} ({"; ".join(problems)}): try again later, or get it '
                    f'by other means and give its path')


def _download_one(url, part, attempts, pause, timeout):
    """One mirror, tried again after interruptions; an answer that is no (404, unknown host) is final."""
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            return _continue(url, part, timeout)
        except (OSError, http.client.HTTPException) as error:
            passing = error.code >= 500 if isinstance(error, urllib.error.HTTPError) else isinstance(
                getattr(error, 'reason', error), (TimeoutError, ConnectionError, http.client.HTTPException))
            if not passing or attempt == attempts - 1:
                raise


def _continue(url, part, timeout):
    """Ask for what `part` lacks of `url` and append it. Raises ConnectionError when the connection ends early, OSError
    for answers that make no sense."""
    start, validator, known_total = _state(url, part)
    request = urllib.request.Request(url, headers={'User-Agent': 'liif'})
    if start:
        request.add_header('Range', f'bytes={start}-')
        request.add_header('If-Range', validator)
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get('Content-Range') == f'bytes */{start}' and known_total in (None, start):
            return  # nothing was missing
        _forget(part)
        raise ConnectionError('the server has another file than before') from None
    except ValueError as error:  # an address, here or in a redirection, that is none
        raise OSError(f'the server redirects to an address that cannot be used ({error})') from None
    with response:
        if response.status != 206:
            start = 0  # the file changed, or the server knows no ranges: from the beginning
        total = _total(response, start)
        if start and (_validator(response) not in ('', validator) or known_total not in (None, total)):
            _forget(part)
            raise ConnectionError('the server has another file than before')
        free = shutil.disk_usage(os.path.dirname(os.path.abspath(part))).free
        if total and total - start > free:
            raise UserError(f'{url} needs {total - start:,} more bytes and the disk has {free:,}: make room')
        if not start:
            write_file(part + '.json', json.dumps({'url': url, 'validator': _validator(response), 'total': total}))
        _append(response, part, start, total, url.rsplit('/', 1)[-1])


def _append(response, part, start, total, name):
    with open(part, 'ab' if start else 'wb') as f, \
            tqdm(total=total, initial=start, unit='B', unit_scale=True, desc=name, disable=None) as bar:
        while block := response.read(BLOCK):
            f.write(block)
            bar.update(len(block))
            if total is None and f.tell() > MAX_DOWNLOAD:
                _forget(part)
                raise OSError(f'the answer states no length and did not end after {MAX_DOWNLOAD:,} bytes')
        f.flush()
        os.fsync(f.fileno())
    if total is not None and os.path.getsize(part) != total:
        raise ConnectionError(f'the connection ended after {os.path.getsize(part):,} of {total:,} bytes')


def _total(response, start):
    """Bytes of the whole file by the headers, None where they do not tell; OSError where they contradict themselves."""
    length, span = response.headers.get('Content-Length'), response.headers.get('Content-Range', '')
    if length is not None and not re.fullmatch(r'[0-9]{1,18}', length.strip()):
        raise OSError(f'the server states a length of {length[:40]!r}')
    length = None if length is None else int(length)
    if response.status != 206:
        return length
    match = re.fullmatch(r'bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)', span.strip())
    if not match or int(match[1]) != start:
        raise ConnectionError(f'asked for bytes from {start} on, got {span[:60]!r}')
    return int(match[2]) + 1 if match[3] == '*' else int(match[3])


def _validator(response):
    """What identifies the file's bytes: a strong ETag or its date; '' without either."""
    found = response.headers.get('ETag') or response.headers.get('Last-Modified') or ''
    return '' if found.startswith('W/') else found


def _state(url, part):
    """(Bytes of `url` that are here, their validator, bytes of the whole file or None); (0, '', None) where what is
    here cannot be trusted."""
    try:
        with open(part + '.json') as f:
            known = json.load(f)
        if known['url'] == url and known['validator']:
            return os.path.getsize(part), known['validator'], known.get('total')
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, '', None


def _forget(part):
    for path in (part, part + '.json'):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _md5(path):
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, 'rb') as f:
        while block := f.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def read_members(path, wanted):
    """Yield (name, size, read) for each file in a folder, zip or tar archive for which wanted(name) is true.

    name: with '/', and preceded by the archive's own name without its suffix, or the last two of a folder's path, so
    that rules see how the source is called as well as what it contains; read(): the bytes, only until the next step.
    Members come in the archive's order, in memory, and nothing is written under a name of the archive's choosing.
    Hidden files are left out. Raises UserError for what is not an archive, damaged or encrypted, and for archives
    that hold links, paths that lead out, or files too large to be images.
    """
    whole = os.path.abspath(path)
    if os.path.isdir(path):
        members, base = _folder_members(path), whole.split(os.sep)[-2:]
    elif not os.path.isfile(path):
        raise UserError(f'there is no file or folder {path}')
    elif zipfile.is_zipfile(path):
        members, base = _zip_members(path), whole.split(os.sep)[-1:]
    else:
        members, base = _tar_members(path), whole.split(os.sep)[-1:]
    base = [re.sub(r'\.(zip|tar|tgz|tar\.\w+)$', '', part, flags=re.IGNORECASE) for part in base]
    with _checked(path):
        for count, (name, size, read) in enumerate(members):
            parts = name.replace('\\', '/').split('/')
            if '..' in parts or name.startswith(('/', '\\')) or re.match(r'[A-Za-z]:', name) or '\0' in name:
                raise UserError(f'{path} holds {name!r}, a path that leads out of it: it was not unpacked')
            if count >= MAX_FILES:
                raise UserError(f'{path} holds more than {MAX_FILES:,} files: it was not unpacked further')
            parts = [part for part in parts if part not in ('', '.')]
            if any(len(os.fsencode(part)) > MAX_NAME for part in parts):
                raise UserError(f'{path} holds a name that is too long, {name[:60] + "..."!r}: it was not unpacked')
            name = '/'.join(base + parts)
            if any(part.startswith(('.', '__MACOSX')) for part in parts) or not wanted(name):
                continue
            if size > MAX_FILE:
                raise UserError(f'{path} holds {name!r} of {size:,} bytes, more than {MAX_FILE:,}: it was not unpacked')
            yield name, size, read


@contextlib.contextmanager
def _checked(path):
    """Say which archive is damaged, whatever its decoder raises."""
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError,
            ValueError, OverflowError, MemoryError, struct.error) as error:
        # RuntimeError: zip methods that Python does not know, and headers that nest too deep
        reason = first_line(error)
        raise error if isinstance(error, UserError) else UserError(
            f'{path} is damaged, incomplete or no zip or tar archive ({reason}): download or copy it again') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror or error}): copy it again') from None


def _folder_members(path):
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            full = os.path.join(folder, name)
            if os.path.isfile(full):
                name = os.path.relpath(full, path).replace(os.sep, '/')
                yield name, os.path.getsize(full), _reader(path, open, full, 'rb')


def _zip_members(path):
    with zipfile.ZipFile(path) as archive:
        if sum(info.compress_size for info in archive.infolist()) > os.path.getsize(path):
            raise UserError(f'{path} holds files that overlap, or whose packed sizes are false: it was not unpacked')
        for info in archive.infolist():
            if info.is_dir():
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                raise UserError(f'{path} holds {info.filename!r}, a link: it was not unpacked')
            if info.flag_bits & 1:
                raise UserError(f'{path} is encrypted: unpack it and pass the folder')
            if info.file_size > max(BLOCK, MAX_RATIO * info.compress_size):
                raise UserError(f'{path} holds {info.filename!r}, {info.compress_size:,} bytes that would become '
                                f'{info.file_size:,}: no image, so it was not unpacked')
            yield info.filename, info.file_size, _reader(path, archive.open, info)


DECOMPRESSORS = {b'\x1f\x8b': gzip.open, b'BZh': bz2.open, b'\xfd7zXZ\0': lzma.open}


class _Headers:
    """A file of which tarfile reads at most `limit` bytes at once: larger headers (names, comments) are bombs."""

    def __init__(self, file):
        self.file, self.limit = file, BLOCK
        self.seek, self.tell = file.seek, file.tell

    def read(self, size=-1):
        if not 0 <= size <= self.limit:
            raise tarfile.ReadError(f'a header of {size:,} bytes')
        return self.file.read(size)


def _tar_members(path):
    with open(path, 'rb') as f:
        head = f.read(6)
    opener = next((opener for magic, opener in DECOMPRESSORS.items() if head.startswith(magic)), open)
    with opener(path, 'rb') as f, tarfile.open(fileobj=(file := _Headers(f)), mode='r:') as archive:
        for info in archive:  # and read in this order, so that what is compressed is decompressed once
            if info.isdir():
                continue
            if not info.isfile():
                raise UserError(f'{path} holds {info.name[:60]!r}, a link or device: it was not unpacked')
            file.limit = MAX_FILE
            yield info.name, info.size, _reader(path, archive.extractfile, info)
            file.limit = BLOCK
        while f.read(BLOCK):  # to the end, where the checksum of a compressed archive stands
            pass


def _reader(path, opener, *args):
    def read():
        with _checked(path), opener(*args) as f:
            return f.read()
    return read
