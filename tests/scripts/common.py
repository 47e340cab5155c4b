"""What the tests of data preparation share: archives and folders of files, and a server of them on this machine."""
import contextlib
import http.server
import io
import os
import tarfile
import zipfile

from PIL import Image

from tests.image_files import noise


def png(h, w, seed=0):
    """The bytes of a PNG of noise."""
    buffer = io.BytesIO()
    Image.fromarray(noise(h, w, 3, seed=seed)).save(buffer, format='png')
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
