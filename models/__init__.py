"""Models by name. Adding one is a file here (or anywhere) that uses `register`, and one import line below."""
from . import (  # encoders  # decoders
    edsr,
    interpolation,  # baselines without weights
    liif,
    metasr,
    mlp,
    rcan,
    rdn,
)
from .models import decodes_grids, make, register, registry  # first: model files import these names from this package
