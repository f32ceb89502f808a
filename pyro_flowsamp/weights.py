r"""What the weights :math:`w_i = \tilde p(x_i) / q(x_i)` of draws :math:`x_i \sim q` tell.

The effective sample size says how much of a batch of proposals survives, the Pareto shape whether
that number can be believed, the mean weight is the evidence. None can see a mode that :math:`q`
never visits.
"""

from __future__ import annotations

from math import log, sqrt
from typing import NamedTuple

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

__all__ = ["Evidence", "ess_fraction", "log_evidence", "pareto_k"]


ROUNDING = 1e-3  #: relative differences of weights that are put down to float32


class Evidence(NamedTuple):
    """A log evidence estimate and its standard error (delta method)."""

    log_z: Tensor
    standard_error: Tensor


def ess_fraction(log_weights: Tensor) -> Tensor:
    r"""Effective sample size of importance weights over their number, in [0, 1], per column.

    .. math:: \frac{(\sum_i w_i)^2}{N \sum_i w_i^2}
              \qquad \text{(Kong, 1992; weights along dimension 0)}

    :math:`-\infty` is a weight of zero; all of them zero give 0.
    """
    log_w = log_weights.double()
    square = 2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)
    return torch.nan_to_num(square.exp() / len(log_w), nan=0.0)


def log_evidence(log_weights: Tensor) -> Evidence:
    r""":math:`\log Z = \log \frac1N \sum_i w_i`; the mean weight, not its log, is unbiased.

    The standard error is that of the mean weight over the mean weight; NaN where all weights are
    zero, or there is only one.
    """
    log_w = log_weights.double()
    log_z = log_w.logsumexp(0) - log(len(log_w))
    relative = (log_w - log_z).exp()
    return Evidence(log_z, relative.std(0) / sqrt(len(log_w)))


def pareto_k(log_weights: Tensor) -> float:
    r"""Shape :math:`\hat k` of a generalised Pareto tail fitted to the largest weights.

    Below 0.7 the weights' averages can be trusted, above they cannot (Vehtari et al., 2024,
    https://arxiv.org/abs/1507.02646). Infinite where the tail, which is a fifth of the
    weights at most, has fewer than five of them; minus infinite where these are all equal.
    """
    log_w = log_weights.detach().double().reshape(-1)
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
