"""The page in a browser: what it shows equals the exact render."""
import numpy as np
import pytest
from PIL import Image

from engine.rendering.api import load_renderer, to_numpy
from tests.common import small_model
from tests.viewer.browser import BAR, NO_WEBGL2, SCALES, SIZE, Page, above_50_db, frame_rate, region
from tests.viewer.common import PIXELS, drawing, exact, psnr, serving, small_viewer
from viewer.lattice import CLIP


def bicubic(part, size, pixels=PIXELS):
    """Pillow's bicubic interpolation, in floats: integers it rounds and clips between two passes."""
    box = (part[0], part[1], part[0] + part[2], part[1] + part[3])
    channels = [Image.fromarray(pixels[..., k].astype(np.float32)).resize(size[::-1], Image.BICUBIC, box=box)
                for k in range(3)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 255)


def test_the_first_view_and_its_divider(page):
    view = page.finished()
    page.look('first')
    assert view['s'] == 6 and page.page.text_content('#scale') == '×6.00'
    found, part = page.canvas(), region(view)
    assert abs(found[:, :400] - bicubic(part, (600, 800))[:, :400]).max() <= 1
    assert psnr(found[:, 400:] / 255, exact(part, (600, 800))[:, 400:] / 255) > 45  # noise, the worst for a lattice
    # The divider moves: what was bicubic is LIIF.
    page.page.mouse.move(400, 400)
    page.page.mouse.down()
    page.page.mouse.move(200, 400, steps=5)
    page.page.mouse.up()
    page.finished()
    assert (page.canvas()[:, 210:400] != found[:, 210:400]).mean() > 0.5
    assert (page.canvas()[:, :190] == found[:, :190]).all()


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """(page-ready viewer, its renderer) of the weights that come with the project, on a small image."""
    renderer = load_renderer(gpu='cpu', cell_clip=CLIP)
    pixels = to_numpy((drawing(27, 34) * 255).byte())
    viewer = small_viewer(tmp_path_factory.mktemp('trained') / 'drawing.png', pixels)
    viewer.renderers['small'] = renderer
    with serving(viewer) as port:
        yield port, pixels, renderer


@pytest.mark.parametrize('scale', SCALES)
def test_views_of_the_trained_model_are_close_to_the_exact_render(chromium, trained, scale):
    port, pixels, renderer = trained
    page = Page(chromium, port, f'#x=17&y=13.5&s={scale}&d=0', viewport=dict(zip(('width', 'height'), SCALES[scale])))
    page.look(f'trained-x{scale}')
    assert above_50_db(page, renderer, pixels) and not page.problems
    page.context.close()


def test_images_in_several_textures(chromium, tmp_path):
    pixels = np.random.default_rng(6).integers(0, 256, (40, 1100, 3), dtype=np.uint8)
    with serving(small_viewer(tmp_path / 'wide.png', pixels)) as port:
        page = Page(chromium, port, '#x=1030&y=20&s=12&d=0.5', viewport={'width': 400, 'height': 300})
        assert page.page.evaluate('liif.painter().sources.length') == 2
        found, part = page.canvas(), region(page.view(), 400, 300)
        page.context.close()
    assert abs(found[:, :200] - bicubic(part, (300, 400), pixels)[:, :200]).max() <= 1
    wanted = exact(part, (300, 400), pixels)[:, 200:]
    assert psnr(found[:, 200:] / 255, wanted / 255) > 45 and not page.problems


def test_resizing(page):
    view = page.view()
    page.page.set_viewport_size({'width': 500, 'height': 700})
    assert page.finished() == view and page.canvas().shape == (700, 500, 3)
    page.page.keyboard.press('0')
    page.finished()
    page.page.set_viewport_size(SIZE)
    assert page.finished()['s'] == pytest.approx((600 - BAR) / 150)  # still whole


