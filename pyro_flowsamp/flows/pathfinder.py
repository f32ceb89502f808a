r"""Multi-path Pathfinder: Gaussian approximations along many quasi-Newton ascents at once.

Every path climbs the log density by L-BFGS. At points along it the inverse Hessian makes a
Gaussian, and each path keeps the Gaussian with the greatest evidence lower bound. So a path that
ends in a spike of the density without mass keeps a Gaussian that it has passed on its way.

All paths advance together: one call of the target evaluates one trial point of each. No step
assumes a scale of the coordinates or of the density.

References:
    Lu Zhang, Bob Carpenter, Andrew Gelman and Aki Vehtari, *Pathfinder: Parallel quasi-Newton
    variational inference*, 2022, https://arxiv.org/abs/2108.03782.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi
from typing import NamedTuple

import torch
from torch import Tensor

from ..target.density import Target
from ..validation import check_at_least_one
from .ascents import Paths
from .lbfgs import LowRankFactor
from .line_search import AscentOptions, Differentiable, evaluated

__all__ = [
    "PathfinderOptions",
    "PathfinderResult",
    "draw",
    "evidence_bounds",
    "lower_factor",
    "overdispersed_starts",
    "pathfinder",
]


#: Calls of the target between two looks, on the host, whether all paths have ended.
CALLS_BETWEEN_LOOKS = 8


@dataclass(frozen=True)
class PathfinderOptions:
    """Options of :func:`pathfinder`.

    Attributes:
        max_evaluations: Calls of the target for the ascents; each evaluates a point of every path.
        ascent: How the paths climb.
        draws: Draws that estimate an evidence lower bound.
        gaussians_per_octave: Gaussians that are judged while the number of calls doubles.

    Raises:
        ValueError: An option is out of range, or of another type.

    Example:
        >>> from pyro_flowsamp import Target
        >>> target = Target.from_energy(lambda x: 0.5 * (x - 3).square().sum(-1), 1)
        >>> found = pathfinder(target, torch.zeros(1, 1), PathfinderOptions(max_evaluations=20))
        >>> found.end.round(decimals=2)
        tensor([[3.]], dtype=torch.float64)
    """

    max_evaluations: int = 200
    ascent: AscentOptions = AscentOptions()
    draws: int = 8
    gaussians_per_octave: int = 2

    def __post_init__(self) -> None:
        check_at_least_one(self)


class PathfinderResult(NamedTuple):
    """The Gaussians of P paths.

    Attributes:
        loc: Their means, ``(P, d)``.
        factor: Their covariances, as diagonals with a part of low rank.
        elbo: Their evidence lower bounds, ``(P,)``; :math:`-\\infty` where a path has none.
        end: The last point of each path, ``(P, d)``.
        end_log_prob: The log densities there, ``(P,)``.

    Example:
        >>> import pyro
        >>> from pyro_flowsamp import Target
        >>> pyro.set_rng_seed(0)
        >>> target = Target.from_energy(lambda x: 0.5 * (x / 3).square().sum(-1), 2)
        >>> found = pathfinder(target, target.initial_points(4))
        >>> draws, log_q = found.sample(10)
        >>> draws.shape, log_q.shape
        (torch.Size([10, 4, 2]), torch.Size([10, 4]))
    """

    loc: Tensor
    factor: LowRankFactor
    elbo: Tensor
    end: Tensor
    end_log_prob: Tensor

    def scale_tril(self, paths: Tensor | None = None) -> Tensor:
        """Lower Cholesky factors of the covariances of some paths (by default all).

        They come from a QR decomposition of the factors, so that no variance is lost beside
        another: the covariance itself is never formed.

        Arguments:
            paths: Indices ``(K,)``.

        Returns:
            The factors, ``(K, d, d)``.
        """
        factor = self.factor if paths is None else LowRankFactor(*(v[paths] for v in self.factor))
        return lower_factor(factor.dense())

    def sample(self, num: int, paths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draws from the Gaussians of some paths (by default all), with their log densities.

        Arguments:
            num: Draws from each Gaussian.
            paths: Indices ``(K,)``.

        Returns:
            Points ``(num, K, d)`` and log densities ``(num, K)``.
        """
        loc, factor = self.loc, self.factor
        if paths is not None:
            loc, factor = loc[paths], LowRankFactor(*(v[paths] for v in factor))
        return draw(loc, factor, num)


