"""Samplers of other packages: the reference, and their evidence of a Gaussian where installed."""

from math import log, pi, sqrt

import numpy as np
import pytest
from baselines import evidence
from baselines.evidence import RIVALS, Reference


def gaussian(x):
    return -0.5 * ((x - 1) ** 2).sum(1)


@pytest.mark.parametrize("reference", [Reference("box", 7.0), Reference("normal", 3.0)])
def test_the_reference_is_a_density(reference):
    """The mean ratio over draws of the reference is the evidence."""
    rng = np.random.default_rng(0)
    x = reference.marginal.rvs((100_000, 2), random_state=rng)
    w = np.exp(evidence.log_likelihood(gaussian, reference)(x))
    assert abs(w.mean() - 2 * pi) < 4 * w.std() / sqrt(len(w))


def test_points_without_a_density():
    ratio = evidence.log_likelihood(lambda x: np.full(len(x), np.nan), Reference("box", 1.0))
    assert (ratio(np.zeros((2, 1))) == -1e300).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", RIVALS)
def test_the_evidence_of_a_gaussian(name):
    package, run = RIVALS[name]
    pytest.importorskip(package)
    found = run(gaussian, Reference("box", 7.0), 2, 0)
    assert abs(found.log_z - log(2 * pi)) < 5 * max(found.error, 0.02)
    assert np.abs(found.x.mean(0) - 1).max() < 0.2
