"""The state of a kernel's chains and the report of a step, and statistics made of both."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from typing import Protocol

import torch
from torch import Tensor

from ..flows.proposal import Proposal
from ..target.density import Target

__all__ = [
    "KernelState",
    "StepInfo",
    "StillChainOptions",
    "on_one_period",
    "proposal_diagnostics",
    "statistics",
    "warn_of_still_chains",
]


STATISTICS = ("lp", "log_weight", "accepted", "acceptance_rate", "diverging")


@dataclass(frozen=True)
class StillChainOptions:
    """Options of the warning of chains that never move.

    Attributes:
        max_expected: The number of such chains, expected of chance alone, below which a run that
            has one warns.
        least_rate: The acceptance rate that this chance is computed with, where that of the run is
            lower. With 0.05 a chain that is alone needs 90 draws.

    Example:
        >>> accepted = torch.tensor([[True], [False]]).expand(2, 50)
        >>> found = {"accepted": accepted, "lp": torch.randn(2, 50) * accepted}
        >>> warn_of_still_chains(found, StillChainOptions(max_expected=0.0))  # never warns
    """

    max_expected: float = 0.01
    least_rate: float = 0.05


class KernelState(Protocol):
    """The state of C chains, as each kernel keeps it.

    Attributes:
        x: Positions, ``(C, d)``.
        log_p: Unnormalised log densities of the target, ``(C,)``.
        log_q: Log densities of the flow, ``(C,)``.

    Example:
        >>> from pyro_flowsamp.transitions import independence
        >>> zero = torch.zeros(2)
        >>> state: KernelState = independence.init(zero[:, None], zero + 3, zero + 1)
        >>> info = independence.step(state, state, zero - 1)[1]
        >>> statistics(state, info)["log_weight"]
        tensor([2., 2.], dtype=torch.float64)
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

    Example:
        >>> from pyro_flowsamp.transitions import independence
        >>> zero = torch.zeros(1)
        >>> state = independence.init(zero[:, None], zero, zero)
        >>> info: StepInfo = independence.step(state, state._replace(log_p=zero - 1), zero)[1]
        >>> statistics(state, info)["acceptance_rate"].float()  # 1 / e
        tensor([0.3679])
    """

    @property
    def accepted(self) -> Tensor: ...
    @property
    def accept_prob(self) -> Tensor: ...
    @property
    def diverging(self) -> Tensor: ...


def on_one_period(target: Target, x: Tensor) -> Tensor:
    r"""A target's log density ``(N,)``, :math:`-\infty` at angles outside [−π, π].

    Example:
        >>> target = Target.from_energy(lambda x: -x.cos().sum(-1), 1, angles=[0])
        >>> on_one_period(target, torch.tensor([[0.0], [2 * pi]]))
        tensor([1., -inf])
    """
    log_p = target.log_prob(x)
    if not target.circular:
        return log_p
    outside = ((x.abs() > pi) & target.angles).any(-1)
    return torch.where(outside, -torch.inf, log_p)


def proposal_diagnostics(proposal: Proposal, target: Target) -> dict[str, float]:
    """The fit of a flow to a target, see :meth:`FlowKernel.proposal_diagnostics`.

    Example:
        >>> from pyro_flowsamp.flows import gaussian
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> found = proposal_diagnostics(Proposal(gaussian(1)), target)
        >>> round(found["importance ess"], 4), round(found["log q error"], 4)
        (1.0, 0.0)
    """
    found = proposal.diagnostics(lambda x: on_one_period(target, x).detach())
    return {
        "importance ess": float(found.ess.min()),
        "pareto k": float(found.pareto_k.max()),
        "log q error": found.log_q_error,
    }


def statistics(state: KernelState, info: StepInfo) -> dict[str, Tensor]:
    r"""The statistics of one draw of C chains, ``(C,)`` each, by their names in ArviZ.

    Arguments:
        state: The chains after the step.
        info: The report of the step.

    Returns:
        A dictionary:

        - ``lp``: log density of the posterior, unnormalised, at the unconstrained draw;
        - ``log_weight``: :math:`\log\tilde p(x) - \log q(x)`, with the density q of the flow;
          draws whose weight is far larger than others' lie where the flow hardly proposes;
        - ``accepted``: whether the chain moved in the step;
        - ``acceptance_rate``: the probability with which the move was accepted;
        - ``diverging``: whether the trajectory diverged: its energy error was so large that the
          step size is too long there.

    Example:
        >>> from pyro_flowsamp.transitions import independence
        >>> zero = torch.zeros(2)
        >>> state = independence.init(zero[:, None], zero, zero)
        >>> better = independence.init(zero[:, None] + 1, zero + 1, zero)
        >>> found = statistics(*independence.step(state, better, zero))
        >>> found["accepted"], found["lp"].tolist()
        (tensor([True, True]), [1.0, 1.0])
    """
    return {
        "lp": state.log_p,
        "log_weight": state.log_p - state.log_q,
        "accepted": info.accepted,
        "acceptance_rate": info.accept_prob,
        "diverging": info.diverging,
    }


def warn_of_still_chains(found: Mapping[str, Tensor], options: StillChainOptions) -> None:
    r"""Warns of chains that never move, where chance does not explain them.

    If all of C chains accepted at the rate a, :math:`C (1 - a)^n` of them would make n draws at one
    point.

    Arguments:
        found: Statistics of the draws by name, ``(C, n)`` each, see :func:`statistics`.
        options: How rare these chains must be.

    Example:
        >>> import warnings
        >>> accepted = torch.tensor([[True], [True], [False]]).expand(3, 50)
        >>> lp = torch.randn(3, 50) * accepted
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_of_still_chains({"accepted": accepted, "lp": lp}, StillChainOptions())
        >>> str(caught[0].message)[:35]
        'chains [2] accepted no proposal in '
    """
    accepted, lp = found["accepted"].double(), found["lp"]
    chains, draws = accepted.shape
    if not draws:
        return
    still = (accepted == 0).all(1) & (lp == lp[:, :1]).all(1)
    rate = accepted.mean().clamp(min=options.least_rate)
    if bool(still.any() & (chains * (1 - rate) ** draws < options.max_expected)):
        where = still.nonzero()[:, 0].tolist()
        named = f"{where[:10]}" if len(where) <= 10 else f"{where[:10]} and {len(where) - 10} more"
        warnings.warn(
            f"chains {named} accepted no proposal in any of {draws} draws. Where they are, the "
            f"flow has far less density than the posterior, and their draws are no sample of it. "
            f"Leave out initial_params that lie far out in a tail. If they lie in a mode, train "
            f"the guide for longer, or with an ensemble that has it (AutoFlow(ensemble=...)).",
            stacklevel=3,
        )
