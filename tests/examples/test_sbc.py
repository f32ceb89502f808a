"""The study of calibration: ranks of exact draws are uniform, others are seen, and a short run."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_flowsamp

SUITES = Path(pyro_flowsamp.__file__).parents[1] / "examples" / "benchmarks" / "suites"
sys.path.insert(0, str(SUITES))
import sbc  # noqa: E402


def runs_of(shift=0.0, scale=1.0, correlation=0.0, runs=200):
    """Ranks of normal numbers among normal draws of another mean or spread."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(runs):
        noise = rng.normal(size=(20, 80))
        for i in range(1, 80):
            noise[:, i] = correlation * noise[:, i - 1] + (1 - correlation**2) ** 0.5 * noise[:, i]
        truth = float(rng.normal())
        rank, count = sbc.ranks({"x": (shift + scale * noise, truth)}, rng)
        found.append({"ranks": rank, "draws": count, "reliable": 1})
    return found


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_ranks_among_right_draws_are_uniform(correlation):
    assert min(sbc.p_values(runs_of(correlation=correlation), "x")) > 1e-3


@pytest.mark.parametrize("wrong", [{"shift": 0.5}, {"scale": 0.5}, {"scale": 2.0}])
def test_ranks_among_wrong_draws_are_not(wrong):
    assert min(sbc.p_values(runs_of(**wrong), "x")) < 1e-5


def test_ranks_among_fewer_draws_are_uniform_too():
    """Chains that stay where they are have about one effective draw each."""
    rng = np.random.default_rng(0)
    still = np.repeat(rng.normal(size=(20, 1)), 40, 1)
    rank, count = sbc.ranks({"x": (still, 0.0)}, rng)
    assert count in (20, 40) and rank["x"] == count / 20 * (still[:, 0] < 0).sum()


@pytest.mark.parametrize("name", sbc.MODELS)
def test_parameters_and_data_of_a_model(name):
    torch.manual_seed(0)
    truth, y = sbc.simulate(sbc.MODELS[name])
    target = pyro_flowsamp.Target.from_model(sbc.MODELS[name], y)
    assert {site.name for site in target.sites} == set(truth)
    lp = target.log_prob(target.pack({k: v[None] for k, v in truth.items()}))
    assert lp.shape == (1,) and torch.isfinite(lp).all()


def test_smoke(tmp_path, monkeypatch, capsys):
    command = ["sbc.py", "--smoke", "--results", str(tmp_path)]
    monkeypatch.setattr(sbc, "ESS", 200)
    monkeypatch.setattr(sbc, "DOCS", tmp_path)
    monkeypatch.setattr(sys, "argv", command)
    sbc.main()
    assert "| square | log density | 1 |" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / sbc.STUDY).read_text().splitlines()]
    assert [(line["name"], line["seed"]) for line in lines] == [("square", 0)]
    monkeypatch.setattr(sys, "argv", [*command, "--write"])
    sbc.main()
    assert "| square | 1 |" in (tmp_path / "sbc.md").read_text()
