r"""Hamiltonian and Langevin steps in a flow's latent space: one integrator, one acceptance.

With :math:`x = f(z)`, :math:`J = \partial f / \partial z` and a momentum
:math:`r \sim \mathcal N(0, I)`, a step of size :math:`\epsilon` is

.. math:: r_{1/2} = r + k(z), \qquad v = J(z)^{-1} r_{1/2}, \qquad z' = z + \epsilon\, v, \qquad
          r' = J(z')\, v + k(z'),

where the kick :math:`k = \tfrac\epsilon2 g` is half a step along a field :math:`g`, cut to a length
of :math:`\sqrt d`. In the identity metric read :math:`J = I`, :math:`g = \nabla_z \log\pi`: the
leapfrog. In the Jacobian metric :math:`G = J^\top J`, :math:`g` is a gradient in :math:`x`.

**Reversible.** From :math:`(z', -r')` the half kick leads to :math:`-J(z') v`, the velocity is
:math:`-v`, the position :math:`z` and the momentum :math:`-J(z) v + k(z) = -r`.

**Volume.** At fixed z, :math:`dz' = \epsilon^d\, |\det J(z)|^{-1} dr`, and at fixed z' likewise
:math:`dz = \epsilon^d\, |\det J(z')|^{-1} dr'`; so
:math:`dz'\,dr' = \tfrac{|\det J(z')|}{|\det J(z)|}\, dz\,dr`, which telescopes over L steps.

L steps followed by :math:`r \mapsto -r` are thus an involution of known volume, accepted with
:math:`\min(1, e^a)` (Green, 1995, https://doi.org/10.1093/biomet/82.4.711),

.. math:: a = \log\pi(z') - \log\pi(z) + \tfrac12\|r\|^2 - \tfrac12\|r'\|^2
              + \log|\det J(z')| - \log|\det J(z)|,

the last two terms in the Jacobian metric only. For L = 1 this is MALA: in the identity metric
:func:`langevin.mala`, in the other :math:`z' = z + \tfrac{\epsilon^2}{2} J^{-1} g + \epsilon J^{-1}
\xi` with :math:`\log g(z'|z) = -\|J(z)(z' - \mu(z))\|^2 / 2\epsilon^2 + \log|\det J(z)|` (NF-MALA,
https://arxiv.org/abs/2305.12149; J and its inverse only ever multiply vectors). There, between
kicks, z moves in straight lines and x does not; the error of a trajectory of fixed length does not
vanish with :math:`\epsilon` where f bends, so its steps are best few.

**Jumps.** A chain may instead propose :math:`z' \sim q_Z`, whatever z is: by the derivation in
:mod:`imh`, :math:`a = w(x') - w(x)`, :math:`w = \log\tilde p - \log q`. Which of the two is tried
does not depend on the state, so the mixture keeps :math:`\pi`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .langevin import Density, HMCState
from .metropolis import metropolis, select

__all__ = ["Frame", "IDENTITY", "HMCInfo", "Jump", "kick", "step", "trajectory"]


class HMCInfo(NamedTuple):
    """What happened in one step, ``(C,)`` each; ``jumped`` says what was tried, not accepted."""

    accepted: Tensor
    accept_prob: Tensor
    diverging: Tensor
    jumped: Tensor


class Frame(NamedTuple):
    r"""A metric :math:`G = J^\top J`, by what J does to vectors ``(C, d)`` at a state."""

    solve: Callable[[HMCState, Tensor], Tensor]  #: :math:`J^{-1} r`
    apply: Callable[[HMCState, Tensor], Tensor]  #: :math:`J v`
    log_det: Callable[[HMCState], Tensor]  #: :math:`\log|\det J|`, ``(C,)``


IDENTITY = Frame(lambda _, r: r, lambda _, v: v, lambda state: torch.zeros_like(state.log_pi))


class Jump(NamedTuple):
    """Which chains jump, ``(C,)``, and draws of the base distribution, ``(C, d)``."""

    mask: Tensor
    z: Tensor


def kick(grad: Tensor, step_size: Tensor) -> Tensor:
    r""":math:`\tfrac\epsilon2 g`, no longer than :math:`\sqrt d`, ``(C, d)``."""
    half = 0.5 * step_size * grad
    return half * (half.shape[-1] ** 0.5 / half.norm(dim=-1, keepdim=True)).clamp(max=1)


def trajectory(
    state: HMCState,
    density: Density,
    frame: Frame,
    step_size: Tensor,
    num_steps: int,
    momentum: Tensor,
) -> tuple[HMCState, Tensor, Tensor]:
    """Where ``num_steps`` steps lead, with what momentum, and whether by finite densities only.

    One evaluation of ``density`` a step; the first field is the state's own.
    """
    finite = torch.ones_like(state.log_pi, dtype=torch.bool)
    for _ in range(num_steps):
        velocity = frame.solve(state, momentum + kick(state.grad, step_size))
        state = density(state.z + step_size * velocity)
        momentum = frame.apply(state, velocity) + kick(state.grad, step_size)
        finite = finite & torch.isfinite(state.log_pi)
    return state, momentum, finite


def step(
    state: HMCState,
    density: Density,
    frame: Frame,
    step_size: Tensor,
    num_steps: int,
    momentum: Tensor,
    log_u: Tensor,
    jump: Jump | None = None,
) -> tuple[HMCState, HMCInfo]:
    r"""One trajectory, or jump, of every chain, with ``num_steps`` evaluations of ``density``.

    Diverging are the trajectories that were not finite, or off by more than 1000 in energy.

    Arguments:
        state: Where the chains are; its ``grad`` is the field g.
        density: Makes the state at z, as in :func:`langevin.init`.
        frame: The metric.
        step_size: :math:`\epsilon`, 0-d or ``(C, 1)``.
        num_steps: L.
        momentum: Standard normal variates, ``(C, d)``.
        log_u: Logs of uniform variates, ``(C,)``.
        jump: Chains that jump instead: a trajectory of no length from where they land.
    """
    start = state
    if jump is not None:
        start = state._replace(z=torch.where(jump.mask[:, None], jump.z, state.z))
        step_size = torch.where(jump.mask[:, None], 0.0, step_size)
    end, last, finite = trajectory(start, density, frame, step_size, num_steps, momentum)
    kinetic = 0.5 * (momentum.double().square() - last.double().square()).sum(-1)
    volume = frame.log_det(end) - frame.log_det(state)
    log_alpha = end.log_pi - state.log_pi + kinetic + volume
    jumped = torch.zeros_like(finite)
    if jump is not None:
        jumped, gain = jump.mask, (end.log_p - end.log_q) - (state.log_p - state.log_q)
        log_alpha = torch.where(jumped, gain, log_alpha)
    log_alpha = torch.where(finite, log_alpha, -torch.inf)
    accepted, accept_prob = metropolis(log_alpha, log_u)
    diverging = ~jumped & ((log_alpha < -1000) | ~torch.isfinite(log_alpha))
    return select(accepted, end, state), HMCInfo(accepted, accept_prob, diverging, jumped)
