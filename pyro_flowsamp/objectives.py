r"""Training objectives: small callables of one signature,

    objective(flow, target, num, context) → Loss(loss, log_weights)

``num`` is the batch size, and ``context`` is None or has the shape ``(num, c)``. ``log_weights``
are those of the flow's draws, detached, from which the training loop computes the effective sample
size; None where the objective makes no draws. To add an objective, write a callable here.

``target.log_prob`` is minus infinity outside the support: leave such draws out. Draws at different
contexts are of targets with different normalisation, so that weights must not be normalised over
them together. A loss that is not linear in the mean over draws may have no lower bound on a batch
of reparametrised draws: hold the draws fixed then, as :class:`ForwardKL` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .target.density import Target
from .validation import as_tensor, check_number, default_device, shown

__all__ = ["ForwardKL", "Loss", "Objective", "PathGradient", "ReverseKL", "WeightedSum", "draw"]


class Loss(NamedTuple):
    """The value of an objective on one batch.

    Attributes:
        loss: The scalar to minimise.
        log_weights: Log importance weights of the flow's draws, ``(num,)``, detached, or None.

    Example:
        >>> from pyro_flowsamp.flows import gaussian
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> found = ReverseKL()(gaussian(2), target, 50)
        >>> round(float(found.loss), 4), found.log_weights.shape  # minus log Z = log 2π
        (-1.8379, torch.Size([50]))
    """

    loss: Tensor
    log_weights: Tensor | None


Objective = Callable[[nn.Module, Target, int, Tensor | None], Loss]


def draw(flow: nn.Module, num: int, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns ``num`` draws and their log densities by one pass, differentiable.

    Arguments:
        flow: A flow in zuko's convention.
        num: Number of draws.
        context: None, or a context for each draw, ``(num, c)``.

    Example::

        >>> import zuko
        >>> x, log_q = draw(zuko.flows.NSF(2, hidden_features=(8,)), 5, None)
        >>> x.shape, log_q.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """
    if context is None:
        return flow(None).rsample_and_log_prob((num,))
    return flow(context).rsample_and_log_prob(())


def _mean_where_finite(values: Tensor, log_p: Tensor) -> Tensor:
    """Mean over draws of positive density; elsewhere the reverse KL has no value and no gradient.

    If no draw has a positive density the mean is NaN; the training loop skips and counts that step.
    """
    finite = torch.isfinite(log_p)
    return torch.where(finite, values, 0.0).sum() / finite.sum()


class ReverseKL:
    r"""The reverse Kullback–Leibler divergence from the flow to the target.

    .. math:: \mathrm{KL}(q \| p) = \mathbb E_{z}[\log q(T(z)) - \log\tilde p(T(z))] + \log Z

    It needs no draws of the target, and tends to miss modes. Its gradient is that of reparametrised
    draws (Eq. 15 of the reference).

    References:
        Rezende & Mohamed, *Variational Inference with Normalizing Flows*, 2015,
        https://arxiv.org/abs/1505.05770

    Example::

        >>> import zuko
        >>> from pyro_flowsamp import Target
        >>> _ = torch.manual_seed(0)
        >>> flow = zuko.flows.NSF(2, hidden_features=(8,))
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> ReverseKL()(flow, target, 64).log_weights.shape
        torch.Size([64])
    """

    def __call__(
        self, flow: nn.Module, target: Target, num: int, context: Tensor | None = None
    ) -> Loss:
        x, log_q = draw(flow, num, context)
        log_p = target.log_prob(x, context)
        return Loss(_mean_where_finite(log_q - log_p, log_p), (log_p - log_q).detach())


