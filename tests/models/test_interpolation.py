"""The weightless baselines: equal to PIL and to MATLAB's rule, exact on polynomials, free of data_norm."""
import numpy as np
import pytest
import torch
from PIL import Image

import models
from datasets.imresize import _resize_rows
from engine.rendering.renderer import Renderer
from utils import UserError, axis_coord, make_coord


NAMES = ['bicubic', 'bilinear', 'nearest']


def image(h, w, seed=0, dtype=torch.float64):
    return torch.rand(3, h, w, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def on_grid(model, img, size, batch=1):
    """The model's output on the pixel grid of `size`: (3, H, W)."""
    coord = make_coord(size, dtype=img.dtype).expand(batch, -1, 2)
    cell = torch.tensor([2 / size[0], 2 / size[1]], dtype=img.dtype).view(1, 1, 2)
    out = model(img.expand(batch, *img.shape), coord, cell)
    return out[-1].t().reshape(3, *size)


def keys(x):
    x = abs(x)
    return 1.5 * x ** 3 - 2.5 * x ** 2 + 1 if x <= 1 else -0.5 * x ** 3 + 2.5 * x ** 2 - 4 * x + 2 if x < 2 else 0.0


def by_hand(row, n):
    """One row resized to n values by MATLAB's rule, tap by tap."""
    size, out = len(row), []
    stretch = max(1.0, size / n)
    for i in range(n):
        u = (i + 0.5) * size / n - 0.5
        total = weights = 0.0
        for j in range(int(u - 2 * stretch) - 2, int(u + 2 * stretch) + 3):
            mirrored = j % (2 * size)
            mirrored = mirrored if mirrored < size else 2 * size - 1 - mirrored
            weight = keys((u - j) / stretch)
            total, weights = total + weight * row[mirrored], weights + weight
        out.append(total / weights)
    return out


@pytest.mark.parametrize('n', [3, 8, 11, 23, 40])
def test_bicubic_is_matlabs_rule(n):
    row = image(1, 11)[0, 0].numpy()
    out = on_grid(models.make({'name': 'bicubic'}), torch.from_numpy(row).expand(3, 1, 11), (1, n))
    np.testing.assert_allclose(out[0, 0].numpy(), by_hand(row, n), atol=1e-12)


@pytest.mark.parametrize('spec, method, size', [
    ({'name': 'bicubic', 'args': {'kernel': 'pil'}}, Image.BICUBIC, (26, 34)),
    ({'name': 'bicubic', 'args': {'kernel': 'pil'}}, Image.BICUBIC, (13, 40)),
    ({'name': 'bicubic', 'args': {'kernel': 'pil'}}, Image.BICUBIC, (9, 7)),
    ({'name': 'bicubic', 'args': {'kernel': 'pil'}}, Image.BICUBIC, (4, 30)),
    ({'name': 'bilinear'}, Image.BILINEAR, (26, 34)),
    ({'name': 'bilinear'}, Image.BILINEAR, (13, 40)),
])
def test_equal_to_pil(spec, method, size):
    img = image(13, 17)
    out = on_grid(models.make(spec), img, size)
    for c in range(3):
        pil = Image.fromarray(img[c].float().numpy()).resize((size[1], size[0]), method)
        np.testing.assert_allclose(out[c].numpy(), np.asarray(pil), atol=2e-6)


def test_models_and_imresize_share_their_weights():
    """Downscaling an 8-bit image by the model, rounded, is one pass of imresize."""
    img = (image(24, 5) * 255).round()
    out = on_grid(models.make({'name': 'bicubic'}), img, (9, 5))
    rows = _resize_rows(img.permute(1, 2, 0).to(torch.uint8), 9).permute(2, 0, 1)
    assert (out.add(0.5).floor().clamp(0, 255) - rows).abs().max() == 0


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('size', [(13, 17), (26, 51), (7, 40)])
def test_constant_images_and_batches(name, size):
    model = models.make({'name': name})
    flat = torch.full((3, 13, 17), 0.3, dtype=torch.float64)
    torch.testing.assert_close(on_grid(model, flat, size), torch.full((3, *size), 0.3, dtype=torch.float64))
    img = image(13, 17)
    torch.testing.assert_close(on_grid(model, img, size, batch=3), on_grid(model, img, size))
    if size == (13, 17):
        torch.testing.assert_close(on_grid(model, img, size), img)


def test_bicubic_keeps_parabolas():
    """Keys' kernel with a = -1/2 is the one that reproduces second-degree polynomials (inside the image)."""
    x = torch.arange(16, dtype=torch.float64)
    img = (0.01 * x * x - 0.1 * x).expand(3, 4, 16)
    u = torch.linspace(3, 12, 50, dtype=torch.float64)
    coord = torch.stack([torch.zeros_like(u), (u + 0.5) / 8 - 1], dim=-1)[None]
    out = models.make({'name': 'bicubic'})(img[None], coord)
    torch.testing.assert_close(out[0, :, 0], 0.01 * u * u - 0.1 * u, atol=1e-12, rtol=0)


@pytest.mark.parametrize('name', NAMES)
def test_data_norm_cancels(name):
    model, img = models.make({'name': name}), image(9, 12, dtype=torch.float32)
    norm = {'inp': {'sub': [0.4], 'div': [0.3]}, 'gt': {'sub': [0.4], 'div': [0.3]}}
    plain = {'inp': {'sub': [0], 'div': [1]}, 'gt': {'sub': [0], 'div': [1]}}
    size, region = (21, 16), (1.5, 2, 7, 5.25)
    for region in (None, region):
        a, b = (Renderer(model, n).open(img).render(size, region) for n in (norm, plain))
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize('scale', [2, 3, 5])
def test_nearest_repeats_pixels(scale):
    img = image(7, 5, dtype=torch.float32)
    out = on_grid(models.make({'name': 'nearest'}), img, (7 * scale, 5 * scale))
    assert torch.equal(out, img.repeat_interleave(scale, 1).repeat_interleave(scale, 2))


def test_nearest_breaks_ties_one_way():
    """At x1/2 every query lies on the edge of two pixels: always the one below and to the right, in float32 too."""
    for n in (6, 100, 334, 2040):
        img = torch.arange(n, dtype=torch.float32).expand(3, 2, n)
        out = on_grid(models.make({'name': 'nearest'}), img, (1, n // 2))
        assert torch.equal(out[0, 0], torch.arange(1, n, 2, dtype=torch.float32))


def test_float32_coordinates_suffice():
    img = image(40, 600, dtype=torch.float32)
    model = models.make({'name': 'bicubic'})
    out, exact = on_grid(model, img, (80, 1800)), on_grid(model, img.double(), (80, 1800))
    assert (out - exact).abs().max() < 5e-4


def test_device_and_state():
    for name in NAMES:
        model = models.make({'name': name})
        assert not model.state_dict() and not list(model.parameters())
        assert next(model.to('meta').buffers()).device.type == 'meta'


def test_unknown_kernel():
    with pytest.raises(UserError, match="kernel: found 'opencv', expected one of matlab, pil"):
        models.make({'name': 'bicubic', 'args': {'kernel': 'opencv'}})


@pytest.mark.parametrize('spec', [{'name': 'bicubic'}, {'name': 'bicubic', 'args': {'kernel': 'pil'}},
                                  {'name': 'bilinear'}, {'name': 'nearest'}], ids=str)
@pytest.mark.parametrize('size', [(21, 30), (7, 10), (5, 4), (35, 13), (1, 1)])
def test_grids_equal_scattered_queries(spec, size):
    model = models.make(spec)
    inp = torch.rand(2, 3, 7, 10, generator=torch.Generator().manual_seed(0))
    cell = torch.tensor([2 / size[0], 2 / size[1]])
    coord = make_coord(size).expand(2, -1, 2)
    wanted = model(inp, coord, cell.expand_as(coord))  # (2, Q, 3)
    found = model.decode_grid(model.encode(inp), axis_coord(size[0]), axis_coord(size[1]), cell)
    assert (found.flatten(2).mT - wanted).abs().max() <= 1e-6
