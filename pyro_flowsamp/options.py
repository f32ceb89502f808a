"""Options of the training and of the search for a sampler, with their defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["FitOptions", "SearchOptions"]


@dataclass(frozen=True)
class FitOptions:
    """Options of the training of a flow.

    Training looks at the effective sample size and the loss of a window of steps at a time. It
    makes progress while the first grows or the second falls.

    Attributes:
        max_steps: Largest number of optimiser steps.
        batch_size: Draws per step.
        learning_rate: Learning rate of Adam at the start.
        clip_norm: Largest norm of the gradient; longer ones are scaled down to it.
        eval_every: Steps of a window.
        patience: Windows without progress before the learning rate is lowered.
        lr_decay: Factor by which it is lowered.
        max_lr_decays: Times that it is lowered before training stops.
        tolerance: Relative growth of the effective sample size, or fall of the loss in nats, that
            counts as progress.
        min_growth: Growth of the effective sample size, as a fraction of the draws, that is needed
            beside.
        stop_at_ess: Effective sample size, as a fraction, at which training stops at once.
        cosine_schedule: Whether the learning rate falls to zero along half a cosine over
            ``max_steps``, and not whenever there is no progress.
        warmup_fraction: Part of ``max_steps`` over which the learning rate rises from zero. Adam's
            first steps are as long as the learning rate, whatever the gradient. A flow that starts
            from draws of narrow modes can lose them by such steps, and does not find them again.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: An option is out of range.

    Example::

        >>> options = FitOptions(max_steps=100, warmup_fraction=0.1, progress=False)
        >>> [options.schedule(step) for step in (0, 4, 50)]
        [0.1, 0.5, 1.0]
    """

    max_steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 5e-3
    clip_norm: float = 10.0
    eval_every: int = 25
    patience: int = 4
    lr_decay: float = 0.2
    max_lr_decays: int = 2
    tolerance: float = 0.02
    min_growth: float = 1e-3
    stop_at_ess: float = 0.9
    cosine_schedule: bool = False
    warmup_fraction: float = 0.0
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "eval_every", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"FitOptions.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"FitOptions.{name} must be positive, got {getattr(self, name)}")
        if self.max_lr_decays < 0:
            raise ValueError(
                f"FitOptions.max_lr_decays must not be negative, got {self.max_lr_decays}"
            )
        if not 0 < self.lr_decay < 1:
            raise ValueError(f"FitOptions.lr_decay must lie between 0 and 1, got {self.lr_decay}")
        if not 0 <= self.warmup_fraction <= 1:
            raise ValueError(
                f"FitOptions.warmup_fraction is a part of the steps in [0, 1], "
                f"got {self.warmup_fraction}"
            )

    def schedule(self, step: int) -> float:
        """The factor of the learning rate at a step, counted from zero."""
        rise = self.warmup_fraction * self.max_steps
        factor = min(1.0, (step + 1) / rise) if rise else 1.0
        if self.cosine_schedule:
            factor *= 0.5 * (1 + math.cos(math.pi * step / self.max_steps))
        return factor


@dataclass(frozen=True)
class SearchOptions:
    """Options of :func:`pyro_flowsamp.sample`, which compares candidate samplers by pilot runs.

    Attributes:
        particles, mcmc_steps: Particles of the first annealing, and MALA steps of each at every
            temperature.
        particles_many_modes, mcmc_steps_many_modes: The same for the second annealing, which is
            run where the particles of the first have several modes.
        hmc_steps: Leapfrog steps of a trajectory of the HMC candidate.
        local_global_evaluations: Target evaluations that a step of
            :class:`~pyro_flowsamp.LocalGlobalHMC` is expected to take in a pilot run.
        pilot_chains: Chains of a pilot run.
        pilot_warmup, pilot_steps: Steps of warm-up, and steps after it, of each pilot run.
        max_pilot_steps: Steps at which a pilot run is not doubled any more.
        min_ess_per_chain: Effective draws of a chain from which on a pilot run is reliable.
        min_independence_ess: Effective draws per draw that an independence sampler needs to be
            reliable: it never shows the regions that its flow does not reach.
        max_never_accepted: Largest share of chains that may never have moved, for a sampler with
            local moves. An independence sampler may have none.
        num_directions: Principal directions in which chains must mix, beside the coordinates.
        target_ess_per_draw: Effective draws that each kept draw should have; chains are thinned to
            reach it.
        max_thin: Largest number of steps for each kept draw.
        timing_steps: Training steps by which the time of a training is estimated.
        min_training_steps: Training steps that a flow is expected to need at least.
        patience: Longest search, as a multiple of the time in which the best sampler so far would
            make all draws.
        burn_in_block: Chains are checked for having moved after this many kept draws.
        burn_in_fraction: Evaluations of the burn-in after all chains have moved, as a fraction of
            all evaluations so far.
        max_r_hat: Largest R-hat of chains that agree.
        max_spread: Largest interquartile range of pilot chains, as a multiple of that of the
            annealed particles; more suggests an improper posterior.

    Raises:
        ValueError: An option is out of range.

    Example::

        >>> SearchOptions(pilot_chains=64).min_pilot_steps
        82
    """

    particles: int = 1024
    mcmc_steps: int = 5
    particles_many_modes: int = 4096
    mcmc_steps_many_modes: int = 10
    hmc_steps: int = 8
    local_global_evaluations: int = 25
    pilot_chains: int = 256
    pilot_warmup: int = 50
    pilot_steps: int = 32
    max_pilot_steps: int = 128
    min_ess_per_chain: float = 5.0
    min_independence_ess: float = 0.2
    max_never_accepted: float = 0.01
    num_directions: int = 8
    target_ess_per_draw: float = 0.5
    max_thin: int = 20
    timing_steps: int = 10
    min_training_steps: int = 300
    patience: float = 2.0
    burn_in_block: int = 10
    burn_in_fraction: float = 0.1
    max_r_hat: float = 1.05
    max_spread: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 1 if isinstance(getattr(SearchOptions, name), int) else 0
            if not value >= least:
                raise ValueError(f"SearchOptions.{name} must be at least {least}, got {value}")

    @property
    def min_pilot_steps(self) -> int:
        """Steps of the shortest pilot run."""
        return self.pilot_warmup + self.pilot_steps
