"""Two searches beside each other, along many directions."""

import pyro
import pytest
import torch
from support.modes import second_search
from support.mutations import broken, must_fail, mutation

from pyro_flowsamp import ModeSearchOptions, Target
from pyro_flowsamp.smc import directions
from pyro_flowsamp.smc.directions import compare_directions, directions_to_compare
from pyro_flowsamp.smc.mode_search import ModeSearch
from pyro_flowsamp.smc.particles import Particles
from pyro_flowsamp.smc.paths import TemperedState

OPTIONS, ISLANDS = ModeSearchOptions(), 4


def particles(x, log_z=0.0):
    """Equally weighted particles on islands of the same evidence."""
    zero = torch.zeros(len(x)).double()
    state = TemperedState(x, zero, x, x, zero, zero, x, x)
    log_w = torch.zeros(ISLANDS, len(x) // ISLANDS).double()
    return Particles(state, log_w, torch.full((ISLANDS,), log_z).double())


def heavy(num, dim):
    """Draws of a Cauchy distribution."""
    return torch.randn(num, dim).double() / torch.randn(num, 1).double()


def banana(num, dim):
    x = torch.randn(num, dim).double()
    return torch.cat([x[:, :1], x[:, 1:] + 2 * x[:, :1].square()], -1)


def normal(num, dim):
    return torch.randn(num, dim).double()


def clustered(draw, num, dim):
    """Draws of which each comes four times, as resampled particles do."""
    return draw(num // 4, dim).repeat_interleave(4, 0)


def alarms(draw, pairs, moved=0.0, dim=4):
    """Return how many of some pairs disagree."""
    found = 0
    for _ in range(pairs):
        one, two = clustered(draw, 512, dim), clustered(draw, 512, dim)
        two = two + moved * torch.ones(dim).double()
        found += not compare_directions(particles(one), particles(two), OPTIONS).agrees(OPTIONS)
    return found


def all_alarms():
    """Return the false alarms of 60 right pairs."""
    torch.manual_seed(0)
    return sum(alarms(draw, 20) for draw in (normal, heavy, banana))


def test_right_pairs_agree():
    assert all_alarms() == 0


@mutation(directions, "NormalDist")
def no_bound(NormalDist):
    return type("Zero", (), {"inv_cdf": lambda self, p: 0.0})()


@mutation(Particles, "mean")
def errors_of_independent_draws(mean, self, values):
    found = mean(self, values)
    independent = (found.value * (1 - found.value) / len(self.x)).sqrt()
    return found._replace(standard_error=independent)


@pytest.mark.parametrize("mistakes", [(no_bound, errors_of_independent_draws)])
def test_too_small_errors_are_seen(mistakes):
    must_fail(*mistakes, score=all_alarms, above=3)


@pytest.mark.parametrize("draw", [normal, heavy, banana])
def test_wrong_pairs_do_not(draw):
    torch.manual_seed(0)
    assert alarms(draw, 10, moved=1.0) >= 9


def test_the_direction_is_named():
    """Coordinates two and three are correlated in one search alone."""
    torch.manual_seed(0)
    one, two = torch.randn(2, 4000, 4).double()
    two[:, 2] = two[:, 1] + 0.1 * two[:, 2]
    found = compare_directions(particles(one), particles(two), OPTIONS)
    assert not found.agrees(OPTIONS) and "direction" in found.name
    assert "standard errors apart" in found.problem and found.name in found.problem
    two = torch.randn(4000, 4).double()
    two[:, 2] += 0.5
    found = compare_directions(particles(one), particles(two), OPTIONS)
    assert not found.agrees(OPTIONS) and abs(found.shares[0] - found.shares[1]) > 0.1


def test_principal_directions():
    """The ridge of a narrow distribution is among them, whatever the scales are."""
    torch.manual_seed(0)
    z = torch.randn(1000, 2).double()
    u = torch.stack([1e6 * z[:, 0], z[:, 0] + 0.01 * z[:, 1]], -1)
    v, names = directions_to_compare(u, OPTIONS)
    across = v[names.index("principal direction 2")]
    assert float((u @ across).std()) < 0.02 * float((u @ v[-1]).std())


def test_few_differences_do_not_count():
    """A small difference may be known very well, and is no problem."""
    torch.manual_seed(0)
    one, two = torch.randn(2, 40_000, 2).double()
    found = compare_directions(particles(one), particles(two + 0.1), OPTIONS)
    assert found.errors > found.bound and found.agrees(OPTIONS)


def test_one_island_gives_no_error():
    x = torch.randn(100, 2).double()
    whole = particles(x)
    one = whole._replace(log_w=whole.log_w.reshape(1, -1), log_z=whole.log_z[:1])
    assert compare_directions(one, one, OPTIONS) is None


def second_search_is_wrong():
    """Make a mutation: every other annealing ends a standard deviation off, along a diagonal."""
    return second_search(lambda target, x: x + 0.7)


def test_a_search_that_is_wrong_in_one_direction():
    pyro.set_rng_seed(0)
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 3)
    with broken(second_search_is_wrong()):
        found = ModeSearch(target).run()
    agreement = found.agreement
    assert agreement.evidences_agree(OPTIONS) and found.covered and agreement.unseen == 0
    assert not agreement.directions_agree(OPTIONS) and not found.settled
    assert ModeSearch(target).run().settled
