r"""A survey of random points, for narrow modes that neither particles nor paths are near.

A mode that is narrow in a few dimensions may have much of the mass and a small basin. A
quasi-Newton path ends there only if it starts in the basin, and an annealed particle only if it
comes there while it still moves freely. Both are few, since both need gradients. Random points of
the distribution that the annealing starts from need none, so that many more can be looked at. The
weights :math:`w = \tilde p / q` beside the mixture q of all particles show those that no component
covers (:mod:`.uncovered`), and paths from these find the mode.

Of M points, :math:`M V b` are in a basin of volume V where the base has the density b. In many
dimensions this is far below one for all but the widest modes, and those have paths anyway. So there
is no survey in more than :attr:`~pyro_flowsamp.ModeSearchOptions.survey_dimensions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor

from ..flows.mixture_fit import Mixture
from ..flows.pathfinder import pathfinder
from ..options import ModeSearchOptions
from .coordinates import WhitenedTarget
from .path_modes import PathModes, path_modes
from .paths import next_beta
from .starts import StudentStart
from .uncovered import uncovered

__all__ = ["num_points", "survey"]


def survey(
    coordinates: WhitenedTarget,
    bases: Sequence[StudentStart],
    mixture: Mixture,
    u: Tensor,
    options: ModeSearchOptions,
) -> PathModes | None:
    """The modes that paths find from random points which a mixture does not cover.

    Arguments:
        coordinates: The target, in the coordinates of the others.
        bases: Distributions of the points, which have equal numbers of them.
        mixture: A mixture fitted to the particles.
        u: The particles, ``(N, d)``, float64. Their weights say when a point is not covered.
        options: The numbers of points and paths, and bounds.

    Returns:
        The modes; None where there are none, and for targets of too many dimensions or with angles,
        whose flows do not jump by a mixture.

    Example:
        >>> from pyro_flowsamp import Target
        >>> _ = torch.manual_seed(0)
        >>> def energy(x):  # a third of the mass is at 7, with a standard deviation of 0.01
        ...     narrow = -0.5 * ((x - 7) / 0.01).square() - torch.tensor(0.02).log()
        ...     return -torch.logaddexp(-0.5 * x.square(), narrow).sum(-1)
        >>> target = WhitenedTarget(Target.from_energy(energy, 1), torch.zeros(1), torch.eye(1))
        >>> one, u = torch.ones(1, 1, 1).double(), torch.randn(100, 1).double()
        >>> mixture = Mixture(one[0, 0].log(), 0 * one[0], one)
        >>> base = StudentStart(torch.zeros(1).double(), 2 * one[0], torch.tensor([False]))
        >>> found = survey(target, [base], mixture, u, ModeSearchOptions())
        >>> found.loc[0].round(), bool(found.times.sum() > 1)
        (tensor([7.], dtype=torch.float64), True)
    """
    if u.shape[1] > options.survey_dimensions or bool(coordinates.angles.any()):
        return None
    starts = _uncovered_points(coordinates, bases, mixture, u, options)
    if not len(starts):
        return None
    target = coordinates.target
    paths = pathfinder(target, coordinates.to_x(starts))
    finite = torch.isfinite(paths.elbo).nonzero()[:, 0]
    if not len(finite):
        return None
    x, log_q = paths.sample(options.survey_draws, finite)
    with torch.no_grad():
        log_p = target.log_prob(x.flatten(0, 1).to(target.dtype)).double().view_as(log_q)
    log_w = (log_p - log_q).nan_to_num(nan=-torch.inf)
    scale_tril = paths.scale_tril(finite)
    modes = path_modes(paths.loc[finite], scale_tril, x, log_w, options.min_path_ess)
    return modes.distinct(target, options.near_deviations) if len(modes.loc) else None


def num_points(options: ModeSearchOptions) -> int:
    """The number of random points, of which the budget of the whole search can be too small.

    Example:
        >>> num_points(ModeSearchOptions(max_evaluations=20_000))
        9000
    """
    share = options.survey_share * options.max_evaluations
    return min(options.survey_points, int(share / options.density_cost))


def _uncovered_points(
    coordinates: WhitenedTarget,
    bases: Sequence[StudentStart],
    mixture: Mixture,
    u: Tensor,
    options: ModeSearchOptions,
) -> Tensor:
    """Random points that a mixture does not cover, at most one for each path, ``(K, d)``.

    Where there are more, those with large importance weights are likelier to be among them. The
    weights are taken to a power at which a share of the points counts.
    """
    points = torch.cat([base.sample(num_points(options) // len(bases)) for base in bases])
    with torch.no_grad():
        log_p, of_particles = coordinates.log_prob(points), coordinates.log_prob(u)
    bound = uncovered(of_particles - mixture.log_prob(u), options)
    outside = torch.isfinite(log_p) & (log_p - mixture.log_prob(points) > bound)
    points, log_p = points[outside], log_p[outside]
    if len(points) <= options.survey_paths:
        return points
    log_b = torch.stack([base.log_prob_and_grad(points)[0] for base in bases]).logsumexp(0)
    log_w = log_p - log_b + log(len(bases))
    power = next_beta(log_w, 0.0, options.weighted_ess)
    weights = (power * (log_w - log_w.max())).exp()
    return points[torch.multinomial(weights, options.survey_paths)]
