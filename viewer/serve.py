"""Zoom and pan an image in the browser, LIIF against bicubic.

    python viewer/serve.py photo.jpg
    python viewer/serve.py                     # a sample image; drop another on the page

Open the address it prints. The server sends a lattice of decoded values for what is visible, once; the page draws every
zoom level from it (docs/viewer.md). Images stay in the memory of this program; nothing is written. Ctrl-C ends it.
"""
import os
import socket
import sys
import webbrowser

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import engine  # noqa: E402 (the path comes before it, and torch after it: how its threads wait)
from engine.arguments import Parser, within  # noqa: E402
from engine.runtime import run_program  # noqa: E402
from utils import UserError  # noqa: E402
from viewer.images import Viewer, find_models  # noqa: E402
from viewer.web import make_server  # noqa: E402


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('image', nargs='?', help='an image; default: a sample')
    parser.add_argument('--model', help='a checkpoint, or a name in weights/; default: photo for JPEG and WebP, else '
                        'clean')
    parser.add_argument('--gpu', help="a GPU's number, or cpu; default: the first GPU, else the CPU")
    parser.add_argument('--host', default='127.0.0.1', help='the address to listen at; this machine alone by default. '
                        'Whoever reaches it can see the images')
    parser.add_argument('--port', type=within(0, 65535), default=8000, help='0: any free one; default: 8000')
    parser.add_argument('--open', action='store_true', help='open the page in the browser of this machine')
    parser.add_argument('--max-upload', type=within(0, 1e6, float, above=True), default=64, metavar='MB',
                        help='largest file that the page may open, in MB; default: 64')
    parser.add_argument('--max-pixels', type=within(0, 1e6, float, above=True), default=40, metavar='MP',
                        help='largest image, in million pixels; default: 40')
    args = parser.parse_args(argv)

    if not args.host.strip():
        raise UserError(f'--host: found {args.host!r}, expected an address, such as 0.0.0.0 to listen at all')
    names = [] if args.host in ('127.0.0.1', '::1') else [args.host.lower(), socket.gethostname().lower()]
    viewer = Viewer(find_models(args.model), int(args.max_upload * 1e6), int(args.max_pixels * 1e6), args.gpu, names,
                    suit=args.model is None)
    key = viewer.open(args.image or os.path.join(engine.ROOT, 'docs', 'figures', 'photo.png'))
    name = viewer.describe(key)['model'] or next(iter(viewer.models))
    about = viewer.about(name)  # loads the model, so that its errors come now
    server = make_server(viewer, args.host, args.port)
    name = f'[{args.host}]' if ':' in args.host else args.host
    address = f'http://{name}:{server.server_address[1]}/'
    print(f'{address}  (Ctrl-C ends it; {about["name"]}, {about["precision"]})', flush=True)
    if args.open:
        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == '__main__':
    run_program(main)
