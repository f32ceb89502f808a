"""Models with a recurrence: the scan is the loop, and both are those of the studies."""

import pytest
import torch
from problems.known import PROBLEMS
from problems.recurrences import RECURRENCES, autoregression, by_loop, by_scan, garch, returns
from torch.testing import assert_close

from pyro_flowsamp import Target


def test_the_scan_is_the_loop(double):
    factor, added = torch.rand(13), torch.randn(13)
    assert_close(by_scan(factor, added), by_loop(factor, added))


@pytest.mark.parametrize("model", [garch, autoregression])
def test_densities_and_gradients(model, double):
    """They are batched by vmap, and recorded, in both ways."""
    found = []
    for recurrence in (by_loop, by_scan):
        target = Target.from_model(model, returns(12), recurrence)
        assert target.batching == "vmap"
        x = 0.3 * torch.randn(4, target.dim, generator=torch.Generator().manual_seed(0))
        eager = target.log_prob_and_grad(x)
        target.compile_mode = True
        traced = target.log_prob_and_grad(x)
        assert target.density.density.sizes == [4], target.untraced_reason
        assert all(torch.equal(a, b) for a, b in zip(eager, traced))
        found.append(traced)
    assert_close(*found)


def test_the_model_of_the_known_posteriors(double):
    model, data = PROBLEMS["garch"].make()
    assert_close(data[0], returns(200))
    ours = Target.from_model(garch, returns(200), by_scan)
    x = torch.randn(2, 4)
    assert_close(Target.from_model(model, *data).log_prob(x), ours.log_prob(x))


def test_names():
    model, data = RECURRENCES["autoregression_1000_scan"]()
    assert model is autoregression and len(data[0]) == 1000 and data[1] is by_scan
