"""Marks of single parameters."""

import pytest


def slow_if(condition, *values):
    """Return one set of parameters of pytest, marked as slow where a condition holds."""
    return pytest.param(*values, marks=pytest.mark.slow if condition else ())


def slow(values, *chosen):
    """Return parameters of pytest, where the chosen ones are marked as slow."""
    return [slow_if(value in chosen, value) for value in values]
