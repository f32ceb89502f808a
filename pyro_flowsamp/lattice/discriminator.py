"""A discriminator of lattice fields by periodic convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from .._zuko import zuko
from ..guides.advnf.discriminator import with_context

__all__ = ["LatticeDiscriminator", "lattice_discriminator"]


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class LatticeDiscriminator(nn.Module):
    r"""A discriminator by periodic convolutions, a mean over the lattice, and an MLP.

    The logits do not change under translations. Angles enter as (cos, sin).

    Arguments:
        shape: Sites along each of up to three axes.
        context: The number of context features, which are constant planes beside the field.
        angles: Mask of periodic features, all or none.
        channels: Number of channels of each convolution.
        hidden_features: Widths of the MLP's hidden layers.

    Raises:
        ValueError: There are more than three axes, or some coordinates are angles and others not.

    Example::

        >>> network = LatticeDiscriminator((4, 4), angles=torch.ones(16, dtype=torch.bool))
        >>> network(torch.zeros(5, 16)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        shape: Sequence[int],
        context: int = 0,
        angles: Tensor | None = None,
        channels: Sequence[int] = (32, 32),
        hidden_features: Sequence[int] = (64,),
    ) -> None:
        super().__init__()
        if len(shape) not in CONVOLUTIONS:
            raise ValueError(f"convolutions take one to three axes, the shape is {tuple(shape)}")
        self.shape, self.circular = tuple(shape), angles is not None and bool(angles.all())
        if angles is not None and bool(angles.any()) != self.circular:
            raise ValueError("a lattice's coordinates are all angles, or none is")
        sizes = [(2 if self.circular else 1) + context, *channels]
        layers: list[nn.Module] = []
        for inputs, outputs in zip(sizes, sizes[1:]):
            kernel = CONVOLUTIONS[len(shape)](
                inputs, outputs, 3, padding=1, padding_mode="circular"
            )
            layers += [kernel, nn.SiLU()]
        self.convolutions = nn.Sequential(*layers)
        self.net = zuko.nn.MLP(2 * sizes[-1] + context, 1, hidden_features, activation=nn.SiLU)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Returns logits ``(N,)`` of fields ``(N, d)`` at contexts ``(N, c)``."""
        planes = [x.cos(), x.sin()] if self.circular else [x]
        if context is not None:
            planes += [c[:, None].expand_as(x) for c in context.unbind(-1)]
        field = torch.stack(planes, 1).unflatten(-1, self.shape)
        found = self.convolutions(field).flatten(2)
        pooled = torch.cat([found.mean(-1), found.square().mean(-1)], -1)
        return self.net(with_context(pooled, context))[..., 0]


def lattice_discriminator(
    shape: Sequence[int], channels: Sequence[int] = (32, 32), hidden_features: Sequence[int] = (64,)
) -> Callable[..., LatticeDiscriminator]:
    """Makes a recipe for :class:`LatticeDiscriminator`, for ``AutoAdvNF(discriminator=...)``.

    Arguments:
        shape, channels, hidden_features: See :class:`LatticeDiscriminator`.

    Returns:
        A function of ``(features, context, angles)``, which raises ValueError where the number of
        features is not that of the sites.

    Example::

        >>> network = lattice_discriminator((4, 4))(16, 0, None)
        >>> network(torch.zeros(5, 16)).shape
        torch.Size([5])
    """
    return partial(_lattice_discriminator, shape, tuple(channels), tuple(hidden_features))


def _lattice_discriminator(
    shape: Sequence[int],
    channels: Sequence[int],
    hidden_features: Sequence[int],
    features: int,
    context: int,
    angles: Tensor | None,
) -> LatticeDiscriminator:
    if features != prod(shape):
        raise ValueError(
            f"this discriminator is for {prod(shape)} sites, a lattice of shape {tuple(shape)}; "
            f"the target has {features} coordinates"
        )
    return LatticeDiscriminator(shape, context, angles, channels, hidden_features)
