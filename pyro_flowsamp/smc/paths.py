r"""The tempered path from a base to a target,

.. math:: \log\pi_\beta = (1 - \beta)\log b + \beta \log\tilde p, \qquad 0 \le \beta \le 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..weights import ess_fraction

__all__ = [
    "TemperedState",
    "density",
    "local_scale",
    "log_path",
    "next_beta",
    "next_betas",
    "at_beta",
]


class TemperedState(NamedTuple):
    r"""N points of the path; a :class:`hamiltonian.HMCState`, and what it takes to change
    :math:`\beta`.

    Attributes:
        z: Positions x / scale, ``(N, d)``.
        log_pi: :math:`\log\pi_\beta`, ``(N,)``, float64.
        grad: Its gradient in z, ``(N, d)``.
        x: Positions, ``(N, d)``.
        log_p, log_q: Log densities of target and base, ``(N,)``, float64.
        grad_p, grad_b: Their gradients in x, ``(N, d)``.

    Example:
        >>> one = torch.ones(1, dtype=torch.double)
        >>> log_p, log_b = -2 * one, -5 * one
        >>> state = TemperedState(one, log_b, one, one, log_p, log_b, one, one)
        >>> state.log_ratio
        tensor([3.], dtype=torch.float64)
    """

    z: Tensor
    log_pi: Tensor
    grad: Tensor
    x: Tensor
    log_p: Tensor
    log_q: Tensor
    grad_p: Tensor
    grad_b: Tensor

    @property
    def log_ratio(self) -> Tensor:
        r""":math:`\log\tilde p - \log b`, ``(N,)``; minus infinite off the target's support."""
        return torch.nan_to_num(self.log_p - self.log_q, nan=-torch.inf, neginf=-torch.inf)


def log_path(state: TemperedState, beta: Tensor) -> Tensor:
    r""":math:`\log\pi_\beta` of the same points at other :math:`\beta` ``(N,)``; no evaluation.

    Arguments:
        state: The points.
        beta: Inverse temperatures.

    Example:
        >>> from types import SimpleNamespace
        >>> log_p, log_b = torch.tensor([2.0, 2.0]), torch.tensor([0.0, -torch.inf])
        >>> state = SimpleNamespace(log_p=log_p, log_q=log_b)
        >>> log_path(state, torch.tensor([0.25, 1.0]))
        tensor([0.5000, 2.0000])
    """
    mixed = (1 - beta) * state.log_q + beta * state.log_p
    mixed = torch.where(beta < 1, mixed, state.log_p)  # 0 times infinity
    return torch.where(beta > 0, mixed, state.log_q)


def at_beta(state: TemperedState, beta: Tensor, scale: Tensor) -> TemperedState:
    r"""Changes :math:`\beta` ``(N,)`` and scale of a state; evaluates nothing.

    Arguments:
        state: The points.
        beta: Inverse temperatures.
        scale: The widths of the new coordinates, ``(d,)``.

    Example:
        >>> from pyro_flowsamp import Target
        >>> def gaussian(loc):
        ...     return Target.from_energy(lambda x: 0.5 * (x - loc).square().sum(-1), 1)
        >>> ones = torch.ones(1)
        >>> state = density(gaussian(4.0), gaussian(0.0), 0 * ones, ones)(torch.zeros(1, 1))
        >>> [float(at_beta(state, beta * ones, ones).grad) for beta in (0.0, 0.5, 1.0)]
        [0.0, 2.0, 4.0]
    """
    log_pi = log_path(state, beta)
    slope = beta.to(scale).unsqueeze(-1)
    grad = torch.nan_to_num((1 - slope) * state.grad_b + slope * state.grad_p) * scale
    return state._replace(z=state.x / scale, log_pi=log_pi, grad=grad)


class HasScore(Protocol):
    """A density at an end of a path, with its gradient.

    Example:
        >>> class Normal:
        ...     def log_prob_and_grad(self, x):
        ...         return -0.5 * x.square().sum(-1), -x
        >>> ones = torch.ones(1)
        >>> float(density(Normal(), Normal(), ones, ones)(torch.full((1, 1), 2.0)).log_pi)
        -2.0
    """

    def log_prob_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


