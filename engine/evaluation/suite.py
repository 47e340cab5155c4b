"""Suites, configs/suites/*.yaml or files like them, as lists of cases; each case is a complete test config."""
import difflib
import os
from typing import NamedTuple, Optional

import numpy as np

import datasets
from datasets.degraded import degrade
from datasets.imresize import canonical_scale, imresize, lr_size, parse_scale, shave_width
from datasets.wrappers import Wrapper
from engine import ROOT
from engine.checkpoint import PUBLISHED_NORM
from engine.config import Checker, agree_split, load_config, parse_eval_type, printable, read_yaml
from engine.schema import SuiteEntry, keys_of
from utils import UserError, show


SUITES = os.path.join(ROOT, 'configs', 'suites')
FROM_HR = 'from-hr'


class Case(NamedTuple):
    """A data set at a scale. scale: its name, such as '2', '2x3.5' or '64-128'; config: as `load_config` gives it;
    dataset: the spec of its images, the config's or moved by --data; missing: the first of its paths that does not
    exist, or None."""
    data: str
    scale: str
    config: dict
    dataset: dict
    missing: Optional[str] = None

    @property
    def name(self):
        """For messages, such as 'Set5 x2' or 'CelebA-HQ 64 -> 128'."""
        return f'{self.data} {scale_label(self.scale)}'

    @property
    def factor(self):
        """(vertical, horizontal) enlargement."""
        return case_factor(self.scale)


def case_factor(scale):
    """'2.5' -> (2.5, 2.5), '64-128' -> (2.0, 2.0)."""
    small, _, large = scale.partition('-')
    return (int(large) / int(small),) * 2 if large else parse_scale(scale)


def scale_label(scale):
    """'2' -> 'x2', '64-128' -> '64 -> 128'."""
    return scale.replace('-', ' -> ') if '-' in scale else f'x{scale}'


def suite_names():
    return sorted(name[:-5] for name in os.listdir(SUITES) if name.endswith('.yaml'))


def suite_file(name):
    """The file of a suite, a name in configs/suites or the path of a YAML file. Raises UserError for another name."""
    if name in suite_names():
        return os.path.join(SUITES, f'{name}.yaml')
    if not str(name).endswith(('.yaml', '.yml')):
        close = difflib.get_close_matches(str(name), suite_names(), n=1)
        raise UserError(f'found the suite {show(name)}, expected one of {", ".join(suite_names())}, or the '
                        f'path of a .yaml file (docs/evaluation.md)' + (f'; did you mean {close[0]}?' if close else ''))
    return name


def read_suite(name, scales=None, data_root=None):
    """The cases of a suite, a name in configs/suites or the path of a YAML file.

    scales: only these; for scales that the suite does not list, low-resolution images are made from HR by the rule of
    docs/lr-kernels.md; data_root: the folder to use instead of ./load. Raises UserError for mistakes in the suite.
    """
    where = f'suite {name}' if name in suite_names() else name
    tests = read_tests(suite_file(name), where)
    wanted = None if scales is None else list(dict.fromkeys(map(canonical_scale, scales)))
    tests = [check_test(test, where, f'tests.{i}') for i, test in enumerate(tests)]
    cases = [case for test in tests for case in read_test(test, wanted, data_root)]
    names = [case.name for case in cases]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f'{where}: found {twice[0]} in two tests, expected one: give them different names (data)')
    unknown = set(wanted or ()) - {case.scale for case in cases}
    if unknown:
        listed = ', '.join(dict.fromkeys(str(scale) for test in tests for scale in test['scales']))
        raise UserError(f'{where}: found scale {", ".join(sorted(unknown))}, which none of its tests has, expected '
                        f'some of {listed}, or, for sets of images, any such as 2.7 or 2x3.5')
    return cases


def read_tests(path, where, kinds=('tests', 'suites')):
    """The entries of a suite's file; of `suites` in it, those of the suites it names, which list tests themselves."""
    suite = read_yaml(path)
    config = [key for key in suite if str(key).endswith('_dataset')]
    if len(suite) != 1 or not {*suite} <= {*kinds}:
        raise UserError(f'{where}: found the keys {", ".join(map(printable, suite)) or "none"}, expected '
                        f'{" or ".join(kinds)} alone; ' + ('this is a config, not a suite: give it as a config'
                                                           if config else 'configs/suites has examples'))
    (kind, entries), = suite.items()
    if not isinstance(entries, list) or not entries:
        raise UserError(f'{where}: {kind}: found {show(entries)}, expected a list with at least one of them; '
                        f'configs/suites has examples')
    if kind == 'tests':
        return entries
    return [test for name in entries
            for test in read_tests(suite_file(name), f'{where}: {printable(name)}', ('tests',))]


