"""Deterministic sites, log priors, new data and draws from the prior, beside known values."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from support.models import conjugate, conjugate_data, data, enumerated, reading, schools
from support.mutations import must_fail, mutation

from pyro_flowsamp import Target
from pyro_flowsamp.target import quantities, simulation
from pyro_flowsamp.target.quantities import (
    deterministic_values,
    log_prior,
    model_variables,
    prior_draws,
    replicated_data,
)

NUM = 20_000


def derived(y):
    """Deterministic sites inside and outside a plate, of all kinds of shapes."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)
    pyro.deterministic("total", theta.sum())
    pyro.deterministic("positive", theta > 0)


def looked_at(y):
    """Needs a Python number, so that only the loop can run it."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.deterministic("twice", torch.tensor(2 * x.item()))
    pyro.sample("y", dist.Normal(x, 1.0).expand([len(y)]).to_event(1), obs=y)


# ---- structure -----------------------------------------------------------------------------------


def test_variables_and_their_plates():
    found = model_variables(Target.from_model(derived, data(1.0, 2.0, 3.0)))
    assert list(found.latent) == ["mu", "tau", "z"]
    assert list(found.deterministic) == ["theta", "total", "positive"]
    assert found.latent["z"].plates == found.observed["y"].plates == ("schools",)
    assert found.deterministic["theta"].plates == ("schools",)
    assert found.deterministic["positive"].plates == (None,)  # outside the plate
    assert found.latent["mu"].plates == found.deterministic["total"].plates == ()
    torch.testing.assert_close(found.data["y"], data(1.0, 2.0, 3.0))
    assert found.numbers == 1 + 1 + 3 + 3 + 1 + 3 + 3


def nested(y):
    with pyro.plate("columns", 3, dim=-1):
        column = pyro.sample("column", dist.Dirichlet(torch.ones(4)))
        pyro.deterministic("first", column[..., :1], event_dim=1)
        with pyro.plate("rows", 2, dim=-2):
            cell = pyro.sample("cell", dist.Normal(torch.zeros(5), 1.0).to_event(1))
            pyro.deterministic("square", torch.zeros(3, 3) + cell.sum())
            pyro.sample("y", dist.Normal(cell.sum(-1), 1.0), obs=y)


def test_plates_of_nested_and_undeclared_dimensions():
    found = model_variables(Target.from_model(nested, torch.zeros(2, 3)))
    assert found.latent["column"].plates == ("columns", None)
    assert found.latent["cell"].plates == ("rows", "columns", None)
    assert found.latent["cell"].batch_dims == 2
    assert found.observed["y"].plates == ("rows", "columns")
    assert found.deterministic["first"].plates == ("columns", None)
    assert found.deterministic["square"].plates == (None, None)  # which of the two is unknown


def test_a_target_without_a_model_has_its_coordinates():
    found = model_variables(Target.from_energy(lambda x: x.square().sum(-1), 3))
    assert found.latent["x"].shape == (3,) and found.data == {}
    for function in (deterministic_values, log_prior, replicated_data):
        with pytest.raises(ValueError, match="without a model"):
            function(Target.from_energy(lambda x: x.square().sum(-1), 3), {})


# ---- at draws ------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [1, 2**22], ids=["one chunk", "chunks of four"])
def test_deterministic_values(numbers):
    samples = {"mu": torch.randn(50), "tau": torch.rand(50), "z": torch.randn(50, 3)}
    target = Target.from_model(derived, data(1.0, 2.0, 3.0))
    found = deterministic_values(target, samples, numbers)
    theta = samples["mu"][:, None] + samples["tau"][:, None] * samples["z"]
    torch.testing.assert_close(found["theta"], theta)
    torch.testing.assert_close(found["total"], theta.sum(-1))
    assert torch.equal(found["positive"], theta > 0)


def test_deterministic_values_of_a_model_that_vmap_cannot_run():
    with pytest.warns(UserWarning, match="loop"):
        target = Target.from_model(looked_at, data(1.0))
    samples = {"x": torch.randn(4)}
    torch.testing.assert_close(deterministic_values(target, samples)["twice"], 2 * samples["x"])


def test_log_prior_is_that_of_the_constrained_value():
    samples = {"mu": torch.randn(6), "tau": torch.rand(6), "theta": torch.randn(6, 3)}
    found = log_prior(Target.from_model(schools, data(1.0, 2.0, 3.0)), samples)
    torch.testing.assert_close(found["tau"], dist.HalfCauchy(5.0).log_prob(samples["tau"]))
    given = dist.Normal(samples["mu"][:, None], samples["tau"][:, None])
    torch.testing.assert_close(found["theta"], given.log_prob(samples["theta"]))


def weighed(y):
    with poutine.scale(scale=3.0):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)), poutine.mask(mask=y > 0):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def test_densities_have_masks_and_no_scales():
    y, x = data(1.0, -1.0), torch.randn(5)
    target = Target.from_model(weighed, y)
    torch.testing.assert_close(log_prior(target, {"x": x})["x"], dist.Normal(0.0, 1.0).log_prob(x))
    found = target.pointwise_log_likelihood({"x": x})["y"]
    torch.testing.assert_close(found[:, 0], dist.Normal(x, 1.0).log_prob(y[0]))
    assert (found[:, 1] == 0).all()


# ---- new data ------------------------------------------------------------------------------------


def posterior_draws():
    """Exact draws from the posterior of ``conjugate``."""
    return {"mean": 0.75 + 0.5 * torch.randn(NUM), "rate": dist.Gamma(11.0, 4.0).sample((NUM,))}


def z_scores(x, mean, variance):
    """z-scores of the mean and of the variance of independent draws."""
    x, square = x.double(), (x.double() - mean).square()
    return [
        float((v.mean() - m) / (v.std() / len(v) ** 0.5))
        for v, m in ((x, mean), (square, variance))
    ]


def predictive_score():
    """The worst z-score of the posterior predictive: a normal and a negative binomial."""
    target = Target.from_model(conjugate, *conjugate_data())
    found = quantities.replicated_data(target, posterior_draws())
    scores = []
    for i in range(3):
        scores += z_scores(found["y"][:, i], 0.75, 1 + 0.25)
        scores += z_scores(found["counts"][:, i], 11 / 4, 11 / 4 + 11 / 16)
    both = (found["y"][:, 0] - 0.75) * (found["y"][:, 1] - 0.75)  # shared mean, own noise
    return max(map(abs, [*scores, z_scores(both, 0.25, both.double().var())[0]]))


def test_new_data_are_from_the_posterior_predictive():
    assert predictive_score() < 4.5


@mutation(simulation.Simulated, "__init__")
def draws_of_the_prior(init, self, given=()):
    init(self)


@mutation(quantities, "_observed")
def shifted(observed, density, nodes):
    return [{**n, "value": n["value"] + 0.05} for n in observed(density, nodes)]


@pytest.mark.parametrize("wrong", [draws_of_the_prior, shifted], ids=lambda m: m.__name__)
def test_the_check_of_new_data_can_fail(wrong):
    must_fail(wrong, score=predictive_score, above=4.5)


def prior_score():
    """The worst z-score of draws from the prior and of the data that go with them."""
    target = Target.from_model(conjugate, *conjugate_data())
    found = quantities.prior_draws(target, NUM)
    prior, new = found["prior"], found["prior_predictive"]
    assert set(prior) == {"mean", "rate"} and set(new) == {"y", "counts"}
    scores = z_scores(prior["mean"], 0.0, 1.0) + z_scores(prior["rate"], 2.0, 2.0)
    scores += z_scores(new["y"][:, 1], 0.0, 2.0) + z_scores(new["counts"][:, 1], 2.0, 4.0)
    residual = new["y"][:, 1] - prior["mean"]  # drawn with this mean, not with another
    return max(map(abs, [*scores, *z_scores(residual, 0.0, 1.0)]))


def test_draws_from_the_prior():
    assert prior_score() < 4.5


@mutation(simulation, "drawn")
def too_narrow(drawn, fn):
    return 0.97 * drawn(fn)


@pytest.mark.parametrize("score", [prior_score, predictive_score], ids=lambda f: f.__name__)
def test_the_checks_see_a_wrong_draw(score):
    must_fail(too_narrow, score=score, above=4.5)


def direction(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.VonMises(x, 2.0), obs=y)  # vmap cannot sample it


def test_distributions_that_vmap_cannot_sample():
    target = Target.from_model(direction, torch.tensor(2.0))
    y = replicated_data(target, {"x": torch.full((1000,), 0.3)})["y"]
    cosine = (y - 0.3).cos()
    mean, square = 1 - dist.VonMises(0.0, 2.0).variance, cosine.double().square().mean()
    assert abs(z_scores(cosine, mean, square - mean**2)[0]) < 4.5


def chained(y):
    """An autoregression: each new datum depends on the new one before it."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    last = torch.tensor(0.0)
    for t in range(2):
        last = pyro.sample(f"y{t}", dist.Normal(slope * last, 1.0), obs=y[t])


