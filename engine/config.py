"""Reading configs: a YAML file, `--set` overrides, and a check of all of it before anything is computed.

What a config may hold is stated in engine/schema.py. Every mistake raises a UserError in one line:
`<file>: <key.path>: found <value>, expected <...>; <what to do>`.
"""
import copy
import difflib
import math
import os
import re
from itertools import islice

import yaml

from engine.schema import EVAL_TYPE, HANDED, KINDS, REGISTRIES, REQUIRED, Key, keys_of, text_of
from utils import Text, UserError, ValueType, counted, is_number, parameters_of, shaved_pixels, show


PROGRAMS = {'train': 'train_liif.py', 'test': 'test.py'}
SEE = 'correct it (docs/configs.md explains every key)'
PREPARED = 'div2k', 'benchmark', 'celebAHQ', 'photos', 'sample'  # folders in load/ that scripts/prepare_data.py makes
YOURS = {'folder': 'your images', 'file': 'it'}
MAPPING = ValueType('a mapping of arguments', lambda v: isinstance(v, dict), {})
SPEC = {'name': Key(Text(), REQUIRED, ''), 'args': Key(MAPPING, {}, '')}


def load_config(path, overrides=(), kind='train', check_paths=True):
    """The config in the YAML file `path`, complete and checked: a fresh dict with every key of the schema, absent
    ones filled with their defaults.

    overrides: 'optimizer.args.lr=2e-4' and the like, applied in turn; values are YAML.
    kind: 'train' or 'test'. check_paths: whether folders and files named in it have to exist.
    Raises UserError for the first mistake found; files and folders that do not exist come after all others.
    """
    check = Checker(path)
    config = check.plain(read_yaml(path))
    for text in overrides:
        check.override(config, text)
    keys, other = keys_of(KINDS[kind]), {'train': 'test', 'test': 'train'}[kind]
    if f'{other}_dataset' in config and f'{kind}_dataset' not in config:
        check.fail('', f'{other}_dataset', f'{kind}_dataset',
                   f'this is a config for {PROGRAMS[other]}: give it to that program')
    if f'{kind}_dataset' not in config and ('tests' in config or 'suites' in config):
        check.fail('', 'a suite', f'{kind}_dataset', 'this is a suite: measure it with test.py, as a suite')
    resume, left_out = config.get('resume'), [key for key in ('model', 'optimizer') if config.get(key) is None]
    if kind == 'train' and left_out and isinstance(resume, str):  # the checkpoint has them
        if not os.path.isfile(resume):
            check.absent.append(('resume', show(resume), f'a file that exists, since the config has no {left_out[0]}',
                                 'correct the path'))
        keys.update({key: keys[key]._replace(default=None) for key in left_out})
    config = check.table(config, keys, '')
    if config['eval_type'] == 'none':
        config['eval_type'] = None
    for section in ('train_dataset', 'val_dataset', 'test_dataset'):
        if config.get(section) is not None:
            agree_data(check, config[section], section, config['eval_type'] if section != 'train_dataset' else None)
    if kind == 'train':
        agree_schedule(check, config)
    if check_paths and check.absent:
        check.fail(*check.absent[0])
    return config


def parse_eval_type(eval_type):
    """'div2k-4' -> ('div2k', 4), 'benchmark-2' -> ('benchmark', 2), None -> (None, 1): calc_psnr's last arguments."""
    if eval_type in (None, 'none'):
        return None, 1
    if not EVAL_TYPE.accepts(eval_type):
        raise UserError(f'eval_type: found {eval_type!r}, expected {EVAL_TYPE.text}, where N is the scale')
    name, _, scale = eval_type.partition('-')
    return name, math.ceil(float(scale))  # whole pixels are shaved


# Reading.

MAX_BYTES = 2 ** 18
MAX_DEPTH = 32
MAX_VALUES = 20000
MERGE, FLOAT = 'tag:yaml.org,2002:merge', 'tag:yaml.org,2002:float'


