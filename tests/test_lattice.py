"""Lattice targets: energies by loops, symmetries, exact solutions, and draws against them."""

from itertools import combinations, product
from math import cos, exp, isnan, log, pi, sin, sqrt

import pytest
import torch
from baselines import hmc
from baselines.parallel_tempering import parallel_tempering
from pyro import poutine
from pyro.infer import Predictive
from scipy.special import ive

from pyro_flowsamp import AutoFlow, FitOptions, Target
from pyro_flowsamp.symmetry import group
from pyro_flowsamp.targets import (
    lattice_symmetries,
    phi4,
    phi4_action,
    phi4_circle,
    phi4_model,
    phi4_observables,
    phi4_symmetries,
    phi4_truth,
    vortex_density,
    xy,
    xy_chain_truth,
    xy_energy,
    xy_magnetization,
    xy_model,
    xy_observables,
    xy_torus_truth,
)

SHAPES = [(2,), (5,), (2, 2), (3, 4), (2, 3, 4)]
MASSES = [0.25, 0.5, 0.75, 1.0]
NUM = 10_000


@pytest.fixture(autouse=True)
def float64(clean_slate):
    torch.set_default_dtype(torch.float64)


def z_score(values, mean, error=0.0):
    """Of independent values, against a mean that may have an error of its own."""
    return float((values.mean() - mean) / (values.var() / len(values) + error**2).sqrt())


def size(shape):
    return torch.Size(shape).numel()


# ---- energies, by loops over sites --------------------------------------------------------------


def neighbours(shape, periodic=True):
    """All (i, j, axis), j next to i along the axis; i and j are tuples of coordinates."""
    for i in product(*map(range, shape)):
        for axis, n in enumerate(shape):
            if periodic or i[axis] + 1 < n:
                yield i, (*i[:axis], (i[axis] + 1) % n, *i[axis + 1 :]), axis


def plaquettes(shape, periodic=True):
    """The corners of each, in turn."""
    step = {(i, axis): j for i, j, axis in neighbours(shape, periodic)}
    for i in product(*map(range, shape)):
        for a, b in combinations(range(len(shape)), 2):
            if (i, a) in step and (i, b) in step:
                yield i, step[i, a], step[step[i, a], b], step[i, b]


def naive_action(x, shape, m, lam, alpha):
    phi = x.reshape(shape)
    total = sum(float(phi[i] - phi[j]) ** 2 for i, j, _ in neighbours(shape))
    return total + sum(-m * v**2 + lam * (v - alpha) ** 4 for v in x.tolist())


def naive_xy(x, shape, j, k, periodic):
    theta = x.reshape(shape)
    total = sum(-j * cos(theta[a] - theta[b]) for a, b, _ in neighbours(shape, periodic))
    rings = plaquettes(shape, periodic)
    return total - sum(k * cos(theta[a] - theta[b] + theta[c] - theta[d]) for a, b, c, d in rings)


@pytest.mark.parametrize("shape", SHAPES)
def test_action(shape):
    x = 2 * torch.randn(3, 2, size(shape))
    action = phi4_action(x, shape, 0.7, 0.2, 0.3)
    naive = [[naive_action(v, shape, 0.7, 0.2, 0.3) for v in row] for row in x]
    torch.testing.assert_close(action, torch.tensor(naive))
    known = phi4(shape, 0.7, 0.2, 0.3)
    log_p, grad = known.target.log_prob_and_grad(x.flatten(0, 1))
    torch.testing.assert_close(log_p, -action.flatten())
    assert grad.isfinite().all()
    observed = phi4_observables(x, shape, 0.7, 0.2, 0.3)
    torch.testing.assert_close(observed.action, action / size(shape))
    torch.testing.assert_close(observed.mean, x.mean(-1))
    torch.testing.assert_close(observed.mean_square, (x**2).mean(-1))


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_xy_energy(shape, periodic):
    x, k = 2 * pi * torch.rand(3, 2, size(shape)), 0.4 * (len(shape) > 1)
    options = {"coupling": 0.7, "ring_exchange": k, "periodic": periodic}
    energy = xy_energy(x, shape, **options)
    naive = [[naive_xy(v, shape, 0.7, k, periodic) for v in row] for row in x]
    torch.testing.assert_close(energy, torch.tensor(naive))
    target = xy(shape, 0.5, **options).target
    log_p, grad = target.log_prob_and_grad(x.flatten(0, 1))
    torch.testing.assert_close(log_p, -2 * energy.flatten())
    assert grad.isfinite().all()
    assert target.angles.all()


# ---- symmetries ---------------------------------------------------------------------------------


