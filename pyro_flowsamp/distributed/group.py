"""The processes that share work, and what they exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..seeding import generator_states, set_generator_states
from ..versions import versions
from .options import WorkersOptions

__all__ = ["FailedElsewhereError", "WorkerGroup", "WorkersDifferError"]


class WorkersDifferError(ValueError):
    """The workers have other data, versions or random numbers, which ends the work of all.

    Example:
        >>> isinstance(WorkersDifferError("rank 1 has other data"), ValueError)
        True
    """


class FailedElsewhereError(RuntimeError):
    """Another worker has failed in an attempt (:mod:`pyro_flowsamp.distributed.attempts`).

    Example:
        >>> issubclass(FailedElsewhereError, RuntimeError)
        True
    """


class CommonComputation:
    """A computation that all workers make, and of which they share out units alone.

    Attributes:
        replicates: Whether all make the same computation now, and share out units of it alone
            (:mod:`pyro_flowsamp.distributed.replication`).
        targets: The targets of the computation that all make.
        attempting: Whether an error of one worker is one of all
            (:mod:`pyro_flowsamp.distributed.attempts`).
        shares_batches: Whether batches of points outside of units are shared out then
            (:mod:`pyro_flowsamp.target.shared_batches`).

    Example:
        >>> common = CommonComputation()
        >>> common.shares_batches = True
        >>> with common.in_unit():
        ...     common.shares_batches
        False
    """

    def __init__(self) -> None:
        self.replicates = self.shares_batches = self.attempting = False
        self.targets: list[Any] = []

    @contextmanager
    def watching(self, target: Any) -> Iterator[None]:
        """A context in which evaluations of units of this target count for all ranks."""
        self.targets.append(target)
        try:
            yield
        finally:
            self.targets.pop()

    def has_any_failed(self, here: bool) -> bool:
        """Whether a worker has failed, this one or another; one message."""
        raise NotImplementedError

    def ask_for_failures(self) -> None:
        """Exchanges that this worker has not failed.

        Raises:
            FailedElsewhereError: Another one has.
        """
        if self.has_any_failed(False):
            raise FailedElsewhereError("another worker has failed")

    @contextmanager
    def in_unit(self) -> Iterator[None]:
        """A context of units of this rank, whose batches are its own."""
        before, self.shares_batches = self.shares_batches, False
        try:
            yield
        finally:
            self.shares_batches = before


class WorkerGroup(CommonComputation):
    """The processes that share the work, as one of them sees them.

    Arguments:
        rank: The number of this process, from 0.
        size: The number K of processes.
        device: The device of this process.
        options: Options of the workers.
        shard: The plate whose rows are shared out, or None.
        store: A store of keys that all processes see, or None.

    Attributes:
        rank, size, device, options, shard: As given.
        messages, sent_bytes: Exchanges so far, and the bytes of this rank's tensors in them.

    Example::

        >>> group = WorkerGroup(0, 1, torch.device("cpu"), WorkersOptions())
        >>> list(group.units(3)), group.messages
        ([0, 1, 2], 0)
        >>> group.join([torch.ones(2), torch.zeros(1)], [2, 1])
        tensor([1., 1., 0.])
        >>> group.messages
        1
    """

    def __init__(
        self,
        rank: int,
        size: int,
        device: torch.device,
        options: WorkersOptions,
        shard: str | None = None,
        store: Any = None,
    ) -> None:
        super().__init__()
        self.rank, self.size, self.device, self.options = rank, size, device, options
        self.shard, self.messages, self.sent_bytes = shard, 0, 0
        self._store, self._ended = store, ""

    # ---- exchanges ----------------------------------------------------------------------------

    def all_gather(self, value: Tensor) -> Tensor:
        """The tensors of all ranks, ``(...) → (K, ...)``; of one shape and type on all of them."""
        sent = value.detach().contiguous()
        sent = sent.view(torch.uint8) if sent.dtype == torch.bool else sent
        found = [torch.empty_like(sent) for _ in range(self.size)]
        self.sent_bytes += sent.nbytes
        self._exchange(lambda: dist.all_gather(found, sent), lambda: found.__setitem__(0, sent))
        gathered = torch.stack(found)
        return gathered.view(torch.bool) if value.dtype == torch.bool else gathered

    def broadcast(self, value: Tensor) -> Tensor:
        """The tensor of rank 0; of one shape and type on all ranks."""
        sent = value.detach().clone().contiguous()
        self.sent_bytes += sent.nbytes
        self._exchange(lambda: dist.broadcast(sent, 0))
        return sent

    def add(self, value: Tensor) -> Tensor:
        """The sum of the tensors of all ranks; of one shape and type on all of them."""
        total = value.detach().clone().contiguous()
        self.sent_bytes += total.nbytes
        self._exchange(lambda: dist.all_reduce(total))
        return total

    def broadcast_bytes(self, data: bytes) -> bytes:
        """The bytes of rank 0, of which the others know nothing; two messages."""
        size = self.broadcast(torch.tensor(len(data), device=self.device))
        sent = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        if self.rank == 0 and data:
            sent = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device)
        return self.broadcast(sent).cpu().numpy().tobytes()

    def join_bytes(self, own: Sequence[bytes], number: int) -> list[bytes]:
        """The bytes of all units, in the order of units, on all ranks; two messages.

        Arguments:
            own: The bytes of each unit of this rank.
            number: The number of all units.
        """
        lengths = [torch.tensor([len(data)], device=self.device) for data in own]
        sizes = self.join(lengths, [1] * number).tolist()
        rows = [torch.frombuffer(bytearray(d), dtype=torch.uint8).to(self.device) for d in own]
        parts = self.join(rows, sizes).split(sizes)
        return [part.cpu().numpy().tobytes() for part in parts]

    def largest(self, value: Tensor) -> Tensor:
        """The element-wise maximum of the tensors of all ranks."""
        most = value.detach().clone().contiguous()
        self.sent_bytes += most.nbytes
        self._exchange(lambda: dist.all_reduce(most, dist.ReduceOp.MAX))
        return most

    def _exchange(self, operation: Callable, alone: Callable | None = None) -> None:
        """Carries out a collective operation, or its counterpart where there is one process.

        In an attempt the workers first tell each other whether one has failed.
        """
        if self.attempting:
            self.ask_for_failures()
        self._carry_out(operation, alone)

    def has_any_failed(self, here: bool) -> bool:
        """Whether a worker has failed, this one or another; one message."""
        flag = torch.tensor(float(here), device=self.device)
        self._carry_out(lambda: dist.all_reduce(flag, dist.ReduceOp.MAX))
        return bool(flag)

    def _carry_out(self, operation: Callable, alone: Callable | None = None) -> None:
        if self._ended:
            raise RuntimeError(self._ended)
        self.messages += 1
        if self.size == 1 and not dist.is_initialized():
            if alone is not None:
                alone()
            return
        try:
            operation()
        except RuntimeError as error:
            self._leave()
            self._ended = self._who_is_lost()
            raise RuntimeError(self._ended) from error

    # ---- units --------------------------------------------------------------------------------

    def units(self, number: int) -> Sequence[int]:
        """The units of this rank, of so many; without any it repeats unit 0, which is ignored."""
        return range(self.rank, number, self.size) or [0]

    def join(self, own: Sequence[Tensor], sizes: Sequence[int], to_all: bool = True) -> Any:
        """The rows of all units, in the order of units.

        Arguments:
            own: The rows of each unit of this rank, ``(n_u, ...)``.
            sizes: The number of rows of every unit.
            to_all: Whether all ranks want them, or rank 0 alone.

        Returns:
            A tensor ``(Σ n_u, ...)``; None on ranks that do not want it.
        """
        room, most = -(-len(sizes) // self.size), max(sizes)
        sent = own[0].new_zeros(room, most, *own[0].shape[1:])
        for slot, rows in zip(sent, own):
            slot[: len(rows)] = rows
        found = self.all_gather(sent)
        if not to_all and self.rank:
            return None
        return torch.cat([found[u % self.size, u // self.size, :n] for u, n in enumerate(sizes)])

    # ---- what all ranks have in common ---------------------------------------------------------

    def shared_seed(self) -> int:
        """A seed that is drawn from the random numbers of rank 0."""
        return int(self.broadcast(torch.randint(2**62, (), device="cpu")))

    def check_same(self, what: str, values: Tensor) -> None:
        """Checks that numbers are the same on all ranks, up to ``options.max_difference``.

        Arguments:
            what: What the numbers are of, for the message.
            values: The numbers, ``(n,)``.

        Raises:
            WorkersDifferError: They differ.
        """
        found = self.all_gather(values.double().nan_to_num(nan=0.0, posinf=1e300, neginf=-1e300))
        difference = (found - found[0]).abs() / (1 + found[0].abs())
        other = (difference.amax(1) > self.options.max_difference).nonzero()[:, 0].tolist()
        if other:
            rows = [f"rank {r}: {[f'{v:.6g}' for v in found[r].tolist()]}" for r in (0, *other)]
            raise WorkersDifferError(
                f"{what} differs between the workers ({'; '.join(rows)}): every worker needs the "
                f"same model and the same data"
            )

    def same_start(self) -> None:
        """Checks that versions are the same, and gives all ranks the random state of rank 0.

        Raises:
            WorkersDifferError: The versions of Python or of a package differ.
        """
        states = {**generator_states(), "cuda": []}
        if self.device.type == "cuda":
            states["cuda"] = [torch.cuda.get_rng_state(self.device)]
        told: list[Any] = [None] * self.size
        own = versions(), states if self.rank == 0 else None
        self._exchange(lambda: dist.all_gather_object(told, own), lambda: told.__setitem__(0, own))
        first = told[0][0]
        for rank, (found, _) in enumerate(told):
            other = [f"{k} {v}, not {first[k]}" for k, v in found.items() if v != first[k]]
            if other:
                raise WorkersDifferError(
                    f"rank {rank} has {', '.join(other)} as rank 0: install the same versions"
                )
        states = told[0][1]
        cuda = states.pop("cuda")
        set_generator_states({**states, "cuda": []})
        if cuda and self.device.type == "cuda":
            torch.cuda.set_rng_state(cuda[0], self.device)

    # ---- ends ---------------------------------------------------------------------------------

    @property
    def has_ended(self) -> bool:
        """Whether this rank exchanges nothing any more."""
        return bool(self._ended)

    def fail(self, error: BaseException) -> None:
        """Ends the exchange of this rank after an error, so that the others end too."""
        if self._ended or self.size == 1:
            return
        self._ended = f"the work has ended with an error: {error}"
        self._tell(f"failed/{self.rank}", f"{type(error).__name__}: {error}")
        self._leave()

    def finish(self) -> None:
        """Waits until all ranks have come to the end, and leaves them."""
        if not self._ended:
            self._exchange(lambda: dist.all_reduce(torch.zeros(1, device=self.device)))
        self._leave()

    def _leave(self) -> None:
        if self._store is not None and dist.is_initialized():
            dist.destroy_process_group()

    def _tell(self, key: str, text: str) -> None:
        if self._store is not None:
            try:
                self._store.set(key, text)
            except RuntimeError:  # the store was a process that has ended
                pass

    def _who_is_lost(self) -> str:
        """A sentence about the ranks that do not answer, after an exchange has failed."""
        failed = f"an exchange between {self.size} workers failed on rank {self.rank}"
        if self._store is None:
            return failed
        self._tell(f"here/{self.rank}", "")
        lost, told = [], []
        wait = timedelta(seconds=self.options.answer_timeout)
        for rank in range(self.size):
            try:
                if self._store.check([f"failed/{rank}"]):
                    told.append(f"rank {rank}: {self._store.get(f'failed/{rank}').decode()}")
                else:
                    self._store.wait([f"here/{rank}"], wait)
            except RuntimeError:
                lost.append(rank)
        if told:
            return f"another worker has ended with an error. {'; '.join(told)}"
        if lost:
            return (
                f"{failed}: rank {', '.join(map(str, lost))} does not answer any more. It may have "
                f"been killed, or have had too little memory"
            )
        return failed
