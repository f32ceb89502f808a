"""Mixtures fitted to annealed particles."""

from __future__ import annotations

import torch
from torch import Tensor

from ..flows.mixture_fit import Mixture, MixtureFitOptions, fit_mixture
from ..options import ModeSearchOptions

__all__ = ["particle_mixture", "standard_normal"]


def particle_mixture(
    u: Tensor, options: ModeSearchOptions, islands: Tensor | None = None
) -> Mixture:
    """A mixture of particles, or the standard normal where that fits better.

    In many dimensions particles are too few for a covariance, and the Gaussian that the paths have
    found is standard normal in these coordinates. So where there are few, the mixture is fitted to
    one half of them, and compared on the other.

    Particles of an island have ancestors in common. Where moves are small they lie in small
    clusters, which are no part of the target. So whole islands are held out: particles of others do
    not lie in the same clusters.

    Arguments:
        u: Particles ``(N, d)``, float64.
        options: How to fit.
        islands: The island of each particle, ``(N,)``, from 0; by default islands are made up, as
            is right for independent particles.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> copies = torch.randn(4, 50, 1, 2).double().expand(-1, -1, 10, -1).reshape(-1, 2)
        >>> copies = copies + 0.01 * torch.randn(2000, 2)
        >>> options, islands = ModeSearchOptions(), torch.arange(2000) // 500
        >>> len(particle_mixture(copies, options).locs) > 8
        True
        >>> len(particle_mixture(copies, options, islands).locs) < 4
        True
    """
    order = torch.randperm(len(u), device=u.device)
    u = u[order]
    if islands is None:
        islands = torch.arange(len(u), device=u.device) % options.islands
    else:
        islands = islands[order]
    last = islands == islands.max()
    if len(u) >= options.many_draws * u.shape[1]:
        return _fitted(u, options, last)
    one, normal = islands % 2 == 0, standard_normal(u)
    several = int(islands.max()) > 1  # among those of one half, too
    found = _fitted(u[one], options, islands[one] == islands[one].max() if several else None)
    better = bool(found.log_prob(u[~one]).mean() > normal.log_prob(u[~one]).mean())
    return _fitted(u, options, last) if better else normal


def standard_normal(u: Tensor) -> Mixture:
    """A mixture of one component, in the coordinates of points.

    Example:
        >>> standard_normal(torch.rand(5, 2)).log_prob(torch.zeros(1, 2))  # minus log 2π
        tensor([-1.8379])
    """
    eye = torch.eye(u.shape[1]).to(u)
    return Mixture(torch.zeros(1).to(u), torch.zeros_like(u[:1]), eye[None])


def _fitted(u: Tensor, options: ModeSearchOptions, held_out: Tensor | None) -> Mixture:
    low, high = u.quantile(torch.tensor([0.25, 0.75]).to(u), 0)
    centre, scale = u.median(0).values, (high - low).clamp(min=torch.finfo(u.dtype).tiny)
    standard = (u - centre) / scale
    most = max(1, int(len(u) / (options.draws_per_dimension * u.shape[1])))
    fit = MixtureFitOptions(
        ridge=options.ridge / float(standard.var(0).mean()),  # a few far out do not widen it
        tolerance=options.fit_tolerance,
        degrees_of_freedom=options.mixture_degrees_of_freedom,
        heavier_tail_errors=options.heavier_tail_errors,
    )
    found = fit_mixture(standard, min(options.max_components, most), fit, held_out)
    locs = centre + scale * found.locs
    return found._replace(locs=locs, scale_trils=scale[:, None] * found.scale_trils)
