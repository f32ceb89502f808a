"""Training of the velocity of a deformation flow on the deformation equation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import gamma, log
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ...flows.continuous import refine
from ...nn.equivariant import SignedPermutation, group, tied
from ...nn.mlp import TimeMLP
from ...options import FitOptions
from ...smc.starts import overdispersed_base
from ...smc.tempering import tempered_smc
from ...target.density import Target
from ...training.history import History
from ...training.train import Stored, fit
from ...weights import ess_fraction
from .checks import log_weights
from .losses import CollocationLoss, at_smc_points
from .options import DeformationOptions
from .velocity_flow import DeformationFlow

__all__ = ["Progress", "VelocityTrainer", "networks"]

MIN_STEPS = 2  #: steps of the integrator of a trained flow, where they are enough
NUM_BASE = 512  #: points that were moved uphill, which the base covers
NUM_PACE = 512  #: particles annealed to find where the path changes most
NUM_WATCH = 1024  #: draws with which training is watched
NUM_REFINE = 256  #: draws on which the integrator is checked


class Progress(NamedTuple):
    """The flow while it was trained: optimiser steps, densities asked, seconds, ESS fraction.

    Example:
        >>> done = [Progress(25, 6400, 0.1, 0.5), Progress(50, 12800, 0.2, 0.8)]
        >>> max(done, key=lambda progress: progress.ess).steps
        50
    """

    steps: int
    evaluations: int
    seconds: float
    ess: float


class DeformationSettings(Protocol):
    """Settings of the guide that training uses, see AutoDeformationFlow."""

    base_power: float
    exploration_scale: float
    symmetry: Sequence[SignedPermutation]
    options: FitOptions
    settings: DeformationOptions


def networks(flow: DeformationFlow) -> list[TimeMLP]:
    """Returns the networks that are trained: the velocity, and the path's learned term if any.

    Example:
        >>> from pyro_flowsamp.guides.deformation.energy_path import BoltzmannPath, EnergyMLP
        >>> from pyro_flowsamp.nn import VelocityMLP
        >>> paths = [BoltzmannPath(1, 2.0, term, None) for term in (None, EnergyMLP(1))]
        >>> [len(networks(DeformationFlow(path, VelocityMLP(1), 4, 2))) for path in paths]
        [1, 2]
    """
    learned_term = flow.path.learned_term
    return [flow.velocity] if learned_term is None else [flow.velocity, learned_term]


class VelocityTrainer:
    """Trainer of the velocity of one flow on one target.

    Arguments:
        flow: The flow.
        target: The density at the end of the path.
        guide: The guide, for its settings.

    Attributes:
        progress: The state of the flow at the end of each window of training.
        steps: Optimiser steps so far.

    Example:
        >>> from pyro_flowsamp import AutoDeformationFlow
        >>> from pyro_flowsamp.guides.deformation.energy_path import BoltzmannPath
        >>> from pyro_flowsamp.nn import VelocityMLP
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)
        >>> options = FitOptions(max_steps=2, eval_every=1, progress=False)
        >>> guide = AutoDeformationFlow(target, base_scale=1.0, options=options)
        >>> flow = DeformationFlow(BoltzmannPath(1, 2.0, None, None), VelocityMLP(1), 1, 2)
        >>> trainer = VelocityTrainer(flow, target, guide)
        >>> _ = trainer.train(torch.tensor([0.0, 1.0]))
        >>> [progress.steps for progress in trainer.progress]  # the flow fits at once
        [1]
    """

    def __init__(self, flow: DeformationFlow, target: Target, guide: DeformationSettings) -> None:
        self.flow, self.target, self.guide = flow, target, guide
        self.progress: list[Progress] = []
        self.steps = 0

    def state_dict(self) -> dict[str, Any]:
        """The steps so far, and the record of the windows."""
        return {"steps": self.steps, "progress": list(self.progress)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the state of :meth:`state_dict`; the list of the record stays the same one."""
        self.steps, self.progress[:] = state["steps"], state["progress"]

    @torch.no_grad()
    def place_base(self) -> None:
        """Places the base over points that were moved uphill, and sets the path's speed.

        The path passes its middle where an annealing from there has gone half of its steps.
        """
        wide, power = overdispersed_base(self.target, NUM_BASE), self.guide.base_power
        loc, scale = wide.loc, wide.scale
        if self.guide.symmetry:  # chance must not break it
            elements = group(self.guide.symmetry)
            loc = elements.act(loc).mean(0)
            scale = elements.act(scale).square().mean(0).sqrt()
        deviation = (gamma(3 / power) / gamma(1 / power)) ** 0.5
        self.flow.set_loc_scale(loc, scale / deviation)
        betas = tempered_smc(self.target, NUM_PACE, check_coverage=False).betas
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
        guide, flow, base = self.guide, self.flow, self.flow.base(None)
        options, settings = guide.options, guide.settings
        flow.path.check(self.target, base.sample((16,)))
        flow.block.steps = settings.integration_steps
        collocation = CollocationLoss(
            flow,
            self.target,
            times,
            options.batch_size,
            guide.exploration_scale,
            options.max_steps,
            settings,
        )
        chosen = (settings.collocation or at_smc_points)(collocation)
        closure = self._watched(chosen, collocation)
        parameters = [*flow.velocity.parameters(), *flow.path.parameters()]
        with self._tied():
            # A function that a user has given may have a state that is not known.
            others = [self, collocation, chosen] if isinstance(chosen, Stored) else None
            history = fit(parameters, closure, ess_fraction, options, others)
            collocation.check_dropped()
        flow.block.steps = MIN_STEPS
        refine(flow.block, base.sample((NUM_REFINE,)), log_prob=base.log_prob)
        return history

    def _tied(self) -> AbstractContextManager[None]:
        symmetry = self.guide.symmetry
        return tied(networks(self.flow), group(symmetry)) if symmetry else nullcontext()

    def _watched(
        self, closure: Callable[[], Tensor], collocation: CollocationLoss
    ) -> Callable[[], tuple[Tensor, Tensor | None]]:
        """Returns the closure with the flow's own weights at the end of every window."""
        start, already, self.steps = time.perf_counter(), self.target.evaluations, 0

        def watched() -> tuple[Tensor, Tensor | None]:
            loss, self.steps = closure(), self.steps + 1
            steps = self.steps
            if steps % self.guide.options.eval_every:
                return loss, None
            collocation.check_dropped()
            log_w = log_weights(self.flow, self.target, NUM_WATCH)
            clock, asked = time.perf_counter() - start, self.target.evaluations - already
            self.progress.append(Progress(steps, asked, clock, float(ess_fraction(log_w))))
            return loss, log_w

        return watched
