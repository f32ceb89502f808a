"""Marks of single parameters."""

import os

import pytest

#: further runs of a script or of a grid, of whose kinds `make test` runs each
studies = pytest.mark.skipif("FLOWSAMP_STUDIES" not in os.environ, reason="make test-studies")
#: runs of the real compiler, which takes many seconds
kills = pytest.mark.skipif("FLOWSAMP_KILLS" not in os.environ, reason="make test-kill")
#: whole calls of `sample()` by several workers, of which `make test` makes a few
long_workers = pytest.mark.skipif("FLOWSAMP_WORKERS" not in os.environ, reason="make test-workers")


def slow(values, *chosen):
    """Return parameters of pytest, where the chosen ones are marked as slow."""
    values, mark = list(values), pytest.mark.slow
    unknown = [value for value in chosen if value not in values]
    assert not unknown, f"{unknown} are no values of the parameter"
    return [pytest.param(value, marks=mark) if value in chosen else value for value in values]


def in_turn(names, cases):
    """Return the pairs that `make test` runs: each case with the first name and one of the others.

    The others take turns, so that each name occurs too.
    """
    first, *others = names
    return {
        (name, case) for i, case in enumerate(cases) for name in (first, others[i % len(others)])
    }
