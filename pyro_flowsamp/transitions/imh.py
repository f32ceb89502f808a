r"""Independent Metropolis–Hastings.

A proposal :math:`x' \sim q` that ignores the current state :math:`x` has the Hastings ratio

.. math::
    \alpha = \min\!\left(1, \frac{\tilde p(x')\, q(x)}{\tilde p(x)\, q(x')}\right)
           = \min\bigl(1, e^{w(x') - w(x)}\bigr), \qquad w = \log\tilde p - \log q,

since :math:`\tilde p(x)\,q(x')\,\alpha(x, x') = \min(\tilde p(x) q(x'), \tilde p(x') q(x))` is
symmetric in :math:`x, x'`: detailed balance with respect to :math:`p`, whatever :math:`q` is, so
long as :math:`q > 0` wherever :math:`p > 0` (Tierney, 1994,
https://doi.org/10.1214/aos/1176325750). Both densities of the state are carried, never recomputed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .select import Info, select

__all__ = ["Info", "State", "init", "step"]


class State(NamedTuple):
    """C chains of an independent sampler; also a batch of scored proposals.

    Attributes:
        x: Positions, ``(C, d)``.
        log_p: Unnormalised target log densities, ``(C,)``, float64.
        log_q: Proposal log densities, ``(C,)``, float64.
    """

    x: Tensor
    log_p: Tensor
    log_q: Tensor


def init(x: Tensor, log_p: Tensor, log_q: Tensor) -> State:
    """A state of given positions and densities, which are kept in float64."""
    return State(x, log_p.double(), log_q.double())


def step(state: State, proposal: State, log_u: Tensor) -> tuple[State, Info]:
    """Moves each chain to its proposal with the probability above.

    Arguments:
        state: Where the chains are.
        proposal: One independent draw of q per chain.
        log_u: Logs of uniform variates, ``(C,)``.
    """
    log_alpha = (proposal.log_p - proposal.log_q) - (state.log_p - state.log_q)
    accepted = log_u < log_alpha
    diverging = torch.zeros_like(accepted)
    info = Info(accepted, log_alpha.clamp(max=0).exp().nan_to_num(nan=0.0), diverging)
    return select(accepted, proposal, state), info
