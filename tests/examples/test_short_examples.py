"""The seven examples and the comparison with NUTS: what they print agrees with the truth."""

import ast
import re
import runpy
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    def printed(script, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with warnings.catch_warnings():
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    yield printed
    torch.set_default_device(None)


def numbers(text):
    return [float(found) for found in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text)]


def lines_of_code(source):
    """Counts lines that are neither blank nor comments nor in a docstring."""
    tree, docstrings = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(
            node
        ):
            text = node.body[0]
            docstrings |= set(range(text.lineno, text.end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(n not in docstrings and bool(re.match(r"\s*[^\s#]", line)) for n, line in lines)


def test_there_are_seven():
    assert len(SCRIPTS) == 7


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_short(path):
    source = path.read_text()
    assert lines_of_code(source) <= 40
    assert "argparse" not in source and "sys.argv" not in source


@pytest.mark.slow
def test_eight_schools(run, tmp_path):
    pytest.importorskip("matplotlib")
    out = run("eight_schools.py")
    means = {line.split()[0]: float(line.split()[1]) for line in out.splitlines() if "[" in line}
    means |= {name: numbers(re.search(rf"^{name} .*$", out, re.M)[0])[0] for name in ("mu", "tau")}
    # posteriordb's reference draws; standard errors are 0.02 to 0.03
    assert means["mu"] == pytest.approx(4.41, abs=0.1)
    assert means["tau"] == pytest.approx(3.60, abs=0.1)
    assert means["theta[0]"] == pytest.approx(6.15, abs=0.15)
    assert (tmp_path / "out" / "eight_schools.png").stat().st_size > 10_000


@pytest.mark.slow
def test_several_modes(run):
    _, exact, drawn, nuts = (numbers(line) for line in run("several_modes.py").splitlines())
    assert sum(exact) == pytest.approx(1, abs=0.002) and min(exact) > 0.1
    assert drawn == pytest.approx(exact, abs=0.02)
    assert max(nuts) == 1  # it stays in one mode


@pytest.mark.slow
def test_rare_event(run):
    estimate, exact = (numbers(line) for line in run("rare_event.py").splitlines())
    assert exact[0] == 1.523e-8
    assert abs(estimate[0] - exact[0]) < 4 * estimate[1] and estimate[1] < 0.05 * exact[0]


@pytest.mark.slow
def test_many_temperatures(run):
    _, *rows = run("many_temperatures.py").splitlines()
    assert len(rows) == 4
    for row in rows:
        _, energy, error, exact, accepted = numbers(row)
        assert abs(energy - exact) < 4.5 * error and error < 0.005 and accepted > 0.5


def test_own_zuko_flow(run):
    ess, accepted, first, second = map(numbers, run("own_zuko_flow.py").splitlines())
    assert ess[0] > 0.8 and accepted[0] > 0.7
    assert first == pytest.approx([0, 1], abs=0.05)
    assert second == pytest.approx([1, 3], abs=0.15)


@pytest.mark.slow
def test_many_workers(run):
    """The same digest of all draws by one process, and by two that torchrun has started."""
    printed = [run("many_workers.py").splitlines()]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *torchrun, str(EXAMPLES / "many_workers.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    printed.append(done.stdout.splitlines())
    for (share, evidence, method, digest), size in zip(printed, (1, 2)):
        for line in (share, evidence):
            estimate, exact = numbers(line)
            assert abs(estimate - exact) < 0.02
        assert f"512 chains on {size} workers" in method
        assert digest == printed[0][3]


@pytest.mark.slow
def test_neutra_and_svi(run):
    elbo, latent, direct, _ = run("neutra_and_svi.py").splitlines()
    assert -0.1 < numbers(elbo)[0] < 0.02
    mean, deviation = numbers(latent)
    assert abs(mean) < 0.5 and deviation == pytest.approx(2, abs=0.4)
    effective = [int(re.search(r"(\d+) effective", line)[1]) for line in (latent, direct)]
    assert effective[0] > 2 * effective[1]


def test_quickstart_vs_nuts(run, monkeypatch):
    """By a clock that shows the script a second for each: its effective draws decide."""
    right, shown = time.perf_counter, iter([0.0, 1.0, 0.0, 1.0])

    def clock():
        asks = sys._getframe(1).f_globals["__name__"] == "__main__"
        return next(shown) if asks else right()

    monkeypatch.setattr(time, "perf_counter", clock)
    (line,) = run("benchmarks/quickstart_vs_nuts.py", "--smoke").splitlines()
    ratio, ours, theirs = map(int, re.findall(r"(\d+)(?: times| by)", line))
    assert ratio == pytest.approx(ours / theirs, rel=0.5) and ours > theirs > 0
