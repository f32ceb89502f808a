r"""The AdvNF guide: one flow for several modes and for a whole range of model arguments.

A flow trained by the reverse KL divergence often keeps only some of the modes of a target. Trained
by the forward KL on few draws, it covers all of them and also the space between them. AdvNF adds a
discriminator that compares draws of the flow with draws of the target, see
:mod:`pyro_flowsamp.guides.advnf.adversary`. Independence Metropolis–Hastings afterwards makes the
draws exact. The ensemble need not be accurate, because the flow learns from it where modes are. How
much each mode weighs, it learns from the density.

References:
    Kanaujia, Scheurer and Arora, *AdvNF: Reducing Mode Collapse in Conditional Normalising Flows
    using Adversarial Learning*, 2024, https://arxiv.org/abs/2401.15948
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...flows.recipes import LayeredFlow
from ...options import FitOptions
from ...target.arguments import check_shared_names
from ...target.density import Target
from ...training.history import History
from ...training.train import fit
from ...validation import check_kind
from ...weights import ess_fraction
from ..auto_flow import EnsembleSource, check_recipe, make_flow
from ..base import FlowGuide
from ..source import Unregistered
from .adversary import GAN, AdversarialKL, AdversarialLoss, Adversary
from .discriminator import DenseDiscriminator
from .ensemble import Ensemble, gather, missed_fraction
from .options import AdvNFOptions, AdvNFWeights

__all__ = ["AutoAdvNF"]


TRAINING = FitOptions(
    max_steps=2000,
    batch_size=512,
    learning_rate=3e-3,
    cosine_schedule=True,
    warmup_fraction=0.1,
    stop_at_ess=1.0,
)


class AutoAdvNF(FlowGuide):
    r"""A guide with a conditional flow that is trained with a discriminator.

    The forward KL brings the flow to every mode, the adversarial loss keeps it there, and the
    reverse KL fits the density. The variants of the paper have a weight of zero:
    ``AdvNFWeights(adversarial=0)`` leaves the reverse KL, the forward KL or their sum,
    ``AdvNFWeights(forward=0)`` is its AdvNF (RKL), and ``AdvNFWeights(reverse=0)`` is its AdvNF
    (FKL). Where there is an ensemble, a flow made by a recipe of this package starts from it: from
    a Gaussian mixture, or from one Gaussian where there is a context.

    Arguments:
        model: A Pyro model, or a :class:`~pyro_flowsamp.Target`.
        context: Names of the model arguments over which the flow is amortised.
        flow: A recipe's name, a recipe such as :func:`~pyro_flowsamp.lattice_flow`, or any zuko
            flow; by default "spline", or "circular" where there are angles.
        discriminator: A module that maps points ``(N, d)`` and contexts ``(N, c)`` or None to
            logits ``(N,)``, or a function of ``(features, context, angles)`` that makes one; by
            default :class:`~pyro_flowsamp.guides.advnf.discriminator.DenseDiscriminator`.
        weights: Weights of the adversarial loss and of both divergences.
        loss: The adversarial loss.
        options: Options of the training.
        settings: Settings of the discriminator and of the check of the ensemble.

    Attributes:
        suspicion: A sentence that says why the ensemble may have missed modes, or None.
        trace: λ1 and the discriminator's AUC after each of its steps, ``(steps, 2)``.

    Raises:
        TypeError: ``loss`` is no :class:`~pyro_flowsamp.guides.advnf.AdversarialLoss`.
        ValueError: There is no recipe of this name.

    References:
        Kanaujia, Scheurer and Arora, *AdvNF: Reducing Mode Collapse in Conditional Normalising
        Flows using Adversarial Learning*, 2024, https://arxiv.org/abs/2401.15948

    Example::

        >>> import pyro
        >>> from pyro_flowsamp import FitOptions
        >>> from pyro_flowsamp.problems import mog4
        >>> pyro.set_rng_seed(0)
        >>> problem = mog4()
        >>> guide = AutoAdvNF(problem.target, options=FitOptions(max_steps=5, progress=False))
        >>> history = guide.fit(ensemble=problem.sample(500))
        >>> draws, log_q = guide.proposal().sample_and_log_prob(1000)
        >>> bool((problem.mode_fractions(draws) > 0.15).all())
        True
    """

    training_results = ("suspicion", "trace")

    def __init__(
        self,
        model: Callable,
        *,
        context: Sequence[str] = (),
        flow: str | Callable[..., nn.Module] | nn.Module | None = None,
        discriminator: Callable[..., Any] | None = None,
        weights: AdvNFWeights | None = None,
        loss: AdversarialLoss = GAN,
        options: FitOptions | None = None,
        settings: AdvNFOptions | None = None,
    ) -> None:
        super().__init__(model, options=options or TRAINING, context=context)
        if not isinstance(loss, AdversarialLoss):
            raise TypeError(f"loss must be an AdversarialLoss, such as GAN, got {loss!r}")
        check_recipe(flow)
        check_kind("weights", weights, AdvNFWeights)
        check_kind("settings", settings, AdvNFOptions)
        self.weights, self.loss = weights or AdvNFWeights(), loss
        self.settings = settings or AdvNFOptions()
        self._recipe, self._discriminator = Unregistered(flow), Unregistered(discriminator)
        self._ensemble = Unregistered(None)
        self.suspicion: str | None = None
        self.trace = torch.empty(0, 2)

    @property
    def ensemble(self) -> EnsembleSource | None:
        """The ensemble that is being trained on; None where the guide draws one of its own."""
        return self._ensemble.value

    def build_flow(self, target: Target, context_size: int) -> nn.Module:
        """Makes the untrained flow; with a latent mixture where it can start from an ensemble."""
        mixed = self.weights.uses_ensemble and not context_size
        components = self.settings.max_components if mixed else 1
        return make_flow(self._recipe.value, target, context_size, "spline", components)

    def _adversary(self, target: Target, ensemble: Ensemble) -> Adversary:
        """Makes the discriminator; raises ValueError where its logits have the wrong shape."""
        made = self._discriminator.value
        size = 0 if ensemble.contexts is None else ensemble.contexts.shape[1]
        if not isinstance(made, nn.Module):
            made = (made or DenseDiscriminator)(target.dim, size, target.angles)
        network = made.to(device=target.device, dtype=target.dtype)
        if isinstance(network, DenseDiscriminator):
            network.standardize(ensemble.draws)
        two = ensemble.at(torch.arange(2, device=ensemble.draws.device))
        shape = tuple(network(two.draws, two.contexts).shape)
        if shape != (2,):
            raise ValueError(
                f"the discriminator maps 2 points to shape {shape}; it must be (2,), one logit each"
            )
        return Adversary(network, target.angles, self.loss, self.settings)

    def fit(self, *args: Any, ensemble: EnsembleSource | None = None, **kwargs: Any) -> History:
        """Trains the guide on the posterior of the model with these arguments.

        A second call continues with the flow, and makes a new discriminator.

        Arguments:
            args, kwargs: The model's arguments; those of the context have a leading dimension of K
                values.
            ensemble: Constrained draws ``{site: (M, ...)}``, unconstrained points ``(M, d)``, or a
                callable of the target that returns either. With a context there are draws at each
                of its values, with a leading dimension K. By default the draws come from short runs
                of tempered particles.

        Returns:
            The history of the training.

        Raises:
            ValueError: The ensemble has the wrong shape, is not finite, or is not used; the model
                has an argument of this name; the context is missing or has the wrong shape; the
                density is not finite anywhere; the model does not fit the guide.
        """
        check_shared_names(AutoAdvNF.fit, self._source.required, args, {"ensemble": ensemble})
        if ensemble is not None and not self.weights.uses_ensemble:
            raise ValueError("adversarial=0 and forward=0 leave nothing to learn of an ensemble")
        self._ensemble = Unregistered(ensemble)
        try:
            return super().fit(*args, **kwargs)
        finally:
            self._ensemble = Unregistered(None)

    def train_flow(self, target: Target, contexts: Tensor | None) -> History:
        """Trains the flow on a target, at contexts ``(K, c)`` or None."""
        flow, rows = (
            self.trained_flow,
            None if contexts is None else contexts.to(target.device, target.dtype),
        )
        ensemble = adversary = None
        if self.weights.uses_ensemble:
            ensemble = gather(self._ensemble.value, target, rows)
            self._check(target, rows, ensemble)
            if isinstance(flow, LayeredFlow) and not self.trained:
                flow.initialize_from(ensemble.draws)
            if self.weights.adversarial != 0:
                adversary = self._adversary(target, ensemble)
        else:
            target.initial_points(1)  # raises where the density is not finite anywhere
        begin = 0.0 if self.weights.adversary_only else self.settings.pretraining
        objective = AdversarialKL(ensemble, adversary, self.weights, begin)
        closure = self._closure(objective, target, rows)
        history = fit(flow.parameters(), closure, ess_fraction, self.options, [objective])
        if adversary is not None:
            self._report(adversary)
        return history

    def _closure(
        self, objective: AdversarialKL, target: Target, rows: Tensor | None
    ) -> Callable[[], Any]:
        flow, num = self.trained_flow, self.options.batch_size

        def closure() -> Any:
            objective.progress = objective.steps / self.options.max_steps
            objective.steps += 1
            context = None
            if rows is not None and objective.ensemble is None:
                context = rows[torch.randint(len(rows), (num,), device=rows.device)]
            return objective(flow, target, num, context)

        return closure

    def _check(self, target: Target, rows: Tensor | None, ensemble: Ensemble) -> None:
        """Warns where the ensemble may have missed modes."""
        share = missed_fraction(target, rows, ensemble, self.settings)
        self.suspicion = None
        if share > 0:
            self.suspicion = (
                f"Gradient ascent from {self.settings.ascent_starts} distant points ended, for "
                f"{share:.0%} of them, at modes that are as high as the ensemble's draws and far "
                f"from all of them. The ensemble may have missed modes, and the flow would miss "
                f"them too."
            )
            warnings.warn(self.suspicion, stacklevel=5)

    def _report(self, adversary: Adversary) -> None:
        """Keeps the trace, and warns where the discriminator was paused for most of the time."""
        self.trace = torch.stack(adversary.trace) if adversary.trace else self.trace
        paused, steps = int(adversary.paused), len(adversary.trace)
        if 2 * paused > steps:
            warnings.warn(
                f"The discriminator separated the flow's draws from the ensemble's without error "
                f"and was paused for {paused} of {steps} steps, because they hardly overlap. Train "
                f"longer before it joins in (AdvNFOptions.pretraining, AdvNFWeights.forward), or "
                f"start from a flow that covers the ensemble.",
                stacklevel=5,
            )
