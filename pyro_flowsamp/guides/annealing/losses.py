"""Losses that train one block of an annealing flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class TransportBatch(NamedTuple):
    """A minibatch carried by a block, differentiable.

    Attributes:
        before: The states it started from.
        x: Where it ended, ``(N, d)``.
        ladj: Log-dets, ``(N,)``.
        log_f: :math:`\\log\\tilde f_k` there, ``(N,)``, float64; asked for only where it is needed.
        beta: :math:`\\beta_k`.
    """

    before: Any
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


Loss = tuple[Tensor, Tensor | None]


def _variance(move: TransportBatch) -> Loss:
    log_w = move.log_weights()
    finite = torch.isfinite(log_w)
    known = torch.where(finite, log_w.detach(), -torch.inf)
    centre = known.logsumexp(0) - finite.sum().log()
    excess = torch.where(finite, log_w, centre) - centre
    return (2 * (1 + excess.square()).sqrt() - 2).sum() / finite.sum(), log_w.detach()


def _kl(move: TransportBatch) -> Loss:
    log_w = move.log_weights()
    finite = torch.isfinite(log_w)
    return -torch.where(finite, log_w, 0.0).sum() / finite.sum(), log_w.detach()


def _linear(move: TransportBatch) -> Loss:
    score = (1 - move.beta) * move.before.grad_b + move.beta * move.before.grad_p
    gain = (score * (move.x - move.before.x)).sum(-1)
    return -(gain + move.ladj).mean(), None


LOSSES = {"variance": (_variance, 0.0), "kl": (_kl, 0.5), "linear": (_linear, 0.5)}