def images(x, generators):
    elements = group(generators)
    return x[:, elements.order] * elements.sign


@pytest.mark.parametrize("alpha", [0.0, 0.01])
@pytest.mark.parametrize("shape, order", [((6,), 12), ((3, 4), 48), ((4, 4), 128), ((2, 2, 3), 48)])
def test_symmetries_of_the_action(shape, order, alpha):
    x = torch.randn(2, size(shape))
    moved = images(x, phi4_symmetries(shape, alpha))
    assert moved.shape[1] == (2 * order if alpha == 0 else order)
    action = phi4_action(x, shape, alpha=alpha)[:, None].expand(moved.shape[:2])
    torch.testing.assert_close(phi4_action(moved, shape, alpha=alpha), action)
    changed = phi4_action(-x, shape, alpha=0.01) - phi4_action(x, shape, alpha=0.01)
    assert (changed.abs() > 1e-6).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_symmetries_of_xy(shape):
    """Those of the lattice, all rotations, and the reflection of angles."""
    x, k = 2 * pi * torch.rand(2, size(shape)), 0.4 * (len(shape) > 1)
    moved = images(x, lattice_symmetries(shape))
    moved = torch.cat([moved, -moved, moved + 1.0, moved + 2 * pi], 1)
    energy = xy_energy(x, shape, ring_exchange=k)[:, None].expand(moved.shape[:2])
    torch.testing.assert_close(xy_energy(moved, shape, ring_exchange=k), energy)


# ---- exact solutions ----------------------------------------------------------------------------

CIRCLE = {  # m: log Z, <phi^2>, <S>/N, <|mean|>, P(mean > 0); N = 16, lambda = 1/16, alpha = .01
    0.25: (9.78554716, 1.22196109, 0.30791013, 0.7265533, 0.53229689),
    0.50: (18.76033288, 3.44830998, -0.45534985, 1.7641708, 0.63712593),
    0.75: (37.04379337, 5.65465844, -1.74698399, 2.3359841, 0.75349337),
    1.00: (63.87567319, 7.75398077, -3.52590061, 2.7564626, 0.85284195),
}


@pytest.mark.parametrize("mass", MASSES)
def test_circle(mass):
    truth = phi4_truth(16, mass)
    log_z, mean_square, action, mean_abs, positive = CIRCLE[mass]
    assert truth.log_z == pytest.approx(log_z, abs=2e-8)
    assert truth.mean_square == pytest.approx(mean_square, abs=2e-8)
    assert truth.action == pytest.approx(action, abs=2e-8)
    assert truth.mean_abs == pytest.approx(mean_abs, abs=1e-6)
    assert truth.positive == pytest.approx(positive, abs=2e-8)


def test_density_of_the_mean():
    a = torch.linspace(-8, 8, 4001)
    for sites in (2, 16, 64):
        truth = phi4_truth(sites, 0.75)
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
    truth = phi4_truth(sites, -0.5, 0.0, 0.0)
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
    truth = phi4_truth(2, *params)
    assert truth.log_z == pytest.approx(float(log_w.logsumexp(0)) + 2 * log(0.02), abs=1e-10)
    assert truth.mean_square == pytest.approx(float(w @ x[:, 0].square()), abs=1e-10)
    assert truth.action == pytest.approx(float(-w @ log_w) / 2, abs=1e-10)
    assert truth.mean_abs == pytest.approx(float(w @ mean.abs()), abs=1e-4)
    on_the_line = w[mean.abs() < 1e-9].sum() / 2
    assert truth.positive == pytest.approx(float(w[mean > 1e-9].sum() + on_the_line), abs=1e-4)


def test_bessel_ring():
    for kappa, log_z, cosine, mean_square in [
        (1.0, 16.5934796, 0.44888514, 0.32536227),
        (2.0, 21.4016064, 0.72162812, 0.61165620),
    ]:
        truth = xy_chain_truth(8, 1 / kappa)
        assert truth.log_z == pytest.approx(log_z, abs=1e-7)
        assert truth.energy == pytest.approx(-cosine, abs=1e-8)
        assert truth.mean_square == pytest.approx(mean_square, abs=1e-8)


def test_open_chain():
    """Differences are independent von Mises variates."""
    t, i0 = ive(1, 2.0) / ive(0, 2.0), ive(0, 2.0) * exp(2)
    truth = xy_chain_truth(5, 0.5, periodic=False)
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
    truth = xy_chain_truth(3, 0.7, coupling=coupling, periodic=periodic)
    assert known.log_z == truth.log_z == pytest.approx(float(log_z), abs=1e-10)
    assert truth.energy == pytest.approx(float(w @ energy) / 3, abs=1e-10)
    assert truth.mean_square == pytest.approx(float(w @ xy_magnetization(x).square()), abs=1e-10)
    assert known.entropy == pytest.approx(float(log_z - w @ log_w), abs=1e-10)


