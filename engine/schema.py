"""The schema of configs and suites: every key, every argument of what they name, what is accepted, the default.

The keys are the classes below; the arguments are the annotated parameters of whatever is registered in `models`,
`datasets` and engine/optim.py. From them come the check (engine/config.py), the tables of docs/configs.md and
configs/schema.json, by which editors complete and check YAML files.

    python -m engine.schema            prints the tables
    python -m engine.schema --write    rewrites docs/configs.md and configs/schema.json
"""
import inspect
import json
import os
import re
import typing
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, NamedTuple

import yaml

import datasets
import models
from datasets.degraded import degrade
from datasets.imresize import canonical_scale
from engine import ROOT
from engine.arguments import PRECISIONS, Parser
from engine.optim import LOSSES, optimizers, schedules
from utils import (Integer, ListOf, Number, OneOf, Spec, Text, UserError, ValueType, is_number, parameters_of,
                   value_types, write_file)


REGISTRIES = {'dataset': datasets.registry, 'wrapper': datasets.registry, 'model': models.registry,
              'interpolation': models.registry, 'encoder': models.registry, 'decoder': models.registry,
              'optimizer': optimizers, 'lr_scheduler': schedules}
# Arguments that come from the code that builds the thing, so that a config need not give them.
HANDED = {'wrapper': {'dataset'}, 'decoder': {'in_dim'}, 'optimizer': {'params'}}
REQUIRED = inspect.Parameter.empty


# The keys of a config.

CHANNELS = ValueType('a list of one or three numbers',
                     lambda v: isinstance(v, list) and len(v) in (1, 3) and all(map(is_number, v)),
                     {'type': 'array', 'items': {'type': 'number'}, 'minItems': 1, 'maxItems': 3})
DIVISORS = ValueType('a list of one or three numbers other than 0', lambda v: CHANNELS.accepts(v) and all(v),
                     {**CHANNELS.json, 'items': {'type': 'number', 'not': {'const': 0}}})
EVAL_TYPE = Text('null, div2k-N or benchmark-N', r'none|(?:div2k|benchmark)-(?=.*[1-9])[0-9]{1,4}(?:\.[0-9]{1,9})?')
CHECKPOINT = Text('the path of a checkpoint')
WEIGHTS = Text('the path of a checkpoint, or a name in weights/')


@dataclass(kw_only=True)
class Data:
    dataset: Annotated[dict, Spec('dataset'), 'where the images come from']
    wrapper: Annotated[dict, Spec('wrapper'), 'how an image becomes an input and queries']
    batch_size: Annotated[int, Integer(1, 2 ** 20), 'samples in a step, over all processes']


@dataclass(kw_only=True)
class ChannelNorm:
    sub: Annotated[list, CHANNELS, 'subtracted from each channel']
    div: Annotated[list, DIVISORS, 'then divided by this']


@dataclass(kw_only=True)
class Norm:
    inp: Annotated[ChannelNorm, 'normalization of the input']
    gt: Annotated[ChannelNorm, 'normalization of the ground truth and the output']


@dataclass(kw_only=True)
class MultiStep:
    milestones: Annotated[list, ListOf(Integer(1), text='a list of integers >= 1'),
                          'epochs after which the rate is multiplied']
    gamma: Annotated[float, Number(0, above=True), 'factor of the rate at each of them'] = 0.1


DataNorm = Annotated[Norm, '(v - sub) / div of pixels v in [0, 1]; null: v']
EvalType = Annotated[str, EVAL_TYPE, 'which PSNR; null: all pixels, RGB']
EvalBsize = Annotated[int, Integer(1), 'queries decoded at once; changes memory, not PSNR']
Precision = Annotated[str, OneOf(*PRECISIONS), "precision of the network's arithmetic; weights and loss: float32"]
SEED = Integer(0, 2 ** 63 - 1)


