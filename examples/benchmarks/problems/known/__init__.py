"""Posteriors with true answers: means and probabilities that a right sampler must reproduce."""

from . import energies, hierarchies, nonlinear, regressions, stan, unknown
from .reference import Known, Statistic

__all__ = ["PROBLEMS", "Known", "Statistic"]

PROBLEMS: dict[str, Known] = {
    **energies.PROBLEMS,
    **regressions.PROBLEMS,
    **hierarchies.PROBLEMS,
    **nonlinear.PROBLEMS,
    **stan.PROBLEMS,
    **unknown.PROBLEMS,
}
