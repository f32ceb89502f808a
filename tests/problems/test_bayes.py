"""Logistic regression: density and predictions."""

import pyro
import pytest
import torch
from pyro import poutine

from pyro_flowsamp import Target
from pyro_flowsamp.problems import accuracy, log_predictive, logistic_regression


@pytest.fixture(autouse=True)
def float64(clean_slate):
    torch.set_default_dtype(torch.float64)


# ---- logistic regression ------------------------------------------------------------------------

X = torch.tensor([[1.0, -1.0], [1.0, 0.5], [1.0, 2.0]], dtype=torch.float64)
Y = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)


def test_logistic_regression_density():
    target = Target.from_model(logistic_regression, X, Y)
    assert target.batching == "vmap" and target.dim == 3
    alpha, beta = torch.tensor([2.0, 30.0]), torch.tensor([[0.1, -0.3], [1.0, 2.0]])
    prior = torch.distributions.Gamma(1.0, 0.01).log_prob(alpha)
    prior = prior + torch.distributions.Normal(0.0, alpha.rsqrt()[:, None]).log_prob(beta).sum(-1)
    likelihood = torch.distributions.Bernoulli(logits=beta @ X.T).log_prob(Y).sum(-1)
    log_p = target.log_prob(target.pack({"alpha": alpha, "beta": beta}))
    torch.testing.assert_close(log_p, prior + likelihood + alpha.log())


def test_logistic_regression_in_parallel():
    with pyro.plate("particles", 7, dim=-2):
        trace = poutine.trace(logistic_regression).get_trace(X, Y)
    assert trace.nodes["beta"]["value"].shape == (7, 2)
    assert torch.isfinite(trace.log_prob_sum())


def test_predictions():
    beta = torch.tensor([[0.0, 1.0], [0.5, 2.0], [-3.0, 0.1]])
    probability = torch.sigmoid(beta @ X.T).mean(0)
    density = torch.where(Y == 1, probability, 1 - probability)
    torch.testing.assert_close(log_predictive(beta, X, Y), density.log().mean())
    assert accuracy(beta, X, Y) == ((probability > 0.5) == (Y == 1)).double().mean()
    assert accuracy(-beta[:2], X, Y) == 0
