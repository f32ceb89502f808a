"""Dense discriminators: angles are periodic, wrong shapes are refused."""

from math import pi

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pyro_flowsamp import AutoAdvNF, FitOptions, lattice_discriminator
from pyro_flowsamp.guides.advnf.discriminator import DenseDiscriminator
from pyro_flowsamp.lattice.discriminator import LatticeDiscriminator
from pyro_flowsamp.problems import mog4

SHORT = FitOptions(4, 32, 1e-3, eval_every=2, stop_at_ess=1.0, progress=False)


# ---- discriminators -----------------------------------------------------------------------------


def test_dense_discriminators_know_the_circle():
    angles = torch.tensor([True, False])
    network = DenseDiscriminator(2, 1, angles)
    network.standardize(torch.randn(100, 2) * 5 + 3)
    x, c = torch.randn(5, 2), torch.randn(5, 1)
    turned = x + torch.tensor([2 * pi, 0.0])
    assert_close(network(turned, c), network(x, c), atol=1e-4, rtol=1e-4)
    assert (network(x + torch.tensor([0.0, 2 * pi]), c) - network(x, c)).abs().max() > 1e-3


# ---- bad input ----------------------------------------------------------------------------------


def test_bad_discriminators():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 1)

        def forward(self, x, context):
            return self.net(x)

    with pytest.raises(ValueError, match="for 4 sites.*has 2 coordinates"):
        AutoAdvNF(mog4().target, discriminator=lattice_discriminator((2, 2)), options=SHORT).fit()
    with pytest.raises(ValueError, match="all angles, or none"):
        LatticeDiscriminator((2,), 0, torch.tensor([True, False]))
    guide = AutoAdvNF(mog4().target, discriminator=Flat(), options=SHORT)
    with pytest.raises(ValueError, match=r"maps 2 points to shape \(2, 1\); it must be \(2,\)"):
        guide.fit(ensemble=mog4().sample(100))
