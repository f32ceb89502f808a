r"""Diagnostics of importance weights :math:`w_i = \tilde p(x_i) / q(x_i)` of :math:`x_i \sim q`.

The effective sample size is the number of equally weighted draws that are as good, the Pareto shape
shows whether it can be trusted, and the mean weight is the evidence. None of them shows a mode that
:math:`q` never reaches.
"""

from __future__ import annotations

from math import log, sqrt
from typing import Any, NamedTuple

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from .validation import as_tensor

__all__ = ["Estimate", "ess_fraction", "log_evidence", "pareto_k"]


ROUNDING = 1e-3  #: relative differences of weights that may come from rounding in float32


class Estimate(NamedTuple):
    """An estimate and its standard error, which are tensors of the same shape.

    Attributes:
        value: The estimate.
        standard_error: Its standard error.

    Example:
        >>> estimate = Estimate(torch.tensor(1.5), torch.tensor(0.25))
        >>> value, error = estimate
        >>> float(value), float(estimate.standard_error)
        (1.5, 0.25)
    """

    value: Tensor
    standard_error: Tensor


def _as_doubles(log_weights: Any) -> Tensor:
    """Log weights in float64; raises a ValueError where there are none."""
    if not isinstance(log_weights, Tensor):
        cpu = torch.device("cpu")
        log_weights = as_tensor("log weights", log_weights, torch.double, cpu)
    if not log_weights.dim() or not len(log_weights):
        raise ValueError(
            f"log weights must have a leading dimension of one draw or more, got "
            f"{tuple(log_weights.shape)}"
        )
    return log_weights.double()


def ess_fraction(log_weights: Tensor) -> Tensor:
    r"""The effective sample size of importance weights over their number, in [0, 1].

    .. math:: \frac{(\sum_i w_i)^2}{N \sum_i w_i^2}

    Arguments:
        log_weights: Log weights ``(N, ...)``; :math:`-\infty` is a weight of zero.

    Returns:
        The fraction in each column, ``(...)``; 0 where all weights are zero.

    Raises:
        ValueError: There are no weights.

    References:
        Augustine Kong, *A note on importance sampling using standardized weights*, Technical Report
        348, University of Chicago, 1992.

    Example:
        >>> ess_fraction(torch.tensor([0.0, 0.0, -torch.inf, -torch.inf]))
        tensor(0.5000, dtype=torch.float64)
    """
    log_w = _as_doubles(log_weights)
    square = 2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)
    return torch.nan_to_num(square.exp() / len(log_w), nan=0.0)


def log_evidence(log_weights: Tensor) -> Estimate:
    r""":math:`\log Z = \log \frac1N \sum_i w_i`; the mean weight, not its log, is unbiased.

    The standard error, by the delta method, is that of the mean weight over the mean weight; NaN
    where all weights are zero, or there is only one.

    Arguments:
        log_weights: Log weights, ``(N, ...)``.

    Returns:
        The estimates of :math:`\log Z` of all columns, ``(...)``.

    Raises:
        ValueError: There are no weights.

    Example:
        >>> log_z, standard_error = log_evidence(torch.tensor([1.0, 3.0]).log())
        >>> round(float(log_z.exp()), 4), round(float(standard_error), 4)
        (2.0, 0.5)
    """
    log_w = _as_doubles(log_weights)
    log_z = log_w.logsumexp(0) - log(len(log_w))
    relative = (log_w - log_z).exp()
    return Estimate(log_z, relative.std(0) / sqrt(len(log_w)))


def pareto_k(log_weights: Tensor) -> float:
    r"""The shape :math:`\hat k` of a generalised Pareto tail fitted to the largest weights.

    Averages with these weights can be trusted where it is below 0.7, and cannot above.

    Arguments:
        log_weights: Log weights, of any shape.

    Returns:
        The shape. It is infinite where the tail, at most a fifth of the weights, has fewer than
        five of them, and minus infinite where these are all equal.

    Raises:
        ValueError: There are no weights.

    References:
        Aki Vehtari, Daniel Simpson, Andrew Gelman, Yuling Yao and Jonah Gabry, *Pareto Smoothed
        Importance Sampling*, 2024, https://arxiv.org/abs/1507.02646.

    Example:
        >>> pareto_k(torch.zeros(100))
        -inf
    """
    log_w = _as_doubles(log_weights).detach().reshape(-1)
    log_w = log_w[torch.isfinite(log_w)].sort().values
    tail = int(min(0.2 * len(log_w), 3 * sqrt(len(log_w))))
    if tail < 5:
        return torch.inf
    relative = (log_w - log_w[-1]).exp()
    excess = relative[-tail:] - relative[-tail - 1]
    if excess[-1] < ROUNDING:
        return -torch.inf  # weights that differ by rounding have no tail
    excess = excess[excess > 0]  # not those that equal the threshold
    if len(excess) < 5:
        return torch.inf
    with excess.device:  # where Pyro makes its tensors
        return float(fit_generalized_pareto(excess)[0])
