r"""The part that all flow guides share: Pyro's side of a trained proposal.

A guide is an :class:`~pyro.infer.autoguide.AutoContinuous`, so SVI, Predictive, Importance and
NeuTraReparam take it; :meth:`FlowGuide.fit` trains it with the project's own loop, and
:meth:`FlowGuide.proposal` hands kernels a frozen copy. To add a guide, subclass
:class:`FlowGuide`, and give :meth:`FlowGuide.build_flow` and :meth:`FlowGuide.train_flow`.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.guides import prototype_hide_fn
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor, nn
from torch.distributions import Transform

from ..checkpoint.scope import entered
from ..distributed import training_of_all
from ..flows.proposal import DiagnosticOptions, FlowDiagnostics, FlowDistribution, Proposal
from ..options import FitOptions
from ..target.arguments import check_autograd
from ..target.context import ContextArguments, ContextRange
from ..target.density import Target
from ..target.inspection import init_to_unconstrained
from ..target.nodes import is_discrete
from ..target.site import Values
from ..training.history import History
from ..validation import check_at_least_one, public_call
from .checks import (
    check_dtype,
    check_flow,
    check_guide,
    checked_levels,
    extra_state,
    first_tensor,
    load_or_reset,
    load_or_restore,
)
from .memory import CountedTraining
from .source import CompiledGuide, ModelSource
from .storage import describe_training, restore_training, store_training

__all__ = ["FlowGuide", "GuideOptions"]


@dataclass(frozen=True)
class GuideOptions:
    """Options of how a guide's flow is judged after training, and of its summaries.

    Attributes:
        diagnostics: How many draws judge the trained flow.
        max_log_q_error: The difference, in nats, between sampling's and scoring's log q above which
            a guide warns.
        max_contexts: The number of contexts at which a flow is judged, at most.
        num_summary: The number of draws for medians and quantiles.

    Raises:
        ValueError: An option is out of range, or of another type.

    Example:
        >>> GuideOptions(num_summary=0)
        Traceback (most recent call last):
        ValueError: GuideOptions.num_summary must be at least 1, got 0
    """

    diagnostics: DiagnosticOptions = DiagnosticOptions()
    max_log_q_error: float = 1e-2
    max_contexts: int = 16
    num_summary: int = 4096

    def __post_init__(self) -> None:
        check_at_least_one(self, negative=True)


def _hide(msg: dict) -> bool:
    """Discrete sites are summed out of the target, so the guide must not see them either."""
    return prototype_hide_fn(msg) or is_discrete(msg["fn"])


class FlowGuide(CompiledGuide, CountedTraining, AutoContinuous):
    r"""A guide whose posterior is a flow on unconstrained space.

    Arguments:
        model: A Pyro model, or a :class:`~pyro_flowsamp.Target`.
        options: How to train.
        context: Names of model arguments over which one flow is amortised. In :meth:`fit` each of
            them carries a leading dimension, of the values to train on. Afterwards each takes one
            value or several: kernels given K of them run chain i at the value of i mod K.

    Attributes:
        flow: The flow, built on the first call of :meth:`fit` or of the guide.
        trained: Whether :meth:`fit` has run (SVI's training cannot be seen; set it then).
        history: The report of the last :meth:`fit`.
        context_arguments: The arguments over which the flow is amortised, and their range.
        guide_options: How the flow is judged after training, and its summaries; may be set.

    Example:
        >>> import pyro
        >>> from pyro_flowsamp.flows import gaussian
        >>> from pyro_flowsamp.flows.gaussian_fit import fit_gaussian
        >>> class GaussianGuide(FlowGuide):
        ...     def build_flow(self, target, context_size):
        ...         return gaussian(target.dim)
        ...     def train_flow(self, target, contexts):
        ...         fitted = fit_gaussian(target, target.initial_points(32))
        ...         self.trained_flow.affine.initialize(*fitted)
        ...         return History(stopped="gaussian")
        >>> pyro.set_rng_seed(0)
        >>> guide = GaussianGuide(Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2))
        >>> round(guide.fit().final_ess, 2)
        1.0
    """

    #: attributes that a training sets beside the flow, for its checkpoints
    training_results: ClassVar[tuple[str, ...]] = ()
    shares_batches: ClassVar[bool] = False  #: whether each worker draws a part of a batch, or all
    _prototype_hide_fn = staticmethod(_hide)

    def __init__(
        self,
        model: Callable,
        *,
        options: FitOptions | None = None,
        context: Sequence[str] = (),
    ) -> None:
        check_guide(model, options)
        super().__init__(model, init_loc_fn=init_to_unconstrained)
        self.context_arguments = ContextArguments(context, model)
        self.context_names = self.context_arguments.names
        self.options, self.guide_options = options or FitOptions(), GuideOptions()
        self.flow: nn.Module | None = None
        self.trained = False
        self.history: History | None = None
        self._source = ModelSource(model)
        self._pending: tuple[dict[str, Any], bool, bool] | None = None

    @property
    def model_source(self) -> Any:
        """The model or the target that the guide was made for; None after pickling."""
        return self._source.model

    @property
    def trained_flow(self) -> nn.Module:
        """The flow.

        Raises:
            RuntimeError: It has not been built.
        """
        if self.flow is None:
            raise RuntimeError("the guide has no flow yet: call fit(...) or target_for(...) first")
        return self.flow

    # ---- for subclasses -----------------------------------------------------------------------

    def build_flow(self, target: Target, context_size: int) -> nn.Module:
        """Makes the untrained flow for a target. Called once."""
        raise NotImplementedError

    def train_flow(self, target: Target, contexts: Tensor | None) -> History:
        """Trains :attr:`flow`; ``contexts`` holds the rows ``(M, c)`` to amortise over, or None."""
        raise NotImplementedError

    # ---- training -----------------------------------------------------------------------------

    def fit(self, *args: Any, **kwargs: Any) -> History:
        """Trains the guide on the posterior of the model with these arguments.

        A second call goes on from where the first ended. With ``options.checkpoint`` it returns the
        stored result, or goes on with a training that was ended in another process.

        Raises:
            CheckpointError: The checkpoint cannot be read or written, or is of another training.
            ValueError: The log density is not finite anywhere, the model does not fit the guide, or
                the training needs more memory than there is.
        """
        with public_call(), entered(self.options.checkpoint, "fit") as scope:
            check_autograd()
            start = time.perf_counter()
            call = self.context_arguments.for_training(self._source.required, args, kwargs)
            target = self._source.target(call.args, call.kwargs, self.context_names)
            target.restart_counts()
            rows = None if call.rows is None else call.rows.to(target.device, target.dtype)
            self._build(target, rows, call.args, call.kwargs)
            describe_training(self, target, call, scope)
            if restore_training(self, scope):
                return self.history or History()
            already = target.evaluations
            with training_of_all(self.trained_flow, target, self.shares_batches):
                self.check_memory(target, rows)
                history = self.train_flow(target, rows)
            self.trained = history.stopped != "unfinished"
            self.context_arguments.learn(call)
            found = judge(self.trained_flow, target, rows, self.guide_options)
            evaluations, seconds = target.evaluations - already, time.perf_counter() - start
            self.history = _judged(history, found, evaluations, seconds)
            store_training(self, scope)
        return self.history

    def target_for(self, *args: Any, **kwargs: Any) -> Target:
        """The target of the model with these arguments; builds the flow where there is none.

        Where the context's arguments have K values it is at all of them, see
        :meth:`~pyro_flowsamp.Target.at_contexts`.

        Raises:
            ValueError: The model's sites are not those the guide was built for, or the context is
                missing or has the wrong shape.
        """
        with public_call():
            call = self.context_arguments.for_use(self._source.required, args, kwargs)
            target = self._source.target(call.args, call.kwargs, self.context_names)
            self._build(target, call.rows, call.args, call.kwargs)
        rows = call.rows
        return target if rows is None or len(rows) == 1 else target.at_contexts(rows)

    def _sites_of(self, args: tuple, kwargs: dict) -> Target:
        """The target at one context, or its sites alone, see :meth:`ModelSource.sites`."""
        args, kwargs, rows, _ = self.context_arguments.for_use(self._source.required, args, kwargs)
        target = self._source.sites(args, kwargs, self.context_names)
        self._build(target, rows, args, kwargs)
        return target

    def _build(self, target: Target, rows: Tensor | None, args: tuple, kwargs: dict) -> None:
        row = None if rows is None else rows[0]
        sites = [(s.name, tuple(s.shape)) for s in target.sites]
        if self.flow is None:
            flow = self.build_flow(target, 0 if row is None else len(row))
            flow = flow.to(device=target.device, dtype=target.dtype)
            check_flow(flow, target, row)
            self.flow, self._sites = flow, sites
            if self._pending is not None:
                load_or_reset(self, *self._pending)
        elif sites != self._sites:
            raise ValueError(
                f"this guide was built for the sites {self._sites}, not {sites}: make a new guide"
            )
        check_dtype(self.flow, target)
        if rows is not None and hasattr(self.flow, "check_context"):
            self.flow.check_context(rows)  # type: ignore[operator]
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)

    # ---- the protocol kernels use --------------------------------------------------------------

    def proposal(self, *args: Any, **kwargs: Any) -> Proposal:
        """A frozen copy of the flow, at the context (or contexts) of these model arguments."""
        if self.flow is None:
            self.target_for(*args, **kwargs)
        flow = self.trained_flow
        if not self.context_names:
            return Proposal(flow)
        rows = self.context_arguments.for_use(self._source.required, args, kwargs).rows
        assert rows is not None
        rows = rows.to(first_tensor(flow))
        return Proposal(flow, rows if len(rows) > 1 else rows[0])

    # ---- Pyro's side --------------------------------------------------------------------------

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        _ = self._source.required
        with pyro.validation_enabled(False), poutine.block():  # first values may be anywhere
            super()._setup_prototype(*args, **kwargs)
            self._create_plates(*args, **kwargs)  # NeuTraReparam wants them of one never called
        if self._source.last_target is None:
            self._sites_of(args, kwargs)

    def _distribution(self, args: tuple, kwargs: dict) -> Any:
        """The flow's own distribution at the one context of a call."""
        flow = self.trained_flow
        if not self.context_names:
            return flow(None)
        row = self.context_arguments.single_row(self._source.required, args, kwargs)
        return flow(row.to(first_tensor(flow)))

    def get_posterior(self, *args: Any, **kwargs: Any) -> FlowDistribution:
        """The flow as a Pyro distribution over the packed unconstrained latents."""
        return FlowDistribution(self._distribution(args, kwargs))

    def get_base_dist(self) -> dist.TorchDistribution:
        """The standard normal distribution that the flow transports."""
        like = first_tensor(self.trained_flow).new_zeros(self.latent_dim)
        return dist.Normal(like, 1).to_event(1)

    def get_transform(self, *args: Any, **kwargs: Any) -> Transform:
        """The latent map z → x."""
        return self._distribution(args, kwargs).transform.inv

    @torch.no_grad()
    def _sampled(self, args: tuple, kwargs: dict) -> Values:
        target = self._source.last_target
        if args or kwargs or target is None:
            target = self._sites_of(args, kwargs)
        num = self.guide_options.num_summary
        return target.unpack(self.get_posterior(*args, **kwargs).sample((num,)))

    def median(self, *args: Any, **kwargs: Any) -> Values:
        """The element-wise median of each site, from draws (a flow has no closed form)."""
        return {name: value.median(0).values for name, value in self._sampled(args, kwargs).items()}

    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> Values:
        """The element-wise quantiles of each site, stacked along dimension 0, from draws.

        Raises:
            ValueError: A quantile does not lie in [0, 1].
        """
        levels = checked_levels(quantiles)
        draws = self._sampled(args, kwargs)
        return {name: v.quantile(levels.to(v), dim=0) for name, v in draws.items()}

    # ---- state --------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """Whether the guide is trained, and on which contexts."""
        known = self.context_arguments.range
        return {"trained": self.trained, "context_range": None if known is None else known.saved()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Takes the state of :meth:`get_extra_state`."""
        self.trained = bool(state["trained"])
        if state.get("context_range") is not None:
            self.context_arguments.range = ContextRange.load(state["context_range"])

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Loads a state as any module does; before the first use, once the flow has been built.

        Raises:
            TypeError: The state is no dictionary.
            ValueError: It holds no flow, or does not fit that of this guide, which is then left as
                it was. Before the first use this is raised there, and the guide stays untrained.
        """
        extra = extra_state(state_dict, strict and self.flow is None)
        if self.flow is None:
            self._pending = dict(state_dict), strict, assign
            self.set_extra_state(extra)
            return None
        self._pending = None
        load = partial(super().load_state_dict, strict=strict, assign=assign)
        return load_or_restore(self, state_dict, load)

    def __getstate__(self) -> dict[str, Any]:
        """Drops what may not pickle (models, traces); :meth:`restore_model` gives a model back."""
        for parameter in self.parameters():  # Pyro's note for SVI, which it makes at every step
            parameter.__dict__.pop("unconstrained", None)
        return {**self.__dict__, "_model": (None,), "prototype_trace": None, "master": None}

    def __deepcopy__(self, memo: dict) -> FlowGuide:
        """A copy of the guide with the very same model."""
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        made._model = self._model
        return made

    def restore_model(self, model: Callable) -> None:
        """Gives an unpickled guide its model back; does nothing where it has one."""
        if self._source.model is None:
            self._source = ModelSource(model)
            self._model = (InitMessenger(init_to_unconstrained)(model),)


@torch.no_grad()
def judge(
    flow: nn.Module, target: Target, contexts: Tensor | None, options: GuideOptions
) -> FlowDiagnostics:
    """Diagnostics of a trained flow on fresh draws, at several of its contexts.

    Warns where sampling and scoring disagree on log q.
    """
    if contexts is not None:
        contexts = contexts[:: -(-len(contexts) // options.max_contexts)]
        target = target.at_contexts(contexts)
    found = Proposal(flow, contexts).diagnostics(target.log_prob, options.diagnostics)
    if found.log_q_error > options.max_log_q_error:
        warnings.warn(
            f"sampling and scoring disagree on log q by {found.log_q_error:.2g} nats in "
            f"{target.dtype}. Kernels score a draw by the pass that made it; SVI and importance "
            f"weights of other points do not. torch.set_default_dtype(torch.float64) makes the "
            f"difference small.",
            stacklevel=4,
        )
    return found


def _judged(history: History, found: FlowDiagnostics, evaluations: int, seconds: float) -> History:
    """The record of a training with the quality of its flow."""
    ess, pareto_k = float(found.ess.mean()), float(found.pareto_k.max())
    made = {"log_q_error": found.log_q_error, "seconds": seconds, "evaluations": evaluations}
    return history.updated(final_ess=ess, pareto_k=pareto_k, **made)
