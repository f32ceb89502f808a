"""The verdict of sample(): a diagnosis with what the search knows, and broken verdicts."""

import math

import pytest
import torch
from support.diagnosed import found_modes, two_modes
from support.mutations import broken, mutation

from pyro_flowsamp import (
    IMH,
    DiagnosisOptions,
    LatentHMC,
    SearchOptions,
    Target,
    VectorizedMCMC,
)
from pyro_flowsamp.diagnostics import agreement, chains, diagnosis, missed_modes, searches
from pyro_flowsamp.sampling import verdict
from pyro_flowsamp.sampling.candidates import gaussian_guide, mixture_guide
from pyro_flowsamp.sampling.pilot import Candidate, Goal, StepWork
from pyro_flowsamp.trust import draws_of_flow
from pyro_flowsamp.weights import Estimate

CHAINS, DRAWS = 100, 40
GOAL = Goal(None, DRAWS, CHAINS)


def candidate(run, goal=GOAL, **fields):
    known = dict(length=100, ess_per_draw=0.9, work=StepWork(1.0, 1.0, CHAINS))
    known |= dict(never_accepted_fraction=0.0, goal=goal) | fields
    return Candidate("IMH (mixture)", run, **known)


def run_of(kernel, draws=DRAWS):
    torch.manual_seed(0)
    run = VectorizedMCMC(kernel, draws, 10, CHAINS, disable_progbar=True)
    run.min_acceptance = 0.0
    run.run()
    return run


def right():
    """A sampler that jumps between both modes, and what has been found."""
    target, modes = two_modes()
    mixture = modes.mixture._replace(scale_trils=1.1 * torch.eye(2).double().expand(2, 2, 2))
    guide = mixture_guide(target, torch.zeros(2).double(), torch.eye(2).double(), mixture)
    return run_of(IMH(guide=guide)), modes


def in_one_mode(kernel=IMH):
    """A sampler that has lost one of two modes."""
    target, modes = two_modes()
    guide = gaussian_guide(target, torch.tensor([10.0, 0.0]), 1.1 * torch.eye(2))
    return run_of(kernel(guide=guide)), modes


def verdict_of(run, modes, reported=(), overlap=True, **fields):
    """The verdict; without an overlap few draws of the flow have all of their weight."""
    made = draws_of_flow(run.kernel.guide.proposal(), run.target, 1000)
    if not overlap:
        made.log_p[3:] -= 60.0
    return verdict.judged(candidate(run, **fields), modes, made, reported)


def names(found):
    return {check.name for check in found.failed}


# ---- right runs ----------------------------------------------------------------------------------


def test_a_right_run_is_reliable():
    found = verdict_of(*right())
    assert found.reliable, found.problems
    assert found.notes == () and len(found.checks) > 20


def test_few_draws_are_what_was_asked_for():
    """Twelve draws of each chain are few, and not wrong."""
    run, modes = right()
    run.resume(12)
    found = verdict_of(run, modes, goal=Goal(None, 12, CHAINS))
    assert found.reliable and found["bulk ESS"].threshold == 300
    assert found["ESS per chain"].threshold == 3


def test_thresholds_suit_the_goal():
    run, _ = right()
    of_ess = verdict.thresholds(candidate(run, Goal(4000, None, None)))
    assert of_ess.max_nested_r_hat == math.inf and of_ess.min_ess == DiagnosisOptions.min_ess
    assert verdict.thresholds(candidate(run, Goal(100, None, None))).min_ess == 100
    options = SearchOptions(max_diverging=0.5, min_share=0.1, max_stay=3.0, min_ess_per_draw=0.1)
    of_draws = verdict.thresholds(candidate(run, Goal(None, DRAWS, CHAINS, options)))
    assert (of_draws.max_diverging, of_draws.min_share, of_draws.max_stay) == (0.5, 0.1, 3.0)
    assert of_draws.min_ess == 400 and of_draws.min_ess_per_chain == 4
    assert of_draws.max_nested_r_hat == DiagnosisOptions.max_nested_r_hat and not of_draws.moves


def test_points_of_paths_are_not_particles():
    """In many dimensions there are no particles, and nothing is compared with the points."""
    run, modes = right()
    nan = torch.full((2,), math.nan).double()
    none = modes.agreement._replace(unseen=math.nan, log_evidence=nan, error=nan)
    found = verdict_of(run, modes._replace(agreement=none, x=modes.x + 500))
    assert found.reliable and "mass not visited" not in found
    assert any("too many dimensions" in text for text in found.unchecked)


def test_advice():
    """Each kind of problem has its remedy, once; problems of no known kind have general advice."""
    text = verdict.advice(["the chains disagree", "max_seconds are over", "the chains disagree"])
    assert text.startswith("the draws may be wrong: the chains disagree; max_seconds are over; ")
    assert text.count("Draw more") == 1 and text.count("Give more seconds") == 1
    assert "report(data" in text and "run again with another seed" not in text
    assert "run again with another seed" in verdict.advice(["something new"])


