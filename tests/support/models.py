"""Small Pyro models that the tests share; module-level, so that spawned processes find them."""

from copy import deepcopy
from functools import cache
from math import factorial, log, pi

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_flowsamp import AutoFlow, FitOptions, Target

#: A short training that no Gaussian cuts shorter.
QUICK = FitOptions(max_steps=60, stop_at_ess=1.0, progress=False)


def data(*values):
    """A vector in the default dtype of the moment."""
    return torch.tensor(values, dtype=torch.get_default_dtype())


# ---- known posteriors --------------------------------------------------------------------------


def conjugate(y, counts):
    """Normal mean and Poisson rate; sampled in the opposite of alphabetic order."""
    rate = pyro.sample("rate", dist.Gamma(y.new_tensor(2.0), 1.0))
    mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        pyro.sample("counts", dist.Poisson(rate), obs=counts)


def conjugate_data():
    return data(0.5, 1.5, 1.0), data(2.0, 4.0, 3.0)


#: site → (posterior mean, standard deviation): Normal(3/4, 1/4) and Gamma(11, 4)
CONJUGATE_TRUTH = {"mean": (0.75, 0.5), "rate": (11 / 4, 11**0.5 / 4)}
CONJUGATE_LOG_EVIDENCE = (
    -1.5 * log(2 * pi)
    - log(2)
    - 0.625  # the normal observations
    + log(factorial(10))
    - 11 * log(4)
    - log(2 * 24 * 6)  # the counts
)


@cache
def _conjugate_guide():
    assert torch.get_default_dtype() == torch.float32
    guide = AutoFlow(conjugate, options=QUICK)
    guide.fit(*conjugate_data())
    return guide


def conjugate_guide():
    """A flow of the conjugate model in float32: a copy of one that is trained once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return used(deepcopy(_conjugate_guide()), *conjugate_data())


def used(guide, *args):
    """The guide after its first call, which traces the model and so draws random numbers."""
    guide(*args)
    return guide


def turned(angle):
    """A von Mises prior and observation of one direction, beside an unrelated real site."""
    height = pyro.sample("height", dist.Normal(angle.new_zeros(()), 2.0))
    direction = pyro.sample("direction", dist.VonMises(angle.new_zeros(()), 1.0))
    pyro.sample("angle", dist.VonMises(direction, 2.0), obs=angle)
    return height


def location(y):
    """One argument to amortise over: E[x | y] = y / 2."""
    x = pyro.sample("x", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


def normal_potential(params):
    """−log N(x; 1, 1) in two dimensions."""
    return 0.5 * (params["x"] - 1).square().sum()


def energy(x):
    """A correlated Gaussian, in units of kT."""
    return 0.5 * (x.square().sum(-1) + (x[:, 0] - x[:, 1]).square())


def year_regression(dtype=torch.float32):
    """A regression on years that are not centred, and its exact posterior.

    The correlation of intercept and slope is -.99999.
    """
    year = torch.arange(1990, 2020, dtype=torch.float64)
    noise = torch.randn(30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = -4933 + 2.466 * year + 3 * noise

    def model(year, y):
        a = pyro.sample("a", dist.Normal(y.new_zeros(()), 1e4))
        b = pyro.sample("b", dist.Normal(y.new_zeros(()), 10.0))
        with pyro.plate("years", len(y)):
            pyro.sample("y", dist.Normal(a + b * year, 3.0), obs=y)

    design = torch.stack([torch.ones_like(year), year], 1)
    precision = design.T @ design / 9 + torch.diag(torch.tensor([1e-8, 1e-2], dtype=torch.float64))
    loc = torch.linalg.solve(precision, design.T @ y / 9)
    target = Target.from_model(model, year.to(dtype), y.to(dtype))
    return target, loc, torch.linalg.cholesky(torch.linalg.inv(precision))


# ---- models that exercise the batching ---------------------------------------------------------


def schools(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def correlated(y):
    chol = pyro.sample("chol", dist.LKJCholesky(2, 1.5))
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
    tril = scale[:, None] * chol
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=tril), obs=y)


def gp(y):
    length = pyro.sample("length", dist.LogNormal(0.0, 0.3))
    t = torch.arange(float(len(y)))
    cov = (-0.5 * ((t[:, None] - t) / length).square()).exp() + 0.1 * torch.eye(len(y))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(y)), cov), obs=y)


def soft_mixture(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    mixture = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(locs, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", mixture, obs=y)


def masked(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)), pyro.poutine.mask(mask=y > 0):
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def factored(y):
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.factor("tilt", -(x.sum() - y.sum()).square())


def with_param(y):
    scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
    x = pyro.sample("x", dist.Normal(0.0, scale))
    pyro.sample("y", dist.Normal(x, 1.0).expand([len(y)]).to_event(1), obs=y)


def enumerated(y):
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(p)).long()
        pyro.sample("y", dist.Normal(locs[z], 1.0), obs=y)


def hmm(y):
    stay = pyro.sample("stay", dist.Beta(3.0, 1.0))
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    x = torch.tensor(0)
    for t in pyro.markov(range(len(y))):
        p = torch.where(x == 0, 1 - stay, stay)
        x = pyro.sample(f"x{t}", dist.Bernoulli(p)).long()
        pyro.sample(f"y{t}", dist.Normal(locs[x], 1.0), obs=y[t])


def asserting(y):
    """Looks at a value: vmap cannot, a plate can."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    assert torch.isfinite(x).all()
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def asserting_enumerated(y):
    """The same with a discrete site."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    assert torch.isfinite(x).all()
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(x + 3 * z, 1.0), obs=y)


def reading(y):
    """Needs a Python number: only the loop can."""
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    width = 1.0 if x[0].item() > 0 else 2.0
    pyro.sample("y", dist.Normal(x.sum(), width).expand([len(y)]).to_event(1), obs=y)


_Y = torch.tensor([0.5, -1.0, 2.0])
_ROWS = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-0.7, 1.1]])

#: How each of these models should be batched: (model, its data, way).
BATCHING = [
    (schools, _Y, "vmap"),
    (correlated, _ROWS, "vmap"),
    (gp, _Y, "vmap"),
    (soft_mixture, _Y, "vmap"),
    (masked, _Y, "vmap"),
    (factored, _Y, "vmap"),
    (with_param, _Y, "vmap"),
    (enumerated, _Y, "vmap"),
    (hmm, _Y, "vmap"),
    (asserting, _Y, "plate"),
    (asserting_enumerated, _Y, "plate"),
    (reading, _Y, "loop"),
]


def named(cases):
    """Parameters of pytest for ``BATCHING``, with the models' names as ids."""
    return [pytest.param(*case, id=case[0].__name__) for case in cases]


def not_always_positive_definite():
    """A correlation whose matrix is no covariance where it is one or more."""
    r = pyro.sample("r", dist.Normal(0.0, 0.3))
    one = torch.ones_like(r)
    matrix = torch.stack([torch.stack([one, r]), torch.stack([r, one])])
    normal = dist.MultivariateNormal(torch.zeros(2), matrix)
    pyro.sample("y", normal, obs=torch.tensor([0.3, 0.2]))
