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
        gather_every: Steps of warm-up after which the workers gather what the chains have done, and
            adapt the kernel to it, one step after the other. With 4, step sizes of Langevin moves
            were still half of what they should be after 100 steps.
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
    gather_every: int = 1
    max_difference: float = 1e-4

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("timeout", "answer_timeout", "max_difference"):
            check_number(f"WorkersOptions.{name}", getattr(self, name), 0, open_least=True)
        for name in ("chains_per_block", "gather_every"):
            check_count(f"WorkersOptions.{name}", getattr(self, name))
