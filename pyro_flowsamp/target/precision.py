r"""Precision of a target: the rounding error of its log density, and the same target in float64.

Every acceptance ratio and every weight is a difference of log densities. Where their rounding
errors are as large as the differences, chains accept moves that they should not, or none, whatever
the sampler is. Sums over many data, and data far from zero, lose digits of single precision.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ..seeding import kept_generators
from .density import Target
from .evaluation import ChunkedDensity
from .site import SiteLayout

__all__ = ["AGREEMENT", "as_double", "difference_noise", "noise_along_lines", "rounding_error"]

#: steps along a line of a difference table; there is a point more
LINE_STEPS = 8
#: lengths of a step, as parts of the distance between two of the points: a density that is rounded
#: coarsely is constant along the short lines, and a density with kinks seems noisy along the long
SHORT_STEP, LONG_STEP = 2.0**-12, 2.0**-6
#: orders of differences in which noise is looked for; in a quadratic they are noise from 3 on
ORDERS = 1, 2, 3, 4, 5, 6
#: greatest ratio of the noise in three consecutive orders that agree
CONSISTENT = 4.0
#: difference up to which densities in both precisions are the same density, relative to them
AGREEMENT = 1e-3
#: the same in units of the noise in float32
AGREEMENT_IN_NOISE = 10.0
#: the noise of a density that is evaluated in float64, as a part of the noise in float32, at most
LESS_NOISE = 1e-3
#: points at which a density in float64 is compared
CHECKED_POINTS = 8


# ---- noise by differences ------------------------------------------------------------------------


def difference_noise(values: Tensor) -> Tensor:
    r"""The noise of a smooth function, from its values at equal steps along short lines.

    Let the values be :math:`f_i = f_s(t_i) + \epsilon_i`, with a smooth function and independent
    noise of variance :math:`\sigma^2`. The k-th differences of the smooth part vanish as k grows,
    and those of the noise have the variance :math:`\tbinom{2k}{k} \sigma^2`. So

    .. math:: \sigma_k^2 = \frac{(k!)^2}{(2k)!}\, \frac1{m - k} \sum_i (\Delta^k f_i)^2

    tends to :math:`\sigma^2` as soon as the smooth part has vanished. The estimate is the first
    :math:`\sigma_k` that differs from the next two by a factor of at most :data:`CONSISTENT`, where
    differences of this order have both signs; or the last one, where there is none such.

    Arguments:
        values: Values along N lines, ``(N, m)``, with m > 6.

    Returns:
        The standard deviation of the noise along each line, ``(N,)``, in float64.

    References:
        Moré and Wild, *Estimating Computational Noise*, 2011, https://doi.org/10.1137/100786125

    Example:
        >>> t = torch.linspace(0, 0.01, 9, dtype=torch.float64)
        >>> _ = torch.manual_seed(0)
        >>> noisy = t.exp() + 1e-6 * torch.randn(1000, 9, dtype=torch.float64)
        >>> 8e-7 < float(difference_noise(noisy).square().mean().sqrt()) < 1.2e-6
        True
    """
    differences = values.double()
    sigmas, signs = [], []
    for k in ORDERS:
        differences = differences.diff(dim=-1)
        variance = differences.square().mean(-1) / math.comb(2 * k, k)
        sigmas.append(variance.sqrt())
        signs.append((differences > 0).any(-1) & (differences < 0).any(-1))
    sigma, both = torch.stack(sigmas, -1), torch.stack(signs, -1)
    three = sigma.unfold(-1, 3, 1)
    agree = (three.amax(-1) <= CONSISTENT * three.amin(-1)) & both[:, : three.shape[1]]
    fallback = torch.full_like(agree[:, :1], True)
    first = torch.cat([agree, fallback], -1).int().argmax(-1, keepdim=True)
    last = len(ORDERS) - 1
    return sigma.gather(-1, torch.where(first == three.shape[1], last, first)).squeeze(-1)


def _lines(target: Target, x: Tensor, step: float) -> list[Tensor]:
    """Points ``(N, d)`` of each step along lines that begin at points and lead to the next ones.

    All are numbers of the precision of ``x``, at exactly equal distances: otherwise the rounding
    of the points would pass for noise of the density. At K contexts the next point is the next one
    at the same context.
    """
    apart = 1 if target.contexts is None else len(target.contexts)
    toward = x.roll(-apart, 0) if len(x) > apart else x + 1
    bits = -math.log2(torch.finfo(x.dtype).eps)
    largest = x.abs().maximum(toward.abs()).clamp(min=torch.finfo(x.dtype).eps)
    grid = torch.exp2(largest.log2().floor() + 2 - bits)  # a power of two, a few units of x
    steps = (step * (toward - x) / grid).round()
    steps = torch.where((steps == 0).all(-1, keepdim=True), 1.0, steps)
    start = (x / grid).round()
    return [(start + i * steps) * grid for i in range(LINE_STEPS + 1)]


def noise_along_lines(target: Target, x: Tensor, step: float = SHORT_STEP) -> float:
    r"""The noise of the log density in nats, by the median of difference tables.

    Arguments:
        target: The target.
        x: Points ``(N, d)`` of the size and spread of its draws.
        step: The length of a step along a line, as a part of the distance to the next point.

    Returns:
        The median of :func:`difference_noise` over lines from these points; infinity where no line
        has finite densities.

    Example:
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1) + 1000, 2)
        >>> 1e-6 < noise_along_lines(target, torch.randn(50, 2)) < 1e-4
        True
    """
    with torch.no_grad():
        values = torch.stack([target.log_prob(points) for points in _lines(target, x, step)], -1)
    finite = values.isfinite().all(-1)
    if not bool(finite.any()):
        return math.inf
    return float(difference_noise(values[finite]).median())


# ---- the same target in float64 ------------------------------------------------------------------


@contextmanager
def _double_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _to_double(value: Any) -> Any:
    """A value with float64 in place of other floating-point tensors, also in containers."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if type(value) in (list, tuple):
        return type(value)(_to_double(v) for v in value)
    if type(value) is dict:
        return {key: _to_double(v) for key, v in value.items()}
    return value


