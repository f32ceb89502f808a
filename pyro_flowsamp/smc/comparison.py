"""The mixture that covers the particles of two searches, and how far the two agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..flows.mixture_fit import Mixture
from ..options import ModeSearchOptions
from ..weights import log_mean_weight
from .coordinates import WhitenedTarget
from .found_modes import Agreement
from .particle_mixture import islands_of, mixture_of_paths, particle_mixture
from .particles import Particles
from .path_modes import PathModes
from .uncovered import covering_all

__all__ = ["Cover", "compare", "cover_particles", "with_modes_of_paths"]


class Cover(NamedTuple):
    """Particles of searches, and mixtures of them.

    Attributes:
        u: All particles, and points of modes that they have lost, in whitened coordinates.
        alone: These modes, which paths have found; None where the paths have none.
        fitted: A mixture that is fitted to the particles.
        mixture: The same with components for particles that it does not cover.

    Example:
        >>> from .particle_mixture import standard_normal
        >>> u = torch.zeros(3, 2)
        >>> Cover(u, None, standard_normal(u), standard_normal(u)).u.shape
        torch.Size([3, 2])
    """

    u: Tensor
    alone: PathModes | None
    fitted: Mixture
    mixture: Mixture


def cover_particles(
    coordinates: WhitenedTarget,
    modes: PathModes | None,
    searches: Sequence[Particles],
    options: ModeSearchOptions,
) -> Cover:
    """The particles of searches, with points of modes that they have lost, and mixtures of them.

    Arguments:
        coordinates: The target, in the coordinates of the particles.
        modes: The modes of the paths, or None.
        searches: The particles of several searches.
        options: How mixtures are fitted, and which modes count.

    Example:
        >>> from types import SimpleNamespace
        >>> from pyro_flowsamp import Target
        >>> _ = torch.manual_seed(0)
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> whitened = WhitenedTarget(target, torch.zeros(1), torch.eye(1))
        >>> near = SimpleNamespace(x=torch.randn(400, 1).double())
        >>> search = Particles(near, torch.zeros(1, 400).double(), torch.zeros(1).double())
        >>> len(cover_particles(whitened, None, [search], ModeSearchOptions()).mixture.locs)
        1
    """
    u, alone = with_modes_of_paths(coordinates, modes, searches, options)
    islands = islands_of(u, searches, options.islands)
    of_paths = mixture_of_paths(modes, coordinates, options)
    fitted = particle_mixture(u, options, islands, of_paths)
    return Cover(u, alone, fitted, covering_all(fitted, u, coordinates, options))


def compare(
    cover: Cover,
    searches: tuple[Particles, Particles],
    second_error: float,
    options: ModeSearchOptions,
) -> Agreement:
    """The agreement of two searches, by mixtures of their particles.

    Arguments:
        cover: The mixtures, and the modes that both have lost.
        searches: The two searches.
        second_error: A further error of the log evidence of the second.
        options: Which particles show that a mode has been missed.
    """
    unseen, counts, components = _found_alone(cover, searches, options)
    evidences = [log_mean_weight(s.evidences) for s in searches]
    log_z = torch.stack([e.value for e in evidences])
    error = torch.stack([e.standard_error for e in evidences])
    error[1] = (error[1].square() + second_error**2).sqrt()
    spread = error * options.islands**0.5  # errors are not known where islands differ much
    error = torch.where(spread > options.max_island_spread, spread, error)
    # A search that has missed mass has the smaller evidence, and counts for as much less.
    share = float((log_z.softmax(0)[:, None] * unseen).sum())
    agreement = Agreement(counts, components, share, log_z, error)
    if cover.alone is None:
        return agreement
    shares = agreement.shares_of(cover.alone)
    once = cover.alone.times < options.enough_times
    return agreement._replace(lost=float(shares.sum()), missed=float(shares[once].sum()))


def _found_alone(
    cover: Cover, searches: tuple[Particles, Particles], options: ModeSearchOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Shares of each search in regions where it is alone, counts in components, and their modes.

    Further components are of the mode of the fitted one that is nearest: they may be of a tail or
    of the neck of a funnel, and are no evidence of a mode. But what one search alone has found is
    unseen mass there, too.

    Returns:
        Shares ``(2, regions)``, zero in regions that both have found; counts ``(2, K)``; and
        the mode of each of the K components.
    """
    fitted, mixture = cover.fitted, cover.mixture
    count, x = len(mixture.locs), torch.cat([s.x for s in searches])
    parts = mixture.joint_log_prob(x).argmax(-1).split([len(s.x) for s in searches])
    counts = torch.stack([part.bincount(minlength=count) for part in parts])
    components = fitted.groups(fitted.joint_log_prob(x), options.overlap)
    further = mixture.locs[len(fitted.locs) :]
    components = torch.cat([components, components[fitted.joint_log_prob(further).argmax(-1)]])
    beside = torch.arange(len(further), device=components.device) + components.max() + 1
    regions = torch.cat([components[: len(fitted.locs)], beside])
    in_region = torch.zeros(2, int(regions.max()) + 1, dtype=counts.dtype, device=counts.device)
    in_region.index_add_(1, regions, counts)
    few, many = in_region.min(0).values, in_region.max(0).values
    enough = max(options.min_lone, options.min_lone_share * len(searches[0].x))
    alone = (few == 0) & (many >= enough)
    return alone * in_region / in_region.sum(1, keepdim=True), counts, components


def with_modes_of_paths(
    coordinates: WhitenedTarget,
    modes: PathModes | None,
    searches: Sequence[Particles],
    options: ModeSearchOptions,
) -> tuple[Tensor, PathModes | None]:
    """All particles, and points of modes that they have lost and paths have found; and these modes.

    Arguments:
        coordinates: Whitened coordinates.
        modes: The modes of the paths, or None.
        searches: Particles of several searches.
        options: Which modes count, and when their points are far too few.

    Example:
        >>> from pyro_flowsamp import Target
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> whitened = WhitenedTarget(target, torch.zeros(1), torch.eye(1))
        >>> from types import SimpleNamespace
        >>> near = SimpleNamespace(x=torch.zeros(4, 1).double())
        >>> search = Particles(near, torch.zeros(1, 4).double(), torch.zeros(1).double())
        >>> far = torch.tensor([[20.0]]).double()
        >>> one, none = torch.ones(1).double(), torch.zeros(1).double()
        >>> modes = PathModes(far, one[None, None], none, far[None], times=one)
        >>> u, lost = with_modes_of_paths(whitened, modes, [search], ModeSearchOptions())
        >>> u.flatten().tolist()  # no particle is near 20, where the path has found a mode
        [0.0, 0.0, 0.0, 0.0, 20.0]
        >>> len(lost.loc)
        1
    """
    u = torch.cat([s.x for s in searches])
    if modes is None:
        return u, None
    evidence = max(float(log_mean_weight(s.evidences).value) for s in searches)
    x = coordinates.target.wrap(coordinates.to_x(u))
    alone = modes.alone(x, coordinates.target, evidence, options)
    return torch.cat([u, coordinates.to_u(alone.points.flatten(0, 1))]), alone
