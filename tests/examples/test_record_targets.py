"""The literature's targets: densities by scipy, exact draws by quadrature, evidence by two ways."""

from math import log, sqrt

import numpy as np
import pytest
import torch
from problems.known.reference import ImportanceOptions
from problems.records import TARGETS, energies, evidence, posteriors
from problems.records.evidence import AnnealingOptions
from scipy import stats
from scipy.integrate import quad
from scipy.special import expit, logsumexp

from pyro_flowsamp.target import as_target

NUMBER = 20_000  #: exact draws
MOST = 4.5  #: of z-scores


@pytest.fixture(autouse=True)
def in_float64():
    torch.set_default_dtype(torch.float64)


def points_of(name, num=5):
    """A target, and points at which its density is neither zero nor flat."""
    model, data = TARGETS[name].make()
    target = as_target(model, *data)
    torch.manual_seed(0)
    return target, target.initial_points(num)


# ---- densities -----------------------------------------------------------------------------------


def gaussians(x, means, sd):
    logs = [stats.norm.logpdf(x, m, sd).sum(-1) for m in means]
    return logsumexp(logs, 0) - log(len(means))


def forty(seed):
    torch.manual_seed(seed)
    return ((torch.rand(40, 2, dtype=torch.float32) - 0.5) * 80).double().numpy()


def students(x):
    locations = energies.uniform_centres(10, 50, 10.0).numpy()
    logs = [stats.t.logpdf(x, 2, m).sum(-1) for m in locations]
    return logsumexp(logs, 0) - log(10)


def funnel(x):
    first, rest = x[:, :1], x[:, 1:]
    return stats.norm.logpdf(first[:, 0], 0, 3) + stats.norm.logpdf(rest, 0, np.exp(first / 2)).sum(
        -1
    )


def many_well(z):
    pairs = z.reshape(len(z), -1, 2)
    x, y = pairs[..., 0], pairs[..., 1]
    return (0.5 * x + 6 * x**2 - x**4 - y**2 / 2).sum(-1)


