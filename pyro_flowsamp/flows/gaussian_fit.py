r"""A full-covariance Gaussian fitted to a target: the simplest flow, and the start of the others.

:func:`fit_gaussian` fits :math:`\mathcal N(\mu, \Sigma)` to a target by batch-and-match: draws from
the current Gaussian and the target's scores there are matched in closed form, so there is no
learning rate, and a Gaussian target is found in a few dozen batched gradients. The fit starts from
the best Gaussians of :func:`~pyro_flowsamp.flows.pathfinder.pathfinder`, since a single start may
lie near an unimportant mode.

References:
    Diana Cai, Chirag Modi, Loucas Pillaud-Vivien et al., *Batch and match: black-box variational
    inference with a score-based divergence*, 2024, https://arxiv.org/abs/2402.14758, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi

import torch
from torch import Tensor

from ..validation import check_at_least_one
from .line_search import Differentiable
from .pathfinder import PathfinderOptions, PathfinderResult, lower_factor, pathfinder

__all__ = [
    "GaussianFitOptions",
    "ascend",
    "fit_gaussian",
    "distinct_paths",
    "fit_gaussian_to_paths",
]


#: Nats by which a Gaussian that lies mostly outside of the support is behind one that does not.
BEHIND = 1e6


@dataclass(frozen=True)
class GaussianFitOptions:
    """Options of :func:`fit_gaussian`.

    Attributes:
        max_paths: The number of starts, at most, from which paths climb the density.
        pathfinder: How they do.
        candidates: The number of Gaussians, at most, that are fitted side by side.
        distance: Two means are distinct if they are further apart than this, in units of the root
            mean square over the coordinates of the better Gaussian's standard deviations.
        iterations: Batch-and-match updates.
        batch_size: Draws for each update of each Gaussian.
        min_inside: The fraction of a Gaussian's draws with positive density below which it takes
            the moments of these draws instead.
        max_loss: Nats by which the evidence lower bound of the fit may be below that of the best
            path. Where it is lower, the updates have diverged, and the path's Gaussian is taken.

    Raises:
        ValueError: An option is out of range, or of another type.

    Example:
        >>> from pyro_flowsamp import Target
        >>> target = Target.from_energy(lambda x: 0.5 * (x - 3).square().sum(-1), 1)
        >>> options = GaussianFitOptions(max_paths=4, iterations=5)
        >>> fit_gaussian(target, target.initial_points(4), options)[0].round()
        tensor([3.])
    """

    max_paths: int = 32
    pathfinder: PathfinderOptions = PathfinderOptions(max_evaluations=100)
    candidates: int = 4
    distance: float = 1.0
    iterations: int = 40
    batch_size: int = 128
    min_inside: float = 0.45
    max_loss: float = 5.0

    def __post_init__(self) -> None:
        check_at_least_one(self)


def ascend(target: Differentiable, x: Tensor, steps: int = 100, rate: float = 0.1) -> Tensor:
    """Moves points uphill by Adam, all in one batch.

    The highest density of a hierarchical model is often a spike that has no mass, and the points
    pass typical ones on their way to it. So points of three stages are returned, not only the last.

    Arguments:
        target: The density that rises along the way.
        x: Points of finite density, ``(N, d)``.
        steps: The number of steps.
        rate: The step size at the start; it falls linearly to zero.

    Returns:
        The points after a quarter, a half and all of the steps, ``(3, N, d)``.

    Example:
        >>> from pyro_flowsamp import Target
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> stages = ascend(target, torch.ones(5, 2))
        >>> stages.shape, bool(stages[-1].abs().max() < 0.05)
        (torch.Size([3, 5, 2]), True)
    """
    first, second, last = torch.zeros_like(x), torch.zeros_like(x), x
    stages = []
    for t in range(1, steps + 1):
        log_p, grad = target.log_prob_and_grad(x)
        x = last = torch.where(torch.isfinite(log_p)[:, None], x, last)  # back from over the edge
        first = 0.9 * first + 0.1 * grad
        second = 0.99 * second + 0.01 * grad.square()
        step = first / (1 - 0.9**t) / (second.div(1 - 0.99**t).sqrt() + 1e-8)
        x = x + rate * (1 - t / (steps + 1)) * step
        if t in (steps // 4, steps // 2, steps):
            stages.append(last)
    return torch.stack(stages)


def match(
    z: Tensor,
    score: Tensor,
    inside: Tensor,
    weight: float,
    min_inside: float = GaussianFitOptions.min_inside,
) -> tuple[Tensor, Tensor]:
    r"""One batch-and-match update of the standard normal, for K Gaussians side by side.

    The update is equivariant under affine maps. So a Gaussian of mean :math:`\mu` and factor L is
    updated in the coordinates :math:`L^{-1} (x - \mu)`, where scores are multiplied by
    :math:`L^\top`, and no variance is lost beside a greater one. There, with batch mean and
    covariance :math:`\bar z, C` of the draws and :math:`\bar g, \Gamma` of the scores, and
    :math:`\lambda` the weight of the batch against the current Gaussian,

    .. math::
        U &= \lambda\Gamma + \tfrac{\lambda}{1+\lambda}\,\bar g\bar g^\top, \quad
        V = I + \lambda C + \tfrac{\lambda}{1+\lambda}\,\bar z\bar z^\top, \\
        \Sigma' &= 2V\,\bigl(I + (I + 4UV)^{1/2}\bigr)^{-1}, \quad
        \mu' = \tfrac{\lambda}{1+\lambda}\,(\Sigma'\bar g + \bar z).

    The square root is taken of the symmetric :math:`L^\top U L`, where :math:`V = LL^\top`. Draws
    of zero density have no score and are left out. Where most of the batch is left out, the
    Gaussian is much too wide, and takes the moments of the other draws.

    Arguments:
        z, score: Draws and the target's scores there, ``(K, B, d)``.
        inside: Which draws have positive density, ``(K, B)``.
        weight: :math:`\lambda`.
        min_inside: See :class:`GaussianFitOptions`.

    Returns:
        The new means ``(K, d)`` and lower-triangular factors ``(K, d, d)``; NaN where no Gaussian
        fits.

    Example:
        >>> z = torch.randn(1, 50, 2)
        >>> mean, factor = match(z, 3 - z, torch.ones(1, 50) > 0, weight=1e4)
        >>> bool((mean - 3).abs().max() < 0.01), bool((factor[0] - torch.eye(2)).abs().max() < 0.01)
        (True, True)
    """
    share, part = weight / (1 + weight), inside.double().mean(-1)[:, None, None]
    w = (inside[..., None] / inside.sum(-1)[:, None, None]).to(z)
    z_bar, g_bar = (w * z).sum(-2), (w * score).sum(-2)
    z_centred, g_centred = z - z_bar[:, None], score - g_bar[:, None]
    z_cov = (w * z_centred).mT @ z_centred
    u = weight * (w * g_centred).mT @ g_centred + share * _outer(g_bar)
    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    v = eye + weight * z_cov + share * _outer(z_bar)
    chol, info = torch.linalg.cholesky_ex(v)
    inner = chol.mT @ u @ chol
    fine = (torch.isfinite(inner).all(-1).all(-1) & (info == 0))[:, None, None]
    eigenvalues, vectors = torch.linalg.eigh(torch.where(fine, inner, 0.0))
    shrink = (2 / (1 + (1 + 4 * eigenvalues.clamp(min=0)).sqrt())).sqrt()
    factor = lower_factor(torch.where(fine, chol @ vectors * shrink[:, None], eye))
    factor = torch.where(fine, factor, torch.nan)
    moved = share * ((factor @ (factor.mT @ g_bar[..., None]))[..., 0] + z_bar)
    narrow = part < min_inside
    usable = narrow & torch.isfinite(z_cov).all(-1).all(-1)[:, None, None]
    z_root, info = torch.linalg.cholesky_ex(torch.where(usable, z_cov, eye))
    z_root = torch.where(usable & (info == 0)[:, None, None], z_root, torch.nan)
    return torch.where(narrow[..., 0], z_bar, moved), torch.where(narrow, z_root, factor)


def _outer(v: Tensor) -> Tensor:
    return v[..., None] * v[..., None, :]


def fit_gaussian(
    target: Differentiable, starts: Tensor, options: GaussianFitOptions | None = None
) -> tuple[Tensor, Tensor]:
    r"""Fits a full-covariance Gaussian to a target.

    Several Gaussians are fitted side by side, with one batch of gradients an iteration. They start
    as the best ones of paths that climb the density. The result has the best evidence lower bound
    of them.

    Arguments:
        target: The target.
        starts: Over-dispersed points of finite density, ``(N, d)``. The first
            :attr:`~GaussianFitOptions.max_paths` of them are used.
        options: How to fit.

    Returns:
        The mean ``(d,)`` and the lower Cholesky factor of the covariance ``(d, d)``.

    Raises:
        ValueError: ``starts`` is not of shape ``(N, d)``, with one point at least.

    Example:
        >>> import pyro
        >>> from pyro_flowsamp import Target
        >>> pyro.set_rng_seed(0)
        >>> target = Target.from_energy(lambda x: 0.5 * ((x - 3) / 2).square().sum(-1), 2)
        >>> loc, scale_tril = fit_gaussian(target, target.initial_points(64))
        >>> bool((loc - 3).abs().max() < 0.01), bool((scale_tril.diagonal() - 2).abs().max() < 0.01)
        (True, True)
    """
    options = options or GaussianFitOptions()
    paths = pathfinder(target, starts[: options.max_paths], options.pathfinder)
    loc, scale_tril = fit_gaussian_to_paths(target, paths, options)
    return loc.to(starts.dtype), scale_tril.to(starts.dtype)


def fit_gaussian_to_paths(
    target: Differentiable,
    paths: PathfinderResult,
    options: GaussianFitOptions | None = None,
    distinct: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Fits a full-covariance Gaussian to a target, from paths that have been climbed already.

    Arguments:
        target: The target.
        paths: The paths.
        options: How to fit.
        distinct: Indices of paths that are apart, the best first, where they are known; by default
            those of :func:`distinct_paths`.

    Returns:
        The mean ``(d,)`` and the lower Cholesky factor of the covariance ``(d, d)``, float64.

    Example:
        >>> from pyro_flowsamp import Target
        >>> from pyro_flowsamp.flows.pathfinder import pathfinder
        >>> target = Target.from_energy(lambda x: 0.5 * ((x - 3) / 2).square().sum(-1), 1)
        >>> loc, root = fit_gaussian_to_paths(target, pathfinder(target, target.initial_points(4)))
        >>> [round(float(value), 1) for value in (loc, root)]
        [3.0, 2.0]
    """
    options = options or GaussianFitOptions()
    dim, batch_size = target.dim, options.batch_size
    if distinct is None:
        distinct = distinct_paths(paths, options.candidates, options.distance)
    index = distinct[: options.candidates]
    loc, root = paths.loc[index], paths.scale_tril(index)
    kept_loc, kept_root, kept = loc, root, torch.zeros_like(loc[:, 0], dtype=torch.bool)
    for t in range(options.iterations):
        z, score, inside, _ = _draw(target, loc, root, batch_size)
        keep = inside.double().mean(-1) >= options.min_inside
        kept_loc = torch.where(keep[:, None], loc, kept_loc)
        kept_root = torch.where(keep[:, None, None], root, kept_root)
        kept = kept | keep
        mean, factor = match(z, score, inside, batch_size * dim / (t + 1), options.min_inside)
        new_loc, new_root = loc + (root @ mean[..., None])[..., 0], root @ factor
        fine = torch.isfinite(new_loc).all(-1) & torch.isfinite(new_root).all(-1).all(-1)
        fine = fine & (new_root.diagonal(dim1=-2, dim2=-1) > 0).all(-1)
        loc = torch.where(fine[:, None], new_loc, loc)
        root = torch.where(fine[:, None, None], new_root, 0.5 * root)
    bound = _draw(target, kept_loc, kept_root, 4 * batch_size)[-1]
    best = torch.where(kept, bound, bound - BEHIND).argmax()
    first = paths.elbo.argmax()[None]
    reached = bound[best] + 0.5 * dim * log(2 * pi)  # the bound of a path has no constant left out
    if bool(reached < paths.elbo[first[0]] - options.max_loss):
        return paths.loc[first[0]], paths.scale_tril(first)[0]
    return kept_loc[best], kept_root[best]


