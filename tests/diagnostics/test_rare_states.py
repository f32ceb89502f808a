"""States at which a sampler stays long, with what is flagged, and broken checks."""

from dataclasses import replace

import torch
from support.diagnosed import by_name, diagnosed, independent, scenario_tests
from support.mutations import mutation
from torch.distributions import Normal

from pyro_flowsamp import DiagnosisOptions, LatentHMC, SearchOptions, Target, VectorizedMCMC
from pyro_flowsamp.diagnostics import rare_states
from pyro_flowsamp.diagnostics.draws import read_draws
from pyro_flowsamp.diagnostics.rare_states import (
    _shares,
    error_checks,
    rare_states_check,
    visits_check,
)
from pyro_flowsamp.sampling.candidates import gaussian_guide
from pyro_flowsamp.trust import log_weights

OPTIONS = DiagnosisOptions()


def a_tail_that_only_particles_show():
    """Chains would stay there for a hundred steps, of 200, and have never been there."""
    draws = diagnosed(independent(), {"log_weight": torch.zeros(40, 200)})
    particles = torch.zeros(1000).double()
    particles[:10] = torch.tensor(100.0).log()
    found = rare_states_check(draws, torch.zeros(500).double(), particles, None, OPTIONS)
    return by_name(found)


def test_equal_weights_pass_and_one_particle_in_thousands_does_not_decide():
    draws = diagnosed(independent(), {"log_weight": torch.zeros(40, 200)})
    particles = torch.zeros(10_000).double()
    for most in (0.0, 50.0):
        particles[0] = most
        (check,) = rare_states_check(draws, torch.zeros(500), particles, None, OPTIONS)
        assert check.ok


def test_weights_alone_say_nothing_of_samplers_with_local_moves():
    draws = diagnosed(
        independent(), {"log_weight": torch.zeros(40, 200), "step_size": torch.ones(1)}
    )
    assert rare_states_check(draws, torch.zeros(500), None, None, OPTIONS) == []


@mutation(rare_states, "expected_stays")
def stays_of_the_median(expected_stays, log_w, proposals):
    return expected_stays(log_w, proposals).median().expand(len(log_w))


def errors_of(stay, edge, chains=200, steps=100, thin=1):
    """Independent draws beside particles: beyond an edge chains would stay for so many steps."""
    x = independent(chains, steps, 2)
    draws = diagnosed(x, {"log_weight": torch.zeros(chains, steps)}, thin=thin)
    points = torch.randn(1000, 2).double()
    scores = torch.where(points[:, 0] > edge, torch.tensor(stay).log(), 0.0)
    even = torch.full((1000,), 1e-3)
    return error_checks(draws, torch.zeros(500).double(), scores, even, points, OPTIONS)


def a_tail_whose_errors_are_stated_too_small():
    """Of 2 % of the mass, where no stay has been seen."""
    return by_name(errors_of(100.0, 2.0))


def averages_that_have_few_effective_draws():
    return by_name(errors_of(100.0, 1.0))


def test_errors_by_equal_weights_are_those_that_chains_state():
    for stay, edge in ((1.0, 0.0), (2.0, 2.5), (1000.0, 6.0)):
        found = errors_of(stay, edge)
        assert all(check.ok for check in found) and found[1].value < 1.2
    shorter = errors_of(100.0, 2.0, thin=1000)  # draws after many stays
    assert all(check.ok for check in shorter)


def test_a_single_particle_does_not_decide_what_errors_are():
    """Errors count as less by the standard error of the sum over particles."""
    draws = diagnosed(independent(200, 100), {"log_weight": torch.zeros(200, 100)})
    points, scores = torch.randn(1000, 2).double(), torch.zeros(1000).double()
    points[0], scores[0] = 3.5, torch.tensor(1000.0).log()
    even = torch.full((1000,), 1e-3)
    found = error_checks(draws, torch.zeros(500).double(), scores, even, points, OPTIONS)
    assert all(check.ok for check in found) and found[1].value < 2


