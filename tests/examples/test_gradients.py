"""The cost of ``sample()`` and of NUTS in gradients: counts, goals, tables, the same densities."""

import json
import sys

import numpy as np
import pytest
import torch
from baselines import leapfrogs
from baselines.leapfrogs import Look, NUTSOptions
from stored_runs import has_package
from suites import gradients

import pyro_flowsamp
from pyro_flowsamp import Target

GAUSSIAN = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)


# ---- the cost of sample() ------------------------------------------------------------------------


def test_densities_and_gradients_are_told_apart():
    cost, x = gradients.Cost(GAUSSIAN), torch.zeros(6, 2)
    with cost.counted():
        GAUSSIAN.log_prob(x)
        GAUSSIAN.log_prob_and_grad(x[:4])
        GAUSSIAN.log_prob(x.requires_grad_())
        with torch.no_grad():
            GAUSSIAN.log_prob(x)
        Target.from_energy(lambda x: x.square().sum(-1), 2).log_prob(x)  # of another density
    GAUSSIAN.log_prob(x)  # after the end
    assert cost.of("densities") == 12 and cost.of("gradients") == 10
    assert cost.total == pytest.approx(14) == cost.in_phase("start")


def test_all_evaluations_of_sample_are_counted():
    """Together they are those that the result states, and each phase has its own."""
    cost = gradients.Cost(GAUSSIAN)
    with cost.counted():
        found = pyro_flowsamp.sample(GAUSSIAN, num_samples=2, num_chains=50, seed=0, progress=False)
    assert cost.of("densities") + cost.of("gradients") == found.attrs["evaluations"]
    started = cost.counts["start", "densities"] + cost.counts["start", "gradients"]
    assert started >= found.attrs["evaluations_start"]
    assert cost.in_phase("pilot") > 0 and cost.in_phase("sampling") > 0


# ---- goals of NUTS -------------------------------------------------------------------------------


class Independent(leapfrogs.Chains):
    """Chains of independent draws; one is far from the others in its first ``apart`` draws."""

    def __init__(self, options, apart=0):
        self.options, self.apart = options, apart
        self.parts, self.warmup, self.leapfrogs, self.divergences = [], 1000, 0, 0

    def draw(self):
        rng = np.random.default_rng(len(self.parts))
        x = rng.standard_normal((self.options.chains, self.options.block, 2))
        x[0] += 3 * (len(self.parts) * self.options.block < self.apart)
        self.parts.append(x)
        self.leapfrogs += 3 * x[..., 0].size


def test_draws_until_the_goals():
    """Independent draws need as many as the goal, and what is beyond does not count."""
    options = NUTSOptions()
    found = leapfrogs.measure(Independent(options), [500, 3000], options, lambda: 0.0)
    for goal in (500, 3000):
        reached = found["goals"][str(goal)]
        assert reached["leapfrogs"] == pytest.approx(1000 + 3 * goal, rel=0.15)
        assert reached["ess"] >= goal and reached["r_hat"] <= 1.01
    assert found["draws"] == 1000 and found["leapfrogs"] == 1000 + 3 * 4000
    assert found["warmup_leapfrogs"] == 1000 and len(found["means"]) == 2


def test_chains_that_disagree_have_not_reached_the_goal():
    """The cost is not less than that of the look before, at which they had disagreed."""
    options = NUTSOptions(block=500)
    found = leapfrogs.measure(Independent(options, apart=500), [200], options, lambda: 0.0)
    reached = found["goals"]["200"]
    assert reached["draws"] > 1000 and reached["ess"] > 400
    assert reached["leapfrogs"] >= 1000 + 3 * 4 * reached["draws"] / 2


@pytest.mark.parametrize("options", [NUTSOptions(max_leapfrogs=10_000), NUTSOptions()])
def test_bounds(options):
    """What is not reached has no cost."""
    times = iter(range(0, 10_000, 100))
    found = leapfrogs.measure(Independent(options), [500, 10**6], options, lambda: next(times))
    assert list(found["goals"]) == ["500"] and found["ess"] < 10**6
    assert 10_000 <= found["leapfrogs"] < 14_000


