"""Pilot runs: work per effective draw, and what makes a kernel reliable."""

import warnings
from math import ceil, inf

import pytest
import torch
from support.mutations import broken, mutation

import pyro_flowsamp as pf
from pyro_flowsamp import SearchOptions, Target
from pyro_flowsamp.sampling import pilot
from pyro_flowsamp.sampling.candidates import gaussian_guide
from pyro_flowsamp.sampling.pilot import Candidate, Goal, StepWork, run_pilot

OPTIONS = SearchOptions()
GOAL = Goal(ess=4000, num_samples=None, num_chains=None)


def standard(dim=2):
    return Target.from_energy(lambda x: 0.5 * x.square().sum(-1), dim)


def jumping(target, loc=0.0, scale=1.0):
    """Return an independence sampler with a Gaussian."""
    eye = torch.eye(target.dim)
    return pf.IMH(guide=gaussian_guide(target, loc + 0 * eye[0], scale * eye))


def candidate(kernel, **changes):
    """Return a candidate of good numbers, but for some."""
    run = pf.VectorizedMCMC(kernel, 1)
    work = StepWork(operations=100.0, elements=1e4, chains=64)
    good = Candidate("name", run, 100, 0.9, work, 0.0, GOAL)
    return good._replace(**changes)


# ---- runs ----------------------------------------------------------------------------------------


def test_a_pilot_run_of_a_bad_flow_gives_no_warning():
    """It is not chosen; a user who runs such a kernel gets the warning."""
    target = Target.from_energy(lambda x: 50 * (x - 3).square().sum(-1), 8)
    starts = 3 + 0.1 * torch.randn(256, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run_pilot("IMH", jumping(target), target, starts, GOAL, inf)
    assert not found.reliable and found.work_to_finish == inf
    assert float(found.run.statistics["accepted"].double().mean()) < 0.01


def steps(work, options=OPTIONS):
    """Return the number of steps of a pilot run of jumps by the right Gaussian."""
    target = standard(4)
    starts = torch.randn(64, 4)
    return run_pilot(
        "IMH", jumping(target), target, starts, GOAL._replace(options=options), work
    ).length


def test_a_pilot_run_is_doubled_until_it_is_known():
    many = SearchOptions(min_ess_per_chain=1000.0)
    assert steps(inf) == OPTIONS.pilot_steps
    assert steps(inf, options=many) == OPTIONS.max_pilot_steps
    assert steps(1.0, options=many) == many.pilot_steps  # it costs more than another
    few = SearchOptions(min_ess_per_chain=1000.0, max_pilot_evaluations=100)
    assert steps(inf, options=few) == few.pilot_steps


def test_work_is_counted_and_not_timed(monkeypatch):
    """The same run has the same work, whatever the clock says."""
    found = []
    for clock in (lambda: 0.0, iter(range(10**6, 0, -1)).__next__):
        monkeypatch.setattr("time.perf_counter", clock)
        monkeypatch.setattr("pyro_flowsamp.chains.vectorized.perf_counter", clock)
        torch.manual_seed(0)
        target = standard()
        found.append(run_pilot("IMH", jumping(target), target, torch.randn(64, 2), GOAL, inf))
    assert found[0].work == found[1].work and found[0].at_least == found[1].at_least


def test_work_grows_with_the_kernel():
    """A trajectory of many steps takes more work than a jump, and a chain more its share."""
    target, starts = standard(), torch.randn(64, 2)
    jump = run_pilot("IMH", jumping(target), target, starts, GOAL, inf)
    guide = jumping(target).guide
    moves = run_pilot("HMC", pf.LatentHMC(guide=guide, num_steps=8), target, starts, GOAL, inf)
    assert moves.work.of(64) > 4 * jump.work.of(64) > 0


def test_work_of_a_step_is_linear_in_chains():
    work = StepWork(operations=100.0, elements=6400.0, chains=64)
    assert work.of(64) - work.of(0) == pytest.approx(6400)
    assert work.of(128) - work.of(64) == pytest.approx(6400)
    assert work.of(0) == pytest.approx(work.of(work.balanced_chains) / 2)


# ---- the goal ------------------------------------------------------------------------------------


def test_the_number_of_chains():
    costly = StepWork(operations=1.0, elements=1e9, chains=64)
    light = StepWork(operations=1e9, elements=1.0, chains=64)
    options = SearchOptions()
    assert GOAL.chains(costly) == options.min_chains
    assert GOAL.chains(light) == 4000 / options.times_per_chain == 200
    assert Goal(10**6, None, None).chains(light) == options.max_chains
    assert Goal(None, 5, 300).chains(light) == 300


def test_the_number_of_steps():
    assert GOAL.steps(200, 1.0) == 20
    assert GOAL.steps(200, 0.1) == pytest.approx(200)
    assert GOAL.steps(1000, 1.0) == 20  # of each chain, at least
    draws = Goal(None, 50, 400)
    assert draws.steps(400, 1.0) == 50
    assert draws.steps(400, 0.1) == pytest.approx(250)  # thinned to half an effective draw each


# ---- what is reliable ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kernel, changes, words",
    [
        (pf.IMH, {}, ""),
        (pf.IMH, {"ess_per_draw": 0.15}, "jumps have only"),
        (pf.IMH, {"never_accepted_fraction": 1 / 256}, "never jumped"),
        (pf.IMH, {"distrust": "the tails"}, "the tails"),
        (pf.IMH, {"length": 5}, "effective draws of a chain"),
        (pf.LocalGlobalHMC, {}, ""),
        (pf.LocalGlobalHMC, {"ess_per_draw": 0.15}, ""),
        (pf.LocalGlobalHMC, {"ess_per_draw": 0.01}, "effective draws of a chain"),
        (pf.LocalGlobalHMC, {"never_accepted_fraction": 1 / 256}, ""),
        (pf.LocalGlobalHMC, {"never_accepted_fraction": 0.02}, "never moved"),
    ],
)
def test_problems(kernel, changes, words):
    found = candidate(kernel(standard()), **changes)
    assert words in found.problem and bool(words) == bool(found.problem)
    assert found.reliable == (not words)
    assert found.work_to_finish == (inf if words else found.at_least)


