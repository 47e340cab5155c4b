"""Image sets and wrappers by name. Adding one is a file here (or anywhere) that uses `register`, and one import
line below."""
from .datasets import make, register, registry  # first: the files below import these names from this package
from . import degraded, image_folder, wrappers
