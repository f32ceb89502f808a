"""The context in which work is shared out to processes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ..validation import shown
from .group import WorkerGroup
from .options import WorkersOptions

__all__ = [
    "batch_workers",
    "current_workers",
    "described_workers",
    "guarded",
    "have_ended",
    "is_hidden",
    "number_here",
    "refuse_with_shard",
    "refuse_workers",
    "splitting_workers",
    "workers",
]

_CURRENT: list[WorkerGroup] = []
_WARNED: list[bool] = []


def current_workers() -> WorkerGroup | None:
    """The workers of the context in which this is called, or None; warns of torchrun without it.

    Example::

        >>> current_workers() is None
        True
        >>> with workers() as group:
        ...     current_workers() is group
        True
    """
    if _CURRENT:
        return _CURRENT[-1]
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if not _WARNED:
            _WARNED.append(True)
            warnings.warn(
                f"torchrun has started {os.environ['WORLD_SIZE']} processes, and each does the "
                f"whole work: put the calls into 'with pyro_flowsamp.workers():' to share it out",
                stacklevel=4,
            )
    return None


def batch_workers(num_bytes: int) -> WorkerGroup | None:
    """The workers that a batch of points is shared out to; None where it is not.

    Arguments:
        num_bytes: The bytes that autograd keeps for the gradient of the batch.

    Example::

        >>> from pyro_flowsamp.distributed import replicated
        >>> with workers(), replicated("the example") as group:
        ...     batch_workers(10**9) is group, batch_workers(10**3) is None
        (True, True)
    """
    group = _CURRENT[-1] if _CURRENT else None
    if group is None or not group.shares_batches or num_bytes < group.options.batch_bytes:
        return None
    return group


def splitting_workers() -> WorkerGroup | None:
    """The workers that units of work are shared out to; None where there are none.

    Where rows of data are shared out instead, all workers have the same chains.

    Example::

        >>> with workers() as group:
        ...     splitting_workers() is group
        True
    """
    group = current_workers()
    return None if group is None or group.shard is not None else group


def number_here(number: int) -> int:
    """The number of units of work, such as draws or chains, that one worker has of so many.

    Arguments:
        number: The number of all workers together.

    Returns:
        A part of one over the number of workers, rounded up; all where nothing is shared out, and
        where all workers make the same computation.

    Example:
        >>> number_here(256)
        256
    """
    group = splitting_workers()
    return number if group is None or group.replicates else -(-number // group.size)


def refuse_workers(what: str, remedy: str) -> None:
    """Refuses a computation that cannot be shared out, where there are workers.

    Where rows of data are shared out instead, all workers do the same with their sums. And where
    all make the same computation, each makes this part of it.

    Arguments:
        what: The computation, as the subject of a sentence.
        remedy: What to do in its place.

    Raises:
        ValueError: There are workers.

    Example::

        >>> with workers():
        ...     refuse_workers("SVI", "train outside")
        Traceback (most recent call last):
        ...
        ValueError: SVI is not shared out to workers: train outside
    """
    if _CURRENT and _CURRENT[-1].shard is None and not _CURRENT[-1].replicates:
        raise ValueError(f"{what} is not shared out to workers: {remedy}")


def is_hidden(hidden: bool) -> bool:
    """Whether there is no progress bar: where none is wanted, and on all ranks but 0.

    Arguments:
        hidden: Whether none is wanted.

    Example:
        >>> is_hidden(False)
        False
    """
    group = current_workers()
    return hidden or (group is not None and group.rank > 0)


def described_workers() -> dict[str, str]:
    """The entry of a checkpoint's description for workers: their blocks, and not their number.

    Example::

        >>> with workers():
        ...     described_workers()
        {'workers': 'blocks of 128 chains'}
    """
    group = splitting_workers()
    return (
        {} if group is None else {"workers": f"blocks of {group.options.chains_per_block} chains"}
    )


def refuse_with_shard(name: str, value: Any) -> None:
    """Refuses an argument where workers share out rows of data.

    Arguments:
        name: The name of the argument.
        value: Its value; None is no argument.

    Raises:
        ValueError: There is a value, and there are such workers.

    Example::

        >>> with workers(shard="rows"):
        ...     refuse_with_shard("checkpoint", "folder")
        Traceback (most recent call last):
        ...
        ValueError: checkpoint='folder' cannot be used with workers(shard='rows'): leave one out
    """
    if value is not None and _CURRENT and (shard := _CURRENT[-1].shard) is not None:
        raise ValueError(
            f"{name}={value!r} cannot be used with workers(shard={shard!r}): leave one out"
        )


def have_ended() -> bool:
    """Whether there are workers, and they exchange nothing any more, since one has ended.

    Example:
        >>> have_ended()
        False
    """
    return bool(_CURRENT) and _CURRENT[-1].has_ended


@contextmanager
def guarded() -> Iterator[None]:
    """A context whose errors end the work of all workers, lest the others wait for this one.

    In an attempt they do not: there all leave it out (:mod:`pyro_flowsamp.distributed.attempts`).

    Example::

        >>> with workers(), guarded():
        ...     1 + 1
        2
    """
    try:
        yield
    except Exception as error:
        if _CURRENT and not _CURRENT[-1].attempting:
            _CURRENT[-1].fail(error)
        raise


@contextmanager
def workers(
    *, shard: str | None = None, options: WorkersOptions = WorkersOptions()
) -> Iterator[WorkerGroup]:
    r"""A context in which work is shared out to all processes that run the same script.

    Started by ``torchrun --nproc-per-node K script.py``, every process runs the script, and enters
    the context. Without torchrun there is one worker. Inside of it

    - :class:`~pyro_flowsamp.VectorizedMCMC` shares out its chains in blocks of 128;
    - :func:`~pyro_flowsamp.tempered_smc` and :meth:`AutoAnnealingFlow.particles
      <pyro_flowsamp.AutoAnnealingFlow.particles>` share out their islands;
    - the trainings of :class:`~pyro_flowsamp.AutoFlow` share out their batches;
    - :func:`~pyro_flowsamp.to_arviz` returns the draws of all on rank 0, and None elsewhere;
    - :func:`~pyro_flowsamp.sample` and :func:`~pyro_flowsamp.diagnose` are made by all alike, but
      for islands and blocks of chains; all have the result.

    Draws, particles and evidences are the same, bit for bit, for every number of workers, if each
    has as many threads; those of trainings that share out their batches are so in distribution
    only. What is not shared out is refused. Random numbers begin as those of rank 0, and warnings
    and progress bars are its own.

    If a process is killed or raises an error, the others end with an error that names it.

    Arguments:
        shard: The name of a plate whose rows are shared out in place of chains: every process gives
            the model its own part of the data. Log-likelihoods and their gradients are then added
            up over the processes at every evaluation, and all have the same chains.
        options: :class:`~pyro_flowsamp.WorkersOptions`.

    Returns:
        The workers: their ``rank``, ``size`` and ``device``.

    Raises:
        ValueError: The context is nested, there are fewer GPUs than processes of a machine, or the
            versions of Python or of a package differ between the processes.
        RuntimeError: A process does not come, or has ended.

    References:
        Surjanovic, Biron-Lattes, Tiede, Syed, Campbell and Bouchard-Côté, *Pigeons.jl: Distributed
        Sampling From Intractable Distributions*, 2023, https://arxiv.org/abs/2308.09769

    Example::

        >>> import pyro_flowsamp
        >>> from pyro_flowsamp import IMH, AutoFlow, FitOptions, Target, VectorizedMCMC
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> guide = AutoFlow(target, flow="gaussian", options=FitOptions(progress=False))
        >>> with pyro_flowsamp.workers() as group:
        ...     run = VectorizedMCMC(IMH(guide=guide), 10, 5, 300, disable_progbar=True)
        ...     run.run()
        ...     data = pyro_flowsamp.to_arviz(run)
        >>> group.size, dict(data.posterior.sizes)["chain"]
        (1, 300)
    """
    if _CURRENT:
        raise ValueError("workers() is nested: one context for the whole script is enough")
    if shard is not None and not isinstance(shard, str):
        raise ValueError(f"shard must be the name of a plate, got {shown(shard)}")
    if not isinstance(options, WorkersOptions):
        raise ValueError(f"options must be WorkersOptions(...), got {shown(options)}")
    group = _joined(shard, options)
    quiet: Any = warnings.catch_warnings() if group.rank else nullcontext()
    with quiet:
        if group.rank:
            warnings.simplefilter("ignore")
        try:
            group.same_start()
            _CURRENT.append(group)
            yield group
            group.finish()
        except BaseException as error:
            group.fail(error)
            raise
        finally:
            _CURRENT.clear()


def _joined(shard: str | None, options: WorkersOptions) -> WorkerGroup:
    """Joins the process group that there is, that of torchrun, or none."""
    device = _own_device()
    if dist.is_available() and dist.is_initialized():
        return WorkerGroup(dist.get_rank(), dist.get_world_size(), device, options, shard)
    size = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    if size == 1:
        return WorkerGroup(0, 1, device, options, shard)
    timeout = timedelta(seconds=options.timeout)
    rank = int(os.environ["RANK"])
    found = dist.rendezvous(options.init_method, rank, size, timeout=timeout)
    store, rank, size = next(iter(found))
    store.set_timeout(timeout)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("exchange", store),
        rank=rank,
        world_size=size,
        timeout=timeout,
    )
    return WorkerGroup(rank, size, device, options, shard, dist.PrefixStore("workers", store))


def _own_device() -> torch.device:
    """The device of this process, by ``LOCAL_RANK``; it becomes the current one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= there:
        raise ValueError(
            f"process {number} of this machine has no GPU, as there are {there}: start as many "
            f"processes as there are GPUs, or set CUDA_VISIBLE_DEVICES='' to use the CPU"
        )
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device
