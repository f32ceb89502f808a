r"""Pyro models that are Gaussian given at most one parameter, which is integrated on a grid."""

from functools import cache, partial
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
from scipy.special import ndtr
from torch import Tensor

from .reference import (
    KnownPosterior,
    Made,
    Statistic,
    above,
    between,
    gaussian_statistics,
    site,
    square,
    tensor,
)

# ---- a regression on years -----------------------------------------------------------------------

YEARS, NOISE = np.arange(1990, 2020), 3.0


def year_regression(year: Tensor, y: Tensor) -> None:
    r"""A line in years that are not centred: intercept and slope are all but collinear.

    .. math:: a \sim N(0, 10^4),\; b \sim N(0, 10),\; y_n \sim N(a + b\,\mathrm{year}_n, 3)

    Arguments:
        year: 1990 to 2019, ``(30,)``.
        y: Observations, ``(30,)``.
    """
    a = pyro.sample("a", dist.Normal(0.0, 1e4))
    b = pyro.sample("b", dist.Normal(0.0, 10.0))
    with pyro.plate("data", y.shape[-1]):
        pyro.sample("y", dist.Normal(a + b * year, NOISE), obs=y)


def year_data() -> np.ndarray:
    """Returns the observations, ``(30,)``."""
    return -5000 + 2.5 * YEARS + NOISE * np.random.default_rng(0).standard_normal(len(YEARS))


def year_statistics() -> list[Statistic]:
    """Means, variances and tails, from the Gaussian posterior in closed form."""
    X = np.stack([np.ones(len(YEARS)), YEARS], 1)
    precision = X.T @ X / NOISE**2 + np.diag([1e-8, 1e-2])
    mean = np.linalg.solve(precision, X.T @ year_data() / NOISE**2)
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    a, b = site("a"), site("b")
    line, form = np.array([1.0, 2004.5]), np.linalg.inv(precision)

    def middle(draws: dict) -> np.ndarray:
        return a(draws) + 2004.5 * b(draws)

    found = gaussian_statistics("a", a, mean[0], sd[0])
    found += gaussian_statistics("b", b, mean[1], sd[1])
    return found + gaussian_statistics(
        "a + 2004.5 b", middle, float(line @ mean), float((line @ form @ line) ** 0.5)
    )


# ---- regressions in large and in small units -----------------------------------------------------


class Units(NamedTuple):
    """A regression whose numbers are all near ``unit``."""

    unit: float
    coefficients: tuple[float, float]  #: that made the data, in units
    noise: float  #: likewise
    count: int
    seed: int


def regression_in_units(x: Tensor, y: Tensor, unit: float) -> None:
    r"""A line with unknown noise: :math:`a, b \sim N(0, 5u)`, :math:`\sigma \sim` half-normal(u).

    Arguments:
        x: Predictor, ``(N,)``.
        y: Observations, ``(N,)``.
        unit: The unit :math:`u`, such as 100 000 dollars.
    """
    a = pyro.sample("a", dist.Normal(0.0, 5 * unit))
    b = pyro.sample("b", dist.Normal(0.0, 5 * unit))
    sigma = pyro.sample("sigma", dist.HalfNormal(unit))
    with pyro.plate("data", y.shape[-1]):
        pyro.sample("y", dist.Normal(a + b * x, sigma), obs=y)


def unit_data(units: Units) -> tuple[np.ndarray, np.ndarray]:
    """Returns predictor and observations, the latter in units of one."""
    rng = np.random.default_rng(units.seed)
    x = rng.standard_normal(units.count)
    a, b = units.coefficients
    return x, a + b * x + units.noise * rng.standard_normal(units.count)


def make_in_units(units: Units) -> Made:
    """Makes the model with its data."""
    x, y = unit_data(units)
    return regression_in_units, (tensor(x), tensor(units.unit * y), units.unit)


