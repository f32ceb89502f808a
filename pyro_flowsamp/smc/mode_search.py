r"""A search for all modes of a target, and for the scale that it lives on.

1. *Paths.* Many quasi-Newton paths climb from over-dispersed points and from draws of the prior
   (:mod:`pyro_flowsamp.flows.pathfinder`). The best Gaussian along them gives whitened coordinates.
   A mode that no particle is near, but a path, gets points of the path's Gaussian.
2. *A base that covers.* Draws of the Gaussians of all good paths are weighted by the density. A
   Student-t distribution, twice as wide as these together, starts a tempered path. Where its
   particles end outside it, a wider one that covers them starts anew.
3. *A second search.* A second set of particles, that shares none with the first, starts from the
   prior where that can be drawn from, and else from a base that is three times wider. A search
   from the prior that has missed mass of the first is followed by one of the other kind.
4. *A survey.* In a few dimensions many random points are looked at, without gradients, and paths
   start from those that the particles do not cover (:mod:`.survey`).
5. *Agreement.* A mixture is fitted to all particles; components that do not overlap are different
   modes. A mode that only one of both searches has found shows that each of them can miss modes.
   Then both are made anew with more particles, and only the new pair is judged. The share of the
   mass that has been found once estimates the share that has never been found, as the species
   seen once do in Good's and Turing's estimate. A mode that two paths from different points have
   found, and both searches have lost, has been found twice. Each search counts in proportion to
   its evidence: the estimate of the evidence is unbiased, and one that has missed mass is too low.
   Searches that have found the same modes must also have the same distributions along coordinates,
   principal and random directions (:mod:`pyro_flowsamp.smc.directions`).

All counts are evaluations of the density; one without its gradient costs less. Nothing
depends on the time that they take.

References:
    I. J. Good, *The Population Frequencies of Species and the Estimation of Population Parameters*,
    1953, https://doi.org/10.1093/biomet/40.3-4.237
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import ceil, log, nan

import torch
from torch import Tensor

from ..distributed import check_alike, replicated
from ..options import ModeSearchOptions
from ..target.density import Target
from .comparison import Cover, compare, cover_particles
from .coordinates import WhitenedTarget
from .directions import compare_directions
from .exploration import Exploration, explore, stored_exploration
from .found_modes import Agreement, FoundModes, particle_weights
from .particle_mixture import reweighted, standard_normal
from .particles import Particles
from .path_modes import PathModes
from .starts import PriorStart, StudentStart
from .survey import survey
from .tempering import tempered_smc

__all__ = ["ModeSearch", "size_that_fits"]


class ModeSearch:
    """The search for all modes of a target.

    Arguments:
        target: The target, at one context.
        options: Options of the search.
        points: Points ``(N, d)`` of finite density from which paths start too, or None.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> def energy(x):  # two modes far apart, on a scale of a million
        ...     near, far = (((x / 1e6 - s).square().sum(-1) / 2) for s in (-30.0, 30.0))
        ...     return -torch.logaddexp(-near, -far)
        >>> found = ModeSearch(Target.from_energy(energy, 2)).run()
        >>> found.settled, bool((found.x[:, 0] > 0).any()), bool((found.x[:, 0] < 0).any())
        (True, True, True)
    """

    def __init__(
        self,
        target: Target,
        options: ModeSearchOptions = ModeSearchOptions(),
        points: Tensor | None = None,
    ) -> None:
        self.target, self.options, self.points = target, options, points
        self._so_far: Callable[[], FoundModes] | None = None

    def so_far(self) -> FoundModes | None:
        """The result where Ctrl-C ends the search: of the last pair, or of the paths alone.

        It is None where the paths have not ended.
        """
        if self._so_far is None:
            return None
        return self._so_far()._replace(settled=False, interrupted=True)

    def run(self) -> FoundModes:
        """Searches until two searches agree, or the budget is spent.

        In a checkpoint the paths are stored, and each set of particles on its way. What lies
        between is computed again. With workers, islands of particles are shared out, and all have
        the result.

        Raises:
            ValueError: The density is not finite anywhere, or does not fall in any direction.
        """
        with replicated("a search for modes", self.target):
            found = self._found()
            check_alike("the search for modes", found.x, found.weights, found.evaluations)
        return found

    def _found(self) -> FoundModes:
        options, before = self.options, self.target.evaluations
        paths = partial(explore, self.target, options, self.points)
        start = stored_exploration(self.target, paths)
        self.coordinates = start.coordinates
        self._so_far = partial(_from_paths, self.target, start, before)
        self._surveyed = 0  # evaluations of random points
        if self._first_size() < options.min_particles:
            return self._so_far()
        base, modes = self._base(start.points), start.modes
        prior, num, moves = start.prior, self._first_size(), options.mcmc_steps
        while True:
            spent = self.target.evaluations
            first, second, base = self._pair(base, prior, num, moves)
            searches = first, second
            cover = cover_particles(self.coordinates, modes, searches, options)
            spent = self.target.evaluations - spent
            if not self._surveyed:
                modes, cover = self._survey(base, cover, modes, searches)
            agreement = self._compare(cover, searches)
            settled = self._settled(agreement)
            ends = self._covered, settled
            sizes = len(first.x), len(second.x)
            pair = cover, sizes, agreement, ends, before, self._surveyed, options
            self._so_far = partial(_from_particles, self.coordinates, *pair)
            left = options.max_evaluations - self._charged(before)
            larger = self._next_size(agreement, settled, num, moves)
            if larger is None:
                break
            planned = options.planned_share * left / spent  # of the last pair's size
            fitting = size_that_fits(larger, num, planned * num * moves)
            if fitting is None:
                break
            num, moves = fitting
            poor = prior is not None and agreement.second_has_missed(options)
            prior = None if poor else prior
            base = self._base(first.x if poor else torch.cat([first.x, second.x]))
        return self._so_far()

    # ---- sizes -----------------------------------------------------------------------------------

    def _first_size(self) -> int:
        """Particles that the first searches can afford: fewer in many dimensions."""
        options = self.options
        stages = options.stages + options.stages_per_root * self.target.dim**0.5
        affordable = int(
            options.first_evaluations / (stages * (options.mcmc_steps + options.scale_moves))
        )
        return min(options.particles, affordable)

    def _next_size(
        self, agreement: Agreement, settled: bool, num: int, moves: int
    ) -> tuple[int, int] | None:
        """Particles and moves of another pair; None where it is not needed.

        Several modes need many particles for their shares, and a mode that one search has missed
        needs more. Where only evidences or distributions differ, one pair with more particles
        decides.
        """
        options = self.options
        many = options.particles_many_modes, options.mcmc_steps_many_modes
        if agreement.num_modes > 1 and num < many[0]:
            return many
        if settled:
            return None
        missed = max(agreement.unseen - options.max_unseen, agreement.missed - options.max_missed)
        if missed > 0 or not self._covered:
            return max(ceil(options.growth * num), many[0]), many[1]
        if moves > options.mcmc_steps:
            return None
        return ceil(options.growth * num), ceil(options.growth * moves)

    def _base(self, u: Tensor) -> StudentStart:
        options = self.options
        return StudentStart.covering(
            u, self.target.angles, options.widen, df=options.degrees_of_freedom
        )

    # ---- searches --------------------------------------------------------------------------------

    def _tempered(self, start: StudentStart | PriorStart, num: int, moves: int) -> Particles:
        islands = self.options.islands
        scale_moves = self.options.scale_moves
        return tempered_smc(
            self.coordinates,
            num,
            mcmc_steps=moves,
            scale_moves=scale_moves,
            base=start,
            islands=islands,
            check_coverage=False,  # the search does so itself
        )

    def _anneal(self, base: StudentStart, num: int, moves: int) -> tuple[Particles, StudentStart]:
        """Particles from a base that covers them, and the base."""
        options = self.options
        before, most = self.target.evaluations, options.widening_share * options.max_evaluations
        for _ in range(options.max_rounds):
            found = self._tempered(base, num, moves)
            outside = float(base.outside(found.x).double().mean())
            self._covered = outside <= options.max_outside
            if self._covered or self.target.evaluations - before > most:
                break
            base = self._base(torch.cat([found.x, base.sample(len(found.x))]))
        return found, base

    def _pair(
        self, base: StudentStart, prior: WhitenedTarget | None, num: int, moves: int
    ) -> tuple[Particles, Particles, StudentStart]:
        """Particles of two searches that share nothing, and the base of the first."""
        first, base = self._anneal(base, num, moves)
        covered = self._covered
        draws = None if prior is None else self.target.prior_points(num)
        self._inside_error = 0.0
        if prior is None or draws is None or len(draws) < num // 2:
            second, _ = self._anneal(base.widened(self.options.second_widen), num, moves)
        else:
            start = PriorStart(prior, self.coordinates.to_u(draws))
            second = self._tempered(start, len(draws), moves)
            inside = len(draws) / num  # the share of the prior where the density is positive
            second = second._replace(log_z=second.log_z + log(inside))
            self._inside_error = ((1 - inside) / (inside * num)) ** 0.5
        self._covered = covered and self._covered
        return first, second, base

    def _compare(self, cover: Cover, searches: tuple[Particles, Particles]) -> Agreement:
        agreement = compare(cover, searches, self._inside_error, self.options)
        return agreement._replace(direction=compare_directions(*searches, self.options))

    def _survey(
        self,
        base: StudentStart,
        cover: Cover,
        modes: PathModes | None,
        searches: tuple[Particles, Particles],
    ) -> tuple[PathModes | None, Cover]:
        """The modes of paths with those that random points lead to, and the cover.

        The points are of a base and of a wider one. Where a mode of much mass has been found once
        only, more points follow, which the mixture of the particles alone judges: it does not
        cover this mode.
        """
        before, options = self.target.evaluations, self.options
        bases, mixture = (base, base.widened(options.second_widen)), cover.mixture
        for _ in range(options.survey_rounds):
            found = survey(self.coordinates, bases, mixture, cover.u, options)
            if found is None:
                break
            modes = found if modes is None else modes.joined(found)
            cover = cover_particles(self.coordinates, modes, searches, options)
            if self._compare(cover, searches).missed <= options.max_missed:
                break
        self._surveyed = self.target.evaluations - before
        return modes, cover

    def _charged(self, before: int) -> float:
        """Evaluations since the search began; those of random points have no gradient."""
        saved = (1 - self.options.density_cost) * self._surveyed
        return self.target.evaluations - before - saved

    def _settled(self, agreement: Agreement) -> bool:
        options = self.options
        seen = agreement.unseen <= options.max_unseen and agreement.missed <= options.max_missed
        same = agreement.evidences_agree(options) and agreement.directions_agree(options)
        return self._covered and seen and same


def _from_particles(
    coordinates: WhitenedTarget,
    cover: Cover,
    sizes: tuple[int, int],
    agreement: Agreement,
    ends: tuple[bool, bool],
    before: int,
    surveyed: int,
    options: ModeSearchOptions,
) -> FoundModes:
    """The result of a pair of searches.

    Arguments:
        coordinates: Whitened coordinates.
        cover: Particles of both, and points of modes of paths, and their mixture.
        sizes: The numbers of particles of the two.
        agreement: How far they agree.
        ends: Whether they are covered, and settled.
        before: Evaluations of the target before the search.
        surveyed: Evaluations of random points.
        options: How the weights of components are fitted.
    """
    target, u, mixture = coordinates.target, cover.u, cover.mixture
    weights = particle_weights(agreement, sizes, cover.alone)
    if agreement.lost:
        mixture = reweighted(mixture, u, options.weight_steps, weights)
    second = torch.arange(len(u), device=u.device) >= sizes[0]  # and the points of paths
    order = torch.randperm(len(u), device=u.device)
    return FoundModes(
        target.wrap(coordinates.to_x(u[order])),
        second[order],
        weights[order],
        coordinates,
        mixture,
        agreement,
        *ends,
        target.evaluations - before,
        cover.alone,
        surveyed=surveyed,
    )


def _from_paths(target: Target, start: Exploration, before: int) -> FoundModes:
    """The result of the paths alone, where particles are too few for so many dimensions.

    Whether modes have been missed is then for chains to show, which start at points of all paths:
    those from the prior and those from over-dispersed points. The unseen mass is not known.
    """
    u = start.points
    order = torch.randperm(len(u), device=u.device)
    counts = torch.full((2, 1), len(u) // 2, device=u.device)
    unknown = torch.full((2,), nan, dtype=torch.double, device=u.device)
    agreement = Agreement(counts, torch.zeros_like(counts[0]), nan, unknown, unknown)
    x = target.wrap(start.coordinates.to_x(u[order]))
    mixture, second = standard_normal(u), order % 2 == 1
    equal, where = torch.full_like(u[:, 0], 1 / len(u)), start.coordinates
    evaluations = target.evaluations - before
    return FoundModes(x, second, equal, where, mixture, agreement, True, True, evaluations)


def size_that_fits(wanted: tuple[int, int], num: int, left: float) -> tuple[int, int] | None:
    """Particles and moves of another pair, with fewer particles than wanted where not all fit.

    Arguments:
        wanted: Particles and moves.
        num: Particles of the last pair, of which there must be more.
        left: Moves of one particle that the budget has left.

    Returns:
        The two numbers; None where so few fit that another pair would tell no more than the last.

    Example:
        >>> size_that_fits((4096, 4), 2048, left=20_000)
        (4096, 4)
        >>> size_that_fits((4096, 4), 2048, left=12_000)
        (3000, 4)
        >>> size_that_fits((4096, 4), 2048, left=8192) is None
        True
    """
    particles, moves = wanted
    most = min(particles, int(left / moves))
    return (most, moves) if most > num else None
