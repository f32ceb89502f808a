"""Supports of sites and data: those that move, and data outside of them."""

from math import inf, log, nan

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import AffineTransform
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.target.inspection import ModelStructureError

Y = torch.tensor([1.0, 2.0, 3.0])


def normal(name="x"):
    return pyro.sample(name, dist.Normal(0.0, 1.0))


# ---- supports that move -------------------------------------------------------------------------


def symmetric():
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    pyro.sample("x", dist.Uniform(-s, s))


def of_a_state():
    k = pyro.sample("k", dist.Bernoulli(0.001))
    pyro.sample("x", dist.Uniform(0.0, 1.0 + k))


def of_an_argument(w):
    pyro.sample("x", dist.Uniform(-w, w))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Target.from_model(symmetric),
        lambda: Target.from_model(of_a_state),
        lambda: Target.from_model(of_an_argument, torch.tensor(1.0)).conditional_on("w"),
    ],
    ids=["of another site", "of a discrete site", "of an argument"],
)
def test_a_support_that_moves_is_refused(make):
    with pytest.raises(ModelStructureError, match="support of site 'x' depends on other sites"):
        make()


def test_a_support_that_stays_is_taken():
    """Parameters may depend on a state, and an argument that does not vary may set bounds."""

    def model(w, loc):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Uniform(torch.zeros(2), w).to_event(1))
        pyro.sample("y", dist.LogNormal(loc + k, 1.0))

    target = Target.from_model(model, torch.tensor(2.0), torch.tensor(0.0)).conditional_on("loc")
    assert target.unpack(torch.full((1, 3), 30.0))["x"].max() == pytest.approx(2.0)


# ---- values outside a support -------------------------------------------------------------------


def pareto():
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Pareto(s, 2.0), obs=Y)


def shifted_data():
    mu = normal("mu")
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Exponential(1.0), obs=Y - mu)


def shifted_distribution():
    mu = normal("mu")
    with pyro.plate("data", 3):
        shifted = [AffineTransform(mu, 1.0)]
        pyro.sample(
            "y", dist.TransformedDistribution(dist.Exponential(torch.ones(3)), shifted), obs=Y
        )


def joined():
    """One event of three coordinates, moved together."""
    mu = normal("mu")
    base = dist.Exponential(torch.ones(3)).to_event(1)
    pyro.sample("y", dist.TransformedDistribution(base, [AffineTransform(mu, 1.0)]), obs=Y)


@pytest.mark.parametrize(
    "model, inside, outside",
    [(pareto, -0.5, 0.5), *((m, 0.5, 1.5) for m in (shifted_data, shifted_distribution, joined))],
)
def test_data_outside_a_support_have_no_density(model, inside, outside):
    target = Target.from_model(model)
    points = torch.tensor([[inside], [outside]])
    found, grad = target.log_prob_and_grad(points)
    assert found[1] == -inf and grad[1] == 0
    trace = poutine.trace(poutine.condition(model, data=target.unpack(points[0]))).get_trace()
    _, ladj = target.sites[0].constrain(points[:1, :].reshape(1, *target.sites[0].shape))
    assert found[0] == pytest.approx(float(trace.log_prob_sum() + ladj[0]), rel=1e-5)


def test_a_latent_site_of_a_moved_density():
    """1 + 2 Exponential(1): torch takes its support for all numbers."""

    def model():
        base = dist.Exponential(1.0)
        pyro.sample("x", dist.TransformedDistribution(base, [AffineTransform(1.0, 2.0)]))

    found = Target.from_model(model).log_prob(torch.tensor([[-9.0], [0.9], [3.0]]))
    assert found.tolist() == [-inf, -inf, pytest.approx(-1 - log(2))]


@pytest.mark.parametrize("bad", [-1.0, nan])
def test_data_outside_a_support_that_stays_are_refused(bad):
    """Unless they are masked, in either way."""
    y = torch.tensor([1.0, bad, 2.0])

    def model(mask, inner):
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", 3), poutine.mask(mask=mask):
            pyro.sample("y", dist.Exponential(rate).mask(inner), obs=y)

    everything = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="site 'y': 1 of 3 observed values are NaN, or lie out"):
        Target.from_model(model, everything, everything)
    if bad == -1:
        truth = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0)) - 3
        for masks in ((y > 0, everything), (everything, y > 0)):
            found = Target.from_model(model, *masks).log_prob(torch.zeros(1, 1))
            assert torch.allclose(found, truth)


# ---- distributions that torch does not batch ----------------------------------------------------


def test_a_count_of_what_cannot_be():
    logits = torch.tensor([-inf, log(0.4), log(0.6)])

    def model(counts):
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("counts", dist.Multinomial(5, logits=logits), obs=counts)

    for counts in (torch.tensor([0.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 2.0])):
        expected = dist.Multinomial(5, logits=logits).log_prob(counts)
        log_p = Target.from_model(model, counts).log_prob(torch.zeros(1, 1))
        found = log_p + 0.5 * torch.tensor(2 * torch.pi).log()
        assert_close(found[0].exp(), expected.exp())


# ---- mixtures as latent sites -------------------------------------------------------------------

WEIGHTS = dist.Categorical(torch.tensor([0.9, 0.1]))


def of_vectors():
    parts = dist.Normal(torch.tensor([[0.0] * 3, [9.0] * 3]), torch.tensor([[1.0] * 3, [0.1] * 3]))
    return dist.MixtureSameFamily(WEIGHTS, parts.to_event(1))


def of_fractions():
    parts = dist.Beta(torch.tensor([1.0, 5.0]), 2.0)
    return dist.MixtureSameFamily(WEIGHTS, parts).expand([3]).to_event(1)


def of_intervals(high):
    parts = dist.Uniform(torch.zeros(3, 2), high)
    return dist.MixtureSameFamily(WEIGHTS.expand([3]), parts).to_event(1)


@pytest.mark.parametrize(
    "make", [of_vectors, of_fractions, lambda: of_intervals(torch.tensor([[2.0], [3.0], [4.0]]))]
)
def test_a_mixture_has_the_support_of_its_components(make, double):
    """The target's density is that of the mixture, with the Jacobian of the components' map."""
    target = Target.from_model(lambda: pyro.sample("x", make()))
    u = torch.randn(5, target.dim)
    x = target.unpack(u)["x"]
    assert make().support.check(x).all()
    jacobians = [torch.autograd.functional.jacobian(lambda p: target.unpack(p)["x"], p) for p in u]
    expected = make().log_prob(x) + torch.stack(jacobians).logdet()
    assert_close(target.log_prob(u), expected)


def test_a_mixture_of_other_supports_is_refused():
    """No bijection leads onto a union of intervals with other bounds."""
    with pytest.raises(ValueError, match="'x': no bijection"):
        Target.from_model(lambda: pyro.sample("x", of_intervals(torch.tensor([1.0, 2.0]))))