def test_large_chain():
    """Neither the powers of Bessel functions nor their number matter."""
    cold = xy_chain_truth(1000, 1e-3)
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
    truth = xy_torus_truth(shape, temperature, ring_exchange=k)
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
    truth = xy_torus_truth((2, 2), temperature, ring_exchange=k)
    assert truth.log_z == pytest.approx(float(log_z), abs=1e-8)
    assert truth.energy == pytest.approx(float(w @ energy) / 4, abs=1e-8)
    assert truth.mean_square == pytest.approx(float(w @ xy_magnetization(x).square()), abs=1e-8)


def test_long_strips():
    """The energy is the derivative of log Z, and either axis may be the long one."""
    for shape, k in [((2, 7), 0.5), ((3, 4), 0.5)]:
        low, high = (xy_torus_truth(shape, 1 / b, ring_exchange=k).log_z for b in (0.499, 0.501))
        truth = xy_torus_truth(shape, 2.0, ring_exchange=k)
        assert truth.energy == pytest.approx((low - high) / 0.002 / size(shape), abs=1e-5)
        assert truth == xy_torus_truth(shape[::-1], 2.0, ring_exchange=k)


def test_hot_strip():
    r"""At high temperature :math:`N \langle m^2 \rangle = 1 + 4 \tanh`-like corrections, to first
    order :math:`1 + 4 \cdot J/2T`, and the energy is :math:`-2 J^2/2T`."""
    truth = xy_torus_truth((3, 5), 1000.0)
    assert truth.mean_square * 15 == pytest.approx(1 + 2e-3, abs=1e-5)
    assert truth.energy == pytest.approx(-1e-3, abs=1e-5)


# ---- exact draws on the circle ------------------------------------------------------------------


@pytest.mark.parametrize("sites, params", [(16, (0.5, 1 / 16, 0.01)), (3, (1.0, 0.5, 0.1))])
def test_exact_draws(sites, params):
    known, truth = phi4(sites, *params), phi4_truth(sites, *params)
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
    monkeypatch.setattr(phi4_circle, "REJECTED", 3.2)
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


def test_modes():
    known = phi4(16, 1.0)
    x = known.modes.clone().requires_grad_()
    (grad,) = torch.autograd.grad(known.target.log_prob(x).sum(), x)
    assert grad.abs().max() < 1e-9
    assert known.assign(known.modes).tolist() == [0, 1]
    assert (known.modes[:, 0] / sqrt(8) - torch.tensor([-1.0, 1.0])).abs().max() < 0.02
    assert phi4((4, 4)).modes.shape == (2, 16) and phi4((4, 4)).log_z is None
    for single in phi4(4, -1.0), phi4(4, 0.0), phi4(4, -1.0, 0.0):
        assert single.modes.shape == (1, 4) and single.weights.tolist() == [1.0]


# ---- draws by Markov chains ---------------------------------------------------------------------


def z_scores(per_chain, truths):
    """Of averages over independent chains, ``(C,)`` each."""
    return {name: z_score(values, truths[name]) for name, values in per_chain.items()}


def test_tempering_on_the_circle():
    truth = phi4_truth(16, 0.5)
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
    assert abs(evidence.log_z - truth.log_z) < 4.5 * evidence.standard_error


def chains(shape, temperature, k=0.0, num=200, start=pi):
    """HMC draws ``(C, S, d)``."""
    target = xy(shape, temperature, ring_exchange=k).target
    x0 = start * (2 * torch.rand(48, target.dim) - 1)
    return hmc.sample(target, x0, num, 150, 10).x


@pytest.mark.parametrize("temperature, k", [(0.5, 0.0), (1.0, 0.0), (1.0, 1.0)])
def test_hmc_on_the_torus(temperature, k):
    truth = xy_torus_truth((2, 2), temperature, ring_exchange=k)
    around = temperature - 1e-3, temperature + 1e-3
    low, high = (xy_torus_truth((2, 2), t, ring_exchange=k).energy for t in around)
    draws = chains((2, 2), temperature, k)
    observed = xy_observables(draws, (2, 2), temperature, ring_exchange=k)
    energy = xy_energy(draws, (2, 2), ring_exchange=k)
    heat = 4 * (energy / 4 - truth.energy).square().mean(1) / temperature**2
    assert abs(z_score(observed.energy, truth.energy)) < 4.5
    assert abs(z_score(observed.mean_square, truth.mean_square)) < 4.5
    assert abs(z_score(heat, (high - low) / 2e-3)) < 4.5


