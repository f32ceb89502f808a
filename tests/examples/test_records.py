"""The study of the literature's targets: its cap, its judgement of draws, its page."""

import sys

import numpy as np
import pytest
import torch
from baselines.evidence import Found
from problems.records import TARGETS
from suites import records
from suites.gradients import Cost
from suites.records import CapReached, Size

from pyro_flowsamp import Target

BRIEF = Size(batch=400, shares=100_000)


# ---- the cap -------------------------------------------------------------------------------------


def test_a_run_ends_at_its_cap():
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    cost, before = Cost(target), Target.log_prob
    with pytest.raises(CapReached), records.capped(cost, 100):
        for _ in range(100):
            target.log_prob_and_grad(torch.zeros(10, 2))
    assert 100 < cost.total <= 110 and Target.log_prob is before


def test_nothing_catches_the_cap():
    """Not even ``sample()``, which goes on where a candidate has failed."""
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    cost = Cost(target)
    with pytest.raises(CapReached), records.capped(cost, 1000):
        records.by_sample(target, 0)
    assert cost.total < 20_000


def test_caps_by_dimension():
    assert records.cap(2) == records.cap(61) == 1e7 and records.cap(62) == 3e7


# ---- draws ---------------------------------------------------------------------------------------


def draws_of(name, num=400):
    torch.manual_seed(1)
    return TARGETS[name].problem().sample(num)


@pytest.mark.parametrize("name", ["gmm9_2", "many_well_5", "mos_50"])
def test_exact_draws_are_as_good_as_exact_draws(name):
    found = records.judged(TARGETS[name], draws_of(name), BRIEF)
    assert found["modes_found"] == found["modes_all"] == len(TARGETS[name].problem().weights)
    assert found["total_variation"] < 1.5 * found["total_variation_exact"]
    assert 0.4 < found["w2_squared"] / found["w2_floor"] < 2.2
    assert found.get("well_score", 0) < 4.5 and found.get("sign_score", 0) < 4.5


def test_a_lost_mode_shows():
    x = draws_of("gmm9_2", 450)
    x = x[(x - 5).norm(dim=-1) > 2.5][:400]
    found = records.judged(TARGETS["gmm9_2"], x, BRIEF)
    assert found["modes_found"] == 8
    assert found["total_variation"] > 1.5 * found["total_variation_exact"]
    assert found["w2_squared"] > 1.3 * found["w2_floor"]


@pytest.mark.parametrize("wrong", ["share", "signs"])
def test_wrong_wells_show(wrong):
    known, x = TARGETS["many_well_32"], draws_of("many_well_32", 2000)
    right = records.wells_of(known, x)
    assert right["well_score"] < 4 and right["sign_score"] < 4.5
    if wrong == "share":
        x[:100, 4] = -x[:100, 4].abs()
        assert records.wells_of(known, x)["well_score"] > 4.5
    else:
        x[:, 6] = x[:, 6].abs() * x[:, 4].sign()
        assert records.wells_of(known, x)["sign_score"] > 10


def test_draws_that_are_not_finite_are_not_judged():
    x = draws_of("gmm9_2")
    x[0, 0] = torch.inf
    assert records.judged(TARGETS["gmm9_2"], x, BRIEF) == {}


def test_judging_leaves_the_random_state():
    x = draws_of("gmm9_2")
    before = torch.get_rng_state()
    records.judged(TARGETS["gmm9_2"], x, BRIEF)
    assert torch.equal(torch.get_rng_state(), before)


# ---- methods and the page ------------------------------------------------------------------------


def test_methods_by_target():
    every, rivals = {"sample", "annealing", "flow"}, {"dynesty", "pocoMC"}
    small = every | rivals | {"deformation"}
    assert set(records.methods_of(TARGETS["gmm9_2"])) == small | {"adversarial"}
    assert set(records.methods_of(TARGETS["seeds"])) == small
    assert set(records.methods_of(TARGETS["sonar"])) == small - {"dynesty"}
    assert set(records.methods_of(TARGETS["lgcp"])) == every


