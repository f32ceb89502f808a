"""HMC: the leapfrog's properties, exact draws, and mistakes that the check must see."""

import pyro
import pytest
import torch
from baselines.hmc import density_of, sample, spread
from scenarios import SCENARIOS, THRESHOLD, Scenario, assert_exact, starts, z_scores
from scipy.special import polygamma, psi
from test_devices import NoWaiting, default_device_elsewhere

from pyro_flowsamp import Target
from pyro_flowsamp.transitions import hamiltonian, langevin

SHAPE = 0.7


def _log_gamma():
    """The logarithm of a gamma variable: a tail that is exponential on the left only."""
    return Target.from_energy(lambda x: (x.exp() - SHAPE * x).sum(-1), 1)


CASES = {name: SCENARIOS[name] for name in ("gaussian", "funnel", "half space", "cylinder")} | {
    "skewed": Scenario(
        _log_gamma,
        None,
        [-1.2],
        [1.3],
        {
            "x": (lambda d: d["x"][..., 0], float(psi(SHAPE))),
            "x squared": (
                lambda d: d["x"][..., 0] ** 2,
                float(psi(SHAPE) ** 2 + polygamma(1, SHAPE)),
            ),
            "exp x": (lambda d: d["x"][..., 0].exp(), SHAPE),
        },
    )
}


def _sample(name, num_chains=2000):
    pyro.set_rng_seed(0)
    target = CASES[name].source()
    x0 = target.pack_unconstrained(starts(target, CASES[name], num_chains))
    return sample(target, x0, 20, 200, 2, target_accept_prob=0.6)


@pytest.mark.parametrize("name", CASES)
def test_draws_are_exact(name):
    draws = _sample(name)
    assert 0.5 < draws.accept_prob.mean() < 0.7
    assert_exact({"x": draws.x}, CASES[name])


# ---- mistakes, each made on purpose -------------------------------------------------------------


def _no_last_half_step(patch):
    leapfrog = hamiltonian.leapfrog

    def unfinished(state, density, step_size, num_steps, momentum):
        end, last, finite = leapfrog(state, density, step_size, num_steps, momentum)
        return end, last - 0.5 * step_size * end.grad, finite

    patch.setattr(hamiltonian, "leapfrog", unfinished)


def _no_kinetic_energy(patch):
    leapfrog = hamiltonian.leapfrog

    def still(state, density, step_size, num_steps, momentum):
        end, _, finite = leapfrog(state, density, step_size, num_steps, momentum)
        return end, momentum, finite

    patch.setattr(hamiltonian, "leapfrog", still)


def _keep(field):
    def mistake(patch):
        hmc = hamiltonian.hmc

        def stale(state, *args):
            new, info = hmc(state, *args)
            return new._replace(**{field: getattr(state, field)}), info

        patch.setattr(hamiltonian, "hmc", stale)

    return mistake


