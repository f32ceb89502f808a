"""Objects as plain values: the same again, and no file can run code."""

import sys

import pytest
import torch

from pyro_flowsamp.checkpoint.plain import from_plain, to_plain
from pyro_flowsamp.training.history import History
from pyro_flowsamp.transitions.step_size import FixedTrajectory
from pyro_flowsamp.transitions.trajectory_length import TrajectoryAdaptation, TrajectoryOptions


def test_tensors_numbers_and_containers_are_the_same_again():
    value = {"a": [1, 2.5, None, True, "x", b"y"], "b": (torch.arange(3), torch.float32), 3: {}}
    found = from_plain(to_plain(value))
    assert found["a"] == value["a"] and found[3] == {}
    assert torch.equal(found["b"][0], value["b"][0]) and found["b"][1] is torch.float32


@pytest.mark.parametrize(
    "made",
    [
        History(loss=[1.0, float("nan")], steps=3),
        FixedTrajectory(0.5, 3, 0.8, jittered=True),
        TrajectoryAdaptation(0.5, 2, 0.65, TrajectoryOptions(period=8)),
    ],
    ids=lambda made: type(made).__name__,
)
def test_objects_of_the_package_are_the_same_again(made):
    found = from_plain(to_plain(made))
    assert type(found) is type(made) and repr(to_plain(found)) == repr(to_plain(made))


@pytest.mark.parametrize(
    "value", [print, object(), {1.5: 2}, torch.nn.Linear(1, 1), {"<class>": 1}]
)
def test_other_objects_are_refused_by_name(value):
    with pytest.raises(TypeError, match=r"a checkpoint cannot hold state\['inner'\]"):
        to_plain({"inner": value}, "state")


@pytest.mark.parametrize(
    "name", ["os:system", "subprocess:Popen", "builtins:dict", "no.such.module:Thing", "x"]
)
def test_no_other_classes_are_made(name):
    for plain in ({"<class>": name, "fields": {}}, {"<class>": name, "items": ()}):
        with pytest.raises(ValueError, match="checkpoint"):
            from_plain(plain)


def test_reading_imports_no_module():
    sys.modules.pop("this", None)
    with pytest.raises(ValueError, match="not known"):
        from_plain({"<class>": "this:s", "items": ()})
    assert "this" not in sys.modules
