"""The page without a server: its graphs, and the folder that any static host can serve (docs/viewer.md).

A browser computes the lattice of viewer/lattice.py with two kinds of graph, whose inputs have fixed shapes. One encodes
a window of the image: the codes of BLOCK x BLOCK tiles, and the halo that they see. The other decodes some rows of a
tile's codes. It evaluates each code once, at the offsets d in (-2, 2) of half codes where the code has a weight: the
areas of eq. 4 separate, so along an axis the weight is 1 - |d| / 2. The sum of these contributions is the decoded image
at the nodes; viewer/local/worker.js turns it into spline coefficients. No graph needs a gather.
"""
import copy
import hashlib
import json
import os
import subprocess
import tarfile
import tempfile

import torch
import torch.nn.functional as F
from torch import nn

import engine
from models import decode
from utils import UserError, denormalize, normalize, write_file
from viewer.lattice import CLIP, STEPS, TILE, is_continuous, to_spline
from viewer.web import POLICY


BLOCK = 2  # tiles per axis that are encoded together: more share a halo, fewer keep people waiting for the first
ROWS = {3: 11, 6: 3}  # g -> rows of codes decoded together, of TILE + 1: about 12000 rows of the network at a time


class Encoder(nn.Module):
    """Window (1, 3, h, w) in [0, 1] and mask (1, 1, h, w), 1 inside the image -> codes (h - 2 halo, w - 2 halo, D).

    The mask makes a window that reaches beyond the image equal to the image's own border: convolutions see zeros there.
    Codes hold the decoder's first layer (`decode.feature_table`) with the cell's share, which is constant.
    """

    def __init__(self, model, data_norm):
        super().__init__()
        self.model, self.data_norm = copy.deepcopy(model), data_norm  # the caller's gets no hooks
        self.seen = seen = {}  # 'mask': of the current call
        for module in self.model.encoder.modules():
            if isinstance(module, nn.Conv2d) and any(module.padding):
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * seen['mask'],))

    def forward(self, image, mask):
        self.seen['mask'] = mask
        feat = self.model.encoder(normalize(image, self.data_norm.get('inp'), 1)) * mask  # (1, C, h, w)
        crop = slice(self.model.halo, -self.model.halo)
        h, w = (n - 2 * self.model.halo for n in feat.shape[-2:])
        codes = decode.feature_table(self.model, feat, (crop, crop))  # (h * w, D)
        if self.model.cell_decode:
            codes = codes + self.model.imnet.layers[0].weight[:, -2:].sum(1) * (2 / CLIP)
        return codes.view(h, w, -1)


class Lattice(nn.Module):
    """Codes (R, C, D), y (R,), x (C,) -> what R rows of codes add to the nodes: ((R + 1) g, (C - 1) g + 1, 3).

    y, x: added to a code's offsets: 0, but -2 before and +2 after the image, where its outermost codes count twice.
    Row 0 of the result lies g nodes above the first code; column 0 at the first code.
    """

    def __init__(self, model, data_norm, steps):
        super().__init__()
        self.model, self.data_norm, self.steps = model, data_norm, steps
        offset = torch.arange(1 - steps, steps) * (2 / steps)  # (K,), K = 2 g - 1
        self.register_buffer('offset', offset)
        self.register_buffer('share', 1 - offset.abs() / 2)
        end = -4 if model.cell_decode else -2  # of the columns that take a relative coordinate (y, x)
        for name, column in zip(('down', 'across'), decode.linear_layers(model.imnet)[0][0].detach().t()[end:]):
            self.register_buffer(name, column.clone())  # (D,)

    def forward(self, codes, y, x):
        g, (r, c, d) = self.steps, codes.shape
        y, x = ((v.unsqueeze(1) + self.offset).unsqueeze(-1) for v in (y, x))  # (R, K, 1), (C, K, 1)
        z = codes.unsqueeze(2) + x * self.across  # (R, C, K, D)
        z = z.unsqueeze(1) + (y * self.down).view(r, -1, 1, 1, d)  # (R, K, C, K, D)
        z = z.reshape(-1, d)
        for matrix, bias in decode.linear_layers(self.model.imnet)[1:]:
            z = F.linear(z.relu(), matrix, bias)
        rgb = denormalize(z, self.data_norm.get('gt'), -1).view(r, 2 * g - 1, c, 2 * g - 1, 3)
        rgb = rgb * (self.share.view(-1, 1, 1, 1) * self.share.view(-1, 1))
        rgb = overlap_add(rgb.reshape(r, 2 * g - 1, -1))  # ((R + 1) g, C K 3)
        rgb = rgb.view(-1, c, 2 * g - 1, 3).permute(1, 2, 0, 3).reshape(c, 2 * g - 1, -1)
        rgb = overlap_add(rgb)[g:c * g + 1]  # ((C - 1) g + 1, (R + 1) g 3)
        return rgb.view(len(rgb), -1, 3).transpose(0, 1)


def overlap_add(x):
    """(n, 2g - 1, M) -> ((n + 1) g, M): row n g + p of the result takes x[n, p - 1] and x[n - 1, p - 1 + g]."""
    n, k, m = x.shape
    half = (k + 1) // 2
    x = torch.cat([x.new_zeros(n, 1, m), x], dim=1)  # (n, 2g, M)
    none = x.new_zeros(1, half, m)
    return (torch.cat([x[:, :half], none]) + torch.cat([none, x[:, half:]])).reshape(-1, m)


