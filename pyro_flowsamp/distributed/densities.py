"""Densities where there are workers: compared, and evaluated in the same way by all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..seeding import Stream
from .group import WorkerGroup

__all__ = ["check_same_density", "without_auto_tracing"]

COMPARED = 3  #: points at which the workers' densities are compared, of each context


@contextmanager
def without_auto_tracing(target: Any) -> Iterator[None]:
    """A context in which a density is traced and compiled only where the caller has asked for it.

    In the mode "auto" it is neither, and evaluations do not count for it: those of one worker alone
    must not decide when a graph takes over.

    Arguments:
        target: A :class:`~pyro_flowsamp.Target`.

    Example:
        >>> from pyro_flowsamp import Target
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)
        >>> with without_auto_tracing(target):
        ...     target.compile_mode
        False
    """
    mode, state = target.compile_mode, target.tracing_state()
    target.compile_mode = mode is True
    try:
        yield
    finally:
        target.compile_mode = mode
        if mode is not True:
            target.load_tracing_state(state)


def check_same_density(
    group: WorkerGroup, target: Any, log_q: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Checks that all workers have the same target, and the same flow, at a few points.

    Arguments:
        group: The workers.
        target: A :class:`~pyro_flowsamp.Target`.
        log_q: The log density of a flow, or None.

    Raises:
        ValueError: They differ.

    Example:
        >>> from pyro_flowsamp import Target, workers
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)
        >>> with workers() as group:
        ...     check_same_density(group, target)
    """
    contexts = 1 if target.contexts is None else len(target.contexts)
    stream = Stream(0, "comparison", 0, target.device)
    with without_auto_tracing(target), stream.active(), torch.no_grad():
        x = target.initial_points(COMPARED * contexts)
        log_p = target.log_prob(x).double()
        dim = log_p.new_tensor([float(target.dim)])
        group.check_same("the log density", torch.cat([dim, log_p]))
        if log_q is not None:
            group.check_same("the log density of the flow", log_q(x).double())
