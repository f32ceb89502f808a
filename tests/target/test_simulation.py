"""Draws under vmap: their moments, and that no two rows share their random numbers."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.mutations import must_fail, mutation

from pyro_flowsamp.target import simulation
from pyro_flowsamp.target.simulation import drawn

ROWS = 20_000
#: distributions that torch fills in place, or draws by a function that vmap cannot batch
CASES = {
    "Normal": lambda one: dist.Normal(2 * one, 3.0),
    "StudentT": lambda one: dist.StudentT(9.0, one, 2.0),
    "Exponential": lambda one: dist.Exponential(4 * one),
    "Uniform": lambda one: dist.Uniform(-one, 3 * one),
    "Geometric": lambda one: dist.Geometric(0.3 * one),
    "Laplace": lambda one: dist.Laplace(one, 2.0),
    "Poisson": lambda one: dist.Poisson(3 * one),
    "Beta": lambda one: dist.Beta(2 * one, 3.0),
    "Dirichlet": lambda one: dist.Dirichlet(one * torch.tensor([1.0, 2.0, 3.0])),
    "BetaBinomial": lambda one: dist.BetaBinomial(2 * one, 3.0, 5.0),
    "Multinomial": lambda one: dist.Multinomial(6, one * torch.tensor([0.5, 0.2, 0.3])),
    "DirichletMultinomial": lambda one: dist.DirichletMultinomial(
        one * torch.tensor([1.0, 2.0, 3.0]), 5.0
    ),
    "MultivariateNormal": lambda one: dist.MultivariateNormal(
        one * torch.tensor([1.0, -1.0]), torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    ),
    "masked": lambda one: dist.Beta(2 * one, 3.0).expand([2]).to_event(1).mask(False),
}


def worst_z(make, batched=True):
    """The largest z-score of means and of second moments about the true mean."""
    one, own = torch.ones(ROWS), torch.tensor(1.0)
    run = (lambda row: drawn(make(row))) if batched else (lambda row: drawn(make(own)))
    with pyro.validation_enabled(False):
        x = torch.func.vmap(run, randomness="different")(one).double().reshape(ROWS, -1)
    true = make(own)
    square = (x - true.mean).square()
    scores = [
        (x.mean(0) - true.mean) / (x.std(0) / ROWS**0.5),
        (square.mean(0) - true.variance) / (square.std(0) / ROWS**0.5),
    ]
    return float(torch.stack(scores).abs().max())


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "shared parameters"])
@pytest.mark.parametrize("name", CASES)
def test_moments_under_vmap(name, batched):
    assert worst_z(CASES[name], batched) < 4.5


def test_counts_of_categories_have_their_covariance():
    probs = torch.tensor([0.5, 0.2, 0.0, 0.3])
    run = torch.func.vmap(
        lambda row: drawn(dist.Multinomial(7, row * probs)), randomness="different"
    )
    with pyro.validation_enabled(False):
        counts = run(torch.ones(ROWS)).double()
    assert (counts.sum(-1) == 7).all() and (counts[:, 2] == 0).all()
    product = (counts[:, 0] - 3.5) * (counts[:, 3] - 2.1)
    assert abs(float((product.mean() + 7 * 0.15) / product.std())) * ROWS**0.5 < 4.5


def test_a_cauchy_has_its_quantiles():
    run = torch.func.vmap(lambda row: drawn(dist.Cauchy(row, 2.0)), randomness="different")
    inside = (run(torch.ones(ROWS)) - 1).abs() < 2  # half of the mass
    assert abs(float(inside.double().mean()) - 0.5) < 4.5 * 0.5 / ROWS**0.5


@pytest.mark.parametrize("name", CASES)
def test_rows_differ(name):
    def run(row):
        return drawn(CASES[name](torch.tensor(1.0)))

    with pyro.validation_enabled(False):
        draws = torch.func.vmap(run, randomness="different")(torch.ones(50)).reshape(50, -1)
    assert len(draws.unique(dim=0)) > 3


def test_draws_follow_pyros_seed():
    def run():
        torch.manual_seed(3)
        sample = torch.func.vmap(
            lambda row: drawn(dist.StudentT(4.0, row, 1.0)), randomness="different"
        )
        return sample(torch.ones(5))

    assert torch.equal(run(), run())


def test_without_vmap_a_draw_is_that_of_the_distribution():
    torch.manual_seed(0)
    expected = dist.Gamma(2.0, 1.0).sample()
    torch.manual_seed(0)
    assert drawn(dist.Gamma(2.0, 1.0)) == expected


@mutation(simulation, "drawn")
def too_wide(drawn, fn):
    return fn.mean + 1.05 * (drawn(fn) - fn.mean)


@mutation(simulation, "drawn")
def the_same_in_every_row(drawn, fn):
    return torch.ones_like(fn.mean) * fn.mean + 0 * drawn(fn)


@pytest.mark.parametrize("wrong", [too_wide, the_same_in_every_row], ids=lambda m: m.__name__)
def test_the_check_of_moments_can_fail(wrong):
    must_fail(wrong, score=lambda: _worst_of_module(), above=4.5)


def _worst_of_module():
    one = torch.ones(ROWS)
    run = torch.func.vmap(
        lambda row: simulation.drawn(dist.Normal(row, 1.0)), randomness="different"
    )
    square = (run(one).double() - 1).square()
    return float((square.mean() - 1).abs() / (2 / ROWS) ** 0.5)
