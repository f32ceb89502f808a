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

    Example:
        >>> chance = torch.tensor([1.0, 0.5])
        >>> info = MetropolisInfo(chance > 0.7, chance, chance < 0.0)
        >>> info.accepted, float(info.accept_prob.mean())
        (tensor([ True, False]), 0.75)
    """

    accepted: Tensor
    accept_prob: Tensor
    diverging: Tensor


def metropolis(log_alpha: Tensor, log_u: Tensor) -> tuple[Tensor, Tensor]:
    r"""Accepts with :math:`\min(1, \alpha)`, by the log of a uniform variate; NaN is rejected.

    Arguments:
        log_alpha: Logs of acceptance ratios, ``(C,)``.
        log_u: Logs of uniform variates, ``(C,)``.

    Returns:
        Whether each proposal is accepted, and the acceptance probability.

    Example:
        >>> log_alpha = torch.tensor([2.0, -0.5, -torch.inf, torch.nan])
        >>> accepted, accept_prob = metropolis(log_alpha, torch.full((4,), -0.7))
        >>> accepted
        tensor([ True,  True, False, False])
        >>> accept_prob
        tensor([1.0000, 0.6065, 0.0000, 0.0000])
    """
    return log_u < log_alpha, log_alpha.clamp(max=0).exp().nan_to_num(nan=0.0)


def select(mask: Tensor, new: S, old: S) -> S:
    """``new`` where ``mask`` ``(C,)`` holds and ``old`` elsewhere, for each tensor of a state.

    Arguments:
        mask: Which rows to take from ``new``.
        new, old: Two states, named tuples of tensors ``(C, ...)``.

    Example:
        >>> from collections import namedtuple
        >>> State = namedtuple("State", "x log_p")
        >>> old = State(torch.zeros(2, 1), torch.zeros(2))
        >>> new = State(torch.ones(2, 1), torch.tensor([5.0, 6.0]))
        >>> select(torch.tensor([True, False]), new, old)
        State(x=tensor([[1.],
                [0.]]), log_p=tensor([5., 0.]))
    """

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.reshape(mask.shape + (1,) * (a.dim() - 1)), a, b)

    return type(new)(*(pick(a, b) for a, b in zip(new, old)))
