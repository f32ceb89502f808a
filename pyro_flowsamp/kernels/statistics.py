"""The state of a kernel's chains and the report of a step, and statistics made of both."""

from __future__ import annotations

from math import pi
from typing import Protocol

import torch
from torch import Tensor

from ..flows.proposal import Proposal
from ..target.density import Target

__all__ = ["KernelState", "StepInfo", "on_one_period", "proposal_diagnostics", "statistics"]


STATISTICS = ("lp", "log_weight", "accepted", "acceptance_rate", "diverging")


class KernelState(Protocol):
    """The state of C chains, as each kernel keeps it.

    Attributes:
        x: Positions, ``(C, d)``.
        log_p: Unnormalised log densities of the target, ``(C,)``.
        log_q: Log densities of the flow, ``(C,)``.
    """

    @property
    def x(self) -> Tensor: ...
    @property
    def log_p(self) -> Tensor: ...
    @property
    def log_q(self) -> Tensor: ...


class StepInfo(Protocol):
    """The report of one step of C chains.

    Attributes:
        accepted: Whether each chain moved, ``(C,)``.
        accept_prob: Its acceptance probability, ``(C,)``.
        diverging: Whether its trajectory diverged, ``(C,)``.
    """

    @property
    def accepted(self) -> Tensor: ...
    @property
    def accept_prob(self) -> Tensor: ...
    @property
    def diverging(self) -> Tensor: ...


def on_one_period(target: Target, x: Tensor) -> Tensor:
    r"""A target's log density ``(N,)``, :math:`-\infty` at angles outside [−π, π]."""
    log_p = target.log_prob(x)
    if not target.circular:
        return log_p
    outside = ((x.abs() > pi) & target.angles).any(-1)
    return torch.where(outside, -torch.inf, log_p)


def proposal_diagnostics(proposal: Proposal, target: Target) -> dict[str, float]:
    """The fit of a flow to a target, see :meth:`FlowKernel.proposal_diagnostics`."""
    found = proposal.diagnostics(lambda x: on_one_period(target, x).detach())
    return {
        "importance ess": float(found.ess.min()),
        "pareto k": float(found.pareto_k.max()),
        "log q error": found.log_q_error,
    }


def statistics(state: KernelState, info: StepInfo) -> dict[str, Tensor]:
    """The statistics of one draw of C chains, ``(C,)`` each, by their names in ArviZ."""
    return {
        "lp": state.log_p,
        "log_weight": state.log_p - state.log_q,
        "accepted": info.accepted,
        "acceptance_rate": info.accept_prob,
        "diverging": info.diverging,
    }
