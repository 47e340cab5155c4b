"""Reading configs: a YAML file, `--set` overrides, and a check of all of it before anything is computed.

What may stand in a config is in engine/schema.py. Every mistake raises a UserError in one line:
`<file>: <key.path>: found <value>, wanted <...>; <what to do>`.
"""
import copy
import difflib
import inspect
import os
import re

import yaml

import datasets
import models
from engine.schema import ARGS, ARGUMENTS, HANDED, KINDS, REQUIRED, TEXT, Key, Spec, Want, wanted_text
from utils import UserError


REGISTRIES = {'dataset': datasets.registry, 'wrapper': datasets.registry, 'model': models.registry,
              'encoder': models.registry, 'decoder': models.registry}
SEE = 'correct it (docs/configs.md explains every key)'


def load_config(path, overrides=(), kind='train', check_paths=True):
    """The config in the YAML file `path`, complete and checked: a fresh dict with every key of the schema, absent
    ones filled with their defaults.

    overrides: 'optimizer.args.lr=2e-4' and the like, applied in turn; values are YAML, except that 2e-4 is a number.
    kind: 'train' or 'test'. check_paths: whether folders and files named in it have to exist.
    Raises UserError for the first mistake found.
    """
    check = Checker(path, check_paths)
    config = check.plain(read_yaml(path))
    for text in overrides:
        check.override(config, text)
    table, other = KINDS[kind], {'train': 'test', 'test': 'train'}[kind]
    if f'{other}_dataset' in config and f'{kind}_dataset' not in config:
        check.fail('', f'{other}_dataset', f'{kind}_dataset', f'this is a {other} config, give another')
    if config.get('resume') is not None:
        table = {**table, **{key: table[key]._replace(default=None) for key in ('model', 'optimizer') if key in table}}
    config = check.table(config, table, '')
    for section in ('train_dataset', 'val_dataset', 'test_dataset'):
        if config.get(section) is not None:
            agree_data(check, config[section], section)
    if kind == 'train':
        agree_schedule(check, config)
    if config['eval_type'] == 'none':
        config['eval_type'] = None
    return config


# Reading.

