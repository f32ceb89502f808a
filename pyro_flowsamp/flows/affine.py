"""The affine layer next to the data in every flow of this package."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._zuko import zuko
from .transforms import AffineMap, Map

__all__ = ["Affine"]


MAX_FULL_COVARIANCE = 1000  #: above this dimension the affine layer is diagonal


class Affine(zuko.lazy.LazyTransform):
    r"""The affine layer :math:`x = \mu + L\,(m + T u)`.

    :math:`\mu` and :math:`L` are buffers, set by :meth:`initialize`; the trained correction
    :math:`m`, :math:`T` (unit lower-triangular times a positive diagonal) starts at the identity,
    so that one step size suits every scale.

    Arguments:
        features: The dimension d. Above :data:`MAX_FULL_COVARIANCE` L and T are diagonal.
        angles: Mask ``(d,)`` of periodic coordinates, which are only rotated; or None.

    Example:
        >>> layer = Affine(2)
        >>> layer.initialize(torch.ones(2), 2 * torch.eye(2))
        >>> layer()(torch.tensor([1.0, -1.0]))
        tensor([ 3., -1.], grad_fn=<AddBackward0>)
    """

    def __init__(self, features: int, angles: Tensor | None = None) -> None:
        super().__init__()
        full = features <= MAX_FULL_COVARIANCE
        real = torch.ones(features) if angles is None else (~angles).float()
        self.register_buffer("angles", angles, persistent=False)
        self.register_buffer("real", real, persistent=False)
        self.register_buffer("loc", torch.zeros(features))
        self.register_buffer("scale", torch.eye(features) if full else torch.ones(features))
        self.shift = nn.Parameter(torch.zeros(features))
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.lower = nn.Parameter(torch.zeros(features, features)) if full else None

    @torch.no_grad()
    def initialize(self, loc: Tensor, scale_tril: Tensor) -> None:
        """Sets the layer to N(loc, scale_tril scale_trilᵀ); angles keep unit scale.

        Arguments:
            loc: The mean, ``(d,)``.
            scale_tril: The Cholesky factor ``(d, d)``, or scales ``(d,)``. A full one is reduced to
                marginal scales where the layer is diagonal.
        """
        for correction in (self.shift, self.log_diagonal, self.lower):
            if correction is not None:
                correction.zero_()
        self.loc.copy_(loc)
        if scale_tril.dim() < self.scale.dim():
            scale_tril = scale_tril.diag()
        if self.scale.dim() == 1:
            scale = scale_tril if scale_tril.dim() == 1 else scale_tril.norm(dim=-1)
            self.scale.copy_(torch.where(self.real > 0, scale, 1.0))
        else:
            if self.angles is not None:  # the reals' own root, not their rows of the joint one
                real = self.real.double()
                root = scale_tril.double() * real[:, None]
                scale_tril = torch.linalg.cholesky(root @ root.mT + torch.diag(1 - real))
            self.scale.copy_(scale_tril)

    def forward(self, c: Tensor | None = None) -> Map:
        """The map u → x, the same at every context."""
        diagonal = (self.log_diagonal * self.real).exp()
        log_det = (self.log_diagonal * self.real).sum()
        if self.lower is None:
            scale = self.scale * diagonal
            loc = self.loc + self.scale * self.shift
            return AffineMap(loc, scale, log_det + self.scale.log().sum(), self.angles)
        pair = self.real[:, None] * self.real
        tril = torch.tril(self.lower * pair, -1) + torch.diag_embed(diagonal)
        loc = self.loc + self.scale @ self.shift
        log_det = log_det + self.scale.diagonal().log().sum()
        return AffineMap(loc, self.scale @ tril, log_det, self.angles)
