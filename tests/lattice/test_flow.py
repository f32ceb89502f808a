"""The flow from coarse to fine lattices: order of sites, determinant, symmetry, draws."""

from functools import partial
from itertools import product
from math import pi

import pytest
import torch
from torch.testing import assert_close

from pyro_flowsamp import (
    IMH,
    AutoFlow,
    FitOptions,
    LatentHMC,
    LocalGlobalHMC,
    Target,
    VectorizedMCMC,
    lattice_flow,
)
from pyro_flowsamp.lattice import (
    exact_xy_chain,
    exact_xy_torus,
    xy,
    xy_energy,
    xy_magnetization,
    xy_model,
)
from pyro_flowsamp.lattice.flow import cut_normal
from pyro_flowsamp.lattice.grid import coarse_to_fine

SHAPES = [(8,), (8, 8), (6, 6), (2, 2), (3, 3), (8, 4), (4, 4, 4), (12,)]


def sites(shape):
    return list(product(*(range(n) for n in shape)))


# ---- the order ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_every_site_once_and_only_known_ones_are_looked_at(shape):
    known = set()
    for group in coarse_to_fine(shape):
        assert set(group.near.flatten().tolist()) <= known
        assert set(group.corners.flatten().tolist()) <= known
        known |= set(group.sites.tolist())
    assert known == set(range(len(sites(shape))))
    assert sum(len(g.sites) for g in coarse_to_fine(shape)) == len(known)


@pytest.mark.parametrize("shape", SHAPES)
def test_sites_of_a_group_look_the_same_way(shape):
    at, sizes = torch.tensor(sites(shape)), torch.tensor(shape)
    for group in coarse_to_fine(shape):
        step = (at[group.near] - at[group.sites][:, None]) % sizes
        assert (step == step[:1]).all()
        length = torch.minimum(step, sizes - step).double().norm(dim=-1)
        assert_close(length, group.distance.double().expand_as(length))
        assert (length.diff() >= -1e-6).all()  # the nearest first
        a, b, c = at[group.corners].unbind(2)
        assert ((a + b - c - at[group.sites][:, None]) % sizes == 0).all()


def test_the_nearest_are_those():
    groups = coarse_to_fine((8, 8), reach=4)
    assert_close(groups[-1].distance, torch.ones(4))
    assert len(groups[-1].corners[0]) == 4  # the last sites see four whole squares
    assert [len(g.sites) for g in groups] == [1, 1, 1, 1, *[2] * 6, *[8] * 6]


def test_keys_count_from_the_finest():
    small, large = ([g.key for g in coarse_to_fine((n, n))] for n in (8, 16))
    assert set(small) < set(large) and len(set(large)) == len(large)


# ---- the map ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.05, 0.7, 1.5, 20.0])
def test_cut_normal(scale):
    u = torch.linspace(-3.1, 3.1, 101, dtype=torch.double, requires_grad=True)
    log_scale = torch.tensor(scale, dtype=torch.double).log()
    x, ladj = cut_normal(u, log_scale, inverse=False)
    (slope,) = torch.autograd.grad(x.sum(), u)
    assert_close(ladj, slope.log())
    back, minus = cut_normal(x, log_scale, inverse=True)
    assert_close(back, u)
    assert_close(minus, -ladj)
    assert x.abs().max() < pi
    if scale == 20.0:
        assert_close(x, u, atol=0.02, rtol=0.0)  # wide: uniform
    inside = torch.distributions.Normal(0, scale).cdf(torch.tensor(pi)).double() * 2 - 1
    log_q = -torch.tensor(2 * pi).log().double() - ladj
    expected = torch.distributions.Normal(0.0, scale).log_prob(x.float()).double() - inside.log()
    assert_close(log_q, expected, atol=1e-4, rtol=1e-4)


def flow_of(shape, context=0, **options):
    """One that is far from the identity."""
    torch.manual_seed(1)
    dim = len(sites(shape))
    flow = lattice_flow(shape, **options)(dim, context, torch.ones(dim, dtype=torch.bool)).double()
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return flow


