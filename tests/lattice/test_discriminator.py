"""Lattice discriminators give the same value to all translations."""

from math import pi

import pytest
import torch
from torch.testing import assert_close

from pyro_flowsamp.lattice.discriminator import LatticeDiscriminator


@pytest.mark.parametrize("shape", [(6,), (4, 4), (2, 2, 2)])
@pytest.mark.parametrize("context", [0, 2])
def test_lattice_discriminators_are_blind_to_translations(shape, context):
    dim = torch.Size(shape).numel()
    network = LatticeDiscriminator(shape, context, torch.ones(dim, dtype=torch.bool))
    x, c = 3 * torch.randn(5, dim), torch.randn(5, context) if context else None
    moved = x.reshape(5, *shape).roll(1, 1).reshape(5, dim)
    assert network(x, c).shape == (5,)
    assert_close(network(moved, c), network(x, c), atol=1e-5, rtol=1e-4)
    assert_close(network(x + 2 * pi, c), network(x, c), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="one to three axes"):
        LatticeDiscriminator((2, 2, 2, 2))
