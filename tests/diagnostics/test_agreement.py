"""Checks that do not share the chains' blind spots, with what they flag, and broken ones."""

import pytest
import torch
from support.diagnosed import by_name, diagnosed, found_modes, independent, scenario_tests
from support.mutations import mutation

from pyro_flowsamp import IMH, DiagnosisOptions, LatentHMC, Target, VectorizedMCMC, trust
from pyro_flowsamp.diagnostics import agreement
from pyro_flowsamp.diagnostics.agreement import (
    evidence_checks,
    move_checks,
    state_weight_checks,
    weight_checks,
)
from pyro_flowsamp.diagnostics.draws import read_draws
from pyro_flowsamp.problems import funnel
from pyro_flowsamp.sampling.candidates import gaussian_guide
from pyro_flowsamp.weights import Estimate

OPTIONS = DiagnosisOptions()


# ---- weights -------------------------------------------------------------------------------------


def weights_of(scale, x=None, of_states=False):
    """The checks of weights of N(0, I) under a Gaussian of this scale."""
    x = independent() if x is None else x
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2, dtype=torch.double)
    torch.manual_seed(5)
    y = scale * torch.randn(4000, 2).double()

    def log_w(points):
        return 0.5 * points.square().sum(-1) * (1 / scale**2 - 1)

    draws = diagnosed(x, {"log_weight": log_w(x)}, target=target)
    if of_states:
        return by_name(state_weight_checks(draws, None, OPTIONS))
    return by_name(weight_checks(draws, y, log_w(y), OPTIONS))


def states_of_a_narrow_flow():
    """Weights of N(0, 1) under N(0, 1/4) have k = 3 for states."""
    return weights_of(0.5, of_states=True)


def particles_of_long_stays(log_w=6.0, share=None, **fields):
    """States have equal weights, and 1 % of the particles have 400 times as much.

    Chains of 200 draws and 50 steps before would stay there for 400 steps.
    """
    particles = torch.cat([torch.zeros(990), torch.full((10,), log_w)]).double()
    shares = None if share is None else (share / 10 * (particles > 0)).double()
    draws = diagnosed(independent(), {"log_weight": torch.zeros(40, 200)}, **fields)
    return by_name(state_weight_checks(draws, particles, OPTIONS, shares))


def states_of_long_stays():
    """Chains that began in a region that they do not leave, where no particle is."""
    log_w = torch.zeros(40, 200).double()
    log_w[0] = 9.0
    draws = diagnosed(independent(), {"log_weight": log_w})
    return by_name(state_weight_checks(draws, torch.zeros(1000).double(), OPTIONS))


def particles_where_the_flow_is_not():
    particles = torch.zeros(1000).double()
    particles[:15], particles[15:30] = torch.nan, torch.inf
    draws = diagnosed(independent(), {"log_weight": torch.zeros(40, 200)})
    return by_name(state_weight_checks(draws, particles, OPTIONS))


def a_useless_flow():
    return weights_of(60.0)


def a_draw_of_a_thousandfold_weight():
    """In a heavy tail: chains would stay there for longer than they are."""
    torch.manual_seed(0)
    log_w = -0.5 * torch.rand(40, 200).log().double()
    log_w[:7, 0] += torch.arange(3, 10)
    draws = diagnosed(independent(), {"log_weight": log_w})
    return by_name(state_weight_checks(draws, None, OPTIONS))


def chains_of_another_spread():
    return weights_of(1.3, 0.9 * independent())


def chains_of_another_mean():
    return weights_of(1.3, independent() + 0.1)


# ---- moves ---------------------------------------------------------------------------------------


def a_flow_beside_the_target():
    """Chains of a sampler that never moves: a target twice as wide as its flow."""
    target = Target.from_energy(lambda x: 0.125 * x.square().sum(-1), 2)
    guide = gaussian_guide(target, torch.zeros(2), torch.eye(2))
    run = VectorizedMCMC(IMH(guide=guide), 4, 0, 200, disable_progbar=True)
    run.min_acceptance = 0.0
    run.run()
    return by_name(move_checks(read_draws(run), None, OPTIONS))


def particles_in_a_neck():
    """Steps that suit the wide part of a funnel do not move particles in its neck."""
    torch.manual_seed(0)
    problem = funnel(4, 3.0)
    guide = gaussian_guide(problem.target, torch.zeros(4), 3 * torch.eye(4))
    run = VectorizedMCMC(LatentHMC(guide=guide), 4, 30, 64, disable_progbar=True)
    run.min_acceptance = 0.0
    run.run()
    modes = found_modes()._replace(x=problem.sample(1000))
    return by_name(move_checks(read_draws(run), modes, OPTIONS))


# ---- evidence ------------------------------------------------------------------------------------


def evidence_of_half():
    """A mode of half of the mass is missing: log 2 less."""
    own, annealed = {"bridge": (0.0, 0.01)}, {"the first search": (0.69, 0.1)}
    return by_name(agreement.evidence_checks(_estimates(annealed), _estimates(own), OPTIONS))


