"""Particles moved by maps are properly weighted, whatever the maps are."""

import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from support.mutations import broken, must_fail, mutation
from support.particles import ISLANDS, LOC, NUM, advance, run_stages, stale_log_pi, weights_kept
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.flows.transforms import AffineMap
from pyro_flowsamp.smc import driver, particles, paths
from pyro_flowsamp.smc.starts import TemperedStart, overdispersed_base


def _worst(cloud):
    """z-scores of Z, means and squares, by the spread over islands."""
    log_z, error = cloud.evidence
    moments = torch.cat([cloud.x, (cloud.x - LOC).square()], -1)
    truth = torch.tensor([1.0, -0.5, 0.25, 4.0], dtype=torch.double)
    mean = cloud.mean(moments)
    z = (mean.value - truth) / mean.standard_error
    return max(abs(float((log_z - math.log(7 * 2 * 0.5)) / error)), float(z.abs().max()))


@pytest.mark.parametrize("moves", [0, 2])
@pytest.mark.parametrize("below", [0.0, 0.5, math.inf])
@pytest.mark.parametrize("defensive_weight", [0.0, 0.1, 0.5, 1.0])
def test_particles_are_properly_weighted(moves, below, defensive_weight):
    assert _worst(run_stages(moves, below, defensive_weight)) < 4.5


@mutation(AffineMap, "push")
def no_log_det(push, self, z):
    return push(self, z)[0], torch.zeros(len(z))


@pytest.mark.parametrize("mistake", [no_log_det, stale_log_pi, weights_kept])
def test_the_check_sees_mistakes(mistake):
    must_fail(mistake, score=lambda: _worst(run_stages(below=math.inf)), above=9)


@mutation(AffineMap, "pull")
def no_log_det_back(pull, self, x):
    return pull(self, x)[0], torch.zeros(len(x))


@mutation(AffineMap, "pull")
def stale_origin(pull, self, x):
    """Give those that stay behind the density of the place where they are."""
    return x, torch.zeros(len(x))


@mutation(paths, "log_path")
def later_before(log_path, state, beta):
    """Take the density before the stage at a later beta."""
    return log_path(state, beta + 0.2)


@pytest.mark.parametrize(
    "mistake, moves",
    [(no_log_det, 2), (no_log_det_back, 2), (stale_origin, 0), (later_before, 2)],
)
def test_the_check_sees_mistakes_in_the_mixture(mistake, moves):
    must_fail(mistake, score=lambda: _worst(run_stages(moves, math.inf, 0.5)), above=9)


def _cliff(x):
    """exp(-x - e^{-x}) on the line, Z = 1: a steep wall to the left."""
    return x[:, 0] + (-x[:, 0]).exp()


def _over_the_cliff(defensive_weight):
    """A map from the target to itself that draws away from the wall, before moves that mend it."""
    target = Target.from_energy(_cliff, 1)
    base = TemperedStart(torch.zeros(1), torch.ones(1), torch.zeros(1, dtype=torch.bool))
    one = torch.ones(1)
    density = paths.density(target, base, one[0], one)
    x = dist.Gumbel(0.0, 1.0).sample((ISLANDS * NUM, 1))
    away = AffineMap(3.0 * one, one, torch.zeros(()), None)
    before = partial(paths.log_path, beta=one[0])
    stage = driver.Stage(away, density, one, torch.tensor(0.1), defensive_weight, before)
    return driver.transport(particles.init(x, density, ISLANDS), stage)


def test_what_a_map_leaves_behind_is_not_lost():
    """Alone, it hides more than half of the mass behind weights that no crowd has."""
    cloud = _over_the_cliff(0.1)
    log_z, error = cloud.evidence
    assert error < 0.02 and abs(log_z) < 4.5 * error
    assert cloud.log_w.max() < math.log(10) + 1e-9
    assert _over_the_cliff(0.0).evidences.median() < -0.5


@mutation(AffineMap, "pull")
def not_invertible(pull, self, x):
    """Return NaN off the map's image."""
    z, ladj = pull(self, x)
    return torch.where(x < 0, torch.nan, z), ladj


