"""Pathfinder: known posteriors of all scales, the bounds of its Gaussians, and its starts."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.models import year_regression
from support.mutations import must_fail, mutation
from support.scenarios import THRESHOLD
from support.statistics import z_score
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.flows import pathfinder as module
from pyro_flowsamp.flows.lbfgs import InverseHessians, LowRankFactor
from pyro_flowsamp.flows.pathfinder import (
    PathfinderOptions,
    evidence_bounds,
    lower_factor,
    overdispersed_starts,
    pathfinder,
)
from pyro_flowsamp.problems import funnel


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)


def _normal(loc, scale, dtype=torch.float64):
    loc, scale = (torch.as_tensor(v, dtype=dtype) for v in (loc, scale))
    return Target.from_energy(
        lambda x: 0.5 * ((x - loc) / scale).square().sum(-1), len(scale), dtype=dtype
    )


# ---- posteriors ----------------------------------------------------------------------------------


def _best(found):
    best = found.elbo.argmax()[None]
    return found.loc[best][0], found.scale_tril(best)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_gaussians_of_any_scale(scale, dtype):
    target = _normal([3 * scale, -scale, 0.0], [scale] * 3, dtype)
    loc, root = _best(pathfinder(target, target.initial_points(8)))
    assert_close(loc / scale, torch.tensor([3.0, -1.0, 0.0]), rtol=0, atol=0.05)
    assert_close(root / scale, torch.eye(3), rtol=0, atol=0.05)


def test_scales_that_differ_by_1e8():
    target = _normal([0.0, 0.0], [1e-4, 1e4])
    loc, root = _best(pathfinder(target, target.initial_points(16)))
    assert_close(root.diagonal(), torch.tensor([1e-4, 1e4]), rtol=0.05, atol=0)


@pytest.mark.parametrize("far", [1e3, 1e6])
def test_distant_starts(far):
    target = _normal([0.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    found = pathfinder(target, target.initial_points(16) * far)
    assert_close(found.end, torch.arange(3.0).expand(16, 3), rtol=0, atol=0.01)


def test_a_narrow_ridge_in_single_precision():
    target, loc, root = year_regression()
    assert target.dtype == torch.float32
    found = pathfinder(target, target.initial_points(16))
    gap = torch.linalg.solve_triangular(root, (found.end - loc).mT, upper=False)
    assert (gap.abs().amax(0) < 0.05).double().mean() > 0.9
    assert found.loc.dtype == torch.float64
    mean, _ = _best(found)
    assert torch.linalg.solve_triangular(root, (mean - loc)[:, None], upper=False).abs().max() < 1


def test_a_spike_without_mass_is_not_chosen():
    """The density of a model of groups without data is unbounded where their scale is zero."""

    def energy(x):
        log_tau, groups = x[:, 0], x[:, 1:]
        density = dist.Normal(0.0, log_tau.exp()[:, None]).log_prob(groups).sum(-1)
        return 0.5 * log_tau.square() - density

    target = Target.from_energy(energy, 11)
    found = pathfinder(target, target.initial_points(8))
    assert (found.end[:, 0] < -8).all()  # the mode is at -10
    loc, _ = _best(found)
    assert loc[0] > -3


def test_the_funnel():
    """The log evidence is zero, so no bound is above it, by more than its noise."""
    target = funnel(10).target
    found = pathfinder(target, target.initial_points(16))
    assert -10 < found.elbo.max() < 5 and found.elbo.isfinite().all()


def test_forty_modes():
    centres = 80 * torch.rand(40, 2) - 40
    target = Target.from_energy(
        lambda x: -(-0.5 * (x[:, None] - centres).square().sum(-1) / 1.3**2).logsumexp(-1), 2
    )
    found = pathfinder(target, overdispersed_starts(target, 256))
    distance = torch.cdist(centres, found.end).amin(-1)
    assert (distance < 1).sum() > 20


def test_logistic_regression():
    """All paths end at the mode, where the gradient is zero."""
    x = torch.randn(200, 10)
    y = (x @ torch.randn(10) + torch.randn(200) > 0).double()

    def energy(beta):
        logits = beta @ x.T
        fit = torch.nn.functional.softplus(logits).sum(-1) - logits @ y
        return fit + beta.square().sum(-1) / 8

    target = Target.from_energy(energy, 10)
    found = pathfinder(target, target.initial_points(8))
    _, grad = target.log_prob_and_grad(found.end)
    assert grad.abs().max() < 0.02
    hessian = torch.func.hessian(lambda beta: energy(beta[None])[0])(found.end[0])
    _, root = _best(found)
    ratio = torch.linalg.eigvalsh(root.T @ hessian @ root)
    assert 0.05 < ratio.min() and ratio.max() < 10


def test_student_t():
    target = Target.from_energy(lambda x: 4 * (1 + x.square().sum(-1) / 3).log(), 5)
    found = pathfinder(target, target.initial_points(16))
    assert found.end.abs().max() < 0.01
    _, root = _best(found)
    assert ((0.3 < root.diagonal()) & (root.diagonal() < 2)).all()


def test_a_mode_on_the_edge():
    target = Target.from_energy(lambda x: torch.where((x > 0).all(-1), x.sum(-1), torch.inf), 2)
    found = pathfinder(target, target.initial_points(16))
    assert (found.end > 0).all() and found.elbo.isfinite().any()
    assert found.end_log_prob.max() > -0.2


@pytest.mark.slow
def test_many_paths_in_many_dimensions():
    target = _normal(torch.full((500,), 5.0), torch.logspace(-1, 1, 500))
    options = PathfinderOptions(max_evaluations=80)
    found = pathfinder(target, target.initial_points(64), options)
    assert found.loc.shape == (64, 500) and found.factor.root.shape == (64, 40, 40)
    assert found.end_log_prob.min() > -60
    assert found.scale_tril(torch.tensor([3])).shape == (1, 500, 500)


# ---- Gaussians -----------------------------------------------------------------------------------


def _factor(dim=4, paths=3):
    hessians = InverseHessians.scaled(torch.rand(paths, dim) + 0.5, 3)
    root = torch.randn(dim, dim)
    for step in torch.randn(3, paths, dim):
        change = step @ (root @ root.T + torch.eye(dim))
        hessians = hessians.updated(step, change, torch.ones(paths) > 0)
    return hessians.factor()[0]


def test_log_densities_of_draws():
    target = _normal([1.0, 2.0], [1.0, 3.0])
    found = pathfinder(target, target.initial_points(4))
    paths = torch.tensor([2, 0])
    draws, log_q = found.sample(50, paths)
    normal = dist.MultivariateNormal(found.loc[paths], scale_tril=found.scale_tril(paths))
    assert_close(log_q, normal.log_prob(draws))
    assert found.sample(5)[0].shape == (5, 4, 2)
    roots = found.scale_tril()
    assert torch.equal(roots, roots.tril()) and (roots.diagonal(dim1=-2, dim2=-1) > 0).all()


def test_lower_factor_keeps_small_variances():
    scale = torch.logspace(-8, 8, 4)
    rotation = torch.linalg.qr(torch.randn(4, 4)).Q
    root = lower_factor(scale[:, None] * torch.eye(4) @ rotation)
    assert_close(root.diagonal() / scale, torch.ones(4))
    general = torch.randn(2, 4, 4)
    root = lower_factor(general)
    assert_close(root @ root.mT, general @ general.mT)


@mutation(LowRankFactor, "log_det")
def scales_only(log_det, factor):
    return factor.scale.log().sum(-1)


@mutation(module, "draw")
def draws_too_wide(draw, loc, factor, num):
    x, log_q = draw(loc, factor, num)
    return loc + 1.2 * (x - loc), log_q


def _bound_error():
    """Against the known log mass minus the divergence KL(q ‖ p), over independent estimates."""
    pyro.set_rng_seed(0)
    factor, loc = _factor(), torch.randn(3, 4)
    q = dist.MultivariateNormal(loc, scale_tril=lower_factor(factor.dense()))
    p = dist.MultivariateNormal(torch.zeros(4), torch.eye(4))
    target = Target.from_energy(lambda x: -2.5 - p.log_prob(x), 4)
    fine = torch.ones(3) > 0
    bounds = torch.stack([evidence_bounds(target, loc, factor, fine, 8) for _ in range(400)])
    truth = 2.5 - torch.distributions.kl_divergence(q, p)
    return float(z_score(bounds, truth).abs().max())


def test_bounds_are_unbiased():
    assert _bound_error() < THRESHOLD
    must_fail(scales_only, score=_bound_error, above=2 * THRESHOLD)
    must_fail(draws_too_wide, score=_bound_error, above=2 * THRESHOLD)


def test_bounds_on_half_of_the_space():
    """A half normal and its own Gaussian: the bound is the log mass of the half, which is sharp."""
    target = Target.from_energy(
        lambda x: torch.where(x[:, 0] > 0, 0.5 * x.square().sum(-1), torch.inf), 1
    )
    factor = InverseHessians.scaled(torch.ones(1, 1), 2).factor()[0]
    bound = evidence_bounds(target, torch.zeros(1, 1), factor, torch.ones(1) > 0, 100_000)
    assert_close(bound.exp(), torch.tensor([(torch.pi / 2) ** 0.5]), rtol=0.02, atol=0)


def test_no_bound_without_density_or_factor():
    target = Target.from_energy(lambda x: torch.where(x[:, 0] > 99, 0 * x[:, 0], torch.inf), 1)
    factor = InverseHessians.scaled(torch.ones(2, 1), 2).factor()[0]
    loc, fine = torch.tensor([[0.0], [200.0]]), torch.tensor([True, False])
    assert evidence_bounds(target, loc, factor, fine, 8).tolist() == [-torch.inf] * 2


def test_each_path_at_its_own_context():
    """Row i of every batch is at context i mod K."""

    def model(mean):
        pyro.sample("x", dist.Normal(mean, 1.0))

    target = Target.from_model(model, torch.tensor(0.0)).conditional_on("mean")
    target = target.at_contexts(torch.tensor([[-10.0], [30.0]]))
    found = pathfinder(target, torch.zeros(4, 1))
    assert_close(found.end[:, 0], torch.tensor([-10.0, 30.0, -10.0, 30.0]), rtol=0, atol=0.01)
    assert_close(found.elbo, torch.zeros(4), rtol=0, atol=0.01)


# ---- arguments -----------------------------------------------------------------------------------


def test_a_path_without_a_bound_keeps_its_last_point():
    """A density on a segment in which no draw lies."""

    def energy(x):
        return torch.where(x[:, 1].abs() < 1e-300, 0.5 * (x[:, 0] - 3).square(), torch.inf)

    target = Target.from_energy(energy, 2)
    found = pathfinder(target, torch.tensor([[1.0, 0.0]]))
    assert found.elbo.item() == -torch.inf and torch.equal(found.loc, found.end)
    assert_close(found.end, torch.tensor([[3.0, 0.0]]), rtol=0, atol=0.01)
    assert found.scale_tril().isfinite().all()


def test_evaluations_are_bounded():
    target = funnel(10).target
    starts = target.initial_points(4)
    before = target.evaluations
    pathfinder(target, starts, PathfinderOptions(max_evaluations=10, draws=2))
    assert target.evaluations - before <= 4 * (10 + 10 * 2)


@pytest.mark.parametrize("shape", [(0, 2), (2,), (3, 1)])
def test_starts_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"expected starts of shape \(P, 2\)"):
        pathfinder(_normal([0.0, 0.0], [1.0, 1.0]), torch.zeros(shape))


def test_starts_on_many_scales():
    target = Target.from_energy(
        lambda x: torch.where(x[:, 0].abs() < 100, (1 - x[:, 1].cos()), torch.inf), 2, angles=[1]
    )
    x = overdispersed_starts(target, 1100)
    assert x.shape == (1100, 2) and target.log_prob(x).isfinite().all()
    assert x[:, 1].abs().max() <= torch.pi
    largest = x[:, 0].abs().view(100, 11).amax(0)
    assert ((largest[1:6] / largest[:5] - 2).abs() < 0.3).all()
    assert (largest[7:] > 60).all()
