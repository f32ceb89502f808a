r"""Density ratios along a path, by classifiers between neighbours.

From draws of a sequence of densities,

.. math:: \min_r \; \mathbb E_{f_{k-1}} \log(1 + e^{-r}) + \mathbb E_{f_k} \log(1 + e^{r})
          \quad\Longrightarrow\quad r_k = \log\frac{f_{k-1}}{f_k}, \qquad
          \sum_{k=1}^K r_k = \log\frac{f_0}{f_K}

(logistic regression; Wu & Xie, 2025, https://arxiv.org/abs/2409.20547, on importance flows). The
sum is needed at draws of :math:`f_K`, where the first classifiers have seen nothing: networks alone
extrapolate there, and are wrong by nats. But along a tempered path, :math:`\log f_k = \log f_0 +
\beta_k \phi - \log Z_k`, the ratio is known up to a constant:

.. math:: r_k(x) = -(\beta_k - \beta_{k-1})\,\phi(x) + c_k + \mathrm{net}_k(x),

with a network that starts at zero, for what the draws have of their own, and is constant far from
them. The constant that is best
without it is Bennett's acceptance ratio (1976, https://doi.org/10.1016/0021-9991(76)90078-4), and
is where training starts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..nn.mlp import TimeMLP
from ..options import FitOptions
from ..train import fit
from ..weights import ess_fraction

__all__ = ["Ratios", "fit_ratios"]


REACH = 3.0  #: standard deviations of its own draws beyond which a network is constant


class Ratios(TimeMLP):
    r"""K log ratios, each learnt G times from draws of its own.

    Arguments:
        steps: :math:`\beta_k - \beta_{k-1}`, ``(K,)``.
        draws: ``(K + 1, G, n, d)``, for their location and scale.
        hidden_features: Width of both hidden layers.
    """

    steps: Tensor
    loc: Tensor
    spread: Tensor

    def __init__(self, steps: Tensor, draws: Tensor, hidden_features: int) -> None:
        groups, _, features = draws.shape[1:]
        super().__init__(features, 1, hidden_features, len(steps) * groups)
        high = draws[1:].flatten(1, 2)
        self.register_buffer("steps", steps)
        self.register_buffer("loc", high.mean(1)[:, None, None])
        self.register_buffer("spread", high.std(1)[:, None, None])
        self.to(draws)

    def forward(self, x: Tensor, phi: Tensor) -> Tensor:  # type: ignore[override]
        r""":math:`r_k` at points ``(K, G, n, d)`` where :math:`\phi` is ``(K, G, n)``."""
        u = ((x - self.loc) / self.spread).clamp(-REACH, REACH).flatten(0, 1)
        learnt = self._value(u, self.layers(0.0, u)[0])
        return learnt.view(phi.shape) - self.steps[:, None, None] * phi

    @torch.no_grad()
    def total(self, x: Tensor, phi: Tensor) -> Tensor:
        r""":math:`\log (f_0/f_K)` at points ``(G, n, d)``, by each group's own; float64."""
        shape = (len(self.steps), *x.shape)
        return self(x.expand(shape), phi.expand(shape[:-1])).double().sum(0)


def fit_ratios(
    draws: Tensor, phi: Tensor, steps: Tensor, options: FitOptions, hidden_features: int = 32
) -> Ratios:
    r"""Learns all ratios at once.

    Arguments:
        draws: Of :math:`f_0, \dots, f_K` in G groups, ``(K + 1, G, n, d)``.
        phi: :math:`\phi` there, ``(K + 1, G, n)``.
        steps: :math:`\beta_k - \beta_{k-1}`, ``(K,)``.
        options: How to train; the batch is that of each ratio.
        hidden_features: Width of the networks.
    """
    ratios = Ratios(steps, draws, hidden_features)
    with torch.no_grad():
        ratios.out_bias.copy_(bennett(phi, steps).view_as(ratios.out_bias))

    def closure() -> tuple[Tensor, None]:
        i = torch.randint(draws.shape[2], (options.batch_size,), device=draws.device)
        x, values = draws[:, :, i], phi[:, :, i]
        low, high = ratios(x[:-1], values[:-1]), ratios(x[1:], values[1:])
        return (softplus(-low) + softplus(high)).mean(-1).sum(), None

    fit(ratios.parameters(), closure, ess_fraction, options)
    return ratios


def bennett(phi: Tensor, steps: Tensor) -> Tensor:
    """The best constants without networks, ``(K, G)``: the loss's derivative is zero there."""
    low, high = (-steps[:, None, None] * values for values in (phi[:-1], phi[1:]))
    both = torch.cat([low, high], -1)
    left, right = -both.amax(-1) - 30, -both.amin(-1) + 30
    for _ in range(60):
        c = 0.5 * (left + right)
        slope = (high + c[..., None]).sigmoid().mean(-1) - (-low - c[..., None]).sigmoid().mean(-1)
        left, right = torch.where(slope < 0, c, left), torch.where(slope < 0, right, c)
    return c
