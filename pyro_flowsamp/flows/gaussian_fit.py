r"""A full-covariance Gaussian fitted to a target: the simplest flow, and the start of the others.

:func:`fit_gaussian` fits :math:`\mathcal N(\mu, \Sigma)` to a target by batch-and-match: draws from
the current Gaussian and the target's scores there are matched in closed form, so there is no
learning rate, and a Gaussian target is found in a few dozen batched gradients. The fit starts from
the best of many over-dispersed points after a gradient ascent, since a single start may lie near an
unimportant mode.

References:
    Diana Cai, Chirag Modi, Loucas Pillaud-Vivien et al., *Batch and match: black-box variational
    inference with a score-based divergence*, 2024, https://arxiv.org/abs/2402.14758, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["GaussianFitOptions", "ascend", "fit_gaussian"]


@dataclass(frozen=True)
class GaussianFitOptions:
    """Options of :func:`fit_gaussian`.

    Attributes:
        ascent_steps: Steps of the gradient ascent.
        ascent_rate: Step size of Adam at the start of the ascent.
        initial_variance: Variance of the first Gaussians in every coordinate.
        iterations: Batch-and-match updates.
        batch_size: Draws for each update of each Gaussian.
        min_inside: The fraction of a Gaussian's draws with positive density below which it takes
            the moments of these draws instead.
    """

    ascent_steps: int = 100
    ascent_rate: float = 0.1
    initial_variance: float = 0.01
    iterations: int = 40
    batch_size: int = 128
    min_inside: float = 0.45


class Differentiable(Protocol):
    """The attributes and methods of a target that are used here."""

    dim: int
    dtype: torch.dtype

    def log_prob_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


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
    loc: Tensor,
    cov: Tensor,
    z: Tensor,
    score: Tensor,
    inside: Tensor,
    weight: float,
    min_inside: float = GaussianFitOptions.min_inside,
) -> tuple[Tensor, Tensor]:
    r"""One batch-and-match update of :math:`(\mu, \Sigma)`, for K Gaussians side by side.

    With batch mean and covariance :math:`\bar z, C` of the draws and :math:`\bar g, \Gamma` of the
    scores, and :math:`\lambda` the weight of the batch against the current Gaussian,

    .. math::
        U &= \lambda\Gamma + \tfrac{\lambda}{1+\lambda}\,\bar g\bar g^\top, \quad
        V = \Sigma + \lambda C
            + \tfrac{\lambda}{1+\lambda}\,(\mu-\bar z)(\mu-\bar z)^\top, \\
        \Sigma' &= 2V\,\bigl(I + (I + 4UV)^{1/2}\bigr)^{-1}, \quad
        \mu' = \tfrac{1}{1+\lambda}\,\mu + \tfrac{\lambda}{1+\lambda}\,(\Sigma'\bar g + \bar z).

    The square root is taken of the symmetric :math:`L^\top U L`, where :math:`V = LL^\top`. Draws
    of zero density have no score and are left out. Where most of the batch is left out, the
    Gaussian is much too wide, and takes the moments of the other draws.

    Arguments:
        loc, cov: Means and covariances, ``(K, d)`` and ``(K, d, d)``.
        z, score: Draws and the target's scores there, ``(K, B, d)``.
        inside: Which draws have positive density, ``(K, B)``.
        weight: :math:`\lambda`.
        min_inside: See :class:`GaussianFitOptions`.

    Returns:
        The new means and covariances; NaN where no Gaussian fits.
    """
    share, part = weight / (1 + weight), inside.double().mean(-1)[:, None, None]
    w = inside[..., None] / inside.sum(-1)[:, None, None]
    z_bar, g_bar = (w * z).sum(-2), (w * score).sum(-2)
    z_centred, g_centred = z - z_bar[:, None], score - g_bar[:, None]
    z_cov = (w * z_centred).mT @ z_centred
    u = weight * (w * g_centred).mT @ g_centred + share * _outer(g_bar)
    v = cov + weight * z_cov + share * _outer(loc - z_bar)
    chol, info = torch.linalg.cholesky_ex(v)
    inner = chol.mT @ u @ chol
    fine = (torch.isfinite(inner).all(-1).all(-1) & (info == 0))[:, None, None]
    eigenvalues, vectors = torch.linalg.eigh(torch.where(fine, inner, 0.0))
    shrink = (2 / (1 + (1 + 4 * eigenvalues.clamp(min=0)).sqrt())).sqrt()
    factor = chol @ vectors * shrink[:, None]
    cov = torch.where(fine, factor @ factor.mT, torch.nan)
    moved = (1 - share) * loc + share * ((cov @ g_bar[..., None])[..., 0] + z_bar)
    narrow = part < min_inside
    return torch.where(narrow[..., 0], z_bar, moved), torch.where(narrow, z_cov, cov)


def _outer(v: Tensor) -> Tensor:
    return v[..., None] * v[..., None, :]


def fit_gaussian(
    target: Differentiable, starts: Tensor, options: GaussianFitOptions | None = None
) -> tuple[Tensor, Tensor]:
    r"""Fits a full-covariance Gaussian to a target.

    Several Gaussians are fitted side by side, from the highest points of each stage of the ascent,
    with one batch of gradients an iteration. The result has the best evidence lower bound of them.

    Arguments:
        target: The target.
        starts: Over-dispersed points of finite density, ``(N, d)``.
        options: How to fit.

    Returns:
        The mean ``(d,)`` and the lower Cholesky factor of the covariance ``(d, d)``.

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
    dim, batch_size = target.dim, options.batch_size
    stages = ascend(target, starts, options.ascent_steps, options.ascent_rate)
    loc = _candidates(target, stages).double()
    eye = torch.eye(dim, dtype=loc.dtype, device=loc.device)
    cov = (options.initial_variance * eye).repeat(len(loc), 1, 1)
    kept_loc, kept_cov = loc, cov
    for t in range(options.iterations):
        z, score, inside, _ = _draw(target, loc, cov, batch_size)
        keep = inside.double().mean(-1) >= options.min_inside
        kept_loc = torch.where(keep[:, None], loc, kept_loc)
        kept_cov = torch.where(keep[:, None, None], cov, kept_cov)
        weight = batch_size * dim / (t + 1)
        new_loc, new_cov = match(loc, cov, z, score, inside, weight, options.min_inside)
        fine = torch.isfinite(new_loc).all(-1) & (torch.linalg.cholesky_ex(new_cov).info == 0)
        loc = torch.where(fine[:, None], new_loc, loc)
        cov = torch.where(fine[:, None, None], new_cov, 0.25 * cov)
    best = _draw(target, kept_loc, kept_cov, 4 * batch_size)[-1].argmax()
    return kept_loc[best].to(starts.dtype), torch.linalg.cholesky(kept_cov[best]).to(starts.dtype)


