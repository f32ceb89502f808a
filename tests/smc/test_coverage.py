"""The check of annealed particles: mass outside of their base is warned of."""

import warnings

import pyro
import pytest
import torch
from support.modes import two_modes
from support.mutations import broken, mutation

from pyro_flowsamp import Target, tempered_smc
from pyro_flowsamp.smc import coverage, tempering
from pyro_flowsamp.smc.coverage import coverage_problem
from pyro_flowsamp.smc.starts import StudentStart, TemperedStart, overdispersed_base

REAL = torch.tensor([False])


def narrow():
    """Return a base that is around one of the two modes at ±20."""
    return TemperedStart(torch.full((1,), 20.0), torch.ones(1), REAL)


def anneal(target, **options):
    pyro.set_rng_seed(0)
    return tempered_smc(target, 200, mcmc_steps=2, **options)


def test_a_base_that_misses_a_mode_is_warned_of():
    target = two_modes(0.5, 40.0)
    with pytest.warns(UserWarning, match=r"\d\.\d\d% of their weighted draws are there") as caught:
        found = anneal(target, base=narrow())
    assert "StudentStart.covering" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert bool((found.x > 0).all())
    assert bool(torch.isfinite(found.evidence.value))


def silent(target, **options):
    """Return whether there is no warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        anneal(target, **options)
    return not caught


def test_the_default_base_has_no_warning():
    assert silent(two_modes(0.5, 40.0))
    assert silent(Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 3))


def test_the_check_can_be_left_out():
    assert silent(two_modes(0.5, 40.0), base=narrow(), check_coverage=False)


@mutation(coverage, "explore")
def finds_the_middle(explore, target, options):
    found = explore(target, options)
    middle = found.coordinates.to_u(torch.full((10, 1), 20.0))
    return found._replace(points=middle)


@mutation(tempering, "coverage_problem")
def no_check(coverage_problem, *args):
    return ""


@pytest.mark.parametrize("mistake", [finds_the_middle, no_check])
def test_without_the_check_it_would_be_silent(mistake):
    with broken(mistake):
        assert silent(two_modes(0.5, 40.0), base=narrow())


def test_particles_that_end_outside():
    """A base that is too narrow for the target itself."""
    wide = Target.from_energy(lambda x: 0.5 * (x / 30).square().sum(-1), 1)
    base = StudentStart(torch.zeros(1), torch.eye(1), REAL)
    pyro.set_rng_seed(0)
    assert "annealed particles end outside" in coverage_problem(wide, base, 30 * torch.randn(99, 1))
    assert not coverage_problem(
        wide, StudentStart(torch.zeros(1), 60 * torch.eye(1), REAL), base.loc[None]
    )


def test_a_density_without_an_integral_is_said():
    flat = Target.from_energy(lambda x: 0 * x.sum(-1), 1)
    base = TemperedStart(torch.zeros(1), torch.ones(1), REAL)
    assert "could not be checked" in coverage_problem(flat, base, torch.zeros(9, 1))


def test_the_outside_of_a_gaussian_base():
    base = TemperedStart(torch.zeros(2), torch.tensor([2.0, 1.0]), torch.tensor([False, True]))
    x = torch.tensor([[9.0, 3.0], [11.0, 0.0], [0.0, 3.0]])
    assert base.outside(x).tolist() == [False, True, False]
    angles = TemperedStart(torch.zeros(1), torch.ones(1), torch.tensor([True]))
    assert angles.outside(torch.full((2, 1), 3.0)).tolist() == [False, False]


def test_the_default_base_covers_what_is_found(monkeypatch):
    """One point in five hundred that has climbed to a mode far away."""
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
    ends = torch.zeros(512, 1)
    ends[0] = 3.0
    monkeypatch.setattr("pyro_flowsamp.smc.starts.SLACK", torch.inf)
    for far in (3.0, 3000.0):
        ends[0] = far
        monkeypatch.setattr("pyro_flowsamp.smc.starts.ascend", lambda *a, **k: ends[None])
        base = overdispersed_base(target, 512)
        assert float(((ends - base.loc) / base.scale).abs().max()) <= 3.01
