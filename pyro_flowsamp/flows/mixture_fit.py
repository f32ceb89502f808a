r"""A Gaussian mixture fitted to draws: the first rung of the ladder for several modes.

:func:`fit_mixture` runs expectation-maximisation (Dempster et al., 1977) for several numbers of
components and keeps the one that predicts held-out draws best.
"""

from __future__ import annotations

from math import log, pi
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Mixture", "fit_mixture"]


class Mixture(NamedTuple):
    r""":math:`\sum_k \pi_k \mathcal N(\mu_k, L_k L_k^\top)`.

    Attributes:
        log_weights: :math:`\log\pi_k`, ``(K,)``.
        locs: :math:`\mu_k`, ``(K, d)``.
        scale_trils: :math:`L_k`, ``(K, d, d)``.
    """

    log_weights: Tensor
    locs: Tensor
    scale_trils: Tensor

    def joint_log_prob(self, x: Tensor) -> Tensor:
        r""":math:`\log \pi_k + \log \mathcal N(x; \mu_k, L_k L_k^\top)`, ``(N, d) → (N, K)``."""
        centred = (x[None] - self.locs[:, None]).mT
        u = torch.linalg.solve_triangular(self.scale_trils, centred, upper=False)
        half_log_det = self.scale_trils.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = self.log_weights - half_log_det - 0.5 * x.shape[-1] * log(2 * pi)
        return (constant[:, None] - 0.5 * u.square().sum(-2)).mT

    def log_prob(self, x: Tensor) -> Tensor:
        """``(N, d) → (N,)``."""
        return self.joint_log_prob(x).logsumexp(-1)

    def sample(self, num: int) -> Tensor:
        """``(num, d)``."""
        k = self.log_weights.softmax(0).multinomial(num, replacement=True)
        noise = torch.randn(num, self.locs.shape[-1], dtype=self.locs.dtype, device=k.device)
        scaled = noise @ self.scale_trils.mT  # of every component: smaller than L for every draw
        return self.locs[k] + scaled[k, torch.arange(num, device=k.device)]


def _maximize(x: Tensor, resp: Tensor, ridge: float) -> Mixture:
    """The M step: weighted moments, with a ridge that keeps every covariance positive."""
    mass = resp.sum(0) + 1e-9
    locs = resp.mT @ x / mass[:, None]
    centred = x[None] - locs[:, None]
    cov = (resp.mT[..., None] * centred).mT @ centred / mass[:, None, None]
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return Mixture((mass / mass.sum()).log(), locs, torch.linalg.cholesky(cov + ridge * eye))


def _spread_out(x: Tensor, count: int) -> Tensor:
    """k-means++ seeding: each centre far from those before it, ``(count, d)``."""
    centres = x[torch.randint(len(x), (1,), device=x.device)]
    for _ in range(count - 1):
        distance = torch.cdist(x, centres).min(-1).values.square() + 1e-12
        centres = torch.cat([centres, x[distance.multinomial(1)]])
    return centres


def _expectation_maximisation(x: Tensor, components: int, steps: int) -> Mixture:
    ridge = 1e-4 * float(x.var(0).mean())
    nearest = torch.cdist(x, _spread_out(x, components)).argmin(-1)
    resp = torch.nn.functional.one_hot(nearest, components).to(x)
    mixture = _maximize(x, resp, ridge)
    for _ in range(steps):
        mixture = _maximize(x, mixture.joint_log_prob(x).softmax(-1), ridge)
    return mixture


def fit_mixture(x: Tensor, max_components: int, steps: int = 50) -> Mixture:
    """Fits a mixture to draws ``(N, d)``.

    One component, two, four, … are tried. More are taken where they predict the held-out fifth of
    the draws better by two standard errors; where that fails twice in a row the search ends.

    Arguments:
        x: The draws.
        max_components: Bound on the number of components.
        steps: Iterations of expectation-maximisation for each.
    """
    x = x[torch.randperm(len(x), device=x.device)].double()
    held_out, seen = x[: len(x) // 5], x[len(x) // 5 :]
    best, count, failed = _expectation_maximisation(seen, 1, 0), 2, 0
    while count <= max_components and failed < 2:
        mixture = _expectation_maximisation(seen, count, steps)
        gain = mixture.log_prob(held_out) - best.log_prob(held_out)
        better = bool(gain.mean() > 2 * gain.std() / len(gain) ** 0.5)
        best, failed = (mixture, 0) if better else (best, failed + 1)
        count *= 2
    return best
