"""The Hamiltonian step: the leapfrog's properties, its metrics, and values that are not finite."""

import pyro
import pytest
import torch
from baselines import hmc
from support.devices import NoWaiting, default_device_elsewhere
from support.latent import mala, shaken
from support.scenarios import (
    SCENARIOS,
    starts,
)
from torch.testing import assert_close

from pyro_flowsamp import AutoFlow, LatentHMC, Target
from pyro_flowsamp.flows.recipes import spline
from pyro_flowsamp.transitions import hamiltonian
from pyro_flowsamp.transitions.step_size import StepSize, jitter

# ---- the leapfrog -------------------------------------------------------------------------------


def _ready(name="gaussian", num_chains=64):
    """Float64 states near a target, their density, and momenta."""
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(1)
    scenario = SCENARIOS[name]
    energy = Target.from_energy(lambda x: 0.5 * x.square().sum(-1) + 0.1 * x.pow(4).sum(-1), 5)
    target = energy if name == "gaussian" else scenario.source()
    x = target.pack_unconstrained(starts(target, scenario, num_chains))
    density = hmc.density_of(target)
    return density(x), density, torch.randn_like(x)


@pytest.mark.parametrize("step_size", [torch.tensor(0.1), 0.1 * torch.rand(64, 1)])
def test_leapfrog_is_reversible(step_size):
    state, density, momentum = _ready()
    end, last, _ = hamiltonian.trajectory(state, density, step_size, 20, momentum, cut=False)
    back, first, _ = hamiltonian.trajectory(end, density, step_size, 20, -last, cut=False)
    assert (end.z - state.z).abs().max() > 0.5
    torch.testing.assert_close(back.z, state.z, rtol=0, atol=1e-10)
    torch.testing.assert_close(-first, momentum, rtol=0, atol=1e-10)


def test_leapfrog_preserves_volume():
    state, density, momentum = _ready(num_chains=1)

    def flow(pair):
        z, r = pair[None].split(5, -1)
        end, last, _ = hamiltonian.trajectory(
            density(z), density, torch.tensor(0.2), 5, r, cut=False
        )
        return torch.cat([end.z, last], -1)[0]

    pair, h = torch.cat([state.z, momentum], -1)[0], 1e-5
    columns = [(flow(pair + h * e) - flow(pair - h * e)) / (2 * h) for e in torch.eye(10)]
    torch.testing.assert_close(torch.stack(columns).det(), torch.tensor(1.0), rtol=0, atol=1e-7)


def test_the_energy_error_is_of_second_order():
    state, density, momentum = _ready()
    errors = []
    for num_steps in (20, 40, 80):
        step_size = torch.tensor(1.0 / num_steps)
        end, last, _ = hamiltonian.trajectory(
            state, density, step_size, num_steps, momentum, cut=False
        )
        kinetic = 0.5 * (last.square() - momentum.square()).sum(-1)
        errors.append((kinetic - end.log_pi + state.log_pi).abs().mean())
    assert all(3.8 < a / b < 4.2 for a, b in zip(errors, errors[1:]))


def test_one_step_is_langevin():
    state, density, noise = _ready()
    step_size, log_u = 0.1 + 0.3 * torch.rand(64, 1), torch.rand(64).log()
    for _ in range(5):
        drift = 0.5 * step_size * state.grad
        inactive = drift.norm(dim=-1) < 5**0.5
        assert inactive.double().mean() > 0.5
        ours, info = hamiltonian.step(state, density, step_size, 1, noise, log_u, cut=False)
        theirs, other = mala(state, density, step_size, noise, log_u)
        both = inactive & ((0.5 * step_size * density(ours.z).grad).norm(dim=-1) < 5**0.5)
        assert 0.5 < both.double().mean()
        torch.testing.assert_close(info.accept_prob[both], other[both])
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a[both], b[both])
        state, noise, log_u = ours, torch.randn_like(noise), torch.rand(64).log()


# ---- what is not finite -------------------------------------------------------------------------


def _nan_in_a_belt(z):
    """A normal density, NaN in value and gradient for 1 < z < 2."""
    belt = (z > 1) & (z < 2)
    log_pi = torch.where(belt, torch.nan, -0.5 * z.square()).sum(-1).double()
    return hamiltonian.HMCState(z, log_pi, torch.where(belt, torch.nan, -z), z, log_pi, 0 * log_pi)


def test_a_trajectory_through_nan_is_rejected():
    z = torch.tensor([[0.9], [-0.9], [0.5]])
    state = _nan_in_a_belt(z)
    log_u = torch.full((3,), -1e9)
    momentum = torch.tensor([[0.5], [-0.5], [3.0]])
    new, info = hamiltonian.step(
        state, _nan_in_a_belt, torch.tensor(0.4), 2, momentum, log_u, cut=False
    )
    assert info.accepted.tolist() == [False, True, False]
    assert info.diverging.tolist() == [True, False, True]
    assert torch.equal(new.z[[0, 2]], z[[0, 2]]) and info.accept_prob[[0, 2]].sum() == 0
    assert all(v.isfinite().all() for v in new)


