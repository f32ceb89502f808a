"""Training of the velocity of a deformation flow on the deformation equation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import count
from math import gamma, log
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...flows.continuous import refine
from ...nn.equivariant import SignedPermutation, group, tied
from ...nn.mlp import TimeMLP
from ...objectives import Objective
from ...options import FitOptions
from ...smc.starts import overdispersed_base
from ...smc.tempering import tempered_smc
from ...target.density import Target
from ...train import History, fit
from ...weights import ess_fraction
from .checks import log_weights
from .losses import COLLOCATION_LOSSES, CollocationLoss
from .velocity_flow import DeformationFlow

__all__ = ["Progress", "VelocityTrainer", "networks"]

STEPS = 16  #: of the integrator while training, and at least for weights along the path
MIN_STEPS = 2  #: steps of the integrator of a trained flow, where they are enough
NUM_BASE = 512  #: points that were moved uphill, which the base covers
NUM_PACE = 512  #: particles annealed to find where the path changes most
NUM_WATCH = 1024  #: draws with which training is watched
NUM_REFINE = 256  #: draws on which the integrator is checked
POLISH_RATE = 1e-4  #: learning rate of polishing


class Progress(NamedTuple):
    """The flow while it was trained: optimiser steps, densities asked, seconds, ESS fraction."""

    steps: int
    evaluations: int
    seconds: float
    ess: float


class DeformationSettings(Protocol):
    """Settings of the guide that training uses, see AutoDeformationFlow."""

    collocation: str
    loss: str
    base_power: float
    exploration_scale: float
    symmetry: Sequence[SignedPermutation]
    polish: int
    objective: Objective
    options: FitOptions


def networks(flow: DeformationFlow) -> list[TimeMLP]:
    """Returns the networks that are trained: the velocity, and the path's learned term if any."""
    learned_term = flow.path.learned_term
    return [flow.velocity] if learned_term is None else [flow.velocity, learned_term]


class VelocityTrainer:
    """Trainer of the velocity of one flow on one target.

    Arguments:
        flow: The flow.
        target: The density at the end of the path.
        settings: The settings of the guide.

    Attributes:
        progress: The state of the flow at the end of each window of training.
    """

    def __init__(
        self, flow: DeformationFlow, target: Target, settings: DeformationSettings
    ) -> None:
        self.flow, self.target, self.settings = flow, target, settings
        self.progress: list[Progress] = []

    @torch.no_grad()
    def place_base(self) -> None:
        """Places the base over points that were moved uphill, and sets the path's speed.

        The path passes its middle where an annealing from there has gone half of its steps.
        """
        wide, power = overdispersed_base(self.target, NUM_BASE), self.settings.base_power
        loc, scale = wide.loc, wide.scale
        if self.settings.symmetry:  # chance must not break it
            elements = group(self.settings.symmetry)
            loc = elements.act(loc).mean(0)
            scale = elements.act(scale).square().mean(0).sqrt()
        deviation = (gamma(3 / power) / gamma(1 / power)) ** 0.5
        self.flow.set_loc_scale(loc, scale / deviation)
        betas = tempered_smc(self.target, NUM_PACE).betas
        assert betas is not None
        halfway = min(0.5, float(betas[len(betas) // 2]))
        self.flow.path.log_kappa.fill_(2 * log(1 / halfway - 1))

    def train(self, times: Tensor) -> History:
        """Trains the velocity, and the path's learned term if any, then sets the integrator.

        Arguments:
            times: The ends of the slices of time.

        Raises:
            ValueError: The path does not lead from base to target, or too many points on the way
                have no finite energy.
        """
        settings, flow, base = self.settings, self.flow, self.flow.base(None)
        flow.path.check(self.target, base.sample((16,)))
        flow.block.steps = STEPS
        num, steps = settings.options.batch_size, settings.options.max_steps
        collocation = CollocationLoss(
            flow, self.target, times, settings.loss, num, settings.exploration_scale, steps
        )
        closure = self._watched(COLLOCATION_LOSSES[settings.collocation](collocation), collocation)
        parameters = [*flow.velocity.parameters(), *flow.path.parameters()]
        with self._tied():
            history = fit(parameters, closure, ess_fraction, settings.options)
            collocation.check_dropped()
            if settings.polish:
                self._polish()
        flow.block.steps = MIN_STEPS
        refine(flow.block, base.sample((NUM_REFINE,)), log_prob=base.log_prob)
        return history

    def _tied(self) -> AbstractContextManager[None]:
        symmetry = self.settings.symmetry
        return tied(networks(self.flow), group(symmetry)) if symmetry else nullcontext()

    def _watched(
        self, closure: Callable[[], Tensor], collocation: CollocationLoss
    ) -> Callable[[], tuple[Tensor, Tensor | None]]:
        """Returns the closure with the flow's own weights at the end of every window."""
        start, already, calls = time.perf_counter(), self.target.evaluations, count(1)

        def watched() -> tuple[Tensor, Tensor | None]:
            loss, steps = closure(), next(calls)
            if steps % self.settings.options.eval_every:
                return loss, None
            collocation.check_dropped()
            log_w = log_weights(self.flow, self.target, NUM_WATCH)
            clock, asked = time.perf_counter() - start, self.target.evaluations - already
            self.progress.append(Progress(steps, asked, clock, float(ess_fraction(log_w))))
            return loss, log_w

        return watched

    def _polish(self) -> None:
        options = replace(
            self.settings.options, max_steps=self.settings.polish, learning_rate=POLISH_RATE
        )

        def closure() -> tuple[Tensor, Tensor | None]:
            return self.settings.objective(self.flow, self.target, options.batch_size, None)

        fit(self.flow.velocity.parameters(), closure, ess_fraction, options)