# ---- wrong runs, and broken verdicts -------------------------------------------------------------


def a_lost_mode():
    return names(verdict_of(*in_one_mode()))


def a_lost_mode_by_local_moves():
    return names(verdict_of(*in_one_mode(LatentHMC)))


def a_lost_part_of_a_mode():
    """Components of one mode are regions too where both searches have particles in them."""
    run, modes = in_one_mode()
    joined = modes.agreement._replace(modes=torch.zeros(2, dtype=torch.long))
    return names(verdict_of(run, modes._replace(agreement=joined, x=modes.x.abs())))


def a_sampler_that_does_not_mix():
    return names(verdict_of(*right(), distrust="the weights of states have a Pareto k of 2"))


def what_was_seen_before():
    return names(verdict_of(*right(), reported=["3 of 100 chains have never moved"]))


def a_mode_of_one_search():
    run, modes = right()
    return names(verdict_of(run, modes._replace(agreement=modes.agreement._replace(unseen=0.02))))


def particles_that_are_not_covered():
    run, modes = right()
    return names(verdict_of(run, modes._replace(covered=False)))


def unknown(modes, **fields):
    error = torch.tensor([0.1, 3.0]).double()
    return modes._replace(agreement=modes.agreement._replace(error=error, **fields), settled=False)


def an_unknown_evidence_of_two_modes():
    run, modes = right()
    run.statistics.pop("log_weight")  # there is no bridge
    return names(verdict_of(run, unknown(modes)))


def unimodal(kernel=LatentHMC):
    """A run on a Gaussian, and two searches in its one mode, one of an unknown evidence."""
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    modes = found_modes((1.0, 1e-9))
    modes = modes._replace(x=modes.x + torch.tensor([10.0, 0.0]))
    mixture = modes.mixture._replace(locs=modes.mixture.locs + torch.tensor([10.0, 0.0]))
    guide = gaussian_guide(target, torch.zeros(2), 1.1 * torch.eye(2))
    return run_of(kernel(guide=guide)), unknown(modes._replace(mixture=mixture))


def test_an_unknown_evidence_of_one_mode_is_a_note():
    found = verdict_of(*unimodal(), overlap=False)
    assert found.reliable, found.problems
    assert "the log evidence is uncertain" in found.notes[0]


def an_unknown_evidence_of_particles_elsewhere():
    """The searches have found one mode, and the second has only a half of it."""
    run, modes = unimodal()
    x = torch.where(modes.second[:, None], modes.x.abs(), modes.x)
    return names(verdict_of(run, modes._replace(x=x), overlap=False))


def an_unknown_evidence_of_chains_that_disagree():
    """The searches have found one mode, and chains stay where they have started."""
    run, modes = unimodal()
    run.unconstrained.add_(2.0 * torch.randn(CHAINS, 1, 1))
    run.get_samples = lambda group_by_chain: {"x": run.unconstrained}
    return names(verdict_of(run, modes, overlap=False))


def chains_that_disagree():
    run, modes = right()
    run.unconstrained[:, :, 1] += 0.7 * torch.randn(CHAINS, 1)
    run.get_samples = lambda group_by_chain: {"x": run.unconstrained}
    return names(verdict_of(run, modes))


def diverging_trajectories():
    run, modes = right()
    run.statistics["diverging"][0] = True
    return names(verdict_of(run, modes))


def modes_without_jumps():
    """Chains of a local sampler, half of them in each mode."""
    run, modes = in_one_mode(LatentHMC)
    side = 20.0 * (torch.arange(CHAINS) % 2)[:, None]
    run.unconstrained[..., 0] -= side
    run.get_samples = lambda group_by_chain: {"x": run.unconstrained}
    return names(verdict_of(run, modes))


def heavy_states():
    """One of a hundred chains is where it would stay for much longer than it is."""
    run, modes = right()
    run.statistics["log_weight"][0] = 9.0
    return names(verdict_of(run, modes))


SCENARIOS = {
    a_lost_mode: {"mass not visited", "particles far from draws", "evidences"},
    a_lost_mode_by_local_moves: {"mass not visited", "particles far from draws"},
    a_lost_part_of_a_mode: {"mass not visited"},
    a_sampler_that_does_not_mix: {"reported"},
    what_was_seen_before: {"reported"},
    a_mode_of_one_search: {"unseen mass"},
    particles_that_are_not_covered: {"particles outside of their start"},
    an_unknown_evidence_of_two_modes: {"error of an evidence"},
    an_unknown_evidence_of_particles_elsewhere: {"error of an evidence"},
    an_unknown_evidence_of_chains_that_disagree: {"rank R-hat", "error of an evidence"},
    chains_that_disagree: {"rank R-hat"},
    diverging_trajectories: {"divergences"},
    modes_without_jumps: {"visits of regions", "rank R-hat"},
    heavy_states: {"mass of long stays"},
}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_it_is_flagged(scenario):
    assert scenario() >= SCENARIOS[scenario]


