r"""The deformation error as a loss.

:math:`C_t` need not be learnt: the points come in groups of one time, and a group's mean is the
:math:`-C_t` that makes its squared error least. (A network would have to reach :math:`\log Z_1 -
\log Z_0`, which for a lattice of 16 sites is 43.)

The points at which the error is made small are chosen by a function of a :class:`CollocationLoss`.
:func:`at_smc_points` is the default. The points of the paper, along the flow's own trajectories,
are in ``examples/benchmarks/variants.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...nn.mlp import VelocityMLP
from ...target.density import Target
from .collocation import NUM_SOURCES, CollocationPoints
from .energy_path import BoltzmannPath
from .options import LOSSES, DeformationOptions
from .velocity_flow import DeformationFlow

__all__ = ["CollocationLoss", "SMCPointsLoss", "at_smc_points", "residual"]


class CollocationLoss:
    """The parts of a deformation flow's loss, for a function that chooses collocation points.

    Arguments:
        flow: The flow that is trained.
        target: The density at the end of the path.
        times: The ends of the slices of time, from 0 to 1, ``(S,)``.
        batch_size: Number of points in all.
        width: Width of the base from which training explores, in units of the base.
        steps: Number of optimiser steps that are planned.
        options: Settings of the guide.

    Attributes:
        path, velocity, base: The path, the velocity, and the base of the flow.
        loss: The function L of the deformation error.
        dropped, seen: Number of points whose error was not finite, 0-d, and number of all points.

    Example:
        >>> from pyro_flowsamp.nn import VelocityMLP
        >>> flow = DeformationFlow(BoltzmannPath(1, 2.0, None, None), VelocityMLP(1), 1, 2)
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)
        >>> times = torch.tensor([0.0, 1.0])
        >>> loss = CollocationLoss(flow, target, times, 16, 1.0, 100, DeformationOptions())
        >>> loss.deviations(torch.tensor([[1.0, 3.0, torch.nan]])), int(loss.dropped)
        (tensor([[-1.,  1.,  0.]]), 1)
    """

    def __init__(
        self,
        flow: DeformationFlow,
        target: Target,
        times: Tensor,
        batch_size: int,
        width: float,
        steps: int,
        options: DeformationOptions,
    ) -> None:
        self.path, self.velocity, self.base = flow.path, flow.velocity, flow.base(None)
        self.target, self.times, self.width, self.steps = target, times, width, steps
        self.loss, self.batch_size, self.options = LOSSES[options.loss], batch_size, options
        self.dropped, self.seen = times.new_zeros((), dtype=torch.long), 0

    def deviations(self, errors: Tensor) -> Tensor:
        """Errors ``(S, m)`` less the mean of each time; zero for those that are not finite."""
        finite = torch.isfinite(errors)
        self.dropped = self.dropped + (~finite).sum()
        self.seen += errors.numel()
        errors = torch.where(finite, errors, 0.0)
        mean = errors.sum(-1, keepdim=True) / finite.sum(-1, keepdim=True).clamp(min=1)
        return torch.where(finite, errors - mean, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """The counts of points."""
        return {"dropped": self.dropped, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the state of :meth:`state_dict`."""
        self.dropped, self.seen = state["dropped"], state["seen"]

    def check_dropped(self) -> None:
        """Refuses a training that has to drop too many points.

        Raises:
            ValueError: A larger share of points was dropped than ``options.max_dropped``.
        """
        share = float(self.dropped) / max(1, self.seen)
        if share > self.options.max_dropped:
            raise ValueError(
                f"the energy is NaN or infinite at {share:.1%} of the points on the way: the base "
                f"reaches where the target has no density, or the learning rate is too high."
            )


