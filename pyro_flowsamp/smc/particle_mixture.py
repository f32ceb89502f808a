"""Mixtures fitted to annealed particles."""

from __future__ import annotations

import torch
from torch import Tensor

from ..flows.mixture_fit import Mixture, MixtureFitOptions, fit_mixture
from ..options import ModeSearchOptions

__all__ = ["particle_mixture", "standard_normal"]


def particle_mixture(u: Tensor, options: ModeSearchOptions) -> Mixture:
    """A mixture of particles, or the standard normal where that fits better.

    In many dimensions particles are too few for a covariance, and the Gaussian that the paths have
    found is standard normal in these coordinates. So where there are few, the mixture is fitted to
    one half of them, and compared on the other.

    Arguments:
        u: Particles ``(N, d)``, float64.
        options: How to fit.
    """
    u = u[torch.randperm(len(u), device=u.device)]
    if len(u) >= options.many_draws * u.shape[1]:
        return _fitted(u, options)
    one, other = u.chunk(2)
    normal, found = standard_normal(u), _fitted(one, options)
    better = bool(found.log_prob(other).mean() > normal.log_prob(other).mean())
    return _fitted(u, options) if better else normal


def standard_normal(u: Tensor) -> Mixture:
    """A mixture of one component, in the coordinates of points."""
    eye = torch.eye(u.shape[1]).to(u)
    return Mixture(torch.zeros(1).to(u), torch.zeros_like(u[:1]), eye[None])


def _fitted(u: Tensor, options: ModeSearchOptions) -> Mixture:
    low, high = u.quantile(torch.tensor([0.25, 0.75]).to(u), 0)
    centre, scale = u.median(0).values, (high - low).clamp(min=torch.finfo(u.dtype).tiny)
    standard = (u - centre) / scale
    most = max(1, int(len(u) / (options.draws_per_dimension * u.shape[1])))
    fit = MixtureFitOptions(
        ridge=options.ridge / float(standard.var(0).mean()),  # a few far out do not widen it
        tolerance=options.fit_tolerance,
        degrees_of_freedom=options.mixture_degrees_of_freedom,
    )
    found = fit_mixture(standard, min(options.max_components, most), fit)
    locs = centre + scale * found.locs
    return found._replace(locs=locs, scale_trils=scale[:, None] * found.scale_trils)
