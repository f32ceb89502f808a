r"""Densities that vmap can batch, in place of those of Pyro that write or branch on values.

A density under vmap may not index by a mask that depends on a latent site, nor write into a tensor.
The distributions here have the same densities without either. A multivariate normal is among them
because vmap solves a triangular system for each point alone, and copies its matrix for each.
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
    """A distribution whose density a subclass writes in another way.

    Example:
        >>> class Halved(Rewritten):  # half of the log density
        ...     def log_prob(self, value):
        ...         return 0.5 * self.base_dist.log_prob(value)
        >>> fn = Halved(dist.Exponential(1.0))
        >>> fn.log_prob(torch.tensor(3.0)), fn.support
        (tensor(-1.5000), GreaterThanEq(lower_bound=0.0))
    """

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


class _Whitening(torch.autograd.Function):
    r"""Solves :math:`L z = b` for many b and one triangular L, by one call also under vmap.

    With the gradient g of z, that of b is :math:`h = L^{-\top} g`, and that of L the lower triangle
    of :math:`-h z^\top`. Tangents are :math:`\dot z = L^{-1} (\dot b - \dot L z)`.
    """

    @staticmethod
    def forward(L: Tensor, b: Tensor) -> Tensor:
        columns = b.reshape(-1, b.shape[-1]).mT
        return torch.linalg.solve_triangular(L, columns, upper=False).mT.reshape(b.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        L, z = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        solved = torch.linalg.solve_triangular(L.mT, rows.mT, upper=True).mT
        of_factor = None
        if ctx.needs_input_grad[0]:
            of_factor = -(solved.mT @ z.reshape(-1, z.shape[-1])).tril()
        return of_factor, solved.reshape(gradient.shape)

    @staticmethod
    def jvp(ctx: Any, of_factor: Tensor | None, of_b: Tensor | None) -> Tensor:
        L, z = ctx.saved_tensors
        change = torch.zeros_like(z) if of_b is None else of_b
        if of_factor is not None:
            change = change - z @ of_factor.tril().mT
        return _Whitening.apply(L, change)

    @staticmethod
    def vmap(info: Any, in_dims: Any, L: Tensor, b: Tensor) -> tuple[Tensor, int]:
        if in_dims[1] is None:
            b = b.expand(info.batch_size, *b.shape)
        else:
            b = b.movedim(in_dims[1], 0)
        if in_dims[0] is None:
            return _Whitening.apply(L, b), 0
        L = L.movedim(in_dims[0], 0).reshape(-1, *[1] * (b.dim() - 2), *L.shape[-2:])
        return torch.linalg.solve_triangular(L, b[..., None], upper=False)[..., 0], 0


class _OneFactorNormal(Rewritten):
    r"""A multivariate normal with one covariance :math:`L L^\top` for all of its batch.

    Its log density is :math:`-\frac12 \|z\|^2 - \sum_i \log L_{ii} - \frac d2 \log 2\pi` with
    :math:`L z = x - \mu`.
    """

    def log_prob(self, value: Any) -> Tensor:
        base = self.base_dist
        L = base._unbroadcasted_scale_tril
        z = _Whitening.apply(L, value - base.loc)
        constant = L.diagonal().log().sum() + 0.5 * len(L) * log(2 * pi)
        return -0.5 * z.square().sum(-1) - constant


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
    if type(fn) is dist.MultivariateNormal and fn._unbroadcasted_scale_tril.dim() == 2:
        return _OneFactorNormal(fn)
    if type(fn) in _REWRITTEN:
        return _REWRITTEN[type(fn)](fn)
    if isinstance(fn, Independent) and (base := batchable(fn.base_dist)) is not fn.base_dist:
        return dist.Independent(base, fn.reinterpreted_batch_ndims, validate_args=False)
    if isinstance(fn, dist.MaskedDistribution):
        base = batchable(fn.base_dist)
        return fn if base is fn.base_dist else base.mask(fn._mask)
    return fn
