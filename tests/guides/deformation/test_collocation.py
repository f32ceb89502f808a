"""Collocation points: particles and trajectories have the right weights."""

import math
from dataclasses import replace

import pyro
import pytest
import torch
from support.deformation import (
    LOG_Z,
    SMALL,
    SURE,
    bad_guide,
    edged,
    flipped_divergence,
    narrow,
    shifted,
    spreading,
)
from support.mutations import Mutation, must_fail
from support.particles import stale_log_pi, weights_kept
from torch.testing import assert_close
from variants import along_trajectories

from pyro_flowsamp import AutoDeformationFlow, Target
from pyro_flowsamp.guides.deformation import collocation, losses
from pyro_flowsamp.guides.deformation.energy_path import BoltzmannPath
from pyro_flowsamp.guides.deformation.losses import residual
from pyro_flowsamp.guides.deformation.velocity_flow import GeneralisedNormal

# ---- walkers -------------------------------------------------------------------------------------


def populations(width=1.0, num=16):
    guide = bad_guide("trainable")
    flow, times = guide.flow, torch.tensor(guide.time_grid)
    return guide, collocation.CollocationPoints(
        flow.path, flow.velocity, guide.target_for(), guide.get_base_dist(), times, width, num
    )


@pytest.mark.parametrize("width", [1.0, 2.0])
def test_explorers_know_the_evidence(width):
    _, population = populations(width)
    log_z, error = population.history.evidence
    assert error < 0.1 and abs(log_z - LOG_Z) < 4.5 * error
    t = population.times[4].expand(2048)
    spot = population.path.state_at(
        population.target, t, population.history.states.x[4], width, learned_term=False
    )
    assert_close(spot.log_pi, population.history.states.log_pi[4])


@pytest.mark.slow
@pytest.mark.parametrize(
    "mistake, below",
    [(None, 0), (None, 1.1), (flipped_divergence, 0), (stale_log_pi, 1.1), (weights_kept, 1.1)],
)
def test_crowds_are_small_runs_of_particles(mistake, below, monkeypatch):
    """From base to target they take a refresh for each time; their evidence is unbiased."""
    monkeypatch.setattr(collocation, "RESAMPLE_BELOW", below)
    pyro.set_rng_seed(1)  # whose velocity spreads the weights little
    _, population = populations(num=1024)
    population.step_sizes = torch.full_like(population.step_sizes, 0.5)

    def largest_gap():
        found = []
        for _ in range(24):
            population.refresh()
            found.append(
                [c.evidences[-1] for c in (population.smc_points, population.trajectories)]
            )
        log_z = torch.tensor(found[len(population.times) :]) + population.base.log_z
        gaps = ((log_z - LOG_Z).exp().mean(0) - 1).abs()
        if mistake in (None, weights_kept):
            assert gaps[1] < 0.05
        return gaps.max()

    if mistake is None:
        assert largest_gap() < 0.05
    else:
        must_fail(mistake, score=largest_gap, above=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [None, flipped_divergence, stale_log_pi])
def test_weights_along_a_solution(mistake, double):
    """Carried by a velocity that solves the equation, all weigh the same, there and back."""
    path, target, velocity, log_z = spreading()
    times, base = torch.linspace(0, 1, 65), GeneralisedNormal(path.loc, 2.0)

    def largest_gaps():
        population = collocation.CollocationPoints(path, velocity, target, base, times, 1.0, 16)
        for _ in times:
            population.refresh()
        arrived = population.history.states.x[-1]
        assert (
            (population.returning.x.view(65, -1, 3)[-1, :, None] == arrived).all(-1).any(-1).all()
        )
        gained = log_z(times) - log_z(times[:1])
        return (
            (population.trajectories.log_w - gained[:, None]).abs().max(),
            (population.returning.log_w - (gained - gained[-1])[:, None]).abs().max(),
        )

    if mistake is flipped_divergence:
        mistake = Mutation(velocity, "with_divergence", flipped_divergence.wrong)
    if mistake is None:
        assert max(largest_gaps()) < 0.02
    else:
        must_fail(mistake, score=lambda: min(largest_gaps()), above=0.5)


