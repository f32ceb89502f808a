"""Options out of range are refused."""

import pytest

from pyro_flowsamp import DiagnosisOptions, EvidenceOptions


@pytest.mark.parametrize("name", ["max_r_hat", "min_ess", "max_pareto_k"])
def test_thresholds_must_not_be_negative(name):
    with pytest.raises(ValueError, match=f"DiagnosisOptions.{name} must not be negative, got -1"):
        DiagnosisOptions(**{name: -1})
    with pytest.raises(ValueError, match=f"DiagnosisOptions.{name} must not be negative, got nan"):
        DiagnosisOptions(**{name: float("nan")})


def test_quantiles_are_probabilities():
    with pytest.raises(ValueError, match="error_quantiles must be between 0 and 1, got \\(5.0,\\)"):
        DiagnosisOptions(error_quantiles=(5.0,))


def test_evidence():
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        EvidenceOptions(max_steps=0)
    with pytest.raises(ValueError, match="tolerance must be positive, got 0"):
        EvidenceOptions(tolerance=0.0)
