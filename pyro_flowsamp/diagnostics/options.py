"""Options of the diagnosis of draws: all thresholds, each with its source."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log

from ..options import ModeSearchOptions, SearchOptions

__all__ = ["DiagnosisOptions", "EvidenceOptions"]


@dataclass(frozen=True)
class EvidenceOptions:
    """Options of :func:`~pyro_flowsamp.log_evidence`.

    Attributes:
        num_draws: Fresh draws of the flow.
        max_steps: Iterations of bridge sampling at most; it needs about ten.
        tolerance: Change of the log evidence, in nats, at which they end.
        max_components: The greatest number of components of a mixture that is fitted to draws.
        max_states: Draws at most that a mixture is fitted to, and as many others between which and
            it is bridged.
        draws_per_dimension: The least number of draws for each dimension that a mixture is fitted
            to.

    Raises:
        ValueError: An option is out of range.

    Example::

        >>> options = EvidenceOptions(num_draws=1000)  # half as many draws, half the time
        >>> EvidenceOptions(num_draws=0)
        Traceback (most recent call last):
        ValueError: EvidenceOptions.num_draws must be at least 1, got 0
    """

    num_draws: int = 4096
    max_steps: int = 1000
    tolerance: float = 1e-8
    max_components: int = 16
    max_states: int = 10_000
    draws_per_dimension: float = 4.0

    def __post_init__(self) -> None:
        for name in ("num_draws", "max_steps", "max_components", "max_states"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"EvidenceOptions.{name} must be at least 1, got {getattr(self, name)}"
                )
        if not self.tolerance > 0:
            raise ValueError(f"EvidenceOptions.tolerance must be positive, got {self.tolerance}")
        if not self.draws_per_dimension >= 1:
            raise ValueError(
                f"EvidenceOptions.draws_per_dimension must be at least 1, got "
                f"{self.draws_per_dimension}"
            )


def _short_search() -> SearchOptions:
    return SearchOptions(modes=ModeSearchOptions(max_evaluations=100_000))


@dataclass(frozen=True)
class DiagnosisOptions:
    r"""Thresholds and counts of :func:`~pyro_flowsamp.diagnose`.

    Thresholds without a source were chosen on one half of the targets of
    ``examples/benchmarks/suites/verdict_calibration.py``, and judged on the other
    (``docs/verdict_calibration.md``).

    Attributes:
        max_r_hat: Largest rank R-hat that is never an alarm; 1.01 is that of Vehtari et al., 2021.
            Chains with m effective draws each, of which every half is compared, have
            :math:`\hat R^2 = 1 + 2 / m` (Vats and Knudson, 2021). So the bound is larger where
            many chains have the effective draws asked for below together, but few each.
        max_nested_r_hat: Largest nested R-hat of groups of chains (Margossian et al., 2024).
            Of right draws in groups by their first draws it is at most 1.013. Where it is infinite
            it is not computed.
        start_groups: Groups of chains with near starting points, where superchains are not known.
        min_ess: Least effective sample size, of the bulk and of the tails, of every parameter, and
            of the states at which a sampler stays longest; 400 is that of Vehtari et al., 2021.
        rare_share: Probability of the states at which a sampler that only jumps stays longest, and
            whose effective number is looked at. With ``min_ess`` effective draws a share of a tenth
            has the standard error ``max_share_error``. Of samplers with local moves it is
            ``search.rare_states``.
        error_quantiles: Quantiles below which the probabilities have errors that are looked at.
        max_error_ratio: Largest ratio of the error of a mean of ranks, or of such a probability,
            by stays at annealed particles, to that which the chains' autocorrelations state. The
            largest of 20 to 50 normal scores is at most 3.5 to 3.7 in 99 % of runs. So answers that
            lack what the chains should have seen twice stay inside that.
        min_ess_per_chain: Least effective draws of each chain on average: with fewer, the
            effective sample size itself is not known.
        max_never_moved: Largest share of chains that never moved, beyond chance: shares of draws
            may be off by so much. A bias of a third of ``max_share_error`` adds a tenth to the mean
            squared error that this allows.
        long_run: Part of a chain from which on a run of equal draws is long, if chance does not
            explain it.
        chance: Probability below which chance does not explain such a run.
        max_diverging: Largest share of draws whose trajectory diverged.
        min_region: Least share of the draws of a region whose visits are counted.
        min_visits: Least effective number of visits of a region, by each chain on average.
        max_share_error: Largest standard error of the share of a region, and of the share of the
            draws that are in long runs.
        max_pareto_k: Pareto k of weights of draws of a flow from which on averages by them are not
            known (Vehtari et al., 2024).
        max_average_pareto_k: Pareto k of these weights from which on averages by them are not
            compared with those of the chains: below 1/2 the weights have a variance. That of states
            must be below k / (1 - k) of this, too.
        max_state_pareto_k: Pareto k of the weights of states from which on a sampler that only
            jumps is not trusted, where there are no annealed particles. It is k / (1 - k) where it
            is k for draws of the flow. Below 1 the weights have a mean over states, and averages of
            bounded functions by independence samplers a finite asymptotic variance (Deligiannidis
            and Lee, 2018).
        max_stay: Steps that a sampler which only jumps may be expected to stay at a draw, as a
            multiple of those of a chain. Where there are no annealed particles, it is asked of
            weights with a heavy tail (``search.max_pareto_k``).
        earlier_steps: Steps that chains are taken to have made before their draws, where that is
            not known. They count for the longest stay: a chain may have entered a region in them.
        max_stay_mass: Largest mass of the regions where it stays longer, by particles or states:
            shares of draws are off by up to this mass, see ``max_never_moved``.
        flat_log_weights: Nats between the largest and the median weight of states below which k is
            no alarm: weights that hardly vary have no tail.
        min_importance_ess: Least importance effective sample size of draws of the flow, as a
            fraction, where a sampler only jumps.
        min_weighted_draws: Effective number of weighted draws from which on their averages are
            compared with those of the chains.
        check_error: Probability that a comparison of averages, or of counts of stranded particles
            and draws, fails for right draws.
        moves: Whether the kernel moves states or particles for a check; a caller who has looked at
            that already saves the time.
        moved_particles: Particles at most from which a sampler with local moves takes a few steps.
        max_immobile: Largest share of them that may not move.
        max_distance: Largest Kolmogorov distance between draws and annealed particles, in any
            parameter.
        max_share_gap: Largest difference between the shares of a region by draws and by annealed
            particles, beside that between two searches.
        min_region_particles, min_share: Draws lack a region where searches have so many particles
            on average if their share of it is below this part of the particles'.
        max_far_away: Largest share of the annealed particles that are far from all draws, unless
            chance explains more, since there are few draws. Also, where a sampler only jumps, of
            those at which its flow has no density.
        stranded_steps: Steps that the kernel makes from every particle that is far from all draws,
            and from draws that are.
        max_far_mass: Largest share of the mass of modes that paths have found, far from all draws.
        max_path_dim: Dimensions up to which paths are looked at so.
        min_far_draws: Effective number of draws of paths there from which on this mass is known.
        far_away: Share of draws that are as far from those of other chains.
        compared_draws: Draws of each half of the chains at most for these distances.
        max_unseen: Share of the mass that one of two searches may have found alone.
        max_evidence_error: Standard error of a log evidence by bridge sampling, in nats, above
            which it is neither compared nor taken: draws and flow hardly overlap then, few draws
            decide it, and its error is not known.
        evidence_tolerance: Nats by which a log evidence of annealed particles may be larger in any
            case than one of the flow and the chains.
        max_evidence_gap: Standard errors by which it may be larger.
        max_draws: Draws at most that are sorted into regions.
        region_draws_per_dimension: Draws for each dimension that a fit of regions needs.
        fitted_draws: Draws at most to which regions are fitted.
        explorations, points: Sets of paths that look for modes, and points that each of them hands
            on to the search with particles. Where a search has been made, paths begin around the
            draws only.
        around_points, around_width: Points around the draws of which the best begin paths too, and
            their scale in interquartile ranges.
        seed: Seed of the random numbers of the diagnosis; the global state is left as it was.
        evidence: Options of the evidence.
        search: Options of the searches for modes, and of local moves.

    References:
        Aki Vehtari, Andrew Gelman, Daniel Simpson, Bob Carpenter and Paul-Christian Bürkner,
        *Rank-Normalization, Folding, and Localization: An Improved R-hat for Assessing Convergence
        of MCMC*, 2021, https://arxiv.org/abs/1903.08008

        Dootika Vats and Christina Knudson, *Revisiting the Gelman-Rubin Diagnostic*, 2021,
        https://arxiv.org/abs/1812.09384

        Charles Margossian et al., *Nested R-hat: Assessing the convergence of Markov chain Monte
        Carlo when running many short chains*, 2024, https://arxiv.org/abs/2110.13017

        Aki Vehtari, Daniel Simpson, Andrew Gelman, Yuling Yao and Jonah Gabry, *Pareto Smoothed
        Importance Sampling*, 2024, https://arxiv.org/abs/1507.02646

        George Deligiannidis and Anthony Lee, *Which ergodic averages have finite asymptotic
        variance?*, 2018, https://arxiv.org/abs/1606.08373

    Raises:
        ValueError: An option is out of range.

    Example::

        >>> from pyro_flowsamp.diagnostics.searches import unseen_check
        >>> [unseen_check(0.005, DiagnosisOptions(max_unseen=most)).ok for most in (0.001, 0.01)]
        [False, True]
    """

    max_r_hat: float = 1.01
    max_nested_r_hat: float = 1.02
    start_groups: int = 8
    min_ess: int = 400
    rare_share: float = 0.1
    error_quantiles: tuple[float, ...] = (0.01, 0.05, 0.5, 0.95, 0.99)
    max_error_ratio: float = 3.5
    min_ess_per_chain: float = 5.0
    max_never_moved: float = 0.005
    long_run: float = 0.2
    chance: float = 1e-3
    max_diverging: float = 1e-3
    min_region: float = 0.01
    min_visits: float = 2.0
    max_share_error: float = 0.015
    max_pareto_k: float = 0.7
    max_average_pareto_k: float = 0.5
    max_state_pareto_k: float = 1.0
    max_stay: float = 1.0
    earlier_steps: int = 50
    max_stay_mass: float = 0.005
    flat_log_weights: float = log(3.0)
    min_importance_ess: float = 0.01
    min_weighted_draws: float = 200.0
    check_error: float = 1e-3
    moves: bool = True
    moved_particles: int = 1000
    max_immobile: float = 0.01
    max_distance: float = 0.4
    max_share_gap: float = 0.4
    min_region_particles: int = 10
    min_share: float = 0.25
    max_far_away: float = 0.02
    stranded_steps: int = 20
    max_far_mass: float = 0.01
    max_path_dim: int = 50
    min_far_draws: float = 8.0
    far_away: float = 1e-3
    compared_draws: int = 2500
    max_unseen: float = 1e-3
    max_evidence_error: float = 0.2
    evidence_tolerance: float = 0.25
    max_evidence_gap: float = 4.0
    max_draws: int = 20_000
    region_draws_per_dimension: int = 50
    fitted_draws: int = 4000
    explorations: int = 3
    points: int = 24
    around_points: int = 16_384
    around_width: float = 3.0
    seed: int = 0
    evidence: EvidenceOptions = EvidenceOptions()
    search: SearchOptions = field(default_factory=_short_search)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int | float) and not value >= 0:
                raise ValueError(f"DiagnosisOptions.{name} must not be negative, got {value}")
        if not all(0 < q < 1 for q in self.error_quantiles):
            raise ValueError(
                f"DiagnosisOptions.error_quantiles must be between 0 and 1, got "
                f"{self.error_quantiles}"
            )
