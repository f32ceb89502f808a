"""Parallel tempering: weights of modes, evidence, temperatures, swaps."""

from math import log, pi, sqrt

import pyro
import pytest
import torch
from baselines import hmc
from baselines import parallel_tempering as parallel
from support.devices import NoWaiting, default_device_elsewhere
from support.mutations import must_fail, mutation, stale
from support.scenarios import (
    FAR_WIDTH,
    SCENARIOS,
    THRESHOLD,
    Scenario,
    assert_exact,
    far_modes,
    largest_score,
    starts,
    z_scores,
)

from pyro_flowsamp.smc import paths
from pyro_flowsamp.smc.starts import TemperedStart
from pyro_flowsamp.transitions.step_size import StepSize

CASES = {name: SCENARIOS[name] for name in ("gaussian", "modes", "half space", "cylinder")} | {
    "far modes": Scenario(
        far_modes,
        None,
        [0.0, 0.5],
        [4.0, 1.0],
        {
            "right": (lambda d: (d["x"][..., 0] > 0).float(), 2 / 3),
            "x0": (lambda d: d["x"][..., 0], 4 / 3),
            "x0 squared": (lambda d: d["x"][..., 0] ** 2, 16 + FAR_WIDTH**2),
            "x1 squared": (lambda d: d["x"][..., 1] ** 2, 2 / 3 + FAR_WIDTH**2),
        },
    )
}
LOG_Z = {
    "gaussian": -7.0,
    "modes": log(2 * pi * 0.49),
    "far modes": log(2 * pi * FAR_WIDTH**2),
    "half space": log(pi / 2),
}


