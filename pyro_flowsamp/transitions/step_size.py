"""Step sizes: dual averaging, jitter, and the optimal size for a standard normal."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from pyro.ops.dual_averaging import DualAveraging
from torch import Tensor

from .hamiltonian import HMCInfo

__all__ = ["FixedTrajectory", "StepSize", "jitter", "optimal_step_size", "robbins_monro"]


class StepSize:
    """Step sizes of any shape, by dual averaging towards an acceptance; all on their device.

    A mean over many chains has little noise: steps are a third of those for a single one.

    Arguments:
        start: The step sizes at the start, a tensor of any shape.
        target_accept_prob: The acceptance that they are adapted to.

    Attributes:
        value: The step sizes, of the type and on the device of ``start``.

    Example::

        >>> size = StepSize(torch.tensor(1.0), 0.8)
        >>> size.adapt(torch.tensor(0.1))  # too few are accepted
        >>> bool(size.value < 10)
        True
    """

    def __init__(self, start: Tensor, target_accept_prob: float) -> None:
        self.value, self.target_accept_prob = start, target_accept_prob
        self._averaging = DualAveraging(prox_center=(10 * start).log(), gamma=0.15)

    def adapt(self, accept_prob: Tensor) -> None:
        """One step, towards acceptances of the shape of the step sizes."""
        self._averaging.step(self.target_accept_prob - accept_prob)
        self.value = self._averaging.get_state()[0].exp().to(self.value)

    def freeze(self) -> None:
        """The average step size from now on; not before :meth:`adapt`."""
        self.value = self._averaging.get_state()[1].exp().to(self.value)


class FixedTrajectory:
    """Trajectories of a fixed number of steps, whose step size is adapted in warm-up.

    It has the methods of
    :class:`~pyro_flowsamp.transitions.trajectory_length.TrajectoryAdaptation`.

    Arguments:
        step_size: The step size at the start.
        num_steps: The number of steps.
        target_accept_prob: Mean acceptance probability that the step size is adapted to.
        jittered: Whether each trajectory has a step size of its own, see :func:`jitter`.

    Attributes:
        value: The step size, 0-d.
        mean_steps: The number of steps.

    Example::

        >>> fixed = FixedTrajectory(0.5, 3, 0.8, jittered=False)
        >>> fixed.next(fixed.value, 100)
        (tensor(0.5000, dtype=torch.float64), 3)
    """

    def __init__(
        self, step_size: float, num_steps: int, target_accept_prob: float, jittered: bool
    ) -> None:
        self.value = torch.tensor(step_size, dtype=torch.double, device="cpu")
        self.mean_steps, self._target, self._jittered = num_steps, target_accept_prob, jittered
        self._averaging = DualAveraging(prox_center=log(10 * step_size))
        self._adapted = False

    def begin(self, chains: int, contexts: int = 1, angles: Tensor | None = None) -> None:
        """Prepares the first step of a run, for which there is nothing to do."""

    def next(self, step_size: Tensor, chains: int) -> tuple[Tensor, int]:
        """The step size of the next trajectory, 0-d or ``(C, 1)``, and its number of steps."""
        if self._jittered:
            step_size = jitter(step_size.expand(chains, 1).clone())
        return step_size, self.mean_steps

    def observe(self, info: HMCInfo, *trajectory: Any) -> None:
        """Takes note of a trajectory, of which nothing is needed."""

    def observed(self) -> Tensor:
        """Nothing, ``(0, 4)``."""
        return torch.empty(0, 4, dtype=torch.double)

    def set_observed(self, values: Tensor) -> None:
        """Takes note of nothing."""

    def adapt(self, info: HMCInfo) -> None:
        """Adapts the step size to the report of a step."""
        errors = (self._target - info.accept_prob) * ~info.jumped
        self._averaging.step(errors.mean())
        self.value, self._adapted = self._averaging.get_state()[0].exp(), True

    def freeze(self) -> None:
        """The average step size from now on."""
        if self._adapted:
            self.value = self._averaging.get_state()[1].exp()

    def report(self) -> dict[str, float]:
        """An empty report: the length is known without one."""
        return {}


def robbins_monro(
    step_size: Tensor, accept_prob: Tensor, target_accept_prob: float, gain: float
) -> Tensor:
    r"""Returns step sizes after one step of stochastic approximation with a constant gain.

    .. math:: \log\epsilon \leftarrow \log\epsilon + \gamma\,(\alpha - \alpha^*)

    A constant gain follows a density that changes, as that of sequential Monte Carlo does from
    stage to stage. It does not converge where the density stays the same; use :class:`StepSize`
    there.

    Arguments:
        step_size: Step sizes, of any shape.
        accept_prob: Mean acceptance probabilities :math:`\alpha` of the last step, of the same
            shape.
        target_accept_prob: The acceptance :math:`\alpha^*`.
        gain: The factor :math:`\gamma`.

    References:
        Robbins and Monro, *A Stochastic Approximation Method*, 1951,
        https://doi.org/10.1214/aoms/1177729586

    Example::

        >>> size = robbins_monro(torch.tensor(1.0), torch.tensor(0.774), 0.574, gain=0.5)
        >>> round(float(size), 4)  # exp(0.1)
        1.1052
    """
    return step_size * (gain * (accept_prob - target_accept_prob)).exp().to(step_size)


def jitter(step_size: Tensor) -> Tensor:
    """Step sizes times uniforms on (0.8, 1.2), against resonance with a period of the target.

    Arguments:
        step_size: Step sizes, of any shape.

    Example:
        >>> steps = jitter(torch.ones(1000))
        >>> round(float(steps.min()), 1), round(float(steps.max()), 1)
        (0.8, 1.2)
    """
    return step_size * torch.empty_like(step_size).uniform_(0.8, 1.2)


def optimal_step_size(dim: int) -> float:
    r""":math:`1.65\, d^{-1/6}`, optimal for a standard normal (Roberts & Rosenthal, 1998).

    Arguments:
        dim: The dimension d.

    Example:
        >>> optimal_step_size(1), optimal_step_size(64)
        (1.65, 0.825)
    """
    return 1.65 * dim ** (-1 / 6)
