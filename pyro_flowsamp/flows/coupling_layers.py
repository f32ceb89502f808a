"""Coupling layers, which evaluate their network once for value and log-determinant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._zuko import zuko
from .transforms import CouplingMap, Map, Univariate

__all__ = ["Coupling"]


class Coupling(zuko.lazy.LazyTransform):
    r"""A coupling layer that starts as the identity and never touches the host.

    As :class:`zuko.flows.coupling.GeneralCouplingTransform`, whose masks are turned into indices on
    every call (a device synchronisation each). The network sees angles as (cos, sin).

    Arguments:
        features: The number of features.
        context: The number of context features.
        mask: Features that pass unchanged and steer the others, ``(features,)`` booleans.
        univariate: The element-wise map of the others.
        parameters: How many parameters it takes per feature.
        angles: Mask of periodic features, or None.
        hidden_features: Widths of the network's hidden layers.
    """

    def __init__(
        self,
        features: int,
        context: int,
        mask: Tensor,
        univariate: Univariate,
        parameters: int,
        angles: Tensor | None = None,
        hidden_features: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        order = torch.argsort(~mask, stable=True)
        self.sizes = [int(mask.sum()), int((~mask).sum())]
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", torch.argsort(order), persistent=False)
        angles = None if angles is None else angles.to(order.device)
        steering = None if angles is None else angles[order[: self.sizes[0]]]
        moved = None if angles is None else angles[order[self.sizes[0] :]]
        self.register_buffer("steering", steering, persistent=False)
        self.register_buffer("moved", moved, persistent=False)
        self._univariate, self.count = univariate, parameters
        inputs = self.sizes[0] * (1 if angles is None else 2) + context
        self.net = zuko.nn.MLP(
            inputs, self.sizes[1] * parameters, hidden_features, activation=nn.SiLU
        )
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def univariate(self, phi: Tensor, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if self.moved is None:
            return self._univariate(phi, x, inverse)
        return self._univariate(phi, x, inverse, angles=self.moved)

    def parameters_of(self, a: Tensor, context: Tensor | None) -> Tensor:
        """The univariate map's parameters, ``(N, b, count)``, given the steering features."""
        if self.steering is not None:
            first = torch.where(self.steering, a.cos(), a)
            a = torch.cat([first, torch.where(self.steering, a.sin(), torch.zeros_like(a))], -1)
        if context is not None:
            a = torch.cat([a, context.expand(a.shape[:-1] + context.shape[-1:])], -1)
        return self.net(a).unflatten(-1, (self.sizes[1], self.count))

    def forward(self, c: Tensor | None = None) -> Map:
        return CouplingMap(self, c)