def test_hmc_on_the_ring():
    truth = xy_chain_truth(8)
    observed = xy_observables(chains(8, 1.0), 8)
    n = torch.arange(-20, 21)
    weights = torch.tensor(ive(n.numpy(), 1.0)) ** 8
    winding = float(weights @ n.double().square() / weights.sum())
    assert abs(z_score(observed.energy, truth.energy)) < 4.5
    assert abs(z_score(observed.mean_square, truth.mean_square)) < 4.5
    assert abs(z_score(observed.helicity, 8 * winding)) < 4.5


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


# ---- observables --------------------------------------------------------------------------------


def test_xy_observables_by_loops():
    shape, t, j, k = (3, 4), torch.tensor([0.5, 1.5]), 0.7, 0.4
    draws = 2 * pi * torch.rand(2, 6, 12)
    observed = xy_observables(draws, shape, t, coupling=j, ring_exchange=k)
    for b in range(2):
        temperature = float(t[b])
        h = torch.tensor([naive_xy(x, shape, j, k, True) for x in draws[b]])
        m = torch.exp(1j * draws[b]).mean(-1).abs()
        helicity = 0.0
        for x in draws[b]:
            theta = x.reshape(shape)
            for axis in range(2):
                bonds = [float(theta[v] - theta[u]) for u, v, a in neighbours(shape) if a == axis]
                current = j * sum(map(sin, bonds))
                helicity += (j * sum(map(cos, bonds)) - current**2 / temperature) / (6 * 2 * 12)
        assert observed.energy[b] == pytest.approx(float(h.mean()) / 12)
        assert observed.magnetization[b] == pytest.approx(float(m.mean()))
        assert observed.mean_square[b] == pytest.approx(float(m.square().mean()))
        assert observed.specific_heat[b] == pytest.approx(
            float(h.var(unbiased=False)) / 12 / temperature**2
        )
        assert observed.susceptibility[b] == pytest.approx(
            12 * float(m.var(unbiased=False)) / temperature
        )
        assert observed.helicity[b] == pytest.approx(helicity)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 3)])
def test_vortices_by_loops(shape):
    x = 2 * pi * torch.rand(20, size(shape))
    found, planes = [], len(shape) * (len(shape) - 1) // 2
    for row in x:
        theta, vortices = row.reshape(shape), 0
        for corners in plaquettes(shape):
            turns = [float(theta[b] - theta[a]) for a, b in zip(corners, corners[1:] + corners[:1])]
            vortices += round(abs(sum((t + pi) % (2 * pi) - pi for t in turns)) / (2 * pi))
        found.append(vortices / planes / size(shape))
    torch.testing.assert_close(vortex_density(x, shape), torch.tensor(found))


def test_vortices_at_both_ends():
    """None where all angles agree; one in three plaquettes where none know of each other."""
    assert vortex_density(torch.ones(2, 3, 16), (4, 4)).tolist() == [[0.0] * 3] * 2
    x = 2 * pi * torch.rand(2000, 64)
    assert abs(z_score(vortex_density(x, (8, 8)), 1 / 3)) < 4


# ---- as Pyro models -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [5, (3, 4)])
def test_models_are_the_targets(shape):
    pairs = [
        (Target.from_model(phi4_model, shape, 0.7, 0.2, 0.3), phi4(shape, 0.7, 0.2, 0.3)),
        (Target.from_model(xy_model, shape, 0.7, 1.2), xy(shape, 0.7, coupling=1.2)),
    ]
    for model, known in pairs:
        assert model.batching == "vmap" and model.circular == known.target.circular
        x = 3 * torch.rand(4, known.target.dim)
        for ours, theirs in zip(model.log_prob_and_grad(x), known.target.log_prob_and_grad(x)):
            torch.testing.assert_close(ours, theirs)


def test_models_run_by_themselves():
    for model, args, name in [(phi4_model, ((2, 3), 1), "phi"), (xy_model, ((2, 3), 1), "theta")]:
        trace = poutine.trace(model).get_trace(*args)
        value = trace.nodes[name]["value"]
        assert value.shape == (2, 3) and value.isfinite().all()
        energy = phi4_action if name == "phi" else xy_energy
        scale = {"mass": 1} if name == "phi" else {}
        torch.testing.assert_close(trace.log_prob_sum(), -energy(value.flatten(), (2, 3), **scale))


