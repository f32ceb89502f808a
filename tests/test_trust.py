"""Checks of jumps: tails of weights, inversion, and moves that must change no distribution."""

from types import SimpleNamespace

import pyro
import pytest
import torch
from scipy.stats import binom
from support.mutations import broken, must_fail, mutation
from torch.testing import assert_close

from pyro_flowsamp import IMH, LatentHMC, SearchOptions, Target, VectorizedMCMC, trust
from pyro_flowsamp.flows.mixture_fit import Mixture
from pyro_flowsamp.sampling.candidates import gaussian_guide, mixture_guide
from pyro_flowsamp.weights import pareto_k

OPTIONS = SearchOptions()
HEAVY = torch.distributions.StudentT(3.0)


def student():
    return Target.from_energy(lambda x: 2 * (x.square().sum(-1) / 3).log1p(), 1)


def standard(dim=2):
    return Target.from_energy(lambda x: 0.5 * x.square().sum(-1), dim)


def jumping(target, scale=1.0):
    """Return an independence sampler whose flow is a Gaussian."""
    guide = gaussian_guide(target, torch.zeros(target.dim), scale * torch.eye(target.dim))
    kernel = IMH(guide=guide)
    kernel.setup(0)
    kernel.prepare(0, progress=False)
    return kernel


def weights(target, x, scale=1.0):
    kernel = jumping(target, scale)
    return trust.log_weights(kernel, target, x, OPTIONS.inversion_tolerance)


# ---- weights -------------------------------------------------------------------------------------


def test_weights_are_those_of_the_densities():
    x = torch.randn(500, 2)
    log_w = weights(standard(), x, scale=2.0)
    truth = (
        -0.5 * x.square().sum(-1) + torch.distributions.Normal(0.0, 2.0).log_prob(x).sum(-1).neg()
    )
    assert_close(log_w, truth.double(), rtol=0, atol=1e-4)


def test_the_right_flow_has_no_problem():
    assert trust.weights_problem(weights(standard(), torch.randn(2000, 2)), OPTIONS) == ""


def test_tails_that_a_gaussian_lacks():
    """Weights of states show them; those of draws of the flow mostly do not."""
    problems, on_draws = 0, 0
    for seed in range(20):
        torch.manual_seed(seed)
        log_w = weights(student(), HEAVY.sample((1500, 1)), scale=1.8)
        problems += "Pareto k" in trust.weights_problem(log_w, OPTIONS)
        draws = weights(student(), 1.8 * torch.randn(1500, 1), scale=1.8)
        on_draws += pareto_k(draws) >= OPTIONS.max_pareto_k
    assert problems >= 19
    assert on_draws < 12


def test_a_flow_with_the_same_tails_is_trusted():
    one = torch.ones(1).double()
    mixture = Mixture(torch.zeros(1).double(), 0 * one[None], one[None, None], 3.0)
    guide = mixture_guide(student(), 0 * one, one[None], mixture)
    kernel = IMH(guide=guide)
    kernel.setup(0)
    kernel.prepare(0, progress=False)
    x = HEAVY.sample((1500, 1))
    log_w = trust.log_weights(kernel, student(), x, OPTIONS.inversion_tolerance)
    assert float(log_w.max() - log_w.min()) < 1e-2  # exactly the target
    assert trust.weights_problem(log_w, OPTIONS) == ""


def test_weights_that_hardly_vary_have_no_tail():
    """The shape of a tail of such weights may read 2 or more."""
    log_w = -0.2 * torch.rand(2000).double().log()
    log_w = torch.cat([log_w.clamp(max=0.5), torch.full((2,), 1.0).double()])
    assert float(log_w.max() - log_w.median()) < OPTIONS.flat_log_weights
    assert trust.weights_problem(log_w, OPTIONS) == ""


def test_weights_that_are_nowhere_finite():
    assert "no density" in trust.weights_problem(torch.full((100,), -torch.inf), OPTIONS)


