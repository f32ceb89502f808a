"""Paths of densities: their gradient, and the lengths of their stages."""

import pytest
import torch
from support.particles import two_widths_energy
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.smc import paths
from pyro_flowsamp.smc.starts import TemperedStart


def test_the_path_has_its_own_gradient():
    target = Target.from_energy(two_widths_energy, 2)
    start = TemperedStart(torch.ones(2), 3 * torch.ones(2), torch.zeros(2, dtype=torch.bool))
    scale, beta = torch.tensor([0.7, 1.3]), torch.tensor(0.3)
    z = torch.randn(20, 2).requires_grad_()
    log_b = torch.distributions.Normal(1.0, 3.0).log_prob(z * scale).sum(-1)
    log_pi = (1 - beta) * log_b + beta * target.log_prob(z * scale)
    (grad,) = torch.autograd.grad(log_pi.sum(), z)
    state = paths.density(target, start, beta, scale)(z.detach())
    assert_close(state.log_pi.float(), log_pi.detach())
    assert_close(state.grad, grad)


# ---- edges --------------------------------------------------------------------------------------


def test_a_stage_is_as_long_as_particles_on_the_support_allow():
    ratio = torch.randn(4000).double() * 3
    half = torch.cat([ratio, torch.full_like(ratio, -torch.inf)])
    assert paths.next_beta(half, 0.0, 0.8) == pytest.approx(paths.next_beta(ratio, 0.0, 0.8))


def test_islands_go_at_their_own_pace():
    rows = torch.randn(3, 500, dtype=torch.double) * torch.tensor([[0.1], [3.0], [30.0]])
    rows[1, :300] = -torch.inf  # the dead of one island are nothing to the others
    beta = torch.tensor([0.0, 0.2, 0.5], dtype=torch.double)
    found = paths.next_betas(rows, beta, 0.8)
    steps = found - beta
    assert found[0] == 1 and 0 < steps[2] < steps[1] < 0.8
    assert found.tolist() == [paths.next_beta(r, float(b), 0.8) for r, b in zip(rows, beta)]


def test_a_flat_density_does_not_widen_moves_without_bound():
    x = 3 * torch.randn(4000, 1)
    assert_close(paths.local_scale(torch.zeros_like(x), x), x.std(0))
    assert_close(paths.local_scale(-x / 9, x), torch.full((1,), 3.0), rtol=0.1, atol=0)


def test_the_start_does_not_matter_at_the_end_of_the_path():
    nothing = torch.full((2,), -torch.inf).double()
    at, zero = torch.tensor([[0.3], [0.4]]), torch.zeros(2, 1)
    log_p = torch.tensor([1.0, 2.0]).double()
    state = paths.TemperedState(at, nothing, zero, at, log_p, nothing, zero, zero)
    assert_close(paths.at_beta(state, torch.tensor(1.0), torch.ones(1)).log_pi, log_p)
