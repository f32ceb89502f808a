r"""Densities that vmap can batch, in place of those of Pyro that write or branch on values.

A density under vmap may not index by a mask that depends on a latent site, nor write into a tensor.
The distributions here have the same densities without either.
"""

from __future__ import annotations

from math import log, pi
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent

__all__ = ["Rewritten", "batchable"]


class Rewritten(dist.TorchDistribution):
    """A distribution whose density a subclass writes in another way."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, base_dist: Any) -> None:
        self.base_dist = base_dist
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.base_dist.support


class _Counts(Rewritten):
    """A multinomial, whose own density writes at a mask of booleans."""

    def log_prob(self, value: Any) -> Tensor:
        logits = torch.where(value == 0, 0.0, self.base_dist.logits)  # 0 log 0 = 0
        coefficient = (value.sum(-1) + 1).lgamma() - (value + 1).lgamma().sum(-1)
        return coefficient + (value * logits).sum(-1)


class _NanMaskedNormal(Rewritten):
    """A normal whose data may be NaN; these have the log density 0."""

    def log_prob(self, value: Any) -> Tensor:
        base, shown = self.base_dist, value.isfinite()
        value = torch.where(shown, value, base.loc)
        normal = dist.Normal(base.loc, base.scale, validate_args=False)
        return torch.where(shown, normal.log_prob(value), 0.0)


class _NanMaskedMultivariateNormal(Rewritten):
    r"""A multivariate normal whose data may be NaN, with the marginal density of the others.

    With the missing coordinates of :math:`y` put at their mean, and their rows and columns of
    :math:`\Sigma` replaced by those of the identity, the density factorises into that of the others
    and :math:`(2\pi)^{-k/2}` for k missing coordinates, which is taken out.
    """

    def log_prob(self, value: Any) -> Tensor:
        base, shown = self.base_dist, value.isfinite()
        value = torch.where(shown, value, base.loc)
        both = shown[..., None] & shown[..., None, :]
        eye = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
        covariance = torch.where(both, base.covariance_matrix, eye)
        normal = dist.MultivariateNormal(base.loc, covariance, validate_args=False)
        return normal.log_prob(value) + 0.5 * log(2 * pi) * (~shown).sum(-1)


_REWRITTEN = {
    dist.Multinomial: _Counts,
    dist.NanMaskedNormal: _NanMaskedNormal,
    dist.NanMaskedMultivariateNormal: _NanMaskedMultivariateNormal,
}


def batchable(fn: Any) -> Any:
    """A distribution with the same density, which vmap can batch if this module knows how.

    Example:
        >>> fn = batchable(dist.NanMaskedNormal(torch.zeros(2), 1.0).to_event(1))
        >>> round(float(fn.log_prob(torch.tensor([0.0, torch.nan]))), 4)
        -0.9189
    """
    if type(fn) in _REWRITTEN:
        return _REWRITTEN[type(fn)](fn)
    if isinstance(fn, Independent) and (base := batchable(fn.base_dist)) is not fn.base_dist:
        return dist.Independent(base, fn.reinterpreted_batch_ndims, validate_args=False)
    if isinstance(fn, dist.MaskedDistribution):
        base = batchable(fn.base_dist)
        return fn if base is fn.base_dist else base.mask(fn._mask)
    return fn