def test_a_temperature_for_each_point():
    x = 2 * pi * torch.rand(4, 9)
    t = torch.tensor([0.5, 1.0, 1.5, 2.0])
    target = Target.from_model(xy_model, (3, 3), temperature=1.0, ring_exchange=1.0)
    log_p = target.amortize("temperature").log_prob(x, t[:, None])
    torch.testing.assert_close(log_p, -xy_energy(x, (3, 3), ring_exchange=1.0) / t)
    fields = Target.from_model(phi4_model, 9, mass=0.5).amortize("mass").log_prob(x, t[:, None])
    each = [-phi4_action(row, 9, float(m)) for row, m in zip(x, t)]
    torch.testing.assert_close(fields, torch.stack(each))


def test_one_flow_for_all_temperatures():
    options = FitOptions(max_steps=25, batch_size=64, learning_rate=0.01, progress=False)
    guide = AutoFlow(xy_model, context=["temperature"], options=options)
    guide.fit(3, temperature=torch.linspace(1.0, 3.0, 16))
    draws = Predictive(xy_model, guide=guide, num_samples=10)(3, temperature=torch.tensor(2.0))
    assert draws["theta"].flatten(1).shape == (10, 3)


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [1, 0, (), (4, 1), (3, -2), (2.5, 4)])
def test_bad_shapes(shape):
    for make in (phi4, xy, lattice_symmetries, phi4_symmetries):
        with pytest.raises(ValueError, match="at least two sites along each axis"):
            make(shape)
    for model in phi4_model, xy_model:
        with pytest.raises(ValueError, match="at least two sites along each axis"):
            Target.from_model(model, shape)


def test_wrong_dimension():
    for function in (phi4_action, phi4_observables, xy_energy, xy_observables, vortex_density):
        with pytest.raises(ValueError, match=r"\(3, 4\) has 12 sites, the points have shape"):
            function(torch.zeros(2, 11), (3, 4))
    with pytest.raises(ValueError, match=r"expected points of shape \(N, 12\)"):
        xy((3, 4)).target.log_prob(torch.zeros(2, 11))


def test_bad_parameters():
    for make in (phi4, phi4_truth):
        with pytest.raises(ValueError, match="coupling must be positive"):
            make(8, 0.5, -0.1)
        with pytest.raises(ValueError, match="coupling must be positive"):
            make(8, 0.5, 0.0)
        with pytest.raises(ValueError, match="wells are too far apart, or"):
            make(8, 0.5, 1e-6)
    for make in (xy, xy_model, xy_chain_truth):
        for temperature in (0.0, -1.0, float("nan")):
            with pytest.raises(ValueError, match="temperature must be positive"):
                make(8, temperature)


def test_no_such_solution():
    with pytest.raises(ValueError, match="two dimensions"):
        xy_torus_truth((2, 2, 2))
    with pytest.raises(ValueError, match="too many"):
        xy_torus_truth((8, 8))
    with pytest.raises(ValueError, match="too many"):
        xy_torus_truth((3, 3), 0.05)
    with pytest.raises(ValueError, match="temperature must be positive"):
        xy_torus_truth((3, 3), 0.0)
    for function in (phi4_truth, xy_chain_truth):
        with pytest.raises(ValueError, match="at least two sites"):
            function(1)


def test_no_plaquettes_in_one_dimension():
    with pytest.raises(ValueError, match="plaquettes need two dimensions"):
        xy(8, ring_exchange=1.0)
    with pytest.raises(ValueError, match="plaquettes need two dimensions"):
        vortex_density(torch.zeros(8), 8)


# ---- dtype and device ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_device(dtype):
    """Nothing falls back on the defaults: neither the dtype, nor "meta", where nothing works."""
    torch.set_default_dtype(torch.float16)
    at = {"dtype": dtype, "device": "cpu"}
    with torch.device("meta"):
        field = phi4(4, 0.5, **at)
        lattice = phi4((2, 3), **at)
        angles = xy((2, 3), 0.5, ring_exchange=1.0, **at)
        x = field.sample(50)
        y = torch.linspace(-3, 3, 12, **at).reshape(2, 6)
        results = [x, field.modes, field.weights, field.mode_fractions(x)]
        results += field.target.log_prob_and_grad(x)
        results += [v for t in (lattice, angles) for v in t.target.log_prob_and_grad(y)]
        results += [*xy_observables(y, (2, 3)), vortex_density(y, (2, 3))]
        assert xy(4, 0.5, **at).log_z == pytest.approx(xy_chain_truth(4, 0.5).log_z)
        assert xy_torus_truth((2, 2), 5.0).energy < 0
    assert {(t.dtype, t.device.type) for t in results} == {(dtype, "cpu")}
