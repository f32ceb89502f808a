"""Options of the search for a sampler and of the search for modes, with their defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .validation import check_at_least_one

__all__ = ["ModeSearchOptions", "SearchOptions"]

CANDIDATES = (
    "IMH",
    "HMC",
    "LocalGlobalHMC",
    "Gaussian",
    "Student-t",
    "mixture",
    "coupling",
    "spline",
    "circular",
    "guide",
)


@dataclass(frozen=True)
class ModeSearchOptions:
    """Options of the search for all modes, :class:`pyro_flowsamp.smc.mode_search.ModeSearch`.

    Attributes:
        paths: Quasi-Newton paths that look for modes and for the scale.
        octaves: Half of the paths start at initial points times up to 2 to this power.
        slack, slack_per_dimension: Nats by which the evidence lower bound of a path may lie below
            the best for its Gaussian to be covered by the base: this many, and so many for each
            dimension. The bound is about the log mass of a mode, less the misfit of the Gaussian.
        distance: Standard deviations of the better of two Gaussians from which on both are covered.
        far_distances: Distances between which the density must fall, in units of the largest scale.
        points_per_path: Draws of each such Gaussian; those that are resampled by their weights are
            covered.
        weighted_ess: Effective sample size of these weights, as a fraction, that fixes the power to
            which they are taken.
        particles, mcmc_steps: Particles of each of the first two searches, and MALA steps of each
            at every temperature.
        scale_moves: Moves of each that scale it about the centre, at every temperature.
        min_particles: The least number of particles. Where so many are too expensive, in many
            dimensions, the paths alone give the starting points.
        first_evaluations: Evaluations that each of the first two searches should take at most.
        stages, stages_per_root: The number of temperatures is estimated as the first of these plus
            the second times the root of the dimension.
        particles_many_modes, mcmc_steps_many_modes: The same where there are several modes.
        growth: Factor by which the number of particles grows where two searches disagree.
        max_evaluations: Evaluations of the whole search at most; then it is not settled. One
            without its gradient counts as ``density_cost``.
        planned_share: Share of the evaluations that are left which another pair of searches is
            planned to take at most, by those of the last pair: it may take more temperatures.
        widening_share: Share of ``max_evaluations`` after which a base is not made wider again.
        islands: Groups of particles of each search that never exchange any. They have their inverse
            temperatures in common.
        widen: Scale of a base in units of the standard deviations of what it covers.
        second_widen: Width of the second search's base in units of the first's, where the prior
            cannot be drawn from.
        degrees_of_freedom: Of the base, a multivariate Student-t distribution.
        max_outside: Share of the particles that may end outside of their base.
        max_rounds: Bases of each search at most, each wider than the one before.
        min_lone, min_lone_share: Particles of one search in a mode without any of the other that
            show that modes can be missed: at least the first number, and at least this share.
        max_unseen: Share of the mass that one search may have found alone.
        least_mode: Share of the mass from which on a mode that only a path has found counts.
        min_path_ess: Effective sample size of the importance weights of a path's Gaussian, as a
            fraction, from which on its mass is known.
        near_deviations: A point is near a path's Gaussian if its squared distance is above its mean
            for draws of the Gaussian by at most so many of its standard deviations.
        lost_share, min_expected: Particles near such a mode are far too few below this share of
            the expected number, where that is at least the second number.
        max_missed: Share of the mass that paths may have found, and both searches have lost.
        enough_times: Paths that must have found such a mode, from different random points, for it
            not to be missed mass: what has been found twice is no sign of what has never been.
        survey_points: Random points at which the density is evaluated, without its gradient, to
            find narrow modes.
        survey_share: Share of ``max_evaluations`` that these cost at most.
        survey_rounds: Times that so many are looked at, at most, where a mode is found once only.
        survey_paths: Paths that start from those that the particles do not cover, at most.
        survey_draws: Draws of the Gaussian of each such path, which give the mass of its mode.
        survey_dimensions: Dimensions up to which there are such points. In more they meet no mode
            that is much narrower than the others.
        density_cost: Cost of a density without its gradient, beside one with it, in the budget of
            the search for modes.
        overlap: Components are of one mode if points of the one belong to the other with more than
            this probability.
        uncovered_nats, uncovered_spreads: A particle is not covered by the mixture, and gets a
            component, if its log weight is above the median by more than the first number, and by
            more than the second times the difference between the 84 % quantile and the median.
        max_gap: Largest difference of two log evidences, in combined standard errors.
        max_island_spread: Standard deviation of the evidences of islands, relative to their mean,
            above which it counts as the error of their mean: the usual error is too small then.
        max_evidence_error: Largest error of a log evidence, in nats, that can settle.
        evidence_tolerance: Nats by which two log evidences may differ in any case.
        coordinate_directions, principal_directions, random_directions: Directions of each kind, at
            most, along which two searches are compared.
        clip: Interquartile ranges at which particles are cut for their principal directions, lest a
            few far out decide these.
        direction_cuts: Levels of the quantiles at which distribution functions are compared.
        direction_errors: Standard errors by which these may differ in any case.
        direction_error_probability: Probability that two right searches differ by more, for all
            directions and cuts together.
        direction_tolerance: Difference of two distribution functions that may be in any case: the
            chains that start at particles forget them.
        max_components: Largest number of components of the mixture.
        draws_per_dimension: Particles for each component and dimension, at least.
        many_draws: Particles for each dimension from which on the mixture needs no comparison with
            the Gaussian that the paths have found.
        ridge: Variance added to every component, relative to the squared interquartile range.
        weight_steps: Steps of expectation maximisation that fit the weights of the Gaussians of
            paths.
        fit_tolerance: Nats by which an iteration of the mixture's fit must gain.
        mixture_degrees_of_freedom: Kinds of components that are compared.
        heavier_tail_errors: Standard errors by which components with heavier tails may predict
            particles worse. With tails that are too thin a sampler that jumps would stay there for
            long.

    Raises:
        ValueError: An option is out of range.

    Example::

        >>> ModeSearchOptions(paths=16).paths
        16
    """

    paths: int = 64
    octaves: int = 10
    slack: float = 10.0
    slack_per_dimension: float = 0.2
    distance: float = 0.5
    far_distances: tuple[float, float] = (1e3, 1e4)
    points_per_path: int = 32
    weighted_ess: float = 0.2
    particles: int = 512
    mcmc_steps: int = 2
    scale_moves: int = 1
    min_particles: int = 128
    first_evaluations: int = 25_000
    stages: float = 10.0
    stages_per_root: float = 3.0
    particles_many_modes: int = 2048
    mcmc_steps_many_modes: int = 4
    growth: float = 2.0
    max_evaluations: int = 500_000
    planned_share: float = 0.9
    widening_share: float = 0.25
    islands: int = 4
    widen: float = 2.0
    second_widen: float = 3.0
    degrees_of_freedom: float = 3.0
    max_outside: float = 0.05
    max_rounds: int = 6
    min_lone: int = 5
    min_lone_share: float = 0.005
    max_unseen: float = 1e-3
    least_mode: float = 1e-4
    min_path_ess: float = 0.3
    near_deviations: float = 6.0
    lost_share: float = 0.25
    min_expected: float = 16.0
    max_missed: float = 0.02
    enough_times: int = 2
    survey_points: int = 65_536
    survey_share: float = 0.15
    survey_rounds: int = 3
    survey_paths: int = 32
    survey_draws: int = 256
    survey_dimensions: int = 8
    density_cost: float = 1 / 3
    overlap: float = 0.01
    uncovered_nats: float = 7.0
    uncovered_spreads: float = 6.0
    max_gap: float = 4.0
    max_island_spread: float = 0.6
    max_evidence_error: float = 1.0
    evidence_tolerance: float = 0.1
    coordinate_directions: int = 32
    principal_directions: int = 8
    random_directions: int = 8
    clip: float = 10.0
    direction_cuts: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95)
    direction_errors: float = 3.0
    direction_error_probability: float = 1e-3
    direction_tolerance: float = 0.1
    max_components: int = 64
    draws_per_dimension: float = 2.0
    many_draws: float = 50.0
    ridge: float = 1e-6
    weight_steps: int = 20
    fit_tolerance: float = 1e-3
    mixture_degrees_of_freedom: tuple[float, ...] = (math.inf, 3.0, 2.0, 1.5, 1.0)
    heavier_tail_errors: float = 1.0

    def __post_init__(self) -> None:
        check_at_least_one(self)


@dataclass(frozen=True)
class SearchOptions:
    """Options of :func:`pyro_flowsamp.sample`, which compares candidate samplers by pilot runs.

    Attributes:
        modes: Options of the search for modes that comes first.
        candidates: Names of the kernels ("IMH", "HMC", "LocalGlobalHMC") and flows ("Gaussian",
            "Student-t", "mixture", "coupling", "spline", "circular", and "guide", the caller's own)
            to compare; all where empty.
        exclude: Names of kernels and flows to leave out.
        max_rounding_error: Rounding error of the log density, in nats, above which it is evaluated
            in float64, if the model allows that.
        rounding_points: Particles at which the rounding error is looked at.
        min_evaluations: Evaluations that the search and the training may take in any case, beside
            those of random points (``modes.survey_points``).
        search_fraction: Share of all evaluations that they may take beside.
        max_evaluations: Evaluations that they may take while no sampler has been seen to mix.
        least_per_path, least_share: Evaluations that every path of the search for modes takes at
            least, and the share of ``modes.first_evaluations`` that each of its first two searches
            takes at least. Where so many do not fit into ``max_seconds``, nothing begins.
        timed_points, timed_batches: Points of a batch that is timed for that, and batches.
        pilot_chains: Chains of a pilot run of an independence sampler, which costs little.
        local_pilot_chains: Chains of a pilot run of a sampler with local moves.
        pilot_warmup, pilot_steps: Steps of warm-up, and steps after it, of each pilot run.
        counted_steps: Steps of which the work is counted.
        max_pilot_steps: Steps at which a pilot run is not doubled any more.
        max_pilot_evaluations: Evaluations of a pilot run after which it is not doubled any more.
        max_leapfrogs: Largest number of leapfrog steps of a trajectory.
        expected_leapfrogs: Target gradients that a step with local moves is expected to take before
            its pilot run.
        min_ess_per_chain: Effective draws of a chain from which on a pilot run is reliable.
        min_independence_ess: Effective draws per draw that an independence sampler needs to be
            reliable: it never shows the regions that its flow does not reach.
        max_never_accepted: Largest share of chains that may never have moved, for a sampler with
            local moves. An independence sampler may have none.
        max_pareto_k: Pareto k of the weights of states from which on jumps alone are not trusted.
        flat_log_weights: Nats between the largest and the median weight below which k is not asked.
        inversion_tolerance: Interquartile ranges by which a flow may miss a point that it leads
            back to.
        check_states: States whose weights are looked at, and that local moves must not change.
        check_leapfrogs, check_moves, check_warmup, check_warmup_chains: Leapfrog steps of a local
            move of this check, moves, and steps and chains of its warm-up.
        max_stay: Steps that an independence sampler may stay at a draw where its weights have heavy
            tails, as a share of the steps of a chain.
        rare_states: Probability of the states at which an independence sampler stays longest, which
            must have the effective sample size that is wanted, by the expected stays there.
        rare_halvings: Times that this probability is halved, for a sampler with local moves, to
            get smaller sets. The last holds a few of 4096 particles.
        rare_chains, rare_steps: Chains that begin in these sets, and their steps.
        rare_evaluations: Evaluations that these take at most, as a share of those before.
        evidence_draws: Draws of a flow that its estimate of the evidence takes.
        check_immobile_steps: Steps of a sampler with local moves from every particle.
        max_immobile: Share of the particles that may not move in these steps.
        check_error: Probability that a right sampler fails this check.
        num_directions: Principal directions in which chains must mix, beside the coordinates.
        target_ess_per_draw: Effective draws that each kept draw should have; chains are thinned to
            reach it.
        max_thin: Largest number of steps for each kept draw.
        min_chains, max_chains: Bounds of the number of chains.
        times_per_chain: Effective draws of each chain, at least.
        max_doublings: Times that the draws are doubled at most to reach the effective sample size.
        unreliable_draws: Draws kept of each chain at most where no sampler has been seen to mix.
        max_diverging: Largest share of draws whose trajectory diverged.
        start_groups: Groups of chains with near starting points whose means must agree.
        max_nested_r_hat: Largest nested R-hat of these groups.
        training_steps: Training steps of which the work is counted.
        min_training_steps: Training steps that a flow is expected to need at least.
        patience: Longest search, as a multiple of the work with which the best sampler so far would
            make all draws.
        burn_in_block: Chains are checked for having moved after this many kept draws.
        burn_in_fraction: Least number of evaluations of the burn-in after all chains have moved, as
            a fraction of all evaluations so far.
        min_ess_per_draw: Effective draws that each of a number of draws which was asked for must
            have, where few were asked for.
        min_share: Chains lack a region if their share of it is below this part of the particles'.
        min_region: Particles of each search that make a region.
        max_spread: Largest interquartile range of pilot chains, as a multiple of that of the
            particles, before the density is asked whether it is improper.
        growth_factor: Ratio of the distances between which it must fall then.

    Raises:
        ValueError: An option is out of range.

    Example::

        >>> SearchOptions(pilot_chains=64).min_pilot_steps
        82
    """

    modes: ModeSearchOptions = ModeSearchOptions()
    candidates: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_rounding_error: float = 0.01
    rounding_points: int = 64
    min_evaluations: int = 100_000
    search_fraction: float = 0.3
    max_evaluations: int = 1_000_000
    least_per_path: int = 150
    least_share: float = 0.3
    timed_points: int = 64
    timed_batches: int = 3
    pilot_chains: int = 256
    local_pilot_chains: int = 64
    pilot_warmup: int = 50
    pilot_steps: int = 32
    counted_steps: int = 8
    max_pilot_steps: int = 128
    max_pilot_evaluations: int = 150_000
    max_leapfrogs: int = 32
    expected_leapfrogs: int = 10
    min_ess_per_chain: float = 5.0
    min_independence_ess: float = 0.2
    max_never_accepted: float = 0.01
    max_pareto_k: float = 0.7
    flat_log_weights: float = math.log(3.0)
    inversion_tolerance: float = 1e-2
    check_states: int = 1024
    check_leapfrogs: int = 4
    check_moves: int = 4
    check_warmup: int = 20
    check_warmup_chains: int = 64
    max_stay: float = 1.0
    rare_states: float = 0.01
    rare_halvings: int = 6
    rare_chains: int = 64
    rare_steps: int = 64
    rare_evaluations: float = 0.05
    evidence_draws: int = 2048
    check_immobile_steps: int = 6
    max_immobile: float = 4e-3
    check_error: float = 1e-3
    num_directions: int = 8
    target_ess_per_draw: float = 0.5
    max_thin: int = 20
    min_chains: int = 64
    max_chains: int = 1000
    times_per_chain: float = 20.0
    max_doublings: int = 6
    unreliable_draws: int = 20
    max_diverging: float = 1e-3
    start_groups: int = 8
    max_nested_r_hat: float = 1.01
    training_steps: int = 3
    min_training_steps: int = 300
    patience: float = 2.0
    burn_in_block: int = 5
    burn_in_fraction: float = 0.1
    min_ess_per_draw: float = 0.25
    min_share: float = 0.25
    min_region: int = 10
    max_spread: float = 30.0
    growth_factor: float = 4.0

    def __post_init__(self) -> None:
        check_at_least_one(self)
        unknown = {*self.candidates, *self.exclude} - set(CANDIDATES)
        if unknown:
            raise ValueError(
                f"{sorted(unknown)} are no kernels or flows that sample() compares: choose from "
                f"{list(CANDIDATES)}"
            )

    def wants(self, *names: str) -> bool:
        """Whether a candidate of this kernel and this flow is to be compared.

        Example::

            >>> SearchOptions(exclude=("spline",)).wants("IMH", "spline")
            False
        """
        wanted = not self.candidates or any(name in self.candidates for name in names)
        return wanted and not any(name in self.exclude for name in names)

    @property
    def min_pilot_steps(self) -> int:
        """Steps of the shortest pilot run."""
        return self.pilot_warmup + self.pilot_steps
