"""The funnel, the banana and the truncated normal have their known moments."""

from math import log

import pytest
import torch
from support.statistics import z_score

from pyro_flowsamp.problems import banana, funnel, truncated_normal

NUM = 20_000


@pytest.fixture(autouse=True)
def float64(clean_slate):
    torch.set_default_dtype(torch.float64)


# ---- values known elsewhere ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "dim, radius, probability",
    [
        (2, 3, 1.1109e-2),
        (2, 4, 3.35463e-4),
        (2, 6, 1.52300e-8),
        (5, 4, 6.84407e-3),
        (5, 6, 9.4981e-7),
        (10, 6, 8.4176e-5),
    ],
)
def test_rare_events(dim, radius, probability):
    assert truncated_normal(dim, radius).log_z == pytest.approx(log(probability), abs=1e-5)


@pytest.mark.parametrize("dim, radius", [(1, 0.5), (2, 6), (10, 6), (200, 15)])
def test_tail_of_the_normal(dim, radius):
    """Survival at the draws is uniform, also far in the tail."""
    r2 = truncated_normal(dim, radius).sample(NUM).square().sum(-1)
    half = torch.tensor(dim / 2)
    ratio = torch.special.gammaincc(half, r2 / 2) / torch.special.gammaincc(
        half, torch.tensor(radius**2 / 2)
    )
    assert (r2 > radius**2).all()
    assert abs(z_score(ratio, 0.5)) < 4
    assert abs(z_score(ratio.square(), 1 / 3)) < 4


def test_no_density_inside_the_ball():
    target = truncated_normal(2, 3.0).target
    log_p, grad = target.log_prob_and_grad(torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 0.1]]))
    assert log_p[:2].isneginf().all() and log_p[2].isfinite()
    torch.testing.assert_close(grad, torch.tensor([[0.0, 0.0], [0.0, 0.0], [-3.0, -0.1]]))


def test_funnel_moments():
    x = funnel().sample(NUM)
    assert abs(z_score(x[:, 0].square(), 0.81)) < 4
    assert (z_score(x[:, 1:].square(), 1.49930).abs() < 4).all()


def test_banana_is_bent():
    x = banana().sample(NUM)
    square, second = x[:, 0].square(), x[:, 1]
    assert abs(z_score(square, 100.0)) < 4
    assert abs(z_score(second, 0.0)) < 4
    assert torch.corrcoef(torch.stack([square, second]))[0, 1] > 0.9
