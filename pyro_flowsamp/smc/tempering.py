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

from ..target.density import Target
from ..transitions.step_size import optimal_step_size
from . import driver, particles, paths
from .particles import Particles
from .starts import TemperedStart, overdispersed_base

__all__ = ["TemperedSample", "tempered", "tempered_ensemble", "tempered_ensembles"]


EACH = 500  #: draws of an ensemble for each of several contexts
ESS = 0.8  #: effective sample size, as a fraction, that fixes the next stage
ACCEPT = 0.574  #: acceptance that step sizes are steered to


class TemperedSample(NamedTuple):
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
    ess: float = ESS,
    target_accept_prob: float = ACCEPT,
) -> TemperedSample:
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
    base = overdispersed_base(target, 512)
    cloud, betas = _annealed(target, base, 1, num, moves, ess, target_accept_prob)
    return TemperedSample(target.wrap(cloud.x), cloud.log_z[0], [float(beta) for beta in betas])


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
        raise ValueError("give a target at contexts: target.at_contexts(contexts)")
    if num < 2:
        raise ValueError(f"need two particles at least for each context, got {num}")
    count = len(target.contexts)
    base = overdispersed_base(target, count * -(-512 // count))
    rows = target.at_contexts(target.contexts.repeat_interleave(num, 0))
    cloud, _ = _annealed(rows, base, count, num, moves, ESS, ACCEPT)
    return target.wrap(cloud.x).view(count, num, -1)


def _annealed(
    target: Target,
    base: TemperedStart,
    islands: int,
    num: int,
    moves: int,
    ess: float,
    target_accept_prob: float,
) -> tuple[Particles, list[Tensor]]:
    """From the base to the target, each island of ``num`` particles at a pace of its own.

    An island that has arrived goes on being moved, at the target, until all have.
    """
    x = base.sample(islands * num)
    ones, beta = torch.ones_like(x), x.new_zeros(islands, dtype=torch.double)
    step_size = torch.full_like(x[:islands, 0], optimal_step_size(target.dim))
    start = paths.density(target, base, beta.repeat_interleave(num), ones)
    cloud, betas = particles.init(x, start, islands), [beta]
    _check_alive(cloud.state.log_ratio.view(islands, num), target)
    while float(beta.min()) < 1:
        beta = paths.next_betas(cloud.state.log_ratio.view(islands, num), beta, ess)
        at = beta.repeat_interleave(num)
        cloud = particles.reweight(cloud, paths.at_beta(cloud.state, at, ones))
        cloud = particles.resample(cloud, below=torch.inf)
        split = cloud.state.grad.view(islands, num, -1), cloud.x.view(islands, num, -1)
        scale = torch.stack([paths.local_scale(*island) for island in zip(*split)])
        scale = scale.repeat_interleave(num, 0)
        cloud = cloud._replace(state=paths.at_beta(cloud.state, at, scale))
        stage = driver.Stage(None, paths.density(target, base, at, scale), scale, step_size)
        count = moves if float(beta.min()) < 1 else 3 * moves
        cloud, step_size = driver.move_and_tune(cloud, stage, count, target_accept_prob)
        betas.append(beta)
    return cloud, betas


def _check_alive(log_ratio: Tensor, target: Target) -> None:
    dead = ~torch.isfinite(log_ratio).any(1)
    if bool(dead.any()):
        where = ""
        if target.contexts is not None:
            first = target.contexts[:: log_ratio.shape[1]]
            where = f" at the contexts {first[dead].tolist()}"
        raise ValueError(
            f"the density is zero or NaN at all {log_ratio.shape[1]} starting points{where}"
        )
