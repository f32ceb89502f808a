"""Exact solutions of XY models: by quadrature, against each other and against HMC."""

from math import exp, isnan, log, pi

import pytest
import torch
from baselines import hmc
from scipy.special import ive
from support.lattice import size, z_score

from pyro_flowsamp.lattice import (
    exact_phi4,
    exact_xy_chain,
    exact_xy_torus,
    xy,
    xy_energy,
    xy_magnetization,
    xy_observables,
)


@pytest.fixture(autouse=True)
def float64(clean_slate):
    torch.set_default_dtype(torch.float64)


# ---- exact solutions ----------------------------------------------------------------------------


def test_bessel_ring():
    for kappa, log_z, cosine, mean_square in [
        (1.0, 16.5934796, 0.44888514, 0.32536227),
        (2.0, 21.4016064, 0.72162812, 0.61165620),
    ]:
        truth = exact_xy_chain(8, 1 / kappa)
        assert truth.log_z == pytest.approx(log_z, abs=1e-7)
        assert truth.energy == pytest.approx(-cosine, abs=1e-8)
        assert truth.mean_square == pytest.approx(mean_square, abs=1e-8)


def test_open_chain():
    """Differences are independent von Mises variates."""
    t, i0 = ive(1, 2.0) / ive(0, 2.0), ive(0, 2.0) * exp(2)
    truth = exact_xy_chain(5, 0.5, periodic=False)
    assert truth.log_z == pytest.approx(5 * log(2 * pi) + 4 * log(i0), abs=1e-12)
    assert truth.energy == pytest.approx(-0.8 * t, abs=1e-12)
    pairs = sum(t ** abs(i - j) for i in range(5) for j in range(5))
    assert truth.mean_square == pytest.approx(pairs / 25, abs=1e-12)


@pytest.mark.parametrize("coupling", [0.9, -0.9])
@pytest.mark.parametrize("periodic", [True, False])
def test_three_sites_by_quadrature(periodic, coupling):
    """An antiferromagnet of three is frustrated only as a ring."""
    axis = 2 * pi * torch.arange(48) / 48
    x = torch.cartesian_prod(axis[:1], axis, axis)
    energy = xy_energy(x, 3, coupling=coupling, periodic=periodic)
    log_w = -energy / 0.7
    log_z = log_w.logsumexp(0) + 2 * log(2 * pi / 48) + log(2 * pi)
    w = log_w.softmax(0)
    known = xy(3, 0.7, coupling=coupling, periodic=periodic)
    truth = exact_xy_chain(3, 0.7, coupling=coupling, periodic=periodic)
    assert known.log_z == truth.log_z == pytest.approx(float(log_z), abs=1e-10)
    assert truth.energy == pytest.approx(float(w @ energy) / 3, abs=1e-10)
    assert truth.mean_square == pytest.approx(float(w @ xy_magnetization(x).square()), abs=1e-10)
    assert known.entropy == pytest.approx(float(log_z - w @ log_w), abs=1e-10)


def test_large_chain():
    """Neither the powers of Bessel functions nor their number matter."""
    cold = exact_xy_chain(1000, 1e-3)
    assert cold.energy == pytest.approx(-1 + 0.5e-3, abs=1e-5)  # equipartition
    assert not isnan(cold.log_z)


TORI = [  # shape, T, K: log Z, energy per site, <m^2>
    ((2, 2), 1.0, 0.0, 11.04690329, -1.55912185, 0.81824317),
    ((2, 2), 0.5, 0.0, 17.89995951, -1.80156075, 0.91782984),
    ((2, 2), 1.0, 1.0, 14.42922542, -2.5891477, 0.85455508),
    ((3, 3), 0.5, 0.0, None, -1.762159, 0.882015),
    ((3, 3), 1.0, 0.0, None, -1.4553177, 0.7314664),
    ((3, 3), 2.05, 0.0, None, -0.6914758, 0.3625142),
]


@pytest.mark.parametrize("shape, temperature, k, log_z, energy, mean_square", TORI)
def test_torus(shape, temperature, k, log_z, energy, mean_square):
    truth = exact_xy_torus(shape, temperature, ring_exchange=k)
    digits = 6e-8 if (shape, temperature) != ((3, 3), 0.5) else 6e-7
    assert truth.energy == pytest.approx(energy, abs=digits)
    assert truth.mean_square == pytest.approx(mean_square, abs=digits)
    if log_z is not None:
        assert truth.log_z == pytest.approx(log_z, abs=1e-8)


