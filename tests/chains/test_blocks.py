"""Chains in blocks: the same draws on every number of workers, exact, and nothing sent."""

import os
import signal
import warnings
from types import SimpleNamespace

import numpy as np
import pyro
import pytest
import torch
from support.marks import slow
from support.models import conjugate, conjugate_data, conjugate_guide
from support.mutations import broken, must_fail, mutation
from support.statistics import z_score
from support.workers import run_workers

from pyro_flowsamp import (
    IMH,
    AutoFlow,
    LatentHMC,
    LatentMALA,
    LocalGlobalHMC,
    Target,
    VectorizedMCMC,
    WorkersOptions,
    to_arviz,
    workers,
)
from pyro_flowsamp.chains import blocks as chain_blocks
from pyro_flowsamp.chains import loop as chain_loop
from pyro_flowsamp.chains.blocks import ChainBlocks, block_sizes
from pyro_flowsamp.seeding import Stream

KERNELS = {
    "imh": IMH,
    "mala": LatentMALA,
    "adapted": lambda *args, **options: LatentHMC(*args, trajectory="adapted", **options),
    "local_global": lambda *args, **options: LocalGlobalHMC(*args, trajectory="adapted", **options),
}


@pytest.fixture
def guide():
    return conjugate_guide()


def made(guide, name="imh", warmup=8, chains=300, **options):
    kernel = KERNELS[name](conjugate, guide=guide)
    run = VectorizedMCMC(kernel, 5, warmup, chains, disable_progbar=True, **options)
    run.run(*conjugate_data())
    return run


def gathered(group, guide, name, **options):
    run = made(guide, name, **options)
    every = run.gathered()
    step_size = None if run.step_size is None else float(run.step_size)
    if every is None:
        return step_size, run.num_chains
    return {"x": every.unconstrained, "starts": every.starts, **every.statistics}, step_size


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(
    "name", ["imh", "mala", *slow(["adapted", "local_global"], "adapted", "local_global")]
)
def test_chains_do_not_depend_on_the_number_of_workers(guide, name):
    one, *others = (run_workers(size, gathered, guide, name) for size in (1, 2, 4))
    draws, step_size = one[0]
    assert draws["x"].shape[:2] == (300, 5)
    for found in others:
        assert same(found[0][0], draws)
        assert found[0][1] == step_size
        assert [rank[0] for rank in found[1:]] == [step_size] * (len(found) - 1)


def test_starting_values_and_resumed_draws_do_not_either(guide):
    one, two = (run_workers(size, resumed, guide)[0] for size in (1, 2))
    for first, second in zip(one, two):
        assert same(first, second)
    assert one[0]["starts"].sum(1).tolist() == torch.linspace(-1.0, 1.0, 300).tolist()
    assert one[2]["x"].shape[1] == 7


def resumed(group, guide):
    starts = torch.linspace(-1.0, 1.0, 300)
    run = made(guide, "mala", initial_params={"mean": starts, "rate": 0 * starts})
    found = [run.gathered()]
    run.resume(2)
    found.append(run.gathered())
    run.resume(5, append=True)
    found.append(run.gathered())
    if group.rank:
        return None
    return [{"x": r.unconstrained, "starts": r.starts, **r.statistics} for r in found]


def test_runs_outside_are_as_they_were(guide):
    """Without workers there are no blocks, and no random numbers of streams."""
    pyro.set_rng_seed(5)
    first = made(guide)
    with broken(mutation(Stream, "active")(lambda right, self: pytest.fail("a stream is used"))):
        pyro.set_rng_seed(5)
        assert torch.equal(made(guide).unconstrained, first.unconstrained)
    assert first.gathered() is first


def drawn(group, guide, name):
    """The messages during warm-up with the draws, and during the draws alone."""
    counts = {}
    draw = chain_loop.draw

    def counted(right, *args):
        before = group.messages
        draw(*args)
        counts["draws"] = group.messages - before

    with broken(mutation(chain_loop, "draw")(counted)):
        before = group.messages
        made(guide, name, warmup=20)
    return counts["draws"], group.messages - before


@pytest.mark.parametrize("name", ["mala", "adapted"])
def test_draws_send_nothing(guide, name):
    for draws, every in run_workers(2, drawn, guide, name, gather_first=8):
        assert draws == 0
        assert 8 + 3 <= every < 20  # after each of 8 steps of warm-up, and every four of 12 more


