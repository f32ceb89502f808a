"""Importance weights: ESS, evidence and Pareto k."""

from math import log, sqrt

import arviz as az
import pytest
import torch
from support.results import arviz_pareto_k
from torch.testing import assert_close

from pyro_flowsamp.flows.proposal import Proposal
from pyro_flowsamp.flows.recipes import gaussian
from pyro_flowsamp.weights import ess_fraction, log_mean_weight, pareto_k


def test_ess_is_kongs():
    log_w = torch.randn(500, 3, dtype=torch.float64)
    w = log_w.exp()
    assert_close(ess_fraction(log_w), w.sum(0) ** 2 / (500 * w.square().sum(0)))
    assert_close(ess_fraction(log_w + 1000), ess_fraction(log_w))


def test_ess_of_extremes():
    some = torch.full((10,), -torch.inf)
    assert ess_fraction(some) == 0
    some[3] = -2000.0
    assert_close(ess_fraction(some), torch.tensor(0.1).double())
    some[:5] = 1e4
    assert_close(ess_fraction(some), torch.tensor(0.5).double())


def test_ess_of_log_normal_weights():
    """exp(−σ²) of N(·, σ²) log weights."""
    log_w = 0.8 * torch.randn(200_000)
    assert abs(float(ess_fraction(log_w)) / torch.tensor(-0.64).exp() - 1) < 0.05


def test_evidence_is_the_mean_weight():
    log_w = torch.tensor([0.0, -torch.inf, log(3.0), -torch.inf]) - 800
    estimate = log_mean_weight(log_w)
    assert_close(estimate.value, torch.tensor(-800.0).double())
    w = torch.tensor([0.0, 1.0, 3.0, 0.0], dtype=torch.float64)
    assert_close(estimate.standard_error, w.std() / 2, rtol=1e-4, atol=0)


def test_the_standard_error_of_the_evidence_covers():
    """Over 2000 repetitions the estimates scatter as much as they say, around the truth."""
    log_w = 0.7 * torch.randn(1000, 2000, dtype=torch.float64) - 0.5 * 0.49
    log_z, error = log_mean_weight(log_w)
    assert_close(log_z.std(), error.mean(), rtol=0.1, atol=0)
    weight = log_z.exp()  # the mean weight is unbiased, its log is not
    assert abs(weight.mean() - 1) < 4.5 * weight.std() / sqrt(2000)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0, 3.0])
def test_pareto_k_is_arvizs(scale):
    log_w = scale * torch.randn(4096, dtype=torch.float64)
    assert pareto_k(log_w) == pytest.approx(arviz_pareto_k(log_w), abs=1e-6)


@pytest.mark.parametrize("k", [0.3, 0.7, 1.2])
def test_pareto_k_finds_the_shape_of_a_pareto_tail(k):
    log_w = -k * torch.rand(50_000, dtype=torch.float64).log()
    assert pareto_k(log_w) == pytest.approx(k, abs=0.2)


def test_pareto_k_of_extremes():
    assert pareto_k(torch.full((100,), -torch.inf)) == torch.inf
    assert pareto_k(torch.zeros(1000)) < 0.5
    one_giant = torch.randn(1000)
    one_giant[0] = 2000.0
    assert pareto_k(one_giant) > 0.7
    assert pareto_k(torch.randn(10)) == torch.inf


def test_pareto_k_where_the_threshold_is_shared():
    """Bounded weights, most of them the same: no tail, as ArviZ finds."""
    log_w = torch.cat([torch.zeros(960), torch.rand(40)]).double()
    if az.__version__.startswith("0."):  # 1.x gives NaN
        assert pareto_k(log_w) == pytest.approx(arviz_pareto_k(log_w), abs=1e-6)
    assert pareto_k(log_w) < 0.5
    assert pareto_k(torch.cat([torch.zeros(997), torch.rand(3)])) == torch.inf  # too few to tell


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_perfect_proposal_has_no_tail(dtype):
    """Weights that differ by rounding alone: many are equal, the threshold among them."""
    torch.set_default_dtype(dtype)
    loc, root = torch.randn(5), torch.eye(5) + torch.tril(torch.randn(5, 5), -1)
    flow = gaussian(5)
    flow.affine.initialize(loc, root)
    x, log_q = Proposal(flow).sample_and_log_prob(4096)
    log_w = torch.distributions.MultivariateNormal(loc, scale_tril=root).log_prob(x) - log_q
    assert ess_fraction(log_w) > 0.999
    assert pareto_k(log_w) < 0.5


def test_weights_of_which_one_is_all():
    """Ratios that underflow have no shape that can be computed: it counts as infinite."""
    for step in (3.0, 100.0, 1000.0):
        assert pareto_k(step * torch.arange(1000.0)) > 0.7
