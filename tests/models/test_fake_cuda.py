"""Devices and types on a GPU, without one: fake tensors on cuda:0 and cuda:1 run through the models.

They compute shapes, types and devices, no values; an operation on tensors of two devices raises.
"""
import contextlib

import pytest
import torch

import models
from models import decode, lattice
from tests.common import error, small_spec
from utils import axis_coord


fake = pytest.importorskip('torch._subclasses.fake_tensor', reason='this torch has no FakeTensorMode')
METASR = {'name': 'metasr', 'args': {'encoder_spec': small_spec()['args']['encoder_spec']}}
DTYPES = {'float32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


@contextlib.contextmanager
def fake_cuda(monkeypatch):
    with monkeypatch.context() as patch, fake.FakeTensorMode(allow_non_fake_inputs=False):
        patch.setattr(torch.cuda, 'is_available', lambda: False)  # properties of a GPU are not asked for
        yield


def make(spec, device, dtype=torch.float32):
    """A model with fake parameters (`Module.to` does not work with them)."""
    model = models.make(spec)
    for module in model.modules():
        for name, p in module._parameters.items():
            module._parameters[name] = torch.nn.Parameter(torch.empty(p.shape, device=device, dtype=dtype),
                                                          p.requires_grad)
    return model


@pytest.mark.parametrize('device', ['cuda:0', 'cuda:1'])
@pytest.mark.parametrize('precision', DTYPES)
@pytest.mark.parametrize('gradients', [True, False])
def test_liif(device, precision, gradients, monkeypatch):
    with fake_cuda(monkeypatch), torch.set_grad_enabled(gradients):
        model = make(small_spec(), device, DTYPES[precision])
        inp = torch.rand(2, 3, 7, 9, device=device, dtype=DTYPES[precision])
        coord = torch.rand(2, 50, 2, device=device)
        y, x, cell = axis_coord(20, device=device), axis_coord(31, device=device), torch.rand(2, device=device)
        codes = model.encode(inp)
        model.gen_feat(inp)
        found = [model(inp, coord, coord), model.query_rgb(coord, coord), model.decode_grid(codes, y, x, cell)]
        assert codes.table.dtype == DTYPES[precision]
        assert [tuple(t.shape) for t in found] == [(2, 50, 3), (2, 50, 3), (2, 3, 20, 31)]
        assert all(t.device == torch.device(device) and t.dtype == torch.float32 for t in found)


@pytest.mark.parametrize('device', ['cuda:0', 'cuda:1'])
@pytest.mark.parametrize('precision', DTYPES)
def test_lattice(device, precision, monkeypatch):
    with fake_cuda(monkeypatch), torch.no_grad():
        model = make(small_spec(), device, DTYPES[precision])
        codes = model.encode(torch.rand(2, 3, 7, 9, device=device, dtype=DTYPES[precision]))
        made = lattice.make_lattice(model, codes, torch.rand(2, device=device), 3)
        assert tuple(made.coefficients.shape) == (49, 63, 2, 3)
        assert made.coefficients.device == torch.device(device) and made.coefficients.dtype == torch.float32
        index, weight, ties = lattice.axis_weights(model, made, axis_coord(20, device=device), 0)
        assert tuple(index.shape) == tuple(weight.shape) == (20, 8) and tuple(ties.shape) == (20,)
        assert all(t.device == torch.device(device) for t in (index, weight, ties))


@pytest.mark.parametrize('device', ['cuda:0', 'cuda:1'])
@pytest.mark.parametrize('precision', DTYPES)
def test_metasr(device, precision, monkeypatch):
    with fake_cuda(monkeypatch), torch.autocast('cpu', enabled=False):
        model = make(METASR, device)
        inp, coord = torch.rand(2, 3, 7, 9, device=device), torch.rand(2, 50, 2, device=device)
        model.gen_feat(inp)
        model.feat = model.feat.to(DTYPES[precision])  # what autocast leaves there
        found = model.query_rgb(coord, coord)
        assert tuple(found.shape) == (2, 50, 3) and found.device == torch.device(device)
        assert found.dtype == torch.float32


def test_a_tensor_on_the_cpu_is_found(monkeypatch):
    """The check can fail."""
    with fake_cuda(monkeypatch), torch.no_grad():
        model = make(small_spec(), 'cuda:1')
        codes = model.encode(torch.rand(1, 3, 7, 9, device='cuda:1'))
        with pytest.raises(Exception, match='device'):
            model.decode_grid(codes, axis_coord(20), axis_coord(31), torch.rand(2))


def test_chunk_is_half_the_cache_of_the_tensors_own_gpu(monkeypatch):
    caches = {0: 50 << 20, 1: 72 << 20}
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_properties',
                        lambda device: type('Properties', (), {'L2_cache_size': caches[device.index]}))
    assert [decode.chunk_bytes(torch.device('cuda', i)) for i in (0, 1)] == [25 << 20, 36 << 20]
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: object())
    assert decode.chunk_bytes(torch.device('cuda', 0)) == decode.GPU_CHUNK
    assert decode.chunk_bytes(torch.device('cpu')) == decode.CPU_CHUNK


def test_the_fused_product_is_the_same_function():
    """What CUDA runs, on the CPU."""
    if not hasattr(torch, '_addmm_activation'):
        pytest.skip('this torch has no fused product')
    random = torch.Generator().manual_seed(0)
    x, matrix, bias = (torch.randn(*shape, generator=random) for shape in ((50, 16), (12, 16), (12,)))
    out = torch.empty(50, 12)
    found = torch._addmm_activation(bias, x, matrix.t(), out=out)
    wanted = decode.linear_relu(x, matrix, bias, torch.empty(50, 12))
    assert error(found, wanted) <= 1e-6 and found.data_ptr() == out.data_ptr()
