"""Counts by which the densities of units of work are traced and compiled, each by its own.

What a compiled density returns differs by rounding errors from the density itself. When it takes
over is decided by counts of calls and of work. Units of work that several workers share out, such
as blocks of chains, must give the same numbers wherever they are worked on. So each has counts of
its own, and what other units of a worker have done decides nothing. Graphs are those of the target
and the kernel: a graph that another unit has made is used again, from the call on at which this one
would have made it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

__all__ = ["Counted", "UnitTracing"]


class Counted(Protocol):
    """A density, or parts of steps, traced and compiled by counts of calls and of work.

    Example:
        >>> from pyro_flowsamp.target.tracing import TracedDensity
        >>> counted: Counted = TracedDensity(lambda x, c: x.sum(-1))
        >>> counted.fresh_state() == counted.state_dict()
        True
    """

    def fresh_state(self) -> dict[str, Any]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class UnitTracing:
    """The counts of one unit of work.

    Example:
        >>> import torch
        >>> from pyro_flowsamp import Target
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)
        >>> unit, before = UnitTracing(), target.tracing_state()
        >>> with unit.active(target.density.density):
        ...     _ = target.log_prob(torch.ones(2, 1))
        >>> unit.states[0]["calls"][0][1], target.tracing_state() == before
        (1, True)
    """

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    @contextmanager
    def active(self, *counted: Counted | None) -> Iterator[None]:
        """A context in which the counts are those of the unit.

        Arguments:
            counted: What is counted, always the same; None is left out.
        """
        given = [each for each in counted if each is not None]
        before = [each.state_dict() for each in given]
        states = self.states or [each.fresh_state() for each in given]
        for each, state in zip(given, states):
            each.load_state_dict(state)
        try:
            yield
        finally:
            self.states = [each.state_dict() for each in given]
            for each, state in zip(given, before):
                each.load_state_dict(state)
