r"""Adversarial training of a flow against an ensemble, beside both Kullback–Leibler divergences.

A discriminator D tells draws of (nearly) the target from the flow's, and the flow is to deceive it.
With logits :math:`D(x, c)`, one step of either at each minibatch, the losses are, by name,

========================  ===========================================  =====================
``"gan"``                 :math:`-\mathbb E_p \log\sigma(D)            :math:`-\mathbb E_q
                          - \mathbb E_q \log\sigma(-D)`                \log\sigma(D)`
``"hinge"``               :math:`\mathbb E_p (1 - D)_+                 :math:`-\mathbb E_q D`
                          + \mathbb E_q (1 + D)_+`
``"wasserstein"``         :math:`\mathbb E_q D - \mathbb E_p D         :math:`-\mathbb E_q D`
                          + 10\,\mathbb E(\|\nabla D\| - 1)^2`
========================  ===========================================  =====================

for the discriminator and the flow. The flow descends :math:`\lambda_1 L_\mathrm{adv} + \lambda_2
\mathrm{KL}(q\|p) + \lambda_3 \mathrm{KL}(p\|q)`, all three at the same contexts and the first two
on the same draws.

**The weight of the adversary.** By default

.. math:: \lambda_1 = \frac{\|\nabla(\lambda_2\,\mathrm{KL}(q\|p) + \lambda_3\,\mathrm{KL}(p\|q))\|}
          {\|\nabla L_\mathrm{adv}\|} \cdot (2\,\mathrm{AUC} - 1)_+ ,

running averages of both factors: as loud as the divergences while D tells everything apart, silent
while it is at chance, where the area under its curve (the probability that a draw of the ensemble
has the larger logit) is ½. That is measured on a part of the ensemble which D is not trained on: of
the others it may know every draw by heart, and would have the flow learn them too. A discriminator
whose loss has vanished teaches nothing but noise: it is paused, and the flow goes on by the
divergences until their draws meet. (A Wasserstein loss has no level at which it vanishes, and is
never paused.)

References:
    Kanaujia, Scheurer and Arora: AdvNF: Reducing Mode Collapse in Conditional Normalising Flows
    using Adversarial Learning, 2024, https://arxiv.org/abs/2401.15948

    Goodfellow et al., 2014, https://arxiv.org/abs/1406.2661; Lim and Ye, 2017,
    https://arxiv.org/abs/1705.02894 (hinge); Gulrajani et al., 2017,
    https://arxiv.org/abs/1704.00028 (Wasserstein with a gradient penalty)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, log
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from ...flows.transforms import wrap
from ...objectives import Loss, PathGradient, draw
from ...options import FitOptions
from ...target.density import Target
from ...train import Stepper

__all__ = ["AdversarialKL", "Adversary", "Ensemble", "LOSSES"]


BALANCE = 20  #: steps between measurements of the gradients' norms
MEMORY = 0.95  #: what a running average keeps at each step
HELD_OUT = 0.2  #: of the ensemble, by which the discriminator is judged
SATURATED = 1e-3  #: of its loss at chance, below which a discriminator is paused
PENALTY = 10.0  #: on the slope of a Wasserstein discriminator
Weight = float | Callable[[float], float]  #: constant, or of the progress from 0 to 1


class AdversarialLoss(NamedTuple):
    """Of logits; ``chance`` is the discriminator's loss where it tells nothing apart."""

    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]
    flow: Callable[[Tensor], Tensor]
    chance: float
    penalised: bool


LOSSES = {
    "gan": AdversarialLoss(
        lambda d: softplus(-d), softplus, lambda d: softplus(-d), 2 * log(2), False
    ),
    "hinge": AdversarialLoss(lambda d: relu(1 - d), lambda d: relu(1 + d), torch.neg, 2.0, False),
    "wasserstein": AdversarialLoss(torch.neg, lambda d: d, torch.neg, inf, True),
}


