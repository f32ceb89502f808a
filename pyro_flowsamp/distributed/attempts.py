"""Attempts: parts of a computation that all workers leave out where they fail on one of them.

Where all workers make the same computation and share out units of it, an error may come in a unit
of one worker alone. The others learn of it at their next exchange: within an attempt each exchange
is preceded by that of a flag, the maximum over the workers of whether one has failed. A worker that
fails sends this flag in the place of its next exchange. So each flag that is sent is received, and
all workers leave the attempt between the same two exchanges.

They go on alike, on every number of workers: the generators of random numbers, the counts of
evaluations, and those by which densities are traced, have the values that they had before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..seeding import generator_states, set_generator_states
from .group import FailedElsewhereError, WorkerGroup, WorkersDifferError
from .replication import replicating_workers

__all__ = ["AttemptError", "attempt"]


class AttemptError(RuntimeError):
    """An attempt has failed on one of the workers; all raise this, with the same text.

    Arguments:
        kind: The name of the class of the worker's error.
        text: Its text.

    Attributes:
        kind: As given.

    Example:
        >>> error = AttemptError("ZeroDivisionError", "division by zero")
        >>> str(error), error.kind
        ('division by zero', 'ZeroDivisionError')
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@contextmanager
def attempt(target: Any, *ending: type[Exception]) -> Iterator[None]:
    """A context that all workers leave with the same error, where it fails on one of them.

    It does nothing where there are no workers that all make the same computation.

    Arguments:
        target: The target that it evaluates.
        ending: Classes of errors that end the work of all workers instead.

    Raises:
        AttemptError: A worker has raised an exception.
        WorkersDifferError: The workers have other numbers, which ends the work of all.

    Example::

        >>> from pyro_flowsamp import Target, workers
        >>> from pyro_flowsamp.distributed import replicated
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)
        >>> with workers(), replicated("the example"):
        ...     with attempt(target):
        ...         1 / 0
        Traceback (most recent call last):
        ...
        pyro_flowsamp.distributed.attempts.AttemptError: division by zero
    """
    group = replicating_workers()
    if group is None or group.attempting:
        yield
        return
    states = generator_states()
    targets = list({id(each): each for each in (target, *group.targets)}.values())
    counts = [(each.counter.evaluations, each.counter.nonfinite) for each in targets]
    tracing = [each.tracing_state() for each in targets]
    failure: Exception | None = None
    group.attempting = True
    try:
        yield
        group.ask_for_failures()
    except FailedElsewhereError as error:
        failure = error
    except Exception as error:
        if group.has_ended or isinstance(error, (WorkersDifferError, *ending)):
            raise
        failure = error
        group.has_any_failed(True)
    finally:
        group.attempting = False
    if failure is None:
        return
    set_generator_states(states)
    for each, (evaluations, nonfinite), state in zip(targets, counts, tracing):
        each.counter.evaluations, each.counter.nonfinite = evaluations, nonfinite
        each.load_tracing_state(state)
    raise AttemptError(*_first_error(group, failure)) from failure


def _first_error(group: WorkerGroup, error: Exception) -> tuple[str, str]:
    """The class and the text of the error of the first worker that has one."""
    told = "\n"
    if not isinstance(error, FailedElsewhereError):
        kind = type(error).__name__
        told = f"{kind}\n{error or kind}"
    texts = group.join_bytes([told.encode()], group.size)
    kind, _, text = next(text for text in texts if text != b"\n").decode().partition("\n")
    return kind, text
