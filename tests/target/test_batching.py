"""Batching of models: the right way is chosen, and rows do not change each other."""

from math import inf

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from support.models import BATCHING, named
from support.mutations import must_fail, mutation
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.target import batching
from pyro_flowsamp.target.batching import check_repeatable
from pyro_flowsamp.target.inspection import ModelStructureError


@pytest.mark.filterwarnings("ignore:the density is evaluated point by point")
@pytest.mark.parametrize("model, y, batching", named(BATCHING))
def test_equals_pyros_potential(model, y, batching):
    target = Target.from_model(model, y)
    assert target.batching == batching
    x = target.initial_points(3)
    log_p, grad = target.log_prob_and_grad(x)
    _, potential, _, _ = initialize_model(model, (y,))
    for row, value, slope in zip(x, log_p, grad):
        row = row.detach().requires_grad_()
        energy = potential(target.unpack_unconstrained(row))
        assert_close(-energy, value, rtol=1e-4, atol=1e-4)
        assert_close(-torch.autograd.grad(energy, row)[0], slope, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:the density is evaluated point by point")
def test_from_potential_that_reads_values():
    target = Target.from_potential(lambda u: u["x"] * u["x"].item(), {"x": torch.tensor(1.0)})
    assert target.batching == "loop"
    assert_close(target.log_prob(torch.tensor([[2.0], [3.0]])), torch.tensor([-4.0, -9.0]))


# ---- what a model may hide ----------------------------------------------------------------------


def test_a_site_outside_every_plate_is_no_batch():
    """Two values, and two points to choose the way of batching by."""

    def model():
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0))
        if (pyro.sample("s", dist.Normal(0.0, 1.0)) > 100).any():
            raise AssertionError
        pyro.sample("y", dist.Normal(b.sum(-1), 1.0), obs=torch.zeros(()))

    with pytest.warns(UserWarning, match="outside every plate"):
        target = Target.from_model(model)
    assert_close(target.log_prob(torch.zeros(5, 3)), torch.full((5,), -3.6758), atol=1e-4, rtol=0)


def normal(name="x"):
    return pyro.sample(name, dist.Normal(0.0, 1.0))


# ---- rows that disturb each other ---------------------------------------------------------------


def branching():
    with pyro.plate("p", 2):
        x = normal()
    if (x < -2).any():
        pyro.factor("out", torch.tensor(-inf))


def summing():
    """A likelihood so sharp that at two points the sum over the batch is lost in round-off."""
    with pyro.plate("p", 2):
        x = normal()
    assert torch.isfinite(x).all()  # which vmap cannot
    pyro.factor("f", -x.sum().square())
    with pyro.plate("q", 2):
        pyro.sample("y", dist.Normal(x, 1e-5), obs=torch.zeros(2))


@pytest.mark.filterwarnings("ignore:the density is evaluated point by point")
@pytest.mark.parametrize("model, other", [(branching, -3.0), (summing, 40.0)])
def test_points_do_not_change_each_others_density(model, other):
    target = Target.from_model(model)
    x = torch.tensor([[0.0, 0.0], [0.0, other]])
    assert torch.allclose(target.log_prob(x)[:1], target.log_prob(x[:1]))


# ---- what counts as data, and what is no site ---------------------------------------------------


@pytest.mark.filterwarnings("ignore:the density is evaluated point by point")
def test_a_late_site_beside_discrete_ones():
    def model():
        x, z = normal(), pyro.sample("z", dist.Bernoulli(0.3))
        late = pyro.sample("late", dist.Normal(0.0, 1.0)) if x.item() > 2 else 0.0
        pyro.sample("y", dist.Normal(x + late + z, 1.0), obs=torch.tensor(0.5))

    with pytest.raises(ModelStructureError, match="site 'late' appeared"):
        Target.from_model(model).log_prob(torch.tensor([[3.0]]))


# ---- distributions that torch does not batch ----------------------------------------------------


def choices(X, counts):
    w = pyro.sample("w", dist.Normal(torch.zeros(3, 4), 1.0).to_event(2))
    with pyro.plate("data", len(X)):
        pyro.sample("counts", dist.Multinomial(11, logits=X @ w), obs=counts)


def ordinal(X, y):
    """As the docs have it, for want of an OrderedLogistic that can be batched."""
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    eta, cuts = X @ b, torch.tensor([-1.0, 1.0])
    below = torch.sigmoid(cuts - eta[..., None])
    none = torch.zeros_like(eta)[..., None]
    edges = torch.cat([none, below, 1 + none], -1)
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Categorical(probs=edges.diff()), obs=y)


