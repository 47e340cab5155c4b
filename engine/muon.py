"""Muon: gradient descent with momentum whose steps are orthogonal matrices (Jordan et al., 2024)."""
import math
from typing import Annotated

import torch
from torch.optim.adam import adam

from engine.runtime import has_bf16
from utils import Integer, ListOf, Number


BETAS = ListOf(Number(0, 1, below=True), 2, 2, 'a list of two numbers >= 0 and < 1')
QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of the Newton-Schulz iteration, chosen for a steep slope at 0


class Muon(torch.optim.Optimizer):
    """Muon for the hidden weights, Adam for the rest: the first and the last weight, the biases, all vectors.

    A convolution kernel (out, in, k, k) counts as the matrix (out, in * k * k). Matrices of one shape are
    orthogonalized together, in one batch. torch.optim.Muon takes 2-D weights only, and torch 2.5 has none. A step with
    rate lr adds to a matrix

        -lr * sqrt(max(1, out / in)) * orthogonalize(grad + momentum * buffer),  buffer = momentum * buffer + grad

    params: in the order of the network, frozen ones included (they get no step). A schedule that changes lr changes
    adam_lr in proportion.
    """

    def __init__(self, params, lr: Annotated[float, Number(0, above=True), 'learning rate of the hidden weights'],
                 momentum: Annotated[float, Number(0, 1, below=True), 'momentum of the hidden weights'] = 0.95,
                 weight_decay: Annotated[float, Number(0), 'decay of the hidden weights in a step, times lr'] = 0,
                 adam_lr: Annotated[float, Number(0), 'learning rate of the other weights, by Adam'] = 1e-3,
                 adam_betas: Annotated[list, BETAS, "decay of Adam's running means"] = (0.9, 0.99),
                 adam_eps: Annotated[float, Number(0, above=True), "added to Adam's denominator"] = 1e-8,
                 iterations: Annotated[int, Integer(1, 100), 'Newton-Schulz iterations'] = 5):
        super().__init__(params, dict(lr=lr, peak_lr=lr, momentum=momentum, weight_decay=weight_decay, adam_lr=adam_lr,
                                      adam_betas=tuple(adam_betas), adam_eps=adam_eps, iterations=iterations))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            weights = [p for p in group['params'] if p.requires_grad and p.ndim > 1][1:-1]
            hidden = {id(p) for p in weights}
            self._step_matrices(group, [p for p in weights if p.grad is not None])
            self._step_others(group, [p for p in group['params'] if p.grad is not None and id(p) not in hidden])

    def _step_matrices(self, group, weights):
        if not weights:
            return
        momentum, grads = group['momentum'], [p.grad for p in weights]
        for p in weights:
            if not self.state[p]:
                self.state[p]['momentum_buffer'] = torch.zeros_like(p)
        buffers = [self.state[p]['momentum_buffer'] for p in weights]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads)
        directions = torch._foreach_add(grads, buffers, alpha=momentum)  # Nesterov
        if group['weight_decay']:
            torch._foreach_mul_(weights, 1 - group['lr'] * group['weight_decay'])
        shapes = {}
        for p, direction in zip(weights, directions):
            shapes.setdefault((p.shape[0], p[0].numel()), []).append((p, direction))
        for (rows, columns), members in shapes.items():
            batch = torch.stack([direction.flatten(1) for _, direction in members])  # (N, rows, columns)
            rate = group['lr'] * math.sqrt(max(1, rows / columns))
            for (p, _), update in zip(members, orthogonalize(batch, group['iterations']).to(p.dtype)):
                p.add_(update.view(p.shape), alpha=-rate)

    def _step_others(self, group, params):
        if not params:
            return
        for p in params:
            if not self.state[p]:
                self.state[p].update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(p),
                                     exp_avg_sq=torch.zeros_like(p))
        exp_avg, exp_avg_sq, steps = ([self.state[p][key] for p in params] for key in ('exp_avg', 'exp_avg_sq', 'step'))
        beta1, beta2 = group['adam_betas']
        adam(params, [p.grad for p in params], exp_avg, exp_avg_sq, [], steps, amsgrad=False, beta1=beta1, beta2=beta2,
             lr=group['adam_lr'] * group['lr'] / group['peak_lr'], weight_decay=0, eps=group['adam_eps'],
             maximize=False)


def orthogonalize(x, iterations=5):
    """Matrices near U V^T, where x = U S V^T, by a Newton-Schulz iteration.

    After 5 iterations their singular values lie in [0.6, 1.25], except for those which in x are below 1/400 of its
    norm: they are smaller.

    x: (N, rows, columns). Returns (N, rows, columns), bfloat16, or float32 on a device that would emulate it; a zero
    matrix stays zero.
    """
    wide = x if x.shape[1] <= x.shape[2] else x.mT
    wide = (wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(torch.bfloat16 if has_bf16(x.device) else x.dtype)
    a, b, c = QUINTIC
    for _ in range(iterations):
        gram = wide @ wide.mT  # (N, rows, rows)
        wide = a * wide + (b * gram + c * (gram @ gram)) @ wide
    return wide if x.shape[1] <= x.shape[2] else wide.mT