class PathGradient:
    r"""Reverse KL with the path gradient, whose variance is zero at :math:`q = p`.

    The gradient of :class:`ReverseKL` has a path part and a score part,

    .. math:: \nabla_\theta \mathrm{KL} = \mathbb E_z\!\left[
              \nabla_x\bigl(\log q_\theta - \log\tilde p\bigr)\big|_{x=T_\theta(z)}
              \cdot \partial_\theta T_\theta(z)\right]
              + \mathbb E_{x\sim q}\!\left[\partial_\theta \log q_\theta(x)\right],

    The second has mean zero and only adds noise (Roeder et al.; for flows Vaitl et al.). It is left
    out by scoring each draw with the parameters held fixed, which costs a second pass.

    References:
        Roeder, Wu & Duvenaud, *Sticking the Landing: Simple, Lower-Variance Gradient Estimators for
        Variational Inference*, 2017, https://arxiv.org/abs/1703.09194

        Vaitl, Nicoli, Nakajima & Kessel, *Gradients should stay on Path: Better Estimators of the
        Reverse- and Forward KL Divergence for Normalizing Flows*, 2022,
        https://arxiv.org/abs/2207.08219

    Example, of a flow that is equal to its target, so that the gradient is zero for every batch::

        >>> from pyro_flowsamp import AutoFlow, Target
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> guide = AutoFlow(target, flow="gaussian")
        >>> _ = guide.target_for()
        >>> PathGradient()(guide.flow, target, 64).loss.backward()
        >>> max(float(p.grad.abs().max()) for p in guide.flow.parameters()) < 1e-6
        True
    """

    def __call__(
        self, flow: nn.Module, target: Target, num: int, context: Tensor | None = None
    ) -> Loss:
        x, log_q = draw(flow, num, context)
        return self.of_draws(flow, target, x, log_q, context)

    def of_draws(
        self, flow: nn.Module, target: Target, x: Tensor, log_q: Tensor, context: Tensor | None
    ) -> Loss:
        """Evaluates the objective at given draws.

        Arguments:
            flow: The flow.
            target: The target.
            x: Draws ``(num, d)``, differentiable.
            log_q: Their log densities by the pass that made them, ``(num,)``.
            context: Their contexts ``(num, c)``, or None.
        """
        scorer = _Scorer(flow)
        fixed = {name: value.detach() for name, value in scorer.named_parameters()}
        scored = functional_call(scorer, fixed, (x, context))
        log_p = target.log_prob(x, context)
        return Loss(_mean_where_finite(scored - log_p, log_p), (log_p - log_q).detach())


class _Scorer(nn.Module):
    """A flow's log density as one module call, for ``functional_call``.

    A flow's networks run after ``flow(context)`` has returned, too late for parameters that are
    replaced during the call of the flow alone.
    """

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self.flow(context).log_prob(x)


class ForwardKL:
    r"""The forward Kullback–Leibler divergence, :math:`-\mathbb E_{x\sim p}[\log q(x)]`.

    It is estimated from given draws of the target, and covers all modes that these are in.

    Arguments:
        draws: Points ``(M, d)`` that are distributed nearly as the target, in unconstrained space.
        contexts: Their contexts ``(M, c)``, or None.
        log_weights: Unnormalised log weights ``(M,)`` of the draws, or None for equal weights.

    Raises:
        ValueError: The draws are no points ``(M, d)``.

    Example::

        >>> import zuko
        >>> from pyro_flowsamp import Target
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> objective = ForwardKL(torch.randn(500, 2))
        >>> objective(zuko.flows.NSF(2, hidden_features=(8,)), target, 64).log_weights is None
        True
    """

    def __init__(
        self, draws: Tensor, contexts: Tensor | None = None, log_weights: Tensor | None = None
    ) -> None:
        self.draws = as_tensor("draws", draws, torch.get_default_dtype(), default_device())
        if self.draws.dim() != 2 or not len(self.draws):
            raise ValueError(
                f"draws must be points (M, d), one or more, got {tuple(self.draws.shape)}"
            )
        self.contexts = contexts
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
    r"""The weighted sum :math:`\sum_i \lambda_i\, \mathcal L_i` of objectives.

    Its log weights are those of the last term that has any.

    Arguments:
        terms: Pairs of weight and objective.

    Raises:
        ValueError: There is no term, or one is no pair of a number and an objective.

    Example::

        >>> import zuko
        >>> from pyro_flowsamp import Target
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> both = WeightedSum([(1.0, ReverseKL()), (0.5, ForwardKL(torch.randn(500, 2)))])
        >>> both(zuko.flows.NSF(2, hidden_features=(8,)), target, 64).log_weights.shape
        torch.Size([64])
    """

    def __init__(self, terms: Sequence[tuple[float, Objective]]) -> None:
        if not isinstance(terms, list | tuple) or not terms:
            raise ValueError(
                f"a weighted sum needs at least one term, as [(1.0, ReverseKL())], got "
                f"{shown(terms)}"
            )
        for term in terms:
            if not isinstance(term, list | tuple) or len(term) != 2 or not callable(term[1]):
                raise ValueError(
                    f"a term is a pair of weight and objective, as (1.0, ReverseKL()), got "
                    f"{shown(term)}"
                )
            check_number("a weight", term[0])
        self.terms = list(terms)

    def __call__(
        self, flow: nn.Module, target: Target, num: int, context: Tensor | None = None
    ) -> Loss:
        parts = [(weight, term(flow, target, num, context)) for weight, term in self.terms]
        total = torch.stack([weight * part.loss for weight, part in parts]).sum()
        log_weights = [p.log_weights for _, p in parts if p.log_weights is not None]
        return Loss(total, log_weights[-1] if log_weights else None)