def parts(model, data_norm):
    """{name: (module, {name: example of an input})} of the graphs. Raises UserError for a model that has none."""
    if not is_continuous(model) or getattr(model, 'halo', None) is None or not decode.is_relu_mlp(model.imnet):
        raise UserError('the page without a server needs a LIIF with local ensemble, a ReLU MLP as its decoder, and an '
                        'encoder that can work on parts of an image (not RCAN): use viewer/serve.py for this model')
    side = BLOCK * TILE + 1 + 2 * model.halo
    depth = model.imnet.layers[0].out_features
    found = {'encoder': (Encoder(model, data_norm), {'image': torch.rand(1, 3, side, side),
                                                     'mask': torch.ones(1, 1, side, side)})}
    for steps in STEPS:
        found[f'lattice{steps}'] = (Lattice(model, data_norm, steps), {
            'codes': torch.rand(ROWS[steps], TILE + 1, depth), 'y': torch.zeros(ROWS[steps]),
            'x': torch.zeros(TILE + 1)})
    return found


# The folder.

RUNTIME = 'onnxruntime-web', '1.30.0'
RUNTIME_FILES = {  # name in the package's dist/ -> SHA-256; wasm is for the CPU, asyncify for WebGPU
    'ort.wasm.min.mjs': '219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b',
    'ort-wasm-simd-threaded.mjs': 'e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b',
    'ort-wasm-simd-threaded.wasm': '3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2',
    'ort.webgpu.min.mjs': '3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0',
    'ort-wasm-simd-threaded.asyncify.mjs': '3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28',
    'ort-wasm-simd-threaded.asyncify.wasm': '39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da'}
HERE = os.path.dirname(os.path.abspath(__file__))
SAMPLE = os.path.join(engine.ROOT, 'docs', 'figures', 'photo.png')
PAGE_POLICY = POLICY.split('; frame-ancestors')[0].replace("script-src 'self'", "script-src 'self' 'wasm-unsafe-eval'")


def runtime(folder=None):
    """{path: bytes} of onnxruntime-web, from an unpacked copy of its npm package, or fetched by npm. Raises UserError
    for files that are missing or are not those of the version that was tested."""
    package = '@'.join(RUNTIME)
    files = _fetched(package) if folder is None else {}
    for name, digest in RUNTIME_FILES.items():
        path = os.path.join(folder or package, 'dist', name)
        if folder is not None:
            try:
                with open(path, 'rb') as f:
                    files[name] = f.read()
            except OSError as error:
                raise UserError(f'{path}: {error.strerror or error}; expected {package} as npm unpacks it') from None
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise UserError(f'{path} is not that of {package}, with which the page is tested: fetch that version')
    return {f'ort/{name}': data for name, data in files.items()}


def _fetched(package):
    """{name in dist/: bytes} of an npm package."""
    with tempfile.TemporaryDirectory() as place:
        try:
            subprocess.run(['npm', 'pack', '--ignore-scripts', '--silent', package], cwd=place, check=True,
                           capture_output=True, text=True, shell=os.name == 'nt')
        except (OSError, subprocess.CalledProcessError) as error:
            why = (getattr(error, 'stderr', None) or str(error)).strip().splitlines()
            raise UserError(f'npm cannot fetch {package} ({why[-1] if why else "npm pack failed"}): install npm, or '
                            f'name a folder that has the package') from None
        with tarfile.open(os.path.join(place, f'{"-".join(RUNTIME)}.tgz')) as tar:
            return {name: tar.extractfile(f'package/dist/{name}').read() for name in RUNTIME_FILES}


def page_files(model, graphs, ort):
    """{path: bytes} of the whole folder. model: a LIIF; graphs: {name: bytes} of `parts`; ort: of `runtime`."""
    files = {f'{name}.onnx': data for name, data in graphs.items()} | ort
    for folder in ('page', 'local'):
        for name in os.listdir(os.path.join(HERE, folder)):
            with open(os.path.join(HERE, folder, name), 'rb') as f:
                files[name] = f.read()
    del files['remote.js']  # engine.js of viewer/local/ stands in its place
    with open(SAMPLE, 'rb') as f:
        files[os.path.basename(SAMPLE)] = f.read()
    files['about.json'] = json.dumps({
        'name': 'LIIF', 'kind': type(model).__name__, 'precision': 'float32', 'lattice': True, 'tile': TILE,
        'steps': STEPS, 'splines': {steps: to_spline(steps).tolist() for steps in STEPS}, 'block': BLOCK, 'rows': ROWS,
        'halo': model.halo, 'sample': os.path.basename(SAMPLE)}).encode()
    policy = f'<meta http-equiv="Content-Security-Policy" content="{PAGE_POLICY}">\n<title>'
    files['index.html'] = files['index.html'].replace(b'<title>', policy.encode())
    version = hashlib.sha256(b''.join(files[name] for name in sorted(files))).hexdigest()[:16]
    later = [name for name in sorted(files) if '/' in name or name.endswith('.onnx')]
    first = ['./', *(name for name in sorted(files) if name not in later and name != 'sw.js')]
    for word, value in (('VERSION', version), ('FIRST', first), ('LATER', later), ('POLICY', PAGE_POLICY)):
        files['sw.js'] = files['sw.js'].replace(f'"{word}"'.encode(), json.dumps(value).encode())
    return files


def write_folder(path, files):
    """Write {relative path: bytes}; each file is whole or absent. Raises OSError."""
    for name, data in files.items():
        write_file(os.path.join(path, name), data)
