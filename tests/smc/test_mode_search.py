"""The search for modes: it covers, it sees what one search missed, its evidence is right."""

from dataclasses import replace
from math import inf, lgamma, log, pi

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import kstest, norm
from scipy.stats import t as student_t
from support.models import CONJUGATE_LOG_EVIDENCE, conjugate, conjugate_data, year_regression
from support.modes import SD, forty_modes, second_search_loses_a_mode, two_modes
from support.mutations import broken, mutation

from pyro_flowsamp import ModeSearchOptions, Target
from pyro_flowsamp.smc import comparison, mode_search
from pyro_flowsamp.smc.coordinates import WhitenedTarget
from pyro_flowsamp.smc.exploration import Exploration, explore
from pyro_flowsamp.smc.found_modes import Agreement
from pyro_flowsamp.smc.mode_search import ModeSearch


def charged(found):
    """Return the evaluations that count in a budget: those without gradients count less."""
    return found.evaluations - (1 - ModeSearchOptions().density_cost) * found.surveyed


def missed(found, means):
    """Return the number of modes in which no particle is."""
    near = torch.cdist(found.x.double(), means.double()).min(0).values
    return int((near > 3 * SD).sum())


@pytest.fixture
def narrow(monkeypatch):
    """The paths have found one small region only."""

    def in_the_middle(target, options, points):
        points = 0.5 * torch.randn(200, target.dim, dtype=torch.double)
        zero, eye = torch.zeros(target.dim), torch.eye(target.dim)
        return Exploration(WhitenedTarget(target, zero, eye), points, None)

    monkeypatch.setattr(mode_search, "explore", in_the_middle)


# ---- covering ------------------------------------------------------------------------------------


def test_forty_modes_are_found():
    target, means = forty_modes()
    found = ModeSearch(target).run()
    assert missed(found, means) == 0
    assert found.settled and found.covered and found.agreement.unseen == 0
    assert found.agreement.num_modes > 15  # some of the forty overlap


def test_a_base_that_is_too_narrow_is_widened(narrow):
    target, means = forty_modes()
    found = ModeSearch(target, ModeSearchOptions(mixture_degrees_of_freedom=(inf,))).run()
    assert found.covered and missed(found, means) == 0


def test_one_round_is_not_enough(narrow):
    target, _ = forty_modes()
    found = ModeSearch(target, ModeSearchOptions(max_rounds=1, max_evaluations=60_000)).run()
    assert not found.covered and not found.settled


def lost_with(*mutations):
    """Return whether a search says that all is well, though modes are missed."""
    target, means = forty_modes()
    with broken(*mutations):
        options = ModeSearchOptions(max_rounds=1, max_evaluations=60_000)
        options = replace(options, mixture_degrees_of_freedom=(inf,), survey_dimensions=1)
        found = ModeSearch(target, options).run()
    return found.covered and missed(found, means) > 0


@mutation(mode_search.StudentStart, "outside")
def nothing_is_outside(outside, self, x):
    return torch.zeros(len(x), dtype=torch.bool)


def test_what_is_outside_shows_it(narrow):
    assert not lost_with()
    assert lost_with(nothing_is_outside)


@pytest.mark.parametrize("loc, scale", [(-61_000.0, 9500.0), (0.0, 1e-6), (3e-6, 1e-6)])
def test_paths_reach_scales_of_any_size(loc, scale):
    target = Target.from_energy(lambda x: 0.5 * ((x - loc) / scale).square().sum(-1), 3)
    found = explore(target, ModeSearchOptions())
    assert found.prior is None
    u = (found.coordinates.loc - loc) / scale
    assert float(u.abs().max()) < 0.5
    widths = found.coordinates.scale_tril.diagonal() / scale
    assert 0.7 < float(widths.min()) and float(widths.max()) < 1.4


# ---- agreement -----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 0.97])
def test_a_mode_that_one_search_misses(share):
    """Its mass is the estimate of what neither has found.

    Of 3 % of the mass few particles are held out: it is seen in about ten of twelve searches.
    """
    pyro.set_rng_seed(2)
    with broken(second_search_loses_a_mode()):
        found = ModeSearch(two_modes(share), ModeSearchOptions(max_evaluations=150_000)).run()
    assert found.covered and not found.settled
    # half of it in equal searches: the evidences here do not know of the loss
    assert 0.3 * (1 - share) < found.unseen < 1.4 * (1 - share)


@mutation(comparison, "log_mean_weight")
def one_evidence_is_low(log_mean_weight, log_w):
    value, error = log_mean_weight(log_w)
    one_evidence_is_low.calls.append(0)
    return type(log_mean_weight(log_w))(value - 3.0 * (len(one_evidence_is_low.calls) % 2), error)


object.__setattr__(one_evidence_is_low, "calls", [])


