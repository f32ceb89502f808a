"""Stays of an independence sampler, against closed forms and against chains themselves."""

import pytest
import torch
from support.mutations import must_fail, mutation
from torch.distributions import StudentT
from torch.testing import assert_close

from pyro_flowsamp import stays
from pyro_flowsamp.transitions import independence

K = 0.4  #: the Pareto k of weights of draws of q
SHARE = 0.01
TARGET, THIN = StudentT(2.0), StudentT(3.0, 0.0, 0.8)  #: a tail, and one that is thinner
EDGE = (2 / (1 / (1 - SHARE) ** 2 - 1)) ** 0.5  #: beyond which the target has this share


# ---- acceptance ----------------------------------------------------------------------------------


def acceptance(log_w):
    """The mean acceptance probability for w = u^-K with u uniform under q."""
    u = (-log_w / K).exp()
    return u + u**K * (1 - u ** (1 - K)) / (1 - K)


def error_of_stays(of_states):
    """The largest relative error of expected stays at several weights."""
    torch.manual_seed(0)
    u = torch.rand(100_000).double()
    if of_states:  # their density is in proportion to u^-K
        u = u ** (1 / (1 - K))
    some = torch.cat([torch.tensor([0.001, 0.01, 0.1, 0.5, 1.0]).double(), u[:95]])
    if of_states:
        found = stays.expected_stays(-K * some.log(), states=-K * u.log())
        both = torch.cat([-K * some.log(), -K * u.log()])
        assert_close(stays.expected_stays(both)[:100], found, rtol=1e-2, atol=0)
    else:
        found = stays.expected_stays(-K * some.log(), -K * u.log())
    return float((found * acceptance(-K * some.log()) - 1).abs().max())


@pytest.mark.parametrize("of_states", [True, False])
def test_stays_are_those_of_the_closed_form(of_states):
    assert error_of_stays(of_states) < 0.02


@mutation(stays, "expected_stays")
def states_as_draws_of_q(expected_stays, log_w, proposals=None, states=None):
    states = log_w if states is None else states
    return expected_stays(log_w, states if proposals is None else proposals)


def test_states_need_their_importance_weights():
    must_fail(states_as_draws_of_q, score=lambda: error_of_stays(True), above=0.2)


def test_stays_at_states_without_a_density():
    log_w = torch.tensor([torch.nan, torch.inf, 0.0, -torch.inf])
    found = stays.expected_stays(log_w, torch.zeros(10))
    assert found.tolist() == [torch.inf, torch.inf, 1.0, 1.0]
    assert stays.expected_stays(log_w[:2]).tolist() == [torch.inf, torch.inf]
    assert stays.expected_stays(log_w[2:], torch.full((5,), -torch.inf)).tolist()[0] == torch.inf
    assert stays.ess_of_longest_stays(found, 1000, SHARE) == 0.0


# ---- effective draws -----------------------------------------------------------------------------


def chains(count=4000, draws=120):
    """Stationary chains of the target under a proposal of thinner tails: positions, weights."""
    torch.manual_seed(1)

    def scored(x):
        return independence.init(x[:, None], TARGET.log_prob(x), THIN.log_prob(x))

    state, x, log_w = scored(TARGET.sample((count,)).double()), [], []
    for _ in range(draws):
        proposal = scored(THIN.sample((count,)).double())
        state, _ = independence.step(state, proposal, torch.rand(count).double().log())
        x.append(state.x[:, 0])
        log_w.append(state.log_p - state.log_q)
    return torch.stack(x, 1), torch.stack(log_w, 1)


def ratio_of_sizes():
    """The effective size of the tail by the stays, over that of the chains' own means."""
    x, log_w = chains()
    tail = (x.abs() > EDGE).double()
    share = float(tail.mean())
    true = share * (1 - share) / float(tail.mean(1).var()) * len(x)
    found = stays.expected_stays(log_w.flatten())
    return stays.ess_of_longest_stays(found, x.numel(), SHARE) / true


def test_the_effective_size_of_a_tail():
    assert ratio_of_sizes() == pytest.approx(1, abs=0.2)


@mutation(stays, "ess_of_longest_stays")
def a_stay_counts_once(ess_of_longest_stays, at, number, share, weights=None):
    return ess_of_longest_stays((at + 1) / 2, number, share, weights)


@mutation(stays, "ess_of_longest_stays")
def of_all_states(ess_of_longest_stays, at, number, share, weights=None):
    return ess_of_longest_stays(at, number, 1.0, weights)


@pytest.mark.parametrize("wrong", [a_stay_counts_once, of_all_states])
def test_a_wrong_size_is_seen(wrong):
    must_fail(wrong, score=ratio_of_sizes, above=1.5)


def test_weights_of_points_count():
    at = torch.tensor([1.0, 1.0, 11.0]).double()
    weights = torch.tensor([0.5, 0.495, 0.005])
    assert_close(stays.ess_of_longest_stays(at, 110, 0.01, weights), 110 / 11, rtol=1e-3, atol=0)


# ---- variances of means --------------------------------------------------------------------------


