"""Targets of known truth on which the verdict of ``diagnose()`` is calibrated.

Each has exact draws, which give the truth of every statistic, and the masses of its modes where it
has several. One half of the targets chooses thresholds, the other judges them; both have heavy
tails, many modes, wide, narrow, far and tiny ones, and funnels.
"""

from collections.abc import Callable
from functools import cache
from math import log, pi

import torch
from torch import Tensor

from pyro_flowsamp import Target
from pyro_flowsamp.problems import (
    Problem,
    banana,
    exp_gauss,
    exp_gauss_unequal,
    funnel,
    gmm,
    mog4,
    rings4,
    unequal_pair,
)

__all__ = ["CHOOSING", "JUDGING", "NEEDLES", "exact_draws", "problem"]

EXACT = 200_000  #: exact draws that give the truth of a statistic


def mixture(means: list[list[float]], scales: list[float], weights: list[float]) -> Problem:
    """Round Gaussians with K means in d dimensions, and K scales and weights."""
    at, width = torch.tensor(means), torch.tensor(scales)
    mass, dim = torch.tensor(weights), len(means[0])

    def joint(x: Tensor) -> Tensor:
        square = (x[:, None] - at).square().sum(-1) / width.square()
        return mass.log() - dim * width.log() - 0.5 * (square + dim * log(2 * pi))

    def sample(num: int) -> Tensor:
        which = torch.multinomial(mass, num, replacement=True)
        return at[which] + width[which, None] * torch.randn(num, dim)

    return Problem(
        target=Target.from_energy(lambda x: -joint(x).logsumexp(-1), dim),
        sample=sample,
        modes=at,
        weights=mass,
        assignment=lambda x: joint(x).argmax(-1),
    )


def student(dim: int, degrees: float) -> Problem:
    """A multivariate Student-t distribution."""

    def sample(num: int) -> Tensor:
        chi2 = torch.distributions.Chi2(degrees).sample((num, 1))
        return torch.randn(num, dim) / (chi2 / degrees).sqrt()

    def energy(x: Tensor) -> Tensor:
        return 0.5 * (degrees + dim) * (x.square().sum(-1) / degrees).log1p()

    return Problem(Target.from_energy(energy, dim), sample)


def ridge(dim: int, correlation: float) -> Problem:
    """A Gaussian with equal correlations."""
    covariance = torch.full((dim, dim), correlation).fill_diagonal_(1.0)
    chol, precision = torch.linalg.cholesky(covariance), torch.linalg.inv(covariance)
    return Problem(
        Target.from_energy(lambda x: 0.5 * (x @ precision * x).sum(-1), dim),
        lambda num: torch.randn(num, dim) @ chol.mT,
    )


def skewed(dim: int, shape: float) -> Problem:
    """Independent logs of Gamma variables."""
    return Problem(
        Target.from_energy(lambda x: (x.exp() - shape * x).sum(-1), dim),
        lambda num: torch.distributions.Gamma(shape, 1.0).sample((num, dim)).log(),
    )


def laplace(dim: int) -> Problem:
    """Independent Laplace variables."""
    return Problem(
        Target.from_energy(lambda x: x.abs().sum(-1), dim),
        lambda num: torch.distributions.Laplace(0.0, 1.0).sample((num, dim)),
    )


def concentric(dim: int) -> Problem:
    """A narrow Gaussian inside a wide one, of equal masses: one region within the other."""
    return mixture([[0.0] * dim] * 2, [1.0, 5.0], [0.5, 0.5])


CHOOSING: dict[str, Callable[[], Problem]] = {
    "gaussian": lambda: ridge(3, 0.5),
    "student_t3": lambda: student(2, 3.0),
    "log_gamma": lambda: skewed(3, 0.5),
    "six_modes": lambda: gmm(6),
    "unequal_pair": unequal_pair,
    "narrow_mode": lambda: mixture([[0.0, 0.0], [4.0, 4.0]], [1.0, 0.1], [0.5, 0.5]),
    "thin_mode": lambda: mixture([[0.0] * 3, [5.0] * 3], [1.0, 0.2], [0.6, 0.4]),
    "tiny_mode": lambda: mixture([[0.0, 0.0], [7.0, 7.0]], [1.0, 1.0], [0.97, 0.03]),
    "far_modes": lambda: mixture([[-100.0, 0.0], [100.0, 0.0]], [1.0, 1.0], [0.3, 0.7]),
    "funnel": lambda: funnel(3, 0.9),
    "steep_funnel": lambda: funnel(4, 3.0),
    "banana": banana,
    "concentric": lambda: concentric(2),
}
JUDGING: dict[str, Callable[[], Problem]] = {
    "slim_mode": lambda: mixture([[0.0, 0.0], [-2.0, 9.0]], [1.0, 0.15], [0.7, 0.3]),
    "ridge": lambda: ridge(8, 0.9),
    "student_t2": lambda: student(3, 2.0),
    "laplace": lambda: laplace(4),
    "four_modes": mog4,
    "sixteen_modes": lambda: exp_gauss(6, 4, 4.0),
    "unequal_modes": lambda: exp_gauss_unequal(8, 2),
    "small_mode": lambda: mixture([[0.0] * 3, [6.0] * 3], [1.0, 0.5], [0.96, 0.04]),
    "remote_modes": lambda: mixture([[0.0, -60.0], [0.0, 90.0]], [1.0, 3.0], [0.5, 0.5]),
    "wide_funnel": lambda: funnel(5, 1.5),
    "neal_funnel": lambda: funnel(6, 3.0),
    "rings": rings4,
    "scale_mixture": lambda: concentric(5),
}
NEEDLES: dict[str, Callable[[], Problem]] = {
    "needle": lambda: mixture([[0.0, 0.0], [3.0, 3.0]], [1.0, 0.02], [0.994, 0.006]),
    "far_needle": lambda: mixture([[0.0, 0.0], [40.0, 0.0]], [1.0, 0.2], [0.995, 0.005]),
}


@cache
def problem(name: str) -> Problem:
    """The problem of a name."""
    return {**CHOOSING, **JUDGING, **NEEDLES}[name]()


@cache
def exact_draws(name: str) -> Tensor:
    """Exact draws ``(EXACT, d)``, always the same."""
    with torch.random.fork_rng([]):
        torch.manual_seed(12_345)
        return problem(name).sample(EXACT)
