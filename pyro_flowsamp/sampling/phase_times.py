"""Times of the phases of a run, for its report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

__all__ = ["PhaseTimes"]


class PhaseTimes:
    """Wall-clock times of phases, for the report only.

    Arguments:
        phases: Names of the phases.

    Attributes:
        seconds: The time of each phase so far.

    Example::

        >>> timed = PhaseTimes("pilot")
        >>> with timed("pilot"):
        ...     pass
        >>> timed.seconds["pilot"] >= 0
        True
    """

    def __init__(self, *phases: str) -> None:
        self.seconds = dict.fromkeys(phases, 0.0)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Adds the time of a block to a phase."""
        clock = perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += perf_counter() - clock