def variances(steps=30, thin=2):
    """Of a mean over a chain among eight states: by its stays, and by powers of its matrix."""
    torch.manual_seed(0)
    p, f = torch.rand(8).double().softmax(0), torch.randn(8, 3).double()
    q = torch.randn(8).double().softmax(0)
    weight = p / q
    weight[4], q[4] = weight[3], p[4] / weight[3]  # equal weights, and q of another sum
    kernel = q / q.sum() * torch.minimum(weight / weight[:, None], torch.ones(8, 8).double())
    acceptance = (q / q.sum() * (weight / weight[:, None]).clamp(max=1)).sum(1)
    kernel = kernel.fill_diagonal_(0.0)
    kernel = kernel + torch.diag(1 - kernel.sum(1))
    f = f - p @ f
    power, total = torch.linalg.matrix_power(kernel, thin), (p[:, None] * f.square()).sum(0)
    shifted, variance = f, total / steps
    for k in range(1, steps):
        shifted = power @ shifted
        variance = variance + 2 * (1 - k / steps) * (p[:, None] * f * shifted).sum(0) / steps
    parts = stays.variances_by_stays(f + 5.0, weight.log(), 1 / acceptance, steps, thin, p)
    return parts.sum(0), variance


@pytest.mark.parametrize("steps, thin", [(2, 1), (30, 1), (30, 3), (1000, 1)])
def test_variances_are_those_of_the_chains_matrix(steps, thin):
    found, true = variances(steps, thin)
    assert_close(found, true, rtol=1e-9, atol=0)


@mutation(stays, "variances_by_stays")
def around_the_common_mean(variances_by_stays, values, log_w, at, steps, thin, weights):
    """Without the means over the states of smaller weights."""
    f = values - weights @ values
    leave = 1 - (1 - 1 / at) ** thin
    return (weights * (2 / leave - 1) / steps)[:, None] * f.square()


@mutation(stays, "variances_by_stays")
def thinning_forgotten(variances_by_stays, values, log_w, at, steps, thin, weights):
    return variances_by_stays(values, log_w, at, steps, 1, weights)


@pytest.mark.parametrize("wrong", [around_the_common_mean, thinning_forgotten])
def test_wrong_variances_are_seen(wrong):
    def error():
        found, true = variances()
        return float((found / true - 1).abs().max())

    must_fail(wrong, score=error, above=0.01)


def test_errors_of_chains_are_those_by_the_stays_at_exact_points():
    """Chains of a thin proposal, and quantiles of the target that no chain has made."""
    x, _ = chains(20_000)
    u = (torch.arange(20_000).double() + 0.5) / 20_000
    points = (2 * u - 1) / (2 * u * (1 - u)).sqrt()
    scores = TARGET.log_prob(points) - THIN.log_prob(points)
    proposals = THIN.sample((100_000,)).double()
    at = stays.expected_stays(scores, TARGET.log_prob(proposals) - THIN.log_prob(proposals))
    values = torch.stack([points > EDGE, points.abs() > EDGE, points < 0], -1).double()
    even = torch.full((20_000,), 1 / 20_000).double()
    found = stays.variances_by_stays(values, scores, at, x.shape[1], 1, even).sum(0)
    means = torch.stack([x > EDGE, x.abs() > EDGE, x < 0], -1).double().mean(1)
    assert_close(found, means.var(0), rtol=0.2, atol=0)


# ---- visits of a set by a reversible kernel ------------------------------------------------------


def two_places(leave=0.02, share=0.01):
    """A lazy chain of three states, the first a place that it hardly leaves: kernel, density."""
    density = torch.tensor([share, 0.4, 0.6 - share]).double()
    enter = leave * share / density[1]
    kernel = torch.tensor([[0.0, leave, 0.0], [enter, 0.0, 0.3], [0.0, 0.0, 0.0]]).double()
    kernel[2, 1] = kernel[1, 2] * density[1] / density[2]
    return kernel + torch.diag(1 - kernel.sum(1)), density


def sizes(known, steps, chains=50):
    """The effective size of the first state by its stays, and by the variance of its share."""
    kernel, density = two_places()
    powers = [torch.eye(3).double()]
    for _ in range(max(known, steps)):
        powers.append(powers[-1] @ kernel)
    stay, share = torch.stack([power[0, 0] for power in powers]), float(density[0])
    lags = torch.arange(steps)
    between = stay[(lags[:, None] - lags).abs()] - share
    variance = share * float(between.mean()) / chains
    found = stays.ess_of_visits(stay[1 : known + 1], share, chains, steps)
    return found, share * (1 - share) / variance


def error_of_visits():
    found, true = sizes(known=99, steps=100)
    return abs(found / true - 1)


def test_visits_are_those_of_the_variance_of_their_share():
    assert error_of_visits() < 1e-9


@pytest.mark.parametrize("known", [2, 3, 8, 33])
def test_correlations_beyond_the_known_ones_have_a_lower_bound(known):
    found, true = sizes(known, steps=400)
    assert true * (1 - 1e-9) < found < 1.5 * true


def test_a_set_is_left_at_once_or_never():
    assert stays.ess_of_visits(torch.full((9,), 0.1), 0.1, 20, 50) == pytest.approx(1000)
    assert stays.ess_of_visits(torch.ones(9), 0.1, 20, 50) == pytest.approx(20)
    back = torch.tensor([0.5, 0.0, 0.5, 0.0])  # that some are back is an error of few chains
    assert stays.ess_of_visits(back, 0.0, 20, 1000) == pytest.approx(20_000 / 2, rel=1e-2)
    few = stays.ess_of_visits(torch.ones(9), 0.1, 20, 5000, number=4)
    assert 20 < few < 10_000  # four chains do not show that it is never left


@mutation(stays, "ess_of_visits")
def as_if_independent_after_a_step(ess_of_visits, stay, share, chains, steps):
    return ess_of_visits(
        torch.cat([stay[:1], torch.full_like(stay[1:], share)]), share, chains, steps
    )


def test_forgotten_lags_are_seen():
    must_fail(as_if_independent_after_a_step, score=error_of_visits, above=1.0)
