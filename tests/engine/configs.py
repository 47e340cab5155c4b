"""Small configs for the tests, and how they are loaded."""
import yaml

from engine.config import load_config
from utils import UserError


def data(folder):
    return {'dataset': {'name': 'image-folder', 'args': {'root_path': str(folder / 'images'), 'repeat': 2}},
            'wrapper': {'name': 'sr-implicit-downsampled', 'args': {'inp_size': 4, 'scale_max': 4, 'sample_q': 16}},
            'batch_size': 2}


def tiny(folder, kind='train'):
    norm = {'inp': {'sub': [0.5], 'div': [0.5]}, 'gt': {'sub': [0.5], 'div': [0.5, 0.5, 0.5]}}
    if kind == 'test':
        test = data(folder)
        test['wrapper']['args'] = {'scale_min': 2.5}
        return {'test_dataset': {**test, 'batch_size': 1}, 'data_norm': norm, 'eval_type': 'benchmark-2.5',
                'eval_bsize': 100}
    return {'train_dataset': data(folder), 'val_dataset': data(folder), 'data_norm': norm,
            'model': {'name': 'liif', 'args': {
                'encoder_spec': {'name': 'edsr-baseline',
                                 'args': {'n_resblocks': 1, 'n_feats': 4, 'no_upsampling': True}},
                'imnet_spec': {'name': 'mlp', 'args': {'out_dim': 3, 'hidden_list': [8]}}}},
            'optimizer': {'name': 'adam', 'args': {'lr': 1e-4}},
            'epoch_max': 2, 'lr_scheduler': {'name': 'cosine', 'args': {'warmup_epochs': 0.5}}, 'ema': 0.999}


def write(folder, config, name='config.yaml'):
    path = folder / name
    if isinstance(config, bytes):
        path.write_bytes(config)
    else:
        path.write_text(config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False))
    return str(path)


def load_or_message(path, overrides=(), kind='train'):
    """(config, None), or (None, the one line a user reads); anything but a UserError passes through."""
    try:
        return load_config(path, overrides, kind), None
    except UserError as error:
        message = str(error)
        assert message == ' '.join(message.splitlines()) and message.isprintable(), repr(message)
        assert len(message) < 1500
        return None, message
