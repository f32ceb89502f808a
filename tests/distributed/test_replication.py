"""Computations of all workers alike: the same results on any number, and one error for all."""

import os
import re
import signal
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from support import shared_sampling
from support.marks import long_workers
from support.models import conjugate, conjugate_data, conjugate_guide
from support.mutations import broken, mutation
from support.shared_sampling import BLOCKS, sampled, sampled_banana, sampled_model
from support.workers import run_workers

from pyro_flowsamp import (
    IMH,
    AutoAdvNF,
    AutoAnnealingFlow,
    AutoDeformationFlow,
    DiagnosisOptions,
    FitOptions,
    Target,
    VectorizedMCMC,
    diagnose,
    importance_flow,
)
from pyro_flowsamp.chains import blocks as chain_blocks
from pyro_flowsamp.chains import loop as chain_loop
from pyro_flowsamp.chains.blocks import ChainBlocks
from pyro_flowsamp.checkpoint.folder import CheckpointError
from pyro_flowsamp.distributed import UnitCounts, check_alike, replicated
from pyro_flowsamp.sampling import final_run, pilot
from pyro_flowsamp.sampling import sample as sampling
from pyro_flowsamp.smc.mode_search import ModeSearch


def same(one, other):
    """Whether results of two workers are the same, bit for bit."""
    (draws, attrs), (others, theirs) = one, other
    arrays = draws.keys() == others.keys() and all(
        np.array_equal(draws[k], others[k], equal_nan=True) for k in draws
    )
    return arrays and attrs == theirs


def all_same(first, *others):
    return all(same(first[0], rank) for found in (first, *others) for rank in found)


# ---- sample() ------------------------------------------------------------------------------------


def sent(group):
    """The draws, and the messages of each run of chains after its warm-up."""
    counts = []

    def counted(right, *args):
        before = group.messages
        right(*args)
        counts.append(group.messages - before)

    with broken(mutation(chain_loop, "draw")(counted)):
        found = sampled(group)
    return found, counts


def test_sample_does_not_depend_on_the_number_of_workers_and_draws_send_nothing():
    one, two = (run_workers(size, sent, **BLOCKS) for size in (1, 2))
    assert all(same(one[0][0], found) for found, _ in two)
    for _, counts in two:
        assert len(counts) > 4 and set(counts) == {0}


@pytest.mark.slow
@long_workers
@pytest.mark.parametrize(
    ("function", "sizes"), [(sampled_model, (1, 2, 4)), (sampled_banana, (1, 2))]
)
def test_sample_by_any_kernel_does_not_depend_on_it_either(function, sizes):
    one, *others = (run_workers(size, function, **BLOCKS) for size in sizes)
    assert all_same(one, *others)
    if function is sampled_banana:
        assert "coupling" in one[0][1]["method"]


def unlike(group, wrong):
    with broken(wrong):
        return sampled(group)


@pytest.mark.slow
@long_workers
def test_evaluation_in_one_batch_by_one_worker_is_seen():
    @mutation(chain_blocks, "block_sizes")
    def whole(right, chains, contexts, most):
        alone = int(os.environ["WORLD_SIZE"]) == 1
        return [chains] if alone else right(chains, contexts, most)

    one, two = (run_workers(size, unlike, whole, **BLOCKS) for size in (1, 2))
    assert not same(one[0], two[0])


