"""Islands of particles that are shared out to workers.

An island has a stream of random numbers of its own, and its densities are evaluated as a batch of
its own. So particles and evidences are the same on every number of workers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed import (
    UnitCounts,
    WorkerGroup,
    check_same_density,
    guarded,
    splitting_workers,
)
from ..seeding import Stream
from ..target.density import Target
from ..target.unit_tracing import UnitTracing
from .coordinates import WhitenedTarget
from .particles import Particles

__all__ = ["IslandStreams", "joined_islands", "on_islands"]


class IslandStreams:
    """The islands of this worker, and their random numbers.

    Arguments:
        group: The workers.
        target: The target of the particles, maybe in whitened coordinates.
        islands: The number of all islands.

    Attributes:
        own: The numbers of this worker's islands.

    Example:
        >>> from pyro_flowsamp import workers
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> with workers() as group:
        ...     streams = IslandStreams(group, target, 3)
        ...     found = streams.each(lambda island: torch.rand(()))
        >>> list(streams.own), len(set(map(float, found)))
        ([0, 1, 2], 3)
    """

    def __init__(self, group: WorkerGroup, target: Target | WhitenedTarget, islands: int) -> None:
        target = target.target if isinstance(target, WhitenedTarget) else target
        self.group, self.target, self.islands = group, target, islands
        self.own = group.units(islands)
        self._counts = UnitCounts(group, target.counter, islands)
        if not group.replicates:  # else it has been compared, and islands are an option of searches
            check_same_density(group, target)
            if islands < group.size:
                warnings.warn(
                    f"{islands} islands of particles keep {islands} of {group.size} workers busy: "
                    f"give islands={group.size} or more",
                    stacklevel=4,
                )
        seed = group.shared_seed()
        self._tracing = [UnitTracing() for _ in self.own]
        self._streams = [Stream(seed, "islands", u, target.device) for u in self.own]

    def each(self, function: Callable[..., Any], *values: Sequence[Any]) -> list[Any]:
        """The results of a function for each own island, or for one value of each island."""
        found, density = [], self.target.density.density
        with self._counts.counting():
            every = zip(self._streams, self._tracing, *(values or (self.own,)), strict=True)
            for stream, tracing, *given in every:
                with stream.active(), tracing.active(density):
                    found.append(function(*given))
        return found

    def joined(self, own: Sequence[Particles]) -> Particles:
        """The particles of all islands; evaluations of the target are then those of all workers."""
        self._counts.add_up()
        return joined_islands(self.group, own, self.islands)


def on_islands(
    target: Target,
    num: int,
    islands: int,
    carried: Callable[[Target, int, int], Particles],
    flow: nn.Module,
) -> Particles:
    """Particles on islands that exchange nothing; with workers each is a batch of its own.

    Arguments:
        target: The target of the particles.
        num: The number of particles on all islands, a multiple of ``islands``.
        islands: The number of islands.
        carried: Makes so many particles of a target on so many islands.
        flow: The flow that carries them, which must be the same for all workers.

    Example:
        >>> from pyro_flowsamp import workers
        >>> from pyro_flowsamp.transitions.hamiltonian import HMCState
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> def carried(target, num, islands):
        ...     x = torch.randn(num, 1)
        ...     state = HMCState(x, x[:, 0], x, x, x[:, 0], x[:, 0])
        ...     return Particles(state, torch.zeros(islands, num // islands), torch.zeros(islands))
        >>> with workers():
        ...     on_islands(target, 6, 3, carried, torch.nn.Linear(1, 1)).log_w.shape
        torch.Size([3, 2])
    """
    group = splitting_workers()
    if group is None:
        return carried(target, num, islands)
    with guarded():
        streams = IslandStreams(group, target, islands)
        sums = [parameter.detach().double().sum() for parameter in flow.parameters()]
        group.check_same("the flow", torch.stack(sums))
        own = streams.each(lambda _: carried(target, num // islands, 1))
        return streams.joined(own)


def joined_islands(group: WorkerGroup, own: Sequence[Particles], islands: int) -> Particles:
    """The particles of all islands, in their order, on every worker.

    Inverse temperatures of islands that were at the target earlier go on as 1.

    Arguments:
        group: The workers.
        own: Particles of each island of this worker, one island each.
        islands: The number of all islands.

    Example:
        >>> from pyro_flowsamp import workers
        >>> from pyro_flowsamp.transitions.hamiltonian import HMCState
        >>> def island(value):
        ...     x = torch.full((2, 1), value)
        ...     state = HMCState(x, x[:, 0], x, x, x[:, 0], x[:, 0])
        ...     return Particles(state, torch.zeros(1, 2), torch.full((1,), value))
        >>> with workers() as group:
        ...     both = joined_islands(group, [island(1.0), island(2.0)], 2)
        >>> both.x.flatten().tolist(), both.log_z.tolist()
        ([1.0, 1.0, 2.0, 2.0], [1.0, 2.0])
    """
    sizes = [len(own[0].x)] * islands
    fields = [group.join(values, sizes) for values in zip(*(cloud.state for cloud in own))]
    state = type(own[0].state)(*fields)
    log_w, log_z = (
        group.join([getattr(cloud, name) for cloud in own], [1] * islands)
        for name in ("log_w", "log_z")
    )
    betas = None
    visited = [cloud.betas for cloud in own if cloud.betas is not None]
    if visited:
        most = group.largest(torch.tensor(max(map(len, visited)), device=group.device))
        padded = [_padded(beta, int(most)).mT for beta in visited]
        betas = group.join(padded, [1] * islands).mT
    return Particles(state, log_w, log_z, betas)


def _padded(betas: Tensor, length: int) -> Tensor:
    """Inverse temperatures ``(stages + 1, 1)`` with ones at the end."""
    return torch.cat([betas, betas.new_ones(length - len(betas), 1)])
