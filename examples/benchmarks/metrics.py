r"""Distances of draws from a known distribution, and effective sample sizes of weights.

Two samples against each other: :func:`mmd`, :func:`wasserstein2`. Draws against modes:
:func:`hausdorff`, :func:`mode_chi2`. A flow :math:`q` against a density :math:`\tilde p = Z p`, by
:math:`\log q` and :math:`\log \tilde p` at draws of :math:`q` (reverse: blind to modes that
:math:`q` misses) or of :math:`p` (forward: not blind): the divergences and effective sample sizes
of Máté and Fleuret (2023, https://arxiv.org/abs/2301.07388), Eqs. 14–18.
"""

from __future__ import annotations

from math import log
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_flowsamp import ess_fraction

__all__ = [
    "ChiSquare",
    "ess_forward",
    "ess_reverse",
    "forward_kl",
    "hausdorff",
    "mmd",
    "mode_chi2",
    "reverse_kl",
    "wasserstein2",
]

CHUNK = 1024  #: rows of a distance matrix held at once
MEDIAN_POINTS = 2000  #: enough for a median distance


# ---- two samples --------------------------------------------------------------------------------


def mmd(x: Tensor, y: Tensor, bandwidth: float | Tensor | None = None) -> Tensor:
    r"""Unbiased squared maximum mean discrepancy, zero in the mean for equal distributions.

    .. math:: \frac{1}{m(m-1)} \sum_{i \ne j} k(x_i, x_j) + \frac{1}{n(n-1)} \sum_{i \ne j}
              k(y_i, y_j) - \frac{2}{mn} \sum_{i,j} k(x_i, y_j),\qquad
              k(a, b) = e^{-\|a - b\|^2 / 2h^2}

    References:
        Gretton et al.: A Kernel Two-Sample Test, 2012, https://jmlr.org/papers/v13/gretton12a.html

    Arguments:
        x, y: Draws, ``(m, d)`` and ``(n, d)``.
        bandwidth: :math:`h`; where None a tenth of the median distance between the pooled points,
            as in the annealing flow paper (https://arxiv.org/abs/2409.20547). Give the same one to
            all the samplers that are compared, and a wider one in more than a few dimensions:
            where no two draws are within a tenth of the median, the kernel is zero between all
            of them and so is the result, however much the distributions differ.
    """
    x, y = x.double(), y.double()
    h = 0.1 * _median_distance(torch.cat([_thin(x), _thin(y)])) if bandwidth is None else bandwidth
    m, n = len(x), len(y)
    within_x = (_kernel_sum(x, x, h) - m) / (m * (m - 1))  # without the diagonal's ones
    within_y = (_kernel_sum(y, y, h) - n) / (n * (n - 1))
    return within_x + within_y - 2 * _kernel_sum(x, y, h) / (m * n)


def _kernel_sum(x: Tensor, y: Tensor, bandwidth: float | Tensor) -> Tensor:
    """Sums the kernel by blocks of rows: two sets of ten thousand points would need a gigabyte."""
    total = x.new_zeros(())
    for rows in x.split(CHUNK):
        total = total + torch.cdist(rows, y).div_(bandwidth).square_().mul_(-0.5).exp_().sum()
    return total


