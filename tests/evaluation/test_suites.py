"""Suites as lists of cases, and mistakes in them."""
import numpy as np
import pytest
import torch

from datasets.degraded import compress
from datasets.image_folder import ImageFolder
from datasets.imresize import imresize
from engine.evaluation import tables
from engine.evaluation.runs import Outcome, split_label
from engine.evaluation.suite import FromHR, canonical_scale, open_data, read_suite, suite_names
from scripts.reproduce import TABLES
from tests.evaluation.common import one_case, run_case, write_suite
from tests.image_files import folder, noise, save
from utils import UserError


def test_suites_of_the_paper():
    assert {'all', 'benchmark', 'celebAHQ', 'div2k'} <= set(suite_names())
    found = {name: [(case.data, case.scale) for case in read_suite(name)] for name in suite_names()}
    assert found['benchmark'] == [(data, scale) for data in ('Set5', 'Set14', 'B100', 'Urban100') for scale in '23468']
    assert found['div2k'] == [('DIV2K', scale) for scale in '2 3 4 6 12 18 24 30'.split()]
    assert found['all'] == found['div2k'] + found['benchmark'] + found['celebAHQ']
    scales = [float(scale) for _, scale in found['continuous']]
    assert scales == sorted(scales) and scales[0] < 1.5 and scales[-1] == 30
    for table in '1234':  # every published number has a case
        published = tables.paper()['tables'][table]
        assert {(data, scale) for data in published['data'] for scale in published['scales']} \
            <= set(found[TABLES[table][0]])


def test_degradations_make_a_case_each_and_change_only_the_input(tmp_path):
    save(tmp_path / 'a.png', noise(24, 36, 3))
    test = {'data': 'mine', 'hr': str(tmp_path), 'metric': 'rgb', 'scales': [2, 3],
            'degradations': {'clean': {}, 'JPEG': {'quality': 75}}}
    cases = read_suite(write_suite(tmp_path / 's.yaml', test))
    assert [case.name for case in cases] == ['mine, clean x2', 'mine, clean x3', 'mine, JPEG x2', 'mine, JPEG x3']
    clean, jpeg = (open_data(case.config, case.dataset).sample(0, None) for case in cases[::2])
    assert torch.equal(clean['gt'], jpeg['gt'])
    expected = compress(clean['inp'].permute(1, 2, 0).numpy(), 75)
    assert np.array_equal(jpeg['inp'].permute(1, 2, 0).numpy(), expected) and not torch.equal(clean['inp'], jpeg['inp'])


def test_crops_are_the_middle_of_each_image(tmp_path):
    image = noise(90, 201, 3)
    save(tmp_path / 'a.png', image)
    case = one_case(tmp_path / 's.yaml', {
        'data': 'mine', 'hr': str(tmp_path), 'metric': 'rgb', 'scales': [2], 'crop': 100})
    sample = open_data(case.config, case.dataset).sample(0, None)
    assert np.array_equal(sample['gt'].view(90, 100, 3), image[:, 50:150]) and sample['inp'].shape == (3, 45, 50)


def test_a_part_of_a_folder(tmp_path):
    (tmp_path / 'split.json').write_text('{"mine": ["c.png", "a.png"]}')
    case = one_case(tmp_path / 's.yaml', {
        'data': 'part', 'hr': folder(tmp_path / 'HR', ['a.png', 'b.png', 'c.png'], (40, 40)), 'metric': 'rgb',
        'scales': [2], 'split_file': str(tmp_path / 'split.json'), 'split_key': 'mine'})
    rows = run_case(case, 'nearest', tmp_path)['per_image']
    assert sorted(row['image'] for row in rows) == ['a.png', 'c.png']


def test_scales_from_hr_follow_the_rule(tmp_path):
    hr = noise(61, 47, 3)
    save(tmp_path / 'a.png', hr)
    item = FromHR(ImageFolder(str(tmp_path)), '2.7x2').sample(0, None)
    rows, columns = round(22 * 2.7), 46  # 61 / 2.7 = 22.6, 47 / 2 = 23.5
    assert item['size'].tolist() == [rows, columns] == [59, 46]
    assert torch.equal(item['inp'], torch.from_numpy(imresize(hr[:59, :46], (22, 23))).permute(2, 0, 1))
    assert torch.equal(item['gt'], torch.from_numpy(hr[:59, :46].copy()).view(-1, 3))
    assert item['cell'].tolist() == [pytest.approx([2 / 59, 2 / 46])]


def test_a_config_of_one_scale_serves_no_other(load, tmp_path):
    test = {'data': 'Set5', 'config': 'configs/test/test-set5-2.yaml', 'scales': [2]}
    two, three = read_suite(write_suite(tmp_path / 's.yaml', test), ['2', '3'], load)
    assert open_data(two.config, two.dataset).sample(0, None)['inp'].shape == (3, 24, 30)  # of 48x60
    assert open_data(three.config, three.dataset).sample(0, None)['inp'].shape == (3, 16, 20)
    assert three.config['eval_type'] == 'benchmark-3'


@pytest.mark.parametrize('text, expected', [('2', '2'), (2.0, '2'), ('x2.70', '2.7'), ('2,3.5', '2x3.5'), ('2x2', '2'),
                                          ('32-256', '32-256')])
def test_scales_have_one_name(text, expected):
    assert canonical_scale(text) == expected


@pytest.mark.parametrize('text, expected', [
    ('save/_my-run/epoch-last.pth', 'my-run'), ('weights/small/model.pth', 'small'), ('a/RDN.pth', 'RDN'),
    ('save/_my-run/epoch-best.pth', 'my-run epoch-best'), ('bicubic', 'bicubic'), ('A b=x/y.pth', 'A b')])
