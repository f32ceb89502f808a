r"""Losses that train one block of an annealing flow.

A loss is a function of a :class:`TransportBatch`, see
:class:`~pyro_flowsamp.guides.annealing.options.AnnealingOptions`. The losses of the paper are in
``examples/benchmarks/variants.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...smc.paths import TemperedState

__all__ = ["Loss", "TransportBatch", "log_variance"]


class TransportBatch(NamedTuple):
    r"""A minibatch carried by a block, differentiable.

    Attributes:
        before: The states that it started from.
        x: Where it ended, ``(N, d)``.
        ladj: Log-determinants, ``(N,)``.
        log_f: Evaluates :math:`\log\tilde f_k` there, ``(N,)``, float64; called only where it is
            needed.
        beta: :math:`\beta_k`.

    Example:
        >>> from types import SimpleNamespace
        >>> zero = torch.zeros(2)
        >>> before = SimpleNamespace(x=zero[:, None], log_pi=zero + 1)
        >>> batch = TransportBatch(before, zero[:, None] + 2, zero + 0.5, lambda: zero + 3, 1.0)
        >>> batch.log_weights(), batch.cost()  # 3 + 0.5 - 1, and 2²
        (tensor([2.5000, 2.5000], dtype=torch.float64), tensor(4.))
    """

    before: TemperedState
    x: Tensor
    ladj: Tensor
    log_f: Callable[[], Tensor]
    beta: float

    def log_weights(self) -> Tensor:
        r""":math:`\Delta\log w`, ``(N,)``."""
        return self.log_f() + self.ladj.double() - self.before.log_pi

    def cost(self) -> Tensor:
        r""":math:`\mathbb E\|T x - x\|^2`."""
        return (self.x - self.before.x).square().sum(-1).mean()


Loss = tuple[Tensor, Tensor | None]  #: a loss, 0-d, and detached log weights ``(N,)`` or None


def log_variance(batch: TransportBatch) -> Loss:
    r"""The log-variance loss of a block, :math:`\mathbb E\,h(\Delta\log w - c)`.

    Here :math:`h(r) = 2\sqrt{1 + r^2} - 2`, and c is the log of the mean weight. Weights that are
    not finite are left out.

    Arguments:
        batch: The minibatch.

    Returns:
        The loss and the log weights.

    References:
        Nüsken and Richter, *Solving high-dimensional Hamilton–Jacobi–Bellman PDEs using neural
        networks: perspectives from the theory of controlled diffusions and measures on path
        space*, 2021, https://arxiv.org/abs/2005.05409

    Example:
        >>> from types import SimpleNamespace
        >>> zero = torch.zeros(2)
        >>> before = SimpleNamespace(x=zero[:, None], log_pi=zero)
        >>> for log_f in torch.tensor([2.0, 2.0]), torch.tensor([2.0, 4.0]):
        ...     batch = TransportBatch(before, zero[:, None], zero, lambda: log_f, beta=1.0)
        ...     print(float(log_variance(batch)[0]) > 0.1)  # zero where all weights are equal
        False
        True
    """
    log_w = batch.log_weights()
    finite = torch.isfinite(log_w)
    known = torch.where(finite, log_w.detach(), -torch.inf)
    centre = known.logsumexp(0) - finite.sum().log()
    excess = torch.where(finite, log_w, centre) - centre
    return (2 * (1 + excess.square()).sqrt() - 2).sum() / finite.sum(), log_w.detach()