# ---- inversion -----------------------------------------------------------------------------------


class Broken:
    """The identity, whose inverse is wrong above a point."""

    def __init__(self, above, by=0.1):
        self.above, self.by = above, by

    def push(self, z):
        return z, torch.zeros(len(z))

    def pull(self, x):
        return x + self.by * (x > self.above)

    def base_log_prob(self, z):
        return -0.5 * z.square().sum(-1)


def test_a_flow_that_does_not_lead_back():
    x = torch.randn(1000, 1)
    kernel = SimpleNamespace(proposal=Broken(above=2.0))
    log_w = trust.log_weights(kernel, standard(1), x, OPTIONS.inversion_tolerance)
    off = x[:, 0] > 2
    assert torch.equal(log_w.isnan(), off) and int(off.sum()) > 5
    assert "does not invert" in trust.weights_problem(log_w, OPTIONS)
    tiny = SimpleNamespace(proposal=Broken(above=2.0, by=1e-3))  # by less than is allowed
    log_w = trust.log_weights(tiny, standard(1), x, OPTIONS.inversion_tolerance)
    assert trust.weights_problem(log_w, OPTIONS) == ""


@mutation(trust, "log_weights")
def inversion_is_not_looked_at(log_weights, kernel, target, x, tolerance):
    return log_weights(kernel, target, x, torch.inf)


def test_the_inversion_must_be_looked_at():
    kernel = SimpleNamespace(proposal=Broken(above=2.0))

    def finite():
        x = torch.randn(1000, 1)
        log_w = trust.log_weights(kernel, standard(1), x, OPTIONS.inversion_tolerance)
        return float(log_w.isfinite().all())

    assert finite() == 0
    must_fail(inversion_is_not_looked_at, score=finite, above=0.5)


def test_angles_lead_back_around_the_circle():
    """A point just below pi may come back as one just above -pi."""

    class Turned(Broken):
        def push(self, z):
            x = z + 1e-4
            return torch.where(x >= torch.pi, x - 2 * torch.pi, x), torch.zeros(len(z))

        def pull(self, x):
            return x

    target = Target.from_energy(lambda x: x[:, 0].cos(), 1, angles=[0])
    x = torch.cat([torch.full((5, 1), torch.pi - 1e-5), torch.linspace(-3, 3, 50)[:, None]])
    kernel = SimpleNamespace(proposal=Turned(0.0))
    assert trust.log_weights(kernel, target, x, OPTIONS.inversion_tolerance).isfinite().all()


# ---- local moves ---------------------------------------------------------------------------------


def changed(x, target, options=OPTIONS):
    """Of states ``(C, d)``, of which some are used up by the warm-up."""
    x = torch.cat([x[: options.check_warmup_chains], x])[:, None]
    return trust.local_change(jumping(target), target, x, options)


@pytest.mark.parametrize("scale", [0.8, 1.25])
def test_states_of_a_wrong_spread(scale):
    found = changed(scale * torch.randn(1024, 2), standard())
    assert found.problem.startswith("local moves change the distribution")
    assert float(found.z.abs().max()) > found.bound


def test_states_without_their_tails():
    """Those of a Gaussian, of a target with heavy tails."""
    found = changed(torch.randn(1024, 1), student())
    assert found.problem


def test_states_of_the_target():
    assert changed(torch.randn(1024, 2), standard()).problem == ""
    assert changed(HEAVY.sample((1024, 1)), student()).problem == ""


def false_alarms(seeds=100, level=0.2):
    """Return the number of runs in which states of the target are said to have changed."""
    options = SearchOptions(
        check_error=level, check_states=256, check_moves=2, check_warmup=5, check_warmup_chains=16
    )
    count = 0
    for seed in range(seeds):
        pyro.set_rng_seed(seed)
        count += bool(changed(torch.randn(256, 2), standard(), options).problem)
    return count