def _thin(x: Tensor) -> Tensor:
    """At most half of ``MEDIAN_POINTS``, evenly spaced: consecutive draws may be of one chain."""
    return x[:: -(-2 * len(x) // MEDIAN_POINTS)]


def _median_distance(x: Tensor) -> Tensor:
    return torch.pdist(x).median()


def wasserstein2(x: Tensor, y: Tensor, max_points: int = 2000) -> float:
    r"""Wasserstein distance of order 2 between equally many draws, by the optimal assignment.

    .. math:: W_2 = \min_\pi \Big( \frac1n \sum_i \|x_i - y_{\pi(i)}\|^2 \Big)^{1/2}

    Positive even between two samples of one distribution, the more so the higher the dimension:
    compare with the distance between two exact samples.

    Arguments:
        x, y: Draws, ``(m, d)`` and ``(n, d)``. The longer is subsampled at random to the length
            of the other.
        max_points: To how many both are subsampled at most; the cost grows with the cube.

    Raises:
        ImportError: scipy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("wasserstein2 needs scipy: pip install scipy") from error
    n = min(len(x), len(y), max_points)
    cost = torch.cdist(_subsample(x, n), _subsample(y, n)).square().cpu().numpy()
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].mean() ** 0.5)


def _subsample(x: Tensor, num: int) -> Tensor:
    x = x.detach().double()
    return x if len(x) == num else x[torch.randperm(len(x), device=x.device)[:num]]


# ---- modes --------------------------------------------------------------------------------------


def hausdorff(modes: Tensor, draws: Tensor) -> Tensor:
    r"""One-sided Hausdorff distance :math:`\max_k \min_i \|\mu_k - x_i\|`, 0-d.

    Large where a mode is missed. It depends on the number of draws, 4096 in the paper (Eq. 14).

    Arguments:
        modes: ``(K, d)``.
        draws: ``(N, d)``.
    """
    modes, draws = modes.double(), draws.to(modes.device).double()
    nearest = [torch.cdist(m, draws).min(-1).values for m in modes.split(CHUNK)]
    return torch.cat(nearest).max()


class ChiSquare(NamedTuple):
    """A chi-square statistic and the probability of a larger one."""

    statistic: Tensor
    p_value: Tensor


def mode_chi2(
    counts: Tensor, weights: Tensor, effective_size: float | Tensor | None = None
) -> ChiSquare:
    r"""Pearson's test of how often each mode was visited against the modes' masses.

    .. math:: \chi^2 = n \sum_k \frac{(c_k / \sum_j c_j - w_k)^2}{w_k} \sim \chi^2_{K - 1}

    Arguments:
        counts: Draws, or sums of weights, in each mode, ``(K,)``.
        weights: The true masses, all positive, ``(K,)``; scaled to sum to one.
        effective_size: :math:`n`, where draws are correlated or weighted; by default
            :math:`\sum_k c_k`.
    """
    counts, weights = counts.double(), weights.double()
    n = counts.sum() if effective_size is None else effective_size
    weights = weights / weights.sum()
    statistic = n * ((counts / counts.sum() - weights).square() / weights).sum()
    freedom = torch.full_like(statistic, 0.5 * (len(weights) - 1))
    return ChiSquare(statistic, torch.special.gammaincc(freedom, 0.5 * statistic))


# ---- densities ----------------------------------------------------------------------------------


def reverse_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    r""":math:`\mathbb E_q[\log q/\tilde p] = \mathrm{KL}(q \| p) - \log Z`, at draws of q."""
    return (log_q.double() - log_p.double()).mean(0)


def forward_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    r""":math:`\mathbb E_p[\log \tilde p/q] = \mathrm{KL}(p \| q) + \log Z`, at draws of p."""
    return (log_p.double() - log_q.double()).mean(0)


def ess_reverse(log_weights: Tensor) -> Tensor:
    r""":math:`(\mathbb E_q w)^2 / \mathbb E_q w^2` of :math:`w = \tilde p / q` at draws of q."""
    return ess_fraction(log_weights)


def ess_forward(log_weights: Tensor) -> Tensor:
    r"""Effective sample size of :math:`w = \tilde p / q`, estimated from draws of p instead of q.

    As :math:`\mathbb E_q w^2 = Z\, \mathbb E_p w` and :math:`1 / Z = \mathbb E_p[1/w]`, it is

    .. math:: \frac{(\mathbb E_q w)^2}{\mathbb E_q w^2}
              = \frac{1}{\mathbb E_p[w]\; \mathbb E_p[1/w]} \in [0, 1].

    It falls where q misses a mode: there are draws there, of large weight.
    """
    log_w = log_weights.double()
    num = log(len(log_w))
    return torch.exp(2 * num - log_w.logsumexp(0) - (-log_w).logsumexp(0))
