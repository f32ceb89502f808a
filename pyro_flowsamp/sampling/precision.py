"""The search in float64, where the density has too large rounding errors."""

from __future__ import annotations

import logging

import torch

from ..checkpoint.scope import active
from ..target.precision import as_double, rounding_error
from .candidates import fixed_guide
from .search import SamplerSearch
from .storage import interruptible

__all__ = ["precise_enough"]

log = logging.getLogger(__name__)


def precise_enough(sampler: SamplerSearch) -> tuple[SamplerSearch, list[str]]:
    """The search itself, or one in float64 where the density has too large rounding errors.

    Arguments:
        sampler: A search that has found the modes.

    Returns:
        The search, and what is wrong where float64 is needed and cannot be had.

    Example:
        >>> from types import SimpleNamespace
        >>> from pyro_flowsamp import SearchOptions, Target
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> found = SimpleNamespace(
        ...     target=target, options=SearchOptions(), particles=torch.randn(50, 1)
        ... )
        >>> precise_enough(found)[0] is found
        True
    """
    try:
        with interruptible("precision", lambda: True):
            return _precise_enough(sampler)
    except KeyboardInterrupt:
        active().watch(sampler.target)
        sampler.take_first()
        return sampler, [
            "Ctrl-C ended the look at rounding errors of the log density, or the search in float64"
        ]


def _precise_enough(sampler: SamplerSearch) -> tuple[SamplerSearch, list[str]]:
    target, options = sampler.target, sampler.options
    if target.dtype == torch.float64:
        return sampler, []
    error = rounding_error(target, sampler.particles[: options.rounding_points])
    if error <= options.max_rounding_error:
        return sampler, []
    if sampler.modes.interrupted:
        return sampler, [
            f"the log density has rounding errors of {error:.2g} nats in float32, and Ctrl-C "
            f"left no time for float64: call sample() again"
        ]
    double = as_double(target)
    if double is None:
        return sampler, [
            f"the log density has rounding errors of {error:.2g} nats: give the model its data in "
            f"float64 and call torch.set_default_dtype(torch.float64) first"
        ]
    log.info("rounding errors of %.2g nats: the density is evaluated in float64", error)
    points = None if sampler.points is None else sampler.points.double()
    before = sampler.evaluations_before  # the target in float64 counts on
    guide = None if sampler.guide is None else fixed_guide(double, sampler.guide.trained_flow)
    again = SamplerSearch(double, sampler.goal, sampler.progress, points, before, guide)
    again.find_modes()
    return again, []
