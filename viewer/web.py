"""The viewer's HTTP server: routes, access checks, streamed PNGs."""
import contextlib
import functools
import http.server
import ipaddress
import itertools
import json
import math
import os
import re
import select
import socket
import threading
import traceback
import types
import urllib.parse

from engine.rendering.png import write_png
from engine.runtime import explain, out_of_memory
from utils import UserError
from viewer.images import Gone


PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'page')
TYPES = {'.html': 'text/html', '.css': 'text/css', '.js': 'text/javascript'}
MAX_SCREEN = 40_000_000  # pixels of a view
MAX_DOWNLOAD = 1_000_000_000  # pixels of a download
MAX_SIDE = 100_000  # rows or columns of either
UPLOADS = 4  # at a time
SLOWEST = 600  # seconds that sending a file may take
# Scripts and styles are files of ours, and nothing is fetched from elsewhere.
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " \
         "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection; `viewer` and `uploads` (a semaphore) are set on the class."""
    protocol_version = 'HTTP/1.1'
    server_version, sys_version = 'LIIF', ''
    timeout = 60  # seconds that a connection may be silent, and that the head of a request may take as a whole

    def handle_one_request(self):
        self.limit(self.timeout)
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.deadline.cancel()

    def limit(self, seconds):
        """Hang up in some seconds, however much has arrived, unless `deadline` is cancelled."""
        self.deadline = threading.Timer(seconds, self.hang_up)
        self.deadline.daemon = True
        self.deadline.start()

    def hang_up(self):
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # gone already

    def do_GET(self):
        if self.headers.get('Content-Length', '0') != '0' or 'Transfer-Encoding' in self.headers:
            self.close_connection = True  # or what follows would be read as the next request
        self.answer('GET')

    do_HEAD = do_GET  # the same without a body

    def do_POST(self):
        length = self.headers.get('Content-Length', '')
        self.unread = int(length) if re.fullmatch('[0-9]{1,19}', length) else 0  # bytes of the body
        self.answer('POST')
        if self.unread:
            self.discard()

    def answer(self, method):
        self.deadline.cancel()
        self.begun = False
        try:
            url = urllib.parse.urlsplit(self.path)
            self.query = dict(urllib.parse.parse_qsl(url.query))
        except ValueError:
            return self.refuse(400, 'the address cannot be read')
        if not trusted(self.headers.get('Host', ''), self.viewer.hosts):
            return self.refuse(403, 'open the viewer by the address that it printed')
        if url.path != '/' and self.is_foreign():  # a link to the page is fine
            return self.refuse(403, 'requests from other sites are refused')
        if url.path not in ROUTES[method]:
            return self.refuse(404, 'there is no such page')
        try:
            ROUTES[method][url.path](self)
        except UserError as error:
            self.refuse(410 if isinstance(error, Gone) else 400, str(error))
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True  # nobody listens any more
        except Exception as error:
            traceback.print_exc()
            self.refuse(500, 'the memory is not enough for this: open a smaller image' if out_of_memory(error) else
                        explain(error) or 'the viewer failed; its terminal says why')

    def is_foreign(self):
        """Whether a page of another site sent this request."""
        if self.headers.get('Sec-Fetch-Site', 'none') not in ('none', 'same-origin'):
            return True
        origin = self.headers.get('Origin')
        try:
            return bool(origin) and urllib.parse.urlsplit(origin).netloc != self.headers.get('Host')
        except ValueError:
            return True

    # Answers.

    def file(self, name):
        with open(os.path.join(PAGE, name), 'rb') as f:
            kind = TYPES[os.path.splitext(name)[1]] + '; charset=utf-8'
            self.send(f.read(), kind, {'Content-Security-Policy': POLICY})

    def start(self):
        viewer = self.viewer
        wanted = self.query.get('id')  # of a link to a view
        found = wanted if wanted in viewer.pictures else next(reversed(viewer.pictures))
        self.send_json({'picture': viewer.describe(found), 'models': list(viewer.models),
                        'gone': bool(wanted) and found != wanted, 'max_bytes': viewer.max_bytes,
                        'max_download': MAX_DOWNLOAD, 'max_side': MAX_SIDE})

    def model(self):
        self.send_json(self.viewer.about(self.text('name')))

    def source(self):
        pixels = self.viewer.picture(self.text('id')).pixels
        self.send_png([pixels], pixels.shape[:2], pixels.shape[2])

    def tile(self):
        place = (int(self.number(name)) for name in ('row', 'column', 'steps'))
        data = self.viewer.tile(self.text('id'), self.text('model'), *place, self.check_listener)
        self.send(data.tobytes(), 'application/octet-stream')

    def render(self):
        picture = self.viewer.picture(self.text('id'))
        saved = self.query.get('save') == '1'
        region, size = self.view(picture, MAX_DOWNLOAD if saved else MAX_SCREEN)
        headers = {'Content-Disposition': 'attachment'} if saved else {}  # the page gives the name
        bands = self.viewer.bands(self.text('id'), self.text('model'), region, size, self.check_listener)
        first = next(bands)  # before the head of the answer, which says that all is well
        self.send_png(itertools.chain([first], bands), size, picture.pixels.shape[2], headers)

    def upload(self):
        length = self.unread
        if not length:
            raise UserError('the file is empty')
        if length > self.viewer.max_bytes:
            raise UserError(f'found a file of {length / 1e6:.1f} MB, expected at most '
                            f'{self.viewer.max_bytes / 1e6:g} MB (--max-upload)')
        if not self.uploads.acquire(blocking=False):
            return self.refuse(503, 'other images are being opened: try again in a moment')
        try:
            self.limit(SLOWEST)
            data, self.unread = self.rfile.read(length), 0
            self.deadline.cancel()
            if len(data) < length:
                raise UserError('the file was cut off on its way: send it again')
            self.send_json(self.viewer.describe(self.viewer.open(self.query.get('name') or 'image', data)))
        finally:
            self.uploads.release()

    # Reading and writing.

    def text(self, name):
        if name not in self.query:
            raise UserError(f'the address lacks {name}')
        return self.query[name]

    def number(self, name):
        try:
            value = float(self.text(name))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(f'{name}: found {self.query[name]}, expected a number')
        return value

    def discard(self):
        """Read what was sent and is not wanted: to close before would reset the connection, and lose the answer."""
        self.limit(self.timeout)
        left = min(self.unread, self.viewer.max_bytes)
        with contextlib.suppress(OSError):  # nobody listens any more
            self.connection.shutdown(socket.SHUT_WR)
            while left > 0 and (part := self.rfile.read1(left)):
                left -= len(part)

    def view(self, picture, most):
        """((x, y, w, h) in source pixels, (H, W)) of a request, checked."""
        x, y, w, h = (self.number(name) for name in ('x', 'y', 'w', 'h'))
        height, width = picture.size
        size = int(self.number('rows')), int(self.number('columns'))
        if not 1 <= min(size) <= max(size) <= MAX_SIDE or size[0] * size[1] > most:
            raise UserError(f'found {size[1]}x{size[0]} pixels, expected 1 to {MAX_SIDE:,} on each side and at most '
                            f'{most // 10 ** 6} million together')
        if not (x >= 0 and y >= 0 and min(w, h) > 0 and x + w <= width + 1e-6 and y + h <= height + 1e-6):
            raise UserError(f'region: found {x},{y},{w},{h}, expected a part of {width}x{height} pixels')
        return (x, y, min(w, width - x), min(h, height - y)), size

    def begin(self, kind, headers, code=200):
        """The head of an answer."""
        self.begun = True
        self.send_response(code)
        for key, value in {'Content-Type': kind, 'Cache-Control': 'no-store', 'X-Content-Type-Options': 'nosniff',
                           'Referrer-Policy': 'no-referrer', 'Cross-Origin-Resource-Policy': 'same-origin',
                           **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()

    def send_png(self, bands, size, channels, headers=()):
        """A PNG of unknown length, while it is made. One that ends early is seen to be incomplete."""
        self.begin('image/png', {'Transfer-Encoding': 'chunked', **dict(headers)})
        if self.command == 'HEAD':
            return
        write_png(types.SimpleNamespace(
            write=lambda data: self.wfile.write(b'%x\r\n%b\r\n' % (len(data), data)) if len(data) else None),
            bands, size, channels, 8)
        self.wfile.write(b'0\r\n\r\n')

    def send(self, data, kind, headers=(), code=200):
        self.begin(kind, {'Content-Length': len(data), **dict(headers)}, code)
        if self.command != 'HEAD':
            self.wfile.write(data)

    def send_json(self, value, code=200):
        self.send(json.dumps(value).encode(), 'application/json', code=code)

    def refuse(self, code, message):
        self.close_connection = True  # a body that was not read may follow
        if not self.begun:
            self.send_json({'error': message}, code)

    def check_listener(self):
        """Raises ConnectionResetError once the browser has hung up, which it does when the view moves."""
        if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
            raise ConnectionResetError

    def log_message(self, *args):
        pass


FILES = {**{f'/{name}': name for name in os.listdir(PAGE)}, '/': 'index.html', '/engine.js': 'remote.js'}
ROUTES = {'GET': {'/start': Handler.start, '/model': Handler.model, '/source': Handler.source, '/tile': Handler.tile,
                  '/render': Handler.render,
                  **{path: functools.partial(Handler.file, name=name) for path, name in FILES.items()}},
          'POST': {'/pictures': Handler.upload}}


def trusted(host, names):
    """Whether a Host header is one of ours: a plain address, or one of the names. Any other name could be made to point
    here by a stranger's page (DNS rebinding), which could then read the images."""
    try:
        name = urllib.parse.urlsplit('//' + host).hostname or ''
        if name not in names:
            ipaddress.ip_address(name)
        return True
    except ValueError:
        return False


def make_server(viewer, host='127.0.0.1', port=0):
    """A server that answers for the viewer, bound but not yet running. Raises UserError."""
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    server = type('Server', (http.server.ThreadingHTTPServer,), {'address_family': family})
    handler = {'viewer': viewer, 'uploads': threading.BoundedSemaphore(UPLOADS)}
    try:
        return server((host, port), type('ViewerHandler', (Handler,), handler))
    except (OSError, OverflowError) as error:
        raise UserError(f'cannot listen on {host}:{port} ({getattr(error, "strerror", None) or error}): choose another '
                        f'--port (0: any free one) or --host') from error
