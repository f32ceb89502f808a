r"""Hamiltonian Monte Carlo in any space.

With a momentum :math:`r \sim \mathcal N(0, I)` the pair :math:`(z, r)` has the density
:math:`e^{-H}`, :math:`H = -\log\pi(z) + \|r\|^2/2`. A leapfrog step

.. math:: r_{1/2} = r + \tfrac\epsilon2 \nabla\log\pi(z), \qquad
          z' = z + \epsilon\, r_{1/2}, \qquad
          r' = r_{1/2} + \tfrac\epsilon2 \nabla\log\pi(z')

consists of three shears, each of which adds to one half of the pair a function of the other: its
Jacobian determinant is 1. From :math:`(z', -r')` the same step leads to :math:`(z, -r)`, so L of
them followed by :math:`r \mapsto -r` are an involution T that preserves volume, whatever vector
field stands for the gradient. Accepting :math:`T(z, r)` with :math:`\min(1, e^{H - H'})` moves as
much mass from each pair to its image as back, :math:`\min(e^{-H}, e^{-H'})`: detailed balance.
The momentum is then drawn afresh, which makes its sign immaterial (Duane et al., 1987,
https://doi.org/10.1016/0370-2693(87)91197-X; Neal, 2011, https://arxiv.org/abs/1206.1901).

A trajectory that meets a density which is not finite is rejected; that is a property of the
trajectory and not of its direction, so the balance stands. One leapfrog step is a step of
:func:`langevin.mala` with its drift uncut: :math:`r'` is minus the backward noise. A step size may
be drawn for each trajectory, independently of the pair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from .langevin import HMCState
from .metropolis import MetropolisInfo, metropolis, select

__all__ = ["MetropolisInfo", "HMCState", "hmc", "leapfrog"]


class Point(Protocol):
    """What a trajectory needs to know of a state; :class:`langevin.HMCState` is one."""

    @property
    def z(self) -> Tensor: ...
    @property
    def log_pi(self) -> Tensor: ...
    @property
    def grad(self) -> Tensor: ...


P = TypeVar("P", bound=Point)


def leapfrog(
    state: P, density: Callable[[Tensor], P], step_size: Tensor, num_steps: int, momentum: Tensor
) -> tuple[P, Tensor, Tensor]:
    """Where ``num_steps`` steps lead, with what momentum, and whether by finite densities only.

    One evaluation of ``density`` a step; the first gradient is the state's own.
    """
    finite = torch.ones_like(state.log_pi, dtype=torch.bool)
    for _ in range(num_steps):
        momentum = momentum + 0.5 * step_size * state.grad
        state = density(state.z + step_size * momentum)
        momentum = momentum + 0.5 * step_size * state.grad
        finite = finite & torch.isfinite(state.log_pi)
    return state, momentum, finite


def hmc(
    state: P,
    density: Callable[[Tensor], P],
    step_size: Tensor,
    num_steps: int,
    momentum: Tensor,
    log_u: Tensor,
) -> tuple[P, MetropolisInfo]:
    """One trajectory of every chain, with ``num_steps`` evaluations of ``density``.

    Diverging are the trajectories that were not finite, or off by more than 1000 in energy.

    Arguments:
        state: Where the chains are; a named tuple.
        density: Makes the state at z, as in :func:`langevin.init`.
        step_size: :math:`\\epsilon`, 0-d or ``(C, 1)``.
        num_steps: Leapfrog steps L.
        momentum: Standard normal variates, ``(C, d)``.
        log_u: Logs of uniform variates, ``(C,)``.
    """
    end, last, finite = leapfrog(state, density, step_size, num_steps, momentum)
    kinetic = 0.5 * (momentum.double().square() - last.double().square()).sum(-1)
    log_alpha = torch.where(finite, end.log_pi - state.log_pi + kinetic, -torch.inf)
    accepted, accept_prob = metropolis(log_alpha, log_u)
    diverging = (log_alpha < -1000) | ~torch.isfinite(log_alpha)
    info = MetropolisInfo(accepted, accept_prob, diverging)
    return select(accepted, end, state), info  # type: ignore[type-var]  # a P is a named tuple
