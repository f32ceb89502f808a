"""LatentHMC with adapted trajectory lengths: frozen after warm-up, reported, never waiting."""

import pickle
from functools import partial

import pyro
import pytest
import torch
from pyro.infer import MCMC
from support.devices import NoWaiting, default_device_elsewhere, make_draws, started
from support.latent import FOREIGN, bad_guide

from pyro_flowsamp import AutoFlow, FitOptions, LatentHMC, LocalGlobalHMC, Target, VectorizedMCMC
from pyro_flowsamp.transitions import hamiltonian
from pyro_flowsamp.transitions.sequences import (
    numbers_of_steps,
    step_size_factor,
    van_der_corput,
)
from pyro_flowsamp.transitions.trajectory_length import (
    TrajectoryOptions,
)

SHORT = TrajectoryOptions(max_steps=6, period=16)
ADAPTED = {
    "HMC": partial(LatentHMC, trajectory=SHORT),
    "HMC in the Jacobian metric": partial(LatentHMC, trajectory=SHORT, metric="jacobian"),
    "HMC and jumps": partial(LatentHMC, trajectory=SHORT, global_prob=0.5),
    "jumps in turn": partial(LocalGlobalHMC, trajectory=SHORT, local_steps=2, num_proposals=2),
}
KERNELS = pytest.mark.parametrize("make", ADAPTED.values(), ids=ADAPTED)


def _ran(kernel, draws=10, warmup_steps=12, chains=32, seed=0, **options):
    pyro.set_rng_seed(seed)
    mcmc = VectorizedMCMC(kernel, draws, warmup_steps, chains, disable_progbar=True, **options)
    mcmc.run()
    return mcmc


@pytest.fixture
def watched(monkeypatch):
    """The step sizes and numbers of steps of all trajectories."""
    seen, step = [], hamiltonian.step

    def watched(state, density, step_size, num_steps, *args, **options):
        seen.append((float(step_size), num_steps))
        return step(state, density, step_size, num_steps, *args, **options)

    monkeypatch.setattr(hamiltonian, "step", watched)
    return seen


@KERNELS
def test_nothing_changes_after_warmup(make, watched):
    kernel = make(guide=bad_guide("funnel"))
    mcmc = _ran(kernel)
    cycle = kernel.local_steps if isinstance(kernel, LocalGlobalHMC) else 1
    size, steps, options = float(kernel.step_size), kernel.lengths.steps, kernel.trajectory
    mcmc.resume(10)
    production = watched[-20 * cycle :]
    assert [num for _, num in production] == [steps[i % len(steps)] for i in range(20 * cycle)]
    factors = [
        step_size_factor(i, options.short_share, options.short_octaves) for i in range(20 * cycle)
    ]
    assert [found / size for found, _ in production] == pytest.approx(factors)


@KERNELS
def test_the_same_seed_gives_the_same_draws(make):
    guide = bad_guide("funnel")
    kernel = make(guide=guide)
    assert torch.equal(_ran(kernel).unconstrained, _ran(kernel).unconstrained)


@pytest.mark.parametrize("context", [NoWaiting, default_device_elsewhere])
@KERNELS
def test_steps_wait_for_nothing(make, context):
    kernel = make(guide=bad_guide("funnel"))
    mcmc, state = started(kernel, 8)
    with context():
        state, info = kernel.step(state)
    kernel.adapt(info)  # waits, once, for the next number of steps
    kernel.freeze()
    with context():
        make_draws(mcmc, state)


def test_adaptation_waits_once_a_step(monkeypatch):
    """However many local moves there are."""
    kernel = LocalGlobalHMC(guide=bad_guide("funnel"), trajectory="adapted", local_steps=3)
    _, state = started(kernel, 8)
    counts, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: counts.append(1) or tolist(self))
    _, info = kernel.step(state)
    kernel.adapt(info)
    assert len(counts) == 1