def test_false_alarms_are_as_rare_as_they_should_be():
    """The bound is Bonferroni's for functions that depend on each other: at most the level."""
    found = false_alarms()
    assert binom.cdf(found, 100, 0.05) > 1e-3  # not rare beyond reason
    assert binom.sf(found - 1, 100, 0.2) > 1e-3


@mutation(LatentHMC, "step")
def unadjusted(step, self, state):
    """Every proposal is accepted: moves that do not leave the target invariant."""
    new, info = step(self, state)
    return new._replace(z=1.05 * new.z), info


def test_false_alarms_see_moves_that_are_wrong():
    must_fail(unadjusted, score=lambda: false_alarms(seeds=10), above=8)


@mutation(trust, "_functions")
def coordinates_only(_functions, state):
    return state.z.double()


def test_squares_are_needed_to_see_the_spread():
    with broken(coordinates_only):
        assert changed(0.8 * torch.randn(1024, 2), standard()).problem == ""


def crescent(x):
    """A ridge along x[:, 0] with a tail to one side that a Gaussian of the ridge lacks."""
    ridge = -0.5 * x.square().sum(-1)
    tail = -0.5 * ((x[:, 0] - 5) / 2).square() - 0.5 * x[:, 1].square() - 3
    return -torch.logaddexp(ridge, tail)


def test_moved_states_show_a_tail_that_the_flow_lacks():
    """All states are where the flow is, and local moves lead on to where it is not."""
    target = Target.from_energy(crescent, 2)
    x = torch.randn(2048, 2)[:, None]
    x = x[x[:, 0, 0] < 1.5]
    kernel = jumping(target)
    log_w = trust.log_weights(kernel, target, x[:, 0], OPTIONS.inversion_tolerance)
    assert trust.weights_problem(log_w, OPTIONS) == ""
    moved = trust.local_change(kernel, target, x, OPTIONS).log_weights
    assert "Pareto k" in trust.weights_problem(moved, OPTIONS)


def test_moved_states_of_a_good_flow_show_nothing():
    x = torch.randn(1024, 2)[:, None]
    target = Target.from_energy(lambda x: 0.5 * (x / 0.9).square().sum(-1), 2)
    moved = trust.local_change(jumping(target), target, 0.9 * x, OPTIONS).log_weights
    assert trust.weights_problem(moved, OPTIONS) == ""


# ---- particles that do not move ------------------------------------------------------------------


def local(target):
    """Return a kernel with local moves, after its warm-up."""
    guide = gaussian_guide(target, torch.zeros(target.dim), torch.eye(target.dim))
    kernel = LatentHMC(guide=guide, num_steps=4)
    starts = target.unpack_unconstrained(torch.randn(64, target.dim))
    VectorizedMCMC(kernel, 1, 20, 64, initial_params=starts, disable_progbar=True).run()
    return kernel


def needle(x):
    """A standard normal, and a needle that no step of the same size leaves."""
    wide = -0.5 * x.square().sum(-1)
    return -torch.logaddexp(wide, -0.5 * ((x - 6) / 1e-3).square().sum(-1) + 8)


def test_particles_that_do_not_move():
    target = Target.from_energy(needle, 2)
    kernel = local(target)
    particles = torch.cat([torch.randn(900, 2), 6 + 1e-3 * torch.randn(100, 2)])
    assert "10.00%" in trust.immobile_problem(kernel, target, particles, OPTIONS)
    assert trust.immobile_problem(kernel, target, particles[:900], OPTIONS) == ""


@mutation(LatentHMC, "step")
def everything_moves(step, self, state):
    new, info = step(self, state)
    return new._replace(x=new.x + 1e-6), info


def test_particles_that_do_not_move_must_be_compared():
    target = Target.from_energy(needle, 2)
    kernel, particles = local(target), 6 + 1e-3 * torch.randn(100, 2)
    assert trust.immobile_problem(kernel, target, particles, OPTIONS)
    with broken(everything_moves):
        assert trust.immobile_problem(kernel, target, particles, OPTIONS) == ""
