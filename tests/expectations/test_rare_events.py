"""importance_flow: exact truths by every estimator, posteriors, and bad flows."""

from dataclasses import replace
from math import exp
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_flowsamp import (
    AnnealingOptions,
    AutoFlow,
    FitOptions,
    ImportanceOptions,
    Target,
    importance_flow,
)
from pyro_flowsamp.expectations import rare_events
from pyro_flowsamp.expectations.estimators import error_at_particles
from pyro_flowsamp.flows.recipes import gaussian
from pyro_flowsamp.guides.annealing.training import BlockTrainer
from pyro_flowsamp.problems import truncated_normal
from pyro_flowsamp.weights import Estimate

QUICK = FitOptions(60, 256, 5e-3, cosine_schedule=True, stop_at_ess=0.99, progress=False)
SMALL = {
    "num_particles": 2048,
    "settings": ImportanceOptions(annealing=AnnealingOptions(hidden_features=32)),
    "target_ess": 0.5,
    "num_samples": 8192,
    "islands": 16,
    "options": QUICK,
}
#: For what does not depend on how well the flow is trained.
BRIEF = {
    **SMALL,
    "settings": ImportanceOptions(annealing=AnnealingOptions(hidden_features=16)),
    "num_particles": 512,
    "target_ess": 0.3,
    "num_samples": 2048,
    "options": FitOptions(10, 64, 5e-3, progress=False),
}
ALL = ("particles", "density", "ratio")


def normal(dim=2):
    return dist.Normal(torch.zeros(dim), 1.0).to_event(1)


def beyond(radius):
    return lambda x: x.norm(dim=-1) - radius


def z_score(estimate, truth):
    return (estimate.value - truth) / estimate.standard_error


def check(found, truth):
    """All are right within their errors, where Pareto k lets them be believed; one always."""
    for name, estimate in found.estimates.items():
        assert estimate.pareto_k > 0.7 or abs(z_score(estimate, truth)) < 4.5, name
    assert found.pareto_k < 0.7


# ---- truths -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_rare_event_by_every_estimator():
    truth = exp(truncated_normal(2, 6).log_z)  # 1.5e-8
    more = {**SMALL, "num_samples": 16384, "islands": 32}
    found = importance_flow(normal(), event=beyond(6.0), estimators=ALL, **more)
    check(found, truth)
    assert abs(found.value / truth - 1) < 0.05 and found.relative_error < 0.02
    for estimate in found.estimates.values():
        assert abs(estimate.value / truth - 1) < 0.15
    assert "Pareto k" in repr(found) and "density" in repr(found)
    (particles,) = found.particles
    assert bool((particles.draw(200).norm(dim=-1) > 6).all())


@pytest.mark.slow
def test_a_smooth_function_of_a_flow():
    """E exp(2 x₁) = e² under a standard normal, here a flow."""
    options = FitOptions(150, 512, 5e-3, cosine_schedule=True, stop_at_ess=0.999, progress=False)
    more = {**SMALL, "num_samples": 65536, "options": options}  # the ratio has the largest error
    found = importance_flow(gaussian(2), lambda x: (2 * x[:, 0]).exp(), estimators=ALL, **more)
    check(found, exp(2.0))
    assert all(abs(e.value / exp(2.0) - 1) < 0.05 for e in found.estimates.values())


@pytest.mark.slow
def test_a_signed_function():
    """E[x² − 2x − 1/2] = 1/2."""
    found = importance_flow(
        normal(1), lambda x: (x * x - 2 * x).sum(-1) - 0.5, signed=True, **SMALL
    )
    assert len(found.particles) == 2
    for estimate in found.estimates.values():
        assert estimate.standard_error < 0.05 and abs(z_score(estimate, 0.5)) < 4.5


def gauss_model(y):
    """x | y ~ N(y/2, 1/2) for each of two coordinates; s has no data."""
    with pyro.plate("two", 2):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)
    pyro.sample("s", dist.LogNormal(0.0, 1.0))


TAIL = float(torch.special.ndtr(torch.tensor((0.25 - 8) / 2**0.5, dtype=torch.float64)))


@pytest.mark.slow
def test_a_posterior_is_a_ratio_of_evidences():
    """P(x₁ + x₂ + log s > 8 | y), of constrained sites by their names."""
    y = torch.tensor([1.0, -0.5])
    found = importance_flow(
        gauss_model,
        None,
        y,
        event=lambda sites: sites["x"].sum(-1) + sites["s"].log() - 8,
        estimators=ALL,
        **SMALL,
    )
    check(found, TAIL)
    assert found.relative_error < 0.05


def one_normal(scale=1.0):
    pyro.sample("x", dist.Normal(0.0, scale))


@pytest.mark.slow
def test_a_posterior_of_one_dimension():
    """P(x > 3) of a single scalar site."""
    found = importance_flow(one_normal, event=lambda sites: sites["x"] - 3, **SMALL)
    check(found, 1.349898e-3)
    assert found.relative_error < 0.05


@pytest.mark.slow
def test_data_alone():
    """A normal known by 4000 draws, none of which need be where the question is."""
    truth = exp(truncated_normal(2, 4).log_z)
    data = torch.randn(4000, 2)
    settings = replace(
        SMALL["settings"], data_fit=FitOptions(200, 512, 5e-3, progress=False), components=2
    )
    found = importance_flow(data=data, event=beyond(4.0), **{**SMALL, "settings": settings})
    assert 0.6 < found.value / truth < 1.6


