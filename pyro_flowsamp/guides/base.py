r"""What every flow guide shares: Pyro's side of a trained proposal.

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
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.guides import prototype_hide_fn
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor, nn
from torch.distributions import Transform

from ..flows.proposal import NUM_DIAGNOSTIC, FlowDistribution, Proposal
from ..options import FitOptions
from ..target.context import (
    ContextRange,
    _as_context,
    _check_names,
    _rows,
    named_arguments,
    same_objects,
)
from ..target.density import Target
from ..target.inspection import init_to_unconstrained, is_discrete
from ..target.site import Values
from ..train import History

__all__ = ["FlowGuide"]


GAP_TO_WARN = 1e-2  #: nats between sampling's and scoring's log q
MOST_JUDGED = 16  #: contexts at which it is


def _hide(msg: dict) -> bool:
    """Discrete sites are summed out of the target, so the guide must not see them either."""
    return prototype_hide_fn(msg) or is_discrete(msg["fn"])


class FlowGuide(AutoContinuous):
    r"""A guide whose posterior is a flow on unconstrained space.

    Arguments:
        model: A Pyro model, or a :class:`~pyro_flowsamp.Target`.
        options: How to train.
        context: Names of model arguments over which one flow is amortised. In :meth:`fit` each of
            them carries a leading dimension, of the values to train on; then one value is as good
            as several: kernels given K of them run chain i at the value of i mod K.

    Attributes:
        flow: The flow, built on the first call of :meth:`fit` or of the guide.
        trained: Whether :meth:`fit` has run (SVI's training cannot be seen; set it then).
        history: What the last :meth:`fit` reported.
    """

    _prototype_hide_fn = staticmethod(_hide)

    def __init__(
        self,
        model: Callable,
        *,
        options: FitOptions | None = None,
        context: Sequence[str] = (),
    ) -> None:
        super().__init__(model, init_loc_fn=init_to_unconstrained)
        _check_names(model, context)
        self._source = (model,)  # in a tuple, so that a model that is a module is not adopted
        self.options = options or FitOptions()
        self.context_names = tuple(context)
        self._context_range: ContextRange | None = None
        self.flow: nn.Module | None = None
        self.trained = False
        self.history: History | None = None
        self._pending: tuple[dict[str, Any], bool, bool] | None = None
        self._last: tuple[tuple, Target] | None = None

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

        A second call goes on from where the first ended.

        Raises:
            ValueError: The log density is not finite anywhere, or the model does not fit the guide.
        """
        start = time.perf_counter()
        contexts, args, kwargs, learnt = self._split_contexts(args, kwargs)
        target = self._target(args, kwargs)
        if contexts is not None:
            contexts = contexts.to(target.device, target.dtype)
        self._build(target, contexts, args, kwargs)
        already = target.evaluations
        history = self.train_flow(target, contexts)
        self.trained, self._context_range = history.stopped != "unfinished", learnt
        self.history = self._judge(history, target, contexts).updated(
            seconds=time.perf_counter() - start, evaluations=target.evaluations - already
        )
        return self.history

    @torch.no_grad()
    def _judge(self, history: History, target: Target, contexts: Tensor | None) -> History:
        """On fresh draws; of several contexts the mean ESS, and the worst of what warns."""
        assert self.flow is not None
        if contexts is not None:
            contexts = contexts[:: -(-len(contexts) // MOST_JUDGED)]
            target = target.at(contexts)
        found = Proposal(self.flow, contexts).diagnostics(target.log_prob)
        if found.log_q_error > GAP_TO_WARN:
            warnings.warn(
                f"sampling and scoring disagree on log q by {found.log_q_error:.2g} nats in "
                f"{target.dtype}; kernels score a draw by the pass that made it, SVI and "
                f"importance weights of other points do not. "
                f"torch.set_default_dtype(torch.float64) closes the gap.",
                stacklevel=4,
            )
        return history.updated(
            final_ess=float(found.ess.mean()),
            pareto_k=float(found.pareto_k.max()),
            log_q_error=found.log_q_error,
        )

    def target_for(self, *args: Any, **kwargs: Any) -> Target:
        """The target of the model with these arguments; builds the flow where there is none.

        Where the context's arguments have K values it is at all of them, see
        :meth:`~pyro_flowsamp.Target.at`.

        Raises:
            ValueError: The model's sites are not those the guide was built for, or the context is
                missing or has the wrong shape.
        """
        rows, args, kwargs = self._contexts(args, kwargs)
        self._warn_outside(rows)
        target = self._target(args, kwargs)
        self._build(target, rows, args, kwargs)
        return target if rows is None or len(rows) == 1 else target.at(rows)

    def _build(self, target: Target, rows: Tensor | None, args: tuple, kwargs: dict) -> None:
        self._ensure_flow(target, None if rows is None else rows[0])
        if rows is not None and hasattr(self.flow, "check_context"):
            self.flow.check_context(rows)  # type: ignore[union-attr, operator]
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)

    def _target(self, args: tuple, kwargs: dict) -> Target:
        """The target of these arguments; the last is kept, for looking at a model takes time."""
        source = self._known_source()
        names = sorted(kwargs)
        key = (source, torch.get_default_dtype(), *args, *names, *(kwargs[k] for k in names))
        if self._last is not None and same_objects(key, self._last[0]):
            return self._last[1]
        target = Target.of(source, *args, **kwargs)
        if self.context_names:
            target = target.conditional_on(*self.context_names)
        self._last = key, target
        return target

    def _known_source(self) -> Callable:
        (source,) = self._source
        if source is None:
            raise ValueError(
                "this guide was pickled, which leaves its model behind: give it back by "
                "guide.attach(model), or use the guide with its model in a kernel"
            )
        return source

    @property
    def model_source(self) -> Any:
        """The model or target of this guide; None after unpickling, which leaves it behind."""
        return self._source[0]

    def _ensure_flow(self, target: Target, row: Tensor | None) -> None:
        sites = [(s.name, tuple(s.shape)) for s in target.sites]
        if self.flow is None:
            flow = self.build_flow(target, 0 if row is None else len(row))
            self.flow = flow.to(device=target.device, dtype=target.dtype)
            self._sites = sites
            _check_flow(self.flow, target, row)
            if self._pending is not None:
                self.load_state_dict(*self._pending)
        elif sites != self._sites:
            raise ValueError(
                f"this guide was built for the sites {self._sites}, the model has {sites}: make "
                f"a new guide for it."
            )
        elif others := {p.dtype for p in self.flow.parameters()} - {target.dtype}:
            raise ValueError(
                f"this guide's flow is of {others.pop()}, the model's sites are {target.dtype}: "
                f"make a new guide for it, or convert this one with guide.to({target.dtype})."
            )

    # ---- context ------------------------------------------------------------------------------

    def _named(self, args: tuple, kwargs: dict) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The context's values, and all arguments by name.

        Raises:
            ValueError: A value is missing, or no number.
        """
        named = named_arguments(self._known_source(), args, kwargs)
        missing = [name for name in self.context_names if name not in named]
        if missing:
            raise ValueError(
                f"no value for {missing}, over which this guide is amortised: give it to fit, run, "
                f"bind and proposal as an argument of the model"
            )
        return {name: _as_context(named[name], name) for name in self.context_names}, named

    def _split_contexts(
        self, args: tuple, kwargs: dict
    ) -> tuple[Tensor | None, tuple, dict, ContextRange | None]:
        """Takes the stacked values of the context arguments out; the first row stays in."""
        if not self.context_names:
            return None, args, kwargs, None
        values, named = self._named(args, kwargs)
        lengths = {name: len(v) if v.dim() else None for name, v in values.items()}
        if len(set(lengths.values())) > 1 or None in lengths.values():
            raise ValueError(
                f"fit needs the context's values along a leading dimension, as many of each "
                f"argument; their lengths are {lengths}"
            )
        rows = _rows(values.values())
        if not bool(torch.isfinite(rows).all()):
            raise ValueError("the context's values are not finite")
        learnt = ContextRange(
            {k: v.shape[1:] for k, v in values.items()}, rows.amin(0), rows.amax(0)
        )
        first = {**named, **{name: v[0] for name, v in values.items()}}
        return (
            rows,
            (),
            first,
            learnt if self._context_range is None else learnt.with_(self._context_range),
        )

    def _contexts(self, args: tuple, kwargs: dict) -> tuple[Tensor | None, tuple, dict]:
        """The context's rows ``(K, c)``, and arguments with the first value of each."""
        if not self.context_names:
            return None, args, kwargs
        values, named = self._named(args, kwargs)
        if self._context_range is None:
            return _rows(v[None] for v in values.values()), args, kwargs
        stacked = {name: self._context_range.stack(name, v) for name, v in values.items()}
        num = max(len(v) for v in stacked.values())
        if any(len(v) not in (1, num) for v in stacked.values()):
            lengths = {name: len(v) for name, v in stacked.items()}
            raise ValueError(f"the context's arguments have different numbers of values: {lengths}")
        rows = _rows(v.expand(num, *v.shape[1:]) for v in stacked.values())
        if all(v.shape == self._context_range.shapes[name] for name, v in values.items()):
            return rows, args, kwargs
        return rows, (), {**named, **{name: v[0] for name, v in stacked.items()}}

    def _warn_outside(self, rows: Tensor | None) -> None:
        if rows is not None and self._context_range is not None:
            self._context_range.warn_outside(rows)

    def _context_row(self, args: tuple, kwargs: dict) -> Tensor | None:
        rows = self._contexts(args, kwargs)[0]
        if rows is not None and len(rows) > 1:
            raise ValueError(f"a Pyro guide has one context at a time, got {len(rows)}")
        if rows is None or self.flow is None:
            return None if rows is None else rows[0]
        return rows[0].to(next(self.flow.parameters()))

    # ---- the protocol kernels use --------------------------------------------------------------

    def proposal(self, *args: Any, **kwargs: Any) -> Proposal:
        """A frozen copy of the flow, at the context (or contexts) of these model arguments."""
        if self.flow is None:
            self.target_for(*args, **kwargs)
        assert self.flow is not None
        rows = self._contexts(args, kwargs)[0]
        if rows is None:
            return Proposal(self.flow)
        self._warn_outside(rows)
        rows = rows.to(next(self.flow.parameters()))
        return Proposal(self.flow, rows if len(rows) > 1 else rows[0])

    # ---- Pyro's side --------------------------------------------------------------------------

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        self._known_source()
        with pyro.validation_enabled(False), poutine.block():  # first values may be anywhere
            super()._setup_prototype(*args, **kwargs)
            self._create_plates(*args, **kwargs)  # NeuTraReparam wants them of one never called
        if self._last is None:
            self.target_for(*args, **kwargs)

    def get_posterior(self, *args: Any, **kwargs: Any) -> FlowDistribution:
        """The flow as a Pyro distribution over the packed unconstrained latents."""
        row = self._context_row(args, kwargs)
        assert self.flow is not None
        return FlowDistribution(self.flow(row))

    def get_base_dist(self) -> dist.TorchDistribution:
        """The standard normal that the flow transports."""
        assert self.flow is not None
        like = next(self.flow.parameters()).new_zeros(self.latent_dim)
        return dist.Normal(like, 1).to_event(1)

    def get_transform(self, *args: Any, **kwargs: Any) -> Transform:
        """The latent map z → x."""
        assert self.flow is not None
        return self.flow(self._context_row(args, kwargs)).transform.inv

    @torch.no_grad()
    def _sampled(self, num: int, args: tuple, kwargs: dict) -> Values:
        if args or kwargs or self._last is None:
            target = self.target_for(*args, **kwargs)
        else:
            _, target = self._last
        return target.unpack(self.get_posterior(*args, **kwargs).sample((num,)))

    def median(self, *args: Any, **kwargs: Any) -> Values:
        """Each site's element-wise median, from 4096 draws (a flow has no closed form)."""
        draws = self._sampled(NUM_DIAGNOSTIC, args, kwargs)
        return {name: value.median(0).values for name, value in draws.items()}

    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> Values:
        """Each site's element-wise quantiles, stacked along dimension 0, from 4096 draws."""
        draws = self._sampled(NUM_DIAGNOSTIC, args, kwargs)
        return {
            name: value.quantile(torch.as_tensor(quantiles).to(value), dim=0)
            for name, value in draws.items()
        }

    # ---- state --------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        learnt = None if self._context_range is None else self._context_range.saved()
        return {"trained": self.trained, "learnt": learnt}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.trained = state["trained"]
        if state.get("learnt") is not None:
            self._context_range = ContextRange.load(state["learnt"])

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As any module's; before the first use, kept until the flow has been built."""
        if self.flow is None:
            if strict and not any(name.startswith("flow.") for name in state_dict):
                raise ValueError(
                    "this state holds no flow: the guide was saved before it was built, by fit "
                    "or its first use"
                )
            self._pending = dict(state_dict), strict, assign
            self.set_extra_state(state_dict.get("_extra_state", {"trained": True}))
            return None
        self._pending = None
        return super().load_state_dict(state_dict, strict, assign)

    def __getstate__(self) -> dict[str, Any]:
        """Drops what may not pickle (models, traces); :meth:`attach` gives the model back."""
        for parameter in self.parameters():  # Pyro's note for SVI, which it makes at every step
            parameter.__dict__.pop("unconstrained", None)
        state = self.__dict__.copy()
        state.update(_model=(None,), _source=(None,), prototype_trace=None, master=None, _last=None)
        return state

    def __deepcopy__(self, memo: dict) -> FlowGuide:
        """With the very same model."""
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        made._source, made._model, made._last = self._source, self._model, self._last
        return made

    def restore_model(self, model: Callable) -> None:
        """Gives an unpickled guide its model back; does nothing where it has one."""
        if self._source == (None,):
            self._source = (model,)
            self._model = (InitMessenger(init_to_unconstrained)(model),)


def _check_flow(flow: nn.Module, target: Target, row: Tensor | None) -> None:
    distribution = flow(None if row is None else row.to(next(flow.parameters())))
    if not hasattr(distribution, "rsample_and_log_prob"):
        raise ValueError(
            f"the flow returns a {type(distribution).__name__}, which cannot draw and score in one "
            f"pass (rsample_and_log_prob): return a zuko.distributions.NormalizingFlow."
        )
    shape = distribution.event_shape
    if tuple(shape) != (target.dim,):
        sizes = ", ".join(f"{s.name}: {s.size}" for s in target.sites)
        raise ValueError(
            f"the flow has {tuple(shape)} features, the model needs ({target.dim},) ({sizes})."
        )
