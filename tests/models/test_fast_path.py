"""The reorganised decode equals the textbook formula: values, ties, borders, gradients, grids, windows, precision."""
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import models
from models import textbook
from models.decode import BitReLU, block_shape, fuses_bias, linear_layers, nearest_code
from tests.common import error, fill_model, golden, small_model, small_spec
from utils import axis_coord, make_coord


SWITCHES = [dict(zip(('local_ensemble', 'feat_unfold', 'cell_decode'), on))
            for on in itertools.product((True, False), repeat=3)]


def queries(b, q, seed=0, dtype=torch.float32):
    """Random queries, the first on borders and corners of the image, with anisotropic cells."""
    g = torch.Generator().manual_seed(seed)
    coord = torch.rand(b, q, 2, generator=g, dtype=dtype) * 2 - 1
    coord[:, :6] = torch.tensor([[-1, -1], [1, 1], [-1, 1], [1, 0], [0, 0], [0, -1]], dtype=dtype)
    return coord, torch.rand(b, q, 2, generator=g, dtype=dtype) * 0.3 + 0.01


@pytest.mark.parametrize('switches', SWITCHES, ids=str)
def test_scattered_queries(switches):
    model = small_model(**switches)
    inp = torch.rand(2, 3, 7, 10, generator=torch.Generator().manual_seed(1))
    coord, cell = queries(2, 301)
    with torch.no_grad():
        wanted = textbook.query(model, model.encoder(inp), coord, cell)
        assert error(model(inp, coord, cell), wanted) <= 1e-5
        model.gen_feat(inp)
        assert error(model.query_rgb(coord, cell), wanted) <= 1e-5
    assert error(model(inp, coord, cell), wanted) <= 1e-5  # with gradients: not in chunks


@pytest.mark.parametrize('switches', SWITCHES, ids=str)
@pytest.mark.parametrize('size', [(21, 30), (7, 10), (5, 4), (35, 13), (1, 1)])
def test_grids(switches, size):
    """Grids at odd scales (whose pixels tie between codes), x1, below x1, and anisotropic."""
    model = small_model(**switches)
    inp = torch.rand(2, 3, 7, 10, generator=torch.Generator().manual_seed(2))
    cell = torch.tensor([2 / size[0], 2 / size[1]])
    with torch.no_grad():
        coord = make_coord(size).expand(2, -1, 2)
        wanted = textbook.query(model, model.encoder(inp), coord, cell.expand_as(coord))
        found = model.decode_grid(model.encode(inp), axis_coord(size[0]), axis_coord(size[1]), cell, chunk=17)
    assert found.shape == (2, 3, *size)
    assert error(found.flatten(2).mT, wanted) <= 1e-5


