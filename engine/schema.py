"""The schema of configs: every key, every argument of the things a config names, what is accepted, the default.

TRAIN and TEST hold the keys, ARGUMENTS what the data sets, wrappers, models, optimizers and schedules take by name.
`python -m engine.schema` prints all of it for people. engine/config.py checks a config against it; something
registered outside this project is checked against its own constructor's signature instead.
"""
import math
import re
from typing import Any, Callable, NamedTuple

from datasets.images import MAX_PIXELS


# What a value may be.


class Want(NamedTuple):
    """A kind of value: how a message calls it, and which values are of that kind. exists: 'folder' or 'file' for a
    path that has to be there; numeric: text that looks like a number is a number written wrongly."""
    text: str
    accepts: Callable
    exists: str = ''
    numeric: bool = False


def is_number(value, whole=False):
    """A finite number, true and false excluded (in Python they are integers)."""
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def integer(low, high=2 ** 31 - 1):
    return Want(f'an integer from {low} to {high}' if high < 2 ** 31 - 1 else f'an integer >= {low}',
                lambda v: is_number(v, whole=True) and low <= v <= high, numeric=True)


def number(low, high=None, above=False, below=False):
    """A number from `low` to `high`; above, below: without the bound itself."""
    text = f'a number {">" if above else ">="} {low}'
    if high is not None:
        text += f' and {"<" if below else "<="} {high}'
    return Want(text, lambda v: is_number(v) and (v > low if above else v >= low)
                and (high is None or (v < high if below else v <= high)), numeric=True)


def one_of(*values):
    return Want('one of ' + ', '.join(map(str, values)),
                lambda v: any(v == known and type(v) is type(known) for known in values),
                numeric=all(is_number(v) for v in values))


def list_of(item, lengths=None, text=''):
    """A list whose entries are `item`s; lengths: how many of them there may be."""
    return Want(text or f'a list, each {item.text}', lambda v: isinstance(v, list) and all(map(item.accepts, v))
                and (lengths is None or len(v) in lengths))


def or_null(want):
    """For keys where null is a value of its own, not the default."""
    return want._replace(text=f'null or {want.text}', accepts=lambda v: v is None or want.accepts(v))


def path(exists):
    return Want(f'a {exists} that exists', lambda v: isinstance(v, str) and v != '', exists=exists)


def is_eval_type(value):
    match = re.fullmatch(r'(?:div2k|benchmark)-(\d{1,4}(?:\.\d{1,9})?)', value) if isinstance(value, str) else None
    return value == 'none' or match is not None and float(match.group(1)) > 0


class Spec(NamedTuple):
    """A mapping {name, args}. role: which group of names may stand there."""
    role: str


FLAG = Want('true or false', lambda v: isinstance(v, bool))
TEXT = Want('a text', lambda v: isinstance(v, str) and v != '')
CHANNELS = Want('a list of one or three numbers', lambda v: isinstance(v, list) and len(v) in (1, 3)
                and all(map(is_number, v)))
DIVISORS = Want('a list of one or three numbers other than 0', lambda v: CHANNELS.accepts(v) and all(v))
BETAS = list_of(number(0, 1, below=True), lengths=[2], text='a list of two numbers >= 0 and < 1')
WIDTHS = list_of(integer(1, 65536), lengths=range(65), text='a list of at most 64 integers from 1 to 65536')
ODD = Want('an odd integer from 1 to 99', lambda v: is_number(v, whole=True) and v in range(1, 100, 2), numeric=True)
EPOCHS = list_of(number(0, above=True), text='a list of numbers > 0')
ARGS = Want('a mapping of arguments', lambda v: isinstance(v, dict))
EVAL_TYPE = Want('null, div2k-N or benchmark-N', is_eval_type)

REQUIRED = object()


class Key(NamedTuple):
    """A row of the schema. want: a Want, a Spec, or the table of a nested mapping. default: what an absent or null
    key means; REQUIRED when it must be there."""
    want: Any
    default: Any
    meaning: str


# The keys of a config.

