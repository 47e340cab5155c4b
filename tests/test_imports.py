"""The rooms: who may import whom, private names, devices; and the lengths of functions and lines."""
import ast
import collections
import functools
import os
import re
import subprocess

import pytest

from tests.common import ROOT


# A module may import modules of the same room and of rooms on lower levels, never upwards or across.
LEVELS = [('utils',), ('datasets', 'models'), ('engine',),
          ('engine.training', 'engine.evaluation', 'engine.rendering'),
          ('train_liif', 'test', 'demo', 'hubconf', 'scripts', 'viewer', 'benchmarks'),
          ('tests',)]
SIDEWAYS = {('engine.training', 'engine.evaluation'), ('engine.evaluation', 'engine.rendering'),
            ('scripts', 'viewer')}  # export_onnx.py writes the viewer's page
ROOMS = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
PROGRAMS = ('train_liif', 'demo', 'scripts')  # `test` lends eval_psnr and batched_predict
LINE, FUNCTION = 120, 50


@functools.cache
def files():
    """{path: its text} of the project's Python files."""
    found = subprocess.run(['git', 'ls-files', '--cached', '--others', '--exclude-standard', '*.py'], cwd=ROOT,
                           capture_output=True, text=True)
    if found.returncode:
        pytest.skip('the files are listed by git')
    paths = [path for path in found.stdout.split() if os.path.exists(os.path.join(ROOT, path))]
    texts = {}
    for path in paths:
        with open(os.path.join(ROOT, path), encoding='utf-8') as f:
            texts[path] = f.read()
    return texts


def module_of(path):
    return path.removesuffix('.py').removesuffix('/__init__').replace('/', '.')


def room_of(module):
    """The room that a module of the project lives in; None for modules from elsewhere."""
    parts = module.split('.')
    if parts[0] not in ROOMS:
        return None
    return '.'.join(parts[:2]) if '.'.join(parts[:2]) in ROOMS else parts[0]


def imports(path, text, modules):
    """(line, module, names) for each import, wherever it stands; a name that is a module counts as one."""
    package = path.removesuffix('.py').split('/')[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            source = '.'.join(package[:len(package) + 1 - node.level] * (node.level > 0)
                              + [node.module] * (node.module is not None))
            for alias in node.names:
                whole = f'{source}.{alias.name}'
                yield (node.lineno, whole, ()) if whole in modules else (node.lineno, source, (alias.name,))


def wrong_imports(path, text, modules):
    """What a file breaks of the import rules: a list of lines."""
    room, found = room_of(module_of(path)), []
    for line, module, names in imports(path, text, modules):
        target, script = room_of(module), module.removesuffix('._path').split('.')[-1]
        if target == 'scripts' and room != 'tests' or room == 'scripts' and f'scripts/{script}.py' in files() \
                and script != '_path':
            found.append(f'{path}:{line} imports the script {script}')
        elif target in PROGRAMS and room not in ('tests', target):
            found.append(f'{path}:{line} imports the program {module}')
        elif target not in (None, room) and (room, target) not in SIDEWAYS and ROOMS[target] >= ROOMS[room]:
            found.append(f'{path}:{line} imports {module}, which stands above or across')
        found += [f'{path}:{line} imports {name} of {module}' for name in names
                  if target is not None and name.startswith('_')]
    return found


@functools.cache
def private_names(text):
    """The `_names` that a file defines: functions, classes, variables, attributes."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
            names.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return {name for name in names if name.startswith('_') and not name.startswith('__')}


def foreign_attributes(path, text):
    """Uses `x._name` of a name that another file of the project defines and this one does not."""
    foreign = set().union(*(private_names(other) for other in code().values())) - private_names(text)
    return [f'{path}:{node.lineno} uses {ast.unparse(node)}' for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Attribute) and node.attr in foreign]


def code():
    """{path: text} of what is not a test."""
    return {path: text for path, text in files().items() if not path.startswith('tests/')}


def assert_none(found):
    found = list(found)
    assert not found, '\n' + '\n'.join(found)


def test_every_file_has_a_room():
    assert_none(path for path in files() if room_of(module_of(path)) is None and path != 'hubconf.py')


def test_imports_follow_the_rooms():
    modules = {module_of(path) for path in files()}
    assert_none(line for path, text in files().items() if room_of(module_of(path)) not in (None, 'tests')
                for line in wrong_imports(path, text, modules))


def test_private_names_stay_in_their_module():
    """Tests may look inside."""
    assert_none(line for path, text in code().items() for line in foreign_attributes(path, text))


def test_models_name_no_device():
    """They may ask what kind their tensors' device is (`x.device.type == 'cpu'`)."""
    found = []
    for path, text in code().items():
        if path.startswith('models/'):
            nodes = list(ast.walk(ast.parse(text)))
            asked = [child for node in nodes if isinstance(node, ast.Compare) and
                     ast.unparse(node.left).endswith('device.type') for child in node.comparators]
            for node in nodes:
                if isinstance(node, ast.Constant) and re.fullmatch(r'(cpu|cuda|mps)(:\d+)?', str(node.value)) and \
                        node not in asked or \
                        isinstance(node, ast.Call) and re.search(r'\.(cpu|cuda|mps)$', ast.unparse(node.func)):
                    found.append(f'{path}:{node.lineno} {ast.unparse(node)}')
    assert_none(found)


def test_functions_and_lines_are_short():
    long = []
    for path, text in files().items():
        lines = text.splitlines()
        long += [f'{path}:{i} has {len(line)} characters' for i, line in enumerate(lines, 1) if len(line) > LINE]
        long += [f'{path}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines'
                 for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
                 and node.end_lineno - node.lineno + 1 > FUNCTION]
    assert_none(long)


def report_sizes():
    """python -m tests.test_imports: lines of Python by room."""
    sizes = collections.Counter()
    for path, text in files().items():
        sizes[room_of(module_of(path)) or path] += text.count('\n')
    for room, lines in sizes.most_common():
        print(f'{lines:6} {room}')
    print(f'{sum(sizes.values()) - sizes["tests"]:6} outside tests')


BAD = {  # in a file: what it imports that it must not
    'models/a.py': 'from engine import config', 'datasets/a.py': 'import models', 'utils.py': 'from datasets import x',
    'engine/rendering/a.py': 'from engine.training.loop import train_step', 'scripts/a.py': 'from resize import main',
    'engine/a.py': 'from engine.evaluation import tables', 'benchmarks/a.py': 'from tests.common import fill_model',
    'viewer/a.py': 'from scripts.plot import draw', 'demo.py': 'from engine.runtime import _umask',
    'engine/evaluation/a.py': 'import train_liif'}


@pytest.mark.parametrize('path', BAD)
def test_the_rules_notice(path):
    assert len(wrong_imports(path, BAD[path], {module_of(path) for path in files()})) == 1


def test_allowed_imports():
    for path, text in {'engine/training/a.py': 'from engine.evaluation.evaluate import eval_psnr',
                       'engine/a.py': 'from utils import UserError\nimport models', 'models/a.py': 'from .b import c',
                       'scripts/a.py': 'import _path', 'tests/a.py': 'from scripts import plot'}.items():
        assert wrong_imports(path, text, {module_of(path) for path in files()}) == []


if __name__ == '__main__':
    report_sizes()
