"""States at which a sampler stays long, with what is flagged, and broken checks."""

from dataclasses import replace

import torch
from support.diagnosed import by_name, diagnosed, independent, scenario_tests
from support.mutations import mutation
from torch.distributions import Normal

from pyro_flowsamp import DiagnosisOptions, LatentHMC, SearchOptions, Target, VectorizedMCMC
from pyro_flowsamp.diagnostics import rare_states
from pyro_flowsamp.diagnostics.draws import read_draws
from pyro_flowsamp.diagnostics.rare_states import _shares, rare_states_check, visits_check
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


SCENARIOS = {a_tail_that_only_particles_show: "ESS of rare states"}
BROKEN = [(stays_of_the_median, a_tail_that_only_particles_show)]

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
