"""The study of the verdict: kinds of runs, its tables, and a small part of it."""

import json
import sys
from pathlib import Path

import pytest
import torch

import pyro_flowsamp

SUITES = Path(pyro_flowsamp.__file__).parents[1] / "examples" / "benchmarks" / "suites"
sys.path.insert(0, str(SUITES))
import verdict_calibration as study  # noqa: E402

from pyro_flowsamp.sampling.candidates import gaussian_guide  # noqa: E402


def result(checks=None, reported=0, **errors):
    found = dict.fromkeys(("score", "share", "mean", "missed", "precision"), 0.5) | errors
    return {"errors": found, "checks": checks or {}, "reported": reported}


@pytest.mark.parametrize(
    "run, expected",
    [
        (result(), "right, passed"),
        (result(precision=1.2), "undecided, passed"),
        (result(mean=1.2, precision=1.2), "wrong, passed"),
        (result(reported=1), "right, flagged"),
        (result({"evidences": [9.0, 4.0, False]}), "right, flagged"),
        (result({"evidences": [9.0, 40.0, True]}), "right, flagged"),  # by today's threshold
        (result({"evidences": [9.0, float("nan"), True]}), "right, passed"),
        (result({"visits of regions": [0.5, 0.1, True]}), "right, flagged"),
        (result({"bulk ESS": [100.0, 400.0, False]}, missed=2.0), "wrong, flagged"),
    ],
)
def test_verdicts(run, expected):
    assert study.verdict(run) == expected


def test_exact_draws_are_right_and_others_wrong():
    exact = study.exact_draws("unequal_pair")
    torch.manual_seed(0)
    x = exact[torch.randperm(len(exact))[:20_000]].reshape(200, 100, 2)
    assert study.kind_of({"errors": study.errors("unequal_pair", x)}) == "right"
    one_mode = torch.where((x[..., :1] < 0), x, -2 * x)
    found = study.errors("unequal_pair", one_mode)
    assert found["missed"] > 30 and found["share"] > 10 and found["score"] > 10
    assert study.kind_of({"errors": study.errors("unequal_pair", x[:16, :50])}) == "undecided"
    x[0, 0] = torch.nan
    assert study.kind_of({"errors": study.errors("unequal_pair", x)}) == "wrong"


def test_the_mass_that_jumps_lack():
    """Of a Student-t distribution with a narrow Gaussian flow, and with one as wide as it."""
    known = study.problem("student_t3")
    for scale, low, high in ((1.0, 0.03, 0.1), (3.0, -0.002, 0.003)):
        guide = gaussian_guide(known.target, torch.zeros(2), scale * torch.eye(2))
        kernel = study.IMH(guide=guide)
        run = study.VectorizedMCMC(kernel, 100, 20, 100, disable_progbar=True)
        run.min_acceptance = 0.0
        torch.manual_seed(0)
        run.run()
        assert low <= study.lacking("student_t3", run) <= high


def test_both_halves_have_all_kinds_of_targets():
    assert not set(study.CHOOSING) & set(study.JUDGING)
    for half in (study.CHOOSING, study.JUDGING):
        for kind in ("student", "funnel", "modes", "mode"):
            assert any(kind in name for name in half)


@pytest.mark.parametrize("name", [*study.CHOOSING, *study.JUDGING, *study.NEEDLES])
def test_exact_draws_have_the_density(name):
    """The mean gradient of the log density is zero over exact draws (Stein's identity)."""
    known = study.problem(name)
    torch.manual_seed(0)
    _, grad = known.target.log_prob_and_grad(known.sample(20_000))
    z = grad.double().mean(0) / grad.double().std(0) * 20_000**0.5
    assert z.abs().max() < 4.5


@pytest.mark.parametrize(
    "name, end",
    [
        ("two_sticks", 30),
        ("heavy_modes", 60),
        ("ring_and_core", 9),
        ("two_arcs", 7),
    ],
)
def test_components_have_their_masses(name, end):
    """By a sum of the density over a grid of the plane, in parts."""
    known = study.problem(name)
    axis, masses = torch.arange(-end, end, 0.05), torch.zeros(2).double()
    for row in axis.split(100):
        x = torch.cartesian_prod(row, axis)
        masses.index_add_(0, known.assign(x), known.target.log_prob(x).double().exp())
    shares = known.assign(study.exact_draws(name)).bincount() / study.EXACT
    assert (masses / masses.sum() - shares).abs().max() < 0.005


def test_rounds_have_each_target_once_and_all_methods_in_the_end():
    targets = list(study.JUDGING)
    names = study.in_rounds(targets)
    assert [n.split("/")[0] for n in names[: len(targets)]] == targets
    assert sorted(names) == sorted(f"{t}/{m}" for t in targets for m in study.METHODS)


def test_upper_bounds():
    assert study.upper_bound(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert study.upper_bound(5, 5) == 1.0


def test_smoke(tmp_path, monkeypatch, capsys):
    command = ["verdict_calibration.py", "--smoke", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, "--write"])
    monkeypatch.setattr(study, "DOCS", tmp_path)
    monkeypatch.setattr(sys, "argv", command)
    study.main()
    assert "wrong, flagged" in capsys.readouterr().out
    lines = (tmp_path / study.STUDY).read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == study.SMOKE
    monkeypatch.setattr(sys, "argv", [*command, "--write"])
    study.main()
    assert "| wrong | 2 | 0 |" in (tmp_path / "verdict_calibration.md").read_text()
