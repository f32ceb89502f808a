"""A Gaussian is fitted by matching scores."""

from math import log

import pytest
import torch
from support.models import year_regression
from support.mutations import broken, mutation
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.flows import gaussian_fit
from pyro_flowsamp.flows.gaussian_fit import GaussianFitOptions, fit_gaussian, match
from pyro_flowsamp.flows.pathfinder import PathfinderOptions
from pyro_flowsamp.weights import ess_fraction, pareto_k


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)


def _batch(gaussians, size, dim):
    root = torch.randn(gaussians, dim, dim)
    root = torch.linalg.cholesky(root @ root.mT + torch.eye(dim))
    loc, z, score = (torch.randn(gaussians, *s) for s in ((dim,), (size, dim), (size, dim)))
    return loc, root, z, score


def _objective(loc, cov, new_loc, new_cov, z, score, weight):
    """Eq. (5) and (7) of the paper: score-based divergence on the batch + (2/λ) KL(old ‖ new)."""
    precision = torch.linalg.inv(new_cov)
    gap = -(z - new_loc) @ precision - score
    divergence = (gap @ new_cov * gap).sum(-1).mean()
    old, new = (
        torch.distributions.MultivariateNormal(*p) for p in ((loc, cov), (new_loc, new_cov))
    )
    return divergence + 2 / weight * torch.distributions.kl_divergence(old, new)


@pytest.mark.parametrize("size, dim, weight", [(7, 3, 2.3), (3, 4, 50.0), (5, 1, 0.1)])
def test_the_update_minimises_the_objective(size, dim, weight):
    loc, root, z, score = _batch(2, size, dim)
    inside = torch.ones(2, size, dtype=torch.bool)
    standard = torch.linalg.solve(root, (z - loc[:, None]).mT).mT
    mean, factor = match(standard, score @ root, inside, weight)
    assert torch.equal(factor, factor.tril())
    new_loc, new_root = loc + (root @ mean[..., None])[..., 0], root @ factor
    cov, new_cov = root @ root.mT, new_root @ new_root.mT
    for k in range(2):
        m, c = new_loc[k].requires_grad_(), new_cov[k].requires_grad_()
        _objective(loc[k], cov[k], m, c, z[k], score[k], weight).backward()
        assert_close(m.grad, torch.zeros_like(m.grad), rtol=0, atol=1e-9)
        slope = c.grad + c.grad.T
        assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-9)


def test_draws_of_zero_density_do_not_count():
    _, _, z, score = _batch(1, 10, 3)
    inside = torch.arange(10)[None] < 6
    some = match(z, torch.where(inside[..., None], score, 0.0), inside, 2.0)
    alone = match(z[:, :6], score[:, :6], inside[:, :6], 2.0)
    assert_close(some, alone)


def test_a_batch_without_positive_density_yields_nan():
    _, _, z, score = _batch(1, 10, 3)
    nowhere = torch.zeros(1, 10, dtype=torch.bool)
    mean, factor = match(z, score, nowhere, 2.0)
    assert not mean.isfinite().any() and not factor.isfinite().all()


def _normal(dim, stretch=1.0):
    root = torch.randn(dim, dim) * torch.logspace(0, stretch, dim)
    cov = root @ root.T + 0.1 * torch.eye(dim)
    loc = 10 * torch.randn(dim)
    density = torch.distributions.MultivariateNormal(loc, cov)
    return Target.from_energy(lambda x: 5 - density.log_prob(x), dim), loc, cov


@pytest.mark.parametrize("dim, stretch", [(1, 1.0), (6, 1.0), (5, 3.0)])
def test_a_gaussian_is_found(dim, stretch):
    target, loc, cov = _normal(dim, stretch)
    found, root = fit_gaussian(target, target.initial_points(128))
    assert_close(found, loc, rtol=1e-6, atol=1e-6)
    assert_close(root @ root.T, cov, rtol=1e-6, atol=1e-6 * float(cov.max()))
    assert torch.equal(root, root.tril()) and (root.diagonal() > 0).all()


