"""Frozen flows as kernels use them."""

from math import log, pi

import pyro
import pytest
import torch

from pyro_flowsamp._zuko import zuko
from pyro_flowsamp.flows.proposal import Proposal


@pytest.mark.parametrize("contexts", [None, torch.zeros(2, 1)])
def test_a_bounded_base_has_no_density_outside_and_raises_no_error(contexts):
    context = 0 if contexts is None else 1
    proposal = Proposal(zuko.flows.NCSF(1, context, transforms=1, bins=3), contexts)
    with pyro.validation_enabled(True):
        log_q = proposal.base_log_prob(torch.tensor([[0.0], [4.0]]))
    assert log_q.tolist() == [pytest.approx(-log(2 * pi), abs=1e-4), -torch.inf]
