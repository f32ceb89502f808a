r"""Adversarial training of a flow on an ensemble, together with both Kullback–Leibler divergences.

A discriminator D learns to tell draws of (nearly) the target p from draws of the flow q. The flow
learns to make them indistinguishable. With logits :math:`D(x, c)`, and one step of each at every
minibatch, the discriminator descends

.. math:: -\mathbb E_p \log\sigma(D) - \mathbb E_q \log\sigma(-D),

and the adversarial loss of the flow is :math:`L_\mathrm{adv} = -\mathbb E_q \log\sigma(D)`. Another
:class:`AdversarialLoss` may take the place of this one. The flow descends :math:`\lambda_1
L_\mathrm{adv} + \lambda_2 \mathrm{KL}(q\|p) + \lambda_3 \mathrm{KL}(p\|q)`. All three are taken at
the same contexts, and the first two at the same draws.

**The weight of the adversarial loss.** By default

.. math:: \lambda_1 = \frac{\|\nabla(\lambda_2\,\mathrm{KL}(q\|p) + \lambda_3\,\mathrm{KL}(p\|q))\|}
          {\|\nabla L_\mathrm{adv}\|} \cdot (2\,\mathrm{AUC} - 1)_+ ,

with running averages of both factors. AUC is the area under the discriminator's ROC curve: the
probability that a draw of the ensemble has a larger logit than a draw of the flow. The weighted
gradient of the adversarial loss is as large as that of the divergences while D separates the draws
completely. It is zero where D does no better than chance, which is an AUC of ½. The AUC is measured
on a part of the ensemble that D is not trained on. D may know all other draws by heart, and the
flow would learn them by heart too.

A discriminator whose loss has vanished has gradients that are only noise. It is paused. The flow
goes on with the divergences until its draws overlap with the ensemble's.

References:
    Kanaujia, Scheurer and Arora, *AdvNF: Reducing Mode Collapse in Conditional Normalising Flows
    using Adversarial Learning*, 2024, https://arxiv.org/abs/2401.15948

    Goodfellow et al., *Generative Adversarial Networks*, 2014, https://arxiv.org/abs/1406.2661
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, log
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ...objectives import Loss, PathGradient, draw
from ...options import FitOptions
from ...target.density import Target
from ...training.train import Stepper
from .ensemble import Ensemble
from .options import AdvNFOptions, AdvNFWeights, weight_at

__all__ = ["GAN", "AdversarialKL", "AdversarialLoss", "Adversary"]

AVERAGES = "paused", "gini", "ratio"  #: attributes of a discriminator's training that are stored


class AdversarialLoss(NamedTuple):
    r"""An adversarial loss, as functions of logits ``(N,) → (N,)``.

    Attributes:
        real: The discriminator's loss at draws of the ensemble.
        fake: The discriminator's loss at draws of the flow.
        flow: The flow's loss at its own draws.
        chance: The discriminator's loss where it does no better than chance. It is paused far below
            that. It is never paused where this is infinite.
        penalty: A further loss of the discriminator, or None. It is a function of the
            discriminator, draws of the ensemble (an
            :class:`~pyro_flowsamp.guides.advnf.ensemble.Ensemble`), as many draws of the flow
            ``(N, d)`` and the mask of angles ``(d,)``, and returns a scalar.

    Example::

        >>> chance = GAN.real(torch.zeros(1)) + GAN.fake(torch.zeros(1))
        >>> round(float(chance), 4) == round(GAN.chance, 4)
        True
    """

    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]
    flow: Callable[[Tensor], Tensor]
    chance: float = inf
    penalty: Callable[[nn.Module, Ensemble, Tensor, Tensor], Tensor] | None = None


def _softplus_of_minus(logits: Tensor) -> Tensor:
    return softplus(-logits)


def _softplus(logits: Tensor) -> Tensor:
    return softplus(logits)


#: The loss of generative adversarial networks, whose flow descends -log σ(D).
GAN = AdversarialLoss(_softplus_of_minus, _softplus, _softplus_of_minus, 2 * log(2))


class Adversary:
    """A discriminator with its optimiser and running averages of its performance.

    Arguments:
        network: The discriminator.
        angles: Mask of periodic coordinates ``(d,)``.
        loss: The adversarial loss.
        options: Settings.

    Attributes:
        trace: λ1 and the running average of the AUC at every step, ``(2,)`` each.
        paused: Number of steps at which the discriminator was paused, 0-d.
        gini: Running average of 2 AUC − 1, 0-d.
        ratio: Running ratio of the gradient norm of the divergences to that of the adversarial
            loss, 0-d.

    Example:
        >>> from pyro_flowsamp.guides.advnf.discriminator import DenseDiscriminator
        >>> from pyro_flowsamp.guides.advnf.ensemble import Ensemble
        >>> _ = torch.manual_seed(0)
        >>> adversary = Adversary(DenseDiscriminator(1), torch.tensor([False]))
        >>> real, fake = Ensemble(torch.randn(100, 1) + 3), torch.randn(100, 1) - 3
        >>> for _ in range(100):
        ...     _ = adversary.update(real, fake, unseen=real)
        >>> bool(adversary.gini > 0.9)  # it tells them apart
        True
    """

    def __init__(
        self,
        network: nn.Module,
        angles: Tensor,
        loss: AdversarialLoss = GAN,
        options: AdvNFOptions | None = None,
    ) -> None:
        self.network, self.angles, self.loss = network, angles, loss
        self.options = options or AdvNFOptions()
        rate = FitOptions(learning_rate=self.options.learning_rate)
        self.stepper = Stepper(network.parameters(), rate)
        self.trace: list[Tensor] = []
        self.paused = torch.zeros((), device=angles.device)
        self.gini = torch.zeros((), device=angles.device)
        self.ratio = torch.zeros((), device=angles.device)
        self._level = torch.ones((), device=angles.device)  # loss over the loss at chance

    def state_dict(self) -> dict[str, Any]:
        """The network, its optimiser, the running averages and the trace."""
        averages = {name: getattr(self, name) for name in AVERAGES}
        return {
            **averages,
            "network": self.network.state_dict(),
            "stepper": self.stepper.state_dict(),
            "trace": list(self.trace),
            "level": self._level,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the state of :meth:`state_dict`; the network is changed in place."""
        self.network.load_state_dict(state["network"])
        self.stepper.load_state_dict(state["stepper"])
        self.trace, self._level = state["trace"], state["level"]
        for name in AVERAGES:
            setattr(self, name, state[name])

    def update(self, real: Ensemble, fake: Tensor, unseen: Ensemble) -> Tensor:
        """Takes one step of the discriminator.

        Arguments:
            real: Draws of the ensemble to train on.
            fake: As many draws of the flow, at the same contexts.
            unseen: Draws of the ensemble that are never trained on, for the AUC.

        Returns:
            1, or 0 where the discriminator is paused, 0-d.
        """
        real_logits = self.network(real.draws, real.contexts)
        fake_logits = self.network(fake.detach(), real.contexts)
        loss = self.loss.real(real_logits).mean() + self.loss.fake(fake_logits).mean()
        keep = self.options.average_memory
        with torch.no_grad():
            fine = torch.isfinite(loss)
            other = self.network(unseen.draws, unseen.contexts)
            gini = (other[:, None] - fake_logits).sign().mean()
            self.gini = torch.where(fine, keep * self.gini + (1 - keep) * gini, self.gini)
            level = keep * self._level + (1 - keep) * loss / self.loss.chance
            self._level = torch.where(fine, level, self._level)
            active = torch.ones_like(loss)
            if self.loss.chance < inf:
                active = (self._level > self.options.pause_below).to(loss)
            self.paused = self.paused + (1 - active)
        if self.loss.penalty is not None:
            loss = loss + self.loss.penalty(self.network, real, fake.detach(), self.angles)
        self.stepper.step(loss, skip=1 - active)
        return active

    def generator_loss(self, fake: Tensor, contexts: Tensor | None) -> Tensor:
        """Returns the flow's adversarial loss at its draws ``(N, d)``, 0-d."""
        return self.loss.flow(self.network(fake, contexts)).mean()

    def update_balance(
        self, generator_loss: Tensor, divergences: Tensor, parameters: Sequence[nn.Parameter]
    ) -> None:
        """Updates the running ratio of the divergences' gradient norm to the adversarial loss's."""
        divergence_norm, own = (_norm(loss, parameters) for loss in (divergences, generator_loss))
        ratio = torch.nan_to_num(divergence_norm / own, nan=0.0, posinf=0.0)
        keep = self.options.balance_memory if self.trace else 0.0
        self.ratio = keep * self.ratio + (1 - keep) * ratio

    def weight(self) -> Tensor:
        """Returns the automatic weight λ1, 0-d."""
        return self.ratio * self.gini.clamp(min=0)


