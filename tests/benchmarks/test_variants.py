"""Variants of the papers' methods: losses, trainers, and flows of larger lattices."""

from dataclasses import replace
from math import prod

import pytest
import torch
import variants
from support.annealing import trained_displacement
from support.deformation import LOG_Z, QUICK, SMALL, SURE, edged, narrow, sixteen_steps
from support.networks import roughened
from torch.testing import assert_close
from variants import along_trajectories, copy_levels, kl_loss, linear_loss

from pyro_flowsamp import (
    AnnealingOptions,
    AutoDeformationFlow,
    DeformationOptions,
    FitOptions,
    Target,
    lattice_flow,
    log_evidence,
)
from pyro_flowsamp.guides.deformation import CollocationLoss, training

# ---- losses of annealing blocks ------------------------------------------------------------------


@pytest.mark.slow
def test_an_infinitesimal_block_is_the_difference_of_scores():
    """Theorem 3.3: as h → 0, v = ∇log f_k − ∇log f_{k−1} = x (1/a − 1/b)."""
    a, b, h = 2.0, 1.0, 0.02
    slope, residual = trained_displacement(a, b, AnnealingOptions(linear_loss, 1 / (2 * h)))
    assert slope / h == pytest.approx(1 / a - 1 / b, rel=0.08)
    assert residual < 0.1 * abs(slope)


@pytest.mark.slow
def test_a_block_of_finite_time_is_the_optimal_map():
    """s a/b − 1/s + (s − 1) a/h = 0 for x → s x, with γ = 1/(2h)."""
    slope, residual = trained_displacement(2.0, 1.0, AnnealingOptions(kl_loss, 0.5))
    assert 1 + slope == pytest.approx((1 + 5**0.5) / 4, rel=0.02)
    assert residual < 0.05


# ---- training of deformation flows ---------------------------------------------------------------

TRAJECTORIES = replace(SMALL["settings"], collocation=along_trajectories)
ONE_SLICE = DeformationOptions(time_grid=1)


@pytest.fixture
def unrefined(monkeypatch):
    """Replace the integrator's check, which takes seconds."""
    for module in (training, variants):
        monkeypatch.setattr(module, "refine", sixteen_steps)


@pytest.mark.slow
def test_training_along_trajectories(unrefined):
    options = FitOptions(80, 128, 1e-2, eval_every=40, cosine_schedule=True, progress=False)
    target = Target.from_energy(narrow, 2)
    guide = AutoDeformationFlow(
        target, base_scale=2.0, exploration_scale=1.2, options=options, settings=TRAJECTORIES
    )
    guide.fit()
    assert guide.progress[-1].ess > 0.7
    log_z, error = log_evidence(guide.weighted_samples(4000)[1])
    assert abs(log_z - LOG_Z) < 4.5 * error < 0.1


def test_the_weight_of_a_wider_start():
    """With no error anywhere it is the ratio of both bases, which averages give away."""
    target = Target.from_energy(lambda x: x.square().sum(-1), 1)
    guide = AutoDeformationFlow(target, base_scale=1.0, interpolation="linear", settings=ONE_SLICE)
    guide.target_for()
    times = torch.tensor([0.0, 1.0])
    collocation = CollocationLoss(guide.flow, target, times, 100_000, 1.5, 1, ONE_SLICE)
    collocation.loss = lambda deviations: collocation.drawn.square().sum(-1)  # whose mean is 1/2
    sample = guide.flow.base(None).sample

    class TemperedStart:
        def sample(self, shape):
            u = sample(shape)
            collocation.drawn = 1.5 * u
            return u

    collocation.base = TemperedStart()
    assert float(along_trajectories(collocation)()) == pytest.approx(0.5, abs=0.02)


def test_the_learned_term_is_there_from_the_first_step(unrefined):
    guide = AutoDeformationFlow(
        Target.from_energy(narrow, 2),
        base_scale=2.0,
        options=replace(QUICK, max_steps=1, eval_every=1),
        settings=TRAJECTORIES,
    )
    assert guide.target_for() and guide.flow.path.learned_fraction == 0
    guide.fit()
    assert guide.flow.path.learned_fraction == 1


def test_dropped_trajectories_have_no_weight(double):
    """Two of three points are off the support: all is as if they had never been."""
    guide = AutoDeformationFlow(edged(0.0), interpolation="linear", settings=ONE_SLICE, **SURE)
    roughened(guide.target_for() and guide.flow.velocity)
    inside = torch.tensor([[-1.0, 0.5], [-0.3, 0.2], [-2.0, -0.5]])

    def loss(u):
        times = torch.tensor([0.0, 0.01])
        collocation = CollocationLoss(guide.flow, edged(0.0), times, len(u), 1.0, 1, ONE_SLICE)
        collocation.base = type("TemperedStart", (), {"sample": lambda self, shape: u})()
        return collocation, along_trajectories(collocation)()

    alone = loss(inside)[1]
    collocation, among = loss(torch.cat([inside, inside.abs(), inside.abs() + 1]))
    assert_close(among, alone)
    assert (collocation.dropped, collocation.seen) == (6, 9)


def test_polishing_makes_the_weights_even(unrefined, monkeypatch):
    """The flow is the identity before, and the target is narrower than the base, and shifted."""
    monkeypatch.setattr(variants, "POLISH_RATE", 1e-2)
    guide = AutoDeformationFlow(Target.from_energy(narrow, 2), base_scale=1.4, **SMALL)
    target = guide.target_for()

    def variance():
        torch.manual_seed(1)
        with torch.no_grad():
            x, log_q = guide.flow(None).rsample_and_log_prob((2000,))
            return float((target.log_prob(x) - log_q).var())

    before = variance()
    history = variants.polish(guide, 20)
    assert history.steps == 20 and history.evaluations >= 20 * QUICK.batch_size
    assert variance() < 0.5 * before


# ---- flows of larger lattices --------------------------------------------------------------------


def flow_of(shape):
    """One that is far from the identity."""
    torch.manual_seed(1)
    flow = lattice_flow(shape)(prod(shape), 0, torch.ones(prod(shape), dtype=torch.bool))
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return flow


def test_levels_of_a_smaller_lattice():
    small, large = flow_of((8, 8)), flow_of((16, 16))
    copy_levels(large, small)
    for key in ("0_11_0", "0_10_1"):
        assert_close(large.layers[key].weight, small.layers[key].weight)
    assert_close(large.layers["1_10_0"].net[0].weight, small.layers["0_10_0"].net[0].weight)
    assert set(copy_levels(large, small)) >= {k for k in large.layers if k[0] in "01"}
    assert not copy_levels(flow_of((16, 8)), flow_of((8,)))
