r"""Where to ask for the deformation error: four crowds at fixed times of a path.

- *Explorers*, once: sequential Monte Carlo along the path without detour, from a base as wide as
  one likes. They know every mode that annealing finds, whatever the flow does. Half of them are
  resampled by the square roots of their weights: else few would look at a mode of little mass.
  (Never resampled, most would stay where there is next to none.)
- *Followers*: at every refresh, those of time k move on by the velocity to time k + 1, where they
  are weighted, resampled and moved by Langevin steps; fresh ones enter at time 0. All times go at
  once, so that every slice is a small sequential Monte Carlo run of its own, of the path as it is
  now. Without them mass may go missing between two crowds that never meet.
- *Trajectories*: the same, but only carried. They are where the flow goes wrong: where the error
  vanishes along all of them, every draw has its density.
- *Returning*: explorers that have arrived, carried back by the velocity. Where the error vanishes
  along all of them, every point of the target has its density, up to a factor that trajectories
  fix. Without them a velocity may pour a mode out of a place where nobody looks, since nothing that
  comes from the base gets there.

Nothing is asked of the target but at a refresh; the optimiser's steps between cost networks only.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf, log
from typing import NamedTuple

import torch
from torch import Tensor

from ...nn.mlp import VelocityMLP
from ...smc import driver, particles
from ...smc.particles import Particles
from ...smc.starts import overdispersed_base
from ...target.density import Target
from ...transitions import hamiltonian
from ...transitions.step_size import optimal_step_size
from ...weights import Evidence
from .energy_path import BoltzmannPath, PathState
from .velocity_flow import GeneralisedNormal

__all__ = [
    "ACCEPT",
    "TerminalParticles",
    "Sample",
    "CollocationPoints",
    "anneal_from_bases",
    "run_smc",
]


ACCEPT = 0.574  #: acceptance that Langevin steps are tuned to
RESAMPLE_BELOW = 0.5  #: effective sample size of a crowd, as a fraction
POINTS_PER_TIME = 16  #: of each kind, at each time
NUM_SOURCES = 4
SELECTIONS = 1.0, 0.5  #: powers of the explorers' weights
MOVES = 4  #: of explorers in each slice, for every 16 dimensions begun


class Sample(NamedTuple):
    """Points ``(S·m, ...)``, sorted by time, with what is fixed of the path there."""

    t: Tensor
    u: Tensor
    denergy_dt: Tensor
    grad_energy: Tensor


class SMCHistory(NamedTuple):
    """Spots ``(S, N, ...)`` at all times, their weights ``(S, N)`` and the path's evidence."""

    states: PathState
    weights: Tensor
    step_sizes: Tensor
    evidence: Evidence


def _stage(density: hamiltonian.Density, like: Tensor, step_size: Tensor) -> driver.Stage:
    return driver.Stage(None, density, torch.ones_like(like), step_size)


