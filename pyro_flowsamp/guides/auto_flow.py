r"""AutoFlow: a flow that starts as the best Gaussian and is trained by reverse KL."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy import ndarray
from torch import Tensor, nn

from ..distributed import number_here
from ..flows.gaussian_fit import GaussianFitOptions, fit_gaussian
from ..flows.mixture_fit import MixtureFitOptions
from ..flows.proposal import Proposal
from ..flows.recipes import RECIPES, LayeredFlow
from ..objectives import ForwardKL, Objective, PathGradient, ReverseKL, WeightedSum
from ..options import FitOptions
from ..smc.particles import Particles
from ..target.density import Target
from ..training.history import History
from ..training.train import Stored, fit
from ..validation import check_at_least_one, check_kind, shown
from ..weights import ess_fraction, pareto_k
from .base import FlowGuide
from .memory import WITHOUT_DENSITY
from .source import Unregistered

__all__ = ["AutoFlow", "InitialFitOptions"]


MAX_COMPONENTS = 16
EnsembleDraws = Mapping[str, Tensor] | Tensor | ndarray | Particles
EnsembleSource = Callable[[Target], EnsembleDraws] | EnsembleDraws


@dataclass(frozen=True)
class InitialFitOptions:
    """Options of the fit of :class:`AutoFlow`'s affine layer, before the couplings are trained.

    Attributes:
        gaussian: How to fit the Gaussian, without an ensemble.
        mixture: How to fit the latent mixture to an ensemble.
        max_components: The greatest number of components of this mixture.
        num_starts: Over-dispersed points from which the Gaussian is fitted.
        num_draws: Fresh draws that judge the Gaussian.
        max_pareto_k: The Pareto k of their weights below which their effective sample size is
            trusted: below 1/2 the weights have a variance.

    Raises:
        ValueError: An option is out of range, or of another type.

    Example:
        >>> target = Target.from_energy(lambda x: 0.5 * (x - 3).square().sum(-1), 1)
        >>> initial = InitialFitOptions(num_starts=8, num_draws=500)
        >>> options = FitOptions(progress=False)
        >>> guide = AutoFlow(target, flow="gaussian", initial=initial, options=options)
        >>> round(guide.fit().final_ess, 1)
        1.0
    """

    gaussian: GaussianFitOptions = GaussianFitOptions()
    mixture: MixtureFitOptions = MixtureFitOptions()
    max_components: int = MAX_COMPONENTS
    num_starts: int = 128
    num_draws: int = 4096
    max_pareto_k: float = 0.5

    def __post_init__(self) -> None:
        check_at_least_one(self, negative=True)


class AutoFlow(FlowGuide):
    r"""A normalising flow as a Pyro guide.

    Training first fits the full-covariance Gaussian of
    :func:`~pyro_flowsamp.flows.gaussian_fit.fit_gaussian`. Unless that is good enough, couplings
    are then trained on it by the path gradient of the reverse KL. The history reports the
    effective sample size of the Gaussian (``gaussian_ess``) and that of the flow (``final_ess``).

    Arguments:
        model: A Pyro model, or a :class:`~pyro_flowsamp.Target`.
        flow: A recipe's name ("coupling", "spline", "circular", "gaussian"), a recipe, or any zuko
            flow, taken as it is. By default "coupling", or "circular" where there are angles.
        objective: The loss; by default :class:`~pyro_flowsamp.objectives.PathGradient`.
        ensemble: Draws of roughly the posterior that show its modes: constrained draws
            ``{site: (M, ...)}``, unconstrained points ``(M, d)``, particles, or a callable of the
            target that returns such, as :func:`~pyro_flowsamp.tempered_smc`. At least two; draws of
            several chains in one dimension, not by chain. The flow starts from them, and the
            forward KL to them is added to the objective for the first half of the steps.
        options: How to train.
        context: Names of model arguments over which the flow is amortised.
        initial: How to fit the Gaussian or the mixture that the flow starts as.

    Raises:
        ValueError: There is no such flow, or there are an ensemble and a context; in :meth:`fit`,
            the ensemble has the wrong shape or is not finite, as where a draw lies on the edge of
            its site's support.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)
        >>> pyro.set_rng_seed(0)
        >>> guide = AutoFlow(model, options=FitOptions(progress=False))
        >>> history = guide.fit(torch.tensor([2.0, 4.0]))
        >>> history.stopped, round(history.final_ess, 2)
        ('gaussian', 1.0)
        >>> [round(value, 1) for value in guide.median()["mean"].tolist()]
        [1.0, 2.0]
    """

    shares_batches = True

    def __init__(
        self,
        model: Callable,
        *,
        flow: str | Callable[..., nn.Module] | nn.Module | None = None,
        objective: Objective | None = None,
        ensemble: EnsembleSource | None = None,
        options: FitOptions | None = None,
        context: Sequence[str] = (),
        initial: InitialFitOptions | None = None,
    ) -> None:
        super().__init__(model, options=options, context=context)
        check_recipe(flow)
        if objective is not None and not callable(objective):
            raise TypeError(
                f"objective must be a function, such as PathGradient(), got {shown(objective)}"
            )
        check_kind("initial", initial, InitialFitOptions)
        if ensemble is not None and context:
            raise ValueError("AutoFlow learns from an ensemble at one context only")
        self._recipe = Unregistered(flow)
        self.objective = objective or PathGradient()
        self.ensemble, self.initial = ensemble, initial or InitialFitOptions()

    def build_flow(self, target: Target, context_size: int) -> nn.Module:
        """Makes the flow that was asked for; with an ensemble its latent space may be a mixture."""
        components = 1 if self.ensemble is None else self.initial.max_components
        return make_flow(self._recipe.value, target, context_size, "coupling", components)

    def train_flow(self, target: Target, contexts: Tensor | None) -> History:
        """Fits the affine layer in the first training; then trains the couplings if needed."""
        flow, history = self.trained_flow, History()
        draws = None if self.ensemble is None else ensemble_points(self.ensemble, target)
        if isinstance(flow, LayeredFlow) and not self.trained:
            history = self._fit_affine_layer(flow, target, contexts, draws)
            if history.stopped == "gaussian":
                return history
        elif draws is None:
            target.initial_points(1)  # raises where the density is not finite anywhere
        if draws is None:
            trained = self._descend(target, contexts, None, self.options)
        else:
            trained = self._descend_with_ensemble(target, contexts, draws)
        return trained.updated(gaussian_ess=history.gaussian_ess)

    def _descend_with_ensemble(
        self, target: Target, contexts: Tensor | None, draws: Tensor
    ) -> History:
        """Trains with the ensemble for half of the steps at most, then by the objective alone.

        Few draws may miss narrow regions, such as the neck of a funnel, and the forward KL to them
        keeps the flow out of these; the objective uses the density itself.
        """
        half = replace(self.options, max_steps=max(1, self.options.max_steps // 2))
        first = self._descend(target, contexts, draws, half)
        if first.stopped in ("enough", "interrupted"):
            return first
        later = replace(half, learning_rate=half.learning_rate * half.lr_decay)
        return first.followed_by(self._descend(target, contexts, None, later))

    def trial_step(self, target: Target, num: int, context: Tensor | None) -> Any:
        """The draws of a training step, and their scores where the objective scores them."""
        if type(self.objective) not in (PathGradient, ReverseKL):  # others may count their calls
            return super().trial_step(target, num, context)
        return self.objective(self.trained_flow, WITHOUT_DENSITY, num, context)

    def _fit_affine_layer(
        self, flow: LayeredFlow, target: Target, contexts: Tensor | None, draws: Tensor | None
    ) -> History:
        """Fits the affine layer; the history ends with "gaussian" where it is good enough alone."""
        initial = self.initial
        if draws is None:
            starts = target.initial_points(initial.num_starts)
            flow.affine.initialize(*fit_gaussian(target, starts, initial.gaussian))
        else:
            flow.initialize_from(draws, initial.mixture)
        depth, flow.depth = flow.depth, 0
        row = None if contexts is None else contexts[0]
        x, log_q = Proposal(flow, row).sample_and_log_prob(initial.num_draws)
        log_w = target.log_prob(x).detach().double() - log_q.double()
        history = History(gaussian_ess=float(ess_fraction(log_w)))
        if depth == 0:
            return history
        trusted = pareto_k(log_w) < initial.max_pareto_k
        if contexts is None and trusted and history.gaussian_ess >= self.options.stop_at_ess:
            return history.updated(stopped="gaussian")
        flow.depth = depth
        return history

    def _descend(
        self, target: Target, contexts: Tensor | None, draws: Tensor | None, options: FitOptions
    ) -> History:
        """Minimises the objective, and the forward KL to ``draws`` if there are any."""
        flow, objective = self.trained_flow, self.objective
        num = number_here(options.batch_size)
        if draws is not None:
            objective = WeightedSum([(1.0, ForwardKL(draws)), (1.0, objective)])

        def closure() -> Any:
            if contexts is None:
                return objective(flow, target, num, None)
            index = torch.randint(len(contexts), (num,), device=contexts.device)
            return objective(flow, target, num, contexts[index])

        others: list[Stored] = [objective] if isinstance(objective, Stored) else []
        return fit(flow.parameters(), closure, ess_fraction, options, others, self.shares_batches)


def ensemble_points(given: EnsembleSource, target: Target) -> Tensor:
    r"""Brings an ensemble into unconstrained space, with angles in :math:`[-\pi, \pi)`.

    Arguments:
        given: Constrained draws ``{site: (M, ...)}``, unconstrained points ``(M, d)``, or a
            callable of the target that returns such; at K contexts with a leading dimension K.
        target: The target of the draws, at its contexts if there are any.

    Returns:
        The points, ``(M, d)``, or ``(K, M, d)`` at K contexts.

    Raises:
        ValueError: The draws have another type or shape, are not finite, or are all the same.

    Example:
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 2)
        >>> ensemble_points({"x": torch.eye(2)}, target).shape
        torch.Size([2, 2])
    """
    draws = given(target) if callable(given) else given
    if isinstance(draws, Particles):
        islands = (len(draws.log_z),) if target.contexts is not None else ()
        draws = draws.equally_weighted().reshape(*islands, -1, target.dim)
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
    """Raises an error where a flow is given by a name that no recipe has, or cannot be called.

    Example:
        >>> check_recipe("spline")
        >>> check_recipe("splines")
        Traceback (most recent call last):
        ValueError: unknown flow 'splines': choose one of ['circular', 'coupling', ...
    """
    if isinstance(flow, str) and flow not in RECIPES:
        raise ValueError(f"unknown flow '{flow}': choose one of {sorted(RECIPES)}")
    if flow is not None and not isinstance(flow, str) and not callable(flow):
        raise TypeError(
            f"flow must be one of {sorted(RECIPES)}, a recipe or a flow, got {shown(flow)}"
        )


def make_flow(
    flow: str | Callable[..., nn.Module] | nn.Module | None,
    target: Target,
    context_size: int,
    default: str,
    components: int,
) -> nn.Module:
    """Makes the flow that a guide's user asked for.

    Arguments:
        flow: A recipe's name, a recipe, a flow, or None for the default.
        target: The target of the flow; recipes with a parameter ``angles`` get its angles.
        context_size: The number of context features.
        default: The name of the recipe for real coordinates; for angles it is "circular".
        components: The greatest number of components of the latent mixture, for recipes that have
            one.

    Raises:
        ValueError: A circular flow of a target without angles.

    Example:
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 3)
        >>> make_flow("gaussian", target, 0, "coupling", 1)().event_shape
        torch.Size([3])
        >>> len(make_flow(None, target, 0, "coupling", 1).couplings) > 0  # the default
        True
    """
    if isinstance(flow, nn.Module):
        return flow
    if flow is None:
        flow = "circular" if target.circular else default
    recipe = RECIPES[flow] if isinstance(flow, str) else flow
    if recipe is RECIPES["circular"] and not target.circular:
        raise ValueError(
            "a 'circular' flow is for angles and the target has no angles: use 'spline', or name "
            "them, by VonMises sites or Target.from_energy(..., angles=range(dim))."
        )
    wanted: dict[str, Any] = {}
    if target.circular:
        wanted["angles"] = target.angles
    elif components > 1:
        wanted["components"] = components
    known = inspect.signature(recipe).parameters
    return recipe(target.dim, context_size, **{k: v for k, v in wanted.items() if k in known})
