"""Velocity networks: the closed-form divergence is the trace of the Jacobian."""

from functools import partial

import pytest
import torch
from support.networks import rough
from torch.testing import assert_close

from pyro_flowsamp.nn.mlp import ACTIVATIONS, TimeMLP, VelocityMLP

TIMES = {
    "float": lambda: 0.3,
    "0-d": lambda: torch.tensor(0.3),
    "per point": lambda: torch.rand(6),
}


@pytest.fixture(params=ACTIVATIONS)
def activation(request):
    torch.set_default_dtype(torch.float64)
    return request.param


def jacobian(function, t, x):
    """All points at once: no point's value depends on another's place."""
    whole = torch.func.jacrev(lambda x: function(t, x))(x)
    return torch.stack([whole[i, :, i] for i in range(len(x))])


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("kernels", [1, 4])
@pytest.mark.parametrize("features", [1, 5])
def test_the_divergence_is_the_trace(features, kernels, time, activation):
    velocity = rough(partial(VelocityMLP, features, 16, kernels, activation))
    t, x = TIMES[time](), torch.randn(6, features)
    value, divergence = velocity.with_divergence(t, x)
    trace = jacobian(velocity, t, x).diagonal(dim1=-2, dim2=-1).sum(-1)
    assert divergence.shape == (6,) and divergence.abs().min() > 1e-3
    assert_close(value, velocity(t, x))
    assert_close(divergence, trace)


@pytest.mark.parametrize("network", [partial(TimeMLP, 3, 2), partial(VelocityMLP, 3)])
@pytest.mark.parametrize("kernels", [1, 4])
def test_times_per_point_are_times_one_by_one(network, kernels):
    torch.set_default_dtype(torch.float64)
    network = rough(partial(network, hidden_features=16, kernels=kernels))
    t, x = torch.rand(6), torch.randn(6, 3)
    one_by_one = torch.cat([network(float(s), row[None]) for s, row in zip(t, x)])
    assert_close(network(t, x), one_by_one)


@pytest.mark.parametrize("kernels", [1, 4])
def test_the_formula(kernels):
    """Against a network of torch's own layers."""
    torch.set_default_dtype(torch.float64)
    net = rough(partial(TimeMLP, 3, 2, 8, kernels, "tanh"))
    t, x = 0.4, torch.randn(5, 3)
    bumps = torch.exp(-0.5 * (t * (kernels - 1) - torch.arange(kernels)) ** 2)
    total = torch.zeros(5, 2)
    for m in range(kernels):
        first = torch.tanh(x @ net.in_weight[m].T + net.time_weight[m] * t + net.in_bias[m])
        second = torch.tanh(first @ net.mid_weight[m].T + net.mid_bias[m])
        value = second @ net.out_weight[m].T + net.out_bias[m]
        total += bumps[m] / bumps.sum() * value
    assert_close(net(t, x), total)


def test_gradients_of_the_divergence(activation):
    velocity = rough(partial(VelocityMLP, 2, 4, 2, activation))
    x = torch.randn(2, 2, requires_grad=True)
    t = torch.rand(2, requires_grad=True)
    assert torch.autograd.gradcheck(velocity.with_divergence, (t, x))
    assert torch.autograd.gradgradcheck(velocity.with_divergence, (t, x))


def test_it_starts_as_zero():
    value, divergence = VelocityMLP(3, kernels=2).with_divergence(0.5, torch.randn(4, 3))
    assert not value.any() and not divergence.any()
    assert not TimeMLP(3, 2)(0.5, torch.randn(4, 3)).any()


def test_an_unknown_activation():
    with pytest.raises(ValueError, match="one of .*'silu', 'tanh'.* got 'relu'"):
        VelocityMLP(2, activation="relu")