def test_a_phone_at_night(chromium, server):
    _, port = server
    page = Page(chromium, port, viewport={'width': 390, 'height': 760}, device_scale_factor=2, color_scheme='dark',
                has_touch=True, is_mobile=True)
    page.look('phone')
    boxes = [page.page.locator(name).bounding_box() for name in ('#top', '#actions', '#controls')]
    assert all(box['x'] >= 0 and box['x'] + box['width'] <= 390 for box in boxes)
    assert page.canvas().shape == (1520, 780, 3) and page.view()['s'] == 12
    page.context.close()
    assert not page.problems


def test_the_narrowest_phone_shows_every_button(chromium, server):
    page = Page(chromium, server[1], viewport={'width': 320, 'height': 568}, has_touch=True, is_mobile=True)
    for panel in ('#actions', '#controls'):
        outer, buttons = page.page.locator(panel).bounding_box(), page.page.locator(f'{panel} button:visible').all()
        assert len(buttons) >= 5 and outer['x'] + outer['width'] <= 320
        assert all(box['x'] >= outer['x'] and box['x'] + box['width'] <= outer['x'] + outer['width']
                   for box in (button.bounding_box() for button in buttons)), panel
    page.look('narrow')
    page.context.close()


def test_a_late_plain_view_does_not_end_a_movement(chromium, server):
    """A view that the server rendered arrives after the page has moved on."""
    page = Page(chromium, server[1], '?plain')
    page.page.evaluate("""() => {
        window.states = [];
        new MutationObserver(() => states.push(document.body.dataset.state)).observe(
            document.body, {attributes: true, attributeFilter: ['data-state']});
        const real = window.fetch;
        window.fetch = async (address, ...rest) => {
            const answer = await real(address, ...rest);
            if (String(address).includes('/render') && !window.arrive)
                await new Promise(go => { window.arrive = go; });
            return answer;
        };
        liif.zoomTo(6, 400, 300);
    }""")
    page.until('Boolean(window.arrive)')
    page.page.evaluate('() => { states.length = 0; liif.zoomTo(8, 400, 300); arrive(); }')
    page.finished()
    assert page.page.evaluate('states') == ['moving', 'working', 'done']
    page.context.close()


@pytest.mark.parametrize('reason', ['without WebGL2', 'without a lattice', 'asked for'])
def test_plain_views(chromium, server, tmp_path, reason):
    viewer, _ = server
    if reason == 'without a lattice':
        viewer = small_viewer(tmp_path / 'photo.png', model=small_model(local_ensemble=False))
    with serving(viewer) as port:
        page = Page(chromium, port, '?plain' if reason == 'asked for' else '',
                    NO_WEBGL2 if reason == 'without WebGL2' else '')
        assert page.page.is_visible('#toast') == (reason != 'asked for')
        assert reason == 'asked for' or reason.split()[-1] in page.page.text_content('#toast')
        page.look('plain')
        page.page.keyboard.press('+')  # until the image fills the page
        view = page.finished()
        model = viewer.renderers['small'].model
        assert abs(page.canvas() - exact(region(view), (600, 800), model=model))[:, 410:].max() <= 1
        page.page.keyboard.press('+')
        assert page.finished()['s'] == pytest.approx(1.5 * view['s'])
        page.context.close()
        assert not page.problems


def test_transparency_is_a_checkerboard(page, tmp_path):
    pixels = np.zeros((60, 80, 4), np.uint8)
    pixels[20:40] = 200, 100, 50, 255
    Image.fromarray(pixels).save(tmp_path / 'alpha.png')
    page.page.set_input_files('#file', str(tmp_path / 'alpha.png'))
    page.page.wait_for_selector('#name:has-text("alpha.png")')
    view = page.finished()
    page.look('alpha')
    row = page.canvas()[int(300 + (10 - view['y']) * view['s'])]  # in the upper, transparent third
    assert {tuple(v) for v in row[250:550].tolist()} == {(204, 204, 204), (153, 153, 153)}
    row = page.canvas()[300]
    assert (row[250:390] == (200, 100, 50)).all()


def test_the_rate_of_frames_is_reported(page, record_property):
    rate = frame_rate(page)
    record_property('frames_per_second', rate)
    print(f'{rate:.1f} frames per second at 800x600')
    page.finished()
