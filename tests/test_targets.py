"""Known targets: sampler, density, evidence, entropy, modes and masses agree with each other."""

from math import log, sqrt

import pyro
import pytest
import torch
from pyro import poutine

from pyro_flowsamp import Target
from pyro_flowsamp.targets import (
    Known,
    accuracy,
    banana,
    exp_gauss,
    exp_gauss_unequal,
    funnel,
    gmm,
    log_predictive,
    logistic_regression,
    mog4,
    mog8,
    rings4,
    truncated_normal,
    unequal_pair,
)

TARGETS = {
    "gmm6": gmm,
    "gmm10": lambda **at: gmm(10, **at),
    "mog4": mog4,
    "mog8": mog8,
    "rings4": rings4,
    "unequal pair": unequal_pair,
    "exp-gauss": lambda **at: exp_gauss(6, 3, 2.0, **at),
    "exp-gauss unequal": lambda **at: exp_gauss_unequal(6, 4, **at),
    "funnel": funnel,
    "banana": lambda **at: banana(3, **at),
    "truncated": lambda **at: truncated_normal(3, 4.0, **at),
}
CONTINUOUS = [name for name in TARGETS if name != "truncated"]
MODAL = [*TARGETS][:8]
NUM = 20_000


@pytest.fixture(autouse=True)
def float64(clean_slate):
    torch.set_default_dtype(torch.float64)


def z_score(values, mean):
    return (values.mean(0) - mean) / (values.std(0) / sqrt(len(values)))


# ---- one truth, seen from all sides -------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_entropy_is_that_of_the_draws(name):
    known = TARGETS[name]()
    log_p = known.target.log_prob(known.sample(NUM)) - known.log_z
    assert torch.isfinite(log_p).all()
    assert abs(z_score(-log_p, known.entropy)) < 4


@pytest.mark.parametrize("name", CONTINUOUS)
def test_score_of_the_draws(name):
    r"""By parts, :math:`E_p[\nabla \log p] = 0` and :math:`E_p[x_i \partial_i \log p] = -1`."""
    known = TARGETS[name]()
    x = known.sample(NUM)
    _, score = known.target.log_prob_and_grad(x)
    assert (z_score(score, 0.0).abs() < 4.5).all()
    assert (z_score(x * score, -1.0).abs() < 4.5).all()


@pytest.mark.parametrize("name", MODAL)
def test_draws_are_in_the_modes_by_weight(name):
    known = TARGETS[name]()
    fractions = known.mode_fractions(known.sample(NUM))
    chi2 = (NUM * (fractions - known.weights).square() / known.weights).sum()
    freedom = len(known.weights) - 1
    assert known.weights.sum() == pytest.approx(1)
    assert abs(chi2 - freedom) < 4.5 * sqrt(2 * freedom)


PLANE = {  # a target in the plane, and half the width of a box that holds it
    "gmm6": (gmm, (16, 16)),
    "mog4": (mog4, (16, 16)),
    "rings4": (rings4, (6, 6)),
    "unequal pair": (unequal_pair, (16, 16)),
    "exp-gauss": (lambda: exp_gauss(2, 1, 2.0), (10, 10)),
    "exp-gauss unequal": (lambda: exp_gauss_unequal(2, 2), (18, 18)),
    "funnel": (lambda: funnel(2), (6, 60)),
    "banana": (banana, (60, 120)),
    "truncated": (lambda: truncated_normal(2, 1.5), (10, 10)),
}


@pytest.mark.parametrize("name", PLANE)
def test_evidence_by_quadrature(name):
    make, (width, height) = PLANE[name]
    known, num = make(), 1501
    grid = torch.cartesian_prod(
        torch.linspace(-width, width, num), torch.linspace(-height, height, num)
    )
    cell = (2 * width / (num - 1)) * (2 * height / (num - 1))
    log_z = known.target.log_prob(grid).logsumexp(0) + log(cell)
    rough = name == "truncated"  # its edge crosses the grid
    assert log_z.item() == pytest.approx(known.log_z, abs=2e-3 if rough else 2e-5)


