"""Posteriors with true answers: means and probabilities that a right sampler must reproduce."""

from . import energies, hierarchies, nonlinear, regressions, stan, unknown
from .reference import KnownPosterior, Statistic

__all__ = ["PROBLEMS", "KnownPosterior", "Statistic"]

PROBLEMS: dict[str, KnownPosterior] = {
    **energies.PROBLEMS,
    **regressions.PROBLEMS,
    **hierarchies.PROBLEMS,
    **nonlinear.PROBLEMS,
    **stan.PROBLEMS,
    **unknown.PROBLEMS,
}