def test_labels(text, expected):
    assert split_label(text)[0] == expected


def test_data_moves_as_a_whole(load, tmp_path):
    usual, there, empty = (read_suite('all', data_root=root) for root in (None, load, str(tmp_path)))
    assert all(case.missing is None for case in there) and all(case.missing for case in empty)
    assert [case.config for case in usual] == [case.config for case in there]  # so results do not depend on the folder


ENTRY = {'data': 'a', 'hr': 'b', 'metric': 'rgb', 'scales': [2]}


@pytest.mark.parametrize('text, words', [
    ('[]', 'a mapping'), ('tests: 3', 'tests: found 3, expected a list'),
    ('tests: []', 'tests: found [], expected a list'),
    ('suites: [x]\ntests: []', 'found the keys suites, tests, expected tests or suites alone'),
    ('1: 2', 'found the keys 1, expected tests or suites'), ('[1]: 2', ''),
    ('suites: [all]', 'all: found the keys suites, expected tests'), ('suites: benchmark', "suites: found 'benchmark'"),
    ('suites: [sampels]', 'did you mean samples?'), ('test_dataset: {}', 'this is a config')])
def test_wrong_suites_are_told_in_one_line(text, words, tmp_path):
    (tmp_path / 's.yaml').write_text(text)
    with pytest.raises(UserError) as error:
        read_suite(str(tmp_path / 's.yaml'))
    assert ('s.yaml' in str(error.value) or 'sampels' in text) and words in str(error.value)
    assert '\n' not in str(error.value)


def test_suites_are_put_together_by_name_and_path(tmp_path):
    mine = write_suite(tmp_path / 'mine.yaml', ENTRY)
    (tmp_path / 's.yaml').write_text(f'suites: [samples, {mine}]')
    assert [case.name for case in read_suite(str(tmp_path / 's.yaml'))] == [
        case.name for case in [*read_suite('samples'), *read_suite(mine)]]


CONFIG = {'data': 'x', 'config': 'c{scale}.yaml', 'scales': [2]}


@pytest.mark.parametrize('entry, words', [
    (3, 'tests.0: found 3, expected a mapping with data, scales'),
    ({'data': 'a'}, 'tests.0.scales: found nothing, expected a list of scales'),
    *(({**ENTRY, 'scales': [2, wrong]}, f'tests.0.scales: found [2, {wrong!r}], expected a list of scales')
      for wrong in ('abc', 0, 0.5, True, [2, 3])),
    ({**ENTRY, 'scales': [2, '2.0']}, 'found a x2 in two tests'),
    ({**CONFIG, 'config': 'configs/test/test-set5-{scal}.yaml'}, 'test-set5-{scal}.yaml, expected a test config that'),
    ({'data': 'a', 'scales': [2]}, 'tests.0: found data, scales, expected either config: '),
    ({**ENTRY, 'config': 'c.yaml'}, 'tests.0: found data, scales, config, hr, metric, expected either config: '),
    ({**ENTRY, 'metric': None}, 'tests.0.metric: found nothing, expected how PSNR is measured'),
    ({**ENTRY, 'split_key': 'mine'}, 'tests.0.split_file: found nothing, expected a value, since split_key is given'),
    ({**ENTRY, 'split': 'mine'}, "tests.0.split: found 'mine' under an unknown name, expected one of: data, scales"),
    ({**CONFIG, 'crop': 99}, 'tests.0.crop: found 99, expected nothing, since it goes with hr'),
    ({**CONFIG, 'config': 'c-2.yaml', 'scales': [2, 3]}, 'tests.0.config: found c-2.yaml for 2 scales, expected a'),
    ({**ENTRY, 'data': 5}, 'tests.0.data: found 5, expected a string; put it in quotes'),
    ({**ENTRY, 'metric': 'luma'}, "tests.0.metric: found 'luma', expected one of benchmark, div2k, rgb"),
    ({**ENTRY, 'scales': []}, 'tests.0.scales: found [], expected a list of scales'),
    *(({**ENTRY, 'crop': wrong}, f'tests.0.crop: found {wrong!r}, expected an integer from 64')
      for wrong in (0, '100')),
    *(({**ENTRY, 'degradations': wrong}, f'tests.0.degradations{key}: found {found}')
      for wrong, key, found in ((['JPEG'], '', "['JPEG'], expected"), ({}, '', '{}, expected'),
                                ({'JPEG': 75}, '.JPEG', '75, expected a mapping with blur_sigma'),
                                ({'JPEG': {'quality': 0}}, '.JPEG.quality', '0, expected an integer from 1 to 100'),
                                ({'JPEG': {'blur': 1}}, '.JPEG.blur', '1 under an unknown name'),
                                ({'JPEG': {'blur': {}}}, '.JPEG.blur', '{} under an unknown name')))])
def test_wrong_entries_of_suites_are_told_in_one_line(entry, words, tmp_path):
    with pytest.raises(UserError) as error:
        read_suite(write_suite(tmp_path / 's.yaml', entry))
    assert words in str(error.value) and 's.yaml' in str(error.value) and '\n' not in str(error.value)


def test_a_file_in_place_of_a_folder_is_told(tmp_path):
    (tmp_path / 'a.txt').write_text('x')
    for name, problem in (('a.txt', 'is a file, not a folder'), ('b', 'does not exist')):
        cases = read_suite(write_suite(tmp_path / 's.yaml', {**ENTRY, 'hr': str(tmp_path / name)}))
        assert tables.not_measured(Outcome([], [], cases, [])) == [f'a x2: {tmp_path / name} {problem}']