def _double_model(model: Callable) -> Callable:
    """The model, run with float64 as the default type."""

    @wraps(model, updated=())
    def in_double(*args: Any, **kwargs: Any) -> Any:
        with _double_by_default():
            return model(*args, **kwargs)

    return in_double


def _attempt(target: Target) -> Target:
    """The target in float64, if the density can be evaluated there; unchecked."""
    known = target.model
    if known is None:
        old = target.layout
        layout = SiteLayout(old.sites, torch.float64, old.device, old.angles)
        density = ChunkedDensity(target.density.density, 2 * target.density.bytes_per_point)
        return Target(density, layout, target.batching)
    with _double_by_default(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong with the model has been said once
        args, kwargs = _to_double(known.args), _to_double(known.kwargs)
        double = Target.from_model(_double_model(known.model), *args, **kwargs)
        double = double.conditional_on(*target.context_names) if target.context_names else double
    return double if target.contexts is None else double.at_contexts(target.contexts.double())


def as_double(target: Target) -> Target | None:
    r"""A target in float64 with the same density.

    A model runs with float64 as the default type and with its floating-point arguments in float64.
    An energy or potential is called at points in float64. Data that a function holds itself stay
    as they are: where this makes the density fail, or be computed in single precision all the same,
    there is no such target. The noise of the density tells (:func:`noise_along_lines`): in float64
    it must be at most :data:`LESS_NOISE` of that in float32. Densities must agree within
    :data:`AGREEMENT` at some initial points.

    torch's global random state does not change. Evaluations are counted together with the
    target's.

    Arguments:
        target: A target.

    Returns:
        The target in float64, the same one where it is so already; None where there is none.

    Example:
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> as_double(target).dtype
        torch.float64
        >>> matrix = torch.eye(2)  # of float32, and nobody knows of it
        >>> as_double(Target.from_energy(lambda x: (x @ matrix).square().sum(-1), 2)) is None
        True
    """
    if target.dtype == torch.float64:
        return target
    with kept_generators(target.device), torch.no_grad():
        try:
            double = _attempt(target)
            double.counter = target.counter
            double.compile_mode, double.tracing = target.compile_mode, target.tracing
            return double if _agree(target, double) else None
        except Exception:  # whatever the user's function raises on float64
            return None


def _agree(target: Target, double: Target) -> bool:
    """Whether a target has the same density as another one, computed with less noise."""
    contexts = 1 if target.contexts is None else len(target.contexts)
    x = target.initial_points(CHECKED_POINTS * contexts)
    single, exact = target.log_prob(x), double.log_prob(x.double())
    if exact.dtype != torch.float64 or double.dtype != torch.float64:
        return False
    noise = max(noise_along_lines(target, x, step) for step in (SHORT_STEP, LONG_STEP))
    both = single.isfinite() & exact.isfinite()
    gap = (single.double() - exact)[both].abs()
    most = AGREEMENT * (1 + exact[both].abs()) + AGREEMENT_IN_NOISE * noise
    if not len(gap) or bool((gap > most).any()):
        return False
    return noise_along_lines(double, x.double()) <= LESS_NOISE * noise


# ---- both ----------------------------------------------------------------------------------------


def rounding_error(target: Target, x: Tensor) -> float:
    r"""The rounding error of a target's log density, in nats.

    One estimate is the noise of the density along short lines (:func:`noise_along_lines`). It
    misses errors that are the same at neighbouring points. Another compares with the same target
    in float64, where there is one (:func:`as_double`). With
    :math:`e_i = \log p_{32}(x_i) - \log p_{64}(x_i)` it is the median of
    :math:`|e_i - \operatorname{median}(e)|`, since an error that is the same at all points does no
    harm. Where there is none, noise is also sought along longer lines. Kinks of the density on
    these lines pass for noise. The result is the larger estimate.

    Arguments:
        target: A target.
        x: Points ``(N, d)`` of the size and spread of its draws, such as states of chains; at K
            contexts with those of context i in the rows of i mod K.

    Returns:
        The error; infinity where no densities are finite.

    Example:
        >>> def far(x, offset=1e6):
        ...     return 0.5 * (x + offset - offset).square().sum(-1)
        >>> x = torch.randn(100, 1)
        >>> rounding_error(Target.from_energy(far, 1), x) > 1e-3
        True
        >>> near = Target.from_energy(lambda x: far(x, offset=1.0), 1)
        >>> rounding_error(near, x) < 1e-6
        True
    """
    noise, double = noise_along_lines(target, x), as_double(target)
    if double is None:
        return max(noise, noise_along_lines(target, x, LONG_STEP))
    if double is target:
        return noise
    with torch.no_grad():
        error = target.log_prob(x).double() - double.log_prob(x.double())
    error = error[error.isfinite()]
    return max(noise, float((error - error.median()).abs().median())) if len(error) else noise
