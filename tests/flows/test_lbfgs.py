"""Limited-memory inverse Hessians against the recursions that define them."""

import pytest
import torch
from torch.testing import assert_close

from pyro_flowsamp.flows.lbfgs import InverseHessians, LowRankFactor


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)


def _pairs(num, paths, dim):
    """Steps and gradient changes of quadratic energies."""
    root = torch.randn(paths, dim, dim)
    steps = torch.randn(num, paths, dim) * torch.logspace(-6, 6, num)[:, None, None]
    return steps, (steps[..., None, :] @ (root @ root.mT + torch.eye(dim)))[..., 0, :]


def _filled(steps, changes, memory):
    hessians = InverseHessians.scaled(torch.rand(steps.shape[1:]) + 0.5, memory)
    for step, change in zip(steps, changes):
        hessians = hessians.updated(step, change, torch.ones(len(step)) > 0)
    return hessians


def _recursion(diagonal, steps, changes):
    """H' = (I − s yᵀ / sᵀy) H (I − y sᵀ / sᵀy) + s sᵀ / sᵀy, from the diagonal on."""
    hessian = torch.diag(diagonal)
    for s, y in zip(steps, changes):
        left = torch.eye(len(s)) - torch.outer(s, y) / (s @ y)
        hessian = left @ hessian @ left.T + torch.outer(s, s) / (s @ y)
    return hessian


@pytest.mark.parametrize(
    "num, memory, dim", [(2, 4, 7), (4, 4, 7), (6, 4, 7), (3, 5, 2), (0, 2, 3)]
)
def test_products_and_factors(num, memory, dim):
    """Memory that is not full, full, and renewed; and more pairs than coordinates."""
    steps, changes = _pairs(num, 3, dim)
    hessians = _filled(steps, changes, memory)
    factor, fine = hessians.factor()
    assert fine.all()
    v = torch.randn(3, dim)
    products, dense = hessians.times(v), factor.dense()
    u = torch.randn(5, 3, dim)
    for p in range(3):
        recent = slice(max(0, num - memory), None)
        truth = _recursion(hessians.diagonal[p], steps[recent, p], changes[recent, p])
        assert_close(products[p], truth @ v[p], rtol=1e-6, atol=1e-6)
        assert_close(dense[p] @ dense[p].T, truth, rtol=1e-6, atol=1e-6)
        assert_close(factor.log_det()[p], 0.5 * truth.logdet(), rtol=1e-6, atol=1e-6)
        assert_close(factor.times(u)[:, p], u[:, p] @ dense[p].T)


def test_the_diagonal_is_that_of_gilbert_and_lemarechal():
    (s,), (y,) = _pairs(1, 1, 4)
    before = InverseHessians.scaled(torch.rand(1, 4) + 0.5, 3)
    alpha = before.diagonal
    a, b, c = (alpha * y * y).sum(), (s * y).sum(), (s * s / alpha).sum()
    truth = 1 / (a / (b * alpha) + y.square() / b - a * s.square() / (b * c * alpha.square()))
    assert_close(before.updated(s, y, torch.ones(1) > 0).diagonal, truth)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_no_scale_is_assumed(scale):
    """In other units of the coordinates H is the same matrix in these units."""
    steps, changes = _pairs(3, 2, 5)
    one = _filled(steps, changes, 4)
    torch.manual_seed(0)
    other = InverseHessians.scaled(scale**2 * one.diagonal, 4)
    one = InverseHessians.scaled(one.diagonal, 4)
    for step, change in zip(steps, changes):
        one = one.updated(step, change, torch.ones(2) > 0)
        other = other.updated(scale * step, change / scale, torch.ones(2) > 0)
    v = torch.randn(2, 5)
    assert_close(other.times(v / scale) / scale, one.times(v))
    assert_close(other.factor()[0].dense() / scale, one.factor()[0].dense(), rtol=1e-6, atol=1e-8)


def test_other_paths_stay():
    steps, changes = _pairs(3, 2, 4)
    before = _filled(steps[:2], changes[:2], 3)
    after = before.updated(steps[2], changes[2], torch.tensor([True, False]))
    for old, new in zip(before, after):
        assert torch.equal(old[1], new[1]) and not torch.equal(old[0], new[0])


def test_a_matrix_that_is_not_finite_has_no_factor():
    hessians = _filled(*_pairs(2, 2, 3), 2)
    steps = hessians.steps.clone()
    steps[0, 0, 0] = torch.nan
    factor, fine = hessians._replace(steps=steps).factor()
    assert fine.tolist() == [False, True]
    assert isinstance(factor, LowRankFactor) and factor.root.isfinite().all()