@pytest.mark.slow
def test_bad_flows_stay_unbiased(monkeypatch):
    """Blocks never trained, but stirred: right within errors, or their Pareto k says otherwise."""

    def stir(block):
        torch.nn.init.normal_(block.velocity.out_weight, std=0.4)
        return block

    make = BlockTrainer._trained

    def untrained(self, cloud, beta, before, scale):
        block, history, rollbacks = make(self, cloud, beta, before, scale)
        return stir(block), history, rollbacks

    monkeypatch.setattr(BlockTrainer, "_trained", untrained)
    truth = exp(truncated_normal(2, 3).log_z)
    options = FitOptions(1, 64, 1e-6, progress=False)
    scores = []
    for _ in range(3):
        found = importance_flow(normal(), event=beyond(3.0), **{**SMALL, "options": options})
        believed = [e for e in found.estimates.values() if e.pareto_k < 0.7]
        scores += [z_score(estimate, truth) for estimate in believed]
        assert found.pareto_k < 0.7 and found.relative_error < 0.2
    assert max(abs(score) for score in scores) < 4.5


def known_path(draws, target, num):
    """A path whose particles are exact draws."""
    particles = SimpleNamespace(
        x=draws, log_w=torch.zeros(2, len(draws) // 2), log_z=torch.zeros(2)
    )
    return SimpleNamespace(
        particles=particles, target=target, log_h=lambda x: torch.zeros(len(x)), num=num
    )


@pytest.mark.parametrize("wider", [1.0, 1.5, 3.0])
def test_a_density_has_the_error_that_draws_have(wider):
    """∫ p²/q = s² / √(2s² - 1) for standard normals p and q of standard deviation s."""
    p, q = normal(1), dist.Normal(torch.zeros(1), wider).to_event(1)
    target = Target.from_energy(lambda x: -p.log_prob(x), 1)
    path = known_path(p.sample((40_000,)), target, 1000)
    variance = wider**2 / (2 * wider**2 - 1) ** 0.5 - 1
    error = float(error_at_particles(path, q))
    assert error == pytest.approx((variance / 1000) ** 0.5, rel=0.05, abs=1e-5)


def test_a_density_knows_of_what_the_flow_never_visits():
    """A tenth of the mass is at 40, where q underflows: 1000 draws are short by as much."""
    where = torch.where(torch.rand(40_000, 1) < 0.1, 40.0, 0.0)
    both = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.9, 0.1])),
        dist.Normal(torch.tensor([[0.0], [40.0]]), 1.0).to_event(1),
    )
    target = Target.from_energy(lambda x: -both.log_prob(x), 1)
    path = known_path(where + torch.randn(40_000, 1), target, 1000)
    error = float(error_at_particles(path, normal(1)))
    assert error == pytest.approx(0.1**0.5, rel=0.05)


@pytest.mark.slow
def test_a_density_that_misses_much_says_so():
    """A flow hardly trained, that misses an eighth of the event: nothing in its draws tells."""
    pyro.set_rng_seed(2)
    y, event = torch.tensor([1.0, -0.5]), lambda sites: sites["x"].sum(-1) + sites["s"].log() - 8
    found = importance_flow(gauss_model, None, y, event=event, **SMALL)
    assert abs(z_score(found.estimates["density"], TAIL)) < 4.5


def test_evidences_that_underflow():
    """A posterior given many data has an evidence below the smallest number."""
    parts = [
        (Estimate(torch.tensor(log_z).double(), torch.tensor(error).double()), 0.1)
        for log_z, error in ((-2001.0, 0.03), (-2000.0, 0.04))
    ]
    found = rare_events._combined(parts[:1], parts[1])
    assert found.value == pytest.approx(exp(-1))
    assert found.relative_error == pytest.approx(0.05)


# ---- what it refuses ----------------------------------------------------------------------------


class Untrainable(AutoFlow):
    def train_flow(self, target, contexts):
        raise AssertionError("trained before the options were checked")


@pytest.mark.parametrize(
    "options, error, message",
    [
        (
            {"move": 20},
            TypeError,
            "argument 'move': .* options are .*mcmc_steps.* model go in args",
        ),
        ({"scale": 2.0}, TypeError, "argument 'scale': keywords go to the annealing flow"),
        ({"reference": 1.0}, TypeError, "argument 'reference'"),
        ({"mcmc_steps": -1}, ValueError, "mcmc_steps must be at least 0"),
    ],
)
def test_options_are_checked_before_training(options, error, message):
    guide = Untrainable(one_normal)
    with pytest.raises(error, match=message):
        importance_flow(one_normal, event=lambda s: s["x"] - 3, guide=guide, **options)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ALL)
def test_an_event_that_is_impossible(estimator):
    options = {**BRIEF, "estimators": (estimator,)}
    with pytest.raises(ValueError, match="h is zero at all particles"):
        importance_flow(normal(), event=lambda x: -1 - x[:, 0].square(), **options)


@pytest.mark.slow
def test_a_given_guide_is_left_as_it_was():
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    guide = AutoFlow(target, options=FitOptions(progress=False))
    guide.fit()
    found = importance_flow(target, None, event=lambda x: x[:, 0] - 3, guide=guide, **BRIEF)
    assert abs(z_score(found, 1.349898e-3)) < 4.5
    assert all(parameter.requires_grad for parameter in guide.flow.parameters())