def test_passing_where_the_density_is_zero_is_rejected_too():
    """The far side is finite again, and the far side's energy would be accepted."""
    wall = Target.from_energy(lambda x: torch.where((x > 1) & (x < 2), torch.inf, 0 * x)[:, 0], 1)
    density = hmc.density_of(wall)
    state = density(torch.tensor([[0.5]]))
    one, zero = torch.ones(1, 1), torch.zeros(1)
    for step_size, num_steps, accepted in ((2.0, 1, True), (1.0, 2, False), (1.0, 1, False)):
        _, info = hamiltonian.step(
            state, density, torch.tensor(step_size), num_steps, one, zero - 1, cut=False
        )
        assert bool(info.accepted) is accepted


def test_a_large_energy_error_is_a_divergence():
    state, density, momentum = _ready()
    _, calm = hamiltonian.step(
        state, density, torch.tensor(0.01), 3, momentum, torch.zeros(64), cut=False
    )
    _, wild = hamiltonian.step(
        state, density, torch.tensor(20.0), 3, momentum, torch.zeros(64), cut=False
    )
    assert not calm.diverging.any() and wild.diverging.all() and not wild.accepted.any()


# ---- the sampler --------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [NoWaiting, default_device_elsewhere])
def test_a_step_waits_for_nothing(context):
    target = SCENARIOS["half space"].source()
    density = hmc.density_of(target)
    state = density(target.initial_points(8))
    step_size = StepSize(state.z.new_tensor(0.5), 0.8)
    with context():
        epsilon = jitter(step_size.value.expand(8, 1).clone())
        momentum, log_u = torch.randn_like(state.z), torch.rand_like(state.log_pi).log()
        _, info = hamiltonian.step(state, density, epsilon, 3, momentum, log_u, cut=False)
        step_size.adapt(info.accept_prob.mean())
        step_size.freeze()
        hmc.spread(state.x)


def _pulled(num=16):
    """A kernel in the Jacobian metric on a curved flow, states, momenta; in float64."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1) + 0.1 * x.pow(4).sum(-1), 2)
    flow = shaken(spline(2, transforms=2, hidden_features=(16,)), 0.1)
    guide = AutoFlow(target, flow=flow)
    guide.target_for()
    guide.trained = True
    kernel = LatentHMC(guide=guide, metric="jacobian")
    kernel.setup(0)
    kernel.prepare(0)
    return kernel, kernel.start(num), torch.randn(num, 2)


def test_one_step_is_mala():
    kernel, state, noise = _pulled()
    kernel.metric = "identity"
    state = kernel.density(state.z)
    step_size, log_u = torch.tensor(0.8), torch.rand(16).log()
    ours, info = hamiltonian.step(state, kernel.density, step_size, 1, noise, log_u)
    theirs, other = mala(state, kernel.density, step_size, noise, log_u)
    assert_close(tuple(ours), tuple(theirs))
    assert_close(info.accept_prob, other)


def test_the_jacobian_metric_in_the_letters_of_the_paper():
    kernel, state, noise = _pulled()
    step_size = torch.tensor(0.3)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda z: kernel.proposal.push(z)[0]))

    def drift(s):
        return step_size * hamiltonian.half_kick(s.grad, step_size)

    def log_g(to, s):
        """A normal density around μ(z), by Jacobians in full."""
        J = jacobians(s.z)
        off = (J @ (to.z - s.z)[..., None])[..., 0] - drift(s)
        return -off.square().sum(-1) / (2 * step_size**2) + torch.linalg.slogdet(J).logabsdet

    move = torch.linalg.solve(jacobians(state.z), drift(state) + step_size * noise)
    end = kernel.density(state.z + move)
    log_alpha = end.log_pi - state.log_pi + log_g(state, end) - log_g(end, state)
    log_u = torch.full((16,), -torch.inf)  # accepts whatever is possible
    metric = kernel.latent_metric
    ours, info = hamiltonian.step(state, kernel.density, step_size, 1, noise, log_u, metric=metric)
    assert_close(ours.z, end.z)
    assert_close(info.accept_prob, log_alpha.clamp(max=0).exp())


@pytest.mark.parametrize("num_steps", [1, 3])
def test_trajectories_are_reversible_and_of_known_volume(num_steps):
    kernel, state, momentum = _pulled()
    step_size = torch.tensor(0.2)

    def flow(pair):
        z, r = pair.chunk(2, -1)
        return hamiltonian.trajectory(
            kernel.density(z), kernel.density, step_size, num_steps, r, metric=kernel.latent_metric
        )

    end, last, finite = flow(torch.cat([state.z, momentum], -1))
    assert finite.all()
    back, first, _ = flow(torch.cat([end.z, -last], -1))
    assert_close(back.z, state.z, rtol=0, atol=1e-9)
    assert_close(first, -momentum, rtol=0, atol=1e-8)

    pair, h = torch.cat([state.z, momentum], -1), 1e-5

    def image(pair):
        end, last, _ = flow(pair)
        return torch.cat([end.z, last], -1)

    columns = [(image(pair + h * e) - image(pair - h * e)) / (2 * h) for e in torch.eye(4)]
    found = torch.linalg.slogdet(torch.stack(columns, -1)).logabsdet
    expected = kernel.latent_metric.log_det(end) - kernel.latent_metric.log_det(state)
    assert expected.abs().max() > 0.1
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_products_with_the_jacobian():
    kernel, state, v = _pulled()
    proposal = kernel.proposal
    J = torch.func.vmap(torch.func.jacrev(lambda z: proposal.push(z)[0]))(state.z)
    assert_close(proposal.push_vector(state.z, v), (J @ v[..., None])[..., 0])
    assert_close(proposal.pull_vector(state.x, v), torch.linalg.solve(J, v))
