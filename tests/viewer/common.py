"""What the viewer's tests share: images, a running server of a small model, and requests to it."""
import contextlib
import http.client
import threading

import numpy as np
import torch
from PIL import Image

from engine.rendering.api import to_numpy, to_tensor
from engine.rendering.renderer import Renderer
from tests.common import small_model
from viewer.images import Viewer
from viewer.lattice import CLIP
from viewer.web import make_server


PIXELS = np.random.default_rng(5).integers(0, 256, (150, 200, 3), dtype=np.uint8)
VIEWS = [((0, 0, 200, 150), (300, 400)), ((10.3, 20.7, 50.1, 40.2), (402, 501)), ((150, 100, 50, 50), (200, 200)),
         ((33, 41, 1.5, 1.2), (120, 150)), ((199.5, 0, 0.5, 150), (300, 20))]


def drawing(h, w):
    """An image with edges and ramps: (3, h, w)."""
    y, x = np.mgrid[:h, :w].astype(np.float32)
    disk = np.hypot(y - h / 2, x - w / 2) < h / 3
    stripes = (x + 0.4 * y) % 9 < 4
    return torch.from_numpy(np.stack([0.2 + 0.6 * disk, 0.3 + 0.4 * stripes, 0.1 + 0.8 * x / w]).astype(np.float32))


def exact(region, size, pixels=PIXELS, model=None):
    """The exact render of a region, as integers (H, W, 3)."""
    scene = Renderer(model or small_model(), cell_clip=CLIP).open(to_tensor(pixels))
    return to_numpy(scene.render(size, region, 'uint8')).astype(int)


def psnr(a, b):
    return -10 * np.log10(((a - b) ** 2).mean())


def small_viewer(path, pixels=PIXELS, model=None, **options):
    """A Viewer that shows pixels, saved under `path`, with a model that needs no checkpoint."""
    Image.fromarray(pixels).save(path)
    viewer = Viewer({'small': 'no file'}, **options)
    viewer.renderers['small'] = Renderer(model or small_model(), cell_clip=CLIP)
    viewer.open(str(path))
    return viewer


@contextlib.contextmanager
def serving(viewer):
    """The port of a running server."""
    server = make_server(viewer)
    threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def ask(port, path, method='GET', body=None, headers=()):
    """(status, body, headers) of an answer."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
    connection.request(method, path, body, dict(headers))
    answer = connection.getresponse()
    found = answer.status, answer.read(), answer.headers
    connection.close()
    return found


def query(viewer, region, size, **more):
    """The query of a view of the image that was opened last."""
    values = {'id': next(reversed(viewer.pictures)), 'model': 'small', **dict(zip('xywh', region)), 'rows': size[0],
              'columns': size[1]}
    values.update(more)
    return '&'.join(f'{name}={value}' for name, value in values.items())
