r"""A bijection onto the simplex that is computed in log space.

:class:`torch.distributions.StickBreakingTransform` computes what is left of the stick as
:math:`1 - z`, which rounds where z is near 0 or 1. Where a sparse Dirichlet distribution has its
mass, single precision loses tens of nats of the log density. The map here is the same one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import ComposeTransform, IndependentTransform, Transform
from torch.distributions.transforms import StickBreakingTransform

__all__ = ["LogStickBreakingTransform", "with_logarithms"]


class LogStickBreakingTransform(StickBreakingTransform):
    r"""The stick-breaking map from :math:`\mathbb R^{K-1}` onto the simplex, by logarithms.

    With :math:`t_k = x_k - \log(K - k)` and the logistic function :math:`\sigma`,

    .. math:: \log y_k = \log\sigma(t_k) + \sum_{j<k} \log\sigma(-t_j) \quad (k < K), \qquad
              \log y_K = \sum_{j<K} \log\sigma(-t_j).

    Every value is the exponential of a sum of terms of one sign. So its relative error is small
    even where it is tiny, and the density of a Dirichlet distribution, which depends on the
    logarithms of the values only, is as precise as they are. Since
    :math:`\partial y_k / \partial x_k = y_k\,\sigma(-t_k)` and the Jacobian is triangular,

    .. math:: \log\left|\det \frac{\partial y_{<K}}{\partial x}\right|
              = \sum_{k<K} \left[\log y_k + \log\sigma(-t_k)\right].

    The inverse is :math:`t_k = \log y_k - \log \sum_{j>k} y_j`. Values are at least the smallest
    normal number, :math:`e^{-87}` in single precision, so that they have a logarithm. Values that
    would be smaller are not told apart. All are divided by their sum, which differs from 1 by
    rounding.

    References:
        Stan Development Team, *Stan Reference Manual: Transforms of constrained variables*, 2024,
        https://mc-stan.org/docs/reference-manual/transforms.html

    Example:
        >>> transform = LogStickBreakingTransform()
        >>> transform(torch.zeros(3))
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
        >>> transform.inv(transform(torch.tensor([-40.0, 30.0])))
        tensor([-40.,  30.])
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogStickBreakingTransform)

    def _call(self, x: Tensor) -> Tensor:
        taken, left = _log_shares(x)
        log_y = torch.cat([taken, torch.zeros_like(x[..., :1])], -1)
        log_y = log_y + F.pad(left.cumsum(-1), (1, 0))
        y = log_y.exp().clamp(min=torch.finfo(x.dtype).tiny)
        return y / y.detach().sum(-1, keepdim=True)  # the sum is 1, and its gradient zero

    def _inverse(self, y: Tensor) -> Tensor:
        y = y.clamp(min=torch.finfo(y.dtype).tiny)
        rest = y[..., 1:].flip(-1).cumsum(-1).flip(-1)
        return y[..., :-1].log() - rest.log() + _log_pieces(rest)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The logarithm of the volume at x; ``y`` is not used."""
        taken, left = _log_shares(x)
        return (taken + left.cumsum(-1)).sum(-1)


def _log_pieces(x: Tensor) -> Tensor:
    """The logarithms of how many pieces are left before each break, K - k."""
    return torch.arange(x.shape[-1], 0, -1, dtype=x.dtype, device=x.device).log()


def _log_shares(x: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithms of the share of the stick that each break takes, and of that which is left."""
    t = x - _log_pieces(x)
    return F.logsigmoid(t), F.logsigmoid(-t)


def with_logarithms(transform: Transform) -> Transform:
    """A bijection with :class:`LogStickBreakingTransform` in place of torch's stick-breaking.

    Example:
        >>> stick_breaking = torch.distributions.biject_to(torch.distributions.constraints.simplex)
        >>> with_logarithms(stick_breaking)
        LogStickBreakingTransform()
    """
    if type(transform) is StickBreakingTransform:
        return LogStickBreakingTransform()
    if type(transform) is IndependentTransform:
        inner = with_logarithms(transform.base_transform)
        return IndependentTransform(inner, transform.reinterpreted_batch_ndims)
    if type(transform) is ComposeTransform:
        return ComposeTransform([with_logarithms(part) for part in transform.parts])
    return transform
