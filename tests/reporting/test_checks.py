"""The verdict finds what is wrong, says it in words, and takes a diagnosis where there is one."""

from types import SimpleNamespace

import numpy as np
import pytest
from support.results import SAMPLE_ATTRS, numbers, result, statistics

from pyro_flowsamp.reporting.checks import OTHERWISE, advice_for, judge
from pyro_flowsamp.reporting.source import read_source


def judged(*args, diagnosis=None, **kwargs):
    return judge(read_source(result(*args, **kwargs)), diagnosis)


def test_good_draws():
    found = judged(numbers(), statistics(), SAMPLE_ATTRS)
    assert found.reliable and not found.problems and len(found.checks) >= 6
    assert "look reliable" in found.title


def test_draws_without_a_verdict_are_not_called_reliable():
    found = judged(numbers(), statistics())
    assert found.reliable and found.title == "No problem was seen"
    assert "Modes that no chain has visited" in found.text


def _stats(**changes):
    found = statistics()
    for name, change in changes.items():
        found[name] = change(found[name])
    return found


def _silent(accepted):
    accepted = accepted.copy()
    accepted[1] = False
    return accepted


def _heavy(log_weight):
    return 4.0 * np.random.default_rng(0).exponential(size=log_weight.shape)


BAD = {
    "R-hat": (numbers(offset=[0, 0, 1, 1]), _stats(), "the chains disagree: R-hat of"),
    "ESS": (numbers(draws=50), statistics(draws=50), "an effective sample size of only"),
    "NaN": ({**numbers(), "mean": np.full((4, 200), np.nan)}, _stats(), "are not finite"),
    "diverging": (numbers(), _stats(diverging=lambda d: ~d), "100.00% of the trajectories"),
    "never": (numbers(), _stats(accepted=_silent), "1 of 4 chains have never moved"),
    "rejected": (numbers(), _stats(accepted=lambda a: a & False), "hardly ever move"),
    "weights": (numbers(), _stats(log_weight=_heavy), "Pareto k of the states' weights"),
    "short": (numbers(draws=3), None, "too short for R-hat"),
}


@pytest.mark.parametrize("name", BAD)
def test_each_check_sees_what_is_wrong(name):
    values, stats, words = BAD[name]
    found = judged(values, stats)
    assert not found.reliable
    assert any(words in problem for problem, _ in found.problems)
    assert all(advice for _, advice in found.problems)


def test_tails_of_weights_do_not_matter_for_local_moves():
    found = judged(numbers(), _stats(log_weight=_heavy), {"kernel": "LocalGlobalHMC"})
    assert found.reliable


def test_the_own_checks_do_not_overrule_sample():
    found = judged(numbers(), _stats(log_weight=_heavy), SAMPLE_ATTRS)
    assert found.reliable and found.level == "look" and "but look at this" in found.title
    assert "Pareto k" in found.problems[0][0]
    assert judged(numbers(), statistics(), SAMPLE_ATTRS).level == "good"
    attrs = {**SAMPLE_ATTRS, "reliable": 0, "problems": "max_seconds are over"}
    assert judged(numbers(), _stats(log_weight=_heavy), attrs).level == "bad"


def test_chains_that_never_moved_by_chance_are_no_problem():
    stats = statistics(chains=500, draws=20, rate=0.2)
    assert int((stats["accepted"].sum(1) == 0).sum()) > 0
    found = judged(numbers(chains=500, draws=20), stats)
    assert found.reliable, found.problems


