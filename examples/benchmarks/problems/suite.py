r"""Posteriors whose truth is known, for Pyro and, where there is JAX, for NumPyro and flowMC.

Every problem says what to look at: *statistics*, scalar functions of draws with a true mean. A
truth is exact, or a long NUTS run's; its own standard error counts.
"""

from collections.abc import Callable
from functools import partial
from itertools import permutations
from math import log
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import stored_runs
import torch
from torch import Tensor

from pyro_flowsamp import Target

from .models import load

NUTS_RUNS = stored_runs.RESULTS / "against_nuts.jsonl"

Draws = dict[str, np.ndarray]  #: by site, ``(chains, draws, ...)``
Truth = dict[str, tuple[float, float]]  #: by statistic: mean, and its standard error


class Problem(NamedTuple):
    """A posterior.

    Attributes:
        make: Its Pyro model with arguments, or a target without.
        statistics: Of draws, ``{name: (chains, draws)}``.
        truth: Their means.
        log_density: Of one point, in JAX; None for Pyro models.
        dim: The dimension of that point.
    """

    make: Callable[[], tuple[Callable, tuple]]
    statistics: Callable[[Draws], Draws]
    truth: Callable[[], Truth]
    log_density: Callable[[Any], Any] | None = None
    dim: int = 0


# ---- Pyro models ---------------------------------------------------------------------------------


def components(draws: Draws) -> Draws:
    """Every scalar component of every site."""
    found = {}
    for name, x in draws.items():
        flat = x.reshape(*x.shape[:2], -1)
        found |= {f"{name}[{i}]": flat[..., i] for i in range(flat.shape[-1])}
    return found


def by_component(means: dict[str, Any]) -> dict[str, float]:
    return {f"{k}[{i}]": x for k, v in means.items() for i, x in enumerate(np.ravel(v))}


def long_nuts(name: str) -> Truth:
    """The means of three runs of NumPyro's NUTS, 10 000 draws each."""
    runs = stored_runs.load(NUTS_RUNS, f"{name}-numpyro")
    flat = [
        {
            f"{k}[{i}]": x
            for k, v in run["posterior_means"].items()
            for i, x in enumerate(np.ravel(v))
        }
        for run in runs
    ]
    spread = {k: stdev(run[k] for run in flat) / len(flat) ** 0.5 for k in flat[0]}
    typical = mean(spread.values())  # three runs alone tell little of one component's error
    return {k: (mean(run[k] for run in flat), max(spread[k], typical)) for k in flat[0]}


class SchoolQuadrature(NamedTuple):
    r"""Posterior moments of eight schools on a grid of :math:`\tau`, with the grid's weights."""

    tau: np.ndarray  #: ``(G,)``
    weight: np.ndarray  #: ``(G,)``, of sum 1
    mu_mean: np.ndarray  #: ``(G,)``
    mu_sd: np.ndarray  #: ``(G,)``
    theta_mean: np.ndarray  #: ``(G, 8)``
    z_mean: np.ndarray  #: ``(G, 8)``, of the effects in units of :math:`\tau`


def school_quadrature() -> SchoolQuadrature:
    r"""Exact: given :math:`\tau` all else is normal, and :math:`\tau` is one integral.

    With :math:`v_j = \sigma_j^2 + \tau^2` and the mean m of :math:`\mu` given :math:`\tau`, the
    effect :math:`\theta_j` has the mean :math:`m + (y_j - m) \tau^2 / v_j`.
    """
    y, sigma = (x.double().numpy() for x in load("eight_schools")[1])
    log_tau = np.linspace(-14, 9, 100_001)
    tau = np.exp(log_tau)[:, None]
    v = sigma**2 + tau**2
    precision = (1 / v).sum(1) + 1 / 25
    m = (y / v).sum(1) / precision
    log_p = -0.5 * (np.log(v) + y**2 / v).sum(1) - 0.5 * np.log(precision) + 0.5 * precision * m**2
    weight = np.exp(log_p - np.log1p((tau[:, 0] / 5) ** 2) + log_tau + 30)
    weight /= weight.sum()
    pull = (y - m[:, None]) * tau / v
    return SchoolQuadrature(tau[:, 0], weight, m, precision**-0.5, m[:, None] + tau * pull, pull)


def schools(name: str) -> Truth:
    """The means of eight schools, of ``z`` or of ``theta``."""
    grid = school_quadrature()
    effects = {"z": grid.z_mean} if name == "eight_schools" else {"theta": grid.theta_mean}
    values = {"mu": grid.mu_mean[:, None], "tau": grid.tau[:, None], **effects}
    means = {k: grid.weight @ value for k, value in values.items()}
    return {name: (float(x), 0.0) for name, x in by_component(means).items()}


