"""Looks at chains while they grow: seconds until the worst parameter has enough effective draws.

It imports no torch, so that samplers in an environment without it can use it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from .leapfrogs import worst_ess_and_r_hat

MAX_R_HAT = 1.01  #: of chains that agree


class Moment(NamedTuple):
    """Chains at one moment.

    Attributes:
        draws: Draws of each chain.
        seconds: Seconds of the run so far, those of looks left out.
        ess: The least bulk effective sample size.
        r_hat: The largest R-hat.
    """

    draws: int
    seconds: float
    ess: float
    r_hat: float


class Stopwatch:
    """Seconds since it was made, without those of its pauses.

    Example::

        watch = Stopwatch()
        with watch.paused():
            evaluate_draws()
        watch.seconds
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock, self._start, self._pauses = clock, clock(), 0.0

    @property
    def seconds(self) -> float:
        """The seconds so far."""
        return self._clock() - self._start - self._pauses

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context that does not count."""
        begin = self._clock()
        try:
            yield
        finally:
            self._pauses += self._clock() - begin


def ess_and_r_hat(x: np.ndarray) -> tuple[float, float]:
    """The least bulk effective sample size and the largest R-hat of ``(chains, draws, d)``.

    R-hat of a single chain is that of its halves.
    """
    ess, r_hat = worst_ess_and_r_hat(x)
    if len(x) == 1:
        half = x.shape[1] // 2
        r_hat = worst_ess_and_r_hat(np.concatenate([x[:, :half], x[:, half : 2 * half]]))[1]
    return ess, r_hat


def look_until(
    extend: Callable[[int], None],
    draws: Callable[[], np.ndarray],
    watch: Stopwatch,
    first: int,
    goal: float,
    limit: float,
) -> list[Moment]:
    """Draws, and looks at the chains each time that they have doubled, until the goal or a limit.

    Arguments:
        extend: Makes so many draws more of each chain; it may make fewer after the limit.
        draws: Returns all draws, ``(chains, draws, d)``.
        watch: The seconds of the run.
        first: Draws of each chain at the first look.
        goal: The effective sample size at which to stop.
        limit: The seconds after which to stop.
    """
    found: list[Moment] = []
    more = first
    while True:
        extend(more)
        seconds = watch.seconds
        with watch.paused():
            x = draws()
            ess, r_hat = ess_and_r_hat(x) if x.shape[1] > 7 else (0.0, np.inf)
        found.append(Moment(x.shape[1], seconds, ess, r_hat))
        if (ess >= goal and r_hat <= MAX_R_HAT) or seconds >= limit:
            return found
        more = x.shape[1]


def use_cores(count: int) -> None:
    """Lets this process run on so many cores, with as many threads; before torch or JAX starts."""
    cores = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(len(cores))


def seconds_to(goal: float, fixed: float, looks: Sequence[Moment]) -> float | None:
    r"""Seconds to an effective sample size, None where it was not reached.

    At the first look with enough effective draws, after t seconds and with the size e, it is
    :math:`f + (t - f) g / e`, where f is what was spent before the first draw.

    Arguments:
        goal: The effective sample size g.
        fixed: f.
        looks: The looks, in order.

    Example::

        seconds_to(1000, 2.0, [Moment(500, 4.0, 2000.0, 1.0)])  # 3.0
    """
    for look in looks:
        if look.ess >= goal and look.r_hat <= MAX_R_HAT:
            return fixed + (look.seconds - fixed) * goal / look.ess
    return None


def summary(fixed: float, looks: Sequence[Moment], goals: Sequence[float]) -> dict[str, Any]:
    """The results to store of a run."""
    return {
        "fixed": fixed,
        "looks": [list(look) for look in looks],
        "seconds_to": {str(int(goal)): seconds_to(goal, fixed, looks) for goal in goals},
        "seconds": looks[-1].seconds,
        "ess": looks[-1].ess,
        "r_hat": looks[-1].r_hat,
        "draws": looks[-1].draws,
    }