@torch.no_grad()
def run_smc(
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
    """Anneals ``num`` particles along a path without its detour, from a base ``width`` as wide.

    The more dimensions, the more changes from slice to slice, and the more moves follow each.
    Weights are raised to the power ``selection``; with less than 1 modes of little mass keep more
    particles than are their due, and the evidence is none.
    """
    moves = MOVES * ceil(target.dim / 16)

    def stage(t: Tensor) -> driver.Stage:
        def density(u: Tensor) -> PathState:
            return path.state_at(target, t.expand(len(u)), u, width, learned_term=False)

        return _stage(density, path.loc, step_size)

    step_size = torch.full_like(times[0], optimal_step_size(target.dim))
    cloud = particles.init(width * base.sample((num,)), stage(times[0]).density, islands)
    states, weights, sizes = [cloud.state], [cloud.log_weights.softmax(0)], [step_size]
    for t in times[1:]:
        pushed = driver.transport(cloud, stage(t))
        gain = (pushed.log_w - cloud.log_w).nan_to_num(nan=-inf, neginf=-inf)
        pushed = pushed._replace(log_w=cloud.log_w + selection * gain)
        cloud = particles.resample(pushed, RESAMPLE_BELOW)
        cloud, step_size = driver.move_and_tune(cloud, stage(t), moves, ACCEPT)
        states.append(cloud.state)
        weights.append(cloud.log_weights.softmax(0))
        sizes.append(step_size)
    log_z, error = cloud.evidence
    log_z = log_z + base.log_z + target.dim * log(width)
    stacked = PathState(*(torch.stack(values) for values in zip(*states)))
    return SMCHistory(
        stacked, torch.stack(weights).to(path.loc), torch.stack(sizes), Evidence(log_z, error)
    )


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
    """

    x: Tensor
    log_prob: Tensor
    weights: Tensor
    evidence: Evidence


@torch.no_grad()
def anneal_from_bases(
    path: BoltzmannPath, target: Target, base: GeneralisedNormal, times: Tensor
) -> tuple[dict[str, TerminalParticles], Tensor]:
    """Particles annealed from several bases, and step sizes ``(S,)`` along the path.

    The bases are an over-dispersed one, one twice as wide as the path's, and the path's own, here
    without its detour. (Step sizes are tuned on the way: no evidence is strictly unbiased.)
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
        return run_smc(way, target, base, times, width=width)

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
    """What the loss takes."""
    return state.x, state.denergy_dt, state.grad_energy, state.dgrad_dt


def _out_of_line(log_w: Tensor) -> Tensor:
    """How much particles are sought, ``(S, m)``: by how far their weights are from the median."""
    alive = torch.where(log_w.isneginf(), torch.nan, log_w)
    gap = alive - alive.nanmedian(-1, keepdim=True).values
    return 0.1 + gap.nan_to_num(nan=0.0).abs().clamp(max=10.0)  # the dead are not sought


class CollocationPoints:
    """The four crowds.

    Arguments:
        path, velocity: What is being trained.
        target: Where to.
        base: Where from.
        times: From 0 to 1, ``(S,)``.
        width: Of the explorers' base, in units of the base.

    Raises:
        ValueError: No explorer arrives where the target has any density.

    Attributes:
        explorers: See :class:`Explorers`.
        step_sizes: Of the Langevin moves, at each time, ``(S, 1)``.
    """

    def __init__(
        self,
        path: BoltzmannPath,
        velocity: VelocityMLP,
        target: Target,
        base: GeneralisedNormal,
        times: Tensor,
        width: float,
    ) -> None:
        self.path, self.velocity, self.target, self.base = path, velocity, target, base
        self.times = times
        parts = [run_smc(path, target, base, times, width=width, selection=s) for s in SELECTIONS]
        if not all(torch.isfinite(part.evidence.log_z) for part in parts):
            raise ValueError(
                "no particle that was annealed from the base to the target has kept any weight: "
                "the base must cover the target's support (give another scale), or the times lie "
                "too far apart."
            )
        self.history = _joined(parts)
        self.step_sizes = self.history.step_sizes[:, None]
        self.t = times[:, None].expand(-1, POINTS_PER_TIME).reshape(-1)
        self.smc_points, self.trajectories, self.returning = (self._start() for _ in range(3))
        self._gather()

    def _density(self, u: Tensor) -> PathState:
        return self.path.state_at(self.target, self.t, u)

    @torch.no_grad()
    def _start(self) -> Particles:
        index = self.history.weights.multinomial(POINTS_PER_TIME, replacement=True)
        u = pick(self.history.states.x, index).flatten(0, 1)
        return particles.init(u, self._density, len(self.times))

    def _entering(self, back: bool) -> tuple[Tensor, Tensor]:
        """Fresh ones with their log densities: of the base, or explorers that have arrived."""
        if not back:
            u = self.base.sample((POINTS_PER_TIME,))
            return u, -self.path.base(u)[0].double()
        index = self.history.weights[-1].multinomial(POINTS_PER_TIME, replacement=True)
        return self.history.states.x[-1, index], self.history.states.log_pi[-1, index]

    def _carry(self, cloud: Particles, back: bool = False) -> Particles:
        """One time further, or back, by a midpoint step, with the weight of it."""

        def on(values: Tensor, fresh: Tensor) -> Tensor:
            """What was at each time is now at the next, ``(S, ...)``."""
            return torch.cat([values[1:], fresh[None]] if back else [fresh[None], values[:-1]])

        shape = (len(self.times), POINTS_PER_TIME)
        x, log_prob = self._entering(back)
        u = on(cloud.x.unflatten(0, shape), x).flatten(0, 1)
        log_pi = on(cloud.state.log_pi.unflatten(0, shape), log_prob).flatten()
        before = on(self.times, self.times[-1 if back else 0])
        before = before[:, None].expand(-1, POINTS_PER_TIME).reshape(-1)
        h = self.t - before
        middle = u + h[:, None] / 2 * self.velocity(before, u)
        v, divergence = self.velocity.with_divergence(before + h / 2, middle)
        weights = (on(value, torch.zeros_like(value[0])) for value in (cloud.log_w, cloud.log_z))
        cloud = Particles(cloud.state._replace(log_pi=log_pi), *weights)
        state = self._density(u + h[:, None] * v)
        return particles.reweight(cloud, state, (h * divergence).double())

    @torch.no_grad()
    def refresh(self) -> None:
        """Everybody moves on."""
        cloud = particles.resample(self._carry(self.smc_points), RESAMPLE_BELOW)
        sizes = self.step_sizes.expand(-1, POINTS_PER_TIME).reshape(-1, 1)
        noise, log_u = torch.randn_like(cloud.x), torch.rand_like(cloud.state.log_pi).log()
        state, info = hamiltonian.step(cloud.state, self._density, sizes, 1, noise, log_u)
        self.smc_points = cloud._replace(state=state)
        self.trajectories = self._carry(self.trajectories)
        self.returning = self._carry(self.returning, back=True)
        self._gather()
        rate = info.accept_prob.unflatten(0, cloud.log_w.shape).mean(-1, keepdim=True)
        self.step_sizes = self.step_sizes * (0.3 * (rate - ACCEPT)).exp().to(self.step_sizes)

    def _gather(self) -> None:
        """Puts down for :meth:`sample` who is where, ``(S, 3·m, ...)``, and how much sought."""
        populations = self.smc_points, self.trajectories, self.returning
        shape = (len(self.times), POINTS_PER_TIME)
        each = [
            [v.unflatten(0, shape) for v in _needed(population.state)] for population in populations
        ]
        self._places = [torch.cat(values, 1) for values in zip(*each)]
        carried = [_out_of_line(population.log_w) for population in populations[1:]]
        self._sought = torch.cat([self.smc_points.log_w.softmax(-1), *carried])

    @torch.no_grad()
    def sample(self, num: int) -> Sample:
        """``num`` points of each crowd at each time, up to half a slice earlier or later."""
        chosen = self._sought.multinomial(num, replacement=True).split(len(self.times))
        index = torch.cat([rows + k * POINTS_PER_TIME for k, rows in enumerate(chosen)], 1)
        index_history = self.history.weights.multinomial(num, replacement=True)
        u, denergy_dt, grad_energy, dgrad_dt = (
            torch.cat([pick(known, index_history), pick(place, index)], 1).flatten(0, 1)
            for known, place in zip(_needed(self.history.states), self._places)
        )
        t, shift = (v.repeat_interleave(NUM_SOURCES * num) for v in (self.times, self._shift()))
        denergy_dt, grad_energy = self.path.at(t, shift, u, denergy_dt, grad_energy, dgrad_dt)
        return Sample(t + shift, u, denergy_dt, grad_energy)

    def _shift(self) -> Tensor:
        """Uniform over half of the slices on both sides, ``(S,)``: lest nobody looks between."""
        half = torch.diff(self.times) / 2
        none = half.new_zeros(1)
        before, after = torch.cat([none, half]), torch.cat([half, none])
        return torch.lerp(-before, after, torch.rand_like(before))
