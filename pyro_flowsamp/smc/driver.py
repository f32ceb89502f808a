from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..transitions import langevin
from .particles import Cloud, resample, reweight

__all__ = ["Stage", "advance", "log_mixture", "move", "push", "tune"]


class Pushes(Protocol):
    """What is used of a map; its inverse only where some particles stay behind."""

    def push(self, z: Tensor) -> tuple[Tensor, Tensor]: ...

    def pull(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


class Stage(NamedTuple):
    r"""One step of the sequence.

    Attributes:
        map: :math:`T_k`, or None for the identity.
        density: :math:`\tilde f_k`, in the coordinates z = x / scale.
        scale: Widths of the moves in each coordinate, ``(d,)``, or of each particle's.
        step_size: Of the moves, 0-d, or of each island's, ``(R,)``.
        stay: The share :math:`\epsilon` of particles that the map leaves behind; unless it is zero,
            all particles have the same scale and density.
        before: :math:`\log\tilde f_{k-1}`, ``(N,)``, read off states of :math:`\tilde f_k`; needed
            where some stay behind.
    """

    map: Pushes | None
    density: langevin.Density
    scale: Tensor
    step_size: Tensor
    stay: float = 0.0
    before: Callable[[Any], Tensor] | None = None


@torch.no_grad()
def push(cloud: Cloud, stage: Stage) -> Cloud:
    """Carries particles by the stage's map, all or most, with their weights."""
    if stage.map is not None and stage.stay > 0:
        assert stage.before is not None
        return _push_most(cloud, stage, stage.map, stage.before)
    x, ladj = cloud.x, torch.zeros_like(cloud.state.log_pi)
    if stage.map is not None:
        x, ladj = stage.map.push(x)
    return reweight(cloud, langevin.init(x / stage.scale, stage.density), ladj.double())


def _push_most(cloud: Cloud, stage: Stage, map: Pushes, before: Callable[[Any], Tensor]) -> Cloud:
    """A random part of every island stays behind: see the module's docstring."""
    islands, num = cloud.log_w.shape
    count, log_pi = ceil(stage.stay * num), cloud.state.log_pi
    order = torch.rand_like(cloud.log_w).argsort(1)
    order = order + num * torch.arange(islands, device=order.device)[:, None]
    stay, go = (rows.flatten() for rows in order.split([count, num - count], 1))

    pushed, ladj = map.push(cloud.x[go])
    x = cloud.x.index_copy(0, go, pushed)
    state = langevin.init(x / stage.scale, stage.density)
    z, ladj_back = map.pull(cloud.x[stay])
    origin = before(langevin.init(z / stage.scale, stage.density)) + ladj_back.double()

    stayed = before(state).index_copy(0, stay, log_pi[stay])
    carried = log_pi.index_copy(0, go, log_pi[go] - ladj.double()).index_copy(0, stay, origin)
    mixture = log_mixture(log_pi.new_tensor(count / num), stayed, carried)
    return reweight(cloud._replace(state=cloud.state._replace(log_pi=mixture)), state)


def log_mixture(share: Tensor, stayed: Tensor, carried: Tensor) -> Tensor:
    """Of two log densities, the first with this share; NaN, where no way leads, has no density."""
    stayed, carried = (torch.where(v.isnan(), -torch.inf, v) for v in (stayed, carried))
    return torch.logaddexp(share.log() + stayed, (-share).log1p() + carried)


def move(cloud: Cloud, stage: Stage, moves: int) -> Cloud:
    """Moves that leave the stage's density invariant: Metropolis-adjusted Langevin."""
    return _moved(cloud, stage, moves, None)[0]


def tune(cloud: Cloud, stage: Stage, moves: int, target_accept_prob: float) -> tuple[Cloud, Tensor]:
    """As :func:`move`, correcting the step size after every move; returns the last one too.

    For a first pass: an estimate of Z needs step sizes that were fixed beforehand.
    """
    return _moved(cloud, stage, moves, target_accept_prob)


def _moved(cloud: Cloud, stage: Stage, moves: int, goal: float | None) -> tuple[Cloud, Tensor]:
    state, step_size = cloud.state, stage.step_size
    islands, num = cloud.log_w.shape
    for _ in range(moves):
        noise, log_u = torch.randn_like(state.z), torch.rand_like(state.log_pi).log()
        each = step_size.repeat_interleave(num)[:, None] if step_size.dim() else step_size
        state, info = langevin.mala(state, stage.density, each, noise, log_u)
        if goal is not None:
            rate = info.accept_prob.view(islands, num).mean(-1)
            rate = rate if step_size.dim() else rate.mean()
            step_size = step_size * (0.5 * (rate - goal)).exp().to(step_size)
    return cloud._replace(state=state), step_size


def advance(cloud: Cloud, stage: Stage, moves: int, below: float = 0.5) -> Cloud:
    """One stage: push, resample where needed, move."""
    return move(resample(push(cloud, stage), below), stage, moves)