def test_new_data_depend_on_new_data():
    target = Target.from_model(chained, data(100.0, 0.0))
    new = replicated_data(target, {"slope": torch.full((NUM,), 2.0)})
    assert max(map(abs, z_scores(new["y1"], 0.0, 1 + 4))) < 4.5


def undeclared(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=y)  # two data, and no plate


def test_new_data_have_the_shape_of_the_observed():
    found = replicated_data(Target.from_model(undeclared, data(1.0, 2.0)), {"x": torch.zeros(9)})
    assert found["y"].shape == (9, 2)
    assert (found["y"][:, 0] != found["y"][:, 1]).all()


def test_new_data_of_a_mixture_whose_labels_are_summed_out():
    target = Target.from_model(enumerated, data(0.5, -1.0, 2.0))
    samples = {"p": torch.full((NUM,), 0.25), "locs": torch.tensor([-4.0, 4.0]).expand(NUM, 2)}
    y = replicated_data(target, samples)["y"]
    assert max(map(abs, z_scores(y[:, 2], -2.0, 1 + 12))) < 4.5
    prior = prior_draws(target, 100)["prior"]
    assert set(prior) == {"p", "locs", "z"} and prior["z"].shape == (100, 3)


def test_missing_data_are_drawn_too():
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y, obs_mask=~y.isnan())

    target = Target.from_model(model, data(1.0, float("nan")))
    found = model_variables(target)
    assert list(found.deterministic) == ["y"] and list(found.observed) == ["y_observed"]
    samples = {"x": torch.zeros(7), "y_unobserved": torch.full((7, 2), 9.0)}
    assert (deterministic_values(target, samples)["y"] == data(1.0, 9.0)).all()
    new = replicated_data(target, samples)["y_observed"]
    assert new.shape == (7, 2) and new.isfinite().all()


def test_an_improper_prior_cannot_be_drawn_from():
    def model(y):
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    with pytest.raises(NotImplementedError):
        prior_draws(Target.from_model(model, torch.tensor(1.0)), 3)


def test_masked_and_scaled_priors_are_named():
    assert model_variables(Target.from_model(weighed, data(1.0))).improper == ["x"]
    assert model_variables(Target.from_model(schools, data(1.0))).improper == []


@pytest.mark.parametrize("model", [reading], ids=lambda m: m.__name__)
def test_a_model_in_a_loop_has_new_data(model):
    with pytest.warns(UserWarning, match="loop"):
        target = Target.from_model(model, data(1.0, 2.0))
    assert replicated_data(target, {"x": torch.randn(5, 2)})["y"].shape == (5, 2)
