"""The search of ``sample()`` in a checkpoint: modes that were found, and where Ctrl-C ended it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..checkpoint.description import describe_target, digest
from ..checkpoint.scope import Scope, deactivated, entered
from ..distributed import described_workers
from ..kernels.stored import StoredKernel
from ..smc.coordinates import WhitenedTarget
from ..smc.found_modes import FoundModes
from ..target.density import Target

__all__ = ["begin_sampling", "interruptible", "stored_check", "stored_modes"]


def begin_sampling(scope: Scope, target: Target, goal: Any, given: tuple) -> None:
    """Says what is sampled, and sets the random generators as they were when it began.

    Arguments:
        scope: The place of the call in the checkpoint.
        target: The target.
        goal: The draws that are wanted, :class:`~pyro_flowsamp.sampling.pilot.Goal`.
        given: Arguments and keyword arguments of the model, the seed, the given points, and the
            given guide.

    Raises:
        CheckpointError: The checkpoint is of another call.
    """
    scope.watch(target)
    if not scope.stores:
        return
    args, kwargs, seed, points, guide = given
    counts = {"ess": goal.ess, "num_samples": goal.num_samples, "num_chains": goal.num_chains}
    described = describe_target(target, args, kwargs)
    search, points = repr(goal.options), digest(points)
    flow = None if guide is None else digest(guide.trained_flow)
    counts |= {"seed": seed, "search": search, "initial_params": points, "guide": flow}
    counts |= described_workers()
    scope.describe(**described, **counts)
    with scope.restoring("start") as found:
        pass
    if found is None:
        scope.write({"start": True}, "start")


def stored_modes(target: Target, search: Callable[[], FoundModes]) -> FoundModes:
    """The result of a search for modes; it is made only where it is not stored.

    Its stages store themselves on the way. They are deleted when it ends.

    Arguments:
        target: The target of the search.
        search: Makes it.
    """
    with entered(None, "modes") as scope:
        scope.watch(target)
        with scope.restoring("found") as stored:
            if stored is not None:
                made = WhitenedTarget.restored(target, stored["coordinates"])
                return FoundModes(**stored["fields"], coordinates=made)
        found = search()
        if scope.stores:
            fields = found._asdict()
            parts = fields.pop("coordinates").parts
            value = {"fields": fields, "coordinates": parts}
            scope.write({"found": value}, "modes found", drop="")
    return found


def stored_check(kernel: StoredKernel, check: Callable[[], Any]) -> Any:
    """The result of a check of a kernel; it is made only where it is not stored.

    Steps of the check change the state of the kernel, which is stored with the result. What the
    check computes on its way is not.

    Arguments:
        kernel: The kernel.
        check: Makes the result, of tensors, numbers and strings.

    Example:
        >>> from pyro_flowsamp import IMH
        >>> kernel = IMH(Target.from_energy(lambda x: x.square().sum(-1), 2))
        >>> stored_check(kernel, lambda: "no problem")  # outside a checkpoint it is made anew
        'no problem'
    """
    with entered(None, "check") as scope:
        with scope.restoring("found") as stored:
            if stored is not None:
                kernel.load_state_dict(stored["kernel"])
                return stored["result"]
        with deactivated():
            result = check()
        if scope.stores:
            scope.write({"found": {"result": result, "kernel": kernel.state_dict()}}, "checked")
    return result


@contextmanager
def interruptible(kind: str, go_on: Callable[[], bool]) -> Iterator[None]:
    """A context of a computation that Ctrl-C ends, now and whenever the run goes on later.

    Arguments:
        kind: The name of its place in the checkpoint.
        go_on: Called after Ctrl-C: whether the search can do without the computation.

    Raises:
        KeyboardInterrupt: It was interrupted, now or when it was stored.

    Example:
        >>> with interruptible("training", lambda: True):
        ...     loss = 0.5  # nothing is stored where it is not interrupted
    """
    with entered(None, kind) as scope:
        with scope.restoring("interrupted") as before:
            pass
        if before is not None:
            raise KeyboardInterrupt
        try:
            yield
        except KeyboardInterrupt:
            if go_on():
                scope.write({"interrupted": True}, "interrupted")
            raise
