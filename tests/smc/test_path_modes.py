"""Modes that paths have found: their masses, and those that no particle is near."""

import math

import pyro
import torch
from support.mutations import broken, mutation
from torch.distributions import MultivariateNormal

from pyro_flowsamp import ModeSearchOptions, Target
from pyro_flowsamp.smc import comparison
from pyro_flowsamp.smc.mode_search import ModeSearch
from pyro_flowsamp.smc.path_modes import PathModes, path_modes

EYE = torch.eye(2).double()
LOCS = torch.tensor([[0.0, 0.0], [30.0, 0.0], [30.1, 0.0]]).double()


def standard():
    return Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)


def least(share):
    return ModeSearchOptions(least_mode=share)


def three():
    points = LOCS[:, None] + torch.randn(3, 20, 2).double()
    masses = torch.tensor([0.9, 0.05, 0.04]).double()
    return PathModes(LOCS, EYE.expand(3, 2, 2), masses.log(), points, torch.ones(3))


def test_masses():
    """Of a Gaussian of another width, each estimate is within its error."""
    torch.manual_seed(0)
    wide = MultivariateNormal(LOCS, 1.2 * EYE)
    x = wide.sample((4000,))
    log_w = MultivariateNormal(LOCS, EYE).log_prob(x) - wide.log_prob(x) + math.log(7.0)
    found = path_modes(LOCS, EYE.expand(3, 2, 2), x, log_w)
    assert (found.log_mass - math.log(7.0)).abs().max() < 0.05
    assert (found.points.var(1) - 1).abs().max() < 0.1  # draws of the target, not of the Gaussian


def test_weights_of_zero():
    x = torch.randn(50, 3, 2).double()
    log_w = torch.zeros(50, 3).double()
    log_w[:, 1] = -torch.inf
    found = path_modes(LOCS, EYE.expand(3, 2, 2), x, log_w)
    assert torch.equal(found.loc, LOCS[[0, 2]])


def test_modes_without_particles():
    """Each once, and only those that count."""
    found = three().alone(torch.randn(100, 2), standard(), 0.0, least(1e-3))
    assert torch.equal(found.loc, LOCS[1:2])
    assert len(three().alone(torch.randn(100, 2), standard(), 0.0, least(0.06)).loc) == 0
    x = torch.cat([torch.randn(100, 2), LOCS[1:2].float()])
    assert len(three().alone(x, standard(), 0.0, least(1e-3)).loc) == 0


def test_each_mode_knows_how_often_it_was_found():
    """Two paths end near one mode, with their times; the third is another mode."""
    modes = three()._replace(times=torch.tensor([5.0, 2.0, 1.0]))
    assert modes.distinct(standard(), 6.0).times.tolist() == [5.0, 3.0]


def needle(x):
    """A wide Gaussian, and a mode of 1 % of the mass, a thousandth as wide, eight sd away."""
    wide = -0.5 * x.square().sum(-1) + math.log(0.99)
    narrow = -0.5 * ((x - 8) / 1e-3).square().sum(-1) + math.log(0.01) + 2 * math.log(1e3)
    return -torch.logaddexp(wide, narrow)


def found():
    pyro.set_rng_seed(0)
    points = torch.full((4, 2), 8.0) + 1e-2 * torch.randn(4, 2)
    return ModeSearch(
        Target.from_energy(needle, 2, dtype=torch.double), points=points.double()
    ).run()


def test_a_needle_that_particles_miss():
    """Points of the path are among the particles, and its mass is known."""
    search = found()
    assert bool(((search.x - 8).abs() < 0.1).all(1).any())
    if search.agreement.missed:  # annealing has lost it
        assert abs(search.agreement.missed - 0.01) < 0.002


@mutation(comparison, "with_modes_of_paths")
def without(with_modes_of_paths, coordinates, modes, *args):
    return with_modes_of_paths(coordinates, None, *args)


def test_paths_are_needed():
    with broken(without):
        assert not bool(((found().x - 8).abs() < 0.1).all(1).any())
