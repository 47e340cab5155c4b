"""Measure models:

    python test.py --config configs/test/test-set5-2.yaml --model M.pth [--gpu 0]     # one data set at one scale
    python test.py --suite benchmark --model M.pth bicubic                            # all of the paper's Table 2
    python test.py --suite div2k --scales 1.5 2.7 2x3.5 --model RDN-LIIF=M.pth        # any scale; a label for the model

--config prints a last line `result: PSNR` in dB. --suite prints tables with the published numbers and writes them to
the output folder, where results are kept, so that a second start measures only what is missing (docs/evaluation.md).
"""
import os
import sys

from tqdm import tqdm

from engine.arguments import PRECISIONS, within
from engine.config import load_config
from engine.evaluation import tables
from engine.evaluation.evaluate import batched_predict, eval_psnr  # noqa: F401 (importable from here)
from engine.evaluation.metrics import make_lpips
from engine.evaluation.runs import METRICS, Options, check_precision, mean_of, measure_case, open_model, run_suite
from engine.evaluation.suite import locate, open_data, read_suite
from engine.rendering.renderer import DECODES
from engine.runtime import Parser, run_program, select_device
from utils import UserError, counted


def main(argv=None):
    parser = Parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--config', help='a test config, such as configs/test/test-set5-2.yaml')
    what.add_argument('--suite', help='a name in configs/suites, such as benchmark, div2k or all, or the path of a '
                      '.yaml file')
    parser.add_argument('--model', nargs='+', required=True, metavar='MODEL',
                        help='a checkpoint, a name in weights/, bicubic, bilinear or nearest; LABEL=MODEL names its '
                        'row; --suite takes several')
    parser.add_argument('--gpu', help="a GPU's number, or cpu; default: the first GPU, else the CPU")
    parser.add_argument('--data', metavar='ROOT', help='the folder of the data sets; default: ./load')
    parser.add_argument('--precision', choices=PRECISIONS, help="instead of the config's")
    parser.add_argument('--self-ensemble', action='store_true', help='average over the eight flips and transposes')
    parser.add_argument('--tile', type=within(1), metavar='N',
                        help='encode in tiles of NxN input pixels, with less memory')
    parser.add_argument('--cell-clip', nargs='?', type=within(1, kind=float), const=4.0, metavar='S',
                        help='beyond scale S (4, the largest in training) decode with the cell of S, as LTE does')
    parser.add_argument('--decode', choices=DECODES, default='exact',
                        help='lattice: an approximation, much faster at large scales (docs/evaluation.md); auto: where '
                        'it needs at most 60%% of the work')
    parser.add_argument('--ssim', action='store_true', help='also measure SSIM')
    parser.add_argument('--lpips', action='store_true', help='also measure LPIPS (package lpips and its weights)')
    parser.add_argument('--ema', action='store_true', help="use the checkpoints' averaged weights")
    parser.add_argument('--workers', type=within(0), help='processes that read images; default: chosen automatically')
    one = parser.add_argument_group('with --config')
    one.add_argument('--per-image', action='store_true', help='a line for each image')
    one.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                     help='override keys of the config')
    many = parser.add_argument_group('with --suite')
    many.add_argument('--scales', nargs='+', metavar='S', help='only these: 2, 2.7, or 2x3.5 (vertical x horizontal)')
    many.add_argument('--output', metavar='FOLDER', help='for tables and results; default: out/results')
    many.add_argument('--fresh', action='store_true', help='also measure again what the output folder holds')
    args = parser.parse_args(argv)
    others = {'--per-image': args.per_image, '--set': args.set} if args.suite else \
        {'--scales': args.scales, '--output': args.output, '--fresh': args.fresh}
    for flag, given in others.items():
        if given:
            parser.error(f'{flag} goes with {"--config" if args.suite else "--suite"}')

    device = select_device(args.gpu)
    check_precision(args.precision, device)
    options = Options(args.precision, args.self_ensemble, args.tile, args.ssim,
                      make_lpips(device) if args.lpips else None, args.ema, args.cell_clip, args.decode)
    (test_suite if args.suite else test_config)(args, device, options)


def test_config(args, device, options):
    if len(args.model) > 1:
        raise UserError(f'--config measures one model, found {len(args.model)}: use --suite, or one --model')
    config = load_config(args.config, args.set, kind='test', check_paths=args.data is None)
    dataset, missing = locate(config['test_dataset']['dataset'], args.data)
    if missing:
        raise UserError(f'{args.config}: {missing} does not exist: correct --data')
    candidate = open_model(args.model[0], device, args.ema)
    data, rows = open_data(config, dataset), []
    for row in measure_case(candidate, config, data, device, options, args.workers):
        rows.append(row)
        if args.per_image:
            tqdm.write(f'{row["image"]}: {row["psnr"]:.4f}')
    for metric in METRICS[1:]:
        if metric in rows[0]:
            print(f'{metric}: {mean_of(rows, metric):.4f}')
    print(f'result: {mean_of(rows):.4f}')


def test_suite(args, device, options):
    output = args.output or os.path.join('out', 'results')
    if os.path.isfile(output):
        raise UserError(f'--output: found the file {output}, expected a folder: name another')
    cases = read_suite(args.suite, args.scales, args.data)
    outcome = run_suite(cases, args.model, device, output, options, args.workers, args.fresh)
    name = os.path.splitext(os.path.basename(args.suite))[0]
    if outcome.runs:
        print(f'\n{tables.write_results(output, name, outcome)}\n\n{os.path.join(output, name)}.md, .csv, .json')
    elif not outcome.problems:
        lines = tables.not_measured(outcome)
        lines[2:] = [f'and {len(lines) - 2} more'] * (len(lines) > 2)
        raise UserError(f'nothing was measured: {"; ".join(lines)}; put your images there, or get the data with '
                        f'python scripts/prepare_data.py (its --help names the sets), or name its folder with --data')
    problems = tables.problem_lines(outcome.problems)
    for problem in problems:
        print(f'failed: {problem}', file=sys.stderr)
    if problems:
        raise UserError(f'{counted(len(problems), "problem")}, as listed above; '
                        f'{counted(len(outcome.runs), "measurement")} complete')


if __name__ == '__main__':
    run_program(main)
