"""Exact solutions of the phi^4 model on the circle, and exact draws."""

from math import log, pi, sqrt

import pytest
import torch
from baselines.parallel_tempering import parallel_tempering
from support.lattice import z_score

from pyro_flowsamp.lattice import exact_phi4, phi4, phi4_action, phi4_exact, phi4_observables

MASSES = [0.25, 0.5, 0.75, 1.0]
NUM = 10_000


@pytest.fixture(autouse=True)
def float64(clean_slate):
    torch.set_default_dtype(torch.float64)


# ---- exact solutions ----------------------------------------------------------------------------

CIRCLE = {  # m: log Z, <phi^2>, <S>/N, <|mean|>, P(mean > 0); N = 16, lambda = 1/16, alpha = .01
    0.25: (9.78554716, 1.22196109, 0.30791013, 0.7265533, 0.53229689),
    0.50: (18.76033288, 3.44830998, -0.45534985, 1.7641708, 0.63712593),
    0.75: (37.04379337, 5.65465844, -1.74698399, 2.3359841, 0.75349337),
    1.00: (63.87567319, 7.75398077, -3.52590061, 2.7564626, 0.85284195),
}


@pytest.mark.parametrize("mass", MASSES)
def test_circle(mass):
    truth = exact_phi4(16, mass)
    log_z, mean_square, action, mean_abs, positive = CIRCLE[mass]
    assert truth.log_z == pytest.approx(log_z, abs=2e-8)
    assert truth.mean_square == pytest.approx(mean_square, abs=2e-8)
    assert truth.action == pytest.approx(action, abs=2e-8)
    assert truth.mean_abs == pytest.approx(mean_abs, abs=1e-6)
    assert truth.positive == pytest.approx(positive, abs=2e-8)