LATTICE = [(a, b) for a in (-5, 0, 5) for b in (-5, 0, 5)]
DENSITIES = {
    "gmm9_2": lambda x: gaussians(x, np.array(LATTICE), sqrt(0.3)),
    "gmm40_2": lambda x: gaussians(x, forty(0), 1.3132616875182228),
    "gmm40_2_other": lambda x: gaussians(x, forty(1), 1.3132616875182228),
    "gmm40_50": lambda x: gaussians(x, energies.uniform_centres(40, 50, 40.0).numpy(), 1.0),
    "mos_50": students,
    "funnel_10": funnel,
    "many_well_32": many_well,
    "many_well_5": lambda x: -((x**2 - 4) ** 2).sum(-1),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_the_density_of_an_energy(name):
    target, x = points_of(name)
    assert np.allclose(target.log_prob(x).numpy(), DENSITIES[name](x.numpy()), rtol=1e-6)


def seeds(s):
    r, n, X = posteriors.seed_data()
    tau, a, b = (s[k].numpy() for k in ("tau", "a", "b"))
    found = stats.gamma.logpdf(tau, 0.01, scale=100.0) + np.log(tau)  # of log τ
    found += stats.norm.logpdf(a, 0, 10).sum(-1)
    found += stats.norm.logpdf(b, 0, tau[:, None] ** -0.5).sum(-1)
    return found + stats.binom.logpmf(r, n, expit(a @ X.T + b)).sum(-1)


def logistic(data, sd):
    X, y = data

    def density(s):
        w = s["w"].numpy()
        found = stats.bernoulli.logpmf(y.astype(int), expit(w @ X.T)).sum(-1)
        return found if sd is None else found + stats.norm.logpdf(w, 0, sd).sum(-1)

    return density


def brownian(s):
    inner, outer = s["inner"].numpy(), s["outer"].numpy()
    x = np.stack([s[f"x{t}"].numpy() for t in range(30)], -1)
    found = sum(stats.lognorm.logpdf(v, 2) + np.log(v) for v in (inner, outer))
    steps = np.diff(x, axis=-1, prepend=0.0)
    found += stats.norm.logpdf(steps, 0, inner[:, None]).sum(-1)
    seen = [*range(10), *range(20, 30)]
    y = posteriors.brownian_data()
    return found + stats.norm.logpdf(y, x[:, seen], outer[:, None]).sum(-1)


MODELS = {
    "seeds": seeds,
    "sonar": logistic(posteriors.standardised("sonar"), 1.0),
    "ionosphere": logistic(posteriors.standardised("ionosphere"), 1.0),
    "credit_flat": logistic(posteriors.scaled_credit(), None),
    "credit": logistic(posteriors.scaled_credit(), 10.0),
    "brownian": brownian,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_density_of_a_model(name):
    """At moderate points, where no probability of scipy's underflows."""
    target, x = points_of(name)
    x = 0.1 * x
    expected = MODELS[name](target.unpack(x))
    assert np.allclose(target.log_prob(x).numpy(), expected, rtol=1e-9)


def test_the_point_process(monkeypatch):
    """On a small grid; the whitened form differs by the log determinant of the factor."""
    monkeypatch.setattr(posteriors, "SIDE", 5)
    counts, K = posteriors.tree_counts(), posteriors.cell_covariance()
    assert counts.sum() == 126 and len(counts) == 25
    mean = np.full(25, log(126) - 1.91 / 2)
    found = {}
    for whitened in (False, True):
        model, data = posteriors.make_cox(whitened)
        target = as_target(model, *data)
        torch.manual_seed(0)
        z = torch.randn(3, 25)
        f = posteriors.MEAN + z @ torch.linalg.cholesky(torch.from_numpy(K)).T
        found[whitened] = target.log_prob(z if whitened else f).numpy()
    f = f.numpy()
    expected = stats.multivariate_normal(mean, K).logpdf(f) + (counts * f - np.exp(f) / 25).sum(1)
    assert np.allclose(found[False], expected, rtol=1e-9)
    assert np.allclose(found[True] - found[False], 0.5 * np.linalg.slogdet(K)[1], rtol=1e-9)


def test_the_data_are_as_published():
    X, y = posteriors.standardised("ionosphere")
    assert X.shape == (351, 35) and y.sum() == 225 and (X.std(0) == 0).sum() == 2
    assert posteriors.standardised("sonar")[0].shape == (208, 61)
    r, n, X = posteriors.seed_data()
    assert (r <= n).all() and len(n) == 21 and X.sum(0).tolist() == [21, 10, 11, 5]
    K = posteriors.cell_covariance()
    assert K[0, 0] == 1.91 and np.isclose(K[0, 40], 1.91 * np.exp(-33 / 40))


# ---- log evidence and exact draws ----------------------------------------------------------------


def line(log_density, function=lambda x: 1.0):
    return quad(lambda x: function(x) * np.exp(log_density(x)), -6, 6, points=[-2, 0, 2])[0]


def tilted(x):
    return 0.5 * x + 6 * x**2 - x**4


def even(x):
    return -((x**2 - 4) ** 2)


def test_the_evidence_of_wells():
    pair = log(line(tilted)) + 0.5 * log(2 * np.pi)
    assert TARGETS["many_well_32"].log_z == pytest.approx(16 * pair, abs=1e-8)
    assert TARGETS["many_well_32"].log_z == pytest.approx(164.69568, abs=1e-5)
    assert TARGETS["many_well_5"].log_z == pytest.approx(5 * log(line(even)), abs=1e-8)
    right = quad(lambda x: np.exp(tilted(x)), 0, 6)[0] / line(tilted)
    assert TARGETS["many_well_32"].well_share == pytest.approx(right, abs=1e-6)


def z_scores(values, truth):
    """Scores of means of independent values ``(N, ...)``."""
    values = np.asarray(values, dtype=float)
    return (values.mean(0) - truth) / (values.std(0) / sqrt(len(values)))


@pytest.mark.parametrize("name, density", [("many_well_32", tilted), ("many_well_5", even)])
def test_exact_draws_of_wells(name, density):
    torch.manual_seed(0)
    x = TARGETS[name].problem().sample(NUMBER).numpy()[:, list(TARGETS[name].wells)]
    for power in (1, 2, 4):
        truth = line(density, lambda x, p=power: x**p) / line(density)
        assert np.abs(z_scores(x**power, truth)).max() < MOST
    correlation = np.corrcoef((x > 0).T) - np.eye(x.shape[1])
    assert np.abs(correlation).max() * sqrt(NUMBER) < MOST


@pytest.mark.parametrize("name", ["gmm9_2", "gmm40_2", "gmm40_50"])
def test_exact_draws_of_gaussians(name):
    torch.manual_seed(0)
    problem = TARGETS[name].problem()
    x, means = problem.sample(NUMBER).numpy(), problem.modes.numpy()
    sd = {"gmm9_2": sqrt(0.3), "gmm40_2": 1.3132616875182228, "gmm40_50": 1.0}[name]
    assert np.abs(z_scores(x, means.mean(0))).max() < MOST
    assert np.abs(z_scores(x**2, (means**2).mean(0) + sd**2)).max() < MOST


def test_exact_draws_of_students():
    torch.manual_seed(0)
    x = energies.students(torch.tensor([[3.0, -2.0]])).sample(NUMBER).numpy() - [3.0, -2.0]
    for bound in (0.5, 1, 3, 10):
        inside = 1 - 2 * stats.t.sf(bound, 2)
        assert np.abs(z_scores(np.abs(x) < bound, inside)).max() < MOST


def test_brownian_motion_at_fixed_scales():
    """The observations have the density that scipy finds."""
    y, seen = posteriors.brownian_data(), np.array(posteriors.SEEN)
    K = 0.3**2 * (1 + np.minimum(seen[:, None], seen)) + 0.2**2 * np.eye(20)
    expected = stats.multivariate_normal(np.zeros(20), K).logpdf(y)
    expected += stats.norm.logpdf(np.log([0.3, 0.2]), scale=2).sum()
    found = evidence.brownian_density(np.log([0.3]), np.log([0.2]))
    assert float(found[0]) == pytest.approx(expected, abs=1e-9)


def test_the_evidence_of_brownian_motion():
    assert evidence.brownian_log_z()[0] == pytest.approx(TARGETS["brownian"].log_z, abs=1e-5)
    assert evidence.brownian_log_z(200)[0] == pytest.approx(TARGETS["brownian"].log_z, abs=1e-4)


def test_effects_of_seeds_are_integrated():
    """By scipy, at one point."""
    r, n, X = posteriors.seed_data()
    tau, a = 5.0, np.array([-0.5, 0.1, 1.3, -0.8])
    expected = stats.gamma.logpdf(tau, 0.01, scale=100.0) + log(tau)
    expected += stats.norm.logpdf(a, 0, 10).sum()
    for r_j, n_j, x in zip(r, n, X):

        def integrand(b, r_j=r_j, n_j=n_j, x=x):
            density = stats.norm.pdf(b, 0, tau**-0.5)
            return density * stats.binom.pmf(r_j, n_j, expit(x @ a + b))

        expected += log(quad(integrand, -5, 5, points=[-1, 0, 1])[0])
    point = torch.tensor([[log(tau), *a]])
    assert float(evidence.seeds_density(80)(point)) == pytest.approx(expected, abs=1e-6)


def regression():
    rng = np.random.default_rng(0)
    X = np.column_stack([np.ones(30), rng.standard_normal((30, 2))])
    return X, (rng.random(30) < expit(X @ [0.5, 2.0, -1.0])).astype(float)


def by_grid(data, sd):
    axis = np.linspace(-12, 14, 66)
    w = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(-1, 3)
    density = evidence.logistic_density(*map(torch.from_numpy, data), sd)
    return float(density(torch.from_numpy(w)).logsumexp(0)) + 3 * log(axis[1] - axis[0])


def test_two_ways_to_the_evidence_of_a_regression():
    """Importance sampling and annealing, against a grid: a skewed posterior in 3 dimensions."""
    data, sd = regression(), 3.0
    truth = by_grid(data, sd)
    scores = []
    for seed in range(3):
        options = ImportanceOptions(pairs=2000, degrees=6, seed=seed)
        found, error = evidence.logistic_log_z(data, sd, options)
        scores.append((found - truth) / error)
        path = AnnealingOptions(particles=500, temperatures=10, leapfrogs=3, seed=seed)
        found, error = evidence.annealed_logistic(data, sd, path)
        assert 0 < error < 0.03
        scores.append((found - truth) / error)
    assert np.abs(scores).max() < 4


def test_the_point_process_by_two_ways(monkeypatch):
    """Annealing and importance sampling on a grid of 3 × 3 cells."""
    monkeypatch.setattr(posteriors, "SIDE", 3)
    model, data = posteriors.make_cox(True)
    target = as_target(model, *data)
    options = ImportanceOptions(pairs=5000, degrees=6)
    with torch.no_grad():
        start = torch.zeros(9)
    expected, one = evidence.importance_log_z(target.log_prob, start, options)
    path = AnnealingOptions(particles=500, temperatures=10)
    found, other = evidence.annealed_process(path)
    assert one < 0.02 and other < 0.02 and abs(found - expected) < 4 * sqrt(one**2 + other**2)
