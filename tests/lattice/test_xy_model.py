"""The XY model: energy and observables by loops, and its symmetries."""

from math import cos, pi, sin

import pytest
import torch
from pyro.infer import Predictive
from support.lattice import SHAPES, images, naive_xy, neighbours, plaquettes, size, z_score

from pyro_flowsamp import AutoFlow, FitOptions
from pyro_flowsamp.lattice import (
    lattice_symmetries,
    vortex_density,
    xy,
    xy_energy,
    xy_model,
    xy_observables,
)


@pytest.fixture(autouse=True)
def float64(clean_slate):
    torch.set_default_dtype(torch.float64)


# ---- energies, by loops over sites --------------------------------------------------------------


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


@pytest.mark.parametrize("shape", SHAPES)
def test_symmetries_of_xy(shape):
    """Those of the lattice, all rotations, and the reflection of angles."""
    x, k = 2 * pi * torch.rand(2, size(shape)), 0.4 * (len(shape) > 1)
    moved = images(x, lattice_symmetries(shape))
    moved = torch.cat([moved, -moved, moved + 1.0, moved + 2 * pi], 1)
    energy = xy_energy(x, shape, ring_exchange=k)[:, None].expand(moved.shape[:2])
    torch.testing.assert_close(xy_energy(moved, shape, ring_exchange=k), energy)


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


@pytest.mark.slow
def test_one_flow_for_all_temperatures():
    options = FitOptions(max_steps=25, batch_size=64, learning_rate=0.01, progress=False)
    guide = AutoFlow(xy_model, context=["temperature"], options=options)
    guide.fit(3, temperature=torch.linspace(1.0, 3.0, 16))
    draws = Predictive(xy_model, guide=guide, num_samples=10)(3, temperature=torch.tensor(2.0))
    assert draws["theta"].flatten(1).shape == (10, 3)
