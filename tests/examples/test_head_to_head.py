"""Seconds to effective draws: looks, goals, tables, and one short run."""

import json
import sys

import numpy as np
import pytest
from baselines import looks
from baselines.looks import Moment, Stopwatch
from stored_runs import append
from suites import head_to_head
from suites.head_to_head import Runs, Settings


class Clock:
    """A clock that goes on by one at each look at it."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        self.time += 1.0
        return self.time


def test_pauses_do_not_count():
    watch = Stopwatch(Clock())
    assert watch.seconds == 1
    with watch.paused():
        watch._clock.time += 100
    assert watch.seconds == 3  # the end of the pause, and this look


def looks_at_independent_draws(apart=0.0, chains=4, goal=1000, limit=np.inf):
    rng, parts = np.random.default_rng(0), []

    def extend(more):
        x = rng.standard_normal((chains, more, 2))
        x[0] += apart
        parts.append(x)

    watch = Stopwatch(Clock())
    return looks.look_until(extend, lambda: np.concatenate(parts, 1), watch, 50, goal, limit)


def test_draws_are_doubled_until_they_are_enough():
    found = looks_at_independent_draws()
    assert [look.draws for look in found] == [50, 100, 200, 400][: len(found)]
    assert found[-1].ess >= 1000 > found[0].ess
    assert looks.seconds_to(1000, 0.5, found) < found[-1].seconds
    (single,) = looks_at_independent_draws(chains=1, limit=1)
    assert np.isfinite(single.r_hat)


def test_chains_that_disagree_have_not_reached_a_goal():
    found = looks_at_independent_draws(apart=1.0, goal=10, limit=20)
    assert found[-1].seconds >= 20 and looks.seconds_to(10, 0.0, found) is None


def test_seconds_to_a_goal():
    found = [Moment(10, 2.0, 50.0, 1.0), Moment(20, 3.0, 200.0, 1.0)]
    assert looks.seconds_to(100, 1.0, found) == 2.0  # half of two seconds, and one before
    assert looks.seconds_to(300, 1.0, found) is None


def result(seconds, means=(0.0, 0.0), **also):
    found = {"seconds_to": {"1000": seconds, "10000": None}, "limit": 300.0, "r_hat": 1.0}
    return {**found, "means": list(means), "errors": [0.1, 0.1], **also}


def test_the_table(tmp_path):
    store = tmp_path / head_to_head.STUDY
    for name in ("radon", "garch"):
        append(store, f"{name}-sample", 0, result(10.0, reliable=0, truth_z=1.0, truth_name="mu"))
        append(store, f"{name}-numpyro", 0, result(5.0))
        append(store, f"{name}-numpyro-2", 0, result(1.0))  # with two cores, it is no rival
        wrong = result(40.0, (0.0, 3.0), truth_z=9.0, truth_name="mean of tau")
        append(store, f"{name}-pyro", 0, wrong)
    append(store, "garch-pyro-jit", 0, {"failure": "first\nKeyError: 3", "limit": 300.0})
    samplers = ["sample", "numpyro", "numpyro-2", "pyro", "pyro-jit", "nutpie"]
    text = head_to_head.table(store, ["radon", "garch"], samplers, Settings(), {"nutpie"})
    assert (
        "| radon | 10? / > 300 | 5 / > 300 | 1 / > 300 | 40 / > 300 | – | not installed |" in text
    )
    assert "ESS 1000: seconds of the best other sampler with one core over those of" in text
    assert "sample(): 0.5 over 2 posteriors, the least 0.5." in text
    assert "- radon, pyro: mean of tau is 9.0 standard errors from the truth." in text
    assert "|z| = 21.2; pyro is wrong." in text
    assert "- garch, pyro-jit, failed: KeyError: 3" in text


def test_the_median_of_seeds():
    runs = Runs("radon", "sample", [result(s) for s in (1.0, None, 3.0)])
    assert runs.seconds(1000) == 3.0
    runs = Runs("radon", "sample", [result(s) for s in (1.0, None, None)])
    assert runs.seconds(1000) is None


@pytest.mark.slow
def test_a_short_run(tmp_path, monkeypatch, capsys):
    arguments = ["--smoke", "--samplers", "imh", "--results", str(tmp_path)]
    monkeypatch.setattr(head_to_head, "SMOKE_SAMPLERS", ("imh",))
    monkeypatch.setattr(sys, "argv", ["head_to_head.py", *arguments])
    head_to_head.main()
    (line,) = (tmp_path / head_to_head.STUDY).read_text().splitlines()
    stored = json.loads(line)
    assert stored["ess"] > 100 and stored["truth_z"] < 6 and stored["fixed"] > 0
    assert "| eight_schools | " in capsys.readouterr().out
    head_to_head.main()  # stored runs are not made again
    assert len((tmp_path / head_to_head.STUDY).read_text().splitlines()) == 1