def lower_factor(factor: Tensor) -> Tensor:
    """The lower-triangular L with L Lᵀ = A Aᵀ and a positive diagonal, for matrices A.

    Arguments:
        factor: The matrices A, ``(..., d, d)``.

    Example:
        >>> lower_factor(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
        tensor([[2., 0.],
                [0., 3.]])
    """
    upper = torch.linalg.qr(factor.mT, mode="r").R
    sign = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(upper)
    return (upper * sign[..., None]).mT + 0.0  # no negative zeros


def draw(loc: Tensor, factor: LowRankFactor, num: int) -> tuple[Tensor, Tensor]:
    """Draws from P Gaussians, with their log densities.

    Arguments:
        loc: The means, ``(P, d)``.
        factor: The factors of the covariances.
        num: Draws from each.

    Returns:
        Points ``(num, P, d)`` and log densities ``(num, P)``.

    Example:
        >>> from pyro_flowsamp import Target
        >>> target = Target.from_energy(lambda x: 0.5 * ((x - 3) / 2).square().sum(-1), 1)
        >>> found = pathfinder(target, torch.zeros(1, 1))
        >>> x, log_q = draw(found.loc, found.factor, 5)
        >>> normal = torch.distributions.Normal(3.0, 2.0)
        >>> torch.allclose(log_q, normal.log_prob(x).squeeze(-1), atol=1e-3)
        True
    """
    noise = torch.randn(num, *loc.shape, dtype=loc.dtype, device=loc.device)
    squares = noise.square().sum(-1) + loc.shape[-1] * log(2 * pi)
    return loc + factor.times(noise), -0.5 * squares - factor.log_det()


def evidence_bounds(
    target: Differentiable, loc: Tensor, factor: LowRankFactor, fine: Tensor, num: int
) -> Tensor:
    r"""Evidence lower bounds of Gaussians, each restricted to the support of the target.

    With the fraction :math:`\pi` of the draws that have positive density, the Gaussian restricted
    to the support has the density :math:`q / \pi`. So its bound is the mean of
    :math:`\log \tilde p - \log q` over these draws, plus :math:`\log \pi`.

    The draws are evaluated in an order in which row i belongs to path i mod P.

    Arguments:
        target: The density.
        loc: The means, ``(P, d)``.
        factor: The factors of the covariances.
        fine: Which of the Gaussians exist, ``(P,)``.
        num: Draws from each Gaussian.

    Returns:
        The bounds ``(P,)``; :math:`-\infty` where a Gaussian does not exist or no draw has density.

    Example:
        >>> from pyro_flowsamp import Target
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> found = pathfinder(target, torch.ones(1, 1))
        >>> yes = torch.tensor([True])
        >>> bound = evidence_bounds(target, found.loc, found.factor, yes, num=4)
        >>> round(float(bound), 3)  # the log evidence, log(2π) / 2: the Gaussian is the target
        0.919
    """
    x, log_q = draw(loc, factor, num)
    fine = fine & torch.isfinite(x).all(-1).all(0)
    x = torch.where(fine[:, None], x, 0.0)
    at = evaluated(target, x.flatten(0, 1))
    log_p = at.log_prob.view(num, -1)
    inside = torch.isfinite(log_p)
    part = inside.double().mean(0)
    bound = torch.where(inside, log_p - log_q, 0.0).mean(0) / part + part.log()
    return torch.where(fine & (part > 0), bound, -torch.inf)


def _best(
    target: Differentiable, paths: Paths, best: PathfinderResult, new: Tensor, num: int
) -> PathfinderResult:
    """Judges the Gaussians at the current points, of the paths ``new`` only."""
    at = paths.at
    loc = at.x + paths.hessians.times(at.grad)
    factor, fine = paths.hessians.factor()
    elbo = evidence_bounds(target, loc, factor, fine, num)
    better = new & (elbo > best.elbo)
    kept = [
        torch.where(better.view(-1, *[1] * (mine.dim() - 1)), mine, theirs)
        for mine, theirs in zip((loc, *factor), (best.loc, *best.factor))
    ]
    elbo = torch.where(better, elbo, best.elbo)
    return PathfinderResult(kept[0], LowRankFactor(*kept[1:]), elbo, at.x, at.log_prob)


