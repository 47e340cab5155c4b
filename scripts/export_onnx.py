"""Write a LIIF checkpoint as two ONNX graphs, so that it runs where there is no PyTorch.

    python scripts/export_onnx.py --model M.pth --output onnx

writes onnx/encoder.onnx (image -> codes) and onnx/decoder.onnx (codes, coordinates, cells -> RGB), whose height,
width and number of queries are free. Both are compared with PyTorch before they are written. Inputs, outputs and an
example: docs/onnx.md. Needs onnx, onnxscript and onnxruntime (requirements-optional.txt).

    python scripts/export_onnx.py --web out/web
    python -m http.server -d out/web 8001

writes the zoom viewer as static files, which compute in the browser (docs/viewer.md).
"""
import contextlib
import io
import os
import warnings

import _path

import torch
import torch.nn.functional as F
from torch import nn

from engine.rendering.api import load_renderer
from engine.runtime import Parser, run_program
from models import decode
from models.liif import LIIF
from utils import UserError, denormalize, make_coord, normalize, write_file
from viewer import static

TOLERANCE = 1e-4  # of RGB in [0, 1]
SIZES = [(12, 15), (24, 31), (3, 3), (100, 3), (7, 64), (1, 5)]  # heights and widths at which the graphs are compared
SCALES = [1, 2, 3, 5, 4.7]  # whole odd ones put queries exactly on codes, and on the borders between them


class Encoder(nn.Module):
    """image (1, 3, h, w) in [0, 1] -> codes (h, w, D): what the decoder gathers, the first layer's share included."""

    def __init__(self, model, data_norm):
        super().__init__()
        self.model, self.data_norm = model, data_norm

    def forward(self, image):
        codes = self.model.encode(normalize(image, self.data_norm.get('inp'), 1))
        return codes.table.view(*image.shape[-2:], -1)


class Decoder(nn.Module):
    """codes (h, w, D), coord (Q, 2), cell (Q, 2) -> RGB (Q, 3) in [0, 1], not clamped."""

    def __init__(self, model, data_norm):
        super().__init__()
        self.model, self.data_norm = model, data_norm

    def forward(self, codes, coord, cell):
        h, w, _ = codes.shape
        index, offset = [], []
        for i, j in decode.corners(self.model.local_ensemble):
            row, y = nearest_code(coord[:, 0], h, i)
            column, x = nearest_code(coord[:, 1], w, j)
            index.append(row * w + column)  # (Q,)
            offset.append(torch.stack([y, x], dim=-1))  # (Q, 2)
        offset = torch.stack(offset)  # (T, Q, 2)
        query = offset
        if self.model.cell_decode:
            relative = torch.stack([cell[:, 0] * h, cell[:, 1] * w], dim=-1)  # (Q, 2)
            query = torch.cat([offset, relative.expand_as(offset)], dim=-1)  # (T, Q, 4)
        weight = decode.opposite_areas(offset[..., 0], offset[..., 1])  # (T, Q)
        plain = decode.Workspace(decode.linear_layers(self.model.imnet))
        rgb = decode.blend(self.model.imnet, codes.flatten(0, 1), torch.cat(index), query.flatten(0, 1), weight,
                           plain)  # (3, Q)
        return denormalize(rgb.t(), self.data_norm.get('gt'), -1)


def nearest_code(x, n, side):
    """`nearest_code` of models/decode.py for a graph in which n is a symbol.

    Exporters compute with symbols in float32. A centre that is one bit off is no exact zero away from a query upon
    it, and on the image's border the areas there are all zeros: their ratios, hence the colour, would be another.
    """
    length = torch.scalar_tensor(n, dtype=torch.float64)
    r = 1 / length
    moved = x
    if side:
        moved = x + (side * r + decode.SHIFT).float()
    moved = moved.clamp(-1 + decode.SHIFT, 1 - decode.SHIFT)
    ramp = torch.arange(n, dtype=torch.float32).view(1, 1, 1, n)
    where = torch.stack([moved, torch.zeros_like(moved)], dim=-1).view(1, 1, -1, 2)
    index = F.grid_sample(ramp, where, mode='nearest', align_corners=False).view(-1).long()
    centre = (-1 + r).float() + (2 * r).float() * index.float()
    return index, (x - centre) * length.float()


def export(model, data_norm):
    """(encoder, decoder) as the bytes of ONNX files, of a LIIF in float32 on the CPU."""
    h, w, q = (torch.export.Dim(name) for name in ('height', 'width', 'queries'))
    encoder, decoder = (part(model, data_norm).eval() for part in (Encoder, Decoder))
    image = torch.rand(1, 3, 12, 15)
    with torch.no_grad():
        codes = encoder(image)
    return (_export(encoder, {'image': image}, 'codes', [{2: h, 3: w}]),
            _export(decoder, {'codes': codes, 'coord': torch.rand(40, 2), 'cell': torch.rand(40, 2)}, 'rgb',
                    [{0: h, 1: w}, {0: q}, {0: q}]))


