"""The command line, in this process: output, exit codes, and messages."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from support.results import SAMPLE_ATTRS, numbers, result, statistics

from pyro_flowsamp import __main__ as command_line
from pyro_flowsamp.__main__ import main
from pyro_flowsamp.selftest import ExactnessCheck


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "run.nc"
    result(numbers(), statistics(), SAMPLE_ATTRS).to_netcdf(path)
    return path


# ---- report --------------------------------------------------------------------------------------
def test_report_of_a_file(stored, capsys):
    pytest.importorskip("jinja2")
    assert main(["report", str(stored)]) == 0
    made = stored.with_suffix(".html")
    assert capsys.readouterr().out.strip() == str(made)
    text = made.read_text(encoding="utf-8")
    assert "<title>run</title>" in text and "because the flow was good enough" in text
    assert "mean" in text and "theta[1]" in text


def test_options_of_report(stored, tmp_path, capsys):
    pytest.importorskip("jinja2")
    flow = tmp_path / "flow.nc"
    result(numbers(1), {"log_weight": np.zeros((1, 200))}).to_netcdf(flow)
    made = tmp_path / "other.html"
    arguments = ["-o", str(made), "--proposals", str(flow), "--title", "Mine", "--var", "mean"]
    assert main(["report", str(stored), *arguments]) == 0
    text = made.read_text(encoding="utf-8")
    assert "<title>Mine</title>" in text and "flow's draws" in text and "theta[" not in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.nc"], "there is no file"),
        (["text.nc"], "cannot be read as a result: write it by to_netcdf()"),
        (["run.nc", "-o", "run.nc"], "would replace the result"),
        (["run.nc", "-o", "nowhere/x.html"], "does not exist"),
        (["run.nc", "--var", "mu"], "['mu'] are not among the sites"),
    ],
)
def test_refusals_of_report(stored, arguments, words, monkeypatch, capsys):
    pytest.importorskip("jinja2")
    monkeypatch.chdir(stored.parent)
    (stored.parent / "text.nc").write_text("no netCDF")
    assert main(["report", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("python -m pyro_flowsamp report: ") and words in error


# ---- selftest ------------------------------------------------------------------------------------
def checks(*passed):
    return [ExactnessCheck("IMH", "angles", 1.2 if ok else 9.9, 4, 0.5, ok) for ok in passed]


@pytest.mark.parametrize(("passed", "code"), [((True, True), 0), ((True, False), 1)])
def test_selftest_prints_a_line_for_each_check(passed, code, monkeypatch, capsys):
    seen = []

    def run(*arguments):
        seen.append(arguments)
        return checks(*passed)

    monkeypatch.setattr(command_line, "run_self_test", run)
    assert main(["selftest", "--dtype", "float64", "--seed", "3"]) == code
    assert seen == [("cpu", torch.float64, 3)]
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("ok   IMH on angles") and "largest |z| 1.2 of 4 moments" in lines[0]
    assert lines[1].startswith("FAIL" if code else "ok")
    assert lines[-1] == f"{sum(passed)} of 2 passed"
    assert ("cannot be trusted" in err) == bool(code)


def test_a_device_that_is_not_there(capsys):
    assert main(["selftest", "--device", "cuda:99"]) == 1
    error = capsys.readouterr().err
    assert "--device cuda:99 cannot be used" in error and "'info'" in error


# ---- info and usage ------------------------------------------------------------------------------
def test_info(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for words in ("torch ", "pyro_flowsamp ", "devices", "cpu", "threads", "default dtype"):
        assert words in out


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["report"], ["selftest", "--dtype", "int"]])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: python -m pyro_flowsamp" in capsys.readouterr().err


@pytest.mark.slow
def test_the_module_runs_in_a_process_of_its_own():
    command = [sys.executable, "-W", "ignore", "-m", "pyro_flowsamp", "info"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0 and "torch" in found.stdout
