"""Draws of ``sample()`` where Ctrl-C comes before there is a sampler that is known to mix."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isnan
from typing import Any, TypeVar

from torch import Tensor

from ..chains.short_runs import short_run
from ..chains.vectorized import VectorizedMCMC
from ..checkpoint.scope import deactivated
from ..kernels.base import FlowKernel
from ..seeding import generator_states, set_generator_states
from ..smc.found_modes import FoundModes
from ..smc.mode_search import ModeSearch
from ..target.density import Target
from .pilot import Candidate, Goal, StepWork
from .storage import interruptible

__all__ = [
    "InterruptibleSearch",
    "cut_short",
    "made_again",
    "modes_problem",
    "modes_so_far",
    "nothing_yet",
]

Made = TypeVar("Made")

#: the text of the exception where Ctrl-C comes before there is any point
NOTHING_YET = (
    "Ctrl-C ended sample() before the quasi-Newton paths of its search for modes had ended: there "
    "are no draws"
)


@contextmanager
def nothing_yet() -> Iterator[None]:
    """A context before whose end there are no points: Ctrl-C raises an exception that says so.

    Raises:
        KeyboardInterrupt: Ctrl-C.

    Example:
        >>> try:
        ...     with nothing_yet():
        ...         raise KeyboardInterrupt
        ... except KeyboardInterrupt as error:
        ...     print(str(error)[-18:])
        there are no draws
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(NOTHING_YET) from None


def modes_so_far(search: ModeSearch) -> FoundModes:
    """The result of a search for modes, or what it has found when Ctrl-C ends it.

    Arguments:
        search: The search.

    Raises:
        KeyboardInterrupt: It has found nothing yet.

    Example:
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> found = modes_so_far(ModeSearch(target))
        >>> found.interrupted, modes_problem(found)
        (False, '')
    """
    with nothing_yet():
        try:
            return search.run()
        except KeyboardInterrupt:
            found = search.so_far()
            if found is None:
                raise
            return found


def modes_problem(found: FoundModes) -> str:
    """The clause which says that Ctrl-C has ended the search for modes; empty where it has not.

    Arguments:
        found: The result of the search.

    Example:
        >>> from types import SimpleNamespace
        >>> agreement = SimpleNamespace(unseen=float("nan"))  # there are no particles
        >>> modes_problem(SimpleNamespace(interrupted=True, agreement=agreement))[-51:]
        'by then only quasi-Newton paths had looked for them'
    """
    if not found.interrupted:
        return ""
    by_then = "two searches had not agreed by then"
    if isnan(found.agreement.unseen):
        by_then = "by then only quasi-Newton paths had looked for them"
    return f"Ctrl-C ended the search for modes, so that some may be missing: {by_then}"


def made_again(kind: str, make: Callable[[], Made]) -> tuple[Made, bool]:
    """The result of a short computation, which is made again where Ctrl-C ends it.

    Arguments:
        kind: The name of its place in a checkpoint, which stores that Ctrl-C has ended it.
        make: Makes the result; with the same random numbers both times.

    Returns:
        The result, and whether Ctrl-C has ended the computation the first time.

    Raises:
        KeyboardInterrupt: Ctrl-C ended it the second time.

    Example:
        >>> errors = [KeyboardInterrupt()]
        >>> def make():
        ...     if errors:
        ...         raise errors.pop()
        ...     return "made"
        >>> made_again("example", make)
        ('made', True)
    """
    states = generator_states()
    try:
        with interruptible(kind, lambda: True):
            return make(), False
    except KeyboardInterrupt:
        set_generator_states(states)
        return make(), True


def cut_short(
    name: str,
    kernel: FlowKernel,
    pilot: VectorizedMCMC | None,
    target: Target,
    particles: Tensor,
    goal: Goal,
) -> Candidate:
    """The draws of a first pilot run that Ctrl-C has ended; or particles, where it has none.

    The particles make one step of the kernel, which leaves the posterior invariant, so that they
    have its statistics.

    Arguments:
        name: Name of the method.
        kernel: The kernel; it is set up again where there are no draws.
        pilot: The pilot run; None where there is none.
        target: Its target.
        particles: Particles of the search for modes, ``(N, d)``.
        goal: The draws that were wanted.

    Returns:
        A candidate that is not reliable, and says why.

    Raises:
        KeyboardInterrupt: Ctrl-C ended the step.

    Example:
        >>> import torch
        >>> from pyro_flowsamp import IMH, AutoFlow, FitOptions
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> guide = AutoFlow(target, flow="gaussian", options=FitOptions(progress=False))
        >>> _ = guide.fit()
        >>> particles, goal = torch.randn(5, 1), Goal(9, None, None)
        >>> found = cut_short("IMH", IMH(guide=guide), None, target, particles, goal)
        >>> tuple(found.run.unconstrained.shape), found.reliable
        ((5, 1, 1), False)
    """
    problem = (
        "Ctrl-C ended the first pilot run: these draws are of it, and depend on where its chains "
        "began"
    )
    if pilot is None or not pilot.unconstrained.numel():
        name = f"{name}, one step from particles"
        problem = (
            "Ctrl-C ended the search before the first draw of a chain: these draws are particles "
            "of the search for modes"
        )
        pilot = short_run(kernel, target, particles, warmup_steps=0)
        with deactivated():
            pilot.run()
    size = pilot.num_samples
    return Candidate(name, pilot, size, 1.0, StepWork(1.0, 1.0, 1), 0.0, goal, problem)


class InterruptibleSearch:
    """The part of a search over candidates that knows what Ctrl-C has ended.

    Attributes:
        target, particles, goal: Those of the search.
        problems: What Ctrl-C has ended, in words.
        cut_short: The draws so far where Ctrl-C has ended the search before there was a candidate;
            else None.
        stopped: Whether nothing else is tried: by Ctrl-C, or because the posterior seems improper.
        takes_first: Whether Ctrl-C came before there was a candidate, so that the first one that
            mixes is taken.
        pilot: The last pilot run; None before there is any.

    Example:
        >>> search = InterruptibleSearch()
        >>> search.in_any_case("example", lambda: 3), search.takes_first
        (3, False)
    """

    target: Target
    particles: Tensor
    goal: Goal

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.cut_short: Candidate | None = None
        self.stopped, self.takes_first = False, False
        self.pilot: VectorizedMCMC | None = None

    def in_any_case(self, kind: str, make: Callable[[], Any]) -> Any:
        """The result of a short computation, which Ctrl-C does not end, but the search after it."""
        made, interrupted = made_again(kind, make)
        if interrupted:
            self.take_first()
        return made

    def take_first(self, problem: str = "") -> None:
        """Takes the first candidate that mixes, and trains no flow; after Ctrl-C."""
        self.takes_first = True
        self.problems += [problem] if problem else []
        warnings.warn(
            "interrupted: the search ends with the first sampler that mixes", stacklevel=5
        )

    def stop(self, best: Candidate | None, name: str, kernel: FlowKernel) -> None:
        """Ends the search after Ctrl-C in a pilot run of a kernel, or in the training before it."""
        self.stopped, then = True, "the draws so far are returned"
        if best is None:
            pilot = self.pilot if self.pilot is not None and self.pilot.kernel is kernel else None
            given = self.target, self.particles, self.goal
            self.cut_short = cut_short(name, kernel, pilot, *given)
        else:
            then = f"{best.name} makes the draws"
        warnings.warn(f"interrupted: the search ends, and {then}", stacklevel=5)
