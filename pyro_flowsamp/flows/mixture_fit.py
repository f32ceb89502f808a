r"""A Gaussian mixture fitted to draws: a latent distribution for targets of several modes.

:func:`fit_mixture` runs expectation-maximisation for several numbers of components and keeps the
one that predicts held-out draws best.

References:
    Arthur Dempster, Nan Laird and Donald Rubin, *Maximum likelihood from incomplete data via the EM
    algorithm*, 1977, https://doi.org/10.1111/j.2517-6161.1977.tb01600.x.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Mixture", "MixtureFitOptions", "fit_mixture"]


@dataclass(frozen=True)
class MixtureFitOptions:
    """Options of :func:`fit_mixture`.

    Attributes:
        steps: Iterations of expectation-maximisation for each number of components.
        held_out: One in this many draws is held out.
        min_gain: Standard errors by which more components must predict the held-out draws better.
        max_failures: The number of times in a row that they may fail to.
        ridge: Variance added to every component, relative to that of the draws.
    """

    steps: int = 50
    held_out: int = 5
    min_gain: float = 2.0
    max_failures: int = 2
    ridge: float = 1e-4


class Mixture(NamedTuple):
    r""":math:`\sum_k \pi_k \mathcal N(\mu_k, L_k L_k^\top)`.

    Attributes:
        log_weights: :math:`\log\pi_k`, ``(K,)``.
        locs: :math:`\mu_k`, ``(K, d)``.
        scale_trils: :math:`L_k`, ``(K, d, d)``.

    Example:
        >>> mixture = Mixture(torch.zeros(1), torch.zeros(1, 2), torch.eye(2)[None])
        >>> mixture.log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
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
        """Log density, ``(N, d) → (N,)``."""
        return self.joint_log_prob(x).logsumexp(-1)

    def sample(self, num: int) -> Tensor:
        """Draws, ``(num, d)``."""
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


def _expectation_maximisation(x: Tensor, components: int, steps: int, ridge: float) -> Mixture:
    ridge *= float(x.var(0).mean())
    nearest = torch.cdist(x, _spread_out(x, components)).argmin(-1)
    resp = torch.nn.functional.one_hot(nearest, components).to(x)
    mixture = _maximize(x, resp, ridge)
    for _ in range(steps):
        mixture = _maximize(x, mixture.joint_log_prob(x).softmax(-1), ridge)
    return mixture


def fit_mixture(
    x: Tensor, max_components: int, options: MixtureFitOptions | None = None
) -> Mixture:
    """Fits a mixture of one, two, four, … components to draws.

    More components are taken where they predict the held-out draws better by some standard errors;
    the search ends where that fails several times in a row.

    Arguments:
        x: The draws, ``(N, d)``.
        max_components: Bound on the number of components.
        options: How to fit.

    Example:
        >>> import pyro
        >>> pyro.set_rng_seed(0)
        >>> modes = torch.tensor([[-5.0], [5.0]]).repeat(200, 1)
        >>> len(fit_mixture(modes + torch.randn(400, 1), 8).locs)
        2
    """
    options = options or MixtureFitOptions()
    x = x[torch.randperm(len(x), device=x.device)].double()
    num = len(x) // options.held_out
    held_out, rest = x[:num], x[num:]
    best, count, failed = _expectation_maximisation(rest, 1, 0, options.ridge), 2, 0
    while count <= max_components and failed < options.max_failures:
        mixture = _expectation_maximisation(rest, count, options.steps, options.ridge)
        gain = mixture.log_prob(held_out) - best.log_prob(held_out)
        better = bool(gain.mean() > options.min_gain * gain.std() / len(gain) ** 0.5)
        best, failed = (mixture, 0) if better else (best, failed + 1)
        count *= 2
    return best
