"""Every model has the published parameters and computes the published values."""
import copy

import pytest
import torch

import models
from engine.optim import make_optimizer
from tests.common import error, fill_model, golden, small_model, small_spec
from utils import UserError


SPECS = golden('models.json')
VALUES = golden('models.npz')


@pytest.mark.parametrize('name', SPECS)
def test_parameters(name):
    """Keys, their order, shapes and the parameter count; the unused mean shifts are frozen but counted."""
    with torch.device('meta'):
        model = models.make(SPECS[name]['spec'])
    found = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert list(found.items()) == list(SPECS[name]['state_dict'].items())
    assert sum(p.numel() for p in model.parameters()) == SPECS[name]['params']
    assert {k for k, p in model.named_parameters() if not p.requires_grad} == {k for k in found if '_mean.' in k}


@pytest.mark.parametrize('name', [n for n in SPECS if n in VALUES.files])
def test_golden_values(name):
    model = fill_model(models.make(SPECS[name]['spec']))
    inp, coord, cell = (torch.from_numpy(VALUES[k]) for k in ('inp', 'coord', 'cell'))
    wanted = torch.from_numpy(VALUES[name])
    with torch.no_grad():
        assert error(model(inp, coord, cell), wanted) <= 1e-5
        feat = model.gen_feat(inp)
        assert error(model.query_rgb(coord, cell), wanted) <= 1e-5
    mean, std = VALUES[f'{name}/feat_mean_std']
    assert abs(feat.mean().item() - mean) <= 1e-5 * std and abs(feat.std().item() - std) <= 1e-5 * std


def test_specs_are_not_changed_or_shared():
    spec = small_spec()
    before = copy.deepcopy(spec)
    models.make(spec)
    assert spec == before


def test_make_loads_parameters():
    model = small_model()
    again = models.make({**small_spec(), 'sd': model.state_dict()}, load_sd=True)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_make_refuses_other_parameters():
    spec = {**small_spec(n_feats=4), 'sd': small_model().state_dict()}
    with pytest.raises(UserError, match=r'encoder.head.0.weight is \(8, 3, 3, 3\), expected \(4, 3, 3, 3\)'):
        models.make(spec, load_sd=True)


@pytest.mark.parametrize('spec, words', [
    ({'name': 'lief', 'args': {}}, "'lief' is not known; known: .*liif"),
    ({'args': {}}, 'a model spec is'),
    ('liif', 'a model spec is'),
    ({'name': 'mlp', 'args': [1]}, 'args is a mapping'),
    ({'name': 'edsr', 'args': {'n_blocks': 3}}, 'n_blocks.*it takes n_resblocks'),
    ({'name': 'edsr', 'args': {'scale': 5}}, 'scale: found 5, expected one of 1, 2, 3, 4, 8'),
    ({'name': 'rdn', 'args': {'scale': 8}}, 'scale: found 8, expected one of 2, 3, 4'),
    ({'name': 'rdn', 'args': {'RDNconfig': 'C'}}, "model 'rdn': RDNconfig: found 'C', expected one of A, B"),
])
def test_bad_specs_say_what_is_wrong(spec, words):
    with pytest.raises(UserError, match=words):
        models.make(spec)


def test_null_means_the_default():
    """As in a config; other values reach the constructor as they are."""
    assert len(models.make({'name': 'edsr-baseline', 'args': {'n_resblocks': None, 'n_feats': 4}}).body) == 17
    decoder = models.make({'name': 'mlp', 'args': {'out_dim': 3, 'hidden_list': (5, 6)}}, {'in_dim': 2})
    assert decoder.layers[2].in_features == 5
    with pytest.raises(UserError, match="model 'mlp': out_dim: found null, expected an integer from 1 to 65536"):
        models.make({'name': 'mlp', 'args': {'in_dim': 2, 'out_dim': None, 'hidden_list': []}})


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match='registered twice'):
        models.register('liif')(torch.nn.Linear)


