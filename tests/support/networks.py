"""Networks with random weights."""

import torch


def rough(make, size=1.0):
    """Make a network and add noise to all its weights, so that none is zero."""
    return roughened(make(), size)


def roughened(network, size=0.5):
    """Add noise to all weights of a network, so that none is zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += size * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5
    return network
