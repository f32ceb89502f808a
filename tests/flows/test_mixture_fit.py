"""Mixtures of Gaussians and of Student-t distributions: their density, draws and fit."""

from dataclasses import replace
from math import inf

import pyro.distributions as dist
import pytest
import torch
from scipy.stats import f as fisher
from support.mutations import must_fail, mutation
from support.statistics import z_score
from torch.testing import assert_close

from pyro_flowsamp.flows import mixture_fit
from pyro_flowsamp.flows.mixture_fit import Mixture
from pyro_flowsamp.flows.recipes import coupling


def clusters(num, weights, centres):
    k = torch.tensor(weights).multinomial(num, replacement=True)
    return torch.tensor(centres)[k] + torch.randn(num, len(centres[0]))


def test_as_many_components_as_clusters():
    torch.manual_seed(0)
    fit = mixture_fit.fit_mixture(clusters(2000, [0.25, 0.75], [[8.0, 0.0], [-8.0, 0.0]]), 16)
    order = fit.locs[:, 0].argsort()
    assert len(order) == 2
    assert_close(
        fit.log_weights.exp()[order].float(), torch.tensor([0.75, 0.25]), atol=0.04, rtol=0
    )
    assert_close(fit.locs[order, 0].float(), torch.tensor([-8.0, 8.0]), atol=0.2, rtol=0)


def test_one_component_of_one_cluster():
    torch.manual_seed(0)
    assert len(mixture_fit.fit_mixture(torch.randn(1000, 5), 16).log_weights) == 1


def test_a_flow_evaluates_and_saves_only_what_it_uses():
    torch.manual_seed(0)
    flow = coupling(2, components=16)
    flow.initialize_from(clusters(2000, [0.5, 0.5], [[8.0, 0.0], [-8.0, 0.0]]))
    used = len(flow.base(None).mixture.log_weights)
    assert used < 16
    other = coupling(2, components=16)
    other.load_state_dict(flow.state_dict())
    x = flow(None).sample((100,))
    assert len(other.base(None).mixture.log_weights) == used
    assert torch.equal(other(None).log_prob(x), flow(None).log_prob(x))


# ---- Student-t components ------------------------------------------------------------------------

TRILS = torch.stack([torch.eye(2), torch.tensor([[2.0, 0.0], [1.0, 0.5]])]).double()
LOCS = torch.tensor([[-6.0, 0.0], [6.0, 1.0]]).double()


def two_of_them(df):
    return Mixture(torch.tensor([0.3, 0.7]).double().log(), LOCS, TRILS, df)


@pytest.mark.parametrize("df", [1.0, 3.0, 10.0])
def test_the_density_is_that_of_pyro(df):
    parts = dist.MultivariateStudentT(torch.tensor(df).double(), LOCS, TRILS)
    weights = dist.Categorical(torch.tensor([0.3, 0.7]).double())
    x = 8 * torch.randn(200, 2).double()
    truth = torch.distributions.MixtureSameFamily(weights, parts).log_prob(x)
    assert_close(two_of_them(df).log_prob(x), truth)


def error_of_mass(df=3.0):
    x = torch.linspace(-3000, 3000, 600_001).double()
    mixture = Mixture(torch.zeros(1).double(), torch.ones(1, 1).double(), TRILS[:1, :1, :1], df)
    return abs(float(torch.trapezoid(mixture.log_prob(x[:, None]).exp(), x)) - 1)


def test_the_density_integrates_to_one():
    assert error_of_mass() < 1e-4
    assert error_of_mass(inf) < 1e-9


def draw_scores(df=3.0):
    """Return z-scores of draws: shares of components, shares beyond a radius of each."""
    mixture = two_of_them(df)
    x = mixture.sample(20_000)
    square = mixture.square_distances(x) / 2
    scores = []
    for k, share in enumerate((0.3, 0.7)):
        own = mixture.joint_log_prob(x).softmax(-1)[:, k]  # its mean is the weight
        scores.append(z_score(own[:, None], share))
        beyond = own * (square[:, k] > 9)
        scores.append(z_score(beyond[:, None], share * float(fisher.sf(9, 2, df))))
    return torch.cat(scores)


def test_draws_have_the_density():
    assert draw_scores().abs().max() < 4


