"""Losses of annealing blocks: the trained block is the known optimal map."""

import pytest
import torch
from support.annealing import normal_target

from pyro_flowsamp import AutoAnnealingFlow, FitOptions


def _block(a, b, **options):
    """Slope and residual of the trained displacement, against x."""
    guide = AutoAnnealingFlow(
        normal_target(b),
        reference=a**0.5,
        schedule=[0, 1],
        num_particles=8192,
        options=FitOptions(300, 1024, 2e-3, cosine_schedule=True, stop_at_ess=1.0, progress=False),
        **options,
    )
    guide.fit()
    x = a**0.5 * torch.randn(4000, 2)
    moved = (guide.flow.blocks[0](None).push(x)[0] - x).detach()
    slope = float((x * moved).sum() / x.square().sum())
    return slope, float((moved - slope * x).norm() / x.norm())


@pytest.mark.slow
def test_an_infinitesimal_block_is_the_difference_of_scores():
    """Theorem 3.3: as h → 0, v = ∇log f_k − ∇log f_{k−1} = x (1/a − 1/b)."""
    a, b, h = 2.0, 1.0, 0.02
    slope, residual = _block(a, b, objective="linear", transport_cost=1 / (2 * h))
    assert slope / h == pytest.approx(1 / a - 1 / b, rel=0.08)
    assert residual < 0.1 * abs(slope)


@pytest.mark.slow
def test_a_block_of_finite_time_is_the_optimal_map():
    """s a/b − 1/s + (s − 1) a/h = 0 for x → s x, with γ = 1/(2h)."""
    slope, residual = _block(2.0, 1.0, objective="kl", transport_cost=0.5)
    assert 1 + slope == pytest.approx((1 + 5**0.5) / 4, rel=0.02)
    assert residual < 0.05


@pytest.mark.slow
def test_the_default_block_is_the_whole_map():
    slope, _ = _block(2.0, 1.0)
    assert 1 + slope == pytest.approx(0.5**0.5, rel=0.02)
