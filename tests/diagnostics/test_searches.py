"""Two searches beside each other: what is flagged, what is a note, and broken checks."""

import math

import pytest
import torch
from support.diagnosed import by_name, found_modes, independent, scenario_tests, two_modes
from support.mutations import mutation

from pyro_flowsamp import DiagnosisOptions, LatentHMC, Target, VectorizedMCMC
from pyro_flowsamp.diagnostics import searches
from pyro_flowsamp.diagnostics.searches import evidence_of_draws, one_mode
from pyro_flowsamp.sampling.candidates import gaussian_guide
from pyro_flowsamp.smc.directions import DirectionGap
from pyro_flowsamp.smc.path_modes import PathModes
from pyro_flowsamp.weights import Estimate

OPTIONS = DiagnosisOptions()


def agreement_of(values, errors):
    pair = [torch.tensor(v).double() for v in (values, errors)]
    return found_modes().agreement._replace(log_evidence=pair[0], error=pair[1])


def compared(values, errors, distance=math.inf, own=None):
    agreement = agreement_of(values, errors)
    found, note = searches.compare_evidences(agreement, own, lambda: distance, OPTIONS)
    return by_name(found), note


def lost_half(**fields):
    """A Gaussian of which one search has the upper half only, and a smaller evidence."""
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    x = independent(1, 2000)[0]
    modes = found_modes((1.0, 1e-9), log_evidence=torch.tensor([0.0, -2.0]).double(), **fields)
    upper = torch.cat([x[:, :1].abs(), x[:, 1:]], -1)
    return target, modes._replace(x=torch.where(modes.second[:, None], upper, x))


def distance_of(target, modes):
    return searches.distance_of_searches(independent(1, 4000)[0], modes, target, OPTIONS)


def lost_mode(mass=0.3):
    """A mode at (10, 0) that paths have found, with this share of the mass of ``found_modes``."""
    log_mass = torch.tensor([1.8 + math.log(mass)]).double()
    loc = torch.tensor([[10.0, 0.0]]).double()
    return PathModes(loc, torch.eye(2).double()[None], log_mass, loc[None], torch.ones(1))


# ---- scenarios: one thing is wrong ---------------------------------------------------------------


def found_by_one_search():
    return by_name(searches.search_checks(found_modes(unseen=0.02), OPTIONS))


def found_by_paths_alone():
    return by_name(searches.search_checks(found_modes(missed=0.05), OPTIONS))


def outside_of_the_start():
    return by_name(searches.search_checks(found_modes(covered=False), OPTIONS))


def a_path_mode_without_draws():
    x = independent().flatten(0, 1) - torch.tensor([10.0, 0.0])
    modes = found_modes(alone=lost_mode())
    return by_name(searches.path_mode_check(x, 1000.0, modes, two_modes()[0], OPTIONS))