@pytest.mark.slow
@long_workers
def test_a_stream_that_depends_on_the_worker_is_seen():
    """Two blocks with the numbers of one: the first of each worker."""

    @mutation(chain_blocks, "Stream")
    def of_workers(right, seed, phase, unit, device):
        return right(seed, phase, unit // int(os.environ["WORLD_SIZE"]), device)

    one, two = (run_workers(size, unlike, of_workers, **BLOCKS) for size in (1, 2))
    assert not same(one[0], two[0])


@pytest.mark.slow
@long_workers
def test_counts_of_one_worker_alone_are_seen():
    own = mutation(UnitCounts, "add_up")(lambda right, self: None)
    one, two = (run_workers(size, unlike, own, **BLOCKS) for size in (1, 2))
    assert not same(one[0], two[0])


def without_seed(group):
    torch.manual_seed(5 + group.rank)
    return sampled(group, seed=None)


@pytest.mark.slow
@long_workers
def test_without_a_seed_all_have_that_of_rank_0():
    first, second = run_workers(2, without_seed, **BLOCKS)
    assert same(first, second)


# ---- what else all make alike --------------------------------------------------------------------


def diagnosed(group, guide):
    pyro.set_rng_seed(3)
    run = VectorizedMCMC(IMH(conjugate, guide=guide), 20, 5, 96, disable_progbar=True)
    run.run(*conjugate_data())
    options = DiagnosisOptions(search=shared_sampling.SEARCH, explorations=1)
    found = diagnose(run, options=options)
    return [(check.name, repr(check.value), check.ok) for check in found.checks], found.reliable


@pytest.mark.slow
@long_workers
def test_a_diagnosis_does_not_depend_on_the_number_of_workers():
    guide = conjugate_guide()
    one, two = (run_workers(size, diagnosed, guide, **BLOCKS) for size in (1, 2))
    assert one[0] == two[0] == two[1]
    assert one[0][1]


FEW = FitOptions(max_steps=10, progress=False)
GUIDES = {
    "annealing": lambda target: AutoAnnealingFlow(target, options=FEW),
    "deformation": lambda target: AutoDeformationFlow(target, base_scale=2.0, options=FEW),
    "advnf": lambda target: AutoAdvNF(target, options=FEW),
}


def trained(group, name):
    pyro.set_rng_seed(3)
    guide = GUIDES[name](Target.from_energy(shared_sampling.gaussian, 2))
    guide.fit()
    return [p.detach().clone() for p in guide.parameters()]


@pytest.mark.slow
@long_workers
@pytest.mark.parametrize("name", GUIDES)
def test_other_guides_are_the_same_on_any_number_of_workers(name):
    one, two = (run_workers(size, trained, name) for size in (1, 2))
    for found in two:
        assert all(np.array_equal(a, b) for a, b in zip(one[0], found, strict=True))


def searched(group):
    pyro.set_rng_seed(3)
    found = ModeSearch(Target.from_energy(shared_sampling.gaussian, 2), shared_sampling.SMALL).run()
    return found.x, found.evaluations


def test_a_search_for_modes_does_not_depend_on_the_number_of_workers():
    one, two = run_workers(1, searched), run_workers(2, searched)
    for x, evaluations in two:
        assert np.array_equal(x, one[0][0]) and evaluations == one[0][1]


def rare(group):
    pyro.set_rng_seed(3)
    p = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    options = {"options": FitOptions(max_steps=5, progress=False), "num_particles": 512}
    found = importance_flow(p, lambda x: x[:, 0].exp(), num_samples=1024, **options)
    return found.value, found.standard_error, found.evaluations


@pytest.mark.slow
@long_workers
def test_an_importance_flow_does_not_depend_on_the_number_of_workers():
    (one,), two = run_workers(1, rare), run_workers(2, rare)
    assert two == [one, one]
    assert abs(one[0] - np.exp(0.5)) < 4 * one[1]


def in_time(group, late):
    """A call that has no time left on the clock of one worker alone."""

    @mutation(sampling, "_deadline")
    def deadline(right, seconds):
        return right(seconds) - 1e4 * (group.rank == late)

    enough = mutation(pilot, "check_time")(lambda right, *args: None)
    never = mutation(final_run, "shortfall")(lambda right, *args: ["too few"])
    search = replace(shared_sampling.SEARCH, max_doublings=1)
    with broken(deadline, enough, never):
        return sampled(group, max_seconds=1000.0, search=search)


@pytest.mark.slow
@long_workers
def test_the_clock_is_that_of_rank_0():
    for late in (0, 1):
        first, second = run_workers(2, in_time, late, **BLOCKS)
        assert same(first, second)
        assert ("max_seconds are over" in first[1]["problems"]) == (late == 0)


# ---- workers that differ, and ends ---------------------------------------------------------------


def other_seed(group):
    sampled(group, seed=group.rank)


def other_data(group):
    y, counts = conjugate_data()
    shared_sampling.pf.sample(conjugate, y + group.rank, counts, **shared_sampling.QUICK, seed=0)


def other_decision(group):
    @mutation(pilot, "ess_per_draw")
    def larger(right, *args):
        return right(*args) * (1 + 0.1 * group.rank)

    with broken(larger):
        sampled(group)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (other_seed, r"generator before sample\(\) of rank 1 differs from that of rank 0"),
        (other_data, "the log density differs between the workers"),
        pytest.param(
            other_decision,
            "the pilot run of HMC of rank 1 differs from that of rank 0",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_workers_that_differ_are_refused(function, message):
    for found in run_workers(2, function):
        assert isinstance(found, ValueError)
        assert re.search(message, str(found))


def at_a_step(group, action):
    """The error of a call in which ``action`` is called on rank 1 at the tenth step of chains."""
    steps = []

    def step(right, self, state):
        steps.append(None)
        if len(steps) == 10 and group.rank == 1:
            action()
        return right(self, state)

    try:
        with broken(mutation(ChainBlocks, "step")(step)):
            sampled(group)
    except (Exception, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error} {getattr(error, '__notes__', '')}"


def fail():
    raise FloatingPointError("mine")


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_an_error_of_one_worker_in_the_only_candidate_ends_sample_on_all():
    for found in run_workers(2, at_a_step, fail):
        assert "no kernel runs on this posterior. The last error was: mine" in found


def test_ctrl_c_on_one_worker_ends_sample_on_all():
    first, second = run_workers(2, at_a_step, press_ctrl_c)
    assert "rank 1: KeyboardInterrupt: Ctrl-C ended sample() on all workers" in first
    assert "KeyboardInterrupt: Ctrl-C ended sample() on all workers" in second


def test_values_that_differ_are_told():
    for value in (torch.zeros(2), {"a": [1, "x"]}, torch.tensor([torch.nan]), True):
        assert run_workers(2, alike, [value, value]) == [None, None]
    for found in run_workers(3, alike, [torch.zeros(1), torch.zeros(1), -torch.zeros(1)]):
        assert isinstance(found, ValueError)
        assert "the example of rank 2 differs from that of rank 0" in str(found)


def alike(group, values):
    check_alike("the example", object)  # nothing is compared outside of such a computation
    with replicated("a test"):
        check_alike("the example", values[group.rank])


def test_evaluations_are_those_of_all_workers():
    for size in (1, 2, 3):
        assert run_workers(size, counted) == [[26, 1]] * size


def counted(group):
    """Two units of three evaluations each, of which one is not finite, beside 20 of all alike."""
    target = Target.from_energy(lambda x: torch.where(x > 0, x, torch.inf).sum(-1), 1)
    target.counter.evaluations, target.counter.nonfinite = 0, torch.zeros((), dtype=torch.long)
    counts = UnitCounts(group, target.counter, 2)
    for unit in group.units(2):
        with counts.counting():
            target.log_prob(torch.tensor([[unit - 0.5], [1.0], [2.0]]))
    target.log_prob(torch.ones(20, 1))
    counts.add_up()
    return target.counter.evaluations, int(target.counter.nonfinite)


# ---- checkpoints ---------------------------------------------------------------------------------


def ended(group, folder, runs, how):
    """A call that ends before so many runs of chains have gone on, on rank 1 or on all."""
    seen = []

    def resume(right, *args, **options):
        seen.append(None)
        if len(seen) == runs:
            if how == "killed" and group.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "failed":
                raise FloatingPointError("ended")
        return right(*args, **options)

    with broken(mutation(VectorizedMCMC, "resume")(resume)):
        return sampled(group, folder)


@pytest.mark.slow
@long_workers
@pytest.mark.parametrize(
    ("first", "then", "runs", "how"),
    [(2, 1, 3, "failed"), (1, 2, 6, "failed"), (2, 4, 5, "killed")],
)
def test_sample_goes_on_with_any_number_of_workers(tmp_path, first, then, runs, how):
    whole, folder = run_workers(1, sampled, **BLOCKS)[0], str(tmp_path / "run")
    rank_0 = run_workers(first, ended, folder, runs, how, **BLOCKS)[0]
    assert "ended" in str(rank_0) if how == "failed" else "rank 1 does not answer" in str(rank_0)
    for found in run_workers(then, sampled, folder, **BLOCKS):
        assert same(found, whole)


@pytest.mark.slow
@long_workers
def test_a_checkpoint_of_workers_is_not_that_of_one_process(tmp_path):
    folder = str(tmp_path / "run")
    run_workers(1, ended, folder, 2, "failed", **BLOCKS)
    with pytest.raises(
        CheckpointError, match="is of another run: workers is None and was blocks of 32"
    ):
        sampled(None, folder)
    for options in ({"chains_per_block": 64}, {}):
        (error,) = run_workers(1, sampled, folder, **options)
        assert isinstance(error, CheckpointError) and "blocks of 32 chains" in str(error)