class SMCPointsLoss:
    """The deformation error at points of sequential Monte Carlo, as the loss of a step.

    Arguments:
        training: The flow, its path and its target.

    Attributes:
        points: The points.
        calls: Steps so far.

    Example:
        >>> from pyro_flowsamp.nn import VelocityMLP
        >>> flow = DeformationFlow(BoltzmannPath(1, 2.0, None, None), VelocityMLP(1), 1, 2)
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)  # the base itself
        >>> times = torch.tensor([0.0, 1.0])
        >>> training = CollocationLoss(flow, target, times, 64, 1.0, 100, DeformationOptions())
        >>> step = SMCPointsLoss(training)
        >>> bool(step() < 1e-6), step.calls
        (True, 1)
    """

    def __init__(self, training: CollocationLoss) -> None:
        self.training, self.calls = training, 0
        path, times, options = training.path, training.times, training.options
        self.points = CollocationPoints(
            path,
            training.velocity,
            training.target,
            training.base,
            times,
            training.width,
            options.points_per_time,
        )
        self.num = max(1, training.batch_size // (NUM_SOURCES * len(times)))
        self._begun = path.learned_fraction
        self._start, self._end = (part * training.steps for part in options.learned_term_joins)

    def __call__(self) -> Tensor:
        training, path, call = self.training, self.training.path, self.calls
        self.calls += 1
        joined = (call - self._start) / (self._end - self._start)
        path.learned_fraction = min(max(self._begun, joined), 1.0)
        if call % training.options.refresh_every == 0:
            self.points.refresh()
        t, u, denergy_dt, grad_energy = self.points.sample(self.num)
        errors, _ = residual(path, training.velocity, t, u, denergy_dt, grad_energy)
        return training.loss(training.deviations(errors.view(len(training.times), -1))).mean()

    def state_dict(self) -> dict[str, Any]:
        """The points, the steps so far and the weight of the path's learned term."""
        fraction = self.training.path.learned_fraction
        return {"calls": self.calls, "fraction": fraction, "points": self.points.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the state of :meth:`state_dict`."""
        self.calls, self.training.path.learned_fraction = state["calls"], state["fraction"]
        self.points.load_state_dict(state["points"])


def at_smc_points(training: CollocationLoss) -> SMCPointsLoss:
    """The deformation error at points of sequential Monte Carlo along the path.

    At first the path is the straight one, on which no mode can be hidden. A learned term that is
    free from the start may remove a mode that the velocity has not found yet. A training that was
    cut short leaves it where it was, and the next goes on from there.

    Arguments:
        training: The flow, its path and its target.

    Returns:
        The closure.

    Example:
        >>> from pyro_flowsamp.nn import VelocityMLP
        >>> flow = DeformationFlow(BoltzmannPath(1, 2.0, None, None), VelocityMLP(1), 1, 2)
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)
        >>> times = torch.tensor([0.0, 1.0])
        >>> closure = at_smc_points(
        ...     CollocationLoss(flow, target, times, 16, 1.0, 100, DeformationOptions())
        ... )
        >>> abs(float(closure())) < 1e-5  # the target is the base, and no velocity is right
        True
    """
    return SMCPointsLoss(training)


def residual(
    path: BoltzmannPath,
    velocity: VelocityMLP,
    t: Tensor,
    u: Tensor,
    denergy_dt: Tensor,
    grad_energy: Tensor,
) -> tuple[Tensor, Tensor]:
    r""":math:`E_t - C_t` ``(N,)``, and V; given what is fixed of rate and slope.

    Arguments:
        path, velocity: The path, and the velocity along it.
        t: Times, ``(N,)``.
        u: Places, ``(N, d)``.
        denergy_dt, grad_energy: Rate ``(N,)`` and slope ``(N, d)`` without the learned term.

    Example:
        >>> path, one = BoltzmannPath(1, 2.0, None, None), torch.ones(1)
        >>> u = slope = one[:, None]
        >>> error, v = residual(path, VelocityMLP(1), 0.5 * one, u, 3 * one, slope)
        >>> error.tolist(), v.tolist()  # without a velocity the error is the rate of the energy
        ([3.0], [[0.0]])
    """
    v, divergence = velocity.with_divergence(t, u)
    _, more, steeper = path.learned_terms(t, u)
    return denergy_dt + more + ((grad_energy + steeper) * v).sum(-1) - divergence, v
