"""Progress bars: their names, units, and the work that is left."""

import re
from types import SimpleNamespace

import pytest
from support.checkpoints import banana

from pyro_flowsamp import (
    IMH,
    AutoFlow,
    FitOptions,
    ModeSearchOptions,
    SearchOptions,
    VectorizedMCMC,
    progress,
    sample,
)


@pytest.fixture(autouse=True)
def shown_at_once(monkeypatch):
    right = progress.tqdm

    def bar(**options):
        return right(**options, mininterval=0.0, miniters=1, ncols=200, ascii=True)

    monkeypatch.setattr(progress, "tqdm", bar)


def lines(text):
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def test_work_that_is_left_is_counted_in_evaluations(capsys):
    target = SimpleNamespace(evaluations=100)
    for _ in progress.steps("Warmup", "step", 2, 6, target, hidden=False):
        target.evaluations += 10
    told = lines(capsys.readouterr().err)
    assert told[-1].startswith("Warmup: 100%") and "6/6 steps" in told[-1]
    assert any("4/6 steps" in line and "30 evaluations left" in line for line in told)
    assert not any("/step" in line or "it/s" in line for line in told)


def test_a_stage_shows_effective_draws(capsys):
    target = SimpleNamespace(evaluations=0)
    with progress.stage("Draws by HMC", target, False, wanted=100.0, each=5.0):
        for _ in range(4):
            target.evaluations += 50
            progress.tick(draws=1)
        progress.corrected(40.0, draws=4)
        target.evaluations += 50
        progress.tick(draws=1)
    told = lines(capsys.readouterr().err)
    assert any("20.0/100 effective draws" in line for line in told)
    assert "50.0/100 effective draws" in told[-1]  # ten for each draw, not five
    assert "3.8e+02 evaluations left" in told[-1]  # 250 for 40 of 100


def test_a_stage_that_is_done_has_no_work_left(capsys):
    """The last estimate before the draws are counted may be too small."""
    target = SimpleNamespace(evaluations=0)
    with progress.stage("Draws by IMH", target, False, wanted=100.0, each=10.0):
        for _ in range(5):
            target.evaluations += 40
            progress.tick(1)
        progress.corrected(120.0, draws=5)
    last = lines(capsys.readouterr().err)[-1]
    assert "100%" in last and "left" not in last


def test_no_bar_is_shown_where_none_is_wanted(capsys):
    target = SimpleNamespace(evaluations=0)
    with progress.stage("Draws", target, True, wanted=10.0, each=1.0):
        progress.tick(draws=3)
        progress.corrected(2.0, draws=3)
        assert list(progress.steps("Sample", "draw", 0, 2, target, hidden=True)) == [0, 1]
    progress.tick()  # outside of a stage
    assert capsys.readouterr().err == ""


def test_a_bar_inside_a_stage_has_its_name(capsys):
    target = SimpleNamespace(evaluations=0)
    with progress.stage("Training of coupling", target, hidden=True):
        with progress.bar("Train", 3, "step", hidden=False) as bar:
            bar.update(3)
    assert lines(capsys.readouterr().err)[-1].startswith("Training of coupling: 100%")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_all_stages_of_sample(capsys):
    modes = ModeSearchOptions(paths=16, particles=128, max_evaluations=40_000)
    few = SearchOptions(modes=modes, pilot_warmup=10, pilot_steps=20, evidence_draws=200)
    options = {"candidates": ["HMC"], "search": few, "compile": False}
    sample(banana(), num_samples=12, num_chains=16, seed=0, **options)
    told = lines(capsys.readouterr().err)
    stages = list(dict.fromkeys(line.partition(":")[0] for line in told))
    assert stages == ["Search for modes", "Pilot run of HMC", "Burn-in of HMC", "Draws by HMC"]
    assert any("inverse temperature" in line for line in told)
    assert any("effective draws" in line and "evaluations left" in line for line in told)


def test_chains_and_trainings(capsys):
    guide = AutoFlow(banana(), flow="gaussian", options=FitOptions(max_steps=50))
    run = VectorizedMCMC(IMH(guide=guide), 4, 3, 8)
    run.min_acceptance = 0.0
    run.run()
    told = lines(capsys.readouterr().err)
    train = next(line for line in told if line.startswith("Train") and "loss" in line)
    assert "at most 6.4e+03 evaluations left" in train  # 25 steps of 256
    assert any(line.startswith("Warmup: 100%") for line in told)
    assert any("4/4 draws" in line for line in told)
