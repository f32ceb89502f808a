"""Flows of all recipes: densities and draws agree, log-dets are right, integrals are one."""

from functools import partial
from math import log, pi

import pytest
import torch
from support.scenarios import shake
from torch.testing import assert_close

from pyro_flowsamp.flows import affine
from pyro_flowsamp.flows.proposal import Proposal
from pyro_flowsamp.flows.recipes import circular, coupling, gaussian, spline
from pyro_flowsamp.flows.transforms import wrap

MIXED = torch.tensor([True, False, True, False])
SMALL = {"transforms": 4, "hidden_features": (16,)}
FLOWS = {
    "gaussian": partial(gaussian, 4),
    "gaussian, one feature": partial(gaussian, 1),
    "coupling": partial(coupling, 4, **SMALL),
    "coupling, one feature": partial(coupling, 1, **SMALL),
    "coupling, mixture base": partial(coupling, 3, components=3, **SMALL),
    "coupling, context": partial(coupling, 3, 2, **SMALL),
    "spline": partial(spline, 3, **SMALL),
    "circular": partial(circular, 3, **SMALL),
    "circular, one feature": partial(circular, 1, **SMALL),
    "circular, context": partial(circular, 2, 2, **SMALL),
    "mixed": partial(circular, 4, angles=MIXED, **SMALL),
    "mixed spline": partial(spline, 4, angles=MIXED, **SMALL),
}


def _spoilt(make, size=0.2):
    """A flow wrong in every layer."""
    flow = make()
    d = flow.features
    root = torch.tril(0.5 * torch.randn(d, d), -1) + torch.diag(0.5 + torch.rand(d))
    flow.affine.initialize(2 * torch.randn(d), root)
    return shake(flow, size)


@pytest.fixture(params=FLOWS)
def distribution(request):
    torch.set_default_dtype(torch.float64)
    flow = _spoilt(FLOWS[request.param])
    return flow(torch.randn(2) if "context" in request.param else None)


def _jacobian(transform, x):
    """Log-dets by automatic differentiation, one row at a time."""
    jacobians = torch.func.vmap(torch.func.jacrev(lambda t: transform(t[None])[0]))(x)
    return torch.linalg.slogdet(jacobians)[1]


def test_sampling_and_scoring_agree(distribution):
    x, log_q = distribution.rsample_and_log_prob((1000,))
    assert_close(distribution.log_prob(x), log_q, rtol=0, atol=1e-10)


def test_log_dets_both_ways(distribution):
    to_latent = distribution.transform
    z = distribution.base.sample((20,))
    x, ladj = to_latent.inv.call_and_ladj(z)
    assert_close(ladj, _jacobian(to_latent.inv, z), rtol=0, atol=1e-9)
    assert_close(to_latent.call_and_ladj(x)[1], _jacobian(to_latent, x), rtol=0, atol=1e-9)


def test_the_inverse_undoes_the_map(distribution):
    z = distribution.base.sample((100,))
    back = distribution.transform(distribution.transform.inv(z))
    angles = getattr(distribution.base, "angles", None)
    gap = back - z if angles is None else torch.where(angles, wrap(back - z), back - z)
    assert_close(gap, torch.zeros_like(gap), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["coupling", "spline", "circular", "mixed"])
def test_the_gap_is_small_in_single_precision(name):
    flow = _spoilt(FLOWS[name], size=0.1)
    assert 0 < Proposal(flow).log_q_error() < 1e-3


# ---- normalisation: brute force on a grid ------------------------------------------------------


def _axis(periodic, num):
    """Midpoints, and the width of a cell."""
    low, high = (-pi, pi) if periodic else (-20.0, 20.0)
    width = (high - low) / num
    return low + width * (torch.arange(num) + 0.5), width


