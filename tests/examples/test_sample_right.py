"""The truths of the posteriors in ``problems/known`` by a second way, and the verdicts on runs."""

import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
from problems import suite as old_suite
from problems.known import PROBLEMS, dynamics, energies, hierarchies, nonlinear, regressions
from problems.known.reference import ImportanceOptions, Statistic, cached, importance, site
from scipy.integrate import quad
from scipy.stats import multivariate_normal
from suites import sample_right
from support.marks import slow
from support.posteriordb import load as load_stan

from pyro_flowsamp.target import as_target

NUMBER = 40_000  #: independent draws
CHAINS = 4


def independent(**sites):
    """Draws by site as chains: ``(N, ...)`` to ``(4, N / 4, ...)``."""
    return {k: x.reshape(CHAINS, -1, *x.shape[1:]) for k, x in sites.items()}


def worst(statistics, draws):
    """The largest score over the largest that is allowed."""
    found = sample_right.scores(statistics, draws)
    return max(abs(s["z"]) for s in found) / sample_right.limit(len(found))


def posterior(name):
    """The Pyro model's own density in float64, with its draws by site."""
    torch.set_default_dtype(torch.float64)
    model, data = PROBLEMS[name].make()
    target = as_target(model, *data)

    def unpack(x):
        return {k: v.detach().numpy()[None] for k, v in target.unpack(x).items()}

    return target, unpack


# ---- exact draws, and wrong ones -----------------------------------------------------------------


def modes(seed, rng, kept=40):
    means = energies.forty_means(seed).numpy()[:kept]
    place = means[rng.integers(kept, size=NUMBER)]
    return independent(x=place + energies.SD * rng.standard_normal((NUMBER, 2)))


def student(degrees, dim, rng, size=1.0):
    scale = (degrees / rng.chisquare(degrees, NUMBER)) ** 0.5
    return independent(x=size * scale[:, None] * rng.standard_normal((NUMBER, dim)))


def funnel(rng, width=3.0):
    v = width * rng.standard_normal(NUMBER)
    x = np.exp(v / 2)[:, None] * rng.standard_normal((NUMBER, 9))
    return independent(v=v, x=x)


def simplex(counts, rng, concentration=hierarchies.CONCENTRATION):
    padded = np.array(counts + [0] * (hierarchies.PARTS - len(counts)))
    return independent(x=rng.dirichlet(concentration + padded, NUMBER))


def years(rng, slope=0.0):
    X = np.stack([np.ones(30), regressions.YEARS], 1)
    precision = X.T @ X / 9 + np.diag([1e-8, 1e-2])
    mean = np.linalg.solve(precision, X.T @ regressions.year_data() / 9) + [0, slope]
    draws = rng.multivariate_normal(mean, np.linalg.inv(precision), NUMBER)
    return independent(a=draws[:, 0], b=draws[:, 1])


def orbits(rng, shift=0.0):
    grid = regressions.periods()
    place = rng.choice(len(grid.weight), p=grid.weight, size=NUMBER)
    time = regressions.orbit_data()[0]
    phase = 2 * np.pi * time / np.exp(grid.log_period[place])[:, None]
    H = np.stack([np.cos(phase), np.sin(phase), np.ones_like(phase)], -1)
    covariance = np.linalg.inv(H.swapaxes(1, 2) @ H / 9 + np.eye(3) / 100)
    noise = np.linalg.cholesky(covariance) @ rng.standard_normal((NUMBER, 3, 1))
    a, b, c = (grid.coefficients[place] + noise[..., 0]).T
    return independent(log_period=grid.log_period[place] + shift, a=a, b=b, c=c)


#: problem, its exact draws, and those of a wrong sampler
DRAWN = {
    "forty_modes": (partial(modes, 0), partial(modes, 0, kept=39)),
    "forty_modes_again": (partial(modes, 1), partial(modes, 1, kept=39)),
    "student_t3_1": (partial(student, 3, 1), partial(student, 4, 1)),
    "student_t2_1": (partial(student, 2, 1), partial(student, 2, 1, size=0.95)),
    "student_t2_10": (partial(student, 2, 10), partial(student, 3, 10)),
    "funnel": (funnel, partial(funnel, width=2.8)),
    "sparse_dirichlet": (partial(simplex, []), partial(simplex, [], concentration=0.11)),
    "sparse_dirichlet_counts": (
        partial(simplex, hierarchies.SOME_COUNTS),
        partial(simplex, hierarchies.SOME_COUNTS, concentration=0.13),
    ),
    "year_regression": (years, partial(years, slope=0.005)),
    "radial_velocity": (orbits, partial(orbits, shift=0.02)),
}


