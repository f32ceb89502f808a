"""Kills, interrupts and errors at random moments, in processes of their own.

``make test-kill`` makes the long series, and ``make test`` a short one. Each process is a fork of
this one, so that nothing is imported anew.
"""

import json
import os
import random
import re
import signal
import time
import traceback
import warnings
from collections import Counter

import pyro
import pytest
import torch

from pyro_flowsamp import (
    IMH,
    AutoFlow,
    CheckpointOptions,
    FitOptions,
    LatentHMC,
    LocalGlobalHMC,
    ModeSearchOptions,
    SearchOptions,
    Target,
    VectorizedMCMC,
    sample,
)
from pyro_flowsamp.checkpoint import folder, scope

KILLS = int(os.environ.get("FLOWSAMP_KILLS", 2))  #: of each program
INTERRUPTS = int(os.environ.get("FLOWSAMP_INTERRUPTS", 2))
ERRORS = int(os.environ.get("FLOWSAMP_ERRORS", 2))
LONG = "FLOWSAMP_KILLS" in os.environ
TRAINING = 20 if LONG else 8  #: steps
STEPS = int(os.environ.get("FLOWSAMP_STEPS", 6000))  #: of the run whose work is compared


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch):
    """A kill leaves the system's memory of files as it is; only a loss of power does not."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


class Energy:
    """A banana, whose call of a given number raises an error."""

    def __init__(self, fails_at=None):
        self.calls, self.fails_at = 0, fails_at

    def __call__(self, x):
        self.calls += 1
        if self.calls == self.fails_at:
            raise ArithmeticError("a late error")
        return 0.5 * ((x[:, 0] - 1) ** 2 + (x[:, 1] - x[:, 0] ** 2) ** 2)


def chains(path, energy=None, kernel=IMH):
    """Training, warm-up and draws, with a checkpoint after every second step."""
    pyro.set_rng_seed(0)
    options = FitOptions(max_steps=TRAINING, progress=False)
    guide = AutoFlow(Target.from_energy(energy or Energy(), 2), options=options)
    checkpoint = path and CheckpointOptions(path, every_seconds=float("inf"), every_steps=2)
    run = VectorizedMCMC(
        kernel(guide=guide), 20, 10, 8, disable_progbar=True, checkpoint=checkpoint
    )
    run.min_acceptance = 0.0
    try:
        run.run()
    except ArithmeticError:
        run.interrupted = True
    return run.unconstrained, run.interrupted


#: a search for modes and pilot runs of little work
QUICK = SearchOptions(
    modes=ModeSearchOptions(paths=16, particles=128, max_evaluations=40_000, survey_points=1024),
    pilot_warmup=10,
    pilot_steps=20,
    evidence_draws=200,
    candidates=() if LONG else ("HMC",),
)


def search(path):
    """All of ``sample()``: the search for modes, pilot runs, burn-in, draws and checks."""
    target = Target.from_energy(Energy(), 2)
    target.compile_mode = False
    checkpoint = path and CheckpointOptions(path, every_seconds=0.02)
    counts = {"num_samples": 20, "num_chains": 64, "seed": 0}
    data = sample(target, **counts, search=QUICK, progress=False, checkpoint=checkpoint)
    interrupted = "Ctrl-C" in data.attrs["problems"] or data["posterior"].sizes["draw"] < 20
    return torch.as_tensor(data["posterior"]["x"].values), interrupted


@pytest.fixture(scope="module")
def imported():
    """All that ``sample()`` imports when it is used first; an import cannot be interrupted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search(None)


def local_global(path):
    return chains(path, kernel=LocalGlobalHMC)


def hamiltonian(path):
    return chains(path, kernel=LatentHMC)