class Loader(yaml.SafeLoader):
    """YAML's safe loader with three differences: 1e-4 is a number (YAML 1.1 wants 1.0e-4), and 1e3 an integer; a key
    given twice is refused (PyYAML silently keeps the last one); merges (<<) are limited, since nested ones grow
    exponentially."""

    merged = 0

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f'the key {show(key.value)} is given twice',
                                               problem_mark=key.start_mark)
                seen.add(key.value)
        return node

    def flatten_mapping(self, node):
        for key, value in node.value:
            parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for part in parts if key.tag == MERGE else ():
                if isinstance(part, yaml.MappingNode):
                    self.flatten_mapping(part)
                    self.merged += len(part.value)
                if self.merged > MAX_VALUES:
                    raise yaml.MarkedYAMLError(problem=f'merges of more than {MAX_VALUES} values',
                                               problem_mark=key.start_mark)
        super().flatten_mapping(node)

    def construct_yaml_float(self, node):
        value = super().construct_yaml_float(node)
        return int(value) if '.' not in node.value and abs(value) < 2 ** 53 and value.is_integer() else value


Loader.add_implicit_resolver(FLOAT, re.compile(r'[-+]?(\d+\.?|\d*\.\d+)[eE][-+]?\d+$'), list('-+.0123456789'))
Loader.add_constructor(FLOAT, Loader.construct_yaml_float)


def read_yaml(path):
    """The mapping in the YAML file `path`. Raises UserError for a file that is not one."""
    name = printable(path)
    try:
        with open(path, 'rb') as f:
            data = f.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UserError(f'{name}: cannot be read ({getattr(error, "strerror", None) or error}), expected a YAML file; '
                        f'correct the path, configs/ holds those of the paper') from None
    try:
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError:
        text = None
    if text is None or '\0' in text or len(data) > MAX_BYTES:
        raise UserError(f'{name}: found a binary or very large file, expected a YAML config; give the .yaml file')
    value = parse(text, name)
    if not isinstance(value, dict):
        found = 'nothing' if value is None else f'a {type(value).__name__}'
        raise UserError(f'{name}: found {found}, expected a mapping of keys to values; start from one of configs/')
    return value


def parse(text, name):
    try:
        return yaml.load(text, Loader)  # a SafeLoader
    except Exception as error:  # besides YAMLError, a badly tagged value escapes PyYAML as almost any type
        problem = 'nested too deeply' if isinstance(error, RecursionError) else \
            getattr(error, 'problem', None) or getattr(error, 'reason', None) or f'{error}'
        mark = getattr(error, 'problem_mark', None)
        where = f' in line {mark.line + 1}, column {mark.column + 1}' if mark else ''
        raise UserError(f'{name}: not valid YAML{where} ({printable(problem)}); correct it there') from None


def printable(text, limit=200):
    """Text from a file or a command line on one line, whatever it holds."""
    text = ''.join(c if c.isprintable() else '?' for c in str(text))
    return text if len(text) <= limit else text[:limit - 3] + '...'


def join(path, key):
    return f'{path}.{key}' if path else str(key)


