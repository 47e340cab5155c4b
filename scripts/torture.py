"""Repeat the random tests with new seeds: training runs that are interrupted, starved, damaged and misconfigured,
damaged images, and renders of random parts:

    python scripts/torture.py --minutes 60
    python scripts/torture.py --minutes 10 --only workers

Most of them are those of docs/reliability.md that take a seed. When one fails, its seed is in the name of the test and
its folder is kept; the exit code then is 1. Needs pytest.
"""
import os
import subprocess
import sys
import time

from _path import ROOT

from engine.arguments import within
from engine.runtime import Parser, run_program


RESUME, CHECKPOINT = 'tests/training/test_resume.py::', 'tests/engine/test_checkpoint.py::'
FILES, DATA = 'tests/rendering/test_reading.py::', 'tests/datasets/test_image_folder.py::'
CASES = {
    'kills': [RESUME + 'test_kills_anywhere_change_nothing'],
    'signals': [RESUME + 'test_signals_anywhere_change_nothing'],
    'workers': [RESUME + 'test_data_workers_killed_anywhere_change_nothing'],
    'disk': [RESUME + 'test_a_full_disk_is_one_line_and_the_last_checkpoint_stays'],
    'configs': [RESUME + 'test_wrong_configs_run_or_say_in_one_line_why_not'],
    'checkpoints': [CHECKPOINT + 'test_damaged_checkpoints_are_refused_or_read_right'],
    'images': [DATA + 'test_damaged_files_are_refused_or_read_right', FILES + 'test_damaged_files_are_one_line',
               FILES + 'test_damaged_animations_cost_no_more_than_their_first_frame',
               FILES + 'test_random_exif_never_stops_an_image'],
    'regions': ['tests/rendering/test_render.py::test_regions_break_ties_as_the_whole_does'],
}


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('--minutes', type=within(1), default=60, help='stop after this time')
    parser.add_argument('--seed', type=int, default=1000, help='the first seed')
    parser.add_argument('--seeds', type=within(1), default=5, help='seeds in one call of pytest')
    parser.add_argument('--only', choices=CASES, help='one kind of case')
    args = parser.parse_args(argv)
    tests = CASES[args.only] if args.only else [test for tests in CASES.values() for test in tests]
    end, seed = time.monotonic() + 60 * args.minutes, args.seed
    while time.monotonic() < end:
        done = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-o', 'tmp_path_retention_policy=failed', *tests],
                              cwd=ROOT, env={**os.environ, 'LIIF_SEEDS': f'{seed}-{seed + args.seeds - 1}'})
        if done.returncode:
            sys.exit(1)
        seed += args.seeds
        print(f'seeds {args.seed} to {seed - 1} passed', flush=True)


if __name__ == '__main__':
    run_program(main)
