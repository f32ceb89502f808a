r"""The ChEES criterion of trajectory lengths, and its derivative by the length.

Let :math:`z` be a state, :math:`z'` and :math:`v'` the end of its trajectory and
the velocity there, and :math:`m, m'` the means of :math:`z, z'` over chains. The change in the
estimator of the expected square (ChEES) is

.. math:: F(\tau) = \tfrac14\, \mathbb E\big[(\|z' - m'\|^2 - \|z - m\|^2)^2\big].

Its maximum is where :math:`\|z - m\|^2` has the least lag-one correlation. The end of a trajectory
moves with velocity :math:`v'` as the length :math:`h\tau` grows, and
:math:`d(h\tau) / d\log\tau = h\tau`; so

.. math:: \frac{dF}{d\log\tau} =
          \mathbb E\big[h\tau\,(\|z' - m'\|^2 - \|z - m\|^2)\,(z' - m') \cdot v'\big].

Both means are taken over the chains' proposals, weighted by their acceptance probabilities.

References:
    Hoffman, Radul and Sountsov, *An Adaptive-MCMC Scheme for Setting Trajectory Lengths in
    Hamiltonian Monte Carlo*, 2021, https://proceedings.mlr.press/v130/hoffman21a.html
"""

from __future__ import annotations

from math import pi
from typing import Any

import torch
from torch import Tensor

from .hamiltonian import Metric, half_kick

__all__ = ["LastPoint", "criterion_and_gradient"]


class LastPoint:
    """The last point of a trajectory, which is kept as the trajectory passes.

    Arguments:
        metric: The metric of the trajectory.

    Example::

        >>> from pyro_flowsamp.transitions import hamiltonian
        >>> def free(z):
        ...     zero = z[:, 0].double() * 0
        ...     return hamiltonian.HMCState(z, zero, 0 * z, z, zero, zero)
        >>> last, one = LastPoint(hamiltonian.IDENTITY), torch.ones(1, 1)
        >>> _ = hamiltonian.trajectory(free(one), free, 0.5 * one, 4, one, keep=last.keep)
        >>> [x.item() for x in last.position_and_velocity(0.5 * one)]
        [3.0, 1.0]
    """

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._last: tuple[Any, Tensor]

    def keep(self, state: Any, velocity: Tensor) -> None:
        """Keeps a state, and the velocity that has led there."""
        self._last = state, velocity

    @property
    def log_pi(self) -> Tensor:
        """The log density of the end, ``(C,)``."""
        return self._last[0].log_pi

    def position_and_velocity(self, step_size: Tensor) -> tuple[Tensor, Tensor]:
        r"""The end :math:`z'` and :math:`v' = v + J(z')^{-1} k(z')`, ``(C, d)`` each."""
        state, velocity = self._last
        return state.z, velocity + self._metric.solve(state, half_kick(state.grad, step_size))


def criterion_and_gradient(
    z: Tensor,
    end: Tensor,
    velocity: Tensor,
    weights: Tensor,
    contexts: int = 1,
    angles: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Terms of the criterion, and of its derivative by the length of the trajectories.

    Both are relative to the fourth power of a width s of the chains, so that a width that changes
    in warm-up, or differs between contexts, does not matter. Chain i is at context i mod K; means
    and widths are those of a context.

    Arguments:
        z: Positions z at the start of the trajectories, ``(C, d)``.
        end: Positions :math:`z'` at their end.
        velocity: Velocities :math:`v'` at their end.
        weights: Acceptance probabilities, ``(C,)``: weights in means of :math:`z'`.
        contexts: K.
        angles: Mask ``(d,)`` of periodic coordinates, or None. Their mean is that on the circle,
            and differences to it are taken the short way round.

    Returns:
        :math:`\tfrac14 (\|z' - m'\|^2 - \|z - m\|^2)^2 / s^4` and
        :math:`(\|z' - m'\|^2 - \|z - m\|^2)\,(z' - m') \cdot v' / s^4`, ``(C,)`` each, float64,
        with :math:`s^2` the sum of the means of both squares; not finite where the end is not.

    Example::

        >>> z = torch.tensor([[1.0], [-1.0]])
        >>> terms = criterion_and_gradient(z, 2 * z, z, torch.ones(2))
        >>> [round(term.mean().item(), 6) for term in terms]
        [0.09, 0.24]
    """
    parts = (part.double().unflatten(0, (-1, contexts)) for part in (z, end, velocity, weights))
    z, end, velocity, weights = parts
    good = torch.isfinite(end).all(-1)
    before = _deviations(z, torch.ones_like(weights), angles)
    after = _deviations(end, weights * good, angles)
    old, new = before.square().sum(-1), after.square().sum(-1)
    width = old.mean(0) + _mean(new, weights * good)
    change = (new - old) / width
    gradient = change * (after * velocity).sum(-1) / width
    return 0.25 * change.square().flatten(), gradient.flatten()


def _deviations(z: Tensor, weights: Tensor, angles: Tensor | None) -> Tensor:
    """Differences ``(n, K, d)`` of points to their weighted means over the first dimension."""
    straight = z - _mean(z, weights)
    if angles is None:
        return straight
    turned = z - torch.atan2(_mean(z.sin(), weights), _mean(z.cos(), weights))
    return torch.where(angles, torch.remainder(turned + pi, 2 * pi) - pi, straight)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted means ``(K, ...)`` of ``(n, K, ...)``; a weight of zero leaves out what is NaN."""
    weights = (weights / weights.sum(0)).reshape(weights.shape + (1,) * (values.dim() - 2))
    return torch.where(weights > 0, weights * values, 0.0).sum(0)