def test_lengths_and_costs_are_reported():
    kernel = ADAPTED["HMC"](guide=bad_guide("gaussian"))
    _ran(kernel)
    before = kernel.target.evaluations
    state = kernel.state_at({"x": torch.randn(4, 5)})
    for _ in range(16):
        state, _ = kernel.step(state)
    evaluations = (kernel.target.evaluations - before) / 4 - 1  # the first is that of the start
    assert kernel.mean_gradients == kernel.mean_leapfrog_steps == evaluations / 16
    found = kernel.diagnostics()
    assert found["leapfrog steps"] == kernel.mean_leapfrog_steps
    length = kernel.mean_leapfrog_steps * float(kernel.step_size)
    assert found["trajectory length"] == pytest.approx(length, rel=1e-6)
    assert {"trajectory length", "leapfrog steps"} < set(kernel.logging())
    local = ADAPTED["jumps in turn"](guide=bad_guide("gaussian"))
    _ran(local, 1)
    assert local.mean_gradients == 2 * local.mean_leapfrog_steps + 1


@pytest.mark.parametrize("make", [ADAPTED["HMC"], ADAPTED["jumps in turn"]])
def test_one_chain_takes_lengths_around_a_given_number(make):
    pyro.set_rng_seed(0)
    kernel = make(guide=bad_guide("gaussian"), num_steps=3)
    mcmc = MCMC(kernel, 40, 40, disable_progbar=True)
    mcmc.run()
    steps = numbers_of_steps(3, 6, van_der_corput(16))
    assert kernel.lengths.steps == steps and 0.1 < kernel.step_size < 3
    assert mcmc.get_samples()["x"].shape == (40, 5)


def test_without_warmup_nothing_is_adapted():
    kernel = LatentHMC(
        guide=bad_guide("gaussian"), trajectory="adapted", num_steps=3, step_size=0.25
    )
    _ran(kernel, 5, 0)
    assert float(kernel.step_size) == 0.25 and kernel.mean_leapfrog_steps == 3.5


def test_the_default_acceptance_follows_the_trajectory():
    guide = bad_guide("gaussian")
    assert LatentHMC(guide=guide).target_accept_prob == 0.8
    assert ADAPTED["HMC"](guide=guide).target_accept_prob == 0.651
    assert ADAPTED["HMC"](guide=guide, target_accept_prob=0.7).target_accept_prob == 0.7
    with pytest.raises(ValueError, match="trajectory must be 'fixed' or 'adapted', got 'long'"):
        LatentHMC(guide=guide, trajectory="long")


def test_kernels_pickle_after_a_run():
    kernel = ADAPTED["HMC"](guide=bad_guide("gaussian"))
    _ran(kernel, 5, 20)
    again = pickle.loads(pickle.dumps(kernel.lengths))
    assert again.steps == kernel.lengths.steps and again.value == kernel.lengths.value


def test_a_sharpened_flow():
    kernel = LatentHMC(
        flow=FOREIGN["NICE in 2-D"](),
        target="sharpened",
        trajectory=SHORT,
    )
    draws = _ran(kernel).unconstrained
    assert torch.isfinite(draws).all() and 1 <= kernel.mean_leapfrog_steps <= 6


def test_the_length_is_that_of_a_whitened_target():
    """In 50 steps, through a flow that fits."""
    target = Target.from_energy(lambda x: 0.5 * ((x - 3) / 100).square().sum(-1), 10)
    guide = AutoFlow(target, flow="gaussian", options=FitOptions(progress=False))
    kernel = LatentHMC(guide=guide, trajectory="adapted")
    mcmc = _ran(kernel, 20, 50, 64)
    assert 0.7 < kernel.diagnostics()["trajectory length"] < 2.2
    z = (mcmc.unconstrained.double().mean(1) - 3) / 100
    assert (z.mean(0) / (z.std(0) / len(z) ** 0.5)).abs().max() < 4.5
