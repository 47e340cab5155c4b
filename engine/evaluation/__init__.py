"""Measuring: PSNR and SSIM over data sets, suites, tables."""
