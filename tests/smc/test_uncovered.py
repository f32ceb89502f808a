"""Components for modes that a fitted mixture lacks, and none for tails."""

from math import inf, log

import pytest
import torch
from support.mutations import broken, mutation

from pyro_flowsamp import ModeSearchOptions, Target
from pyro_flowsamp.flows.mixture_fit import Mixture
from pyro_flowsamp.smc import uncovered
from pyro_flowsamp.smc.coordinates import WhitenedTarget
from pyro_flowsamp.smc.uncovered import covering_all

OPTIONS = ModeSearchOptions()
SHARE, FAR = 0.004, 40.0  #: share and place of the small mode


def whitened(energy, dim):
    target = Target.from_energy(energy, dim)
    return WhitenedTarget(target, torch.zeros(dim), torch.eye(dim))


def two_modes(dim):
    """Standard normals, of which the smaller is far away; the evidence is not one."""

    def energy(x):
        near, far = (0.5 * (x - at).square().sum(-1) for at in (0.0, FAR))
        return 7.0 - torch.logaddexp(log(1 - SHARE) - near, log(SHARE) - far)

    return whitened(energy, dim)


def normal(dim):
    eye = torch.eye(dim).double()[None]
    return Mixture(torch.zeros(1).double(), torch.zeros(1, dim).double(), eye)


def particles(dim, far, num=1000):
    u = torch.randn(num, dim).double()
    u[:far] += FAR
    return u


@pytest.mark.parametrize("dim", [1, 8, 50])
@pytest.mark.parametrize("far", [1, 4, 20])
def test_a_mode_gets_a_component_of_its_mass(dim, far):
    """However many particles it has: its mass is that of importance weights."""
    torch.manual_seed(far)
    found = covering_all(normal(dim), particles(dim, far), two_modes(dim), OPTIONS)
    assert len(found.locs) == 2
    torch.testing.assert_close(found.locs[1], torch.full((dim,), FAR).double(), atol=0.1, rtol=0)
    assert abs(float(found.log_weights[1]) - log(SHARE)) < 0.2
    assert float(found.log_weights.logsumexp(0)) == pytest.approx(0.0, abs=1e-9)


def error_of_share(scale, dim=30, stray=0):
    """The error of the log weight of the small mode beside a mixture that fits the other badly."""
    torch.manual_seed(4)
    mixture, u = normal(dim), particles(dim, 4)
    u[len(u) - stray :] *= 4.0
    mixture = mixture._replace(scale_trils=scale * mixture.scale_trils)
    found = covering_all(mixture, u, two_modes(dim), OPTIONS)
    return abs(float(found.log_weights[1]) - log(SHARE))


@pytest.mark.parametrize("scale, stray", [(1.25, 0), (1.0, 0), (1.25, 1), (0.8, 0)])
def test_the_mass_is_that_beside_a_poor_fit_too(scale, stray):
    assert error_of_share(scale, stray=stray) < 0.4


def test_no_component_without_particles():
    torch.manual_seed(0)
    mixture = normal(3)
    assert covering_all(mixture, particles(3, 0), two_modes(3), OPTIONS) is mixture


def test_a_tail_gets_no_component():
    """Its particles are not covered, and their paths climb to the mode that there is."""
    torch.manual_seed(0)
    target = whitened(lambda x: 2.0 * x.square().sum(-1).log1p(), 2)
    u = torch.distributions.StudentT(2.0).sample((1000, 2)).double()
    assert float(u.abs().max()) > 20
    assert len(covering_all(normal(2), u, target, OPTIONS).locs) == 1


def test_a_poor_fit_in_many_dimensions_is_no_mode():
    """Log weights vary by tens of nats there."""
    torch.manual_seed(0)
    target = whitened(lambda x: 0.5 * (x / 1.3).square().sum(-1), 200)
    before = target.target.evaluations
    u = 1.3 * torch.randn(500, 200).double()
    assert len(covering_all(normal(200), u, target, OPTIONS).locs) == 1
    assert target.target.evaluations - before == 500  # and no path


@mutation(uncovered, "uncovered")
def none_is_uncovered(right, log_w, options):
    return torch.tensor(inf)


@mutation(uncovered, "uncovered")
def all_are_uncovered(right, log_w, options):
    return torch.tensor(-inf)


def test_the_bound_decides():
    torch.manual_seed(0)
    call = normal(2), particles(2, 4), two_modes(2), OPTIONS
    with broken(none_is_uncovered):
        assert len(covering_all(*call).locs) == 1
    with broken(all_are_uncovered):
        assert len(covering_all(*call).locs) > 2


def test_angles_are_left_alone():
    target = Target.from_energy(lambda x: -5 * x.cos().sum(-1), 2, angles=[0])
    whole = WhitenedTarget(target, torch.zeros(2), torch.eye(2))
    mixture = normal(2)
    assert covering_all(mixture, torch.full((10, 2), 3.0).double(), whole, OPTIONS) is mixture
