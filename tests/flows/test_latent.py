"""Latent distributions are standard normal in the reals and uniform in the angles."""

from math import log, pi

import torch
from torch.testing import assert_close

from pyro_flowsamp.flows.recipes import circular

MIXED = torch.tensor([True, False, True, False])


# ---- the base ----------------------------------------------------------------------------------


def test_the_base_is_standard_normal_and_uniform():
    base = circular(4, angles=MIXED).base()
    z = base.sample((50_000,))
    assert z[:, MIXED].abs().max() <= pi
    reals = torch.distributions.Normal(0.0, 1.0).log_prob(z[:, ~MIXED]).sum(-1)
    assert_close(base.log_prob(z), reals - 2 * log(2 * pi))
    variance = torch.where(MIXED, pi**2 / 3, 1.0)
    assert_close(z.var(0), variance, rtol=0.05, atol=0)
    assert base.expand((7,)).sample((2,)).shape == (2, 7, 4)
