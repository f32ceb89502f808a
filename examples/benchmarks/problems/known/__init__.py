"""Posteriors with true answers: means and probabilities that a right sampler must reproduce."""

from . import dynamics, energies, hierarchies, nonlinear, regressions, stan, unknown
from .reference import KnownPosterior, Statistic

__all__ = ["PROBLEMS", "KnownPosterior", "Statistic"]

PROBLEMS: dict[str, KnownPosterior] = {
    **energies.PROBLEMS,
    **regressions.PROBLEMS,
    **hierarchies.PROBLEMS,
    **nonlinear.PROBLEMS,
    **dynamics.PROBLEMS,
    **stan.PROBLEMS,
    **unknown.PROBLEMS,
}