class Ensemble(NamedTuple):
    """Draws of (nearly) the target, in unconstrained space.

    Attributes:
        draws: ``(M, d)``.
        contexts: Of each, ``(M, c)``, or None.
    """

    draws: Tensor
    contexts: Tensor | None = None

    def split(self, share: float) -> tuple[Ensemble, Ensemble]:
        """A random part of it, and the rest; at least one draw each."""
        order = torch.randperm(len(self.draws), device=self.draws.device)
        num = min(max(1, round(share * len(order))), len(order) - 1)
        return self.at(order[:num]), self.at(order[num:])

    def at(self, index: Tensor) -> Ensemble:
        contexts = None if self.contexts is None else self.contexts[index]
        return Ensemble(self.draws[index], contexts)

    def pick(self, num: int) -> Ensemble:
        """As many of them at random, with replacement."""
        return self.at(torch.randint(len(self.draws), (num,), device=self.draws.device))


class Adversary:
    """A discriminator, its optimiser, and how well it is doing.

    Arguments:
        network: The discriminator.
        loss: A key of :data:`LOSSES`.
        learning_rate: Of its Adam.
        angles: Mask of periodic coordinates ``(d,)``.

    Attributes:
        trace: λ1, and a running average of the AUC, at every step, ``(2,)`` each.
        paused: Steps that it sat out, 0-d.
    """

    def __init__(self, network: nn.Module, loss: str, learning_rate: float, angles: Tensor) -> None:
        self.network, self.loss, self.angles = network, LOSSES[loss], angles
        options = FitOptions(learning_rate=learning_rate)
        self.stepper = Stepper(network.parameters(), options)
        self.trace: list[Tensor] = []
        self.paused = torch.zeros((), device=angles.device)
        self.gini = torch.zeros((), device=angles.device)  # 2 AUC - 1
        self._ratio = torch.zeros((), device=angles.device)
        self._level = torch.ones((), device=angles.device)  # of the loss, of that at chance

    def update(self, real: Ensemble, fake: Tensor, unseen: Ensemble) -> Tensor:
        """One step of the discriminator; whether it teaches, 1 or 0, as a 0-d tensor.

        Arguments:
            real: Draws of the ensemble to learn from.
            fake: As many of the flow, at the same contexts.
            unseen: Draws that it never learns from, to be judged by.
        """
        truth = self.network(real.draws, real.contexts)
        guess = self.network(fake.detach(), real.contexts)
        loss = self.loss.real(truth).mean() + self.loss.fake(guess).mean()
        with torch.no_grad():
            fine = torch.isfinite(loss)
            other = self.network(unseen.draws, unseen.contexts)
            gini = (other[:, None] - guess).sign().mean()
            self.gini = torch.where(fine, MEMORY * self.gini + (1 - MEMORY) * gini, self.gini)
            level = MEMORY * self._level + (1 - MEMORY) * loss / self.loss.chance
            self._level = torch.where(fine, level, self._level)
            active = torch.ones_like(loss)
            if self.loss.chance < inf:
                active = (self._level > SATURATED).to(loss)
            self.paused = self.paused + (1 - active)
        if self.loss.penalised:
            loss = loss + PENALTY * self._steepness(real, fake.detach())
        self.stepper.step(loss, skip=1 - active)
        return active

    def _steepness(self, real: Ensemble, fake: Tensor) -> Tensor:
        """How far the slope is from one between pairs of draws, of angles along the arc."""
        way = fake - real.draws
        way = torch.where(self.angles, wrap(way), way)
        between = (real.draws + torch.rand_like(way[:, :1]) * way).requires_grad_()
        logits = self.network(between, real.contexts)
        (slope,) = torch.autograd.grad(logits.sum(), between, create_graph=True)
        return (slope.norm(dim=-1) - 1).square().mean()

    def generator_loss(self, fake: Tensor, contexts: Tensor | None) -> Tensor:
        """What the flow is to descend, at its draws."""
        return self.loss.flow(self.network(fake, contexts)).mean()

    def update_balance(
        self, generator_loss: Tensor, others: Tensor, parameters: Sequence[nn.Parameter]
    ) -> None:
        """How loud the other losses are beside the lesson."""
        divergence_norm, own = (_norm(loss, parameters) for loss in (others, generator_loss))
        ratio = torch.nan_to_num(divergence_norm / own, nan=0.0, posinf=0.0)
        keep = 0.5 if self.trace else 0.0
        self._ratio = keep * self._ratio + (1 - keep) * ratio

    def weight(self) -> Tensor:
        """λ1 by itself."""
        return self._ratio * self.gini.clamp(min=0)


