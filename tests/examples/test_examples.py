"""Every example runs, from its command line, in seconds."""

import io
import os
import runpy
import signal
import sys
import warnings
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
import torch
from support.marks import studies

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@contextmanager
def fresh_modules():
    """Examples import each other by names that tests may have for modules of their own."""
    names = {path.stem for path in EXAMPLES.rglob("*.py")}
    hidden = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    try:
        yield
    finally:
        for name in names & sys.modules.keys():
            del sys.modules[name]
        sys.modules.update(hidden)


@contextmanager
def limited(seconds: int):
    """Cuts short what hangs."""

    def stop(*_):
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(script: str, *arguments: str) -> str:
    """What it prints; in this process, as importing torch and Pyro takes longer than most."""
    path, printed = EXAMPLES / script, io.StringIO()
    with (
        limited(300),
        fresh_modules(),
        mock.patch.object(sys, "argv", [str(path), *arguments]),
        mock.patch.object(sys, "path", [str(path.parent), *sys.path]),
        mock.patch.dict(os.environ, OMP_NUM_THREADS="1"),
        warnings.catch_warnings(),
        redirect_stdout(printed),
    ):
        try:
            runpy.run_path(str(path), run_name="__main__")
        finally:
            torch.set_default_device(None)
    return printed.getvalue()


def test_galaxies(tmp_path):
    assert "flow + IMH" in run("benchmarks/suites/galaxies.py", "--smoke", "--out", str(tmp_path))
    assert (tmp_path / "galaxies.png").stat().st_size > 10_000


def test_german_credit():
    assert "largest difference of means" in run("benchmarks/suites/german_credit.py", "--smoke")


@pytest.mark.slow
def test_sample_errors(tmp_path):
    command = ["benchmarks/suites/sample_errors.py", "--smoke", "--results", str(tmp_path)]
    assert "sd of z" in run(*command)


def test_sample_suite(tmp_path):
    """It stores what it has measured, and makes its table of that."""
    command = ["benchmarks/suites/sample_suite.py", "--smoke", "--results", str(tmp_path)]
    table = run(*command)
    assert "two_modes_2 | sample" in table and "two_modes_2 | mala" in table
    assert run(*command).splitlines()[-3:] == table.splitlines()[-3:]


def test_benchmark_stores_and_continues(tmp_path):
    first = run("benchmarks/suites/against_nuts.py", "--smoke", "--results", str(tmp_path))
    assert first.count("s to 10 000\n") == 3
    second = run("benchmarks/suites/against_nuts.py", "--smoke", "--results", str(tmp_path))
    assert "s to 10 000\n" not in second  # nothing is measured twice
    assert second.count("| eight_schools |") == 3


@pytest.mark.parametrize(
    "script, study, names",
    [
        ("annealing_flow.py", "unequal", ["unequal"]),
        ("importance_flow.py", "truncated", ["truncated"]),
        pytest.param(
            "annealing_flow.py",
            "all",
            ["gmm", "unequal", "funnel", "expgauss", "logistic", "schedule"],
            marks=studies,
        ),
        pytest.param(
            "importance_flow.py", "all", ["truncated", "posterior", "data"], marks=studies
        ),
    ],
)
def test_a_study(script, study, names, tmp_path):
    command = [f"benchmarks/papers/{script}", study, "--smoke", "--results", str(tmp_path)]
    first = run(*command)
    assert all(f"{study}-" in first for study in names)
    assert "seed 0" not in run(*command)  # nothing is run twice


@studies
def test_annealing_picture(tmp_path):
    image = tmp_path / "annealing.png"
    run("benchmarks/papers/annealing_flow.py", "picture", "--smoke", "--image", str(image))
    assert image.stat().st_size > 10_000


def test_deformation_gmm(tmp_path):
    command = ["benchmarks/papers/deformation_gmm.py", "--smoke", "--results", str(tmp_path)]
    assert "pair-trainable seed 0" in run(*command)
    assert "seed 0" not in run(*command)