DATA = {
    'dataset': Key(Spec('dataset'), REQUIRED, 'where the images come from'),
    'wrapper': Key(Spec('wrapper'), REQUIRED, 'how an image becomes an input and queries'),
    'batch_size': Key(integer(1, 2 ** 20), REQUIRED, 'samples a step, over all processes'),
}
CHANNEL_NORM = {
    'sub': Key(CHANNELS, REQUIRED, 'subtracted from each channel'),
    'div': Key(DIVISORS, REQUIRED, 'then divided by this'),
}
NORM = {
    'inp': Key(CHANNEL_NORM, REQUIRED, 'of the input image'),
    'gt': Key(CHANNEL_NORM, REQUIRED, 'of the ground truth'),
}
MULTI_STEP_LR = {
    'milestones': Key(list_of(integer(1), text='a list of integers >= 1'), REQUIRED,
                      'the rate is multiplied after so many epochs'),
    'gamma': Key(number(0, above=True), 0.1, 'by this'),
}
TRAIN = {
    'train_dataset': Key(DATA, REQUIRED, 'what to train on'),
    'val_dataset': Key(DATA, None, 'what to measure while training; null: nothing'),
    'data_norm': Key(NORM, None, '(v - sub) / div of pixels v in [0, 1]; null: v'),
    'model': Key(Spec('model'), REQUIRED, "left out with resume: the checkpoint's own wins"),
    'optimizer': Key(Spec('optimizer'), REQUIRED, "left out with resume: the checkpoint's own wins"),
    'epoch_max': Key(integer(1, 10 ** 9), REQUIRED, 'how many epochs to train'),
    'multi_step_lr': Key(MULTI_STEP_LR, None, 'the published schedule; both null: a constant rate'),
    'lr_scheduler': Key(Spec('lr_scheduler'), None, 'another one, step by step, instead of it'),
    'epoch_val': Key(integer(1), 1, 'validate every so many epochs'),
    'epoch_save': Key(integer(1), None, 'keep a checkpoint every so many epochs'),
    'save_minutes': Key(number(0, above=True), None, 'save within an epoch, every so many minutes'),
    'eval_type': Key(EVAL_TYPE, None, 'which PSNR: null for all pixels in RGB'),
    'eval_bsize': Key(integer(1), None, 'queries decoded at once; changes memory, not PSNR'),
    'resume': Key(path('file'), None, 'checkpoint to go on from'),
    'seed': Key(integer(0, 2 ** 63 - 1), 0, 'every random choice of the run follows from it'),
    'precision': Key(one_of('float32', 'bf16', 'fp16'), 'float32', 'of the network; weights and loss stay float32'),
    'grad_clip': Key(number(0, above=True), None, 'largest norm of the gradient; null: no limit'),
    'ema': Key(number(0, 1, above=True, below=True), None, 'decay of a mean of the weights, saved beside'),
    'on_bad_image': Key(one_of('stop', 'skip'), 'stop', 'an unreadable file: stop, or replace and count'),
}
TEST = {
    'test_dataset': Key(DATA, REQUIRED, 'what to measure'),
    'data_norm': TRAIN['data_norm'],
    'eval_type': TRAIN['eval_type'],
    'eval_bsize': TRAIN['eval_bsize'],
    'precision': TRAIN['precision'],
    'seed': TRAIN['seed']._replace(meaning='random crops, if any, follow from it'),
}
KINDS = {'train': TRAIN, 'test': TEST}

# The names this project registers, by the place they may stand in, and their arguments.