def test_a_chain_that_never_moves():
    x = np.random.default_rng(0).standard_normal((4, 100, 3))
    x[:, :, 1] = 0
    look = Look(*leapfrogs.worst_ess_and_r_hat(x), 100, 0, 300)
    assert not look.reached(1, NUTSOptions())


def test_the_cost_at_a_look():
    assert Look(2000.0, 1.0, 1000, 500, 8000).cost(1500, 100) == 6100
    assert Look(9000.0, 1.0, 1000, 500, 8000).cost(1500, 100) == 4100  # half was not enough


def test_means_are_of_at_most_fifty_components():
    x = np.random.default_rng(0).standard_normal((4, 500, 120)) + np.arange(120)
    found = leapfrogs.means_with_errors(x)
    np.testing.assert_allclose(found["means"], np.arange(0, 120, 3), atol=0.15)
    np.testing.assert_allclose(found["errors"], 2000**-0.5, rtol=0.3)


# ---- the same densities --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", gradients.NAMES)
def test_numpyro_has_the_same_density(name, tmp_path):
    jax = pytest.importorskip("jax", reason="jax is not installed")
    pytest.importorskip("numpyro", reason="NumPyro is not installed")
    from baselines.numpyro_models import MODELS

    model, problem, ours = gradients.in_float64(name)
    leapfrogs.write(tmp_path / "data.npz", problem)
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        theirs = leapfrogs.log_densities(MODELS[model], leapfrogs.read(tmp_path / "data.npz"))
    finally:
        jax.config.update("jax_enable_x64", before)
    assert gradients.largest_difference(ours, theirs) < gradients.TOLERANCE


def test_constants_do_not_matter():
    ours = np.array([-10.0, -20.0, -15.0])
    assert gradients.largest_difference(ours, ours + 7) < 1e-15
    assert gradients.largest_difference(ours, 1.01 * ours) > 1e-3


def test_data_are_those_that_were_written(tmp_path):
    _, problem, log_p = gradients.in_float64("radon")
    leapfrogs.write(tmp_path / "data.npz", problem)
    again = leapfrogs.read(tmp_path / "data.npz")
    assert again.names == problem.names == ["mu_a", "beta_floor", "sigma_a", "sigma_y", "z"]
    assert again.data[1].dtype.kind == "i" and (again.data[2] == problem.data[2]).all()
    assert again.points["z"].shape == (gradients.POINTS, 85) and log_p.dtype == np.float64


# ---- tables --------------------------------------------------------------------------------------


def ours(cost, ess=1200.0, reliable=1):
    return {
        "cost": cost,
        "phases": {"start": cost / 2, "training": 0.0, "pilot": cost / 4, "sampling": cost / 4},
        "ess": ess,
        "method": "HMC",
        "reliable": reliable,
        "problems": "" if reliable else "the chains disagree",
        "means": [0.0, 1.0],
        "errors": [0.3, 0.3],
    }


def theirs(leapfrogs, goal="1000"):
    return {
        "goals": {goal: {"leapfrogs": leapfrogs, "draws": 500}},
        "draws": 4000,
        "leapfrogs": 2 * leapfrogs,
        "ess": 900.0,
        "r_hat": 1.02,
        "divergences": 3,
        "seconds": 70.0,
        "means": [0.5, 1.0],
        "errors": [0.4, 0.4],
    }


@pytest.mark.parametrize(
    "cost, goal, nuts, reached, held",
    [
        (290.0, 10_000, 100.0, True, True),
        (310.0, 10_000, 100.0, True, False),
        (310.0, 10_000, 100.0, False, None),  # NUTS would have needed more
        (290.0, 10_000, 100.0, False, True),
        (99_000.0, 1000, 100.0, True, True),  # few enough
        (101_000.0, 1000, 100.0, True, False),
        (101_000.0, 1000, 40_000.0, True, True),
    ],
)
def test_claim(cost, goal, nuts, reached, held):
    assert gradients.claim_holds(cost, goal, nuts, reached) is held