def test_rcan_draws_its_weights_in_the_published_order():
    """Two layers that are never used draw as well: sub_mean first, add_mean after the body, before the up-sampler."""
    args = dict(n_resgroups=1, n_resblocks=1, n_feats=4, reduction=2)
    torch.manual_seed(0)
    encoder = models.make({'name': 'rcan', 'args': {**args, 'scale': 2}})
    torch.manual_seed(0)
    drawn = [torch.nn.Conv2d(*shape) for shape in (  # in, out, kernel size
        (3, 3, 1), (3, 4, 3), (4, 4, 3), (4, 4, 3), (4, 2, 1), (2, 4, 1), (4, 4, 3), (4, 4, 3), (3, 3, 1), (4, 16, 3),
        (4, 3, 3))]
    found = [layer for name, layer in encoder.named_modules()
             if isinstance(layer, torch.nn.Conv2d) and not name.endswith('_mean')]
    for layer, want in zip(found, drawn[1:8] + drawn[9:], strict=True):
        assert torch.equal(layer.weight, want.weight) and torch.equal(layer.bias, want.bias)
    assert [name for name, _ in encoder.named_children()] == ['sub_mean', 'add_mean', 'head', 'body', 'tail']


@pytest.mark.parametrize('name, scales', [('edsr-baseline', (1, 2, 3, 4, 8)), ('rcan', (2, 3)), ('rdn', (2, 3, 4))])
def test_encoders_with_their_own_upsampler(name, scales):
    small = {'edsr-baseline': dict(n_resblocks=1, n_feats=4), 'rcan': dict(n_resgroups=1, n_resblocks=1, n_feats=16),
             'rdn': dict(G0=4, RDNconfig='A')}[name]
    for scale in scales:
        encoder = models.make({'name': name, 'args': {**small, 'scale': scale}})
        assert encoder.out_dim == 3
        assert encoder(torch.zeros(1, 3, 5, 7)).shape == (1, 3, 5 * scale, 7 * scale)
    features = models.make({'name': name, 'args': {**small, 'no_upsampling': True}})
    assert features(torch.zeros(1, 3, 5, 7)).shape == (1, features.out_dim, 5, 7)


@pytest.mark.parametrize('name, args', [
    ('edsr-baseline', dict(n_resblocks=3, n_feats=4)), ('rdn', dict(G0=4, RDNconfig='A'))])
def test_receptive_radius(name, args):
    """An output code depends on inputs exactly `receptive_radius` away and on none beyond."""
    torch.manual_seed(0)
    encoder = models.make({'name': name, 'args': {**args, 'no_upsampling': True}}).double()
    for p in encoder.parameters():  # positive weights: nothing cancels, no ReLU closes
        p.data = p.data.abs() + 1e-3
    r = encoder.receptive_radius
    inp = torch.rand(1, 3, 1, 2 * r + 3, dtype=torch.float64, requires_grad=True)
    encoder(inp)[..., r + 1].sum().backward()
    seen = inp.grad.abs().sum((0, 1, 2)) > 0
    assert seen.tolist() == [False] + [True] * (2 * r + 1) + [False]


def test_published_optimizer_state_loads():
    """Adam's state of the published code counts all parameters by position and holds none for the frozen ones."""
    model = small_model()
    parameters = list(model.parameters())
    state = {i: {'step': torch.tensor(7.), 'exp_avg': torch.zeros_like(p), 'exp_avg_sq': torch.ones_like(p)}
             for i, p in enumerate(parameters) if p.requires_grad}
    group = {'lr': 5e-5, 'betas': (0.9, 0.999), 'eps': 1e-8, 'weight_decay': 0, 'amsgrad': False,
             'params': list(range(len(parameters)))}
    optimizer = make_optimizer(model.parameters(), {'name': 'adam', 'args': {'lr': 1e-4}})
    optimizer.load_state_dict({'state': state, 'param_groups': [group]})
    model(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 2), torch.ones(1, 2, 2)).sum().backward()
    optimizer.step()
    assert optimizer.param_groups[0]['lr'] == 5e-5
    assert all(optimizer.state[p]['step'] == 8 for p in parameters if p.requires_grad)


def test_an_mlp_takes_no_queries_at_all():
    mlp = models.make({'name': 'mlp', 'args': {'in_dim': 4, 'out_dim': 3, 'hidden_list': [8]}})
    assert mlp(torch.zeros(2, 0, 4)).shape == (2, 0, 3)
