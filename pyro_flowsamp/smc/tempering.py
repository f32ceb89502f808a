r"""Sequential Monte Carlo along a tempered path: draws of every mode without any flow.

Particles move through

.. math:: \log\pi_\beta = (1 - \beta)\log b + \beta \log\tilde p, \qquad 0 = \beta_0 < \dots < 1,

from a base :math:`b`, by default a Gaussian that is uniform on angles. At each stage the next
:math:`\beta` is the one at which the weights :math:`w = (\tilde p / b)^{\Delta\beta}` keep a given
effective sample size; then the particles are resampled, and moved by MALA (Del Moral et al., 2006,
https://doi.org/10.1111/j.1467-9868.2006.00553.x). The product of the mean weights estimates Z.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import progress
from ..checkpoint.scope import Scope, entered
from ..distributed import WorkerGroup, guarded, splitting_workers, without_auto_tracing
from ..seeding import Stream
from ..target.density import Target
from ..transitions.scaling import scale_proposals, scale_step
from ..transitions.step_size import optimal_step_size
from ..validation import check_count, check_number, shown
from . import driver, particles, paths
from .coordinates import WhitenedTarget
from .coverage import Start, coverage_problem
from .driver import SMCStep
from .particles import Particles
from .shared_islands import IslandStreams
from .starts import PriorStart, TemperedStart, overdispersed_base

__all__ = ["tempered_smc"]

NUM_STARTS = 512  #: points that are moved uphill to their modes; the base covers them
SHORTEST_STAGE = (
    1e-12  #: a prior may be a million times wider than the posterior, in each direction
)
SLOWEST_GROWTH = 0.02  #: of the inverse temperature in a stage, so that the stages come to an end


def tempered_smc(
    target: Target | WhitenedTarget,
    num_particles: int | None = None,
    *,
    mcmc_steps: int = 10,
    target_ess: float = 0.8,
    target_accept_prob: float = 0.574,
    scale_moves: int = 0,
    base: Start | None = None,
    islands: int = 1,
    check_coverage: bool = True,
) -> Particles:
    """Anneals particles from a base, by default an over-dispersed Gaussian, to a target.

    Use it as ``AutoFlow(model, ensemble=tempered_smc)``. A target at K contexts gets K islands of
    particles, each with inverse temperatures and a step size of its own.

    Arguments:
        target: The target density.
        num_particles: Number of particles; by default 4096, and 500 for each of several contexts.
        mcmc_steps: MALA steps at each inverse temperature; each also tunes the step size.
        target_ess: ESS fraction of the weights that fixes the next inverse temperature.
        target_accept_prob: Acceptance that the step size is tuned to.
        scale_moves: Moves at each inverse temperature that scale particles about the base's
            centre, or the origin of a whitened target
            (:mod:`pyro_flowsamp.transitions.scaling`): with them, particles find back from far out
            to a target with heavy tails, or of many scales.
        base: Distribution at which the path starts; by default a Gaussian that covers many points
            moved uphill to their modes.
        islands: Islands that the particles are shared out to, at one context. They never exchange
            particles, so that the spread of their evidences is an honest error. They have the
            inverse temperatures in common.
        check_coverage: Whether to look for mass outside of the base, and to warn of it: particles
            that end outside, and points that quasi-Newton paths from many scales have found there.
            The paths took 16 000 to 31 000 evaluations on mixtures of 2, 25 and 40 modes in two
            dimensions. Targets at several contexts have no paths.

    Returns:
        Equally weighted particles of the target, with an estimate of its log evidence for each
        island. Step sizes are tuned on the way, so that the evidence is not exactly unbiased. Where
        ``mcmc_steps`` are too few to forget where particles were, all islands lack the same region,
        and the evidence is too small by more than its error. More steps show it. More particles, or
        shorter stages, do not: on a regression with 21 random effects the log evidence was too
        small by .33, .19 and .06 with 5, 20 and 80 steps, and by .26 with 5 steps of eight times as
        many particles.

    Raises:
        ValueError: The target's density is not finite anywhere, or there are fewer than two
            particles on an island.

    Example:
        >>> import math, pyro
        >>> pyro.set_rng_seed(0)
        >>> target = Target.from_energy(lambda x: 0.5 * (x - 3).square().sum(-1), 1)
        >>> from pyro_flowsamp.smc.starts import TemperedStart
        >>> start = TemperedStart(torch.tensor([0.0]), torch.tensor([3.0]), target.angles)
        >>> particles = tempered_smc(target, 400, mcmc_steps=3, base=start, islands=4)
        >>> mean, evidence = particles.mean(particles.x), particles.evidence
        >>> abs(float(mean.value) - 3) < 4 * float(mean.standard_error)
        True
        >>> abs(float(evidence.value) - 0.5 * math.log(2 * math.pi)) < 4 * evidence.standard_error
        tensor(True)
    """
    if num_particles is None:
        num_particles = 4096 if getattr(target, "contexts", None) is None else 500
    check_count("num_particles", num_particles, 2)
    check_count("mcmc_steps", mcmc_steps, 0)
    check_count("islands", islands)
    check_number("target_ess", target_ess, 0, 1, open_least=True, open_most=True)
    check_number("target_accept_prob", target_accept_prob, 0, 1, open_least=True, open_most=True)
    if not hasattr(target, "log_prob_and_grad"):
        raise TypeError(
            f"the target must be a Target, such as Target.from_model(model, data), got "
            f"{shown(target)}"
        )
    contexts = target.contexts
    rows: Any = target
    if isinstance(target, Target) and contexts is not None:
        islands = len(contexts)
        rows = target.at_contexts(contexts.repeat_interleave(num_particles, 0))
    else:
        num_particles = max(2, num_particles // islands)
    group = splitting_workers()
    if group is not None:
        count, settings = num_particles, (mcmc_steps, target_ess, target_accept_prob, scale_moves)
        with guarded(), entered(None, "tempering") as scope, scope.restoring("islands") as found:
            if found is None:
                given = count, islands, base, settings, check_coverage
                found = _shared_out(group, target, *given)
        scope.write({"islands": found}, "tempering")
        return found
    if base is None:
        assert isinstance(target, Target)
        base = overdispersed_base(target, islands * -(-NUM_STARTS // islands))
    tempering = _Tempering(
        rows, base, islands, mcmc_steps, target_ess, target_accept_prob, scale_moves
    )
    with entered(None, "tempering") as scope:
        result = tempering.run(num_particles, scope)
    if check_coverage and (problem := coverage_problem(target, base, result.x)):
        warnings.warn(problem, stacklevel=2)
    state = result.state._replace(x=target.wrap(result.x))
    return result._replace(state=state, betas=torch.stack(tempering.betas))


def _shared_out(
    group: WorkerGroup,
    target: Target | WhitenedTarget,
    num: int,
    islands: int,
    base: Start | None,
    settings: tuple[int, float, float, int],
    check_coverage: bool,
) -> Particles:
    """Anneals islands that are shared out to workers.

    The default base is made by rank 0, which also checks the base. Where islands have their inverse
    temperatures in common, all log ratios are gathered at every stage; islands of several contexts
    exchange nothing.

    Arguments:
        group: The workers.
        target: The target, maybe at contexts, one for each island.
        num: The number of particles on each island.
        islands: The number of islands.
        base: The distribution at which the path starts, or None for the default.
        settings: The last arguments of :class:`_Tempering`.
        check_coverage: Whether to look for mass outside of the base.
    """
    streams = IslandStreams(group, target, islands)
    first = Stream(group.shared_seed(), "base", 0, target.device)
    if base is None:
        assert isinstance(target, Target)
        base = _base_of_first(group, target, islands, first)
    contexts = target.contexts

    def path(island: int) -> _Tempering:
        rows = target
        if contexts is not None:
            assert isinstance(target, Target)
            rows = target.at_contexts(contexts[island : island + 1].expand(num, -1))
        own = base.part(island, num) if isinstance(base, PriorStart) else base
        return _Tempering(rows, own, 1, *settings)

    annealed = [path(island) for island in streams.own]
    clouds = streams.each(lambda each: each.initial(num), annealed)
    if contexts is not None:
        clouds = streams.each(lambda each, at: each.to_the_end(at), annealed, clouds)
    else:
        while not annealed[0].ended:
            log_ratios = [cloud.state.log_ratio[None] for cloud in clouds]
            pooled = [group.join(log_ratios, [1] * islands)] * len(clouds)
            clouds = streams.each(lambda each, *at: each.stage(*at), annealed, clouds, pooled)
    clouds = [c._replace(betas=torch.stack(p.betas)) for c, p in zip(clouds, annealed)]
    result = streams.joined(clouds)
    if check_coverage and group.rank == 0:
        assert isinstance(target, Target)
        with first.active(), group.in_unit(), without_auto_tracing(target):
            problem = coverage_problem(target, base, result.x)
        if problem:
            warnings.warn(problem, stacklevel=4)
    return result._replace(state=result.state._replace(x=target.wrap(result.x)))


def _base_of_first(
    group: WorkerGroup, target: Target, islands: int, stream: Stream
) -> TemperedStart:
    """The over-dispersed base that rank 0 has made."""
    like = torch.zeros(2, target.dim, dtype=target.dtype, device=target.device)
    if group.rank == 0:
        with stream.active(), group.in_unit(), without_auto_tracing(target):
            made = overdispersed_base(target, islands * -(-NUM_STARTS // islands))
        like = torch.stack([made.loc, made.scale])
    loc, scale = group.broadcast(like)
    return TemperedStart(loc, scale, target.angles)


class _Tempering:
    """The adaptive path: chooses inverse temperatures, scales and step sizes on the way.

    An island that has reached the target goes on being moved there until all have.
    """

    def __init__(
        self,
        target: Target | WhitenedTarget,
        base: Start,
        islands: int,
        mcmc_steps: int,
        target_ess: float,
        target_accept_prob: float,
        scale_moves: int,
    ) -> None:
        self.target, self.base, self.islands = target, base, islands
        self.mcmc_steps, self.target_ess = mcmc_steps, target_ess
        self.target_accept_prob, self.scale_moves = target_accept_prob, scale_moves
        self.real = ~base.angles.to(base.loc.device)
        self.centre = base.loc
        if isinstance(target, WhitenedTarget):  # that of the best Gaussian of paths
            self.centre = torch.zeros_like(base.loc)
        self.common = target.contexts is None
        self.num_real = int(self.real.sum())
        like = base.loc.new_ones(islands)
        self.betas = [torch.zeros_like(like, dtype=torch.double)]
        self.step_size = like * optimal_step_size(target.dim)
        self.pooled: Tensor | None = None

    def run(self, num: int, scope: Scope) -> Particles:
        """The particles at the end of the path.

        Arguments:
            num: Particles of each island.
            scope: The place in a checkpoint from which the path goes on.
        """
        with scope.restoring("state") as found:
            if found is None:
                first = self.initial(num)
            else:
                first, self.betas, self.step_size = found
        current, stored = first, 0 if found is None else len(self.betas)
        for current in driver.run_smc(first, self.next_step, torch.inf):
            progress.tick(note=f"inverse temperature {float(self.betas[-1].min()):.2g}")
            if scope.due():
                self._store(current, scope)
                stored = len(self.betas)
        if len(self.betas) > stored:
            self._store(current, scope)
        return current

    def _store(self, current: Particles, scope: Scope) -> None:
        scope.write({"state": (current, self.betas, self.step_size)}, "tempering")

    def initial(self, num: int) -> Particles:
        x = self.base.sample(self.islands * num)
        beta = self.betas[-1].repeat_interleave(num)
        density = paths.density(self.target, self.base, beta, torch.ones_like(x))
        result = particles.init(x, density, self.islands)
        _check_alive(self._by_island(result.state.log_ratio), self.target)
        return result

    @property
    def ended(self) -> bool:
        """Whether all islands have reached the target."""
        return float(self.betas[-1].min()) == 1

    def stage(self, current: Particles, pooled: Tensor | None = None) -> Particles:
        """The particles after one more stage.

        Arguments:
            current: The particles.
            pooled: Log ratios ``(R, n)`` of islands that have inverse temperatures in common with
                these, if there are others.
        """
        self.pooled = pooled
        return next(driver.run_smc(current, self.next_step, torch.inf))

    def to_the_end(self, current: Particles) -> Particles:
        """The particles at the target."""
        while not self.ended:
            current = self.stage(current)
        return current

    def _by_island(self, values: Tensor) -> Tensor:
        return values.unflatten(0, (self.islands, -1))

    def next_step(self, current: Particles) -> SMCStep | None:
        if self.ended:
            return None
        log_ratio = self._by_island(current.state.log_ratio)
        shortest = SHORTEST_STAGE + SLOWEST_GROWTH * float(self.betas[-1].min())
        self.betas.append(self._later(log_ratio, shortest))
        beta = self.betas[-1].repeat_interleave(log_ratio.shape[1])
        return SMCStep(partial(_reweighted, beta=beta), partial(self._moved, beta=beta))

    def _later(self, log_ratio: Tensor, shortest: float) -> Tensor:
        """The next inverse temperatures; islands of one target have theirs in common.

        Chosen by the few particles of one island, they make its evidence too small: particles that
        have no weight yet where the mass is allow longer stages. Islands exchange nothing else.
        """
        if not self.common:
            return paths.next_betas(log_ratio, self.betas[-1], self.target_ess, shortest)
        here = self.betas[-1][:1]
        log_ratio = log_ratio if self.pooled is None else self.pooled
        later = paths.next_betas(log_ratio.reshape(1, -1), here, self.target_ess, shortest)
        return later.expand(self.islands)

    def _moved(self, current: Particles, beta: Tensor) -> Particles:
        split = self._by_island(current.state.grad), self._by_island(current.x)
        scale = torch.stack([paths.local_scale(*island) for island in zip(*split)])
        scale = scale.repeat_interleave(split[0].shape[1], 0)
        current = current._replace(state=paths.at_beta(current.state, beta, scale))
        density = paths.density(self.target, self.base, beta, scale)
        stage = driver.Stage(None, density, scale, self.step_size)
        count = self.mcmc_steps * (1 if float(beta.min()) < 1 else 3)
        current, self.step_size = driver.move_and_tune(
            current, stage, count, self.target_accept_prob
        )
        return self._scaled(current, beta)

    def _scaled(self, current: Particles, beta: Tensor) -> Particles:
        """Particles after moves that scale them, if there are such moves."""
        if not self.scale_moves:
            return current
        ones = torch.ones_like(current.x)
        density = paths.density(self.target, self.base, beta, ones)
        state = paths.at_beta(current.state, beta, ones)
        for _ in range(self.scale_moves):
            distance = ((state.x - self.centre) * self.real).norm(dim=-1)
            proposals = scale_proposals(distance, self.num_real, self.islands)
            log_u = torch.rand_like(state.log_pi).log()
            state, _ = scale_step(state, density, self.centre, self.real, proposals, log_u)
        return current._replace(state=state)


def _reweighted(current: Particles, beta: Tensor) -> Particles:
    state = paths.at_beta(current.state, beta, torch.ones_like(current.x))
    return particles.reweight(current, state)


def _check_alive(log_ratio: Tensor, target: Target | WhitenedTarget) -> None:
    dead = ~torch.isfinite(log_ratio).any(1)
    if bool(dead.any()):
        where = ""
        if target.contexts is not None:
            first = target.contexts[:: log_ratio.shape[1]]
            where = f" at the contexts {first[dead].tolist()}"
        raise ValueError(
            f"the density is zero or NaN at all {log_ratio.shape[1]} initial points{where}"
        )
