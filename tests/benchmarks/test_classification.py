"""Data sets of the papers' logistic regression."""

import pytest
import torch
from problems import classification

from pyro_flowsamp import Target
from pyro_flowsamp.problems import accuracy, log_predictive, logistic_regression

SIZES = {  # rows, and columns with the intercept
    "german_credit": (1000, 25),
    "breast_cancer": (569, 31),
    "wine": (178, 14),
    "iris": (150, 5),
    "digits": (1797, 62),
}


def load(name, **options):
    if name != "german_credit":
        pytest.importorskip("sklearn")
    return classification.load(name, **options)


def test_all_are_tested():
    assert set(classification.TABLES) == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_split(name):
    (X, y), (held_out, z) = load(name)
    rows, columns = SIZES[name]
    assert len(X) == len(y) == round(0.8 * rows) and len(X) + len(held_out) == rows
    assert X.shape[1] == held_out.shape[1] == columns
    assert (X[:, 0] == 1).all() and (held_out[:, 0] == 1).all()
    torch.testing.assert_close(X[:, 1:].mean(0), torch.zeros(columns - 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(X[:, 1:].var(0, correction=0), torch.ones(columns - 1))
    assert set(y.tolist()) == set(z.tolist()) == {0.0, 1.0}


def test_seed_decides_the_split():
    one, again, other = (load("german_credit", seed=s)[0][0] for s in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize("name", SIZES)
def test_the_mode_predicts(name):
    """The most probable coefficients beat the best constant prediction on held-out data."""
    torch.set_default_dtype(torch.float64)
    train, (X, y) = load(name)
    target = Target.from_model(logistic_regression, *train)
    x = torch.zeros(1, target.dim, requires_grad=True)
    optimiser = torch.optim.LBFGS([x], max_iter=60, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = -target.log_prob(x).sum()
        value.backward()
        return value

    optimiser.step(loss)
    beta = target.unpack(x.detach())["beta"]
    share = y.mean()
    assert accuracy(beta, X, y) > torch.maximum(share, 1 - share)
    assert log_predictive(beta, X, y) > torch.xlogy(share, share) + torch.xlogy(
        1 - share, 1 - share
    )