def a_path_mode_with_few_draws():
    x = independent().flatten(0, 1) - torch.tensor([10.0, 0.0])
    x[: len(x) // 50] += torch.tensor([20.0, 0.0])
    modes = found_modes(alone=lost_mode())
    return by_name(searches.path_mode_check(x, 1000.0, modes, two_modes()[0], OPTIONS))


def evidences_that_differ():
    return compared((0.0, -0.7), (0.05, 0.05))[0]


def an_unknown_evidence_of_several_modes():
    return compared((0.0, 1.0), (0.1, 3.0))[0]


GAP = DirectionGap("coordinate 2", 0.4, 9.0, 4.3, (0.3, 0.7))


def along_directions(gap=GAP, own=None, distance=math.inf):
    agreement = found_modes().agreement._replace(direction=gap)
    return by_name(searches.direction_check(agreement, own, lambda: distance, OPTIONS))


def searches_that_differ_along_a_direction():
    return along_directions()


def stranded(share=0.03, centre=-10.0, spread=1.0):
    """Draws in one of two modes; a share of the particles is somewhere else."""
    target = Target.from_energy(lambda x: 0.5 * (x.abs() - 10).square().sum(-1), 1)
    torch.manual_seed(0)
    guide = gaussian_guide(target, torch.tensor([10.0]), torch.eye(1))
    run = VectorizedMCMC(LatentHMC(guide=guide), 50, 20, 40, disable_progbar=True)
    run.run()
    modes, count = found_modes(), 1000
    x = 10 + torch.randn(count, 1)
    lost = int(share * count)
    x[:lost] = centre + spread * torch.randn(lost, 1)
    modes = modes._replace(x=x, weights=torch.full((count,), 1 / count).double())
    found = searches.stranded_check(run.unconstrained, modes, run.kernel, target, OPTIONS)
    return by_name([found])


def mass_that_one_search_has_lost():
    target, modes = lost_half()
    found, _ = searches.compare_evidences(
        modes.agreement, None, lambda: distance_of(target, modes), OPTIONS
    )
    return by_name(found)


SCENARIOS = {
    found_by_one_search: "unseen mass",
    found_by_paths_alone: "mass that particles have lost",
    outside_of_the_start: "particles outside of their start",
    a_path_mode_without_draws: "mass of path modes not visited",
    a_path_mode_with_few_draws: "mass of path modes not visited",
    evidences_that_differ: "evidences of two searches",
    an_unknown_evidence_of_several_modes: "error of an evidence",
    mass_that_one_search_has_lost: "evidences of two searches",
    searches_that_differ_along_a_direction: "two searches along directions",
    stranded: "particles in regions without draws",
}


# ---- what is no alarm ----------------------------------------------------------------------------


def test_a_direction_is_no_alarm_where_the_draws_do_not_depend_on_the_searches():
    known = Estimate(torch.tensor(0.0), torch.tensor(0.01))
    within = GAP._replace(errors=3.0)
    for options in ({"own": known}, {"distance": 0.1}, {"gap": within}):
        assert all(check.ok for check in along_directions(**options).values())
    assert along_directions(gap=None) == {}
    text = along_directions()["two searches along directions"].message
    assert "along coordinate 2: below one value they have 30% and 70%" in text


def test_particles_that_come_back_are_no_alarm():
    (check,) = stranded(centre=15.0).values()  # in the tail
    assert check.ok and check.value == 0
    (check,) = stranded(share=0.0).values()
    assert check.ok


def test_copies_of_a_particle_count_once():
    (check,) = stranded(spread=0.0).values()
    assert check.ok and check.value == pytest.approx(0.001)
    assert not any(check.ok for check in stranded(share=0.01).values())


def counts(particles, draws, kernel=None):
    """The check where the kernel does not move anything: whatever is far is stranded."""
    weights = torch.full((len(particles),), 1 / len(particles)).double()
    modes = found_modes()._replace(x=particles, weights=weights)
    target = Target.from_energy(lambda x: x.square().sum(-1), particles.shape[1])
    return searches.stranded_check(draws, modes, kernel, target, OPTIONS)


def test_right_particles_of_a_heavy_tail_are_no_alarm(monkeypatch):
    """Of 60 pairs of right draws and particles none or one has an alarm; far ones there are."""
    monkeypatch.setattr(searches, "ends_of_steps", lambda kernel, target, x, steps: (x, x))
    alarms, levels = 0, []
    for seed in range(60):
        torch.manual_seed(seed)
        cauchy = torch.distributions.Cauchy(0.0, 1.0)
        draws, particles = cauchy.sample((20, 80, 1)), cauchy.sample((400, 1))
        check = counts(particles, draws)
        alarms += not check.ok
        levels.append(check.value)
        if seed < 10:  # 2 % of the particles in a mode that no draw is in
            particles[:8] = 1e6 + cauchy.sample((8, 1))
            assert not counts(particles, draws).ok
    assert alarms <= 1 and 0 < sum(levels) / 60 < 0.005


def test_right_searches_pass():
    assert all(c.ok for c in searches.search_checks(found_modes(), OPTIONS))
    assert all(c.ok for c in compared((0.0, 0.1), (0.1, 0.1))[0].values())
    many = independent().flatten(0, 1)
    many[: len(many) // 3] += torch.tensor([10.0, 0.0])
    modes = found_modes(alone=lost_mode())
    assert all(c.ok for c in searches.path_mode_check(many, 1000.0, modes, two_modes()[0], OPTIONS))


def test_a_search_on_which_nothing_depends():
    modes = found_modes(unseen=0.02, covered=False, missed=0.5)
    found = searches.search_checks(modes, OPTIONS, decides=False)
    assert len(found) == 3 and all(c.ok and math.isnan(c.threshold) for c in found)


def test_a_path_mode_that_should_have_no_draw():
    x, target = independent().flatten(0, 1) - 10, two_modes()[0]
    modes = found_modes(alone=lost_mode(1e-3))
    assert searches.path_mode_check(x, 1000.0, modes, target, OPTIONS)[0].ok
    assert not searches.path_mode_check(x, 100_000.0, modes, target, OPTIONS)[0].ok
    assert searches.path_mode_check(x, 1000.0, found_modes(), target, OPTIONS) == []


@pytest.mark.parametrize(
    "values, errors",
    [((0.0, -3.0), (0.1, 2.0)), ((0.0, -5.5), (0.9, 0.9)), ((0.0, 0.1), (2.0, 2.0))],
)
def test_an_uncertain_evidence_of_one_mode_is_a_note(values, errors):
    """The particles are distributed as the draws: no mass is lost, whatever the evidences say."""
    found, note = compared(values, errors, distance=0.1)
    assert all(c.ok for c in found.values())
    assert f"uncertain: those of two searches are 0.00 and {values[1]:.2f}" in note
    assert ";" not in note
    found, note = compared(values, errors, distance=0.5)
    assert not all(c.ok for c in found.values()) and not note


def test_a_small_loss_needs_a_small_distance():
    """Of 18 % of the mass a distance of 0.1 is no proof."""
    assert compared((0.0, -0.2), (0.01, 0.01), distance=0.1)[1] == ""
    assert compared((0.0, -0.2), (0.01, 0.01), distance=0.05)[1]


def test_the_distance_of_the_searches():
    target, modes = lost_half()
    assert abs(distance_of(target, modes) - 0.5) < 0.05
    same = modes._replace(x=independent(1, 2000)[0])
    assert distance_of(target, same) < 0.1
    outside = modes._replace(x=1.5 * independent(1, 2000)[0])  # seen by the log density
    assert distance_of(target, outside) > 0.2


def test_the_best_evidence():
    close, apart = agreement_of((0.0, -0.1), (0.2, 0.1)), agreement_of((0.0, -5.0), (0.2, 0.1))
    best = searches.best_evidence(None, None, close, OPTIONS)
    assert best == close.best_evidence
    assert 1 < best.degrees < 6  # of eight islands in two searches, and of their difference
    best = searches.best_evidence(None, None, apart, OPTIONS)
    assert best.degrees == 1
    assert tuple(map(float, best)) == pytest.approx((math.log(0.5 + 0.5 * math.exp(-5)), 5.0))
    states, fresh = torch.zeros(4, 50).double(), torch.zeros(100).double()
    own = searches.best_evidence(states, fresh, apart, OPTIONS)
    assert float(own.value) == 0.0 and float(own.standard_error) < 1e-6
    for unknown in (states[:, :3], states + torch.nan, None):  # too few, and not inverted
        assert searches.best_evidence(unknown, fresh, close, OPTIONS) == close.best_evidence


def test_the_evidence_of_a_flow_ends_the_comparison():
    own = Estimate(torch.tensor(0.0), torch.tensor(0.01))
    for values, errors in (((0.0, -9.0), (0.1, 0.1)), ((0.0, -1.0), (0.1, 3.0))):
        found, note = compared(values, errors, own=own)
        assert all(c.ok for c in found.values()) and not note
    assert compared((float("nan"),) * 2, (float("nan"),) * 2) == ({}, "")


def of_draws(values, errors=(0.05, 0.05), scale=1.2, shift=0.0):
    """Of N(0, 1) by exact draws and those of a normal flow, where two searches have found these."""
    torch.manual_seed(0)
    flow, target = torch.distributions.Normal(shift, scale), torch.distributions.Normal(0.0, 1.0)
    x, y = target.sample((20, 50)), flow.sample((2000,))
    states, fresh = (target.log_prob(at) - flow.log_prob(at) for at in (x, y))
    return evidence_of_draws(states, fresh, agreement_of(values, errors), OPTIONS)


def test_the_evidence_of_draws_counts_only_if_no_search_has_more():
    assert abs(float(of_draws((0.0, -3.0)).value)) < 0.05
    assert of_draws((0.0, 0.5)) is None
    assert of_draws((0.0, 0.05), (1e-3, 1e-3)) is not None  # within the tolerance
    assert of_draws((0.0, 0.5), (0.05, 0.3)) is not None  # within the errors


def test_the_evidence_of_draws_needs_an_overlap_and_no_good_weights():
    """Weights of a flow that is too narrow have no variance, and the bridge does not mind."""
    assert abs(float(of_draws((0.0, 0.0), scale=0.5).value)) < 0.1
    assert of_draws((0.0, 0.0), shift=9.0) is None


def test_one_mode():
    assert not one_mode(found_modes())
    counts = torch.tensor([[10, 0], [10, 0]])
    single = found_modes(counts=counts)
    assert one_mode(single) and not one_mode(single._replace(alone=lost_mode()))
    assert one_mode(single._replace(alone=lost_mode().some(torch.tensor([], dtype=torch.long))))


# ---- broken checks -------------------------------------------------------------------------------


@mutation(searches, "unseen_check")
def of_both_searches(unseen_check, unseen, *options):
    return unseen_check(unseen**2, *options)


@mutation(searches, "search_checks")
def of_a_search_that_does_not_decide(search_checks, modes, options):
    return search_checks(modes, options, False)


@mutation(PathModes, "near")
def everything_is_near(near, self, x, target, deviations):
    return torch.ones_like(near(self, x, target, deviations))


@mutation(searches, "path_mode_check")
def of_one_draw(path_mode_check, x, size, *others):
    return path_mode_check(x, 1.0, *others)


@mutation(searches, "path_mode_check")
def modes_with_any_draw_are_visited(path_mode_check, x, size, modes, target, options):
    seen = modes.alone.near(x, target, 6.0).any(1)
    return path_mode_check(x, size, modes._replace(alone=modes.alone.some(~seen)), target, options)


@mutation(searches, "compare_evidences")
def errors_are_added_to_the_tolerance(compare_evidences, agreement, own, distance, options):
    large = agreement._replace(error=agreement.error + 1)
    return compare_evidences(large, own, distance, options)


@mutation(searches, "compare_evidences")
def never_needed(compare_evidences, agreement, own, distance, options):
    return compare_evidences(agreement, own, lambda: 0.0, options)


@mutation(searches, "far_from")
def nothing_is_far(far_from, x, options):
    return lambda points: torch.zeros(len(points), dtype=torch.bool)


@mutation(searches, "most_by_chance")
def of_as_many_draws_as_particles(most_by_chance, of_draws, size, draws, probability):
    return most_by_chance(of_draws + size, size, size, probability)


@mutation(searches, "distinct_points")
def all_of_one_place(distinct_points, points, index):
    return index[:1]


@mutation(searches, "direction_check")
def directions_never_decide(direction_check, agreement, own, distance, options):
    return direction_check(agreement, own, lambda: 0.0, options)


@mutation(searches, "distance_of_searches")
def of_all_particles(distance_of_searches, x, modes, target, options):
    half = torch.arange(len(modes.x)) % 2 == 0
    modes = modes._replace(x=modes.x[torch.randperm(len(modes.x))], second=half)
    return distance_of_searches(x, modes, target, options)


@mutation(searches, "compare_evidences")
def of_the_first_search_alone(compare_evidences, agreement, own, distance, options):
    value, error = agreement.log_evidence[:1].expand(2), agreement.error[:1].expand(2)
    return compare_evidences(
        agreement._replace(log_evidence=value, error=error), own, distance, options
    )


BROKEN = [
    (nothing_is_far, stranded),
    (of_as_many_draws_as_particles, stranded),
    (all_of_one_place, stranded),
    (directions_never_decide, searches_that_differ_along_a_direction),
    (of_both_searches, found_by_one_search),
    (everything_is_near, a_path_mode_without_draws),
    (everything_is_near, a_path_mode_with_few_draws),
    (of_all_particles, mass_that_one_search_has_lost),
    (of_a_search_that_does_not_decide, found_by_paths_alone),
    (of_a_search_that_does_not_decide, outside_of_the_start),
    (of_one_draw, a_path_mode_without_draws),
    (modes_with_any_draw_are_visited, a_path_mode_with_few_draws),
    (errors_are_added_to_the_tolerance, evidences_that_differ),
    (never_needed, an_unknown_evidence_of_several_modes),
    (of_the_first_search_alone, evidences_that_differ),
]

test_it_is_flagged, test_a_broken_check_does_not_flag_it = scenario_tests(SCENARIOS, BROKEN)