@dataclass(kw_only=True)
class Train:
    train_dataset: Annotated[Data, 'what to train on']
    val_dataset: Annotated[Data, 'what to measure during training; null: nothing'] = None
    data_norm: DataNorm = None
    model: Annotated[dict, Spec('model'), "not needed with resume: the checkpoint's is used"]
    optimizer: Annotated[dict, Spec('optimizer'), "not needed with resume: the checkpoint's is used"]
    epoch_max: Annotated[int, Integer(1, 10 ** 9), 'number of epochs']
    multi_step_lr: Annotated[MultiStep, 'the published schedule; both null: a constant rate'] = None
    lr_scheduler: Annotated[dict, Spec('lr_scheduler'), 'another schedule, step by step, instead'] = None
    epoch_val: Annotated[int, Integer(1), 'epochs between validations'] = 1
    epoch_save: Annotated[int, Integer(1), 'epochs between checkpoints that are kept'] = None
    save_minutes: Annotated[float, Number(0, above=True), 'minutes between saves within an epoch'] = None
    eval_type: EvalType = None
    eval_bsize: EvalBsize = None
    resume: Annotated[str, CHECKPOINT, 'continue from it; if it is missing, begin anew'] = None
    init: Annotated[str, WEIGHTS, 'start from its weights'] = None
    seed: Annotated[int, SEED, 'determines every random choice of the training'] = 0
    precision: Precision = 'float32'
    loss: Annotated[str, OneOf(*LOSSES), "loss of the predicted colours; null: l1, the paper's"] = None
    grad_clip: Annotated[float, Number(0, above=True), 'largest norm of the gradient; null: no limit'] = None
    ema: Annotated[float, Number(0, 1, above=True, below=True), 'decay of a mean of the weights, also saved'] = None
    on_bad_image: Annotated[str, OneOf('stop', 'skip'), 'an unreadable file: stop, or replace and count'] = 'stop'


@dataclass(kw_only=True)
class Test:
    test_dataset: Annotated[Data, 'what to measure']
    data_norm: DataNorm = None
    eval_type: EvalType = None
    eval_bsize: EvalBsize = None
    precision: Precision = 'float32'
    seed: Annotated[int, SEED, 'determines every random choice'] = 0


def is_scale(value):
    """Whether a value is a number or text that names a scale (`canonical_scale`)."""
    try:
        return (is_number(value) or isinstance(value, str)) and bool(canonical_scale(value))
    except UserError:
        return False


SCALE = ValueType('a scale such as 2, 2.7 or 2x3.5', is_scale, {'anyOf': [
    {'type': 'number', 'minimum': 1},
    {'type': 'string', 'pattern': r'^\s*(x?[1-9]\d*(\.\d+)?([x,][1-9]\d*(\.\d+)?)?|[1-9]\d{0,4}-[1-9]\d{0,4})\s*$'}]})


@dataclass(kw_only=True)
class SuiteEntry:
    """An entry of `tests` in a suite; which keys go together: engine/evaluation/suite.py, `check_test`."""
    data: Annotated[str, Text(), 'name of the data set, as the tables show it']
    scales: Annotated[list, ListOf(SCALE, 1, text='a list of scales such as 2, 2.7 or 2x3.5'),
                      'vertical x horizontal; 64-128: from 64 pixels to 128, with config alone']
    config: Annotated[str, Text(), 'path of a test config, {scale} in it stands for each scale; or else:'] = None
    hr: Annotated[str, Text(), 'folder of HR images, from which the inputs are made'] = None
    metric: Annotated[str, OneOf('benchmark', 'div2k', 'rgb'), 'how PSNR is measured; needed with hr'] = None
    split_file: Annotated[str, Text(), 'JSON file {key: [file names]}; null: all images'] = None
    split_key: Annotated[str, Text(), 'which list of split_file'] = None
    crop: Annotated[int, Integer(64, 2 ** 16), 'at most the middle crop x crop pixels; null: all'] = None
    degradations: Annotated[dict, ValueType('a mapping from names to steps',
                                            lambda v: isinstance(v, dict) and v != {}, {'$ref': '#/definitions/steps'}),
                            'measure with changed inputs, such as JPEG 75: {quality: 75}; steps: '
                            f'{", ".join(value_types(degrade))}'] = None


KINDS = {'train': Train, 'test': Test, 'suite': SuiteEntry}


# Reading signatures.

class Key(NamedTuple):
    """kind: a ValueType, or a class of keys for a nested mapping. default: what an absent or null key means;
    REQUIRED when it has to be given."""
    kind: Any
    default: Any
    meaning: str


def keys_of(thing):
    """{name: Key} of the parameters of a class or function that are annotated with a ValueType or a class of keys."""
    keys = {}
    for name, parameter in (parameters_of(thing) or {}).items():
        if typing.get_origin(parameter.annotation) is not Annotated:
            continue
        base, *notes = typing.get_args(parameter.annotation)
        kinds = [note for note in notes if isinstance(note, ValueType)] + [base] * is_dataclass(base)
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        meaning = ' '.join(note for note in notes if isinstance(note, str))
        keys.update({name: Key(kind, default, meaning) for kind in kinds[:1]})
    return keys


def text_of(kind):
    return kind.text if isinstance(kind, ValueType) else f'a mapping with {", ".join(keys_of(kind))}'


# For people.

def describe(group):
    """The keys of a 'train' or 'test' config or of an entry of a 'suite', or the arguments of a role such as 'wrapper',
    as text laid out like YAML: what is accepted, the default in brackets, the meaning."""
    if group in KINDS:
        return '\n'.join(_lines(keys_of(KINDS[group])))
    registry = REGISTRIES[group]
    return '\n'.join(line for name in registry.names(group)
                     for line in (f'{name}:', *_lines(keys_of(registry.get(name)), '  ')))


