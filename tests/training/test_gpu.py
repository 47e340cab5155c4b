"""What a GPU would show, without one: fake CUDA tensors run the forward pass, recorded fakes stand for the calls that
PyTorch makes on the current device."""
import types

import pytest
import torch

import models
from engine import distributed, runtime
from engine.checkpoint import PUBLISHED_NORM
from engine.evaluation import evaluate
from engine.training import loop, monitor
from tests.common import small_spec
from utils import calc_psnr


try:
    from torch._subclasses.fake_tensor import FakeTensorMode
except ImportError:  # the module is private
    FakeTensorMode = None


METASR = {'name': 'metasr', 'args': {'encoder_spec': small_spec()['args']['encoder_spec']}}


@pytest.fixture
def calls(monkeypatch):
    """The calls on the current device, in order, as (name, device)."""
    found, devices = [], {'current': 'cuda:0'}

    def set_device(device):
        devices['current'] = str(device)
        found.append(('set_device', str(device)))

    class Event:
        def record(self, stream=None):
            found.append(('record', stream or f'stream of {devices["current"]}'))

        def synchronize(self):
            found.append(('synchronize',))

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', set_device)
    monkeypatch.setattr(torch.cuda, 'Event', Event)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device=None: f'stream of {device or devices["current"]}')
    monkeypatch.setattr(torch.distributed, 'init_process_group',
                        lambda backend, **options: found.append((backend, str(options.get('device_id')))))
    return found


