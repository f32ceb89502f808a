"""The evidence, by z-scores against exact values, and broken estimators."""

import copy
import pickle
from math import log, pi

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import stdtrit
from scipy.stats import norm, t
from support.diagnosed import diagnosed
from support.mutations import must_fail, mutation

from pyro_flowsamp import IMH, AutoFlow, FitOptions, Target, VectorizedMCMC, log_evidence, weights
from pyro_flowsamp.diagnostics import evidence
from pyro_flowsamp.diagnostics.evidence import bridge_evidence, evidence_estimates
from pyro_flowsamp.diagnostics.fitted_evidence import fitted_evidence
from pyro_flowsamp.problems import exp_gauss
from pyro_flowsamp.sampling.candidates import gaussian_guide
from pyro_flowsamp.weights import (
    Estimate,
    degrees_of_variance,
    log_mean_weight,
    pareto_k,
    smoothed_log_weights,
    student_t_quantile,
    summed_degrees,
)

RUNS = 100
LOG_Z = 3.0
FEW_STEPS = evidence.EvidenceOptions(max_steps=30)  # broken iterations do not converge


def gaussian_weights(scale, num):
    """Log weights of exp(LOG_Z) N(0, 1) under N(0, scale), at draws of both."""

    def log_w(x):
        return LOG_Z - 0.5 * x.square() + 0.5 * (x / scale).square() + torch.tensor(scale).log()

    x, y = torch.randn(4, num // 4).double(), scale * torch.randn(num).double()
    return log_w(x), log_w(y)


def chain_weights(scale, num, correlation=0.8):
    """The same at states of autoregressive chains."""
    x = torch.empty(4, num // 4).double()
    state = torch.randn(4).double()
    for i in range(num // 4):
        x[:, i] = state
        noise = (1 - correlation**2) ** 0.5 * torch.randn(4).double()
        state = correlation * state + noise
    ratio = -0.5 * x.square() + 0.5 * (x / scale).square() + torch.tensor(scale).log()
    return LOG_Z + ratio, gaussian_weights(scale, num)[1]


@pytest.mark.parametrize("shape", [(400,), (400, 1)])
def test_degrees_of_the_error_of_weights(shape):
    """Of one column they are those of its variance; few where few weights decide it."""
    log_w = 2 * torch.randn(shape).double()
    found = log_evidence(log_w)
    assert found.value.shape == shape[1:]
    if len(shape) == 1:
        assert found.degrees == pytest.approx(degrees_of_variance(log_w.exp(), 400))
        assert found.degrees < 40
        assert log_evidence(torch.zeros(9)).degrees == torch.inf
    else:
        assert found.degrees == torch.inf


def bridge_scores(scale=1.5, runs=RUNS, draws=gaussian_weights, num=400):
    found = []
    for seed in range(runs):
        torch.manual_seed(seed)
        value, error = bridge_evidence(*draws(scale, num), FEW_STEPS)
        found.append((value - LOG_Z) / error)
    return torch.stack(found)


def badness(z):
    """The z-score of the mean of z-scores, or of the mean of their squares."""
    n = len(z) ** 0.5
    return max(abs(float(z.mean())) * n, abs(float(z.square().mean()) - 1) * n / 2**0.5)


@pytest.mark.parametrize("scale", [0.6, 1.5])  # too narrow: no variance of the weights
def test_bridge_sampling(scale):
    assert badness(bridge_scores(scale)) < 4


@pytest.mark.parametrize("shift", [-600.0, 600.0])
def test_the_error_does_not_depend_on_the_size_of_the_evidence(shift):
    torch.manual_seed(0)
    states, fresh = gaussian_weights(1.5, 400)
    value, error = bridge_evidence(states, fresh)
    far, same = bridge_evidence(states + shift, fresh + shift)
    assert float(far) == pytest.approx(float(value) + shift)
    assert float(same) == pytest.approx(float(error))


def test_bridge_sampling_of_chains():
    assert badness(bridge_scores(draws=chain_weights)) < 4


@mutation(evidence, "effective_sample_sizes")
def draws_count_as_independent(effective_sample_sizes, x):
    return torch.full(x.shape[:1], float(x[0].numel())).double()


@mutation(evidence, "_bridge_terms")
def one_ratio_upside_down(_bridge_terms, states, fresh, s1, s2, log_r):
    f, g = _bridge_terms(states, fresh, s1, s2, log_r)
    return f, g + states - log_r


@mutation(evidence, "_bridge_terms")
def shares_exchanged_in_one_term(_bridge_terms, states, fresh, s1, s2, log_r):
    f, _ = _bridge_terms(states, fresh, s1, s2, log_r)
    return f, _bridge_terms(states, fresh, s2 - 1.0, s1, log_r)[1]


@pytest.mark.parametrize("wrong", [one_ratio_upside_down, shares_exchanged_in_one_term])
def test_bridge_terms_must_be_right(wrong):
    must_fail(wrong, score=lambda: badness(bridge_scores(runs=30)), above=8)


def test_correlated_draws_must_not_count_as_independent():
    score = lambda: badness(bridge_scores(draws=chain_weights, num=800))  # noqa: E731
    must_fail(draws_count_as_independent, score=score, above=6)


# ---- importance sampling -------------------------------------------------------------------------


def importance_scores(scale=1.5, runs=RUNS, num=400):
    found = []
    for seed in range(runs):
        torch.manual_seed(seed)
        value, error = log_mean_weight(smoothed_log_weights(gaussian_weights(scale, num)[1]))
        found.append((value - LOG_Z) / error)
    return torch.stack(found)


def test_importance_sampling():
    assert badness(importance_scores()) < 4


def error_of_smoothed():
    """The mean error of smoothed weights over that of plain ones, for k = 0.65."""
    torch.manual_seed(0)
    k, errors = 0.65, []
    for _ in range(RUNS):
        log_w = -k * torch.rand(1000).double().log()
        plain, smooth = (log_mean_weight(w).value for w in (log_w, smoothed_log_weights(log_w)))
        errors.append((torch.stack([plain, smooth]).exp() * (1 - k) - 1).abs())
    plain, smooth = torch.stack(errors).mean(0)
    return float(smooth / plain)


def test_smoothing_reduces_the_error_of_heavy_tails():
    assert error_of_smoothed() < 0.9


@mutation(weights, "_tail_shape")
def a_heavier_tail(_tail_shape, excess):
    k, sigma = _tail_shape(excess)
    return k + 0.5, sigma


@mutation(weights, "_tail_shape")
def a_tail_without_a_scale(_tail_shape, excess):
    return _tail_shape(excess)[0], 0.0


@pytest.mark.parametrize("wrong", [a_heavier_tail, a_tail_without_a_scale])
def test_the_tail_must_be_the_fitted_one(wrong):
    must_fail(wrong, score=error_of_smoothed, above=1)


def test_smoothing_keeps_the_order_and_the_number():
    torch.manual_seed(0)
    log_w = torch.randn(500).double() * 2
    log_w[7] = -torch.inf
    smooth = smoothed_log_weights(log_w)
    assert smooth.isfinite().sum() == 499 and smooth[7] == -torch.inf
    assert (smooth.argsort() == log_w.argsort()).all() and smooth.max() <= log_w.max()
    assert (smoothed_log_weights(torch.zeros(100)) == 0).all()


def test_k_of_states_follows_from_that_of_draws():
    """States have the weights of draws of q in proportion to these: k becomes k / (1 - k)."""
    torch.manual_seed(0)
    k = 0.4
    log_w = -k * torch.rand(4_000_000).double().log()
    states = log_w[torch.multinomial(log_w.exp(), 50_000, replacement=True)]
    assert abs(pareto_k(log_w[:50_000]) - k) < 0.08
    assert abs(pareto_k(states) - k / (1 - k)) < 0.15


# ---- intervals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30, torch.inf])
def test_student_t_quantiles(degrees):
    for p in (0.025, 0.5, 0.9, 0.9995):
        assert student_t_quantile(p, degrees) == pytest.approx(stdtrit(degrees, p), abs=1e-7)


def test_islands_need_student_t():
    """Of four islands, 95 % intervals by t cover the truth, and those by the normal do not."""
    torch.manual_seed(0)
    log_w = 0.02 * torch.randn(4, 4000).double()
    found = log_mean_weight(log_w)
    for degrees, covered in ((3, 0.95), (torch.inf, 0.855)):
        low, high = found.interval(degrees=degrees)
        inside = ((low < 0.0002) & (high > 0.0002)).double().mean()
        assert abs(float(inside) - covered) < 0.015


def test_degrees_of_a_variance():
    """Sample variances of 100 exponential values, of kurtosis 9: 25 degrees of freedom."""
    torch.manual_seed(0)
    x = -torch.rand(20_000, 100).double().log()
    variance = x.var(1)
    assert 2 / float(variance.var()) == pytest.approx(25, rel=0.1)
    found = degrees_of_variance(-torch.rand(1_000_000).double().log(), 100)
    assert found == pytest.approx(25, rel=0.05)
    assert degrees_of_variance(torch.ones(9), 9) == torch.inf
    assert degrees_of_variance(torch.tensor([0.0] * 10_000 + [1.0]), 10_001) == pytest.approx(
        2, 0.01
    )


@pytest.mark.parametrize("size", [2, 3, 5])
def test_degrees_of_the_variance_of_few_values(size):
    """Those of normal values are one less than there are; of two values there is one."""
    torch.manual_seed(0)
    many = torch.randn(1_000_000).double()
    assert degrees_of_variance(many, size) == pytest.approx(size - 1, rel=0.01)
    signs = torch.randint(2, (200_000, size)).double()
    variance = signs.var(1)
    expected = 2 * float(variance.mean()) ** 2 / float(variance.var())
    assert degrees_of_variance(torch.tensor([0.0, 1.0]), size) == pytest.approx(expected, rel=0.02)


def test_an_estimate_is_a_pair_with_degrees():
    one = Estimate(torch.tensor(1.0), torch.tensor(2.0), 3.0)
    assert len(one) == 2
    assert copy.deepcopy(one).degrees == pickle.loads(pickle.dumps(one)).degrees == 3
    assert one._replace(value=torch.tensor(0.0)).degrees == torch.inf
    low, high = one.interval()
    assert float(high - 1) == pytest.approx(2 * student_t_quantile(0.975, 3))
    assert float(one.interval(degrees=torch.inf)[1]) < float(high)


def test_summed_degrees():
    """Welch: the variance of a sum of scaled chi-squared variables is that of its degrees."""
    torch.manual_seed(0)
    parts = ((1.0, 4.0), (3.0, 10.0), (0.5, 2.0))
    total = sum(a * torch.distributions.Chi2(n).sample((200_000,)) / n for a, n in parts)
    expected = 2 * float(total.mean()) ** 2 / float(total.var())
    assert summed_degrees(*parts) == pytest.approx(expected, rel=0.03)


def scores_of_few_draws(runs=200):
    """Plain z-scores, and their normal scores by t, where a few draws are in the overlap."""
    found = []
    for seed in range(runs):
        torch.manual_seed(seed)
        x, y = torch.randn(16, 4).double(), 5.0 + torch.randn(64).double()
        states, fresh = (((at - 5).square() - at.square()) / 2 for at in (x, y))
        one = bridge_evidence(states, fresh, evidence.EvidenceOptions(max_steps=60))
        z = float(one.value / one.standard_error)
        found.append((z, norm.ppf(t.cdf(z, one.degrees))))
    return torch.tensor(found).T.square().mean(1)


def test_few_draws_need_student_t():
    plain, by_t = scores_of_few_draws()
    assert plain > 1.3 > by_t > 0.8


@mutation(evidence, "degrees_of_variance")
def of_normal_values(degrees_of_variance, x, size):
    return float(size)


def test_degrees_must_be_those_of_the_values():
    must_fail(of_normal_values, score=lambda: scores_of_few_draws()[1], above=1.3)


def test_quantiles_refuse_bad_input():
    with pytest.raises(ValueError, match=r"probability in \(0, 1\), got 1.5"):
        student_t_quantile(1.5, 3)
    with pytest.raises(ValueError, match="positive degrees of freedom, got 0"):
        student_t_quantile(0.5, 0)
    assert Estimate(torch.zeros(()), torch.ones(())).interval(0.5)[0] < 0


# ---- rounding ------------------------------------------------------------------------------------


def single_precision(num, seed):
    """The mean of data under a normal prior in float32, its exact guide, and its log evidence."""
    torch.manual_seed(seed)
    y = (200 * torch.randn(num)).round() / 64  # that float32 represents exactly
    normal = torch.distributions.Normal

    def energy(x):
        return -normal(x, 1.0).log_prob(y).sum(-1) - normal(0.0, 1.0).log_prob(x).sum(-1)

    mean, width = float(y.double().sum()) / (num + 1), (num + 1) ** -0.5
    gain = num * log(2 * pi) + float(y.double().square().sum()) - (mean / width) ** 2
    target = Target.from_energy(energy, 1)
    guide = gaussian_guide(target, torch.tensor([mean]), torch.tensor([[width]]))
    guide.trained = True
    return target, guide, log(width) - 0.5 * gain


def rounding_scores(runs=10):
    """z-scores of the guide, of a bridge to its draws, and of a mixture fitted to its draws."""
    found = []
    for seed in range(runs):
        target, guide, truth = single_precision((300, 3000)[seed % 2], seed)
        x = guide.proposal().sample_and_log_prob(800)[0].unflatten(0, (4, 200))
        draws = diagnosed(x, {}, target=target, proposal=guide.proposal())
        for one in (
            log_evidence(guide),
            evidence.estimates_of_draws(draws, evidence.EvidenceOptions(num_draws=800))["bridge"],
            fitted_evidence(x, target, evidence.EvidenceOptions(num_draws=800, max_components=1)),
        ):
            found.append((float(one.value) - truth) / float(one.standard_error))
    return torch.tensor(found).view(runs, 3).square().mean(0).sqrt()


def test_errors_by_rounding_are_counted():
    """Of an exact flow the spread of the weights alone would say a tenth of the error."""
    assert (rounding_scores() < 1.5).all()


@mutation(Estimate, "with_error")
def errors_of_the_spread_alone(with_error, self, error):
    return self


def test_errors_by_rounding_are_seen():
    must_fail(errors_of_the_spread_alone, score=lambda: float(rounding_scores(4)[0]), above=4)


def test_an_error_more():
    """A known error widens the interval and has no degrees of freedom of its own."""
    one = Estimate(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0]), 5.0).with_error(4.0)
    assert one.standard_error.tolist() == [5.0, 5.0] and one.value.tolist() == [1.0, 2.0]
    assert one.degrees == pytest.approx(summed_degrees((9.0, 5.0), (16.0, torch.inf)))
    assert weights.rounding_size(torch.tensor([torch.nan, -torch.inf]), torch.float32) == 0.0


# ---- sources -------------------------------------------------------------------------------------


def regression(X, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(X @ w, 0.5).to_event(1), obs=y)


def regression_data():
    torch.manual_seed(3)
    X = torch.randn(12, 2)
    return X, X @ torch.tensor([1.0, -0.5]) + 0.5 * torch.randn(12)


@pytest.fixture(scope="module")
def fitted():
    X, y = regression_data()
    pyro.set_rng_seed(0)
    guide = AutoFlow(regression, flow="gaussian", options=FitOptions(progress=False))
    guide.fit(X, y)
    covariance = X @ X.mT + 0.25 * torch.eye(12)
    truth = dist.MultivariateNormal(torch.zeros(12), covariance).log_prob(y)
    return guide, (X, y), float(truth)


def test_a_conjugate_regression(fitted):
    """By a guide, a run, and an ArviZ object with both; flows worse than the right Gaussian too."""
    from pyro_flowsamp import to_arviz

    guide, data, truth = fitted
    value, error = log_evidence(guide, *data)
    assert abs(float(value) - truth) < 0.01 and error < 0.01
    run = VectorizedMCMC(IMH(regression, guide=guide), 50, 10, 40, disable_progbar=True)
    run.run(*data)
    assert abs(float(log_evidence(run).value) - truth) < 0.01
    exported = to_arviz(run, log_likelihood=False)
    target = Target.from_model(regression, *data)
    found = evidence_estimates(exported, guide, target)
    assert found.keys() == {"bridge", "importance"}
    assert all(abs(float(e.value) - truth) < 0.01 for e in found.values())
    exported.attrs.update(log_evidence=1.5, log_evidence_error=0.25)
    stored = log_evidence(exported)
    assert (float(stored.value), float(stored.standard_error)) == (1.5, 0.25)
    assert evidence_estimates(exported).keys() == {"stored"}


def gaussian_problem():
    """A Gaussian in three dimensions with a known constant, and its moments."""
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1) - LOG_Z, 3)
    truth = LOG_Z + 1.5 * torch.tensor(2 * torch.pi).log()
    return target, truth, torch.zeros(3), torch.eye(3)


