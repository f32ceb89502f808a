r"""Pyro models with exact answers: eight schools, radon, a funnel, a sparse simplex."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.special import betainc, ndtr
from torch import Tensor

from ..models import load
from ..suite import school_quadrature
from .reference import (
    Function,
    KnownPosterior,
    Made,
    Statistic,
    above,
    below,
    probability_below,
    site,
    square,
    tensor,
)

# ---- eight schools -------------------------------------------------------------------------------


def first_effect(centred: bool) -> Function:
    """The effect of the first school."""
    if centred:
        return site("theta", 0)
    mu, tau, z = site("mu"), site("tau"), site("z", 0)
    return lambda draws: mu(draws) + tau(draws) * z(draws)


def school_statistics(centred: bool) -> list[Statistic]:
    """Means and tails, from one integral over the standard deviation of the effects."""
    grid = school_quadrature()
    tau, mu, theta = site("tau"), site("mu"), first_effect(centred)

    def mean(values: np.ndarray) -> float:
        return float(grid.weight @ values)

    log_tau = np.log(grid.tau)

    def under(bound: float) -> float:
        return probability_below(log_tau, grid.weight, np.log(bound))

    above_zero = ndtr(grid.mu_mean / grid.mu_sd)
    return [
        Statistic("mu", mu, mean(grid.mu_mean)),
        Statistic("tau", tau, mean(grid.tau)),
        Statistic("theta_1", theta, mean(grid.theta_mean[:, 0])),
        Statistic("P(mu > 0)", above(mu, 0), mean(above_zero), share=True),
        Statistic("P(tau > 10)", above(tau, 10), 1 - under(10), share=True),
        Statistic("P(tau < 1)", below(tau, 1), under(1), share=True),
        Statistic("P(tau < 0.1)", below(tau, 0.1), under(0.1), share=True),
    ]


# ---- radon ---------------------------------------------------------------------------------------


def radon_statistics() -> list[Statistic]:
    r"""Exact up to a grid of the two standard deviations: given them, all else is Gaussian.

    The homes of county :math:`j` have :math:`y = X w + a_j 1 + \epsilon` with :math:`w = (\mu_a,
    \beta)` and :math:`a_j \sim N(0, \sigma_a^2)`. Their covariance is :math:`C_j = \sigma_y^2 I +
    \sigma_a^2 1 1^\top`, and :math:`u^\top C_j^{-1} v = (u^\top v - \frac{\sigma_a^2}{\sigma_y^2 +
    n_j \sigma_a^2} (1^\top u)(1^\top v)) / \sigma_y^2`.
    """
    floor, county, y = (x.double().numpy() for x in load("radon")[1])
    counties = county.astype(int)
    columns = np.stack([np.ones_like(y), floor, y], 1)  # (919, 3)
    sums = np.zeros((85, 3))
    np.add.at(sums, counties, columns)
    n, squares = sums[:, 0], columns.T @ columns
    log_a, log_y = np.linspace(-3.5, 0.3, 301), np.linspace(-0.5, -0.1, 201)
    a, s = (x.ravel() for x in np.meshgrid(np.exp(log_a), np.exp(log_y), indexing="ij"))
    pull = a[:, None] ** 2 / (s[:, None] ** 2 + n * a[:, None] ** 2)  # (G, 85)
    shared = np.einsum("gj,ja,jb->gab", pull, sums, sums)
    form = (squares - shared) / s[:, None, None] ** 2  # (G, 3, 3): u' C^-1 v
    precision = form[:, :2, :2] + np.eye(2) / 100
    mean = np.linalg.solve(precision, form[:, :2, 2:])[..., 0]  # (G, 2)
    log_det = 2 * (len(y) - 85) * np.log(s) + np.log(s[:, None] ** 2 + n * a[:, None] ** 2).sum(1)
    log_p = 0.5 * ((form[:, :2, 2] * mean).sum(1) - form[:, 2, 2] - log_det)
    log_p -= 0.5 * np.log(np.linalg.det(precision)) + 0.5 * (a**2 + s**2) - np.log(a) - np.log(s)
    weight = np.exp(log_p - log_p.max())
    weight /= weight.sum()
    sd = np.sqrt(np.linalg.inv(precision)[:, [0, 1], [0, 1]])
    residual = sums[:, 2] - mean @ sums[:, :2].T
    county_mean = mean[:, :1] + pull * residual  # (G, 85)
    sites = {"mu_a": site("mu_a"), "sigma_a": site("sigma_a"), "sigma_y": site("sigma_y")}
    beta, mu = site("beta_floor"), sites["mu_a"]

    def county_effect(j: int) -> Function:
        return lambda draws: mu(draws) + sites["sigma_a"](draws) * site("z", j)(draws)

    found = [
        Statistic("mu_a", mu, float(weight @ mean[:, 0])),
        Statistic("beta_floor", beta, float(weight @ mean[:, 1])),
        Statistic("sigma_a", sites["sigma_a"], float(weight @ a)),
        Statistic("sigma_y", sites["sigma_y"], float(weight @ s)),
    ]
    lower = probability_below(log_a, weight.reshape(len(log_a), -1).sum(1), np.log(0.25))
    found.append(Statistic("P(sigma_a < 0.25)", below(sites["sigma_a"], 0.25), lower, share=True))
    upper = float(weight @ ndtr((mean[:, 0] - 1.5) / sd[:, 0]))
    found.append(Statistic("P(mu_a > 1.5)", above(mu, 1.5), upper, share=True))
    for j in (0, 21, 49):
        found.append(Statistic(f"a[{j}]", county_effect(j), float(weight @ county_mean[:, j])))
    return found


# ---- a funnel ------------------------------------------------------------------------------------


def funnel(dim: int) -> None:
    r"""Neal's funnel: :math:`v \sim N(0, 3)`, :math:`x_i \sim N(0, e^{v/2})`, without data."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("components", dim - 1):
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))