@pytest.mark.parametrize("temperature, k", [(0.5, 0.0), (1.0, 1.0)])
def test_torus_by_quadrature(temperature, k):
    axis = 2 * pi * torch.arange(40) / 40
    x = torch.cartesian_prod(axis[:1], axis, axis, axis)
    energy = xy_energy(x, (2, 2), ring_exchange=k)
    log_z = (-energy / temperature).logsumexp(0) + 3 * log(2 * pi / 40) + log(2 * pi)
    w = (-energy / temperature).softmax(0)
    truth = exact_xy_torus((2, 2), temperature, ring_exchange=k)
    assert truth.log_z == pytest.approx(float(log_z), abs=1e-8)
    assert truth.energy == pytest.approx(float(w @ energy) / 4, abs=1e-8)
    assert truth.mean_square == pytest.approx(float(w @ xy_magnetization(x).square()), abs=1e-8)


def test_long_strips():
    """The energy is the derivative of log Z, and either axis may be the long one."""
    for shape, k in [((2, 7), 0.5), ((3, 4), 0.5)]:
        low, high = (exact_xy_torus(shape, 1 / b, ring_exchange=k).log_z for b in (0.499, 0.501))
        truth = exact_xy_torus(shape, 2.0, ring_exchange=k)
        assert truth.energy == pytest.approx((low - high) / 0.002 / size(shape), abs=1e-5)
        assert truth == exact_xy_torus(shape[::-1], 2.0, ring_exchange=k)


def test_hot_strip():
    r"""At high temperature :math:`N \langle m^2 \rangle = 1 + 4 \tanh`-like corrections, to first
    order :math:`1 + 4 \cdot J/2T`, and the energy is :math:`-2 J^2/2T`."""
    truth = exact_xy_torus((3, 5), 1000.0)
    assert truth.mean_square * 15 == pytest.approx(1 + 2e-3, abs=1e-5)
    assert truth.energy == pytest.approx(-1e-3, abs=1e-5)


# ---- draws by Markov chains ---------------------------------------------------------------------


def chains(shape, temperature, k=0.0, num=200, start=pi):
    """HMC draws ``(C, S, d)``."""
    target = xy(shape, temperature, ring_exchange=k).target
    x0 = start * (2 * torch.rand(48, target.dim) - 1)
    return hmc.sample(target, x0, num, 150, 10).x


@pytest.mark.slow
@pytest.mark.parametrize("temperature, k", [(0.5, 0.0), (1.0, 0.0), (1.0, 1.0)])
def test_hmc_on_the_torus(temperature, k):
    truth = exact_xy_torus((2, 2), temperature, ring_exchange=k)
    around = temperature - 1e-3, temperature + 1e-3
    low, high = (exact_xy_torus((2, 2), t, ring_exchange=k).energy for t in around)
    draws = chains((2, 2), temperature, k)
    observed = xy_observables(draws, (2, 2), temperature, ring_exchange=k)
    energy = xy_energy(draws, (2, 2), ring_exchange=k)
    heat = 4 * (energy / 4 - truth.energy).square().mean(1) / temperature**2
    assert abs(z_score(observed.energy, truth.energy)) < 4.5
    assert abs(z_score(observed.mean_square, truth.mean_square)) < 4.5
    assert abs(z_score(heat, (high - low) / 2e-3)) < 4.5


@pytest.mark.slow
def test_hmc_on_the_ring():
    truth = exact_xy_chain(8)
    observed = xy_observables(chains(8, 1.0), 8)
    n = torch.arange(-20, 21)
    weights = torch.tensor(ive(n.numpy(), 1.0)) ** 8
    winding = float(weights @ n.double().square() / weights.sum())
    assert abs(z_score(observed.energy, truth.energy)) < 4.5
    assert abs(z_score(observed.mean_square, truth.mean_square)) < 4.5
    assert abs(z_score(observed.helicity, 8 * winding)) < 4.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "temperature, start, energy, magnetization",
    [
        (0.5, 0.5, (-1.7343, 0.0005), (0.8960, 0.0004)),
        (1.0, 1.0, (-1.3580, 0.0019), (0.7276, 0.0015)),
        (2.05, pi, (-0.5316, 0.0013), (0.2215, 0.0013)),
    ],
)
def test_hmc_on_eight_by_eight(temperature, start, energy, magnetization):
    """Against a Monte Carlo run with errors; from a random start, cold chains stay wound up."""
    observed = xy_observables(
        chains((8, 8), temperature, num=150, start=start), (8, 8), temperature
    )
    assert abs(z_score(observed.energy, *energy)) < 5
    assert abs(z_score(observed.magnetization, *magnetization)) < 5


# ---- bad input ----------------------------------------------------------------------------------


def test_no_such_solution():
    with pytest.raises(ValueError, match="two dimensions"):
        exact_xy_torus((2, 2, 2))
    with pytest.raises(ValueError, match="too many"):
        exact_xy_torus((8, 8))
    with pytest.raises(ValueError, match="too many"):
        exact_xy_torus((3, 3), 0.05)
    with pytest.raises(ValueError, match="temperature must be positive"):
        exact_xy_torus((3, 3), 0.0)
    for function in (exact_phi4, exact_xy_chain):
        with pytest.raises(ValueError, match="at least two sites"):
            function(1)
