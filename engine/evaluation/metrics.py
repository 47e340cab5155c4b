"""SSIM, and LPIPS through the package lpips. PSNR is `utils.calc_psnr`.

All are computed on the same pixels: of predictions clamped to [0, 1] and not rounded, in the colour space and
within the border that `dataset` and `scale` choose in `calc_psnr`.
"""
import os
import warnings

import torch
import torch.nn.functional as F

from utils import LUMA, UserError, shaved


def luma(img):
    """BT.601 luma of RGB (B, 3, H, W) in [0, 1], in [16/255, 235/255]; one channel is returned unchanged."""
    if img.shape[1] == 1:
        return img
    return (img * img.new_tensor(LUMA).view(1, 3, 1, 1) / 256).sum(dim=1, keepdim=True) + 16 / 255  # (B, 1, H, W)


def calc_ssim(sr, hr, dataset=None, scale=1):
    """Structural similarity (Wang et al., 2004): a 0-d tensor, 1 for equal images, the mean over a batch.

    sr, hr: (B, C, H, W) in [0, 1]; dataset, scale: as in `shaved`, and 'benchmark' compares luma. Windows are 11x11
    Gaussians with sigma 1.5 wholly inside the image, variances are weighted without bias correction, K1 = 0.01,
    K2 = 0.03, the range is 1, channels are averaged. Equals scikit-image's
    `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)`, in float32
    to 1e-5. Raises UserError for images of different size.
    """
    if sr.shape != hr.shape:
        raise UserError(f'SSIM compares images of one size, found {tuple(sr.shape)} and {tuple(hr.shape)}')
    x, y = (shaved(img, dataset, scale, least=11) for img in (sr, hr))
    if dataset == 'benchmark':
        x, y = luma(x), luma(y)
    mx, my = _window_mean(x), _window_mean(y)
    # Moments about the image's mean: squares of large numbers would cancel in float32.
    middle = y.mean(dim=(-2, -1), keepdim=True)
    x, y, cx, cy = x - middle, y - middle, mx - middle, my - middle
    vx = _window_mean(x * x) - cx * cx
    vy = _window_mean(y * y) - cy * cy
    vxy = _window_mean(x * y) - cx * cy
    c1, c2 = 0.01 ** 2, 0.03 ** 2
    ssim = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))  # (B, C, H', W')
    return ssim.mean()


def _window_mean(x, radius=5, sigma=1.5):
    t = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    g = torch.exp(-t * t / (2 * sigma * sigma))
    g = g / g.sum()
    b, c, h, w = x.shape
    x = F.conv2d(x.reshape(b * c, 1, h, w), g.view(1, 1, -1, 1))
    x = F.conv2d(x, g.view(1, 1, 1, -1))
    return x.view(b, c, h - 2 * radius, w - 2 * radius)


def make_lpips(device='cpu'):
    """LPIPS (Zhang et al., 2018) as a function (sr, hr, dataset=None, scale=1) -> 0-d tensor, smaller is closer.

    sr, hr: (B, 3, H, W) in [0, 1], compared in RGB for every data set, shaved as for PSNR. Needs the package
    lpips and AlexNet's weights in torchvision's folder, which are not downloaded here; raises UserError when one is
    missing.
    """
    try:
        import lpips
    except ImportError:
        raise UserError('LPIPS needs the package lpips: pip install lpips') from None
    from torchvision.models import AlexNet_Weights
    url = AlexNet_Weights.IMAGENET1K_V1.url
    path = os.path.join(torch.hub.get_dir(), 'checkpoints', os.path.basename(url))
    if not os.path.exists(path):
        raise UserError(f'LPIPS needs the weights of its backbone: download {url} to {path}')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # it calls torchvision in an older way
        network = lpips.LPIPS(net='alex', verbose=False).to(device).eval()

    @torch.no_grad()
    def calc_lpips(sr, hr, dataset=None, scale=1):
        return network(*(shaved(x.to(device), dataset, scale, least=11) * 2 - 1 for x in (sr, hr))).mean()

    return calc_lpips