def _export(module, inputs, output, dynamic):
    # The exporter's own optimization drops constants as small as the 1e-9 that keeps areas from all being zero.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        program = torch.onnx.export(module, tuple(inputs.values()), dynamo=True, optimize=False, external_data=False,
                                    input_names=list(inputs), output_names=[output], verbose=False,
                                    dynamic_shapes=tuple(dynamic) or None)
    return program.model_proto.SerializeToString()


def largest_difference(model, data_norm, encoder, decoder):
    """The largest difference of RGB between the graphs, in onnxruntime, and `model` over sizes, scales, borders and
    ties; UserError when it exceeds the tolerance or is not a number."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    encoder, decoder = (onnxruntime.InferenceSession(part, options, providers=['CPUExecutionProvider'])
                        for part in (encoder, decoder))
    largest = 0.0
    for (h, w) in SIZES:
        image = torch.rand(1, 3, h, w, generator=torch.Generator().manual_seed(h * w))
        codes = encoder.run(None, {'image': image.numpy()})[0]
        for scale in SCALES:
            coord, cell = queries(h, w, round(h * scale), round(w * scale))
            feeds = {'codes': codes, 'coord': coord.numpy(), 'cell': cell.numpy()}
            found = decoder.run(None, {i.name: feeds[i.name] for i in decoder.get_inputs()})[0]
            with torch.no_grad():
                wanted = model(normalize(image, data_norm.get('inp'), 1), coord[None], cell[None])[0]
            difference = (torch.from_numpy(found) - denormalize(wanted, data_norm.get('gt'), -1)).abs().max().item()
            if not difference <= TOLERANCE:  # written so that NaN fails
                raise UserError(f'the ONNX graphs differ from PyTorch by {difference} at {h}x{w} times {scale}, '
                                f'expected at most {TOLERANCE}: nothing was written; try other versions of torch, '
                                f'onnxscript or onnxruntime')
            largest = max(largest, difference)
    return largest


def queries(h, w, height, width):
    """Coordinates (Q, 2) and cells (Q, 2) of a grid, followed by corners, borders and edges between codes."""
    extreme = torch.tensor([-1, -1 + 2 / h, 0, 1 - 2 / w, 1])
    coord = torch.cat([make_coord((height, width)), torch.cartesian_prod(extreme, extreme)])
    return coord, torch.tensor([2 / height, 2 / width]).repeat(len(coord), 1)


def web_graphs(model, data_norm):
    """{name: bytes of an ONNX file} of the page without a server, each compared with PyTorch. Raises UserError."""
    import onnxruntime
    found = {}
    for name, (module, inputs) in static.parts(model, data_norm).items():
        with torch.no_grad():
            wanted = module.eval()(*inputs.values())
        found[name] = _export(module, inputs, 'out', [])
        session = onnxruntime.InferenceSession(found[name], providers=['CPUExecutionProvider'])
        out = torch.from_numpy(session.run(None, {key: value.numpy() for key, value in inputs.items()})[0])
        difference = ((out - wanted).abs().max() / wanted.abs().max()).item()
        if not difference <= TOLERANCE:  # written so that NaN fails
            raise UserError(f'{name}.onnx differs from PyTorch by {difference}, expected at most {TOLERANCE}: nothing '
                            f'was written; try other versions of torch, onnxscript or onnxruntime')
    return found


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument('--model', help='a checkpoint, or a name in weights/, such as photo; default: clean')
    parser.add_argument('--output', default='onnx', help='the folder for encoder.onnx and decoder.onnx')
    parser.add_argument('--web', metavar='DIR', help='write the zoom viewer to this folder instead, as static files')
    parser.add_argument('--ort', metavar='DIR', help=f'with --web: a folder with the npm package {static.RUNTIME[0]}; '
                        'default: npm fetches it')
    args = parser.parse_args(argv)

    try:
        import onnxruntime, onnxscript  # noqa: E401, F401 (only to know)
    except ImportError as error:
        raise UserError(f'{error.name} is not installed: pip install onnx onnxscript onnxruntime') from None
    renderer = load_renderer(args.model, gpu='cpu')
    model, data_norm = renderer.model, renderer.data_norm
    if not isinstance(model, LIIF):
        raise UserError(f'{args.model}: found a {type(model).__name__}, expected a LIIF: only those can be exported')
    folder = args.web or args.output
    try:
        if args.web:
            ort = static.runtime(args.ort)
            static.write_folder(folder, static.page_files(model, web_graphs(model, data_norm), ort))
            print(f'{folder}: try it with  python -m http.server -d {folder} 8001')
        else:
            write_graphs(folder, model, data_norm)
    except OSError as error:
        raise UserError(f'{folder} cannot be written ({error.strerror or error}): choose another folder') from error


def write_graphs(folder, model, data_norm):
    """Write encoder.onnx and decoder.onnx once they are compared with PyTorch. Raises UserError, OSError."""
    parts = export(model, data_norm)
    difference = largest_difference(model, data_norm, *parts)
    print(f'largest difference from PyTorch over {len(SIZES) * len(SCALES)} sizes: {difference:.1e}')
    for name, data in zip(('encoder.onnx', 'decoder.onnx'), parts):
        path = os.path.join(folder, name)
        write_file(path, data)
        print(f'{path}: {len(data) / 1e6:.1f} MB')


if __name__ == '__main__':
    run_program(main)