FOLDER = {
    'split_file': Key(path('file'), None, 'JSON file {key: [file names]}; null: all images'),
    'split_key': Key(TEXT, None, 'which list of split_file'),
    'first_k': Key(integer(1), None, 'only the first images, in order of their names'),
    'repeat': Key(integer(1, 10 ** 7), 1, 'how often an epoch sees each image'),
    'cache': Key(one_of('none', 'bin', 'in_memory'), 'none', 'decode each time, or once: into a file, memory'),
    'max_pixels': Key(or_null(integer(1)), MAX_PIXELS, 'refuse larger images; null: refuse none'),
}
CROPS = {
    'inp_size': Key(integer(1, 2 ** 16), None, 'side of the input, a random crop; null: all of it'),
    'augment': Key(FLAG, False, 'random flips and transposition'),
    'sample_q': Key(integer(1), None, 'random pixels queried a sample; null: all'),
}
EDSR = {
    'n_resblocks': Key(integer(0, 1024), 16, 'residual blocks'),
    'n_feats': Key(integer(1, 8192), 64, 'features'),
    'res_scale': Key(number(0), 1, 'factor of each residual'),
    'scale': Key(one_of(1, 2, 3, 4, 8, 16, 32, 64), 2, 'of its own up-sampler'),
    'no_upsampling': Key(FLAG, False, 'true: give features, for LIIF and MetaSR'),
    'rgb_range': Key(number(0, above=True), 1, 'of tensors no longer used, in published configs'),
}
ENCODER_SPEC = Key(Spec('encoder'), REQUIRED, 'the network that turns the image into latent codes')
WARM_UP = Key(number(0), 0, 'the rate first grows from 0 over so many')
ARGUMENTS = {
    'dataset': {
        'image-folder': {'root_path': Key(path('folder'), REQUIRED, 'folder of images'), **FOLDER},
        'paired-image-folders': {
            'root_path_1': Key(path('folder'), REQUIRED, 'folder of low-resolution images'),
            'root_path_2': Key(path('folder'), REQUIRED, 'folder of high-resolution images, same order'),
            **FOLDER,
        },
    },
    'wrapper': {
        'sr-implicit-paired': CROPS,
        'sr-implicit-downsampled': {
            'inp_size': CROPS['inp_size'],
            'scale_min': Key(number(1, 1024), 1, 'smallest factor by which the image is reduced'),
            'scale_max': Key(number(1, 1024), None, 'largest one, drawn uniformly; null: scale_min'),
            'augment': CROPS['augment'], 'sample_q': CROPS['sample_q'],
            'small_images': Key(one_of('stop', 'fit'), 'stop', 'too small for the crop: stop, or scales that fit'),
        },
        'sr-implicit-uniform-varied': {
            'size_min': Key(integer(1, 2 ** 16), REQUIRED, 'side of the ground truth of the first image'),
            'size_max': Key(integer(1, 2 ** 16), None, 'of the last one; null: size_min'),
            'augment': Key(FLAG, False, 'random left-right flips'),
            'gt_resize': Key(integer(1, 2 ** 16), None, 'then resize it to this, for a fixed-scale network'),
            'sample_q': CROPS['sample_q'],
        },
    },
    'model': {
        'liif': {
            'encoder_spec': ENCODER_SPEC,
            'imnet_spec': Key(Spec('decoder'), None, 'the decoder; null: the encoder up-samples itself'),
            'local_ensemble': Key(FLAG, True, 'blend the four codes around a query'),
            'feat_unfold': Key(FLAG, True, 'a code is the 3x3 neighbourhood of features'),
            'cell_decode': Key(FLAG, True, 'the decoder knows the size of the query pixel'),
        },
        'metasr': {'encoder_spec': ENCODER_SPEC},
    },
    'interpolation': {  # models with nothing to train, for test.py and demo.py
        'bicubic': {'kernel': Key(one_of('matlab', 'pil'), 'matlab', 'how borders are treated')},
        'bilinear': {},
        'nearest': {},
    },
    'encoder': {
        'edsr-baseline': EDSR,
        'edsr': {
            **EDSR,
            'n_resblocks': EDSR['n_resblocks']._replace(default=32),
            'n_feats': EDSR['n_feats']._replace(default=256),
            'res_scale': EDSR['res_scale']._replace(default=0.1),
        },
        'rdn': {
            'G0': Key(integer(1, 8192), 64, 'features'),
            'RDNkSize': Key(ODD, 3, 'side of the kernels'),
            'RDNconfig': Key(one_of('A', 'B'), 'B', 'A: 20 blocks, 6 layers, growth 32; B: 16, 8, 64'),
            'scale': Key(one_of(2, 3, 4), 2, 'of its own up-sampler'),
            'no_upsampling': EDSR['no_upsampling'],
        },
        'rcan': {
            'n_resgroups': Key(integer(0, 1024), 10, 'residual groups'),
            'n_resblocks': Key(integer(0, 1024), 20, 'blocks in a group'),
            'n_feats': EDSR['n_feats'],
            'reduction': Key(integer(1, 8192), 16, 'of the features in the channel attention'),
            'scale': EDSR['scale'], 'no_upsampling': EDSR['no_upsampling'], 'rgb_range': EDSR['rgb_range'],
        },
    },
    'decoder': {
        'mlp': {
            'in_dim': Key(integer(1), REQUIRED, 'given by the model: leave it out'),
            'out_dim': Key(integer(1, 65536), REQUIRED, '3 in a model: red, green, blue'),
            'hidden_list': Key(WIDTHS, REQUIRED, 'widths of the hidden layers'),
        },
    },
    'optimizer': {
        'adam': {
            'lr': Key(number(0), REQUIRED, 'learning rate'),
            'betas': Key(BETAS, [0.9, 0.999], 'decay of the running means'),
            'eps': Key(number(0), 1e-8, 'added to the denominator'),
            'weight_decay': Key(number(0), 0, 'L2 penalty'),
            'amsgrad': Key(FLAG, False, 'keep the largest second moment'),
        },
        'muon': {
            'lr': Key(number(0, above=True), REQUIRED, 'learning rate of the hidden weights'),
            'momentum': Key(number(0, 1, below=True), 0.95, 'of the hidden weights'),
            'weight_decay': Key(number(0), 0, 'of the hidden weights, times lr'),
            'adam_lr': Key(number(0), 1e-3, 'learning rate of the rest, by Adam'),
            'adam_betas': Key(BETAS, [0.9, 0.99], 'of Adam'),
            'adam_eps': Key(number(0), 1e-8, 'of Adam'),
            'iterations': Key(integer(1, 100), 5, 'Newton-Schulz iterations'),
        },
        'sgd': {
            'lr': Key(number(0), REQUIRED, 'learning rate'),
            'momentum': Key(number(0), 0, 'of the running gradient'),
            'dampening': Key(number(0), 0, 'of the momentum'),
            'weight_decay': Key(number(0), 0, 'L2 penalty'),
            'nesterov': Key(FLAG, False, 'look ahead; needs a momentum, without dampening'),
        },
    },
    'lr_scheduler': {
        'trapezoid': {
            'epochs': Key(number(0, above=True), None, 'when the rate reaches min_lr; null: epoch_max'),
            'decay_epochs': Key(number(0, above=True), REQUIRED, 'the rate falls linearly over the last ones'),
            'min_lr': Key(number(0), 0, 'the rate at the end'),
            'warmup_epochs': WARM_UP,
        },
        'multi-step': {
            'milestones': Key(EPOCHS, REQUIRED, 'the rate is multiplied after so many epochs'),
            'gamma': Key(number(0, above=True), 0.1, 'by this'),
            'warmup_epochs': WARM_UP,
        },
        'cosine': {
            'epochs': Key(number(0, above=True), None, 'when the rate reaches min_lr; null: epoch_max'),
            'min_lr': Key(number(0), 0, 'the rate at the end'),
            'warmup_epochs': WARM_UP,
        },
    },
}
# Arguments that the thing around it hands to a constructor, so that a config need not give them.
HANDED = {'wrapper': {'dataset'}, 'decoder': {'in_dim'}}