def test_the_best_of_several():
    """Reliable before others, less work first; of unreliable ones those with local moves."""
    jump, local = pf.IMH(standard()), pf.LocalGlobalHMC(standard())
    good, dear = candidate(jump), candidate(local, ess_per_draw=0.5)
    bad_jump = candidate(jump, ess_per_draw=0.04)
    bad, worse = candidate(local, ess_per_draw=0.03), candidate(local, ess_per_draw=0.01)
    order = [good, dear, bad, worse, bad_jump]
    assert sorted(reversed(order), key=lambda found: found.sort_key) == order


def test_thinning():
    local = pf.LocalGlobalHMC(standard())
    for ess in (0.9, 0.3, 0.1, 0.001):
        thin = candidate(local, ess_per_draw=ess).thin
        assert thin == min(SearchOptions().max_thin, ceil(0.5 / ess))


# ---- where it matters ----------------------------------------------------------------------------


@mutation(pilot, "never_accepted_fraction")
def not_looked_at(never_accepted_fraction, accepted):
    return 0.0


def in_a_heavy_tail():
    """Return a pilot run of Gaussian jumps, of which some chains start far out in a tail."""
    target = Target.from_energy(lambda x: 4 * (1 + x.square().sum(-1) / 7).log(), 1)
    starts = torch.distributions.StudentT(7.0).sample((256, 1))
    starts[:20] = 40.0
    return run_pilot("IMH", jumping(target), target, starts, GOAL, inf)


def test_tails_that_a_flow_lacks_give_it_away():
    found = in_a_heavy_tail()
    assert found.never_accepted_fraction > 0 and not found.reliable
    with broken(not_looked_at):
        assert in_a_heavy_tail().never_accepted_fraction == 0
