r"""The Pyro models of the examples and the benchmarks, with their data.

Each model takes its data as arguments and has a loader that returns them, in the default dtype::

    model, data = load("radon")
    model(*data)

None branches on a tensor or writes in place, so all of them run under :func:`torch.func.vmap` (with
Pyro's validation switched off), and their priors are in the default dtype of the call.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike
from torch import Tensor

DATA = Path(__file__).parents[2] / "data"


def _tensor(values: ArrayLike) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.get_default_dtype())


def eight_schools(y: Tensor, sigma: Tensor) -> None:
    r"""Rubin's meta-analysis of coaching, non-centred: :math:`d = 10`.

    .. math:: \mu \sim N(0, 5),\; \tau \sim \mathrm{HalfCauchy}(5),\; z_j \sim N(0, 1),\;
              y_j \sim N(\theta_j, \sigma_j),\; \theta_j = \mu + \tau z_j

    Arguments:
        y: Estimated effect in each school, ``(8,)``.
        sigma: Its standard error, ``(8,)``.
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", y.shape[-1]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z, event_dim=0)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def centred_eight_schools(y: Tensor, sigma: Tensor) -> None:
    r"""Eight schools, centred: :math:`\theta_j \sim N(\mu, \tau)` are sampled, a funnel."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", y.shape[-1]):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def load_eight_schools() -> tuple[Tensor, Tensor]:
    """Returns ``(y, sigma)``."""
    y = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
    sigma = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
    return _tensor(y), _tensor(sigma)


def german_credit(X: Tensor, bad: Tensor) -> None:
    r"""Bayesian logistic regression: :math:`d = 25`.

    .. math:: \beta_i \sim N(0, 1),\quad \mathrm{bad}_n \sim \mathrm{Bernoulli}(\mathrm{logits} =
              X_n \cdot \beta)

    Arguments:
        X: A column of ones and 24 standardised predictors, ``(1000, 25)``.
        bad: 1 for a bad credit risk, else 0, ``(1000,)``.
    """
    with pyro.plate("predictors", X.shape[-1]):
        beta = pyro.sample("beta", dist.Normal(0.0, 1.0))
    with pyro.plate("applicants", bad.shape[-1]):
        pyro.sample("bad", dist.Bernoulli(logits=beta @ X.T), obs=bad)


def load_german_credit() -> tuple[Tensor, Tensor]:
    """Returns ``(X, bad)``."""
    table = np.loadtxt(DATA / "german_credit.csv", delimiter=",", skiprows=1)
    x, bad = table[:, :-1], table[:, -1]
    x = (x - x.mean(0)) / x.std(0)
    return _tensor(np.column_stack([np.ones(len(x)), x])), _tensor(bad)


def radon(floor: Tensor, county: Tensor, log_radon: Tensor, num_counties: int = 85) -> None:
    r"""Radon in Minnesota homes, an intercept for each county: :math:`d = 89`.

    .. math:: \mu_a, \beta \sim N(0, 10),\; \sigma_a, \sigma_y \sim \mathrm{HalfNormal}(1),\;
              z_j \sim N(0, 1),\; y_n \sim N(a_{j(n)} + \beta\,\mathrm{floor}_n, \sigma_y),\;
              a_j = \mu_a + \sigma_a z_j

    Model and priors are posteriordb's ``radon_variable_intercept``. The intercepts are non-centred
    because NUTS does better that way: its least effective draws are :math:`\sigma_a`, and it gets
    about 10% more of them for the same work than with centred intercepts.

    Arguments:
        floor: 0 if measured in the basement, 1 on the first floor, ``(919,)``.
        county: Index of the home's county, from 0, ``(919,)``.
        log_radon: Logarithm of the radon level, ``(919,)``.
        num_counties: How many counties there are.
    """
    mu = pyro.sample("mu_a", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta_floor", dist.Normal(0.0, 10.0))
    sigma_a = pyro.sample("sigma_a", dist.HalfNormal(1.0))
    sigma_y = pyro.sample("sigma_y", dist.HalfNormal(1.0))
    with pyro.plate("counties", num_counties):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        a = pyro.deterministic("a", mu + sigma_a * z, event_dim=0)
    with pyro.plate("homes", log_radon.shape[-1]):
        mean = a[..., county] + beta * floor
        pyro.sample("log_radon", dist.Normal(mean, sigma_y), obs=log_radon)


def load_radon() -> tuple[Tensor, Tensor, Tensor]:
    """Returns ``(floor, county, log_radon)``."""
    data = json.loads((DATA / "radon_mn.json").read_text())
    county = torch.as_tensor(data["county_idx"]) - 1
    return _tensor(data["floor_measure"]), county, _tensor(data["log_radon"])


def galaxies(velocity: Tensor, num_components: int = 3) -> None:
    r"""A mixture of Gaussians without an ordering of its components: :math:`d = 3K - 1 = 8`.

    .. math:: w \sim \mathrm{Dirichlet}(1, \dots, 1),\; \mu_k \sim N(20, 10),\;
              \sigma_k \sim \mathrm{LogNormal}(0, 1),\; v_n \sim \sum_k w_k N(\mu_k, \sigma_k)

    The posterior has each mode :math:`K!` times, once for each order of the components. The
    log-normal prior vanishes fast enough at :math:`\sigma_k = 0` to keep the density bounded when
    a component shrinks onto a datum.

    Arguments:
        velocity: Velocities in 1000 km/s, ``(82,)``.
        num_components: The number of components, :math:`K`.
    """
    K = num_components
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(K)))
    means = pyro.sample("means", dist.Normal(20.0, 10.0).expand([K]).to_event(1))
    scales = pyro.sample("scales", dist.LogNormal(0.0, 1.0).expand([K]).to_event(1))
    mixture = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(means, scales))
    with pyro.plate("galaxies", velocity.shape[-1]):
        pyro.sample("velocity", mixture, obs=velocity)


def load_galaxies() -> tuple[Tensor]:
    """Returns ``(velocity,)``."""
    return (_tensor(np.loadtxt(DATA / "galaxies.csv", skiprows=1) / 1000),)


_LOADERS: dict[Callable[..., None], Callable[[], tuple[Tensor, ...]]] = {
    eight_schools: load_eight_schools,
    centred_eight_schools: load_eight_schools,
    german_credit: load_german_credit,
    radon: load_radon,
    galaxies: load_galaxies,
}
MODELS = {model.__name__: model for model in _LOADERS}


def load(name: str) -> tuple[Callable[..., None], tuple[Tensor, ...]]:
    """Returns the model of that name in :data:`MODELS` and its arguments."""
    model = MODELS[name]
    return model, _LOADERS[model]()
