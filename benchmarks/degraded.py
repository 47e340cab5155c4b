"""CPU seconds per sample of the wrapper `sr-implicit-degraded` against `sr-implicit-downsampled`.

    python benchmarks/degraded.py

Measured on load/photos/train by turns, one thread, with the wrapper of configs/train-real-photos.yaml; the median over
the rounds. Each step is measured alone, in one round of degradation. Writes benchmarks/results/degraded.json and the
table in docs/photos.md.
"""
import os
import statistics

import _path

import datasets
from benchmarks.common import publish, ratio
from benchmarks.data import cpu_seconds
from engine import ROOT
from engine.config import load_config
from engine.evaluation.tables import markdown
from engine.runtime import Parser, run_program

SAMPLES, ROUNDS, IMAGES = 500, 7, 60
CONFIG = os.path.join(ROOT, 'configs', 'train-real-photos.yaml')
COMMON = 'inp_size', 'scale_max', 'augment', 'sample_q'
BASE = 'no degradation'
NONE = {'blur_prob': 0, 'noise_prob': 0, 'compression_prob': 0, 'second_prob': 0}
CASES = {'as in the config': {}, 'random kernel only': NONE,
         **{f'{step} only': {k: v for k, v in NONE.items() if k != f'{step}_prob'}
            for step in ('blur', 'noise', 'compression')}}


def main(argv=None):
    Parser(__doc__).parse_args(argv)
    images = datasets.make({'name': 'image-folder', 'args': {
        'root_path': os.path.join('load', 'photos', 'train'), 'first_k': IMAGES, 'cache': 'in_memory'}})
    spec = load_config(CONFIG, check_paths=False)['train_dataset']['wrapper']
    common = {key: spec['args'][key] for key in COMMON}
    specs = {BASE: {'name': 'sr-implicit-downsampled', 'args': common},
             "the wrapper's defaults": {**spec, 'args': common},
             **{case: {**spec, 'args': {**spec['args'], **more}} for case, more in CASES.items()}}
    paths = {case: datasets.make(spec, args={'dataset': images}).sample for case, spec in specs.items()}
    times = cpu_seconds(paths, len(images), SAMPLES, ROUNDS)
    rows = [{'case': case, 'ms': 1e3 * statistics.median(seconds), 'ratio': ratio(seconds, times[BASE])}
            for case, seconds in times.items()]
    publish('degraded', 'photos.md', table(rows), rows=rows)


def table(rows):
    return markdown(['inputs', 'CPU ms per sample', 'against no degradation'],
                    [[row['case'], f'{row["ms"]:.2f}', f'{row["ratio"]:.2f}x'] for row in rows])


if __name__ == '__main__':
    run_program(main)
