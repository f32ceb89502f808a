"""Attempts: what fails on one worker is left out by all, and they go on alike."""

import random

import numpy as np
import pytest
import torch
from support.marks import long_workers
from support.mutations import broken, mutation
from support.shared_sampling import BLOCKS, sampled
from support.workers import run_workers

from pyro_flowsamp import IMH, Target, VectorizedMCMC
from pyro_flowsamp.chains.blocks import ChainBlocks
from pyro_flowsamp.distributed import AttemptError, attempt, check_alike, replicated
from pyro_flowsamp.distributed import attempts as module
from pyro_flowsamp.sampling import final_run

TARGET = Target.from_energy(lambda x: x.square().sum(-1), 1)


def tried(group, exchanges, reset=True):
    """What is the same on all workers after an attempt that fails after other exchanges on each."""
    error, drawn = None, []
    if not reset:
        module.set_generator_states = lambda states: None
    with replicated("a test", TARGET):
        before = TARGET.evaluations
        try:
            with attempt(TARGET):
                for step in range(4):
                    own = range(1 + group.rank)
                    drawn += [(torch.rand(1), random.random(), np.random.rand()) for _ in own]
                    TARGET.log_prob(torch.ones(len(own), 1))
                    if step == exchanges[group.rank]:
                        raise FloatingPointError(f"of rank {group.rank}")
                    group.add(torch.ones(1))
        except AttemptError as caught:
            error = str(caught), caught.kind
        total = group.add(torch.ones(1))  # the exchange goes on
        after = torch.rand(1), random.random(), np.random.rand()
    return error, total, *after, TARGET.evaluations - before


@pytest.mark.parametrize(
    ("exchanges", "told"), [((9, 2, 9), 1), ((9, 0, 9), 1), ((2, 9, 2), 0), ((3, 3, 3), 0)]
)
def test_an_attempt_fails_on_all_where_it_fails_on_one(exchanges, told):
    first, *others = run_workers(3, tried, exchanges)
    assert first[0] == [f"of rank {told}", "FloatingPointError"]
    assert first[1] == 3 and first[-1] == 0
    assert all(other == first for other in others)


def test_an_attempt_that_does_not_fail_changes_nothing():
    first, second = run_workers(2, tried, (9, 9))
    assert first[0] is None and second[0] is None
    assert (first[-1], second[-1]) == (4, 8)


def test_generators_that_are_not_set_back_are_seen():
    first, second = run_workers(2, tried, (9, 2), False)
    assert first[2] != second[2] and first[3] != second[3]


def ending(group, error):
    with replicated("a test"), attempt(TARGET, KeyError):
        if error is None:
            check_alike("the example", group.rank)
        elif group.rank == 1:
            raise error
        group.add(torch.ones(1))


def test_some_errors_end_the_work_of_all():
    first, second = run_workers(2, ending, KeyError("mine"))
    assert "rank 1: KeyError: 'mine'" in str(first) and isinstance(second, KeyError)
    for found in run_workers(2, ending, None):
        assert "the example of rank 1 differs from that of rank 0" in str(found)


# ---- sample() ------------------------------------------------------------------------------------


def without_imh(group):
    """The draws where a step of IMH fails in the second block of chains."""

    def step(right, self, state):
        if isinstance(self.kernel, IMH) and 1 in self.own:
            raise FloatingPointError("mine")
        return right(self, state)

    with broken(mutation(ChainBlocks, "step")(step)):
        return sampled(group, candidates=["IMH", "HMC"])


def without_more_draws(group):
    """The draws where others shall follow, and fail on the last worker."""

    def resume(right, *args, append=False, **options):
        if append and group.rank == group.size - 1:
            raise FloatingPointError("mine")
        return right(*args, append=append, **options)

    never = mutation(final_run, "shortfall")(lambda right, *args: ["too few"])
    with broken(never, mutation(VectorizedMCMC, "resume")(resume)):
        return sampled(group)


@pytest.mark.slow
@long_workers
@pytest.mark.parametrize(
    ("function", "name", "told"),
    [
        (without_imh, "candidates", "IMH (Gaussian): left out: mine"),
        (
            without_more_draws,
            "problems",
            "the density raised FloatingPointError (mine), and the draws end there",
        ),
    ],
)
def test_what_fails_on_one_worker_is_left_out_by_all(function, name, told):
    (one,), two = (run_workers(size, function, **BLOCKS) for size in (1, 2))
    for draws, attrs in two:
        assert told in attrs[name]
        assert all(np.array_equal(draws[k], one[0][k], equal_nan=True) for k in one[0])
        assert attrs == one[1]
