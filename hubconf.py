"""torch.hub: a renderer in two lines (docs/api.md).

    renderer = torch.hub.load(path_or_repository, 'edsr_baseline_liif')     # source='local' for a path;
                                                            # for photographs: 'edsr_baseline_liif_photo'
    out = renderer.open(image).render((H, W))                               # image: (3, h, w) in [0, 1]

The modules `datasets`, `engine`, `models` and `utils` of this project are then in sys.modules, so a package of such a
name, like Hugging Face's `datasets`, cannot be imported in the same process.
"""
import os
import sys


ROOT = os.path.dirname(os.path.realpath(__file__))
dependencies = ['torch', 'numpy', 'PIL', 'tqdm', 'yaml']

for name in {'datasets', 'engine', 'models', 'utils'} & {*sys.modules}:
    path = getattr(sys.modules[name], '__file__', None) or os.sep
    if not os.path.realpath(path).startswith(os.path.join(ROOT, '')):
        raise ImportError(f'a module {name!r} from elsewhere is imported already ({path}): use another process')

from engine.rendering.api import load_renderer  # noqa: E402 (the check comes first)


def edsr_baseline_liif(model='edsr-baseline-liif', **options):
    """The Renderer of EDSR-baseline-LIIF with the weights that come with the project.

    model: the path of another checkpoint, or a name in weights/
    options: those of engine.rendering.api.load_renderer, such as gpu='cpu' or precision='auto'
    """
    return load_renderer(model, **options)


def edsr_baseline_liif_photo(model='photo', **options):
    """As `edsr_baseline_liif`, with the weights for compressed photographs."""
    return load_renderer(model, **options)