def test_lines(tmp_path):
    store = tmp_path / "runs.jsonl"
    gradients.append(store, "garch-sample-1000", 0, ours(150_000.0))
    gradients.append(store, "garch-sample-1000", 1, ours(170_000.0, reliable=0))
    gradients.append(store, "garch-nuts", 0, theirs(40_000.0))
    gradients.append(store, "radon-nuts", 0, theirs(40_000.0, goal="10"))
    gradients.append(store, "radon-sample-1000", 0, {"stopped": True, "seconds": 900.0})
    gradients.append(store, "horseshoe-nuts", 0, theirs(1_000_000.0, goal="10"))
    gradients.append(store, "horseshoe-sample-1000", 0, ours(500_000.0))
    gradients.append(store, "random_walk-sample-1000", 0, ours(5000.0, ess=600.0))
    gradients.append(store, "random_walk-nuts", 0, theirs(50_000.0))
    text = gradients.table(store, gradients.NAMES, [1000])
    assert (
        "| garch | 4 | 1 000 | 160 k (150 k to 170 k) | 50 / 0 / 25 / 25 | 1.2 k (1.2 k to 1.2 k) "
        "| HMC; 1 of 2 flagged | 40 k | 3 | 4 | 1.0 | no |" in text
    )
    assert "| radon | 89 | 1 000 | none in 900 s | – | – | – | not reached by 80 k in 70 s" in text
    assert (
        "| not reached by 2 M in 70 s: ESS 900, R-hat 1.020 | 3 | under 0.25 | 1.0 | yes |" in text
    )
    assert "goal not reached |" in text and "gaussian_process" not in text
    assert "holds for 1 of 4 posteriors, 1 goal not reached, 1 no draws." in text
    assert "- garch, 1000, flagged: the chains disagree." in text


def test_chains_that_look_worse_after_more_draws():
    assert "reached after 500 draws of each chain, but after 4000" in gradients.lost(
        theirs(9), 1000
    )
    assert gradients.lost(theirs(9) | {"ess": 5000.0, "r_hat": 1.001}, 1000) == ""
    assert gradients.lost(theirs(9, goal="10"), 1000) == ""


def test_numbers():
    found = [gradients.number(x) for x in (999.4, 999.9, 1234.0, 999_900.0, 2.5e7)]
    assert found == ["999", "1 k", "1.23 k", "1 M", "25 M"]


# ---- the script ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_smoke(tmp_path, monkeypatch, capsys):
    """It stores the runs, makes their table and page, and runs nothing twice."""
    command = ["gradients.py", "--smoke", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    gradients.main()
    printed = capsys.readouterr().out
    lines = (tmp_path / gradients.STUDY).read_text().splitlines()
    runs = {run["name"]: run for run in map(json.loads, lines)}
    run = runs["eight_schools-sample-200"]
    assert run["gradients"] + run["densities"] == run["evaluations"] and run["ess"] > 200
    assert run["cost"] == pytest.approx(sum(run["phases"].values()))
    if has_package(sys.executable, "numpyro"):
        nuts = runs["eight_schools-nuts"]
        assert nuts["leapfrogs"] > nuts["warmup_leapfrogs"] > 0 and nuts["difference"] < 1e-8
    else:
        assert "NUTS is left out" in printed
    monkeypatch.setattr(sys, "argv", [*command, "--write"])
    monkeypatch.setattr(gradients, "DOCS", tmp_path)
    gradients.main()
    assert "| eight_schools | 10 | 200 | " in (tmp_path / "gradients.md").read_text()
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", command)
    gradients.main()
    assert "seed 0" not in capsys.readouterr().out