class Loader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key given twice (PyYAML keeps the last one without a word)."""

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


class OverrideLoader(Loader):
    """Reads 2e-4 as a number, as people mean it on a command line; YAML 1.1 wants 2.0e-4."""


OverrideLoader.add_implicit_resolver('tag:yaml.org,2002:float', re.compile(r'[-+]?\d+(\.\d*)?[eE][-+]?\d+$'),
                                     list('-+0123456789'))
MAX_BYTES = 2 ** 18
MAX_DEPTH = 32
MAX_VALUES = 20000


def read_yaml(path):
    """The mapping in the YAML file `path`. Raises UserError for a file that is not one."""
    name = printable(path)
    try:
        with open(path, 'rb') as f:
            data = f.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UserError(f'{name}: cannot be read ({getattr(error, "strerror", None) or error}), wanted a YAML file; '
                        f'correct the path, configs/ holds the ones of the paper') from None
    try:
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError:
        text = None
    if text is None or '\0' in text or len(data) > MAX_BYTES:
        raise UserError(f'{name}: found a binary or very large file, wanted a YAML config; give the .yaml file')
    value = parse(text, Loader, name)
    if not isinstance(value, dict):
        found = 'nothing' if value is None else f'a {type(value).__name__}'
        raise UserError(f'{name}: found {found}, wanted a mapping of keys to values; start from one of configs/')
    return value


def parse(text, loader, name):
    try:
        return yaml.load(text, loader)  # `loader` is a SafeLoader
    except Exception as error:  # besides YAMLError, a badly tagged value escapes PyYAML as almost any type
        problem = getattr(error, 'problem', None) or getattr(error, 'reason', None) or f'{error}' or 'too deeply nested'
        mark = getattr(error, 'problem_mark', None)
        where = f' in line {mark.line + 1}, column {mark.column + 1}' if mark else ''
        raise UserError(f'{name}: not valid YAML{where} ({printable(problem)}); correct it there') from None


def show(value, limit=80):
    """A value as a message shows it: on one line, and not too long."""
    text = repr(value) if value is not None else 'null'
    return text if len(text) <= limit else text[:limit - 3] + '...'


def printable(text, limit=200):
    """Text from a file or a command line on one line, whatever it holds."""
    text = ''.join(c if c.isprintable() else '?' for c in str(text))
    return text if len(text) <= limit else text[:limit - 3] + '...'


def join(path, key):
    return f'{path}.{key}' if path else str(key)


# Checking.

class Checker:
    """Walks a config along the tables; every `path` is a key's path from the top, such as 'optimizer.args.lr'."""

    def __init__(self, file, check_paths):
        self.file, self.check_paths = file, check_paths
        self.overridden = []

    def fail(self, path, found, wanted, remedy):
        """Raise the error for `path`; found: a text, how the value reads."""
        source = self.file
        if any(f'{path}.'.startswith(f'{p}.') or f'{p}.'.startswith(f'{path}.') for p in self.overridden):
            source = f'{self.file} with --set'
        where = f'{printable(path)}: ' if path else ''
        raise UserError(f'{printable(source)}: {where}found {printable(found)}, wanted {printable(wanted, 400)}; '
                        f'{printable(remedy, 400)}')

    def plain(self, value, path='', depth=0):
        """A copy made of dicts, lists, text, numbers, true, false and null alone, sharing nothing (YAML's aliases do).
        Refuses what no config needs and what would take for ever to copy or to print."""
        if depth == 0:
            self.values = 0
        self.values += 1
        if depth > MAX_DEPTH or self.values > MAX_VALUES:
            self.fail(path, 'aliases or nesting without end', f'at most {MAX_DEPTH} levels and {MAX_VALUES} values',
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
            # Not shown when it may hold lists: those of aliases could take for ever to print.
            kind = f'a {type(value).__name__}'
            found = kind if isinstance(value, (tuple, set)) else f'{value} ({kind})'
            self.fail(path, found, 'text, a number, true, false, null, a list or a mapping', 'put text in quotes')
        return value

    def override(self, config, text):
        path, equals, value = text.partition('=')
        keys = path.strip().split('.')
        if not equals or not all(keys):
            raise UserError(f'--set: found {show(text)}, wanted KEY=VALUE with the path of a key, such as '
                            f'optimizer.args.lr=2e-4; write it so')
        *parents, last = keys
        for i, key in enumerate(parents):
            if config.get(key) is None:
                config[key] = {}
            config = config[key]
            if not isinstance(config, dict):
                self.fail('.'.join(keys[:i + 1]), show(config), 'a mapping to go below', 'set the whole key')
        self.overridden.append('.'.join(keys))
        config[last] = self.plain(parse(value, OverrideLoader, f'--set {printable(path)}'), '.'.join(keys))

    def table(self, given, table, path):
        """`given` with its keys checked against the table, in the table's order, defaults filled in."""
        if not isinstance(given, dict):
            self.fail(path, show(given), f'a mapping with {", ".join(table)}', 'write it as indented lines key: value')
        self.known(given, table, path, 'a key of these')
        return {key: self.value(given.get(key), entry, join(path, key)) for key, entry in table.items()}

    def known(self, given, names, path, what):
        """Refuse keys that are not among the names."""
        for key in given:
            if key not in names:
                close = difflib.get_close_matches(key, names, n=1)
                self.fail(join(path, key), f'{show(given[key])} under an unknown name',
                          f'{what}: {", ".join(names) or "none"}',
                          f'did you mean {close[0]}?' if close else 'remove it')

    def value(self, value, entry, path):
        """The checked value of one key; an absent or null one gives the default."""
        want = entry.want
        if value is None and not (isinstance(want, Want) and want.accepts(None)):
            if entry.default is REQUIRED:
                self.fail(path, 'nothing', wanted_text(want), 'add it')
            return copy.deepcopy(entry.default)
        if isinstance(want, Spec):
            return self.spec(value, want.role, path)
        if isinstance(want, dict):
            return self.table(value, want, path)
        if not want.accepts(value):
            self.fail(path, show(value), want.text, how_to_write(value, want))
        there = {'folder': os.path.isdir, 'file': os.path.isfile}.get(want.exists)
        if there and self.check_paths and not there(value):
            where = '' if os.path.isabs(value) else f' (looked for from {os.getcwd()})'
            get = ' (scripts/prepare_data.py does it for the data of the paper)' if value.startswith('./load/') else ''
            self.fail(path, show(value, 200), want.text, f'there is none{where}: put it there{get}, or name another '
                      f'with --set {path}={want.exists.upper()}')
        return value

    def spec(self, spec, role, path, complete=True):
        """A checked spec {name, args}, args present. complete: whether what a constructor needs must be given."""
        spec = self.table(spec, {'name': Key(TEXT, REQUIRED, ''), 'args': Key(ARGS, {}, '')}, path)
        name, args, path_args = spec['name'], spec['args'], join(path, 'args')
        ours, registry, handed = ARGUMENTS[role], REGISTRIES.get(role), HANDED.get(role, set())
        # Names of this project fit one role each; those registered elsewhere may stand anywhere.
        taken = {n for other in ARGUMENTS if other != role for n in ARGUMENTS[other]}
        names = sorted({*ours, *(registry.names() if registry else ())} - taken)
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            self.fail(join(path, 'name'), show(name), f'the name of a known {role}: {", ".join(names)}',
                      f'did you mean {close[0]}?' if close else 'choose one of these')
        if name not in ours:
            self.signature(registry.get(name), name, args, path_args, handed, complete)
            return spec
        table = ours[name]
        self.known(args, table, path_args, f'an argument of {name}')
        for key, entry in table.items():
            if key in args or role == 'lr_scheduler' or entry.default is REQUIRED and complete and key not in handed:
                args[key] = self.value(args.get(key), entry, join(path_args, key))
        full = {key: args.get(key, entry.default) for key, entry in table.items()}
        if complete:
            for members, check in AGREEMENTS:
                if name in members:
                    check(self, full, path_args)
        return spec

    def signature(self, thing, name, args, path, handed, complete):
        """Check args against the constructor of something registered outside this project, nested specs included."""
        try:
            parameters = inspect.signature(thing).parameters.values()
        except (TypeError, ValueError):  # compiled code has no signature; the constructor itself will tell
            return
        takes = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            self.known(args, [p.name for p in takes], path, f'an argument of {name}')
        for p in takes:
            if p.default is p.empty and p.name not in args and p.name not in handed and complete:
                self.fail(join(path, p.name), 'nothing', f'an argument that {name} needs', 'add it')
        for key, value in args.items():
            if key.endswith('_spec') and isinstance(value, dict):
                role = next((r for r in ('encoder', 'decoder') if str(value.get('name')) in ARGUMENTS[r]), 'model')
                # The model around it may hand it further arguments, so none is missing here.
                args[key] = self.spec(value, role, join(path, key), complete=False)


def how_to_write(value, want):
    """What to do about an unwanted value: how to spell a number that YAML 1.1 reads as text."""
    match = re.fullmatch(r'\s*([-+]?\d+)(\.\d*)?(?:[eE]([-+]?)(\d+))?\s*', value) \
        if want.numeric and isinstance(value, str) else None
    if not match:
        return SEE
    digits, fraction, sign, exponent = match.groups()
    if exponent is None:
        return 'remove the quotes'
    right = f'{digits}{fraction if fraction and len(fraction) > 1 else ".0"}e{sign or "+"}{exponent}'
    if not want.accepts(float(right)) and float(right).is_integer():
        right = str(int(float(right)))
    return f'write {right}: YAML reads {value.strip()} as text'


# What several keys have to agree on: (check, all arguments with their defaults, path of the arguments).

def agree_scales(check, args, path):
    low, high, size, queries = args['scale_min'], args['scale_max'], args['inp_size'], args['sample_q']
    if high is not None and high < low:
        check.fail(join(path, 'scale_max'), show(high), f'at least scale_min, {low}', 'exchange or correct them')
    if size is not None and queries is not None and queries > round(size * low) ** 2:
        check.fail(join(path, 'sample_q'), show(queries), f'at most {round(size * low) ** 2}, the pixels of the '
                   f'smallest ground truth (inp_size {size} at scale {low})', 'lower it, or raise inp_size')


def agree_sizes(check, args, path):
    least = args['gt_resize'] or min(args['size_min'], args['size_max'] or args['size_min'])
    if args['sample_q'] is not None and args['sample_q'] > least ** 2:
        check.fail(join(path, 'sample_q'), show(args['sample_q']), f'at most {least ** 2}, the pixels of the smallest '
                   f'ground truth', 'lower it, or raise size_min')


def agree_split(check, args, path):
    for key, other in (('split_file', 'split_key'), ('split_key', 'split_file')):
        if args[key] is not None and args[other] is None:
            check.fail(join(path, other), 'nothing', f'a value, since {key} is given', 'add it')


def agree_decoder(check, args, path):
    encoder, decoder = args['encoder_spec'], args['imnet_spec']
    if decoder is None and encoder['args'].get('no_upsampling'):
        check.fail(join(path, 'imnet_spec'), 'nothing', 'a decoder, since the encoder has no_upsampling: true',
                   'add {name: mlp, args: {out_dim: 3, hidden_list: [256, 256, 256, 256]}}')
    if decoder is not None and encoder['name'] in ARGUMENTS['encoder'] and not encoder['args'].get('no_upsampling'):
        check.fail(join(path, 'encoder_spec.args.no_upsampling'), 'nothing' if 'no_upsampling' not in encoder['args'] else
                   'false', 'true, since a decoder reads features, not the pixels of an up-sampler', 'add it')
    channels = 3 if decoder is None else decoder['args'].get('out_dim', 3)
    if channels != 3:
        check.fail(join(path, 'imnet_spec.args.out_dim'), show(channels), '3: red, green and blue', 'correct it')


def agree_attention(check, args, path):
    if args['reduction'] > args['n_feats']:
        check.fail(join(path, 'reduction'), show(args['reduction']), f'at most n_feats, {args["n_feats"]}', 'lower it')


def agree_momentum(check, args, path):
    if args['nesterov'] and (args['momentum'] == 0 or args['dampening'] != 0):
        check.fail(join(path, 'nesterov'), 'true', 'a momentum above 0 and no dampening with it', 'set momentum: 0.9')


AGREEMENTS = [
    (['sr-implicit-downsampled'], agree_scales),
    (['sr-implicit-uniform-varied'], agree_sizes),
    (['image-folder', 'paired-image-folders'], agree_split),
    (['liif'], agree_decoder),
    (['rcan'], agree_attention),
    (['sgd'], agree_momentum),
]
PAIRED = {'sr-implicit-paired': 'paired-image-folders', 'sr-implicit-uniform-varied': 'paired-image-folders',
          'sr-implicit-downsampled': 'image-folder'}


def agree_data(check, data, path):
    """A data set that suits the wrapper, and samples of one size where several make a batch."""
    wrapper, args = data['wrapper']['name'], data['wrapper']['args']
    found, wanted = data['dataset']['name'], PAIRED.get(wrapper)
    if wanted is not None and found != wanted and found in PAIRED.values():
        check.fail(join(path, 'dataset.name'), show(found), f'{wanted}, which {wrapper} reads', 'change one of the two')
    low, high = {'sr-implicit-downsampled': ('scale_min', 'scale_max'),
                 'sr-implicit-uniform-varied': ('size_min', 'size_max')}.get(wrapper, ('', ''))
    if data['batch_size'] > 1 and args.get('sample_q') is None and args.get('gt_resize') is None and \
            args.get(high) not in (None, args.get(low, 1)):
        check.fail(join(path, 'wrapper.args.sample_q'), 'nothing', f'a number of queries, since samples between {low} '
                   f'and {high} differ in size and cannot be stacked', 'add sample_q, or set batch_size: 1')


def agree_schedule(check, config):
    scheduler = config['lr_scheduler']
    if scheduler is None:
        return
    if config['multi_step_lr'] is not None:
        check.fail('lr_scheduler', show(scheduler['name']), 'either multi_step_lr or lr_scheduler', 'remove one')
    args = scheduler['args']
    if scheduler['name'] == 'cosine':
        args['epochs'] = config['epoch_max'] if args['epochs'] is None else args['epochs']
        if args['warmup_epochs'] >= args['epochs']:
            check.fail('lr_scheduler.args.warmup_epochs', show(args['warmup_epochs']),
                       f'fewer than the {args["epochs"]} epochs of the schedule', 'lower it')
