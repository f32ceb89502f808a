"""Mixtures fitted to annealed particles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..flows.mixture_fit import Mixture, MixtureFitOptions, fit_mixture
from ..options import ModeSearchOptions
from .coordinates import WhitenedTarget
from .particles import Particles
from .path_modes import PathModes

__all__ = [
    "islands_of",
    "mixture_of_paths",
    "particle_mixture",
    "reweighted",
    "standard_normal",
]


def particle_mixture(
    u: Tensor,
    options: ModeSearchOptions,
    islands: Tensor | None = None,
    paths: Mixture | None = None,
) -> Mixture:
    """A mixture of particles, or the paths' own Gaussians where these fit better.

    In many dimensions particles are too few for a covariance, and even for a fit that tells modes
    apart. Paths know both without any particle: the Gaussian that all of them have found is
    standard normal in these coordinates, and the Gaussians of several modes are ``paths``. So where
    particles are few, the mixture is fitted to one half of them, and all three are compared on the
    other. Where they are many, the mixture and ``paths`` are compared on the last island.

    Particles of an island have ancestors in common. Where moves are small they lie in small
    clusters, which are no part of the target. So whole islands are held out: particles of others do
    not lie in the same clusters.

    Arguments:
        u: Particles ``(N, d)``, float64.
        options: How to fit.
        islands: The island of each particle, ``(N,)``, from 0; by default islands are made up, as
            is right for independent particles.
        paths: The mixture of the paths' Gaussians, from :func:`mixture_of_paths`; or None.

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
    many = len(u) >= options.many_draws * u.shape[1]
    if many:
        half, fitted = ~last, _fitted(u, options, last)
        candidates = [fitted]
    else:
        half = islands % 2 == 0
        several = int(islands.max()) > 1  # among those of one half, too
        held_out = islands[half] == islands[half].max() if several else None
        fitted = _fitted(u[half], options, held_out)
        candidates = [fitted, standard_normal(u)]
    of_paths = None if paths is None else reweighted(paths, u[half], options.weight_steps)
    if of_paths is not None:
        candidates.append(of_paths)
    best = max(candidates, key=lambda mixture: float(mixture.log_prob(u[~half]).mean()))
    if paths is not None and best is of_paths:
        return reweighted(paths, u, options.weight_steps)
    return _fitted(u, options, last) if best is fitted and not many else best


def mixture_of_paths(
    modes: PathModes | None, coordinates: WhitenedTarget, options: ModeSearchOptions
) -> Mixture | None:
    """The Gaussians of the modes that paths have found, weighted by the masses that they cover.

    Arguments:
        modes: The modes of the paths, or None.
        coordinates: The coordinates of the mixture.
        options: When two paths have found the same mode, and the largest number of components.

    Returns:
        The mixture; None where there are no such modes, and for targets with angles, at which a
        Gaussian of a path does not end.

    Example:
        >>> from pyro_flowsamp import Target
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> whitened = WhitenedTarget(target, torch.zeros(1), 2 * torch.eye(1))
        >>> eye = torch.eye(1).double().expand(3, 1, 1)
        >>> loc = torch.tensor([[0.0], [20.0], [20.1]]).double()  # two paths end at 20
        >>> mass, times = torch.tensor([0.3, 0.6, 0.1]), torch.ones(3)
        >>> modes = PathModes(loc, eye, mass.log(), loc[:, None], times)
        >>> mixture = mixture_of_paths(modes, whitened, ModeSearchOptions())
        >>> mixture.locs.tolist(), mixture.log_weights.exp()
        ([[10.0], [0.0]], tensor([0.6667, 0.3333]))
    """
    if modes is None or not len(modes.loc) or bool(coordinates.angles.any()):
        return None
    found = modes.distinct(coordinates.target, options.near_deviations)
    found = PathModes(*(value[: options.max_components] for value in found))
    scale_tril = torch.linalg.solve_triangular(
        coordinates.scale_tril, found.scale_tril, upper=False
    )
    return Mixture(found.log_mass.log_softmax(0), coordinates.to_u(found.loc), scale_tril)


def reweighted(mixture: Mixture, u: Tensor, steps: int, weights: Tensor | None = None) -> Mixture:
    """The mixture with its weights fitted to points by expectation maximisation.

    Arguments:
        mixture: The mixture.
        u: The points, ``(N, d)``.
        steps: The number of steps.
        weights: Weights of the points, ``(N,)``; by default they have equal ones.

    Example:
        >>> eye, locs = torch.eye(1).expand(2, 1, 1), torch.tensor([[0.0], [9.0]])
        >>> mixture = Mixture(torch.tensor([0.5, 0.5]).log(), locs, eye)
        >>> reweighted(mixture, locs, 20, torch.tensor([0.25, 0.75])).log_weights.exp()
        tensor([0.2500, 0.7500])
    """
    density = mixture.joint_log_prob(u) - mixture.log_weights
    log_w = torch.zeros_like(density[:, :1]) if weights is None else weights.log()[:, None]
    log_weights = mixture.log_weights
    for _ in range(steps):
        shares = (density + log_weights).log_softmax(-1) + log_w
        log_weights = shares.logsumexp(0).log_softmax(0)
    return mixture._replace(log_weights=log_weights)


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


def islands_of(u: Tensor, searches: Sequence[Particles], count: int) -> Tensor:
    """The island of each particle; points of paths, which are independent, are shared out.

    Arguments:
        u: The particles of all searches, and points of paths, ``(N, d)``.
        searches: The searches.
        count: The number of islands of each.
    """
    island = torch.arange(len(u), device=u.device) % count
    own = [torch.arange(len(s.x), device=u.device) * count // len(s.x) for s in searches]
    island[: sum(map(len, own))] = torch.cat(own)
    return island
