r"""Pyro models whose truths are a quadrature in three dimensions, or importance sampling."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..models import load
from .reference import (
    Draws,
    Function,
    ImportanceOptions,
    KnownPosterior,
    Statistic,
    Truth,
    above,
    asked,
    below,
    cached,
    importance,
    probability_below,
    site,
    tensor,
)

# ---- a Gaussian process --------------------------------------------------------------------------

POINTS, JITTER = 100, 1e-6


def gaussian_process(squares: Tensor, y: Tensor) -> None:
    r"""Hyperparameters of a Gaussian process with a squared exponential kernel.

    .. math:: \ell \sim \mathrm{LogNormal}(0, 1),\; v \sim \mathrm{LogNormal}(0, 1),\;
              s \sim \mathrm{LogNormal}(-1, 1),

        y \sim N(0,\; v e^{-D / 2\ell^2} + (s^2 + 10^{-6}) I)

    Arguments:
        squares: Squared distances :math:`D` of the inputs, ``(100, 100)``.
        y: Observations, ``(100,)``.
    """
    lengthscale = pyro.sample("lengthscale", dist.LogNormal(0.0, 1.0))
    variance = pyro.sample("variance", dist.LogNormal(0.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 1.0))
    kernel = variance * (-0.5 * squares / lengthscale**2).exp()
    kernel = kernel + (noise**2 + JITTER) * torch.eye(y.shape[-1])
    zero = y.new_zeros(y.shape[-1])
    pyro.sample("y", dist.MultivariateNormal(zero, scale_tril=torch.linalg.cholesky(kernel)), obs=y)


def process_data() -> tuple[np.ndarray, np.ndarray]:
    """Returns squared distances of inputs on [0, 10], and observations of a known process."""
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 10, POINTS))
    squares = (x[:, None] - x) ** 2
    covariance = 1.5 * np.exp(-0.5 * squares / 1.2**2) + 0.3**2 * np.eye(POINTS)
    return squares, np.linalg.cholesky(covariance) @ rng.standard_normal(POINTS)


def process_statistics() -> list[Statistic]:
    r"""Quadrature over the logarithms, by one eigendecomposition for each lengthscale.

    With :math:`e^{-D / 2 \ell^2} = Q \Lambda Q^\top` and :math:`u = Q^\top y`, the marginal
    likelihood is :math:`\prod_i N(u_i; 0, v \lambda_i + s^2)`.
    """
    squares, y = process_data()
    log_l, log_v = np.linspace(-0.75, 1.25, 61), np.linspace(-2.5, 4.5, 81)
    log_s = np.linspace(-1.8, -0.6, 61)
    v, s2 = np.exp(log_v)[:, None, None], np.exp(2 * log_s)[:, None] + JITTER
    log_p = np.empty((len(log_l), len(log_v), len(log_s)))
    for i, length in enumerate(np.exp(log_l)):  # a hundred eigenvalues each, once
        values, vectors = np.linalg.eigh(np.exp(-0.5 * squares / length**2))
        total = v * values.clip(0) + s2
        log_p[i] = -0.5 * (np.log(total) + (vectors.T @ y) ** 2 / total).sum(-1)
    log_p -= 0.5 * log_l[:, None, None] ** 2 + 0.5 * log_v[:, None] ** 2 + 0.5 * (log_s + 1) ** 2
    weight = np.exp(log_p - log_p.max())
    weight /= weight.sum()
    grids = {"lengthscale": (log_l, 1.2), "variance": (log_v, 1.5), "noise": (log_s, 0.3)}
    found = []
    for axis, (name, (nodes, true)) in enumerate(grids.items()):
        marginal = weight.sum(tuple({0, 1, 2} - {axis}))
        f = site(name)
        under = probability_below(nodes, marginal, np.log(true))
        mean_log = Statistic(f"log {name}", lambda draws, f=f: np.log(f(draws)), marginal @ nodes)
        found += [
            mean_log,
            Statistic(name, f, float(marginal @ np.exp(nodes))),
            Statistic(f"P({name} < {true})", below(f, true), under, share=True),
        ]
    return found


# ---- GARCH ---------------------------------------------------------------------------------------


def garch(y: Tensor) -> None:
    r"""A GARCH(1, 1) model of returns, with a loop over time.

    .. math:: \mu \sim N(0, 1),\; \omega \sim \mathrm{LogNormal}(-1, 1),\; \alpha, u \sim U(0, 1),\;
              y_t \sim N(\mu, \sigma_t),\; \sigma_t^2 = \omega + \alpha (y_{t-1} - \mu)^2 +
              (1 - \alpha) u\,\sigma_{t-1}^2,\; \sigma_1^2 = 1

    Arguments:
        y: Returns, ``(200,)``.
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    omega = pyro.sample("omega", dist.LogNormal(-1.0, 1.0))
    alpha = pyro.sample("alpha", dist.Uniform(0.0, 1.0))
    u = pyro.sample("u", dist.Uniform(0.0, 1.0))
    variances = [torch.ones_like(mu)]
    for t in range(1, y.shape[-1]):
        before = variances[-1]
        variances.append(omega + alpha * (y[t - 1] - mu) ** 2 + (1 - alpha) * u * before)
    with pyro.plate("data", y.shape[-1]):
        pyro.sample("y", dist.Normal(mu, torch.stack(variances, -1).sqrt()), obs=y)


