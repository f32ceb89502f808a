"""Options of the training and of the search for a sampler, with their defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .checkpoint.options import Location, as_checkpoint_options
from .search_options import ModeSearchOptions, SearchOptions
from .validation import check_count, check_number, check_options

__all__ = ["FitOptions", "ModeSearchOptions", "SearchOptions"]


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
        checkpoint: A folder, or :class:`~pyro_flowsamp.CheckpointOptions`, where the training is
            stored, so that the same call goes on after an end of the process; None for none.

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
    checkpoint: Location | None = None

    def __post_init__(self) -> None:
        check_options(self)
        as_checkpoint_options(self.checkpoint)
        for name in ("max_steps", "batch_size", "eval_every", "patience"):
            check_count(f"FitOptions.{name}", getattr(self, name))
        check_number(
            "FitOptions.learning_rate", self.learning_rate, 0, open_least=True, open_most=True
        )
        check_number("FitOptions.clip_norm", self.clip_norm, 0, open_least=True)
        for name in ("max_lr_decays", "tolerance", "min_growth", "stop_at_ess"):
            check_number(f"FitOptions.{name}", getattr(self, name), 0)
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
