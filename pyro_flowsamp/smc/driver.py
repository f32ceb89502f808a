r"""The driver of sequential Monte Carlo, and the steps that it is made of.

A step transports particles to the next density, resamples them where their weights are uneven, and
moves them by MCMC. Each step that is given to :func:`run_smc` has its own transport and its own
MCMC move (:class:`SMCStep`), so that annealed particles, annealing flows and deformation flows
share the driver. The weights of a transport by a map are
derived in :mod:`pyro_flowsamp.smc.particles`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import ceil
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..transitions import hamiltonian
from ..transitions.step_size import robbins_monro
from .particles import Particles, resample, reweight

__all__ = ["SMCStep", "Stage", "log_mixture", "move", "move_and_tune", "run_smc", "transport"]

GAIN = 0.5  #: change of a log step size for each unit by which the acceptance is off


class Pushes(Protocol):
    """A map of particles; its inverse is used only where some particles stay behind.

    Example:
        >>> from pyro_flowsamp.flows.transforms import AffineMap
        >>> two = torch.tensor([2.0])
        >>> doubled: Pushes = AffineMap(torch.zeros(1), two, two.log().sum(), None)
        >>> doubled.pull(doubled.push(torch.ones(3, 1))[0])[0].flatten().tolist()
        [1.0, 1.0, 1.0]
    """

    def push(self, z: Tensor) -> tuple[Tensor, Tensor]: ...

    def pull(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


class SMCStep(NamedTuple):
    """One step of sequential Monte Carlo.

    Attributes:
        transport: Carries and weights particles to the next density.
        mcmc: Moves particles by a transition that leaves that density invariant.

    Example:
        >>> step = SMCStep(transport=lambda p: p._replace(log_w=p.log_w + 1.0), mcmc=lambda p: p)
        >>> before = Particles(None, torch.zeros(1, 2), torch.zeros(1))
        >>> step.mcmc(step.transport(before)).evidences
        tensor([1.])
    """

    transport: Callable[[Particles], Particles]
    mcmc: Callable[[Particles], Particles]


def run_smc(
    particles: Particles,
    next_step: Callable[[Particles], SMCStep | None],
    resample_below: float = 0.5,
) -> Iterator[Particles]:
    """Runs sequential Monte Carlo, and yields the particles after every step.

    Arguments:
        particles: Particles of the first density.
        next_step: Returns the next step for the particles so far, or None at the end of the path.
        resample_below: ESS fraction of an island below which it is resampled between transport and
            MCMC; infinity resamples always.

    Example:
        >>> def next_step(particles):  # three steps, each of which multiplies all weights by e
        ...     if float(particles.log_z) > 2.5:
        ...         return None
        ...     return SMCStep(lambda p: p._replace(log_w=p.log_w + 1.0), lambda p: p)
        >>> state = hamiltonian.HMCState(*torch.zeros(6, 2, dtype=torch.double))
        >>> first = Particles(state, torch.zeros(1, 2).double(), torch.zeros(1).double())
        >>> [float(p.evidences) for p in run_smc(first, next_step, resample_below=torch.inf)]
        [1.0, 2.0, 3.0]
    """
    while (step := next_step(particles)) is not None:
        particles = step.mcmc(resample(step.transport(particles), resample_below))
        yield particles


class Stage(NamedTuple):
    r"""A density of the sequence, with the map that leads there and the moves that are made there.

    Attributes:
        map: :math:`T_k`, or None for the identity.
        density: :math:`\tilde f_k`, in the coordinates z = x / scale.
        scale: Widths of the moves in each coordinate, ``(d,)``, or of each particle's.
        step_size: Step size of the moves, 0-d, or of each island's, ``(R,)``.
        defensive_weight: The share :math:`\epsilon` of particles that the map leaves behind; unless
            it is zero, all particles have the same scale and density.
        previous_log_prob: Reads :math:`\log\tilde f_{k-1}`, ``(N,)``, off states of
            :math:`\tilde f_k`; needed where some particles stay behind.

    Example:
        >>> def normal(z):
        ...     log_pi = -0.5 * z.double().square().sum(-1)
        ...     return hamiltonian.HMCState(z, log_pi, -z, z, log_pi, torch.zeros_like(log_pi))
        >>> stage = Stage(None, normal, torch.ones(1), torch.tensor(0.5))
        >>> x = torch.zeros(4, 1)
        >>> first = Particles(normal(x), torch.zeros(1, 4).double(), torch.zeros(1).double())
        >>> step = stage.step(mcmc_steps=2)
        >>> len(step.mcmc(step.transport(first)).x.unique())  # every particle has moved on its own
        4
    """

    map: Pushes | None
    density: hamiltonian.Density
    scale: Tensor
    step_size: Tensor
    defensive_weight: float = 0.0
    previous_log_prob: Callable[[Any], Tensor] | None = None

    def step(self, mcmc_steps: int) -> SMCStep:
        """The step that leads to this density, with ``mcmc_steps`` moves of frozen size."""
        return SMCStep(partial(transport, stage=self), partial(move, stage=self, moves=mcmc_steps))


@torch.no_grad()
def transport(cloud: Particles, stage: Stage) -> Particles:
    """Carries particles by the stage's map, all or most, with their weights.

    Arguments:
        cloud: The particles.
        stage: The stage.

    Returns:
        The particles at the stage's density, weighted.

    Example:
        >>> def density(z):  # a normal density of standard deviation 2, not normalised
        ...     log_pi = -z.double().square().sum(-1) / 8
        ...     return hamiltonian.HMCState(z, log_pi, -z / 4, z, log_pi, torch.zeros_like(log_pi))
        >>> class Doubling:
        ...     def push(self, z):
        ...         return 2 * z, z.new_full((len(z),), 2.0).log()
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> normal = density(2 * x)._replace(z=x, x=x)
        >>> first = Particles(normal, torch.zeros(1, 2).double(), torch.zeros(1).double())
        >>> after = transport(first, Stage(Doubling(), density, torch.ones(1), torch.tensor(0.5)))
        >>> after.x.flatten(), after.log_w.exp()  # a perfect map: equal weights, the ratio of Z
        (tensor([0., 2.]), tensor([[2.0000, 2.0000]], dtype=torch.float64))
    """
    if stage.map is not None and stage.defensive_weight > 0:
        assert stage.previous_log_prob is not None
        return _transport_defensive(cloud, stage, stage.map, stage.previous_log_prob)
    x, ladj = cloud.x, torch.zeros_like(cloud.state.log_pi)
    if stage.map is not None:
        x, ladj = stage.map.push(x)
    return reweight(cloud, stage.density(x / stage.scale), ladj.double())


def _transport_defensive(
    cloud: Particles, stage: Stage, map: Pushes, previous_log_prob: Callable[[Any], Tensor]
) -> Particles:
    """Leaves a random part of every island behind, see :mod:`pyro_flowsamp.smc.particles`."""
    islands, num = cloud.log_w.shape
    count, log_pi = ceil(stage.defensive_weight * num), cloud.state.log_pi
    order = torch.rand_like(cloud.log_w).argsort(1)
    order = order + num * torch.arange(islands, device=order.device)[:, None]
    stay, go = (rows.flatten() for rows in order.split([count, num - count], 1))

    pushed, ladj = map.push(cloud.x[go])
    x = cloud.x.index_copy(0, go, pushed)
    state = stage.density(x / stage.scale)
    z, ladj_back = map.pull(cloud.x[stay])
    origin = previous_log_prob(stage.density(z / stage.scale)) + ladj_back.double()

    stayed = previous_log_prob(state).index_copy(0, stay, log_pi[stay])
    carried = log_pi.index_copy(0, go, log_pi[go] - ladj.double()).index_copy(0, stay, origin)
    mixture = log_mixture(log_pi.new_tensor(count / num), stayed, carried)
    return reweight(cloud._replace(state=cloud.state._replace(log_pi=mixture)), state)


def log_mixture(share: Tensor, stayed: Tensor, carried: Tensor) -> Tensor:
    """Log density of a mixture of two, the first of weight ``share``; NaN counts as zero.

    Arguments:
        share: The weight of the first density, 0-d or of a shape that broadcasts.
        stayed, carried: Log densities, ``(N,)``.

    Example:
        >>> share, four, nan = torch.tensor([0.25, 4.0, torch.nan])
        >>> round(float(log_mixture(share, four.log(), nan).exp()), 4)  # 0.25 * 4 + 0.75 * 0
        1.0
    """
    stayed, carried = (torch.where(v.isnan(), -torch.inf, v) for v in (stayed, carried))
    return torch.logaddexp(share.log() + stayed, (-share).log1p() + carried)


def move(cloud: Particles, stage: Stage, moves: int) -> Particles:
    """Moves that leave the stage's density invariant: Metropolis-adjusted Langevin.

    Arguments:
        cloud: Particles at the stage's density.
        stage: The stage.
        moves: The number of moves.

    Example:
        >>> def flat(z):
        ...     zero = torch.zeros(len(z), dtype=torch.double)
        ...     return hamiltonian.HMCState(z, zero, 0 * z, z, zero, zero)
        >>> stage = Stage(None, flat, torch.ones(1), torch.tensor(0.1))
        >>> first = Particles(flat(torch.zeros(1000, 1)), torch.zeros(1, 1000), torch.zeros(1))
        >>> _ = torch.manual_seed(0)
        >>> round(float(move(first, stage, moves=4).x.std()), 2)  # all is accepted: 0.1 * sqrt(4)
        0.2
    """
    return _moved(cloud, stage, moves, None)[0]


def move_and_tune(
    cloud: Particles, stage: Stage, moves: int, target_accept_prob: float
) -> tuple[Particles, Tensor]:
    """Moves as :func:`move` does, tuning the step size after every move; returns the last one too.

    This is for a first pass: an estimate of Z needs step sizes that were fixed beforehand.

    Arguments:
        cloud, stage, moves: See :func:`move`.
        target_accept_prob: The acceptance that the step size is tuned to.

    Example:
        >>> def flat(z):
        ...     zero = torch.zeros(len(z), dtype=torch.double)
        ...     return hamiltonian.HMCState(z, zero, 0 * z, z, zero, zero)
        >>> stage = Stage(None, flat, torch.ones(1), torch.tensor(0.1))
        >>> first = Particles(flat(torch.zeros(4, 1)), torch.zeros(1, 4), torch.zeros(1))
        >>> _, step_size = move_and_tune(first, stage, moves=2, target_accept_prob=0.6)
        >>> round(float(step_size), 4)  # all is accepted: 0.1 times exp(0.5 * 0.4), twice
        0.1492
    """
    return _moved(cloud, stage, moves, target_accept_prob)


def _moved(
    cloud: Particles, stage: Stage, moves: int, goal: float | None
) -> tuple[Particles, Tensor]:
    state, step_size = cloud.state, stage.step_size
    islands, num = cloud.log_w.shape
    for _ in range(moves):
        noise, log_u = torch.randn_like(state.z), torch.rand_like(state.log_pi).log()
        each = step_size.repeat_interleave(num)[:, None] if step_size.dim() else step_size
        state, info = hamiltonian.step(state, stage.density, each, 1, noise, log_u)
        if goal is not None:
            rate = info.accept_prob.view(islands, num).mean(-1)
            rate = rate if step_size.dim() else rate.mean()
            step_size = robbins_monro(step_size, rate, goal, GAIN)
    return cloud._replace(state=state), step_size
