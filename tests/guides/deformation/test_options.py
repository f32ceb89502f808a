"""Settings of deformation flows that are refused."""

from math import nan

import pytest

from pyro_flowsamp import DeformationOptions


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"time_grid": 0}, ValueError, "time_grid must be at least 1"),
        ({"time_grid": [0, 0.5]}, ValueError, "time_grid must rise from 0 to 1"),
        ({"time_grid": [0.1, 1]}, ValueError, "time_grid must rise from 0 to 1"),
        ({"time_grid": [0, 0.6, 0.5, 1]}, ValueError, "time_grid must rise from 0 to 1"),
        ({"time_grid": [0, nan, 1]}, ValueError, "time_grid must rise from 0 to 1"),
        ({"time_grid": []}, ValueError, "time_grid must rise from 0 to 1"),
        ({"collocation": "smc"}, TypeError, "collocation must be a function .* got 'smc'"),
        ({"loss": "cubic"}, ValueError, "loss must be one of .*'absolute'"),
        ({"hidden_features": 0}, ValueError, "hidden_features must be positive"),
        ({"points_per_time": 0}, ValueError, "points_per_time must be positive"),
        ({"refresh_every": 0}, ValueError, "refresh_every must be positive"),
        ({"max_dropped": 1.0}, ValueError, r"max_dropped is a share in \[0, 1\), got 1.0"),
        ({"defensive_weight": nan}, ValueError, "defensive_weight must be a number, got nan"),
        ({"learned_term_joins": (0.2, 0.1)}, ValueError, "learned_term_joins must rise"),
    ],
)
def test_bad_settings(wrong, error, message):
    with pytest.raises(error, match=message):
        DeformationOptions(**wrong)
