"""Settings of AutoDeformationFlow that few users change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...validation import check_options

__all__ = ["LOSSES", "Closure", "DeformationOptions", "ends_of_slices"]

Closure = Callable[[], Tensor]  #: returns the loss of one optimiser step, 0-d

#: functions L of the deformation error; the paper tried all four, and preferred the first
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "mixed": lambda e: e.abs() + e.square(),
    "absolute": lambda e: e.abs(),
    "square": lambda e: e.square(),
    "log": lambda e: e.abs().log1p(),
}


def ends_of_slices(times: int | Sequence[float]) -> list[float]:
    """Returns the ends of the slices of time, from 0 to 1.

    Arguments:
        times: A number of slices of equal length, or their ends.

    Raises:
        ValueError: The number is not positive, or the ends do not rise from 0 to 1.

    Example::

        >>> ends_of_slices(4)
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    if isinstance(times, int):
        if times < 1:
            raise ValueError(f"time_grid must be at least 1, got {times}")
        return torch.linspace(0, 1, times + 1, dtype=torch.double).tolist()
    grid = [float(t) for t in times]
    if grid[:1] != [0] or grid[-1:] != [1] or not all(a < b for a, b in pairwise(grid)):
        raise ValueError(f"time_grid must rise from 0 to 1, got {grid}")
    return grid


@dataclass(frozen=True)
class DeformationOptions:
    r"""Settings of the networks of a deformation flow, and of their training.

    Attributes:
        collocation: A function that takes a
            :class:`~pyro_flowsamp.guides.deformation.CollocationLoss` and returns a closure, which
            computes the loss of one optimiser step. By default
            :func:`~pyro_flowsamp.guides.deformation.at_smc_points`.
        loss: The function L of the deformation error E: "mixed", :math:`|E| + E^2`, "absolute",
            "square", or "log", :math:`\log(1 + |E|)`.
        time_grid: Number of slices of time, or the slices' ends, from 0 to 1.
        hidden_features: Width of both networks.
        time_kernels: Number of kernels in time of both networks, see
            :class:`~pyro_flowsamp.nn.mlp.TimeMLP`.
        integration_steps: Number of steps of the integrator while the flow is trained, and at least
            for weights along the path.
        refresh_every: Number of optimiser steps between two refreshes of the collocation points.
        learned_term_joins: Parts of a training between which the learned term is added to the path.
        points_per_time: Number of collocation points of each kind at each time.
        max_dropped: Share of points above which training fails because their energy is not finite.
        defensive_weight: Share of the particles that are left behind in each slice of time.
        evidence_draws: Number of the flow's draws from which its own evidence is estimated.

    Raises:
        TypeError: ``collocation`` is not a function.
        ValueError: A value is out of range.

    Example::

        >>> options = DeformationOptions(hidden_features=64, time_grid=[0.0, 0.1, 1.0])
        >>> DeformationOptions(time_grid=[0.0, 0.1])
        Traceback (most recent call last):
        ValueError: time_grid must rise from 0 to 1, got [0.0, 0.1]
    """

    collocation: Callable[[Any], Closure] | None = None
    loss: str = "mixed"
    time_grid: int | Sequence[float] = 32
    hidden_features: int = 128
    time_kernels: int = 1
    integration_steps: int = 16
    refresh_every: int = 8
    learned_term_joins: tuple[float, float] = (0.1, 0.2)
    points_per_time: int = 16
    max_dropped: float = 0.01
    defensive_weight: float = 0.1
    evidence_draws: int = 4096

    def __post_init__(self) -> None:
        check_options(self)
        if self.collocation is not None and not callable(self.collocation):
            raise TypeError(
                f"collocation must be a function of a CollocationLoss, such as at_smc_points, got "
                f"{self.collocation!r}"
            )
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {sorted(LOSSES)}, got '{self.loss}'")
        ends_of_slices(self.time_grid)
        counts = "hidden_features", "time_kernels", "integration_steps", "refresh_every"
        for name in (*counts, "points_per_time", "evidence_draws"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("max_dropped", "defensive_weight"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a share in [0, 1), got {getattr(self, name)}")
        first, last = self.learned_term_joins
        if not 0 <= first < last <= 1:
            raise ValueError(
                f"learned_term_joins must rise within [0, 1], got {self.learned_term_joins}"
            )