def garch_data() -> np.ndarray:
    """Returns 200 returns of a process with strong volatility clusters."""
    rng = np.random.default_rng(0)
    y, variance = np.empty(200), 1.0
    for t in range(200):
        y[t] = 0.2 + variance**0.5 * rng.standard_normal()
        variance = 0.2 + 0.4 * (y[t] - 0.2) ** 2 + 0.4 * variance
    return y


def garch_density(x: Tensor) -> Tensor:
    """The log density of (mu, log omega, logit alpha, logit u), ``(N, 4)`` to ``(N,)``."""
    y = torch.as_tensor(garch_data())
    mu, omega, alpha, u = x[:, 0], x[:, 1].exp(), x[:, 2].sigmoid(), x[:, 3].sigmoid()
    beta = (1 - alpha) * u
    variance = torch.ones_like(mu)
    log_p = -0.5 * mu**2 - 0.5 * (x[:, 1] + 1) ** 2
    log_p = log_p + (alpha * (1 - alpha)).log() + (u * (1 - u)).log()
    for value in y:
        residual = (value - mu) ** 2
        log_p = log_p - 0.5 * (residual / variance + variance.log())
        variance = omega + alpha * residual + beta * variance
    return log_p


def garch_draws(x: Tensor) -> Draws:
    """Draws by site of unconstrained points."""
    parts = {"mu": x[:, 0], "omega": x[:, 1].exp(), "alpha": x[:, 2].sigmoid()}
    return {k: v.numpy()[None] for k, v in {**parts, "u": x[:, 3].sigmoid()}.items()}


def persistence(draws: Draws) -> np.ndarray:
    r"""The sum :math:`\alpha + \beta`."""
    alpha, u = site("alpha")(draws), site("u")(draws)
    return alpha + (1 - alpha) * u


GARCH_FUNCTIONS: dict[str, Function] = {
    **{name: site(name) for name in ("mu", "omega", "alpha", "u")},
    "alpha + beta": persistence,
    "P(omega > 0.4)": above(site("omega"), 0.4),
    "P(alpha < 0.3)": below(site("alpha"), 0.3),
    "P(u < 0.2)": below(site("u"), 0.2),
    "P(alpha + beta > 0.95)": above(persistence, 0.95),
}


def garch_statistics() -> list[Statistic]:
    """Means and tails by importance sampling."""

    def compute() -> Truth:
        start = torch.tensor([0.0, -1.0, 0.0, 0.0], dtype=torch.float64)
        options = ImportanceOptions(pairs=1_000_000, degrees=4, scale=1.3, block=20_000)
        return importance(garch_density, start, garch_draws, GARCH_FUNCTIONS, options)[0]

    return asked(GARCH_FUNCTIONS, cached("garch", GARCH_FUNCTIONS, compute))


# ---- logistic regressions ------------------------------------------------------------------------

SCALE = 2.0  #: prior standard deviation of the coefficients