def test_multinomials_are_batched():
    X = torch.randn(20, 3)
    counts = dist.Multinomial(11, logits=torch.randn(20, 4)).sample()
    target, x = Target.from_model(choices, X, counts), torch.randn(5, 12)
    w = x.view(5, 3, 4)
    expected = dist.Normal(0.0, 1.0).log_prob(x).sum(-1)
    rows = [dist.Multinomial(11, logits=X @ v).log_prob(counts) for v in w]
    assert target.batching == "vmap"
    assert_close(target.log_prob(x), expected + torch.stack(rows).sum(-1))
    assert_close(target.pointwise_log_likelihood({"w": w})["counts"], torch.stack(rows))


def test_ordinal_regression_by_hand():
    X, y = torch.randn(20, 3), torch.randint(3, (20,))
    target, x = Target.from_model(ordinal, X, y), torch.randn(5, 3)
    logistic = [dist.OrderedLogistic(X @ b, torch.tensor([-1.0, 1.0])).log_prob(y) for b in x]
    expected = dist.Normal(0.0, 1.0).log_prob(x).sum(-1) + torch.stack(logistic).sum(-1)
    assert target.batching == "vmap"
    assert_close(target.log_prob(x), expected, rtol=1e-4, atol=1e-4)


# ---- random densities ----------------------------------------------------------------------------


def accepted(size, noise, dtype=torch.float32, runs=50):
    """The number of densities, of so many, that pass as the same at each evaluation."""
    found = 0
    for _ in range(runs):

        def density(x, c):
            return size - 0.5 * x.square().sum(-1) + noise * torch.randn(len(x), dtype=dtype)

        x = torch.randn(2, 3, dtype=dtype)
        try:
            check_repeatable(density, x, None, density(x, None))
            found += 1
        except ModelStructureError:
            pass
    return found


@pytest.mark.parametrize("size", [0.0, 1e2, -1e4, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_seen_whatever_the_size(size, dtype):
    assert accepted(size, 1.0, dtype) == 0
    assert accepted(size, 0.0, dtype) == 50


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_rounding_errors_are_no_noise(size):
    """An atomic sum on a device adds in another order each time."""

    def density(x, c):
        ulps = torch.randint(-1, 2, (len(x),)) * torch.finfo(x.dtype).eps
        return size * (1 + ulps) - 0.5 * x.square().sum(-1)

    for _ in range(50):
        x = torch.randn(2, 3)
        check_repeatable(density, x, None, density(x, None))


def test_densities_that_are_not_finite_are_repeatable():
    x = torch.randn(3, 1)
    fixed = torch.tensor([torch.nan, -torch.inf, 0.0])
    check_repeatable(lambda x, c: fixed.clone(), x, None, fixed)
    with pytest.raises(ModelStructureError):
        check_repeatable(lambda x, c: fixed + fixed[torch.randperm(3)], x, None, fixed)


@mutation(batching, "check_repeatable")
def relative_to_the_density(check_repeatable, density, x, c, first):
    if not torch.allclose(density(x, c), first, rtol=1e-3, atol=1e-4):
        raise ModelStructureError


def test_a_relative_comparison_would_not_see_it():
    def noise_that_passes():
        return sum(1 for size in (1e4, 1e6) if passes(size))

    must_fail(relative_to_the_density, score=noise_that_passes, above=1)
    assert noise_that_passes() == 0


def passes(size):
    """Whether a model with noise of one nat is accepted."""

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("noise", size + torch.randn(()) + 0 * x)

    try:
        Target.from_model(model)
    except ModelStructureError:
        return False
    return True


@pytest.mark.filterwarnings("ignore:the density is evaluated point by point")
def test_data_with_as_many_rows_as_the_points_of_the_check():
    """They are broadcast against a batch of two points by coincidence."""

    def model(y):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
        with pyro.plate("sequences", len(y)):
            normal = dist.Normal(torch.zeros(2), 1.0).expand([len(y), 3, 2])
            normal = normal.mask(torch.ones(len(y), 3, 1).bool())
            pyro.sample("y", dist.DiscreteHMM(torch.zeros(2), p.log(), normal), obs=y)

    target = Target.from_model(model, torch.randn(2, 3))
    x = torch.randn(5, target.dim)
    one_by_one = torch.cat([target.log_prob(row[None]) for row in x])
    assert_close(target.log_prob(x), one_by_one)
