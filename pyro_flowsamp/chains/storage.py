"""Chains in a checkpoint: where they are, how the kernel is adapted, and the draws so far."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.description import describe_settings, describe_target, digest
from ..checkpoint.folder import CheckpointError
from ..checkpoint.scope import Scope
from ..distributed import described_workers
from ..kernels.base import FlowKernel
from .draw_buffer import DrawBuffer
from .streaming import Empty, InFiles, in_memory

__all__ = ["ChainPosition", "ChainStorage"]

BLOCK_BYTES = 2**26  #: of draws that are not stored yet, from which on they are
LONGER = 2  #: factor by which workers wait longer, at most, before rank 0 looks at its clock again


@dataclass
class ChainPosition:
    """The place in a run that chains have reached.

    Attributes:
        state: The state of the chains, of the kernel's own kind.
        starts: The points where they began, ``(C, d)``.
        phase: "warmup" or "sampling".
        steps: Steps of warm-up so far.
        seconds: Wall-clock time of the phases so far.
    """

    state: Any
    starts: Tensor
    phase: str = "warmup"
    steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class ChainStorage:
    """The place of a run of chains in a checkpoint.

    Draws are written in blocks that are never changed, so that a checkpoint takes no longer the
    more draws there are.

    Arguments:
        scope: The place; one that stores nothing will do.
        kernel: The kernel, after its ``setup``.

    Attributes:
        blocks: The blocks of chains that are shared out to workers,
            :class:`~pyro_flowsamp.chains.blocks.ChainBlocks`; None where they are not. Where all
            workers make the same computation, they are stored where their draws end, and not
            before. Else rank 0 says when, seldom enough that this is hardly a message: see
            :meth:`after`.
    """

    def __init__(self, scope: Scope, kernel: FlowKernel) -> None:
        self.scope, self.kernel = scope, kernel
        self.blocks: Any = None
        self._blocks = self._stored = self._since = 0
        self._wait = 1
        scope.watch(kernel.target, kernel)

    def describe(
        self, args: tuple, kwargs: dict[str, Any], starts: Any = None, **counts: Any
    ) -> None:
        """Says what the run is.

        Inside of another computation it says nothing: the outer one describes the run.

        Arguments:
            args, kwargs: The arguments of the model.
            starts: The starting points that were given.
            counts: Further arguments that must be the same when the run goes on.

        Raises:
            CheckpointError: The checkpoint is of another run.
        """
        if self.scope.is_outermost:
            kernel = {f"kernel's {k}": v for k, v in describe_settings(self.kernel).items()}
            target = describe_target(self.kernel.target, args, kwargs)
            counts |= described_workers()
            self.scope.describe(**target, **kernel, **counts, initial_params=digest(starts))

    @contextmanager
    def restoring(self) -> Iterator[ChainPosition | None]:
        """A context that is given the stored position, the kernel as it was there; None for none.

        At its end the random generators and counters are as they were there.

        Raises:
            CheckpointError: The flow is another one than that of the stored run.
        """
        with self.scope.restoring("state") as found:
            if found is None:
                yield None
                return
            if found["flow"] != self._flow:
                raise CheckpointError(
                    "the checkpoint is of a run with another flow than the guide has now: train "
                    "the guide with FitOptions(checkpoint=...) of its own, or with the same seed, "
                    "or give another folder"
                )
            self.kernel.load_state_dict(found["kernel"])
            self._blocks, position = found["blocks"], found["position"]
            if self.blocks is not None:
                position.state = self.blocks.restored(position.state)
                if not self.blocks.to_all:
                    position.starts = position.starts[self.blocks.rows]
            yield position

    @cached_property
    def _flow(self) -> str:
        """The digest of the kernel's frozen copy of the flow, which no step changes."""
        return digest(self.kernel.proposal.state_dict())

    @property
    def empty(self) -> Empty:
        """Makes memory for the draws: the machine's, or files of the checkpoint."""
        folder = self.scope.stream_folder
        return in_memory if folder is None else InFiles(folder)

    def load_draws(self, buffer: DrawBuffer) -> None:
        """Fills a buffer with the draws that are stored."""
        for block in range(self._blocks):
            found = self.scope.read(f"draws-{block}")
            if self.blocks is not None:
                rows = self.blocks.rows
                found = {"x": found["x"][:, rows], "found": _columns(found["found"], rows)}
            buffer.extend(**found)
        self._stored = buffer.count

    def after(self, steps: int, position: ChainPosition, buffer: DrawBuffer | None = None) -> None:
        """Writes where it is time to, after so many steps more, or where there are many draws.

        Several workers write at the same step. Their clocks differ, so that rank 0 says whether it
        is time, and after how many steps it will look again, at the pace so far.

        Raises:
            CheckpointError: The disk is full, or the folder cannot be written to.
        """
        if not self.scope.stores or (self.blocks is not None and self.blocks.to_all):
            return
        due = self.scope.due(steps) if self.blocks is None else self._due_for_all(steps)
        if buffer is not None and not due:
            held = buffer.bytes_since(self._stored)
            if self.blocks is not None:  # a number that all workers have
                held = held // len(self.blocks.rows) * sum(self.blocks.sizes)
            due = held >= BLOCK_BYTES
        if due:
            self.write(position, buffer)

    def _due_for_all(self, steps: int) -> bool:
        """Whether rank 0 finds it time to write; no message until it is to look again."""
        due, self._since = self.scope.due(steps), self._since + steps
        if self._since < self._wait or self.blocks.waits:
            return False
        wait = self.scope.steps_to_wait(LONGER * self._wait)
        group = self.blocks.group
        said = group.broadcast(torch.tensor([int(due), wait], device=group.device))
        self._since, self._wait = 0, int(said[1])
        return bool(said[0])

    def write(self, position: ChainPosition, buffer: DrawBuffer | None = None) -> None:
        """Writes the position, and the draws since the last time.

        Raises:
            CheckpointError: The disk is full, or the folder cannot be written to.
            TypeError: The kernel has a state that cannot be stored.
        """
        if not self.scope.stores:
            return
        values: dict[str, Any] = {}
        shared = self.blocks
        if shared is not None:
            shared.add_up_counts()
            starts = position.starts
            starts = starts if shared.to_all else _of_all(shared, starts[None]).flatten(0, 1)
            position = replace(position, state=shared.stored(position.state), starts=starts)
        blocks, stored = self._blocks, self._stored
        if buffer is not None and buffer.count > stored:
            draws = buffer.since(stored)
            if shared is not None:
                found = {k: _of_all(shared, value) for k, value in draws["found"].items()}
                draws = {"x": _of_all(shared, draws["x"]), "found": found}
            values[f"draws-{blocks}"] = draws
            blocks, stored = blocks + 1, buffer.count
        values["state"] = {
            "position": position,
            "kernel": self.kernel.state_dict(),
            "flow": self._flow,
            "blocks": blocks,
        }
        self.scope.write(values, position.phase)
        self._blocks, self._stored = blocks, stored


def _of_all(blocks: Any, values: Tensor) -> Tensor:
    """Values ``(n, C_own, ...)`` as those of all chains ``(n, C, ...)``.

    They are empty on workers that do not write them.
    """
    found = blocks.of_all(values.transpose(0, 1))
    return values[:0] if found is None else found.transpose(0, 1).contiguous()


def _columns(values: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Values ``(n, C)`` of some chains."""
    return {name: value[:, rows] for name, value in values.items()}