def _estimates(values):
    return {k: Estimate(*(torch.tensor(v).double() for v in pair)) for k, pair in values.items()}


SCENARIOS = {
    states_of_a_narrow_flow: "Pareto k of states",
    particles_of_long_stays: "mass of long stays",
    states_of_long_stays: "mass of long stays",
    particles_where_the_flow_is_not: "particles without a weight",
    a_useless_flow: "importance ESS of the flow",
    a_draw_of_a_thousandfold_weight: "longest expected stay",
    chains_of_another_spread: "chains and weighted draws",
    chains_of_another_mean: "chains and weighted draws",
    a_flow_beside_the_target: "change by local moves",
    particles_in_a_neck: "particles that do not move",
    evidence_of_half: "evidences",
}


def test_right_weights_pass():
    for scale in (0.95, 1.3, 1.7):
        found = {**weights_of(scale), **weights_of(scale, of_states=True)}
        assert all(c.ok for c in found.values()) and len(found) == 5


def test_the_mass_of_long_stays_is_that_of_particles():
    name = "mass of long stays"
    assert particles_of_long_stays()[name].value == pytest.approx(0.01)
    assert particles_of_long_stays(share=0.004)[name].ok  # they come of the lesser search
    assert particles_of_long_stays(log_w=5.0)[name].ok  # for 148 steps
    assert particles_of_long_stays(log_w=5.0, thin=3)[name].ok  # of 600
    assert particles_of_long_stays(thin=3)[name].ok
    assert particles_of_long_stays(earlier=300)[name].ok
    assert not particles_of_long_stays(earlier=0)[name].ok
    assert not particles_of_long_stays(log_w=torch.inf)[name].ok


@pytest.mark.parametrize("seed", range(3))
def test_the_mass_of_long_stays_is_what_chains_lack(seed):
    """A Cauchy distribution by jumps from a normal one of scale three.

    The region of long stays has a known mass under the target. Chains that begin at draws of the
    flow hardly enter it; exact draws in place of particles give its mass.
    """
    steps, scale = 100, 3.0
    cauchy, normal = torch.distributions.Cauchy(0.0, 1.0), torch.distributions.Normal(0.0, scale)

    def log_w(x):
        return cauchy.log_prob(x) - normal.log_prob(x)

    torch.manual_seed(seed)
    x = normal.sample((400,)).double()
    states = []
    for _ in range(2 * steps):
        y = normal.sample((400,)).double()
        x = torch.where(torch.rand(400).log() < log_w(y) - log_w(x), y, x)
        states.append(x)
    x = torch.stack(states[steps:], 1)
    particles = cauchy.sample((4000,)).double()
    draws = diagnosed(x[..., None], {"log_weight": log_w(x)}, earlier=steps)
    found = by_name(state_weight_checks(draws, log_w(particles), OPTIONS))["mass of long stays"]
    edge = torch.linspace(4.3, 100, 100_001).double()  # the weight grows from √17 on
    kept = 1 - 2 * cauchy.cdf(-edge)  # the mass of smaller weights
    accepted = kept / log_w(edge).exp() + 2 * normal.cdf(-edge)
    edge = edge[accepted < 1 / (2 * steps)][0]
    mass = 2 * float(cauchy.cdf(-edge))
    error = (mass * (1 - mass) / len(particles)) ** 0.5
    assert abs(found.value - mass) < 4 * error + 0.01 and not found.ok
    lacking = mass - float((x.abs() > edge).double().mean())
    assert lacking > 0.5 * mass


def test_weights_of_states_must_have_a_variance_too():
    """Fresh draws of a flow that is too thin somewhere do not show it, and states do."""
    x, y = independent() + 0.1, torch.randn(4000, 2).double()
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2, dtype=torch.double)
    heavy = -3 * torch.rand(40, 200).log().double()
    for states, made in ((torch.zeros(40, 200), True), (heavy, False)):
        draws = diagnosed(x, {"log_weight": states}, target=target)
        found = by_name(weight_checks(draws, y, torch.zeros(4000).double(), OPTIONS))
        assert ("chains and weighted draws" in found) == made


def test_averages_that_differ_are_made_anew():
    """Of draws that were off by chance; chains that are off differ from new draws too."""
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2, dtype=torch.double)
    guide = gaussian_guide(target, torch.zeros(2).double(), torch.eye(2).double())
    torch.manual_seed(0)
    y = torch.randn(4000, 2).double()
    for x, points, right in ((independent(), y + 0.2, True), (independent() + 0.2, y, False)):
        draws = diagnosed(x, {}, target=target, proposal=guide.proposal())
        found = by_name(weight_checks(draws, points, torch.zeros(4000).double(), OPTIONS))
        assert found["chains and weighted draws"].ok == right