def _norm(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    grads = torch.autograd.grad(
        loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return nn.utils.get_total_norm(grads)


def _now(weight: Weight, progress: float) -> float:
    return weight(progress) if callable(weight) else weight


class AdversarialKL:
    r"""The objective of AdvNF; see the module's docstring. Any weight may be zero.

    Arguments:
        ensemble: Draws of the target; None where neither the adversary nor the forward KL is used.
        adversary: Or None.
        adversarial: λ1: "auto", a number, or a function of the progress from 0 to 1.
        reverse, forward: λ2 and λ3, numbers or functions of the progress.
        begin: Progress before which the adversary is left out.
    """

    def __init__(
        self,
        ensemble: Ensemble | None,
        adversary: Adversary | None,
        adversarial: Weight | str = "auto",
        reverse: Weight = 0.5,
        forward: Weight = 1.0,
        begin: float = 0.0,
    ) -> None:
        self.adversary, self.adversarial = adversary, adversarial
        self.ensemble, self.unseen = ensemble, ensemble
        if ensemble is not None and adversary is not None:
            self.unseen, self.ensemble = ensemble.split(HELD_OUT)
        self.reverse, self.forward, self.begin = reverse, forward, begin
        self.progress = 0.0  #: told by the guide, step by step
        self._path = PathGradient()

    def __call__(
        self, flow: nn.Module, target: Target, num: int, context: Tensor | None = None
    ) -> Loss:
        real = None if self.ensemble is None else self.ensemble.pick(num)
        if real is not None:
            context = real.contexts
        parts, log_w = [], None
        reverse, forward = (_now(w, self.progress) for w in (self.reverse, self.forward))
        challenged = self.adversary is not None and self.progress >= self.begin
        if reverse or challenged:
            x, log_q = draw(flow, num, context)
        if reverse:
            divergence = self._path.of_draws(flow, target, x, log_q, context)
            parts.append(reverse * divergence.loss)
            log_w = divergence.log_weights
            if self.adversary is not None and not challenged:
                log_w = None  # too early to tell that the flow is good enough
        if forward:
            assert real is not None
            parts.append(-forward * flow(context).log_prob(real.draws).mean())
        total = torch.stack(parts).sum() if parts else None
        if challenged:
            assert real is not None
            total = self._with_generator_loss(total, real, x, list(flow.parameters()))
        if total is None:
            raise ValueError(f"all weights are zero at the progress {self.progress:.3g}")
        return Loss(total, log_w)

    def _with_generator_loss(
        self, others: Tensor | None, real: Ensemble, fake: Tensor, parameters: list[nn.Parameter]
    ) -> Tensor:
        adversary = self.adversary
        assert adversary is not None
        assert self.unseen is not None
        active = adversary.update(real, fake, self.unseen.pick(len(fake)))
        generator_loss = adversary.generator_loss(fake, real.contexts)
        if self.adversarial == "auto" and others is not None:
            if len(adversary.trace) % BALANCE == 0:
                adversary.update_balance(
                    generator_loss, others, [p for p in parameters if p.requires_grad]
                )
            weight = adversary.weight()
        else:
            chosen = 1.0 if isinstance(self.adversarial, str) else self.adversarial
            weight = generator_loss.new_full((), _now(chosen, self.progress))
        weight = active * weight.detach()
        adversary.trace.append(torch.stack([weight, 0.5 + 0.5 * adversary.gini]))
        total = weight * generator_loss
        return total if others is None else others + total
