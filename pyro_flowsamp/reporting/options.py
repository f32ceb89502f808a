"""Options of a report."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ReportOptions"]


@dataclass(frozen=True)
class ReportOptions:
    r"""Sizes of a report's parts, and bounds beyond which it says that something is wrong.

    The bounds are used for results that do not come with a verdict, and drawn in the pictures.

    Attributes:
        max_parameters: Scalar parameters in the report; others are left out, and it says so.
        max_rows: Parameters in the table of the summary, from the worst on.
        worst: Parameters of which ranks and traces are drawn.
        pairs: Parameters that are drawn in pairs.
        points: Points of a cloud in the picture of a pair.
        lines: Chains that are drawn one by one in the trace of a parameter.
        steps: Points along a line of a picture.
        bins: Bars of a histogram.
        rank_bins: Bars of a histogram of ranks.
        groups: Groups of chains that ranks compare, where there are more chains than this.
        short: Draws of a chain below which effective sample sizes are those of
            :func:`~pyro_flowsamp.convergence.bulk_and_tail_ess`. ArviZ's are too large for short
            chains, since it divides the autocovariance at lag k by n and not by n − k.
        max_draws: Draws of a parameter from which R-hat is computed; more are thinned.
        max_r_hat: Largest R-hat of chains that agree; see :meth:`r_hat_bound`.
        min_ess: Least effective sample size, of bulk and tails.
        max_diverging: Largest share of diverging draws.
        max_pareto_k: Largest Pareto k of weights of the flow's draws that can be trusted.
        max_pareto_k_states: The same for the weights of a chain's states, whose k is k/(1 − k) of
            that of the flow's draws.
        flat: Weights of which the largest is at most so many times the median have no tail.
        min_acceptance: Least mean acceptance rate.

    References:
        Vehtari et al., *Rank-Normalization, Folding, and Localization: An Improved* :math:`\hat R`
        *for Assessing Convergence of MCMC*, 2021, https://arxiv.org/abs/1903.08008 (R-hat, ESS)

        Vehtari et al., *Pareto Smoothed Importance Sampling*, 2024,
        https://arxiv.org/abs/1507.02646 (k)

    Example::

        >>> options = ReportOptions(worst=2)  # pictures of two parameters
        >>> round(options.r_hat_bound(10**6), 3)  # for draws without number
        1.01
    """

    max_parameters: int = 400
    max_rows: int = 100
    worst: int = 4
    pairs: int = 3
    points: int = 1000
    lines: int = 4
    steps: int = 300
    bins: int = 40
    rank_bins: int = 10
    groups: int = 4
    short: int = 100
    max_draws: int = 20_000
    max_r_hat: float = 1.01
    min_ess: float = 400.0
    max_diverging: float = 1e-3
    max_pareto_k: float = 0.7
    max_pareto_k_states: float = 1.0
    flat: float = 3.0
    min_acceptance: float = 0.01

    def r_hat_bound(self, draws: int) -> float:
        r"""The bound of R-hat for chains of n draws, :math:`\hat R_{\max} \sqrt{1 + 8/n}`.

        Chains that have mixed have an R-hat of about :math:`\sqrt{1 + 2/n}` if each draw is half an
        effective draw. Only four times that excess counts.

        Example::

            >>> [round(ReportOptions().r_hat_bound(draws), 3) for draws in (10, 100, 1000)]
            [1.355, 1.05, 1.014]
        """
        return self.max_r_hat * (1 + 8 / max(1, draws)) ** 0.5