def test_density_of_the_mean():
    a = torch.linspace(-8, 8, 4001)
    for sites in (2, 16, 64):
        truth = exact_phi4(sites, 0.75)
        density, cdf = truth.density(a), truth.cdf(a)
        assert density.min() > -1e-12
        assert torch.trapezoid(density, a).item() == pytest.approx(1, abs=1e-9)
        mean_abs = torch.trapezoid(density * a.abs(), a).item()
        assert mean_abs == pytest.approx(truth.mean_abs, abs=1e-6)
        below = torch.cumulative_trapezoid(density, a)
        torch.testing.assert_close(below, cdf[1:], atol=1e-4, rtol=0)
        assert truth.cdf(torch.tensor(0.0)).item() == pytest.approx(1 - truth.positive, abs=1e-12)
    assert truth.density(torch.tensor([-50.0, 50.0])).tolist() == [0, 0]
    torch.testing.assert_close(truth.cdf(torch.tensor([-50.0, 50.0])), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("sites", [2, 3, 16, 64])
def test_gaussian_circle(sites):
    """Without a quartic term it is free: each wave is a Gaussian of its own."""
    truth = exact_phi4(sites, -0.5, 0.0, 0.0)
    waves = 0.5 + 2 - 2 * torch.cos(2 * pi * torch.arange(sites) / sites)
    assert truth.log_z == pytest.approx(float(0.5 * (pi / waves).log().sum()), abs=1e-10)
    assert truth.mean_square == pytest.approx(float((0.5 / waves).mean()), abs=1e-10)
    assert truth.action == pytest.approx(0.5, abs=1e-10)
    assert truth.mean_abs == pytest.approx(sqrt(2 / pi / sites), abs=1e-10)
    assert truth.positive == pytest.approx(0.5, abs=1e-12)
    a = torch.linspace(-1, 1, 5)
    normal = torch.distributions.Normal(0.0, sqrt(1 / sites))
    torch.testing.assert_close(truth.density(a), normal.log_prob(a).exp())
    torch.testing.assert_close(truth.cdf(a), normal.cdf(a))


def test_two_sites_by_quadrature():
    """Other parameters, and a third way: a sum over the plane."""
    params = 2.0, 0.5, 0.2
    axis = torch.arange(-6, 6, 0.02) + 0.01
    x = torch.cartesian_prod(axis, axis)
    log_w = -phi4_action(x, 2, *params)
    w, mean = log_w.softmax(0), x.mean(-1)
    truth = exact_phi4(2, *params)
    assert truth.log_z == pytest.approx(float(log_w.logsumexp(0)) + 2 * log(0.02), abs=1e-10)
    assert truth.mean_square == pytest.approx(float(w @ x[:, 0].square()), abs=1e-10)
    assert truth.action == pytest.approx(float(-w @ log_w) / 2, abs=1e-10)
    assert truth.mean_abs == pytest.approx(float(w @ mean.abs()), abs=1e-4)
    on_the_line = w[mean.abs() < 1e-9].sum() / 2
    assert truth.positive == pytest.approx(float(w[mean > 1e-9].sum() + on_the_line), abs=1e-4)


# ---- exact draws on the circle ------------------------------------------------------------------


@pytest.mark.parametrize("sites, params", [(16, (0.5, 1 / 16, 0.01)), (3, (1.0, 0.5, 0.1))])
def test_exact_draws(sites, params):
    known, truth = phi4(sites, *params), exact_phi4(sites, *params)
    x = known.sample(NUM)
    assert x.shape == (NUM, sites)
    observed = phi4_observables(x, sites, *params)
    for values, mean in [
        (observed.action, truth.action),
        (observed.mean_square, truth.mean_square),
        (x[:, -1].square(), truth.mean_square),
        (observed.mean.abs(), truth.mean_abs),
        (known.assign(x).double(), truth.positive),
        (-known.target.log_prob(x) + known.log_z, known.entropy),
    ]:
        assert abs(z_score(values, mean)) < 4
    torch.testing.assert_close(known.weights[1].item(), truth.positive)
    edges = torch.linspace(-4, 4, 30)
    masses = truth.cdf(edges).diff()
    counts = torch.histogram(observed.mean, edges).hist
    likely = masses * NUM > 10
    chi2 = ((counts - NUM * masses).square() / (NUM * masses))[likely].sum()
    freedom = int(likely.sum())
    assert abs(chi2 - freedom) < 4.5 * sqrt(2 * freedom)


def test_draws_from_a_coarse_grid(monkeypatch):
    """Rejection makes up for any grid: this one is four times coarser than by default."""
    monkeypatch.setattr(phi4_exact, "REJECTED", 3.2)
    params = 1.0, 1 / 16, 0.1
    axis = torch.arange(-6, 6, 0.02) + 0.01
    plane = torch.cartesian_prod(axis, axis)
    w = (-phi4_action(plane, 2, *params)).softmax(0).reshape(len(axis), -1).sum(1)
    x = phi4(2, *params).sample(NUM)
    counts = torch.histogram(x[:, 1], torch.linspace(-6, 6, 61)).hist
    masses = w.reshape(60, -1).sum(1)
    likely = masses * NUM > 10
    chi2 = ((counts - NUM * masses).square() / (NUM * masses))[likely].sum()
    freedom = int(likely.sum())
    assert abs(chi2 - freedom) < 4.5 * sqrt(2 * freedom)


# ---- draws by Markov chains ---------------------------------------------------------------------


def z_scores(per_chain, truths):
    """Of averages over independent chains, ``(C,)`` each."""
    return {name: z_score(values, truths[name]) for name, values in per_chain.items()}


@pytest.mark.slow
def test_tempering_on_the_circle():
    truth = exact_phi4(16, 0.5)
    draws = parallel_tempering(phi4(16, 0.5).target, 48, 250, 250, num_replicas=6)
    observed = phi4_observables(draws.x, 16, 0.5)
    z = z_scores(
        {
            "action": observed.action.mean(1),
            "mean_square": observed.mean_square.mean(1),
            "mean_abs": observed.mean.abs().mean(1),
            "positive": (observed.mean > 0).double().mean(1),
        },
        vars(truth),
    )
    assert all(abs(v) < 4.5 for v in z.values()), z
    evidence = draws.evidence
    assert abs(evidence.value - truth.log_z) < 4.5 * evidence.standard_error