def test_where_no_way_leads_particles_stay():
    """Off the map's image, or nearly, its inverse may be anything, NaN too."""
    with broken(not_invertible):
        log_z, error = _aside(3.0, 1).evidence
    assert error < 0.02 and abs(log_z) < 4.5 * error


def _aside(shift, times):
    """N(0, 1), shifted and mended by weights alone, some times over."""
    target = Target.from_energy(lambda x: 0.5 * (x.square() + math.log(2 * math.pi)).sum(-1), 1)
    base = TemperedStart(torch.zeros(1), torch.ones(1), torch.zeros(1, dtype=torch.bool))
    one = torch.ones(1)
    density = paths.density(target, base, one[0], one)
    aside = AffineMap(shift * one, one, torch.zeros(()), None)
    before = partial(paths.log_path, beta=0.5 * one[0])
    stage = driver.Stage(aside, density, one, torch.tensor(0.1), 0.3, before)
    cloud = particles.init(torch.randn(ISLANDS * NUM, 1), density, ISLANDS)
    for _ in range(times):
        cloud = advance(cloud, stage, 0, math.inf)
    return cloud


def _twice_aside():
    """z of the mean."""
    cloud = _aside(1.5, 2)
    mean = cloud.mean(cloud.x)
    return abs(float(mean.value / mean.standard_error))


@mutation(torch, "rand_like")
def in_order(rand_like, x):
    """Let always the first of each island stay."""
    return torch.arange(NUM).expand(ISLANDS, NUM)


def test_who_stays_is_drawn_afresh():
    """Systematic resampling keeps the order: the first would always be those that stayed before."""
    assert _twice_aside() < 4.5
    must_fail(in_order, score=_twice_aside, above=9)


def test_all_may_stay_where_they_are():
    cloud = _over_the_cliff(1.0)
    assert_close(cloud.log_w, torch.zeros_like(cloud.log_w))


# ---- edges --------------------------------------------------------------------------------------


def _half_normal(x):
    """N(0, 1) where it is positive, and nothing elsewhere: Z = ½."""
    log_p = -0.5 * x[:, 0].square() - 0.5 * math.log(2 * math.pi)
    return -torch.where(x[:, 0] > 0, log_p, -torch.inf)


@pytest.mark.parametrize("moves", [0, 2])
def test_a_particle_that_left_the_support_stays_dead(moves):
    """One mirror throws all but a few over the edge, the next brings back all but those."""
    target = Target.from_energy(_half_normal, 1)
    start = TemperedStart(torch.ones(1), torch.ones(1), torch.zeros(1, dtype=torch.bool))
    one = torch.ones(1)
    cloud = particles.init(
        start.sample(ISLANDS * NUM), paths.density(target, start, 0 * one[0], one), ISLANDS
    )
    for beta, factor in ((0.5, -0.5), (1.0, -1.0)):
        log_det = torch.tensor(math.log(abs(factor)))
        mirror = AffineMap(0 * one, factor * one, log_det, None)
        density = paths.density(target, start, beta * one[0], one)
        stage = driver.Stage(mirror, density, one, torch.tensor(0.5))
        cloud = advance(cloud, stage, moves, 0.0)
    if not moves:
        assert (cloud.evidences == -torch.inf).all()
    assert (cloud.log_w == -torch.inf).double().mean() > 0.8


def test_islands_have_step_sizes_of_their_own():
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    base, ones = overdispersed_base(target, 64), torch.ones(2)
    density = paths.density(target, base, ones[0], ones)
    cloud = particles.init(torch.randn(400, 2), density, 2)
    stage = driver.Stage(None, density, ones, torch.tensor([1e-9, 2.5]))
    moved, sizes = driver.move_and_tune(cloud, stage, 3, 0.574)
    how_far = (moved.x - cloud.x).abs().view(2, 200, 2).amax((1, 2))
    assert how_far[0] < 1e-6 and how_far[1] > 0.1
    assert 1e-9 < sizes[0] < 1e-8 and 0.1 < sizes[1] < 2.5  # each by its own acceptance
