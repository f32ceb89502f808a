"""Targets of several modes, and a search for modes that loses one."""

from math import log

import torch
from support.mutations import Mutation

from pyro_flowsamp import Target
from pyro_flowsamp.smc import mode_search

SD = 1.3


def forty_modes():
    """Return a target of forty Gaussians on a square of side 80, and their means."""
    generator = torch.Generator().manual_seed(0)
    means = (torch.rand(40, 2, generator=generator) - 0.5) * 80

    def energy(x):
        return -(-0.5 * ((x[:, None] - means) / SD).square().sum(-1)).logsumexp(1)

    return Target.from_energy(energy, 2), means


def two_modes(share=0.5, distance=10.0):
    def energy(x):
        near, far = ((x - c).square().sum(-1) / 2 for c in (distance / 2, -distance / 2))
        return -torch.logaddexp(log(share) - near, log(1 - share) - far)

    return Target.from_energy(energy, 1)


def second_search(change):
    """Make a mutation: the points of every other annealing become ``change(target, points)``."""
    count = 0

    def changed(tempered_smc, target, *args, **options):
        nonlocal count
        found, count = tempered_smc(target, *args, **options), count + 1
        if count % 2:
            return found
        return found._replace(state=found.state._replace(x=change(target, found.x)))

    return Mutation(mode_search, "tempered_smc", changed)


def second_search_loses_a_mode():
    """Make a mutation: every other annealing leads to the points of positive x only."""

    def lost(target, points):
        x = target.to_x(points)[:, 0]
        kept = (x > 0).nonzero()[:, 0]
        return points[kept[torch.arange(len(x)) % len(kept)]]

    return second_search(lost)
