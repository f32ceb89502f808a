r"""Velocity fields whose exact divergence costs little more than their value.

A network of two hidden layers,

.. math:: v = W_3\,\sigma(W_2\,\sigma(u_1) + b_2) + b_3, \qquad
          u_1 = W_1 x + w\,t + b_1, \quad u_2 = W_2\,\sigma(u_1) + b_2,

has the Jacobian :math:`W_3\,\mathrm{diag}(\sigma'(u_2))\,W_2\,\mathrm{diag}(\sigma'(u_1))\,W_1`
and so the trace

.. math:: \nabla\cdot v = \sum_{ab} \sigma'(u_2)_a\,(W_2)_{ab}\,\sigma'(u_1)_b\,(W_1 W_3)_{ba},

whose middle matrix does not depend on the point: it costs :math:`O(h^2)` a point in any dimension,
and is differentiable. Sums of such networks, weighted by functions of time, keep the property.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "TimeMLP", "VelocityMLP"]


def _silu(u: Tensor) -> tuple[Tensor, Tensor]:
    s = u.sigmoid()
    value = u * s
    return value, s + value * (1 - s)


def _tanh(u: Tensor) -> tuple[Tensor, Tensor]:
    value = u.tanh()
    return value, 1 - value.square()


ACTIVATIONS = {"silu": _silu, "tanh": _tanh}  #: name → (value, derivative) in one pass


class TimeMLP(nn.Module):
    r"""A function of time and position, :math:`\sum_m \rho_m(t)\,\mathrm{MLP}_m([x, t])`.

    The weights :math:`\rho_m` are Gaussian bumps, evenly spaced over [0, 1] and normalised to sum
    to one; a single network has weight one. The last layer starts at zero, so the function starts
    as zero.

    Arguments:
        features: Dimension of x.
        outputs: Dimension of the value.
        hidden_features: Width of both hidden layers.
        kernels: The number M of networks and of their weights in time.
        activation: "silu" or "tanh".

    Raises:
        ValueError: There is no such activation.

    References:
        Bálint Máté and François Fleuret, *Learning Interpolations between Boltzmann Densities*,
        2023, https://arxiv.org/abs/2301.07388, Section 4.

    Example:
        >>> network = TimeMLP(features=3, outputs=1, kernels=4)
        >>> network(0.5, torch.randn(10, 3)).shape
        torch.Size([10, 1])
    """

    centres: Tensor

    def __init__(
        self,
        features: int,
        outputs: int,
        hidden_features: int = 64,
        kernels: int = 1,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got '{activation}'")
        self.kernels, self._activation = kernels, ACTIVATIONS[activation]
        self.in_weight = _uniform(kernels, hidden_features, features)
        self.time_weight = _uniform(kernels, 1, hidden_features)
        self.in_bias = _uniform(kernels, 1, hidden_features)
        self.mid_weight = _uniform(kernels, hidden_features, hidden_features)
        self.mid_bias = _uniform(kernels, 1, hidden_features)
        self.out_weight = nn.Parameter(torch.zeros(kernels, outputs, hidden_features))
        self.out_bias = nn.Parameter(torch.zeros(kernels, 1, outputs))
        self.register_buffer("centres", torch.linspace(0, 1, kernels)[:, None], persistent=False)

    def mix(self, t: Tensor | float) -> Tensor | float:
        r""":math:`\rho_m(t)`, ``(M, 1)`` or ``(M, N)``; 1 for a single network."""
        if self.kernels == 1:
            return 1.0
        return (-0.5 * ((t - self.centres) * (self.kernels - 1)).square()).softmax(0)

    def layers(self, t: Tensor | float, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The last hidden layer and both layers' derivatives, ``(M, N, h)`` each."""
        time = t[:, None] if isinstance(t, Tensor) and t.dim() else t
        u = x @ self.in_weight.mT + (self.in_bias + self.time_weight * time)
        first, first_slope = self._activation(u)
        second, second_slope = self._activation(first @ self.mid_weight.mT + self.mid_bias)
        return second, first_slope, second_slope

    def _value(self, x: Tensor, second: Tensor) -> Tensor:
        """Each network's value, ``(M, N, outputs)``, given its last hidden layer."""
        return second @ self.out_weight.mT + self.out_bias

    def _sum(self, t: Tensor | float, values: Tensor) -> Tensor:
        if self.kernels == 1:
            return values[0]
        mix = self.mix(t)
        assert isinstance(mix, Tensor)
        return (mix.reshape(mix.shape + (1,) * (values.dim() - 2)) * values).sum(0)

    def forward(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Values ``(N, outputs)`` at positions ``(N, d)``, at one time or at times ``(N,)``."""
        return self._sum(t, self._value(x, self.layers(t, x)[0]))


class VelocityMLP(TimeMLP):
    r"""A velocity field on :math:`\mathbb R^d` with the exact divergence of the module's docstring.

    A second part, added to the network, moves every coordinate by itself,

    .. math:: s_i(x) = a_i x_i + \sum_{j \le U} c_{ij} \tanh(w_{ij} x_i + b_{ij}), \qquad
              \nabla\cdot s = \sum_i a_i + \sum_{ij} c_{ij} w_{ij} (1 - \tanh^2),

    It transforms marginals at a cost linear in d, and the network describes how coordinates depend
    on each other. The network's output is divided by :math:`\sqrt d`: Adam's first steps have the
    same size in every coordinate, and would otherwise move coordinates that should not change.

    Arguments:
        features: The dimension d.
        hidden_features, kernels, activation: See :class:`TimeMLP`.
        units: The number :math:`U` of hidden units of each coordinate in the second part.

    Example:
        >>> velocity = VelocityMLP(3)
        >>> v, divergence = velocity.with_divergence(0.5, torch.randn(10, 3))
        >>> v.shape, divergence.shape
        (torch.Size([10, 3]), torch.Size([10]))
    """

    def __init__(
        self,
        features: int,
        hidden_features: int = 64,
        kernels: int = 1,
        activation: str = "silu",
        units: int = 8,
    ) -> None:
        super().__init__(features, features, hidden_features, kernels, activation)
        self.damping = features**-0.5
        self.slope = nn.Parameter(torch.zeros(kernels, 1, features))
        self.unit_weight = nn.Parameter(torch.randn(kernels, 1, features, units))
        self.unit_bias = nn.Parameter(torch.randn(kernels, 1, features, units))
        self.unit_scale = nn.Parameter(torch.zeros(kernels, 1, features, units))

    def _units(self, x: Tensor) -> Tensor:
        """The separate part's hidden units, ``(M, N, d, U)``."""
        return torch.addcmul(self.unit_bias, x[..., None], self.unit_weight).tanh()

    def _velocity(self, x: Tensor, second: Tensor, units: Tensor) -> Tensor:
        separate = self.slope * x + (units * self.unit_scale).sum(-1)
        return self.damping * self._value(x, second) + separate

    def forward(self, t: Tensor | float, x: Tensor) -> Tensor:
        """The velocity ``(N, d)`` at positions ``(N, d)``, at one time or at times ``(N,)``."""
        return self._sum(t, self._velocity(x, self.layers(t, x)[0], self._units(x)))

    def with_divergence(self, t: Tensor | float, x: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`v(t, x)` and :math:`\nabla\cdot v(t, x)`, ``(N, d)`` and ``(N,)``."""
        (second, first_slope, second_slope), units = self.layers(t, x), self._units(x)
        middle = self.mid_weight * (self.in_weight @ self.out_weight).mT
        network = (second_slope @ middle * first_slope).sum(-1)
        weights = self.unit_scale * self.unit_weight
        separate = self.slope.sum(-1) + weights.sum((-1, -2))
        separate = separate - (units.square() * weights).sum((-1, -2))
        divergence = self.damping * network + separate
        velocity = self._velocity(x, second, units)
        return self._sum(t, velocity), self._sum(t, divergence[..., None])[..., 0]


def _uniform(*shape: int) -> nn.Parameter:
    """A parameter that is uniform, scaled by the last dimension, like torch's linear layers."""
    bound = 1 / sqrt(shape[-1])
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
