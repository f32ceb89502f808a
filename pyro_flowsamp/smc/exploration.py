"""A first look at a target: quasi-Newton paths from over-dispersed points and from the prior."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..checkpoint.scope import active, entered
from ..flows.gaussian_fit import distinct_paths, fit_gaussian_to_paths
from ..flows.pathfinder import PathfinderResult, overdispersed_starts, pathfinder
from ..options import ModeSearchOptions
from ..target.density import Target
from ..target.prior import prior_target
from ..target.tails import radial_slope
from .coordinates import WhitenedTarget
from .particles import systematic
from .path_modes import PathModes, path_modes
from .paths import next_beta

__all__ = ["Exploration", "explore", "stored_exploration"]


MOST_NUMBERS = 10_000_000  #: of factors of covariances of paths
MOST_MODES = 128  #: of paths, the best, lest distances from all particles take too much memory


class Exploration(NamedTuple):
    """The coordinates, points and prior that the paths have found.

    Attributes:
        coordinates: Coordinates in which the best Gaussian is standard.
        points: Weighted draws of the Gaussians of good paths, in these coordinates, ``(N, d)``.
        prior: The prior's density in these coordinates, or None where it cannot be drawn from.
        modes: Modes that good paths have found, in the target's own coordinates; or None.

    Example:
        >>> target = Target.from_energy(lambda x: 0.5 * (x - 3).square().sum(-1), 1)
        >>> whitened = WhitenedTarget(target, torch.tensor([3.0]), torch.eye(1))
        >>> found = Exploration(whitened, points=torch.zeros(4, 1), prior=None)
        >>> found.coordinates.to_x(found.points[:1])
        tensor([[3.]])
    """

    coordinates: WhitenedTarget
    points: Tensor
    prior: WhitenedTarget | None
    modes: PathModes | None = None


def explore(
    target: Target, options: ModeSearchOptions, points: Tensor | None = None
) -> Exploration:
    """Climbs from over-dispersed points and from draws of the prior, and covers what is found.

    Arguments:
        target: The target, at one context.
        options: Counts of paths and points, and which paths are good.
        points: Points ``(N, d)`` of finite density from which paths start too; the base covers them
            as well. Where the density is zero at all over-dispersed points, they start alone.

    Raises:
        ValueError: The density is not finite anywhere, or does not fall in any direction.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> target = Target.from_energy(lambda x: 0.5 * ((x - 3e6) / 1e5).square().sum(-1), 2)
        >>> found = explore(target, ModeSearchOptions())
        >>> bool((found.coordinates.loc - 3e6).abs().max() < 1e5), found.prior is None
        (True, True)
    """
    prior = target.prior_points(options.paths)
    if prior is not None and len(prior) < options.paths // 2:
        prior = None
    from_prior = 0 if prior is None else options.paths // 2
    starts = [] if prior is None else [prior[:from_prior]]
    if points is not None:
        starts.append(points)
    try:
        starts.append(overdispersed_starts(target, options.paths - from_prior, options.octaves))
    except ValueError:  # the density is zero at all of them
        if not starts:
            raise
    paths = pathfinder(target, torch.cat(starts))
    finite = bool(torch.isfinite(paths.elbo).any())
    best = distinct_paths(paths, len(paths.elbo), options.distance)
    loc, scale_tril = fit_gaussian_to_paths(target, paths, distinct=best)
    coordinates = WhitenedTarget(target, loc, scale_tril)
    _check_that_it_falls(coordinates, options)
    bound = paths.elbo.max() - (options.slack + options.slack_per_dimension * target.dim)
    good = best[paths.elbo[best] >= bound]
    modes = None
    near = paths.end
    if finite:
        near, modes = _weighted_draws(target, paths, good, options)
    if points is not None:
        near = torch.cat([near, points.to(near)])
    density = None if prior is None else prior_target(target)
    whitened = None if density is None else WhitenedTarget(density, loc, scale_tril)
    return Exploration(coordinates, coordinates.to_u(near), whitened, modes)


def stored_exploration(target: Target, make: Callable[[], Exploration]) -> Exploration:
    """The exploration of a target; it is made only where it is not stored in a checkpoint.

    Arguments:
        target: The target.
        make: Makes it.

    Example:
        >>> from types import SimpleNamespace
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> found = SimpleNamespace(prior=None)  # stands for an exploration
        >>> stored_exploration(target, lambda: found) is found  # there is no checkpoint
        True
    """
    with entered(None, "exploration") as scope:
        with scope.restoring("found") as stored:
            if stored is not None:
                prior = None
                if stored["prior"] and (density := prior_target(target)) is not None:
                    prior = WhitenedTarget.restored(density, stored["coordinates"])
                made = WhitenedTarget.restored(target, stored["coordinates"])
                return _watched(Exploration(made, stored["points"], prior, stored["modes"]))
        found = _watched(make())
        if scope.stores:
            value = {"coordinates": found.coordinates.parts, "prior": found.prior is not None}
            value |= {"points": found.points, "modes": found.modes}
            scope.write({"found": value}, "paths")
    return found


def _watched(found: Exploration) -> Exploration:
    """The exploration; the graphs of its prior are stored with all later states."""
    if found.prior is not None:
        active().watch_too(found.prior.target)
    return found


def _weighted_draws(
    target: Target, paths: PathfinderResult, good: Tensor, options: ModeSearchOptions
) -> tuple[Tensor, PathModes | None]:
    """Draws of the Gaussians of some paths, resampled by tempered importance weights, ``(N, d)``.

    They come with the modes of the best of these paths, unless factors of their covariances would
    take too much memory.

    A Gaussian of the wrong scale has draws where the density is low, and a base that covered them
    would be too wide: particles of a heavy-tailed target do not find back from there. The weights
    are taken to a power at which enough draws count, since in many dimensions a few would have all
    the weight.
    """
    x, log_q = paths.sample(options.points_per_path, good)
    with torch.no_grad():
        log_p = target.log_prob(x.flatten(0, 1).to(target.dtype)).double().view_as(log_q)
    each = torch.nan_to_num(log_p - log_q, nan=-torch.inf)
    modes, log_w = None, each.flatten()
    best = good[:MOST_MODES]
    if len(best) * target.dim**2 <= MOST_NUMBERS:
        num = len(best)
        modes = path_modes(
            paths.loc[best],
            paths.scale_tril(best),
            x[:, :num],
            each[:, :num],
            options.min_path_ess,
        )
    power = next_beta(log_w, 0.0, options.weighted_ess)
    return x.flatten(0, 1)[systematic((power * log_w)[None])[0]], modes


def _check_that_it_falls(coordinates: WhitenedTarget, options: ModeSearchOptions) -> None:
    """Raises a ValueError where the density has no integral in any of many directions.

    Distances are in units of the largest scale, and at least of 1, since a first Gaussian may be
    much too narrow.
    """
    target, real = coordinates.target, int((~coordinates.angles).sum())
    noise = torch.randn(options.paths, target.dim, dtype=torch.double).to(coordinates.device)
    unit = coordinates.scale_tril.norm(dim=-1).max().clamp(min=1.0)
    near, far = options.far_distances
    one, other = (coordinates.loc + r * unit * noise for r in (near, far))
    slope = radial_slope(target, one, other, far / near)
    if real and bool((slope > -real).all()):
        raise ValueError(
            f"the log density falls too slowly to have an integral: from {near:g} to {far:g} times "
            f"the largest scale its slope against the log distance is "
            f"{float(slope.mean()):.2g}, and it must be below {-real}. The posterior may be "
            f"improper: give every site a proper prior."
        )
