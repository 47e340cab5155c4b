"""CPU seconds per sample of the wrapper `sr-implicit-degraded` against `sr-implicit-downsampled`.

    python benchmarks/degraded.py [--images load/photos/train]

Measured by turns, one thread, with the wrapper of configs/train-real-photos.yaml; the median over the rounds. Each step
is measured alone, in one round of degradation. Writes benchmarks/results/degraded.json and the table in docs/photos.md.
"""
import json
import os
import statistics
import time

import _path

import numpy as np
import torch

import datasets
from benchmarks.run import machine
from engine import ROOT
from engine.config import load_config
from engine.evaluation.tables import markdown
from engine.runtime import Parser, run_program
from utils import atomic_write, replace_between

MARKERS = '<!-- benchmarks/degraded.py writes from here -->', '<!-- to here -->'
SAMPLES, ROUNDS, IMAGES = 500, 7, 60
CONFIG = os.path.join(ROOT, 'configs', 'train-real-photos.yaml')
COMMON = 'inp_size', 'scale_max', 'augment', 'sample_q'
NONE = {'blur_prob': 0, 'noise_prob': 0, 'compression_prob': 0, 'second_prob': 0}
CASES = {'as in the config': {}, 'random kernel only': NONE,
         **{f'{step} only': {k: v for k, v in NONE.items() if k != f'{step}_prob'}
            for step in ('blur', 'noise', 'compression')}}


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('--images', default='load/photos/train', help='a folder of images')
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    base, times = 'no degradation', []
    images = datasets.make({'name': 'image-folder',
                            'args': {'root_path': args.images, 'first_k': IMAGES, 'cache': 'in_memory'}})
    spec = load_config(CONFIG, kind='train', check_paths=False)['train_dataset']['wrapper']
    common = {key: spec['args'][key] for key in COMMON}
    specs = {base: {'name': 'sr-implicit-downsampled', 'args': common},
             "the wrapper's defaults": {**spec, 'args': common},
             **{case: {**spec, 'args': {**spec['args'], **more}} for case, more in CASES.items()}}
    wrappers = {case: datasets.make(spec, args={'dataset': images}) for case, spec in specs.items()}
    for round_ in range(ROUNDS + 1):  # the first warms up
        times.append({case: seconds(wrapper, len(images), round_) for case, wrapper in wrappers.items()})
    rows = []
    for case in specs:
        rows.append({'case': case, 'ms': round(1e3 * statistics.median(t[case] for t in times[1:]), 3),
                     'ratio': round(statistics.median(t[case] / t[base] for t in times[1:]), 2)})
    with atomic_write(os.path.join(ROOT, 'benchmarks', 'results', 'degraded.json'), 'w') as f:
        json.dump({'command': 'python benchmarks/degraded.py', 'machine': machine(torch.device('cpu')),
                   'load': round(os.getloadavg()[0], 1), 'rows': rows}, f, indent=1)
    text = markdown(['inputs', 'CPU ms per sample', 'against no degradation'],
                    [[row['case'], f'{row["ms"]:.2f}', f'{row["ratio"]:.2f}x'] for row in rows])
    replace_between(os.path.join(ROOT, 'docs', 'photos.md'), text, MARKERS)
    print(text)


def seconds(wrapper, images, seed):
    """CPU seconds of a sample."""
    rng, start = np.random.default_rng(seed), time.process_time()
    for i in range(SAMPLES):
        wrapper.sample(i % images, rng)
    return (time.process_time() - start) / SAMPLES


if __name__ == '__main__':
    run_program(main)
