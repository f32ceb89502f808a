"""Start distributions: the over-dispersed base, and ascent to the modes."""

import pyro
import pytest
import torch
from support.scenarios import (
    far_modes,
)

from pyro_flowsamp import Target
from pyro_flowsamp.flows.gaussian_fit import ascend
from pyro_flowsamp.smc.starts import overdispersed_base


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)


def test_ascent_goes_uphill_and_stops_at_an_edge():
    def energy(x):
        return torch.where(x[:, 0] > 1, torch.inf, -x[:, 0] + 0.5 * x[:, 1].square())

    target = Target.from_energy(energy, 2)
    x = torch.empty(20, 2).uniform_(-2, 0)
    stages = ascend(target, x)
    assert stages.shape == (3, 20, 2)
    log_p = torch.stack([target.log_prob(stage) for stage in stages])
    assert log_p.isfinite().all() and (log_p[-1] > target.log_prob(x)).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_base_covers_lower_modes(seed):
    pyro.set_rng_seed(seed)
    base = overdispersed_base(far_modes(), 512)
    assert abs(base.loc[0]) < 1 and base.scale[0] > 8
