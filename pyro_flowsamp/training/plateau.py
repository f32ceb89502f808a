"""The end of a training: when neither the effective sample size nor the loss makes progress."""

from __future__ import annotations

import math

from ..options import FitOptions

__all__ = ["VERDICTS", "Plateau"]

VERDICTS = "go", "decay", "flat", "enough"  #: on a window of steps


class Plateau:
    """Decides when neither the effective sample size grows nor the loss falls any more.

    Arguments:
        options: Options of the training.

    Example:
        >>> plateau = Plateau(FitOptions(patience=1, max_lr_decays=1))
        >>> [plateau.verdict(ess=0.5, loss=1.0) for _ in range(3)]
        ['go', 'decay', 'flat']
    """

    def __init__(self, options: FitOptions) -> None:
        self.options, self.waited, self.decays = options, 0, 0
        self.best_ess, self.best_loss = 0.0, float("inf")

    def verdict(self, ess: float, loss: float) -> str:
        """Returns "go", "decay", "flat" or "enough" after a window of steps."""
        if ess >= self.options.stop_at_ess:
            return "enough"
        if self.options.cosine_schedule:
            return "go"
        tolerance = self.options.tolerance
        grows = ess > self.best_ess * (1 + tolerance) + self.options.min_growth
        falls = loss < self.best_loss - tolerance
        self.best_loss = min(self.best_loss, loss)
        self.best_ess = max(self.best_ess, 0.0 if math.isnan(ess) else ess)
        if grows or falls:
            self.waited = 0
            return "go"
        self.waited += 1
        if self.waited < self.options.patience:
            return "go"
        self.waited = 0
        self.decays += 1
        return "flat" if self.decays > self.options.max_lr_decays else "decay"
