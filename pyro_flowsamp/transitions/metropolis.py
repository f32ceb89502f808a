"""The Metropolis choice between two states, and the report of a step."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

S = TypeVar("S", bound=tuple)


class MetropolisInfo(NamedTuple):
    """Report of one step of C chains, ``(C,)`` each.

    Attributes:
        accepted: Whether the proposal was accepted.
        accept_prob: The probability of that.
        diverging: Whether the proposal was a divergence.
    """

    accepted: Tensor
    accept_prob: Tensor
    diverging: Tensor


def metropolis(log_alpha: Tensor, log_u: Tensor) -> tuple[Tensor, Tensor]:
    r"""Accepts with :math:`\min(1, \alpha)`, by the log of a uniform variate; NaN is rejected.

    Returns:
        Whether each proposal is accepted, and the acceptance probability.
    """
    return log_u < log_alpha, log_alpha.clamp(max=0).exp().nan_to_num(nan=0.0)


def select(mask: Tensor, new: S, old: S) -> S:
    """``new`` where ``mask`` ``(C,)`` holds and ``old`` elsewhere, for each tensor of a state."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.reshape(mask.shape + (1,) * (a.dim() - 1)), a, b)

    return type(new)(*(pick(a, b) for a, b in zip(new, old)))
