r"""Density ratios along a path, estimated by classifiers between neighbouring densities.

From draws of a sequence of densities, logistic regression gives

.. math:: \min_r \; \mathbb E_{f_{k-1}} \log(1 + e^{-r}) + \mathbb E_{f_k} \log(1 + e^{r})
          \quad\Longrightarrow\quad r_k = \log\frac{f_{k-1}}{f_k}, \qquad
          \sum_{k=1}^K r_k = \log\frac{f_0}{f_K} .

The sum is needed at draws of :math:`f_K`, where the first classifiers have seen no draws. Networks
alone extrapolate there, with errors of several nats. Along a tempered path, :math:`\log f_k = \log
f_0 + \beta_k \phi - \log Z_k`, the ratio is known up to a constant:

.. math:: r_k(x) = -(\beta_k - \beta_{k-1})\,\phi(x) + c_k + \mathrm{net}_k(x) .

The network represents how the draws differ from the path's densities. It starts at zero, and it is
constant far from the draws. Without the network, the best constant is Bennett's acceptance ratio.
The training starts there.

References:
    Wu and Xie, *Annealing Flow Generative Models Towards Sampling High-Dimensional and Multi-Modal
    Distributions*, 2025, https://arxiv.org/abs/2409.20547

    Bennett, *Efficient Estimation of Free Energy Differences from Monte Carlo Data*, 1976,
    https://doi.org/10.1016/0021-9991(76)90078-4
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..nn.mlp import TimeMLP
from ..training.train import fit
from ..weights import ess_fraction
from .options import ImportanceOptions

__all__ = ["Ratios", "bennett", "fit_ratios"]


class Ratios(TimeMLP):
    r"""K log ratios of densities, each learnt G times from separate groups of draws.

    Arguments:
        steps: :math:`\beta_k - \beta_{k-1}`, ``(K,)``.
        draws: Draws ``(K + 1, G, n, d)``, for their location and scale.
        options: ``classifier_width`` and ``classifier_reach`` are used.

    Example:
        >>> draws = torch.randn(2, 3, 10, 1)  # of two densities, in three groups
        >>> ratios = Ratios(torch.tensor([0.5]), draws, ImportanceOptions())
        >>> ratios(draws[1:], torch.full((1, 3, 10), 4.0)).unique()  # untrained: -0.5 * 4
        tensor([-2.], grad_fn=<Unique2Backward0>)
    """

    steps: Tensor
    loc: Tensor
    spread: Tensor

    def __init__(self, steps: Tensor, draws: Tensor, options: ImportanceOptions) -> None:
        groups, _, features = draws.shape[1:]
        super().__init__(features, 1, options.classifier_width, len(steps) * groups)
        self.reach = options.classifier_reach
        high = draws[1:].flatten(1, 2)
        self.register_buffer("steps", steps)
        self.register_buffer("loc", high.mean(1)[:, None, None])
        self.register_buffer("spread", high.std(1)[:, None, None])
        self.to(draws)

    def forward(self, x: Tensor, phi: Tensor) -> Tensor:  # type: ignore[override]
        r"""Returns :math:`r_k` at points ``(K, G, n, d)``, where :math:`\phi` is ``(K, G, n)``."""
        u = ((x - self.loc) / self.spread).clamp(-self.reach, self.reach).flatten(0, 1)
        learnt = self._value(u, self.layers(0.0, u)[0])
        return learnt.view(phi.shape) - self.steps[:, None, None] * phi

    @torch.no_grad()
    def total(self, x: Tensor, phi: Tensor) -> Tensor:
        r"""Returns :math:`\log (f_0/f_K)` at points ``(G, n, d)``, float64.

        Each group's points are evaluated by that group's own classifiers.
        """
        shape = (len(self.steps), *x.shape)
        return self(x.expand(shape), phi.expand(shape[:-1])).double().sum(0)


def fit_ratios(draws: Tensor, phi: Tensor, steps: Tensor, options: ImportanceOptions) -> Ratios:
    r"""Trains all classifiers at once.

    Arguments:
        draws: Draws of :math:`f_0, \dots, f_K` in G groups, ``(K + 1, G, n, d)``.
        phi: :math:`\phi` at the draws, ``(K + 1, G, n)``.
        steps: :math:`\beta_k - \beta_{k-1}`, ``(K,)``.
        options: Settings; the batch size of ``classifier_fit`` is that of each ratio.

    Returns:
        The log ratios as a module.

    Example:
        >>> from pyro_flowsamp import FitOptions
        >>> draws = torch.tensor([0.0, 1.0]).repeat(20).expand(2, 2, 40)[..., None].clone()
        >>> options = ImportanceOptions(classifier_fit=FitOptions(1, 8, 1e-4, progress=False))
        >>> ratios = fit_ratios(draws, draws[..., 0], torch.tensor([1.0]), options)
        >>> log_ratio = ratios.total(torch.zeros(2, 1, 1), torch.zeros(2, 1))
        >>> [round(value, 1) for value in log_ratio.flatten().tolist()]  # c - x, with c = 1/2, at 0
        [0.5, 0.5]
    """
    ratios, training = Ratios(steps, draws, options), options.classifier_fit
    with torch.no_grad():
        ratios.out_bias.copy_(bennett(phi, steps).view_as(ratios.out_bias))

    def closure() -> tuple[Tensor, None]:
        i = torch.randint(draws.shape[2], (training.batch_size,), device=draws.device)
        x, values = draws[:, :, i], phi[:, :, i]
        low, high = ratios(x[:-1], values[:-1]), ratios(x[1:], values[1:])
        return (softplus(-low) + softplus(high)).mean(-1).sum(), None

    fit(ratios.parameters(), closure, ess_fraction, training)
    return ratios


def bennett(phi: Tensor, steps: Tensor) -> Tensor:
    r"""Returns the best constants :math:`c_k` without networks, ``(K, G)``, by bisection.

    Arguments:
        phi: :math:`\phi` at draws of :math:`f_0, \dots, f_K`, ``(K + 1, G, n)``.
        steps: :math:`\beta_k - \beta_{k-1}`, ``(K,)``.

    Example::

        >>> x = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]])  # both densities have the same draws
        >>> round(float(bennett(x, torch.tensor([1.0]))), 4)
        0.5
    """
    low, high = (-steps[:, None, None] * values for values in (phi[:-1], phi[1:]))
    both = torch.cat([low, high], -1)
    left, right = -both.amax(-1) - 30, -both.amin(-1) + 30
    for _ in range(60):
        c = 0.5 * (left + right)
        slope = (high + c[..., None]).sigmoid().mean(-1) - (-low - c[..., None]).sigmoid().mean(-1)
        left, right = torch.where(slope < 0, c, left), torch.where(slope < 0, right, c)
    return c
