r"""Places for the states of computations in one checkpoint, and the place that is in use.

A run consists of computations, one after the other: trainings, runs of chains, searches. Each has a
:class:`Scope`, with a name that follows from its place in the program. When a run goes on, the
program is executed again from its beginning, and each computation first looks for its state in its
scope. One that was finished returns its result, one that was begun goes on from its state, and both
give the random generators and the counters of evaluations the states that they had. What lies
between is computed again, with the same numbers. So the draws are the same, bit by bit.

Functions that store a state take the scope in use, :func:`active`, and need no argument for it. It
stores nothing where no checkpoint was asked for.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from ..distributed import ended_by_ctrl_c, guarded, refuse_with_shard, splitting_workers
from ..seeding import generator_states, set_generator_states
from ..versions import versions
from .description import differences
from .folder import CheckpointError, CheckpointFolder
from .options import CheckpointOptions, as_checkpoint_options
from .shared_folder import SharedFolder

__all__ = ["Scope", "active", "deactivated", "entered"]


class _Session:
    """A checkpoint that is open: its folder, when it was last written, and counters to store."""

    def __init__(self, folder: CheckpointFolder | SharedFolder, options: CheckpointOptions) -> None:
        self.folder, self.options = folder, options
        self.target: Any = None
        self.others: list[Any] = []  # further targets, of which the graphs alone are stored
        self.kernel: Any = None
        self.described: dict[str, Any] = dict(folder.facts.get("described", {}))
        self.made = {"versions": versions(), "threads": torch.get_num_threads()}
        self.wrote()
        others = _conditions_changed(folder.facts, self.made) if folder.facts else []
        if others:
            warnings.warn(
                f"the checkpoint in {folder.path} was written under other conditions "
                f"({'; '.join(others)}): draws will not be the same bit by bit",
                stacklevel=5,
            )

    def wrote(self) -> None:
        """Begins to count the steps and the time until the next checkpoint."""
        self.steps, self.clock = 0, perf_counter()

    def counters(self) -> dict[str, Any]:
        """The numbers of evaluations of the target in use, and when its graphs are made."""
        if self.target is None:
            return {}
        counter = self.target.counter
        return {
            "evaluations": counter.evaluations,
            "nonfinite": counter.nonfinite,
            "tracing": self.target.tracing_state(),
            "others": [target.tracing_state() for target in self.others],
        }

    def graphs(self) -> dict[str, list[str]]:
        """The graphs there are, traced or compiled, with the counts at which they began."""
        steps = getattr(self.kernel, "step_graphs", None)
        targets = [target for target in (self.target, *self.others) if target is not None]
        return {
            "density": [text for target in targets for text in target.described_graphs()],
            "steps": [] if steps is None else steps.described(),
        }

    def set_counters(self, values: dict[str, Any]) -> None:
        """Gives the target in use the numbers that were stored."""
        if self.target is not None and values:
            self.target.counter.evaluations = values["evaluations"]
            self.target.counter.nonfinite = values["nonfinite"].to(self.target.device)
            self.target.load_tracing_state(values["tracing"])
            for target, state in zip(self.others, values["others"]):
                target.load_tracing_state(state)


def _conditions_changed(stored: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The versions, and the number of threads, that are not as they were, in words."""
    was, are = (
        {
            **facts.get("versions", {}),
            "the number of threads": facts.get("threads"),
        }
        for facts in (stored, now)
    )
    return differences(was, are)