@pytest.mark.parametrize("scales", [[1e-6] * 3, [1e6] * 3, [1.0, 1e8, 1e3], [1e-4, 1e4]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussians_of_any_scale(scales, dtype):
    scales = torch.tensor(scales, dtype=dtype)
    target = Target.from_energy(
        lambda x: 0.5 * (x / scales - 1).square().sum(-1), len(scales), dtype=dtype
    )
    loc, root = fit_gaussian(target, target.initial_points(128))
    assert loc.dtype == root.dtype == dtype
    assert_close(loc / scales, torch.ones_like(scales), rtol=0, atol=1e-3)
    assert_close(root / scales[:, None], torch.eye(len(scales)).to(root), rtol=0, atol=1e-3)


@pytest.mark.parametrize("num_starts", [16, 128])
def test_a_narrow_ridge_in_single_precision(num_starts):
    target, loc, root = year_regression()
    found, found_root = fit_gaussian(target, target.initial_points(num_starts))
    gap = torch.linalg.solve_triangular(root, (found.double() - loc)[:, None], upper=False)
    assert gap.abs().max() < 0.05
    noise = torch.randn(4096, 2, dtype=torch.float32)
    x = found + noise @ found_root.T
    log_w = target.log_prob(x).double() + 0.5 * noise.double().square().sum(-1)
    assert ess_fraction(log_w) > 0.9 and pareto_k(log_w) < 0.7


def test_fewer_evaluations_than_paths_of_fixed_length():
    target, _, _ = _normal(5)
    starts = target.initial_points(128)
    before = target.evaluations
    options = GaussianFitOptions(
        max_paths=4, pathfinder=PathfinderOptions(max_evaluations=20, draws=2), iterations=5
    )
    fit_gaussian(target, starts, options)
    paths, updates = 4 * 20 * 3, 4 * 128 * (5 + 4)
    assert target.evaluations - before <= paths + updates


def test_the_higher_of_two_distant_modes_wins():
    def energy(x):
        one, two = 0.5 * (x - 6).square().sum(-1), 0.5 * (x + 6).square().sum(-1) + 3
        return -torch.stack([-one, -two]).logsumexp(0)

    target = Target.from_energy(energy, 3)
    loc, root = fit_gaussian(target, target.initial_points(128))
    assert_close(loc, torch.full((3,), 6.0), rtol=0, atol=0.05)
    assert_close(root, torch.eye(3), rtol=0, atol=0.05)


def test_the_heavier_of_two_modes_wins_not_the_higher():
    """A hundredth of the mass on a scale of 1e-2 has the higher density, by 9 nats."""

    def energy(x):
        wide = 0.5 * (x - 6).square().sum(-1)
        narrow = 0.5 * ((x + 6) / 1e-2).square().sum(-1) - 3 * log(100) + log(100)
        return -torch.stack([-wide, -narrow]).logsumexp(0)

    target = Target.from_energy(energy, 3)
    starts = torch.cat([-6 + 1e-2 * torch.randn(8, 3), 6 + torch.randn(8, 3)])
    loc, root = fit_gaussian(target, starts)
    assert_close(loc, torch.full((3,), 6.0), rtol=0, atol=0.05)
    assert_close(root, torch.eye(3), rtol=0, atol=0.05)


def test_a_half_space_holds_most_of_the_gaussian():
    def energy(x):
        return torch.where(x[:, 0] < 0, torch.inf, 0.5 * x.square().sum(-1))

    target = Target.from_energy(energy, 2)
    loc, root = fit_gaussian(target, target.initial_points(128))
    x = loc + torch.randn(10_000, 2) @ root.T
    assert (x[:, 0] > 0).double().mean() > 0.4
    assert_close(root[1, 1], torch.tensor(1.0), rtol=0, atol=0.2)
    assert 0.3 < root[0, 0] < 1.5


# ---- fits that diverge ---------------------------------------------------------------------------


def far_away(match, z, score, inside, weight, min_inside=0.45):
    """Let an update go to where single precision resolves nothing, with a tiny width."""
    eye = torch.eye(z.shape[-1]).to(z)
    return torch.full_like(z[:, 0], 1e18), (1e-9 * eye).expand(len(z), -1, -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fit_that_diverges_is_given_up(dtype):
    """The Gaussian of the best path is taken, whatever the rounded draws make of the bound."""
    target = Target.from_energy(lambda x: 0.5 * ((x - 3) / 2).square().sum(-1), 2, dtype=dtype)
    starts = target.initial_points(8)
    with broken(mutation(gaussian_fit, "match")(far_away)):
        loc, scale_tril = fit_gaussian(target, starts)
        assert float((loc - 3).abs().max()) < 1 and 1 < float(scale_tril[0, 0]) < 4
        allowed = GaussianFitOptions(max_loss=torch.inf)
        loc, _ = fit_gaussian(target, starts, allowed)
        assert float(loc.abs().max()) > 1e15
