"""Paths of energies: the base, derivatives, diffusion, and paths that the user gives."""

import math
import pickle
from functools import partial

import pytest
import torch
from support.deformation import KINDS, SMALL, bad_guide, make_path, narrow, shifted
from support.networks import roughened
from torch.testing import assert_close

from pyro_flowsamp import AutoDeformationFlow, Target, diffusion
from pyro_flowsamp.guides.deformation.energy_path import BoltzmannPath, EnergyMLP
from pyro_flowsamp.guides.deformation.velocity_flow import GeneralisedNormal

# ---- the base ------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.8, 1.0, 2.0, 4.0])
def test_the_base_is_normalised_and_sampled(power, double):
    base = GeneralisedNormal(torch.zeros(3), power)
    grid = torch.linspace(-60, 60, 600_001)
    one = GeneralisedNormal(torch.zeros(1), power)
    density = one.log_prob(grid[:, None]).exp()
    assert_close(torch.trapezoid(density, grid), torch.tensor(1.0), atol=1e-4, rtol=0)
    u = base.sample((40_000,))
    assert u.shape == (40_000, 3) and base.log_prob(u).shape == (40_000,)
    for moment in (lambda v: v, lambda v: v.square(), lambda v: v.abs(), lambda v: v.cos()):
        exact = torch.trapezoid(density * moment(grid), grid)
        found = moment(u)
        error = found.std() / found.numel() ** 0.5
        assert abs(found.mean() - exact) < 4.5 * error + 1e-4
    assert_close(base.log_prob(u).sum(), one.log_prob(u.reshape(-1, 1)).sum())
    assert base.expand((2,)).sample((5,)).shape == (5, 2, 3)


# ---- energies and their derivatives --------------------------------------------------------------


def derivatives(function, t, u):
    t, u = t.clone().requires_grad_(), u.clone().requires_grad_()
    value = function(t, u)
    return value, *torch.autograd.grad(value.sum(), (t, u), create_graph=True)


