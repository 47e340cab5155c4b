"""The pages keep their word: quoted code stands in its file, links and names resolve, stated numbers hold."""
import os
import re
import textwrap

import pytest
import torch

import models
import utils
from engine.rendering.renderer import Scene
from models import decode
from models.decode import nearest_code
from models.liif import LIIF
from scripts import torture
from tests.common import ROOT


FENCE = re.compile(r'^```([^\n`]*)\n(.*?)^```[ ]*$', re.MULTILINE | re.DOTALL)
FOLDERS = ('', 'docs', 'load', 'weights', 'configs', 'benchmarks', 'scripts', 'tests')


def pages():
    """The *.md files of the project, data sets and environments left out."""
    found = [os.path.join(folder, name) for folder in FOLDERS if os.path.isdir(os.path.join(ROOT, folder))
             for name in os.listdir(os.path.join(ROOT, folder)) if name.endswith('.md')]
    assert os.path.join('docs', 'how-liif-works.md') in found
    return sorted(found)


def read(path):
    with open(os.path.join(ROOT, path), encoding='utf-8') as f:
        return f.read()


def anchors(text):
    """What #... may point to: the headings, as the web shows them."""
    headings = re.findall(r'^#+ +(.*?) *$', FENCE.sub('', text), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading).replace(' ', '-').lower() for heading in headings}


def stands_in(quote, text):
    """Whether the lines of `quote` follow each other in `text`, indented as a whole by any amount."""
    quote = textwrap.dedent(quote).strip('\n').split('\n')
    lines = text.split('\n')
    return any(textwrap.dedent('\n'.join(lines[i:i + len(quote)])).split('\n') == quote for i in range(len(lines)))


@pytest.mark.parametrize('page', pages())
def test_quoted_code(page):
    """A block that opens with ```python FILE is a quotation of that file."""
    for info, code in FENCE.findall(read(page)):
        language, _, path = info.strip().partition(' ')
        if path:
            assert language == 'python' and os.path.isfile(os.path.join(ROOT, path)), f'{page}: no file {path}'
            assert stands_in(code, read(path)), f'{page} quotes what {path} does not say:\n{code}'


def test_quotations_are_found():
    quotations = [info for info, _ in FENCE.findall(read('docs/how-liif-works.md')) if ' ' in info.strip()]
    assert len(quotations) >= 8
    assert stands_in('b\n  c\n', '  a\n  b\n    c\n') and not stands_in('b\nc\n', '  a\n  b\n    c\n')


@pytest.mark.parametrize('page', pages())
def test_links(page):
    text = FENCE.sub('', read(page))
    links = re.findall(r'\]\(([^)\s]+)\)', text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in links:
        if re.match(r'[a-z]+:', link):
            continue
        path, _, anchor = link.partition('#')
        target = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
        assert os.path.exists(os.path.join(ROOT, target)), f'{page}: {link} leads nowhere'
        if anchor:
            assert anchor in anchors(read(target)), f'{page}: {link}: no such heading'


def test_names():
    """Functions that how-liif-works.md names exist."""
    owners = {'LIIF': LIIF, 'Scene': Scene, 'utils': utils, 'models': models}
    names = re.findall(r'`(LIIF|Scene|utils|models)\.(\w+)`', read('docs/how-liif-works.md'))
    assert len(names) >= 8
    assert [f'{owner}.{name}' for owner, name in names if not hasattr(owners[owner], name)] == []


def test_shift_settles_ties(monkeypatch):
    """Central pixels of x3 never get the two neighbours of their code, as they do without the shift."""
    def both_neighbours(n, s):
        x = utils.axis_coord(n * s)[s // 2::s]  # on the centres of the codes
        low, high = nearest_code(x, n, -1)[0], nearest_code(x, n, 1)[0]
        return ((low < torch.arange(n)) & (high > torch.arange(n))).sum().item()

    assert [both_neighbours(n, s) for n in (48, 100, 171) for s in (3, 5, 7)] == [0] * 9
    monkeypatch.setattr(decode, 'SHIFT', 0)
    assert both_neighbours(48, 3) > 5


def test_every_script_is_listed():
    text = read('scripts/README.md')
    names = [name for name in os.listdir(os.path.join(ROOT, 'scripts')) if name.endswith(('.py', '.sh'))]
    assert [name for name in names if name not in text and name != '_path.py'] == []


@pytest.mark.parametrize('test', [test for tests in torture.CASES.values() for test in tests])
def test_torture_names_tests_that_take_a_seed(test):
    path, name = test.split('::')
    assert re.search(rf"\('seed', seeds\(.*\)\)\n(@.*\n)*def {name}\(.*\bseed\b", read(path))
