"""Start distributions: over-dispersed bases, Student-t starts, the prior; ascent to the modes."""

from math import log, pi

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import MultivariateStudentT
from scipy.stats import f as fisher
from support.models import conjugate, conjugate_data
from support.mutations import must_fail, mutation
from support.scenarios import far_modes
from support.statistics import z_score
from torch import tensor
from torch.testing import assert_close

from pyro_flowsamp import Target
from pyro_flowsamp.flows.gaussian_fit import ascend
from pyro_flowsamp.smc.coordinates import WhitenedTarget
from pyro_flowsamp.smc.starts import PriorStart, StudentStart, overdispersed_base, stretched_points
from pyro_flowsamp.target.prior import prior_target


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)


def test_ascent_goes_uphill_and_stops_at_an_edge():
    def energy(x):
        return torch.where(x[:, 0] > 1, torch.inf, -x[:, 0] + 0.5 * x[:, 1].square())

    target = Target.from_energy(energy, 2)
    x = torch.empty(20, 2).uniform_(-2, 0)
    stages = ascend(target, x)
    assert stages.shape == (3, 20, 2)
    log_p = torch.stack([target.log_prob(stage) for stage in stages])
    assert log_p.isfinite().all() and (log_p[-1] > target.log_prob(x)).all()


def test_points_are_stretched_where_there_is_density():
    """Half of a box around 0 stretches within it; no point of a box around 100 000 does."""

    def boxed(centre):
        def energy(x):
            return torch.where((x - centre).abs() < 3, (x - centre).square(), torch.inf).sum(-1)

        return Target.from_energy(energy, 2)

    pyro.set_rng_seed(1)
    here, there = boxed(0.0), boxed(1e5)
    x = stretched_points(here, 400)
    assert x.shape == (400, 2) and (x.abs() < 3).all() and (x.abs() > 2).any()
    with pytest.raises(ValueError, match="at every initial point"):
        stretched_points(there, 400)
    there.starts = tensor([[1e5 + 1, 1e5 - 1]])
    x = stretched_points(there, 400)
    assert ((x - 1e5).abs() < 3).all()
    base = overdispersed_base(there, 64)
    assert ((base.loc - 1e5).abs() < 0.1).all() and (base.scale < 2).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_base_covers_lower_modes(seed):
    pyro.set_rng_seed(seed)
    base = overdispersed_base(far_modes(), 512)
    assert abs(base.loc[0]) < 1 and base.scale[0] > 8


# ---- Student-t starts ----------------------------------------------------------------------------

TRIL = torch.tensor([[2.0, 0.0, 0.0], [0.5, 0.3, 0.0], [-1.0, 0.2, 1.0]], dtype=torch.double)
LOC = torch.tensor([1.0, -2.0, 0.5], dtype=torch.double)
REAL = torch.zeros(3, dtype=torch.bool)


def student(df=3.0, angles=REAL):
    return StudentStart(LOC, TRIL, angles, df)


def error_of_mass():
    """Return by how much the integral over the line differs from one."""
    start = StudentStart(LOC[:1], TRIL[:1, :1], REAL[:1], df=3.0)
    x = torch.linspace(-2000, 2000, 400_001)
    return abs(float(torch.trapezoid(start.log_prob_and_grad(x[:, None])[0].exp(), x)) - 1)


def test_the_density_integrates_to_one():
    assert error_of_mass() < 1e-4


@pytest.mark.parametrize("df", [1.0, 3.0, 30.0])
def test_the_density_is_that_of_pyro(df):
    x = LOC + 3 * torch.randn(100, 3)
    truth = MultivariateStudentT(torch.tensor(df), LOC, TRIL).log_prob(x)
    assert_close(student(df).log_prob_and_grad(x)[0], truth)


