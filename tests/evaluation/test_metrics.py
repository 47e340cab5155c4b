"""SSIM against scikit-image and by hand, what LPIPS needs, and the bicubic baseline's published PSNR."""
import glob
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
import models
from datasets.loader import make_loader
from engine.checkpoint import PUBLISHED_NORM
from engine.evaluation.evaluate import eval_psnr
from engine.evaluation.metrics import calc_ssim, make_lpips
from tests.common import ROOT
from utils import UserError, calc_psnr, make_coord


DATA = os.path.join(os.environ.get('LIIF_DATA', os.path.join(ROOT, 'load')), 'benchmark')


def pair(h, w, channels=3, dtype=torch.float64):
    """A smooth image and a noisy copy, (1, C, H, W) each."""
    generator = torch.Generator().manual_seed(5)
    hr = torch.rand(1, channels, h // 4, w // 4, generator=generator, dtype=torch.float64)
    hr = torch.nn.functional.interpolate(hr, (h, w), mode='bilinear')
    sr = (hr + 0.1 * torch.randn(hr.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    return sr.to(dtype), hr.to(dtype)


def of_skimage(sr, hr):
    metrics = pytest.importorskip('skimage.metrics')
    return metrics.structural_similarity(sr, hr, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                         data_range=1, channel_axis=0)


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize('h, w', [(40, 56), (12, 16)])
def test_ssim_is_scikit_images(h, w, dtype, tolerance):
    sr, hr = pair(h, w, dtype=dtype)
    exact = of_skimage(*(x[0].double().numpy() for x in (sr, hr)))
    assert 0.1 < exact < 0.9
    assert abs(calc_ssim(sr, hr).item() - exact) < tolerance


def test_ssim_of_the_tables():
    sr, hr = (x[0].numpy() for x in pair(60, 64))
    luma = [16 / 255 + (65.738 * x[0] + 129.057 * x[1] + 25.064 * x[2]) / 256 for x in (sr, hr)]
    found = calc_ssim(*pair(60, 64), dataset='benchmark', scale=3).item()
    assert abs(found - of_skimage(*(x[None, 3:-3, 3:-3] for x in luma))) < 1e-10
    found = calc_ssim(*pair(60, 64), dataset='div2k', scale=4).item()
    assert abs(found - of_skimage(*(x[:, 10:-10, 10:-10] for x in (sr, hr)))) < 1e-10
    grey = pair(40, 40, channels=1)
    assert calc_ssim(*grey, dataset='benchmark', scale=0) == calc_ssim(*grey)  # one channel is used as it is


def test_ssim_of_constants():
    """Two flat images have no structure to differ in: only the luminance term stays."""
    a, b = (torch.full((1, 3, 20, 30), v, dtype=torch.float64) for v in (0.2, 0.6))
    assert calc_ssim(a, b).item() == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.2 ** 2 + 0.6 ** 2 + 1e-4), abs=1e-12)
    assert calc_ssim(a, a).item() == pytest.approx(1, abs=1e-12)


def test_ssim_of_bright_flat_areas_in_float32():
    """Where squares of the values would cancel: noise of a grey level on white."""
    hr = torch.full((1, 1, 32, 32), 0.97)
    sr = hr + (torch.rand(hr.shape, generator=torch.Generator().manual_seed(1)) - 0.5) / 255
    assert abs(calc_ssim(sr, hr) - calc_ssim(sr.double(), hr.double())) < 1e-6


def test_ssim_averages_the_batch():
    sr, hr = pair(24, 24)
    both = calc_ssim(torch.cat([sr, hr]), torch.cat([hr, hr]))
    assert both.item() == pytest.approx((calc_ssim(sr, hr).item() + 1) / 2, abs=1e-12)


def test_ssim_refuses():
    x = torch.zeros(1, 3, 30, 30)
    with pytest.raises(UserError, match='found an image of 30x30 pixels, expected at least 31'):
        calc_ssim(x, x, 'div2k', 4)
    with pytest.raises(UserError, match="found 'set5'"):
        calc_ssim(x, x, 'set5')
    with pytest.raises(UserError, match='one size'):
        calc_ssim(x, x[..., 1:])


def test_lpips_needs_its_library_and_weights(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'lpips', None)
    with pytest.raises(UserError, match='pip install lpips'):
        make_lpips()
    monkeypatch.setitem(sys.modules, 'lpips', type(sys)('lpips'))
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(UserError, match=f'download https.*alexnet.* to {tmp_path}'):
        make_lpips()


def test_lpips_gets_what_is_measured(monkeypatch, tmp_path):
    """Shaved as for PSNR and in [-1, 1], as the library wants it."""
    class Network(torch.nn.Module):
        def forward(self, a, b):
            assert a.shape == b.shape == (1, 3, 20, 22)
            return ((a + 1) / 2 - (b + 1) / 2).abs().mean(dim=(1, 2, 3), keepdim=True)

    library = type(sys)('lpips')
    library.LPIPS = lambda net, verbose: Network()
    monkeypatch.setitem(sys.modules, 'lpips', library)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / 'checkpoints' / 'alexnet-owt-7be5be79.pth').write_bytes(b'')
    sr, hr = pair(40, 42)
    inner = (sr - hr)[..., 10:-10, 10:-10].abs().mean()
    torch.testing.assert_close(make_lpips()(sr, hr, 'div2k', 4), inner)