def test_evidences_that_differ():
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
    with broken(one_evidence_is_low):
        found = ModeSearch(target).run()
    assert not found.settled and found.agreement.unseen == 0
    assert found.agreement.evidence_gap > ModeSearchOptions().max_gap
    assert ModeSearch(target).run().settled


def test_agreement_in_numbers():
    """A mode of .6 of the mass that one search alone has found, and one that both have."""
    counts = torch.tensor([[50, 0, 50], [20, 60, 20]])
    agreement = Agreement(
        counts, torch.tensor([0, 1, 0]), 0.3, torch.tensor([1.0, 2.0]), torch.tensor([0.3, 0.4])
    )
    assert agreement.num_modes == 2
    assert agreement.evidence_gap == pytest.approx(2.0)


# ---- work ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [150_000, ModeSearchOptions().max_evaluations])
def test_evaluations_are_counted_and_bounded(most):
    """A search that does not settle ends before its budget, the smaller with fewer particles."""
    target = two_modes()
    target.log_prob(torch.zeros(7, 1))
    with broken(second_search_loses_a_mode()):
        found = ModeSearch(target, ModeSearchOptions(max_evaluations=most)).run()
    assert found.evaluations == target.evaluations - 7
    assert charged(found) <= most
    assert (len(found.x) >= 2 * ModeSearchOptions().particles_many_modes) == (most > 200_000)


@mutation(mode_search, "size_that_fits")
def all_or_nothing(right, wanted, num, left):
    return wanted if wanted[0] * wanted[1] <= left else None


def sizes_of_pairs(target, **options):
    """Return the numbers of particles of the first searches."""
    sizes, pair = [], ModeSearch._pair

    def spy(self, base, prior, num, moves):
        sizes.append(num)
        return pair(self, base, prior, num, moves)

    with pytest.MonkeyPatch.context() as patch, broken(second_search_loses_a_mode()):
        patch.setattr(ModeSearch, "_pair", spy)
        found = ModeSearch(target, ModeSearchOptions(**options)).run()
    return sizes, found


def test_a_smaller_pair_where_the_larger_does_not_fit():
    options = {"particles": 128, "particles_many_modes": 256, "max_evaluations": 85_000}
    torch.manual_seed(0)
    sizes, found = sizes_of_pairs(two_modes(), **options)
    assert sizes[:2] == [128, 256] and 256 < sizes[-1] < 2 * sizes[-2]
    assert charged(found) <= options["max_evaluations"]
    torch.manual_seed(0)
    with broken(all_or_nothing):
        assert sizes_of_pairs(two_modes(), **options)[0] == sizes[:-1]


def test_a_seed_decides_all():
    runs = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        runs.append(ModeSearch(two_modes(), ModeSearchOptions(particles_many_modes=256)).run())
    assert torch.equal(runs[0].x, runs[1].x)
    assert runs[0].evaluations == runs[1].evaluations


def test_particles_are_in_random_order():
    """Those of one search, and those of one ancestor, are spread over all."""
    found = ModeSearch(two_modes(), ModeSearchOptions(particles_many_modes=512)).run()
    for indicator in (found.second, found.x[:, 0] > 0):
        u = indicator.double() - indicator.double().mean()
        assert abs(float((u[1:] * u[:-1]).mean() / u.square().mean())) < 0.15
    assert int(found.second.sum()) * 2 == len(found.x)


def test_a_density_that_is_nowhere_finite():
    target = Target.from_energy(lambda x: torch.inf * x.square().sum(-1), 2)
    with pytest.raises(ValueError, match="log density is NaN or -inf"):
        ModeSearch(target).run()


# ---- evidence ------------------------------------------------------------------------------------


def log_z_student(df, dim):
    return lgamma(df / 2) + dim / 2 * log(df * pi) - lgamma((df + dim) / 2)


def student(df, dim):
    return Target.from_energy(lambda x: (df + dim) / 2 * (x.square().sum(-1) / df).log1p(), dim)


def evidence_scores(target, truth, seeds):
    """Return z-scores ``(seeds, 2)`` of the log evidences of both searches.

    Both are made before random points are looked at, of which there are few here.
    """
    scores, options = [], ModeSearchOptions(survey_points=2)
    for seed in range(seeds):
        pyro.set_rng_seed(seed)
        agreement = ModeSearch(target, options).run().agreement
        scores.append((agreement.log_evidence - truth) / agreement.error)
    return torch.stack(scores)


def p_value(scores):
    """Return a p-value of scores that four islands each should make t-distributed."""
    return kstest(scores.flatten().numpy(), student_t(3).cdf).pvalue


EVIDENCES = {
    "Gaussian": lambda: (
        Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 3),
        1.5 * log(2 * pi),
    ),
    "conjugate": lambda: (
        Target.from_model(conjugate, *conjugate_data()),
        CONJUGATE_LOG_EVIDENCE,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVIDENCES)
