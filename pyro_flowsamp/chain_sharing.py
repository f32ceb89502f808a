"""Runs of chains with workers and without: the one interface of both."""

from __future__ import annotations

from copy import copy
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from .chain_blocks import ChainBlocks
from .chain_draws import ChainDraws
from .distributed import check_same_density, current_workers, splitting_workers
from .draw_buffer import DrawBuffer
from .kernels.base import FlowKernel
from .target.density import Target
from .target.site import Values

__all__ = [
    "ChainSteps",
    "SharedRun",
    "agree_on_draws",
    "check_still_shared_out",
    "of_all_chains",
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

    Where rows of data are shared out instead of chains, it checks that all have the same chains.

    Arguments:
        steps: The chains.
        buffer: The draws of this worker.
    """
    if isinstance(steps, ChainBlocks):
        count = torch.tensor([-buffer.count], device=steps.group.device)
        buffer.count = -int(steps.group.largest(count))
    elif (group := current_workers()) is not None and buffer.count:
        sums = buffer.x[buffer.count - 1].double().sum(0)
        group.check_same("the last draw of all chains", sums)


def of_all_chains(steps: Any, values: Values) -> Values | None:
    """Values of all chains ``(C, ...)`` by name, on rank 0; None elsewhere.

    Arguments:
        steps: The chains.
        values: Those of the chains of this worker, ``(C_own, n, ...)``.
    """
    if not isinstance(steps, ChainBlocks):
        return dict(values)
    found = {name: steps.of_all(value) for name, value in values.items()}
    return None if steps.group.rank else found  # type: ignore[return-value]


def statistics_of_all(steps: Any, statistics: Values) -> Values | None:
    """Whether each draw of all chains was accepted, and their extreme log densities, on rank 0.

    Arguments:
        steps: The chains.
        statistics: Statistics of draws ``(C_own, n)``.
    """
    if not isinstance(steps, ChainBlocks) or not statistics["lp"].numel():
        return statistics
    lp = torch.stack(statistics["lp"].aminmax(dim=1), 1)
    return of_all_chains(steps, {"accepted": statistics["accepted"], "lp": lp})


class SharedRun(ChainDraws):
    """The draws of a run whose chains may be shared out to workers.

    Attributes:
        starts: The points where the chains of this worker began, ``(C, d)``.
        num_chains: The number of these chains.
    """

    starts: Tensor
    num_chains: int

    def __init__(self) -> None:
        super().__init__()
        self._steps: Any = None
        self._state: Any = None
        self._kept: Any = None

    def gathered(self) -> Self | None:
        """The run with the chains of all workers, on rank 0; None on the other ranks.

        Every worker must call it, inside of the context :func:`~pyro_flowsamp.workers` in which the
        run was made. A run that was not shared out is returned as it is.

        Raises:
            RuntimeError: The run was shared out, and this context has ended.
        """
        if not isinstance(self._steps, ChainBlocks):
            return self
        check_still_shared_out(self._steps, "gathered() must be called there")
        values = {"x": self.unconstrained, "starts": self.starts, **self.statistics}
        found = of_all_chains(self._steps, values)
        if found is None:
            return None
        run = copy(self)
        run.__dict__ |= self.__dict__
        run.unconstrained, run.starts = found.pop("x"), found.pop("starts")
        run.statistics, run._state, run._steps = found, None, None
        run.num_chains, run._samples = len(run.starts), self._kept.unpack(run.unconstrained)
        return run
