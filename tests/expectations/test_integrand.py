"""Integrands and distributions that importance_flow refuses."""

import pyro.distributions as dist
import pytest
import torch

from pyro_flowsamp import importance_flow


def normal(dim=2):
    return dist.Normal(torch.zeros(dim), 1.0).to_event(1)


def beyond(radius):
    return lambda x: x.norm(dim=-1) - radius


# ---- what it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "h, options, message",
    [
        (None, {}, "either h, or event="),
        (lambda x: x[:, 0], {"event": beyond(1.0)}, "either h, or event="),
        (lambda x: x[:, 0], {}, "h is negative.*signed=True"),
        (lambda x: x[:, 0].sqrt(), {}, "h is NaN or infinite"),
        (lambda x: x, {}, r"must be of shape \(4096,\), got \(4096, 2\)"),
        (lambda x: 1.0, {}, "got float"),
        (lambda x: (x[:, 0] > 9).float(), {}, "no value at any .*give event="),
        (lambda x: x[:, 0].square(), {"signed": True}, "no negative value"),
        (None, {"event": lambda x: x[:, 0] > 4}, "true and false"),
        (None, {"event": lambda x: 0 * x[:, 0]}, "the same at all draws"),
        (None, {"event": lambda x: x[:, 0].log()}, "event= is NaN or infinite"),
        (None, {"event": beyond(1.0), "signed": True}, "an event has no sign"),
        (None, {"event": beyond(1.0), "estimators": ("exact",)}, "estimators must be some of"),
        (None, {"event": beyond(1.0), "num_samples": 1000, "islands": 16}, "multiple of"),
        (None, {"event": beyond(1.0), "data": torch.randn(200, 2)}, "not both"),
    ],
)
def test_contradictions(h, options, message):
    with pytest.raises(ValueError, match=message):
        importance_flow(normal(), h, **options)


@pytest.mark.parametrize(
    "p, message",
    [
        (dist.Normal(0.0, 1.0), r"event shape \(d,\)"),
        (dist.Normal(torch.zeros(3, 2), 1.0).to_event(1), r"event shape \(d,\)"),
        (dist.Exponential(torch.ones(2)).to_event(1), "all of R"),
    ],
)
def test_distributions_that_no_path_starts_from(p, message):
    with pytest.raises(ValueError, match=message):
        importance_flow(p, event=beyond(1.0))


@pytest.mark.parametrize(
    "data, message",
    [
        (torch.randn(500), r"draws \(N, d\)"),
        (torch.randn(50, 2), "at least 100"),
        (torch.ones(500, 2, dtype=torch.long), "floating type"),
        (torch.full((500, 2), torch.nan), "500 of 500 rows of data"),
    ],
)
def test_data_that_are_no_draws(data, message):
    with pytest.raises(ValueError, match=message):
        importance_flow(data=data, event=beyond(1.0))