# ---- values known elsewhere ---------------------------------------------------------------------


def test_entropies():
    assert mog4().entropy == pytest.approx(4.22417, abs=1e-5)
    assert mog8().entropy == pytest.approx(4.917, abs=1e-3)
    assert rings4().entropy == pytest.approx(3.13324, abs=1e-5)


@pytest.mark.parametrize(
    "dim, radius, probability",
    [
        (2, 3, 1.1109e-2),
        (2, 4, 3.35463e-4),
        (2, 6, 1.52300e-8),
        (5, 4, 6.84407e-3),
        (5, 6, 9.4981e-7),
        (10, 6, 8.4176e-5),
    ],
)
def test_rare_events(dim, radius, probability):
    assert truncated_normal(dim, radius).log_z == pytest.approx(log(probability), abs=1e-5)


@pytest.mark.parametrize("dim, radius", [(1, 0.5), (2, 6), (10, 6), (200, 15)])
def test_tail_of_the_normal(dim, radius):
    """Survival at the draws is uniform, also far in the tail."""
    r2 = truncated_normal(dim, radius).sample(NUM).square().sum(-1)
    half = torch.tensor(dim / 2)
    ratio = torch.special.gammaincc(half, r2 / 2) / torch.special.gammaincc(
        half, torch.tensor(radius**2 / 2)
    )
    assert (r2 > radius**2).all()
    assert abs(z_score(ratio, 0.5)) < 4
    assert abs(z_score(ratio.square(), 1 / 3)) < 4


def test_no_density_inside_the_ball():
    target = truncated_normal(2, 3.0).target
    log_p, grad = target.log_prob_and_grad(torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 0.1]]))
    assert log_p[:2].isneginf().all() and log_p[2].isfinite()
    torch.testing.assert_close(grad, torch.tensor([[0.0, 0.0], [0.0, 0.0], [-3.0, -0.1]]))


def test_exp_gauss():
    known = exp_gauss()
    assert known.log_z == pytest.approx(552.8783985, abs=1e-6)
    assert known.modes.shape == (1024, 50)
    x = known.sample(NUM)
    assert (x[:, :10].abs() > 5).all()
    assert len(known.assign(x).unique()) > 1018  # all but 3e-6 in the mean


def test_unequal_masses():
    known = exp_gauss_unequal()
    assert (known.weights.max() / known.weights.min()).item() == pytest.approx(653.1, abs=0.1)
    x = known.sample(NUM)[:, :10]
    w = torch.linspace(0.2, 0.5, 10)
    assert (z_score((x < 0).double(), w).abs() < 4).all()
    variance = torch.tensor([0.5, 1.0]).repeat(5)
    residual = x.abs() - torch.linspace(5, 10, 10)
    assert (z_score(residual.square(), variance).abs() < 4).all()


def test_funnel_moments():
    x = funnel().sample(NUM)
    assert abs(z_score(x[:, 0].square(), 0.81)) < 4
    assert (z_score(x[:, 1:].square(), 1.49930).abs() < 4).all()


def test_banana_is_bent():
    x = banana().sample(NUM)
    square, second = x[:, 0].square(), x[:, 1]
    assert abs(z_score(square, 100.0)) < 4
    assert abs(z_score(second, 0.0)) < 4
    assert torch.corrcoef(torch.stack([square, second]))[0, 1] > 0.9


# ---- modes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODAL)
def test_a_mode_belongs_to_itself(name):
    known = TARGETS[name]()
    if known.modes is not None:
        assert known.modes.shape == (len(known.weights), known.target.dim)
        torch.testing.assert_close(known.assign(known.modes), torch.arange(len(known.modes)))


def test_sign_patterns_are_the_nearest_modes():
    for known in exp_gauss(6, 4), exp_gauss_unequal(6, 4):
        x = known.sample(200)
        torch.testing.assert_close(known.assign(x), torch.cdist(x, known.modes).argmin(-1))


