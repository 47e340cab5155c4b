"""Evaluate a checkpoint:  python test.py --config configs/test/test-set5-2.yaml --model M.pth [--gpu 0]

Prints a last line `result: PSNR` in dB. The config names the data, `data_norm`, `eval_type` and `eval_bsize`; see
docs/configs.md.
"""
import argparse
import os

import torch
from tqdm import tqdm

import datasets
from datasets.loader import make_loader
from engine.batch import unpack
from engine.checkpoint import load_model
from engine.config import load_config
from engine.device import autocast
from engine.evaluate import batch_psnr, batched_predict, eval_psnr  # noqa: F401 (the last two: importable from here)
from engine.runtime import run_program, select_device
from utils import Averager


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', required=True, help='a test config, such as configs/test/test-set5-2.yaml')
    parser.add_argument('--model', required=True, help='a checkpoint written by train_liif.py')
    parser.add_argument('--gpu', help="a GPU's number, or cpu; the first GPU there is when absent")
    parser.add_argument('--per-image', action='store_true', help='a line for each image')
    parser.add_argument('--ema', action='store_true', help="use the checkpoint's averaged weights")
    parser.add_argument('--workers', type=int, help='processes that read images; as many as pay when absent')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', help='override a key of the config')
    args = parser.parse_args(argv)

    config = load_config(args.config, args.set, kind='test')
    device = select_device(args.gpu)
    model, _ = load_model(args.model, device, ema=args.ema)
    spec = config['test_dataset']
    data = datasets.make(spec['wrapper'], args={'dataset': datasets.make(spec['dataset'])})
    loader = make_loader(data, spec['batch_size'], seed=config.get('seed', 0), train=False, num_workers=args.workers,
                         device_type=device.type)
    mean = Averager()
    with autocast(device, config.get('precision')):
        progress = tqdm(loader, desc='test', leave=False)
        for batch in progress:
            psnr, _ = batch_psnr(model, unpack(batch, device), config.get('data_norm'), config.get('eval_type'),
                                 config.get('eval_bsize'))
            mean.add(psnr, len(batch['inp']))
            progress.set_description(f'test {mean.item():.4f}')
            if args.per_image:
                progress.write(f'{name_of(data, batch["index"])}: {psnr:.4f}')
    print(f'result: {mean.item():.4f}')


def name_of(data, index):
    """File names of the samples of a batch."""
    paths = (data.dataset.path(i) for i in index.tolist())
    return ', '.join(os.path.basename(path if isinstance(path, str) else path[-1]) for path in paths)


if __name__ == '__main__':
    run_program(main)
