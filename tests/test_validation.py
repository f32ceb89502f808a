"""Checks of arguments, short tracebacks, and one thread at a time."""

import threading
import traceback
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro.infer.util import is_validation_enabled
from support.bad_inputs import quadratic
from torch.distributions import Distribution

import pyro_flowsamp
from pyro_flowsamp import IMH, AutoFlow, FitOptions, Target, VectorizedMCMC, validation
from pyro_flowsamp.validation import (
    check_count,
    check_flag,
    check_number,
    check_options,
    check_seed,
    default_device,
    public_call,
    shown,
)


@pytest.mark.parametrize("kind", [int, np.int32, np.uint8, np.int64])
def test_whole_numbers_of_any_kind(kind):
    assert check_count("n", kind(3)) == 3 and type(check_count("n", kind(3))) is int
    assert check_seed(kind(3)) == 3 and type(check_seed(kind(3))) is int


@pytest.mark.parametrize("value", [2, 2.5, np.float32(2.5), np.float64(2.5), np.int64(2), inf])
def test_numbers_of_any_kind(value):
    assert check_number("x", value) == float(value)


@pytest.mark.parametrize("value", [nan, True, np.bool_(True), "1", None, torch.tensor(1.0), 1j])
def test_no_numbers(value):
    with pytest.raises(ValueError, match="x must be a number"):
        check_number("x", value)


@pytest.mark.parametrize(
    "bounds, good, bad, text",
    [
        ((0,), [0, inf], [-1e-9], "x must be at least 0"),
        ((0, 1), [0, 1], [-0.1, 1.1], r"x must lie in \[0, 1\]"),
    ],
)
def test_ranges(bounds, good, bad, text):
    for value in good:
        check_number("x", value, *bounds)
    for value in bad:
        with pytest.raises(ValueError, match=text):
            check_number("x", value, *bounds)


def test_flags():
    assert check_flag("f", np.bool_(False)) is False
    for value in (0, 1, None, "True", torch.tensor(True)):
        with pytest.raises(ValueError, match="f must be True or False"):
            check_flag("f", value)


def test_long_values_are_not_shown():
    assert shown(torch.zeros(3, 2)) == "a Tensor of shape (3, 2)"
    assert shown(list(range(100))) == "a list"
    assert shown(IMH) == "the class IMH"


@dataclass(frozen=True)
class Options:
    inner: FitOptions = FitOptions()
    names: tuple[str, ...] = ()
    numbers: tuple[float, ...] = (1.0,)
    other: object = None

    def __post_init__(self):
        check_options(self)


def test_fields_of_options():
    Options(names=["a"], numbers=[1, inf], other=nan)
    for name, value in {"inner": {}, "names": "a", "numbers": (nan,)}.items():
        with pytest.raises(ValueError, match=f"Options.{name}"):
            Options(**{name: value})


# ---- tracebacks ----------------------------------------------------------------------------------


def failing(x):
    raise ValueError("a model's own error")


def test_errors_of_a_model_keep_their_traceback():
    with pytest.raises(ValueError, match="a model's own error") as caught:
        Target.from_energy(failing, 2)
    names = [frame.name for frame in caught.traceback]
    assert names[-1] == "failing" and "energy_density" in names


def test_other_errors_are_short():
    with pytest.raises(ValueError) as caught:
        AutoFlow(Target.from_energy(quadratic, 2), flow="circular").fit()
    package = Path(pyro_flowsamp.__file__).parent
    frames = traceback.extract_tb(caught.value.__traceback__)
    inside = [frame.name for frame in frames if package in Path(frame.filename).parents]
    assert inside[0] == "fit" and inside[-1] == "make_flow" and len(inside) == 3


def test_the_cause_is_kept():
    with pytest.raises(TypeError) as caught:
        Target.from_model(lambda y: None)
    assert isinstance(caught.value.__cause__, TypeError)


# ---- threads -------------------------------------------------------------------------------------


class Watched(IMH):
    """A kernel that says how many threads are in a run at the same time."""

    inside, most = 0, 0
    count = threading.Lock()
    both = threading.Event()

    def setup(self, *args, **kwargs):
        with self.count:
            Watched.inside += 1
            Watched.most = max(Watched.most, Watched.inside)
            if Watched.inside == 2:
                self.both.set()
        self.both.wait(0.3)  # for the other thread, which must not come
        super().setup(*args, **kwargs)

    def cleanup(self):
        super().cleanup()
        with self.count:
            Watched.inside -= 1


def two_runs():
    """Most threads in a run at the same time, and the flags of validation before and after."""
    Watched.inside = Watched.most = 0
    Watched.both.clear()
    guide = AutoFlow(Target.from_energy(quadratic, 2), flow="gaussian")
    guide.options = FitOptions(progress=False)
    guide.fit()
    runs = [VectorizedMCMC(Watched(guide=guide), 5, 1, 9, disable_progbar=True) for _ in range(2)]
    before = is_validation_enabled(), Distribution._validate_args
    threads = [threading.Thread(target=run.run) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(run.get_samples()["x"].shape == (45, 2) for run in runs)
    return Watched.most, before, (is_validation_enabled(), Distribution._validate_args)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_second_thread_waits(enabled):
    with pyro.validation_enabled(enabled):
        most, before, after = two_runs()
    assert most == 1 and before == after == (enabled, enabled)


def test_without_the_lock_it_does_not_wait(monkeypatch):
    class NoLock:
        def acquire(self): ...
        def release(self): ...

    monkeypatch.setattr(validation, "_LOCK", NoLock())
    with pyro.validation_enabled(True):
        assert two_runs()[0] == 2


def test_one_thread_may_enter_again():
    with public_call(), public_call():
        assert check_count("n", 1) == 1


def test_the_default_device_after_none_was_set():
    """torch 2.8 has none then."""
    try:
        torch.set_default_device("meta")
        assert default_device().type == "meta"
        torch.set_default_device(None)
        assert default_device().type == "cpu"
    finally:
        torch.set_default_device(None)