def logistic(X: Tensor, y: Tensor) -> None:
    r"""Logistic regression with independent Gaussian priors.

    .. math:: \beta_i \sim N(0, 2),\; y_n \sim \mathrm{Bernoulli}(\mathrm{logits} = X_n \cdot \beta)

    Arguments:
        X: Predictors, ``(N, d)``.
        y: 0 or 1, ``(N,)``.
    """
    beta = pyro.sample("beta", dist.Normal(0.0, SCALE).expand([X.shape[-1]]).to_event(1))
    with pyro.plate("data", y.shape[-1]):
        pyro.sample("y", dist.Bernoulli(logits=X @ beta), obs=y)


def logistic_data(count: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns predictors, outcomes, and the coefficients that made them."""
    rng = np.random.default_rng(dim)
    X, beta = rng.standard_normal((count, dim)), 0.5 * rng.standard_normal(dim)
    return X, (rng.random(count) < 1 / (1 + np.exp(-X @ beta))).astype(float), beta


def logistic_density(X: Tensor, y: Tensor, scale: float, beta: Tensor) -> Tensor:
    """The log density of coefficients, ``(N, d)`` to ``(N,)``."""
    logits = beta @ X.T
    likelihood = logits @ y - torch.nn.functional.softplus(logits).sum(-1)
    return likelihood - 0.5 * (beta / scale).square().sum(-1)


def by_importance(
    name: str,
    X: np.ndarray,
    y: np.ndarray,
    scale: float,
    functions: Mapping[str, Function],
    options: ImportanceOptions,
) -> list[Statistic]:
    """Statistics of the coefficients of a logistic regression."""

    def compute() -> Truth:
        density = partial(logistic_density, torch.as_tensor(X), torch.as_tensor(y), scale)
        start = torch.zeros(X.shape[1], dtype=torch.float64)
        return importance(density, start, lambda x: {"beta": x.numpy()[None]}, functions, options)[
            0
        ]

    return asked(functions, cached(name, functions, compute))


def logistic_statistics(count: int, dim: int) -> list[Statistic]:
    """Means of some coefficients, and probabilities above those that made the data."""
    X, y, true = logistic_data(count, dim)
    functions: dict[str, Function] = {}
    for i in range(0, dim, -(-dim // 5)):
        functions[f"beta[{i}]"] = site("beta", i)
        functions[f"P(beta[{i}] > {true[i]:.3f})"] = above(site("beta", i), round(true[i], 3))
    options = ImportanceOptions(pairs=20_000, degrees=60, scale=1.02, block=100)
    return by_importance(f"logistic_{count}_{dim}", X, y, SCALE, functions, options)


CLOSE_TO_ZERO = (8, 13, 20, 21, 23)  #: coefficients of German credit of either sign


def credit_statistics() -> list[Statistic]:
    """Means of all coefficients, and probabilities that some are positive."""
    X, y = (x.double().numpy() for x in load("german_credit")[1])
    functions: dict[str, Function] = {f"beta[{i}]": site("beta", i) for i in range(25)}
    functions |= {f"P(beta[{i}] > 0)": above(site("beta", i), 0) for i in CLOSE_TO_ZERO}
    options = ImportanceOptions(pairs=50_000, degrees=30, scale=1.03, block=1000)
    return by_importance("german_credit", X, y, 1.0, functions, options)


PROBLEMS = {
    "gaussian_process": KnownPosterior(
        lambda: (gaussian_process, tuple(tensor(x) for x in process_data())),
        process_statistics,
        3,
        "three integrals",
    ),
    "garch": KnownPosterior(
        lambda: (garch, (tensor(garch_data()),)), garch_statistics, 4, "importance sampling"
    ),
    "german_credit": KnownPosterior(
        partial(load, "german_credit"), credit_statistics, 25, "importance sampling"
    ),
}
for count, d in ((20_000, 50), (50_000, 8)):
    PROBLEMS[f"logistic_{count}_{d}"] = KnownPosterior(
        lambda count=count, d=d: (logistic, tuple(tensor(x) for x in logistic_data(count, d)[:2])),
        partial(logistic_statistics, count, d),
        d,
        "importance sampling",
    )