@pytest.mark.parametrize('name', ['edsr-baseline-liif', 'edsr-small-liif-cue', 'edsr-baseline-liif-d'])
def test_golden_weights(name):
    """At the paper's depth, with the golden values' weights."""
    model = fill_model(models.make(golden('models.json')[name]['spec']))
    inp = torch.rand(1, 3, 9, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
    coord, cell = make_coord((27, 24))[None], torch.tensor([2 / 27, 2 / 24]).expand(1, 27 * 24, 2)
    with torch.no_grad():
        assert error(model(inp, coord, cell), textbook.query(model, model.encoder(inp), coord, cell)) <= 1e-5


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_nearest_codes_break_ties_as_grid_sample(dtype):
    """On the coordinates of make_coord, for every size and odd or even scale, to the last index."""
    for n in (1, 2, 3, 4, 5, 7, 10, 11, 48, 64, 85, 100, 127, 339, 510):
        ramp = torch.arange(n, dtype=dtype).view(1, 1, 1, n).expand(1, 1, 2, n)
        for scale in (1, 2, 3, 4, 5, 7, 9, 30, 0.5, 2.5, 3.7):
            x = axis_coord(max(1, int(n * scale)), dtype=dtype)
            for side in (-1, 0, 1):
                at = (x + (side / n + 1e-6) if side else x).clamp(-1 + 1e-6, 1 - 1e-6)
                grid = torch.stack([at, torch.full_like(at, 0.3)], dim=-1).view(1, 1, -1, 2)
                wanted = F.grid_sample(ramp, grid, mode='nearest', align_corners=False).view(-1)
                index, distance = nearest_code(x, n, side)
                assert torch.equal(index, wanted.long())
                assert distance.abs().max() <= (1 + 1e-3 * n if side == 0 else 2 + 1e-3 * n)


def test_a_general_decoder_takes_the_general_path():
    """A decoder that is no ReLU MLP gives the textbook's values too."""
    @models.register('sine-decoder')
    class SineDecoder(torch.nn.Module):
        def __init__(self, in_dim):
            super().__init__()
            self.inner, self.outer = torch.nn.Linear(in_dim, 12), torch.nn.Linear(12, 3)

        def forward(self, x):
            return self.outer(torch.sin(self.inner(x)))

    try:
        for switches in SWITCHES:
            model = models.make({**small_spec(**switches), 'args': {**small_spec(**switches)['args'],
                                                                    'imnet_spec': {'name': 'sine-decoder'}}})
            inp, (coord, cell) = torch.rand(2, 3, 6, 5), queries(2, 50)
            with torch.no_grad():
                wanted = textbook.query(model, model.encoder(inp), coord, cell)
                assert error(model(inp, coord, cell), wanted) <= 1e-5
                grid = model.decode_grid(model.encode(inp), axis_coord(9), axis_coord(11), cell[0, 0])
                at = make_coord((9, 11)).expand(2, -1, 2)
                wanted = textbook.query(model, model.encoder(inp), at, cell[0, :1].expand_as(at))
                assert error(grid.flatten(2).mT, wanted) <= 1e-5
    finally:
        del models.registry.entries['sine-decoder']


@pytest.mark.parametrize('hidden', [(), (16,), (16, 16, 16)])
def test_any_depth(hidden):
    model = small_model(hidden=hidden)
    inp, (coord, cell) = torch.rand(1, 3, 6, 5), queries(1, 50)
    with torch.no_grad():
        assert error(model(inp, coord, cell), textbook.query(model, model.encoder(inp), coord, cell)) <= 1e-5


@pytest.mark.parametrize('hidden', [(16, 16), (8, 40, 12), (40,)])
@pytest.mark.parametrize('precision', [torch.float32, torch.bfloat16])
def test_buffers_serve_chunk_after_chunk(hidden, precision, monkeypatch):
    """Without gradients chunks share two buffers, with them none; widths and chunks' sizes differ, and what an earlier
    chunk or call left there shows in no later one."""
    monkeypatch.setattr('models.decode.CPU_CHUNK', 4 * 4 * max(hidden) * 23)
    model = small_model(hidden=hidden)
    inp = torch.rand(2, 3, 7, 10, generator=torch.Generator().manual_seed(5))
    (coord, cell), one = queries(2, 151), torch.tensor([0.1, 0.07])
    with torch.autocast('cpu', precision, enabled=precision != torch.float32):
        codes = model.encode(inp)
        wanted = model.decode(codes, coord, cell), model.decode_grid(codes, axis_coord(19), axis_coord(31), one)
        with torch.no_grad():
            for _ in range(2):
                found = model.decode(codes, coord, cell), model.decode_grid(codes, axis_coord(19), axis_coord(31), one)
                for a, b in zip(found, wanted):
                    assert not a.requires_grad and b.requires_grad and error(a, b) <= 1e-6
            monkeypatch.setattr('models.decode.CPU_CHUNK', 1 << 30)
            whole = model.decode(codes, coord, cell), model.decode_grid(codes, axis_coord(19), axis_coord(31), one)
            assert all(error(a, b) <= 1e-6 for a, b in zip(found, whole))


def test_no_queries_give_no_colours():
    model = small_model()
    codes, none, cell = model.encode(torch.rand(2, 3, 6, 5)), torch.zeros(0), torch.tensor([0.1, 0.1])
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert model.decode(codes, torch.zeros(2, 0, 2), torch.zeros(2, 0, 2)).shape == (2, 0, 3)
            assert model.decode_grid(codes, none, axis_coord(4), cell).shape == (2, 3, 0, 4)
            assert model.decode_grid(codes, axis_coord(4), none, cell).shape == (2, 3, 4, 0)


def test_blocks_fit_and_fill_their_chunk():
    random = np.random.default_rng(0)
    drawn = random.integers(1, 3000, (200, 3)).tolist()
    for rows, columns, chunk in [(1, 1, 1), (5, 5, 2048), (3, 100_000, 7), *drawn]:
        height, width = block_shape(rows, columns, chunk)
        assert 1 <= height <= rows and 1 <= width <= columns and height * width <= chunk
        pieces = -(-rows // height) * -(-columns // width)
        if rows * columns > 20 * chunk and 8 * chunk > columns > 20 and chunk > 200:
            assert pieces <= 1.25 * rows * columns / chunk


def test_relu_by_bits_is_relu():
    """On every bf16 number, infinities and NaN included: the same bits; and in the gradient, a NaN aside."""
    every = torch.arange(-2 ** 15, 2 ** 15).to(torch.int16).view(torch.bfloat16)
    assert torch.equal(BitReLU.apply(every.clone()).isnan(), every.isnan())
    numbers = every[~every.isnan()].view(2, -1).mT  # (N, 2), not contiguous
    grad = torch.randn(numbers.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = []
    for relu in (BitReLU.apply, torch.relu_):
        x = numbers.clone().requires_grad_()
        y = relu(x * 1)
        y.backward(grad)
        found.append((y.detach(), x.grad))
    (y, g), (wanted, wanted_g) = found
    assert torch.equal(y, wanted) and torch.equal(g, wanted_g) and not torch.signbit(y).any()


@pytest.mark.parametrize('offset', [-1e4, -10, 3])
@pytest.mark.parametrize('precision', [torch.float32, torch.bfloat16])
def test_biases_far_from_zero(precision, offset):
    """Units that are never or always on: as exact as the textbook formula."""
    model = small_model(hidden=(8, 40, 12))
    for _, bias in linear_layers(model.imnet)[:-1]:
        bias.data += offset
    inp, (coord, cell) = torch.rand(1, 3, 6, 5), queries(1, 300)
    with torch.no_grad(), torch.autocast('cpu', precision, enabled=precision != torch.float32):
        found = model(inp, coord, cell)
    with torch.no_grad():
        wanted = textbook.query(model, model.encoder(inp), coord, cell)
    assert error(found, wanted) <= (1e-5 if precision == torch.float32 else 2e-2)


@pytest.mark.parametrize('hidden', [(40,), (8, 40, 12)])
def test_large_biases(hidden):
    """Biases of the size of the activations, either sign, in float64: what is left is the rounding of float64."""
    model = small_model(hidden=hidden).double()
    random = torch.Generator().manual_seed(3)
    for layer in linear_layers(model.imnet):
        layer[1].data = torch.randn(layer[1].shape, generator=random, dtype=torch.float64) * 2
    inp, (coord, cell) = torch.rand(1, 3, 6, 5, dtype=torch.float64), queries(1, 300)
    with torch.no_grad():
        wanted = textbook.query(model, model.encoder(inp), coord.double(), cell.double())
        assert error(model(inp, coord.double(), cell.double()), wanted) <= 1e-12


@pytest.mark.parametrize('precision, tolerance', [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_a_product_with_or_without_its_bias(precision, tolerance, monkeypatch):
    """oneDNN adds the bias within the product; torch builds without it, and other devices, add it separately."""
    model, (coord, cell) = small_model(hidden=(16, 12, 8)), queries(1, 400)
    inp, found = torch.rand(1, 3, 6, 5, generator=torch.Generator().manual_seed(0)), []
    for fuses in (fuses_bias, lambda dtype: False):
        monkeypatch.setattr('models.decode.fuses_bias', fuses)
        with torch.no_grad(), torch.autocast('cpu', precision, enabled=precision != torch.float32):
            found.append(model(inp, coord, cell))
    assert error(*found) <= tolerance


@pytest.mark.parametrize('precision', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('gradients', [True, False])
def test_nan_shows(precision, gradients):
    """Wherever it comes from: a damaged model must not give an image."""
    for layer in range(3):
        model = small_model(hidden=(8, 12))
        linear_layers(model.imnet)[layer][0].data[0, 0] = torch.nan
        inp, (coord, cell) = torch.rand(1, 3, 6, 5), queries(1, 50)
        with torch.set_grad_enabled(gradients), torch.autocast('cpu', precision, enabled=precision != torch.float32):
            assert model(inp, coord, cell).isnan().any(-1).all(), layer
            inp[..., :3, :] = torch.nan
            model = small_model(hidden=(8, 12))
            assert model(inp, coord, cell).isnan().any()


@pytest.mark.parametrize('precision', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('size', [(1, 1), (6, 5), (48, 48)])
def test_a_nan_that_meets_only_padding_shows(precision, size):
    """torch's convolutions differ: some kernels multiply the zeros beyond the border, others skip them."""
    model = fill_model(models.make(small_spec(hidden=(64, 12), n_feats=64)))
    linear_layers(model.imnet)[0][0].data[3, 0] = torch.nan  # reads the neighbour to the upper left
    with torch.no_grad(), torch.autocast('cpu', precision, enabled=precision != torch.float32):
        assert model.encode(torch.rand(1, 3, *size)).table[:, 3].isnan().all()


def test_codes_of_another_precision_decode():
    """Encoded under autocast and decoded without, or the reverse."""
    model, (coord, cell) = small_model(), queries(1, 50)
    inp = torch.rand(1, 3, 6, 5)
    with torch.no_grad():
        wanted = model(inp, coord, cell)
    for gradients in (True, False):
        for first in (True, False):
            with torch.set_grad_enabled(gradients):
                with torch.autocast('cpu', torch.bfloat16, enabled=first):
                    codes = model.encode(inp)
                with torch.autocast('cpu', torch.bfloat16, enabled=not first):
                    assert error(model.decode(codes, coord, cell), wanted) <= 0.02


@pytest.mark.parametrize('switches', [SWITCHES[0], SWITCHES[-1]], ids=str)
def test_gradients(switches):
    """float64: gradcheck with respect to image and parameters, and equal gradients to the textbook's."""
    model = fill_model(models.make(small_spec(hidden=(5, 4), n_resblocks=1, n_feats=2, **switches))).double()
    inp = torch.rand(1, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    coord, cell = queries(1, 9, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: model(x, coord, cell), (inp,))
    parameters = [p for p in model.parameters() if p.requires_grad]
    target = torch.rand(1, 9, 3, dtype=torch.float64)
    ours = torch.autograd.grad(F.l1_loss(model(inp, coord, cell), target), parameters)
    theirs = torch.autograd.grad(F.l1_loss(textbook.query(model, model.encoder(inp), coord, cell), target), parameters)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(ours, theirs))


def test_fifty_training_steps_equal_the_textbook():
    """Losses of 50 Adam steps in float64 agree to 1e-9."""
    def train(predict):
        model = small_model().double().train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        g = torch.Generator().manual_seed(5)
        losses = []
        for step in range(50):
            inp, gt = (torch.rand(*s, generator=g, dtype=torch.float64) for s in ((2, 3, 8, 8), (2, 64, 3)))
            coord, cell = queries(2, 64, seed=step, dtype=torch.float64)
            loss = F.l1_loss(predict(model, inp, coord, cell), gt)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return torch.tensor(losses)

    fast = train(lambda model, *batch: model(*batch))
    slow = train(lambda model, inp, coord, cell: textbook.query(model, model.encoder(inp), coord, cell))
    assert (fast - slow).abs().max() <= 1e-9
    assert fast[-1] < fast[0]


def test_encoding_a_window_equals_the_whole():
    for spec in (small_spec(), small_spec(feat_unfold=False),
                 {'name': 'liif', 'args': {**small_spec()['args'], 'encoder_spec': {
                     'name': 'rdn', 'args': {'G0': 8, 'RDNconfig': 'A', 'no_upsampling': True}}}}):
        model = fill_model(models.make(spec)).double()
        inp = torch.rand(1, 3, 30, 41, dtype=torch.float64)
        with torch.no_grad():
            whole = model.encode(inp)
            table = whole.table.view(30, 41, -1)
            for top, left, bottom, right in [(0, 0, 9, 8), (10, 12, 17, 30), (25, 33, 30, 41), (0, 0, 30, 41)]:
                part = model.encode(inp, (top, left, bottom, right))
                found = part.table.view(bottom - top, right - left, -1)
                assert error(found, table[top:bottom, left:right]) <= 1e-12
                assert error(part.feat, whole.feat[..., top:bottom, left:right]) <= 1e-12


def test_half_precision_stays_close():
    """bf16 with float32 coordinates: nearer to float32 than the textbook formula under the same autocast."""
    model = small_model(hidden=(64, 64))
    inp = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(6)) * 2 - 1
    coord, cell = queries(1, 2000)
    with torch.no_grad():
        exact = model.double()(inp.double(), coord.double(), cell.double())
        model.float()
        with torch.autocast('cpu', dtype=torch.bfloat16):
            fast = model(inp, coord, cell)
            plain = textbook.query(model, model.encoder(inp).float(), coord, cell).float()
    assert fast.dtype == torch.float32
    rms = [(v - exact).pow(2).mean().sqrt() / exact.std() for v in (fast, plain)]
    assert rms[0] < 0.02 and rms[0] < 1.5 * rms[1]


def test_feature_memory_is_not_kept_per_query():
    """The general path's 9C gathered values a query are never built by the fast path: its table has D columns."""
    model = small_model()
    codes = model.encode(torch.rand(1, 3, 6, 5))
    assert codes.table.shape == (30, 16)