def test_rings_are_assigned_by_radius():
    x = torch.tensor([[0.0, 0.1], [0.0, -2.2], [2.0, 2.0], [5.0, 5.0]])
    assert rings4().assign(x).tolist() == [0, 1, 2, 3]


def test_weighted_fractions():
    known = mog4()
    log_weights = torch.tensor([0.0, 0.0, 0.0, 1.0]) + 700
    fractions = known.mode_fractions(known.modes, log_weights)
    torch.testing.assert_close(fractions, log_weights.softmax(0))


def test_no_modes():
    with pytest.raises(ValueError, match="no modes"):
        funnel().assign(torch.zeros(1, 5))
    target = Target.from_energy(lambda x: x.square().sum(-1), 2)
    with pytest.raises(ValueError, match="not known"):
        Known(target, modes=torch.zeros(1, 2)).mode_fractions(torch.zeros(3, 2))


@pytest.mark.parametrize("make", [exp_gauss, exp_gauss_unequal])
def test_too_many_active(make):
    with pytest.raises(ValueError, match="4 active coordinates in 3 dimensions"):
        make(3, 4)


# ---- dtype and device ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TARGETS)
def test_dtype_and_device(name, dtype):
    """Nothing falls back on the defaults: neither the dtype, nor "meta", where nothing works."""
    torch.set_default_dtype(torch.float16)
    with torch.device("meta"):
        known = TARGETS[name](dtype=dtype, device="cpu")
        x = known.sample(50)
        log_p, score = known.target.log_prob_and_grad(x)
        results = [x, log_p, score]
        if known.weights is not None:
            results += [known.weights, known.mode_fractions(x), known.mode_fractions(x, log_p)]
    assert {(t.dtype, t.device.type) for t in results} == {(dtype, "cpu")}
    exact = TARGETS[name](dtype=torch.float64).target.log_prob(x.double())
    torch.testing.assert_close(log_p.double(), exact, rtol=1e-5, atol=1e-4)


def test_a_target_is_a_pyro_model():
    known = mog4()
    trace = poutine.trace(poutine.condition(known.target, {"x": known.modes[0]})).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), known.target.log_prob(known.modes[:1])[0])


# ---- logistic regression ------------------------------------------------------------------------

X = torch.tensor([[1.0, -1.0], [1.0, 0.5], [1.0, 2.0]], dtype=torch.float64)
Y = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)


def test_logistic_regression_density():
    target = Target.from_model(logistic_regression, X, Y)
    assert target.batching == "vmap" and target.dim == 3
    alpha, beta = torch.tensor([2.0, 30.0]), torch.tensor([[0.1, -0.3], [1.0, 2.0]])
    prior = torch.distributions.Gamma(1.0, 0.01).log_prob(alpha)
    prior = prior + torch.distributions.Normal(0.0, alpha.rsqrt()[:, None]).log_prob(beta).sum(-1)
    likelihood = torch.distributions.Bernoulli(logits=beta @ X.T).log_prob(Y).sum(-1)
    log_p = target.log_prob(target.pack({"alpha": alpha, "beta": beta}))
    torch.testing.assert_close(log_p, prior + likelihood + alpha.log())


def test_logistic_regression_in_parallel():
    with pyro.plate("particles", 7, dim=-2):
        trace = poutine.trace(logistic_regression).get_trace(X, Y)
    assert trace.nodes["beta"]["value"].shape == (7, 2)
    assert torch.isfinite(trace.log_prob_sum())


def test_predictions():
    beta = torch.tensor([[0.0, 1.0], [0.5, 2.0], [-3.0, 0.1]])
    probability = torch.sigmoid(beta @ X.T).mean(0)
    density = torch.where(Y == 1, probability, 1 - probability)
    torch.testing.assert_close(log_predictive(beta, X, Y), density.log().mean())
    assert accuracy(beta, X, Y) == ((probability > 0.5) == (Y == 1)).double().mean()
    assert accuracy(-beta[:2], X, Y) == 0
