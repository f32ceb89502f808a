"""Mixtures: known entropies, masses and modes."""

import pytest
import torch
from support.statistics import z_score

from pyro_flowsamp.problems import exp_gauss, exp_gauss_unequal, mog4, mog8, rings4

NUM = 20_000


@pytest.fixture(autouse=True)
def float64(clean_slate):
    torch.set_default_dtype(torch.float64)


# ---- values known elsewhere ---------------------------------------------------------------------


def test_entropies():
    assert mog4().entropy == pytest.approx(4.22417, abs=1e-5)
    assert mog8().entropy == pytest.approx(4.917, abs=1e-3)
    assert rings4().entropy == pytest.approx(3.13324, abs=1e-5)


def test_exp_gauss():
    known = exp_gauss()
    assert known.log_z == pytest.approx(552.8783985, abs=1e-6)
    assert known.modes.shape == (1024, 50)
    x = known.sample(NUM)
    assert (x[:, :10].abs() > 5).all()
    assert len(known.assign(x).unique()) > 1018  # all but 3e-6 in the mean


def test_unequal_masses():
    known = exp_gauss_unequal()
    assert (known.weights.max() / known.weights.min()).item() == pytest.approx(653.1, abs=0.1)
    x = known.sample(NUM)[:, :10]
    w = torch.linspace(0.2, 0.5, 10)
    assert (z_score((x < 0).double(), w).abs() < 4).all()
    variance = torch.tensor([0.5, 1.0]).repeat(5)
    residual = x.abs() - torch.linspace(5, 10, 10)
    assert (z_score(residual.square(), variance).abs() < 4).all()


# ---- modes --------------------------------------------------------------------------------------


def test_sign_patterns_are_the_nearest_modes():
    for known in exp_gauss(6, 4), exp_gauss_unequal(6, 4):
        x = known.sample(200)
        torch.testing.assert_close(known.assign(x), torch.cdist(x, known.modes).argmin(-1))


def test_rings_are_assigned_by_radius():
    x = torch.tensor([[0.0, 0.1], [0.0, -2.2], [2.0, 2.0], [5.0, 5.0]])
    assert rings4().assign(x).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("make", [exp_gauss, exp_gauss_unequal])
def test_too_many_active(make):
    with pytest.raises(ValueError, match="4 active coordinates in 3 dimensions"):
        make(3, 4)
