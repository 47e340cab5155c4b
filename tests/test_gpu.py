"""A GPU computes what the CPU does: forward, grids, rendering, training steps. LIIF_TEST_DEVICE: another device."""
import os

import pytest
import torch

import models
from engine.rendering.renderer import Renderer
from engine.training.loop import train_step
from engine.training.state import State
from tests.common import fill_model, small_spec, uniform
from utils import make_coord


DEVICE = torch.device(os.environ.get('LIIF_TEST_DEVICE', 'cuda'))
pytestmark = pytest.mark.skipif(DEVICE.type == 'cuda' and not torch.cuda.is_available(), reason='needs a GPU')
METASR = {'name': 'metasr', 'args': {'encoder_spec': small_spec()['args']['encoder_spec']}}


def pair(spec):
    """The same model on the CPU and on the device."""
    return [fill_model(models.make(spec)).to(device) for device in ('cpu', DEVICE)]


def assert_close(found, wanted, tolerance=1e-4):
    assert found.device.type == DEVICE.type
    assert (found.detach().cpu() - wanted.detach()).abs().max() <= tolerance * wanted.detach().abs().max()


@pytest.mark.parametrize('spec', [small_spec(), METASR], ids=['liif', 'metasr'])
def test_forward_and_gradients(spec):
    inp, coord = uniform('inp', (2, 3, 9, 11)), uniform('coord', (2, 40, 2), -1, 1)
    cell = torch.full((2, 40, 2), 0.07)
    found = []
    for model in pair(spec):
        device = next(model.parameters()).device
        rgb = model(inp.to(device), coord.to(device), cell.to(device))
        rgb.square().mean().backward()
        found.append([rgb] + [p.grad for p in model.parameters() if p.grad is not None])
    for wanted, value in zip(*found):
        assert_close(value, wanted, 1e-3)


@pytest.mark.parametrize('size', [(27, 33), (40, 52), (9, 11)])
def test_grid(size):
    inp, cell = uniform('inp', (1, 3, 9, 11)), torch.tensor([2 / n for n in size])
    found = []
    with torch.no_grad():
        for model in pair(small_spec()):
            device = next(model.parameters()).device
            y, x = (make_coord((n,), device=device).view(-1) for n in size)
            found.append(model.decode_grid(model.encode(inp.to(device)), y, x, cell.to(device)))
    assert_close(found[1], found[0])


@pytest.mark.parametrize('precision, tolerance', [('float32', 1e-4), ('bf16', 0.05)])
def test_rendering(precision, tolerance):
    img, (wanted, found) = uniform('img', (3, 30, 41)), pair(small_spec())
    wanted = Renderer(wanted).open(img).render((75, 101))
    found = Renderer(found, precision=precision).open(img).render((75, 101))
    assert (found.cpu() - wanted).abs().max() <= tolerance


@pytest.mark.parametrize('precision, tolerance', [('float32', 1e-3), ('bf16', 0.05)])
def test_training_steps(precision, tolerance):
    losses = []
    for device, name in ((torch.device('cpu'), 'float32'), (DEVICE, precision)):
        torch.manual_seed(0)
        state = State({'model': small_spec(), 'optimizer': {'name': 'adam', 'args': {'lr': 1e-3}}, 'precision': name,
                       'data_norm': None, 'loss': None, 'grad_clip': 0.5, 'ema': None}, device, 1)
        fill_model(state.model).train()
        batch = {'inp': uniform('inp', (2, 3, 8, 8)), 'coord': uniform('coord', (2, 50, 2), -1, 1),
                 'cell': torch.full((2, 50, 2), 0.1), 'gt': uniform('gt', (2, 50, 3))}
        batch = {key: value.to(device) for key, value in batch.items()}
        losses.append([train_step(state.model, state, batch, 1e-3)[0].item() for _ in range(5)])
    assert torch.tensor(losses[1]) == pytest.approx(torch.tensor(losses[0]), rel=tolerance)
    assert losses[1][-1] < losses[1][0]