@pytest.mark.parametrize("name", DRAWN)
def test_exact_draws_are_right(name):
    exact, _ = DRAWN[name]
    assert worst(PROBLEMS[name].statistics(), exact(np.random.default_rng(0))) < 1


@pytest.mark.parametrize("name", DRAWN)
def test_wrong_draws_are_wrong(name):
    _, wrong = DRAWN[name]
    assert worst(PROBLEMS[name].statistics(), wrong(np.random.default_rng(0))) > 1


# ---- truths by importance sampling from the Pyro models' own densities ---------------------------

#: problem and settings of the importance sampler
SAMPLED = {
    "year_regression": ImportanceOptions(pairs=20_000, block=20_000),
    "dollars": ImportanceOptions(pairs=20_000, block=20_000),
    "kilograms": ImportanceOptions(pairs=20_000, block=20_000),
    "gaussian_process": ImportanceOptions(pairs=1000, scale=1.2),
    "garch": ImportanceOptions(pairs=3000, block=3000, degrees=4, scale=1.3),
    "german_credit": ImportanceOptions(pairs=2000, degrees=30, scale=1.03),
}


@pytest.mark.parametrize("name", slow(SAMPLED, "garch"))
def test_the_model_has_these_truths(name):
    target, unpack = posterior(name)
    statistics = PROBLEMS[name].statistics()
    functions = {s.name: s.function for s in statistics}
    start = torch.zeros(target.dim)
    found, size = importance(target.log_prob, start, unpack, functions, SAMPLED[name])
    assert size > 1000
    for s in statistics:
        value, error = found[s.name]
        rounding = 1e-10 * abs(s.truth)  # the mean of a Gaussian has no error here
        assert abs(value - s.truth) < 4 * (error**2 + s.error**2) ** 0.5 + rounding, s.name


# ---- truths by other second ways -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name, density, middle",
    [
        ("hidden_markov", dynamics.markov_density, [-1.0, 1.0, 1.5, 1.5]),
        ("lotka_volterra", dynamics.volterra_density, [-0.5, -3.5, -0.4, -3.8, 3.4, 1.7, -1.6]),
    ],
)
def test_the_density_of_a_truth_is_that_of_the_model(name, density, middle):
    model, data = PROBLEMS[name].make()
    target = as_target(model, *(value.double() for value in data))
    generator = torch.Generator().manual_seed(0)
    middle = torch.tensor(middle, dtype=torch.float64)
    x = middle + 0.2 * torch.randn(20, len(middle), generator=generator, dtype=torch.float64)
    difference = target.log_prob(x.to(target.dtype)).double() - density(x)
    assert difference.std() < 1e-3 * density(x).std()


def test_places_of_sensors_by_draws_on_rings():
    """Importance sampling with proposals around the anchor that each sensor is nearest to."""
    statistics = PROBLEMS["sensors"].statistics()
    model, data = PROBLEMS["sensors"].make()
    target, rng = as_target(model, *data), np.random.default_rng(0)
    near = np.asarray(dynamics.ANCHORS)[[1, 2]]
    radius = [0.27, 0.32] + 0.06 * rng.standard_normal((200_000, 2))
    angle = 2 * np.pi * rng.random((200_000, 2))
    place = near + radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    log_q = -0.5 * ((radius - [0.27, 0.32]) / 0.06) ** 2 - np.log(abs(radius))
    x = torch.as_tensor(place, dtype=target.dtype).flatten(1)
    w = np.exp(target.log_prob(x).double().numpy() - log_q.sum(-1))
    for s in statistics:
        values = s.function({"place": place})
        mean = (w * values).sum() / w.sum()
        error = np.sqrt(((values - mean) ** 2 * w**2).sum()) / w.sum()
        assert abs(s.truth - mean) < 4 * error, s.name


def test_schools_agree_with_posteriordb():
    reference = load_stan("eight_schools_noncentered").reference
    truth = {s.name: s.truth for s in PROBLEMS["eight_schools"].statistics()}
    for key, name in (("mu", "mu"), ("tau", "tau"), ("theta[1]", "theta_1")):
        error = reference[key]["sd"] / 100  # of 10 000 draws
        assert abs(truth[name] - reference[key]["mean"]) < 4 * error


