"""Rules for step sizes: they approach the acceptance that is asked for."""

import pytest
import torch
from torch.testing import assert_close

from pyro_flowsamp.transitions.step_size import StepSize, jitter, robbins_monro


def acceptance(step_size):
    """Fall from one to zero, through 1/(1 + e²) at 2."""
    return torch.sigmoid(-step_size.double())


def test_the_right_step_size_is_left_alone():
    step_size = torch.tensor([0.3, 2.0])
    accept_prob = torch.tensor([0.6, 0.6], dtype=torch.double)
    assert_close(robbins_monro(step_size, accept_prob, 0.6, 0.5), step_size)


@pytest.mark.parametrize("start", [0.01, 30.0])
def test_robbins_monro_finds_the_step_size(start):
    """Where α(ε) = 1/(1 + e^ε) is 0.2, ε is log 4; one step size for each row."""
    step_size = torch.tensor([start, 1.0], dtype=torch.double)
    for _ in range(200):
        step_size = robbins_monro(step_size, acceptance(step_size), 0.2, 0.5)
    assert_close(step_size, torch.full((2,), 4.0).double().log())


def test_the_dtype_is_that_of_the_step_size():
    accept_prob = torch.tensor(0.5, dtype=torch.double)
    assert robbins_monro(torch.tensor(1.0), accept_prob, 0.6, 0.5).dtype == torch.float32


@pytest.mark.parametrize("start", [0.1, 10.0])
def test_dual_averaging_finds_the_step_size(start):
    adapted = StepSize(torch.tensor([start, 1.0]), 0.2)
    for _ in range(500):
        adapted.adapt(acceptance(adapted.value))
    adapted.freeze()
    assert_close(adapted.value, torch.full((2,), 4.0).log(), rtol=0.1, atol=0)


def test_jitter_is_within_a_fifth():
    drawn = jitter(torch.full((4000,), 2.0))
    assert 1.6 <= drawn.min() < 1.61 and 2.39 < drawn.max() <= 2.4
    assert abs(float(drawn.mean()) - 2.0) < 4.5 * 0.8 / 12**0.5 / 4000**0.5
