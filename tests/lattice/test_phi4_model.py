"""The phi^4 model: its action by loops, its symmetries, its modes."""

from math import sqrt

import pytest
import torch
from support.lattice import SHAPES, images, naive_action, size

from pyro_flowsamp.lattice import phi4, phi4_action, phi4_observables, phi4_symmetries


@pytest.fixture(autouse=True)
def float64(clean_slate):
    torch.set_default_dtype(torch.float64)


# ---- energies, by loops over sites --------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_action(shape):
    x = 2 * torch.randn(3, 2, size(shape))
    action = phi4_action(x, shape, 0.7, 0.2, 0.3)
    naive = [[naive_action(v, shape, 0.7, 0.2, 0.3) for v in row] for row in x]
    torch.testing.assert_close(action, torch.tensor(naive))
    known = phi4(shape, 0.7, 0.2, 0.3)
    log_p, grad = known.target.log_prob_and_grad(x.flatten(0, 1))
    torch.testing.assert_close(log_p, -action.flatten())
    assert grad.isfinite().all()
    observed = phi4_observables(x, shape, 0.7, 0.2, 0.3)
    torch.testing.assert_close(observed.action, action / size(shape))
    torch.testing.assert_close(observed.mean, x.mean(-1))
    torch.testing.assert_close(observed.mean_square, (x**2).mean(-1))


# ---- symmetries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.01])
@pytest.mark.parametrize("shape, order", [((6,), 12), ((3, 4), 48), ((4, 4), 128), ((2, 2, 3), 48)])
def test_symmetries_of_the_action(shape, order, alpha):
    x = torch.randn(2, size(shape))
    moved = images(x, phi4_symmetries(shape, alpha))
    assert moved.shape[1] == (2 * order if alpha == 0 else order)
    action = phi4_action(x, shape, alpha=alpha)[:, None].expand(moved.shape[:2])
    torch.testing.assert_close(phi4_action(moved, shape, alpha=alpha), action)
    changed = phi4_action(-x, shape, alpha=0.01) - phi4_action(x, shape, alpha=0.01)
    assert (changed.abs() > 1e-6).all()


# ---- exact draws on the circle ------------------------------------------------------------------


def test_modes():
    known = phi4(16, 1.0)
    x = known.modes.clone().requires_grad_()
    (grad,) = torch.autograd.grad(known.target.log_prob(x).sum(), x)
    assert grad.abs().max() < 1e-9
    assert known.assign(known.modes).tolist() == [0, 1]
    assert (known.modes[:, 0] / sqrt(8) - torch.tensor([-1.0, 1.0])).abs().max() < 0.02
    assert phi4((4, 4)).modes.shape == (2, 16) and phi4((4, 4)).log_z is None
    for single in phi4(4, -1.0), phi4(4, 0.0), phi4(4, -1.0, 0.0):
        assert single.modes.shape == (1, 4) and single.weights.tolist() == [1.0]
