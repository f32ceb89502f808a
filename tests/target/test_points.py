"""Draws from a model's prior: their moments, and priors that cannot be drawn from."""

from math import sqrt

import pyro
import pyro.distributions as dist
import pytest
import torch
from support import models
from support.mutations import must_fail, mutation
from support.statistics import z_score
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.target import points

Y = torch.tensor([1.0, -1.0, 2.0])
THRESHOLD = 4.5  #: standard errors


def hierarchy(y):
    """Supports of all kinds, plates, a discrete site, a factor, and data that change no draw."""
    mean = pyro.sample("mean", dist.Normal(1.0, 1.0))
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    pyro.sample("weights", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    pyro.factor("tilt", -mean.square())
    with pyro.plate("groups", len(y)):
        level = pyro.sample("level", dist.Normal(mean, scale))
        side = pyro.sample("side", dist.Bernoulli(0.25))
        share = pyro.sample("share", dist.Beta(1 + 3 * side, 4.0))
        pyro.sample("y", dist.Normal(level + share, 1.0), obs=y)


def scores(num=500):
    """Return z-scores of prior draws of the hierarchy against their moments."""
    pyro.set_rng_seed(1)
    target = Target.from_model(hierarchy, Y)
    draws = target.unpack(target.prior_points(num))
    level = draws["level"]
    pairs = [
        (draws["mean"][:, None], torch.tensor([1.0])),
        (draws["scale"][:, None], torch.tensor([2.0])),
        (draws["weights"], torch.tensor([1.0, 2.0, 3.0]) / 6),
        (level, torch.ones(3)),
        ((level - 1).square(), torch.full((3,), 1 + 6.0)),  # Var mean + E scale²
        ((level[:, :1] - 1) * (level[:, 1:] - 1), torch.ones(2)),  # levels share their mean
        (draws["share"], torch.full((3,), 0.75 / 5 + 0.25 / 2)),
    ]
    return torch.cat([z_score(values, truth) for values, truth in pairs])


def test_moments():
    assert scores().abs().max() < THRESHOLD


@mutation(points, "_draw")
def at_unconstrained_points(draw, model, layout, context):
    """Uniform in unconstrained space, as initial points are."""
    values, _ = layout.constrain(torch.empty(1, layout.dim).uniform_(-2, 2))
    return {name: value[0] for name, value in values.items()}


@mutation(points, "_draw")
def the_first_draw_twice(draw, model, layout, context):
    """Sites of one plate that repeat its first element."""
    values = draw(model, layout, context)
    return {**values, "level": values["level"][:1].expand(3)}


@pytest.mark.parametrize("wrong", [at_unconstrained_points, the_first_draw_twice])
def test_the_moments_see(wrong):
    must_fail(wrong, score=lambda: scores().abs().max(), above=THRESHOLD)


def test_missing_data_are_drawn():
    """All of them, the shown ones too: their coordinates have the density of a prediction."""

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y, obs_mask=~y.isnan())

    target = Target.from_model(model, torch.tensor([torch.nan, 5.0]))
    x = target.prior_points(300)
    assert x.shape == (300, 3)
    variance = x.square() - torch.tensor([4.0, 5.0, 5.0])
    assert z_score(variance, 0.0).abs().max() < THRESHOLD


def test_random_numbers_are_those_of_the_model():
    target = Target.from_model(models.conjugate, *models.conjugate_data())
    pyro.set_rng_seed(3)
    x = target.prior_points(5)
    after = torch.rand(2)
    pyro.set_rng_seed(3)
    for i in range(5):
        trace = pyro.poutine.trace(models.conjugate).get_trace(*models.conjugate_data())
        values = target.unpack(x[i])
        for name in values:
            assert_close(trace.nodes[name]["value"], values[name])
    assert_close(torch.rand(2), after)


def test_points_without_density_are_left_out():
    def model():
        width = pyro.sample("width", dist.Exponential(1.0))
        pyro.sample("y", dist.Uniform(0.0, width), obs=torch.tensor(1.0))

    target = Target.from_model(model)
    x = target.prior_points(400)
    assert bool((target.unpack(x)["width"] > 1).all()) and target.log_prob(x).isfinite().all()
    share = 0.36788
    assert abs(len(x) - 400 * share) < THRESHOLD * sqrt(400 * share * (1 - share))


def test_a_matrix_that_fails_costs_its_draw_only():
    def model():
        r = pyro.sample("r", dist.Normal(0.0, 1.5))
        matrix = torch.stack([torch.ones_like(r), r, r, torch.ones_like(r)]).reshape(2, 2)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), matrix), obs=torch.zeros(2))

    x = Target.from_model(model).prior_points(200)
    assert 60 < len(x) < 140 and bool((x.abs() < 1).all())  # half of them are in (-1, 1)


