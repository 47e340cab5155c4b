"""Look into an image: a page on this machine to zoom and pan without end, LIIF across or beside bicubic.

    python viewer/serve.py photo.jpg
    python viewer/serve.py                     # an empty page: drop a picture on it

Open the address it prints. Only what is visible is rendered, roughly first, then to the screen's pixels. Pictures stay
in the memory of this program; nothing is written anywhere. Ctrl-C ends it.
"""
import collections
import contextlib
import http.server
import ipaddress
import json
import os
import secrets
import select
import socket
import struct
import sys
import threading
import types
import urllib.parse
import webbrowser


sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np  # noqa: E402 (the path comes first)
import torch  # noqa: E402
from PIL import Image  # noqa: E402

import engine  # noqa: E402, F401 (before torch: how its threads wait)
from engine.rendering.api import load_renderer, to_numpy  # noqa: E402
from datasets.images import TooLarge  # noqa: E402
from engine.rendering.pace import fastest  # noqa: E402
from engine.rendering.picture import read_picture  # noqa: E402
from engine.rendering.png import write_png  # noqa: E402
from engine.rendering.renderer import quantize  # noqa: E402
from engine.runtime import Parser, run_program  # noqa: E402
from utils import UserError  # noqa: E402
from viewer.explore import Explorer  # noqa: E402


PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'page.html')
KEPT = 4  # pictures held in memory
MAX_SCREEN = 40_000_000  # pixels of a view
MAX_DOWNLOAD = 1_000_000_000  # pixels of a download
PIECE = struct.Struct('<6I')  # grid width and height, left, top, columns, rows; then RGB bytes


class Viewer:
    """The pictures that are open, and what each page looks at."""

    def __init__(self, renderer, max_bytes, max_pixels, hosts=()):
        self.renderer, self.pace = fastest(renderer)
        self.max_bytes, self.max_pixels = max_bytes, max_pixels
        self.hosts = {'localhost', *hosts}  # names under which the page may be asked for, beside plain addresses
        self.lock = threading.Lock()  # of the model
        self.pictures = collections.OrderedDict()  # id -> (name, Explorer), the least recently used first
        self.views = collections.OrderedDict()  # page -> number of its latest view

    def open(self, name, data=None):
        """Read a picture, of the file `name` or from bytes; its id. Raises UserError."""
        try:
            picture = read_picture(name, self.max_pixels, data)
        except TooLarge as error:
            raise UserError(f'{error.found}: start the viewer with a larger --max-pixels') from None
        img = picture.for_network()
        if picture.alpha is not None:
            img = img * picture.alpha + (1 - picture.alpha)  # on white
        pixels = to_numpy(quantize(img, torch.uint8))
        key = secrets.token_urlsafe(12)
        self.pictures[key] = os.path.basename(name), Explorer(self.renderer, pixels, self.pace, self.lock)
        while len(self.pictures) > KEPT:
            self.pictures.popitem(last=False)
        return key

    def picture(self, key):
        """(name, Explorer). Raises KeyError."""
        self.pictures.move_to_end(key)
        return self.pictures[key]

    def describe(self, key):
        name, explorer = self.picture(key)
        return {'id': key, 'name': name, 'width': explorer.size[1], 'height': explorer.size[0]}

    def looks_at(self, page, number):
        """Say that a page now looks at its view `number`; returns a function that tells whether it still does."""
        self.views[page] = max(number, self.views.get(page, 0))
        self.views.move_to_end(page)
        while len(self.views) > 64:
            self.views.popitem(last=False)
        return lambda: self.views.get(page) == number

    def trusts(self, host):
        """Whether a Host header is one of ours: a plain address, or a name we were given. Any other name could be made
        to point here by the page of a stranger (DNS rebinding), who could then read the pictures."""
        try:
            name = urllib.parse.urlsplit('//' + host).hostname or ''
            return name in self.hosts or bool(ipaddress.ip_address(name))
        except ValueError:
            return False