def funnel_statistics() -> list[Statistic]:
    """Moments and tails of the neck, a Gaussian, and of its scaled companions."""
    v, x = site("v"), site("x", 0)

    def scaled(draws: dict) -> np.ndarray:
        return x(draws) * np.exp(-v(draws) / 2)

    found = [
        Statistic("v", v, 0.0),
        Statistic("v²", square(v), 9.0),
        Statistic("P(v < -3)", below(v, -3), float(ndtr(-1)), share=True),
        Statistic("P(v < -6)", below(v, -6), float(ndtr(-2)), share=True),
        Statistic("P(v > 6)", above(v, 6), float(ndtr(-2)), share=True),
        Statistic("(x e^(-v/2))²", square(scaled), 1.0),
    ]
    return found


# ---- a sparse simplex ----------------------------------------------------------------------------

CONCENTRATION, PARTS = 0.1, 10


def sparse_dirichlet(counts: Tensor | None = None, total: int = 0) -> None:
    r"""A sparse simplex: :math:`x \sim \mathrm{Dirichlet}(0.1, \dots, 0.1)`, ten parts, and counts.

    Arguments:
        counts: Counts of the ten parts, ``(10,)``, or None.
        total: Their sum.
    """
    x = pyro.sample("x", dist.Dirichlet(torch.full((PARTS,), CONCENTRATION)))
    if counts is not None:
        pyro.sample("counts", dist.Multinomial(total, x), obs=counts)


def sparse(counts: list[int]) -> Made:
    """Makes the model with its counts, or without data."""
    padded = tensor(counts + [0] * (PARTS - len(counts)))
    return sparse_dirichlet, (padded, sum(counts)) if counts else ()


def sparse_statistics(counts: list[int]) -> list[Statistic]:
    r"""Means and tails of parts: :math:`x_i \sim \mathrm{Beta}(a_i, \sum_j a_j - a_i)`."""
    a = CONCENTRATION + np.array(counts + [0] * (PARTS - len(counts)))
    found = []
    for i in (0, 1, PARTS - 1):
        x, shape = site("x", i), (a[i], a.sum() - a[i])
        low, high = betainc(*shape, 1e-3), 1 - betainc(*shape, 0.5)
        found.append(Statistic(f"x[{i}]", x, float(a[i] / a.sum())))
        if 0.003 < low < 0.997:
            found.append(Statistic(f"P(x[{i}] < 0.001)", below(x, 1e-3), float(low), share=True))
        if 0.003 < high < 0.997:
            found.append(Statistic(f"P(x[{i}] > 0.5)", above(x, 0.5), float(high), share=True))
    return found


SOME_COUNTS = [12, 5, 1]

PROBLEMS = {
    "eight_schools": KnownPosterior(
        partial(load, "eight_schools"), partial(school_statistics, False), 10, "one integral"
    ),
    "centred_eight_schools": KnownPosterior(
        partial(load, "centred_eight_schools"), partial(school_statistics, True), 10, "one integral"
    ),
    "radon": KnownPosterior(partial(load, "radon"), radon_statistics, 89, "two integrals"),
    "funnel": KnownPosterior(lambda: (funnel, (10,)), funnel_statistics, 10, "closed form"),
    "sparse_dirichlet": KnownPosterior(
        partial(sparse, []), partial(sparse_statistics, []), PARTS - 1, "closed form"
    ),
    "sparse_dirichlet_counts": KnownPosterior(
        partial(sparse, SOME_COUNTS), partial(sparse_statistics, SOME_COUNTS), 9, "closed form"
    ),
}
