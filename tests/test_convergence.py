"""Effective sample sizes and R-hat: against known autocorrelations, and against ArviZ."""

import arviz
import numpy as np
import pytest
import torch
from support.mutations import broken, must_fail, mutation

from pyro_flowsamp import convergence


def autoregressive(chains, draws, rho):
    """Return chains of lag-one correlation rho, which start at stationarity."""
    noise = torch.randn(chains, draws, dtype=torch.double)
    x = [noise[:, 0]]
    for t in range(1, draws):
        x.append(rho * x[-1] + (1 - rho**2) ** 0.5 * noise[:, t])
    return torch.stack(x, 1)[..., None]


# ---- chains that never move ----------------------------------------------------------------------


def test_chains_that_never_move_are_told_from_slow_ones():
    moving = torch.rand(256, 100) < 0.05
    assert convergence.never_accepted_fraction(moving) == 0.0  # one in 170 by chance
    caught = (torch.rand(256, 100) < 0.3).clone()
    caught[:3] = False
    assert convergence.never_accepted_fraction(caught) == 3 / 256
    assert convergence.never_accepted_fraction(torch.ones(4, 10, dtype=torch.bool)) == 0.0


# ---- effective draws -----------------------------------------------------------------------------


def test_independent_draws_count_once_each():
    assert convergence.ess_per_draw(torch.randn(200, 50, 3)) == pytest.approx(1, abs=0.1)


def test_chains_that_never_move_have_one_effective_draw_each():
    x = torch.randn(200, 1, 3).expand(-1, 40, -1) + 1e-6 * torch.randn(200, 40, 3)
    assert convergence.ess_per_draw(x) < 2 / 40


def parted():
    """Return draws of modes .3 deviations apart in each coordinate, 2.1 along the diagonal."""
    sign = torch.randint(2, (200, 1, 1)).double() * 2 - 1
    return torch.randn(200, 40, 50) + 0.3 * sign


def test_modes_that_part_along_the_diagonal_only():
    """No chain crosses, which one coordinate does not show."""
    x = parted()
    assert convergence.ess_per_draw(x) < 2 / 40 < convergence.ess_per_draw(x[..., :1]) / 2


@mutation(convergence, "ess_per_draw")
def coordinates_only(ess_per_draw, x, num_directions=8):
    return min(ess_per_draw(x[..., i : i + 1], 1) for i in range(x.shape[-1]))


def test_principal_directions_are_needed():
    must_fail(coordinates_only, score=lambda: convergence.ess_per_draw(parted()), above=2 / 40)


def test_scales_that_no_chain_leaves():
    """Chains of different spread agree in their means: distances from the median do not."""
    scale = torch.where(torch.arange(200) % 2 == 0, 0.2, 1.0)
    x = scale[:, None, None] * torch.randn(200, 40, 1)
    assert convergence.ess_per_draw(x) < 0.1


def test_constant_and_infinite_coordinates():
    x = torch.randn(100, 30, 2)
    x[..., 1] = 3.0
    assert convergence.ess_per_draw(x) > 0.8
    assert convergence.ess_per_draw(torch.ones(100, 30, 1)) == 1 / 3000
    assert convergence.ess_per_draw(torch.full((100, 30, 1), torch.inf)) == 1 / 3000


# ---- bulk and tails ------------------------------------------------------------------------------


def ratio_to_truth(rho=0.6, chains=100, draws=200):
    """Return the bulk's effective size over that of the known autocorrelation."""
    bulk, _ = convergence.bulk_and_tail_ess(autoregressive(chains, draws, rho))
    return float(bulk) / (chains * draws * (1 - rho) / (1 + rho))


def test_the_bulk_of_autoregressive_chains():
    assert ratio_to_truth() == pytest.approx(1, abs=0.1)


def test_bulk_and_tails_are_those_of_arviz():
    x = autoregressive(8, 500, 0.5)
    x = torch.cat([x, x.exp(), x.abs() ** 3], -1)
    options = {"method": "bulk"}, {"method": "tail", "prob": (0.05, 0.95)}
    for each, found in zip(options, convergence.bulk_and_tail_ess(x)):
        truth = [float(arviz.ess(column.numpy(), **each)) for column in x.unbind(-1)]
        assert found.tolist() == pytest.approx(truth, rel=0.05)


