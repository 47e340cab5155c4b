"""A mistake in a config gives one line that names its key, its value and the remedy."""
import re

import pytest

from tests.engine.configs import load_or_message, tiny, write


MISTAKES = [  # values of --set; what the message has to contain: key and value, what was wanted, what to do
    (['epoch_max=0'], ['epoch_max: found 0', 'expected an integer from 1']),
    (['epoch_max=ten'], ["epoch_max: found 'ten'"]),
    (['epoch_max=true'], ['epoch_max: found True']),
    (['epoch_max=2.5'], ['epoch_max: found 2.5']),
    (['epoch_max="2"'], ["epoch_max: found '2'", 'remove the quotes']),
    (['epoch_max=.inf'], ['epoch_max: found inf']),
    (['train_dataset.batch_size=0'], ['train_dataset.batch_size: found 0']),
    (['train_dataset.batch_size=-3'], ['train_dataset.batch_size: found -3']),
    (['train_dataset.batchsize=4'], ['train_dataset.batchsize: found 4', 'did you mean batch_size?']),
    (['train_dataset=null'],
     ['train_dataset: found nothing', 'expected a mapping with dataset, wrapper, batch_size; add it']),
    (['train_dataset=[1]'], ['train_dataset: found [1]', 'expected a mapping']),
    (['val_dataset.wrapper=null'], ['val_dataset.wrapper: found nothing']),
    (['val_dataset.wrapper=5'], ['val_dataset.wrapper: found 5', 'expected a mapping with name, args']),
    (['val_dataset.wrapper.arg=5'], ['val_dataset.wrapper.arg: found 5', 'did you mean args?']),
    (['val_dataset.wrapper.args=5'], ['val_dataset.wrapper.args: found 5', 'expected a mapping']),
    (['val_dataset.wrapper.name=sr-implicit-downsample'],
     ["val_dataset.wrapper.name: found 'sr-implicit-downsample'", 'sr-implicit-paired',
      'did you mean sr-implicit-downsampled?']),
    (['val_dataset.wrapper.name=image-folder'],
     ["val_dataset.wrapper.name: found 'image-folder'", 'sr-implicit-paired']),
    (['val_dataset.dataset.name=sr-implicit-paired'],
     ['val_dataset.dataset.name: ', 'known dataset: image-folder, paired-image-folders']),
    (['val_dataset.dataset.name=paired-image-folders'],
     ['val_dataset.dataset.args.root_path: ', 'an unknown name', 'root_path_1']),
    (['val_dataset.wrapper.name=sr-implicit-paired', 'val_dataset.wrapper.args={}'],
     ["val_dataset.dataset.name: found 'image-folder'", 'expected paired-image-folders']),
    (['train_dataset.dataset.args.root_path=./nowhere'],
     ["train_dataset.dataset.args.root_path: found './nowhere'", 'expected a folder that exists', '--set']),
    (['train_dataset.dataset.args.root_path=7'], ['train_dataset.dataset.args.root_path: found 7']),
    (['train_dataset.dataset.args.split_file=no.json', 'train_dataset.dataset.args.split_key=x'],
     ["train_dataset.dataset.args.split_file: found 'no.json'"]),
    (['train_dataset.dataset.args.split_key=train'], ['train_dataset.dataset.args.split_file: found nothing']),
    (['train_dataset.dataset.args.cache=ram'],
     ["train_dataset.dataset.args.cache: found 'ram'", 'one of none, bin, in_memory']),
    (['train_dataset.dataset.args.repeat=0'], ['train_dataset.dataset.args.repeat: found 0']),
    (['train_dataset.wrapper.args.scale_min=0.5'],
     ['train_dataset.wrapper.args.scale_min: found 0.5', 'expected a number >= 1']),
    (['train_dataset.wrapper.args.scale_min=5'], ['train_dataset.wrapper.args.scale_max: found 4', 'scale_min']),
    (['train_dataset.wrapper.args.scale_max=.nan'], ['train_dataset.wrapper.args.scale_max: found nan']),
    (['train_dataset.wrapper.args.sample_q=17'], ['train_dataset.wrapper.args.sample_q: found 17', 'at most 16']),
    (['train_dataset.wrapper.args.sample_q=null'],
     ['train_dataset.wrapper.args.sample_q: found nothing', 'batch_size: 1']),
    (['train_dataset.wrapper.args.augment=1'], ['train_dataset.wrapper.args.augment: found 1', 'true or false']),
    (['train_dataset.wrapper.args.inpsize=8'],
     ['train_dataset.wrapper.args.inpsize: found 8', 'did you mean inp_size?']),
    (['data_norm.gt.div=[0]'], ['data_norm.gt.div: found [0]', 'other than 0']),
    (['data_norm.gt.sub=[1, 2]'], ['data_norm.gt.sub: found [1, 2]', 'one or three']),
    (['data_norm.gt=null'], ['data_norm.gt: found nothing']),
    (['model.name=lif'], ["model.name: found 'lif'", 'known model: liif, metasr', 'did you mean liif?']),
    (['model={name: bicubic}'], ["model.name: found 'bicubic'", 'known model: liif, metasr']),
    (['model.name=mlp'], ["model.name: found 'mlp'", 'known model: liif, metasr']),
    (['model.args.encoder_spec=null'], ['model.args.encoder_spec: found nothing']),
    (['model.args.encoder_spec.name=edsr_baseline'],
     ["model.args.encoder_spec.name: found 'edsr_baseline'", 'edsr-baseline?']),
    (['model.args.encoder_spec.args.nfeats=8'],
     ['model.args.encoder_spec.args.nfeats: found 8', 'did you mean n_feats?']),
    (['model.args.encoder_spec.args.scale=5'],
     ['model.args.encoder_spec.args.scale: found 5', 'one of 1, 2, 3, 4, 8']),
    (['model.args.encoder_spec={name: rdn, args: {RDNconfig: C}}'],
     ["model.args.encoder_spec.args.RDNconfig: found 'C'", 'one of A, B']),
    (['model.args.encoder_spec={name: rcan, args: {n_feats: 8}}'],
     ['model.args.encoder_spec.args.reduction: found 16', 'at most n_feats, 8']),
    (['model.args.encoder_spec.args={}'],
     ['model.args.encoder_spec.args.no_upsampling: found nothing', 'expected true']),
    (['model.args.imnet_spec=null'], ['model.args.imnet_spec: found nothing', 'a decoder', 'mlp']),
    (['model.args.imnet_spec.args.out_dim=4'], ['model.args.imnet_spec.args.out_dim: found 4', 'expected 3']),
    (['model.args.imnet_spec.args.hidden_list=[8, x]'], ["model.args.imnet_spec.args.hidden_list: found [8, 'x']"]),
    (['model.args.imnet_spec.args={out_dim: 3}'], ['model.args.imnet_spec.args.hidden_list: found nothing']),
    (['optimizer.name=adan'],
     ["optimizer.name: found 'adan'", 'known optimizer: adam, muon, sgd, soap', 'did you mean adam?']),
    (['optimizer.args=null'], ['optimizer.args.lr: found nothing']),
    (['optimizer.args.lr="1e-4"'], ["optimizer.args.lr: found '1e-4'", 'remove the quotes']),
    (['optimizer.args.lr="2.5e-4"'], ["optimizer.args.lr: found '2.5e-4'", 'remove the quotes']),
    (['optimizer.args.lr=-1.0'], ['optimizer.args.lr: found -1.0', 'expected a number >= 0']),
    (['optimizer.args.momentum=0.9'], ['optimizer.args.momentum: found 0.9', 'an argument of adam: lr, betas']),
    (['optimizer.args.betas=[0.9, 1]'], ['optimizer.args.betas: found [0.9, 1]']),
    (['optimizer={name: sgd, args: {lr: 0.1, nesterov: true}}'], ['optimizer.args.nesterov: found true', 'momentum']),
    (['epoch_max="1e3"'], ["epoch_max: found '1e3'", 'remove the quotes']),
    (['multi_step_lr.milestones=[1]'], ["lr_scheduler: found 'cosine'", 'multi_step_lr', 'remove one']),
    (['lr_scheduler=null', 'multi_step_lr.milestones=[0.5]'], ['multi_step_lr.milestones: found [0.5]', 'integers']),
    (['lr_scheduler=null', 'multi_step_lr.gamma=0.5'], ['multi_step_lr.milestones: found nothing']),
    (['lr_scheduler.name=step'],
     ["lr_scheduler.name: found 'step'", 'known lr_scheduler: cosine, multi-step, trapezoid']),
    (['ema=1'], ['ema: found 1', '> 0 and < 1']),
    (['loss=mse'], ["loss: found 'mse'", 'one of l1, l2, charbonnier']),
    (['grad_clip=0'], ['grad_clip: found 0']),
    (['save_minutes=-1'], ['save_minutes: found -1']),
    (['precision=half'], ["precision: found 'half'", 'one of float32, tf32, bf16, fp16']),
    (['precision=off'], ['precision: found False']),
    (['on_bad_image=ignore'], ["on_bad_image: found 'ignore'", 'one of stop, skip']),
    (['seed=-1'], ['seed: found -1']),
    (['seed=99999999999999999999'], ['seed: found 99999999999999999999']),
    (['eval_type=div2k'], ["eval_type: found 'div2k'", 'div2k-N']),
    (['eval_type=benchmark-0'], ["eval_type: found 'benchmark-0'"]),
    (['eval_bsize=0'], ['eval_bsize: found 0']),
    (['epoch_val=0'], ['epoch_val: found 0']),
    (['epoch_save=x'], ["epoch_save: found 'x'"]),
    (['seed=2020-01-01'], ['seed: found 2020-01-01 (a date)', 'quotes']),
    (['seeed=1'], ['seeed: found 1', 'did you mean seed?']),
    (['num_workers=4'], ['num_workers: found 4', 'remove it']),
    (['resume=5'], ['resume: found 5', 'the path of a checkpoint']),
    (['lr_scheduler.args.warmup_epochs=3'], ['lr_scheduler.args.warmup_epochs: found 3', 'at most the 2 epochs']),
    (['epoch_max=1e3.5'], ["epoch_max: found '1e3.5'"]),
    (['batch_size=3'], ['batch_size: found 3', 'did you mean train_dataset.batch_size?']),
    (['lr=1e-4'], ['lr: found 0.0001', 'did you mean optimizer.args.lr?']),
    (['model.args.n_feats=8'], ['model.args.n_feats: found 8', 'did you mean model.args.encoder_spec.args.n_feats?']),
    (['init=3'], ['init: found 3', 'the path of a checkpoint']),
    (['eval_type=div2k-4'], ["eval_type: found 'div2k-4'", 'val_dataset.wrapper.args.sample_q']),
    (['eval_type=div2k-4', 'val_dataset.wrapper.args={inp_size: 10, scale_min: 2}'],
     ["eval_type: found 'div2k-4'", '20x20 pixels', 'leaves out 10']),
    (['train_dataset.wrapper.args.inp_size=null'],
     ['train_dataset.wrapper.args.inp_size: found nothing', 'samples between 1 and 4', 'set batch_size: 1']),
    (['train_dataset.wrapper.args.small_images=crop'],
     ["train_dataset.wrapper.args.small_images: found 'crop'", 'stop, fit']),
    (['model.args.local_ensemble="true"'], ["model.args.local_ensemble: found 'true'", 'remove the quotes']),
    (['optimizer={name: muon, args: {lr: 0.1, adam_betas: [1, 1]}}'], ['optimizer.args.adam_betas: found [1, 1]']),
    (['lr_scheduler={name: trapezoid}'], ['lr_scheduler.args.decay_epochs: found nothing']),
    (['lr_scheduler={name: trapezoid, args: {decay_epochs: 1, warmup_epochs: 3}}'],
     ['lr_scheduler.args.warmup_epochs: found 3']),
]


