"""The ChEES criterion and its gradient, against numerical derivatives and other shapes of input."""

import pytest
import torch
from torch.testing import assert_close

from pyro_flowsamp.transitions import hamiltonian
from pyro_flowsamp.transitions.chees import LastPoint, criterion_and_gradient


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)


def _pairs(*shape):
    """Points and their opposites, whose mean is zero."""
    x = torch.randn(*shape)
    return torch.cat([x, -x])


def _criterion(z, end):
    """F as in the paper; all means are zero."""
    change = end.square().sum(-1) - z.square().sum(-1)
    return 0.25 * change.square().mean()


@pytest.mark.parametrize("time", [0.3, 1.0, 2.5])
def test_the_gradient_is_the_derivative_by_the_length(time):
    """Along exact trajectories in a normal target, whose ends are known."""
    z, r = _pairs(50, 3), _pairs(50, 3)
    scale = torch.tensor([0.5, 1.0, 2.0])
    z = z * scale

    def end(time):
        return z * (time / scale).cos() + r * scale * (time / scale).sin()

    velocity = -z / scale * (time / scale).sin() + r * (time / scale).cos()
    criterion, gradient = criterion_and_gradient(z, end(time), velocity, torch.ones(100))
    width = (z.square().sum(-1) + end(time).square().sum(-1)).mean()
    assert_close(criterion.mean() * width**2, _criterion(z, end(time)))
    h = 1e-5
    derivative = (_criterion(z, end(time + h)) - _criterion(z, end(time - h))) / (2 * h)
    assert_close(gradient.mean() * width**2, derivative, rtol=1e-6, atol=1e-6)


def test_means_and_widths_are_those_of_a_context():
    z, end, velocity = torch.randn(3, 60, 4)
    weights = torch.rand(60)
    alone = [
        criterion_and_gradient(z[i::3], end[i::3], velocity[i::3], weights[i::3]) for i in range(3)
    ]
    together = criterion_and_gradient(z, end, velocity, weights, 3)
    far = torch.tensor([0.0, 100.0, -50.0])[torch.arange(60) % 3][:, None]
    wide = torch.tensor([1.0, 10.0, 0.1])[torch.arange(60) % 3][:, None]
    moved = criterion_and_gradient(far + wide * z, far + wide * end, wide * velocity, weights, 3)
    for part, (one, other) in enumerate(zip(together, moved)):
        assert_close(one, torch.stack([terms[part] for terms in alone], -1).flatten())
        assert_close(one, other)


def test_angles_are_compared_the_short_way_round():
    """Whole turns do not count, and near the mean an angle is like any other coordinate."""
    angles = torch.tensor([True, False])
    z, end, velocity = torch.randn(3, 20, 2) * torch.tensor([0.5, 1.0])
    z[:, 0] -= z[:, 0].mean()
    end[:, 0] -= end[:, 0].mean()
    mirror = torch.tensor([-1.0, 1.0])  # symmetric about the mean, which is then that on the circle
    z, end, velocity = (torch.cat([x, mirror * x]) for x in (z, end, velocity))
    weights = torch.ones(40)
    straight = criterion_and_gradient(z, end, velocity, weights)
    turns = 2 * torch.pi * torch.randint(-3, 4, (40, 1)) * angles
    shift = torch.tensor([2.0, 0.0])
    turned = criterion_and_gradient(
        z + turns + shift, end - turns + shift, velocity, weights, 1, angles
    )
    for one, other in zip(straight, turned):
        assert_close(one, other)


def test_ends_that_are_not_finite_are_left_out():
    z, end, velocity = torch.randn(3, 20, 4)
    weights = torch.rand(20)
    weights[0] = 0.0
    right = criterion_and_gradient(z, end, velocity, weights)
    end[0] = torch.inf
    end[0, 1] = torch.nan
    for one, other in zip(right, criterion_and_gradient(z, end, velocity, weights)):
        assert_close(one[1:], other[1:])
        assert not torch.isfinite(other[0])


def test_the_last_point_is_the_end_of_the_trajectory():
    """In a metric that is not the identity: the velocity is that of the last momentum."""
    root = torch.tensor([[1.0, 0.0], [0.5, 2.0]])

    def density(z):
        log_pi = -0.25 * z.pow(4).sum(-1)
        return hamiltonian.HMCState(z, log_pi, -z.pow(3), z, log_pi, log_pi)

    metric = hamiltonian.Metric(
        lambda _, r: torch.linalg.solve(root, r.mT).mT,
        lambda _, v: v @ root.mT,
        lambda state: torch.zeros_like(state.log_pi),
    )
    last, size = LastPoint(metric), torch.tensor(0.2)
    start, momentum = density(torch.randn(10, 2)), torch.randn(10, 2)
    also = {"metric": metric, "keep": last.keep}
    end, r, _ = hamiltonian.trajectory(start, density, size, 5, momentum, **also)
    position, velocity = last.position_and_velocity(size)
    assert_close(position, end.z)
    assert_close(velocity @ root.mT, r)
