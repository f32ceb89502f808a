"""Checks of the chains: each flags what it is for, passes right draws, and fails when broken."""

import numpy as np
import pytest
import torch
from support.diagnosed import diagnosed, draws_of_modes, independent, scenario_tests, slow
from support.mutations import mutation

from pyro_flowsamp import DiagnosisOptions, convergence
from pyro_flowsamp.diagnostics import chains
from pyro_flowsamp.diagnostics.chains import (
    chain_checks,
    long_run_error,
    longest_runs,
    region_checks,
)

OPTIONS = DiagnosisOptions()


def checks_of(x, statistics=None, options=OPTIONS, **fields):
    return {c.name: c for c in chain_checks(diagnosed(x, statistics, **fields), options)}


def regions_of(x, options=OPTIONS):
    return {c.name: c for c in region_checks((x[..., 0] > 0).long(), options)}


# ---- scenarios: one thing is wrong ---------------------------------------------------------------


def not_a_number():
    x = independent()
    x[3, 5, 1] = torch.nan
    return checks_of(x)


def zero_density():
    lp = torch.zeros(40, 200)
    lp[0, 0] = -torch.inf
    return checks_of(independent(), {"lp": lp})


def no_density_of_the_flow():
    log_w = torch.zeros(40, 200)
    log_w[0, 0] = torch.inf
    return checks_of(independent(), {"log_weight": log_w})


def apart():
    return checks_of(independent(4, 1000) + 0.5 * torch.arange(4)[:, None, None])


def other_spread():
    """The means agree, and the spread of one chain is another."""
    return checks_of(independent(4, 1000) * torch.tensor([1.0, 1.0, 1.0, 2.5])[:, None, None])


def drifting():
    """Each chain alone drifts, and all of them equally."""
    return checks_of(independent(4, 1000) + torch.linspace(0, 1, 1000)[:, None])


def depends_on_the_start():
    groups = torch.arange(40) % 4
    return checks_of(independent() + 0.3 * groups[:, None, None], groups=groups)


def depends_on_where_it_began():
    """Each chain has a superchain of its own, and begins at a point of its own."""
    starts = torch.randn(40, 2).double()
    groups = torch.arange(40)
    return checks_of(independent() + 0.3 * starts[:, None], groups=groups, starts=starts)


def few_effective_draws():
    return checks_of(slow(0.995, 4, 1000))


def slow_tails():
    """Chains are wide for a hundred draws at a time: ranks of the bulk hardly show it."""
    torch.manual_seed(1)
    wide = (torch.rand(40, 2) < 0.3).repeat_interleave(100, 1)
    x = independent(40, 200, 1) * torch.where(wide, 4.0, 1.0)[..., None]
    return checks_of(x, options=DiagnosisOptions(min_ess=1000))


def short_chains():
    return checks_of(slow(0.9, 400, 20))


def never_moved():
    x = independent()
    x[7] = x[7, :1]
    return checks_of(x)


def long_at_one_point():
    """Eight of 40 chains, a third of their draws: 7 % of all, known to 2 %."""
    x = independent()
    x[::5, 50:120] = x[::5, 50:51]
    return checks_of(x)


def diverging():
    found = torch.zeros(40, 200, dtype=torch.bool)
    found[0, :20] = True
    return checks_of(independent(), {"diverging": found})


def never_cross():
    return regions_of(draws_of_modes(cross=False))


def seldom_cross():
    """Chains change the mode so seldom that the shares are not known."""
    torch.manual_seed(0)
    side = 1 - 2 * ((torch.rand(10, 400) < 0.03).cumsum(1) % 2)
    return regions_of(side[..., None].double())


SCENARIOS = {
    not_a_number: "draws not finite",
    zero_density: "log densities not finite",
    no_density_of_the_flow: "log weights not finite",
    apart: "rank R-hat",
    other_spread: "rank R-hat",
    drifting: "rank R-hat",
    depends_on_the_start: "nested R-hat",
    depends_on_where_it_began: "nested R-hat",
    few_effective_draws: "bulk ESS",
    slow_tails: "tail ESS",
    short_chains: "ESS per chain",
    never_moved: "chains that never moved",
    long_at_one_point: "error of long runs",
    diverging: "divergences",
    never_cross: "visits of regions",
    seldom_cross: "error of shares",
}


@pytest.mark.parametrize(
    "x",
    [independent(), independent(4, 1000), independent(400, 40), slow(0.8, 40, 400)],
    ids=["chains", "few chains", "short chains", "slow"],
)
def test_right_draws_pass(x):
    statistics = {"lp": -x.square().sum(-1), "diverging": torch.zeros(x.shape[:2])}
    found = checks_of(x, statistics, groups=torch.arange(len(x)) % 4 if len(x) > 4 else None)
    assert [c.name for c in found.values() if not c.ok] == [] and len(found) >= 8


def test_right_visits_pass():
    for shares in ((0.5, 0.5), (0.96, 0.04)):
        found = regions_of(draws_of_modes(shares))
        assert len(found) == 2 and all(c.ok for c in found.values())
    assert regions_of(draws_of_modes((1.0, 1e-9))) == {}  # one region


def test_too_few_draws():
    """Of three draws a chain only numbers that are not finite can be seen."""
    assert list(checks_of(independent(40, 3))) == ["draws not finite"]


