"""Break the package on purpose, to see that a check would notice.

A mutation replaces one function of the package by a wrong one:

    @mutation(particles, "resample")
    def weights_kept(resample, cloud, below):
        return resample(cloud, below)._replace(log_w=cloud.log_w)

    must_fail(weights_kept, score=lambda: worst_z_score(run()), above=9)

The wrong function gets the right one first, and then the arguments of the call. It replaces the
right one in every module of the package that has imported it by name.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest


@dataclass(frozen=True)
class Mutation:
    """A wrong function in place of ``owner.name``, where the owner is a module or a class."""

    owner: Any
    name: str
    wrong: Callable

    @property
    def __name__(self) -> str:
        """The name of the wrong function, which pytest shows as the parameter's id."""
        return self.wrong.__name__


def mutation(owner: Any, name: str) -> Callable[[Callable], Mutation]:
    """Make a mutation of ``owner.name`` from the function that it decorates."""
    return lambda wrong: Mutation(owner, name, wrong)


def stale(owner: Any, name: str, *fields: str) -> Mutation:
    """Make a mutation that forgets to refresh some fields of a state.

    The function takes a state first, and returns the new state and something else.
    """

    def not_refreshed(step, state, *args, **options):
        new, info = step(state, *args, **options)
        return new._replace(**{field: getattr(state, field) for field in fields}), info

    return Mutation(owner, name, not_refreshed)


@contextmanager
def broken(*mutations: Mutation) -> Iterator[None]:
    """Apply mutations, and undo them in the end."""
    with pytest.MonkeyPatch.context() as patch:
        for each in mutations:
            right, wrong = getattr(each.owner, each.name), _replacement(each)
            patch.setattr(each.owner, each.name, wrong)
            for module in _importers(each.owner):
                for name in [name for name, value in vars(module).items() if value is right]:
                    patch.setattr(module, name, wrong)
        yield


def must_fail(*mutations: Mutation, score: Callable[[], float], above: float) -> None:
    """Fail unless a score is above a bound while the mutations are applied."""
    with broken(*mutations):
        found = float(score())
    names = ", ".join(f"{each.__name__} of {each.name}" for each in mutations)
    assert found > above, f"the check does not see {names}: {found:.3g} is not above {above:.3g}"


def _importers(owner: Any) -> list[ModuleType]:
    """Return the modules of the package, which may have imported names of a module."""
    if not isinstance(owner, ModuleType):
        return []
    return [module for name, module in sys.modules.items() if name.startswith("pyro_flowsamp.")]


def _replacement(each: Mutation) -> Any:
    right = getattr(each.owner, each.name)
    if isinstance(right, property):
        return property(lambda self: each.wrong(right.fget, self))
    return lambda *args, **kwargs: each.wrong(right, *args, **kwargs)