@mutation(convergence, "effective_sample_sizes")
def every_draw_counts(effective_sample_sizes, x):
    return torch.full_like(effective_sample_sizes(x), float(x.shape[1] * x.shape[2]))


def test_the_comparison_sees_correlations():
    must_fail(every_draw_counts, score=ratio_to_truth, above=1.5)


def test_tails_that_only_some_chains_visit():
    """A tenth of the chains has three times the spread: the bulk mixes, the tails do not."""
    wide = torch.arange(100) % 10 == 0
    x = torch.where(wide, 3.0, 1.0)[:, None, None] * torch.randn(100, 50, 1)
    bulk, tail = convergence.bulk_and_tail_ess(x)
    assert float(bulk) > 4000 > 2500 > float(tail)


def test_coordinates_are_treated_alone(monkeypatch):
    """In blocks that fit into memory; a constant coordinate or tail does not spoil the others."""
    x = torch.cat([autoregressive(20, 50, 0.3) for _ in range(5)], -1)
    x[..., 2] = 1.0
    x[..., 3] = (x[..., 3] > -1).double()  # both quantiles are 0 or 1: no tail above
    torch.manual_seed(0)  # of the order of ties
    whole = convergence.bulk_and_tail_ess(x)
    monkeypatch.setattr(convergence, "MAX_NUMBERS", 1)
    for one, each in zip(whole, convergence.bulk_and_tail_ess(x)):
        one, each = one[[0, 1, 2, 4]], each[[0, 1, 2, 4]]
        torch.testing.assert_close(one, each, rtol=1e-6, atol=0, equal_nan=True)
        assert one.isnan().tolist() == [False, False, True, False]
        assert (one[~one.isnan()] > 300).all()


# ---- R-hat ---------------------------------------------------------------------------------------


def worst_r_hat(x):
    return float(convergence.rank_r_hat(x).max())


def test_rank_r_hat_is_that_of_arviz():
    x = torch.randn(4, 500, 3).double() * torch.tensor([1.0, 1.2, 1.0, 1.0])[:, None, None]
    x[..., 1] = x[..., 1].round()  # ties
    x[..., 2] = x[0, 0, 2]
    found = convergence.rank_r_hat(x)
    assert found[2].isnan()
    for i in range(2):  # the medians differ: ArviZ takes the mean of the two in the middle
        assert float(found[i]) == pytest.approx(float(arviz.rhat(x[..., i].numpy())), abs=1e-4)


def test_r_hat_of_columns_in_blocks(monkeypatch):
    x = torch.randn(10, 40, 5)
    whole = convergence.rank_r_hat(x)
    monkeypatch.setattr(convergence, "MAX_NUMBERS", 1)
    assert torch.equal(whole, convergence.rank_r_hat(x))


def test_r_hat_sees_chains_that_disagree():
    x = torch.randn(50, 100, 2)
    assert worst_r_hat(x) < 1.05
    x[:, :, 1] += 0.7 * torch.randn(50, 1)
    assert worst_r_hat(x) > 1.1


def test_r_hat_of_heavy_tails():
    """A few far draws do not decide it; the variances of their chains differ without bound."""
    x = torch.distributions.StudentT(1.0).sample((200, 50, 1))
    assert worst_r_hat(x) < 1.02


def test_r_hat_sees_chains_of_different_spread():
    x = torch.randn(50, 100, 1)
    x[:25] *= 3
    assert worst_r_hat(x) > 1.1


@mutation(convergence, "_r_hat_of_ranks")
def no_ranks(_r_hat_of_ranks, x):
    n, within = x.shape[1], x.var(1).mean(0)
    return ((n - 1) / n + x.mean(1).var(0) / within).sqrt()


