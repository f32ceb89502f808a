"""Coupling layers that evaluate their network once for value and log-determinant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._zuko import zuko
from .transforms import CouplingMap, Map, Univariate

__all__ = ["Coupling"]


class Coupling(zuko.lazy.LazyTransform):
    r"""A coupling layer that starts as the identity and never waits for the device.

    It is like :class:`zuko.flows.coupling.GeneralCouplingTransform`, which turns its mask into
    indices on every call (a device synchronisation each). The network gets angles as (cos, sin).

    Arguments:
        features: The number of features.
        context: The number of context features.
        mask: Features that pass unchanged and set the map of the others, ``(features,)`` booleans.
        univariate: The element-wise map of the others.
        parameters: The number of parameters that this map takes per feature.
        angles: Mask of periodic features, or None.
        hidden_features: Widths of the network's hidden layers.

    Example:
        >>> from pyro_flowsamp.flows.transforms import affine_univariate
        >>> layer = Coupling(3, 0, torch.tensor([True, False, True]), affine_univariate, 2)
        >>> z = torch.arange(3.0)[None]
        >>> torch.equal(layer()(z), z)
        True
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
        fixed_angles = None if angles is None else angles[order[: self.sizes[0]]]
        moved = None if angles is None else angles[order[self.sizes[0] :]]
        self.register_buffer("fixed_angles", fixed_angles, persistent=False)
        self.register_buffer("moved_angles", moved, persistent=False)
        self._univariate, self.count = univariate, parameters
        inputs = self.sizes[0] * (1 if angles is None else 2) + context
        self.net = zuko.nn.MLP(
            inputs, self.sizes[1] * parameters, hidden_features, activation=nn.SiLU
        )
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def univariate(self, phi: Tensor, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Values and log-dets ``(N, b)`` of the element-wise map with parameters ``phi``."""
        if self.moved_angles is None:
            return self._univariate(phi, x, inverse)
        return self._univariate(phi, x, inverse, angles=self.moved_angles)

    def parameters_of(self, a: Tensor, context: Tensor | None) -> Tensor:
        """The element-wise map's parameters, ``(N, b, count)``, given the unchanged features."""
        if self.fixed_angles is not None:
            first = torch.where(self.fixed_angles, a.cos(), a)
            a = torch.cat([first, torch.where(self.fixed_angles, a.sin(), torch.zeros_like(a))], -1)
        if context is not None:
            a = torch.cat([a, context.expand(a.shape[:-1] + context.shape[-1:])], -1)
        return self.net(a).unflatten(-1, (self.sizes[1], self.count))

    def forward(self, c: Tensor | None = None) -> Map:
        """The map z → x at a context."""
        return CouplingMap(self, c)
