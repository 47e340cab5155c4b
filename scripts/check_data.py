"""Read every image that a config names and say what is wrong, before a run finds out.

    python scripts/check_data.py CONFIG [--set KEY=VALUE ...]

Reports missing and empty folders, how many images there are, files that cannot be read, pairs that do not belong
together, images too small for the crop; each with what to do. Exits with 0 when all is well, with 2 otherwise.
"""

import _path

from tqdm import tqdm

import datasets
from datasets.check import problems
from engine.config import load_config, read_yaml
from engine.runtime import Parser, run_program
from utils import UserError, counted

SECTIONS = ('train_dataset', 'val_dataset', 'test_dataset')
ROOTS = ('root_path', 'root_path_1', 'root_path_2')


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('config', help='a training or test config')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        help='override a key of the config')
    args = parser.parse_args(argv)
    kind = 'test' if 'test_dataset' in read_yaml(args.config) else 'train'
    config = load_config(args.config, args.set, kind=kind, check_paths=False)
    found = sum(check_section(section, config[section]) for section in SECTIONS if config.get(section))
    if found:
        raise UserError(f'{counted(found, "problem")} found in the data of {args.config}, listed above')
    print('everything can be used')


def check_section(section, spec):
    """Print what is found; the number of problems."""
    dataset = {**spec['dataset'], 'args': {**(spec['dataset'].get('args') or {}), 'cache': 'none'}}
    options = {name: value for name, value in dataset['args'].items() if name not in ROOTS}
    found = []
    for path in (dataset['args'][key] for key in ROOTS if key in dataset['args']):
        try:
            folder = datasets.make({'name': 'image-folder', 'args': {'root_path': path, **options}})
            print(f'{section}: {counted(folder.distinct, "image")} of {path}')
        except UserError as error:
            found.append(str(error))
    try:
        found = found or read_all(section, dataset, spec['wrapper'])
    except UserError as error:
        found.append(str(error))
    for problem in found:
        print(f'  {section}: {problem}')
    return len(found)


def read_all(section, dataset, wrapper):
    """The problems of the images, a line each."""
    data = datasets.make(wrapper, args={'dataset': datasets.make(dataset)})
    total = getattr(data.dataset, 'distinct', len(data))
    found = tqdm(problems(data, read=True), total=total, desc=section, unit='image', leave=False, disable=None)
    return [problem for problem in found if problem is not None]


if __name__ == '__main__':
    run_program(main)