@pytest.mark.parametrize('overrides, parts', MISTAKES, ids=lambda value: re.sub(r'\W+', '_', value[0]))
def test_a_mistake_names_its_key_value_and_remedy(folder, overrides, parts):
    _, message = load_or_message(write(folder, tiny(folder)), overrides)
    assert message is not None, 'accepted'
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize('mistake, words', [('seeed=1', 'did you mean seed?'), ('epoch_max=0', 'epoch_max: found 0'),
                                            ('train_dataset.wrapper.args.sample_q=17', 'at most 16')])
def test_a_missing_folder_is_reported_after_all_other_mistakes(folder, mistake, words):
    absent = 'train_dataset.dataset.args.root_path=./nowhere'
    assert words in load_or_message(write(folder, tiny(folder)), [absent, mistake])[1]
    assert "found './nowhere'" in load_or_message(write(folder, tiny(folder)), [absent])[1]


@pytest.mark.parametrize('root, remedy', [
    ('./load/your-images/train', ': put your images there, or name another'),
    ('load/div2k/DIV2K_train_HR', ': get it with python scripts/prepare_data.py div2k, or name another'),
    ('./load/sample/train', 'prepare_data.py sample, '), ('/nowhere', 'put your images there')])
def test_the_message_of_a_missing_folder_says_where_its_images_come_from(folder, monkeypatch, root, remedy):
    monkeypatch.chdir(folder)
    message = load_or_message(write(folder, tiny(folder)), [f'train_dataset.dataset.args.root_path={root}'])[1]
    assert remedy in message and ('prepare_data' in message) == ('prepare_data' in remedy)


