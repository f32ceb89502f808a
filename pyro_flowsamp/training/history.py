"""The record of a training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

__all__ = ["History"]


@dataclass
class History:
    """The record of a training.

    Attributes:
        loss: The mean loss of each window.
        ess: The importance ESS fraction of each window's draws; NaN where the objective has none.
        steps: Steps taken.
        skipped: Steps skipped because the loss or a gradient was not finite.
        evaluations: Evaluations of the target density, initialisation included.
        seconds: Wall-clock time, initialisation included.
        stopped: The reason why training ended. It is "enough" (the ESS is high enough), "flat" (no
            more progress), "max_steps", "interrupted", "gaussian" (the affine layer alone is good
            enough), or "unfinished" (an annealing flow was interrupted before its last block: it
            counts as untrained, and the next fit continues from there).
        gaussian_ess: ESS fraction of the affine layer alone, on fresh draws.
        final_ess: ESS fraction of the trained flow, on fresh draws.
        pareto_k: Pareto shape of those draws' weights.
        log_q_error: Largest difference between sampling's and scoring's log q on 99.9 % of draws.

    Example::

        >>> first, second = History(loss=[2.0], steps=25), History(loss=[1.0], steps=25)
        >>> both = first.followed_by(second)
        >>> both.loss, both.steps
        ([2.0, 1.0], 50)
    """

    loss: list[float] = field(default_factory=list)
    ess: list[float] = field(default_factory=list)
    steps: int = 0
    skipped: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    stopped: str = "max_steps"
    gaussian_ess: float = float("nan")
    final_ess: float = float("nan")
    pareto_k: float = float("nan")
    log_q_error: float = float("nan")

    def updated(self, **changes: object) -> History:
        """Returns a copy with some fields set."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def followed_by(self, later: History) -> History:
        """Returns the record of this training and a later one together.

        Windows, steps and seconds are those of both; all other fields are those of the later one.
        """
        return replace(
            later,
            loss=self.loss + later.loss,
            ess=self.ess + later.ess,
            steps=self.steps + later.steps,
            skipped=self.skipped + later.skipped,
            seconds=self.seconds + later.seconds,
        )
