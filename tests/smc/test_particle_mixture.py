"""Mixtures of particles that share ancestors."""

import pytest
import torch
from support.mutations import broken, mutation

from pyro_flowsamp import ModeSearchOptions, Target
from pyro_flowsamp.smc import particle_mixture
from pyro_flowsamp.smc.coordinates import WhitenedTarget
from pyro_flowsamp.smc.particle_mixture import mixture_of_paths
from pyro_flowsamp.smc.particle_mixture import particle_mixture as fitted
from pyro_flowsamp.smc.path_modes import PathModes

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


def two_modes_of_paths(dim=50, apart=10.0):
    """Return particles of two modes, too few for their covariances, and modes of paths."""
    shift = apart / dim**0.5 * torch.ones(dim).double()
    x = torch.randn(500, dim).double() + shift * (torch.arange(500) % 10 < 3)[:, None]
    target = Target.from_energy(lambda u: 0.5 * u.square().sum(-1), dim)
    loc = torch.stack([torch.zeros(dim).double(), shift, shift + 0.1])  # two end in the second
    eye, mass = torch.eye(dim).double(), torch.zeros(3).double()
    modes = PathModes(loc, eye.expand(3, -1, -1), mass, loc[:, None], torch.ones(3))
    whitened = WhitenedTarget(target, torch.zeros(dim), torch.eye(dim))
    return x, modes, whitened


def test_paths_tell_modes_apart_where_particles_are_few():
    torch.manual_seed(0)
    x, modes, whitened = two_modes_of_paths()
    assert fitted(x, OPTIONS).groups(fitted(x, OPTIONS).joint_log_prob(x), 0.01).max() == 0
    found = fitted(x, OPTIONS, paths=mixture_of_paths(modes, whitened, OPTIONS))
    assert found.groups(found.joint_log_prob(x), 0.01).tolist() == [0, 1]
    share = float(found.log_weights.exp().min())
    assert abs(share - 0.3) < 1e-6  # the modes are ten standard deviations apart


def test_a_mean_is_nearer_than_the_draws_around_it():
    """By the bound for draws the two modes would be one: their distance² is 100, and d is 50."""

    @mutation(PathModes, "distinct")
    def as_draws(distinct, self, target, deviations):
        return self.some(~self.near(self.loc, target, deviations).triu(1).any(0))

    _, modes, whitened = two_modes_of_paths()
    assert len(mixture_of_paths(modes, whitened, OPTIONS).locs) == 2
    with broken(as_draws):
        assert len(mixture_of_paths(modes, whitened, OPTIONS).locs) == 1


def test_paths_that_fit_worse_than_the_particles_are_not_used():
    torch.manual_seed(0)
    x, modes, whitened = two_modes_of_paths(dim=2)
    wide = modes._replace(scale_tril=9 * modes.scale_tril, loc=9 * modes.loc)
    found = fitted(x, OPTIONS, paths=mixture_of_paths(wide, whitened, OPTIONS))
    assert float(found.scale_trils.diagonal(dim1=-2, dim2=-1).max()) < 2
