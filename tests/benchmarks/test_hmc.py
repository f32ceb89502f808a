"""The self-tuning HMC sampler: exact draws, scales and step sizes."""

import pyro
import pytest
import torch
from baselines import hmc
from scipy.special import polygamma, psi
from support.mutations import must_fail, mutation, stale
from support.scenarios import (
    SCENARIOS,
    THRESHOLD,
    Scenario,
    assert_exact,
    largest_score,
    starts,
)

from pyro_flowsamp import Target
from pyro_flowsamp.transitions import hamiltonian

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
    return hmc.sample(target, x0, 20, 200, 2, target_accept_prob=0.6)


@pytest.mark.parametrize("name", CASES)
def test_draws_are_exact(name):
    draws = _sample(name)
    assert 0.5 < draws.accept_prob.mean() < 0.7
    assert_exact({"x": draws.x}, CASES[name])


# ---- mistakes, each made on purpose -------------------------------------------------------------


@mutation(hamiltonian, "trajectory")
def no_last_half_step(trajectory, state, density, step_size, *args, **options):
    end, last, finite = trajectory(state, density, step_size, *args, **options)
    return end, last - 0.5 * step_size * end.grad, finite


@mutation(hamiltonian, "trajectory")
def no_kinetic_energy(trajectory, state, density, step_size, num_steps, momentum, **options):
    end, _, finite = trajectory(state, density, step_size, num_steps, momentum, **options)
    return end, momentum, finite


MISTAKES = {
    "no last half step in the energy": (no_last_half_step, "gaussian"),
    "no kinetic energy": (no_kinetic_energy, "skewed"),
    "gradient not refreshed": (stale(hamiltonian, "step", "grad"), "gaussian"),
    "log pi not refreshed": (stale(hamiltonian, "step", "log_pi"), "skewed"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_check_sees_mistakes(mistake):
    broken_step, name = MISTAKES[mistake]
    must_fail(
        broken_step,
        score=lambda: largest_score({"x": _sample(name).x}, CASES[name]),
        above=2 * THRESHOLD,
    )


# ---- the sampler --------------------------------------------------------------------------------


def test_it_counts_its_gradients_and_freezes(monkeypatch):
    seen, step = [], hamiltonian.step

    def watched(state, density, step_size, *args, **options):
        seen.append(float(step_size.max() / step_size.min()))
        return step(state, density, step_size, *args, **options)

    monkeypatch.setattr(hamiltonian, "step", watched)
    target = CASES["gaussian"].source()
    before = target.evaluations
    draws = hmc.sample(target, torch.zeros(32, 5), 7, 40, 3)
    assert draws.x.shape == (32, 7, 5) and draws.diverging.shape == (32,)
    assert target.evaluations - before == draws.gradients == 32 * (1 + 47 * 3)
    assert len(seen) == 47 and 1 < max(seen) < 1.5


def test_scales_are_found():
    scale = torch.tensor([0.1, 1.0, 10.0])
    target = Target.from_energy(lambda x: 0.5 * (x / scale).square().sum(-1), 3)
    draws = hmc.sample(target, target.initial_points(200), 20, 400, 5)
    torch.testing.assert_close(draws.scale / scale, torch.ones(3), rtol=0.15, atol=0)
    assert 0.3 < draws.step_size < 2
    same = hmc.sample(hmc.density_of(target), target.initial_points(9), 5, 20, 5)
    assert same.x.shape == (9, 5, 3)
