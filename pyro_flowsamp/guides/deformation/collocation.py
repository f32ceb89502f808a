r"""Collocation points: the points and times at which the deformation error is made small.

They come from four sources, at fixed times of the path:

- ``history``, made once: sequential Monte Carlo along the path without its learned term, from a
  base as wide as one likes. It has every mode that annealing finds, whatever the flow does. Half of
  its particles are resampled by the square roots of their weights, because otherwise a mode of
  little mass would get few points. (Particles that were never resampled would mostly stay where
  there is next to no mass.)
- ``smc_points``: at every refresh, the points of time k move by the velocity to time k + 1, where
  they are weighted, resampled and moved by Langevin steps, and new points enter at time 0. All
  times are moved at once, so that every slice is a small run of sequential Monte Carlo along the
  path as it is now. Without them the velocity may lose mass between the other sources.
- ``trajectories``: as before, but without weights, resampling and Langevin steps. The flow's own
  errors are along these. If the error vanishes along all of them, every draw has its density.
- ``returning``: particles of the history at time 1, moved back by the velocity. If the error
  vanishes along all of them, every point of the target has its density, up to a factor that
  ``trajectories`` fix. Without them a velocity may empty a mode that no point from the base
  reaches.

The target is evaluated only at a refresh. The optimiser's steps in between evaluate networks only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import ceil, inf, log
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...nn.mlp import VelocityMLP
from ...smc import driver, particles
from ...smc.particles import Particles
from ...smc.starts import overdispersed_base
from ...target.density import Target
from ...transitions import hamiltonian
from ...transitions.step_size import optimal_step_size, robbins_monro
from ...weights import Estimate
from .energy_path import BoltzmannPath, PathState
from .velocity_flow import GeneralisedNormal

__all__ = [
    "ACCEPT",
    "TerminalParticles",
    "Sample",
    "CollocationPoints",
    "anneal_from_bases",
    "smc_history",
]


ACCEPT = 0.574  #: acceptance that Langevin steps are tuned to
RESAMPLE_BELOW = 0.5  #: ESS fraction below which particles are resampled
NUM_SOURCES = 4
SELECTIONS = 1.0, 0.5  #: powers of the history's weights
GAIN = 0.3  #: change of a log step size for each unit by which the acceptance is off
#: attributes of collocation points that a refresh changes
CHANGED = "step_sizes", "smc_points", "trajectories", "returning"
MOVES = 4  #: Langevin steps in each slice, for every 16 dimensions begun


class Sample(NamedTuple):
    """Points ``(S·m, ...)``, sorted by time, with what is fixed of the path there.

    Example:
        >>> path, base = BoltzmannPath(1, 2.0, None, None), GeneralisedNormal(torch.zeros(1), 2.0)
        >>> target = Target.from_energy(lambda x: 2 * x.square().sum(-1), 1)  # the path: (1 + t) u²
        >>> times = torch.tensor([0.0, 1.0])
        >>> found = CollocationPoints(path, VelocityMLP(1), target, base, times, 1.0, 8).sample(3)
        >>> torch.allclose(found.grad_energy, 2 * (1 + found.t[:, None]) * found.u, atol=1e-4)
        True
    """

    t: Tensor
    u: Tensor
    denergy_dt: Tensor
    grad_energy: Tensor


class SMCHistory(NamedTuple):
    """States ``(S, N, ...)`` at all times, their weights ``(S, N)`` and the path's evidence."""

    states: PathState
    weights: Tensor
    step_sizes: Tensor
    evidence: Estimate


