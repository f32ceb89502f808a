r"""Metropolis-adjusted Langevin in any space.

.. math:: z' = \mu(z) + \epsilon\,\xi, \qquad \mu(z) = z + \tfrac{\epsilon^2}{2} \nabla\log\pi(z),
          \qquad \xi \sim \mathcal N(0, I),

with the drift :math:`\mu(z) - z` cut to a length of at most :math:`\epsilon\sqrt d`, is accepted
with :math:`\min(1, e^{a})`,

.. math:: a = \log\pi(z') - \log\pi(z) + \log g(z | z') - \log g(z' | z), \qquad
          \log g(z' | z) = -\frac{\|z' - \mu(z)\|^2}{2\epsilon^2} + \text{const}

(Roberts & Tweedie, 1996, https://doi.org/10.2307/3318418). In the forward direction the quadratic
form is :math:`\|\xi\|^2/2`. Cutting the drift (their MALTA) is part of :math:`\mu`, in both
directions, so the ratio stands; without it a chain sits still wherever the density is steep, as at
a spline's kink, since from where it would be thrown there is no way back.

The density is whatever ``density`` says it is; in the latent space of a flow it is the pullback
:math:`\pi(z) = \tilde p(f(z))\,|\det f'(z)|`, which makes :math:`x = f(z)` exact draws of :math:`p`
however bad the flow (Hoffman et al., 2019, https://arxiv.org/abs/1903.03704). NF-MALA
(https://arxiv.org/abs/2305.12149) runs on the flow's own density instead, a different target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .metropolis import MetropolisInfo, metropolis, select

__all__ = ["MetropolisInfo", "HMCState", "init", "mala"]


class HMCState(NamedTuple):
    r"""C chains of a Langevin sampler in z.

    Attributes:
        z: Positions, ``(C, d)``.
        log_pi: Log density of z, ``(C,)``, float64.
        grad: Its gradient, ``(C, d)``.
        x: What z stands for, :math:`f(z)`; z itself in the target's own space.
        log_p: Target log density of x, ``(C,)``, float64.
        log_q: Flow log density of x, ``(C,)``, float64; zero without a flow.
    """

    z: Tensor
    log_pi: Tensor
    grad: Tensor
    x: Tensor
    log_p: Tensor
    log_q: Tensor


Density = Callable[[Tensor], Any]  #: z → a state with at least z, log_pi and grad


def init(z: Tensor, density: Density) -> HMCState:
    """The state at z: ``density`` evaluates everything a state carries."""
    return density(z)


def _drift(grad: Tensor, step_size: Tensor) -> Tensor:
    r""":math:`\mu(z) - z`, no longer than :math:`\epsilon\sqrt d`, ``(C, d)``."""
    drift = 0.5 * step_size.square() * grad
    bound = step_size * grad.shape[-1] ** 0.5
    return drift * (bound / drift.norm(dim=-1, keepdim=True)).clamp(max=1)


def mala(
    state: HMCState, density: Density, step_size: Tensor, noise: Tensor, log_u: Tensor
) -> tuple[HMCState, MetropolisInfo]:
    """One step of every chain, with one evaluation of ``density``.

    Arguments:
        state: Where the chains are.
        density: As in :func:`init`.
        step_size: :math:`\\epsilon`, 0-d or ``(C, 1)``.
        noise: Standard normal variates, ``(C, d)``.
        log_u: Logs of uniform variates, ``(C,)``.
    """
    proposal = density(state.z + _drift(state.grad, step_size) + step_size * noise)
    backward = (state.z - proposal.z - _drift(proposal.grad, step_size)) / step_size
    log_g = 0.5 * (noise.double().square() - backward.double().square()).sum(-1)
    log_alpha = proposal.log_pi - state.log_pi + log_g
    accepted, accept_prob = metropolis(log_alpha, log_u)
    diverging = ~torch.isfinite(proposal.log_pi)
    info = MetropolisInfo(accepted, accept_prob, diverging)
    return select(accepted, proposal, state), info