def test_schools_agree_with_quadrature_by_scipy():
    """The shares, by adaptive quadrature of the marginal likelihood of tau."""
    y, sigma = (x.double().numpy() for x in hierarchies.load("eight_schools")[1])

    def density(tau):
        covariance = np.diag(sigma**2 + tau**2) + 25.0
        return multivariate_normal.pdf(y, cov=covariance) / (1 + (tau / 5) ** 2)

    whole = quad(density, 0, 10)[0] + quad(density, 10, np.inf)[0]
    truth = {s.name: s.truth for s in PROBLEMS["eight_schools"].statistics()}
    assert quad(density, 0, 1)[0] / whole == pytest.approx(truth["P(tau < 1)"], abs=1e-5)
    assert quad(density, 0, 0.1)[0] / whole == pytest.approx(truth["P(tau < 0.1)"], abs=1e-5)
    assert quad(density, 10, np.inf)[0] / whole == pytest.approx(truth["P(tau > 10)"], abs=1e-5)


def test_radon_agrees_with_nuts():
    statistics = PROBLEMS["radon"].statistics()
    truth, long = {s.name: s.truth for s in statistics}, old_suite.long_nuts("radon")
    for name in ("mu_a", "beta_floor", "sigma_a", "sigma_y"):
        value, error = long[f"{name}[0]"]
        assert abs(truth[name] - value) < 4 * error, name


def test_german_credit_agrees_with_nuts():
    long = old_suite.long_nuts("german_credit")
    for s in PROBLEMS["german_credit"].statistics():
        if not s.share:
            value, error = long[s.name]
            assert abs(s.truth - value) < 4.5 * (error**2 + s.error**2) ** 0.5, s.name


def test_the_walk_by_a_kalman_smoother():
    y = regressions.walk_data()
    mean, variance, before = np.zeros(len(y)), np.zeros(len(y)), (0.0, 0.0)
    for t, value in enumerate(y):
        predicted = before[1] + 1
        gain = predicted / (predicted + 1)
        before = before[0] + gain * (value - before[0]), (1 - gain) * predicted
        mean[t], variance[t] = before
    for t in range(len(y) - 2, -1, -1):
        gain = variance[t] / (variance[t] + 1)
        mean[t] += gain * (mean[t + 1] - mean[t])
        variance[t] += gain**2 * (variance[t + 1] - variance[t] - 1)
    exact, sd = regressions.walk_moments()
    np.testing.assert_allclose(mean, exact, atol=1e-8)
    np.testing.assert_allclose(variance, sd**2, rtol=1e-8)
    target, _ = posterior("random_walk")
    assert target.log_prob_and_grad(torch.as_tensor(exact)[None])[1].abs().max() < 1e-8


def test_periods_by_the_joint_density():
    """The joint density at the conditional mean, over the conditional density there."""
    target, _ = posterior("radial_velocity")
    grid = regressions.periods()
    places = np.flatnonzero(grid.weight > grid.weight.max() * 1e-3)[::400]
    log_period = torch.as_tensor(grid.log_period[places])
    a, b, c = torch.as_tensor(grid.coefficients[places]).T
    time = torch.as_tensor(regressions.orbit_data()[0])
    phase = 2 * np.pi * time / log_period.exp()[:, None]
    H = torch.stack([phase.cos(), phase.sin(), torch.ones_like(phase)], -1)
    half_log_det = 0.5 * torch.logdet(H.mT @ H / 9 + torch.eye(3) / 100)
    x = target.pack({"log_period": log_period, "a": a, "b": b, "c": c})
    low, high = np.log(regressions.SHORTEST), np.log(regressions.LONGEST)
    jacobian = ((log_period - low) * (high - log_period)).log()
    marginal = target.log_prob(x) - half_log_det - jacobian
    difference = marginal - torch.as_tensor(grid.weight[places]).log()
    assert len(places) > 5 and difference.std() < 1e-8


def test_aliases_cover_the_posterior():
    shares = [share for _, _, share in regressions.aliases(0.0)]
    assert sum(shares) == pytest.approx(1, abs=1e-7)  # the ends lack half a node
    large = regressions.aliases()
    assert len(large) >= 5 and max(share for _, _, share in large) < 0.8


@pytest.mark.parametrize("degrees, name", [(3, "student_t3_1"), (2, "student_t2_1")])
def test_student_tails_by_quadrature(degrees, name):
    def density(x):
        return (1 + x * x / degrees) ** (-(degrees + 1) / 2)

    whole = 2 * quad(density, 0, np.inf)[0]
    truth = {s.name: s.truth for s in PROBLEMS[name].statistics()}
    for k in (2, 5, 10):
        share = 2 * quad(density, k, np.inf)[0] / whole
        assert truth[f"P(|x| > {k})"] == pytest.approx(share, rel=1e-7)