@pytest.mark.parametrize("shape", [(2, 2), (8,), (3, 3), (4, 4), (2, 2, 2)])
@pytest.mark.parametrize("context", [0, 1])
def test_determinant_and_inverse(shape, context):
    flow = flow_of(shape, context)
    c = torch.tensor([[0.7]]).double().expand(5, 1) if context else None
    at = flow(c)
    z = (2 * torch.rand(5, len(sites(shape)), dtype=torch.double) - 1) * pi
    x, ladj = at.transform.inv.call_and_ladj(z)
    assert (x.abs() <= pi).all()
    back, minus = at.transform.call_and_ladj(x)
    assert_close(back, z, atol=1e-6, rtol=0.0)
    assert_close(minus, -ladj, atol=1e-6, rtol=0.0)
    for i in range(2):
        one = flow(None if c is None else c[i])
        jacobian = torch.autograd.functional.jacobian(one.transform.inv, z[i])
        assert_close(torch.linalg.slogdet(jacobian).logabsdet, ladj[i], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("shape", [(4, 4), (8,)])
def test_rotations_leave_the_density_alone(shape):
    density = flow_of(shape)(None)
    x = density.sample((20,))
    turned = torch.remainder(x + 1.234 + pi, 2 * pi) - pi
    assert_close(density.log_prob(turned), density.log_prob(x), atol=1e-6, rtol=0.0)
    bent = x.clone()
    bent[:, 0] += 0.5
    assert (density.log_prob(bent) - density.log_prob(x)).abs().max() > 0.1


def test_low_temperatures_start_as_spin_waves():
    """Widths go with the square root of the temperature: log q follows log p without training."""
    shape, dim = (8, 8), 64
    flow = lattice_flow(shape)(dim, 1, torch.ones(dim, dtype=torch.bool))
    for t in (0.01, 0.1):
        x = flow(torch.tensor([t])).sample((200,))
        assert 0.1 < float((xy_energy(x, shape) / dim + 2).mean()) / t < 2


# ---- draws --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, temperature, ring",
    [((2, 2), 1.0, 0.0), ((2, 2), 0.5, 0.0), ((2, 2), 1.0, 1.0), ((3, 3), 1.0, 0.0), (8, 0.5, 0.0)],
)
def test_exact_by_imh_whatever_the_flow(shape, temperature, ring):
    """Hardly trained; energies and magnetisations against tori and rings that are solved."""
    target = xy(shape, temperature, ring_exchange=ring).target
    sizes = (shape,) if isinstance(shape, int) else shape
    options = FitOptions(60, 128, 5e-3, stop_at_ess=1.0, progress=False)
    guide = AutoFlow(target, flow=lattice_flow(sizes), options=options)
    guide.fit()
    mcmc = VectorizedMCMC(IMH(target, guide=guide), 40, 60, 200, disable_progbar=True)
    mcmc.run()
    x = mcmc.unconstrained
    if isinstance(shape, int):
        truth = exact_xy_chain(shape, temperature)
    else:
        truth = exact_xy_torus(shape, temperature, ring_exchange=ring)
    for value, expected in (
        (xy_energy(x, sizes, ring_exchange=ring) / target.dim, truth.energy),
        (xy_magnetization(x).square(), truth.mean_square),
    ):
        mean = value.double().mean(1)
        z = float((mean.mean() - expected) / (mean.std() / len(mean) ** 0.5))
        assert abs(z) < 4


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [LatentHMC, partial(LocalGlobalHMC, local_steps=1)])
def test_latent_angles_are_a_circle(kernel):
    """Chains that leave [-π, π] in latent space go round; nothing is flat or forbidden there."""
    target = xy((2, 2), 1.0).target
    guide = AutoFlow(target, flow=lattice_flow((2, 2)), options=FitOptions(30, 64, progress=False))
    guide.fit()
    z = 20 * torch.randn(50, 4)
    x, ladj = guide.proposal().push(z)
    turned, same = guide.proposal().push(torch.remainder(z + pi, 2 * pi) - pi)
    assert_close(
        torch.stack([x.cos(), x.sin()]),
        torch.stack([turned.cos(), turned.sin()]),
        atol=1e-3,
        rtol=0.0,
    )
    assert_close(ladj, same, atol=1e-3, rtol=0.0)
    mcmc = VectorizedMCMC(kernel(guide=guide, num_steps=3), 30, 40, 200, disable_progbar=True)
    mcmc.run()
    energy = xy_energy(mcmc.unconstrained, (2, 2)).double().mean(1) / 4
    z = (energy.mean() - exact_xy_torus((2, 2), 1.0).energy) / (energy.std() / 200**0.5)
    assert abs(float(z)) < 4
    assert not mcmc.statistics["diverging"].any()


# ---- bad input ----------------------------------------------------------------------------------


def test_bad_input():
    with pytest.raises(ValueError, match="at most 64 sites"):
        coarse_to_fine((9, 9))
    recipe = lattice_flow((4, 4))
    with pytest.raises(ValueError, match="16 angles.*the target has 9 coordinates, of which 9"):
        recipe(9, 0, torch.ones(9, dtype=torch.bool))
    target = Target.from_energy(lambda x: x.square().sum(-1), 16)
    with pytest.raises(ValueError, match="16 coordinates, of which 0 are angles"):
        AutoFlow(target, flow=recipe).fit()
    for shape, reach in [((), 4), ((1,), 4), ((4, 0), 4), ((4,), 0)]:
        with pytest.raises(ValueError, match="at least two sites along each axis|reach must be at"):
            lattice_flow(shape, reach=reach)
    guide = AutoFlow(xy_model, flow=recipe, context=["ring_exchange"], options=FitOptions(2))
    with pytest.raises(ValueError, match="context must be positive.*its least is 0"):
        guide.fit((4, 4), ring_exchange=torch.tensor([0.0, 1.0]))