def test_right_moves_pass():
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    guide = gaussian_guide(target, torch.zeros(2), 1.2 * torch.eye(2))
    for kernel, modes in ((IMH(guide=guide), None), (LatentHMC(guide=guide), found_modes())):
        run = VectorizedMCMC(kernel, 20, 20, 200, disable_progbar=True)
        run.run()
        if modes is not None:
            modes = modes._replace(x=torch.randn(500, 2))
        (check,) = move_checks(read_draws(run), modes, OPTIONS)
        assert check.ok


def test_weighted_averages_have_right_errors():
    """Of right draws, one in a thousand fails: of 200 none or one."""
    failed = 0
    for seed in range(200):
        torch.manual_seed(seed)
        x, y = torch.randn(20, 20, 2).double(), 1.4 * torch.randn(1000, 2).double()
        log_w = -0.5 * y.square().sum(-1) * (1 - 1 / 1.96)
        check = agreement._weighted_averages(x, y, log_w, OPTIONS)
        failed += not check.ok
    assert failed <= 3


@pytest.mark.parametrize(
    "annealed, own",
    [
        ({"particles": (9.0, 0.1)}, {"bridge": (0.0, 0.5)}),  # not known well enough
        ({"particles": (float("nan"),) * 2}, {"importance": (0.0, 0.1)}),
        ({"particles": (0.2, 0.001)}, {"importance": (0.0, 0.001)}),  # within the tolerance
        ({"particles": (-9.0, 0.1)}, {"importance": (0.0, 0.1)}),  # particles have missed mass
    ],
)
def test_evidences_that_are_no_alarm(annealed, own):
    assert all(c.ok for c in evidence_checks(_estimates(annealed), _estimates(own), OPTIONS))


# ---- broken checks -------------------------------------------------------------------------------


@mutation(agreement, "pareto_k")
def of_the_inverse_weights(pareto_k, log_w):
    return pareto_k(-log_w)


@mutation(agreement, "weights_of_states")
def none_are_known(weights_of_states, draws):
    return torch.zeros_like(weights_of_states(draws))


@mutation(agreement, "weights_problem")
def no_tail_is_heavy(weights_problem, log_w, options):
    return ""


@mutation(agreement, "_stay_checks")
def of_chains_a_hundred_times_as_long(_stay_checks, draws, *args):
    return _stay_checks(draws._replace(thin=100), *args)


@mutation(agreement, "_stay_checks")
def particles_do_not_count(_stay_checks, draws, log_w, particles, *args):
    return _stay_checks(draws, log_w, torch.zeros_like(particles), *args)


@mutation(agreement, "expected_stays")
def stays_of_the_mean_weight(expected_stays, log_w, **states):
    return torch.ones_like(log_w)


@mutation(agreement, "ess_fraction")
def of_equal_weights(ess_fraction, log_w):
    return ess_fraction(torch.zeros_like(log_w))


@mutation(agreement, "effective_sample_sizes")
def one_draw_of_a_thousand_counts(effective_sample_sizes, x):
    return effective_sample_sizes(x) / 1000


@mutation(agreement, "_largest_score")
def for_a_thousand_times_as_many(_largest_score, m, options):
    return 3 * _largest_score(m, options)


@mutation(trust, "_functions")
def only_the_mean_of_coordinates(_functions, state):
    return state.z.double()


@mutation(agreement, "local_change")
def changes_of_one_state_each(local_change, kernel, target, x, options):
    found = local_change(kernel, target, x, options)
    return found._replace(z=found.z * 0.01)


@mutation(agreement, "ends_of_steps")
def chains_and_not_particles(ends_of_steps, kernel, target, particles, steps):
    return ends_of_steps(kernel, target, torch.zeros(1000, 4), steps)


@mutation(agreement, "evidence_checks")
def exchanged(evidence_checks, annealed, own, options):
    return evidence_checks(own, annealed, options)


BROKEN = [
    (of_the_inverse_weights, states_of_a_narrow_flow),
    (none_are_known, states_of_a_narrow_flow),
    (no_tail_is_heavy, a_draw_of_a_thousandfold_weight),
    (stays_of_the_mean_weight, a_draw_of_a_thousandfold_weight),
    (of_chains_a_hundred_times_as_long, particles_of_long_stays),
    (of_chains_a_hundred_times_as_long, states_of_long_stays),
    (particles_do_not_count, particles_of_long_stays),
    (of_equal_weights, a_useless_flow),
    (one_draw_of_a_thousand_counts, chains_of_another_mean),
    (for_a_thousand_times_as_many, chains_of_another_mean),
    (changes_of_one_state_each, a_flow_beside_the_target),
    (only_the_mean_of_coordinates, a_flow_beside_the_target),
    (chains_and_not_particles, particles_in_a_neck),
    (exchanged, evidence_of_half),
]


test_it_is_flagged, test_a_broken_check_does_not_flag_it = scenario_tests(SCENARIOS, BROKEN)
