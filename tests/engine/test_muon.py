"""Muon against its definition, torch.optim.Muon, Adam, and itself resumed."""
import copy

import pytest
import torch

import models
from engine.checkpoint import parse_checkpoint, to_bytes
from engine.muon import Muon, orthogonalize
from engine.optim import make_optimizer
from tests.common import small_spec


def matrices(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('shape', [(64, 576), (256, 256), (256, 64), (3, 27), (30, 1), (1, 30)])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32], ids=str)
def test_singular_values_become_one_and_singular_vectors_stay(shape, dtype, monkeypatch):
    """Against U V^T of the SVD, of matrices whose singular values differ by up to a factor of 100."""
    monkeypatch.setattr('engine.muon.has_bf16', lambda device: dtype is torch.bfloat16)
    u, s, v = torch.linalg.svd(matrices(4, *shape), full_matrices=False)
    s = torch.logspace(-2, 0, s.shape[-1]).flip(0).expand_as(s)
    found = orthogonalize(u @ torch.diag_embed(s) @ v)
    assert found.dtype == dtype and found.shape == (4, *shape)
    values = torch.linalg.svdvals(found.float())
    assert 0.6 < values.min() and values.max() < 1.25
    core = u.mT @ found.float() @ v.mT  # diagonal, but for the rounding of bfloat16
    off_diagonal = core - torch.diag_embed(core.diagonal(dim1=1, dim2=2))
    assert core.diagonal(dim1=1, dim2=2).min() > 0.6 and off_diagonal.abs().max() < 0.05


def test_a_zero_matrix_stays_zero():
    assert not orthogonalize(torch.zeros(2, 5, 7)).any()


@pytest.mark.parametrize('shape', [(64, 576), (256, 64)])
def test_a_batch_is_its_matrices_one_at_a_time(shape):
    x = matrices(5, *shape)
    assert torch.equal(orthogonalize(x), torch.cat([orthogonalize(one[None]) for one in x]))


def test_a_tall_matrix_is_the_transpose_of_a_wide_one():
    x = matrices(1, 40, 12)
    assert torch.equal(orthogonalize(x), orthogonalize(x.mT).mT)


def network(frozen=()):
    """A LIIF with gradients, the same each time."""
    torch.manual_seed(0)
    model = models.make(small_spec())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in frozen)
    return model


def step(model, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = 0.01 * torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def hidden(model):
    """Names of the weights that Muon orthogonalizes: all but the first, the last and the frozen ones."""
    return [name for name, p in model.named_parameters() if p.ndim > 1 and p.requires_grad][1:-1]


@pytest.mark.skipif(not hasattr(torch.optim, 'Muon'), reason='torch.optim.Muon came with torch 2.9')
def test_hidden_weights_move_as_by_torchs_muon():
    """Five steps, to the rounding of bfloat16. Its momentum buffer is a mean, which only scales the direction."""
    model, other = network(), network()
    mine = Muon(model.parameters(), lr=0.02)
    wanted = dict(other.named_parameters())
    flat = {name: torch.nn.Parameter(wanted[name].detach().flatten(1).clone()) for name in hidden(other)}
    theirs = torch.optim.Muon(flat.values(), lr=0.02, weight_decay=0, momentum=0.95, nesterov=True, ns_steps=5)
    start = {name: value.detach().clone() for name, value in flat.items()}
    for seed in range(5):
        step(model, mine, seed)
        for name, parameter in model.named_parameters():
            if name in flat:
                flat[name].grad = parameter.grad.flatten(1).clone()
        theirs.step()
    for name, parameter in model.named_parameters():
        if name in flat:
            moved, expected = (value.detach().flatten(1) - start[name] for value in (parameter, flat[name]))
            assert (moved - expected).norm() < 0.05 * expected.norm(), name


def test_the_other_weights_move_as_by_adam():
    """The first and the last weight and all biases; lr scales adam_lr in proportion."""
    model, other = network(), network()
    mine = Muon(model.parameters(), lr=0.02, adam_lr=1e-3, adam_betas=(0.9, 0.99))
    adam = torch.optim.Adam(other.parameters(), lr=1e-3, betas=(0.9, 0.99))
    for seed, share in enumerate((1, 1, 0.5)):
        mine.param_groups[0]['lr'], adam.param_groups[0]['lr'] = 0.02 * share, 1e-3 * share
        step(model, mine, seed)
        step(other, adam, seed)
    matrices_of, wanted = hidden(model), dict(other.named_parameters())
    assert len(matrices_of) == 7  # of 2 blocks, the convolution after them, and the decoder's second layer
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, wanted[name]) != (name in matrices_of), name


def test_frozen_parameters_stay_and_do_not_count_as_first_or_last():
    frozen = ('encoder.head.0.weight', 'imnet.layers.4.weight')
    model = network(frozen)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = Muon(model.parameters(), lr=0.02, weight_decay=0.1)
    for seed in range(2):
        step(model, optimizer, seed)
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name], parameter) != parameter.requires_grad, name
        assert (parameter in optimizer.state) == parameter.requires_grad
    names = hidden(model)
    assert 'encoder.body.0.body.0.weight' not in names and 'imnet.layers.2.weight' not in names
    assert all(('momentum_buffer' in optimizer.state[p]) == (name in names) for name, p in model.named_parameters())


def test_weight_decay_shrinks_the_hidden_weights_alone():
    model, other = network(), network()
    for one, decay in ((model, 0), (other, 0.5)):
        step(one, Muon(one.parameters(), lr=0.02, weight_decay=decay), 0)
    start, names = dict(network().named_parameters()), hidden(model)
    for (name, a), b in zip(model.named_parameters(), other.parameters()):
        assert torch.allclose(b, a - 0.01 * start[name] * (name in names), atol=1e-7), name


def test_a_saved_state_goes_on_bit_for_bit():
    """Through a checkpoint file that holds nothing but tensors and plain values (weights_only)."""
    args = {'lr': 0.02, 'adam_betas': [0.9, 0.99]}
    model = network()
    optimizer = make_optimizer(model.parameters(), {'name': 'muon', 'args': args})
    for seed in range(3):
        step(model, optimizer, seed)
    saved = parse_checkpoint(bytes(to_bytes({
        'model': {**small_spec(), 'sd': model.state_dict()}, 'epoch': 1,
        'optimizer': {'name': 'muon', 'args': args, 'sd': optimizer.state_dict()}})), 'saved')
    assert set(saved['optimizer']['sd']['param_groups'][0]) == {
        'lr', 'peak_lr', 'momentum', 'weight_decay', 'adam_lr', 'adam_betas', 'adam_eps', 'iterations', 'params'}
    states = saved['optimizer']['sd']['state'].values()
    assert {tuple(sorted(state)) for state in states} == {('momentum_buffer',), ('exp_avg', 'exp_avg_sq', 'step')}

    resumed = network()
    resumed.load_state_dict(saved['model']['sd'])
    again = make_optimizer(resumed.parameters(), {'name': 'muon', 'args': args})
    again.load_state_dict(copy.deepcopy(saved['optimizer']['sd']))
    for seed in (3, 4):
        step(model, optimizer, seed)
        step(resumed, again, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters()))
