r"""Counts of rare points in two samples beside each other: particles, and draws.

If points of two samples of N and :math:`N'` are rare with the same probability, their numbers K and
:math:`K'` are nearly independent Poisson variables, and given their sum

.. math:: K \mid K + K' \sim \mathrm{Bin}\Bigl(K + K', \frac{N}{N + N'}\Bigr),

whatever that probability is. So a large K shows that points of the first sample are rare with a
larger one.

References:
    J. Przyborowski and H. Wilenski, *Homogeneity of results in testing samples from Poisson
    series*, 1940, https://doi.org/10.1093/biomet/31.3-4.313
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["distinct_points", "most_by_chance", "probability_of_as_many"]


def probability_of_as_many(count: int, other: float, share: float) -> float:
    """The probability that a binomial count of ``count + other`` is ``count`` or more.

    Arguments:
        count: The number K of rare points in the first sample, one at least.
        other: That of the second sample.
        share: The share of the first sample in both.

    Example:
        >>> round(probability_of_as_many(3, 0, 0.5), 4)  # all three are of the first sample
        0.125
    """
    from scipy.special import betainc  # takes long to import

    return float(betainc(count, other + 1, share))


def most_by_chance(other: float, size: float, other_size: float, probability: float) -> int:
    """The largest number of rare points in the first sample that chance explains.

    Arguments:
        other: The number of rare points in the second sample.
        size, other_size: The sizes of both samples.
        probability: The probability below which chance does not explain as many.

    Example:
        >>> most_by_chance(0, 1000, 1000, 0.001), most_by_chance(5, 1000, 1000, 0.001)
        (9, 21)
    """
    share = size / (size + other_size)
    most = 0
    while most < size and probability_of_as_many(most + 1, other, share) >= probability:
        most += 1
    return most


def distinct_points(points: Tensor, index: Tensor) -> Tensor:
    """The indices of the first of equal points.

    Arguments:
        points: Points, ``(N, d)``.
        index: The indices of those that are looked at.

    Example:
        >>> import torch
        >>> distinct_points(torch.tensor([[5.0], [1.0], [1.0]]), torch.tensor([0, 1, 2])).sort()[0]
        tensor([0, 1])
    """
    if not len(index):
        return index
    _, group = points[index].unique(dim=0, return_inverse=True)
    first = index.new_full((int(group.max()) + 1,), len(points))
    return first.scatter_reduce(0, group, index, "amin")