class Handler(http.server.BaseHTTPRequestHandler):
    """One request; `viewer` is set on the class."""
    protocol_version = 'HTTP/1.1'
    server_version, sys_version = 'LIIF', ''
    timeout = 60  # seconds a silent connection is kept

    def do_GET(self):
        self.answer({'/': self.page, '/start': self.start, '/source': self.source, '/liif': self.liif,
                     '/bicubic': self.bicubic, '/download': self.download})

    def do_POST(self):
        self.answer({'/pictures': self.upload})

    def answer(self, routes):
        url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(url.query))
        self.begun = False
        origin = self.headers.get('Origin')
        stranger = self.headers.get('Sec-Fetch-Site', 'none') not in ('none', 'same-origin') or (
            origin and urllib.parse.urlsplit(origin).netloc != self.headers.get('Host'))
        if not self.viewer.trusts(self.headers.get('Host', '')):
            return self.refuse(403, 'this page answers under its own address only')
        if stranger and url.path != '/':  # a link to the page is fine
            return self.refuse(403, 'other sites are not answered')
        if url.path not in routes:
            return self.refuse(404, 'there is no such page')
        try:
            routes[url.path]()
        except KeyError:
            self.refuse(410, 'this picture is no longer open: open it again')
        except ValueError as error:
            self.refuse(400, str(error))
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True  # nobody listens any more

    # Answers.

    def page(self):
        nonce = secrets.token_urlsafe(16)
        with open(PAGE, encoding='utf-8') as f:
            html = f.read().replace('NONCE', nonce)
        self.send(html.encode(), 'text/html; charset=utf-8', {
            'Content-Security-Policy': f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
                                       f"img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; "
                                       f"form-action 'none'; frame-ancestors 'none'"})

    def start(self):
        viewer = self.viewer
        pictures = list(viewer.pictures)
        self.send_json({'picture': viewer.describe(pictures[-1]) if pictures else None,
                        'model': type(viewer.renderer.model).__name__, 'precision': viewer.renderer.precision,
                        'device': viewer.renderer.device.type, 'max_bytes': viewer.max_bytes,
                        'max_download': MAX_DOWNLOAD})

    def source(self):
        _, explorer = self.viewer.picture(self.query['id'])
        with self.parts('image/png') as f:
            write_png(f, [explorer.pixels], explorer.size, 3, 8)

    def liif(self):
        _, explorer = self.viewer.picture(self.query['id'])
        region, size = self.view(explorer, MAX_SCREEN)
        latest = self.viewer.looks_at(self.query['page'][:40], int(self.query['view']))
        pieces = explorer.stream(region, size, lambda: latest() and self.listened())
        self.send_pieces(pieces, latest)

    def bicubic(self):
        _, explorer = self.viewer.picture(self.query['id'])
        region, size = self.view(explorer, MAX_SCREEN)
        self.send_pieces([(size, 0, 0, explorer.bicubic(region, size))], lambda: True)

    def download(self):
        name, explorer = self.viewer.picture(self.query['id'])
        region, size = self.view(explorer, MAX_DOWNLOAD)
        stem = ''.join(c if c.isascii() and (c.isalnum() or c in '-_.') else '_' for c in os.path.splitext(name)[0])
        disposition = f'attachment; filename="{stem or "picture"}-{size[1]}x{size[0]}.png"'
        with self.parts('image/png', {'Content-Disposition': disposition}) as f:
            write_png(f, explorer.bands(region, size, self.listened), size, 3, 8)

    def upload(self):
        length = int(self.headers.get('Content-Length') or -1)
        if not 0 < length <= self.viewer.max_bytes:
            raise UserError(f'found a file of {length / 1e6:.1f} MB, wanted at most '
                            f'{self.viewer.max_bytes / 1e6:.0f} MB (--max-upload)')
        data = self.rfile.read(length)
        if len(data) < length:
            raise UserError('the file was cut off on its way: send it again')
        self.send_json(self.viewer.describe(self.viewer.open(self.query.get('name') or 'picture', data)))

    # Reading and writing.

    def number(self, name):
        value = float(self.query[name] if name in self.query else 'nan')
        if not np.isfinite(value):
            raise UserError(f'{name}: found {self.query.get(name)}, wanted a number')
        return value

    def view(self, explorer, most):
        """((x, y, w, h) in source pixels, (H, W)) of a request, checked."""
        x, y, w, h = (self.number(name) for name in ('x', 'y', 'w', 'h'))
        height, width = explorer.size
        size = int(self.number('rows')), int(self.number('columns'))
        if min(size) < 1 or size[0] * size[1] > most:
            raise UserError(f'found {size[1]}x{size[0]} pixels, wanted at least 1 each and at most {most // 10 ** 6} '
                            f'million together')
        if not (x >= 0 and y >= 0 and min(w, h) > 0 and x + w <= width + 1e-6 and y + h <= height + 1e-6):
            raise UserError(f'region: found {x},{y},{w},{h}, wanted a part of {width}x{height} pixels')
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

    @contextlib.contextmanager
    def parts(self, kind, headers=()):
        """Something to write to, for an answer of unknown length. What ends early is seen to be incomplete."""
        self.begin(kind, {'Transfer-Encoding': 'chunked', **dict(headers)})
        yield types.SimpleNamespace(
            write=lambda data: self.wfile.write(b'%x\r\n%b\r\n' % (len(data), data)) if len(data) else None)
        self.wfile.write(b'0\r\n\r\n')

    def send_pieces(self, pieces, alive):
        """Pieces as Explorer.stream gives them, and an empty one for the end if the view is still wanted then."""
        with self.parts('application/octet-stream') as f:
            for grid, top, left, pixels in pieces:
                f.write(PIECE.pack(grid[1], grid[0], left, top, pixels.shape[1], pixels.shape[0]) + pixels.tobytes())
            if alive():
                f.write(PIECE.pack(0, 0, 0, 0, 0, 0))

    def send(self, data, kind, headers=(), code=200):
        self.begin(kind, {'Content-Length': len(data), **dict(headers)}, code)
        self.wfile.write(data)

    def send_json(self, value, code=200):
        self.send(json.dumps(value).encode(), 'application/json', code=code)

    def refuse(self, code, message):
        self.close_connection = True  # a body that was not read may follow
        if not self.begun:
            self.send_json({'error': message}, code)

    def listened(self):
        """True; ConnectionResetError once the browser has hung up, which it does when the view moves."""
        if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
            raise ConnectionResetError
        return True

    def log_message(self, *args):
        pass


