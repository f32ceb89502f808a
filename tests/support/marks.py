"""Marks of single parameters."""

import pytest


def slow(values, *chosen):
    """Return parameters of pytest, where the chosen ones are marked as slow."""
    values, mark = list(values), pytest.mark.slow
    unknown = [value for value in chosen if value not in values]
    assert not unknown, f"{unknown} are no values of the parameter"
    return [pytest.param(value, marks=mark) if value in chosen else value for value in values]