def test_evidences_are_honest(name):
    scores = evidence_scores(*EVIDENCES[name](), seeds=20)
    assert p_value(scores) > 1e-3
    assert p_value(scores + 2) < 1e-3 and p_value(8 * scores) < 1e-3  # and this would be seen


@pytest.mark.slow
def test_evidences_of_heavy_tails_are_honest():
    scores = evidence_scores(student(2, 1), log_z_student(2, 1), 30)
    assert p_value(scores) > 1e-3


@pytest.mark.slow
def test_heavy_tails_in_ten_dimensions_are_right():
    """Particles find back from a base that is ten times too wide, in all directions."""
    differences, scores = [], []
    for seed in range(8):
        pyro.set_rng_seed(seed)
        value, error = ModeSearch(student(2, 10)).run().agreement.best_evidence
        differences.append(abs(float(value) - log_z_student(2, 10)))
        scores.append((float(value) - log_z_student(2, 10)) / float(error))
    assert max(differences) < 1 and sum(differences) / 8 < 0.3
    assert sum(z * z for z in scores) / 8 < 4


def test_the_evidence_of_both_searches():
    """Its error counts the islands of each search, and the difference of the two."""
    log_z, error = torch.tensor([1.0, 3.0]).double().log(), torch.tensor([0.1, 0.2]).double()
    found = Agreement(torch.ones(2, 1), torch.zeros(1), 0.0, log_z, error).best_evidence
    assert float(found.value.exp()) == pytest.approx(2.0)
    absolute = (0.25 * ((1 * 0.1) ** 2 + (3 * 0.2) ** 2) + 0.25 * 2.0**2) ** 0.5
    assert float(found.standard_error) == pytest.approx(absolute / 2.0)


def test_the_second_search_starts_from_the_prior(monkeypatch):
    starts, right = [], mode_search.tempered_smc
    monkeypatch.setattr(
        mode_search,
        "tempered_smc",
        lambda *args, **options: starts.append(options["base"]) or right(*args, **options),
    )
    found = ModeSearch(Target.from_model(conjugate, *conjugate_data())).run()
    assert [type(start).__name__ for start in starts] == ["StudentStart", "PriorStart"]
    assert found.settled
    error = (found.agreement.log_evidence - CONJUGATE_LOG_EVIDENCE).abs()
    assert float(error.max()) < 0.3


def starts_where_the_prior_misses_mass(monkeypatch):
    """Return the kinds of all starts where the search from the prior has too small an evidence."""
    starts, right = [], mode_search.tempered_smc

    def low(*args, **options):
        found = right(*args, **options)
        starts.append(type(options["base"]).__name__)
        missed = 5.0 * (starts[-1] == "PriorStart")
        return found._replace(log_z=found.log_z - missed)

    monkeypatch.setattr(mode_search, "tempered_smc", low)
    found = ModeSearch(Target.from_model(conjugate, *conjugate_data())).run()
    return starts, found


def test_a_search_from_the_prior_that_misses_mass_is_replaced(monkeypatch):
    starts, found = starts_where_the_prior_misses_mass(monkeypatch)
    assert starts[:2] == ["StudentStart", "PriorStart"]
    assert starts[2:] and set(starts[2:]) == {"StudentStart"}
    assert found.settled


@mutation(Agreement, "second_has_missed")
def never(second_has_missed, self, options):
    return False


def test_the_prior_would_be_tried_again(monkeypatch):
    with broken(never):
        starts, found = starts_where_the_prior_misses_mass(monkeypatch)
    assert "PriorStart" in starts[2:] and not found.settled


def tail(bound):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("f", torch.where(x > bound, 0.0, -torch.inf))


def error_behind_an_edge():
    """Return the error of the second log evidence where a part of the prior has a density."""
    pyro.set_rng_seed(0)
    found = ModeSearch(Target.from_model(tail, torch.tensor(-0.3))).run()
    return abs(float(found.agreement.log_evidence[1]) - norm.logsf(-0.3))


def test_a_prior_with_an_edge(monkeypatch):
    """Prior draws of zero density are left out, which the evidence takes account of."""
    assert error_behind_an_edge() < 0.2
    monkeypatch.setattr(mode_search, "log", lambda share: 0.0)
    assert error_behind_an_edge() > 0.3


def test_a_regression_on_years():
    target, loc, tril = year_regression()
    found = ModeSearch(target).run()
    assert found.settled and found.agreement.num_modes == 1
    u = torch.linalg.solve_triangular(tril, (found.x.double() - loc).mT, upper=False)
    assert u.mean(1).abs().max() < 0.3  # float32 keeps a width of the ridge
    assert (u.var(1).log().abs() < 0.5).all()