def check_test(test, where, path):
    """An entry of a suite with all its keys. Raises UserError for keys and values that do not belong there."""
    check = Checker(where)
    test = check.table(test, keys_of(SuiteEntry), path)
    given = [key for key, value in test.items() if value is not None]
    if ('config' in given) == ('hr' in given):
        check.fail(path, ', '.join(given), 'either config: the path of a test config, or hr: a folder', 'give one')
    if 'hr' in given and 'metric' not in given:
        check.fail(f'{path}.metric', 'nothing', 'how PSNR is measured, since there is no config', 'add it')
    extra = [key for key in given if key not in ('data', 'scales', 'config')]
    if 'config' in given and extra:
        check.fail(f'{path}.{extra[0]}', show(test[extra[0]]), 'nothing, since it goes with hr, not with config',
                   'remove it')
    agree_split(check, test, path)
    for name, steps in (test['degradations'] or {}).items():
        check.table(steps, keys_of(degrade), f'{path}.degradations.{name}')
    if len(test['scales']) > 1 and '{scale}' not in (test['config'] or '{scale}'):
        check.fail(f'{path}.config', f'{test["config"]} for {len(test["scales"])} scales', 'a path with {scale}',
                   'add it, or give one scale')
    for scale in map(canonical_scale, test['scales'] if test['config'] else ()):
        file = _in_root(test['config'].replace('{scale}', scale))
        if not os.path.isfile(file):
            check.fail(f'{path}.config', file, 'a test config that exists', 'correct it; {scale} stands for the scale')
    return test


def read_test(test, wanted, data_root):
    """The cases of one entry of a suite, for each of its degradations, if any."""
    listed = [canonical_scale(scale) for scale in test['scales']]
    tasks = any('-' in scale for scale in listed)  # from one size of faces to another, as CelebA-HQ
    for name, steps in (test['degradations'] or {None: None}).items():
        data = test['data'] if name is None else f'{test["data"]}, {name}'
        for scale in listed if wanted is None else wanted:
            if scale in listed or not tasks and '-' not in scale:
                config = config_at(test, scale, listed)
                if steps is not None:
                    config['test_dataset']['wrapper']['args']['degradation'] = dict(steps)
                yield Case(data, scale, config, *locate(config['test_dataset']['dataset'], data_root))


def config_at(test, scale, listed):
    """The test config of an entry at a scale, which need not be one of those `listed`."""
    if test['hr'] is not None:
        config = hr_config(test['hr'], scale, test['metric'], PUBLISHED_NORM)
        if test['split_file'] is not None:
            config['test_dataset']['dataset']['args'].update(split_file=_in_root(test['split_file']),
                                                             split_key=test['split_key'])
        if test['crop'] is not None:
            config['test_dataset']['wrapper']['args']['crop'] = test['crop']
        return config
    file, listed_file = (_in_root(test['config'].replace('{scale}', s)) for s in (scale, listed[0]))
    if scale in listed or '{scale}' in test['config'] and os.path.exists(file):
        return load_config(file, kind='test', check_paths=False)
    first = load_config(listed_file, kind='test', check_paths=False)
    args = first['test_dataset']['dataset']['args']
    metric = parse_eval_type(first['eval_type'])[0] or 'rgb'
    return hr_config(args.get('root_path_2', args.get('root_path')), scale, metric, first['data_norm'])


def _in_root(path):
    return path if os.path.exists(path) else os.path.join(ROOT, path)


def hr_config(folder, scale, metric, data_norm):
    """The test config of HR images at any scale."""
    eval_type = None if metric == 'rgb' else f'{metric}-{shave_width(parse_scale(scale))}'
    return {'test_dataset': {'dataset': {'name': 'image-folder', 'args': {'root_path': folder}},
                             'wrapper': {'name': FROM_HR, 'args': {'scale': scale}}, 'batch_size': 1},
            'data_norm': data_norm, 'eval_type': eval_type, 'eval_bsize': 30000, 'precision': 'float32', 'seed': 0}


def locate(dataset, data_root=None):
    """(The spec of a dataset with its paths in ./load moved to `data_root`, the first of them that does not exist or
    None)."""
    args, missing = dict(dataset['args']), None
    for key, value in args.items():
        if key in ('root_path', 'root_path_1', 'root_path_2', 'split_file') and isinstance(value, str):
            inside = os.path.relpath(value, 'load')
            if data_root is not None and not os.path.isabs(value) and not inside.startswith('..'):
                args[key] = value = os.path.join(data_root, inside)
            there = os.path.isfile(value) if key == 'split_file' else os.path.isdir(value)
            missing = missing or (None if there else value)
    return {**dataset, 'args': args}, missing


class FromHR(Wrapper):
    """(LR, HR) samples at any scale by the rule of docs/lr-kernels.md; `dataset`: HR images; degradation: arguments of
    datasets.degraded.degrade, which then changes the LR image; crop: only the middle crop x crop pixels of HR."""

    def __init__(self, dataset, scale, degradation=None, crop=None):
        super().__init__(dataset, augment=False, sample_q=None)
        self.scale, self.degradation, self.crop = parse_scale(scale), degradation or {}, crop

    def sample(self, index, rng):
        hr = self.dataset.image(index)
        if self.crop is not None:
            top, left = (max(0, (n - self.crop) // 2) for n in hr.shape[:2])
            hr = hr[top:top + self.crop, left:left + self.crop]
        try:
            small, (rows, columns) = lr_size(hr.shape[:2], self.scale)
        except UserError as error:
            raise UserError(f'{self.path(index)}: {error}') from None
        hr = np.ascontiguousarray(hr[:rows, :columns])
        lr = degrade(imresize(hr, small), os.path.basename(self.path(index)), **self.degradation)
        return self.make_item(lr, hr, (False,) * 3, rng)


def open_data(config, dataset=None):
    """The samples of a test config; dataset: another spec for its images."""
    spec = config['test_dataset']
    images = datasets.make(dataset or spec['dataset'])
    if spec['wrapper']['name'] == FROM_HR:
        return FromHR(images, **spec['wrapper']['args'])
    return datasets.make(spec['wrapper'], args={'dataset': images})
