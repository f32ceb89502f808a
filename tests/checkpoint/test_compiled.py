"""Runs with compiled graphs, killed and made again in new processes without any of their files.

The compiler takes minutes of a processor, so that only ``make test-kill`` calls it. ``make test``
has the counts by which graphs are compiled, with each graph in the place of its compiled one.
"""

import json
import os
import signal
import subprocess
import sys
import warnings

import pytest
import torch
from support.checkpoints import Killed, in_two_parts, killed_after
from support.mutations import broken, mutation

from pyro_flowsamp import (
    AutoFlow,
    CheckpointOptions,
    FitOptions,
    LatentHMC,
    Target,
    TracingOptions,
    VectorizedMCMC,
)
from pyro_flowsamp.checkpoint import scope
from pyro_flowsamp.kernels import step_graphs
from pyro_flowsamp.kernels.step_graphs import StepGraphs
from pyro_flowsamp.target import compiling

LONG = "FLOWSAMP_KILLS" in os.environ
#: writes of a checkpoint: the first few are in the warm-up, where nothing is compiled yet
EARLY, LATE = 3, 12


def energy(x):
    banana = (x[:, 0] - 1) ** 2 + (x[:, 1] - x[:, 0] ** 2) ** 2
    return 0.5 * banana + torch.log1p(x.square().sum(-1)).sin()


def run(path, mode):
    """Warm-up and draws of an untrained flow; "auto" compiles in the middle of them."""
    torch.manual_seed(0)
    target = Target.from_energy(energy, 2)
    target.compile_mode = mode
    target.tracing = TracingOptions(calls=8, compile_operations=75)
    guide = AutoFlow(target, flow="gaussian", options=FitOptions(progress=False))
    guide.target_for()
    guide.trained = True
    checkpoint = path and CheckpointOptions(path, every_seconds=float("inf"), every_steps=2)
    kernel = LatentHMC(guide=guide, num_steps=4)
    chains = VectorizedMCMC(kernel, 20, 10, 64, disable_progbar=True, checkpoint=checkpoint)
    chains.min_acceptance = 0.0
    chains.run()
    return chains


def main(path, output, mode, kill):
    """One process; it is killed after so many writes."""
    right, writes = scope.Scope.write, []

    def write(self, values, phase, drop=None):
        right(self, values, phase, drop)
        writes.append(phase)
        if len(writes) == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    scope.Scope.write = write
    torch.rand(os.getpid() % 100)  # no process begins with the numbers of another
    found = run(path, mode)
    torch.save({"x": found.unconstrained, **found.statistics}, output)


def process(folder, name, mode, kill=0):
    """The result of a process with compilations of its own; None where it was killed."""
    output = folder / f"{name}.pt"
    output.unlink(missing_ok=True)
    cache = folder / f"compiled-{len(list(folder.glob('compiled-*')))}"
    cache.mkdir()
    places = [os.path.dirname(os.path.dirname(__file__)), *sys.path]
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "PYRO_FLOWSAMP_COMPILE": "1",
        "PYTHONPATH": os.pathsep.join(places),
    }
    text = (
        f"from checkpoint.test_compiled import main; "
        f"main({str(folder / name)!r}, {str(output)!r}, {mode!r}, {kill})"
    )
    code = subprocess.run([sys.executable, "-W", "ignore", "-c", text], env=environment).returncode
    assert code == (-signal.SIGKILL if kill else 0)
    return None if kill else torch.load(output)


def graphs(folder, name):
    return json.loads((folder / name / "MANIFEST.json").read_text())["facts"]["graphs"]


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.skipif(not LONG, reason="it takes minutes of a processor: make test-kill")
@pytest.mark.parametrize(("mode", "kills"), [("auto", (EARLY, LATE)), (True, (LATE,))])
def test_a_new_process_compiles_the_same_graphs_at_the_same_counts(tmp_path, mode, kills):
    whole = process(tmp_path, "whole", mode)
    described = graphs(tmp_path, "whole")
    print(described)
    assert any("compiled at call" in text for text in described["steps"])
    for kill in kills:
        assert process(tmp_path, f"killed-{kill}", mode, kill) is None
        compiled = any("compiled" in text for text in graphs(tmp_path, f"killed-{kill}")["steps"])
        assert compiled == (kill == LATE)
        found = process(tmp_path, f"killed-{kill}", mode)
        assert same(whole, found), kill
        assert graphs(tmp_path, f"killed-{kill}") == described


@pytest.fixture
def compiler(monkeypatch):
    """The compiler in ``make test-kill``; else the graph that would be compiled."""
    monkeypatch.setenv("PYRO_FLOWSAMP_COMPILE", "1")
    if not LONG:
        for module in (compiling, step_graphs):
            monkeypatch.setattr(module, "compiled_module", lambda module, *_: module.forward)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_that_goes_on_compiles_at_the_same_counts(tmp_path, compiler):
    whole = run(tmp_path / "whole", "auto")
    found = in_two_parts(lambda: run(tmp_path / "killed", "auto"), LATE)
    described = graphs(tmp_path, "whole")
    assert any("compiled at call" in text for text in described["steps"])
    assert graphs(tmp_path, "killed") == described
    assert torch.equal(found.unconstrained, whole.unconstrained)


@mutation(StepGraphs, "load_state_dict")
def counts_forgotten(load, self, state):
    pass


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_counts_that_are_not_restored_would_show(tmp_path, compiler):
    """A mutation: the graph takes over at another step, which the manifest says."""
    run(tmp_path / "whole", "auto")
    with broken(counts_forgotten):
        in_two_parts(lambda: run(tmp_path / "killed", "auto"), LATE)
    assert graphs(tmp_path, "whole") != graphs(tmp_path, "killed")


def test_a_graph_that_cannot_be_compiled_any_more_is_told(tmp_path, compiler, monkeypatch):
    def without_compiler():
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            run(tmp_path, "auto")
        return [str(warning.message) for warning in told]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with killed_after(LATE), pytest.raises(Killed):
            run(tmp_path, "auto")
    monkeypatch.setenv("PYRO_FLOWSAMP_COMPILE", "0")
    assert not compiling.may_compile()
    assert any("had compiled the steps, which cannot be done here" in t for t in without_compiler())
