"""The search over samplers: what is compared, what is trusted, and what ends it."""

import warnings
from math import inf

import pyro
import pytest
import torch
from support.models import conjugate, conjugate_data
from support.modes import two_modes
from support.mutations import broken, mutation

import pyro_flowsamp as pf
from pyro_flowsamp import ModeSearchOptions, SearchOptions, Target, trust
from pyro_flowsamp.free_memory import TooLittleMemoryError
from pyro_flowsamp.sampling.candidates import better_gaussian, gaussian_guide, mixture_name
from pyro_flowsamp.sampling.pilot import Goal
from pyro_flowsamp.sampling.search import SamplerSearch

GOAL = Goal(ess=4000, num_samples=None, num_chains=None)


def student(df=3):
    return Target.from_energy(lambda x: (df + 1) / 2 * (x.square().sum(-1) / df).log1p(), 1)


def searched(target, options=None, goal=GOAL):
    """Return a search that has found the modes."""
    goal = goal._replace(options=options or SearchOptions())
    steps = SamplerSearch(target, goal, progress=False)
    steps.find_modes()
    return steps


# ---- jumps that are not trusted ------------------------------------------------------------------


def test_a_student_t_is_chosen_for_heavy_tails():
    steps = searched(student())
    best = steps.search()
    assert best.reliable and best.name == "IMH (Student-t)"
    assert steps.modes.mixture.df <= 10


def gaussian_jumps(target):
    """Return a candidate that jumps by a Gaussian of nearly the right width.

    Its chains begin at particles that the Gaussian covers, so that they do not show the tails.
    """
    steps = searched(target)
    steps.particles = steps.particles[(steps.particles.abs() < 5).all(-1)]
    guide = gaussian_guide(target, torch.zeros(1), torch.full((1, 1), 1.8))
    return steps.run_pilot("IMH", pf.IMH(guide=guide), inf)


def test_gaussian_jumps_are_not_trusted_in_heavy_tails():
    """They mix well, as far as the chains show. Seven of eight are seen by the weights."""
    found = [gaussian_jumps(student()) for _ in range(3)]
    for each in found:
        assert each.ess_per_draw > SearchOptions().min_independence_ess and each.enough_ess
        assert each.reliable == (not each.problem)
    assert sum(bool(each.problem) for each in found) >= 2


@mutation(trust, "weights_problem")
def tails_are_not_looked_at(weights_problem, log_w, options):
    return ""


@mutation(trust, "jumps_problem")
def all_are_trusted(jumps_problem, *args):
    return ""


def test_both_checks_see_heavy_tails():
    found, steps = gaussian_jumps(student()), searched(student())

    def problem(x):
        kernel, options = found.run.kernel, SearchOptions()
        return trust.jumps_problem(kernel, steps.target, x, steps.particles, options)

    x = found.run.unconstrained
    assert "Pareto k" in problem(x)
    with broken(tails_are_not_looked_at):
        assert "local moves" in problem(x.clamp(-1, 1))  # states without the tails
    with broken(all_are_trusted):
        assert gaussian_jumps(student()).distrust == ""


def test_the_right_gaussian_is_trusted():
    target = Target.from_energy(lambda x: 0.5 * (x / 1.8).square().sum(-1), 1)
    assert gaussian_jumps(target).reliable


def test_a_flow_that_does_not_lead_back_is_not_trusted():
    target = Target.from_energy(lambda x: 0.5 * (x / 1.8).square().sum(-1), 1)
    wrong = mutation(trust, "log_weights")(
        lambda log_weights, *args: torch.where(
            args[2][:, 0] > 4, torch.nan, log_weights(*args)
        )  # 1.3 % of the states
    )
    with broken(wrong):
        assert "does not invert" in gaussian_jumps(target).problem


# ---- candidates ----------------------------------------------------------------------------------


def test_the_first_candidates_and_their_work():
    steps = searched(two_modes())
    best = steps.search()
    assert best.name == "IMH (mixture)" and best.reliable
    assert steps.compared[0].startswith("IMH (mixture): ") and steps.compared[0].endswith("of work")


def test_a_gaussian_is_named():
    pyro.set_rng_seed(1)  # a mixture of two fits the particles of some seeds better by chance
    steps = searched(Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 3))
    assert mixture_name(steps.target, steps.modes.mixture) == "Gaussian"


def test_better_gaussians():
    """Moments of many points are better than a wrong Gaussian; those of few are not."""
    tril = torch.tensor([[1.0, 0.0], [2.0, 0.5]]).double()
    x = 3 + torch.randn(2000, 2).double() @ tril.mT
    loc, scale = better_gaussian(x, torch.zeros(2).double(), torch.eye(2).double())
    torch.testing.assert_close(loc, x.mean(0))
    torch.testing.assert_close(scale @ scale.mT, tril @ tril.mT, rtol=0.1, atol=0.1)
    given = torch.zeros(30).double(), torch.eye(30).double()
    found = better_gaussian(torch.randn(40, 30).double(), *given)
    assert found[0] is given[0] and found[1] is given[1]
    found = better_gaussian(torch.ones(40, 30).double(), *given)  # without any spread
    assert found[0] is given[0]


