r"""Metropolis moves that scale points about a centre, so that they find back from far out.

In a heavy tail the gradient is small and its moves are short beside the distance to the centre. A
move that multiplies the distance by a random factor crosses many scales at once. The proposal is

.. math:: x' = m + e^{s}\,(x - m),

in the k coordinates that are real numbers. The map has the Jacobian determinant :math:`e^{ks}`, and
the move back has the factor :math:`e^{-s}`. With :math:`g(s \mid x)` the density of s, the density
:math:`\pi` is invariant under the acceptance probability (Green, 1995)

.. math:: \alpha = \min\Bigl(1, \frac{\pi(x')\, g(-s \mid x')}{\pi(x)\, g(s \mid x)}\,
          e^{ks}\Bigr).

There are two kinds of factors (:func:`scale_proposals`). A random walk has a density of s that is
symmetric and does not depend on x, so that g cancels. The other kind proposes a distance itself,
:math:`t' = t + s` with :math:`t = \log\|x - m\|`, from a density q that does not depend on x:
:math:`g(s \mid x) = q(t + s)`, and :math:`g(-s \mid x') = q(t)`. On the way from a base that is too
wide to a target with heavy tails the distances spread over several scales. There a random walk
forgets where it was in about seven moves, and such independent proposals in one or two.

References:
    Peter Green, *Reversible jump Markov chain Monte Carlo computation and Bayesian model
    determination*, 1995, https://doi.org/10.1093/biomet/82.4.711
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import StudentT

from .metropolis import MetropolisInfo, metropolis, select

__all__ = ["ScaleProposals", "log_factors", "scale_proposals", "scale_step"]

INDEPENDENT_SHARE = 0.75  #: of the moves that propose a distance and not a factor
#: scale of proposed log distances, in units of the standard deviation of those there are
WIDER = 1.2
TAIL_DF = 3.0  #: degrees of freedom of the Student-t distribution of proposed log distances


class ScaleProposals(NamedTuple):
    """Proposed factors of N points.

    Attributes:
        log_factor: Their logs s, ``(N,)``.
        log_correction: Logs of :math:`g(-s \\mid x') / g(s \\mid x)`, ``(N,)``.

    Example:
        >>> stay = ScaleProposals(torch.zeros(3), torch.zeros(3))  # factors of one
        >>> stay.log_factor.exp()
        tensor([1., 1., 1.])
    """

    log_factor: Tensor
    log_correction: Tensor


def scale_proposals(distance: Tensor, dim: int, islands: int = 1) -> ScaleProposals:
    r"""Proposals of both kinds; each point has a random one of them.

    The log distances of an island's points have a mean and a standard deviation, and q is the
    Student-t distribution with this mean and :data:`WIDER` times this scale. These are the only
    numbers that come of the points themselves: they are tuned on the way, as step sizes are.

    Arguments:
        distance: Distances :math:`\|x - m\|` of all points, ``(N,)``.
        dim: The dimension k of what is scaled.
        islands: Groups of points, one after the other, that must not know of each other.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> s, correction = scale_proposals(torch.rand(6).double(), 2)
        >>> s.shape, correction.shape
        (torch.Size([6]), torch.Size([6]))
    """
    t = distance.clamp(min=torch.finfo(distance.dtype).tiny).log()
    groups = t.unflatten(0, (islands, -1))
    spread = (WIDER * groups.std(-1, correction=0)).clamp(min=torch.finfo(t.dtype).eps)
    q = StudentT(TAIL_DF, groups.mean(-1)[:, None], spread[:, None], validate_args=False)
    proposed = q.sample((groups.shape[1],))[..., 0].mT  # of each group
    correction = (q.log_prob(groups) - q.log_prob(proposed)).flatten()
    independent = torch.rand_like(t) < INDEPENDENT_SHARE
    walk = log_factors(len(t), dim, t)
    return ScaleProposals(
        torch.where(independent, proposed.flatten() - t, walk),
        torch.where(independent, correction, 0.0),
    )


def log_factors(num: int, dim: int, like: Tensor) -> Tensor:
    r"""Random log factors s, ``(num,)``: half of them of sd 1, and half of sd :math:`d^{-1/2}`.

    The first cross scales. The second are as wide as the log radius of a Gaussian in d dimensions,
    up to a constant.

    Arguments:
        num: The number of points.
        dim: The dimension d.
        like: A tensor of the same type and device.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> s = log_factors(10_000, 4, torch.zeros(1))
        >>> bool((s.var() - (1 + 1 / 4) / 2).abs() < 0.05)
        True
    """
    noise = torch.randn(num, dtype=like.dtype, device=like.device)
    wide = torch.rand(num, dtype=like.dtype, device=like.device) < 0.5
    return torch.where(wide, 1.0, max(1, dim) ** -0.5) * noise


def scale_step(
    state: Any,
    density: Callable[[Tensor], Any],
    centre: Tensor,
    real: Tensor,
    proposals: ScaleProposals,
    log_u: Tensor,
) -> tuple[Any, MetropolisInfo]:
    """One move of every point; see the module.

    Arguments:
        state: A state with points ``x`` ``(N, d)`` and log densities ``log_pi`` ``(N,)``.
        density: Makes such a state of points.
        centre: The centre m, ``(d,)``.
        real: Mask ``(d,)`` of the coordinates that are scaled; angles are not.
        proposals: The factors.
        log_u: Logs of uniform variates, ``(N,)``.

    Returns:
        The new state, and what became of the proposals.

    Example:
        >>> from pyro_flowsamp.transitions import hamiltonian
        >>> def normal(x):
        ...     log_pi = -0.5 * x.double().square().sum(-1)
        ...     return hamiltonian.HMCState(x, log_pi, -x, x, log_pi, torch.zeros_like(log_pi))
        >>> twice = ScaleProposals(torch.tensor([2.0]).log(), torch.zeros(1))
        >>> real, log_u = torch.tensor([True]), torch.tensor([-1.0])
        >>> start = normal(torch.ones(1, 1))
        >>> state, info = scale_step(start, normal, torch.zeros(1), real, twice, log_u)
        >>> state.x, info.accept_prob  # from 1 to 2: 2 exp(-1.5)
        (tensor([[2.]]), tensor([0.4463], dtype=torch.float64))
    """
    log_factor = proposals.log_factor
    factor = torch.where(real, log_factor.exp()[:, None], 1.0)
    proposal = density((centre + factor * (state.x - centre)).to(state.x.dtype))
    jacobian = real.sum() * log_factor.double()
    log_alpha = proposal.log_pi.double() - state.log_pi.double() + jacobian
    log_alpha = log_alpha + proposals.log_correction.double()
    accepted, probability = metropolis(log_alpha, log_u.double())
    info = MetropolisInfo(accepted, probability, torch.zeros_like(accepted))
    return select(accepted, proposal, state), info
