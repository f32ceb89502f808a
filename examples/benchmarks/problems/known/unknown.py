r"""Models without a known truth: of interest are R-hat, effective sizes, time and warnings.

A long run of another sampler could give their references.
"""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .reference import KnownPosterior, nothing_known, tensor

# ---- stochastic volatility -----------------------------------------------------------------------

DAYS = 500


def stochastic_volatility(y: Tensor) -> None:
    r"""Returns whose log variance is autoregressive, by its innovations: :math:`d = 503`.

    .. math:: \mu \sim N(0, 2),\; (\phi + 1) / 2 \sim \mathrm{Beta}(20, 1.5),\;
              \sigma \sim \mathrm{HalfNormal}(0.5),\; z_t \sim N(0, 1)

        h_1 = \mu + \frac{\sigma z_1}{\sqrt{1 - \phi^2}},\;
        h_t = \mu + \phi (h_{t-1} - \mu) + \sigma z_t,\; y_t \sim N(0, e^{h_t / 2})

    Arguments:
        y: Returns, ``(500,)``.
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    half = pyro.sample("half", dist.Beta(20.0, 1.5))
    sigma = pyro.sample("sigma", dist.HalfNormal(0.5))
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([y.shape[-1]]).to_event(1))
    phi = 2 * half - 1
    first = (1 - phi.square()).clamp_min(1e-12).rsqrt()
    pushes = sigma * torch.cat([(z[:1] * first), z[1:]])
    shift, power = 1, phi  # h_t = Σ_k φ^k push_{t-k}, in log2 T steps
    while shift < y.shape[-1]:
        pushes = torch.cat([pushes[:shift], pushes[shift:] + power * pushes[:-shift]])
        shift, power = 2 * shift, power.square()
    with pyro.plate("data", y.shape[-1]):
        pyro.sample("y", dist.Normal(0.0, ((mu + pushes) / 2).exp()), obs=y)


def volatility_data() -> np.ndarray:
    """Returns 500 returns of a persistent process."""
    rng = np.random.default_rng(0)
    h, found = -0.5, np.empty(DAYS)
    for t in range(DAYS):
        h = -0.5 + 0.95 * (h + 0.5) + 0.25 * rng.standard_normal()
        found[t] = np.exp(h / 2) * rng.standard_normal()
    return found


# ---- horseshoe -----------------------------------------------------------------------------------

COEFFICIENTS, ROWS = 50, 100


def horseshoe(X: Tensor, y: Tensor) -> None:
    r"""Sparse regression by the horseshoe prior, non-centred: :math:`d = 102`.

    .. math:: \tau \sim \mathrm{HalfCauchy}(0.1),\; \lambda_i \sim \mathrm{HalfCauchy}(1),\;
              z_i \sim N(0, 1),\; \sigma \sim \mathrm{HalfNormal}(1),\;
              y_n \sim N(\tau \sum_i X_{ni} \lambda_i z_i, \sigma)

    Arguments:
        X: Predictors, ``(100, 50)``.
        y: Observations, ``(100,)``.
    """
    tau = pyro.sample("tau", dist.HalfCauchy(0.1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("coefficients", X.shape[-1]):
        local = pyro.sample("local", dist.HalfCauchy(1.0))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", y.shape[-1]):
        pyro.sample("y", dist.Normal(X @ (tau * local * z), sigma), obs=y)


def horseshoe_data() -> tuple[np.ndarray, np.ndarray]:
    """Returns predictors and observations: five of fifty coefficients are not zero."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((ROWS, COEFFICIENTS))
    return X, X[:, :5] @ np.array([2.0, -1.5, 1.0, 0.5, -0.25]) + rng.standard_normal(ROWS)


# ---- item response -------------------------------------------------------------------------------

PERSONS, ITEMS = 100, 20


def item_response(right: Tensor) -> None:
    r"""Two-parameter logistic item response: :math:`d = 140`.

    .. math:: \theta_p \sim N(0, 1),\; a_i \sim \mathrm{LogNormal}(0, 0.5),\; b_i \sim N(0, 1),\;
              y_{pi} \sim \mathrm{Bernoulli}(\mathrm{logits} = a_i (\theta_p - b_i))

    Arguments:
        right: 1 for a right answer, else 0, ``(100, 20)``.
    """
    persons, items = right.shape[-2:]
    ability = pyro.sample("ability", dist.Normal(0.0, 1.0).expand([persons]).to_event(1))
    slope = pyro.sample("slope", dist.LogNormal(0.0, 0.5).expand([items]).to_event(1))
    difficulty = pyro.sample("difficulty", dist.Normal(0.0, 1.0).expand([items]).to_event(1))
    logits = slope * (ability[:, None] - difficulty)
    pyro.sample("right", dist.Bernoulli(logits=logits).to_event(2), obs=right)


def response_data() -> np.ndarray:
    """Returns simulated answers, ``(100, 20)``."""
    rng = np.random.default_rng(0)
    ability, difficulty = rng.standard_normal((PERSONS, 1)), rng.standard_normal(ITEMS)
    logits = np.exp(0.5 * rng.standard_normal(ITEMS)) * (ability - difficulty)
    return (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)


PROBLEMS = {
    "item_response": KnownPosterior(
        lambda: (item_response, (tensor(response_data()),)),
        nothing_known,
        PERSONS + 2 * ITEMS,
        "none",
    ),
    "horseshoe": KnownPosterior(
        lambda: (horseshoe, tuple(tensor(x) for x in horseshoe_data())),
        nothing_known,
        2 + 2 * COEFFICIENTS,
        "none",
    ),
    "stochastic_volatility": KnownPosterior(
        lambda: (stochastic_volatility, (tensor(volatility_data()),)),
        nothing_known,
        DAYS + 3,
        "none",
    ),
}
