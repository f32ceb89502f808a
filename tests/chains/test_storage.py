"""Runs of chains that are ended at any moment: the same draws, bit by bit."""

import warnings
from dataclasses import replace
from shutil import which

import pyro
import pytest
import torch
from support.checkpoints import banana, in_two_parts, killed_after, number_of_writes
from support.marks import kills, slow
from support.mutations import broken, mutation

from pyro_flowsamp import (
    IMH,
    AutoFlow,
    CheckpointOptions,
    FitOptions,
    FlowKernel,
    LatentHMC,
    LocalGlobalHMC,
    Target,
    TracingOptions,
    VectorizedMCMC,
)
from pyro_flowsamp.chains.storage import ChainStorage
from pyro_flowsamp.checkpoint import scope
from pyro_flowsamp.checkpoint.folder import CheckpointError
from pyro_flowsamp.kernels.imh import LookaheadState
from pyro_flowsamp.kernels.step_graphs import StepGraphs
from pyro_flowsamp.target.tracing import TracedDensity
from pyro_flowsamp.transitions import independence, metropolis

QUICK = FitOptions(max_steps=4, progress=False)
KERNELS = {
    "IMH": lambda guide: IMH(guide=guide, lookahead=35),
    "HMC": lambda guide: LatentHMC(guide=guide, num_steps=2),
    "adapted": lambda guide: LatentHMC(guide=guide, trajectory="adapted", global_prob=0.1),
    "LocalGlobalHMC": lambda guide: LocalGlobalHMC(guide=guide, num_proposals=2),
}


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch):
    """Only a loss of power needs what it does; the kills are those of one process."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def run(path, kernel="IMH", every=3, target=None, compile_mode=None, **changed):
    """All that a run and two more calls return, in a process of its own."""
    pyro.set_rng_seed(0)
    target = target or banana()
    if compile_mode is not None:
        target.compile_mode = compile_mode
    guide = AutoFlow(target, flow="gaussian", options=QUICK)
    checkpoint = path and CheckpointOptions(path, every_seconds=float("inf"), every_steps=every)
    options = {"num_samples": 6, "warmup_steps": 8, "num_chains": 5, "thin": 2, **changed}
    mcmc = VectorizedMCMC(
        KERNELS[kernel](guide), checkpoint=checkpoint, disable_progbar=True, **options
    )
    mcmc.min_acceptance = 0.0
    mcmc.run()
    found = [mcmc.unconstrained, *mcmc.statistics.values(), mcmc.starts]
    mcmc.resume(3, thin=2, append=True)
    found += [mcmc.unconstrained, *mcmc.statistics.values()]
    state = mcmc.target.tracing_state()  # how often each size was called, and graphs for sizes
    sizes = [count for _, count in state["calls"]], [key[0] for key in state["traced"]]
    found += [torch.tensor(calls_of_parts(mcmc))]
    found += [torch.tensor(mcmc.target.evaluations), torch.rand(3)]
    return [*found, *map(torch.tensor, sizes)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kernel", slow(KERNELS, "HMC", "LocalGlobalHMC"))
def test_the_same_draws_after_an_end_in_each_phase(tmp_path, kernel):
    whole = run(None, kernel)
    stored = run(tmp_path / "whole", kernel)
    assert same(whole, stored)  # a checkpoint changes nothing
    count = number_of_writes(lambda: run(tmp_path / "count", kernel))
    for writes in (2, 4, count // 2 + 1, count - 1):
        path = tmp_path / str(writes)
        assert same(whole, in_two_parts(lambda path=path: run(path, kernel), writes)), writes


def with_graphs(calls=20):
    """A target whose graphs take over in the middle of a run, those of steps too."""
    target = banana()
    target.tracing = TracingOptions(calls=calls, compiler=False)
    return target


def calls_of_parts(run):
    """How often each part of a step was called."""
    return [count for _, count in run.kernel.step_graphs.state_dict()["calls"]]


def test_graphs_take_over_at_the_same_step(tmp_path):
    def once(path):
        return run(path, "HMC", target=with_graphs())

    whole = once(None)
    assert 5 in whole[-1]  # the number of chains
    count = number_of_writes(lambda: once(tmp_path / "count"))
    for writes in (count // 3, count // 2, count - 1):
        path = tmp_path / str(writes)
        assert same(whole, in_two_parts(lambda path=path: once(path), writes)), writes


@kills
@pytest.mark.skipif(which("g++") is None, reason="there is no C++ compiler")
def test_compiled_graphs_go_on_bit_by_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_FLOWSAMP_COMPILE", "1")
    target = banana()
    with killed_after(None) as writes:
        whole = run(tmp_path / "whole", "HMC", target=target, compile_mode=True)
    assert target.tracing_state()["compiled"] and not any(target.tracing_state()["reasons"])
    path = tmp_path / "killed"
    found = in_two_parts(lambda: run(path, "HMC", compile_mode=True), 2 * len(writes) // 3)
    assert same(whole, found)


def test_a_finished_folder_returns_its_draws(tmp_path):
    whole, target = run(tmp_path), banana()
    guide = AutoFlow(target, flow="gaussian", options=QUICK)
    checkpoint = CheckpointOptions(tmp_path, every_seconds=float("inf"), every_steps=3)
    mcmc = VectorizedMCMC(
        KERNELS["IMH"](guide), 6, 8, 5, thin=2, disable_progbar=True, checkpoint=checkpoint
    )
    mcmc.min_acceptance, evaluated = 0.0, []
    right = Target.log_prob
    with pytest.MonkeyPatch.context() as patch, killed_after(None) as writes:
        patch.setattr(Target, "log_prob", lambda *a: evaluated.append(len(a[1])) or right(*a))
        mcmc.run()
    assert torch.equal(mcmc.unconstrained, whole[0]) and not writes
    assert sum(evaluated) <= 3 + 64  # the fixed points, and a look for one of finite density
    mcmc.run()  # in the same process again
    assert torch.equal(mcmc.unconstrained, whole[0])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"num_samples": 7}, "num_samples is 7 and was 6"),
        ({"num_chains": 4}, "num_chains is 4 and was 5"),
        ({"kernel": "HMC"}, "kernel's class is LatentHMC and was IMH"),
        ({"initial_params": {"x": torch.zeros(5, 2)}}, "initial_params has other values"),
        ({"target": Target.from_energy(lambda x: x.square().sum(-1), 2)}, "log density at"),
        ({"target": Target.from_energy(lambda x: x.square().sum(-1), 3)}, "sites is"),
        ({"target": with_graphs(7)}, "tracing.calls is 7 and was 500"),
        ({"compile_mode": False}, "compile is False and was auto"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_other_arguments_are_refused_by_name(tmp_path, changed, named):
    in_two = pytest.raises(BaseException)
    with killed_after(1), in_two:
        run(tmp_path)
    with pytest.raises(CheckpointError, match=named):
        run(tmp_path, **changed)


def test_another_flow_is_refused(tmp_path):
    target = banana()

    def mcmc(scale):
        guide = AutoFlow(target, flow="gaussian", options=QUICK)
        guide.target_for()
        guide.flow.affine.initialize(torch.zeros(2), scale * torch.eye(2))
        guide.trained = True
        return VectorizedMCMC(IMH(guide=guide), 4, 2, 3, disable_progbar=True, checkpoint=tmp_path)

    mcmc(2.0).run()
    with pytest.raises(CheckpointError, match="another flow"):
        mcmc(3.0).run()


def test_a_kernel_with_a_state_that_cannot_be_stored_is_refused(tmp_path):
    class Still(FlowKernel):
        def init(self, x):
            self.rule = lambda: None
            return independence.init(x, self.log_prob(x), self.proposal.log_prob(x))

        def step(self, state):
            no = torch.zeros_like(state.log_p, dtype=torch.bool)
            return state, metropolis.MetropolisInfo(no, no.double(), no)

    guide = AutoFlow(banana(), flow="gaussian", options=QUICK)
    mcmc = VectorizedMCMC(Still(guide=guide), 2, 2, 3, disable_progbar=True, checkpoint=tmp_path)
    with pytest.raises(TypeError, match=r"cannot hold .*\['rule'\], a function"):
        mcmc.run()


# ---- errors and interrupts -----------------------------------------------------------------------


class Failing:
    """An energy that raises at one of its calls."""

    def __init__(self, error):
        self.error, self.left = error, None

    def __call__(self, x):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise self.error
        return 0.5 * x.square().sum(-1)


def failing_run(error, **options):
    energy = Failing(error)
    guide = AutoFlow(Target.from_energy(energy, 2), flow="gaussian", options=QUICK)
    mcmc = VectorizedMCMC(
        LatentHMC(guide=guide, num_steps=1), 10, 4, 6, disable_progbar=True, **options
    )
    guide.fit()
    return mcmc, energy


def test_an_error_late_in_a_run_keeps_the_draws():
    mcmc, energy = failing_run(ArithmeticError("late"))
    energy.left = 4 + 1 + 1 + 7  # the start, warm-up, and seven draws
    with pytest.raises(ArithmeticError) as found:
        mcmc.run()
    count = mcmc.num_samples
    assert 0 < count < 10 and mcmc.get_samples(group_by_chain=True)["x"].shape == (6, count, 2)
    note = f"{count} of 10 draws of each chain were made before this error"
    assert found.value.__notes__[0].startswith(note)
    assert f"resume({10 - count}, append=True)" in found.value.__notes__[0]
    mcmc.resume(10 - count, append=True)
    assert mcmc.num_samples == 10 and mcmc.statistics["lp"].shape == (6, 10)


@pytest.mark.parametrize("error", [ArithmeticError("early"), KeyboardInterrupt()])
@pytest.mark.parametrize("left", [0, 3, 6])
def test_a_rerun_that_fails_leaves_the_draws_before(error, left):
    mcmc, energy = failing_run(error)
    mcmc.run()
    draws, target = mcmc.unconstrained, mcmc.target
    mcmc._asked = (7, 3, 1)
    energy.left = left
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            mcmc.run()
        except (ArithmeticError, KeyboardInterrupt):
            pass
    assert mcmc.unconstrained is draws and mcmc.target is target
    assert (mcmc.num_samples, mcmc.num_chains, mcmc.thin) == (10, 6, 1)
    assert mcmc.get_samples()["x"].shape == (60, 2)


def test_draws_that_need_too_much_memory_are_refused_before_the_training():
    guide = AutoFlow(banana(), options=QUICK)
    mcmc = VectorizedMCMC(IMH(guide=guide), 10**9, 10, 10**5, disable_progbar=True)
    with pytest.raises(ValueError, match=r"need 4,200,000,000,000,000 bytes .* thin="):
        mcmc.run()
    assert not guide.trained


# ---- broken on purpose ---------------------------------------------------------------------------


@mutation(scope, "set_generator_states")
def generators_not_restored(_, states):
    return None


@mutation(scope, "set_generator_states")
def numpy_and_python_only(right, states):
    right({**states, "torch": torch.get_rng_state()})


@mutation(ChainStorage, "write")
def without_the_proposals_ahead(right, self, position, buffer=None):
    alone = LookaheadState.at(independence.IMHState(*position.state[:3]))
    right(self, replace(position, state=alone), buffer)


@pytest.mark.parametrize(
    "wrong",
    [generators_not_restored, numpy_and_python_only, without_the_proposals_ahead],
    ids=lambda wrong: wrong.__name__,
)
def test_mutations_are_seen(tmp_path, wrong):
    whole = run(None)
    count = number_of_writes(lambda: run(tmp_path / "count"))
    with broken(wrong):
        found = [
            same(whole, in_two_parts(lambda k=k: run(tmp_path / str(k)), k))
            for k in range(count // 2, count, 2)
        ]
    assert not all(found)


@mutation(TracedDensity, "load_state_dict")
def calls_counted_from_zero(_, self, state):
    self.restart()


@mutation(StepGraphs, "load_state_dict")
def calls_of_parts_counted_from_zero(_, self, state):
    return None


@pytest.mark.parametrize(
    "wrong",
    [calls_counted_from_zero, calls_of_parts_counted_from_zero],
    ids=lambda wrong: wrong.__name__,
)
def test_a_mutation_of_graphs_is_seen(tmp_path, wrong):
    whole = run(None, target=with_graphs())
    with broken(wrong):
        found = in_two_parts(lambda: run(tmp_path, target=with_graphs()), 5)
    assert not same(whole, found)