def regression_problem():
    """The posterior of the conjugate regression."""
    X, y = regression_data()
    covariance = torch.linalg.inv(torch.eye(2) + 4 * X.mT @ X)
    noise = X @ X.mT + 0.25 * torch.eye(12)
    truth = dist.MultivariateNormal(torch.zeros(12), noise).log_prob(y)
    mean = covariance @ (4 * X.mT @ y)
    return Target.from_model(regression, X, y), truth, mean, torch.linalg.cholesky(covariance)


def mixture_problem():
    """Two modes, with three tenths and seven tenths of the mass, and one wide Gaussian."""
    at, shares = torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), torch.tensor([0.3, 0.7])

    def energy(x):
        square = (x[..., None, :] - at).square().sum(-1)
        return -(shares.log() - 0.5 * square).logsumexp(-1)

    truth = torch.tensor(2 * torch.pi).log()
    return Target.from_energy(energy, 2), truth, torch.zeros(2), torch.tensor([2.0, 1.0]).diag()


def run_scores(problem=gaussian_problem, runs=RUNS):
    """Both estimators of runs with a flow that is beside the target and too wide."""
    target, truth, mean, chol = problem()
    scores = {"bridge": [], "importance": []}
    guide = gaussian_guide(target, mean + 0.2 * chol.sum(-1), 1.3 * chol)
    run = VectorizedMCMC(IMH(guide=guide), 20, 5, 20, disable_progbar=True)
    for seed in range(runs):
        torch.manual_seed(seed)
        run.run()
        options = evidence.EvidenceOptions(num_draws=400)
        for name, (value, error) in evidence_estimates(run, options=options).items():
            scores[name].append((value - truth) / error)
    return max(badness(torch.stack(z)) for z in scores.values())


