"""Models by name. Adding one is a file here (or anywhere) that uses `register`, and one import line below."""
from .models import decodes_grids, make, register, registry  # first: model files import these names from this package
from . import edsr, rdn, rcan  # encoders
from . import mlp
from . import liif, metasr  # decoders
from . import interpolation  # baselines without weights
