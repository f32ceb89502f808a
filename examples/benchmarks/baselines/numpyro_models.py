"""The models of ``problems`` in NumPyro: the same sites, arguments and densities.

It imports no torch, so that NUTS can run in an environment without it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import sample

JITTER = 1e-6  #: on the diagonal of the Gaussian process
VOLTERRA_STEPS = 4  #: Runge-Kutta steps in a year
#: prior medians and log standard deviations of the Lotka-Volterra equations
VOLTERRA = {
    "alpha": (1.0, 0.5),
    "beta": (0.05, 0.5),
    "gamma": (1.0, 0.5),
    "delta": (0.05, 0.5),
    "prey": (10.0, 1.0),
    "predators": (10.0, 1.0),
    "noise": (0.3, 1.0),
}


def linear_recurrence(factor: Array, added: Array) -> Array:
    r"""All :math:`h_t = a_t h_{t-1} + b_t` with :math:`h_0 = 0`, in :math:`\log_2 T` steps.

    Arguments:
        factor: The :math:`a_t`, ``(T,)``.
        added: The :math:`b_t`, ``(T,)``.
    """

    def compose(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    return jax.lax.associative_scan(compose, (factor, added))[1]


def eight_schools(y, sigma):
    mu = sample("mu", dist.Normal(0.0, 5.0))
    tau = sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", y.shape[-1]):
        z = sample("z", dist.Normal(0.0, 1.0))
        sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def centred_eight_schools(y, sigma):
    mu = sample("mu", dist.Normal(0.0, 5.0))
    tau = sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", y.shape[-1]):
        theta = sample("theta", dist.Normal(mu, tau))
        sample("y", dist.Normal(theta, sigma), obs=y)


def german_credit(X, bad):
    with numpyro.plate("predictors", X.shape[-1]):
        beta = sample("beta", dist.Normal(0.0, 1.0))
    with numpyro.plate("applicants", bad.shape[-1]):
        sample("bad", dist.Bernoulli(logits=X @ beta), obs=bad)


def radon(floor, county, log_radon, num_counties=85):
    mu = sample("mu_a", dist.Normal(0.0, 10.0))
    beta = sample("beta_floor", dist.Normal(0.0, 10.0))
    sigma_a = sample("sigma_a", dist.HalfNormal(1.0))
    sigma_y = sample("sigma_y", dist.HalfNormal(1.0))
    with numpyro.plate("counties", num_counties):
        z = sample("z", dist.Normal(0.0, 1.0))
    a = mu + sigma_a * z
    with numpyro.plate("homes", log_radon.shape[-1]):
        sample("log_radon", dist.Normal(a[county] + beta * floor, sigma_y), obs=log_radon)


def garch(y):
    mu = sample("mu", dist.Normal(0.0, 1.0))
    omega = sample("omega", dist.LogNormal(-1.0, 1.0))
    alpha = sample("alpha", dist.Uniform(0.0, 1.0))
    u = sample("u", dist.Uniform(0.0, 1.0))
    pushes = jnp.concatenate([jnp.ones(1), omega + alpha * (y[:-1] - mu) ** 2])
    variance = linear_recurrence(jnp.full(y.shape, (1 - alpha) * u), pushes)
    with numpyro.plate("data", y.shape[-1]):
        sample("y", dist.Normal(mu, jnp.sqrt(variance)), obs=y)


def gaussian_process(squares, y):
    lengthscale = sample("lengthscale", dist.LogNormal(0.0, 1.0))
    variance = sample("variance", dist.LogNormal(0.0, 1.0))
    noise = sample("noise", dist.LogNormal(-1.0, 1.0))
    kernel = variance * jnp.exp(-0.5 * squares / lengthscale**2)
    kernel = kernel + (noise**2 + JITTER) * jnp.eye(y.shape[-1])
    factor = jnp.linalg.cholesky(kernel)
    sample("y", dist.MultivariateNormal(jnp.zeros(y.shape), scale_tril=factor), obs=y)


def random_walk(y):
    flat = dist.ImproperUniform(dist.constraints.real_vector, (), y.shape)
    x = sample("x", flat)
    before = jnp.concatenate([jnp.zeros(1), x[:-1]])
    numpyro.factor("walk", -0.5 * jnp.square(x - before).sum())
    with numpyro.plate("data", y.shape[-1]):
        sample("y", dist.Normal(x, 1.0), obs=y)


def horseshoe(X, y):
    tau = sample("tau", dist.HalfCauchy(0.1))
    sigma = sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("coefficients", X.shape[-1]):
        local = sample("local", dist.HalfCauchy(1.0))
        z = sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", y.shape[-1]):
        sample("y", dist.Normal(X @ (tau * local * z), sigma), obs=y)


def item_response(right):
    persons, items = right.shape
    ability = sample("ability", dist.Normal(0.0, 1.0).expand([persons]).to_event(1))
    slope = sample("slope", dist.LogNormal(0.0, 0.5).expand([items]).to_event(1))
    difficulty = sample("difficulty", dist.Normal(0.0, 1.0).expand([items]).to_event(1))
    logits = slope * (ability[:, None] - difficulty)
    sample("right", dist.Bernoulli(logits=logits).to_event(2), obs=right)


def stochastic_volatility(y):
    mu = sample("mu", dist.Normal(0.0, 2.0))
    half = sample("half", dist.Beta(20.0, 1.5))
    sigma = sample("sigma", dist.HalfNormal(0.5))
    z = sample("z", dist.Normal(0.0, 1.0).expand([y.shape[-1]]).to_event(1))
    phi = 2 * half - 1
    first = jax.lax.rsqrt(jnp.maximum(1 - phi**2, 1e-12))
    pushes = sigma * jnp.concatenate([z[:1] * first, z[1:]])
    h = mu + linear_recurrence(jnp.full(y.shape, phi), pushes)
    with numpyro.plate("data", y.shape[-1]):
        sample("y", dist.Normal(0.0, jnp.exp(h / 2)), obs=y)


def logistic(X, y):
    beta = sample("beta", dist.Normal(0.0, 2.0).expand([X.shape[-1]]).to_event(1))
    with numpyro.plate("data", y.shape[-1]):
        sample("y", dist.Bernoulli(logits=X @ beta), obs=y)


def lotka_volterra(y):
    theta = {
        name: sample(name, dist.LogNormal(jnp.log(median), sd))
        for name, (median, sd) in VOLTERRA.items()
    }
    rates = jnp.stack([theta["alpha"], -theta["gamma"]])
    effects = jnp.stack([-theta["beta"], theta["delta"]])
    h = 1 / VOLTERRA_STEPS

    def slope(log_u):
        return rates + effects * jnp.exp(jnp.minimum(log_u, 20.0))[::-1]

    def step(log_u, _):
        a = slope(log_u)
        b = slope(log_u + h / 2 * a)
        c = slope(log_u + h / 2 * b)
        return log_u + h / 6 * (a + 2 * b + 2 * c + slope(log_u + h * c)), None

    def year(log_u, _):
        log_u = jax.lax.scan(step, log_u, length=VOLTERRA_STEPS)[0]
        return log_u, log_u

    first = jnp.log(jnp.stack([theta["prey"], theta["predators"]]))
    log_u = jax.lax.scan(year, first, length=y.shape[-2] - 1)[1]
    log_u = jnp.concatenate([first[None], log_u])
    sample("y", dist.Normal(log_u, theta["noise"]).to_event(2), obs=y)


def galaxies(velocity):
    weights = sample("weights", dist.Dirichlet(jnp.ones(3)))
    means = sample("means", dist.Normal(20.0, 10.0).expand([3]).to_event(1))
    scales = sample("scales", dist.LogNormal(0.0, 1.0).expand([3]).to_event(1))
    parts = dist.Normal(means, scales)
    with numpyro.plate("galaxies", velocity.shape[-1]):
        mixture = dist.MixtureSameFamily(dist.Categorical(probs=weights), parts)
        sample("velocity", mixture, obs=velocity)


#: the models by the names of ``problems.models`` and ``problems.known``
MODELS: dict[str, Callable[..., None]] = {
    model.__name__: model
    for model in (
        eight_schools,
        centred_eight_schools,
        german_credit,
        radon,
        garch,
        gaussian_process,
        random_walk,
        horseshoe,
        item_response,
        stochastic_volatility,
        logistic,
        lotka_volterra,
        galaxies,
    )
}
