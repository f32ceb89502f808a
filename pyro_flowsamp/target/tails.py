r"""Tails of a density: how fast it falls with distance.

Along a direction in which k dimensions grow, the density p has an integral only if

.. math:: \frac{d \log p}{d \log r} < -k

far out, because :math:`\int^\infty r^{k - 1} p(r)\,dr` is infinite otherwise.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from .density import Target

__all__ = ["radial_slope"]


def radial_slope(target: Target, near: Tensor, far: Tensor, ratio: float) -> Tensor:
    r"""The slope of the log density against the log distance, between pairs of points.

    Arguments:
        target: The target.
        near, far: Points ``(N, d)``, the second ``ratio`` times as far from a centre.
        ratio: The ratio of the distances, larger than 1.

    Returns:
        The slopes ``(N,)`` in float64; not finite where a density is zero.

    Example:
        >>> target = Target.from_energy(lambda x: 3 * x.norm(dim=-1).log(), 2)  # falls as r^-3
        >>> near = torch.tensor([[2.0, 0.0]])
        >>> radial_slope(target, near, 10 * near, 10.0)
        tensor([-3.0000], dtype=torch.float64)
    """
    with torch.no_grad():
        low, high = (target.log_prob(x.to(target.dtype)).double() for x in (near, far))
    return (high - low) / log(ratio)