def density(
    target: HasScore, base: HasScore, beta: Tensor, scale: Tensor
) -> Callable[[Tensor], TemperedState]:
    r""":math:`\pi_\beta`, with :math:`\beta` ``(N,)``, in the coordinates z = x / scale.

    Arguments:
        target, base: The densities at the ends.
        beta: The inverse temperature of each point.
        scale: Widths of the coordinates, ``(d,)``.

    Returns:
        A function of z ``(N, d)``.

    Example:
        >>> from pyro_flowsamp import Target
        >>> def gaussian(loc):
        ...     return Target.from_energy(lambda x: 0.5 * (x - loc).square().sum(-1), 1)
        >>> half = torch.tensor([0.5])
        >>> middle = density(gaussian(2.0), gaussian(0.0), half, torch.ones(1))
        >>> middle(torch.tensor([[1.0]])).log_pi, middle(torch.tensor([[0.0]])).log_pi
        (tensor([-0.5000], dtype=torch.float64), tensor([-1.], dtype=torch.float64))
    """

    def density(z: Tensor) -> TemperedState:
        x = z * scale
        log_p, grad_p = target.log_prob_and_grad(x)
        log_b, grad_b = base.log_prob_and_grad(x)
        log_p, log_b = log_p.double(), log_b.double()
        state = TemperedState(z, log_b, grad_b, x, log_p, log_b, grad_p, grad_b)
        return at_beta(state, beta, scale)._replace(z=z)

    return density


def next_betas(log_ratio: Tensor, beta: Tensor, ess: float, shortest: float = 1e-6) -> Tensor:
    """The largest next betas whose weights keep an ESS fraction of ``ess``, by bisection.

    That is a fraction of the particles on the target's support: the others are lost however short
    the stage. No stage but the last is less than ``shortest`` long.

    Arguments:
        log_ratio: Of the particles on each of R islands, ``(R, n)``.
        beta: Where each island is, ``(R,)``, float64.
        ess: The fraction.
        shortest: The least step.

    Example:
        >>> log_ratio = torch.tensor([[0.0, 0.0], [0.0, 20.0]], dtype=torch.double)
        >>> betas = next_betas(log_ratio, torch.zeros(2, dtype=torch.double), ess=0.8)
        >>> ess = [(1 + w) ** 2 / (2 * (1 + w**2)) for w in (20 * betas).exp().tolist()]
        >>> float(betas[0]), round(ess[1], 6)  # equal weights: at once to the end
        (1.0, 0.8)
    """
    goal = ess * torch.isfinite(log_ratio).double().mean(1)

    def enough(later: Tensor) -> Tensor:
        return ess_fraction(((later - beta)[:, None] * log_ratio).mT) >= goal

    low, high = beta, torch.ones_like(beta)
    done = enough(high)
    for _ in range(60):  # a start may be so much wider than the target that 1e-8 is a stage
        middle = 0.5 * (low + high)
        keeps = enough(middle)
        low, high = torch.where(keeps, middle, low), torch.where(keeps, high, middle)
    return torch.maximum(low, (beta + shortest).clamp(max=1)).where(~done, 1.0)


def next_beta(log_ratio: Tensor, beta: float, ess: float, shortest: float = 1e-6) -> float:
    """:func:`next_betas` of a single island, ``(n,)``.

    Arguments:
        log_ratio: Log ratios of target and base at the particles.
        beta: The inverse temperature so far.
        ess, shortest: See :func:`next_betas`.

    Example:
        >>> next_beta(torch.tensor([0.0, 0.1]).double(), beta=0.3, ess=0.9)
        1.0
        >>> round(next_beta(torch.tensor([0.0, 20.0]).double(), beta=0.3, ess=0.8) - 0.3, 4)
        0.0549
    """
    here = torch.tensor([beta], dtype=torch.double, device=log_ratio.device)
    return float(next_betas(log_ratio[None], here, ess, shortest))


def local_scale(grad: Tensor, x: Tensor) -> Tensor:
    r""":math:`(\mathbb E\,g_i^2)^{-1/2}`: a Gaussian's standard deviation, the width of modes.

    Scores ``(N, d)`` are clipped at their 95 % quantile, lest one particle on a cliff set the
    scale. No smooth density has a standard deviation below it (Cramér and Rao), but one with edges
    may be flat between them: the points' own spread is its bound.

    Arguments:
        grad: The scores.
        x: The points, ``(N, d)``.

    Returns:
        A width for each coordinate, ``(d,)``.

    Example:
        >>> x = 2 * torch.randn(10_000, 1, generator=torch.manual_seed(0))
        >>> local_scale(-x / 4, x).round(decimals=1)  # of a Gaussian of standard deviation 2
        tensor([2.])
    """
    bound = grad.abs().float().quantile(0.95, dim=0).to(grad)
    scale = grad.abs().clamp(max=bound).square().mean(0).rsqrt()
    return torch.minimum(scale, x.std(0)).clamp(1e-6, 1e6)