def test_angles_are_uniform():
    """They are independent of the others, whatever rows and columns they have."""
    angles = torch.tensor([False, True, False])
    start = student(angles=angles)
    x = LOC + torch.randn(100, 3)
    covariance = (TRIL @ TRIL.mT)[[0, 2]][:, [0, 2]]
    truth = MultivariateStudentT(
        torch.tensor(3.0), LOC[[0, 2]], torch.linalg.cholesky(covariance)
    ).log_prob(x[:, [0, 2]])
    log_b, grad = start.log_prob_and_grad(x)
    assert_close(log_b, truth - log(2 * pi))
    assert (grad[:, 1] == 0).all()
    draws = start.sample(20_000)[:, 1]
    assert draws.abs().max() <= pi
    assert abs(z_score(draws.cos()[:, None], 0.0)) < 4


@pytest.mark.parametrize("angles", [REAL, torch.tensor([False, True, False])])
def test_gradients_of_a_start_are_those_of_autograd(angles):
    x = (LOC + torch.randn(50, 3)).requires_grad_()
    log_b, grad = student(angles=angles).log_prob_and_grad(x)
    assert_close(grad, torch.autograd.grad(log_b.sum(), x)[0])


def tail_scores():
    """Return z-scores of shares of draws: beyond radii, and to one side."""
    start = student()
    x = start.sample(20_000)
    square = start.standardised(x).square().sum(-1) / 3  # Fisher's distribution, 3 and 3 degrees
    shares = [((square > k).double(), float(fisher.sf(k, 3, 3))) for k in (1.0, 5.0, 30.0)]
    shares += [((x[:, i] > LOC[i]).double(), 0.5) for i in range(3)]
    slopes = start.log_prob_and_grad(x)[1]  # scores have the mean zero
    return torch.cat(
        [torch.stack([z_score(share, truth) for share, truth in shares]), z_score(slopes, 0.0)]
    )


def test_draws_have_the_density():
    assert tail_scores().abs().max() < 4


def test_draws_need_their_heavy_tails():
    wrong = mutation(StudentStart, "sample")(
        lambda _, self, num: LOC + torch.randn(num, 3) @ TRIL.mT  # Gaussian
    )
    must_fail(wrong, score=lambda: tail_scores().abs().max(), above=10)


def test_a_start_that_covers_points():
    x = LOC + torch.randn(50_000, 3) @ TRIL.mT
    start = StudentStart.covering(x, REAL, widen=2.0)
    covariance = start.scale_tril @ start.scale_tril.mT
    assert_close(covariance, 4 * TRIL @ TRIL.mT, rtol=0.1, atol=0.1)
    assert_close(start.loc, LOC, rtol=0, atol=0.05)
    assert float(start.outside(x).double().mean()) < 1e-3
    assert start.outside(LOC + 40 * TRIL[:, 0][None]).all()


def test_points_in_a_plane_are_covered():
    """Fewer points than coordinates: scales only."""
    start = StudentStart.covering(torch.randn(3, 20), torch.zeros(20, dtype=torch.bool))
    assert torch.isfinite(start.log_prob_and_grad(start.sample(100))[0]).all()


def test_the_prior_as_a_start():
    target = Target.from_model(conjugate, *conjugate_data())
    prior = WhitenedTarget(prior_target(target), torch.zeros(2), 3 * torch.eye(2))
    draws = prior.to_u(target.prior_points(100))
    start = PriorStart(prior, draws)
    assert torch.equal(start.sample(250), torch.cat([draws, draws, draws[:50]]))
    assert not start.outside(draws).any()
    log_b, grad = start.log_prob_and_grad(draws)
    x = target.unpack(prior.to_x(draws))
    truth = (  # with the log-dets of the logarithm and of the whitening
        dist.Normal(0.0, 1.0).log_prob(x["mean"])
        + dist.Gamma(2.0, 1.0).log_prob(x["rate"])
        + x["rate"].log()
        + 2 * log(3)
    )
    assert_close(log_b, truth)
    assert_close(grad, prior.log_prob_and_grad(draws)[1])