def child(program, path, output):
    """A process that writes to a file what the program returns."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        warnings.simplefilter("ignore")
        torch.rand(os.getpid() % 100)  # no process begins with the numbers of another
        try:
            result = program(path)
        except KeyboardInterrupt:
            result = None
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        torch.save(result, f"{output}.part")
        os.replace(f"{output}.part", output)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def result_of(program, path, output):
    output.unlink(missing_ok=True)
    clock = time.perf_counter()
    _, status = os.waitpid(child(program, path, output), 0)
    assert status == 0
    return torch.load(output), time.perf_counter() - clock


def moment(path):
    """The phase that a killed process has stored last, and whether it was writing a file."""
    manifest = path / "MANIFEST.json"
    phase = "nothing"
    if manifest.exists():
        phase = json.loads(manifest.read_text())["facts"]["phase"]
    kind = re.sub(r"-\d+|[ =\d.e+-]*\d$", "", phase)
    return f"{kind}, writing" if any(path.glob("*.tmp")) else kind


PROGRAMS = [chains, pytest.param(search, marks=pytest.mark.slow)]
if LONG:
    PROGRAMS += [hamiltonian, local_global]


@pytest.mark.parametrize("program", PROGRAMS)
def test_kills_change_nothing(tmp_path, program, request):
    if program is search:
        request.getfixturevalue("imported")
    short = program is search and not LONG
    folders, kills = (1, 1) if short else (KILLS, 2)
    output = tmp_path / "result"
    without = None if short else result_of(program, None, output)[0][0]
    (whole, _), seconds = result_of(program, tmp_path / "whole", output)
    assert short or torch.equal(without, whole)
    chance, moments = random.Random(0), Counter()
    for number in range(folders):
        path = tmp_path / str(number)
        for _ in range(kills):
            pid = child(program, path, output)
            time.sleep(chance.uniform(0, seconds))
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            moments[moment(path)] += status == signal.SIGKILL
        (found, _), _ = result_of(program, path, output)
        assert torch.equal(found, whole), number
    killed = moments.total()
    print(f"{program.__name__}: {killed} processes were killed, after {dict(+moments)}")
    assert killed >= folders // 2


FILES = [(chains, file) for file in (range(5, 85, 8) if LONG else [7])]
if LONG:  # of sample(), while it searches for modes and after that
    FILES += [(search, file) for file in range(3, 43, 4)]


@pytest.mark.parametrize("program, file", FILES)
def test_a_kill_in_the_middle_of_a_file_changes_nothing(tmp_path, program, file):
    """Half of it is written: of a part, or of one of the manifests."""
    right, written = folder._write, []

    def write(path, data):
        written.append(path)
        if len(written) == file:
            path.with_name(path.name + ".tmp").write_bytes(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        right(path, data)

    output = tmp_path / "result"
    (whole, _), _ = result_of(program, None, output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "_write", write)
        pid = child(program, tmp_path / "run", output.with_name("none"))
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    (cut,) = (tmp_path / "run").glob("*.tmp")
    print(f"killed in {cut.name}, after {moment(tmp_path / 'run')}")
    (found, _), _ = result_of(program, tmp_path / "run", output)
    assert torch.equal(found, whole)


def test_interrupts_return_what_there_is(tmp_path):
    output = tmp_path / "result"
    (whole, _), seconds = result_of(chains, tmp_path / "whole", output)
    chance, ends = random.Random(1), Counter()
    for number in range(INTERRUPTS):
        path = tmp_path / str(number)
        output.unlink(missing_ok=True)
        pid = child(chains, path, output)
        time.sleep(chance.uniform(0, seconds))
        os.kill(pid, signal.SIGINT)
        os.waitpid(pid, 0)
        returned = torch.load(output) if output.exists() else None
        (found, _), _ = result_of(chains, path, output)
        if returned is None:
            ends["nothing, and the same call makes all draws"] += 1
            assert torch.equal(found, whole), number
        else:
            draws, interrupted = returned
            ends["the first draws" if interrupted else "all draws"] += 1
            assert torch.equal(draws, found[:, : draws.shape[1]]), number
            assert interrupted or draws.shape[1] == 20
    print(dict(ends))


@pytest.mark.slow
def test_interrupts_of_sample_return_what_there_is(tmp_path, imported):
    """And the same call returns whole draws: the same ones, where it was the search that ended."""
    output = tmp_path / "result"
    (whole, _), seconds = result_of(search, None, output)
    chance, ends = random.Random(3), Counter()
    for number in range(INTERRUPTS if LONG else 1):
        path = tmp_path / str(number)
        output.unlink(missing_ok=True)
        pid = child(search, path, output)
        time.sleep(chance.uniform(0, seconds))
        os.kill(pid, signal.SIGINT)
        _, status = os.waitpid(pid, 0)
        assert status == 0
        returned = torch.load(output)
        (found, _), _ = result_of(search, path, output)
        assert found.shape == whole.shape, number
        if returned is None:
            ends["no point yet"] += 1
            continue
        draws, interrupted = returned
        assert draws.numel() and draws.isfinite().all()
        same = draws.shape == found.shape and torch.equal(draws, found)
        ends[f"{'marked' if interrupted else 'whole'}, {'the same' if same else 'others'}"] += 1
        assert interrupted or same, number
    print(dict(ends))


def test_errors_of_the_target_keep_the_draws(tmp_path):
    whole, _ = chains(None)
    energy = Energy()
    chains(None, energy)
    chance = random.Random(2)
    for number in range(ERRORS):
        path = tmp_path / str(number)
        fails_at = chance.randint(energy.calls // 4, energy.calls)
        draws, ended = chains(path, Energy(fails_at))
        if ended and draws.numel():
            assert torch.equal(draws, whole[:, : draws.shape[1]])
        found, _ = chains(path)
        assert torch.equal(found, whole), fails_at


@pytest.mark.skipif(not LONG, reason="it takes half a minute of a processor: make test-kill")
def test_a_checkpoint_every_thirty_seconds_takes_little_work(tmp_path, monkeypatch):
    """CPU seconds: of a run beside one without, and of the writes themselves."""
    spent = []
    right = scope.Scope.write

    def write(self, *arguments, **options):
        clock = time.process_time()
        right(self, *arguments, **options)
        spent.append(time.process_time() - clock)

    monkeypatch.setattr(scope.Scope, "write", write)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(2000, 20, generator=generator)

    def once(checkpoint):
        pyro.set_rng_seed(0)
        target = Target.from_energy(lambda x: (x @ data.mT).square().mean(-1), 20)
        target.compile_mode = False
        guide = AutoFlow(target, flow="gaussian", options=FitOptions(max_steps=50, progress=False))
        guide.fit()
        kernel = LatentHMC(guide=guide, num_steps=4)
        mcmc = VectorizedMCMC(kernel, STEPS, 20, 100, disable_progbar=True, checkpoint=checkpoint)
        clock = time.process_time()
        mcmc.run()
        return time.process_time() - clock, mcmc.unconstrained

    without, draws = once(None)
    assert not [seconds for seconds in spent if seconds > 1e-3]  # there is nothing to write
    spent.clear()
    seconds, stored = once(CheckpointOptions(tmp_path, every_seconds=30.0))
    print(
        f"{without:.2f} CPU s without, {seconds:.2f} with {len(spent)} writes of {sum(spent):.3f}"
    )
    assert torch.equal(draws, stored)
    assert spent and sum(spent) < 0.02 * seconds