def test_ranks_are_needed_in_heavy_tails():
    """A chain stays far out for a while, as it must in a heavy tail."""
    x = torch.randn(200, 200, 1)
    x[0, :40] = 1e6
    assert worst_r_hat(x) < 1.02
    with broken(no_ranks):
        assert worst_r_hat(x) > 1.05


def nested(num_groups=8, chains=64, draws=20, offset=0.0):
    """Return nested R-hat of groups whose means have a standard deviation of ``offset``."""
    groups = torch.arange(chains) % num_groups
    means = torch.linspace(-1, 1, num_groups).double()
    means = offset * means / means.std(correction=0)
    x = torch.randn(chains, draws, 1, dtype=torch.double) + means[groups][:, None, None]
    return convergence.nested_r_hat(x, groups)


def test_nested_r_hat_of_chains_that_agree():
    found = np.array([nested() for _ in range(200)])
    assert (found > 1.01).mean() < 0.01


@pytest.mark.parametrize("offset", [0.3, 1.0, 3.0])
def test_nested_r_hat_is_that_of_the_formula(offset):
    """Of ranks: with many draws, the variances between and within groups, of sizes 3 to 1."""
    groups = torch.arange(64) % 4 // 3
    x = torch.randn(64, 400, 1, dtype=torch.double) + offset * groups[:, None, None]
    order = x.flatten().argsort().argsort().double()
    z = torch.special.ndtri((order + 0.625) / (len(order) + 0.25)).view(64, 400)
    inside = [z[groups == g] for g in (0, 1)]
    within = sum(len(part) / 64 * part.var() for part in inside)
    between = z.var() - within
    truth = float((1 + between / within) ** 0.5)
    assert convergence.nested_r_hat(x, groups) == pytest.approx(truth, rel=0.01)


def test_nested_r_hat_sees_starts():
    """A difference of a quarter of a deviation between groups is seen with 1000 draws."""
    assert nested(offset=0.25) > 1.01


@mutation(convergence, "group_by_start")
def at_random(group_by_start, starts, groups):
    return torch.randint(groups, (len(starts),))


def from_their_starts():
    """Return nested R-hat of slow chains that remember where they started."""
    starts = torch.randn(128, 2)
    x = starts[:, None] + 0.5 * torch.randn(128, 20, 2)
    return convergence.nested_r_hat(x, convergence.group_by_start(starts, 8))


def test_groups_by_start():
    assert from_their_starts() > 1.1
    must_fail(at_random, score=lambda: 1.1 - from_their_starts(), above=0.0)


@mutation(convergence, "group_by_start")
def by_standardised(group_by_start, starts, groups):
    x = (starts - starts.mean(0)) / starts.std(0)
    return torch.cdist(x, convergence.far_apart(x, groups)).argmin(-1)


def from_heavy_tailed_starts():
    """Return nested R-hat of slow chains that started at draws of a Cauchy distribution."""
    starts = torch.empty(256, 1).cauchy_().double()
    x = 0.5 * torch.atan(starts)[:, None] + torch.randn(256, 20, 1)
    return convergence.nested_r_hat(x, convergence.group_by_start(starts, 8))


def test_groups_of_heavy_tailed_starts_are_no_single_points():
    """Else all chains but a few are one group, which has no other to differ from."""
    assert from_heavy_tailed_starts() > 1.06
    must_fail(by_standardised, score=lambda: 1.06 - from_heavy_tailed_starts(), above=0.0)


def test_groups_do_not_depend_on_scales():
    starts = torch.randn(100, 3).double()
    found = convergence.group_by_start(starts, 8)
    scaled = convergence.group_by_start(1e9 * starts * starts.new_tensor([1.0, 1e-12, 30.0]), 8)
    assert found.equal(scaled) and len(found.unique()) == 8
    many = convergence.group_by_start(starts.exp() ** 3, 8)
    assert many.equal(found)  # nor on what keeps the order


def test_fewer_starts_than_groups():
    groups = convergence.group_by_start(torch.zeros(10, 2), 4)
    assert groups.unique().tolist() == [0]
    assert convergence.nested_r_hat(torch.randn(10, 30, 1), groups) == 1.0
