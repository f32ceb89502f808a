r"""Sequential Monte Carlo along a tempered path: draws of every mode, before any flow is trained.

Particles move through

.. math:: \log\pi_\beta = (1 - \beta)\log b + \beta \log\tilde p, \qquad 0 = \beta_0 < \dots < 1,

from a Gaussian (and uniform on angles) :math:`b`. At each stage the next :math:`\beta` is the one
at which the weights :math:`w = (\tilde p / b)^{\Delta\beta}` keep a given effective sample size;
then the particles are resampled, and moved by MALA (Del Moral et al., 2006,
https://doi.org/10.1111/j.1467-9868.2006.00553.x). The product of the mean weights estimates Z.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..importance import ess_fraction
from ..target import Target
from . import bridge, langevin, transport

__all__ = ["Particles", "tempered", "tempered_ensemble", "tempered_ensembles"]


EACH = 500  #: draws of an ensemble for each of several contexts


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
        ValueError: The target's density is not finite anywhere, or it is at several contexts.
    """
    if target.contexts is not None:
        raise ValueError("particles at several contexts would mix: use tempered_ensembles")
    base = bridge.overdispersed_base(target, 512)
    x = base.sample(num)
    ones, betas = torch.ones_like(x[0]), [0.0]
    step_size = torch.full_like(x[0, 0], langevin.optimal_step_size(target.dim))
    cloud = transport.init(x, bridge.density(target, base, ones[0] * 0, ones))
    while betas[-1] < 1:
        beta = bridge.next_beta(cloud.state.log_ratio, betas[-1], ess)
        at = ones[0] * beta
        cloud = transport.reweight(cloud, bridge.place(cloud.state, at, ones))
        cloud = transport.resample(cloud, below=torch.inf)
        scale = bridge.local_scale(cloud.state.grad, cloud.x)
        cloud = cloud._replace(state=bridge.place(cloud.state, at, scale))
        density = bridge.density(target, base, at, scale)
        stage = transport.Stage(None, density, scale, step_size)
        count = moves if beta < 1 else 3 * moves
        cloud, step_size = transport.tune(cloud, stage, count, target_accept_prob)
        betas.append(beta)
    return Particles(target.wrap(cloud.x), cloud.log_z[0], betas)


def tempered_ensemble(target: Target) -> Tensor:
    """4096 draws of a target with several modes, ``(4096, d)``, to train a flow on.

    Use as ``AutoFlow(model, ensemble=tempered_ensemble)``.
    """
    return tempered(target).x


def tempered_ensembles(target: Target, num: int = EACH, *, moves: int = 10) -> Tensor:
    """Draws of a conditional target at each of its contexts, all at once, ``(K, num, d)``.

    The particles of a context are an island with a path and a step size of its own; beside that it
    is :func:`tempered`.

    Arguments:
        target: At K contexts, :meth:`~pyro_flowsamp.Target.at`.
        num: Particles for each of them.
        moves: MALA steps a stage.

    Raises:
        ValueError: The target is at no contexts, one of them has no point of finite density, or
            there are too few particles.
    """
    if target.contexts is None:
        raise ValueError("give a target at contexts: target.at(contexts)")
    if num < 2:
        raise ValueError(f"need two particles at least for each context, got {num}")
    count = len(target.contexts)
    rows = target.at(target.contexts.repeat_interleave(num, 0))
    base = bridge.overdispersed_base(target, count * -(-512 // count))
    x = base.sample(count * num)
    beta = x.new_zeros(count, dtype=torch.double)
    step_size = torch.full_like(x[:count, 0], langevin.optimal_step_size(target.dim))
    ones = torch.ones_like(x)
    cloud = transport.init(x, bridge.density(rows, base, beta.repeat_interleave(num), ones), count)
    alive = torch.isfinite(cloud.state.log_ratio).view(count, num).any(1)
    if not bool(alive.all()):
        raise ValueError(
            f"the density is zero or NaN at all {num} starting points at the contexts "
            f"{target.contexts[~alive].tolist()}"
        )
    while float(beta.min()) < 1:
        beta = _next_betas(cloud.state.log_ratio.view(count, num), beta)
        at = beta.repeat_interleave(num)
        cloud = transport.reweight(cloud, bridge.place(cloud.state, at, ones))
        cloud = transport.resample(cloud, below=torch.inf)
        split = (cloud.state.grad.view(count, num, -1), cloud.x.view(count, num, -1))
        scale = torch.stack([bridge.local_scale(*island) for island in zip(*split)])
        scale = scale.repeat_interleave(num, 0)
        state: Any = bridge.place(cloud.state, at, scale)
        density = bridge.density(rows, base, at, scale)
        for _ in range(moves if float(beta.min()) < 1 else 3 * moves):
            noise, log_u = torch.randn_like(state.z), torch.rand_like(state.log_pi).log()
            size = step_size.repeat_interleave(num)[:, None]
            state, info = langevin.mala(state, density, size, noise, log_u)
            excess = info.accept_prob.view(count, num).mean(1) - 0.574
            step_size = step_size * (0.5 * excess).exp().to(step_size)
        cloud = cloud._replace(state=state)
    return target.wrap(cloud.x).view(count, num, -1)


def _next_betas(log_ratio: Tensor, beta: Tensor, ess: float = 0.8) -> Tensor:
    """As :func:`bridge.next_beta`, of each row of ``(K, n)``."""
    goal = ess * torch.isfinite(log_ratio).double().mean(1)
    low, high = beta, torch.ones_like(beta)
    for _ in range(60):
        middle = 0.5 * (low + high)
        enough = ess_fraction(((middle - beta)[:, None] * log_ratio).mT) >= goal
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return torch.maximum(low, (beta + 1e-6).clamp(max=1)).where(high < 1, 1.0)
