"""Weights of a smaller lattice's flow in a larger one's."""

from math import prod

import torch
from torch.testing import assert_close
from variants import copy_levels

from pyro_flowsamp import lattice_flow


def flow_of(shape):
    """One that is far from the identity."""
    torch.manual_seed(1)
    flow = lattice_flow(shape)(prod(shape), 0, torch.ones(prod(shape), dtype=torch.bool))
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return flow


def test_levels_of_a_smaller_lattice():
    small, large = flow_of((8, 8)), flow_of((16, 16))
    copy_levels(large, small)
    for key in ("0_11_0", "0_10_1"):
        assert_close(large.layers[key].weight, small.layers[key].weight)
    assert_close(large.layers["1_10_0"].net[0].weight, small.layers["0_10_0"].net[0].weight)
    assert set(copy_levels(large, small)) >= {k for k in large.layers if k[0] in "01"}
    assert not copy_levels(flow_of((16, 8)), flow_of((8,)))
