"""Runs of chains with workers and without: the one interface of both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ..checkpoint.description import describe_target
from ..distributed import check_same_density, current_workers, guarded, splitting_workers
from ..kernels.base import FlowKernel
from ..target.density import Target
from ..target.site import Values
from ..target.work import WorkCounter
from .blocks import ChainBlocks
from .draw_buffer import DrawBuffer
from .draws import ChainDraws
from .parts import write_part

__all__ = [
    "ChainSteps",
    "SharedRun",
    "agree_on_draws",
    "all_points",
    "blocks_of",
    "check_still_shared_out",
    "draws_here",
    "of_all_chains",
    "sends_draws",
    "shared_out",
    "statistics_of_all",
]


class ChainSteps(Protocol):
    """Chains that a run makes steps of: a kernel, or blocks with copies of it.

    Example:
        >>> from pyro_flowsamp import IMH
        >>> steps: ChainSteps = IMH(Target.from_energy(lambda x: x.square().sum(-1), 2))
    """

    @property
    def target(self) -> Target: ...
    def start(self, num_chains: int, params: Values | None = None) -> Any: ...
    def state_at(self, params: Values) -> Any: ...
    def step(self, state: Any) -> tuple[Any, Any]: ...
    def adapt(self, info: Any) -> None: ...
    def freeze(self) -> None: ...


def shared_out(kernel: FlowKernel, num_chains: int) -> FlowKernel | ChainBlocks:
    """The chains of a kernel in blocks where there are workers; else the kernel itself.

    Arguments:
        kernel: The kernel, set up and with a frozen flow.
        num_chains: The number of chains.

    Example:
        >>> from pyro_flowsamp import IMH
        >>> kernel = IMH(Target.from_energy(lambda x: x.square().sum(-1), 2))
        >>> shared_out(kernel, 4) is kernel  # without workers
        True
    """
    group = current_workers()
    if group is None:
        return kernel
    if group.shard is None:
        return ChainBlocks(kernel, group, num_chains)
    check_same_density(group, kernel.target, kernel.proposal.log_prob)
    return kernel


def blocks_of(steps: Any) -> ChainBlocks | None:
    """The blocks that are shared out to workers; None where chains are not.

    Arguments:
        steps: The chains of a run.
    """
    return steps if isinstance(steps, ChainBlocks) else None


def check_still_shared_out(steps: Any, remedy: str = "make the run anew") -> None:
    """Checks that a run goes on with the workers that have begun it.

    Arguments:
        steps: The chains of the run.
        remedy: What to do where it does not.

    Raises:
        RuntimeError: It does not.
    """
    group = splitting_workers()
    if isinstance(steps, ChainBlocks) and steps.group is not group and steps.group.size > 1:
        raise RuntimeError(
            f"the chains of this run were shared out to workers, and their context has ended: "
            f"{remedy}"
        )
    if group is not None and group.size > 1 and not isinstance(steps, ChainBlocks):
        raise RuntimeError(
            f"this run was made before the context workers() was entered, so that every worker has "
            f"all of its chains: {remedy}"
        )


def agree_on_draws(steps: Any, buffer: DrawBuffer) -> None:
    """Forgets draws that not all workers have made, as where one was interrupted earlier.

    Evaluations of the target are those of all workers from then on. Where rows of data are shared
    out instead of chains, it checks that all have the same chains.

    Arguments:
        steps: The chains.
        buffer: The draws of this worker.
    """
    if isinstance(steps, ChainBlocks):
        count = torch.tensor([-buffer.count], device=steps.group.device)
        buffer.count = -int(steps.group.largest(count))
        steps.add_up_counts()
    elif (group := current_workers()) is not None and buffer.count:
        sums = buffer.x[buffer.count - 1].double().sum(0)
        group.check_same("the last draw of all chains", sums)


def of_all_chains(steps: Any, values: Values, to_all: bool = False) -> Values | None:
    """Values of all chains ``(C, ...)`` by name, on rank 0 or on all ranks; None elsewhere.

    Arguments:
        steps: The chains.
        values: Those of the chains of this worker, ``(C_own, n, ...)``.
        to_all: Whether all ranks get them, also where only rank 0 needs draws.
    """
    if not isinstance(steps, ChainBlocks):
        return dict(values)
    found = {name: steps.of_all(value, to_all) for name, value in values.items()}
    return None if None in found.values() else found  # type: ignore[return-value]


def all_points(steps: ChainSteps, params: Values | None, state: Any) -> Tensor:
    """The starting points ``(C, d)``; those given, since passing through a flow rounds them.

    They are those of this worker's chains, or of all where all workers have all draws.

    Arguments:
        steps: The chains.
        params: Values at which all chains start, or None.
        state: The state of this worker's chains.
    """
    if params is None:
        return draws_here(steps, state.x[:, None], {})[0][:, 0]
    x = steps.target.pack_unconstrained(params).reshape(-1, state.x.shape[-1])
    return x[steps.rows] if isinstance(steps, ChainBlocks) and not sends_draws(steps) else x


def sends_draws(steps: Any) -> bool:
    """Whether all workers get the draws of all chains.

    Arguments:
        steps: The chains.
    """
    return isinstance(steps, ChainBlocks) and steps.to_all


def draws_here(steps: Any, x: Tensor, statistics: Values) -> tuple[Tensor, Values]:
    """The draws ``(C, n, d)`` and their statistics that this worker keeps: its own, or all.

    Arguments:
        steps: The chains.
        x: The draws of the chains of this worker.
        statistics: Their statistics, ``(C, n)`` each.
    """
    if not sends_draws(steps):
        return x, statistics
    found = of_all_chains(steps, {"x": x, **statistics})
    assert found is not None
    return found.pop("x"), found


def statistics_of_all(steps: Any, statistics: Values) -> Values | None:
    """Whether each draw of all chains was accepted, and their extreme log densities, on rank 0.

    Arguments:
        steps: The chains.
        statistics: Statistics of draws ``(C_own, n)``.
    """
    own = not isinstance(steps, ChainBlocks) or sends_draws(steps)
    if own or not statistics["lp"].numel():
        return statistics
    lp = torch.stack(statistics["lp"].aminmax(dim=1), 1)
    return of_all_chains(steps, {"accepted": statistics["accepted"], "lp": lp})


class SharedRun(ChainDraws):
    """The draws of a run whose chains may be shared out to workers.

    Attributes:
        starts: The points where the chains of this worker began, ``(C, d)``; those of all chains
            where all workers have all draws (:func:`~pyro_flowsamp.distributed.replicated`).
        num_chains: The number of these chains.
    """

    starts: Tensor
    num_chains: int
    thin: int
    step_size: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self._steps: Any = None
        self._state: Any = None
        self._kept: Any = None
        self._args: tuple = ()
        self._kwargs: dict[str, Any] = {}

    @property
    def chains_per_batch(self) -> int:
        """The number of chains that make their steps as one batch."""
        return self._steps.sizes[0] if isinstance(self._steps, ChainBlocks) else self.num_chains

    @contextmanager
    def counting(self) -> Iterator[WorkCounter]:
        """A context that counts the work of steps, those of all workers at its end.

        The operations of blocks, which are made side by side, are those of one block on average.
        """
        counter, steps = WorkCounter(), self._steps
        if not isinstance(steps, ChainBlocks):
            with counter:
                yield counter
            return
        steps.counter = counter
        try:
            yield counter
        finally:
            steps.counter = None
        counter.operations, counter.elements = steps.work_of_all(counter)

    def write_part(self, folder: str | PathLike[str]) -> None:
        """Writes the draws that this worker has, as its part of those of all workers.

        :class:`~pyro_flowsamp.StoredDraws` reads the parts of all, in the order of chains, without
        holding them in memory. So the draws need not fit into the memory of any process. Every
        worker must call this, inside of the context :func:`~pyro_flowsamp.workers` in which the run
        was made; without workers there is one part.

        Arguments:
            folder: A folder that all workers, and the reader, can use.

        Raises:
            CheckpointError: The folder cannot be written to.
            RuntimeError: There are no draws, or the context in which they were made has ended.
        """
        if self._samples is None or self.target is None:
            raise RuntimeError("there are no draws to write: call run(...) first")
        check_still_shared_out(self._steps, "write_part(...) must be called there")
        steps, group = blocks_of(self._steps), splitting_workers()
        x, rows = self.unconstrained, torch.arange(self.num_chains)
        rank, size, chains, token = 0, 1, len(x), torch.initial_seed()
        if group is not None and steps is not None:
            rank, size, chains = group.rank, group.size, sum(steps.sizes)
            token = group.shared_seed()
            rows = steps.rows if rank < len(steps.sizes) else rows[:0]
        mine = rows if sends_draws(steps) else torch.arange(len(rows))
        values = {"x": x, "starts": self.starts, **self.statistics}
        target = describe_target(self.target, self._args, self._kwargs)
        step_size = None if self.step_size is None else float(self.step_size)
        facts: dict[str, Any] = {"workers": size, "chains": chains, "run": token}
        facts["samples"] = self.num_samples
        facts |= {"thin": self.thin, "step_size": step_size, "target": target}
        facts["save_params"] = [site.name for site in self._kept.sites]
        with guarded():
            whole = len(mine) == len(x)
            own = {name: value if whole else value[mine] for name, value in values.items()}
            write_part(Path(folder), rank, own, rows, facts)
            if group is not None:
                group.add(torch.zeros(1, device=group.device))  # all parts are there

    def gathered(self, to_all: bool = False) -> Self | None:
        """The run with the chains of all workers, on rank 0; None on ranks that do not have them.

        Every worker must call it, inside of the context :func:`~pyro_flowsamp.workers` in which the
        run was made. A run that was not shared out is returned as it is.

        Arguments:
            to_all: Whether all ranks get the chains.

        Raises:
            RuntimeError: The run was shared out, and this context has ended.
        """
        if not isinstance(self._steps, ChainBlocks) or sends_draws(self._steps):
            return self
        check_still_shared_out(self._steps, "gathered() must be called there")
        values = {"x": self.unconstrained, "starts": self.starts, **self.statistics}
        found = of_all_chains(self._steps, values, to_all)
        if found is None:
            return None
        run = copy(self)
        run.__dict__ |= self.__dict__
        run.unconstrained, run.starts = found.pop("x"), found.pop("starts")
        run.statistics, run._state, run._steps = found, None, None
        run.num_chains, run._samples = len(run.starts), self._kept.unpack(run.unconstrained)
        return run
