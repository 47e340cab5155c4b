"""Kill, starve, damage and misconfigure training runs, thousands of times, and check that nothing comes of it:

    python scripts/torture.py --minutes 60

The cases are those of tests/training/test_resume.py and tests/engine/test_checkpoint.py with other seeds (see docs/reliability.md).
A case that breaks a promise is printed with its seed, its folder is kept, and the exit code is 1.
"""
import os
import shutil
import sys
import tempfile
import time
import traceback

import _path

from engine.checkpoint import parse_checkpoint, read_file
from engine.runtime import Parser, run_program
from tests import survival


def kills(seed, folder):
    """Ten SIGKILLs in a row at random moments of a random run, resumed to its end."""
    return survival.kill_case(seed, folder)


def signals(seed, folder):
    """SIGTERM and SIGINT at random moments, resumed."""
    return survival.kill_case(seed, folder, kills=4, numbers=survival.POLITE)


def disk(seed, folder):
    """A disk that is full at a random moment."""
    return survival.disk_case(seed, folder)


def configs(seed, folder):
    """A config with random mistakes through the program."""
    return survival.config_case(seed, folder)


def checkpoints(seed, folder):
    """500 random damages to a checkpoint with its training state."""
    config = survival.tiny_config(survival.make_images(os.path.join(folder, 'images')), epoch_max=1, ema=0.9)
    survival.write_config(os.path.join(folder, 'c.yaml'), config)
    code, text = survival.run(folder, '--config', 'c.yaml', '--gpu', 'cpu', '--workers', '0')
    assert code == 0, text
    data = read_file(os.path.join(folder, 'save/_c/epoch-last.pth'))
    wanted = parse_checkpoint(data, 'whole')
    return [survival.damage_case(500 * seed + i, data, wanted) for i in range(500)].count('refused')


CASES = [kills, signals, disk, configs, checkpoints]
MANY = 10  # broken promises after which it ends


def main():
    parser = Parser(__doc__)
    parser.add_argument('--minutes', type=float, default=60, help='how long to go on')
    parser.add_argument('--seed', type=int, default=1000, help='of the first case')
    parser.add_argument('--only', choices=[case.__name__ for case in CASES], help='one kind of case')
    args = parser.parse_args()
    cases = [case for case in CASES if args.only in (None, case.__name__)]
    made, broken = dict.fromkeys([case.__name__ for case in cases], 0), []
    scratch, end, seed = tempfile.mkdtemp(prefix='torture-'), time.monotonic() + 60 * args.minutes, args.seed
    while time.monotonic() < end and len(broken) < MANY:
        for case in cases:
            folder = os.path.join(scratch, f'{case.__name__}-{seed}')
            os.makedirs(folder)
            made[case.__name__] += 1
            try:
                case(seed, folder)
            except AssertionError:
                broken.append(folder)
                print(f'{case.__name__}, seed {seed}, kept in {folder}:\n{traceback.format_exc()}', flush=True)
            else:
                shutil.rmtree(folder)
        seed += 1
        if (seed - args.seed) % 10 == 0:
            print(f'{made}, broken: {len(broken)}', flush=True)
    print(f'{made}, broken: {broken or 0}')
    if not broken:
        shutil.rmtree(scratch)
    sys.exit(1 if broken else 0)


if __name__ == '__main__':
    run_program(main)