def make_server(viewer, host='127.0.0.1', port=0):
    """A server that answers for the viewer, bound but not yet running. Raises UserError."""
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    kind = type('Server', (http.server.ThreadingHTTPServer,), {'address_family': family, 'daemon_threads': True})
    try:
        return kind((host, port), type('ViewerHandler', (Handler,), {'viewer': viewer}))
    except (OSError, OverflowError) as error:
        raise UserError(f'{host}:{port} cannot be listened at ({getattr(error, "strerror", None) or error}): choose '
                        f'another --port (0: any that is free) or --host') from error


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('image', nargs='?')
    parser.add_argument('--model', help='a checkpoint; the weights that come with the project when absent')
    parser.add_argument('--gpu', help="a GPU's number, or cpu; the first GPU there is when absent")
    parser.add_argument('--host', default='127.0.0.1', help='the address to listen at; this machine alone by default. '
                        'Whoever reaches it can see the pictures')
    parser.add_argument('--port', type=int, default=8000, help='8000; 0 for any that is free')
    parser.add_argument('--open', action='store_true', help='open the page in the browser of this machine')
    parser.add_argument('--max-upload', type=float, default=64, metavar='MB', help='of a file dropped on the page; 64')
    parser.add_argument('--max-pixels', type=float, default=40, metavar='MP', help='million pixels of a picture; 40')
    args = parser.parse_args(argv)

    names = [] if args.host in ('127.0.0.1', '::1') else [args.host.lower(), socket.gethostname().lower()]
    viewer = Viewer(load_renderer(args.model, gpu=args.gpu), int(args.max_upload * 1e6), int(args.max_pixels * 1e6), names)
    if args.image is not None:
        viewer.open(args.image)
    server = make_server(viewer, args.host, args.port)
    name = f'[{args.host}]' if ':' in args.host else args.host
    address = f'http://{name}:{server.server_address[1]}/'
    print(f'{address}  (Ctrl-C ends it; {viewer.renderer.precision})', flush=True)
    if args.open:
        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == '__main__':
    run_program(main)