def test_what_is_sampled_is_the_path(double):
    """At the shifted times, also of points whose energies were asked for long ago."""
    _, population = populations()
    population.refresh()
    asked = population.target.evaluations
    t, u, rate, slope = population.sample(3)
    assert population.target.evaluations == asked
    assert t.shape == (9 * 12,) and u.shape == slope.shape == (108, 2)
    assert (t.view(9, 12) == t.view(9, 12)[:, :1]).all()
    half = torch.tensor([0.0] + [1 / 16] * 8), torch.tensor([1 / 16] * 8 + [0.0])
    assert (population.times - half[0] <= t.view(9, 12)[:, 0]).all()
    assert (t.view(9, 12)[:, 0] <= population.times + half[1]).all()
    fixed = population.path.fixed_terms(population.target, t, u)
    assert_close((rate, slope), (fixed.denergy_dt, fixed.grad_energy))


def test_the_dead_are_not_sought(double):
    """A trajectory off the support has no weight, however large its logarithm."""
    _, population = populations()
    log_w = torch.full_like(population.trajectories.log_w, -torch.inf)
    log_w[:, :9] = 43.0  # whatever log Z is
    log_w[:, 0] = 51.0
    population.trajectories = population.trajectories._replace(log_w=log_w)
    population.returning = population.returning._replace(log_w=log_w)
    population._gather()
    sought = population.sample(400).u.view(9, 4, 400, 2)
    for position, cloud in ((2, population.trajectories), (3, population.returning)):
        alive = cloud.x.view(9, -1, 2)[:, :1]
        assert (sought[:, position] == alive).all(-1).double().mean() > 0.75


def test_what_is_out_of_line():
    """The dead have no say in what is usual."""
    log_w = torch.tensor([[-torch.inf] * 7 + [-8.0] + [0.0] * 8, [-torch.inf] * 16])
    sought = torch.tensor([[0.1] * 7 + [8.1] + [0.1] * 8, [0.1] * 16])
    assert_close(collocation._out_of_line(log_w), sought)


@pytest.mark.slow
def test_returning_weights_are_densities(double):
    """Along any velocity, of a detour that joins meanwhile: log q - log p, but for log Z."""
    guide = bad_guide("trainable")
    flow, times = guide.flow, torch.linspace(0, 1, 129) ** 1.3
    population = collocation.CollocationPoints(
        flow.path, flow.velocity, guide.target_for(), guide.get_base_dist(), times, 1.5, 16
    )
    for step in range(132):
        flow.path.learned_fraction = min(1.0, step / 40)
        population.refresh()
    flow.block.steps = 64
    x = flow(None).transform.inv(population.returning.x[:16])
    gaps = flow(None).log_prob(x) - guide.target_for().log_prob(x) + population.base.log_z
    assert_close(population.returning.log_w[0], gaps.detach(), atol=1e-3, rtol=0.0)
    assert gaps.std() > 0.1


def test_rare_modes_are_explored(double):
    """By particles that are resampled by the square root; but nothing off the support is."""

    def energy(x):
        near = torch.stack([(x - 4).square().sum(-1) / 2, (x + 4).square().sum(-1) / 2 + 7], -1)
        return torch.where(x[:, 1].abs() < 2, -(-near).logsumexp(-1), torch.inf)

    path = BoltzmannPath(2, 2.0, None, None)
    path.scale.fill_(6.0)
    target, base = Target.from_energy(energy, 2), GeneralisedNormal(path.loc, 2.0)
    times = torch.linspace(0, 1, 17)
    fair, root = (
        collocation.smc_history(path, target, base, times, selection=s) for s in (1.0, 0.5)
    )
    for found, share in ((fair, 1 / (1 + math.exp(7))), (root, 1 / (1 + math.exp(3.5)))):
        rare = found.states.x[-1, :, 0] < 0
        assert share / 3 < found.weights[-1, rare].sum() < 3 * share
    both = collocation.CollocationPoints(path, None, target, base, times, 1.0, 16).history
    assert_close(both.weights.sum(-1), torch.ones(17))
    assert not both.weights[both.states.log_pi.isneginf()].any()
    assert both.weights[-1, both.states.x[-1, :, 0] < 0].sum() > 0.005


