"""Discrete sites are summed out."""

from math import log

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyro_flowsamp import Target


def test_declared_states_and_data():
    """The same in a plate: each state of z is one of all the data."""

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.3))
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Normal(mean + z, 1.0), obs=torch.tensor([0.0, 3.0]))

    normal, y, mean = dist.Normal(0.0, 1.0), torch.tensor([0.0, 3.0]), torch.tensor(0.5)
    states = [
        weight.log() + normal.log_prob(y - mean - z).sum()
        for z, weight in enumerate(torch.tensor([0.7, 0.3]))
    ]
    truth = torch.stack(states).logsumexp(0) + normal.log_prob(mean)
    assert_close(Target.from_model(model).log_prob(mean.reshape(1, 1))[0], truth)


Y = torch.tensor([1.0, 2.0, 3.0])


def normal(name="x"):
    return pyro.sample(name, dist.Normal(0.0, 1.0))


# ---- values outside a support -------------------------------------------------------------------


def test_states_may_move_a_support():
    """y = 1.5 excludes the state whose Pareto begins at 2."""

    def model():
        x = normal()
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Pareto(1.0 + k, x.exp()), obs=torch.tensor(1.5))

    found = Target.from_model(model).log_prob(torch.zeros(1, 1))
    truth = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0)) + log(0.5) - 2 * log(1.5)
    assert torch.allclose(found, truth)


# ---- rows that disturb each other ---------------------------------------------------------------


@pytest.mark.parametrize("num", [1, 2, 3])
def test_enumerated_plates_of_any_number_of_points(num):
    def model():
        x = normal()
        assert torch.isfinite(x).all()
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(x + 3 * z, 1.0), obs=Y)

    target = Target.from_model(model)
    assert target.batching == "plate"
    zero = torch.zeros(3)
    parts = [dist.Normal(zero + 3 * z, 1.0).log_prob(Y) + log(p) for z, p in ((0, 0.7), (1, 0.3))]
    truth = torch.stack(parts).logsumexp(0).sum() + dist.Normal(0.0, 1.0).log_prob(zero[0])
    assert torch.allclose(target.log_prob(torch.zeros(num, 1)), truth.expand(num))


def test_the_gradient_where_a_state_is_impossible():
    """All states of z are, where k = 0 and x = -2, but not where k = 1."""

    def model():
        x, k = normal(), pyro.sample("k", dist.Bernoulli(0.5))
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            high = 3.0 + x + 5 * k
            pyro.sample("y", dist.Uniform(0.0 * z, high), obs=torch.tensor([2.0, 0.5]))
            pyro.sample("w", dist.Normal(x + z, 1.0), obs=torch.tensor([0.0, 1.0]))

    target = Target.from_model(model)
    at, h = torch.tensor([[-2.0]]), 1e-2
    difference = (target.log_prob(at + h) - target.log_prob(at - h)) / (2 * h)
    assert torch.allclose(target.log_prob_and_grad(at)[1][0], difference, rtol=1e-3)