FILES_THAT_ARE_NO_CONFIG = {
    'empty': (b'', 'found nothing'),
    'a list': (b'- 1\n- 2\n', 'found a list'),
    'a text': (b'hello', 'found a str'),
    'binary': (bytes(range(256)), 'binary'),
    'a checkpoint': (b'PK\x03\x04' + b'\0' * 100, 'binary'),
    'huge': (b'#' * 2 ** 20, 'very large'),
    'unclosed': (b'a: [1, 2\nb: 3\n', 'line 2'),
    'a tab': (b'a:\n\tb: 1\n', 'line 2, column 1'),
    'twice': (b'seed: 1\nepoch_max: 3\nseed: 2\n', "line 3, column 1 (the key 'seed' is given twice)"),
    'twice inside': (b'optimizer:\n  name: adam\n  name: sgd\n', "'name' is given twice"),
    'python objects': (b'a: !!python/object/apply:os.system ["true"]\n', 'python/object'),
    'number as a key': (b'1: 2\n', 'the key 1'),
    'word as a key': (b'on: 2\n', 'the key True'),
    'list as a key': (b'[1]: 2\n', 'unhashable'),
    'bad integer': (b'a: !!int x\n', 'not valid YAML'),
    'bad date': (b'a: !!timestamp x\n', 'not valid YAML'),
    'long integer': (b'seed: 0x' + b'f' * 5000, 'an integer of 20000 bits'),
    'very long integer': (b'seed: ' + b'9' * 9999, 'not valid YAML'),
    'itself': (b'train_dataset: &a\n  dataset: *a\n', 'endless aliases or nesting'),
    'a hundred thousand lists': (b'[' * 100000, 'not valid YAML'),
    'a billion laughs': (b'a: &a0 [x, x]\n' + b''.join(b'a%d: &a%d [%s]\n' % (i, i, b', '.join([b'*a%d' % (i - 1)] * 9))
                                                     for i in range(1, 30)), 'endless aliases or nesting'),
    'laughs in a list': (b'- &a0 [x, x]\n' + b''.join(b'- &a%d [%s]\n' % (i, b', '.join([b'*a%d' % (i - 1)] * 9))
                                                    for i in range(1, 30)), 'found a list'),
    'line separator': ('"a\\u2028b\\nc": 1\n'.encode(), 'unknown name'),
    'lone surrogate': (b'"\\uD800": "\\uDFFF"\n', 'unknown name'),
    'long key': (b'? ' + b'k' * 5000 + b'\n: 1\n', 'at most 100 characters'),
    'a set': (b'a: !!set {x, y}\n', 'a set'),
    'two documents': (b'a: 1\n---\nb: 2\n', 'not valid YAML'),
    'nested merges': (b'a0: &a0 {k: 1}\n' + b''.join(b'a%d: &a%d\n  k%d: 1\n  <<: [%s]\n' % (
        i, i, i, b', '.join([b'*a%d' % (i - 1)] * 9)) for i in range(1, 30)),
                      ('merges of more than 20000 values', 'unknown name')),  # PyYAML 6.0.4 keeps such merges small
    'one long merge': (b'a: &a {' + b', '.join(b'k%d: 1' % i for i in range(2000)) + b'}\nb:\n  <<: [' +
                       b','.join([b'*a'] * 9999) + b']\n', 'merges of more than 20000 values'),
}


@pytest.mark.parametrize('case', FILES_THAT_ARE_NO_CONFIG)
def test_a_file_that_is_no_config(folder, case):
    content, words = FILES_THAT_ARE_NO_CONFIG[case]
    path = write(folder, content)
    _, message = load_or_message(path)
    assert message is not None and message.startswith(path), message
    assert any(text in message for text in ([words] if isinstance(words, str) else words)), message


def test_a_path_that_cannot_be_read(folder):
    for path in (folder / 'missing.yaml', folder, 'a\0b', 'new\nline.yaml'):
        assert 'cannot be read' in load_or_message(str(path))[1]
