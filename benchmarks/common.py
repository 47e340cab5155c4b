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
from engine.evaluation.runs import write_json
from engine.rendering.api import to_tensor
from engine.runtime import code_version
from utils import replace_between

RESULTS = os.path.join(ROOT, 'benchmarks', 'results')


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
    for name in list_images(folder)[:first]:
        image = read_image(os.path.join(folder, name))
        small, (rows, columns) = lr_size(image.shape[:2], scale)
        image = image[:rows, :columns]
        yield to_tensor(image), [to_tensor(imresize(image, small, kernel)) for kernel in kernels]


def machine(device=torch.device('cpu')):
    """What the numbers depend on. A CPU's name includes its widest vectors, since one product name covers several."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else \
        f'{cpu_name()} ({torch.backends.cpu.get_cpu_capability()})'
    return {'device': device.type, 'name': name, 'cpus': os.cpu_count(), 'threads': torch.get_num_threads(),
            'load': round(os.getloadavg()[0], 2),
            'versions': {'torch': torch.__version__, 'cuda': torch.version.cuda, 'python': platform.python_version(),
                         'code': code_version(), 'system': platform.system()}}


def cpu_name():
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo') as f:
            if found := re.search(r'^model name\s*:\s*(.*)$', f.read(), re.M):
                return found.group(1)
    return platform.processor() or platform.machine()


def result_path(name):
    return os.path.join(ROOT, 'benchmarks', 'results', f'{name}.json')


def read(path):
    """The content of a results file; {} when there is none."""
    if not os.path.exists(path):
        return {}
    with open(path) as f:
        return json.load(f)


def write(path, results):
    write_json(path, rounded(results))


def rounded(results):
    """Floats rounded to six significant digits, throughout dicts and lists."""
    return json.loads(json.dumps(results), parse_float=lambda text: float(f'{float(text):.6g}'))


def publish(name, page, table, **results):
    """Write benchmarks/results/<name>.json, and its table into a page of docs/, between markers with that name."""
    write(result_path(name), {'machine': machine(), **results})
    replace_between(os.path.join(ROOT, 'docs', page), table, name)
    print(table)
