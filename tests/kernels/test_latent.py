"""Latent kernels are exact in both metrics, however bad the flow is."""

from functools import partial
from itertools import product
from math import inf

import pyro
import pytest
import torch
from support.latent import FOREIGN, bad_guide, run
from support.marks import studies
from support.mutations import must_fail, mutation, stale
from support.scenarios import (
    GAUSSIAN_MEAN,
    GAUSSIAN_ROOT,
    SCENARIOS,
    THRESHOLD,
    assert_exact,
    largest_score,
    starts,
)
from torch.testing import assert_close

from pyro_flowsamp import LatentHMC, LatentMALA, LocalGlobalHMC
from pyro_flowsamp.kernels.local_global import LocalStepsOptions
from pyro_flowsamp.transitions import hamiltonian, independence
from pyro_flowsamp.transitions.trajectory_length import TrajectoryOptions

SHORT = TrajectoryOptions(max_steps=8)
# name → (kernel, chains, warm-up steps, draws)
KERNELS = {
    "MALA in the Jacobian metric": (partial(LatentMALA, metric="jacobian"), 500, 75, 10),
    "MALA and jumps": (partial(LatentMALA, global_prob=0.3), 1000, 200, 10),
    "HMC": (LatentHMC, 1000, 100, 10),
    "adapted HMC": (partial(LatentHMC, trajectory=SHORT), 1000, 50, 10),
    "adapted HMC in the Jacobian metric": (
        partial(LatentHMC, trajectory=SHORT, metric="jacobian"),
        500,
        50,
        10,
    ),
    "adapted HMC and jumps": (
        partial(LatentHMC, trajectory=SHORT, global_prob=0.2),
        500,
        50,
        10,
    ),
    "adapted HMC, jumps in turn": (
        partial(LocalGlobalHMC, trajectory=SHORT, local_steps=2, num_proposals=2),
        500,
        50,
        10,
    ),
    "HMC in the Jacobian metric": (
        partial(LatentHMC, metric="jacobian", num_steps=2, global_prob=0.1),
        500,
        50,
        10,
    ),
    "jumps": (
        partial(LocalGlobalHMC, num_steps=1, metric="jacobian", search=LocalStepsOptions(2, 6)),
        500,
        50,
        10,
    ),
    "jumps, one proposal": (
        partial(LocalGlobalHMC, num_steps=1, num_proposals=1, local_steps=3),
        500,
        100,
        10,
    ),
}
#: kernels of two features, which take long through splines and on angles
COSTLY = (
    "adapted HMC in the Jacobian metric",
    "adapted HMC and jumps",
    "adapted HMC, jumps in turn",
)
CASES = ["funnel", "modes", "half space", "conjugate", "cylinder"]
#: targets that take longest: each kernel has one of them in `make test`
LONG = ("modes", "cylinder")


def marks(name, kernel):
    """Return the marks of a run, among them whether only `make test-studies` has it."""
    if kernel in COSTLY:  # the same metrics and lengths are tested apart
        further = name == "conjugate" or name in LONG
    else:
        further = name == LONG[list(KERNELS).index(kernel) % 2]
    quick = name in ("funnel", "half space") and kernel not in COSTLY and "in the" not in kernel
    return [studies] * further + [pytest.mark.slow] * (not quick or kernel == "jumps")


def _draws(name, kernel):
    pyro.set_rng_seed(0)
    make, *budget = KERNELS[kernel]
    guide = bad_guide(name)
    return run(make(guide=guide), budget, starts(guide.target_for(), SCENARIOS[name], budget[0]))


@pytest.mark.parametrize(
    ("name", "kernel"),
    [pytest.param(*case, marks=marks(*case)) for case in product(CASES, KERNELS)],
)
def test_draws_are_exact_however_bad_the_flow(name, kernel):
    assert_exact(_draws(name, kernel), SCENARIOS[name])


# ---- mistakes, each made on purpose -------------------------------------------------------------


def _departure(kernel):
    """How far chains that start at exact draws come to be from the truth, through a worse flow."""
    pyro.set_rng_seed(0)
    budget = (4000, 80, 40) if kernel == "jumps, one proposal" else (2000, 40, 20)
    start = GAUSSIAN_MEAN + torch.randn(budget[0], 5) @ GAUSSIAN_ROOT.mT
    make = KERNELS[kernel][0]
    draws = run(make(guide=bad_guide("gaussian", size=0.2)), budget, {"x": start})
    return largest_score(draws, SCENARIOS["gaussian"])


@mutation(LatentHMC, "latent_metric")
def no_volume(frame, kernel):
    return frame(kernel)._replace(log_det=hamiltonian.IDENTITY.log_det)


@mutation(hamiltonian, "trajectory")
def no_reverse_step(trajectory, *args, **options):
    end, _, finite = trajectory(*args, **options)
    return end, args[-1], finite


@mutation(hamiltonian, "step")
def lengths_by_state(step, state, density, step_size, *args, **options):
    """Make trajectories longer where the first coordinate is positive."""
    longer = 1 + 0.5 * (state.z[:, :1] > 0)
    return step(state, density, step_size * longer, *args, **options)


