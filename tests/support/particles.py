"""Particles that badly chosen maps move through three stages, with a known answer."""

import math
from functools import partial

import torch
from support.mutations import mutation

from pyro_flowsamp import Target
from pyro_flowsamp.flows.transforms import AffineMap
from pyro_flowsamp.smc import driver, particles, paths
from pyro_flowsamp.smc.starts import TemperedStart

ISLANDS, NUM = 1000, 50
LOC = torch.tensor([1.0, -0.5])


def two_widths_energy(x):
    """Energy of N(LOC, diag(½², 2²)), with Z = 7."""
    scaled = (x - LOC) / torch.tensor([0.5, 2.0])
    return 0.5 * scaled.square().sum(-1) + math.log(2 * math.pi) - math.log(7)


def run_stages(moves=2, below=0.5, defensive_weight=0.0):
    """Move particles by a bad map at each of three stages."""
    target = Target.from_energy(two_widths_energy, 2)
    start = TemperedStart(torch.zeros(2), 3 * torch.ones(2), torch.zeros(2, dtype=torch.bool))
    ones = torch.ones(2)
    cloud = particles.init(
        start.sample(ISLANDS * NUM), paths.density(target, start, 0 * ones[0], ones), ISLANDS
    )
    previous = 0.0
    for beta, shift, factor in ((0.2, 0.3, 0.9), (0.6, 0.2, 1.1), (1.0, -0.2, 0.8)):
        scale = torch.tensor([0.7, 1.3])
        log_det = torch.tensor(2 * math.log(factor))
        bad = AffineMap(shift * ones, factor * ones, log_det, None)
        density = paths.density(target, start, ones[0] * beta, scale)
        before = partial(paths.log_path, beta=torch.tensor(previous))
        stage = driver.Stage(bad, density, scale, torch.tensor(0.8), defensive_weight, before)
        cloud, previous = advance(cloud, stage, moves, below), beta
    return cloud


def advance(cloud, stage, moves, below=0.5):
    """Carry particles through one stage of sequential Monte Carlo."""
    steps = iter([stage.step(moves)])
    (after,) = driver.run_smc(cloud, lambda _: next(steps, None), below)
    return after


@mutation(driver, "reweight")
def stale_log_pi(reweight, cloud, state, ladj=0.0):
    """Keep the density of the place where the particle was."""
    new = reweight(cloud, state, ladj)
    return new._replace(state=state._replace(log_pi=cloud.state.log_pi))


@mutation(driver, "resample")
def weights_kept(resample, cloud, below):
    """Keep the weights after resampling."""
    return resample(cloud, below)._replace(log_w=cloud.log_w)
