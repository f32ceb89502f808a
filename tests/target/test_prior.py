"""The prior of a model as a target of its own."""

from math import log

import pyro
import pyro.distributions as dist
import pytest
import torch
from support import models
from support.models import conjugate, conjugate_data
from support.mutations import must_fail, mutation
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.target import prior

Y = torch.tensor([0.5, -1.0, 2.0])


def hierarchy(y):
    mean = pyro.sample("mean", dist.Normal(1.0, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    pyro.factor("tilt", -mean.square())
    with pyro.plate("groups", len(y)):
        level = pyro.sample("level", dist.Normal(mean, scale))
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def test_a_model_with_plates():
    """Data and factors are left out; the log-det of each support stays."""
    target = Target.from_model(hierarchy, Y)
    alone = prior.prior_target(target)
    assert [(s.name, s.shape) for s in alone.sites] == [(s.name, s.shape) for s in target.sites]
    x = torch.randn(20, 5)
    values = target.unpack(x)
    truth = (
        dist.Normal(1.0, 2.0).log_prob(values["mean"])
        + dist.LogNormal(0.0, 1.0).log_prob(values["scale"])
        + values["scale"].log()
        + dist.Normal(values["mean"][:, None], values["scale"][:, None])
        .log_prob(values["level"])
        .sum(-1)
    )
    assert_close(alone.log_prob(x), truth, rtol=1e-4, atol=1e-4)


def error_of_mass():
    """Return the error of the log integral of a prior over the plane."""
    alone = prior.prior_target(Target.from_model(conjugate, *conjugate_data()))
    side = torch.linspace(-16, 16, 801)
    log_p = alone.log_prob(torch.cartesian_prod(side, side)).double()
    return abs(float(log_p.logsumexp(0)) + 2 * log(float(side[1] - side[0])))


def test_the_evidence_of_a_prior_is_one():
    assert error_of_mass() < 1e-3


@mutation(prior, "prior_target")
def with_its_data(prior_target, target):
    return target


def test_a_prior_without_its_data_is_needed():
    must_fail(with_its_data, score=error_of_mass, above=1.0)


def test_the_likelihood_is_what_is_left():
    target = Target.from_model(conjugate, *conjugate_data())
    x = torch.randn(10, 2)
    values = target.unpack(x)
    y, counts = conjugate_data()
    truth = dist.Normal(values["mean"][:, None], 1.0).log_prob(y).sum(-1)
    truth = truth + dist.Poisson(values["rate"][:, None]).log_prob(counts).sum(-1)
    assert_close(
        target.log_prob(x) - prior.prior_target(target).log_prob(x), truth, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("model", [models.schools, models.correlated, models.gp, models.masked])
def test_draws_of_the_prior_have_its_density(model):
    rows = torch.tensor([[0.5, -1.0], [2.0, 0.3]]) if model is models.correlated else Y
    target = Target.from_model(model, rows)
    x = target.prior_points(20)
    assert torch.isfinite(prior.prior_target(target).log_prob(x)).all()


def test_evaluations_are_counted_apart():
    target = Target.from_model(conjugate, *conjugate_data())
    alone, before = prior.prior_target(target), target.evaluations
    alone.log_prob(torch.zeros(7, 2))
    assert target.evaluations == before and alone.evaluations >= 7


def test_targets_without_a_prior():
    assert prior.prior_target(Target.from_model(models.enumerated, Y)) is None
    assert prior.prior_target(Target.from_energy(lambda x: x.square().sum(-1), 2)) is None
    conditional = Target.from_model(models.location, torch.zeros(2)).conditional_on("y")
    assert prior.prior_target(conditional) is None


def test_a_model_that_needs_its_data():
    """The value of an observed site decides what is drawn: without data it fails or differs."""

    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        seen = pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        pyro.sample("z", dist.Normal(seen, 1.0))

    target = Target.from_model(model, torch.tensor(3.0))
    alone = prior.prior_target(target)
    if alone is not None:
        x = torch.tensor([[0.0, 3.0]])
        assert_close(alone.log_prob(x), dist.Normal(0.0, 1.0).log_prob(torch.zeros(2)).sum()[None])