def distinct_paths(paths: PathfinderResult, most: int, distance: float) -> Tensor:
    """Indices of the best paths whose Gaussians are apart, ``(K,)``, the best first.

    A path is left out if the mean of its Gaussian is near that of a better one, in units of the
    better one's standard deviations.

    Arguments:
        paths: The paths.
        most: Number of paths at most.
        distance: Root mean square of the standardised differences from which on two are apart.

    Example:
        >>> from pyro_flowsamp.flows.pathfinder import pathfinder
        >>> from pyro_flowsamp import Target
        >>> def energy(x):  # two modes, of a third and two thirds of the mass, at -9 and 9
        ...     ends = torch.tensor([-9.0, 9.0])
        ...     return -(torch.tensor([1.0, 2.0]).log() - 0.5 * (x - ends).square()).logsumexp(-1)
        >>> starts = torch.tensor([[-8.0], [7.0], [-7.0], [8.0]])
        >>> paths = pathfinder(Target.from_energy(energy, 1), starts)
        >>> paths.loc[distinct_paths(paths, most=4, distance=1.0)].flatten().round()
        tensor([ 9., -9.], dtype=torch.float64)
    """
    left = torch.ones_like(paths.elbo, dtype=torch.bool)
    found: list[Tensor] = []
    lowest = torch.finfo(paths.elbo.dtype).min  # a path without a bound comes last, but may come
    while len(found) < most and bool(left.any()):
        index = torch.where(left, paths.elbo.clamp(min=lowest), -torch.inf).argmax()[None]
        apart = (paths.loc - paths.loc[index]).mT[None]
        apart = torch.linalg.solve_triangular(paths.scale_tril(index), apart, upper=False)[0]
        left = left & (apart.square().mean(0).sqrt() > distance)
        left[index] = False
        found.append(index)
    return torch.cat(found)


