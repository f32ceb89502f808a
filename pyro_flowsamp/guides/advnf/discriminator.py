r"""Discriminators: networks that tell draws of a flow from draws of an ensemble.

A discriminator is any module that maps points ``(N, d)`` and contexts ``(N, c)`` or None to logits
``(N,)``. To add one, write a function of ``(features, context, angles)`` that makes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..._zuko import zuko

__all__ = ["DenseDiscriminator", "with_context"]


def with_context(x: Tensor, context: Tensor | None) -> Tensor:
    """Appends context features to those of points, where there are any.

    Example:
        >>> with_context(torch.zeros(1, 2), torch.ones(1, 1))
        tensor([[0., 0., 1.]])
    """
    return x if context is None else torch.cat([x, context], -1)


class DenseDiscriminator(nn.Module):
    """A multilayer perceptron of standardised coordinates; angles enter as (cos, sin).

    Arguments:
        features: The dimension d.
        context: The number of context features c.
        angles: Mask of periodic features ``(d,)``, or None.
        hidden_features: Widths of the hidden layers.

    Example::

        >>> network = DenseDiscriminator(2, context=1)
        >>> network(torch.zeros(5, 2), torch.ones(5, 1)).shape
        torch.Size([5])
    """

    loc: Tensor
    scale: Tensor
    angles: Tensor

    def __init__(
        self,
        features: int,
        context: int = 0,
        angles: Tensor | None = None,
        hidden_features: Sequence[int] = (128, 128),
    ) -> None:
        super().__init__()
        angles = torch.zeros(features, dtype=torch.bool) if angles is None else angles
        self.register_buffer("angles", angles, persistent=False)
        self.register_buffer("loc", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        inputs = 2 * features + context
        self.net = zuko.nn.MLP(inputs, 1, hidden_features, activation=nn.SiLU)

    @torch.no_grad()
    def standardize(self, draws: Tensor) -> None:
        """Sets location and scale to the mean and standard deviation of draws ``(M, d)``."""
        self.loc.copy_(draws.mean(0))
        self.scale.copy_(draws.std(0).clamp(min=1e-6))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Returns logits ``(N,)`` of points ``(N, d)`` at contexts ``(N, c)``."""
        z = (x - self.loc) / self.scale
        first = torch.where(self.angles, x.cos(), z)
        second = torch.where(self.angles, x.sin(), z.square())
        return self.net(with_context(torch.cat([first, second], -1), context))[..., 0]
