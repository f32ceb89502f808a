"""Eight posteriors of stan-dev/posteriordb as Pyro models, with their gold-standard references.

``load(name)`` gives one of ``NAMES`` with its data in the default dtype of the moment.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import OrderedTransform
from torch import Tensor

DATA = Path(__file__).parents[1] / "data" / "posteriordb"


@dataclass(frozen=True)
class Posterior:
    """A model, its arguments, and what is known of its posterior: ``{parameter: {mean, sd, …}}``.

    ``constrain`` turns draws ``{site: (N, ...)}`` into the reference's parameters, each ``(N,)``.
    """

    name: str
    model: Callable
    args: tuple
    reference: dict[str, dict[str, float]]
    constrain: Callable[[dict[str, Tensor]], dict[str, Tensor]]


# ---- time series -------------------------------------------------------------------------------


def autoregression(y, K):
    """y_t ~ N(α + Σ_k β_k y_{t−k}, σ) for t > K."""
    alpha = pyro.sample("alpha", dist.Normal(y.new_zeros(()), 10.0))
    beta = pyro.sample("beta", dist.Normal(y.new_zeros(K), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(y.new_tensor(2.5)))
    lags = y.unfold(0, K, 1)[:-1].flip(-1)  # y_{t−1}, …, y_{t−K}
    observe(y[K:], alpha + lags @ beta, sigma)


def arma(y):
    """y_t = μ + φ y_{t−1} + θ ε_{t−1} + ε_t, ε ~ N(0, σ), where y_0 = μ and ε_0 = 0."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 10.0))
    phi = pyro.sample("phi", dist.Normal(y.new_zeros(()), 2.0))
    theta = pyro.sample("theta", dist.Normal(y.new_zeros(()), 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(y.new_tensor(2.5)))
    errors = undo_moving_average(y - mu - phi * torch.cat([mu[None], y[:-1]]), theta)
    observe(y, y - errors, sigma)


def undo_moving_average(u, theta):
    """ε_t = u_t − θ ε_{t−1} in log₂ T steps: 1/(1 + θL) = Π_k (1 + (−θL)^(2^k)), L the lag."""
    shift, power = 1, -theta
    while shift < len(u):
        u = torch.cat([u[:shift], u[shift:] + power * u[:-shift]])
        shift, power = 2 * shift, power.square()
    return u.nan_to_num(torch.inf, torch.inf, -torch.inf)  # ∞ − ∞ where |θ|^T overflows


# ---- regressions -------------------------------------------------------------------------------


def normal_regression(X, y):
    """Regression with weak proper priors."""
    beta = pyro.sample("beta", dist.Normal(X.new_zeros(X.shape[1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(X.new_tensor(10.0)))
    observe(y, X @ beta, sigma)


def cauchy_regression(X, y):
    """Regression with flat coefficients and a half-Cauchy scale."""
    beta = pyro.sample("beta", flat_reals(X))
    sigma = pyro.sample("sigma", dist.HalfCauchy(X.new_tensor(2.5)))
    observe(y, X @ beta, sigma)


def flat_regression(X, y):
    """Regression with flat priors on everything."""
    beta = pyro.sample("beta", flat_reals(X))
    sigma = pyro.sample("sigma", dist.HalfNormal(X.new_tensor(1.0)).mask(False))
    observe(y, X @ beta, sigma)


def flat_reals(X):
    """An improper flat prior over one coefficient per column, which can nevertheless be sampled."""
    return dist.Normal(X.new_zeros(X.shape[1]), 1.0).to_event(1).mask(False)


def observe(y, mean, sigma):
    """y ~ N(mean, σ), independently."""
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


# ---- the other two -----------------------------------------------------------------------------


def eight_schools(y, sigma):
    """Effects θ_j = μ + τ z_j of coaching in eight schools, measured with known errors."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    z = pyro.sample("z", dist.Normal(torch.zeros_like(y), 1.0).to_event(1))
    observe(y, mu + tau * z, sigma)


def ordered_mixture(y):
    """Two normal components, the lower with weight θ; μ ~ N(0, 2)² restricted to μ_1 < μ_2."""
    prior = dist.Normal(y.new_zeros(2), 2.0).to_event(1)
    flat = dist.TransformedDistribution(prior, OrderedTransform()).mask(False)
    mu = pyro.sample("mu", flat)
    pyro.factor("mu_prior", prior.log_prob(mu))
    sigma = pyro.sample("sigma", dist.HalfNormal(y.new_full((2,), 2.0)).to_event(1))
    theta = pyro.sample("theta", dist.Beta(y.new_tensor(5.0), 5.0))
    weights = dist.Categorical(torch.stack([theta, 1 - theta]))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


# ---- registry ----------------------------------------------------------------------------------


def by_element(samples):
    """Vectors ``name`` as scalars ``name[1]``, ``name[2]``, …, counted from one as in Stan."""
    scalars = {}
    for name, value in samples.items():
        if value.dim() == 1:
            scalars[name] = value
        else:
            scalars |= {f"{name}[{i}]": v for i, v in enumerate(value.unbind(-1), 1)}
    return scalars


def school_effects(samples):
    """θ_j = μ + τ z_j in place of z."""
    mu, tau, z = samples["mu"], samples["tau"], samples["z"]
    return by_element({"theta": mu[:, None] + tau[:, None] * z, "mu": mu, "tau": tau})


def design(*columns):
    """A matrix of an intercept and the columns."""
    return torch.stack([torch.ones_like(columns[0]), *columns], -1)


def kidscore(d):
    """Test scores of children on their mothers' schooling and IQ, with the interaction."""
    hs, iq = d["mom_hs"], d["mom_iq"]
    return design(hs, iq, hs * iq), d["kid_score"]


def logearn(d):
    """Log earnings on height and sex, with the interaction."""
    height, male = d["height"], d["male"]
    return design(height, male, height * male), d["earn"].log()


def logmesquite(d):
    """Log weight of mesquite bushes on log volume, area, shape, height and density, and group."""
    area, shape = d["diam1"] * d["diam2"], d["diam1"] / d["diam2"]
    logs = area * d["canopy_height"], area, shape, d["total_height"], d["density"]
    return design(*(x.log() for x in logs), d["group"]), d["weight"].log()


#: name → (model, its arguments from the data, draws in the reference's terms)
_POSTERIORS = {
    "arK": (autoregression, lambda d: (d["y"], d["K"]), by_element),
    "arma11": (arma, lambda d: (d["y"],), by_element),
    "blr": (normal_regression, lambda d: (d["X"], d["y"]), by_element),
    "eight_schools_noncentered": (eight_schools, lambda d: (d["y"], d["sigma"]), school_effects),
    "kidscore_interaction": (cauchy_regression, kidscore, by_element),
    "logearn_interaction": (flat_regression, logearn, by_element),
    "logmesquite_logvas": (flat_regression, logmesquite, by_element),
    "low_dim_gauss_mix": (ordered_mixture, lambda d: (d["y"],), by_element),
}

NAMES = list(_POSTERIORS)


def load(name: str) -> Posterior:
    """The posterior of this name, its data in torch's default dtype."""
    model, arguments, constrain = _POSTERIORS[name]
    entry = json.loads((DATA / f"{name}.json").read_text())
    dtype = torch.get_default_dtype()
    data = {
        key: torch.tensor(value, dtype=dtype) if isinstance(value, list) else value
        for key, value in entry["data"].items()
    }
    return Posterior(name, model, arguments(data), entry["reference"], constrain)