def _norm(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    grads = torch.autograd.grad(
        loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return nn.utils.get_total_norm(grads)


class AdversarialKL:
    r"""The objective of AdvNF: a weighted sum of an adversarial loss and both KL divergences.

    See the module's docstring for the formula.

    Arguments:
        ensemble: Draws of the target; None where neither the adversary nor the forward KL is used.
        adversary: The discriminator, or None.
        weights: Weights of the three losses.
        begin: Progress before which the adversary is left out.

    Attributes:
        progress: Progress of the training from 0 to 1, which the caller sets before each call.
        steps: Steps so far, which the caller counts.

    Example:
        >>> from pyro_flowsamp import Target
        >>> from pyro_flowsamp.flows import gaussian
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
        >>> reverse = AdvNFWeights(adversarial=0, reverse=1.0, forward=0)
        >>> objective = AdversarialKL(None, None, reverse)
        >>> round(float(objective(gaussian(2), target, 64).loss), 4)  # minus log Z: -log 2π
        -1.8379
    """

    def __init__(
        self,
        ensemble: Ensemble | None,
        adversary: Adversary | None,
        weights: AdvNFWeights,
        begin: float = 0.0,
    ) -> None:
        self.adversary, self.weights, self.begin = adversary, weights, begin
        self.ensemble, self.unseen = ensemble, ensemble
        if ensemble is not None and adversary is not None:
            self.unseen, self.ensemble = ensemble.split(adversary.options.held_out)
        self.progress, self.steps = 0.0, 0
        self._path = PathGradient()

    def state_dict(self) -> dict[str, Any]:
        """The steps so far, and the state of the discriminator."""
        adversary = None if self.adversary is None else self.adversary.state_dict()
        return {"steps": self.steps, "adversary": adversary}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the state of :meth:`state_dict`."""
        self.steps = state["steps"]
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])

    def __call__(
        self, flow: nn.Module, target: Target, num: int, context: Tensor | None = None
    ) -> Loss:
        """Returns the loss of ``num`` draws; ``context`` is used only without an ensemble."""
        real = None if self.ensemble is None else self.ensemble.pick(num)
        if real is not None:
            context = real.contexts
        parts, log_w = [], None
        reverse, forward = self.weights.divergences(self.progress)
        joined = self.adversary is not None and self.progress >= self.begin
        if reverse or joined:
            x, log_q = draw(flow, num, context)
        if reverse:
            divergence = self._path.of_draws(flow, target, x, log_q, context)
            parts.append(reverse * divergence.loss)
            # Before the adversary has joined in, a large ESS must not end the training.
            log_w = divergence.log_weights if joined or self.adversary is None else None
        if forward:
            assert real is not None
            parts.append(-forward * flow(context).log_prob(real.draws).mean())
        total = torch.stack(parts).sum() if parts else None
        if joined:
            assert real is not None
            adversarial = self._adversarial(total, real, x, list(flow.parameters()))
            total = adversarial if total is None else total + adversarial
        if total is None:
            raise ValueError(f"all weights are zero at the progress {self.progress:.3g}")
        return Loss(total, log_w)

    def _adversarial(
        self,
        divergences: Tensor | None,
        real: Ensemble,
        fake: Tensor,
        parameters: list[nn.Parameter],
    ) -> Tensor:
        """Trains the discriminator, and returns the weighted adversarial loss of the flow."""
        adversary = self.adversary
        assert adversary is not None
        assert self.unseen is not None
        active = adversary.update(real, fake, self.unseen.pick(len(fake)))
        generator_loss = adversary.generator_loss(fake, real.contexts)
        given = self.weights.adversarial
        if given == "auto" and divergences is not None:
            if len(adversary.trace) % adversary.options.balance_every == 0:
                trained = [p for p in parameters if p.requires_grad]
                adversary.update_balance(generator_loss, divergences, trained)
            weight = adversary.weight()
        else:
            constant = 1.0 if isinstance(given, str) else weight_at(given, self.progress)
            weight = generator_loss.new_full((), constant)
        weight = active * weight.detach()
        adversary.trace.append(torch.stack([weight, 0.5 + 0.5 * adversary.gini]))
        return weight * generator_loss
