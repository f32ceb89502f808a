r"""AutoFlow: one flow, trained by reverse KL, on the best Gaussian."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from numpy import ndarray
from torch import Tensor, nn

from ..flows.gaussian_fit import fit_gaussian
from ..flows.proposal import Proposal
from ..flows.recipes import RECIPES, LayeredFlow
from ..objectives import ForwardKL, Objective, PathGradient, WeightedSum
from ..options import FitOptions
from ..target.density import Target
from ..train import History, fit
from ..weights import ess_fraction, pareto_k
from .base import FlowGuide

__all__ = ["AutoFlow"]


NUM_STARTS = 128  #: over-dispersed points from which the Gaussian is sought
TRUSTED_K = 0.5  #: Pareto k below which weights have a variance, so that their ESS can be trusted
MAX_COMPONENTS = 16  #: of the latent Gaussian mixture, where there is an ensemble to fit it to
EnsembleDraws = Mapping[str, Tensor] | Tensor | ndarray
EnsembleSource = Callable[[Target], EnsembleDraws] | EnsembleDraws  #: as an ensemble


class AutoFlow(FlowGuide):
    r"""A normalising flow as a Pyro guide.

    Training climbs a ladder: the full-covariance Gaussian of
    :func:`~pyro_flowsamp.flows.gaussian_fit. fit_gaussian` first, then, unless that is good enough
    already, couplings on top of it by the path gradient of the reverse KL. The Gaussian's score
    stands in the history beside the flow's.

    Example::

        guide = AutoFlow(model)
        history = guide.fit(data)
        mcmc = VectorizedMCMC(IMH(model, guide=guide), num_samples=1000, num_chains=100)
        mcmc.run(data)

    Arguments:
        model: A Pyro model, or a :class:`~pyro_flowsamp.Target`.
        flow: A recipe's name ("coupling", "spline", "circular", "gaussian"), a recipe, or any zuko
            flow, taken as it is. By default "coupling", or "circular" where there are angles.
        objective: What to descend; by default :class:`~pyro_flowsamp.objectives.PathGradient`.
        ensemble: Draws of (nearly) the posterior to learn modes from, by forward KL beside the
            objective for the first half of the steps: constrained draws ``{site: (M, ...)}``,
            unconstrained points ``(M, d)``, or a callable of the target that returns such, as
            :func:`~pyro_flowsamp.tempered_ensemble`. At least two; those of several chains in a
            row, not by chain.
        options: How to train.
        context: Names of model arguments over which the flow is amortised.

    Raises:
        ValueError: There is no such flow, or there is an ensemble beside a context; in :meth:`fit`,
            the ensemble has the wrong shape or is not finite, as where a draw lies on the edge of
            its site's support.
    """

    def __init__(
        self,
        model: Callable,
        *,
        flow: str | Callable[..., nn.Module] | nn.Module | None = None,
        objective: Objective | None = None,
        ensemble: EnsembleSource | None = None,
        options: FitOptions | None = None,
        context: Sequence[str] = (),
    ) -> None:
        super().__init__(model, options=options, context=context)
        check_recipe(flow)
        if ensemble is not None and context:
            raise ValueError("AutoFlow learns from an ensemble at one context only")
        self._recipe = (flow,)
        self.objective = objective or PathGradient()
        self.ensemble = ensemble

    def build_flow(self, target: Target, context_size: int) -> nn.Module:
        components = 1 if self.ensemble is None else MAX_COMPONENTS
        return make_flow(*self._recipe, target, context_size, "coupling", components)

    def train_flow(self, target: Target, contexts: Tensor | None) -> History:
        assert self.flow is not None
        history = History()
        draws = None if self.ensemble is None else ensemble_points(self.ensemble, target)
        if isinstance(self.flow, LayeredFlow) and not self.trained:
            history = self._first_rung(target, contexts, draws)
            if history.stopped == "gaussian":
                return history
        elif draws is None:
            target.initial_points(1)  # raises where the density is not finite anywhere
        if draws is None:
            trained = self._descend(target, contexts, None, self.options)
        else:
            trained = self._by_draws_and_alone(target, contexts, draws)
        return trained.updated(gaussian_ess=history.gaussian_ess)

    def _by_draws_and_alone(
        self, target: Target, contexts: Tensor | None, draws: Tensor
    ) -> History:
        """With the ensemble for half of the steps at most, then by the objective alone.

        Few draws may lack what is narrow, the neck of a funnel, and learning them goes on keeping
        the flow out of it; the objective sees the density itself.
        """
        half = replace(self.options, max_steps=max(1, self.options.max_steps // 2))
        first = self._descend(target, contexts, draws, half)
        if first.stopped in ("enough", "interrupted"):
            return first
        later = replace(half, learning_rate=half.learning_rate * half.lr_decay)
        return first.followed_by(self._descend(target, contexts, None, later))

    def _descend(
        self, target: Target, contexts: Tensor | None, draws: Tensor | None, options: FitOptions
    ) -> History:
        assert self.flow is not None
        closure = self._closure(target, contexts, draws)
        return fit(self.flow.parameters(), closure, ess_fraction, options)

    def _first_rung(self, target: Target, contexts: Tensor | None, draws: Tensor | None) -> History:
        """Initialises the affine layer; ends the climb where it is good enough alone."""
        flow = self.flow
        assert isinstance(flow, LayeredFlow)
        if draws is None:
            flow.affine.initialize(*fit_gaussian(target, target.initial_points(NUM_STARTS)))
        else:
            flow.initialize_from(draws)
        depth, flow.depth = flow.depth, 0
        row = None if contexts is None else contexts[0].to(target.device, target.dtype)
        x, log_q = Proposal(flow, row).sample_and_log_prob(4096)
        log_w = target.log_prob(x).detach().double() - log_q.double()
        score = float(ess_fraction(log_w))
        if depth == 0:
            return History(gaussian_ess=score)
        light_tailed = pareto_k(log_w) < TRUSTED_K  # else the score is luck
        if contexts is None and light_tailed and score >= self.options.stop_at_ess:
            return History(gaussian_ess=score, stopped="gaussian")
        flow.depth = depth
        return History(gaussian_ess=score)

    def _closure(
        self, target: Target, contexts: Tensor | None, draws: Tensor | None
    ) -> Callable[[], Any]:
        objective, flow, num = self.objective, self.flow, self.options.batch_size
        assert flow is not None
        if draws is not None:
            objective = WeightedSum([(1.0, ForwardKL(draws)), (1.0, objective)])
        if contexts is None:
            return lambda: objective(flow, target, num, None)
        rows = contexts.to(target.device, target.dtype)

        def closure() -> Any:
            index = torch.randint(len(rows), (num,), device=rows.device)
            return objective(flow, target, num, rows[index])

        return closure


def ensemble_points(given: EnsembleSource, target: Target) -> Tensor:
    r"""An ensemble in unconstrained space, angles in :math:`[-\pi, \pi)`.

    Arguments:
        given: Constrained draws ``{site: (M, ...)}``, unconstrained points ``(M, d)``, or a
            callable of the target that returns such; at K contexts with a leading dimension K.
        target: Of the draws, at its contexts where there are any.

    Returns:
        ``(M, d)``, or ``(K, M, d)``.

    Raises:
        ValueError: The draws are no such thing, not finite, or all the same.
    """
    draws = given(target) if callable(given) else given
    if not isinstance(draws, Tensor | ndarray | Mapping):
        raise ValueError(
            f"the ensemble must be draws {{site: (M, ...)}} or points (M, {target.dim}), got "
            f"{type(draws).__name__}"
        )
    if isinstance(draws, Mapping):
        draws = target.pack({name: torch.as_tensor(value) for name, value in draws.items()})
    points = torch.as_tensor(draws)
    leading = () if target.contexts is None else (len(target.contexts),)
    fits = points.dim() == len(leading) + 2 and points.shape[: len(leading)] == leading
    if not fits or points.shape[-1] != target.dim or points.shape[-2] < 2:
        wanted = "".join(f"{count}, " for count in leading)
        raise ValueError(
            f"the ensemble has shape {tuple(points.shape)}, expected ({wanted}M, {target.dim}): "
            f"M > 1 draws{' at each of the contexts' if leading else ''}"
        )
    bad = int((~torch.isfinite(points)).any(-1).sum())
    if bad:
        raise ValueError(
            f"{bad} draws of the ensemble are not finite, or on the edge of a site's support: "
            f"leave them out"
        )
    rows = points.flatten(0, -2)
    if bool((rows == rows[0]).all()):
        raise ValueError(f"all {len(rows)} draws of the ensemble are the same")
    return target.wrap(points.to(target.device, target.dtype))


def check_recipe(flow: object) -> None:
    """Raises ValueError where a flow is named that there is not."""
    if isinstance(flow, str) and flow not in RECIPES:
        raise ValueError(f"unknown flow '{flow}': choose one of {sorted(RECIPES)}")


def make_flow(
    flow: str | Callable[..., nn.Module] | nn.Module | None,
    target: Target,
    context_size: int,
    default: str,
    components: int,
) -> nn.Module:
    """The flow that a guide was asked for.

    Arguments:
        flow: A recipe's name, a recipe, a flow, or None for the default.
        target: That it is for; its angles are told to recipes that ask for them.
        context_size: Number of context features.
        default: The name of the recipe for real coordinates; for angles it is "circular".
        components: Of the latent mixture, for recipes that have one.

    Raises:
        ValueError: A circular flow of a target without angles.
    """
    if isinstance(flow, nn.Module):
        return flow
    if flow is None:
        flow = "circular" if target.circular else default
    recipe = RECIPES[flow] if isinstance(flow, str) else flow
    if recipe is RECIPES["circular"] and not target.circular:
        raise ValueError(
            "a 'circular' flow lives on angles and the target has no angles: use 'spline', or "
            "name them, by VonMises sites or Target.from_energy(..., angles=range(dim))."
        )
    wanted: dict[str, Any] = {}
    if target.circular:
        wanted["angles"] = target.angles
    elif components > 1:
        wanted["components"] = components
    known = inspect.signature(recipe).parameters
    return recipe(target.dim, context_size, **{k: v for k, v in wanted.items() if k in known})
