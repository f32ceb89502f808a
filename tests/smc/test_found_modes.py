"""Shares of modes that paths alone have found, and weights of all particles."""

import torch
from torch.testing import assert_close

from pyro_flowsamp.smc.found_modes import Agreement, particle_weights
from pyro_flowsamp.smc.path_modes import PathModes

LOG_Z = torch.tensor([0.0, 2.0]).double()  # the first search has missed mass


def lost(*masses, points=5):
    """Modes of these masses at 1, 2, ..."""
    loc = torch.arange(1.0, len(masses) + 1).double()[:, None]
    eye = torch.eye(1).double().expand(len(masses), 1, 1)
    log_mass = torch.tensor(masses).double().log()
    return PathModes(loc, eye, log_mass, loc[:, None].expand(-1, points, 1), 0 * log_mass + 1)


def agreement():
    none = torch.ones(2, 1)
    return Agreement(none, torch.zeros(1), 0.0, LOG_Z, torch.full((2,), 0.1).double())


def test_shares_of_modes_that_have_most_of_the_mass():
    """A share is of the mass of all, which is that of the searches and of these modes."""
    z = float(LOG_Z.exp().mean())
    shares = agreement().shares_of(lost(3.0, 30.0))
    assert_close(shares, torch.tensor([3.0, 30.0]).double() / (33.0 + z))
    assert len(agreement().shares_of(lost())) == 0


def test_weighted_particles_have_the_means_of_the_whole():
    """Particles of searches are at -1 and -2; each mode counts by its mass."""
    z = LOG_Z.exp() / 2
    x = torch.tensor([-1.0] * 40 + [-2.0] * 10 + [1.0] * 5 + [2.0] * 5).double()
    weights = particle_weights(agreement(), (40, 10), lost(3.0, 30.0))
    mean = (-z[0] - 2 * z[1] + 3 + 60) / (33 + z.sum())
    assert_close(weights @ x, mean)
    assert_close(
        particle_weights(agreement(), (40, 10), None) @ x[:50], (-z[0] - 2 * z[1]) / z.sum()
    )