@torch.no_grad()
def smc_history(
    path: BoltzmannPath,
    target: Target,
    base: GeneralisedNormal,
    times: Tensor,
    *,
    width: float = 1.0,
    num: int = 1024,
    islands: int = 8,
    selection: float = 1.0,
) -> SMCHistory:
    """Anneals ``num`` particles along a path without its learned term, from a wider base.

    The more dimensions, the more changes from slice to slice, and the more moves follow each.
    Weights are raised to the power ``selection``; with less than 1 modes of little mass keep more
    particles than are their due, and the evidence is none.

    Example:
        >>> path, base = BoltzmannPath(1, 2.0, None, None), GeneralisedNormal(torch.zeros(1), 2.0)
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)  # the base itself
        >>> history = smc_history(path, target, base, torch.tensor([0.0, 0.5, 1.0]), num=64)
        >>> history.states.x.shape, round(float(history.evidence.value), 4)  # log π / 2
        (torch.Size([3, 64, 1]), 0.5724)
    """
    moves = MOVES * ceil(target.dim / 16)
    sizes = [torch.full_like(times[0], optimal_step_size(target.dim))]
    later = iter(times[1:])

    def stage(t: Tensor) -> driver.Stage:
        def density(u: Tensor) -> PathState:
            return path.state_at(target, t.expand(len(u)), u, width, learned_term=False)

        return driver.Stage(None, density, torch.ones_like(path.loc), sizes[-1])

    def weigh(before: Particles, stage: driver.Stage) -> Particles:
        after = driver.transport(before, stage)
        gain = (after.log_w - before.log_w).nan_to_num(nan=-inf, neginf=-inf)
        return after._replace(log_w=before.log_w + selection * gain)

    def move(current: Particles, stage: driver.Stage) -> Particles:
        current, step_size = driver.move_and_tune(current, stage, moves, ACCEPT)
        sizes.append(step_size)
        return current

    def next_step(_: Particles) -> driver.SMCStep | None:
        if (t := next(later, None)) is None:
            return None
        following = stage(t)
        return driver.SMCStep(partial(weigh, stage=following), partial(move, stage=following))

    first = particles.init(width * base.sample((num,)), stage(times[0]).density, islands)
    history = [first, *driver.run_smc(first, next_step, RESAMPLE_BELOW)]
    log_z, error = history[-1].evidence
    log_z = log_z + base.log_z + target.dim * log(width)
    states = PathState(*(torch.stack(values) for values in zip(*(p.state for p in history))))
    weights = torch.stack([p.log_weights.softmax(0) for p in history]).to(path.loc)
    return SMCHistory(states, weights, torch.stack(sizes), Estimate(log_z, error))


def _joined(parts: Sequence[SMCHistory]) -> SMCHistory:
    """All of them, equally often; evidence and step sizes are the first ones'."""
    states = PathState(*(torch.cat(values, 1) for values in zip(*(part.states for part in parts))))
    weights = torch.cat([part.weights for part in parts], 1) / len(parts)
    return parts[0]._replace(states=states, weights=weights)


class TerminalParticles(NamedTuple):
    """Particles annealed to the target, whatever the flow does.

    Attributes:
        x: Places, ``(N, d)``.
        log_prob: The target's log density there, ``(N,)``, float64.
        weights: Which sum to one, ``(N,)``.
        evidence: The estimate of log Z.

    Example:
        >>> one, log_z = torch.ones(2).double(), torch.zeros(()).double()
        >>> x = torch.tensor([[0.0], [4.0]])
        >>> found = TerminalParticles(x, -one, 0.5 * one, Estimate(log_z, log_z))
        >>> float((found.weights[:, None] * found.x).sum())
        2.0
    """

    x: Tensor
    log_prob: Tensor
    weights: Tensor
    evidence: Estimate


@torch.no_grad()
def anneal_from_bases(
    path: BoltzmannPath, target: Target, base: GeneralisedNormal, times: Tensor
) -> tuple[dict[str, TerminalParticles], Tensor]:
    """Particles annealed from several bases, and step sizes ``(S,)`` along the path.

    The bases are an over-dispersed one, one twice as wide as the path's, and the path's own, here
    without its learned term. (Step sizes are tuned on the way: no evidence is strictly unbiased.)

    Example:
        >>> path, base = BoltzmannPath(1, 2.0, None, None), GeneralisedNormal(torch.zeros(1), 2.0)
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)
        >>> found, step_sizes = anneal_from_bases(path, target, base, torch.linspace(0, 1, 3))
        >>> sorted(found), step_sizes.shape
        (['base', 'over-dispersed', 'twice as wide'], torch.Size([3]))
    """
    plain = BoltzmannPath(target.dim, path.power, None, None).to(path.loc)
    plain.loc.copy_(path.loc)
    plain.scale.copy_(path.scale)
    far = BoltzmannPath(target.dim, 2.0, None, None).to(path.loc)
    start = overdispersed_base(target, 512)
    far.loc.copy_(start.loc)
    far.scale.copy_(start.scale * 2**0.5)
    for way in (plain, far):
        way.log_kappa.copy_(path.log_kappa)

    def arrive(way: BoltzmannPath, base: GeneralisedNormal, width: float) -> SMCHistory:
        return smc_history(way, target, base, times, width=width)

    def ends(way: BoltzmannPath, population: SMCHistory) -> TerminalParticles:
        x, log_prob = population.states.x[-1], population.states.log_pi[-1]
        log_prob = log_prob - way.scale.log().sum()
        return TerminalParticles(
            way.loc + way.scale * x, log_prob, population.weights[-1], population.evidence
        )

    own = arrive(path, base, 1.0)
    found = {
        "over-dispersed": ends(far, arrive(far, GeneralisedNormal(path.loc, 2.0), 1.0)),
        "twice as wide": ends(plain, arrive(plain, base, 2.0)),
        "base": ends(path, own),
    }
    return found, own.step_sizes


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Rows ``(S, m, ...)`` of ``(S, N, ...)`` by indices ``(S, m)``."""
    return values[torch.arange(len(index), device=index.device)[:, None], index]


def _needed(state: PathState) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of a state that the loss takes."""
    return state.x, state.denergy_dt, state.grad_energy, state.dgrad_dt