# ---- training ------------------------------------------------------------------------------------


def test_when_the_detour_joins(monkeypatch):
    """Between a tenth and a fifth of the first training; later ones go on with all of it."""
    guide = AutoDeformationFlow(Target.from_energy(narrow, 2), base_scale=2.0, **SMALL)
    shares = []

    def noted(path, *args):
        shares.append(path.learned_fraction)
        return residual(path, *args)

    monkeypatch.setattr(losses, "residual", noted)
    guide.fit()
    assert shares == [0.0] * 3 + [0.5] + [1.0] * 16
    shares.clear()
    guide.fit()
    assert {*shares} == {1.0}


def test_a_detour_that_had_not_joined(monkeypatch):
    """A training that was cut short leaves it on its way; the next takes it further."""
    guide = AutoDeformationFlow(Target.from_energy(narrow, 2), base_scale=2.0, **SMALL)
    shares = []

    def noted(path, *args):
        shares.append(path.learned_fraction)
        if len(shares) == 4:
            raise KeyboardInterrupt
        return residual(path, *args)

    monkeypatch.setattr(losses, "residual", noted)
    guide.fit()
    assert guide.flow.path.learned_fraction == 0.5
    shares[:] = [None] * 4
    guide.fit()
    assert shares[4:] == [0.5] * 4 + [1.0] * 16


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("collocation", [losses.at_smc_points, along_trajectories])
def test_points_without_a_density(collocation):
    how = {**SMALL, **SURE, "settings": replace(SMALL["settings"], collocation=collocation)}
    guide = AutoDeformationFlow(edged(0.5), **how)
    with pytest.raises(ValueError, match=r"NaN or infinite at \d+.\d% of the points on the way"):
        guide.fit()
    guide = AutoDeformationFlow(edged(2.3), **how)
    history = guide.fit()
    assert history.skipped == 0 and history.final_ess > 0.9
    assert float(guide.target_for().nonfinite) > 0


@pytest.mark.parametrize("interpolation", ["trainable", shifted])
def test_where_annealed_particles_arrive(interpolation):
    """Places, densities and weights are the target's, from whichever base."""
    guide = bad_guide("given" if callable(interpolation) else interpolation)
    target, times = guide.target_for(), torch.linspace(0, 1, 17)
    guide.flow.set_loc_scale(torch.tensor([0.3, -0.2]), torch.tensor([2.0, 1.5]))
    if callable(interpolation):
        guide.flow.set_loc_scale(torch.zeros(2), torch.full((2,), 2**0.5))
        guide.flow.path.check(target, torch.randn(16, 2))
    found, step_sizes = collocation.anneal_from_bases(
        guide.flow.path, target, guide.get_base_dist(), times
    )
    assert found.keys() == {"base", "twice as wide", "over-dispersed"}
    assert step_sizes.shape == times.shape
    for population in found.values():
        assert_close(
            population.log_prob, target.log_prob(population.x).double(), atol=1e-4, rtol=1e-4
        )
        mean = (population.weights[:, None] * population.x).sum(0)
        assert_close(mean, torch.full((2,), 0.5), atol=0.16, rtol=0)
        assert (
            abs(population.evidence.value - LOG_Z) < 4.5 * population.evidence.standard_error < 0.4
        )


def test_all_anneal_at_the_path_s_pace():
    """Of a base a hundred times as wide as the target, most of the way lies near its end."""
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 10)
    path = BoltzmannPath(10, 2.0, None, None)
    path.scale.fill_(100.0)
    path.log_kappa.fill_(2 * math.log(100))
    base = GeneralisedNormal(path.loc, 2.0)
    found, _ = collocation.anneal_from_bases(path, target, base, torch.linspace(0, 1, 33))
    for name in ("base", "twice as wide"):
        assert abs(found[name].evidence.value - 5 * math.log(2 * math.pi)) < 0.5
