"""Test problems: sampler, density, evidence, entropy and modes agree with each other."""

from math import log, sqrt

import pytest
import torch
from pyro import poutine
from support.statistics import z_score

from pyro_flowsamp import Target
from pyro_flowsamp.problems import (
    Problem,
    banana,
    exp_gauss,
    exp_gauss_unequal,
    funnel,
    gmm,
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


# ---- modes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODAL)
def test_a_mode_belongs_to_itself(name):
    known = TARGETS[name]()
    if known.modes is not None:
        assert known.modes.shape == (len(known.weights), known.target.dim)
        torch.testing.assert_close(known.assign(known.modes), torch.arange(len(known.modes)))


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
        Problem(target, modes=torch.zeros(1, 2)).mode_fractions(torch.zeros(3, 2))


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
