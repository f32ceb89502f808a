"""Options of many workers."""

from __future__ import annotations

from dataclasses import dataclass

from ..validation import check_count, check_number, check_options

__all__ = ["WorkersOptions"]


@dataclass(frozen=True)
class WorkersOptions:
    """Options of many workers.

    Attributes:
        init_method: Where the processes find each other, as in
            :func:`torch.distributed.init_process_group`: "env://" for the variables that torchrun
            sets, or the address of a file that all can write to, "file:///...".
        timeout: Seconds after which an exchange fails in which a worker does not take part.
        answer_timeout: Seconds that the others have to say that they are there, after it failed.
        chains_per_block: Chains that are one unit of work.
        gather_first: Steps at the beginning of warm-up after each of which the workers gather what
            the chains have done, and adapt the kernel to it.
        gather_every: Later steps of warm-up after which they do so, to all of these steps at once.
        batch_bytes: Bytes that autograd keeps for the gradient of a batch of points, from which on
            the batch is shared out where all workers make the same computation, as in
            :func:`~pyro_flowsamp.sample`. A smaller batch is evaluated by every worker.
        batch_blocks: Blocks of rows into which such a batch is cut, however many workers there are.
        max_difference: Largest difference between the workers' log densities at the same points,
            relative to one plus their size.

    Raises:
        ValueError: An option is out of range.

    Example::

        >>> WorkersOptions(timeout=60.0).chains_per_block
        128
    """

    init_method: str = "env://"
    timeout: float = 1800.0
    answer_timeout: float = 5.0
    chains_per_block: int = 128
    gather_first: int = 50
    gather_every: int = 4
    batch_bytes: int = 16 * 2**20
    batch_blocks: int = 8
    max_difference: float = 1e-4

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("timeout", "answer_timeout", "max_difference"):
            check_number(f"WorkersOptions.{name}", getattr(self, name), 0, open_least=True)
        check_count("WorkersOptions.gather_first", self.gather_first, 0)
        for name in ("chains_per_block", "gather_every", "batch_bytes", "batch_blocks"):
            check_count(f"WorkersOptions.{name}", getattr(self, name))
