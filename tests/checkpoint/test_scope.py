"""Places in a checkpoint: generators, counters, names, and what must be the same."""

import random
import threading

import numpy as np
import pytest
import torch
from support.checkpoints import banana

from pyro_flowsamp.checkpoint import CheckpointOptions
from pyro_flowsamp.checkpoint import scope as scope_module
from pyro_flowsamp.checkpoint.folder import CheckpointError
from pyro_flowsamp.checkpoint.scope import active, deactivated, entered
from pyro_flowsamp.validation import public_call
from pyro_flowsamp.versions import versions


def numbers():
    return torch.rand(2).tolist() + list(np.random.rand(2)) + [random.random(), random.gauss(0, 1)]


def test_generators_and_counters_are_as_they_were(tmp_path):
    target = banana()
    with entered(tmp_path, "run") as scope:
        scope.watch(target)
        target.log_prob(torch.zeros(3, 2))
        random.gauss(0, 1)  # leaves a second one
        np.random.randn()
        scope.write({"state": 1}, "phase")
        wanted = numbers()
    again = banana()
    with entered(tmp_path, "run") as scope:
        scope.watch(again)
        with scope.restoring("state") as found:
            numbers()
        assert (found, numbers(), again.evaluations) == (1, wanted, 3)


def test_graphs_of_a_second_target_are_stored_until_another_is_watched(tmp_path):
    def calls(target):
        return sum(count for _, count in target.tracing_state()["calls"])

    first, second = banana(), banana()
    with entered(tmp_path, "run") as scope:
        scope.watch(first)
        scope.watch_too(second)
        second.log_prob(torch.zeros(3, 2))
        scope.write({"state": 1}, "phase")
    again, other, third = banana(), banana(), banana()
    with entered(tmp_path, "run") as scope:
        scope.watch(third)
        scope.watch_too(third)
        scope.watch(again)  # forgets the ones before
        scope.watch_too(other)
        with scope.restoring("state"):
            pass
    assert calls(second) == calls(other) == 1 and calls(third) == 0
    assert other.evaluations == 0  # the second's evaluations are its own


def test_computations_inside_have_places_of_their_own(tmp_path):
    with entered(tmp_path, "run") as outer:
        with entered(None, "fit") as inner:
            assert active() is inner and not inner.is_outermost and outer.is_outermost
            inner.write({"state": "first"}, "training")
        outer.write({"state": 0}, "between")
        with entered("elsewhere", "fit") as inner:  # the checkpoint in use is taken
            inner.write({"state": "second"}, "training")
        with deactivated():
            assert not active().stores
    with entered(tmp_path, "run") as outer:
        assert outer.child("fit").read("state") == "first"
    with entered(tmp_path, "run") as outer:
        with outer.restoring("state"):
            pass
        assert outer.child("fit").read("state") == "second"  # the first is behind it
    assert not active().stores


def test_what_differs_is_named(tmp_path):
    with entered(tmp_path, "run") as scope:
        scope.describe(num_chains=4, thin=1)
        scope.write({}, "begun")
    with entered(tmp_path, "run") as scope:
        with pytest.raises(CheckpointError, match="num_chains is 8 and was 4. Make the same call"):
            scope.describe(num_chains=8, thin=1)


def test_after_ctrl_c_it_is_said_how_to_go_on(tmp_path):
    for stored in (False, True):
        with pytest.raises(KeyboardInterrupt) as found, entered(tmp_path, "run") as scope:
            if stored:
                scope.write({}, "begun")
            raise KeyboardInterrupt
        said = getattr(found.value, "__notes__", [])
        assert said == [f"the same call goes on from the checkpoint in {tmp_path}"] * stored


def test_other_versions_are_told(tmp_path, monkeypatch):
    with entered(tmp_path, "run") as scope:
        scope.write({}, "begun")
    before, now = torch.get_num_threads(), versions()
    was = now["numpy"]
    monkeypatch.setattr("torch.get_num_threads", lambda: 77)
    monkeypatch.setattr(scope_module, "versions", lambda: {**now, "numpy": "99.0"})
    with pytest.warns(UserWarning) as told, entered(tmp_path, "run"):
        pass
    changed = f"(numpy is 99.0 and was {was}; the number of threads is 77 and was {before})"
    assert len(told) == 1 and changed in str(told[0].message)


def test_steps_decide_when_to_write(tmp_path):
    options = CheckpointOptions(tmp_path, every_seconds=float("inf"), every_steps=3)
    with entered(options, "run") as scope:
        assert [scope.due() for _ in range(3)] == [False, False, True]
        scope.write({}, "begun")
        assert not scope.due(2) and scope.due(5)


@pytest.mark.parametrize("value", [3, "", object()])
def test_a_checkpoint_is_a_path(value):
    with pytest.raises(ValueError, match="checkpoint must be the path of a folder"):
        CheckpointOptions(value)


def test_scopes_belong_to_a_thread(tmp_path):
    found = []

    def other():
        with public_call():
            found.append(active().stores)

    with entered(tmp_path, "run"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert found == [False]
