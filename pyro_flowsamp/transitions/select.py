"""What transitions share: the report of a step, and the choice between two states."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

S = TypeVar("S", bound=tuple)


class Info(NamedTuple):
    """What happened in one step, ``(C,)`` each."""

    accepted: Tensor
    accept_prob: Tensor
    diverging: Tensor


def select(mask: Tensor, new: S, old: S) -> S:
    """``new`` where ``mask`` ``(C,)`` holds and ``old`` elsewhere, for each tensor of a state."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.reshape(mask.shape + (1,) * (a.dim() - 1)), a, b)

    return type(new)(*(pick(a, b) for a, b in zip(new, old)))