def test_logistic_references():
    """The density that was sampled is the model's, and the errors are small."""
    for count, d in ((20_000, 50), (50_000, 8)):
        name = f"logistic_{count}_{d}"
        target, _ = posterior(name)
        X, y, true = nonlinear.logistic_data(count, d)
        noise = np.random.default_rng(0).standard_normal((3, d))
        x = torch.as_tensor(true + 0.02 * noise)
        X, y = torch.as_tensor(X), torch.as_tensor(y)
        gap = nonlinear.logistic_density(X, y, nonlinear.SCALE, x) - target.log_prob(x)
        assert gap.std() < 1e-6
        for s in PROBLEMS[name].statistics():
            assert 0 < s.error < (0.004 if s.share else 3e-4)


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_can_be_evaluated(name):
    problem = PROBLEMS[name]
    torch.set_default_dtype(torch.float64 if problem.double else torch.float32)
    model, data = problem.make()
    target = as_target(model, *data)
    x = target.initial_points(2)
    assert target.dim == problem.dim and target.batching in ("vmap", "native")
    assert target.log_prob(x).isfinite().all()
    draws = {k: v.numpy()[None].repeat(4, 1) for k, v in target.unpack(x).items()}
    draws = {k: np.concatenate([v, v]) for k, v in draws.items()}
    statistics = problem.statistics()
    assert len({s.name for s in statistics}) == len(statistics)
    for s in statistics:
        assert s.function(draws).shape == (2, 8), s.name
        assert not s.share or 0.001 < s.truth < 0.999, s.name


# ---- scores and verdicts -------------------------------------------------------------------------


def test_few_events_have_binomial_scores():
    """Of exact draws with four expected events, as many are beyond a score as there should be."""
    counts = np.random.default_rng(0).binomial(4000, 0.001, 4000)
    z = np.array([sample_right.binomial_score(k / 4000, 0.001, 4000, np.inf) for k in counts])
    assert np.isfinite(z).all() and abs(z.mean()) < 0.06 and z.std() == pytest.approx(1, abs=0.05)
    assert (z > 2.5).mean() < 0.0062 + 3 * (0.0062 / 4000) ** 0.5
    gaussian = (counts / 4000 - 0.001) / (0.001 * 0.999 / 4000) ** 0.5
    assert (gaussian > 2.5).mean() > 0.01  # what the Gaussian would have called too many


def test_many_events_have_gaussian_scores():
    values = np.random.default_rng(0).random((4, 10_000)) < 0.3
    share = Statistic("share", site("x"), 0.3, share=True)
    found = sample_right.score(share, values.astype(float), 40_000.0)
    gaussian = (values.mean() - 0.3) / (0.21 / 40_000) ** 0.5
    assert found["z"] == pytest.approx(gaussian)
    binomial = sample_right.binomial_score(values.mean(), 0.3, 40_000.0, np.inf)
    assert binomial == pytest.approx(gaussian, abs=0.02)


def test_an_event_that_never_occurs():
    """It gets the least effective size of the other statistics."""
    x = np.random.default_rng(0).standard_normal((4, 1000))
    statistics = [
        Statistic("x", site("x"), 0.0),
        Statistic("never", lambda draws: np.zeros((4, 1000)), 0.05, share=True),
    ]
    first, never = sample_right.scores(statistics, {"x": x})
    assert never["ess"] == first["ess"] and never["z"] < -10


def test_an_event_that_is_seldom_seen():
    """The size of its own values is too large where most chains have not found it."""
    rng = np.random.default_rng(0)
    event = np.zeros((100, 100))
    event[:10, 50] = 1  # ten visits
    slow = np.repeat(rng.standard_normal((100, 10)), 10, 1)
    statistics = [
        Statistic("x", site("x"), 0.0),
        Statistic("rare", lambda draws: event, 0.003, share=True),
    ]
    first, rare = sample_right.scores(statistics, {"x": slow})
    size = sample_right.effective(event)
    assert size > 5000 and sample_right.score(statistics[1], event, size)["z"] < -3
    assert rare["ess"] == first["ess"] and abs(rare["z"]) < 2


def test_the_error_of_the_truth_counts():
    x = np.random.default_rng(0).standard_normal((4, 1000))
    vague = Statistic("x", site("x"), 0.5, error=0.4)
    assert abs(sample_right.scores([vague], {"x": x})[0]["z"]) < 2