def _sample(name, **options):
    pyro.set_rng_seed(0)
    options = {"num_replicas": 6, "num_steps": 1, "target_accept_prob": 0.6} | options
    return parallel.parallel_tempering(CASES[name].source(), 2000, 20, 160, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_draws_are_exact(name):
    draws = _sample(name)
    assert_exact({"x": draws.x}, CASES[name])
    if name in LOG_Z:
        log_z, standard_error = draws.evidence
        assert abs(log_z - LOG_Z[name]) < THRESHOLD * standard_error < 0.2


def test_one_temperature_alone_does_not_find_the_weights():
    target = far_modes()
    x0 = target.pack_unconstrained(starts(target, CASES["far modes"], 500))
    draws = hmc.sample(target, x0, 20, 160, 3)
    assert abs(z_scores({"x": draws.x}, CASES["far modes"])["right"]) > THRESHOLD


# ---- mistakes, each made on purpose -------------------------------------------------------------


@mutation(paths.TemperedState, "log_ratio")
def flipped_ratio(log_ratio, state):
    return state.log_q - state.log_p


@mutation(parallel, "swap")
def always_accepted(swap, state, ladder, parity, log_u):
    return swap(state, ladder, parity, log_u - 1e9)


@mutation(paths.TemperedState, "log_ratio")
def no_base(log_ratio, state):
    return state.log_p


MISTAKES = {
    "sign of the swap ratio": flipped_ratio,
    "every swap accepted": always_accepted,
    "no base in the swap ratio": no_base,
    "log pi stays behind": stale(parallel, "swap", "log_pi"),
    "gradient stays behind": stale(parallel, "swap", "grad"),
    "densities stay behind": stale(parallel, "swap", "log_p", "log_q"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_check_sees_mistakes(mistake):
    betas = [1.0, 0.7, 0.4, 0.2, 0.05, 0.0]
    base = TemperedStart(torch.tensor([1.0, 0.0]), torch.tensor([2.5, 1.5]), torch.zeros(2).bool())

    def score():
        return largest_score({"x": _sample("modes", betas=betas, base=base).x}, CASES["modes"])

    must_fail(MISTAKES[mistake], score=score, above=2 * THRESHOLD)


# ---- swaps --------------------------------------------------------------------------------------


def _ready(name="half space", num_chains=16, num_replicas=5):
    torch.set_default_dtype(torch.float64)
    target = CASES[name].source()
    base = TemperedStart(torch.ones(target.dim), torch.full((target.dim,), 2.0), target.angles)
    betas = torch.linspace(1, 0, num_replicas) ** 2
    ladder = parallel.TemperatureLadder(betas, 0.5 + torch.rand(num_replicas, target.dim))
    x = target.initial_points(num_chains * num_replicas)
    beta, scale = ladder.rows(len(x))
    state = paths.density(target, base, beta, scale)(x / scale)
    return state, ladder, target, base


@pytest.mark.parametrize("parity", [0, 1])
def test_swaps_evaluate_nothing_and_undo_themselves(parity):
    state, ladder, target, base = _ready()
    before = target.evaluations
    sure = torch.full((4, 16), -1e9)
    there, _ = parallel.swap(state, ladder, parity, sure)
    back, _ = parallel.swap(there, ladder, parity, sure)
    assert target.evaluations == before
    order = [1, 0, 3, 2, 4] if parity == 0 else [0, 2, 1, 4, 3]
    assert torch.equal(there.x.reshape(5, 16, 2), state.x.reshape(5, 16, 2)[order])
    for a, b in zip(back, state):
        torch.testing.assert_close(a, b)
    stays, _ = parallel.swap(state, ladder, parity, torch.zeros(4, 16) + 1e9)
    assert torch.equal(stays.x, state.x)


def test_the_swap_ratio_is_that_of_the_joint_densities():
    state, ladder, _, _ = _ready("gaussian")
    there, rates = parallel.swap(state, ladder, 0, torch.full((4, 16), -1e9))
    gain = (there.log_pi - state.log_pi).reshape(5, 16)
    for i in (0, 2):
        torch.testing.assert_close(rates[i], (gain[i] + gain[i + 1]).clamp(max=0).exp())


@pytest.mark.parametrize("name", ["half space", "cylinder"])
def test_the_state_is_never_stale(name):
    state, ladder, target, base = _ready(name)
    for t in range(60):
        state, info = parallel.explore(state, ladder, target, base, torch.full((4,), 0.5), 3)
        state, _ = parallel.swap(state, ladder, t % 2, torch.rand(4, 16).log())
    assert 0.3 < info.accept_prob.mean() < 1
    beta, scale = ladder.rows(len(state.x))
    for a, b in zip(state, paths.density(target, base, beta, scale)(state.x / scale)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# ---- the ladder ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_betas_are_spaced_for_equal_swap_rates():
    draws = _sample("far modes")
    assert draws.betas[0] == 1 and draws.betas[-1] == 0 and (draws.betas.diff() < 0).all()
    assert draws.swap_rates.max() - draws.swap_rates.min() < 0.06
    assert (draws.accept_prob - 0.6).abs().max() < 0.1


@pytest.mark.slow
def test_given_betas_are_kept_and_judged():
    draws = _sample("gaussian", betas=[1.0, 0.3, 0.0])
    assert draws.betas.tolist() == [1.0, 0.3, 0.0] and draws.swap_rates.shape == (2,)
    for betas in ([1.0, 0.5], [0.9, 0.0], [1.0, 0.2, 0.4, 0.0]):
        with pytest.raises(ValueError, match="must fall"):
            _sample("gaussian", betas=betas)


@pytest.mark.slow
def test_nothing_changes_after_warmup(monkeypatch):
    seen, explore = [], parallel.explore

    def watched(state, ladder, target, base, step_size, num_steps):
        seen.append((ladder, step_size))
        return explore(state, ladder, target, base, step_size, num_steps)

    monkeypatch.setattr(parallel, "explore", watched)
    _sample("modes")
    assert len(seen) == 180 and len({id(ladder) for ladder, _ in seen}) == 6
    assert all(a is seen[160][0] and b is seen[160][1] for a, b in seen[160:])
    assert (seen[0][1] != seen[160][1]).all()


@pytest.mark.slow
def test_the_standard_error_of_the_evidence_is_honest():
    pyro.set_rng_seed(0)
    target, scores = CASES["gaussian"].source(), []
    base = TemperedStart(
        torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5]), torch.full((5,), 3.0), target.angles
    )
    for _ in range(20):
        log_z, error = parallel.parallel_tempering(
            target, 50, 20, 30, num_replicas=5, num_steps=2, base=base
        ).evidence
        scores.append(float((log_z + 7.0) / error))
    assert 0.6 < sqrt(sum(s**2 for s in scores) / 20) < 1.6


@pytest.mark.parametrize("context", [NoWaiting, default_device_elsewhere])
def test_a_step_waits_for_nothing(context):
    state, ladder, target, base = _ready()
    step_size = StepSize(torch.full((4,), 0.5), 0.8)
    log_u = torch.rand(4, 16).log()
    with context():
        state, info = parallel.explore(state, ladder, target, base, step_size.value, 2)
        step_size.adapt(info.accept_prob.reshape(4, -1).mean(1))
        step_size.freeze()
        state, rates = parallel.swap(state, ladder, 1, log_u)
        parallel._equalised(ladder.betas, 1 - rates.mean(1))