def test_short_chains_that_have_mixed_agree():
    """R-hat of chains with half an effective draw per draw is above 1.01 where they are short."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(500, 17))
    x = (noise[:, 1:] + noise[:, :-1]) / np.sqrt(2)
    found = judged({"x": x})
    assert found.reliable, found.problems
    assert next(c for c in found.checks if c.name == "largest R-hat").value > "1.01"


def test_problems_of_sample_are_told_with_advice():
    attrs = {**SAMPLE_ATTRS, "reliable": 0, "problems": "max_seconds are over; something new"}
    found = judged(numbers(), statistics(), attrs)
    assert [text for text, _ in found.problems] == ["max_seconds are over", "something new"]
    assert "more seconds" in found.problems[0][1] and found.problems[1][1] == OTHERWISE
    attrs = {**SAMPLE_ATTRS, "reliable": 0}
    assert not judged(numbers(), statistics(), attrs).reliable


@pytest.mark.parametrize(
    "problem",
    [
        "no kernel has been seen to mix: for HMC, only 2 effective draws of a chain",
        "particles end outside of the distribution that they started from",
        "two searches for modes disagree: their log evidences are 1.00 and 2.00",
        "the chains disagree: R-hat is 1.20",
        "chains depend on where they started: nested R-hat is 1.100",
        "the bulk has an effective sample size of 20, not 4000",
        "1.00% of the trajectories diverged",
        "3 of 200 chains have never moved: IMH hardly ever proposes points near",
        "chains hardly ever visit 2 regions",
        "chains stay at single draws for up to 80 steps",
        "max_seconds are over",
        "draws of the flow have an importance ESS of 0.50%",
        "the weights of states have a Pareto k of 1.20",
        "the flow has no density, or an unknown one, at 3.00% of the particles",
        "averages by the chains and by weighted draws of the flow are 7.0 errors apart",
        "the log evidence is 1.00 by bridge sampling, and 2.00 by the first search, 9 errors more",
        "3 of 40 chains stay at one point for more than 20% of their draws, 50 at most",
        "3.00% of the annealed particles are far from all draws",
        "draws and annealed particles have other distributions: they are 0.50 apart",
        "both searches for modes have missed regions that quasi-Newton paths have found",
        "paths to modes have found regions with 20.00% of the mass, far from all draws",
    ],
)
def test_each_problem_that_sample_tells_has_advice_of_its_own(problem):
    assert advice_for(problem) != OTHERWISE


def test_notes_are_told():
    attrs = {**SAMPLE_ATTRS, "notes": "the log evidence is uncertain; another"}
    found = judged(numbers(), statistics(), attrs)
    assert found.reliable and found.notes == ("the log evidence is uncertain", "another")
    assert judged(numbers(), statistics(), SAMPLE_ATTRS).notes == ()
    made = SimpleNamespace(checks=(), notes=("a note",))
    assert judged(diagnosis=made).notes == ("a note",)


def test_a_diagnosis_is_taken_in_place_of_the_own_checks():
    checks = [
        SimpleNamespace(
            name="occupancy", value=0.25, threshold=0.05, ok=False, message="a mode is lost",
            advice="Take more particles.",
        ),
        SimpleNamespace(name="R-hat", value=1.001, threshold=1.01, ok=True, message="", advice=""),
    ]  # fmt: skip
    made = SimpleNamespace(checks=checks, unchecked=("modes: needs a target",))
    found = judged(numbers(offset=[0, 0, 9, 9]), diagnosis=made)
    assert found.unchecked == ("modes: needs a target",)
    assert found.problems == [("a mode is lost", "Take more particles.")]
    assert [(c.name, c.value, c.ok) for c in found.checks] == [
        ("occupancy", "0.25", False),
        ("R-hat", "1.001", True),
    ]
    good = judged(diagnosis=SimpleNamespace(checks=checks[1:]))
    assert good.reliable and "look reliable" in good.title


@pytest.mark.parametrize(
    ("threshold", "at_least", "words"),
    [(0.5, True, "at least 0.5"), (0.5, False, "at most 0.5"), (float("nan"), True, "no bound")],
)
def test_bounds_of_a_diagnosis_in_words(threshold, at_least, words):
    check = SimpleNamespace(
        name="share", value=0.2, threshold=threshold, ok=False, message="a share is off",
        advice="draw more", at_least=at_least,
    )  # fmt: skip
    found = judged(diagnosis=SimpleNamespace(checks=(check,)))
    assert found.checks[0].threshold == words
    assert found.problems == [("a share is off", "Draw more.")]