def test_draws_that_are_not_numbers_are_wrong():
    x = np.full((4, 100), np.nan)
    assert sample_right.scores([Statistic("x", site("x"), 0.0)], {"x": x})[0]["z"] == np.inf


@pytest.mark.parametrize(
    "z, reliable, expected",
    [
        (2.0, 1, "right"),
        (2.0, 0, "right but flagged"),
        (-5.0, 1, "wrong and silent"),
        (5.0, 0, "wrong and flagged"),
        (float("inf"), 1, "wrong and silent"),
    ],
)
def test_verdicts(z, reliable, expected):
    result = {"statistics": [{"name": "x", "z": z}], "attributes": {"reliable": reliable}}
    assert sample_right.verdict(result) == expected


def test_other_ends():
    assert sample_right.verdict({"stopped": True, "seconds": 600.0}) == "none in 600 s"
    assert sample_right.verdict({"failure": "ValueError", "seconds": 1.0}) == "failed"
    assert sample_right.verdict({"statistics": [], "attributes": {}}) == "no truth"


def test_the_line_of_a_problem_without_a_truth(tmp_path):
    result = {
        "seconds": 2.0,
        "memory": 400.0,
        "least_ess": 5000.0,
        "worst_r_hat": 1.002,
        "attributes": {"method": "HMC", "reliable": 1},
        "warnings": [],
        "statistics": [],
    }
    sample_right.append(tmp_path / "runs.jsonl", "horseshoe", 0, result)
    sample_right.append(
        tmp_path / "runs.jsonl", "horseshoe", 1, {"stopped": True, "seconds": 600.0}
    )
    text = sample_right.table(tmp_path / "runs.jsonl", ["horseshoe", "funnel"])
    line = "| horseshoe | 102 | 1 no truth, 1 none in 600 s | – | 2 | 400 | 5e+03 | 1.002 | HMC |"
    assert line in text and "funnel" not in text


def test_the_bound_of_a_score():
    """A right sampler is called wrong in at most one run of a hundred."""
    z = np.abs(np.random.default_rng(0).standard_normal((20_000, 10)))
    assert (z.max(1) > sample_right.limit(10)).mean() == pytest.approx(0.01, abs=0.002)


def test_a_run_that_does_not_end_is_recorded(monkeypatch):
    monkeypatch.setattr(sample_right, "LIMIT", 1)
    assert sample_right.verdict(sample_right.run("student_t3_1", 0)).startswith("none in")

    def died(*_, **__):
        raise RuntimeError("killed")

    monkeypatch.setattr(sample_right, "measured", died)
    assert sample_right.verdict(sample_right.run("student_t3_1", 0)) == "failed"


def test_a_failure_is_recorded(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no kernel runs")

    monkeypatch.setattr("pyro_flowsamp.sample", fails)
    found = sample_right.measure("student_t3_1", 0)
    assert sample_right.verdict(found) == "failed" and "no kernel runs" in found["failure"]
    text = sample_right.wrong({"student_t3_1": [found]})
    assert text == "- student_t3_1, failed: RuntimeError: no kernel runs"


def test_truths_are_stored(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"x": (1.0, 0.5)}

    first, again = (cached("some", ["x"], compute, tmp_path) for _ in range(2))
    assert first == again == {"x": (1.0, 0.5)} and len(calls) == 1
    cached("some", ["y"], compute, tmp_path)  # a statistic that the file does not have
    assert len(calls) == 2


# ---- the script ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_smoke(tmp_path, monkeypatch, capsys):
    """It stores the run with its scores, makes the table of it, and runs nothing twice."""
    command = ["sample_right.py", "--smoke", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    sample_right.main()
    first = capsys.readouterr().out
    assert "student_t3_1                    seed 0" in first
    stored = json.loads((tmp_path / sample_right.STUDY).read_text())
    assert stored["name"] == "student_t3_1" and stored["memory"] > 50
    assert {"method", "reliable", "evaluations"} <= stored["attributes"].keys()
    assert [s["name"] for s in stored["statistics"]] == [
        s.name for s in PROBLEMS["student_t3_1"].statistics()
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--write"])
    monkeypatch.setattr(sample_right, "DOCS", tmp_path)
    sample_right.main()
    assert "| student_t3_1 | 1 | 1 " in (tmp_path / "sample_right.md").read_text()
    monkeypatch.setattr(sys, "argv", command)
    sample_right.main()
    assert "seed 0" not in capsys.readouterr().out.split("| student_t3_1")[-1]
