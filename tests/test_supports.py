"""Supports that move, values outside of them, rows that disturb each other: all against truths."""

from math import inf, log, nan

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from torch.distributions import AffineTransform
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.target import ModelStructureError

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
        lambda: Target.from_model(of_an_argument, torch.tensor(1.0)).amortize("w"),
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

    target = Target.from_model(model, torch.tensor(2.0), torch.tensor(0.0)).amortize("loc")
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


def test_data_may_depend_on_an_argument():
    """Given on each call, they may leave a support that those of the beginning were in."""

    def model(y):
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        pyro.sample("y", dist.Exponential(rate), obs=y)

    target = Target.from_model(model, torch.tensor(1.0)).amortize("y")
    found = target.log_prob(torch.zeros(2, 1), torch.tensor([[1.0], [-1.0]]))
    assert found[0].isfinite() and found[1] == -inf


def test_states_may_move_a_support():
    """y = 1.5 excludes the state whose Pareto begins at 2."""

    def model():
        x = normal()
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Pareto(1.0 + k, x.exp()), obs=torch.tensor(1.5))

    found = Target.from_model(model).log_prob(torch.zeros(1, 1))
    truth = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0)) + log(0.5) - 2 * log(1.5)
    assert torch.allclose(found, truth)


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


# ---- bad matrices -------------------------------------------------------------------------------


def correlated():
    r = pyro.sample("r", dist.Normal(0.0, 0.3))
    one = torch.ones_like(r)
    matrix = torch.stack([torch.stack([one, r]), torch.stack([r, one])])
    normal = dist.MultivariateNormal(torch.zeros(2), matrix)
    pyro.sample("y", normal, obs=torch.tensor([0.3, 0.2]))


@pytest.mark.parametrize("seed", range(8))
def test_a_matrix_that_is_not_positive_definite_everywhere(seed):
    pyro.set_rng_seed(seed)
    found = Target.from_model(correlated).log_prob(torch.tensor([[0.1], [-1.5], [0.5], [1.5]]))
    assert found.isfinite().tolist() == [True, False, True, False]


def test_a_matrix_that_is_never_positive_definite():
    def model():
        matrix = torch.stack([normal(), torch.tensor(2.0), torch.tensor(2.0), torch.tensor(0.0)])
        pyro.sample("y", dist.MultivariateNormal(Y[:2], matrix.reshape(2, 2)), obs=Y[:2])

    with pytest.raises(ValueError, match="cannot be factorised at any of the points tried"):
        Target.from_model(model)


def test_bad_matrices_are_sought_by_halves():
    calls = []

    def energy(x):
        calls.append(len(x))
        return torch.linalg.cholesky(x[:, :, None] + 1)[:, 0, 0]

    target = Target.from_energy(energy, 1)
    calls.clear()
    x = torch.zeros(1024, 1)
    x[700] = -2
    found = target.log_prob(x)
    assert not found[700].isfinite() and int(found.isfinite().sum()) == 1023
    assert len(calls) == 1 + 2 * 10


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
    assert target.conditioned and not Target.from_model(moved).conditioned


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


@pytest.mark.filterwarnings("ignore:the density is evaluated point by point")
def test_a_late_site_beside_discrete_ones():
    def model():
        x, z = normal(), pyro.sample("z", dist.Bernoulli(0.3))
        late = pyro.sample("late", dist.Normal(0.0, 1.0)) if x.item() > 2 else 0.0
        pyro.sample("y", dist.Normal(x + late + z, 1.0), obs=torch.tensor(0.5))

    with pytest.raises(ModelStructureError, match="site 'late' appeared"):
        Target.from_model(model).log_prob(torch.tensor([[3.0]]))


def test_no_points_at_all():
    assert Target.from_model(normal).log_prob(torch.zeros(0, 1)).shape == (0,)


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


def test_ordinal_regression_by_hand():
    X, y = torch.randn(20, 3), torch.randint(3, (20,))
    target, x = Target.from_model(ordinal, X, y), torch.randn(5, 3)
    logistic = [dist.OrderedLogistic(X @ b, torch.tensor([-1.0, 1.0])).log_prob(y) for b in x]
    expected = dist.Normal(0.0, 1.0).log_prob(x).sum(-1) + torch.stack(logistic).sum(-1)
    assert target.batching == "vmap"
    assert_close(target.log_prob(x), expected, rtol=1e-4, atol=1e-4)
