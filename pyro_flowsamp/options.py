"""Options: every number that changes draws, warnings or stopping."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["FitOptions"]


@dataclass(frozen=True)
class FitOptions:
    """How to train.

    Attributes:
        max_steps: Upper bound on optimiser steps.
        batch_size: Draws per step.
        learning_rate: Of Adam, at the start.
        clip_norm: Bound on the norm of the gradient.
        eval_every: Steps between looks at the effective sample size.
        patience: Windows without progress before the learning rate is lowered.
        lr_decay: What it is lowered by.
        max_lr_decays: How often, before the training stops.
        tolerance: What counts as progress: relative growth of the effective sample size, or a fall
            of the loss in nats.
        stop_at_ess: Effective sample size, as a fraction, at which to stop at once.
        cosine_schedule: Whether the learning rate falls to zero along half a cosine over
            ``max_steps``, instead of whenever there is no progress.
        warmup_fraction: Part of ``max_steps`` over which the learning rate rises from zero. Adam's
            first
            steps are as long as the learning rate whatever the gradient: they can throw a flow that
            starts from draws out of narrow modes, and mass does not move back between modes.
        progress: Whether to show a progress bar.
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
            raise ValueError(f"FitOptions.decay must lie between 0 and 1, got {self.lr_decay}")
        if not 0 <= self.warmup_fraction <= 1:
            raise ValueError(
                f"FitOptions.warm_up is a part of the steps in [0, 1], got {self.warmup_fraction}"
            )

    def schedule(self, step: int) -> float:
        """What the learning rate is multiplied by at a step, counted from zero."""
        rise = self.warmup_fraction * self.max_steps
        factor = min(1.0, (step + 1) / rise) if rise else 1.0
        if self.cosine_schedule:
            factor *= 0.5 * (1 + math.cos(math.pi * step / self.max_steps))
        return factor
