"""sample(): right whatever kernel it chooses, and it chooses what pays."""

import warnings

import models
import pyro
import pyro.distributions as dist
import pytest
import torch
from models import CONJUGATE_TRUTH, conjugate, conjugate_data

import pyro_flowsamp as pf
from pyro_flowsamp import Target, ladder
from pyro_flowsamp.flows import LayeredFlow

QUIET = {"progress": False, "seed": 0}


def values(data, site):
    return torch.as_tensor(data["posterior"][site].values)


def z_score(draws, truth):
    """Of a mean over independent chains ``(chains, draws)``."""
    means = draws.double().mean(1)
    return float((means.mean() - truth) / (means.std() / len(means) ** 0.5))


def mixture(dim):
    """A third at c, two thirds at -c, ten standard deviations apart."""
    c = 5 / dim**0.5

    def energy(x):
        near, far = ((x - s * c).square().sum(-1) for s in (1, -1))
        return -torch.logaddexp(-0.5 * near, torch.log(torch.tensor(2.0)) - 0.5 * far)

    return Target.from_energy(energy, dim)


def banana(dim):
    def energy(x):
        bent = x[:, 1] - 0.03 * (x[:, 0].square() - 100)
        return 0.5 * ((x[:, 0] / 10).square() + bent.square() + x[:, 2:].square().sum(-1))

    return Target.from_energy(energy, dim)


@pytest.fixture
def bad_flows(monkeypatch):
    """Every Gaussian mixture is displaced by three of its own standard deviations."""
    placed = ladder.Ladder.placed

    def displaced(self, components):
        guide = placed(self, components)
        if components > 1:
            assert isinstance(guide.flow, LayeredFlow)
            guide.flow.affine.loc += 3 * guide.flow.affine.scale.diagonal()
        return guide

    monkeypatch.setattr(ladder.Ladder, "placed", displaced)


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(ladder.Ladder, "_taught", lambda self, flow, draws, best: None)


def test_conjugate_model():
    data = pf.sample(conjugate, *conjugate_data(), num_samples=50, num_chains=400, **QUIET)
    assert dict(data["posterior"].sizes)["chain"] == 400
    for name, (mean, deviation) in CONJUGATE_TRUTH.items():
        x = values(data, name)
        assert abs(z_score(x, mean)) < 4
        assert abs(z_score((x - mean).square(), deviation**2)) < 4
    assert data.attrs["method"] in data.attrs["rungs"]
    assert data.attrs["evaluations"] > 0 and data.attrs["thin"] >= 1
    spent = {name for name in data.attrs if name.startswith("seconds_")}
    assert spent == {"seconds_start", "seconds_training", "seconds_trials", "seconds_sampling"}
    assert {"lp", "accepted", "diverging"} <= set(data["sample_stats"])
    assert set(data["observed_data"])


@pytest.mark.parametrize("dim", [2, 10])
def test_two_distant_modes(dim):
    data = pf.sample(mixture(dim), num_samples=50, num_chains=1000, **QUIET)
    upper = values(data, "x").mean(-1) > 0
    assert abs(z_score(upper.double(), 1 / 3)) < 4
    assert data.attrs["method"] != "HMC"


def test_a_flow_is_trained_where_nothing_else_mixes(bad_flows):
    data = pf.sample(banana(20), num_samples=50, num_chains=1000, **QUIET)
    x = values(data, "x")
    assert "(coupling)" in data.attrs["method"]
    assert abs(z_score(x[..., 0].square(), 100.0)) < 4
    assert abs(z_score(x[..., 1], 0.0)) < 4


def test_bad_flows_do_no_harm(bad_flows, no_training):
    target = Target.from_energy(lambda x: 0.5 * (x - 1).square().sum(-1), 3)
    data = pf.sample(target, num_samples=50, num_chains=400, **QUIET)
    assert data.attrs["method"] in ("HMC", "JumpHMC (mixture)")  # exact by their local moves
    x = values(data, "x")
    assert abs(z_score(x[..., 0], 1.0)) < 4
    assert abs(z_score((x[..., 0] - 1).square(), 1.0)) < 4


def test_a_site_at_its_boundary():
    def model(count):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        pyro.sample("k", dist.Binomial(10, p), obs=count)

    data = pf.sample(model, torch.tensor(10.0), num_samples=50, num_chains=400, **QUIET)
    assert abs(z_score(values(data, "p"), 11 / 12)) < 4


def test_angles():
    data = pf.sample(models.turned, torch.tensor(0.5), num_samples=20, num_chains=200, **QUIET)
    assert float(values(data, "direction").abs().max()) <= torch.pi + 1e-5


# ---- what it says --------------------------------------------------------------------------------


def test_a_model_without_data():
    with pytest.warns(UserWarning, match="nothing is observed"):
        pf.sample(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), num_samples=5, **QUIET)


def test_factors_are_data():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", -x.square())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pf.sample(model, num_samples=5, **QUIET)


def test_an_improper_posterior():
    target = Target.from_energy(lambda x: 0 * x.sum(-1), 2)
    with pytest.warns(UserWarning, match="run away"):
        pf.sample(target, num_samples=50, num_chains=200, **QUIET)


def test_chains_that_disagree(bad_flows, no_training, monkeypatch):
    monkeypatch.setattr(ladder, "LONGEST_TRIAL", 0)
    with pytest.warns(UserWarning, match="the chains disagree"):
        pf.sample(mixture(2), num_samples=20, num_chains=200, **QUIET)


@pytest.mark.parametrize("counts", [{"num_samples": 0}, {"num_chains": 1}])
def test_counts(counts):
    with pytest.raises(ValueError, match="at least"):
        pf.sample(mixture(2), **counts)


# ---- worth ---------------------------------------------------------------------------------------


def test_independent_draws_are_worth_one_each():
    assert ladder._worth(torch.randn(200, 50, 3)) == pytest.approx(1, abs=0.1)


def test_chains_that_never_move_are_worth_one_draw_each():
    x = torch.randn(200, 1, 3).expand(-1, 40, -1) + 1e-6 * torch.randn(200, 40, 3)
    assert ladder._worth(x) < 2 / 40


def test_modes_that_part_along_the_diagonal_only():
    """0.3 standard deviations off in each coordinate, 2.1 along the diagonal: nobody crosses."""
    sign = torch.randint(2, (200, 1, 1)).double() * 2 - 1
    x = torch.randn(200, 40, 50) + 0.3 * sign
    assert ladder._worth(x) < 2 / 40 < ladder._worth(x[..., :1]) / 2
