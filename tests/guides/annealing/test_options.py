"""Settings of annealing flows that are refused."""

from math import nan

import pytest

from pyro_flowsamp import AnnealingOptions


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"objective": "reverse"}, TypeError, "objective must be a function .* got 'reverse'"),
        ({"transport_cost": -1.0}, ValueError, "transport_cost must not be negative, got -1.0"),
        ({"transport_cost": nan}, ValueError, "transport_cost must be a number, got nan"),
        ({"refinement_blocks": -1}, ValueError, "refinement_blocks must not be negative"),
        ({"retries": -1}, ValueError, "retries must not be negative"),
        ({"hidden_features": 0}, ValueError, "hidden_features must be positive, got 0"),
        ({"max_blocks": 0}, ValueError, "max_blocks must be positive"),
        ({"method": "leapfrog"}, ValueError, "method must be one of .* got 'leapfrog'"),
        ({"target_accept_prob": 1.0}, ValueError, r"target_accept_prob must lie in \(0, 1\)"),
        ({"max_uncovered": nan}, ValueError, "max_uncovered must be a number, got nan"),
        ({"defensive_grid": (0.5, 0.1)}, ValueError, "the first is 1"),
        ({"defensive_grid": (1.0, 0.0)}, ValueError, "defensive_grid holds shares"),
    ],
)
def test_bad_settings(wrong, error, message):
    with pytest.raises(error, match=message):
        AnnealingOptions(**wrong)
