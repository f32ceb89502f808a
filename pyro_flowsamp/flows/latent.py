"""Latent distributions of flows: standard normal, uniform on angles, or a Gaussian mixture."""

from __future__ import annotations

from math import inf, log, pi, prod
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from .._zuko import zuko
from .mixture_fit import Mixture

__all__ = ["LatentBase"]


class LatentDistribution(Distribution):
    r"""Standard normal on real coordinates, uniform on :math:`[-\pi, \pi)` on angles.

    Arguments:
        like: A tensor ``(d,)`` of the dtype and device of draws.
        angles: Mask ``(d,)`` of periodic coordinates, or None.
        batch_shape: The batch shape.

    Example:
        >>> base = LatentDistribution(torch.zeros(2), torch.tensor([False, True]))
        >>> base.log_prob(torch.zeros(1, 2))  # minus log(2π) / 2, and minus log 2π
        tensor([-2.7568])
        >>> bool(base.sample((100,))[:, 1].abs().max() <= pi)
        True
    """

    arg_constraints: dict = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, like: Tensor, angles: Tensor | None, batch_shape: Size = Size()) -> None:
        super().__init__(batch_shape, like.shape, validate_args=False)
        self.like, self.angles = like, angles

    def expand(self, batch_shape: Any, _instance: Any = None) -> LatentDistribution:
        return LatentDistribution(self.like, self.angles, Size(batch_shape))

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        z = torch.randn(shape, dtype=self.like.dtype, device=self.like.device)
        if self.angles is None:
            return z
        return torch.where(self.angles, (2 * torch.rand_like(z) - 1) * pi, z)

    def log_prob(self, z: Tensor) -> Tensor:
        normal = -0.5 * (z.square() + log(2 * pi))
        if self.angles is not None:
            normal = torch.where(self.angles, -log(2 * pi), normal)
        return normal.sum(-1)


class MixtureDistribution(Distribution):
    """A Gaussian mixture as a base distribution; it is fixed, so draws need no gradient.

    Arguments:
        mixture: The mixture.
        batch_shape: The batch shape.

    Example:
        >>> locs, roots = torch.tensor([[-5.0], [5.0]]), torch.ones(2, 1, 1)
        >>> base = MixtureDistribution(Mixture(torch.tensor([0.5, 0.5]).log(), locs, roots))
        >>> base.log_prob(torch.tensor([[5.0]]))  # log 1/2 - log(2π) / 2
        tensor([-1.6121])
    """

    arg_constraints: dict = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, mixture: Mixture, batch_shape: Size = Size()) -> None:
        super().__init__(batch_shape, mixture.locs.shape[-1:], validate_args=False)
        self.mixture = mixture

    def expand(self, batch_shape: Any, _instance: Any = None) -> MixtureDistribution:
        return MixtureDistribution(self.mixture, Size(batch_shape))

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        return self.mixture.sample(prod(shape[:-1])).reshape(shape)

    def log_prob(self, z: Tensor) -> Tensor:
        return self.mixture.log_prob(z.reshape(-1, z.shape[-1])).reshape(z.shape[:-1])


class LatentBase(zuko.lazy.LazyDistribution):
    """The latent distribution of a flow: standard, or a Gaussian mixture.

    Arguments:
        features: The dimension.
        angles: Mask of periodic coordinates, or None.
        components: The greatest number of components; 1 for the standard distribution.

    Attributes:
        used: The number of components in use.
        df: The degrees of freedom of the components; infinite for Gaussians.

    Example:
        >>> LatentBase(2)(None).log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    def __init__(self, features: int, angles: Tensor | None = None, components: int = 1) -> None:
        super().__init__()
        self.components = self.used = components
        self.df = inf
        self.register_buffer("like", torch.zeros(features), persistent=False)
        self.register_buffer("angles", angles, persistent=False)
        if components > 1:
            eye = torch.eye(features).repeat(components, 1, 1)
            self.register_buffer("log_weights", torch.zeros(components).log_softmax(0))
            self.register_buffer("locs", torch.zeros(components, features))
            self.register_buffer("scale_trils", eye)

    @torch.no_grad()
    def initialize(self, mixture: Mixture) -> None:
        """Takes a mixture of at most ``components`` components; the others are not used."""
        self.used, self.df = len(mixture.log_weights), mixture.df
        for buffer, value in zip((self.log_weights, self.locs, self.scale_trils), mixture[:3]):
            buffer[: self.used].copy_(value)

    def forward(self, c: Tensor | None = None) -> Distribution:
        """The distribution, the same at every context."""
        if self.components == 1:
            return LatentDistribution(self.like, self.angles)
        parts = (self.log_weights, self.locs, self.scale_trils)
        log_weights, locs, scale_trils = (part[: self.used] for part in parts)
        return MixtureDistribution(Mixture(log_weights, locs, scale_trils, self.df))

    def get_extra_state(self) -> dict[str, Any]:
        """The number of components in use, and their degrees of freedom."""
        return {"used": self.used, "df": self.df}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Takes the state of :meth:`get_extra_state`."""
        self.used, self.df = state["used"], state.get("df", inf)