# ---- broken checks -------------------------------------------------------------------------------


@mutation(chains, "_number_checks")
def one_number_is_forgotten(_number_checks, draws):
    return _number_checks(draws)[:1]


@mutation(convergence, "_r_hat_of_ranks")
def the_first_half_only(_r_hat_of_ranks, x):
    return _r_hat_of_ranks(x[: len(x) // 2])


@mutation(chains, "rank_r_hat")
def not_folded(rank_r_hat, x):
    half = x.shape[1] // 2
    return convergence._r_hat_of_ranks(torch.cat([x[:, :half], x[:, -half:]]).double())


@mutation(chains, "rank_r_hat")
def chains_shuffled(rank_r_hat, x):
    return rank_r_hat(x.flatten(0, 1)[torch.randperm(x[..., 0].numel())].reshape(x.shape))


@mutation(chains, "nested_r_hat")
def other_groups(nested_r_hat, x, groups):
    return nested_r_hat(x, groups.sort().values)


@mutation(chains, "bulk_and_tail_ess")
def the_bulk_twice(bulk_and_tail_ess, x):
    bulk, _ = bulk_and_tail_ess(x)
    return bulk, bulk


@mutation(chains, "bulk_and_tail_ess")
def the_tail_twice(bulk_and_tail_ess, x):
    return tuple(torch.full((x.shape[-1],), float(x[..., 0].numel())) for _ in range(2))


@mutation(chains, "never_accepted_fraction")
def by_draws_of_all_chains(never_accepted_fraction, moved):
    return never_accepted_fraction(moved.any(0, keepdim=True))


@mutation(chains, "long_run_error")
def the_first_chain_only(long_run_error, moved, least):
    return long_run_error(moved[:1].expand(40, -1), least)


@mutation(chains, "effective_sample_sizes")
def every_draw_counts(effective_sample_sizes, x):
    return torch.full(x.shape[:1], float(x[0].numel())).double()


@mutation(chains, "_divergences")
def no_divergences(_divergences, draws, options):
    return []


BROKEN = [
    (one_number_is_forgotten, zero_density),
    (one_number_is_forgotten, no_density_of_the_flow),
    (the_first_half_only, drifting),
    (not_folded, other_spread),
    (chains_shuffled, apart),
    (other_groups, depends_on_the_start),
    (other_groups, depends_on_where_it_began),
    (the_bulk_twice, slow_tails),
    (the_tail_twice, few_effective_draws),
    (the_tail_twice, short_chains),
    (by_draws_of_all_chains, never_moved),
    (the_first_chain_only, long_at_one_point),
    (every_draw_counts, never_cross),
    (every_draw_counts, seldom_cross),
    (no_divergences, diverging),
]


test_it_is_flagged, test_a_broken_check_does_not_flag_it = scenario_tests(SCENARIOS, BROKEN)


# ---- parts ---------------------------------------------------------------------------------------


def test_longest_runs():
    rng = np.random.default_rng(0)
    moved = rng.random((20, 50)) < 0.3
    for row, found in zip(moved, longest_runs(torch.as_tensor(moved))):
        text = "".join("1" if m else "0" for m in row)
        assert found == max(map(len, text.split("1")))


def test_one_long_run_is_no_alarm():
    x = independent()
    x[3, 50:120] = x[3, 50:51]
    found = checks_of(x)
    assert found["error of long runs"].ok and found["longest run without a move"].value == 69


def test_the_error_of_long_runs():
    """Chains of independent stays: the z-scores of the share have the variance one."""
    torch.manual_seed(0)
    scores, least = [], 20
    for _ in range(200):
        moved = torch.rand(200, 100) > 0.0
        stays = torch.rand(200) < 0.1  # a stay of 30 to 59 draws each
        length = torch.randint(29, 59, (200, 1))
        moved &= ~(stays[:, None] & (torch.arange(100) >= 20) & (torch.arange(100) < 20 + length))
        share, error = long_run_error(moved, least)
        scores.append((share - 0.1 * 44.5 / 101) / error)
    z = torch.tensor(scores)
    assert abs(float(z.mean())) < 4 / 200**0.5 + 0.1
    assert abs(float(z.square().mean()) - 1) < 4 * (2 / 200) ** 0.5


def test_runs_count_whole():
    moved = torch.tensor([[True, False, False, True], [True] * 4])
    assert long_run_error(moved, 1)[0] == pytest.approx(3 / 10)  # three equal draws of ten
    assert long_run_error(moved, 2)[0] == 0.0


def test_chains_that_stand_still_have_an_infinite_r_hat():
    found = checks_of(torch.arange(4.0).double()[:, None, None].expand(4, 100, 1))["rank R-hat"]
    assert found.message == "the chains disagree: the rank R-hat of x[0] is inf"


def test_the_bound_of_r_hat_is_that_of_the_effective_draws():
    """For four chains and 400 effective draws it is 1.01; for many it allows five draws each."""
    few, many = checks_of(independent(4, 1000)), checks_of(independent(400, 40))
    assert few["rank R-hat"].threshold == pytest.approx(1.01, abs=1e-4)
    assert many["rank R-hat"].threshold == pytest.approx(1.4**0.5)
