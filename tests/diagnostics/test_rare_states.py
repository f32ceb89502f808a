"""States at which an independence sampler stays long, with what is flagged, and broken checks."""

import torch
from support.diagnosed import by_name, diagnosed, independent, scenario_tests
from support.mutations import mutation

from pyro_flowsamp import DiagnosisOptions
from pyro_flowsamp.diagnostics import rare_states
from pyro_flowsamp.diagnostics.rare_states import rare_states_check

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


def test_samplers_with_local_moves_are_not_asked():
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
