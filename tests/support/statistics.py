"""Statistics of independent draws."""

from math import sqrt


def z_score(values, mean):
    """Return the z-score of the average of independent rows against a known mean."""
    return (values.mean(0) - mean) / (values.std(0) / sqrt(len(values)))
