"""Marks of single parameters."""

import pytest


def slow(values, *chosen):
    """Return parameters of pytest, where the chosen ones are marked as slow."""
    mark = pytest.mark.slow
    return [pytest.param(value, marks=mark) if value in chosen else value for value in values]
