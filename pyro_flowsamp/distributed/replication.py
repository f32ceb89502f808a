"""Computations that all workers make alike, but for the units of work that they share out.

A computation with many decisions, such as :func:`~pyro_flowsamp.sample`, is made by every worker
from the same random numbers. Only its units are shared out, and what they give is gathered by all,
in the order of units. So every decision has the same inputs on every worker, bit for bit, and none
has to be sent. That it is so is checked by digests: see :func:`check_alike`.
"""

from __future__ import annotations

import hashlib
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from .context import guarded, splitting_workers
from .densities import check_same_density
from .group import WorkerGroup, WorkersDifferError

__all__ = [
    "UnitCounts",
    "check_alike",
    "common_seed",
    "ended_by_ctrl_c",
    "of_first",
    "replicated",
    "replicating_workers",
]


class _Interrupted(BaseException):
    """Ctrl-C on one of several workers; no computation catches it, as it would a KeyboardInterrupt.

    A computation that went on with less, on this worker alone, would not be that of the others.
    """


def replicating_workers() -> WorkerGroup | None:
    """The workers that all make the computation in which this is called; None where there are none.

    Example::

        >>> from pyro_flowsamp import workers
        >>> with workers() as group:
        ...     before = replicating_workers()
        ...     with replicated("the example"):
        ...         before is None, replicating_workers() is group
        (True, True)
    """
    group = splitting_workers()
    return group if group is not None and group.replicates else None


def common_seed(seed: int | None) -> int | None:
    """The seed itself; where it is None and there are workers, one that rank 0 draws.

    Arguments:
        seed: A seed, or None.

    Example::

        >>> from pyro_flowsamp import workers
        >>> common_seed(None) is None
        True
        >>> with workers():
        ...     common_seed(3), common_seed(None) is None
        (3, False)
    """
    group = splitting_workers()
    return seed if group is None or seed is not None else group.shared_seed()


@contextmanager
def replicated(
    what: str, target: Any = None, first_order: bool = True
) -> Iterator[WorkerGroup | None]:
    """A context in which all workers make the same computation, and share out units of it.

    Inside of it runs of chains have the draws of all chains on every worker, and trainings are made
    by every worker alike. Ctrl-C on one of several workers ends the computation on all.

    Arguments:
        what: The computation, for messages.
        target: A :class:`~pyro_flowsamp.Target`, which must be the same for all, or None.
        first_order: Whether no derivatives of the density but the first are needed, so that large
            batches may be shared out (:mod:`pyro_flowsamp.target.shared_batches`).

    Returns:
        The workers; None where there are none, or they share out rows of data.

    Raises:
        ValueError: The workers have other targets or other random numbers.
        KeyboardInterrupt: Ctrl-C on this one of several workers.

    Example::

        >>> from pyro_flowsamp import workers
        >>> with workers(), replicated("the example") as group:
        ...     group.replicates
        True
    """
    group = splitting_workers()
    if group is None or group.replicates:
        with ExitStack() as stack:
            if group is not None and target is not None:
                stack.enter_context(group.watching(target))
            if group is not None and not first_order:
                stack.enter_context(group.in_unit())
            yield group
        return
    group.replicates, group.shares_batches = True, first_order
    try:
        with guarded(), ended_by_ctrl_c(group, what), ExitStack() as stack:
            if target is not None:
                check_same_density(group, target)
                stack.enter_context(group.watching(target))
            check_alike(f"the state of torch's random generator before {what}", _own_state(group))
            yield group
    finally:
        group.replicates = group.shares_batches = False


def _own_state(group: WorkerGroup) -> list[Tensor]:
    """The states of the generators that a worker draws from."""
    states = [torch.get_rng_state()]
    if group.device.type == "cuda":
        states.append(torch.cuda.get_rng_state(group.device))
    return states


@contextmanager
def ended_by_ctrl_c(group: WorkerGroup | None, what: str) -> Iterator[None]:
    """A context that Ctrl-C ends on all of several workers.

    Arguments:
        group: The workers, or None.
        what: What is ended, for the message.

    Raises:
        KeyboardInterrupt: Ctrl-C on this one of several workers.

    Example::

        >>> with ended_by_ctrl_c(None, "the example"):
        ...     1 + 1
        2
    """
    if (
        group is None
        or group.size == 1
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def end(*_: Any) -> None:
        raise _Interrupted

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    except _Interrupted:
        error = KeyboardInterrupt(f"Ctrl-C ended {what} on all workers: there is no result")
        group.fail(error)
        raise error from None
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)


