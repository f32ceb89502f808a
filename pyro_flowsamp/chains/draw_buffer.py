"""Starting values of chains, and memory for the draws that they make."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..free_memory import TooLittleMemoryError, free_bytes
from ..kernels.statistics import STATISTICS, KernelState, StepInfo, statistics
from ..target.density import Target
from ..target.site import Values
from ..validation import as_tensor, default_device, shown
from .streaming import Empty, in_blocks, in_memory

__all__ = [
    "IN_FILES",
    "DrawBuffer",
    "KeptSites",
    "check_memory",
    "given_points",
    "joined",
    "needed_bytes",
    "starting_values",
]


MAX_GIVEN = 256  #: draws of an earlier result that a search begins at
COPIES = 2  #: of the positions of draws: packed, and as values of sites
#: what a caller of a run of chains can do where draws need too much memory
FEWER_DRAWS = (
    "keep fewer draws by thin=..., fewer sites by save_params=..., fewer chains by num_chains=..."
)
#: what else they can do, where there is room on a disk
IN_FILES = "hold them in files by checkpoint=CheckpointOptions(folder, stream=True)"
TYPES = {"accepted": torch.bool, "diverging": torch.bool}  #: of statistics; else float64


def starting_values(params: Values | None, num_chains: int) -> Values | None:
    """Values as tensors; raises a ValueError unless there is one of each site for each chain.

    Arguments:
        params: Unconstrained values ``{site: (num_chains, ...)}``, or None.
        num_chains: The number of chains.

    Example:
        >>> starting_values({"x": [1.0, 2.0]}, num_chains=2)
        {'x': tensor([1., 2.])}
        >>> starting_values({"x": [1.0, 2.0]}, num_chains=3)
        Traceback (most recent call last):
        ValueError: initial_params['x'] has shape (2,); its leading dimension must be num_chains=3
    """
    if params is None:
        return None
    if not isinstance(params, Mapping) or not params:
        raise ValueError(
            f"initial_params must be a dict of unconstrained values, {{site: (num_chains, ...)}}, "
            f"got {shown(params)}"
        )
    starts = {name: _as_value(name, value) for name, value in params.items()}
    for name, value in starts.items():
        if value.shape[:1] != (num_chains,):
            raise ValueError(
                f"initial_params['{name}'] has shape {tuple(value.shape)}; its leading "
                f"dimension must be num_chains={num_chains}"
            )
    return starts


def _as_value(name: str, value: Any) -> Tensor:
    """A starting value as a tensor; arrays and lists get torch's default dtype."""
    dtype, device = torch.get_default_dtype(), default_device()
    return as_tensor(f"initial_params['{name}']", value, dtype, device)