@pytest.mark.parametrize("kernels", [1, 4])
def test_derivatives_of_the_network(kernels, double):
    net = roughened(EnergyMLP(3, 8, kernels), 1.0)
    t, u = torch.rand(7), torch.randn(7, 3)
    found = net.with_derivatives(t, u)
    assert [v.shape for v in found] == [(7,), (7,), (7, 3)]
    assert_close(found, derivatives(lambda t, u: net(t, u)[:, 0], t, u))
    u.requires_grad_()
    assert torch.autograd.gradcheck(net.with_derivatives, (t.requires_grad_(), u))


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_the_path(kind, double):
    path, target, energy = make_path(kind)
    t, shift, u = torch.rand(9), 0.1 * torch.rand(9), torch.randn(9, 2)
    value, rate, slope = derivatives(energy, t, u)
    spot, (more, faster, steeper) = path.state_at(target, t, u), path.learned_terms(t, u)
    assert_close((-spot.log_pi, spot.denergy_dt + faster, -spot.grad), (value, rate, slope))
    fixed = path.fixed_terms(target, t, u)
    assert_close(fixed.energy + more, value)
    assert_close((fixed.denergy_dt, fixed.grad_energy), (spot.denergy_dt, spot.grad_energy))
    assert not fixed.grad_energy.requires_grad  # where points are not differentiated, nothing is
    later = derivatives(energy, t + shift, u)
    _, faster, steeper = path.learned_terms(t + shift, u)
    rate, slope = path.extrapolate(
        t + shift - shift, shift, u, spot.denergy_dt, spot.grad_energy, spot.dgrad_dt
    )
    assert_close((rate + faster, slope + steeper), later[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_through_the_path(kind, double):
    path, target, _ = make_path(kind)
    t, u = torch.rand(3), torch.randn(3, 2, requires_grad=True)
    rate_and_slope = lambda u: path.fixed_terms(target, t, u)[1:3]  # noqa: E731
    assert torch.autograd.gradcheck(rate_and_slope, u, check_undefined_grad=False)


@pytest.mark.parametrize("kind", ["linear", "trainable"])
def test_a_path_from_a_wider_base(kind, double):
    path, target, energy = make_path(kind)
    t, u = torch.rand(9), torch.randn(9, 2)
    spot, more = path.state_at(target, t, u, 2.5, learned_term=False), path.learned_terms(t, u)
    value, _, slope = derivatives(partial(energy, width=2.5), t, u)
    assert_close((-spot.log_pi, -spot.grad), (value - more[0], slope - more[2]))
    own = path.state_at(target, t, u)
    assert_close((spot.denergy_dt, spot.grad_energy), (own.denergy_dt, own.grad_energy))


def test_a_steady_pace():
    """From a variance of 100 to 1, the precision's logarithm grows by equal steps."""
    path = BoltzmannPath(1, 2.0, None, None)
    path.log_kappa.fill_(math.log(100.0))
    beta, _ = path.beta_at(torch.linspace(0, 1, 11))
    precision = (1 - beta) / 100 + beta
    step = torch.tensor(math.log(100.0) / 10)
    assert_close(precision.log().diff(), step.expand(10), rtol=1e-3, atol=1e-3)


def test_off_the_support_the_path_begins_at_the_base():
    target = Target.from_energy(
        lambda x: torch.where(x[:, 0] > 0, x.square().sum(-1), torch.inf), 1
    )
    path = BoltzmannPath(1, 2.0, None, None)
    spot = path.state_at(target, torch.tensor([0.0, 0.5]), -torch.ones(2, 1))
    assert spot.log_pi.tolist() == [-1.0, -torch.inf]


# ---- the equation --------------------------------------------------------------------------------


def test_diffusion_is_diffusion(double):
    """At time t it is t X + noise: by quadrature over X."""
    weights, means = torch.tensor([0.3, 0.7]), torch.tensor([[-2.0], [3.0]])
    variances, sigma, x = torch.tensor([[0.5], [2.0]]), 1.5, torch.linspace(-4, 5, 7)[:, None]
    energy = diffusion(weights, means, variances, sigma)
    grid = torch.linspace(-15, 18, 4001)
    normal = torch.distributions.Normal
    prior = (weights[:, None] * normal(means, variances.sqrt()).log_prob(grid).exp()).sum(0)
    for time in (0.0, 0.4, 0.8):
        noise = normal(time * grid, ((1 - time**2) * sigma**2 / 2) ** 0.5)
        density = torch.trapezoid(prior * noise.log_prob(x).exp(), grid)
        assert_close(energy(torch.full((7,), time), x), -density.log())
    exact = (weights[:, None] * normal(means, variances.sqrt()).log_prob(x.mT).exp()).sum(0)
    assert_close(energy(torch.ones(7), x), -exact.log())


def test_diffusion_of_equal_widths(double):
    weights, means = torch.tensor([0.3, 0.7]), torch.randn(2, 3)
    t, x = torch.rand(5), torch.randn(5, 3)
    short = diffusion(weights, means, torch.full((2, 1), 0.4), 2.0)
    long = diffusion(weights, means, torch.full((2, 3), 0.4), 2.0)
    assert_close(short(t, x), long(t, x))
    assert_close(pickle.loads(pickle.dumps(short))(t, x), long(t, x))


# ---- E[w] = Z_1 / Z_0, whatever the velocity -----------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before, after", [(0.0, 0.3), (0.2, 0.5), (0.7, 1.0)])
def test_what_was_looked_at_later_is_known_earlier(kind, before, after):
    guide = bad_guide(kind)
    path, target = guide.flow.path, guide.target_for()
    u = torch.randn(50, 2)
    early, late = (path.state_at(target, torch.full((50,), t), u) for t in (before, after))
    asked = target.evaluations
    assert_close(path.log_prob_at(before, late, after), early.log_pi, rtol=1e-5, atol=1e-5)
    assert target.evaluations == asked


def test_the_base_has_density_off_the_target_s_support():
    edge = Target.from_energy(lambda x: torch.where(x > 0, x.square(), torch.inf).sum(-1), 1)
    guide = AutoDeformationFlow(edge, interpolation="linear")
    target, u = guide.target_for(), torch.randn(50, 1)
    late = guide.flow.path.state_at(target, torch.full((50,), 0.3), u)
    assert bool(guide.flow.path.log_prob_at(0.0, late, 0.3).isfinite().all())


# ---- what is refused -----------------------------------------------------------------------------


def _from_nowhere(t, x):
    return (1 - t) * (x - 3).square().sum(-1) / 2 + t * narrow(x)


def _to_nowhere(t, x):
    return (1 - t) * x.square().sum(-1) / 2 + t * narrow(x + 1)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda x: x.square().sum(-1), r"must map times \(N,\) and places \(N, d\).*argument"),
        (lambda t, x, z: x.sum(-1), r"must map times .*argument"),
        (lambda t, x: x, r"must return energies \(16,\), got \(16, 2\)"),
        (lambda t, x: x.sum(), r"must return energies \(16,\), got \(\)"),
        (lambda t, x: 1.0, "must map times"),
        (lambda t, x: x.square().sum(-1) / 2, "are not the target's at time 1"),
        (lambda t, x: shifted(t, x).detach(), "must map times .*differentiable"),
        (_from_nowhere, "are not the base's at time 0"),
        (_to_nowhere, "are not the target's at time 1"),
        (lambda t, x: shifted(t, x) / 0, "are not the base's at time 0"),
    ],
)
def test_bad_interpolations(wrong, message):
    target = Target.from_energy(narrow, 2)
    guide = AutoDeformationFlow(target, interpolation=wrong, **{**SMALL, "base_scale": 2**0.5})
    with pytest.raises(ValueError, match=message):
        guide.fit()
