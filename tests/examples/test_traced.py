"""The comparison of eager, traced and compiled densities: what is measured, and its table."""

import math

import torch
from stored_runs import append
from suites import traced


def test_a_run_without_a_compiler(monkeypatch):
    monkeypatch.setattr(traced, "SECONDS", 0.0)
    found = traced.measure("eight_schools", 4, with_compiler=False)
    assert found["same"] and found["d"] == 10 and found["operations"] > 50
    assert found["eager"] > 0 and found["traced"] > 0 and "compiled" not in found


def test_a_difference_is_in_rounding_errors():
    eps = torch.finfo(torch.float32).eps
    one = torch.tensor([1.0, math.inf]), torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    other = torch.tensor([1.0 + 4 * eps, math.inf]), torch.tensor([[3.0, 8 * eps], [0.0, 0.0]])
    assert 1.9 < traced.largest_difference(one, other) < 2.1


def test_the_table(tmp_path):
    store = tmp_path / traced.STUDY
    result = {"d": 2, "num": 1, "eager": 2e-3, "recording": 0.5, "operations": 30, "same": True}
    append(store, "garch-1", 0, {**result, "traced": 1e-3})
    append(store, "random_walk-1", 0, {"d": 3, "num": 1, "eager": 1.0, "reason": "it branches"})
    append(store, "gaussian_process-1", 0, {"stopped": True, "seconds": 900.0})
    text = traced.table(store, list(traced.NAMES), [1])
    assert "| GARCH, 200 returns | 2 | 1 | 30 | 2 | 1 | – | 2.0 | – | 0.5 | – | yes | – |" in text
    assert "- random walk, 450, 1 points: not traced, it branches." in text
    assert "stopped after 900 s" in text
