"""Models: missing data, sites that have no coordinates, and structures that are refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.target.inspection import ModelStructureError


def imputed(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        return pyro.sample("y", dist.Normal(mean, 1.0), obs=y, obs_mask=~y.isnan())


def test_missing_data():
    """What is observed has a density as if imputed too, of integral one; NaN give no gradient."""
    y = torch.tensor([1.0, torch.nan, 2.0])
    target = Target.from_model(imputed, y)
    normal = dist.Normal(0.0, 1.0)
    x = torch.randn(5, 4)
    mean, rest = x[:, :1], x[:, 1:]
    shown = normal.log_prob(y[[0, 2]] - mean).sum(-1)
    truth = normal.log_prob(mean[:, 0]) + shown + normal.log_prob(rest - mean).sum(-1)
    log_p, grad = target.log_prob_and_grad(x)
    assert_close(log_p, truth)
    slope = -mean[:, 0] + (y[[0, 2]] - mean).sum(-1) + (rest - mean).sum(-1)
    assert_close(grad, torch.cat([slope[:, None], mean - rest], -1))
    assert_close(target.observed_data()["y_observed"], y, equal_nan=True)
    assert target.batching == "vmap"


def test_missing_vectors():
    """Whole events are missing; the first may be."""
    y = torch.tensor([[torch.nan, torch.nan], [1.0, 2.0], [3.0, 4.0]])

    def model():
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 3):
            mask = ~y.isnan().any(-1)
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y, obs_mask=mask)

    grad = Target.from_model(model).log_prob_and_grad(torch.zeros(1, 8))[1]
    assert_close(grad, torch.tensor([[4.0, 6.0] + [0.0] * 6]))


@pytest.mark.parametrize("all_missing", [False, True])
def test_missing_one_by_one(all_missing):
    """Each datum a site of its own, as in a time series; what is missing has no neighbour."""
    y = torch.tensor([1.0, torch.nan, 2.0])
    mask = torch.zeros(3, dtype=torch.bool) if all_missing else ~y.isnan()

    def model():
        scale = pyro.sample("scale", dist.Exponential(1.0))
        for t in range(3):
            pyro.sample(f"y_{t}", dist.Exponential(scale), obs=y[t], obs_mask=mask[t])

    x = torch.tensor([[0.3, 0.0, 0.0, 0.0]])
    grad = Target.from_model(model).log_prob_and_grad(x)[1]
    scale = x[0, 0].exp()  # u - e^u of the prior; u - e^u y of a datum, shown or imputed, then 1
    assert_close(grad[0, 0], (1 - scale * torch.cat([torch.ones(4), y[mask]])).sum())


def test_missing_data_in_a_scale_and_a_mask():
    """What is there counts twice, its imputed replicate once; what the outer mask hides, never."""
    y, mask = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, True, False])
    kept = torch.tensor([True, False, True])

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3), poutine.scale(scale=2.0), poutine.mask(mask=kept):
            value = pyro.sample("y", dist.Normal(x, 1.0), obs=y, obs_mask=mask)
        pyro.sample("w", dist.Normal(value.sum(), 1.0), obs=torch.tensor(0.5))

    normal = dist.Normal(0.0, 1.0)
    x = torch.randn(5, 4)
    mean, rest = x[:, 0], x[:, 1:]
    truth = normal.log_prob(mean) + 2 * normal.log_prob(y[0] - mean)
    truth = truth + normal.log_prob(rest[:, 0] - mean) + 2 * normal.log_prob(rest[:, 2] - mean)
    truth = truth + normal.log_prob(0.5 - (y[:2].sum() + rest[:, 2]))
    with pytest.warns(UserWarning, match="does not depend on 1 of 'y_unobserved'"):
        target = Target.from_model(model)
    assert_close(target.log_prob(x), truth)


def test_data_in_no_plate_beside_states():
    """Values outside a support at the first look are no error, nor is a masked NaN."""

    def model():
        theta = pyro.sample("theta", dist.Gamma(2.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("w", dist.Normal(z, 1.0), obs=torch.tensor(0.5))
        pyro.sample("y", dist.Uniform(torch.zeros(()), theta), obs=torch.tensor(1.0))
        with poutine.mask(mask=torch.tensor(False)):
            pyro.sample("v", dist.Normal(z, 1.0), obs=torch.tensor(torch.nan))

    for seed in range(10):
        torch.manual_seed(seed)
        Target.from_model(model)


def nothing():
    pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))


def noisy():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.randn(()))


def sequential():
    z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "sequential"})
    pyro.sample("x", dist.Normal(z, 1.0))


def undeclared():
    z = pyro.sample("z", dist.Bernoulli(0.3))
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mean + z, 1.0), obs=torch.tensor([0.0, 3.0]))


@pytest.mark.parametrize(
    "model, error, words",
    [
        (nothing, ValueError, "does not depend on any latent site"),
        (noisy, ModelStructureError, "the density is random"),
        (sequential, ValueError, "'z' asks for sequential enumeration"),
        (undeclared, ValueError, "'y' has a density of shape .2,., whose dimension -1"),
    ],
)
def test_no_density_to_sample(model, error, words):
    with pytest.raises(error, match=words):
        Target.from_model(model)


Y = torch.tensor([1.0, 2.0, 3.0])


def normal(name="x"):
    return pyro.sample(name, dist.Normal(0.0, 1.0))


# ---- what counts as data, and what is no site ---------------------------------------------------


def test_what_a_reparametrisation_makes_deterministic_is_no_data():
    def model(y=None):
        mu = normal("mu")
        with pyro.plate("schools", 3):
            theta = pyro.sample("theta", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    moved = poutine.reparam(model, {"theta": LocScaleReparam(0.0)})
    target = Target.from_model(moved, Y)
    assert list(target.observed_data()) == ["y"]
    assert target.has_observations and not Target.from_model(moved).has_observations


def mixed_angles():
    one, two = (dist.VonMises(torch.tensor([at, at]), 1.0) for at in (0.0, 1.0))
    pyro.sample("x", dist.MaskedMixture(torch.tensor([True, False]), one, two).to_event(1))


@pytest.mark.parametrize(
    "model, message",
    [
        (mixed_angles, "site 'x': an angle that is transformed or mixed"),
        (lambda: pyro.sample("x", dist.Delta(torch.tensor(1.0))), "site 'x' is a Delta"),
        (lambda: pyro.sample("x", dist.Normal(torch.zeros(0), 1.0).to_event(1)), "no continuous"),
        (lambda: pyro.sample("x", dist.GeneralizedPareto(0.0, 1.0, 0.5)), "'x'.*not finite at 0"),
    ],
)
def test_sites_without_coordinates(model, message):
    with pytest.raises(ValueError, match=message):
        Target.from_model(model)