@torch.no_grad()
@pytest.mark.parametrize(
    "make, angles",
    [
        (partial(gaussian, 2), (False, False)),
        (partial(coupling, 2, **SMALL), (False, False)),
        (partial(coupling, 2, components=3, **SMALL), (False, False)),
        (partial(spline, 2, **SMALL), (False, False)),
        (partial(circular, 2, **SMALL), (True, True)),
        (partial(circular, 2, angles=torch.tensor([True, False]), **SMALL), (True, False)),
        (partial(circular, 2, angles=torch.tensor([False, True]), **SMALL), (False, True)),
    ],
)
def test_the_density_integrates_to_one(make, angles):
    torch.set_default_dtype(torch.float64)
    flow = _spoilt(make, size=0.1)
    (one, width), (two, height) = (_axis(a, 250 if a else 600) for a in angles)
    total = flow().log_prob(torch.cartesian_prod(one, two)).exp().sum() * width * height
    assert_close(total, torch.tensor(1.0), rtol=0, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("angles", [(True, True), (True, False)])
def test_the_density_is_periodic_and_continuous(angles):
    torch.set_default_dtype(torch.float64)
    mask = torch.tensor(angles)
    flow = _spoilt(partial(circular, 2, angles=mask, **SMALL))
    x = 3 * torch.randn(200, 2)
    turns = torch.randint(-3, 4, (200, 2)) * mask
    log_q = flow().log_prob(x)
    assert_close(flow().log_prob(x + 2 * pi * turns), log_q, rtol=0, atol=1e-9)
    around = torch.linspace(-pi, pi, 200_001)
    line = torch.stack([around, torch.full_like(around, 0.3)], -1)
    log_q = flow().log_prob(line)
    assert (log_q.diff().abs() < 0.01).all() and abs(log_q[0] - log_q[-1]) < 1e-9


def test_angles_stay_on_the_circle():
    flow = _spoilt(partial(circular, 4, angles=MIXED, **SMALL), size=0.5)
    x, _ = flow().rsample_and_log_prob((10_000,))
    assert x[:, MIXED].abs().max() <= pi + 1e-6


# ---- where training starts ---------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [gaussian, coupling, spline])
@pytest.mark.parametrize("limit", [400, 3], ids=["full", "diagonal"])
def test_an_initialized_flow_is_the_gaussian(recipe, limit, monkeypatch):
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(affine, "MAX_FULL_COVARIANCE", limit)
    loc, root = torch.randn(4), torch.tril(torch.randn(4, 4), -1) + torch.diag(1 + torch.rand(4))
    flow = recipe(4)
    flow.affine.initialize(loc, root)
    if limit < 4:
        root = torch.diag((root @ root.T).diagonal().sqrt())
    normal = torch.distributions.MultivariateNormal(loc, scale_tril=root)
    x = normal.sample((50,))
    assert_close(flow().log_prob(x), normal.log_prob(x))


def test_a_circular_flow_starts_uniform():
    x = wrap(torch.randn(50, 3))
    assert_close(circular(3)().log_prob(x), torch.full((50,), -3 * log(2 * pi)))


def test_depth_switches_couplings_off_and_is_saved():
    flow = _spoilt(partial(coupling, 3, **SMALL))
    flow.depth = 0
    affine = gaussian(3)
    affine.load_state_dict({k: v for k, v in flow.state_dict().items() if "couplings" not in k})
    x = torch.randn(10, 3)
    assert_close(flow().log_prob(x), affine().log_prob(x))
    other = coupling(3, **SMALL)
    other.load_state_dict(flow.state_dict())
    assert other.depth == 0 and torch.equal(other().log_prob(x), flow().log_prob(x))


def test_initialize_from_standardises_draws():
    torch.set_default_dtype(torch.float64)
    draws = torch.randn(5000, 2) @ torch.tensor([[2.0, 0.0], [1.0, 0.5]]).T + 3
    flow = gaussian(2)
    flow.initialize_from(draws)
    z = flow().transform(draws)
    assert_close(z.mean(0), torch.zeros(2), rtol=0, atol=1e-8)
    assert_close(torch.cov(z.T), torch.eye(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("components", [1, 3])
def test_initialize_from_draws_of_one_feature(components):
    draws = 2 * torch.randn(2000, 1) + 3
    flow = gaussian(1, components=components)
    flow.initialize_from(draws)
    x = flow().sample((4000,))
    assert_close(x.mean(), draws.mean(), rtol=0, atol=0.2)
    assert_close(x.std(), draws.std(), rtol=0, atol=0.2)