def _swap(state):
    return state._replace(log_p=state.log_q, log_q=state.log_p)


@mutation(hamiltonian, "step")
def flipped_mixed_moves(step, state, density, *args, **options):
    """Take the inverse of the ratio of global moves, where these are mixed in."""
    new, info = step(_swap(state), lambda z: _swap(density(z)), *args, **options)
    return _swap(new), info


@mutation(independence, "choose")
def flipped_moves_in_turn(choose, w, proposals, *args):
    """Take the inverse of the ratio of global moves, where these are made in turn."""
    return choose(-w, -proposals, *args)


STALE_DENSITIES = stale(hamiltonian, "step", "log_p", "log_q")
MISTAKES = {
    "log q not refreshed": ([stale(hamiltonian, "step", "log_q")], ["jumps, one proposal"]),
    "log p and log q not refreshed": ([STALE_DENSITIES], ["jumps, one proposal"]),
    "no volume of the Jacobian metric": (
        [no_volume],
        ["MALA in the Jacobian metric", "HMC in the Jacobian metric"],
    ),
    "no reverse step": (
        [no_reverse_step],
        ["MALA in the Jacobian metric", "HMC", "HMC in the Jacobian metric"],
    ),
    "lengths that depend on the state": (
        [lengths_by_state],
        ["adapted HMC", "adapted HMC, jumps in turn"],
    ),
    "jumps upside down": (
        [flipped_mixed_moves, flipped_moves_in_turn],
        ["MALA and jumps", "jumps"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "kernel"),
    [(name, kernel) for name, (_, kernels) in MISTAKES.items() for kernel in kernels],
)
def test_the_check_sees_mistakes(mistake, kernel):
    mutations, _ = MISTAKES[mistake]

    def score():
        try:
            return _departure(kernel)
        except RuntimeError as error:  # no step is small enough: that is seen, too
            assert "warm-up drove the step size" in str(error)
            return inf

    must_fail(*mutations, score=score, above=1.5 * THRESHOLD)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel", sorted({name for _, names in MISTAKES.values() for name in names})
)
def test_and_sees_none_where_there_is_none(kernel):
    assert _departure(kernel) < THRESHOLD


# ---- what a state carries -----------------------------------------------------------------------


def _check_caches(kernel, state):
    close = {"rtol": 1e-6, "atol": 1e-6}
    again = kernel.density(state.z)
    for name, cached in state._asdict().items():
        assert_close(cached, getattr(again, name), **close, msg=name)
    assert_close(state.log_p, kernel.target.log_prob(state.x), **close)
    assert_close(state.log_q, kernel.proposal.log_prob(state.x), **close)
    assert_close(kernel.proposal.push(state.z)[0], state.x, **close)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["funnel", pytest.param("half space", marks=studies), "sharpened"])
def test_the_state_is_never_stale(name, kernel):
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)
    if name == "sharpened":
        ready = KERNELS[kernel][0](flow=FOREIGN["NICE in 2-D"](), target="sharpened", step_size=0.3)
    else:
        ready = KERNELS[kernel][0](guide=bad_guide(name), step_size=0.3)
    ready.setup(0)
    ready.prepare(0)
    first = state = ready.start(64)
    for _ in range(20):
        state, info = ready.step(state)
    assert 0 < info.accepted.double().mean()
    assert (state.x != first.x).any(-1).double().mean() > 0.8
    _check_caches(ready, state)


@pytest.mark.parametrize(
    ("make", "gradients", "densities"),
    [
        (LatentMALA, 1, 0),
        (partial(LatentMALA, metric="jacobian", global_prob=0.5), 1, 0),
        (partial(LatentHMC, num_steps=3), 3, 0),
        (partial(LatentHMC, trajectory="adapted"), 1, 0),
        (partial(LocalGlobalHMC, num_steps=2, local_steps=3, num_proposals=5), 2 * 3 + 1, 5),
    ],
)
def test_nothing_is_evaluated_twice(make, gradients, densities):
    kernel = make(guide=bad_guide("gaussian"))
    kernel.setup(0)
    kernel.prepare(0)
    state = kernel.start(10)
    before = kernel.target.evaluations
    kernel.step(state)
    assert kernel.target.evaluations - before == 10 * (gradients + densities)
    if kernel.trajectory == "fixed":
        assert kernel.mean_gradients == gradients


# ---- jumps --------------------------------------------------------------------------------------


def test_steps_are_jittered_in_hmc_only(monkeypatch):
    sizes, step = [], hamiltonian.step

    def watched(state, density, step_size, *args, **options):
        sizes.append(step_size)
        return step(state, density, step_size, *args, **options)

    monkeypatch.setattr(hamiltonian, "step", watched)
    for kernel, jittered in ((LatentHMC, True), (LatentMALA, False)):
        ready = kernel(guide=bad_guide("funnel"), step_size=0.5)
        ready.setup(0)
        ready.prepare(0)
        ready.step(ready.start(50))
        ratio = sizes[-1] / 0.5
        assert (ratio.numel() == 50) is jittered
        assert ratio.min() >= 0.8 and ratio.max() <= 1.2 and bool(ratio.max() > 1) is jittered
