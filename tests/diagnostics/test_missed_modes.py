"""Draws beside annealed particles: what is flagged, and broken checks that do not flag it."""

import pytest
import torch
from support.diagnosed import (
    by_name,
    draws_of_modes,
    found_modes,
    independent,
    scenario_tests,
    two_modes,
)
from support.mutations import broken, mutation

from pyro_flowsamp import DiagnosisOptions, Target
from pyro_flowsamp.diagnostics import missed_modes
from pyro_flowsamp.diagnostics.missed_modes import (
    draws_of_paths,
    kolmogorov_distance,
    own_search,
    particle_checks,
    path_checks,
    region_of,
    share_far_away,
)

OPTIONS = DiagnosisOptions()


def compared(x, **fields):
    return by_name(particle_checks(x, found_modes(**fields), OPTIONS))


def one_mode_only():
    return compared(draws_of_modes((1.0, 1e-9)))


def a_small_mode_is_lost():
    return compared(draws_of_modes((1.0, 1e-9)), shares=(0.97, 0.03))


def a_mode_without_a_region():
    """Particles of a mode for which the mixture of the search has no component."""
    modes = found_modes(shares=(1.0, 1e-9))
    modes = modes._replace(x=torch.where(torch.arange(2000)[:, None] < 50, -modes.x, modes.x))
    return by_name(particle_checks(draws_of_modes((1.0, 1e-9)), modes, OPTIONS))


def paths_to_another_mode():
    """Paths find a mode with two fifths of the mass that no chain is in."""
    target, _ = two_modes((0.4, 0.6))
    x = torch.tensor([10.0, 0.0]) + independent()
    return by_name(path_checks(x, draws_of_paths(target, x, OPTIONS), OPTIONS))


def other_shares():
    return compared(draws_of_modes((0.05, 0.95)))


def another_spread():
    return compared(torch.tensor([1.0, 30.0]) * draws_of_modes())


SCENARIOS = {
    one_mode_only: "mass not visited",
    a_small_mode_is_lost: "mass not visited",
    a_mode_without_a_region: "particles far from draws",
    paths_to_another_mode: "mass of modes far from draws",
    other_shares: "shares beside particles",
    another_spread: "distance from particles",
}


def test_right_particles_pass():
    for shares in ((0.5, 0.5), (0.9, 0.1), (0.97, 0.03)):
        assert all(c.ok for c in compared(draws_of_modes(shares), shares=shares).values())


def a_search_that_has_not_arrived(**fields):
    """Half of the second search's particles are far away, where it found a tiny evidence."""
    modes = found_modes(log_evidence=torch.tensor([1.8, -9.0]).double(), **fields)
    lost = modes.second & (modes.x[:, 0] > 0)
    x = torch.where(lost[:, None], modes.x + 50, modes.x)
    counts = modes.agreement.counts.clone()
    counts[1] = torch.tensor([500, 500])
    third = torch.tensor([[0], [300]])
    agreement = modes.agreement._replace(
        counts=torch.cat([counts, third], 1), modes=torch.arange(3)
    )
    mixture = modes.mixture._replace(
        log_weights=torch.full((3,), 1 / 3).double().log(),
        locs=torch.cat([modes.mixture.locs, torch.tensor([[60.0, 50.0]]).double()]),
    )
    return modes._replace(x=x, mixture=mixture, agreement=agreement)


def test_a_search_counts_by_its_evidence():
    x, modes = draws_of_modes(), a_search_that_has_not_arrived()
    found = by_name(particle_checks(x, modes, OPTIONS, False))
    assert all(c.ok for c in found.values())
    equal = modes.agreement._replace(log_evidence=torch.zeros(2).double())
    as_many = modes._replace(agreement=equal, weights=torch.full((2000,), 1 / 2000).double())
    found = by_name(particle_checks(x, as_many, OPTIONS, False))
    assert not found["mass not visited"].ok and not found["particles far from draws"].ok


def test_paths_know_the_masses_of_modes():
    """Of two modes far apart, of which one set of paths in four misses one."""

    def energy(x):
        left, right = (-0.5 * (x - torch.tensor([s, 0.0])).square().sum(-1) for s in (-100, 100))
        return -torch.logaddexp(left + torch.tensor(0.3).log(), right + torch.tensor(0.7).log())

    torch.manual_seed(0)
    target = Target.from_energy(energy, 2)
    paths = draws_of_paths(target, None, OPTIONS)
    x = torch.tensor([100.0, 0.0]) + independent()
    check = path_checks(x, paths, OPTIONS)[0]
    assert 0.2 < check.value < 0.35  # less by its standard error
    both = torch.where(torch.rand(40, 200, 1) < 0.3, x - torch.tensor([200.0, 0.0]), x)
    assert path_checks(both, paths, OPTIONS)[0].ok
    particles = own_search(target, paths, OPTIONS).x
    assert abs(float((particles[:, 0] < 0).double().mean()) - 0.3) < 0.15


def thin_mode(x):
    """The energy of a unit Gaussian, and of one of width 0.2 that has two fifths of the mass."""
    wide = -0.5 * x.square().sum(-1) + torch.tensor(0.6).log()
    square = (x - 5.0).square().sum(-1) / 0.04
    thin = -0.5 * square - 3 * torch.tensor(0.2).log() + torch.tensor(0.4).log()
    return -torch.logaddexp(wide, thin)


def mass_of_the_thin_mode(seeds=3):
    """The least mass of three seeds."""
    target, found = Target.from_energy(thin_mode, 3), []
    x = independent(100, 40, 3)
    for seed in range(seeds):
        torch.manual_seed(seed)
        found.append(path_checks(x, draws_of_paths(target, x, OPTIONS), OPTIONS)[0].value)
    return min(found)