def _draw(
    target: Differentiable, loc: Tensor, root: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws from K Gaussians, their scores, which have positive density, and lower bounds.

    Draws and scores are in the coordinates of the Gaussians, where these are standard normal. The
    evidence lower bound, up to a constant, is that of the Gaussian restricted to the target's
    support.
    """
    count, dim = loc.shape
    noise = torch.randn(count, size, dim, dtype=loc.dtype, device=loc.device)
    x = (loc[:, None] + noise @ root.mT).to(target.dtype)
    log_p, score = target.log_prob_and_grad(x.reshape(-1, dim))
    log_p, score = log_p.reshape(count, size).double(), score.reshape(x.shape).double()
    # where the draws really are, after rounding
    z = torch.linalg.solve_triangular(root, (x.double() - loc[:, None]).mT, upper=False).mT
    inside = torch.isfinite(log_p)
    # The bound has the draws as they were meant: if rounding has moved them far, z is large, and a
    # Gaussian that is too narrow for its distance from zero would seem to have a high bound.
    log_w = torch.where(inside, log_p + 0.5 * noise.square().sum(-1), 0.0)
    part = inside.double().mean(-1)
    bound = log_w.mean(-1) / part + part.log() + root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    score = torch.where(inside[..., None], score, 0.0) @ root
    return z, score, inside, torch.where(part > 0, bound, -torch.inf)
