r"""Sequential Monte Carlo along a tempered path: draws of every mode, before any flow is trained.

Particles move through

.. math:: \log\pi_\beta = (1 - \beta)\log b + \beta \log\tilde p, \qquad 0 = \beta_0 < \dots < 1,

from a Gaussian (and uniform on angles) :math:`b`. At each stage the next :math:`\beta` is the one
at which the weights :math:`w = (\tilde p / b)^{\Delta\beta}` keep a given effective sample size;
then the particles are resampled, and moved by MALA (Del Moral et al., 2006,
https://doi.org/10.1111/j.1467-9868.2006.00553.x). The product of the mean weights estimates Z.
"""

from __future__ import annotations

from math import log
from typing import NamedTuple

import torch
from torch import Tensor

from ..importance import ess_fraction
from ..target import Target
from . import bridge, langevin
from .bridge import Base, overdispersed_base

__all__ = ["Particles", "tempered", "tempered_ensemble"]


class Particles(NamedTuple):
    """Equally weighted particles.

    Attributes:
        x: Positions, ``(N, d)``.
        log_z: Estimate of the log evidence, 0-d.
        betas: The temperatures' inverses that were visited.
    """

    x: Tensor
    log_z: Tensor
    betas: list[float]


def _next_beta(log_ratio: Tensor, beta: float, ess: float) -> float:
    """The largest next beta whose weights keep an ESS fraction of ``ess``, by bisection."""
    low, high = beta, 1.0
    if float(ess_fraction((1 - beta) * log_ratio)) >= ess:
        return 1.0
    for _ in range(30):
        middle = 0.5 * (low + high)
        if float(ess_fraction((middle - beta) * log_ratio)) >= ess:
            low = middle
        else:
            high = middle
    return max(low, min(1.0, beta + 1e-6))


def _systematic(log_w: Tensor) -> Tensor:
    """Indices of a systematic resampling, ``(N,)``."""
    edges = log_w.softmax(0).cumsum(0)
    grid = (torch.arange(len(log_w), device=log_w.device) + torch.rand((), device=log_w.device)) / (
        len(log_w)
    )
    return torch.searchsorted(edges, grid.to(edges)).clamp(max=len(log_w) - 1)


def _density(target: Target, base: Base, beta: float, scale: Tensor) -> langevin.Density:
    r""":math:`\pi_\beta` in the coordinates z = x / scale."""

    def density(z: Tensor) -> langevin.State:
        betas = z.new_full(z.shape[:1], beta, dtype=torch.double)
        return langevin.State(*bridge.density(target, base, betas, scale)(z)[:6])

    return density


def _local_scale(grad: Tensor) -> Tensor:
    r""":math:`(\mathbb E\,g_i^2)^{-1/2}`: a Gaussian's standard deviation, the width of modes.

    Scores are clipped at their 95 % quantile, lest one particle on a cliff set the scale.
    """
    bound = grad.abs().float().quantile(0.95, dim=0).to(grad)
    return grad.abs().clamp(max=bound).square().mean(0).rsqrt().clamp(1e-6, 1e6)


def tempered(
    target: Target,
    num: int = 4096,
    *,
    moves: int = 10,
    ess: float = 0.8,
    target_accept_prob: float = 0.574,
) -> Particles:
    """Runs ``num`` particles from an over-dispersed Gaussian to the target.

    Arguments:
        target: Where to.
        num: Particles.
        moves: MALA steps a stage; each also corrects the step size.
        ess: ESS fraction that fixes the next stage.
        target_accept_prob: Acceptance that the step size is steered to.

    Raises:
        ValueError: The target's density is not finite anywhere.
    """
    base = overdispersed_base(target, 512)
    x = base.sample(num)
    step = torch.full_like(x[0, 0], langevin.optimal_step_size(target.dim))
    state = langevin.init(x, _density(target, base, 0.0, torch.ones_like(x[0])))
    beta, betas, log_z = 0.0, [0.0], torch.zeros((), dtype=torch.double, device=x.device)
    while beta < 1:
        log_ratio = torch.nan_to_num(state.log_p - state.log_q, nan=-torch.inf)
        previous, beta = beta, _next_beta(log_ratio, beta, ess)
        log_w = (beta - previous) * log_ratio
        log_z = log_z + log_w.logsumexp(0) - log(num)
        x = state.x[_systematic(log_w)]
        ones = torch.ones_like(x[0])
        scale = _local_scale(langevin.init(x, _density(target, base, beta, ones)).grad)
        density = _density(target, base, beta, scale)
        state = langevin.init(x / scale, density)
        for _ in range(moves if beta < 1 else 3 * moves):
            noise, log_u = torch.randn_like(state.z), torch.rand_like(state.log_pi).log()
            state, info = langevin.mala(state, density, step, noise, log_u)
            step = step * (0.5 * (info.accept_prob.mean() - target_accept_prob)).exp().to(step)
        betas.append(beta)
    return Particles(target.wrap(state.x), log_z, betas)


def tempered_ensemble(target: Target) -> Tensor:
    """4096 draws of a target with several modes, ``(4096, d)``, to train a flow on.

    Use as ``AutoFlow(model, ensemble=tempered_ensemble)``.
    """
    return tempered(target).x