def _out_of_line(log_w: Tensor) -> Tensor:
    """Probability weights for picking particles, by the distance of log weights from their median.

    Shapes are ``(S, m)``.
    """
    alive = torch.where(log_w.isneginf(), torch.nan, log_w)
    gap = alive - alive.nanmedian(-1, keepdim=True).values
    return 0.1 + gap.nan_to_num(nan=0.0).abs().clamp(
        max=10.0
    )  # particles of weight zero are not picked


class CollocationPoints:
    """Collocation points from four sources.

    Arguments:
        path, velocity: What is being trained.
        target: Where to.
        base: Where from.
        times: From 0 to 1, ``(S,)``.
        width: Width of the history's base, in units of the base.
        num: Number of points of each kind at each time, m.

    Raises:
        ValueError: No particle of the history has any weight at the target.

    Attributes:
        history: See :class:`SMCHistory`.
        step_sizes: Of the Langevin moves, at each time, ``(S, 1)``.

    Example:
        >>> path, base = BoltzmannPath(1, 2.0, None, None), GeneralisedNormal(torch.zeros(1), 2.0)
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 1)
        >>> made = CollocationPoints(path, VelocityMLP(1), target, base, torch.arange(2.0), 1.0, 8)
        >>> made.refresh()
        >>> made.sample(3).u.shape  # of each of four sources at each of two times
        torch.Size([24, 1])
    """

    def __init__(
        self,
        path: BoltzmannPath,
        velocity: VelocityMLP,
        target: Target,
        base: GeneralisedNormal,
        times: Tensor,
        width: float,
        num: int,
    ) -> None:
        self.path, self.velocity, self.target, self.base = path, velocity, target, base
        self.times, self.num = times, num
        parts = [
            smc_history(path, target, base, times, width=width, selection=s) for s in SELECTIONS
        ]
        if not all(torch.isfinite(part.evidence.value) for part in parts):
            raise ValueError(
                "no particle that was annealed from the base to the target has kept any weight: "
                "the base must cover the target's support (give another scale), or the times lie "
                "too far apart."
            )
        self.history = _joined(parts)
        self.step_sizes = self.history.step_sizes[:, None]
        self.t = times[:, None].expand(-1, self.num).reshape(-1)
        self.smc_points, self.trajectories, self.returning = (self._start() for _ in range(3))
        self._gather()

    def state_dict(self) -> dict[str, Any]:
        """The points and step sizes that :meth:`refresh` changes; the history is made once."""
        return {name: getattr(self, name) for name in CHANGED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the state of :meth:`state_dict`."""
        for name in CHANGED:
            setattr(self, name, state[name])
        self._gather()

    def _density(self, u: Tensor) -> PathState:
        return self.path.state_at(self.target, self.t, u)

    @torch.no_grad()
    def _start(self) -> Particles:
        index = self.history.weights.multinomial(self.num, replacement=True)
        u = pick(self.history.states.x, index).flatten(0, 1)
        return particles.init(u, self._density, len(self.times))

    def _entering(self, back: bool) -> tuple[Tensor, Tensor]:
        """New points with their log densities, from the base or from the end of the history."""
        if not back:
            u = self.base.sample((self.num,))
            return u, -self.path.base(u)[0].double()
        index = self.history.weights[-1].multinomial(self.num, replacement=True)
        return self.history.states.x[-1, index], self.history.states.log_pi[-1, index]

    def _carry(self, cloud: Particles, back: bool = False) -> Particles:
        """One time further, or back, by a midpoint step, with the weight of it."""

        def on(values: Tensor, fresh: Tensor) -> Tensor:
            """Shifts values by one slice of time, ``(S, ...)``."""
            return torch.cat([values[1:], fresh[None]] if back else [fresh[None], values[:-1]])

        shape = (len(self.times), self.num)
        x, log_prob = self._entering(back)
        u = on(cloud.x.unflatten(0, shape), x).flatten(0, 1)
        log_pi = on(cloud.state.log_pi.unflatten(0, shape), log_prob).flatten()
        before = on(self.times, self.times[-1 if back else 0])
        before = before[:, None].expand(-1, self.num).reshape(-1)
        h = self.t - before
        middle = u + h[:, None] / 2 * self.velocity(before, u)
        v, divergence = self.velocity.with_divergence(before + h / 2, middle)
        weights = (on(value, torch.zeros_like(value[0])) for value in (cloud.log_w, cloud.log_z))
        cloud = Particles(cloud.state._replace(log_pi=log_pi), *weights)
        state = self._density(u + h[:, None] * v)
        return particles.reweight(cloud, state, (h * divergence).double())

    @torch.no_grad()
    def refresh(self) -> None:
        """Moves the points of all sources but the history on by one slice of time."""
        cloud = particles.resample(self._carry(self.smc_points), RESAMPLE_BELOW)
        sizes = self.step_sizes.expand(-1, self.num).reshape(-1, 1)
        noise, log_u = torch.randn_like(cloud.x), torch.rand_like(cloud.state.log_pi).log()
        state, info = hamiltonian.step(cloud.state, self._density, sizes, 1, noise, log_u)
        self.smc_points = cloud._replace(state=state)
        self.trajectories = self._carry(self.trajectories)
        self.returning = self._carry(self.returning, back=True)
        self._gather()
        rate = info.accept_prob.unflatten(0, cloud.log_w.shape).mean(-1, keepdim=True)
        self.step_sizes = robbins_monro(self.step_sizes, rate, ACCEPT, GAIN)

    def _gather(self) -> None:
        """Stores the points ``(S, 3·m, ...)`` for :meth:`sample`, and their weights."""
        populations = self.smc_points, self.trajectories, self.returning
        shape = (len(self.times), self.num)
        each = [
            [v.unflatten(0, shape) for v in _needed(population.state)] for population in populations
        ]
        self._places = [torch.cat(values, 1) for values in zip(*each)]
        carried = [_out_of_line(population.log_w) for population in populations[1:]]
        self._sought = torch.cat([self.smc_points.log_w.softmax(-1), *carried])

    @torch.no_grad()
    def sample(self, num: int) -> Sample:
        """Samples ``num`` points of each source at each time, within half a slice of it."""
        chosen = self._sought.multinomial(num, replacement=True).split(len(self.times))
        index = torch.cat([rows + k * self.num for k, rows in enumerate(chosen)], 1)
        index_history = self.history.weights.multinomial(num, replacement=True)
        u, denergy_dt, grad_energy, dgrad_dt = (
            torch.cat([pick(known, index_history), pick(place, index)], 1).flatten(0, 1)
            for known, place in zip(_needed(self.history.states), self._places)
        )
        t, shift = (v.repeat_interleave(NUM_SOURCES * num) for v in (self.times, self._shift()))
        denergy_dt, grad_energy = self.path.extrapolate(
            t, shift, u, denergy_dt, grad_energy, dgrad_dt
        )
        return Sample(t + shift, u, denergy_dt, grad_energy)

    def _shift(self) -> Tensor:
        """Uniform over half of the slices on both sides, ``(S,)``: lest nobody looks between."""
        half = torch.diff(self.times) / 2
        none = half.new_zeros(1)
        before, after = torch.cat([none, half]), torch.cat([half, none])
        return torch.lerp(-before, after, torch.rand_like(before))