@mutation(Mixture, "sample")
def gaussian_draws(sample, self, num):
    return sample(self._replace(df=inf), num)


def test_draws_need_their_heavy_tails():
    must_fail(gaussian_draws, score=lambda: draw_scores().abs().max(), above=10)


TAILS = mixture_fit.MixtureFitOptions(degrees_of_freedom=(inf, 10.0, 3.0))


def error_of_scale():
    """Return the error of a fitted scale, relative to it, of draws of a Student-t."""
    torch.manual_seed(0)
    x = LOCS[0] + dist.StudentT(3.0).sample((8000, 1)).double() * torch.tensor([2.0]).double()
    fit = mixture_fit.fit_mixture(x[:, :1], 1, replace(TAILS, degrees_of_freedom=(3.0,)))
    return abs(float(fit.scale_trils) / 2 - 1)


def test_tails_and_scale_are_recovered():
    assert error_of_scale() < 0.05


@mutation(mixture_fit, "_maximize")
def plain_moments(_maximize, x, resp, weights, ridge, df):
    return _maximize(x, resp, torch.ones_like(weights), ridge, df)


def test_tails_need_weights():
    must_fail(plain_moments, score=error_of_scale, above=0.2)


def test_two_components_with_tails():
    torch.manual_seed(0)
    fit = mixture_fit.fit_mixture(two_of_them(3.0).sample(3000), 16, TAILS)
    assert fit.df == 3.0
    exact = two_of_them(3.0)
    x = exact.sample(5000)
    loss = (exact.log_prob(x) - fit.log_prob(x)).mean()
    assert float(loss) < 0.02
    assert mixture_fit.fit_mixture(two_of_them(inf).sample(3000), 16, TAILS).df >= 10


HEAVIER = replace(
    TAILS, degrees_of_freedom=(inf, 3.0, 2.0, 1.5, 1.0), tolerance=1e-3, heavier_tail_errors=1.0
)


def shares_of_wrong_tails(draws=1000, fits=12):
    """Return shares of fits to draws of a Student-t(2) whose tails are too thin, or too heavy."""
    found = []
    for seed in range(fits):
        torch.manual_seed(seed)
        x = dist.StudentT(2.0).sample((draws, 1)).double()
        ridge = 1e-6 / float(x.var(0).mean())
        found.append(mixture_fit.fit_mixture(x, 16, replace(HEAVIER, ridge=ridge)).df)
    return sum(df > 2 for df in found) / fits, sum(df < 1.5 for df in found) / fits


def test_tails_are_rarely_too_thin_or_far_too_heavy():
    assert max(shares_of_wrong_tails()) <= 1 / 12


def test_gaussians_are_rarely_taken_for_heavy_tails():
    found = []
    for seed in range(12):
        torch.manual_seed(seed)
        found.append(mixture_fit.fit_mixture(torch.randn(1000, 2), 4, HEAVIER).df)
    assert found.count(inf) >= 10


@mutation(mixture_fit, "fit_mixture")
def few_kinds(fit_mixture, x, most, options):
    return fit_mixture(x, most, replace(options, degrees_of_freedom=(inf, 3.0, 1.0)))


@mutation(mixture_fit, "_predicts_better")
def all_heavier_are_fair(_predicts_better, one, other, draws, errors):
    return errors < 1 and _predicts_better(one, other, draws, errors)


@pytest.mark.parametrize("wrong", [few_kinds, all_heavier_are_fair])
def test_several_kinds_are_compared_by_their_errors(wrong):
    must_fail(wrong, score=lambda: max(shares_of_wrong_tails()), above=1 / 12)


def test_components_that_do_not_overlap_are_separate():
    """A chain of overlapping components is one mode, whatever the distance of its ends."""
    locs = torch.tensor([[0.0], [2.0], [4.0], [6.0], [50.0], [52.0]]).double()
    mixture = Mixture(torch.zeros(6).double().log_softmax(0), locs, torch.ones(6, 1, 1).double())
    groups = mixture.separated(mixture.sample(2000), overlap=0.01).tolist()
    assert groups == [0, 0, 0, 0, 1, 1]
    far = Mixture(mixture.log_weights, 10 * locs, mixture.scale_trils)
    assert far.separated(far.sample(2000), overlap=0.01).tolist() == list(range(6))
