r"""Many workers: the same script in several processes, each with a part of the work.

A *unit* of work is a block of chains, or an island of particles. It has a stream of random numbers
of its own (:class:`~pyro_flowsamp.seeding.Stream`), and its densities are evaluated as a batch of
its own. Units are shared out to the processes, unit u to rank u mod K. What a unit does depends on
no other unit but by values that all ranks gather, in float64 and in the order of units. So results
are the same, bit for bit, for every number K of workers, as long as each has as many threads.

Processes exchange tensors by the collective operations of :mod:`torch.distributed`: gloo between
CPUs, NCCL between GPUs. No model and no data is ever sent: every rank runs the script, and so has
them.

References:
    Surjanovic, Biron-Lattes, Tiede, Syed, Campbell and Bouchard-Côté, *Pigeons.jl: Distributed
    Sampling From Intractable Distributions*, 2023, https://arxiv.org/abs/2308.09769
"""

from .attempts import AttemptError, attempt
from .context import (
    batch_workers,
    current_workers,
    described_workers,
    guarded,
    have_ended,
    is_hidden,
    number_here,
    refuse_with_shard,
    refuse_workers,
    splitting_workers,
    workers,
)
from .densities import check_same_density, without_auto_tracing
from .group import WorkerGroup, WorkersDifferError
from .options import WorkersOptions
from .replication import (
    UnitCounts,
    check_alike,
    common_seed,
    ended_by_ctrl_c,
    of_first,
    replicated,
    replicating_workers,
)
from .training import SharedTraining, shared_training, training_of_all

__all__ = [
    "AttemptError",
    "SharedTraining",
    "UnitCounts",
    "WorkerGroup",
    "WorkersDifferError",
    "WorkersOptions",
    "attempt",
    "batch_workers",
    "check_alike",
    "check_same_density",
    "common_seed",
    "current_workers",
    "described_workers",
    "ended_by_ctrl_c",
    "guarded",
    "have_ended",
    "is_hidden",
    "number_here",
    "refuse_with_shard",
    "refuse_workers",
    "of_first",
    "replicated",
    "replicating_workers",
    "shared_training",
    "splitting_workers",
    "training_of_all",
    "without_auto_tracing",
    "workers",
]