def _candidates(target: Differentiable, stages: Tensor) -> Tensor:
    """The highest point of each stage, and one of medium height at the last."""
    log_p = torch.stack([target.log_prob_and_grad(x)[0] for x in stages])
    half = stages.shape[1] // 2
    best = [x[lp.argmax()] for x, lp in zip(stages, log_p)]
    lower = log_p[-1].argsort(descending=True)[half // 2]
    return torch.stack([*best, stages[-1, lower]])


def _draw(
    target: Differentiable, loc: Tensor, cov: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws from K Gaussians, their scores, which have positive density, and lower bounds.

    The evidence lower bound, up to a constant, is that of the Gaussian restricted to the target's
    support.
    """
    count, dim = loc.shape
    chol = torch.linalg.cholesky(cov)
    noise = torch.randn(count, size, dim, dtype=loc.dtype, device=loc.device)
    z = loc[:, None] + noise @ chol.mT
    log_p, score = target.log_prob_and_grad(z.reshape(-1, dim).to(target.dtype))
    log_p, score = log_p.reshape(count, size).double(), score.reshape(z.shape).double()
    inside = torch.isfinite(log_p)
    log_w = torch.where(inside, log_p + 0.5 * noise.square().sum(-1), 0.0)
    part = inside.double().mean(-1)
    bound = log_w.mean(-1) / part + part.log() + chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    score = torch.where(inside[..., None], score, 0.0)
    return z, score, inside, bound.nan_to_num(nan=-torch.inf)