def test_rivals_that_are_not_installed_are_left_out(tmp_path, monkeypatch, capsys):
    command = ["records.py", "--methods", "dynesty", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, "--rivals-python", "/no/such/python"])
    records.main()
    assert "dynesty is left out: /no/such/python has no dynesty" in capsys.readouterr().out


def test_a_rival(monkeypatch):
    """Its draws and its evidence, and the densities that it took."""

    def rival(log_density, reference, dim, seed):
        x = np.random.default_rng(seed).uniform(-10, 10, (200_000, dim))
        w = np.exp(log_density(x) - reference.log_prob(x))
        draws = x[np.random.default_rng(1).choice(len(x), 3000, p=w / w.sum())]
        return Found(float(np.log(w.mean())), float(w.std() / w.mean() / len(x) ** 0.5), draws)

    monkeypatch.setitem(records.RIVALS, "dynesty", ("numpy", rival))
    found = records.measure("gmm9_2", "dynesty", 0, BRIEF)
    assert found["densities"] == 200_000 and found["gradients"] == 0
    assert abs(records.t_value(found, TARGETS["gmm9_2"])) < 4 and found["log_z_error"] < 0.02
    assert found["modes_found"] == 9 and found["total_variation"] < 0.1


def result(error, stated=0.01, freedom=None, **more):
    name = "seeds"
    log_z = TARGETS[name].log_z + error
    found = {"log_z": log_z, "log_z_error": stated, "degrees": freedom, "batches": [log_z]}
    return {**found, "elbo": log_z - 1, "cost": 1e6, "seconds": 2.0, "cpu_seconds": 1.0, **more}


def test_errors_in_units_of_their_own():
    known = TARGETS["seeds"]  # its truth has an error of .005
    assert records.t_value(result(0.05, 0.012), known) == pytest.approx(0.05 / 0.013)
    assert not records.within_bound(result(0.05, 0.01), known)
    assert records.within_bound(result(0.05, 0.01, freedom=3), known)
    assert records.probability(result(0.05, 0.012), known) > 0.9999
    assert records.probability(result(0.05, 0.012, freedom=3), known) < 0.99
    assert records.t_value(result(0.05, float("nan")), known) == float("inf")


def test_the_page_has_published_figures_and_failures(tmp_path):
    store = tmp_path / records.STUDY
    flagged = result(0.2, problems="two searches disagree", bridged=[-73.4, 0.01])
    records.append(store, "seeds-sample", 0, flagged)
    records.append(store, "seeds-flow", 0, {"capped": True, "cost": 1e7, "seconds": 3.0})
    records.append(store, "seeds-annealing", 0, {"failure": "ValueError: no", "seconds": 3.0})
    text = records.table(store, list(TARGETS), records.METHODS)
    assert "| seeds | 26 | sample | 1 | 0.2 | 0.01 | 0 of 1 |" in text
    assert "| seeds | 26 | sample, bridged | 1 | 0.005 | 0.01 | 1 of 1 |" in text
    assert "*SCLD, published*" in text and "gmm9_2" not in text
    assert "- seeds, flow: stopped at a cost of 10 M." in text
    assert "- seeds, annealing, failed: ValueError: no" in text
    assert "log Z -73.205 ± 0.01, truth -73.405, t 17.9" in text
    assert "flagged: two searches disagree" in text
    image = tmp_path / "records.png"
    records.draw(store, image)
    assert image.stat().st_size > 5000


def test_every_truth_is_named():
    text = records.sources()
    assert all(f"| {name} |" in text for name in TARGETS) and "--truth seeds" in text


@pytest.mark.slow
def test_the_smoke_run(tmp_path, monkeypatch, capsys):
    """It runs every method but ``sample()``, and a second time nothing."""
    command = ["records.py", "--smoke", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    records.main()
    first = capsys.readouterr().out
    assert all(f"gmm9_2-{method} " in first for method in records.SMOKE_METHODS)
    assert "failed" not in first
    records.main()
    assert "seed 0" not in capsys.readouterr().out
