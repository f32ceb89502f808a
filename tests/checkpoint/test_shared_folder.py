"""Checkpoints of workers: a run or a training goes on with any number of them."""

import os
import signal

import numpy as np
import pyro
import pytest
import torch
from support.checkpoints import banana
from support.mutations import broken, mutation
from support.workers import run_workers

from pyro_flowsamp import (
    IMH,
    AutoFlow,
    CheckpointOptions,
    FitOptions,
    LatentHMC,
    LatentMALA,
    StoredDraws,
    VectorizedMCMC,
    workers,
)
from pyro_flowsamp.chains import loop as chain_loop
from pyro_flowsamp.chains.blocks import ChainBlocks
from pyro_flowsamp.checkpoint.folder import CheckpointError
from pyro_flowsamp.checkpoint.scope import Scope
from pyro_flowsamp.distributed import SharedTraining

KERNELS = {
    "IMH": lambda guide: IMH(guide=guide, lookahead=200),
    "MALA": lambda guide: LatentMALA(guide=guide),
    "adapted": lambda guide: LatentHMC(guide=guide, trajectory="adapted"),
}
#: three blocks; in warm-up reports wait at most of the steps
BLOCKS = {"chains_per_block": 32, "gather_first": 3, "gather_every": 4}


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def every(steps, folder):
    return CheckpointOptions(folder, every_seconds=float("inf"), every_steps=steps)


def ends(group, writes, how="killed"):
    """A mutation that ends a process after so many writes: rank 1 of several, or the only one."""
    done = []

    @mutation(Scope, "write")
    def write(right, self, *args, **options):
        right(self, *args, **options)
        done.append(None)
        if len(done) == writes and group.rank == group.size - 1:
            if how == "interrupted":
                os.kill(os.getpid(), signal.SIGINT)
            if group.size > 1 and how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise FloatingPointError("ended")

    return write


# ---- chains --------------------------------------------------------------------------------------


def chains(group, kernel, folder=None, steps=3):
    """All draws of a run, of which five are appended, and the evaluations and step size."""
    pyro.set_rng_seed(2)
    guide = AutoFlow(banana(), flow="gaussian", options=FitOptions(4, progress=False))
    guide.target_for()
    guide.trained = True  # a standard normal flow
    checkpoint = folder and every(steps, folder)
    run = VectorizedMCMC(
        KERNELS[kernel](guide), 4, 13, 90, disable_progbar=True, checkpoint=checkpoint
    )
    run.min_acceptance = 0.0
    run.run()
    run.resume(5, append=True)
    found = run.gathered(to_all=True)
    step_size = None if run.step_size is None else float(run.step_size)
    values = {"x": found.unconstrained, "starts": found.starts, **found.statistics}
    return values, run.target.evaluations, step_size


def ended_chains(group, kernel, folder, writes, how):
    with broken(ends(group, writes, how)):
        chains(group, kernel, folder)


def same(one, other):
    arrays = all(np.array_equal(one[0][k], other[0][k], equal_nan=True) for k in one[0])
    return arrays and one[1:] == other[1:]


@pytest.mark.parametrize(
    ("first", "then", "writes", "kernel"),
    [
        (2, 1, 2, "adapted"),  # in warm-up
        (1, 2, 1, "MALA"),  # in warm-up, at the first steps
        (2, 4, 5, "IMH"),
        (2, 3, 7, "adapted"),
    ],
)
def test_chains_go_on_with_any_number_of_workers(tmp_path, first, then, writes, kernel):
    folder = str(tmp_path / "run")
    (whole,) = run_workers(1, chains, kernel, **BLOCKS)
    error = run_workers(first, ended_chains, kernel, folder, writes, "killed", **BLOCKS)[0]
    assert ("rank 1 does not answer" if first > 1 else "ended") in str(error)
    for found in run_workers(then, chains, kernel, folder, **BLOCKS):
        assert same(found, whole)
    stored = StoredDraws(folder, banana())
    assert np.array_equal(stored.unconstrained, whole[0]["x"])
    assert np.array_equal(stored.starts, whole[0]["starts"])


def test_a_checkpoint_while_reports_wait_is_seen(tmp_path):
    """In warm-up reports of some steps are gathered later; they are not stored."""
    folder = str(tmp_path / "run")
    (whole,) = run_workers(1, chains, "MALA", **BLOCKS)
    with broken(mutation(ChainBlocks, "waits")(lambda right, self: False)):
        run_workers(1, ended_chains, "MALA", folder, 2, "killed", **BLOCKS)
    (found,) = run_workers(1, chains, "MALA", folder, **BLOCKS)
    assert not same(found, whole)


