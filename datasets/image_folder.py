"""Folders of images, alone (`image-folder`) or in pairs (`paired-image-folders`)."""
import json
import os
import re
from typing import Annotated

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from utils import Integer, OneOf, OrNull, Path, Text, UserError

from .datasets import register
from .images import MAX_PIXELS, BadImage, image_names, image_size, in_threads, read_image


SUFFIX = re.compile(r'([-_]?(x\d+(\.\d+)?|lr\d*|hr|srf[-_]?\d+))+$', re.IGNORECASE)  # 0801x2, img_001_SRF_2_LR


# Arguments of both.
SplitFile = Annotated[str, Path('file'), 'JSON file {key: [file names]}; null: all images']
SplitKey = Annotated[str, Text(), 'which list of split_file']
FirstK = Annotated[int, Integer(1), 'only the first images, in order of their names']
Repeat = Annotated[int, Integer(1, 10 ** 7), 'how often an epoch sees each image']
Cache = Annotated[str, OneOf('none', 'bin', 'in_memory'), 'decode at every use, or once: into a file, into memory']
MaxPixels = Annotated[int, OrNull(Integer(1)), 'refuse larger images; null: no limit']


@register('image-folder', 'dataset')
class ImageFolder(Dataset):
    """The image files of a folder in the order of their names; hidden files and other kinds are left out.

    cache: 'none' decodes a file each time; 'in_memory' decodes all once and keeps the 8-bit pixels; 'bin' keeps them
    in a memory-mapped file next to the folder, which processes and later runs share. max_pixels is against files made
    to exhaust the memory. Raises UserError for a folder, a split or an argument that cannot be used.
    """

    def __init__(self, root_path: Annotated[str, Path('folder'), 'folder of images'], split_file: SplitFile = None,
                 split_key: SplitKey = None, first_k: FirstK = None, repeat: Repeat = 1, cache: Cache = 'none',
                 max_pixels: MaxPixels = MAX_PIXELS):
        if not os.path.isdir(root_path):
            raise UserError(f'image folder {str(root_path)!r} does not exist (looked for from {os.getcwd()}): correct '
                            f'root_path, or download the data set there')
        self.root, self.max_pixels, self.repeat = os.fspath(root_path), max_pixels, repeat
        self.names = image_names(self.root) if split_file is None else _read_split(self.root, split_file, split_key)
        self.names = self.names[:first_k]
        self.fill_cache(cache)

    def __len__(self):
        return len(self.names) * self.repeat

    def __getitem__(self, i):
        """float32 (3, H, W) in [0, 1]."""
        return torch.from_numpy(self.image(i).transpose(2, 0, 1).astype(np.float32, order='C')).div_(255)

    def image(self, i):
        """uint8 (H, W, 3), RGB, not to be written to. Raises BadImage."""
        image = None if self.cached is None else self.cached[self._file(i)]
        return read_image(self.path(i), self.max_pixels) if image is None else image

    def size(self, i):
        """(H, W), from the file's header or the cache. Raises BadImage."""
        if isinstance(self.cached, list):
            return self.image(i).shape[:2]
        size = None if self.cached is None else self.cached.size(self._file(i))
        return image_size(self.path(i), self.max_pixels) if size is None else size

    def path(self, i):
        return os.path.join(self.root, self.names[self._file(i)])

    @property
    def distinct(self):
        """How many different images there are; they are the first items."""
        return len(self.names)

    def fill_cache(self, cache):
        """Make the cache 'none', 'in_memory' or 'bin'. Raises UserError for a cache file that cannot be written."""
        self.cached = None
        if cache == 'bin':
            from .pack import open_pack  # needs file locks, which not every system has
            self.cached = open_pack(self.root, self.names, self.max_pixels)
        elif cache == 'in_memory':
            sources = [os.path.join(self.root, name) for name in self.names]
            self.cached = list(tqdm(in_threads(self._read_or_none, sources), desc=f'reading {self.root}',
                                    total=len(sources), leave=False, disable=None))

    def _file(self, i):
        if not -len(self) <= i < len(self):
            raise IndexError(f'image {i} of {len(self)}')
        return i % len(self.names)

    def _read_or_none(self, source):
        try:
            image = read_image(source, self.max_pixels)
        except BadImage:  # reported when it is asked for: whether it stops the run is not decided here
            return None
        image.flags.writeable = False
        return image