def bicubic_psnr(name, scale, grey_as_rgb=False):
    """Mean luma PSNR of the bicubic baseline on a benchmark set."""
    if not os.path.isdir(os.path.join(DATA, name)):
        pytest.skip(f'no {name} in {DATA} (set LIIF_DATA)')
    model, values = models.make({'name': 'bicubic'}), []
    for path in sorted(glob.glob(os.path.join(DATA, name, 'HR', '*'))):
        stem = os.path.splitext(os.path.basename(path))[0]
        pair = []
        for p in (os.path.join(DATA, name, f'LR_bicubic/X{scale}/{stem}x{scale}.png'), path):
            img = Image.open(p)
            img = np.array(img if img.mode == 'L' and not grey_as_rgb else img.convert('RGB'))
            pair.append(torch.from_numpy(img.reshape(*img.shape[:2], -1)).permute(2, 0, 1)[None] / 255)
        lr, hr = pair
        h, w = lr.shape[-2] * scale, lr.shape[-1] * scale
        sr = model(lr, make_coord((h, w))[None], torch.tensor([[[2 / h, 2 / w]]]))  # (1, h * w, C)
        sr = sr.clamp(0, 1).transpose(1, 2).view(1, -1, h, w)
        values.append(calc_psnr(sr, hr[..., :h, :w], 'benchmark', scale).item())
    return np.mean(values)


@pytest.mark.parametrize('name, scale, psnr', [('Set5', 2, 33.66), ('Set5', 3, 30.39), ('Set5', 4, 28.42),
                                               ('Set14', 2, 30.24), ('Set14', 3, 27.55), ('Set14', 4, 26.00)])
def test_bicubic_gives_the_published_psnr(name, scale, psnr):
    """As every paper lists it, Set14's one grey image being compared as one channel."""
    assert abs(bicubic_psnr(name, scale) - psnr) < 0.025


def test_bicubic_through_the_evaluation():
    """The same number by what test.py runs: data set, wrapper, loader, eval_psnr."""
    expected = bicubic_psnr('Set5', 3)
    args = {f'root_path_{i}': os.path.join(DATA, 'Set5', name) for i, name in ((1, 'LR_bicubic/X3'), (2, 'HR'))}
    pairs = datasets.make({'name': 'paired-image-folders', 'args': args})
    data = datasets.make({'name': 'sr-implicit-paired', 'args': {'dataset': pairs}})
    loader = make_loader(data, batch_size=1, seed=0, train=False, num_workers=0)
    found = eval_psnr(loader, models.make({'name': 'bicubic'}), PUBLISHED_NORM, 'benchmark-3', eval_bsize=30000)
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_grey_image_read_as_rgb_gains():
    """LIIF's evaluation reads it as RGB, whose luma weights sum to 0.86: that image gains 1.32 dB, Set14 0.094."""
    gain = bicubic_psnr('Set14', 4, grey_as_rgb=True) - bicubic_psnr('Set14', 4)
    assert gain == pytest.approx(-20 * np.log10((65.738 + 129.057 + 25.064) / 256) / 14, abs=1e-4)