def test_workers_look_at_the_clock_seldom(tmp_path):
    """Without a checkpoint that is due, draws take messages as the logarithm of their number."""
    for counts in run_workers(2, looks, str(tmp_path / "run"), **BLOCKS):
        assert 1 <= counts <= 6


def looks(group, folder):
    counts = []

    def counted(right, kernel, position, buffer, thin, storage, hidden):
        storage.write = lambda *args: None
        before = group.messages
        right(kernel, position, buffer, thin, storage, hidden)
        counts.append(group.messages - before)

    with broken(mutation(chain_loop, "draw")(counted)):
        guide = AutoFlow(banana(), flow="gaussian", options=FitOptions(4, progress=False))
        guide.target_for()
        guide.trained = True
        options = {"checkpoint": CheckpointOptions(folder, 1000.0), "disable_progbar": True}
        run = VectorizedMCMC(IMH(guide=guide), 60, 0, 64, **options)
        run.min_acceptance = 0.0
        run.run()
    return counts[0]


def test_other_blocks_and_one_process_are_told(tmp_path):
    folder = str(tmp_path / "run")
    run_workers(1, ended_chains, "IMH", folder, 2, "killed", **BLOCKS)
    (error,) = run_workers(1, chains, "IMH", folder, **BLOCKS | {"chains_per_block": 64})
    assert isinstance(error, CheckpointError) and "was blocks of 32 chains" in str(error)
    with pytest.raises(CheckpointError, match="workers is None and was blocks of 32"):
        chains(None, "IMH", folder)
    with workers(shard="rows"), pytest.raises(ValueError, match=r"cannot be used with workers\(sh"):
        chains(None, "IMH", folder)


def test_ctrl_c_on_one_worker_ends_a_run_with_a_checkpoint_on_all(tmp_path):
    folder = str(tmp_path / "run")
    first, second = run_workers(2, caught, folder, **BLOCKS)
    assert "KeyboardInterrupt: Ctrl-C ended a computation with a checkpoint on all" in first
    assert "KeyboardInterrupt: Ctrl-C ended a computation with a checkpoint on all" in second


def caught(group, folder):
    try:
        ended_chains(group, "IMH", folder, 2, "interrupted")
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


# ---- trainings -----------------------------------------------------------------------------------


def trained(group, folder=None):
    pyro.set_rng_seed(3)
    options = {"batch_size": 64, "eval_every": 6, "stop_at_ess": 1.0, "progress": False}
    checkpoint = None if folder is None else every(4, folder)
    guide = AutoFlow(banana(), options=FitOptions(24, **options, checkpoint=checkpoint))
    history = guide.fit()
    state = torch.cat([p.detach().flatten() for p in guide.parameters()])
    return state, history.loss, history.steps, history.skipped


def ended_training(group, folder, writes):
    with broken(ends(group, writes)):
        trained(group, folder)


@pytest.mark.parametrize(("first", "then"), [(2, 2), (2, 1), (1, 2)])
def test_a_training_goes_on_with_any_number_of_workers(tmp_path, first, then):
    folder = str(tmp_path / "run")
    whole = run_workers(first, trained)[0]
    run_workers(first, ended_training, folder, 3)
    one, *others = run_workers(then, trained, folder)
    for found in others:
        assert np.array_equal(found[0], one[0]) and found[1:] == one[1:]
    assert one[2] == 24 and one[1][:2] == whole[1][:2]  # two windows had ended
    assert (np.array_equal(one[0], whole[0]) and one[1] == whole[1]) == (first == then)
    again = run_workers(then, trained, folder)  # it has ended
    assert np.array_equal(again[0][0], one[0])


def test_workers_that_draw_the_numbers_of_before_again_are_seen(tmp_path):
    """The streams of a training that goes on are where they were."""
    folder = str(tmp_path / "run")
    whole = run_workers(2, trained)[0]
    run_workers(2, ended_training, folder, 3)
    fresh = mutation(SharedTraining, "load_state_dict")(lambda right, self, *args: None)
    with broken(fresh):
        found = run_workers(2, trained, folder)[0]
    assert not np.array_equal(found[0], whole[0])