@pytest.mark.parametrize('environment, gpu, wanted', [
    ({}, '1', [('set_device', 'cuda:1')]),
    ({'LOCAL_RANK': '1', 'RANK': '1', 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2'}, None,
     [('set_device', 'cuda:1'), ('nccl', 'cuda:1')]),
    ({'LOCAL_RANK': '1', 'RANK': '1', 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2'}, 'cpu', [('gloo', 'None')])])
def test_the_device_is_the_current_one_before_processes_join(monkeypatch, calls, environment, gpu, wanted):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    distributed.join(runtime.select_device(gpu))
    assert calls == wanted


def on_gpu(device, copy):
    return types.SimpleNamespace(is_cuda=True, device=device, to=copy)


def test_results_are_read_when_their_copy_has_arrived(calls):
    """The event is recorded on the stream of the tensor's device, after the copy began, and awaited before the copy is
    read."""
    class Copy:
        def tolist(self):
            calls.append(('read',))
            return [0.5, 0, 0, 1.0]

    def to(device, non_blocking):
        calls.append(('copy', device, non_blocking))
        return Copy()
    copy, wait = runtime.copy_to_host(on_gpu('cuda:1', to))
    state = types.SimpleNamespace(scaler=torch.amp.GradScaler('cpu', enabled=False), epoch=1, step=0, skipped=0,
                                  loss=types.SimpleNamespace(add=lambda value: None))
    watch = monitor.Monitor(state, None, None, None)
    assert not watch.record(monitor.Result(copy, wait, 1e-4, None)) and not watch.record()
    assert calls == [('copy', 'cpu', True), ('record', 'stream of cuda:1'), ('synchronize',), ('read',)]


def test_a_result_on_the_cpu_is_there_at_once(calls):
    values = torch.rand(3)
    copy, wait = runtime.copy_to_host(values)
    wait()
    assert copy is values and not calls


@pytest.mark.parametrize('new', [True, False])
@pytest.mark.parametrize('precision, wanted', [(None, False), ('float32', False), ('tf32', True), ('bf16', False)])
def test_float32_is_ieee_and_tf32_is_asked_for(monkeypatch, new, precision, wanted):
    """Of convolutions and matrix products alike, through the switches of torch 2.9 and the older ones."""
    conv = {'conv': types.SimpleNamespace(fp32_precision='none')} if new else {'allow_tf32': True}
    cudnn, matmul = types.SimpleNamespace(**conv), types.SimpleNamespace()
    monkeypatch.setattr(torch.backends, 'cudnn', cudnn)
    monkeypatch.setattr(torch.backends.cuda, 'matmul', matmul)
    runtime.allow_tf32(not wanted)
    monkeypatch.setattr(torch, 'autocast', lambda *args, **options: None)
    runtime.autocast(torch.device('cuda:1'), precision)
    if new:
        assert cudnn.conv.fp32_precision == matmul.fp32_precision == ('tf32' if wanted else 'ieee')
    else:
        assert cudnn.allow_tf32 is matmul.allow_tf32 is wanted


class Autocast:
    """torch.autocast('cuda') switches itself off without a GPU, so its flags are set by hand."""

    def __init__(self, device, precision):
        self.precision = precision
        assert device.type == 'cuda'

    def __enter__(self):
        torch.set_autocast_enabled('cuda', self.precision != 'float32')
        if self.precision != 'float32':
            torch.set_autocast_dtype('cuda', runtime.DTYPES[self.precision])

    def __exit__(self, *error):
        torch.set_autocast_enabled('cuda', False)
        torch.clear_autocast_cache()


def new_tensor(self, data):
    """That of a fake tensor is on cuda:0, whatever the device of its source."""
    return torch.tensor(data, dtype=self.dtype, device=self.device)


@pytest.fixture(params=['cuda:0', 'cuda:1'])
def device(request, monkeypatch):
    """A CUDA device whose tensors are fake: they know their shape and device, and operations on two devices fail."""
    if FakeTensorMode is None:
        pytest.skip('this PyTorch has no FakeTensorMode')
    for module in (loop, evaluate):
        monkeypatch.setattr(module, 'autocast', Autocast)
    monkeypatch.setattr(torch.Tensor, 'new_tensor', new_tensor)
    with FakeTensorMode():
        yield torch.device(request.param)


def make_model(spec, device):
    with device:  # `.to` cannot move fake parameters
        return models.make(spec)


def fake_batch(device, all_pixels):
    """As `unpack` gives it. Sizes have values, which a fake tensor does not."""
    b, q = (1, 120) if all_pixels else (2, 20)
    return {'inp': torch.rand(b, 3, 6, 5, device=device), 'gt': torch.rand(b, q, 3, device=device),
            'coord': None if all_pixels else torch.rand(b, q, 2, device=device),
            'cell': torch.rand(b, 1, 2, device=device), 'size': [types.SimpleNamespace(tolist=lambda: [12, 10])] * b}


@pytest.mark.parametrize('precision', ['float32', 'bf16', 'fp16'])
@pytest.mark.parametrize('spec', [small_spec(), METASR], ids=['liif', 'metasr'])
@pytest.mark.parametrize('all_pixels', [False, True])
def test_the_loss_stays_on_its_device(device, spec, precision, all_pixels):
    model = make_model(spec, device).train()
    config = {'data_norm': PUBLISHED_NORM, 'precision': precision, 'loss': None}
    loss = loop.batch_loss(model, config, fake_batch(device, all_pixels))
    assert loss.device == device and loss.dtype == torch.float32 and loss.requires_grad


@pytest.mark.parametrize('precision', ['float32', 'bf16', 'fp16'])
@pytest.mark.parametrize('spec', [small_spec(), METASR], ids=['liif', 'metasr'])
@pytest.mark.parametrize('eval_type, eval_bsize', [(None, None), (None, 50), ('benchmark-2', 50)])
def test_validation_stays_on_its_device(device, monkeypatch, spec, precision, eval_type, eval_bsize):
    def on_device(pred, gt, *rest):
        psnr = calc_psnr(pred, gt, *rest)
        assert psnr.device == pred.device == gt.device == device
        return types.SimpleNamespace(item=lambda: 30.0)
    monkeypatch.setattr(evaluate, 'calc_psnr', on_device)
    model = make_model(spec, device).eval()
    batches = [fake_batch(device, all_pixels) for all_pixels in ((True,) if eval_type else (False, True))]

    def predict(batch):
        return evaluate.predict_rgb(model, batch, PUBLISHED_NORM, eval_bsize, precision)
    assert [part.psnr for part in evaluate.measure(batches, predict, device, eval_type)] == [30.0] * len(batches)


def test_the_check_notices_a_mix_of_devices(device):
    batch = fake_batch(device, all_pixels=False)
    batch['coord'] = torch.rand(2, 20, 2)
    with pytest.raises(RuntimeError, match='device'):
        config = {'data_norm': None, 'precision': 'float32', 'loss': None}
        loop.batch_loss(make_model(small_spec(), device), config, batch)
