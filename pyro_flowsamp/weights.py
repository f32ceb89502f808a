r"""Diagnostics of importance weights :math:`w_i = \tilde p(x_i) / q(x_i)` of :math:`x_i \sim q`.

The effective sample size is the number of equally weighted draws that are as good, the Pareto shape
shows whether it can be trusted, and the mean weight is the evidence. None of them shows a mode that
:math:`q` never reaches.
"""

from __future__ import annotations

from math import inf, isinf, log, sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from .validation import as_tensor

__all__ = [
    "Estimate",
    "are_flat",
    "degrees_of_variance",
    "ess_fraction",
    "log_mean_weight",
    "pareto_k",
    "rounding_size",
    "smoothed_log_weights",
    "student_t_quantile",
    "summed_degrees",
]


ROUNDING = 1e-3  #: relative differences of weights that may come from rounding in float32
FEWEST_IN_TAIL = 5  #: weights from which on a tail is fitted
UNDERFLOW = 1e-290  #: ratio of two weights of a tail below which sums over it are not computed


class _Pair(NamedTuple):
    value: Tensor
    standard_error: Tensor


class Estimate(_Pair):
    """An estimate and its standard error, which are tensors of the same shape.

    Attributes:
        value: The estimate.
        standard_error: Its standard error.
        degrees: Degrees of freedom of the standard error; infinite where it is known well, or they
            are not known. It is an attribute only, so that an estimate is a pair.

    Example:
        >>> estimate = Estimate(torch.tensor(1.5), torch.tensor(0.25))
        >>> value, error = estimate
        >>> float(value), float(estimate.standard_error), estimate.degrees
        (1.5, 0.25, inf)
    """

    degrees: float = inf

    def __new__(cls, value: Tensor, standard_error: Tensor, degrees: float = inf) -> Estimate:
        self = super().__new__(cls, value, standard_error)
        self.degrees = degrees
        return self

    def interval(
        self, probability: float = 0.95, degrees: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """The ends of a central confidence interval, by Student's t distribution.

        Arguments:
            probability: Probability that it covers the truth.
            degrees: Degrees of freedom of the standard error in place of its own, where it comes of
                few independent values: their number less one.

        Example:
            >>> low, high = Estimate(torch.tensor(0.0), torch.tensor(1.0)).interval(degrees=3)
            >>> round(float(high), 3)
            3.182
        """
        degrees = self.degrees if degrees is None else degrees
        half = student_t_quantile(0.5 + probability / 2, degrees) * self.standard_error
        return self.value - half, self.value + half

    def with_error(self, error: float) -> Estimate:
        r"""An estimate with the same value, and one more independent error of a known size.

        The standard error is :math:`\sqrt{s^2 + e^2}`. As e is no estimate, the degrees of freedom
        are those of s, more of them by Welch's formula.

        Arguments:
            error: The standard deviation e of the error, such as that of rounding.

        Example:
            >>> both = Estimate(torch.tensor(0.0), torch.tensor(3.0), degrees=5.0).with_error(4.0)
            >>> float(both.standard_error), round(both.degrees, 2)  # 5 · 25² / 9²
            (5.0, 38.58)
        """
        own = self.standard_error.square()
        parts = (float(own.mean()), self.degrees), (error**2, inf)
        return Estimate(self.value, (own + error**2).sqrt(), summed_degrees(*parts))


def rounding_size(log_density: Tensor, dtype: torch.dtype) -> float:
    r"""The standard deviation of an error by rounding that log densities have in common.

    A number of the type is off by up to :math:`u |\ell|`, where u is half the distance from one to
    the next number: by :math:`u |\ell| / \sqrt 3`, if the error is uniform. In a log density most
    of :math:`\ell` is often the same at all points, such as the constants of many data, and so is
    the error of its last addition. A mean over points does not make it smaller, and their spread
    does not show it. It is an order of magnitude: several additions may add up to more.

    Arguments:
        log_density: Values :math:`\ell`, of any shape and type; the median of those that are finite
            counts.
        dtype: The type in which they were computed.

    References:
        Nicholas Higham, *Accuracy and Stability of Numerical Algorithms*, 2002, chapters 2 and 4,
        https://doi.org/10.1137/1.9780898718027

    Example:
        >>> values = torch.tensor([-1000.0, -1001.0, -torch.inf])
        >>> f"{rounding_size(values, torch.float32):.1e}"  # 1000 / 2²⁴ / √3
        '3.4e-05'
    """
    finite = log_density[torch.isfinite(log_density)].double()
    if not len(finite):
        return 0.0
    return float(finite.abs().median()) * torch.finfo(dtype).eps / sqrt(12)


def student_t_quantile(probability: float, degrees: float) -> float:
    r"""The quantile of Student's t distribution, also of infinitely many degrees of freedom.

    Arguments:
        probability: Probability below the quantile, in (0, 1).
        degrees: The degrees of freedom.

    Raises:
        ValueError: The probability is not in (0, 1), or the degrees are not positive.

    Example:
        >>> round(student_t_quantile(0.975, 3), 4), round(student_t_quantile(0.975, inf), 4)
        (3.1824, 1.96)
    """
    if not 0 < probability < 1:
        raise ValueError(f"a quantile needs a probability in (0, 1), got {probability}")
    if not degrees > 0:
        raise ValueError(f"Student's t needs positive degrees of freedom, got {degrees}")
    if isinf(degrees):
        return NormalDist().inv_cdf(probability)
    from scipy.special import stdtrit  # takes long to import

    return float(stdtrit(degrees, probability))


def degrees_of_variance(x: Tensor, size: float) -> float:
    r"""The degrees of freedom of a sample variance :math:`s^2`.

    Of n independent values with the kurtosis :math:`\kappa`, its relative variance is
    :math:`(\kappa - 1) / n + 2 / (n (n - 1))`. That of a scaled :math:`\chi^2` variable with
    :math:`\nu` degrees of freedom is :math:`2 / \nu`. So :math:`\nu = 2 n / (\kappa - 1 +
    2 / (n - 1))`, which is n - 1 for normal values, and few where few large values make up the
    variance. Never below one.

    Arguments:
        x: The values, of any shape.
        size: Their effective number n.

    Returns:
        The degrees of freedom; infinite where all values are equal.

    Example:
        >>> x = torch.randn(10_000, generator=torch.manual_seed(0))
        >>> 9000 < degrees_of_variance(x, len(x)) < 11_000
        True
    """
    square = (x - x.mean()).double().square()
    variance = float(square.mean())
    if not variance > 0:
        return inf
    if size <= 1:
        return 1.0
    excess = float(square.square().mean()) / variance**2 - 1
    return max(1.0, 2 * size / (excess + 2 / (size - 1)))


def summed_degrees(*parts: tuple[float, float]) -> float:
    r"""The degrees of freedom of a sum of independent estimates of variances.

    That of :math:`\sum_i a_i`, with :math:`\nu_i` degrees of freedom each, has the variance
    :math:`2 \sum_i a_i^2 / \nu_i`, so that :math:`\nu = (\sum_i a_i)^2 / \sum_i (a_i^2 / \nu_i)`.

    Arguments:
        parts: Pairs :math:`(a_i, \nu_i)`.

    References:
        Bernard Welch, *The generalization of 'Student's' problem when several different population
        variances are involved*, 1947, https://doi.org/10.1093/biomet/34.1-2.28

    Example:
        >>> summed_degrees((1.0, 5.0), (1.0, 5.0)), summed_degrees((1.0, 5.0), (0.0, 1.0))
        (10.0, 5.0)
    """
    spread = sum(a**2 / degrees for a, degrees in parts)
    return sum(a for a, _ in parts) ** 2 / spread if spread > 0 else inf


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


def log_mean_weight(log_weights: Tensor) -> Estimate:
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
        >>> log_z, standard_error = log_mean_weight(torch.tensor([1.0, 3.0]).log())
        >>> round(float(log_z.exp()), 4), round(float(standard_error), 4)
        (2.0, 0.5)
    """
    log_w = _as_doubles(log_weights)
    log_z = log_w.logsumexp(0) - log(len(log_w))
    relative = (log_w - log_z).exp()
    return Estimate(log_z, relative.std(0) / sqrt(len(log_w)))


def are_flat(log_w: Tensor, most: float) -> bool:
    """Whether the largest log weight is at most so many nats above the median.

    Arguments:
        log_w: Log weights, of any shape.
        most: The bound, in nats.

    Example:
        >>> [are_flat(torch.tensor([0.0, 0.0, largest]), 1.1) for largest in (1.0, 2.0)]
        [True, False]
    """
    return float(log_w.max() - log_w.median()) <= most


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
    tail = _tail_size(len(log_w))
    if tail < FEWEST_IN_TAIL:
        return torch.inf
    relative = (log_w - log_w[-1]).exp()
    return _tail_shape(relative[-tail:] - relative[-tail - 1])[0]


def _tail_size(num: int) -> int:
    return int(min(0.2 * num, 3 * sqrt(num)))


def _tail_shape(excess: Tensor) -> tuple[float, float]:
    """Shape and scale of the tail of sorted excesses over a threshold."""
    if excess[-1] < ROUNDING:
        return -torch.inf, 0.0  # weights that differ by rounding have no tail
    excess = excess[excess > 0]  # not those that equal the threshold
    if len(excess) < FEWEST_IN_TAIL or excess[len(excess) // 4] < UNDERFLOW:
        return torch.inf, 0.0
    with excess.device:  # where Pyro makes its tensors
        k, sigma = fit_generalized_pareto(excess)
    return float(k), float(sigma)


def smoothed_log_weights(log_weights: Tensor) -> Tensor:
    r"""Log weights whose largest are replaced by quantiles of the tail fitted to them.

    With the shape k and the scale :math:`\sigma` of the tail above the threshold u, the j-th of the
    M largest weights becomes :math:`u + \sigma ((1 - (j - 1/2) / M)^{-k} - 1) / k`, and at most the
    largest weight. A mean of such weights varies less, and has little bias for :math:`k < 0.7`.

    Arguments:
        log_weights: Log weights, ``(N,)``.

    Returns:
        The smoothed log weights, ``(N,)``, float64; the same weights where there is no tail to fit.

    References:
        Aki Vehtari, Daniel Simpson, Andrew Gelman, Yuling Yao and Jonah Gabry, *Pareto Smoothed
        Importance Sampling*, 2024, https://arxiv.org/abs/1507.02646.

    Example:
        >>> log_w = torch.linspace(0, 1, 100)
        >>> bool(smoothed_log_weights(log_w).isclose(log_w.double(), atol=0.1).all())
        True
    """
    log_w = log_weights.detach().double().reshape(-1)
    tail = _tail_size(int(torch.isfinite(log_w).sum()))
    if tail < FEWEST_IN_TAIL or bool((log_w == inf).any()):
        return log_w
    values, order = log_w.nan_to_num(nan=-inf, neginf=-inf).sort()
    relative = (values - values[-1]).exp()
    threshold = relative[-tail - 1]
    k, sigma = _tail_shape(relative[-tail:] - threshold)
    if isinf(k):
        return log_w
    p = (torch.arange(tail, device=log_w.device, dtype=torch.double) + 0.5) / tail
    excess = -sigma * (-p).log1p() if k == 0 else sigma * torch.expm1(-k * (-p).log1p()) / k
    smooth = (threshold + excess).clamp(max=1.0).log() + values[-1]
    return log_w.index_copy(0, order[-tail:], smooth)
