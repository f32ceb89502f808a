"""The study of dimensions: its targets, slopes and table."""

import numpy as np
import pytest
import torch
from stored_runs import append
from suites import dimension
from support.marks import slow


def test_the_covariance_has_the_condition_number():
    target = dimension.target_of("gaussian", 6)
    hessian = torch.autograd.functional.hessian(
        lambda x: -target.log_prob(x[None])[0], torch.zeros(6)
    )
    values = torch.linalg.eigvalsh(hessian.double())
    assert float(values[-1] / values[0]) == pytest.approx(dimension.CONDITION, rel=0.02)


@pytest.mark.parametrize("name", dimension.TARGETS)
def test_targets_are_the_same_each_time(name):
    one, two = (dimension.target_of(name, 5) for _ in range(2))
    x = torch.randn(3, 5)
    assert one.dim == 5 and torch.equal(one.log_prob(x), two.log_prob(x))


@pytest.mark.parametrize("sampler", slow(["imh", dimension.BASELINE], "imh"))
def test_a_short_run(sampler):
    found = dimension.measure("gaussian", 3, sampler, seed=0, goal=50)
    assert found["ess"] > 50 and found["fixed_cost"] > found["cost"] / found["draws"] > 0


def test_a_slope():
    points = [(d, 3.0 * d**0.25) for d in (10, 30, 100)]
    assert dimension.slope(points) == pytest.approx(0.25)
    assert dimension.slope(points[:1]) is None


def test_squares_are_about_the_mean():
    x = np.ones((2, 3, 1)) * np.array([1.0, 3.0])[:, None, None]
    assert (dimension.parts(x)[..., 1] == 1).all()


def test_the_table(tmp_path):
    store = tmp_path / dimension.STUDY
    common = {"fixed_seconds": 1.0, "seconds": 2.0, "r_hat": 1.0, "draws": 100}
    for dim, cost in ((10, 1e3), (100, 1e5)):
        flow = {**common, "fixed_cost": 500.0, "cost": cost, "ess": 100.0}
        append(store, f"banana-{dim}-imh", 0, flow)
        other = {**common, "fixed_cost": 0.0, "cost": 2e3, "ess": 100.0}
        append(store, f"banana-{dim}-{dimension.BASELINE}", 0, other)
    append(store, "banana-10-sample", 0, {"failure": "RuntimeError: no kernel runs"})
    text = dimension.table(store, ["banana"], [10, 100], dimension.SAMPLERS)
    assert "| banana | 10 | imh | 500 | 10 | 1 | 20 | 100 | 1.000 |" in text
    assert "- banana, imh: the slope is 2.00." in text
    assert "than by the Gaussian alone: 10; and more: 100." in text
    assert "- banana, d = 10, sample: failed, RuntimeError: no kernel runs" in text