def wanted_text(want):
    if isinstance(want, Spec):
        return '{name, args}'
    return want.text if isinstance(want, Want) else f'a mapping with {", ".join(want)}'


def describe(kind):
    """The keys of a 'train' or 'test' config, or the arguments of a group such as 'wrapper', as text laid out like
    YAML: what is accepted, the default in brackets, the meaning."""
    if kind in KINDS:
        return '\n'.join(describe_table(KINDS[kind]))
    lines = []
    for name, arguments in ARGUMENTS[kind].items():
        lines += [f'{name}:', *describe_table(arguments, '  ')]
    return '\n'.join(lines)


def describe_table(table, indent=''):
    lines = []
    for key, (want, default, meaning) in table.items():
        nested = isinstance(want, dict)
        text = f'{indent}{key}:' if nested else f'{indent}{key}: {wanted_text(want)}'
        if default is not REQUIRED:
            text += f' [{as_yaml(default)}]'
        lines.append(f'{text:<60} # {meaning}')
        if nested:
            lines += describe_table(want, indent + '  ')
    return lines


def as_yaml(value):
    if isinstance(value, list):
        return ', '.join(map(as_yaml, value))
    return 'null' if value is None else str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == '__main__':
    for group in (*KINDS, *ARGUMENTS):
        print(f'{group.upper()}\n{describe(group)}\n')
