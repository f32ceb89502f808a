"""Chains in blocks that are shared out to workers, with the steps of one kernel."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import copy, deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoint.folder import decoded, encoded
from ..distributed import UnitCounts, WorkerGroup, check_same_density
from ..kernels.base import FlowKernel
from ..seeding import Stream
from ..target.context import check_number_of_chains
from ..target.density import Target
from ..target.site import Values
from ..target.unit_tracing import UnitTracing
from ..target.work import WorkCounter
from .draw_buffer import starting_values

__all__ = ["ChainBlocks", "Parts", "block_sizes"]

MESSAGE_BYTES = 64 * 2**20  #: of the largest part in which draws are gathered
FEWEST_ROUNDS = 8  #: chains of each context in a block, so that trajectories can be adapted there


def block_sizes(chains: int, contexts: int, most: int) -> list[int]:
    """Numbers of chains of blocks; they do not depend on the number of workers.

    Arguments:
        chains: All chains, a multiple of the number of contexts.
        contexts: The number of contexts; a block has as many chains of each.
        most: The greatest number of chains of a block, unless there are very many contexts.

    Example:
        >>> block_sizes(1000, contexts=1, most=128)
        [125, 125, 125, 125, 125, 125, 125, 125]
        >>> block_sizes(90, contexts=30, most=32)  # eight of each context at least, or all
        [90]
    """
    rounds = chains // contexts
    blocks = -(-rounds // max(FEWEST_ROUNDS, most // contexts))
    less, more = divmod(rounds, blocks)
    return [contexts * (less + (block < more)) for block in range(blocks)]


class Parts(NamedTuple):
    """States of chains, or reports of steps, of several blocks.

    The fields of each are tensors with the chains along their first dimension. An attribute of that
    name is the tensor of all blocks.

    Attributes:
        blocks: One for each block.

    Example:
        >>> from pyro_flowsamp.transitions import independence
        >>> one, zero = torch.ones(2), torch.zeros(3)
        >>> blocks = [independence.init(v[:, None], v, v) for v in (one, zero)]
        >>> Parts(blocks).log_p.tolist()
        [1.0, 1.0, 0.0, 0.0, 0.0]
    """

    blocks: list[Any]

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__"):
            raise AttributeError(name)
        return torch.cat([getattr(block, name) for block in self.blocks])


class ChainBlocks:
    r"""The chains of one worker, with the methods of a kernel that a run of chains calls.

    Each block has a copy of the kernel, a stream of random numbers, and densities that are
    evaluated as one batch. In warm-up the blocks' reports are gathered, after each step and
    later every few, in the order of blocks, and every copy is adapted to all of them at once. So
    all copies stay the same, on every worker, and the chains do not depend on the number of
    workers. All steps between two exchanges are made with the same step size, so that they make one
    update of it, as if more chains had made one step: several would overshoot. Adaptation ends with
    warm-up, so that the exactness of later draws does not depend on this.
    After warm-up nothing is exchanged until the draws are there. Of what a kernel keeps in a step
    for its adaptation, beside the report, only ``kernel.lengths`` is gathered, as means over blocks
    (:meth:`TrajectoryAdaptation.observed
    <pyro_flowsamp.transitions.trajectory_length.TrajectoryAdaptation.observed>`). The mean of the
    blocks' harmonic means is a little larger than the harmonic mean of all chains, and the
    criterion is relative to the widths of blocks: lengths are adapted to nearly, not exactly, what
    one set of all chains would be.

    When the density, and the parts of steps, are traced and compiled in the mode "auto" is decided
    by counts of each block alone (:mod:`pyro_flowsamp.target.unit_tracing`).

    Arguments:
        kernel: The kernel, set up and with a frozen flow.
        group: The workers.
        num_chains: The chains of all workers.

    Attributes:
        sizes: The number of chains of every block.
        rows: The numbers of this worker's chains.
        to_all: Whether all workers have the draws of all chains, since they all make the same
            computation (:func:`~pyro_flowsamp.distributed.replicated`); else rank 0 has them.
        counter: Counts the work of the steps of this worker's blocks; None where it is not counted.

    Example:
        >>> from pyro_flowsamp import IMH, AutoFlow, FitOptions, VectorizedMCMC, workers
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> guide = AutoFlow(target, flow="gaussian", options=FitOptions(progress=False))
        >>> run = VectorizedMCMC(IMH(guide=guide), 1, 2, 10, disable_progbar=True)
        >>> run.run()  # sets the kernel up
        >>> with workers() as group:
        ...     blocks = ChainBlocks(run.kernel, group, 300)
        ...     state = blocks.start(300)
        ...     state, report = blocks.step(state)
        >>> blocks.sizes, state.x.shape, report.accepted.shape
        ([100, 100, 100], torch.Size([300, 2]), torch.Size([300]))
    """

    def __init__(self, kernel: FlowKernel, group: WorkerGroup, num_chains: int) -> None:
        contexts = kernel.target.contexts
        check_number_of_chains(num_chains, contexts)
        self.kernel, self.group = kernel, group
        self._contexts = 1 if contexts is None else len(contexts)
        self._waiting: list[tuple[Parts, list[Tensor]]] = []
        self.to_all = group.replicates
        self.counter: WorkCounter | None = None
        if not self.to_all:  # else it has been compared, bit for bit
            check_same_density(group, kernel.target, kernel.proposal.log_prob)
            _warn_of_idle(group, num_chains, self._contexts)
        self._seed, self._layouts, self._adapted = group.shared_seed(), 0, 0
        self._kernels: list[FlowKernel] = []
        self._frozen: dict[str, Any] = {}
        self._lay_out(num_chains)

    def _lay_out(self, num_chains: int) -> None:
        """Makes blocks of so many chains, with random numbers that no others have."""
        group, target = self.group, self.kernel.target
        self.sizes = block_sizes(num_chains, self._contexts, group.options.chains_per_block)
        self.own = list(group.units(len(self.sizes)))
        firsts = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        self._slices = [slice(firsts[u], firsts[u + 1]) for u in self.own]
        self.rows = torch.cat([torch.arange(firsts[u], firsts[u + 1]) for u in self.own])
        self._layouts += 1
        phase = f"chains {self._layouts}"
        self._streams = [Stream(self._seed, phase, unit, target.device) for unit in self.own]
        self._tracing = [UnitTracing() for _ in self.own]
        self._counts = UnitCounts(group, target.counter, len(self.sizes))

    # ---- the methods of a kernel ----------------------------------------------------------------

    @property
    def target(self) -> Target:
        """The target of the kernel."""
        return self.kernel.target

    def start(self, num_chains: int, params: Values | None = None) -> Parts:
        """Starts the chains of this worker, see :meth:`FlowKernel.start`."""
        self._kernels = [copy(self.kernel) for _ in self.own]

        def start(kernel: FlowKernel, rows: slice) -> Any:
            own = None if params is None else {k: v[rows] for k, v in params.items()}
            return kernel.start(rows.stop - rows.start, own)

        return self._each(start, self._slices)

    def state_at(self, params: Values) -> Parts:
        """The state of this worker's chains at values of all, see :meth:`FlowKernel.state_at`.

        Where there are other numbers of chains than before, there are new blocks, with the kernel
        as it was after warm-up.
        """
        values = params.values() if isinstance(params, Mapping) else ()
        num_chains = max(map(len, values), default=sum(self.sizes))
        if num_chains != sum(self.sizes):
            check_number_of_chains(num_chains, self.target.contexts)
            self._lay_out(num_chains)
            self._kernels = [copy(self.kernel) for _ in self.own]
            for kernel in self._kernels:
                kernel.load_state_dict(deepcopy(self._frozen))
        starting_values(params, num_chains)
        own = [{k: v[rows] for k, v in params.items()} for rows in self._slices]
        return self._each(lambda kernel, values: kernel.state_at(values), own)

    def step(self, state: Parts) -> tuple[Parts, Parts]:
        """Makes one transition of every chain of this worker."""
        both = self._each(lambda kernel, block: kernel.step(block), state.blocks).blocks
        return Parts([new for new, _ in both]), Parts([info for _, info in both])

    def adapt(self, info: Parts) -> None:
        """Keeps the reports of a step, and adapts all copies where it is time to."""
        if type(self.kernel).adapt is FlowKernel.adapt:  # it adapts nothing
            return
        lengths = [getattr(kernel, "lengths", None) for kernel in self._kernels]
        none = torch.empty(0, 0, dtype=torch.double, device=self.kernel.target.device)
        observed = [none if each is None else each.observed().to(none) for each in lengths]
        self._waiting.append((info, observed))
        for each, seen in zip(lengths, observed):
            if each is not None:
                each.set_observed(seen[:0])
        self._adapted += 1
        options = self.group.options
        if self._adapted <= options.gather_first or len(self._waiting) >= options.gather_every:
            self._share()

    def freeze(self) -> None:
        """Ends the adaptation of all copies, and of the kernel itself."""
        self._share()
        for kernel in self._kernels:
            kernel.freeze()
        # copies, since steps of the kernel itself change nothing in those of the blocks
        self._frozen = deepcopy(self._kernels[0].state_dict())
        self.kernel.load_state_dict(deepcopy(self._frozen))

    def _each(self, function: Callable, values: Sequence[Any]) -> Parts:
        """The results of a function of a copy of the kernel and a value, each in its own stream."""
        found, density = [], self.kernel.target.density.density
        counter: Any = self.counter or nullcontext()
        with self._counts.counting(), counter:
            each = zip(self._kernels, self._streams, self._tracing, values, strict=True)
            for kernel, stream, tracing, value in each:
                with stream.active(), tracing.active(density, kernel.step_graphs):
                    found.append(function(kernel, value))
        return Parts(found)

    # ---- in a checkpoint ------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether reports of steps are still to be gathered: the same on all workers."""
        return bool(self._waiting)

    def stored(self, state: Parts) -> dict[str, Any]:
        """The blocks of all workers, as a checkpoint holds them, where no reports wait.

        Arguments:
            state: The state of this worker's chains.
        """
        own = []
        units = zip(state.blocks, self._kernels, self._streams, self._tracing)
        for block, kernel, stream, tracing in units:
            parts: dict[str, Any] = {"kernel": kernel.state_dict(), "stream": stream.state_dict()}
            parts["tracing"] = tracing.states
            own.append(encoded({"state": block, **parts}, "block"))
        blocks = [
            decoded(data, Path("block")) for data in self.group.join_bytes(own, len(self.sizes))
        ]
        made = {"seed": self._seed, "layouts": self._layouts, "frozen": self._frozen}
        made["adapted"] = self._adapted
        return {"blocks": blocks, "chains": sum(self.sizes), **made}

    def restored(self, found: dict[str, Any]) -> Parts:
        """The state of this worker's chains, of :meth:`stored` blocks of any number of workers."""
        self._seed, self._layouts = found["seed"], found["layouts"] - 1
        self._frozen, self._adapted = found["frozen"], found["adapted"]
        self._lay_out(found["chains"])
        self._kernels = [copy(self.kernel) for _ in self.own]
        own = [found["blocks"][unit] for unit in self.own]
        for kernel, stream, tracing, block in zip(self._kernels, self._streams, self._tracing, own):
            kernel.load_state_dict(deepcopy(block["kernel"]))
            tracing.states = deepcopy(block["tracing"])
            stream.load_state_dict(block["stream"])
        return Parts([block["state"] for block in own])

    # ---- exchanges ----------------------------------------------------------------------------

    def _share(self) -> None:
        """Gathers the reports that wait, and adapts every copy to them."""
        if not self._waiting:
            return
        packed = [
            torch.cat([_packed(info.blocks[i], self.sizes[u]) for info, _ in self._waiting], 1)
            for i, u in enumerate(self.own)
        ]
        observed = [torch.cat([seen[i] for _, seen in self._waiting]) for i in range(len(self.own))]
        # One message: rows of chains and numbers of blocks as one vector for each block.
        width, numbers = packed[0].shape[1], observed[0].numel()
        vectors = [torch.cat([p.flatten(), o.flatten()]) for p, o in zip(packed, observed)]
        joined = self.group.join(vectors, [n * width + numbers for n in self.sizes])
        parts = joined.split([part for n in self.sizes for part in (n * width, numbers)])
        every = torch.cat([part.view(-1, width) for part in parts[::2]])
        shape = len(self.sizes), *observed[0].shape
        means = _weighted_means(torch.cat(parts[1::2]).view(shape), self.sizes)
        reports = []
        for info, _ in self._waiting:
            report, every = _unpacked(info.blocks[0], self.sizes[self.own[0]], every)
            reports.append(report)
        report = _as_one(reports, sum(self.sizes))
        for kernel in self._kernels:
            if hasattr(kernel, "lengths"):
                kernel.lengths.set_observed(means)
            kernel.adapt(report)
        self._waiting = []

    def of_all(self, values: Tensor, to_all: bool = False) -> Tensor | None:
        """Values ``(C_own, n, ...)`` of all chains ``(C, n, ...)``, on rank 0 or on all ranks."""
        to_all = to_all or self.to_all
        room = -(-len(self.sizes) // self.group.size) * max(self.sizes)
        most = max(1, MESSAGE_BYTES // max(1, room * values[:1, :1].nbytes))
        found = []
        for part in values.split(most, 1):
            own = part.split([self.sizes[u] for u in self.own])
            found.append(self.group.join(own, self.sizes, to_all=to_all))
        return None if self.group.rank and not to_all else torch.cat(found, 1)

    def add_up_counts(self) -> None:
        """Adds up the evaluations of all workers since this was called last; one message."""
        self._counts.add_up()

    def work_of_all(self, counter: WorkCounter) -> tuple[float, float]:
        """The operations of a block, on average, and the elements of all blocks; one message.

        Arguments:
            counter: Has counted the work of this worker's blocks.
        """
        has_units = self.group.rank < len(self.sizes)
        own = [float(counter.operations), float(counter.elements)] if has_units else [0.0, 0.0]
        like = torch.tensor(own, dtype=torch.double, device=self.kernel.target.device)
        operations, elements = self.group.add(like).tolist()
        return operations / len(self.sizes), elements


def _warn_of_idle(group: WorkerGroup, chains: int, contexts: int) -> None:
    """Warns where some workers have no chains."""
    blocks = len(block_sizes(chains, contexts, group.options.chains_per_block))
    if blocks < group.size:
        each = -(-chains // group.size)
        warnings.warn(
            f"{chains} chains in {blocks} blocks keep {blocks} of {group.size} workers busy: take "
            f"more chains, or smaller blocks by WorkersOptions(chains_per_block={each})",
            stacklevel=7,
        )


# ---- reports as rows of numbers ------------------------------------------------------------------


def _leaves(report: Any) -> list[Tensor]:
    """The tensors of a report, whose fields are tensors or such reports."""
    if isinstance(report, Tensor):
        return [report]
    return [leaf for field in report for leaf in _leaves(field)]


def _packed(report: Any, chains: int) -> Tensor:
    """The report of a step as a row of numbers for each chain, float64.

    The first dimension of a field is that of chains, or of several moves of the chains in turn.
    """
    rows = [leaf.unflatten(0, (-1, chains)).transpose(0, 1) for leaf in _leaves(report)]
    return torch.cat([row.reshape(chains, -1).double() for row in rows], 1)


def _unpacked(like: Any, chains: int, rows: Tensor) -> tuple[Any, Tensor]:
    """The report of all chains by rows of numbers, and the numbers that are left.

    Arguments:
        like: The report of a block.
        chains: The number of its chains.
        rows: The numbers, ``(C, ...)``.
    """
    if isinstance(like, Tensor):
        shape = like.unflatten(0, (-1, chains)).transpose(0, 1).shape[1:]
        own, left = rows[:, : shape.numel()], rows[:, shape.numel() :]
        value = own.reshape(-1, *shape).transpose(0, 1).flatten(0, 1)
        return value.to(like.dtype), left
    fields = []
    for field in like:
        made, rows = _unpacked(field, chains, rows)
        fields.append(made)
    return type(like)(*fields), rows


def _as_one(reports: Sequence[Any], chains: int) -> Any:
    """The report of several steps as if more chains had made one step.

    Arguments:
        reports: The reports of all chains.
        chains: The number of chains.
    """
    if len(reports) == 1:
        return reports[0]
    if isinstance(reports[0], Tensor):
        return torch.cat([leaf.unflatten(0, (-1, chains)) for leaf in reports], 1).flatten(0, 1)
    return type(reports[0])(*(_as_one(fields, chains) for fields in zip(*reports)))


def _weighted_means(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Means over blocks ``(B, ...)`` of values that are finite, weighted by their sizes."""
    weights = values.new_tensor(sizes).reshape(-1, *[1] * (values.dim() - 1))
    weights = weights * torch.isfinite(values)
    total = torch.where(weights > 0, weights * values, 0.0).sum(0)
    return total / weights.sum(0)
