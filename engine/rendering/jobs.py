"""Which files a program makes of which: pictures and videos, named one by one, by folder or by pattern."""
import glob
import os

from datasets.images import FORMATS
from engine.rendering import picture as pictures
from engine.rendering import video as videos
from utils import UserError


def find_jobs(inputs, output):
    """([(source, target)], whether they are a batch rather than one named file). UserError for none, and for targets
    that clash."""
    first = inputs[0]
    if len(inputs) == 1 and not os.path.isdir(first) and (os.path.exists(first) or not glob.has_magic(first)):
        if os.path.isdir(output) or output.endswith(('/', os.sep)):
            output = os.path.join(output, mirrored(os.path.basename(first)))
        jobs, batch = [(first, output)], False
    else:
        jobs = [(source, os.path.join(output, mirrored(name))) for source, name in find_sources(inputs, output)]
        batch = True
        if not os.path.isdir(output) and (os.path.exists(output) or is_known(output)):
            what = 'a file' if os.path.exists(output) else "a picture's or video's name"
            raise UserError(f'output {output}: found {what}, wanted a folder for several inputs')
    sources = {}
    for source, target in jobs:
        other = sources.setdefault(os.path.realpath(target), source)
        if other != source:
            raise UserError(f'{other} and {source} would both be written to {target}: rename one, or run them apart')
        if os.path.realpath(source) == os.path.realpath(target):
            raise UserError(f'{source} would be overwritten: name another output')
    return jobs, batch


def find_sources(inputs, output):
    """[(path, name below the output folder)] of several files, folders and patterns."""
    found = []
    for item in inputs:
        if os.path.isdir(item):
            for folder, folders, names in os.walk(item):
                folders[:] = sorted(f for f in folders if not f.startswith('.') and
                                    os.path.realpath(os.path.join(folder, f)) != os.path.realpath(output))
                paths = [os.path.join(folder, name) for name in sorted(names)]
                found += [(path, os.path.relpath(path, item)) for path in paths if is_known(path)]
        elif os.path.exists(item) or not glob.has_magic(item):
            found.append((item, os.path.basename(item)))
        else:
            found += [(path, os.path.basename(path)) for path in sorted(glob.glob(item, recursive=True))
                      if os.path.isfile(path) and is_known(path)]
    if not found:
        raise UserError(f'{" ".join(inputs)}: no picture or video was found')
    return found


def is_known(path):
    name = os.path.basename(path)
    return not name.startswith('.') and (videos.is_video(path) or os.path.splitext(name)[1].lower() in FORMATS)


def mirrored(name):
    """The name of an output: that of the input, with another suffix where its kind cannot be written."""
    stem, suffix = os.path.splitext(name)
    if videos.is_video(name):
        return name if suffix.lower() in videos.WRITES else stem + '.mp4'
    return name if FORMATS.get(suffix.lower()) in pictures.WRITES else stem + '.png'


def is_still(source, target):
    """Whether the first frame of a GIF is meant: it is to be written as a picture."""
    return source.lower().endswith('.gif') and not videos.is_video(target)


def is_done(source, target, size_of):
    """Whether the target is newer than the source and, for pictures, of the size asked for."""
    if not os.path.exists(target) or not os.path.exists(source) or os.path.getmtime(target) < os.path.getmtime(source):
        return False
    size = pictures.picture_size(source)
    return videos.is_video(target) or size is not None and pictures.picture_size(target) == size_of(*size)