class Scope:
    """The place of one computation in a checkpoint.

    Arguments:
        session: The open checkpoint; None for a scope that stores nothing.
        prefix: The beginning of the names of its parts.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as path:
        ...     for attempt in range(2):
        ...         with entered(path, "example") as scope:
        ...             with scope.restoring("state") as found:
        ...                 steps = found or 0
        ...             scope.write({"state": steps + 1}, "counting")
        ...     steps
        1
    """

    def __init__(self, session: Any = None, prefix: str = "") -> None:
        self._session, self.prefix = session, prefix
        self._children: Counter[str] = Counter()

    @property
    def stores(self) -> bool:
        """Whether there is a checkpoint."""
        return self._session is not None

    @property
    def stream_folder(self) -> Path | None:
        """The folder in whose files draws are held; None where they are held in memory."""
        if self._session is None or not self._session.options.stream:
            return None
        return self._session.folder.path

    @property
    def is_outermost(self) -> bool:
        """Whether there is a checkpoint, and this is the computation that it was opened for."""
        return self.stores and self.prefix.count("/") == 1

    def child(self, kind: str) -> Scope:
        """The scope of the next computation of a kind inside of this one."""
        if self._session is None:
            return self
        number, self._children[kind] = self._children[kind], self._children[kind] + 1
        return Scope(self._session, f"{self.prefix}{kind}-{number}/")

    def watch(self, target: Any, kernel: Any = None) -> None:
        """Stores the counters of this target's evaluations with every state from now on.

        Arguments:
            target: The target.
            kernel: The kernel of the chains, whose graphs the manifest names too; None for none.
        """
        if self._session is not None:
            self._session.target, self._session.others = target, []
            self._session.kernel = kernel

    def watch_too(self, target: Any) -> None:
        """Stores when graphs of a further target are made, until :meth:`watch` is called again.

        Without, its graphs would take over at other steps in a run that goes on, and compiled ones
        round differently.
        """
        if self._session is not None:
            self._session.others.append(target)

    def describe(self, **facts: Any) -> None:
        """Says what the computation is, which must be the same when it goes on.

        Arguments:
            facts: Numbers, strings and lists of them, by the names that a message shall have.

        Raises:
            CheckpointError: They are not those of the stored computation; the message names them.
        """
        if self._session is None:
            return
        stored = self._session.described.setdefault(self.prefix, facts)
        if other := differences(stored, facts):
            raise CheckpointError(
                f"the checkpoint in {self._session.folder.path} is of another run: "
                f"{'; '.join(other)}. Make the same call as before, or give another folder"
            )

    def __contains__(self, name: str) -> bool:
        return self._session is not None and self.prefix + name in self._session.folder

    def read(self, name: str) -> Any:
        """A stored value; None where there is none."""
        if name not in self:
            return None
        return self._session.folder.read(self.prefix + name)["value"]

    @contextmanager
    def restoring(self, name: str) -> Iterator[Any]:
        """A context that is given a stored value; None where there is none.

        At its end all random generators, and the counters, have the states that they had then.
        """
        if name not in self:
            yield None
            return
        found = self._session.folder.read(self.prefix + name)
        yield found["value"]
        self._session.set_counters(found["counters"])
        set_generator_states(found["generators"])
        self._children = Counter(found["children"])

    def due(self, steps: int = 1) -> bool:
        """Whether it is time to write, after so many steps more."""
        session = self._session
        if session is None:
            return False
        session.steps += steps
        options = session.options
        enough = options.every_steps and session.steps >= options.every_steps
        return bool(enough) or perf_counter() - session.clock >= options.every_seconds

    def steps_to_wait(self, most: int) -> int:
        """Steps after which it may be time to write, at the pace since the last time.

        Arguments:
            most: The largest number.
        """
        session = self._session
        if session is None:
            return most
        options, elapsed = session.options, perf_counter() - session.clock
        left = options.every_seconds - elapsed
        left = options.every_seconds if left <= 0 else left  # it is written now
        wait = min(float(most), left * max(1, session.steps) / max(elapsed, 1e-9))
        if options.every_steps:
            wait = min(wait, options.every_steps - session.steps % options.every_steps)
        return max(1, int(wait))

    def write(self, values: dict[str, Any], phase: str, drop: str | None = None) -> None:
        """Stores values, with the states of all generators and counters.

        Arguments:
            values: Values by name; those there are of the same names are replaced.
            phase: The phase of the run, for the manifest.
            drop: Other values of this scope, and those of scopes inside of it, are left out whose
                names begin with this; None for none.

        Raises:
            CheckpointError: The disk is full, or the folder cannot be written to.
            TypeError: A value cannot be stored.
        """
        session = self._session
        if session is None:
            return
        also = {
            "generators": generator_states(),
            "counters": session.counters(),
            "children": dict(self._children),
        }
        parts = {self.prefix + name: {"value": value, **also} for name, value in values.items()}
        facts = {
            **session.made,
            "phase": f"{self.prefix}{phase}",
            "seed": torch.initial_seed(),
            "described": session.described,
            "graphs": session.graphs(),
        }
        session.folder.commit(parts, facts, None if drop is None else self.prefix + drop)
        session.wrote()


_ACTIVE: ContextVar[Scope | None] = ContextVar("scope of checkpoints", default=None)


def active() -> Scope:
    """The scope in use; it stores nothing where there is no checkpoint.

    Example:
        >>> active().stores
        False
    """
    return _ACTIVE.get() or Scope()


@contextmanager
def _activated(scope: Scope) -> Iterator[Scope]:
    token = _ACTIVE.set(scope)
    try:
        yield scope
    finally:
        _ACTIVE.reset(token)


@contextmanager
def deactivated() -> Iterator[None]:
    """A context in which nothing is stored: its computations are made again as a whole.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as path, entered(path, "example"):
        ...     with deactivated():
        ...         inside = active().stores
        ...     inside, active().stores
        (False, True)
    """
    with _activated(Scope()):
        yield


@contextmanager
def entered(checkpoint: Any, kind: str) -> Iterator[Scope]:
    """A context whose computations are stored.

    Inside of a computation that is stored it is a scope of the same checkpoint, whatever is given.
    With workers rank 0 reads and writes it, for all of them, and Ctrl-C on one of several ends the
    computation on all.

    Arguments:
        checkpoint: A folder, or :class:`CheckpointOptions`, which is opened; or None.
        kind: The name of the scope.

    Raises:
        CheckpointError: The folder cannot be used.
        ValueError: There are workers that share out rows of data.

    Example:
        >>> with entered(None, "example") as scope:  # no checkpoint
        ...     scope.write({"steps": 3}, "counting")
        ...     scope.read("steps") is None
        True
    """
    options = as_checkpoint_options(checkpoint)
    if options is None or active().stores:
        with _activated(active().child(kind)) as scope:
            yield scope
        return
    refuse_with_shard("checkpoint", str(options.path))
    group = splitting_workers()
    with guarded(), ended_by_ctrl_c(group, "a computation with a checkpoint"):
        folder: CheckpointFolder | SharedFolder
        if group is None:
            folder = CheckpointFolder(options.path)
        else:
            folder = SharedFolder(options.path, group)
        if options.stream:  # a worker on another machine has a folder of that name for its draws
            options.path.mkdir(parents=True, exist_ok=True)
        try:
            with _activated(Scope(_Session(folder, options), f"{kind}/")) as scope:
                yield scope
        except KeyboardInterrupt as error:
            if folder.facts:
                error.add_note(f"the same call goes on from the checkpoint in {folder.path}")
            raise
        finally:
            folder.close()
