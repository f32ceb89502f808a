r"""Training objectives: small callables of one signature,

    objective(flow, target, num, context) → Loss(loss, log_weights)

where ``num`` is the batch size, ``context`` None or ``(num, c)``, and ``log_weights`` are those of
the flow's draws, detached, for the training loop to watch; None where the objective draws none. To
add an objective, write a callable here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .target.density import Target

__all__ = ["ForwardKL", "Loss", "Objective", "PathGradient", "ReverseKL", "WeightedSum", "draw"]


class Loss(NamedTuple):
    """A scalar to descend, and log importance weights of draws ``(num,)``, detached, or None."""

    loss: Tensor
    log_weights: Tensor | None


Objective = Callable[[nn.Module, Target, int, Tensor | None], Loss]


def draw(flow: nn.Module, num: int, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """``num`` draws and their log densities by one pass, differentiable."""
    if context is None:
        return flow(None).rsample_and_log_prob((num,))
    return flow(context).rsample_and_log_prob(())


def _mean_where_finite(values: Tensor, log_p: Tensor) -> Tensor:
    """Mean over draws of positive density: elsewhere the reverse KL has neither value nor gradient.

    All of them at zero density leave NaN, a step that the training loop skips and counts.
    """
    finite = torch.isfinite(log_p)
    return torch.where(finite, values, 0.0).sum() / finite.sum()


class ReverseKL:
    r""":math:`\mathrm{KL}(q \| p) = \mathbb E_{z}[\log q(T(z)) - \log\tilde p(T(z))] + \log Z`.

    Needs no data; seeks modes. Reparametrised gradient (Rezende & Mohamed, 2015,
    https://arxiv.org/abs/1505.05770, Eq. 15).
    """

    def __call__(
        self, flow: nn.Module, target: Target, num: int, context: Tensor | None = None
    ) -> Loss:
        x, log_q = draw(flow, num, context)
        log_p = target.log_prob(x, context)
        return Loss(_mean_where_finite(log_q - log_p, log_p), (log_p - log_q).detach())


class PathGradient:
    r"""Reverse KL by its path gradient alone, whose variance is zero at :math:`q = p`.

    The gradient of :meth:`ReverseKL` is a path part and a score part,

    .. math:: \nabla_\theta \mathrm{KL} = \mathbb E_z\!\left[
              \nabla_x\bigl(\log q_\theta - \log\tilde p\bigr)\big|_{x=T_\theta(z)}
              \cdot \partial_\theta T_\theta(z)\right]
              + \mathbb E_{x\sim q}\!\left[\partial_\theta \log q_\theta(x)\right],

    and the second, of mean zero, is pure noise (Roeder et al., 2017,
    https://arxiv.org/abs/1703.09194; for flows Vaitl et al., 2022,
    https://arxiv.org/abs/2207.08219). It is left out by scoring each draw with the parameters held
    fixed, which costs a second pass.
    """

    def __call__(
        self, flow: nn.Module, target: Target, num: int, context: Tensor | None = None
    ) -> Loss:
        x, log_q = draw(flow, num, context)
        return self.of_draws(flow, target, x, log_q, context)

    def of_draws(
        self, flow: nn.Module, target: Target, x: Tensor, log_q: Tensor, context: Tensor | None
    ) -> Loss:
        """The same, of draws and their log densities by the pass that made them."""
        scorer = _Scorer(flow)
        fixed = {name: value.detach() for name, value in scorer.named_parameters()}
        scored = functional_call(scorer, fixed, (x, context))
        log_p = target.log_prob(x, context)
        return Loss(_mean_where_finite(scored - log_p, log_p), (log_p - log_q).detach())


class _Scorer(nn.Module):
    """Scores inside one call: a flow's networks run after ``flow(context)`` has returned."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self.flow(context).log_prob(x)


class ForwardKL:
    r""":math:`-\mathbb E_{x\sim p}[\log q(x)]` on given draws of the target: covers all modes.

    Arguments:
        draws: Points ``(M, d)`` from (nearly) the target, in unconstrained space.
        contexts: Their contexts ``(M, c)``, or None.
        log_weights: Unnormalised log weights ``(M,)`` with which to pick them, or None for equal.
    """

    def __init__(
        self, draws: Tensor, contexts: Tensor | None = None, log_weights: Tensor | None = None
    ) -> None:
        self.draws, self.contexts = draws, contexts
        self.weights = None if log_weights is None else log_weights.softmax(0)

    def _pick(self, num: int) -> Tensor:
        if self.weights is None:
            return torch.randint(len(self.draws), (num,), device=self.draws.device)
        return self.weights.multinomial(num, replacement=True)

    def __call__(
        self, flow: nn.Module, target: Target, num: int, context: Tensor | None = None
    ) -> Loss:
        index = self._pick(num)
        chosen = None if self.contexts is None else self.contexts[index]
        return Loss(-flow(chosen).log_prob(self.draws[index]).mean(), None)


class WeightedSum:
    r""":math:`\sum_i \lambda_i\, \mathcal L_i`, watched by the last term that has log weights.

    Arguments:
        terms: Pairs of weight and objective.
    """

    def __init__(self, terms: Sequence[tuple[float, Objective]]) -> None:
        if not terms:
            raise ValueError("a weighted sum needs at least one term")
        self.terms = list(terms)

    def __call__(
        self, flow: nn.Module, target: Target, num: int, context: Tensor | None = None
    ) -> Loss:
        parts = [(weight, term(flow, target, num, context)) for weight, term in self.terms]
        total = torch.stack([weight * part.loss for weight, part in parts]).sum()
        watched = [p.log_weights for _, p in parts if p.log_weights is not None]
        return Loss(total, watched[-1] if watched else None)
