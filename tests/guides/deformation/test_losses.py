"""Losses of the deformation flow: an exact solution has no error."""

import math
from dataclasses import replace

import pytest
import torch
from support.deformation import SMALL, Linear, narrow, spreading
from torch.testing import assert_close

from pyro_flowsamp import AutoDeformationFlow, FitOptions, Target, diffusion
from pyro_flowsamp.guides.deformation.energy_path import BoltzmannPath
from pyro_flowsamp.guides.deformation.losses import residual
from pyro_flowsamp.guides.deformation.options import LOSSES

# ---- the equation --------------------------------------------------------------------------------


def rate_of(log_z, t):
    t = t.clone().requires_grad_()
    return torch.autograd.grad(log_z(t).sum(), t)[0]


def solved(path, target, velocity, log_z, factor=1.0):
    """The error of a solution, C included; ``factor`` spoils the velocity."""
    t, u = torch.rand(50), 2 * torch.randn(50, 3)
    _, rate, slope, _ = path.fixed_terms(target, t, u)

    class Spoilt:
        def with_divergence(self, t, u):
            v, divergence = velocity.with_divergence(t, u)
            return factor * v, factor * divergence

    errors, _ = residual(path, Spoilt(), t, u, rate, slope)
    return (errors + rate_of(log_z, t)).abs().max()


def moving():
    """Given: from N(0, 2) at sigma = 2 to N((1, -2, 3), 1/2), on a curve."""
    end = torch.tensor([1.0, -2.0, 3.0])

    def variance(t):
        return 2 - 1.5 * t**2

    def given(t, x):
        square = (x - t[:, None] ** 3 * end).square().sum(-1)
        return square / (2 * variance(t))

    target = Target.from_energy(lambda x: (x - end).square().sum(-1), 3)
    path = BoltzmannPath(3, 2.0, None, given)
    path.scale.fill_(2.0)
    path.check(target, torch.randn(16, 3))
    volume = 3 * math.log(2)
    velocity = Linear(lambda t: t[:, None] ** 3 * end / 2, lambda t: variance(t).sqrt() / 2)
    return (
        path,
        target,
        velocity,
        lambda t: 1.5 * (2 * math.pi * variance(t)).log() - (1 - t) * volume,
    )


def diffusing():
    """A single Gaussian that diffuses into the base; its energies are normalised."""
    mean, sigma = torch.tensor([[3.0, -1.0, 0.5]]), 1.7
    variance = torch.full((1, 3), 0.3)
    given = diffusion(torch.ones(1), mean, variance, sigma)
    target = Target.from_energy(lambda x: (x - mean[0]).square().sum(-1) / 0.6, 3)
    path = BoltzmannPath(3, 2.0, None, given)
    path.scale.fill_(sigma)
    path.check(target, torch.randn(16, 3))

    def spread(t):
        return (t**2 * 0.3 + (1 - t**2) * sigma**2 / 2).sqrt() / sigma

    velocity = Linear(lambda t: t[:, None] * mean / sigma, spread)
    end = 1.5 * math.log(2 * math.pi * 0.3)
    return path, target, velocity, lambda t: (1 - t) * 1.5 * math.log(math.pi) + t * end


@pytest.mark.parametrize("solution", [spreading, moving, diffusing])
def test_a_solution_has_no_error(solution, double):
    known = solution()
    assert solved(*known) < 1e-10
    assert solved(*known, factor=-1.0) > 0.1
    log_z = known[-1](torch.tensor([0.0]))
    assert_close(log_z, torch.tensor([1.5 * math.log(math.pi)]))


# ---- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss(loss):
    target = Target.from_energy(narrow, 2)
    options = FitOptions(80, 192, 1e-2, eval_every=80, cosine_schedule=True, progress=False)
    guide = AutoDeformationFlow(
        target,
        interpolation="linear",
        base_scale=2.0,
        options=options,
        settings=replace(SMALL["settings"], loss=loss),
    )
    guide.fit()
    assert guide.history.final_ess > 0.7


def test_the_formulas_of_the_losses():
    e = torch.tensor([-2.0, 0.5])
    values = {
        "mixed": [6.0, 0.75],
        "absolute": [2.0, 0.5],
        "square": [4.0, 0.25],
        "log": [math.log(3), math.log(1.5)],
    }
    assert values.keys() == LOSSES.keys()
    for name, value in values.items():
        assert_close(LOSSES[name](e), torch.tensor(value))