@mutation(verdict, "diagnose")
def without_the_modes(diagnose, run, modes, **options):
    return diagnose(run, modes=None, search=False, **options)


@mutation(verdict, "diagnose")
def without_what_was_reported(diagnose, run, reported, **options):
    return diagnose(run, **options)


@mutation(Candidate, "reliable")
def every_sampler_mixes(reliable, self):
    return True


@mutation(missed_modes, "share_far_away")
def nothing_is_far(share_far_away, *args):
    return 0.0


@mutation(missed_modes, "_lost")
def no_region_is_lost(_lost, *args):
    return 0, 0.0


@mutation(diagnosis, "particle_checks")
def no_components(particle_checks, x, modes, options, settled, decides):
    return particle_checks(x, modes, options, settled, False)


@mutation(diagnosis, "search_checks")
def of_a_search_that_does_not_decide(search_checks, modes, options, given):
    return search_checks(modes, options, False)


@mutation(diagnosis, "one_mode")
def always_one_mode(one_mode, modes):
    return True


@mutation(diagnosis, "compare_evidences")
def never_needed(compare_evidences, agreement, own, distance, options):
    return compare_evidences(agreement, own, lambda: 0.0, options)


@mutation(diagnosis, "distance_of_searches")
def particles_are_not_compared(distance_of_searches, *args):
    return 0.0


@mutation(searches, "bridge_evidence")
def evidences_of_bridges_are_exact(bridge_evidence, states, log_w, options):
    return Estimate(torch.tensor(9.0).double(), torch.tensor(0.0).double())


@mutation(diagnosis, "evidence_checks")
def evidences_are_not_compared(evidence_checks, *args):
    return []


@mutation(chains, "rank_r_hat")
def of_the_first_column(rank_r_hat, x):
    return rank_r_hat(x[..., :1])


@mutation(chains, "_divergences")
def divergences_are_not_counted(_divergences, draws, options):
    return []


@mutation(diagnosis, "region_checks")
def visits_are_not_counted(region_checks, regions, options):
    return []


@mutation(agreement, "_stay_checks")
def stays_of_a_thinned_chain(_stay_checks, draws, *args):
    return _stay_checks(draws._replace(thin=10_000), *args)


@mutation(verdict, "thresholds")
def thresholds_without_bounds(thresholds, best):
    return DiagnosisOptions(max_unseen=1.0, max_diverging=1.0, moves=False)


#: a mutation, a scenario, and the check that does not fail under it
BROKEN = [
    (without_the_modes, a_lost_mode, "mass not visited"),
    (without_the_modes, a_lost_mode_by_local_moves, "particles far from draws"),
    (without_the_modes, a_mode_of_one_search, "unseen mass"),
    (without_what_was_reported, a_sampler_that_does_not_mix, "reported"),
    (without_what_was_reported, what_was_seen_before, "reported"),
    (every_sampler_mixes, a_sampler_that_does_not_mix, "reported"),
    (nothing_is_far, a_lost_mode, "particles far from draws"),
    (no_region_is_lost, a_lost_mode, "mass not visited"),
    (no_components, a_lost_part_of_a_mode, "mass not visited"),
    (of_a_search_that_does_not_decide, a_mode_of_one_search, "unseen mass"),
    (
        of_a_search_that_does_not_decide,
        particles_that_are_not_covered,
        "particles outside of their start",
    ),
    (always_one_mode, an_unknown_evidence_of_two_modes, "error of an evidence"),
    (never_needed, an_unknown_evidence_of_chains_that_disagree, "error of an evidence"),
    (
        particles_are_not_compared,
        an_unknown_evidence_of_particles_elsewhere,
        "error of an evidence",
    ),
    (
        evidences_of_bridges_are_exact,
        an_unknown_evidence_of_particles_elsewhere,
        "error of an evidence",
    ),
    (evidences_are_not_compared, a_lost_mode, "evidences"),
    (of_the_first_column, chains_that_disagree, "rank R-hat"),
    (divergences_are_not_counted, diverging_trajectories, "divergences"),
    (visits_are_not_counted, modes_without_jumps, "visits of regions"),
    (stays_of_a_thinned_chain, heavy_states, "mass of long stays"),
    (thresholds_without_bounds, a_mode_of_one_search, "unseen mass"),
    (thresholds_without_bounds, diverging_trajectories, "divergences"),
]


@pytest.mark.parametrize("wrong, scenario, name", BROKEN)
def test_a_broken_verdict_does_not_flag_it(wrong, scenario, name):
    with broken(wrong):
        assert name not in scenario()