def statistics_in_units(units: Units) -> list[Statistic]:
    r"""Given :math:`\sigma` the line is Gaussian; :math:`\log\sigma` is on a grid.

    Functions are of the draws in units of one.
    """
    x, y = unit_data(units)
    X = np.stack([np.ones_like(x), x], 1)
    log_sigma = np.linspace(np.log(units.noise) - 3, np.log(units.noise) + 3, 4001)
    s2 = np.exp(2 * log_sigma)[:, None, None]
    precision = X.T @ X / s2 + np.eye(2) / 25
    right = X.T @ y / s2[:, :, 0]
    mean = np.linalg.solve(precision, right[..., None])[..., 0]
    log_p = 0.5 * ((right * mean).sum(1) - y @ y / s2[:, 0, 0]) - len(y) * log_sigma
    log_p += -0.5 * np.log(np.linalg.det(precision)) - 0.5 * s2[:, 0, 0] + log_sigma
    weight = np.exp(log_p - log_p.max())
    weight /= weight.sum()
    sd = np.sqrt(np.linalg.inv(precision)[:, [0, 1], [0, 1]])

    def in_units(name: str):
        value = site(name)
        return lambda draws: value(draws) / units.unit

    found = []
    for i, name in enumerate("ab"):
        f, centre = in_units(name), float(weight @ mean[:, i])
        spread = float(weight @ (sd[:, i] ** 2 + (mean[:, i] - centre) ** 2))
        upper = float(weight @ ndtr((mean[:, i] - centre) / sd[:, i] - spread**0.5 / sd[:, i]))
        found += [
            Statistic(name, f, centre),
            Statistic(f"variance of {name}", square(f, centre), spread),
            Statistic(f"P({name} > mean + sd)", above(f, centre + spread**0.5), upper, share=True),
        ]
    sigma, centre = in_units("sigma"), float(weight @ np.exp(log_sigma))
    spread = float(weight @ (np.exp(log_sigma) - centre) ** 2)
    return found + [
        Statistic("sigma", sigma, centre),
        Statistic("variance of sigma", square(sigma, centre), spread),
    ]


DOLLARS = Units(1e5, (2.5, 1.2), 0.6, 40, 3)  #: prices of houses
KILOGRAMS = Units(1e-6, (2.0, -0.5), 0.3, 15, 4)  #: masses of some milligrams

# ---- a random walk -------------------------------------------------------------------------------

STATES = 450


