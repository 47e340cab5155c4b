"""Train LIIF, or any model of its family, from a config:

    python train_liif.py --config configs/train-div2k/train_edsr-baseline-liif.yaml
    python train_liif.py --config C --resume                # continue after any interruption
    python train_liif.py --config C --gpu 0,1               # two GPUs; batch_size stays the global batch
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 train_liif.py --config C

Everything goes to save/_<config name>[_tag], or save/<name>[_tag]: log.txt, config.yaml, tensorboard/, epoch-last.pth
(and epoch-last.prev.pth, the one before it), epoch-best.pth by validation PSNR, epoch-N.pth.

A config names the data, the model, the optimizer and the length of the run (docs/configs.md has every key):

    train_dataset:
      dataset: {name: image-folder, args: {root_path: ./load/your-images/train}}
      wrapper: {name: sr-implicit-downsampled, args: {inp_size: 48, scale_max: 4, sample_q: 2304}}
      batch_size: 16
    model:
      name: liif
      args:
        encoder_spec: {name: edsr-baseline, args: {no_upsampling: true}}
        imnet_spec: {name: mlp, args: {out_dim: 3, hidden_list: [256, 256, 256, 256]}}
    optimizer: {name: adam, args: {lr: 1e-4}}
    epoch_max: 100
"""
import contextlib
import logging
import os
import sys

from engine import distributed
from engine.arguments import within
from engine.checkpoint import parse_checkpoint, read_file
from engine.config import load_config
from engine.runtime import Parser, parse_gpus, run_program, select_device
from engine.training.loop import train
from engine.training.run_folder import RunFolder, folder_name
from engine.training.state import Changed, check_resumable
from utils import UserError


log = logging.getLogger('liif')


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('--config', required=True, help='a training config, such as configs/train-your-images.yaml')
    parser.add_argument('--name', help='name of the run folder in save/; default: _<config name>')
    parser.add_argument('--tag', help='appended to that name')
    parser.add_argument('--gpu',
                        help="a GPU's number, several such as 0,1, or cpu; default: the first GPU, else the CPU")
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument('--resume', action='store_true', help="go on from the run folder's newest usable checkpoint")
    earlier.add_argument('--overwrite', action='store_true', help='delete what an earlier run left in the run folder')
    parser.add_argument('--init', metavar='MODEL',
                        help='start from the weights of a checkpoint or a name in weights/ (overrides the key init)')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        help='override keys of the config')
    parser.add_argument('--allow-change', action='append', default=[], metavar='KEY',
                        help='a key that may differ from the run that is resumed, such as epoch_max')
    parser.add_argument('--workers', type=within(0), help='processes that read images; default: chosen automatically')
    args = parser.parse_args(argv)

    config = load_config(args.config, args.set, kind='train')
    if args.allow_change and not args.resume and config['resume'] is None:
        raise UserError('--allow-change: found no --resume, expected it, since only a run that goes on can differ from '
                        'the one before: add --resume, or leave --allow-change out')
    devices = parse_gpus(args.gpu) if args.gpu is not None else [None]
    if len(devices) > 1 and distributed.world() == 1:
        sys.exit(distributed.launch(len(devices)))
    device = select_device(args.gpu)
    config['init'] = args.init or config['init']
    with contextlib.closing(RunFolder(folder_name(args.config, args.name, args.tag), args.resume,
                                      args.overwrite)) as folder:
        number = run(config, folder, device, args)
    if number is not None:
        sys.exit(128 + number)


def run(config, folder, device, args):
    """Begin or resume; returns the number of the signal that stopped it, or None."""
    path, data = checkpoint_to_resume(config, folder, args)
    if data is not None:  # a mistake is reported before other processes wait for this one
        try:
            check_resumable(config, parse_checkpoint(data, path), path, args.allow_change)
        except Changed as error:
            raise UserError(f'{error}, or give {" ".join(f"--allow-change {key}" for key in error.keys)}') from None
    distributed.join(device)

    data, checkpoint = distributed.from_first(data, device), None
    if data is not None:
        checkpoint = parse_checkpoint(data, path)
        config = check_resumable(config, checkpoint, path, args.allow_change)
    return train(config, folder, device, checkpoint, args.workers)


def checkpoint_to_resume(config, folder, args):
    """(path, bytes) of the checkpoint to go on from, in process 0; (None, None) to begin."""
    if not folder.is_main:
        return 'of process 0', None
    if args.resume:
        found = folder.newest()
        if found is not None:
            log.info(f'resuming from {found[0]}')
            return found
        log.info(f'nothing to resume in {folder.path}: beginning')
    if config['resume'] is None:
        return None, None
    if not os.path.exists(config['resume']):
        log.warning(f'WARNING: resume: there is no file {config["resume"]}, so training begins anew')
        return None, None
    if config['init']:
        raise UserError(f'init {config["init"]} and resume {config["resume"]} exclude each other: start from weights, '
                        f'or resume a run')
    log.info(f'resuming from {config["resume"]}')
    return config['resume'], read_file(config['resume'])


if __name__ == '__main__':
    run_program(main)
