r"""Sequential Monte Carlo along a tempered path: draws of every mode, before any flow is trained.

Particles move through

.. math:: \log\pi_\beta = (1 - \beta)\log b + \beta \log\tilde p, \qquad 0 = \beta_0 < \dots < 1,

from a Gaussian (and uniform on angles) :math:`b`. At each stage the next :math:`\beta` is the one
at which the weights :math:`w = (\tilde p / b)^{\Delta\beta}` keep a given effective sample size;
then the particles are resampled, and moved by MALA (Del Moral et al., 2006,
https://doi.org/10.1111/j.1467-9868.2006.00553.x). The product of the mean weights estimates Z.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..target import Target
from . import bridge, langevin, transport

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