ORDERS = list(permutations(range(3)))


def orders(draws: Draws) -> Draws:
    """Indicators of the six orders that the galaxies' components can be in."""
    found = draws["means"].argsort(-1)
    return {str(o): (found == np.array(o)).all(-1).astype(float) for o in ORDERS}


# ---- energies ------------------------------------------------------------------------------------


def banana(x: Any) -> Any:
    r""":math:`x_1 \sim N(0, 10^2)`, :math:`x_2 | x_1 \sim N(.03 (x_1^2 - 100), 1)`."""
    bent = x[..., 1] - 0.03 * (x[..., 0] ** 2 - 100)
    return -0.5 * ((x[..., 0] / 10) ** 2 + bent**2 + (x[..., 2:] ** 2).sum(-1))


def dual_moon(x: Any, logaddexp: Callable) -> Any:
    """A shell of radius 2, heaviest at the four corners (±3, ±3) of its first two coordinates."""
    radius = (x**2).sum(-1) ** 0.5
    pulls = [
        logaddexp(-0.5 * ((x[..., i] + 3) / s) ** 2, -0.5 * ((x[..., i] - 3) / s) ** 2)
        for i, s in ((0, 0.8), (1, 0.6))
    ]
    return -0.5 * ((radius - 2) / 0.1) ** 2 + pulls[0] + pulls[1]


def two_modes(x: Any, logaddexp: Callable) -> Any:
    """⅓ N(c, I) + ⅔ N(−c, I), with every component of c 5/√d: ten standard deviations apart."""
    c = 5 / x.shape[-1] ** 0.5
    near, far = (-0.5 * ((x - s * c) ** 2).sum(-1) for s in (1, -1))
    return logaddexp(near, far + log(2))


def banana_statistics(draws: Draws) -> Draws:
    x = draws["x"]
    named = {"x1": x[..., 0], "x1²": x[..., 0] ** 2, "x2": x[..., 1], "x3": x[..., 2]}
    return named | {"last²": x[..., -1] ** 2}


def quadrants(draws: Draws) -> Draws:
    x, y = draws["x"][..., 0], draws["x"][..., 1]
    share = {f"{a}{b}": ((x * a > 0) & (y * b > 0)).astype(float) for a in (1, -1) for b in (1, -1)}
    return share | {"x0": x, "x1": y, "x4": draws["x"][..., 4]}


def upper_mode(draws: Draws) -> Draws:
    along = draws["x"].mean(-1)
    return {"upper": (along > 0).astype(float), "x0": draws["x"][..., 0]}


BANANA: Truth = {"x1": (0, 0), "x1²": (100, 0), "x2": (0, 0), "x3": (0, 0), "last²": (1, 0)}
QUADRANTS: Truth = {f"{a}{b}": (0.25, 0) for a in (1, -1) for b in (1, -1)}
QUADRANTS |= {"x0": (0, 0), "x1": (0, 0), "x4": (0, 0)}


def energy(density: Callable[[Tensor], Tensor], dim: int) -> tuple[Callable, tuple]:
    return Target.from_energy(lambda x: -density(x), dim), ()


def given(density: Callable, dim: int, statistics: Callable, truth: Truth) -> Problem:
    """A problem of an energy that is written for both libraries' arrays."""
    joint = {} if density is banana else {"logaddexp": torch.logaddexp}

    def in_jax(x: Any) -> Any:
        import jax.numpy as jnp

        return density(x, **({} if density is banana else {"logaddexp": jnp.logaddexp}))

    make = partial(energy, partial(density, **joint), dim)
    return Problem(make, statistics, lambda: truth, in_jax, dim)


def modelled(name: str, statistics: Callable, truth: Callable[[], Truth]) -> Problem:
    return Problem(partial(load, name), statistics, truth)


PROBLEMS: dict[str, Problem] = {
    "eight_schools": modelled("eight_schools", components, partial(schools, "eight_schools")),
    "centred_eight_schools": modelled(
        "centred_eight_schools", components, partial(schools, "centred_eight_schools")
    ),
    "german_credit": modelled("german_credit", components, partial(long_nuts, "german_credit")),
    "radon": modelled("radon", components, partial(long_nuts, "radon")),
    "galaxies": modelled("galaxies", orders, lambda: {str(o): (1 / 6, 0.0) for o in ORDERS}),
    "banana_100": given(banana, 100, banana_statistics, BANANA),
    "dual_moon_5": given(dual_moon, 5, quadrants, QUADRANTS),
}
for d in (2, 10, 50):
    truth: Truth = {"upper": (1 / 3, 0), "x0": (-5 / 3 / d**0.5, 0)}
    PROBLEMS[f"two_modes_{d}"] = given(two_modes, d, upper_mode, truth)