MISTAKES = {
    "no last half step in the energy": (_no_last_half_step, "gaussian"),
    "no kinetic energy": (_no_kinetic_energy, "skewed"),
    "gradient not refreshed": (_keep("grad"), "gaussian"),
    "log pi not refreshed": (_keep("log_pi"), "skewed"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_check_sees_mistakes(mistake, monkeypatch):
    make, name = MISTAKES[mistake]
    make(monkeypatch)
    scores = z_scores({"x": _sample(name).x}, CASES[name])
    assert max(map(abs, scores.values())) > 2 * THRESHOLD


# ---- the leapfrog -------------------------------------------------------------------------------


def _ready(name="gaussian", num_chains=64):
    """Float64 states near a target, their density, and momenta."""
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(1)
    scenario = CASES[name]
    energy = Target.from_energy(lambda x: 0.5 * x.square().sum(-1) + 0.1 * x.pow(4).sum(-1), 5)
    target = energy if name == "gaussian" else scenario.source()
    x = target.pack_unconstrained(starts(target, scenario, num_chains))
    density = density_of(target)
    return langevin.init(x, density), density, torch.randn_like(x)


@pytest.mark.parametrize("step_size", [torch.tensor(0.1), 0.1 * torch.rand(64, 1)])
def test_leapfrog_is_reversible(step_size):
    state, density, momentum = _ready()
    end, last, _ = hamiltonian.leapfrog(state, density, step_size, 20, momentum)
    back, first, _ = hamiltonian.leapfrog(end, density, step_size, 20, -last)
    assert (end.z - state.z).abs().max() > 0.5
    torch.testing.assert_close(back.z, state.z, rtol=0, atol=1e-10)
    torch.testing.assert_close(-first, momentum, rtol=0, atol=1e-10)


def test_leapfrog_preserves_volume():
    state, density, momentum = _ready(num_chains=1)

    def flow(pair):
        z, r = pair[None].split(5, -1)
        end, last, _ = hamiltonian.leapfrog(density(z), density, torch.tensor(0.2), 5, r)
        return torch.cat([end.z, last], -1)[0]

    pair, h = torch.cat([state.z, momentum], -1)[0], 1e-5
    columns = [(flow(pair + h * e) - flow(pair - h * e)) / (2 * h) for e in torch.eye(10)]
    torch.testing.assert_close(torch.stack(columns).det(), torch.tensor(1.0), rtol=0, atol=1e-7)


def test_the_energy_error_is_of_second_order():
    state, density, momentum = _ready()
    errors = []
    for num_steps in (20, 40, 80):
        step_size = torch.tensor(1.0 / num_steps)
        end, last, _ = hamiltonian.leapfrog(state, density, step_size, num_steps, momentum)
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
        ours, info = hamiltonian.hmc(state, density, step_size, 1, noise, log_u)
        theirs, other = langevin.mala(state, density, step_size, noise, log_u)
        both = inactive & ((0.5 * step_size * density(ours.z).grad).norm(dim=-1) < 5**0.5)
        assert 0.5 < both.double().mean()
        torch.testing.assert_close(info.accept_prob[both], other.accept_prob[both])
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a[both], b[both])
        state, noise, log_u = ours, torch.randn_like(noise), torch.rand(64).log()


# ---- what is not finite -------------------------------------------------------------------------


def _nan_in_a_belt(z):
    """A normal density, NaN in value and gradient for 1 < z < 2."""
    belt = (z > 1) & (z < 2)
    log_pi = torch.where(belt, torch.nan, -0.5 * z.square()).sum(-1).double()
    return langevin.State(z, log_pi, torch.where(belt, torch.nan, -z), z, log_pi, 0 * log_pi)


def test_a_trajectory_through_nan_is_rejected():
    z = torch.tensor([[0.9], [-0.9], [0.5]])
    state = langevin.init(z, _nan_in_a_belt)
    log_u = torch.full((3,), -1e9)
    momentum = torch.tensor([[0.5], [-0.5], [3.0]])
    new, info = hamiltonian.hmc(state, _nan_in_a_belt, torch.tensor(0.4), 2, momentum, log_u)
    assert info.accepted.tolist() == [False, True, False]
    assert info.diverging.tolist() == [True, False, True]
    assert torch.equal(new.z[[0, 2]], z[[0, 2]]) and info.accept_prob[[0, 2]].sum() == 0
    assert all(v.isfinite().all() for v in new)


def test_passing_where_the_density_is_zero_is_rejected_too():
    """The far side is finite again, and the far side's energy would be accepted."""
    wall = Target.from_energy(lambda x: torch.where((x > 1) & (x < 2), torch.inf, 0 * x)[:, 0], 1)
    density = density_of(wall)
    state = langevin.init(torch.tensor([[0.5]]), density)
    one, zero = torch.ones(1, 1), torch.zeros(1)
    for step_size, num_steps, accepted in ((2.0, 1, True), (1.0, 2, False), (1.0, 1, False)):
        _, info = hamiltonian.hmc(state, density, torch.tensor(step_size), num_steps, one, zero - 1)
        assert bool(info.accepted) is accepted


def test_a_large_energy_error_is_a_divergence():
    state, density, momentum = _ready()
    _, calm = hamiltonian.hmc(state, density, torch.tensor(0.01), 3, momentum, torch.zeros(64))
    _, wild = hamiltonian.hmc(state, density, torch.tensor(20.0), 3, momentum, torch.zeros(64))
    assert not calm.diverging.any() and wild.diverging.all() and not wild.accepted.any()


# ---- the sampler --------------------------------------------------------------------------------


def test_it_counts_its_gradients_and_freezes(monkeypatch):
    seen, hmc = [], hamiltonian.hmc

    def watched(state, density, step_size, *args):
        seen.append(float(step_size.max() / step_size.min()))
        return hmc(state, density, step_size, *args)

    monkeypatch.setattr(hamiltonian, "hmc", watched)
    target = CASES["gaussian"].source()
    before = target.evaluations
    draws = sample(target, torch.zeros(32, 5), 7, 40, 3)
    assert draws.x.shape == (32, 7, 5) and draws.diverging.shape == (32,)
    assert target.evaluations - before == draws.gradients == 32 * (1 + 47 * 3)
    assert len(seen) == 47 and 1 < max(seen) < 1.5


def test_scales_are_found():
    scale = torch.tensor([0.1, 1.0, 10.0])
    target = Target.from_energy(lambda x: 0.5 * (x / scale).square().sum(-1), 3)
    draws = sample(target, target.initial_points(200), 20, 400, 5)
    torch.testing.assert_close(draws.scale / scale, torch.ones(3), rtol=0.15, atol=0)
    assert 0.3 < draws.step_size < 2
    same = sample(density_of(target), target.initial_points(9), 5, 20, 5)
    assert same.x.shape == (9, 5, 3)


@pytest.mark.parametrize("context", [NoWaiting, default_device_elsewhere])
def test_a_step_waits_for_nothing(context):
    target = CASES["half space"].source()
    density = density_of(target)
    state = langevin.init(target.initial_points(8), density)
    step_size = hamiltonian.StepSize(state.z.new_tensor(0.5), 0.8)
    with context():
        epsilon = hamiltonian.jitter(step_size.value.expand(8, 1).clone())
        momentum, log_u = torch.randn_like(state.z), torch.rand_like(state.log_pi).log()
        _, info = hamiltonian.hmc(state, density, epsilon, 3, momentum, log_u)
        step_size.adapt(info.accept_prob.mean())
        step_size.freeze()
        spread(state.x)
