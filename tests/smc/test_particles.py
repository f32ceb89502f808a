"""Weighted particles: evidence, means and resampling."""

import torch
from support.particles import run_stages
from torch.testing import assert_close

from pyro_flowsamp.smc import particles
from pyro_flowsamp.weights import log_mean_weight


def test_the_evidence_not_its_log_is_unbiased():
    cloud = run_stages()
    assert_close(cloud.evidence, log_mean_weight(cloud.evidences))
    single = cloud.evidences
    assert single.mean() < cloud.evidence.value  # Jensen, seen


def test_systematic_resampling_keeps_expected_counts():
    log_w = torch.randn(3, 100).double()
    counts = torch.stack([i.bincount(minlength=100) for i in particles.systematic(log_w, 1000)])
    assert (counts - 1000 * log_w.softmax(-1)).abs().max() <= 1


def test_systematic_resampling_is_unbiased():
    log_w = torch.tensor([0.5, 0.3, 0.2]).double().log().expand(20_000, 3)
    counts = torch.stack([(particles.systematic(log_w) == i).sum(1) for i in range(3)], 1).double()
    error = counts.std(0) / len(counts) ** 0.5
    assert (counts.mean(0) - 3 * log_w[0].exp()).abs().le(4.5 * error).all()


def test_draws_are_equally_weighted():
    cloud = run_stages(moves=0, below=0.0)
    mean = cloud.mean(cloud.x).value
    assert_close(cloud.draw(20_000).mean(0).double(), mean, rtol=0, atol=0.05)


# ---- edges --------------------------------------------------------------------------------------


def test_the_dead_count_for_nothing_wherever_they_are():
    log_w = torch.tensor([[0.0, -torch.inf], [0.0, 0.0]]).double()
    values = torch.tensor([1.0, torch.nan, 2.0, 3.0])
    cloud = particles.Particles(None, log_w, torch.zeros(2).double())
    assert_close(float(cloud.mean(values).value), (0.5 * 1.0 + 1.0 * 2.5) / 1.5)


def test_the_error_of_the_evidence_has_a_degree_of_freedom_less_than_islands():
    evidences = torch.randn(4, 1).double()
    few = particles.Particles(None, evidences, torch.zeros(4).double())
    one = particles.Particles(None, evidences[:1], torch.zeros(1).double())
    assert few.evidence.degrees == 3 and one.evidence.degrees == torch.inf
    assert one.evidence.standard_error.isnan()