@pytest.mark.parametrize("problem", [gaussian_problem, regression_problem, mixture_problem])
def test_runs_have_right_errors(problem):
    assert run_scores(problem) < 4


@mutation(evidence, "weights_of_states")
def weights_of_other_states(weights_of_states, draws):
    return weights_of_states(draws).roll(1, 0) + 0.3


def test_the_weights_of_states_must_be_theirs():
    must_fail(weights_of_other_states, score=lambda: run_scores(runs=20), above=8)


def test_sixteen_modes_by_exact_draws():
    """Bridge sampling by exact draws, and a wide Gaussian, of a target with a known constant."""
    problem = exp_gauss(4, 2, 3.0)
    guide = gaussian_guide(problem.target, torch.zeros(4), torch.tensor([4.0, 4, 1, 1]).diag())
    proposal, z = guide.proposal(), []
    for seed in range(RUNS):
        torch.manual_seed(seed)
        x = problem.sample(400)
        log_p = problem.target.log_prob(x).double()
        states = (log_p - proposal.log_prob(x).double()).reshape(4, 100)
        y, log_q = proposal.sample_and_log_prob(1000)
        fresh = problem.target.log_prob(y).double() - log_q.double()
        value, error = bridge_evidence(states, fresh)
        z.append((value - problem.log_z) / error)
    assert badness(torch.stack(z)) < 4


def test_bad_sources(fitted):
    guide, data, _ = fitted
    with pytest.raises(ValueError, match="the guide is untrained"):
        log_evidence(AutoFlow(regression), *data)
    with pytest.raises(ValueError, match="type list has no draws"):
        log_evidence([1, 2])
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        evidence.EvidenceOptions(num_draws=0)
    run = VectorizedMCMC(IMH(regression, guide=guide), 5, 5, 4, disable_progbar=True)
    run.min_acceptance = 0.0
    run.run(*data)
    with pytest.raises(ValueError, match="stored its model's arguments"):
        log_evidence(run, 1)
