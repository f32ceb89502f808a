"""When a training ends: neither the effective sample size nor the loss makes progress."""

from math import nan

import pytest

from pyro_flowsamp import FitOptions
from pyro_flowsamp.training.plateau import VERDICTS, Plateau


def verdicts(windows, **options):
    plateau = Plateau(FitOptions(progress=False, **options))
    return [plateau.verdict(ess, loss) for ess, loss in windows]


def test_no_progress_lowers_the_rate_and_then_ends():
    still = verdicts([(0.1, 1.0)] * 7, patience=2, max_lr_decays=2)
    assert still == ["go", "go", "decay", "go", "decay", "go", "flat"]
    assert set(still) <= set(VERDICTS)


@pytest.mark.parametrize(
    "windows",
    [
        [(0.1 * (1 + i), 1.0) for i in range(6)],  # the effective sample size grows
        [(0.1, 1.0 - i) for i in range(6)],  # the loss falls
        [(nan, 1.0 - i) for i in range(6)],  # there are no weights
    ],
    ids=["ess", "loss", "loss alone"],
)
def test_progress_goes_on(windows):
    assert set(verdicts(windows, patience=1, stop_at_ess=0.9)) == {"go"}


def test_progress_begins_the_patience_anew():
    windows = [(0.1, 1.0), (0.1, 1.0), (0.1, 0.0), (0.1, 0.0), (0.1, 0.0)]
    assert verdicts(windows, patience=2, max_lr_decays=1) == ["go", "go", "go", "go", "decay"]


def test_enough():
    assert verdicts([(0.5, 1.0), (0.7, 1.0)], stop_at_ess=0.6) == ["go", "enough"]


def test_a_planned_schedule_does_not_end_early():
    assert set(verdicts([(0.1, 1.0)] * 9, patience=1, cosine_schedule=True)) == {"go"}