def test_no_training_that_costs_more_than_it_saves():
    """A sampler that makes all draws with little work is not worth a flow."""
    steps = searched(Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2))
    best = steps.run_pilot("HMC", pf.LatentHMC(guide=gaussian(steps.target)), inf)
    left = best.work_to_finish
    assert steps.worth_trying(best, 1000, 0.5 * left)
    assert not steps.worth_trying(best, 1000, 1.1 * left)
    assert not steps.worth_trying(best, 10**9, 0.5 * left)  # too many evaluations
    steps._searched = 2.1 * left
    assert not steps.worth_trying(best, 1000, 0.5 * left)  # patience has an end
    steps._searched = 0.0
    steps.stopped = True
    assert not steps.worth_trying(best, 1000, 0.5 * left)


def gaussian(target):
    return gaussian_guide(target, torch.zeros(target.dim), torch.eye(target.dim))


def test_evaluations_have_a_bound_while_nothing_mixes():
    options = SearchOptions(max_evaluations=200_000)
    steps = searched(Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2), options)
    assert steps.worth_trying(None, 1000, 1e30)
    assert not steps.worth_trying(None, 200_000, 1.0)


def test_options_are_used():
    modes = ModeSearchOptions(particles=128)
    options = SearchOptions(modes=modes, pilot_chains=32, local_pilot_chains=16)
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    steps = searched(target, options)
    assert len(steps.particles) == 2 * 128
    jump = steps.run_pilot("IMH", pf.IMH(guide=gaussian(target)), inf)
    moves = steps.run_pilot("HMC", pf.LatentHMC(guide=gaussian(target)), inf)
    assert (jump.run.num_chains, moves.run.num_chains) == (32, 16)


# ---- posteriors that may be improper -------------------------------------------------------------


def improper(energy, narrow=(0.01, 0.01)):
    """Return whether chains are said to spread without bound, from particles so near."""
    steps = searched(Target.from_energy(lambda x: 0.5 * (x / 10).square().sum(-1), 2))
    steps.target = Target.from_energy(energy, 2)
    steps.particles = torch.tensor(narrow) * torch.randn(500, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        states = 10 * torch.randn(64, 2)
        growth = trust.growth_without_bound(steps.target, steps.particles, states, steps.options)
        steps._warn_if_improper("HMC", growth)
    assert steps.stopped == ("spread without bound" in "".join(str(w.message) for w in caught))
    return steps.stopped


PROPER = {
    "Gaussian": lambda x: 0.5 * (x / 10).square().sum(-1),
    "Student-t(2)": lambda x: 2 * ((x / 10).square().sum(-1) / 2).log1p(),
    "flat inside of edges": lambda x: torch.where(x.abs().amax(-1) < 50, 0 * x.sum(-1), torch.inf),
}
IMPROPER = {
    "flat": lambda x: 0 * x.sum(-1),
    "too heavy a tail": lambda x: 0.5 * (x / 10).square().sum(-1).log1p(),
}


@pytest.mark.parametrize("name", PROPER)
def test_a_wide_posterior_is_not_improper(name):
    assert not improper(PROPER[name])


@mutation(trust, "growth_without_bound")
def growth_alone(growth_without_bound, target, particles, x, options):
    return 1000.0


def test_growth_alone_does_not_show_it():
    with broken(growth_alone):
        assert improper(PROPER["Gaussian"])


@pytest.mark.parametrize("name", IMPROPER)
def test_a_density_that_falls_too_slowly(name):
    """Of k growing dimensions log p must fall by k for each e-fold."""
    assert improper(IMPROPER[name])


def test_a_density_that_is_flat_in_one_direction():
    """The other direction, in which chains do not grow, has no say."""
    assert improper(lambda x: 0.5 * (x[:, 0] / 10).square(), narrow=(10.0, 0.01))


# ---- starts --------------------------------------------------------------------------------------


def test_the_chains_start_at_particles_of_both_searches():
    steps = searched(Target.from_model(conjugate, *conjugate_data()))
    assert len(steps.particles) == len(steps.modes.x)
    few = steps.modes.second[: SearchOptions().local_pilot_chains]
    assert 0.2 < float(few.double().mean()) < 0.8


def test_a_seed_decides_the_search():
    found = []
    for _ in range(2):
        pyro.set_rng_seed(5)
        steps = searched(Target.from_model(conjugate, *conjugate_data()))
        best = steps.search()
        found.append((best.name, steps.compared, best.run.unconstrained))
    assert found[0][:2] == found[1][:2]
    assert torch.equal(found[0][2], found[1][2])


def test_a_flow_whose_training_does_not_fit_is_left_out_without_a_remedy_of_trainings():
    search = object.__new__(SamplerSearch)
    search.compared = []
    with pytest.warns(UserWarning, match="spline is left out: 5 bytes are needed, and 3 are free$"):
        search._leave_out("spline", TooLittleMemoryError("5 bytes are needed, and 3 are free", "x"))
    assert search.compared == ["spline: left out: 5 bytes are needed, and 3 are free"]
