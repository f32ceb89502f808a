r"""Counts of rare points in two samples beside each other: particles, and draws.

If points of two samples of N and :math:`N'` are rare with the same probability, their numbers K and
:math:`K'` are nearly independent Poisson variables, and given their sum

.. math:: K \mid K + K' \sim \mathrm{Bin}\Bigl(K + K', \frac{N}{N + N'}\Bigr),

whatever that probability is. So a large K shows that points of the first sample are rare with a
larger one.

Points of the first sample may have weights :math:`w_j` of sum one. Let R be the rare ones, of the
weight :math:`S = \sum_R w_j`. Then K and N are those of equal points of which the same share is
rare, and whose number has the same relative variance:

.. math:: \frac KN = S, \qquad \frac1K = \frac{\sum_R w_j^2}{S^2} .

With one number N for all points, :math:`1 / \sum_j w_j^2`, a few rare points of large weights would
count as many, and be an alarm too often.

References:
    J. Przyborowski and H. Wilenski, *Homogeneity of results in testing samples from Poisson
    series*, 1940, https://doi.org/10.1093/biomet/31.3-4.313
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["distinct_points", "effective_counts", "most_by_chance", "probability_of_as_many"]


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


def effective_counts(weights: Tensor, rare: Tensor) -> tuple[int, float]:
    """The numbers K of rare points and N of all, of weighted points.

    Arguments:
        weights: The weights of all points, of sum one, ``(N,)``.
        rare: The indices of those that are rare.

    Returns:
        K, rounded, and N; where none is rare, N is the effective sample size.

    Example:
        >>> import torch
        >>> weights = torch.tensor([0.25, 0.25, 0.25, 0.125, 0.125])
        >>> [effective_counts(weights, torch.tensor(rare)) for rare in ([0, 1], [3])]
        [(2, 4.0), (1, 8.0)]
    """
    if not len(rare):
        return 0, 1 / float(weights.square().sum())
    share, square = float(weights[rare].sum()), float(weights[rare].square().sum())
    if square == 0.0:  # none that counts
        return effective_counts(weights, rare[:0])
    return int(share**2 / square + 0.5), share / square


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