def test_paths_from_around_the_draws_find_a_thin_mode():
    assert 0.3 < mass_of_the_thin_mode() < 0.45


def mass_by_few_draws(effective):
    """Of 1.1 % of the weight in a far place, by so many draws."""
    x, n = independent(), round(effective)
    points = torch.cat([torch.full((n, 2), 30.0), torch.zeros(1000, 2)]).double()
    log_w = torch.cat([torch.full((n,), 0.011 / n), torch.full((1000,), 0.989 / 1000)]).log()
    return path_checks(x, missed_modes.PathDraws([points], [log_w.double()]), OPTIONS)[0]


def test_a_mass_that_chance_explains_is_no_alarm():
    few, many = mass_by_few_draws(16), mass_by_few_draws(1600)
    assert few.ok and few.value == pytest.approx(0.011 * (1 - 0.989 / 4), rel=0.01)
    assert not many.ok and many.value == pytest.approx(0.011, rel=0.05)


@mutation(missed_modes, "_points_around")
def points_of_the_largest_density(_points_around, target, x, options):
    """Not in comparison with what the draws explain: those next to the draws."""
    return 2.5 * torch.randn(64, 3)


def test_the_density_must_be_compared_with_the_draws():
    with broken(points_of_the_largest_density):
        assert mass_of_the_thin_mode() < 0.2


@pytest.mark.parametrize("degrees", [2.0, 4.0])
def test_paths_in_heavy_tails_are_no_alarm(degrees):
    def energy(x):
        return 0.5 * (degrees + 2) * (x.square().sum(-1) / degrees).log1p()

    for seed in range(3):
        torch.manual_seed(seed)
        chi2 = torch.distributions.Chi2(degrees).sample((60, 100, 1))
        x = torch.randn(60, 100, 2) / (chi2 / degrees).sqrt()
        paths = draws_of_paths(Target.from_energy(energy, 2), x, OPTIONS)
        assert path_checks(x, paths, OPTIONS)[0].ok


def test_a_search_of_its_own_is_no_alarm():
    """Only what the draws lack is, and not what one of its searches has missed."""
    modes = found_modes(unseen=0.02, covered=False)
    names = {c.name for c in particle_checks(draws_of_modes(), modes, OPTIONS, settled=False)}
    assert names == {"mass not visited", "particles far from draws"}


@pytest.mark.parametrize("degrees", [1.0, 3.0, 1000.0])
def test_as_many_particles_as_draws_are_far_away(degrees):
    """In heavy tails too, by chains that hardly move."""
    torch.manual_seed(0)
    x = torch.distributions.StudentT(torch.tensor(degrees)).sample((100, 40, 3))
    y = torch.distributions.StudentT(torch.tensor(degrees)).sample((1000, 3))
    assert share_far_away(x, y, OPTIONS) < 0.006
    slowly = x[:, :1] + 0.01 * torch.randn(100, 40, 3)
    assert share_far_away(slowly, y, OPTIONS) < 0.05


def test_few_draws_are_far_from_many_particles_by_chance():
    """Of 100 draws the farthest leaves more than 2 % of the right particles outside, often."""
    shares = []
    for seed in range(40):
        torch.manual_seed(seed)
        x, y = torch.randn(4, 50, 4).double(), torch.randn(1000, 4).double()
        shares.append(share_far_away(x, y, OPTIONS))
    most = missed_modes._far_by_chance(x, 1000, OPTIONS)
    assert sum(share > OPTIONS.max_far_away for share in shares) > 5
    assert max(shares) <= most < 0.15
    assert missed_modes._far_by_chance(independent(40, 200), 1000, OPTIONS) < OPTIONS.max_far_away


def test_kolmogorov_distance_is_the_largest_gap():
    x, y = independent(3, 100).flatten(0, 1), 1.2 * independent(1, 50)[0].round()
    found = kolmogorov_distance(x, y)
    for i in range(2):
        gaps = [
            abs(float((x[:, i] <= e).double().mean() - (y[:, i] <= e).double().mean()))
            for e in torch.cat([x[:, i], y[:, i]])
        ]
        assert float(found[i]) == pytest.approx(max(gaps), abs=1e-6)


def test_regions_are_those_of_the_energy():
    _, modes = two_modes()
    x = torch.tensor([[-9.0, 1.0], [11.0, 0.0]])
    assert region_of(modes, x).tolist() == [0, 1]


# ---- broken checks -------------------------------------------------------------------------------


@mutation(missed_modes, "share_far_away")
def particles_of_the_draws(share_far_away, x, particles, options, weights):
    return share_far_away(x, x.flatten(0, 1)[::9], options)


@mutation(missed_modes, "_share_gap")
def half_of_the_gap(_share_gap, share, by_search, options):
    return _share_gap((share + by_search.mean(0)) / 2, by_search, options)


@mutation(missed_modes, "kolmogorov_distance")
def medians_only(kolmogorov_distance, x, y):
    middle = x.median(0).values
    return ((x <= middle).double().mean(0) - (y <= middle).double().mean(0)).abs()


@mutation(missed_modes, "far_from")
def nothing_is_far(far_from, x, options):
    return lambda points: torch.zeros(len(points), dtype=torch.bool)


BROKEN = [
    (nothing_is_far, paths_to_another_mode),
    (particles_of_the_draws, a_mode_without_a_region),
    (half_of_the_gap, other_shares),
    (medians_only, another_spread),
]


test_it_is_flagged, test_a_broken_check_does_not_flag_it = scenario_tests(SCENARIOS, BROKEN)
