"""Pilot runs: effective draws, and chains that never move."""

import warnings
from math import inf

import pytest
import torch

import pyro_flowsamp as pf
from pyro_flowsamp import Target, pilot

# ---- where chains start --------------------------------------------------------------------------


def test_chains_that_never_move_are_told_from_slow_ones():
    moving = torch.rand(256, 100) < 0.05
    assert pilot.never_accepted_fraction(moving) == 0.0  # one in 170 does not move, by chance
    caught = (torch.rand(256, 100) < 0.3).clone()
    caught[:3] = False
    assert pilot.never_accepted_fraction(caught) == 3 / 256
    assert pilot.never_accepted_fraction(torch.ones(4, 10, dtype=torch.bool)) == 0.0


# ---- effective draws -----------------------------------------------------------------------------


def test_independent_draws_count_once_each():
    assert pilot.ess_per_draw(torch.randn(200, 50, 3)) == pytest.approx(1, abs=0.1)


def test_chains_that_never_move_have_one_effective_draw_each():
    x = torch.randn(200, 1, 3).expand(-1, 40, -1) + 1e-6 * torch.randn(200, 40, 3)
    assert pilot.ess_per_draw(x) < 2 / 40


def test_modes_that_part_along_the_diagonal_only():
    """0.3 standard deviations off in each coordinate, 2.1 along the diagonal: nobody crosses."""
    sign = torch.randint(2, (200, 1, 1)).double() * 2 - 1
    x = torch.randn(200, 40, 50) + 0.3 * sign
    assert pilot.ess_per_draw(x) < 2 / 40 < pilot.ess_per_draw(x[..., :1]) / 2


def test_a_pilot_run_of_a_bad_flow_gives_no_warning():
    """It is not chosen; a user who runs such a kernel gets the warning."""
    target = Target.from_energy(lambda x: 50 * (x - 3).square().sum(-1), 8)
    guide = pf.AutoFlow(target)
    guide.target_for()
    guide.trained = True
    starts = 3 + 0.1 * torch.randn(256, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        candidate = pilot.run_pilot("IMH", pf.IMH(guide=guide), target, starts, 256, 100, inf)
    assert not candidate.reliable
    assert float(candidate.run.statistics["accepted"].double().mean()) < 0.01
