"""Quasi-random sequences are spread evenly."""

from math import ceil

import pytest
import torch

from pyro_flowsamp.transitions.sequences import (
    numbers_of_steps,
    step_size_factor,
    van_der_corput,
)


def test_points_fill_the_interval_evenly_at_every_scale():
    points = van_der_corput(64)
    assert sorted(points) == [(i + 0.5) / 64 for i in range(64)]
    for start in range(0, 64, 8):
        assert sorted(int(8 * u) for u in points[start : start + 8]) == list(range(8))


@pytest.mark.parametrize("mean", [0.5, 1.0, 3.3, 40.0, 128.0])
def test_numbers_of_steps(mean):
    points = van_der_corput(256)
    steps = numbers_of_steps(mean, 256, points)
    assert steps == [ceil(2 * u * mean) for u in points]
    assert abs(sum(steps) / 256 - mean - 0.5) < 0.3
    assert max(numbers_of_steps(mean, 7, points)) <= 7
    assert set(numbers_of_steps(0.5, 7, points)) == {1}


@pytest.mark.parametrize(("share", "octaves"), [(0.0, 3.0), (0.5, 3.0), (1.0, 2.0), (0.3, 0.0)])
def test_factors_of_step_sizes_are_spread_evenly(share, octaves):
    found = torch.tensor([step_size_factor(t, share, octaves) for t in range(1000)])
    logs = -found.log2()
    assert abs(float(logs.mean()) - share * octaves / 2) < 0.01
    assert 0 <= float(logs.min()) and float(logs.max()) <= octaves + 1e-6
    if octaves:
        assert abs(float((logs > 0).double().mean()) - share) < 0.01
