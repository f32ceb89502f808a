r"""Components of a mixture for particles that it does not cover.

A mixture that predicts held-out particles well may lack a mode of small share: none of its few
particles need be among those that are held out. A sampler that jumps by this mixture would enter
such a mode as seldom as it leaves it. The weights :math:`w = \tilde p / q` of the particles beside
the mixture q show it: they are about the evidence where q fits, and many orders of magnitude larger
in a mode that q lacks.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from ..flows.gaussian_fit import distinct_paths
from ..flows.mixture_fit import Mixture
from ..flows.pathfinder import pathfinder
from ..options import ModeSearchOptions
from .coordinates import WhitenedTarget

__all__ = ["covering_all", "uncovered"]


def uncovered(log_w: Tensor, options: ModeSearchOptions) -> Tensor:
    r"""The log weight above which a particle is not covered, 0-d.

    It is above the median by :attr:`~pyro_flowsamp.ModeSearchOptions.uncovered_nats`, and by a
    multiple of the difference between the median and the 84 % quantile, which is a standard
    deviation where log weights are normal. In many dimensions they vary by much, though no mode is
    missing.

    Arguments:
        log_w: Log weights of particles, ``(N,)``.
        options: The bounds.

    Example:
        >>> options = ModeSearchOptions(uncovered_nats=7.0, uncovered_spreads=6.0)
        >>> log_w = torch.linspace(-1, 1, 201).double()
        >>> [round(float(uncovered(s * log_w, options)), 2) for s in (1.0, 3.0)]
        [7.0, 12.24]
    """
    middle, high = log_w.double().quantile(log_w.new_tensor([0.5, 0.84]).double())
    least = middle.new_tensor(options.uncovered_nats)
    return middle + torch.maximum(least, options.uncovered_spreads * (high - middle))


def covering_all(
    mixture: Mixture, u: Tensor, coordinates: WhitenedTarget, options: ModeSearchOptions
) -> Mixture:
    r"""The mixture with a component for each mode of particles that it does not cover.

    Quasi-Newton paths climb from these particles. A path's Gaussian whose mean is not covered
    either is a component. Its weight is the mass that it covers, by importance weights of draws of
    it, as a share of the evidence. Particles in a tail climb to modes that there are.

    The evidence is that of the inverse weights. Particles have the density
    :math:`p = \tilde p / Z`, so that :math:`\mathbb E_p[q / \tilde p] = 1 / Z` for every density q
    that is zero where p is. The median log weight would be too large by about
    :math:`\mathrm{KL}(p \| q)`, and a component's weight too small by this. A particle does not
    count whose log weight is farther below the median than those that are not covered are above: a
    single one that is not distributed as the target would decide.

    Arguments:
        mixture: A mixture fitted to the particles.
        u: The particles, ``(N, d)``, float64.
        coordinates: The target, in their coordinates.
        options: Bounds, and numbers of paths and draws.

    Returns:
        The mixture, of the same kind; itself where it covers all particles, and for targets with
        angles, whose flows do not jump by it.

    Example:
        >>> from pyro_flowsamp import Target
        >>> _ = torch.manual_seed(0)
        >>> def energy(x):  # a mode of share 1 % is at 50
        ...     return -torch.logaddexp(-0.5 * x.square(), -4.6 - 0.5 * (x - 50).square()).sum(-1)
        >>> target = WhitenedTarget(Target.from_energy(energy, 1), torch.zeros(1), torch.eye(1))
        >>> one, options = torch.ones(1, 1, 1).double(), ModeSearchOptions()
        >>> u = torch.cat([torch.randn(199, 1), torch.full((1, 1), 49.0)]).double()
        >>> found = covering_all(Mixture(one[0, 0].log(), 0 * one[0], one), u, target, options)
        >>> found.locs.flatten().round().tolist(), found.log_weights.exp()[1].round(decimals=2)
        ([0.0, 50.0], tensor(0.0100, dtype=torch.float64))
    """
    if bool(coordinates.angles.any()):
        return mixture
    with torch.no_grad():
        log_w = coordinates.log_prob(u) - mixture.log_prob(u)
    starts = u[log_w > (bound := uncovered(log_w, options))]
    if not len(starts):
        return mixture
    some = torch.randperm(len(starts), device=u.device)[: options.paths]
    paths = pathfinder(coordinates, starts[some])
    best = distinct_paths(paths, len(paths.elbo), options.distance)
    best = best[torch.isfinite(paths.elbo[best])]
    points, log_q = paths.sample(options.points_per_path, best)
    with torch.no_grad():
        at_means = coordinates.log_prob(paths.loc[best]) - mixture.log_prob(paths.loc[best])
        log_p = coordinates.log_prob(points.flatten(0, 1)).view_as(log_q)
    each = (log_p - log_q).nan_to_num(nan=-torch.inf)
    inner = log_w[log_w.median() - log_w <= (bound - log_w.median()).abs()]
    log_evidence = log(len(inner)) - (-inner).logsumexp(0)
    log_share = each.logsumexp(0) - log(len(each)) - log_evidence
    new = (at_means > bound) & torch.isfinite(log_share)
    weights = torch.cat([mixture.log_weights, log_share[new]]).log_softmax(0)
    locs = torch.cat([mixture.locs, paths.loc[best][new]])
    scale_trils = torch.cat([mixture.scale_trils, paths.scale_tril(best)[new]])
    return mixture._replace(log_weights=weights, locs=locs, scale_trils=scale_trils)
