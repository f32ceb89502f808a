"""Whitened coordinates: density, gradient and evidence are those of the target."""

from math import log, pi

import pytest
import torch
from support.models import year_regression
from support.mutations import must_fail, mutation
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.smc.coordinates import WhitenedTarget

LOC = torch.tensor([2.0, -1.0], dtype=torch.double)
TRIL = torch.tensor([[3.0, 0.0], [-1.0, 0.5]], dtype=torch.double)


def gaussian():
    """Return a Gaussian of mean LOC and covariance TRIL TRILᵀ, times 7."""

    def energy(x):
        u = torch.linalg.solve_triangular(TRIL, (x - LOC).mT, upper=False)
        return 0.5 * u.square().sum(0) - log(7.0)

    return Target.from_energy(energy, 2, dtype=torch.double)


def bent():
    def energy(x):
        return 0.5 * (x[:, 0] / 3).square() + (x[:, 1] - x[:, 0].sin()).square()

    return Target.from_energy(energy, 2, dtype=torch.double)


def error_of_evidence():
    """Return the error of log Z, of quadrature in whitened coordinates."""
    target = WhitenedTarget(bent(), LOC, TRIL)
    side = torch.linspace(-14, 14, 561, dtype=torch.double)
    u = torch.cartesian_prod(side, side)
    log_z = target.log_prob(u).logsumexp(0) + 2 * log(float(side[1] - side[0]))
    return abs(float(log_z) - log(6 * pi / 2**0.5))


def test_the_evidence_is_that_of_the_target():
    assert error_of_evidence() < 1e-3


@mutation(WhitenedTarget, "log_prob")
def without_the_determinant(log_prob, self, u):
    return log_prob(self, u) - self.log_det


def test_the_evidence_needs_the_determinant():
    must_fail(without_the_determinant, score=error_of_evidence, above=0.1)


def test_the_gaussian_that_it_is_made_from_is_standard():
    target = WhitenedTarget(gaussian(), LOC, TRIL)
    u = torch.randn(50, 2, dtype=torch.double)
    log_p, grad = target.log_prob_and_grad(u)
    assert_close(log_p, log(7.0) + log(1.5) - 0.5 * u.square().sum(-1))
    assert_close(grad, -u)


def test_gradients_are_those_of_autograd():
    target = WhitenedTarget(bent(), LOC, TRIL)
    u = torch.randn(20, 2, dtype=torch.double, requires_grad=True)
    log_p = target.log_prob(u)
    (truth,) = torch.autograd.grad(log_p.sum(), u)
    value, grad = target.log_prob_and_grad(u.detach())
    assert_close(value, log_p.detach())
    assert_close(grad, truth)


def test_angles_stay_as_they_are():
    target = Target.from_energy(lambda x: x[:, 0].cos() + x[:, 1].square(), 2, angles=[0])
    whitened = WhitenedTarget(target, LOC, TRIL)
    u = torch.randn(20, 2, dtype=torch.double)
    assert_close(whitened.to_x(u)[:, 0].double(), u[:, 0], rtol=1e-5, atol=1e-5)
    assert_close(whitened.wrap(u + 2 * pi)[:, 0], target.wrap(u)[:, 0])
    assert_close(whitened.to_u(whitened.to_x(u)), u, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
def test_points_of_a_ridge_lead_back(dtype):
    """In float32 a point of a ridge of correlation -.99999 is rounded by about its width."""
    target, loc, tril = year_regression(dtype)
    whitened = WhitenedTarget(target, loc, tril)
    u = torch.randn(100, 2, dtype=torch.double)
    error = (whitened.to_u(whitened.to_x(u)) - u).abs().max()
    assert float(error) < {torch.float32: 1.0, torch.double: 1e-6}[dtype]