def pathfinder(
    target: Differentiable, starts: Tensor, options: PathfinderOptions | None = None
) -> PathfinderResult:
    r"""Climbs the density from many starts, and keeps the best Gaussian along each path.

    At a point x with inverse Hessian H of the energy the Gaussian is
    :math:`\mathcal N(x + H \nabla \log\tilde p(x), H)`. Positions and linear algebra are in
    float64, and the target is evaluated in its own type. A path ends where its log density no
    longer rises, where no step along the gradient gains anything, or with the allowed calls. Points
    without density are steps that are too long.

    The Gaussians are judged at calls 1, 2, 3, 4 and then several times per doubling, and where all
    paths have ended. Where no Gaussian of a path has a lower bound, the result has the last point,
    with the last diagonal.

    Arguments:
        target: The density.
        starts: The first points, of finite density, ``(P, d)``.
        options: How to search.

    Raises:
        ValueError: ``starts`` is not of shape ``(P, d)``, with one point at least.

    Example:
        >>> import pyro
        >>> from pyro_flowsamp import Target
        >>> pyro.set_rng_seed(0)
        >>> def energy(x):
        ...     return 0.5 * ((x - 500) / torch.tensor([1e-3, 1e3])).square().sum(-1)
        >>> target = Target.from_energy(energy, 2)
        >>> found = pathfinder(target, target.initial_points(8))
        >>> found.end[0]
        tensor([500., 500.], dtype=torch.float64)
        >>> chol = found.scale_tril(found.elbo.argmax()[None])[0]
        >>> [f"{scale:.1e}" for scale in chol.diagonal().tolist()]
        ['1.0e-03', '1.0e+03']
    """
    options = options or PathfinderOptions()
    if starts.dim() != 2 or starts.shape[-1] != target.dim or not len(starts):
        raise ValueError(f"expected starts of shape (P, {target.dim}), got {tuple(starts.shape)}")
    eps = torch.finfo(target.dtype).eps
    paths = Paths.starting(evaluated(target, starts), options.ascent)
    factor, _ = paths.hessians.factor()
    none = torch.full_like(paths.at.log_prob, -torch.inf)
    best = PathfinderResult(paths.at.x, factor, none, paths.at.x, paths.at.log_prob)
    judged, due = torch.full_like(paths.steps, -1.0), 1
    for call in range(1, options.max_evaluations):
        paths = paths.advanced(evaluated(target, paths.trial()), eps, options.ascent)
        last = call == options.max_evaluations - 1
        if last or call % CALLS_BETWEEN_LOOKS == 0:
            last = last or bool(paths.ended.all())
        if last or call >= due:
            best = _best(target, paths, best, paths.steps > judged, options.draws)
            judged = paths.steps
            due = max(call + 1, round(due * 2 ** (1 / options.gaussians_per_octave)))
        if last:
            break
    alone = torch.isfinite(best.elbo)[:, None]
    eye = torch.eye(factor.root.shape[-1]).to(factor.root)
    scale = torch.where(alone, best.factor.scale, paths.hessians.diagonal.sqrt())
    root = torch.where(alone[..., None], best.factor.root, eye)
    loc = torch.where(alone, best.loc, paths.at.x)
    return best._replace(loc=loc, factor=LowRankFactor(scale, best.factor.basis, root))


def overdispersed_starts(target: Target, num: int, octaves: int = 10) -> Tensor:
    r"""Points of finite density on many scales: those of ``initial_points`` times powers of two.

    Point i is multiplied by :math:`2^{i \bmod (\mathrm{octaves} + 1)}`, or by the largest lower
    power at which its density is finite. Angles are left as they are.

    Arguments:
        target: The density.
        num: The number of points.
        octaves: The greatest power of two. With the default they reach 2048.

    Returns:
        The points, ``(num, d)``.

    Raises:
        ValueError: The density is NaN or zero at all points.

    Example:
        >>> import pyro
        >>> from pyro_flowsamp import Target
        >>> pyro.set_rng_seed(0)
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 5)
        >>> x = overdispersed_starts(target, 22, octaves=10)
        >>> bool(x[0].abs().max() < 2), bool(x[10].abs().max() > 100)
        (True, True)
    """
    x = target.initial_points(num)
    power = torch.arange(num, device=x.device) % (octaves + 1)
    spread, found = x, torch.zeros_like(power, dtype=torch.bool)
    for lower in range(octaves + 1):
        scale = 2.0 ** (power - lower).clamp(min=0).to(x.dtype)
        trial = torch.where(target.angles, x, scale[:, None] * x)
        with torch.no_grad():
            new = torch.isfinite(target.log_prob(trial)) & ~found
        spread, found = torch.where(new[:, None], trial, spread), found | new
    return spread