def below(value, key, path=''):
    """The paths of the keys called `key` at any depth of nested mappings."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        if name == key:
            yield join(path, name)
        yield from below(inner, key, join(path, name))


# Checking.

class Checker:
    """Compares a config with the schema; every `path` is a key's path from the top, such as 'optimizer.args.lr'.

    absent: arguments for `fail`, one tuple for each file or folder that the config names and that does not exist.
    """

    def __init__(self, file):
        self.file, self.overridden, self.absent = file, [], []

    def fail(self, path, found, wanted, remedy):
        """Raise the error for `path`; found: the value as text."""
        source = self.file
        if any(f'{path}.'.startswith(f'{p}.') or f'{p}.'.startswith(f'{path}.') for p in self.overridden):
            source = f'{self.file} with --set'
        where = f'{printable(path)}: ' if path else ''
        raise UserError(f'{printable(source)}: {where}found {printable(found)}, expected {printable(wanted, 400)}; '
                        f'{printable(remedy, 400)}')

    def plain(self, value, path='', depth=0):
        """A copy made of dicts, lists, text, numbers, true, false and null only, which shares nothing (YAML's aliases
        do). Refuses what no config needs and what would take too long to copy or to print."""
        if depth == 0:
            self.values = 0
        self.values += 1
        if depth > MAX_DEPTH or self.values > MAX_VALUES:
            self.fail(path, 'endless aliases or nesting', f'at most {MAX_DEPTH} levels and {MAX_VALUES} values',
                      'write it out')
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str) or len(key) > 100:
                    self.fail(path, f'the key {show(self.plain(key, path, 1))}', 'a name of at most 100 characters',
                              'put a number or a word such as on or yes in quotes')
            return {key: self.plain(v, join(path, key), depth + 1) for key, v in value.items()}
        if isinstance(value, list):
            return [self.plain(v, join(path, i), depth + 1) for i, v in enumerate(value)]
        if isinstance(value, int) and value.bit_length() > 64:
            found = value if value.bit_length() < 256 else f'an integer of {value.bit_length()} bits'
            self.fail(path, found, 'an integer of at most 64 bits', 'use a smaller one')
        if value is not None and not isinstance(value, (bool, int, float, str)):
            # Not shown when it may hold lists, since aliases in them could take too long to print.
            kind = f'a {type(value).__name__}'
            found = kind if isinstance(value, (tuple, set)) else f'{value} ({kind})'
            self.fail(path, found, 'text, a number, true, false, null, a list or a mapping', 'put text in quotes')
        return value

    def override(self, config, text):
        path, equals, value = text.partition('=')
        keys = path.strip().split('.')
        if not equals or not all(keys) or len(keys) > MAX_DEPTH:
            raise UserError(f'--set: found {show(text)}, expected KEY=VALUE with the path of a key; write it like '
                            f'optimizer.args.lr=2e-4')
        *parents, last = keys
        for i, key in enumerate(parents):
            if config.get(key) is None:
                config[key] = {}
            config = config[key]
            if not isinstance(config, dict):
                self.fail('.'.join(keys[:i + 1]), show(config), 'a mapping', 'set the whole key')
        self.overridden.append('.'.join(keys))
        config[last] = self.plain(parse(value, f'--set {printable(path)}'), '.'.join(keys))

    def table(self, given, keys, path):
        """`given` checked against keys, {name: Key}, in their order, defaults filled in."""
        if not isinstance(given, dict):
            self.fail(path, show(given), f'a mapping with {", ".join(keys)}', 'write it as indented lines key: value')
        self.known(given, keys, path, 'one of')
        return {name: self.value(given.get(name), key, join(path, name)) for name, key in keys.items()}

    def known(self, given, names, path, what):
        """Refuse keys that are not among the names."""
        for key in given:
            if key not in names:
                close = list(islice((p for p in below(given, key, path) if p != join(path, key)), 1)) \
                    or difflib.get_close_matches(key, names, n=1)
                self.fail(join(path, key), f'{show(given[key])} under an unknown name',
                          f'{what}: {", ".join(names) or "none"}',
                          f'did you mean {close[0]}?' if close else 'remove it')

    def value(self, value, key, path):
        """The checked value of one key; an absent or null one gives the default."""
        kind = key.kind
        if value is None and not (isinstance(kind, ValueType) and kind.accepts(None)):
            if key.default is REQUIRED:
                self.fail(path, 'nothing', text_of(kind), 'add it')
            return copy.deepcopy(key.default)
        if not isinstance(kind, ValueType):
            return self.table(value, keys_of(kind), path)
        if kind.role:
            return self.spec(value, kind.role, path)
        if not kind.accepts(value):
            self.fail(path, show(value), kind.text, 'remove the quotes' if is_quoted(value, kind) else
                      'put it in quotes' if is_number(value) and kind.accepts(str(value)) else SEE)
        there = {'folder': os.path.isdir, 'file': os.path.isfile}.get(kind.exists)
        if there and not there(value):
            where = '' if os.path.isabs(value) else f' (looked for from {os.getcwd()})'
            parent, name = (os.path.normpath(value).split(os.sep) + [''])[:2]
            get = f'get it with python scripts/prepare_data.py {name}' if parent == 'load' and name in PREPARED else \
                f'put {YOURS[kind.exists]} there'
            self.absent.append((path, show(value, 200), kind.text, f'there is none{where}: {get}, or name another with '
                                f'--set {path}={kind.exists.upper()}'))
        return value

    def spec(self, spec, role, path, complete=True):
        """A checked spec {name, args}, args present. complete: whether what a constructor needs must be given."""
        spec = self.table(spec, SPEC, path)
        registry = REGISTRIES[role]
        names = registry.names(role, 'any')  # 'any': registered outside this project
        if spec['name'] not in names:
            close = difflib.get_close_matches(spec['name'], names, n=1)
            self.fail(join(path, 'name'), show(spec['name']), f'the name of a known {role}: {", ".join(names)}',
                      f'did you mean {close[0]}?' if close else 'choose one of these')
        self.arguments(registry.get(spec['name']), spec, role, join(path, 'args'), complete)
        if complete and spec['name'] in AGREEMENTS:
            AGREEMENTS[spec['name']](self, complete_args(spec, role), join(path, 'args'))
        return spec

    def arguments(self, thing, spec, role, path, complete):
        """Check spec['args'] against the parameters of a constructor, nested specs included."""
        name, args, keys, handed = spec['name'], spec['args'], keys_of(thing), HANDED.get(role, ())
        parameters = parameters_of(thing)
        if parameters is None:
            return  # the constructor's own check remains
        takes = {key: p for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
                 and (key in keys or key not in handed)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            self.known(args, takes, path, f'an argument of {name}')
        for key, parameter in takes.items():
            needed = parameter.default is REQUIRED and complete and key not in handed
            if key in keys:
                if key in args or needed or role == 'lr_scheduler':
                    args[key] = self.value(args.get(key), keys[key], join(path, key))
            elif needed and key not in args:
                self.fail(join(path, key), 'nothing', f'an argument that {name} needs', 'add it')
        for key in args:
            if key not in keys and key.endswith('_spec') and isinstance(args[key], dict):
                found = REGISTRIES['model'].roles.get(str(args[key].get('name')))
                inner = found if found in ('encoder', 'decoder') else 'model'
                # The model around it may add arguments, so none is missing here.
                args[key] = self.spec(args[key], inner, join(path, key), complete=False)


def complete_args(spec, role):
    """The arguments of a checked spec with their defaults."""
    keys = keys_of(REGISTRIES[role].get(spec['name']))
    return {**{name: key.default for name, key in keys.items()}, **spec['args']}


def is_quoted(value, kind):
    """Whether a text would be accepted as what it says, such as '3' for 3."""
    try:
        return isinstance(value, str) and kind.accepts(yaml.load(value, Loader))
    except Exception:  # PyYAML's errors are of many types
        return False


# What several keys have to agree on. Each function takes a Checker, all arguments with their defaults, and their path.

def agree_split(check, args, path):
    for key, other in (('split_file', 'split_key'), ('split_key', 'split_file')):
        if args[key] is not None and args[other] is None:
            check.fail(join(path, other), 'nothing', f'a value, since {key} is given', 'add it')


def agree_decoder(check, args, path):
    encoder, decoder = args['encoder_spec'], args['imnet_spec']
    features = complete_args(encoder, 'encoder').get('no_upsampling')
    if decoder is None and features:
        check.fail(join(path, 'imnet_spec'), 'nothing', 'a decoder, since the encoder has no_upsampling: true',
                   'add {name: mlp, args: {out_dim: 3, hidden_list: [256, 256, 256, 256]}}')
    if decoder is not None and features is False:
        check.fail(join(path, 'encoder_spec.args.no_upsampling'), 'false' if 'no_upsampling' in encoder['args'] else
                   'nothing', 'true, since a decoder reads features, not the pixels of an up-sampler', 'add it')
    channels = 3 if decoder is None else decoder['args'].get('out_dim', 3)
    if channels != 3:
        check.fail(join(path, 'imnet_spec.args.out_dim'), show(channels), '3: red, green and blue', 'correct it')


def agree_attention(check, args, path):
    if args['reduction'] > args['n_feats']:
        check.fail(join(path, 'reduction'), show(args['reduction']), f'at most n_feats, {args["n_feats"]}', 'lower it')


def agree_momentum(check, args, path):
    if args['nesterov'] and (args['momentum'] == 0 or args['dampening'] != 0):
        check.fail(join(path, 'nesterov'), 'true', 'a momentum above 0 and no dampening with it', 'set momentum: 0.9')


AGREEMENTS = {'image-folder': agree_split, 'paired-image-folders': agree_split, 'liif': agree_decoder,
              'rcan': agree_attention, 'sgd': agree_momentum}
READS = {'sr-implicit-paired': 'paired-image-folders', 'sr-implicit-uniform-varied': 'paired-image-folders',
          'sr-implicit-downsampled': 'image-folder', 'sr-implicit-degraded': 'image-folder'}


def agree_data(check, data, path, eval_type=None):
    """A data set that suits the wrapper, samples of one size where several form a batch, enough pixels for sample_q
    and, where a section is measured by an eval_type, something left when borders are shaved."""
    name, args = data['wrapper']['name'], complete_args(data['wrapper'], 'wrapper')
    found, wanted, prefix = data['dataset']['name'], READS.get(name), join(path, 'wrapper.args.')
    if wanted is not None and found != wanted and found in READS.values():
        check.fail(join(path, 'dataset.name'), show(found), f'{wanted}, which {name} reads', 'change one of the two')
    queries, side, low, high = args.get('sample_q'), None, None, None  # side: of the smallest ground truth
    if name in ('sr-implicit-downsampled', 'sr-implicit-degraded'):
        low, high = args['scale_min'], args['scale_max']
        if high is not None and high < low:
            check.fail(f'{prefix}scale_max', show(high), f'at least scale_min, {low}', 'swap or correct them')
        side = None if args['inp_size'] is None else round(args['inp_size'] * low)
    if name == 'sr-implicit-uniform-varied':
        low, high = args['size_min'], args['size_max'] if args['gt_resize'] is None else None
        side = args['gt_resize'] or min(low, high or low)
    if None not in (queries, side) and queries > side ** 2:
        check.fail(f'{prefix}sample_q', show(queries), f'at most {side ** 2}, the pixels of the smallest ground truth',
                   'lower it')
    for key in ('inp_size', 'sample_q') if data['batch_size'] > 1 and high not in (None, low) else ():
        if key in args and args[key] is None:
            check.fail(f'{prefix}{key}', 'nothing', f'a value, since samples between {low} and {high} differ in size '
                       f'and cannot form a batch', f'add {key}, or set batch_size: 1')
    metric, scale = parse_eval_type(eval_type)
    shave = shaved_pixels(metric, scale)
    if metric and queries is not None:
        check.fail('eval_type', show(eval_type), f'null, since {prefix}sample_q draws random pixels, which have no '
                   f'border to leave out', 'remove one of the two')
    if metric and side is not None and side <= 2 * shave:
        check.fail('eval_type', show(eval_type), f'one that leaves some of the {side}x{side} pixels of {path}: it '
                   f'leaves out {shave} at each side', 'change it, or use larger crops')


def agree_schedule(check, config):
    scheduler, args = config['lr_scheduler'], (config['lr_scheduler'] or {}).get('args', {})
    if scheduler is not None and config['multi_step_lr'] is not None:
        check.fail('lr_scheduler', show(scheduler['name']), 'either multi_step_lr or lr_scheduler', 'remove one')
    warmup, epochs = args.get('warmup_epochs', 0), args.get('epochs') or config['epoch_max']
    if warmup > epochs:
        check.fail('lr_scheduler.args.warmup_epochs', show(warmup), f'at most the {counted(epochs, "epoch")} of the '
                   f'schedule', 'lower it')