def random_walk(y: Tensor) -> None:
    r"""A local level model: the states are a random walk, observed with noise.

    .. math:: x_1 \sim N(0, 1),\; x_t \sim N(x_{t-1}, 1),\; y_t \sim N(x_t, 1)

    Arguments:
        y: Observations, ``(450,)``.
    """
    flat = dist.Normal(0.0, 1.0).expand([y.shape[-1]]).to_event(1).mask(False)
    x = pyro.sample("x", flat)
    before = x.roll(1, -1) * tensor(np.arange(y.shape[-1]) > 0)
    pyro.factor("walk", -0.5 * (x - before).square().sum(-1))
    with pyro.plate("data", y.shape[-1]):
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def walk_data() -> np.ndarray:
    """Returns the observations, ``(450,)``."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(STATES).cumsum() + rng.standard_normal(STATES)


def walk_moments() -> tuple[np.ndarray, np.ndarray]:
    """Returns means and standard deviations of the states: the posterior is Gaussian."""
    difference = np.eye(STATES) - np.eye(STATES, k=-1)
    covariance = np.linalg.inv(difference.T @ difference + np.eye(STATES))
    return covariance @ walk_data(), np.sqrt(np.diag(covariance))


def walk_statistics() -> list[Statistic]:
    """Moments of some states, and of the mean of all."""
    mean, sd = walk_moments()
    found = []
    for t in (0, 112, 224, 336, 449):
        found += gaussian_statistics(f"x[{t}]", site("x", t), float(mean[t]), float(sd[t]))
    level = Statistic("mean of all x", lambda draws: draws["x"].mean(-1), float(mean.mean()))
    return found + [level]


# ---- the orbit of a planet -----------------------------------------------------------------------

SHORTEST, LONGEST, PRIOR_SD, VELOCITY_NOISE = 1.5, 100.0, 10.0, 3.0
PERIOD_NODES = 200_001  #: over the logarithm of the period: 20 nodes for the narrowest peak


def radial_velocity(time: Tensor, velocity: Tensor) -> None:
    r"""A circular orbit of unknown period :math:`P`: its posterior has many aliases.

    .. math:: \log P \sim U(\log 1.5, \log 100),\; a, b, c \sim N(0, 10),\;
              v_n \sim N(c + a \cos(2\pi t_n / P) + b \sin(2\pi t_n / P), 3)

    Arguments:
        time: Days of the observations, ``(10,)``.
        velocity: Radial velocities, ``(10,)``.
    """
    log_period = pyro.sample("log_period", dist.Uniform(np.log(SHORTEST), np.log(LONGEST)))
    a, b, c = (pyro.sample(name, dist.Normal(0.0, PRIOR_SD)) for name in ("a", "b", "c"))
    phase = 2 * np.pi * time * (-log_period).exp()
    with pyro.plate("data", velocity.shape[-1]):
        mean = c + a * phase.cos() + b * phase.sin()
        pyro.sample("velocity", dist.Normal(mean, VELOCITY_NOISE), obs=velocity)


def orbit_data() -> tuple[np.ndarray, np.ndarray]:
    """Returns days, in the order of time, and velocities."""
    rng = np.random.default_rng(1)
    time = np.sort(rng.uniform(0, 120, 10))
    phase = 2 * np.pi * time / 17.3
    clean = 2 + 8 * np.cos(phase) - 5 * np.sin(phase)
    return time, clean + VELOCITY_NOISE * rng.standard_normal(10)


class Periods(NamedTuple):
    """The posterior of the period on a grid, with the coefficients given the period."""

    log_period: np.ndarray  #: ``(G,)``
    weight: np.ndarray  #: ``(G,)``, of sum 1
    coefficients: np.ndarray  #: means of a, b and c, ``(G, 3)``


@cache
def periods() -> Periods:
    r"""Integrates the coefficients out: :math:`v | P \sim N(0, \sigma^2 I + s^2 H H^\top)`."""
    time, v = orbit_data()
    log_period = np.linspace(np.log(SHORTEST), np.log(LONGEST), PERIOD_NODES)
    phase = 2 * np.pi * time / np.exp(log_period)[:, None]
    H = np.stack([np.cos(phase), np.sin(phase), np.ones_like(phase)], -1)
    precision = H.swapaxes(1, 2) @ H / VELOCITY_NOISE**2 + np.eye(3) / PRIOR_SD**2
    right = v @ H / VELOCITY_NOISE**2
    mean = np.linalg.solve(precision, right[..., None])[..., 0]
    log_p = 0.5 * (right * mean).sum(1) - 0.5 * np.log(np.linalg.det(precision))
    weight = np.exp(log_p - log_p.max())
    weight[[0, -1]] /= 2  # the trapezoidal rule on an interval
    return Periods(log_period, weight / weight.sum(), mean)


def aliases(least: float = 1e-3) -> list[tuple[float, float, float]]:
    """Returns intervals of the log period around the peaks: lower and upper end, share.

    Intervals meet at the minima between peaks. Those of less than ``least`` are left out.
    """
    grid = periods()
    w = grid.weight
    low = np.flatnonzero((w[1:-1] <= w[:-2]) & (w[1:-1] < w[2:])) + 1
    ends = np.concatenate([[0], low, [len(w) - 1]])
    total = np.concatenate([[0.0], w.cumsum()])
    shares = total[ends[1:]] - total[ends[:-1]] + 0.5 * (w[ends[1:]] - w[ends[:-1]])
    x = grid.log_period
    return [(x[i], x[j], float(s)) for i, j, s in zip(ends[:-1], ends[1:], shares) if s > least]


def orbit_statistics() -> list[Statistic]:
    """Means, and the shares of the aliases."""
    grid, log_period = periods(), site("log_period")
    found = [Statistic("log_period", log_period, float(grid.weight @ grid.log_period))]
    for i, name in enumerate("abc"):
        value = float(grid.weight @ grid.coefficients[:, i])
        found.append(Statistic(name, site(name), value))
    for low, high, share in aliases():
        name = f"P({np.exp(low):.2f} < period < {np.exp(high):.2f})"
        found.append(Statistic(name, between(log_period, low, high), share, share=True))
    return found


PROBLEMS = {
    "year_regression": KnownPosterior(
        lambda: (year_regression, (tensor(YEARS), tensor(year_data()))),
        year_statistics,
        2,
        "closed form",
    ),
    "dollars": KnownPosterior(
        partial(make_in_units, DOLLARS), partial(statistics_in_units, DOLLARS), 3, "one integral"
    ),
    "kilograms": KnownPosterior(
        partial(make_in_units, KILOGRAMS),
        partial(statistics_in_units, KILOGRAMS),
        3,
        "one integral",
    ),
    "random_walk": KnownPosterior(
        lambda: (random_walk, (tensor(walk_data()),)), walk_statistics, STATES, "closed form"
    ),
    "radial_velocity": KnownPosterior(
        lambda: (radial_velocity, tuple(tensor(x) for x in orbit_data())),
        orbit_statistics,
        4,
        "one integral",
    ),
}
