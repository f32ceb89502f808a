"""The evidence of draws alone, by z-scores against exact values, and broken estimators."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from support.mutations import must_fail, mutation

from pyro_flowsamp import EvidenceOptions, Target, log_evidence, sample
from pyro_flowsamp.diagnostics import fitted_evidence as fitted
from pyro_flowsamp.diagnostics.fitted_evidence import fitted_evidence
from pyro_flowsamp.problems import banana, unequal_pair
from pyro_flowsamp.smc.coordinates import WhitenedTarget

BRIEF = EvidenceOptions(num_draws=400, max_steps=50, max_components=4)
LOG_Z = 2.0


def shifted(problem):
    """The same target with the log evidence LOG_Z."""
    return Target.from_energy(lambda x: -problem.target.log_prob(x) - LOG_Z, problem.target.dim)


def independent(problem, chains, num):
    return problem.sample(chains * num).unflatten(0, (chains, num))


def autoregressive(problem, chains, num, correlation=0.8):
    """Chains of a Gaussian in two dimensions."""
    x, state = [], torch.randn(chains, 2).double()
    for _ in range(num):
        x.append(state)
        noise = (1 - correlation**2) ** 0.5 * torch.randn(chains, 2).double()
        state = correlation * state + noise
    return torch.stack(x, 1)


def gaussian(dim):
    """A normal distribution, as a problem of exact draws."""

    class Normal:
        target = Target.from_energy(
            lambda x: 0.5 * (x.square() + torch.tensor(2 * torch.pi).log()).sum(-1),
            dim,
            dtype=torch.double,
        )

        @staticmethod
        def sample(num):
            return torch.randn(num, dim).double()

    return Normal


def scores(problem, draw=independent, chains=4, num=100, runs=30, options=BRIEF):
    target, found = shifted(problem), []
    for seed in range(runs):
        torch.manual_seed(seed)
        value, error = fitted_evidence(draw(problem, chains, num), target, options)
        found.append((value - LOG_Z) / error)
    return torch.stack(found)


def badness(z):
    """The z-score of the mean of z-scores, or of the mean of their squares."""
    n = len(z) ** 0.5
    return max(abs(float(z.mean())) * n, abs(float(z.square().mean()) - 1) * n / 2**0.5)


@pytest.mark.parametrize("make", [banana, unequal_pair])
def test_targets_that_are_not_gaussian(make):
    assert badness(scores(make())) < 4


def test_many_dimensions():
    assert badness(scores(gaussian(10), num=40)) < 4


def test_chains():
    assert badness(scores(gaussian(2), autoregressive, chains=8)) < 4


def test_one_chain_is_cut_in_the_middle():
    assert badness(scores(gaussian(2), chains=1, num=400)) < 4


@mutation(fitted, "_halves")
def fitted_to_the_same_draws(_halves, x, options):
    return x, x


def test_draws_must_not_be_those_of_the_fit():
    must_fail(
        fitted_to_the_same_draws, score=lambda: badness(scores(gaussian(10), num=40)), above=8
    )


@mutation(WhitenedTarget, "log_prob")
def without_the_determinant(log_prob, self, u):
    """A density that lacks the determinant of its coordinates."""
    return log_prob(self, u) - self.log_det


def test_the_determinant_must_be_there():
    must_fail(without_the_determinant, score=lambda: badness(scores(banana(), runs=5)), above=20)


# ---- through log_evidence ------------------------------------------------------------------------


def model(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_draws_of_pyros_own_kernel():
    """NUTS has no flow."""
    pyro.set_rng_seed(0)
    y = torch.tensor(1.0)
    mcmc = MCMC(NUTS(model), num_samples=300, warmup_steps=100, disable_progbar=True)
    mcmc.run(y)
    value, error = log_evidence(mcmc, target=Target.from_model(model, y))
    truth = dist.Normal(0.0, 2**0.5).log_prob(y)
    assert abs(value - truth) < 4 * error < 0.1


@pytest.mark.slow
def test_a_result_of_sample():
    """With the target the evidence is that of the draws, and without it the stored one."""
    target = gaussian(2).target
    data = sample(target, candidates=["HMC"], num_samples=20, num_chains=50, seed=0, progress=False)
    assert float(log_evidence(data).value) == pytest.approx(data.attrs["log_evidence"])
    value, error = log_evidence(data, target=target)
    assert abs(value) < 4 * error < 0.2 and float(value) != data.attrs["log_evidence"]


def test_too_few_draws():
    with pytest.raises(ValueError, match="20 draws in each half .* needs 41"):
        fitted_evidence(torch.randn(4, 10, 10), gaussian(10).target)


def test_angles():
    target = Target.from_energy(lambda x: -x.cos().sum(-1), 1, angles=[0])
    with pytest.raises(ValueError, match="no density of angles"):
        fitted_evidence(torch.rand(4, 100, 1), target)


@pytest.mark.parametrize("chains, num", [(1000, 20), (4, 5000), (2, 20_000)])
def test_draws_are_thinned(chains, num):
    x = torch.arange(chains * num).reshape(chains, num, 1)
    kept = fitted._thinned(x, 1000)
    assert 300 <= kept.shape[0] * kept.shape[1] <= 1000 and kept.shape[1] >= fitted.FEWEST_KEPT
