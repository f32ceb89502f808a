r"""The tempered path from a Gaussian to a target,

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
    r""":math:`\log\pi_\beta` of the same points at other :math:`\beta` ``(N,)``; no evaluation."""
    mixed = (1 - beta) * state.log_q + beta * state.log_p
    mixed = torch.where(beta < 1, mixed, state.log_p)  # 0 times infinity
    return torch.where(beta > 0, mixed, state.log_q)


def at_beta(state: TemperedState, beta: Tensor, scale: Tensor) -> TemperedState:
    r"""Changes :math:`\beta` ``(N,)`` and scale of a state; evaluates nothing."""
    log_pi = log_path(state, beta)
    slope = beta.to(scale).unsqueeze(-1)
    grad = torch.nan_to_num((1 - slope) * state.grad_b + slope * state.grad_p) * scale
    return state._replace(z=state.x / scale, log_pi=log_pi, grad=grad)


class HasScore(Protocol):
    """A density at an end of a path, with its gradient."""

    def log_prob_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


def density(
    target: HasScore, base: HasScore, beta: Tensor, scale: Tensor
) -> Callable[[Tensor], TemperedState]:
    r""":math:`\pi_\beta`, with :math:`\beta` ``(N,)``, in the coordinates z = x / scale."""

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
    """:func:`next_betas` of a single island, ``(n,)``."""
    here = torch.tensor([beta], dtype=torch.double, device=log_ratio.device)
    return float(next_betas(log_ratio[None], here, ess, shortest))


def local_scale(grad: Tensor, x: Tensor) -> Tensor:
    r""":math:`(\mathbb E\,g_i^2)^{-1/2}`: a Gaussian's standard deviation, the width of modes.

    Scores ``(N, d)`` are clipped at their 95 % quantile, lest one particle on a cliff set the
    scale. No smooth density has a standard deviation below it (Cramér and Rao), but one with edges
    may be flat between them: the points' own spread is its bound.
    """
    bound = grad.abs().float().quantile(0.95, dim=0).to(grad)
    scale = grad.abs().clamp(max=bound).square().mean(0).rsqrt()
    return torch.minimum(scale, x.std(0)).clamp(1e-6, 1e6)