def given_points(target: Target, initial_params: Values | None, start: Any) -> Tensor | None:
    """Points of a caller's starting values and of the draws of an earlier result, ``(N, d)``.

    Arguments:
        target: The target.
        initial_params: Unconstrained values ``{site: (N, ...)}``, or None.
        start: An ArviZ object with the group "posterior", or None.

    Raises:
        ValueError: A site is missing, unknown or has another shape; ``start`` is no such object;
            the density is zero at all points.

    Example:
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 2)
        >>> given_points(target, {"x": torch.tensor([[1.0, 2.0], [torch.nan, 0.0]])}, None)
        tensor([[1., 2.]])
    """
    found = []
    if initial_params is not None:
        if not isinstance(initial_params, Mapping):
            raise ValueError(
                f"initial_params must be a dict of unconstrained values, {{site: (N, ...)}}, got "
                f"{shown(initial_params)}"
            )
        unknown = set(initial_params) - {s.name for s in target.sites}
        if unknown:
            raise ValueError(f"initial_params: {sorted(unknown)} are not sites of the model")
        values = {k: _as_value(k, v).to(target.device) for k, v in initial_params.items()}
        found.append(target.pack_unconstrained(values).reshape(-1, target.dim))
    if start is not None:
        try:
            posterior = start["posterior"]
            missing = {s.name for s in target.sites} - {str(name) for name in posterior.data_vars}
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(
                f"start must be a result of sample() or another ArviZ object with the group "
                f"'posterior', got {shown(start)}"
            ) from error
        if missing:
            raise ValueError(f"start has no draws of the sites {sorted(missing)}")
        values = {
            s.name: torch.as_tensor(posterior[s.name].values).flatten(0, 1).to(target.device)
            for s in target.sites
        }
        draws = target.pack({name: v.to(target.dtype) for name, v in values.items()})
        found.append(draws[:: max(1, len(draws) // MAX_GIVEN)][:MAX_GIVEN])
    if not found:
        return None
    x = torch.cat(found)
    with torch.no_grad():
        x = x[torch.isfinite(target.log_prob(x)) & torch.isfinite(x).all(-1)]
    if not len(x):
        raise ValueError("the density is zero or NaN at all points of initial_params and start")
    return x


class KeptSites:
    """The sites whose draws are kept, and their columns of packed points ``(..., d)``.

    Arguments:
        target: The target that is drawn from.
        names: The sites to keep, or None for all.

    Raises:
        ValueError: A name is not a site.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("rate", dist.Exponential(1.0))
        >>> kept = KeptSites(Target.from_model(model), ["rate"])
        >>> kept.columns, kept.unpack(torch.zeros(1, 1, 1))  # exp(0)
        (tensor([2]), {'rate': tensor([[1.]])})
    """

    def __init__(self, target: Target, names: Sequence[str] | None) -> None:
        sites = target.sites
        unknown = set(names or ()) - {s.name for s in sites}
        if unknown:
            raise ValueError(f"save_params: {sorted(unknown)} are not sites of the model")
        self.sites = [s for s in sites if names is None or s.name in names]
        kept = {s.name for s in self.sites}
        keep = torch.tensor([s.name in kept for s in sites for _ in range(s.size)])
        self.columns = keep.nonzero()[:, 0].to(target.device)

    def unpack(self, draws: Tensor, empty: Empty = in_memory) -> Values:
        """Constrained values ``{site: (chains, draws, ...)}`` of kept columns.

        Arguments:
            draws: The kept columns of draws, ``(chains, draws, columns)``.
            empty: Makes memory for the values.
        """
        chains, num, numbers = draws.shape
        return in_blocks(self._unpacked, draws, (chains, num), numbers, empty)

    def _unpacked(self, draws: Tensor, first: int, last: int) -> Values:
        blocks = draws[:, first:last].split([s.size for s in self.sites], -1)
        return {
            site.name: site.transform(block.reshape(block.shape[:2] + site.shape))
            for site, block in zip(self.sites, blocks)
        }


class DrawBuffer:
    """Memory for the draws of C chains and their statistics, one row for each draw.

    Arguments:
        num_samples: Draws that there is room for.
        state: The chains' state.
        columns: Columns of the positions to keep.
        empty: Makes the memory.

    Attributes:
        size, count: Draws that there is room for, and draws so far.

    Example:
        >>> from pyro_flowsamp.transitions import independence
        >>> zero = torch.zeros(3)
        >>> state = independence.init(zero[:, None], zero, zero)
        >>> buffer = DrawBuffer(10, state, torch.tensor([0]))
        >>> buffer.add(*independence.step(state, state._replace(x=state.x + 1), zero - 1))
        >>> x, found = buffer.by_chain()
        >>> x.flatten(), found["accepted"].flatten()
        (tensor([1., 1., 1.]), tensor([True, True, True]))
    """

    def __init__(
        self,
        num_samples: int,
        state: KernelState,
        columns: Tensor,
        empty: Empty = in_memory,
    ) -> None:
        shape, device = (num_samples, len(state.x)), state.x.device
        self.columns, self.size, self.count = columns, num_samples, 0
        self.x = empty((*shape, len(columns)), state.x)
        types = {name: TYPES.get(name, torch.double) for name in STATISTICS}
        self.statistics = {
            name: empty(shape, torch.empty(0, dtype=kind, device=device))
            for name, kind in types.items()
        }

    def add(self, state: KernelState, info: StepInfo) -> None:
        """Stores the draw that a step has led to."""
        self.x[self.count] = state.x.index_select(-1, self.columns)
        for name, value in statistics(state, info).items():
            self.statistics[name][self.count] = value
        self.count += 1

    def bytes_since(self, first: int) -> int:
        """The bytes of the draws from number ``first`` on."""
        parts = [self.x, *self.statistics.values()]
        return (self.count - first) * sum(v[:1].numel() * v.element_size() for v in parts)

    def since(self, first: int) -> dict[str, Any]:
        """The draws from number ``first`` on, for :meth:`extend`."""
        rows = slice(first, self.count)
        return {
            "x": self.x[rows].clone(),
            "found": {k: v[rows].clone() for k, v in self.statistics.items()},
        }

    def extend(self, x: Tensor, found: dict[str, Tensor]) -> None:
        """Stores the draws ``(n, C, d)`` and their statistics ``(n, C)``."""
        rows = slice(self.count, self.count + len(x))
        self.x[rows] = x
        for name, values in found.items():
            self.statistics[name][rows] = values
        self.count += len(x)

    def by_chain(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The draws so far, ``(chains, draws, d)``, and statistics ``(chains, draws)``."""
        stats = {name: value[: self.count].mT for name, value in self.statistics.items()}
        return self.x[: self.count].transpose(0, 1), stats


def joined(old: Tensor, new: Tensor, empty: Empty) -> Tensor:
    """Draws ``(chains, draws, ...)`` after earlier ones, in memory of their own.

    Arguments:
        old, new: The earlier draws, and those that follow.
        empty: Makes the memory.

    Example:
        >>> joined(torch.zeros(1, 2), torch.ones(1, 1), in_memory)
        tensor([[0., 0., 1.]])
    """
    if empty is in_memory:
        return torch.cat([old, new], 1)
    chains, num = old.shape[:2]
    made = empty((num + new.shape[1], chains, *old.shape[2:]), old).transpose(0, 1)
    made[:, :num], made[:, num:] = old, new
    return made


def needed_bytes(target: Target, num_samples: int, num_chains: int, columns: int) -> int:
    """Bytes for draws and their statistics: in the order of steps, by chain, and constrained.

    Arguments:
        target: The target, for its dtype.
        num_samples, num_chains: Counts of draws.
        columns: Columns of the positions that are kept.

    Example:
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 2)
        >>> needed_bytes(target, 1000, 1000, 2)  # twice 8 bytes of positions, 26 of statistics
        42000000
    """
    statistics = sum(TYPES.get(name, torch.double).itemsize for name in STATISTICS)
    positions = COPIES * columns * torch.empty(0, dtype=target.dtype).element_size()
    return num_samples * num_chains * (positions + statistics)


def check_memory(
    target: Target,
    num_samples: int,
    num_chains: int,
    columns: int,
    folder: Path | None = None,
    *,
    copies: int = 0,
    remedy: str = FEWER_DRAWS,
) -> None:
    """Refuses draws that need more memory than there is, before any work is done.

    Draws that are held in files need that much room on the disk, and as much again for those that
    a checkpoint stores.

    Arguments:
        target: The target, for its dtype and device.
        num_samples, num_chains: Counts of draws.
        columns: Columns of the positions that are kept.
        folder: The folder in whose files the draws are held; None for the device's memory.
        copies: Copies of all positions in float64, which checks make.
        remedy: What the caller can do, for the message.

    Raises:
        TooLittleMemoryError: There is too little memory, or too little room on the disk.
        ValueError: Draws on another device than the CPU shall be held in files.

    Example:
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 2)
        >>> check_memory(target, 100, 10, 2)
        >>> check_memory(target, 10**9, 10**6, 2)
        Traceback (most recent call last):
        pyro_flowsamp.free_memory.TooLittleMemoryError: ...
    """
    needed = needed_bytes(target, num_samples, num_chains, columns)
    more = copies * num_samples * num_chains * columns * torch.double.itemsize
    if folder is not None:
        _check_disk(target, folder, 2 * needed + more, remedy)
        return
    needed += more
    free = free_bytes(torch.device(target.device))
    if free is not None and needed > free:
        raise TooLittleMemoryError(
            f"{num_samples} draws of {num_chains} chains, {columns} numbers each, need {needed:,} "
            f"bytes on {target.device}, and {free:,} are free",
            f"{remedy}, or {IN_FILES}",
        )


def _check_disk(target: Target, folder: Path, needed: int, remedy: str) -> None:
    if torch.device(target.device).type != "cpu":
        raise ValueError(
            f"CheckpointOptions.stream holds the draws of chains on the CPU in files, and this "
            f"target is on {target.device}: leave stream out"
        )
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TooLittleMemoryError(
            f"the draws need {needed:,} bytes in {folder}, where {free:,} are free",
            f"{remedy}, or give a folder on another disk",
        )
