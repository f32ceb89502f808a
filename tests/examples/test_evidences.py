"""The study of log evidences: its targets, its scores, and a short run."""

import json
import math
import sys
from itertools import product

import numpy as np
import pytest
import torch
from problems.records import TARGETS
from suites import evidences


def run_of(**estimates):
    return {"estimates": {**dict.fromkeys(evidences.ESTIMATES, [0.0, 1.0, 5.0]), **estimates}}


def test_scores_are_uniform_where_errors_are_honest():
    """Means of four normal numbers have errors of three degrees of freedom."""
    x = np.random.default_rng(0).normal(size=(1000, 4))
    means = zip(x.mean(1), x.std(1, ddof=1) / 2)
    runs = [run_of(weights=[2.0 + m, s, 3.0]) for m, s in means]
    known = evidences.KnownEvidence(None, 2.0, None)
    t, u = evidences.scores(runs, "weights", known)
    assert t.std() > 1.3 and min(evidences.p_values(u)) > 1e-3
    normal = [run_of(weights=[*r["estimates"]["weights"][:2], math.inf]) for r in runs]
    u = evidences.scores(normal, "weights", known)[1]
    assert evidences.p_values(u)[1] < 1e-5


def test_the_evidence_of_the_regression():
    """By a sum over a grid of its three coefficients."""
    known = evidences.regression()
    guide = known.guide(known.target)
    torch.manual_seed(0)
    points = guide.proposal().sample_and_log_prob(2000)[0]
    low, high = points.amin(0), points.amax(0)
    axes = [torch.linspace(float(a), float(b), 50) for a, b in zip(low, high)]
    cell = math.prod(float(a[1] - a[0]) for a in axes)
    grid = torch.tensor(list(product(*(a.tolist() for a in axes))))
    total = known.target.log_prob(grid).double().logsumexp(0) + math.log(cell)
    assert float(total) == pytest.approx(known.log_z, abs=2e-3)


def test_the_evidence_of_the_gaussian_and_of_seeds():
    known = evidences.gaussian(2, 0.5)
    axis = torch.arange(-8, 8, 0.05)
    total = known.target.log_prob(torch.cartesian_prod(axis, axis)).double().logsumexp(0)
    assert float(total) + 2 * math.log(0.05) == pytest.approx(known.log_z, abs=1e-4)
    value, error = evidences.SEEDS_LOG_Z
    record = TARGETS["seeds"]
    assert abs(value - record.log_z) < 2 * record.log_z_error and error < 0.2 * record.log_z_error


def test_smoke(tmp_path, monkeypatch, capsys):
    command = ["evidences.py", "--smoke", "--results", str(tmp_path)]
    monkeypatch.setattr(evidences, "DOCS", tmp_path)
    monkeypatch.setattr(sys, "argv", command)
    evidences.main()
    assert "| regression | particles | 1 |" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / evidences.STUDY).read_text().splitlines()]
    assert [(line["name"], line["seed"]) for line in lines] == [("regression", 0)]
    for value, error, degrees in lines[0]["estimates"].values():
        assert abs(value - evidences.regression().log_z) < 6 * error and degrees >= 7
    monkeypatch.setattr(sys, "argv", [*command, "--write"])
    evidences.main()
    assert "| regression | run | 1 |" in (tmp_path / "evidences.md").read_text()