@studies
def test_deformation_picture(tmp_path):
    image = tmp_path / "deformation.png"
    run("benchmarks/papers/deformation_gmm.py", "--smoke", "--image", str(image))
    assert image.stat().st_size > 10_000


def test_deformation_phi4(tmp_path):
    command = ["benchmarks/papers/deformation_phi4.py", "--smoke", "--results", str(tmp_path)]
    assert "m0.5-deformation seed 0" in run(*command)
    image = tmp_path / "phi4.png"
    assert "seed 0" not in run(*command, "--image", str(image))
    assert image.stat().st_size > 10_000


@studies  # it starts four processes, and its times say nothing while others run
def test_allocator():
    assert "ratio" in run("benchmarks/suites/allocator.py", "--smoke")


def test_workers():
    assert "the same draws" in run("benchmarks/suites/workers.py", "--smoke")


@pytest.mark.parametrize(
    "study", ["moons", *(pytest.param(name, marks=studies) for name in ("corners", "digits"))]
)
def test_latent_langevin(study, tmp_path):
    command = ["benchmarks/papers/latent_langevin.py", study, "--smoke", "--results", str(tmp_path)]
    assert "seed 0" in run(*command)
    assert "seed 0" not in run(*command)  # nothing is run twice


@studies
def test_latent_picture(tmp_path):
    image = tmp_path / "latent.png"
    run("benchmarks/papers/latent_langevin.py", "picture", "--smoke", "--image", str(image))
    assert image.stat().st_size > 10_000


def test_advnf_synthetic(tmp_path):
    command = ["benchmarks/papers/advnf_synthetic.py", "--smoke", "--results", str(tmp_path)]
    assert "Rings-4-AdvNF(RKL) seed 0" in run(*command)
    assert "seed 0" not in run(*command)


@studies
def test_advnf_picture(tmp_path):
    image = tmp_path / "advnf.png"
    run("benchmarks/papers/advnf_synthetic.py", "--smoke", "--image", str(image))
    assert image.stat().st_size > 10_000


def test_advnf_xy(tmp_path):
    sizes = ["--model", "extended", "--size", "4", "--results", str(tmp_path)]
    assert "extended-4x4 seed 0" in run("benchmarks/papers/advnf_xy.py", "--smoke", *sizes)


@studies
def test_advnf_xy_picture(tmp_path):
    image = tmp_path / "xy.png"
    sizes = ["--model", "extended", "--size", "4", "--results", str(tmp_path)]
    run("benchmarks/papers/advnf_xy.py", "--smoke", *sizes)
    run("benchmarks/papers/advnf_xy.py", "--smoke", *sizes, "--image", str(image))
    assert image.stat().st_size > 10_000


@studies
def test_advnf_xy_scaling(tmp_path):
    command = ["benchmarks/papers/advnf_xy.py", "--smoke", "--scaling", "--results", str(tmp_path)]
    assert "scaling-4x4-from-2x2 seed 0" in run(*command)


@studies
def test_advnf_xy_study(tmp_path):
    command = ["benchmarks/papers/advnf_xy.py", "--smoke", "--study", "--results", str(tmp_path)]
    table = run(*command)
    assert "lambda-auto seed 0" in table and "| AdvNF | 10 |" in table


def test_the_pretrained_flow():
    """IMH by the flow that is shipped, between the temperatures that it was trained at."""
    lines = run("benchmarks/papers/advnf_xy.py", "--pretrained").splitlines()[2:]
    found = [[float(cell) for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[0] for row in found] == [0.5, 1.0, 2.05]
    for _, acceptance, _, z_energy, _, z_magnetization in found:
        assert acceptance > 0.4 and abs(z_energy) < 5 and abs(z_magnetization) < 5


@studies
def test_a_thinned_run_of_advnf_xy():
    thinned = run("benchmarks/papers/advnf_xy.py", "--smoke", "--thinned", "--model", "extended")
    assert "| every 4 |" in thinned
