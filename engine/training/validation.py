"""Validation while training: PSNR over the validation set, and sample images."""
import functools
import logging

import torch
from tqdm import tqdm

import models
from engine import distributed
from engine.evaluation.evaluate import measure, predict_rgb
from engine.training.monitor import Stopped, warn_of_skipped
from utils import Averager


log = logging.getLogger('liif')
IMAGES, MAX_PIXELS = 3, 2 ** 20  # how many samples are shown, and the largest one that is


def measure_start(state, loader, monitor, device):
    """Log what training starts from: the PSNR of bicubic interpolation and of the model before its first step. It also
    shows at once whether validation works."""
    state.reference = {}
    if state.config['val_dataset']['wrapper']['name'].startswith('sr-implicit'):
        state.reference['bicubic'] = mean_psnr(models.make({'name': 'bicubic'}).to(device), None, state.config, loader,
                                               monitor, device)
    state.reference['before training'] = validate(state, loader, monitor, device)
    if state.config['init']:
        state.best = state.reference['before training']  # epoch-best.pth is written once training gains something
    log.info('val psnr ' + ', '.join(f'{name} {value:.4f}' for name, value in state.reference.items()))


def validate(state, loader, monitor, device):
    """PSNR of the model in dB over the validation set; sample images go to the run folder. Raises Stopped when a signal
    asked to stop."""
    state.model.eval()
    config, epochs = state.config, state.epoch - 1 + state.step // state.steps  # complete ones
    return mean_psnr(state.model, config['data_norm'], config, loader, monitor, device,
                     lambda batch: monitor.folder.images(sample_images(state, batch), epochs))


@torch.no_grad()
def mean_psnr(model, data_norm, config, loader, monitor, device, show=None):
    """Mean PSNR in dB. show: called with the first batch, on the device. Processes take batches in turn; the mean is
    formed in the order of one process, so it is the same number."""
    folder, sampler = monitor.folder, loader.batch_sampler
    batches = -(-sampler.samples // sampler.batch_size)
    found = torch.zeros(batches + 1, 2, dtype=torch.float64)  # PSNR and size of each batch; whether to stop
    predict = functools.partial(predict_rgb, model, data_norm=data_norm, eval_bsize=config['eval_bsize'],
                                precision=config['precision'])
    progress = tqdm(measure(loader, predict, device, config['eval_type']), desc='val', total=len(sampler), leave=False,
                    disable=None if folder.is_main else True)
    for part, i in zip(progress, range(sampler.rank, batches, sampler.world)):
        warn_of_skipped(part.batch)
        found[i] = torch.tensor([part.psnr, part.count])
        if i == 0 and show is not None:
            show(part.batch)
        if monitor.stop.asked():
            found[batches, 0] = 1
            break
    found = distributed.all_sum(found.to(device)).tolist() if distributed.joined() else found.tolist()
    if found[batches][0] > 0:
        raise Stopped
    mean = Averager()
    for psnr, count in found[:batches]:
        mean.add(psnr, count)
    return mean.item()


def sample_images(state, batch):
    """The first inputs of a batch and what the model makes of them at the size their queries come from:
    {name: (3, H, W) in [0, 1]}."""
    config, images = state.config, {}
    if batch.get('size') is None:
        return images
    for i in range(min(IMAGES, len(batch['inp']))):
        h, w = batch['size'][i].tolist()
        if h * w > MAX_PIXELS:
            continue
        one = {'inp': batch['inp'][i:i + 1], 'coord': None, 'size': batch['size'][i:i + 1],
               'cell': batch['cell'][i:i + 1, :1]}
        rgb = predict_rgb(state.model, one, config['data_norm'], config['eval_bsize'],
                          config['precision'])  # (1, H * W, 3)
        images[f'val/{i}/input'] = batch['inp'][i]
        images[f'val/{i}/predicted'] = rgb[0].t().view(3, h, w)
    return images
