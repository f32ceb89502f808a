r"""The deformation error as a loss: at points of sequential Monte Carlo, or along trajectories.

:math:`C_t` need not be learnt: the points come in groups of one time, and a group's mean is the
:math:`-C_t` that makes its squared error least. (A network would have to reach :math:`\log Z_1 -
\log Z_0`, which for a lattice of 16 sites is 43.)
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, pairwise

import torch
from torch import Tensor

from ...nn.mlp import VelocityMLP
from ...target.density import Target
from .collocation import NUM_SOURCES, CollocationPoints
from .energy_path import BoltzmannPath
from .velocity_flow import DeformationFlow

__all__ = ["LOSSES", "COLLOCATION_LOSSES", "CollocationLoss", "residual"]


EVERY = 8  #: optimiser steps between two refreshes of the collocation points
JOINS = 0.1, 0.2  #: parts of a training between which the learned term is added to the path
MOST_DROPPED = 0.01  #: share of points whose energy may be NaN or infinite
Closure = Callable[[], Tensor]


class CollocationLoss:
    """Makes closures that return a loss, and counts the points they had to drop.

    Arguments:
        flow: What is being trained.
        target: Where to.
        times: From 0 to 1, ``(S,)``.
        loss: L(E), a name in :data:`~pyro_flowsamp.guides.deformation.losses.LOSSES`.
        batch_size: Points spread over all times, or trajectories.
        width: Of the base from which training explores, in units of the base.
        steps: How many are planned.
    """

    def __init__(
        self,
        flow: DeformationFlow,
        target: Target,
        times: Tensor,
        loss: str,
        batch_size: int,
        width: float,
        steps: int,
    ) -> None:
        self.path, self.velocity, self.base = flow.path, flow.velocity, flow.base(None)
        self.target, self.times, self.width, self.steps = target, times, width, steps
        self.loss, self.batch_size = LOSSES[loss], batch_size
        self.dropped, self.seen = times.new_zeros((), dtype=torch.long), 0

    def deviations(self, errors: Tensor) -> Tensor:
        """Errors ``(S, m)`` less the mean of each time; zero for those that are not finite."""
        finite = torch.isfinite(errors)
        self.dropped = self.dropped + (~finite).sum()
        self.seen += errors.numel()
        errors = torch.where(finite, errors, 0.0)
        mean = errors.sum(-1, keepdim=True) / finite.sum(-1, keepdim=True).clamp(min=1)
        return torch.where(finite, errors - mean, 0.0)

    def check_dropped(self) -> None:
        """To be called now and then.

        Raises:
            ValueError: A larger share of points was dropped than :data:`MOST_DROPPED`.
        """
        share = float(self.dropped) / max(1, self.seen)
        if share > MOST_DROPPED:
            raise ValueError(
                f"the energy is NaN or infinite at {share:.1%} of the points on the way: the base "
                f"reaches where the target has no density, or the learning rate is too high."
            )

    def on_smc_points(self) -> Closure:
        """The error at points that walk along the path by themselves.

        At first the path is the straight one, on which no mode can be hidden. A learned term that
        is free from the start may remove a mode that the velocity has not found yet. A training
        that was cut short leaves it where it was, and the next goes on from there.
        """
        points = CollocationPoints(
            self.path, self.velocity, self.target, self.base, self.times, self.width
        )
        num = max(1, self.batch_size // (NUM_SOURCES * len(self.times)))
        begun, calls = self.path.learned_fraction, count()
        start, end = (part * self.steps for part in JOINS)

        def closure() -> Tensor:
            call = next(calls)
            self.path.learned_fraction = min(max(begun, (call - start) / (end - start)), 1.0)
            if call % EVERY == 0:
                points.refresh()
            t, u, denergy_dt, grad_energy = points.sample(num)
            errors, _ = residual(self.path, self.velocity, t, u, denergy_dt, grad_energy)
            return self.loss(self.deviations(errors.view(len(self.times), -1))).mean()

        return closure

    def on_trajectories(self) -> Closure:
        """The error along the flow's own trajectories, weighted, by Euler steps.

        The learned term is there from the first step, as in the paper.
        """
        path = self.path
        path.learned_fraction = 1.0

        def closure() -> Tensor:
            u = self.width * self.base.sample((self.batch_size,))
            log_w = path.base(u, self.width)[0] - path.base(u)[0]
            loss = torch.zeros_like(log_w)
            for start, end in pairwise(self.times):
                t, h = start.expand(len(u)), end - start
                _, denergy_dt, grad_energy, _ = path.fixed_terms(self.target, t, u)
                errors, v = residual(path, self.velocity, t, u, denergy_dt, grad_energy)
                deviations = self.deviations(errors[None])[0]
                loss = loss + h * self.loss(deviations)
                log_w = log_w - h * torch.where(errors.isfinite(), deviations, torch.inf).detach()
                u = u + h * v
            return (log_w.softmax(0) * loss).sum()

        return closure


#: name → which closure
COLLOCATION_LOSSES: dict[str, Callable[[CollocationLoss], Closure]] = {
    "smc": CollocationLoss.on_smc_points,
    "trajectories": CollocationLoss.on_trajectories,
}


#: L(E); the paper tried all four, and preferred the first.
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "mixed": lambda e: e.abs() + e.square(),
    "absolute": lambda e: e.abs(),
    "square": lambda e: e.square(),
    "log": lambda e: e.abs().log1p(),
}


def residual(
    path: BoltzmannPath,
    velocity: VelocityMLP,
    t: Tensor,
    u: Tensor,
    denergy_dt: Tensor,
    grad_energy: Tensor,
) -> tuple[Tensor, Tensor]:
    r""":math:`E_t - C_t` ``(N,)``, and V; given what is fixed of rate and slope."""
    v, divergence = velocity.with_divergence(t, u)
    _, more, steeper = path.learned_terms(t, u)
    return denergy_dt + more + ((grad_energy + steeper) * v).sum(-1) - divergence, v
