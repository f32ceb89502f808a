r"""Independent Metropolis–Hastings.

A proposal :math:`x' \sim q` that ignores the current state :math:`x` has the Hastings ratio

.. math::
    \alpha = \min\!\left(1, \frac{\tilde p(x')\, q(x)}{\tilde p(x)\, q(x')}\right)
           = \min\bigl(1, e^{w(x') - w(x)}\bigr), \qquad w = \log\tilde p - \log q,

since :math:`\tilde p(x)\,q(x')\,\alpha(x, x') = \min(\tilde p(x) q(x'), \tilde p(x') q(x))` is
symmetric in :math:`x, x'`: detailed balance with respect to :math:`p`, whatever :math:`q` is, so
long as :math:`q > 0` wherever :math:`p > 0` (Tierney, 1994,
https://doi.org/10.1214/aos/1176325750). Both densities of the state are carried, never recomputed.

Of N proposals at once, with weights :math:`w_1, \dots, w_N` beside the state's :math:`w_0`, one is
taken by chance in proportion to its weight and accepted with

.. math:: \min\!\left(1, \frac{W}{W - w_j + w_0}\right), \qquad W = w_1 + \dots + w_N.

Given the set of all N + 1 candidates, which are exchangeable but for their weights, the current one
is i with probability proportional to :math:`w_i`; i-SIR (Andrieu et al., 2018,
https://arxiv.org/abs/1312.6432; as a global move in https://arxiv.org/abs/2111.02702) draws it
afresh. The rule above is that draw metropolised: :math:`w_0 \cdot \tfrac{w_j}{W} \min(1, \tfrac W
{W - w_j + w_0}) = w_0 w_j \min(\tfrac1W, \tfrac1{W - w_j + w_0})` is symmetric in 0 and j. It moves
to each proposal at least as often, hence its variances are no larger (Liu, 1996,
https://doi.org/10.1093/biomet/83.3.681), and for N = 1 it is the step above.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .metropolis import MetropolisInfo, metropolis, select

__all__ = ["MetropolisInfo", "IMHState", "choose", "init", "step"]


class IMHState(NamedTuple):
    """C chains of an independent sampler; also a batch of scored proposals.

    Attributes:
        x: Positions, ``(C, d)``.
        log_p: Unnormalised target log densities, ``(C,)``, float64.
        log_q: Proposal log densities, ``(C,)``, float64.

    Example:
        >>> state = IMHState(torch.zeros(2, 1), torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 0.5]))
        >>> state.log_p - state.log_q  # the log weights
        tensor([1.0000, 0.5000])
    """

    x: Tensor
    log_p: Tensor
    log_q: Tensor


def init(x: Tensor, log_p: Tensor, log_q: Tensor) -> IMHState:
    """A state of given positions and densities, which are kept in float64.

    Arguments:
        x: Positions, ``(C, d)``.
        log_p, log_q: Log densities of target and flow, ``(C,)``.

    Example:
        >>> init(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1)).log_p
        tensor([0.], dtype=torch.float64)
    """
    return IMHState(x, log_p.double(), log_q.double())


def step(state: IMHState, proposal: IMHState, log_u: Tensor) -> tuple[IMHState, MetropolisInfo]:
    """Moves each chain to its proposal with the probability above.

    Arguments:
        state: Where the chains are.
        proposal: One independent draw of q per chain.
        log_u: Logs of uniform variates, ``(C,)``.

    Returns:
        The new states, and the report.

    Example:
        >>> zero, one = torch.zeros(2, 1), torch.ones(2, 1)
        >>> state = init(zero, torch.tensor([0.0, 0.0]), torch.tensor([0.0, 0.0]))
        >>> proposal = init(one, torch.tensor([0.0, 0.0]), torch.tensor([1.0, -1.0]))
        >>> moved, info = step(state, proposal, torch.full((2,), -0.5))
        >>> moved.x.tolist(), info.accept_prob.tolist()  # ratios of weights: 1/e and e
        ([[0.0], [1.0]], [0.36787944117144233, 1.0])
    """
    log_alpha = (proposal.log_p - proposal.log_q) - (state.log_p - state.log_q)
    accepted, accept_prob = metropolis(log_alpha, log_u)
    diverging = torch.zeros_like(accepted)
    info = MetropolisInfo(accepted, accept_prob, diverging)
    return select(accepted, proposal, state), info


def choose(
    log_w: Tensor, proposals: Tensor, gumbel: Tensor, log_u: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Chooses one of N proposals for each chain, and accepts or rejects it.

    Arguments:
        log_w: Log weights of the states, ``(C,)``.
        proposals: Log weights of the proposals, ``(C, N)``.
        gumbel: Standard Gumbel variates, ``(C, N)``.
        log_u: Logs of uniform variates, ``(C,)``.

    Returns:
        The index of the chosen proposal, whether it is accepted, and the probability of that,
        ``(C,)`` each.

    Example:
        >>> log_w = torch.tensor([0.0])
        >>> proposals = torch.tensor([[1.0, 3.0]]).log()
        >>> index, accepted, accept_prob = choose(log_w, proposals, torch.zeros(1, 2), log_w - 1)
        >>> index, accept_prob  # the second: W = 4 is more than 4 - 3 + 1
        (tensor([1]), tensor([1.]))
    """
    proposals = torch.where(proposals.isnan(), -torch.inf, proposals)
    index = (proposals + gumbel).argmax(-1)
    others = proposals.scatter(-1, index[:, None], log_w[:, None])
    log_alpha = proposals.logsumexp(-1) - others.logsumexp(-1)
    return index, *metropolis(log_alpha, log_u)