def relative_step_size(kernel=LatentMALA):
    """The step size by reports of four steps at once, in units of that by one of each step."""
    found = []
    for gather_every in (1, 4):
        pyro.set_rng_seed(1)
        target = Target.from_energy(lambda x: 0.5 * (x / 2).square().sum(-1), 2)
        guide = AutoFlow(target, flow="gaussian")
        guide.target_for()
        guide.trained = True
        with workers(options=WorkersOptions(gather_first=0, gather_every=gather_every)):
            run = VectorizedMCMC(kernel(guide=guide), 1, 100, 256, disable_progbar=True)
            run.min_acceptance = 0.0
            run.run()
        found.append(float(run.step_size))
    return found[1] / found[0]


def test_reports_of_several_steps_make_one_update():
    assert abs(relative_step_size() - 1) < 0.15


def test_an_update_for_each_of_several_reports_is_seen():
    @mutation(LatentMALA, "adapt")
    def four_times(right, self, info):
        for _ in range(len(info.accept_prob) // 256):
            right(self, info)

    must_fail(four_times, score=lambda: abs(relative_step_size() - 1), above=0.2)


def test_blocks_are_of_equal_size_and_hold_whole_rounds_of_contexts():
    assert block_sizes(1000, 1, 128) == [125] * 8
    assert block_sizes(7, 1, 128) == [7]
    for chains, contexts in [(1290, 30), (640, 64), (5000, 1000)]:
        sizes = block_sizes(chains, contexts, 128)
        assert sum(sizes) == chains
        assert all(size % contexts == 0 for size in sizes)
        assert max(sizes) - min(sizes) <= contexts
        assert len(sizes) == 1 or min(sizes) >= 4 * contexts


def test_reports_are_packed_and_unpacked():
    """A report of blocks, with fields of chains and of several moves, is that of all chains."""
    guide = conjugate_guide()
    run = LocalGlobalHMC(conjugate, guide=guide, local_steps=3)
    run.setup(0, *conjugate_data())
    run.prepare(0, False)
    run.start(12)
    _, info = run.step(run.start(12))
    rows = chain_blocks._packed(info, 12)
    found, left = chain_blocks._unpacked(info, 12, rows)
    assert left.shape == (12, 0)
    for one, other in zip(chain_blocks._leaves(info), chain_blocks._leaves(found), strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype
    both = torch.cat([rows, rows.flip(0)])
    every, _ = chain_blocks._unpacked(info, 12, both)
    assert torch.equal(every.accept_prob[12:], info.accept_prob.flip(0))
    local = every.local.accept_prob.view(3, 24)
    assert torch.equal(local[:, :12], info.local.accept_prob.view(3, 12))


# ---- exactness -----------------------------------------------------------------------------------


def worst_score(kernel=LatentMALA, chains=1024):
    """The largest z-score of means and squares of chains in blocks of 128, of a wide Gaussian."""
    pyro.set_rng_seed(1)
    target = Target.from_energy(lambda x: 0.5 * (x / 2 - 1).square().sum(-1), 2)
    guide = AutoFlow(target, flow="gaussian")
    guide.target_for()
    guide.trained = True  # a standard normal flow, far too narrow
    with workers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = VectorizedMCMC(kernel(guide=guide), 10, 60, chains, disable_progbar=True)
        run.run()
    x = run.unconstrained
    scores = [z_score(x.mean(1), 2.0), z_score(x.square().mean(1), 8.0)]
    halves = x[: chains // 2], x[chains // 2 :]  # chains of different blocks are independent
    product = (halves[0][:, -1] - 2) * (halves[1][:, -1] - 2)
    return float(torch.stack([*scores, z_score(product, 0.0)]).abs().max())


def test_chains_in_blocks_are_exact():
    assert worst_score() < 4.5


def test_a_stream_that_two_units_use_is_seen():
    @mutation(chain_blocks, "Stream")
    def same_for_all(right, seed, phase, unit, device):
        return right(seed, phase, unit % 4, device)

    must_fail(same_for_all, score=worst_score, above=7)


def test_blocks_that_adapt_alone_are_seen(guide):
    """Where each worker adapts to its own chains, draws depend on the number of workers."""

    @mutation(ChainBlocks, "_share")
    def alone(right, self):
        group, own, sizes = self.group, self.own, self.sizes
        self.group = SimpleNamespace(join=lambda values, _: torch.cat(list(values)))
        self.own, self.sizes = list(range(len(own))), [sizes[u] for u in own]
        right(self)
        self.group, self.own, self.sizes = group, own, sizes

    with broken(alone):
        one, two = (run_workers(size, gathered, guide, "mala")[0] for size in (1, 2))
    assert not same(one[0], two[0])


# ---- results and bad input -----------------------------------------------------------------------


class OfRankOne:
    def gathered(self):
        return None


def test_other_ranks_export_nothing(guide):
    assert to_arviz(OfRankOne()) is None
    with workers():
        data = to_arviz(made(guide, chains=200))
    assert data["posterior"].sizes["chain"] == 200


def other_data(group, guide):
    y = conjugate_data()
    run = VectorizedMCMC(IMH(conjugate, guide=guide), 5, 5, 200, disable_progbar=True)
    run.run(*(value + group.rank for value in y))


def other_flow(group, guide):
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter += 0.1 * group.rank
    made(guide)


def few(group, guide):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made(guide, chains=100)
    return [str(one.message) for one in caught]


def test_workers_without_chains_are_told(guide):
    first, second = run_workers(2, few, guide)
    assert any("100 chains in 1 blocks keep 1 of 2 workers busy" in text for text in first)
    assert run_workers(2, few, guide, chains_per_block=50)[0] == []


def one_bad_start(group, guide):
    starts = torch.zeros(300)
    bad = starts.clone()
    bad[-1] = torch.nan
    made(guide, "mala", initial_params={"mean": bad, "rate": starts})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (other_data, "the log density differs between the workers"),
        (other_flow, "the log density of the flow differs between the workers"),
    ],
)
def test_workers_that_differ_are_refused(guide, function, message):
    for found in run_workers(2, function, guide):
        assert isinstance(found, ValueError)
        assert message in str(found)


def test_an_error_of_one_worker_ends_all(guide):
    found = run_workers(3, one_bad_start, guide)
    wrong = [str(error) for error in found if isinstance(error, ValueError)]
    assert len(wrong) == 1 and "the density is zero or NaN for chains" in wrong[0]
    told = [str(error) for error in found if isinstance(error, RuntimeError)]
    assert len(told) == 2
    assert all("the density is zero or NaN" in text for text in told)


def interrupted(group, guide):
    """Ctrl-C after seven steps on rank 0, and after eight on rank 1, of which five are warm-up."""
    steps = []

    def step(right, self, state):
        steps.append(None)
        if len(steps) > 7 + group.rank:
            raise KeyboardInterrupt
        return right(self, state)

    with broken(mutation(ChainBlocks, "step")(step)):
        run = made(guide, warmup=5)
    every = run.gathered()
    return run.interrupted, run.num_samples, None if every is None else every.unconstrained.shape


def test_interrupted_workers_keep_the_draws_that_all_have(guide):
    first, second = run_workers(2, interrupted, guide)
    assert first == [True, 2, [300, 2, 2]]
    assert second == [True, 2, None]


def killed(group, guide):
    draw = chain_loop.draw

    def ended(right, kernel, position, buffer, *args):
        if group.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        draw(kernel, position, buffer, *args)

    with broken(mutation(chain_loop, "draw")(ended)):
        made(guide)


def test_a_worker_that_is_killed_while_it_draws_is_named(guide):
    first, second, third = run_workers(3, killed, guide)
    assert second is None
    for error in (first, third):
        assert isinstance(error, RuntimeError) and "rank 1 does not answer" in str(error)


def resume_of_before(group, run):
    run.resume(2)


def test_runs_do_not_go_on_with_other_workers(guide):
    for found in run_workers(2, resume_of_before, made(guide)):
        assert isinstance(found, RuntimeError)
        assert "made before the context workers() was entered" in str(found)


def test_runs_do_not_go_on_after_the_workers(guide):
    with workers() as group:
        run = made(guide, chains=200)
    run.resume(2)  # of one worker it has all chains
    group.size = 2
    with pytest.raises(RuntimeError, match="their context has ended: make the run anew"):
        run.resume(2)
    with pytest.raises(RuntimeError, match=r"gathered\(\) must be called there"):
        run.gathered()


def test_what_is_not_shared_out_is_refused(guide):
    from pyro.infer import MCMC

    with workers(), pytest.raises(ValueError, match="MCMC of Pyro is not shared out"):
        MCMC(IMH(conjugate, guide=guide), 2, 2, disable_progbar=True).run(*conjugate_data())
