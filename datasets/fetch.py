"""Files from elsewhere: downloads that resume and are checked, archives that are read without trusting them."""
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
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib

from tqdm import tqdm

from utils import UserError, atomic_write


BLOCK = 1 << 20
MAX_FILE = 1 << 30  # bytes of one file in an archive; the largest images of the data sets have 20 MB
MAX_FILES = 1_000_000
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
            problems.append(f'{url}: {getattr(error, "reason", None) or error or type(error).__name__}')
            continue
        found = _md5(path + '.part') if md5 else None
        if found != md5:
            _forget(path + '.part')
            problems.append(f'{url}: its MD5 is {found}, wanted {md5}')
            continue
        os.replace(path + '.part', path)
        _forget(path + '.part')
        return
    raise UserError(f'could not download {os.path.basename(path)} ({"; ".join(problems)}): try again later, or get it '
                    f'by other means and pass its path with --from')


def _download_one(url, part, attempts, pause, timeout):
    """One mirror, tried again after interruptions; an answer that is no (404, unknown host) is final."""
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            return _continue(url, part, timeout)
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == attempts - 1:
                raise
        except urllib.error.URLError as error:
            if not isinstance(error.reason, (TimeoutError, ConnectionError)) or attempt == attempts - 1:
                raise
        except (TimeoutError, ConnectionError, http.client.HTTPException):
            if attempt == attempts - 1:
                raise


def _continue(url, part, timeout):
    """Ask for what `part` lacks of `url` and append it. Raises ConnectionError when the connection ends early."""
    start, known = _state(url, part)
    request = urllib.request.Request(url, headers={'User-Agent': 'liif'})
    if start:
        request.add_header('Range', f'bytes={start}-')
        request.add_header('If-Range', known)
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get('Content-Range') == f'bytes */{start}':
            return  # nothing was missing
        _forget(part)
        raise ConnectionError('the server has another file than before') from None
    with response:
        if response.status != 206:
            start = 0  # the file changed, or the server knows no ranges: from the beginning
        elif not response.headers.get('Content-Range', '').startswith(f'bytes {start}-'):
            raise ConnectionError(f'asked for bytes from {start} on, got {response.headers.get("Content-Range")}')
        length = response.headers.get('Content-Length')
        total = None if length is None else start + int(length)
        free = shutil.disk_usage(os.path.dirname(os.path.abspath(part))).free
        if total and total - start > free:
            raise UserError(f'{url} needs {total - start:,} more bytes and the disk has {free:,}: make room')
        if not start:
            validator = response.headers.get('ETag') or response.headers.get('Last-Modified') or ''
            validator = '' if validator.startswith('W/') else validator  # weak ones do not promise the same bytes
            with atomic_write(part + '.json', 'w') as f:
                json.dump({'url': url, 'validator': validator}, f)
        with open(part, 'ab' if start else 'wb') as f, \
                tqdm(total=total, initial=start, unit='B', unit_scale=True, desc=url.rsplit('/', 1)[-1],
                     disable=None) as bar:
            while block := response.read(BLOCK):
                f.write(block)
                bar.update(len(block))
            f.flush()
            os.fsync(f.fileno())
        if total is not None and os.path.getsize(part) != total:
            raise ConnectionError(f'the connection ended after {os.path.getsize(part):,} of {total:,} bytes')


def _state(url, part):
    """How many bytes of `url` are at hand, and the validator they came with; (0, '') where they cannot be trusted."""
    try:
        with open(part + '.json') as f:
            known = json.load(f)
        if known['url'] == url and known['validator']:
            return os.path.getsize(part), known['validator']
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, ''


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
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError,
            RuntimeError) as error:  # RuntimeError: zip methods that Python does not know
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f'{path} is damaged, incomplete or no zip or tar archive ({reason}): download or copy it '
                        f'again') from None


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


def _tar_members(path):
    with tarfile.open(path) as archive:
        for info in archive:  # and read in this order, so that what is compressed is decompressed once
            if info.isdir():
                continue
            if not info.isfile():
                raise UserError(f'{path} holds {info.name!r}, a link or device: it was not unpacked')
            yield info.name, info.size, _reader(path, archive.extractfile, info)
        while archive.fileobj.read(BLOCK):  # to the end, where the checksum of a compressed archive stands
            pass


def _reader(path, opener, *args):
    def read():
        with _checked(path), opener(*args) as f:
            return f.read()
    return read
