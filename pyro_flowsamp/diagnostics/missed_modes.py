r"""Checks of draws beside annealed particles, which show what all chains may have missed.

Two searches for modes share nothing with the chains but the target. Regions that they have found
and the chains have not, and another distribution of a parameter, show that one of them is wrong.
The particles themselves are distributed as the target only roughly: so what the draws lack decides,
and small differences of shares do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..convergence import far_apart, iqr
from ..flows.gaussian_fit import distinct_paths
from ..flows.mixture_fit import Mixture
from ..flows.pathfinder import overdispersed_starts, pathfinder
from ..smc.found_modes import FoundModes
from ..smc.mode_search import ModeSearch
from ..smc.starts import StudentStart
from ..target.density import Target
from .checks import Check
from .counts import most_by_chance
from .options import DiagnosisOptions

__all__ = [
    "PathDraws",
    "draws_of_paths",
    "far_from",
    "kolmogorov_distance",
    "particle_checks",
    "own_search",
    "path_checks",
    "region_of",
    "share_far_away",
]


EXPLORE = "start chains at tempered_smc particles, or let sample() look for modes"


class PathDraws(NamedTuple):
    """Draws of the Gaussians that several sets of quasi-Newton paths have found.

    Attributes:
        x: The draws of each set, ``(N, d)``.
        log_w: Their log weights against the mixture of the Gaussians of the set, ``(N,)``.

    Example:
        >>> x = torch.randn(2, 200, 1, generator=torch.manual_seed(0))
        >>> far = PathDraws([torch.full((50, 1), 30.0)], [torch.zeros(50)])  # all mass is at 30
        >>> path_checks(x, far, DiagnosisOptions())[0].value
        1.0
    """

    x: list[Tensor]
    log_w: list[Tensor]


def draws_of_paths(target: Target, x: Tensor | None, options: DiagnosisOptions) -> PathDraws:
    r"""Looks for modes by sets of paths, from points on many scales and points around the draws.

    The weights :math:`\tilde p / q` of draws of the equal mixture q of the paths' Gaussians, of
    those that are apart, have an expectation of the integral of :math:`\tilde p`. So the masses of
    modes are in proportion to the sums of the weights of the draws there.

    Arguments:
        target: The target.
        x: Unconstrained draws, ``(chains, draws, d)``, or None.
        options: The number of sets, and the options of the search. Points around the draws begin
            paths of the first set, and are a set of their own where there are no others.

    Returns:
        The draws; none in many dimensions.

    Raises:
        ValueError: The density is not finite at any starting point.

    Example:
        >>> target = Target.from_energy(lambda x: 0.5 * (x - 3).square().sum(-1), 1)
        >>> found = draws_of_paths(target, None, DiagnosisOptions(explorations=1))
        >>> float(found.x[0].mean().round()), round(float(found.log_w[0].mean()), 2)  # log(2π) / 2
        (3.0, 0.92)
    """
    modes, found = options.search.modes, PathDraws([], [])
    if target.dim > options.max_path_dim:
        return found
    around = None if x is None or target.circular else _points_around(target, x, options)
    sets = [_starts(target, options) for _ in range(options.explorations)]
    if around is not None and len(around):
        first = sets[:1] or [around.to(target.dtype)[:0]]
        sets[:1] = [torch.cat([first[0], around.to(first[0])])]
    for starts in sets:
        paths = pathfinder(target, starts)
        best = distinct_paths(paths, len(paths.elbo), modes.distance)
        points = paths.sample(modes.points_per_path, best)[0].flatten(0, 1)
        equal = torch.zeros(len(best)).to(points).log_softmax(0)
        log_q = Mixture(equal, paths.loc[best], paths.scale_tril(best)).log_prob(points)
        with torch.no_grad():
            log_w = target.log_prob(points.to(target.dtype)).double() - log_q
        found.x.append(points)
        found.log_w.append(log_w.nan_to_num(nan=-torch.inf))
    return found


def _starts(target: Target, options: DiagnosisOptions) -> Tensor:
    """Starting points of a set of paths: of the prior where it is known, and on many scales."""
    modes = options.search.modes
    starts = overdispersed_starts(target, modes.paths, modes.octaves)
    prior = target.prior_points(modes.paths // 2)
    return starts if prior is None else torch.cat([prior, starts[len(prior) :]])


def _points_around(target: Target, x: Tensor, options: DiagnosisOptions) -> Tensor:
    r"""Points far from all draws at which the density is larger than the draws explain, ``(N, d)``.

    Paths from everywhere end in a wide mode, and hardly ever in a thin one beside it. Near a thin
    mode the density exceeds that of a Student-t distribution t with the location and the scale of
    the draws. So of many points of t, made wider, those with the largest :math:`\tilde p / t` are
    starting points.

    Arguments:
        target: The target.
        x: Unconstrained draws, ``(chains, draws, d)``.
        options: Numbers of points, and how wide they are.
    """
    flat = x.flatten(0, 1).double()
    centre, scale = flat.median(0).values, iqr(flat).clamp(min=torch.finfo(flat.dtype).tiny)
    df = options.search.modes.degrees_of_freedom
    t = StudentStart(centre, scale.diag(), target.angles, df)
    wide = StudentStart(centre, options.around_width * scale.diag(), target.angles, df)
    points = wide.sample(options.around_points)
    points = points[far_from(x, options)(points)]
    with torch.no_grad():
        log_p = target.log_prob(points.to(target.dtype)).double()
    excess = (log_p - t.log_prob_and_grad(points)[0]).nan_to_num(nan=-torch.inf)
    best = excess.argsort(descending=True)[: options.search.modes.paths]
    return points[best[torch.isfinite(excess[best])]]


def path_checks(x: Tensor, paths: PathDraws, options: DiagnosisOptions) -> list[Check]:
    r"""The mass of modes that paths have found, and that are far from all draws.

    In a mode many draws of its Gaussian have comparable weights. In a heavy tail few of them have
    all of the weight: then the mass is not known, and counts as none. A share
    :math:`S = \sum_i v_i f_i` by weights of sum one has about the standard error
    :math:`(\sum_i v_i^2 (f_i - S)^2)^{1/2}`, by which it counts as less.

    Arguments:
        x: Unconstrained draws, ``(chains, draws, d)``.
        paths: Draws of the paths.
        options: Thresholds.

    Example:
        >>> x = torch.randn(2, 200, 1, generator=torch.manual_seed(0))
        >>> near = PathDraws([torch.zeros(50, 1)], [torch.zeros(50)])
        >>> check = path_checks(x, near, DiagnosisOptions())[0]
        >>> check.value, check.ok
        (0.0, True)
    """
    far, masses = far_from(x, options), [0.0]
    for points, log_w in zip(paths.x, paths.log_w):
        weight, away = log_w.softmax(0).nan_to_num(nan=0.0), far(points)
        share = (weight * away).sum()
        effective = share.square() / (weight * away).square().sum().clamp(min=1e-300)
        error = (weight * (away.double() - share)).norm()
        masses.append(float(torch.where(effective >= options.min_far_draws, share - error, 0.0)))
    value = max(masses)
    ok = value <= options.max_far_mass
    text = f"paths to modes have found regions with {value:.2%} of the mass, far from all draws"
    name = "mass of modes far from draws"
    most = options.max_far_mass
    return [Check(name, value, most, ok, text, EXPLORE)]


def own_search(target: Target, paths: PathDraws, options: DiagnosisOptions) -> FoundModes:
    """Searches for modes, from points that several sets of paths have found.

    One set of paths can miss a mode that is far away and narrow. So particles cover points of all
    sets, of those that are resampled by their weights: particles that had to cover all draws of the
    paths would be too wide for a heavy-tailed target, and not find back.

    Arguments:
        target: The target.
        paths: Draws of these sets.
        options: The options of the search.

    Raises:
        ValueError: The density is not finite anywhere, or does not fall in any direction.
    """
    found = []
    for x, log_w in zip(paths.x, paths.log_w):
        if bool(torch.isfinite(log_w).any()):
            index = torch.multinomial(log_w.softmax(0), len(x), replacement=True)
            found.append(far_apart(x[index], options.points))
    points = torch.cat(found).to(target.dtype) if found else None
    return ModeSearch(target, options.search.modes, points).run()


def region_of(modes: FoundModes, x: Tensor) -> Tensor:
    """The mode of each of the points ``(N, d)``, by the mixture of a search, ``(N,)``.

    Arguments:
        modes: The result of a search.
        x: The points.

    Example:
        >>> from types import SimpleNamespace
        >>> agreement = SimpleNamespace(modes=torch.tensor([0, 1, 1]))
        >>> components = torch.tensor([0, 2])
        >>> modes = SimpleNamespace(agreement=agreement, component_of=lambda x: components)
        >>> region_of(modes, torch.zeros(2, 1))  # the second and third component are of one mode
        tensor([0, 1])
    """
    return modes.agreement.modes[modes.component_of(x)]


def particle_checks(
    x: Tensor,
    modes: FoundModes,
    options: DiagnosisOptions,
    settled: bool = True,
    decides: bool = False,
) -> list[Check]:
    """Checks of draws beside annealed particles: regions, their shares, and distributions.

    Each search counts in proportion to its evidence: one that has not found the way to the mass has
    particles far away from it, and a much smaller evidence.

    Arguments:
        x: Unconstrained draws, ``(chains, draws, d)``.
        modes: The result of the search.
        options: Thresholds.
        settled: Whether the two searches agree. If not, only what draws lack is looked at: the
            particles' own shares are not known.
        decides: Whether the draws depend on this search. Then components of its mixture that are
            no modes count as regions too, where both searches have particles of them.

    Example:
        >>> from types import SimpleNamespace
        >>> agreement = SimpleNamespace(
        ...     modes=torch.tensor([0, 1]),
        ...     counts=torch.tensor([[50, 50], [50, 50]]),
        ...     search_weights=torch.tensor([0.5, 0.5]).double(),
        ... )
        >>> x = torch.randn(2, 200, 1, generator=torch.manual_seed(0))  # all in the first mode
        >>> modes = SimpleNamespace(
        ...     agreement=agreement,
        ...     component_of=lambda x: (x[:, 0] > 5).long(),
        ...     x=torch.cat([x[0, :50], x[1, :50] + 10]),
        ...     second=torch.arange(100) % 2 == 0,
        ...     weights=torch.full((100,), 0.01).double(),
        ... )
        >>> check = particle_checks(x, modes, DiagnosisOptions(), settled=False)[0]
        >>> check.name, check.value, check.ok
        ('mass not visited', 0.5, False)
    """
    of_component = modes.component_of(flat := x.flatten(0, 1))
    of_mode = torch.nn.functional.one_hot(modes.agreement.modes).double()
    by_component = torch.nn.functional.one_hot(of_component, len(of_mode)).double().mean(0)
    counts = modes.agreement.counts.double()
    share, in_modes = by_component @ of_mode, counts @ of_mode
    by_search = in_modes / in_modes.sum(1, keepdim=True)
    expected = modes.agreement.search_weights @ by_search
    lost, mass = _lost(share, expected * in_modes.sum() / 2, expected, options)
    if decides and not lost:
        expected = (counts / counts.sum(1, keepdim=True)).amin(0)
        lost, mass = _lost(by_component, counts.amin(0), expected, options)
    text = (
        f"chains hardly ever visit {lost} regions in which searches for modes have found "
        f"{mass:.2%} of the mass"
    )
    checks = [Check("mass not visited", mass, 0, not lost, text, EXPLORE)]
    away = share_far_away(x, modes.x, options, modes.weights)
    most = max(options.max_far_away, _far_by_chance(x, len(modes.x), options))
    ok = away <= most
    text = f"{away:.2%} of the annealed particles are far from all draws"
    checks.append(Check("particles far from draws", away, most, ok, text, EXPLORE))
    if not settled:
        return checks
    checks.append(_share_gap(share, by_search, options))
    parts = [modes.x[~modes.second], modes.x[modes.second]]
    found = [kolmogorov_distance(flat, part if len(part) else modes.x) for part in parts]
    distance = modes.agreement.search_weights @ torch.stack(found)
    worst, value = int(distance.argmax()), float(distance.max())
    ok = value <= options.max_distance
    text = (
        f"draws and annealed particles have other distributions: of the unconstrained coordinate "
        f"{worst} they are {value:.2f} apart (Kolmogorov)"
    )
    most = options.max_distance
    name = "distance from particles"
    return [*checks, Check(name, value, most, ok, text, EXPLORE)]


def _far_by_chance(x: Tensor, num: int, options: DiagnosisOptions) -> float:
    """The largest share of so many particles that chance puts far from few draws.

    Of the draws of one half of the chains one at least is as far as any other from those of the
    other half.
    """
    draws = min(options.compared_draws, x[..., 0].numel() // 2)
    far = max(1.0, options.far_away * draws)
    return most_by_chance(far, num, draws, options.check_error) / num


def _lost(
    share: Tensor, particles: Tensor, expected: Tensor, options: DiagnosisOptions
) -> tuple[int, float]:
    """The number of regions that the draws hardly visit, and the share of particles there."""
    enough = particles >= options.min_region_particles
    lost = enough & (share < options.min_share * expected)
    return int(lost.sum()), float(expected[lost].sum())


def share_far_away(
    x: Tensor, particles: Tensor, options: DiagnosisOptions, weights: Tensor | None = None
) -> float:
    """The share of particles that are farther from all draws than draws are from each other.

    Arguments:
        x: Draws, ``(chains, draws, d)``.
        particles: Points ``(N, d)``.
        options: The number of draws, and the quantile of the distance.
        weights: Weights of the particles, of sum one; or None where they are equal.

    Example:
        >>> x = torch.randn(2, 200, 1, generator=torch.manual_seed(0))
        >>> share_far_away(x, torch.tensor([[0.0], [0.5], [1.0], [50.0]]), DiagnosisOptions())
        0.25
    """
    far = far_from(x, options)(particles).double()
    return float(far.mean() if weights is None else far @ weights)


def far_from(x: Tensor, options: DiagnosisOptions) -> Callable[[Tensor], Tensor]:
    r"""A function that tells which of points ``(N, d)`` are far from all draws, ``(N,)``.

    The draws of one half of the chains show how far a draw is from the nearest draw of the other
    half: all but a share :math:`10^{-3}` of them are within some distance. Of points with the same
    distribution about as many are. It needs no regions, and no assumption of their shape.

    Arguments:
        x: Draws, ``(chains, draws, d)``.
        options: The number of draws, and the quantile of the distance.

    Example:
        >>> x = torch.randn(2, 200, 1, generator=torch.manual_seed(0))
        >>> far_from(x, DiagnosisOptions())(torch.tensor([[0.0], [50.0]]))
        tensor([False,  True])
    """
    one, two = x.double().chunk(2) if len(x) > 1 else x.double().chunk(2, 1)
    one, two = (
        half.flatten(0, 1)[:: -(-half[..., 0].numel() // options.compared_draws)]
        for half in (one, two)
    )
    spread = one.std(0).clamp(min=torch.finfo(one.dtype).tiny)
    scale = torch.where(spread.isfinite(), spread, 1.0)

    def distance(points: Tensor) -> Tensor:
        near = [torch.cdist(p / scale, two / scale).amin(1) for p in points.split(1000)]
        return torch.cat(near)

    bound = distance(one).quantile(1 - options.far_away)
    return lambda points: distance(points.double()) > bound


def _share_gap(share: Tensor, by_search: Tensor, options: DiagnosisOptions) -> Check:
    """The largest difference of shares of modes, beyond that between the two searches."""
    one, two = by_search
    gap = (share - (one + two) / 2).abs() - (one - two).abs() / 2
    value = float(gap.max().clamp(min=0.0))
    ok = value <= options.max_share_gap
    text = f"the share of a region differs by {value:.2f} from that of annealed particles"
    name = "shares beside particles"
    return Check(name, value, options.max_share_gap, ok, text, EXPLORE)


def kolmogorov_distance(x: Tensor, y: Tensor) -> Tensor:
    """The largest difference of two empirical distribution functions, for each coordinate.

    Arguments:
        x, y: Draws ``(N, d)`` and ``(M, d)``.

    Example:
        >>> kolmogorov_distance(torch.zeros(10, 1), torch.tensor([[-1.0], [1.0]]))
        tensor([0.5000], dtype=torch.float64)
    """
    x, y = (t.double().mT.sort(-1).values.contiguous() for t in (x, y))
    both = torch.cat([x, y], -1)
    of_x = torch.searchsorted(x, both, right=True) / x.shape[-1]
    of_y = torch.searchsorted(y, both, right=True) / y.shape[-1]
    return (of_x.double() - of_y.double()).abs().amax(-1)