def check_alike(what: str, *values: Any) -> None:
    """Checks that values are the same on all workers, bit for bit; nothing without such workers.

    A digest of the values is gathered.

    Arguments:
        what: What has the values, for the message.
        values: Tensors, numbers, strings, and lists, tuples and dictionaries of these.

    Raises:
        WorkersDifferError: They differ; the message names the workers.

    Example::

        >>> from pyro_flowsamp import workers
        >>> with workers(), replicated("the example"):
        ...     check_alike("the example", torch.ones(2), {"name": 3.0})
    """
    group = replicating_workers()
    if group is None:
        return
    found = hashlib.sha256()
    _update(found, values)
    own = torch.tensor(list(found.digest()), dtype=torch.uint8, device=group.device)
    digests = group.all_gather(own)
    others = (digests != digests[0]).any(1).nonzero()[:, 0].tolist()
    if others:
        raise WorkersDifferError(
            f"{what} of rank {', '.join(map(str, others))} differs from that of rank 0: every "
            f"worker needs the same script, arguments, data and seed, as many threads, and the "
            f"same kind of processor"
        )


def of_first(value: float) -> float:
    """The number of rank 0, where all workers make the same computation; else the number itself.

    A number that depends on the clock is another one on each worker, and so would be what depends
    on it.

    Arguments:
        value: The number of this worker.

    Example::

        >>> from pyro_flowsamp import workers
        >>> with workers(), replicated("the example"):
        ...     of_first(0.5)
        0.5
    """
    group = replicating_workers()
    if group is None:
        return value
    return float(group.broadcast(torch.tensor(value, dtype=torch.double, device=group.device)))


def _update(found: Any, value: Any) -> None:
    """Adds a value to a hash."""
    if isinstance(value, Tensor):
        found.update(f"{value.dtype}{tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        _update(found, sorted(value.items()))
    elif isinstance(value, list | tuple):
        found.update(f"({len(value)}".encode())
        for item in value:
            _update(found, item)
    else:
        found.update(f"{value!r};".encode())


class UnitCounts:
    """Evaluations in units of work, which are added up over all workers.

    A decision that depends on a count of evaluations would else depend on which units a worker has.

    Arguments:
        group: The workers.
        counter: Counts the evaluations of the target of the units,
            :class:`~pyro_flowsamp.target.evaluation.EvaluationCounter`; those of a computation that
            all make count too.
        number: The number of all units; a worker without any repeats one that is not counted.

    Example:
        >>> from pyro_flowsamp import Target, workers
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)
        >>> before = target.evaluations
        >>> with workers() as group:
        ...     counts = UnitCounts(group, target.counter, 2)
        ...     with counts.counting():
        ...         _ = target.log_prob(torch.ones(3, 1))
        ...     counts.add_up()
        >>> target.evaluations - before
        3
    """

    def __init__(self, group: WorkerGroup, counter: Any, number: int) -> None:
        self.group, self.counts = group, group.rank < number
        others = {
            id(other): other for other in (counter, *(target.counter for target in group.targets))
        }
        self.counters = list(others.values())
        self._begin()

    def _begin(self) -> None:
        self._evaluations = [0] * len(self.counters)
        self._nonfinite = [torch.zeros_like(counter.nonfinite) for counter in self.counters]

    @contextmanager
    def counting(self) -> Iterator[None]:
        """A context whose evaluations are those of units of this worker."""
        before = [(counter.evaluations, counter.nonfinite) for counter in self.counters]
        try:
            with self.group.in_unit():
                yield
        finally:
            for i, (counter, (evaluations, nonfinite)) in enumerate(zip(self.counters, before)):
                self._evaluations[i] += counter.evaluations - evaluations
                self._nonfinite[i] = self._nonfinite[i] + counter.nonfinite - nonfinite

    def add_up(self) -> None:
        """Puts the evaluations of all workers in the place of those of this one; one message."""
        nonfinite = torch.stack(self._nonfinite)
        own = torch.stack([nonfinite.new_tensor(self._evaluations), nonfinite], 1)
        total = self.group.add(own if self.counts else torch.zeros_like(own))
        for counter, (evaluations, bad), here, own_bad in zip(
            self.counters, total, self._evaluations, self._nonfinite
        ):
            counter.evaluations += int(evaluations) - here
            counter.nonfinite = counter.nonfinite + bad - own_bad
        self._begin()
