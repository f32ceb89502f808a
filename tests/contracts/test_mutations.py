"""The harness that breaks code names the mutations that a check does not see, and undoes them."""

import pytest
from support.mutations import broken, must_fail, mutation, stale

from pyro_flowsamp.smc import driver, particles


class Counter:
    """A class with a method and a property that can be broken."""

    def __init__(self, count=2):
        self.count = count

    def double(self):
        return 2 * self.count

    @property
    def half(self):
        return self.count / 2


@mutation(Counter, "double")
def tripled(double, self):
    return 1.5 * double(self)


@mutation(Counter, "half")
def quartered(half, self):
    return half(self) / 2


def test_mutations_are_applied_and_undone():
    counter = Counter()
    with broken(tripled, quartered):
        assert (counter.double(), counter.half) == (6, 0.5)
    assert (counter.double(), counter.half) == (4, 1)


def test_names_that_other_modules_imported_are_replaced_too():
    always_two = mutation(particles, "resample")(lambda *args: 2)
    right = driver.resample
    assert right is particles.resample
    with broken(always_two):
        assert driver.resample(None) == particles.resample(None) == 2
    assert driver.resample is particles.resample is right


def test_mutations_that_are_not_seen_are_named():
    must_fail(tripled, score=lambda: Counter().double(), above=5)
    with pytest.raises(AssertionError, match="does not see tripled of double: 6 is not above 7"):
        must_fail(tripled, score=lambda: Counter().double(), above=7)
    with pytest.raises(AssertionError, match="not above"):
        must_fail(tripled, score=lambda: float("nan"), above=0)
    assert Counter().double() == 4


def test_a_stale_state_keeps_its_fields():
    class State:
        x, y = 1, 2

        def _replace(self, **fields):
            return fields

    class Module:
        @staticmethod
        def step(state, size):
            return state, size

    with broken(stale(Module, "step", "x")):
        assert Module.step(State(), 3) == ({"x": 1}, 3)
