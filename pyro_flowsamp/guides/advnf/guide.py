r"""AutoAdvNF: one flow for every mode and a whole range of an external condition.

A flow trained by reverse KL settles on some of the modes; by forward KL on a few draws it covers
them, and what lies between. AdvNF has an adversary compare its draws with the ensemble's besides,
see :mod:`pyro_flowsamp.guides.advnf.adversary`, and independent Metropolis–Hastings makes them
exact afterwards (Kanaujia, Scheurer and Arora, 2024, https://arxiv.org/abs/2401.15948). The
ensemble need not be
good: it is where the flow learns that there are modes, not how much each weighs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...flows.gaussian_fit import ascend
from ...flows.recipes import LayeredFlow
from ...options import FitOptions
from ...smc.tempering import EACH, tempered, tempered_ensembles
from ...target.density import Target
from ...train import History, fit
from ...weights import ess_fraction
from ..auto_flow import MAX_COMPONENTS, EnsembleSource, check_recipe, ensemble_points, make_flow
from ..base import FlowGuide
from .adversary import LOSSES, AdversarialKL, Adversary, Ensemble, Weight
from .discriminator import DenseDiscriminator

__all__ = ["AutoAdvNF"]


LEARNING_RATE = 1e-3  #: of the discriminator
ASCENT_STARTS = 128  #: over-dispersed points that look for modes the ensemble has missed
FAR = 10.0  #: distances between neighbours in the ensemble, beyond which a mode is another one
SLACK = 5.0  #: nats by which it may be lower than the ensemble's median


def fading(progress: float) -> float:
    """One at the start, zero from half-way: draws say where modes are, and not what they weigh."""
    return max(0.0, 1.0 - 2.0 * progress)


class AutoAdvNF(FlowGuide):
    r"""An adversarially trained, conditional flow as a guide.

    Example::

        guide = AutoAdvNF(xy_model, context=["temperature"], flow=lattice_flow((8, 8)))
        guide.fit((8, 8), temperature=torch.linspace(0.05, 2.05, 32))
        mcmc = VectorizedMCMC(IMH(xy_model, guide=guide), num_samples=100, num_chains=3200)
        mcmc.run((8, 8), temperature=torch.linspace(0.05, 2.05, 32))
        data = to_arviz(mcmc)        # with the temperature as a dimension

    Forward KL brings the flow to every mode, the adversary keeps it there, and the reverse KL does
    the rest. The paper's variants are those with a weight of zero: ``adversarial=0`` leaves reverse
    KL, forward KL or their sum, ``forward=0`` is its AdvNF (RKL), ``reverse=0`` its AdvNF (FKL).
    Where there is an ensemble, a flow of ours starts from it (a Gaussian mixture, where there is no
    context); with ``adversarial=0, forward=0`` there is none, and it starts as it is built.

    Arguments:
        model: A Pyro model, or a :class:`~pyro_flowsamp.Target`.
        context: Names of model arguments over which the flow is amortised.
        flow: A recipe's name, a recipe such as :func:`~pyro_flowsamp.lattice.flow`, or any zuko
            flow; by default "spline", or "circular" where there are angles.
        discriminator: A module of points ``(N, d)`` and contexts ``(N, c)`` or None, with logits
            ``(N,)``, or what makes one of ``(features, context, angles)``; by default
            :class:`~pyro_flowsamp.guides.advnf.discriminator.DenseDiscriminator`.
        adversarial: :math:`\lambda_1`: "auto", see :mod:`pyro_flowsamp.guides.advnf.adversary`, a
            number, or a function of the progress of training from 0 to 1.
        reverse, forward: :math:`\lambda_2` and :math:`\lambda_3`, numbers or such functions. By
            default the forward KL fades away by the middle of training, as a flow would learn few
            draws by heart; without a reverse KL it is 1.
        loss: "gan", "hinge" or "wasserstein".
        pretraining: The part of ``options.max_steps`` before the adversary joins in.
        options: How to train.

    Attributes:
        suspicion: What makes the ensemble look as if it had missed modes, or None.
        trace: Of λ1 and the discriminator's AUC, after each step with it, ``(steps, 2)``.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        model: Callable,
        *,
        context: Sequence[str] = (),
        flow: str | Callable[..., nn.Module] | nn.Module | None = None,
        discriminator: Callable[..., Any] | None = None,
        adversarial: Weight | str = "auto",
        reverse: Weight = 0.5,
        forward: Weight | None = None,
        loss: str = "gan",
        pretraining: float = 0.25,
        options: FitOptions | None = None,
    ) -> None:
        default = FitOptions(
            max_steps=2000,
            batch_size=512,
            learning_rate=3e-3,
            cosine_schedule=True,
            warmup_fraction=0.1,
            stop_at_ess=1.0,
        )
        super().__init__(model, options=options or default, context=context)
        if forward is None:
            forward = 1.0 if reverse == 0 else fading
        weights = {"adversarial": adversarial, "reverse": reverse, "forward": forward}
        for name, value in weights.items():
            if isinstance(value, int | float) and not 0 <= value < torch.inf:
                raise ValueError(f"{name} must not be negative, got {value}")
        if isinstance(adversarial, str) and adversarial != "auto":
            raise ValueError(f"adversarial is 'auto', a number or a function, got '{adversarial}'")
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {sorted(LOSSES)}, got '{loss}'")
        check_recipe(flow)
        if not 0 <= pretraining < 1:
            raise ValueError(f"pretraining is a part of the steps in [0, 1), got {pretraining}")
        if reverse == 0 and forward == 0:
            if adversarial == 0:
                raise ValueError("adversarial, reverse and forward are all zero: nothing to train")
            pretraining = 0.0  # by what?
        self.adversarial, self.reverse = adversarial, reverse
        self._forward_kl = forward  # nn.Module has a method called forward
        self.loss, self.pretraining = loss, pretraining
        self._recipe, self._discriminator = (flow,), (discriminator,)
        self._ensemble: tuple[EnsembleSource | None] = (None,)
        self.suspicion: str | None = None
        self.trace = torch.empty(0, 2)

    @property
    def uses_ensemble(self) -> bool:
        """Whether it learns from an ensemble."""
        return self.adversarial != 0 or self._forward_kl != 0

    # ---- building -----------------------------------------------------------------------------

    def build_flow(self, target: Target, context_size: int) -> nn.Module:
        mixed = self.uses_ensemble and not context_size
        components = MAX_COMPONENTS if mixed else 1
        return make_flow(*self._recipe, target, context_size, "spline", components)

    def _adversary(self, target: Target, ensemble: Ensemble) -> Adversary:
        """Raises ValueError where the discriminator's logits have the wrong shape."""
        (made,) = self._discriminator
        size = 0 if ensemble.contexts is None else ensemble.contexts.shape[1]
        if not isinstance(made, nn.Module):
            made = (made or DenseDiscriminator)(target.dim, size, target.angles)
        network = made.to(device=target.device, dtype=target.dtype)
        if isinstance(network, DenseDiscriminator):
            network.standardize(ensemble.draws)
        contexts = ensemble.contexts
        two = Ensemble(ensemble.draws[:2], None if contexts is None else contexts[:2])
        shape = tuple(network(two.draws, two.contexts).shape)
        if shape != (len(two.draws),):
            raise ValueError(
                f"the discriminator maps {len(two.draws)} points to shape {shape}; it must be "
                f"({len(two.draws)},), one logit each"
            )
        return Adversary(network, self.loss, LEARNING_RATE, target.angles)

    # ---- training -----------------------------------------------------------------------------

    def fit(self, *args: Any, ensemble: EnsembleSource | None = None, **kwargs: Any) -> History:
        """Trains the guide on the posterior of the model with these arguments.

        A second call goes on with the flow, and has a new discriminator.

        Arguments:
            args, kwargs: The model's; those of the context with a leading dimension of K values.
            ensemble: Constrained draws ``{site: (M, ...)}``, unconstrained points ``(M, d)``, or a
                callable of the target that returns such; with a context draws at each of its
                values, with a leading dimension K. By default short runs of tempered particles.

        Raises:
            ValueError: The ensemble has the wrong shape, is not finite, or is not used; the context
                is missing or has the wrong shape; the density is not finite anywhere; the model
                does not fit the guide.
        """
        if ensemble is not None and not self.uses_ensemble:
            raise ValueError("adversarial=0 and forward=0 leave nothing to learn of an ensemble")
        self._ensemble = (ensemble,)
        try:
            return super().fit(*args, **kwargs)
        finally:
            self._ensemble = (None,)

    def train_flow(self, target: Target, contexts: Tensor | None) -> History:
        assert self.flow is not None
        rows = None if contexts is None else contexts.to(target.device, target.dtype)
        ensemble = self._gathered(target, rows) if self.uses_ensemble else None
        if ensemble is None:
            target.initial_points(1)  # raises where the density is not finite anywhere
        else:
            self._look_for_more(target, rows, ensemble)
            if isinstance(self.flow, LayeredFlow) and not self.trained:
                self.flow.initialize_from(ensemble.draws)
        adversary = None
        if self.adversarial != 0:
            assert ensemble is not None
            adversary = self._adversary(target, ensemble)
        objective = AdversarialKL(
            ensemble, adversary, self.adversarial, self.reverse, self._forward_kl, self.pretraining
        )
        history = fit(
            self.flow.parameters(),
            self._closure(objective, target, rows),
            ess_fraction,
            self.options,
        )
        if adversary is not None:
            self._report(adversary)
        return history

    def _closure(
        self, objective: AdversarialKL, target: Target, rows: Tensor | None
    ) -> Callable[[], Any]:
        flow, num, step = self.flow, self.options.batch_size, 0
        assert flow is not None

        def closure() -> Any:
            nonlocal step
            objective.progress = step / self.options.max_steps
            step += 1
            context = None
            if rows is not None and not self.uses_ensemble:  # else those of the ensemble's draws
                context = rows[torch.randint(len(rows), (num,), device=rows.device)]
            return objective(flow, target, num, context)

        return closure

    def _report(self, adversary: Adversary) -> None:
        self.trace = torch.stack(adversary.trace) if adversary.trace else self.trace
        paused, steps = int(adversary.paused), len(adversary.trace)
        if 2 * paused > steps:
            warnings.warn(
                f"the discriminator told the flow's draws from the ensemble without error and was "
                f"paused for {paused} of {steps} steps: they hardly overlap. Train longer before "
                f"it joins in (pretraining, forward), or begin at a flow that covers the ensemble.",
                stacklevel=5,
            )

    # ---- the ensemble -------------------------------------------------------------------------

    def _gathered(self, target: Target, rows: Tensor | None) -> Ensemble:
        (given,) = self._ensemble
        here = target if rows is None else target.at_contexts(rows)
        if given is None:
            given = tempered(here).x if rows is None else tempered_ensembles(here, EACH)
        points = ensemble_points(given, here)
        if rows is None:
            return Ensemble(points)
        contexts = rows[:, None].expand(-1, points.shape[1], -1)
        return Ensemble(points.flatten(0, 1), contexts.flatten(0, 1))

    def _look_for_more(self, target: Target, rows: Tensor | None, ensemble: Ensemble) -> None:
        """Suspects the ensemble where points from far out climb to modes that it is not at."""
        draws, here = ensemble.draws, target
        if rows is not None:  # at one context, a middle one: modes of another are other modes
            assert ensemble.contexts is not None
            row = rows[len(rows) // 2]
            draws, here = draws[(ensemble.contexts == row).all(-1)], target.at_contexts(row[None])
        wide = torch.where(target.angles, 0.0, 3 * torch.rand(ASCENT_STARTS, 1).to(draws))
        ends = ascend(here, here.initial_points(ASCENT_STARTS) * 2**wide, steps=300, rate=0.3)[-1]
        seen = draws[torch.randperm(len(draws), device=draws.device)[:2000]]
        with torch.no_grad():
            level = here.log_prob(seen).median() - SLACK
            high = here.log_prob(ends) > level
        ends, seen = (_unrolled(x, target.angles) for x in (ends, seen))
        spread = seen.std(0).clamp(min=1e-6)
        ends, seen = ends / spread, seen / spread
        near = torch.cdist(seen, seen).fill_diagonal_(torch.inf).amin(-1).median()
        apart = torch.cdist(ends, seen).amin(-1) > FAR * near + 1.0
        share = float((high & apart).double().mean())
        self.suspicion = None
        if share > 0:
            self.suspicion = (
                f"{share:.0%} of points that climbed from far out ended at modes as high as the "
                f"ensemble's draws, and far from all of them: it may have missed modes, and the "
                f"flow will too"
            )
            warnings.warn(self.suspicion, stacklevel=5)


def _unrolled(x: Tensor, angles: Tensor) -> Tensor:
    """Angles as (cos, sin), so that distances know of the circle; of others the second is zero."""
    first = torch.where(angles, x.cos(), x)
    return torch.cat([first, torch.where(angles, x.sin(), 0.0)], -1)
