"""What the programs of this folder share: timing by turns, images, the description of the machine, results files."""
import json
import os
import platform
import re
import statistics
import time

import torch

from datasets.images import read_image
from datasets.imresize import imresize, list_images, lr_size
from engine import ROOT
from engine.runtime import code_version
from utils import UserError, atomic_write, replace_between

RESULTS = os.path.join(ROOT, 'benchmarks', 'results')
CPU = torch.device('cpu')


def by_turns(functions, rounds, clock=time.process_time):
    """Call functions by turns, so that drifts of the machine meet all of them alike: {name: seconds of each round}.
    A first round, which is not counted, warms up."""
    times = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = clock()
            function()
            times[name].append(clock() - start)
    return {name: seconds[1:] for name, seconds in times.items()}


def median(values):
    """None where a value was not measured."""
    values = list(values)
    return None if None in values else statistics.median(values)


def ratio(slow, fast):
    """The median of the rounds' ratios."""
    return median(s / f for s, f in zip(slow, fast))


def image_pairs(folder, scale, kernels=('matlab',), first=None):
    """Yield (an image, cropped as `scale` requires, its low-resolution images by each kernel), all (3, H, W) in [0, 1].
    first: the number of images, None for all. Raises UserError for a folder without images."""
    files = list_images(folder)[:first] if os.path.isdir(folder) else []
    if not files:
        raise UserError(f'{folder}: found no images, expected those of a benchmark set: '
                        f'python scripts/prepare_data.py benchmark, or name another folder')
    for file in files:
        image = read_image(os.path.join(folder, file))
        small, (rows, columns) = lr_size(image.shape[:2], scale)
        image = image[:rows, :columns]
        yield to_float(image), [to_float(imresize(image, small, kernel)) for kernel in kernels]


def to_float(image):
    return torch.from_numpy(image.transpose(2, 0, 1).copy()) / 255


def machine(device=CPU):
    """What the numbers depend on."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu_name()
    return {'device': device.type, 'name': name, 'cpus': os.cpu_count(), 'threads': torch.get_num_threads(),
            'load': round(os.getloadavg()[0], 2),
            'versions': {'torch': torch.__version__, 'cuda': torch.version.cuda, 'python': platform.python_version(),
                         'code': code_version(), 'system': platform.system()}}


def cpu_name():
    try:
        with open('/proc/cpuinfo') as f:
            found = re.search(r'^model name\s*:\s*(.*)$', f.read(), re.M)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def read(name):
    """The content of a results file; {} when there is none."""
    path = os.path.join(RESULTS, f'{name}.json')
    if not os.path.exists(path):
        return {}
    with open(path) as f:
        return json.load(f)


def write_json(path, value):
    with atomic_write(path, 'w') as f:
        f.write(json.dumps(rounded(value), indent=1) + '\n')


def rounded(value, digits=6):
    """Numbers rounded to significant digits, throughout dicts and lists."""
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v, digits) for v in value]
    return float(f'{value:.{digits}g}') if isinstance(value, float) else value


def publish(name, page, table, **results):
    """Write benchmarks/results/<name>.json, and its table into a page of docs/, between markers with that name."""
    write_json(os.path.join(RESULTS, f'{name}.json'), {'machine': machine(), **results})
    replace_between(os.path.join(ROOT, 'docs', page), table, markers(name))
    print(table)


def markers(name):
    return f'<!-- {name}:start -->', f'<!-- {name}:end -->'
