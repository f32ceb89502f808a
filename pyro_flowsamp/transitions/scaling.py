r"""Metropolis moves that scale points about a centre, so that they find back from far out.

In a heavy tail the gradient is small and its moves are short beside the distance to the centre. A
move that multiplies the distance by a random factor crosses many scales at once. The proposal is

.. math:: x' = m + e^{s}\,(x - m),

in the k coordinates that are real numbers, with s of a density that is symmetric about zero and
does not depend on x. The move back has the factor :math:`e^{-s}`, which is as probable, and the
map has the Jacobian determinant :math:`e^{ks}`. So the density :math:`\pi` is invariant under the
acceptance probability (Green, 1995)

.. math:: \alpha = \min\Bigl(1, \frac{\pi(x')}{\pi(x)}\, e^{ks}\Bigr).

References:
    Peter Green, *Reversible jump Markov chain Monte Carlo computation and Bayesian model
    determination*, 1995, https://doi.org/10.1093/biomet/82.4.711
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .metropolis import MetropolisInfo, metropolis, select

__all__ = ["log_factors", "scale_step"]


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
    log_factor: Tensor,
    log_u: Tensor,
) -> tuple[Any, MetropolisInfo]:
    """One move of every point; see the module.

    Arguments:
        state: A state with points ``x`` ``(N, d)`` and log densities ``log_pi`` ``(N,)``.
        density: Makes such a state of points.
        centre: The centre m, ``(d,)``.
        real: Mask ``(d,)`` of the coordinates that are scaled; angles are not.
        log_factor: The log factors s, ``(N,)``.
        log_u: Logs of uniform variates, ``(N,)``.

    Returns:
        The new state, and what became of the proposals.
    """
    factor = torch.where(real, log_factor.exp()[:, None], 1.0)
    proposal = density((centre + factor * (state.x - centre)).to(state.x.dtype))
    jacobian = real.sum() * log_factor.double()
    log_alpha = proposal.log_pi.double() - state.log_pi.double() + jacobian
    accepted, probability = metropolis(log_alpha, log_u.double())
    info = MetropolisInfo(accepted, probability, torch.zeros_like(accepted))
    return select(accepted, proposal, state), info