def test_errors_are_looked_at_where_a_sampler_only_jumps():
    statistics = {"log_weight": torch.zeros(40, 200), "step_size": torch.ones(1)}
    draws, even = diagnosed(independent(), statistics), torch.full((9,), 1 / 9)
    known = torch.zeros(5), torch.zeros(9), even, torch.randn(9, 2)
    assert error_checks(draws, *known, OPTIONS) == []
    few = diagnosed(independent(40, 7), {"log_weight": torch.zeros(40, 7)})
    assert error_checks(few, *known, OPTIONS) == []
    none = torch.full((9,), torch.nan)
    some = diagnosed(independent(), {"log_weight": torch.zeros(40, 200)})
    assert error_checks(some, known[0], none, *known[2:], OPTIONS) == []


@mutation(rare_states, "_stated")
def errors_are_taken_as_stated_by_few_draws(_stated, x, functions, variance, spread):
    return 100 * _stated(x, functions, variance, spread)


@mutation(rare_states, "variances_by_stays")
def stays_that_count_once(variances_by_stays, values, log_w, stays, steps, thin, weights):
    return variances_by_stays(values, log_w, torch.ones_like(stays), steps, thin, weights)


SCENARIOS = {
    a_tail_that_only_particles_show: "ESS of rare states",
    a_tail_whose_errors_are_stated_too_small: "errors by stays",
    averages_that_have_few_effective_draws: "ESS by stays",
}
BROKEN = [
    (stays_of_the_median, a_tail_that_only_particles_show),
    (errors_are_taken_as_stated_by_few_draws, a_tail_whose_errors_are_stated_too_small),
    (stays_that_count_once, a_tail_whose_errors_are_stated_too_small),
    (stays_that_count_once, averages_that_have_few_effective_draws),
]

test_it_is_flagged, test_a_broken_check_does_not_flag_it = scenario_tests(SCENARIOS, BROKEN)


# ---- samplers with local moves -------------------------------------------------------------------


def two_wells(particles_there, width=0.05):
    """HMC in a unit Gaussian with a narrow well at 12, which chains neither leave nor enter."""
    torch.manual_seed(3)
    logits, centres = torch.tensor([0.99, 0.01]).log(), torch.tensor([0.0, 12.0])
    scales = torch.tensor([1.0, width])

    def energy(x):
        return -(logits + Normal(centres, scales).log_prob(x)).logsumexp(-1)

    target = Target.from_energy(energy, 1)
    kernel = LatentHMC(guide=gaussian_guide(target, torch.zeros(1), 0.8 * torch.eye(1)))
    run = VectorizedMCMC(kernel, 60, 30, 200, disable_progbar=True)
    run.run()
    draws = read_draws(run)
    x = torch.cat([12 + width * torch.randn(particles_there, 1), torch.randn(1000, 1)])
    log_w = log_weights(kernel, target, x, 0.01)
    weights = torch.full((len(x),), 1 / len(x)).double()
    return visits_check(draws, log_w, weights, x, OPTIONS)


def a_place_that_one_particle_is_in():
    return by_name(two_wells(1))


def test_local_moves_that_leave_every_place_pass():
    (check,) = two_wells(0)
    assert check.ok and check.value > 2 * OPTIONS.min_ess


def test_the_steps_end_where_they_would_take_too_many_evaluations():
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
    kernel = LatentHMC(guide=gaussian_guide(target, torch.zeros(1), torch.eye(1)))
    VectorizedMCMC(kernel, 20, 20, 200, disable_progbar=True).run()
    before = target.evaluations
    search = SearchOptions(rare_evaluations=0.05)
    inside = _shares(
        kernel, target, torch.zeros(64, 1), torch.zeros(1), replace(OPTIONS, search=search)
    )
    assert 1 <= len(inside) < search.rare_steps
    assert target.evaluations - before <= 0.05 * before + 64 * 40  # a step at least


@mutation(rare_states, "ess_of_visits")
def of_independent_draws(ess_of_visits, stay, share, chains, steps, number):
    return ess_of_visits(stay.clamp(max=share), share, chains, steps, number)


LOCAL = {a_place_that_one_particle_is_in: "ESS of rare states"}
BROKEN_LOCAL = [(of_independent_draws, a_place_that_one_particle_is_in)]
test_a_place_is_flagged, test_broken_visits_do_not_flag_it = scenario_tests(LOCAL, BROKEN_LOCAL)
