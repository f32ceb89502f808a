"""The loss of annealing blocks: the trained block is the whole map."""

import pytest
import torch
from support.annealing import trained_displacement
from torch.testing import assert_close

from pyro_flowsamp.guides.annealing import log_variance


@pytest.mark.slow
def test_the_default_block_is_the_whole_map():
    slope, _ = trained_displacement(2.0, 1.0)
    assert 1 + slope == pytest.approx(0.5**0.5, rel=0.02)


class Weights:
    """A batch with given log weights."""

    def __init__(self, *values):
        self.log_w = torch.tensor(values, dtype=torch.double, requires_grad=True)

    def log_weights(self):
        return 1 * self.log_w


def test_equal_weights_have_no_loss_and_no_gradient():
    batch = Weights(3.0, 3.0, 3.0)
    loss, log_w = log_variance(batch)
    loss.backward()
    assert_close(loss.detach(), torch.zeros(()).double())
    assert_close(batch.log_w.grad, torch.zeros(3).double())
    assert not log_w.requires_grad


def test_weights_that_are_not_finite_are_left_out():
    alone, among = Weights(0.0, 1.0, -2.0), Weights(0.0, -torch.inf, 1.0, torch.nan, -2.0)
    losses = [log_variance(batch)[0] for batch in (alone, among)]
    assert_close(*losses)
    losses[1].backward()
    assert among.log_w.grad.isfinite().all() and (among.log_w.grad[[1, 3]] == 0).all()
