"""Write the sample photographs:  python scripts/sample_photos.py [--root load]

Seven photographs that come inside scikit-image's package, so nothing is downloaded, copied byte for byte into
<root>/sample/train and <root>/sample/valid (two that training does not see). Their licences allow any use;
<root>/sample/LICENSES.txt names each. What is there already is kept.
"""
import importlib.util
import os

import _path

from engine.runtime import Parser, run_program
from utils import UserError, write_file

PHOTOS = {  # what is written: the file in scikit-image, what it shows and under which licence (scikit-image's words)
    'train/astronaut.png': ('astronaut.png', 'Eileen Collins, astronaut, by NASA: no known copyright restrictions, '
                            'released into the public domain'),
    'train/rocket.jpg': ('rocket.jpg', 'launch of a Falcon 9, by SpaceX: released into the public domain'),
    'train/retina.jpg': ('retina.jpg', 'human retina, by Mikael Häggström: CC0 1.0'),
    'train/hubble_deep_field.jpg': ('hubble_deep_field.jpg', 'Hubble extreme deep field, by NASA: free use'),
    'train/immunohistochemistry.png': ('ihc.png', 'stained colonic glands, acquired at the Center for Microscopy and '
                                       'Molecular Imaging (CMMI): no known copyright restrictions'),
    'valid/chelsea.png': ('chelsea.png', 'Chelsea the cat, by Stefan van der Walt: CC0 1.0'),
    'valid/coffee.png': ('coffee.png', 'cup of coffee, by Rachel Michetti, courtesy of Pikolo Espresso Bar: CC0 1.0'),
}


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('--root', default='load', help='where data sets live; default: load')
    args = parser.parse_args(argv)
    folder = os.path.join(args.root, 'sample')
    try:
        written = write_sample(folder)
    except OSError as error:
        raise UserError(f'{folder} cannot be written ({error.strerror}): choose another place with --root') from None
    print(f'{folder}: {len(PHOTOS)} photographs, {written} of them written now; licences in LICENSES.txt')


def write_sample(folder):
    """Complete `folder`/{train,valid,LICENSES.txt}; returns how many photographs were not there yet.

    Raises UserError when scikit-image is not installed, or lacks a photograph.
    """
    lacking = [name for name in PHOTOS if not os.path.exists(os.path.join(folder, name))]
    for name in lacking:
        with open(source(PHOTOS[name][0]), 'rb') as photo:
            write_file(os.path.join(folder, name), photo.read())
    if lacking or not os.path.exists(os.path.join(folder, 'LICENSES.txt')):
        lines = [f'{name}: {text}.\n' for name, (_, text) in PHOTOS.items()]
        write_file(os.path.join(folder, 'LICENSES.txt'), ''.join([
            'Photographs from scikit-image (skimage.data), with what its documentation says of each.\n\n', *lines]))
    return len(lacking)


def source(name):
    """Path of a photograph inside the installed package, found without importing it."""
    spec = importlib.util.find_spec('skimage')
    if spec is None:
        raise UserError('the sample photographs are in scikit-image, which is not installed: '
                        'pip install -r requirements-photos.txt')
    path = os.path.join(os.path.dirname(spec.origin), 'data', name)
    if not os.path.isfile(path):
        raise UserError(f'the installed scikit-image has no {path}: install the one that requirements-photos.txt names')
    return path


if __name__ == '__main__':
    run_program(main)
