"""What several tests share: the golden values' weights by rule, and small models."""
import json
import math
import os
import zlib

import numpy as np
import torch

import models


ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the folder of the project
GOLDEN = os.path.join(ROOT, 'tests', 'golden')


def seeds(*default):
    """The seeds of a random test: `default`, or LIIF_SEEDS=FIRST-LAST (scripts/torture.py)."""
    first, _, last = os.environ.get('LIIF_SEEDS', '').partition('-')
    return range(int(first), int(last) + 1) if last else default


def golden(name):
    path = os.path.join(GOLDEN, name)
    if name.endswith('.json'):
        with open(path) as f:
            return json.load(f)
    return np.load(path)


def fill(key, shape):
    """The golden values' weight for a state-dict key."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    scale = 1 / math.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1
    return (rng.standard_normal(tuple(shape)) * scale).astype(np.float32)


def fill_model(model):
    """Give a model the golden values' weights; the fixed mean shifts keep theirs."""
    state = model.state_dict()
    for key, value in state.items():
        if 'sub_mean' not in key and 'add_mean' not in key:
            state[key] = torch.from_numpy(fill(key, value.shape)).to(value.dtype)
    model.load_state_dict(state)
    return model.eval()


def uniform(name, shape, lo=0.0, hi=1.0):
    """The golden values' input called `name`."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return torch.from_numpy((lo + (hi - lo) * rng.random(shape)).astype(np.float32))


def small_spec(hidden=(16, 16), n_resblocks=2, n_feats=8, **args):
    """Spec of a LIIF that runs in a moment."""
    return {'name': 'liif', 'args': {
        'encoder_spec': {'name': 'edsr-baseline', 'args': {
            'n_resblocks': n_resblocks, 'n_feats': n_feats, 'no_upsampling': True}},
        'imnet_spec': {'name': 'mlp', 'args': {'out_dim': 3, 'hidden_list': list(hidden)}}, **args}}


def small_model(**args):
    return fill_model(models.make(small_spec(**args)))


def error(found, wanted):
    """max |a - b| / max |b|."""
    return ((found - wanted).abs().max() / wanted.abs().max()).item()