def test_contexts():
    def model(scale):
        x = pyro.sample("x", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Uniform(-1.0, 1.0 + x), obs=torch.tensor(0.0))

    target = Target.from_model(model, torch.tensor(0.01)).conditional_on("scale")
    assert float(target.prior_points(50).std()) < 0.02
    x = target.at_contexts(torch.tensor([[0.01], [1.0]])).prior_points(401)
    assert len(x) % 2 == 0 and len(x) < 400
    narrow, wide = x.reshape(-1, 2).T
    assert float(narrow.std()) < 0.02 and float(wide.std()) > 0.2
    assert 290 < len(x) < 370  # of the pairs those with a wide one above -1: 84 %


@pytest.mark.filterwarnings("ignore:the density does not depend on")
@pytest.mark.parametrize(
    "prior",
    [
        lambda: pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), (2,))),
        lambda: pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1).mask(False)),
        lambda: pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).mask(Y[:2] > 0).to_event(1)),
        lambda: pyro.poutine.mask(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), mask=False)(),
        lambda: pyro.poutine.scale(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), scale=0.5)(),
    ],
    ids=["improper", "masked", "masked in part", "in a masked block", "scaled"],
)
def test_priors_that_cannot_be_drawn_from(prior):
    def model():
        x = prior()
        pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=torch.tensor(0.0))

    assert Target.from_model(model).prior_points(3) is None


def test_a_model_that_fails_on_its_prior():
    calls = []

    def model():
        if len(calls) > 2:
            raise RuntimeError("the solver has diverged")
        pyro.sample("x", dist.Normal(0.0, 1.0))

    target = Target.from_model(model)
    assert len(target.prior_points(3)) == 3
    calls.extend("abc")
    assert target.prior_points(3) is None


def test_no_model_has_no_prior():
    assert Target.from_energy(models.energy, 2).prior_points(3) is None


# ---- initial points near starts -----------------------------------------------------------------


def test_initial_points_near_starts():
    """The starts with a density come first, up to half of the points; the others are elsewhere."""
    everywhere = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    everywhere.starts = torch.tensor([[7.0, 7.0], [8.0, 8.0]])
    found = everywhere.initial_points(12)
    assert_close(found[:2], everywhere.starts)
    assert (found[2:].abs() <= 2).all()
    everywhere.starts = torch.full((50, 2), 7.0)
    assert ((everywhere.initial_points(12) == 7).all(1).sum()) == 6

    box = Target.from_energy(lambda x: torch.where((x - 50).abs() < 3, 0 * x, torch.inf).sum(-1), 2)
    box.starts = torch.tensor([[51.0, 49.0], [0.0, 0.0]])
    found = box.initial_points(64)
    assert_close(found[:1], box.starts[:1])
    assert len(found.unique(dim=0)) == 64 and ((found - 50).abs() < 3).all()
    nowhere = Target.from_energy(lambda x: torch.where(x[..., 0] > 1e9, x[..., 0], torch.inf), 2)
    nowhere.starts = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="NaN or -inf at every initial point"):
        nowhere.initial_points(4)


def uniform_data():
    """The density is zero but for a scale above the largest number: 15 in log coordinates."""
    high = pyro.sample("high", dist.Pareto(1000.0, 1.0))
    with pyro.plate("n", 2):
        pyro.sample("y", dist.Uniform(0.0, high), obs=torch.tensor([1.2e6, 4.2e6]))


def uniform_interval():
    low = pyro.sample("low", dist.Normal(1000.0, 50.0))
    width = pyro.sample("width", dist.LogNormal(3.0, 2.0))
    with pyro.plate("n", 2):
        pyro.sample("y", dist.Uniform(low, low + width), obs=torch.tensor([1012.0, 1018.0]))


@pytest.mark.parametrize("model", [uniform_data, uniform_interval])
def test_initial_points_of_data_in_their_own_units(model):
    """Where no box near the origin has a density, the prior or wider boxes have points of one."""
    target = Target.from_model(model)
    found = target.initial_points(20)
    assert found.shape == (20, target.dim) and target.log_prob(found).isfinite().all()
    assert len(found.unique(dim=0)) > 1


def test_nearer_boxes_come_first():
    """Draws of the prior and wide boxes are no starts where the nearer boxes have some."""
    target = Target.from_energy(lambda x: torch.where(x[..., 0] > 9.5, x[..., 0], torch.inf), 1)
    assert (target.initial_points(200) <= 10).all()