@register('paired-image-folders', 'dataset')
class PairedImageFolders(Dataset):
    """Two folders whose k-th files belong together: root_path_1 (LR) and root_path_2 (HR). The other arguments are
    those of `image-folder`, for both. Items are (LR, HR) pairs.

    Raises UserError when the folders differ in length or a pair's names do not match: the stems must be equal once
    endings such as x2, _LR or _HR are dropped (or the LR stem goes on after a sign: 0801_bicubic for 0801).
    """

    def __init__(self, root_path_1: Annotated[str, Path('folder'), 'folder of low-resolution images'],
                 root_path_2: Annotated[str, Path('folder'), 'folder of high-resolution images, same order'],
                 split_file: SplitFile = None, split_key: SplitKey = None, first_k: FirstK = None, repeat: Repeat = 1,
                 cache: Cache = 'none', max_pixels: MaxPixels = MAX_PIXELS):
        options = dict(split_file=split_file, split_key=split_key, first_k=first_k, repeat=repeat,
                       max_pixels=max_pixels)
        self.lr, self.hr = [ImageFolder(root, **options) for root in (root_path_1, root_path_2)]
        _match(self.lr, self.hr)
        self.lr.fill_cache(cache)
        self.hr.fill_cache(cache)

    def __len__(self):
        return len(self.hr)

    def __getitem__(self, i):
        return self.lr[i], self.hr[i]

    def image(self, i):
        return self.lr.image(i), self.hr.image(i)

    def size(self, i):
        return self.lr.size(i), self.hr.size(i)

    def path(self, i):
        return self.lr.path(i), self.hr.path(i)

    @property
    def distinct(self):
        return self.hr.distinct


def _read_split(root, split_file, split_key):
    try:
        with open(split_file, encoding='utf-8') as f:
            splits = json.load(f)
        names = splits[split_key]
    except OSError as error:
        raise UserError(f'split_file {split_file} cannot be read: {error.strerror}') from None
    except (ValueError, RecursionError) as error:
        raise UserError(f'split_file {split_file} is not JSON: {error}') from None
    except (KeyError, TypeError, IndexError):
        known = ', '.join(splits) if isinstance(splits, dict) else f'a {type(splits).__name__}'
        raise UserError(f'split_file {split_file} has no split_key {split_key!r}: it holds {known}') from None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f'split_file {split_file}, {split_key!r}: expected a list of file names, found '
                        f'{repr(names)[:60]}')
    with os.scandir(root) as entries:
        there = {entry.name for entry in entries}
    lacking = [name for name in names if name not in there and not os.path.isfile(os.path.join(root, name))]
    if lacking:
        raise UserError(f'{len(lacking)} of the {len(names)} files that split_file {split_file} lists for '
                        f'{split_key!r} are not in {root}, {lacking[0]!r} first: complete the folder or correct the '
                        f'split')
    return list(names)


def _match(lr, hr):
    if len(lr.names) != len(hr.names):
        raise UserError(f'{lr.root} holds {len(lr.names)} images and {hr.root} {len(hr.names)}: pairs need as many; '
                        f'complete one or remove what has no partner')
    for lr_name, hr_name in zip(lr.names, hr.names):
        whole, stem = (SUFFIX.sub('', os.path.splitext(os.path.basename(name))[0]) for name in (lr_name, hr_name))
        if whole != stem and not (whole.startswith(stem) and not whole[len(stem)].isalnum()):
            raise UserError(f'{lr_name} of {lr.root} does not belong to {hr_name} of {hr.root}: pairs are matched in '
                            f'the order of their names; remove what has no partner or rename')
