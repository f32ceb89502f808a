"""Metrics: closed forms, unbiasedness, and their limits."""

import builtins
from math import exp, log, sqrt

import metrics
import pytest
import torch
from metrics import (
    ess_forward,
    ess_reverse,
    forward_kl,
    hausdorff,
    mmd,
    mode_chi2,
    reverse_kl,
    wasserstein2,
)
from scipy import stats


@pytest.fixture(autouse=True)
def float64(clean_slate):
    torch.set_default_dtype(torch.float64)


# ---- two samples --------------------------------------------------------------------------------


def test_mmd_by_hand(monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", 3)
    x, y = torch.randn(7, 2), torch.randn(5, 2) + 1

    def k(a, b):
        return (-0.5 * (a[:, None] - b).square().sum(-1) / 0.8**2).exp()

    def off_diagonal(m):
        return (m.sum() - m.diagonal().sum()) / (len(m) * (len(m) - 1))

    expected = off_diagonal(k(x, x)) + off_diagonal(k(y, y)) - 2 * k(x, y).mean()
    torch.testing.assert_close(mmd(x, y, 0.8), expected)


def test_mmd_is_unbiased():
    """Between normals in one dimension, one shifted, it is known in closed form."""
    h, shift = 1.0, 1.0
    scale = h / sqrt(h**2 + 2)
    expected = 2 * scale * (1 - exp(-(shift**2) / (2 * (h**2 + 2))))
    draws = torch.stack(
        [mmd(torch.randn(20, 1), torch.randn(30, 1) + shift, h) for _ in range(500)]
    )
    assert abs(draws.mean() - expected) < 4 * draws.std() / sqrt(500)
    same = torch.stack([mmd(torch.randn(20, 1), torch.randn(30, 1), h) for _ in range(500)])
    assert abs(same.mean()) < 4 * same.std() / sqrt(500)


def test_default_bandwidth():
    x, y = torch.randn(300, 3), torch.randn(200, 3)
    h = 0.1 * torch.pdist(torch.cat([x, y])).median()
    torch.testing.assert_close(mmd(x, y), mmd(x, y, h))
    long = torch.randn(2500, 3)
    assert len(metrics._thin(long)) <= 1000
    assert mmd(long, long + 3) > 10 * mmd(long, torch.randn(2500, 3)).abs()


def test_wasserstein_of_a_shift():
    x = torch.randn(100, 3)
    shift = torch.tensor([1.0, -2.0, 2.0])
    assert wasserstein2(x, x[torch.randperm(100)] + shift) == pytest.approx(3.0)
    assert wasserstein2(x, x[torch.randperm(100)]) == pytest.approx(0.0, abs=1e-6)


def test_wasserstein_in_one_dimension():
    """Sorting is the optimal assignment."""
    x, y = torch.randn(50, 1), 2 * torch.randn(50, 1)
    expected = (x.sort(0).values - y.sort(0).values).square().mean().sqrt()
    assert wasserstein2(x, y) == pytest.approx(expected.item())


def test_wasserstein_of_unequal_lengths():
    x = torch.zeros(30, 2)
    assert wasserstein2(x, torch.ones(70, 2)) == pytest.approx(sqrt(2))
    assert wasserstein2(torch.ones(70, 2), x, max_points=10) == pytest.approx(sqrt(2))


def test_wasserstein_without_scipy(monkeypatch):
    real = builtins.__import__

    def fake(name, *args, **kwargs):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(ImportError, match="pip install scipy"):
        wasserstein2(torch.zeros(2, 1), torch.zeros(2, 1))


# ---- modes --------------------------------------------------------------------------------------


def test_hausdorff(monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", 2)
    modes = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    draws = torch.tensor([[0.0, 0.1], [10.0, 0.0], [0.0, 7.0], [50.0, 50.0]])
    assert hausdorff(modes, draws).item() == pytest.approx(3.0)
    assert hausdorff(modes, draws.float()).item() == pytest.approx(3.0)


def test_hausdorff_far_out():
    """Squares of many float32 draws far from 0 would round the distance off."""
    modes = 1000 * torch.tensor([[1.0, 0.3], [-0.7, 1.0], [0.2, -1.0]], dtype=torch.float32)
    draws = modes.repeat(100, 1) + torch.tensor([0.3, 0.0], dtype=torch.float32)
    truth = (draws[:3].double() - modes.double()).norm(dim=-1).max()
    assert hausdorff(modes, draws).item() == pytest.approx(float(truth), rel=1e-6)
    assert hausdorff(torch.tensor([[0, 4]]), torch.tensor([[0.0, 1.0]])).item() == 3.0


def test_mode_chi2():
    counts, weights = torch.tensor([30, 45, 25]), torch.tensor([0.25, 0.5, 0.25])
    expected = stats.chisquare(counts.numpy(), 100 * weights.numpy())
    result = mode_chi2(counts, weights)
    assert result.statistic.item() == pytest.approx(expected.statistic)
    assert result.p_value.item() == pytest.approx(expected.pvalue)
    fewer = mode_chi2(counts / 100, 2 * weights, effective_size=50)
    assert fewer.statistic.item() == pytest.approx(expected.statistic / 2)


def test_p_values_are_uniform():
    weights = torch.tensor([0.2, 0.3, 0.5])
    draws = torch.multinomial(weights, 400 * 1000, replacement=True).reshape(400, 1000)
    p = [mode_chi2(row.bincount(minlength=3), weights).p_value.item() for row in draws]
    assert stats.kstest(p, "uniform").pvalue > 1e-3


# ---- densities ----------------------------------------------------------------------------------

LOG_Z, SHIFT, NUM = 3.0, 0.7, 200_000


def log_p(x):
    """A unit normal, times Z."""
    return -0.5 * x.square() + LOG_Z


def log_q(x):
    """A unit normal beside it; both have their constants dropped alike."""
    return -0.5 * (x - SHIFT).square()


def test_normal_against_normal():
    """KL is shift²/2 both ways; the ESS is exp(-shift²) both ways."""
    of_p = torch.randn(NUM)
    of_q = of_p + SHIFT
    kl, ess = SHIFT**2 / 2, exp(-(SHIFT**2))
    assert reverse_kl(log_q(of_q), log_p(of_q)).item() == pytest.approx(kl - LOG_Z, abs=0.01)
    assert forward_kl(log_q(of_p), log_p(of_p)).item() == pytest.approx(kl + LOG_Z, abs=0.01)
    assert ess_reverse(log_p(of_q) - log_q(of_q)).item() == pytest.approx(ess, abs=0.02)
    assert ess_forward(log_p(of_p) - log_q(of_p)).item() == pytest.approx(ess, abs=0.02)


def test_perfect_weights():
    log_weights = torch.full((10,), 1000.0)
    assert ess_forward(log_weights).item() == pytest.approx(1.0)
    assert ess_reverse(log_weights).item() == pytest.approx(1.0)


def test_only_forward_sees_a_missed_mode():
    """A fifth of p is where q has 1e-9 of its mass; elsewhere they agree."""
    share, small = 0.2, 1e-9
    agree, missed = log((1 - share) / (1 - small)), log(share / small)
    log_weights = torch.tensor([agree] * 800 + [missed] * 200)  # draws of p
    exact = 1 / (share**2 / small + (1 - share) ** 2 / (1 - small))
    assert ess_reverse(torch.full((1000,), agree)).item() == pytest.approx(1.0)
    assert ess_forward(log_weights).item() == pytest.approx(exact)
    assert ess_forward(torch.tensor([0.0, torch.inf])).item() == 0.0


def test_per_column_and_in_float32():
    log_weights = torch.randn(1000, 2)
    both = ess_forward(log_weights)
    torch.testing.assert_close(both[1], ess_forward(log_weights[:, 1]))
    torch.testing.assert_close(ess_forward(log_weights.float()), both, rtol=1e-5, atol=0)
