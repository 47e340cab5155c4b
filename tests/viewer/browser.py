"""Pages of the viewer in a browser, for the tests that look at them."""
import base64
import io
import os
import shutil
import time

import numpy as np
from PIL import Image

from engine.rendering.api import to_numpy, to_tensor
from tests.viewer.common import psnr


FLAGS = ['--headless', '--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader',
         '--disable-background-networking', '--force-color-profile=srgb']
SIZE = {'width': 800, 'height': 600}
BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
BAR = 150  # rows that the page keeps free of a whole image, above and below together
SCALES = {4: (136, 108), 12: (320, 240), 30: (320, 240)}  # -> (width, height) of a page that shows the drawing
NO_WEBGL2 = """{
    const get = HTMLCanvasElement.prototype.getContext;
    HTMLCanvasElement.prototype.getContext = function(kind, ...rest) {
        return kind === 'webgl2' ? null : get.call(this, kind, ...rest);
    };
}"""


class Page:
    """A page of a running viewer. problems: what the browser complained of; script: runs before those of the page."""

    def __init__(self, chromium, port, fragment='', script='', **options):
        home = f'http://127.0.0.1:{port}/', 'blob:'
        self.context = chromium.new_context(**{'viewport': SIZE, 'accept_downloads': True, **options})
        self.page, self.problems = self.context.new_page(), []
        self.page.add_init_script(script)
        self.page.set_default_timeout(120_000)  # ms
        self.page.on('pageerror', lambda error: self.problems.append(str(error)))
        self.page.on('console', lambda m: self.problems.append(m.text) if m.type == 'error' else None)
        self.page.on('request', lambda r: None if r.url.startswith(home) else self.problems.append(r.url))
        self.page.goto(f'http://127.0.0.1:{port}/{fragment}')
        self.finished()

    def finished(self):
        """Wait until a view is complete, and return it."""
        self.page.evaluate("""() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))""")
        self.until('window.liif?.ready()')
        return self.view()

    def until(self, condition, seconds=600):
        """Wait for a condition; `wait_for_function` would evaluate it in a way that the page's policy forbids."""
        end = time.time() + seconds
        while not self.page.evaluate(condition):
            assert time.time() < end, f'{condition} is not true after {seconds} s'
            self.page.wait_for_timeout(50)

    def view(self):
        return self.page.evaluate('liif.view()')

    def canvas(self):
        """What the canvas shows: (H, W, 3) integers."""
        data = self.page.evaluate('liif.pixels()').split(',')[1]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert('RGB')).astype(int)

    def show(self, x, y, scale, size=(800, 600)):
        """Show a point of the image at a scale in the middle of the page, of `size` pixels (width, height)."""
        self.page.set_viewport_size({'width': size[0], 'height': size[1]})
        self.until(f'innerWidth === {size[0]} && innerHeight === {size[1]} && stage.width === '
                   f'Math.round(innerWidth * devicePixelRatio)')
        self.page.evaluate(f'Object.assign(liif.view(), {{x: {x}, y: {y}, s: {scale}}}); '
                           f'liif.zoomTo({scale}, {size[0] / 2}, {size[1] / 2})')

    def drop(self, name, data):
        """Drop a file on the page."""
        self.page.evaluate("""([name, data]) => {
            const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), files = new DataTransfer();
            files.items.add(new File([bytes], name));
            dispatchEvent(new DragEvent('dragover', {dataTransfer: files, cancelable: true}));
            dispatchEvent(new DragEvent('drop', {dataTransfer: files, cancelable: true}));
        }""", [name, base64.b64encode(data).decode()])

    def look(self, name):
        """A screenshot, kept in the folder LIIF_SCREENSHOTS where it is set, to be looked at."""
        if os.environ.get('LIIF_SCREENSHOTS'):
            self.page.wait_for_timeout(400)  # messages fade
            self.page.screenshot(path=os.path.join(os.environ['LIIF_SCREENSHOTS'], name + '.png'))


def region(view, width=800, height=600):
    """The part of the image that fills the canvas: (x, y, width, height)."""
    s = view['s']
    return view['x'] - width / 2 / s, view['y'] - height / 2 / s, width / s, height / s


def above_50_db(page, renderer, pixels):
    """Whether the canvas shows what `renderer` decodes exactly there."""
    found = page.canvas()
    part = region(page.view(), *found.shape[1::-1])
    wanted = to_numpy(renderer.open(to_tensor(pixels)).render(found.shape[:2], part, 'uint8'))
    return psnr(found / 255, wanted / 255) > 50


def frame_rate(page):
    """Frames per second while the page zooms: each change is drawn, once."""
    drawn, changes, seconds = page.page.evaluate("""() => new Promise(done => {
        const first = liif.frames.count, begun = performance.now();
        let changes = 0;
        const step = now => {
            const t = (now - begun) / 1000;
            liif.zoomTo(6 * Math.exp(Math.sin(t)), 400, 300);
            changes++;
            if (t < 3) requestAnimationFrame(step); else done([liif.frames.count - first, changes, t]);
        };
        requestAnimationFrame(step);
    })""")
    assert abs(drawn - changes) <= 2
    return drawn / seconds
