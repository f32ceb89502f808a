"""Mixtures of particles that share ancestors."""

import pytest
import torch
from support.mutations import broken, mutation

from pyro_flowsamp import ModeSearchOptions
from pyro_flowsamp.smc import particle_mixture
from pyro_flowsamp.smc.particle_mixture import particle_mixture as fitted

OPTIONS = ModeSearchOptions()


def copies(dim, each=8, count=240, spread=0.05):
    """Return particles of four islands: copies of fewer ancestors that have moved a little."""
    ancestors = torch.randn(4, count // 4, 1, dim).double()
    x = ancestors + spread * torch.randn(4, count // 4, each, dim)
    return x.reshape(-1, dim), torch.arange(count * each) // (count * each // 4)


@mutation(particle_mixture, "fit_mixture")
def at_random(fit_mixture, x, most, options, held_out):
    return fit_mixture(x, most, options)


@pytest.mark.parametrize("dim", [pytest.param(2, marks=pytest.mark.slow), 10])
def test_clusters_of_copies_are_no_components(dim):
    torch.manual_seed(0)
    x, islands = copies(dim, count=400 if dim == 2 else 240)
    assert len(fitted(x, OPTIONS, islands).locs) <= 2
    torch.manual_seed(0)
    if dim == 2:
        with broken(at_random):
            assert len(fitted(x, OPTIONS, islands).locs) >= 8


def test_modes_of_all_islands_are_components():
    torch.manual_seed(0)
    x, islands = copies(2)
    x[::3] += 20.0
    mixture = fitted(x, OPTIONS, islands)
    assert 2 <= len(mixture.locs) <= 4
    assert len(mixture.separated(x, OPTIONS.overlap).unique()) == 2


def test_few_particles_are_compared_on_other_islands():
    """In many dimensions the standard normal is better than a mixture of copies."""
    torch.manual_seed(0)
    x, islands = copies(30, count=40)
    mixture = fitted(x, OPTIONS, islands)
    assert len(mixture.locs) == 1 and torch.equal(mixture.scale_trils[0], torch.eye(30).double())
