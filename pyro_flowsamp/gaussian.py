r"""The first rung of the ladder: the Gaussian that a flow has to beat.

:func:`fit_gaussian` fits :math:`\mathcal N(\mu, \Sigma)` to a target by batch-and-match (Cai et
al., 2024, https://arxiv.org/abs/2402.14758, Algorithm 1): draws from the current Gaussian and the
target's scores there are matched in closed form, so there is no learning rate, and a Gaussian
target is found in a few dozen batched gradients. It starts from the best of many over-dispersed
points, moved uphill together; one start is never trusted.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["ascend", "fit_gaussian"]


class Differentiable(Protocol):
    """The part of a target that is used here."""

    dim: int
    dtype: torch.dtype

    def log_prob_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


def ascend(target: Differentiable, x: Tensor, steps: int = 100, rate: float = 0.1) -> Tensor:
    """Moves all points uphill together by Adam; returns where they were on the way, ``(3, N, d)``.

    The ends alone would not do: the highest density of a hierarchical model is often a spike of no
    mass, which the path passes typical places to reach.
    """
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    stages = []
    for t in range(1, steps + 1):
        _, grad = target.log_prob_and_grad(x)
        first = 0.9 * first + 0.1 * grad
        second = 0.99 * second + 0.01 * grad.square()
        step = first / (1 - 0.9**t) / (second.div(1 - 0.99**t).sqrt() + 1e-8)
        x = x + rate * (1 - t / (steps + 1)) * step
        if t in (steps // 4, steps // 2, steps):
            stages.append(x)
    return torch.stack(stages)


def match(
    loc: Tensor, cov: Tensor, z: Tensor, score: Tensor, weight: float
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

    The square root is taken of the symmetric :math:`L^\top U L`, where :math:`V = LL^\top`.

    Arguments:
        loc, cov: ``(K, d)`` and ``(K, d, d)``.
        z, score: ``(K, B, d)``.
        weight: :math:`\lambda`.
    """
    share, size = weight / (1 + weight), z.shape[-2]
    z_bar, g_bar = z.mean(-2), score.mean(-2)
    z_centred, g_centred = z - z_bar[:, None], score - g_bar[:, None]
    u = weight * g_centred.mT @ g_centred / size + share * _outer(g_bar)
    v = cov + weight * z_centred.mT @ z_centred / size + share * _outer(loc - z_bar)
    chol = torch.linalg.cholesky(v)
    eigenvalues, vectors = torch.linalg.eigh(chol.mT @ u @ chol)
    shrink = (2 / (1 + (1 + 4 * eigenvalues.clamp(min=0)).sqrt())).sqrt()
    factor = chol @ vectors * shrink[:, None]
    cov = factor @ factor.mT
    moved = (cov @ g_bar[..., None])[..., 0] + z_bar
    return (1 - share) * loc + share * moved, cov


def _outer(v: Tensor) -> Tensor:
    return v[..., None] * v[..., None, :]


def fit_gaussian(
    target: Differentiable,
    starts: Tensor,
    *,
    iterations: int = 60,
    batch_size: int = 128,
) -> tuple[Tensor, Tensor]:
    r"""Fits a full-covariance Gaussian to a target.

    Several Gaussians grow side by side, from the highest points of each stage of the ascent, in
    one batch of gradients an iteration; the one with the best evidence lower bound is returned.

    Arguments:
        target: What to fit.
        starts: Over-dispersed points of finite density, ``(N, d)``.
        iterations: Batch-and-match updates.
        batch_size: Draws for each update of each Gaussian.

    Returns:
        The mean ``(d,)`` and the lower Cholesky factor of the covariance ``(d, d)``.
    """
    dim = target.dim
    loc = _candidates(target, ascend(target, starts)).double()
    cov = (0.01 * torch.eye(dim, dtype=loc.dtype, device=loc.device)).repeat(len(loc), 1, 1)
    for t in range(iterations):
        z, score, _ = _draw(target, loc, cov, batch_size)
        new_loc, new_cov = match(loc, cov, z, score, batch_size * dim / (t + 1))
        fine = torch.isfinite(new_loc).all(-1) & (torch.linalg.cholesky_ex(new_cov).info == 0)
        loc = torch.where(fine[:, None], new_loc, loc)
        cov = torch.where(fine[:, None, None], new_cov, cov)
    _, _, bound = _draw(target, loc, cov, 4 * batch_size)
    best = bound.argmax()
    return loc[best].to(starts.dtype), torch.linalg.cholesky(cov[best]).to(starts.dtype)


def _candidates(target: Differentiable, stages: Tensor) -> Tensor:
    """The highest point of each stage, and the highest of a second crowd at the last."""
    log_p = torch.stack([target.log_prob_and_grad(x)[0] for x in stages])
    half = stages.shape[1] // 2
    best = [x[lp.argmax()] for x, lp in zip(stages, log_p)]
    lower = log_p[-1].argsort(descending=True)[half // 2]
    return torch.stack([*best, stages[-1, lower]])


def _draw(
    target: Differentiable, loc: Tensor, cov: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws from K Gaussians, the target's scores there, and each one's evidence lower bound."""
    count, dim = loc.shape
    chol = torch.linalg.cholesky(cov)
    noise = torch.randn(count, size, dim, dtype=loc.dtype, device=loc.device)
    z = loc[:, None] + noise @ chol.mT
    log_p, score = target.log_prob_and_grad(z.reshape(-1, dim).to(target.dtype))
    log_p, score = log_p.reshape(count, size).double(), score.reshape(z.shape).double()
    score = torch.where(torch.isfinite(log_p)[..., None], score, 0.0)
    bound = log_p.mean(-1) + chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return z, score, bound