def _lines(keys, indent=''):
    for name, (kind, default, meaning) in keys.items():
        text = f'{indent}{name}: {kind.text}' if isinstance(kind, ValueType) else f'{indent}{name}:'
        if default is not REQUIRED:
            text += f' [{yaml.safe_dump(default, default_flow_style=True).splitlines()[0].strip("[]")}]'
        yield f'{text:<60} # {meaning}'
        if not isinstance(kind, ValueType):
            yield from _lines(keys_of(kind), indent + '  ')


# For editors: JSON Schema, draft 7.

NULL = {'type': 'null'}


def json_schema():
    roles = [role for role in REGISTRIES if role != 'interpolation']
    return {'$schema': 'http://json-schema.org/draft-07/schema#',
            '$comment': 'written by python -m engine.schema --write',
            'if': {'required': ['test_dataset']}, 'then': _object(keys_of(Test)),
            'else': {'if': {'anyOf': [{'required': ['tests']}, {'required': ['suites']}]}, 'then': _suite(),
                     'else': _object(keys_of(Train), free={'model', 'optimizer'})},
            'definitions': {**{role: _spec(role) for role in roles},
                            'steps': {'type': 'object', 'minProperties': 1,
                                      'additionalProperties': _object(keys_of(degrade))}}}


def _suite():
    """Of a suite: `tests`, a list of entries, or `suites`, a list of names and paths."""
    keys = keys_of(SuiteEntry)
    with_hr = [{'required': [name]} for name in keys if name not in ('data', 'scales', 'config')]
    entry = {**_object(keys), 'dependencies': {'split_file': ['split_key'], 'split_key': ['split_file']},
             'oneOf': [{'required': ['config'], 'not': {'anyOf': with_hr}},
                       {'required': ['hr', 'metric'], 'not': {'required': ['config']}}]}
    return {'type': 'object', 'additionalProperties': False, 'minProperties': 1, 'maxProperties': 1, 'properties': {
        'tests': {'type': 'array', 'minItems': 1, 'items': entry},
        'suites': {'type': 'array', 'minItems': 1, 'items': {'type': 'string'}}}}


def _object(keys, free=(), others=False):
    """keys: {name: Key}; free: names that are not required whatever their default; others: further names allowed."""
    return {'type': 'object', 'additionalProperties': others,
            'properties': {name: _value(*key) for name, key in keys.items()},
            'required': [name for name in keys if keys[name].default is REQUIRED and name not in free]}


def _value(kind, default, meaning):
    json = kind.json if isinstance(kind, ValueType) else _object(keys_of(kind))
    if default is REQUIRED:
        return {'description': meaning, 'anyOf': [json]}
    return {'description': meaning, 'default': default, 'anyOf': [json, NULL]}


def _spec(role):
    """Of a mapping {name, args}: each name with the arguments of its constructor."""
    names, cases = REGISTRIES[role].names(role, 'any'), []
    for name in names:
        thing = REGISTRIES[role].get(name)
        keys = keys_of(thing)
        others = set(parameters_of(thing) or {'any'}) - set(keys) - HANDED.get(role, set())
        args = _object(keys, HANDED.get(role, set()), others=bool(others) and role != 'lr_scheduler')
        then = {'properties': {'args': args if args['required'] else {'anyOf': [args, NULL]}}}
        cases.append({'if': {'required': ['name'], 'properties': {'name': {'const': name}}},
                      'then': {**then, 'required': ['args']} if args['required'] else then})
    return {'type': 'object', 'additionalProperties': False, 'required': ['name'], 'allOf': cases,
            'properties': {'name': {'enum': names}, 'args': {}}}


def generated():
    """{path: text} of the files that are written from the schema."""
    page, schema = os.path.join(ROOT, 'docs', 'configs.md'), os.path.join(ROOT, 'configs', 'schema.json')
    with open(page, encoding='utf-8') as f:
        text = re.sub(r'(<!-- schema: (\w+) -->\n```yaml\n).*?(\n```)',
                      lambda m: m[1] + describe(m[2]) + m[3], f.read(), flags=re.DOTALL)
    return {page: text, schema: json.dumps(json_schema(), indent=1) + '\n'}


if __name__ == '__main__':
    parser = Parser(__doc__)
    parser.add_argument('--write', action='store_true', help='rewrite docs/configs.md and configs/schema.json')
    if parser.parse_args().write:
        for path, text in generated().items():
            write_file(path, text)
    else:
        print('\n\n'.join(f'{group.upper()}\n{describe(group)}' for group in (*KINDS, *REGISTRIES)))
