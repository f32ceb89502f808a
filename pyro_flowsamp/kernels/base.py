r"""Pyro's shell around a transition.

:class:`FlowKernel` is the :class:`~pyro.infer.mcmc.mcmc_kernel.MCMCKernel` that
:class:`pyro.infer.MCMC` and StreamingMCMC drive with one chain, and that
:class:`~pyro_flowsamp.VectorizedMCMC` drives with many. To add a kernel, subclass it and give
:meth:`FlowKernel.init` and :meth:`FlowKernel.step`, and :meth:`FlowKernel.adapt` if it tunes
itself.

Life of a kernel: ``setup`` binds the model to its data → the first warm-up step trains the guide,
unless it is trained, and freezes a copy of it → further warm-up steps adapt → from the first
sampling step on nothing changes any more.
"""

from __future__ import annotations

import multiprocessing
import warnings
from array import array
from collections import OrderedDict
from collections.abc import Callable
from math import pi
from typing import Any, ClassVar, Protocol

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor
from torch.distributions import Transform

from ..flows.proposal import Proposal
from ..target.context import same_objects
from ..target.density import Target, as_target
from ..target.site import Values

__all__ = ["FlowKernel", "Guide", "KernelState", "StepInfo"]


STATISTICS = ("lp", "log_weight", "accepted", "acceptance_rate", "diverging")


class Guide(Protocol):
    """What a kernel needs of a guide."""

    trained: bool
    options: Any

    @property
    def model_source(self) -> Callable | None: ...
    def fit(self, *args: Any, **kwargs: Any) -> Any: ...
    def target_for(self, *args: Any, **kwargs: Any) -> Target: ...
    def proposal(self, *args: Any, **kwargs: Any) -> Proposal: ...
    def restore_model(self, model: Callable) -> None: ...


class KernelState(Protocol):
    """What every state of C chains carries: ``(C, d)``, ``(C,)``, ``(C,)``."""

    @property
    def x(self) -> Tensor: ...
    @property
    def log_p(self) -> Tensor: ...
    @property
    def log_q(self) -> Tensor: ...


class StepInfo(Protocol):
    """What every step reports of C chains, ``(C,)`` each."""

    @property
    def accepted(self) -> Tensor: ...
    @property
    def accept_prob(self) -> Tensor: ...
    @property
    def diverging(self) -> Tensor: ...


class FlowKernel(MCMCKernel):
    """Base of kernels that use a flow.

    Arguments:
        model: A Pyro model, or a :class:`~pyro_flowsamp.Target`.
        potential_fn: A potential over ``{name: unconstrained tensor}``, as in Pyro's HMC; needs
            ``initial_params``.
        guide: A flow guide, trained or not; by default ``AutoFlow(model)``.

    Raises:
        ValueError: Not exactly one of model, potential_fn, guide, or a model with its guide.
    """

    default_guide: ClassVar[Callable[[Any], Guide]]  #: set by the package: kernels import no guide

    def __init__(
        self,
        model: Callable | None = None,
        potential_fn: Callable[[Values], Tensor] | None = None,
        guide: Guide | None = None,
    ) -> None:
        if potential_fn is not None and (model is not None or guide is not None):
            raise ValueError("give potential_fn alone: it takes neither a model nor a guide")
        if model is None and potential_fn is None and guide is None:
            raise ValueError("give a model, a potential_fn, a guide, or a model with its guide")
        if model is None and guide is not None:
            model = guide.model_source
        self._source, self.potential_fn = model, potential_fn
        self.guide = guide
        self._owns_guide = guide is None
        self._initial_params: Values | None = None
        self._user_start = False
        self._save_params: list[str] | None = None
        self._clear()

    def _clear(self) -> None:
        self._target: Target | None = None
        self._proposal: Proposal | None = None
        self._bound: tuple | None = None
        self._laid_out: Any = None
        self._args: tuple = ()
        self._kwargs: dict = {}
        self._warmup_steps = 0
        self._begin_chain()

    def _begin_chain(self) -> None:
        self._state: Any = None
        self._time = 0
        self._statistics = {name: array("d") for name in STATISTICS}

    # ---- for subclasses -----------------------------------------------------------------------

    def init(self, x: Tensor) -> Any:
        """The state of chains at ``x`` ``(C, d)``."""
        raise NotImplementedError

    def step(self, state: Any) -> tuple[Any, Any]:
        """One transition of every chain, no host synchronisation: ``(state, info)``."""
        raise NotImplementedError

    def adapt(self, info: Any) -> None:
        """Tunes the kernel after a warm-up step."""

    def freeze(self) -> None:
        """Ends tuning, once, at the end of warm-up."""

    def reset(self) -> None:
        """Makes ready for new chains: undoes what :meth:`adapt` has done."""

    # ---- binding and training ------------------------------------------------------------------

    @property
    def model(self) -> Callable | None:
        """The Pyro model, or None for a potential or a target."""
        return None if isinstance(self._source, Target) else self._source

    @property
    def target(self) -> Target:
        """The target of the current model arguments."""
        if self._target is not None:
            return self._target
        if isinstance(self._source, Target):
            return self._source
        raise RuntimeError("the kernel has no target yet: call setup (or MCMC.run) first")

    @property
    def proposal(self) -> Proposal:
        """The frozen flow."""
        if self._proposal is None:
            raise RuntimeError("the kernel has no trained flow yet: call prepare first")
        return self._proposal

    def bind(self, *args: Any, **kwargs: Any) -> None:
        """Makes the target of these arguments, unless they are the ones already bound.

        Raises:
            ValueError: The guide was trained for another model, or is amortised and untrained.
        """
        key = (*args, *sorted(kwargs), *(kwargs[k] for k in sorted(kwargs)))
        layout = self._layout()
        if self._bound is not None and same_objects(self._bound, key) and layout == self._laid_out:
            return
        if self._owns_guide and self._bound is not None:
            self.guide = None  # trained for other data
        source = self._source_or_potential()
        if self.guide is None:
            self.guide = type(self).default_guide(source)
        elif source is not None:
            self.guide.restore_model(source)
        context = getattr(self.guide, "context_names", ())
        if context and not self.guide.trained:
            raise ValueError(
                f"a guide amortised over {list(context)} must be trained before it "
                f"is used, on the values that it shall cover: call guide.fit(...) first"
            )
        self._check_guide(source, args, kwargs)
        self._target = self.guide.target_for(*args, **kwargs)
        self._proposal = None
        self._bound, self._args, self._kwargs, self._laid_out = key, args, kwargs, layout

    def _layout(self) -> Any:
        """What a potential's target is made of; where nothing says so, it stays as it is."""
        if self.potential_fn is None or self._initial_params is None:
            return self._laid_out
        return {k: (v.shape, v.dtype, v.device) for k, v in self._initial_params.items()}

    def _source_or_potential(self) -> Any:
        if self.potential_fn is None:
            return self._source
        if self._initial_params is None:
            raise ValueError(
                "a potential_fn needs initial_params, for the names, shapes and dtype of its "
                "arguments: MCMC(kernel, ..., initial_params={'x': torch.zeros(3)})"
            )
        return Target.from_potential(self.potential_fn, self._initial_params)

    def _check_guide(self, source: Any, args: tuple, kwargs: dict) -> None:
        """A guide of another model would be told by its sites; say so by name."""
        if source is None or self._owns_guide or source == self.guide.model_source:  # type: ignore[union-attr]
            return
        made = as_target(source, *args, **kwargs)
        mine = {s.name: tuple(s.shape) for s in made.sites}
        assert self.guide is not None
        theirs = {s.name: tuple(s.shape) for s in self.guide.target_for(*args, **kwargs).sites}
        if mine != theirs:
            raise ValueError(
                f"the guide was made for another model: it has the sites {theirs}, this model "
                f"has {mine}."
            )
        raise ValueError(
            "the guide was made for another model with the same sites: make a guide of this "
            "model, or pass the guide alone."
        )

    def prepare(self, warmup_steps: int) -> None:
        """Trains the guide where that has not been done, and freezes a copy of its flow.

        Raises:
            RuntimeError: The guide is untrained and there is no warm-up to train it in.
        """
        assert self.guide is not None
        if not self.guide.trained:
            if warmup_steps == 0:
                raise RuntimeError(
                    "the guide is untrained and warmup_steps=0 leaves no step to train it in: "
                    "call guide.fit(...) first, or use warmup_steps > 0 (after training of your "
                    "own, by SVI, say so: guide.trained = True)."
                )
            if multiprocessing.parent_process() is not None:
                warnings.warn(
                    "every parallel chain trains its own copy of the guide: call guide.fit(...) "
                    "before MCMC.run, or use VectorizedMCMC, to train once for all.",
                    stacklevel=2,
                )
            self.guide.fit(*self._args, **self._kwargs)
        if self._proposal is None:
            self._proposal = self.guide.proposal(*self._args, **self._kwargs)

    def start(self, num_chains: int, params: Values | None = None) -> Any:
        """States of new chains: at ``params``, or at draws of the flow; undoes all adaptation.

        Raises:
            ValueError: As :meth:`state_at`.
        """
        self.reset()
        if params is not None:
            return self.state_at(params, num_chains)
        self._check_number(num_chains)
        return self.init(self._flow_starts(num_chains))

    def state_at(self, params: Values, num_chains: int | None = None) -> Any:
        """States of chains at ``params``, the kernel as it is.

        Raises:
            ValueError: A shape or dtype of ``params`` is wrong, the density there is not finite, or
                the chains cannot be shared out among the contexts.
        """
        unknown = set(params) - {site.name for site in self.target.sites}
        if unknown:
            raise ValueError(f"initial_params: {sorted(unknown)} are not sites of the model")
        x = self.target.pack_unconstrained(params).reshape(-1, self.target.dim)
        num_chains = num_chains or len(x)
        self._check_number(num_chains)
        state = self.init(x.reshape(num_chains, self.target.dim))
        bad = ~torch.isfinite(state.log_p - state.log_q)
        if bad.any():
            chains = bad.nonzero()[:, 0].tolist()
            raise ValueError(f"initial_params: the density is zero or NaN for chains {chains}")
        return state

    def _check_number(self, num_chains: int) -> None:
        contexts = self.target.contexts
        if contexts is not None and num_chains % len(contexts):
            raise ValueError(
                f"{num_chains} chains cannot be shared out evenly among {len(contexts)} contexts: "
                f"take a multiple of {len(contexts)}; chain i is at the context of i mod "
                f"{len(contexts)}"
            )

    def log_prob(self, x: Tensor) -> Tensor:
        r"""The target's log density on one period: :math:`-\infty` at angles outside [−π, π].

        Flows that know of angles never leave it; any other would see a density without end.
        """
        return on_one_period(self.target, x)

    def _flow_starts(self, num_chains: int) -> Tensor:
        """Independent draws of the flow, redrawn where the target has no density."""
        x, _ = self.proposal.sample_and_log_prob(num_chains)
        for _ in range(100):
            bad = ~torch.isfinite(self.log_prob(x).detach())
            if not bad.any():
                return x
            fresh, _ = self.proposal.sample_and_log_prob(num_chains)
            x = torch.where(bad[:, None], fresh, x)
        raise ValueError(
            "the flow never proposes a point of finite density: train it longer, or give "
            "initial_params and a wider flow."
        )

    # ---- Pyro's contract ----------------------------------------------------------------------

    @property
    def transforms(self) -> dict[str, Transform] | None:
        """Constrained → unconstrained, by site; None before ``setup`` of a model."""
        if self._target is None and not isinstance(self._source, Target):
            return None
        return {site.name: site.transform.inv for site in self.target.sites}

    @property
    def initial_params(self) -> Values:
        """Unconstrained starting values by site."""
        if self._initial_params is None:
            return {}
        return self._initial_params

    @initial_params.setter
    def initial_params(self, params: Values) -> None:
        self._initial_params, self._user_start = params, True

    @property
    def save_params(self) -> list[str]:
        """The sites kept by MCMC; sorted, since Pyro scrambles any other order."""
        if self._save_params is not None:
            return self._save_params
        return sorted(self.initial_params)

    @save_params.setter
    def save_params(self, names: list[str]) -> None:
        self._save_params = sorted(names)

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Binds the model to its arguments and begins a new chain; trains nothing yet."""
        self.bind(*args, **kwargs)
        self._proposal = None  # the guide may have learnt more since
        self._begin_chain()
        self._warmup_steps = warmup_steps
        if self._user_start:
            x = self.target.pack_unconstrained(self.initial_params)
            if x.dim() > 1:
                raise ValueError(
                    f"initial_params have leading dimensions {tuple(x.shape[:-1])}; for one chain "
                    f"their shapes must be { {s.name: tuple(s.shape) for s in self.target.sites} }"
                )
        else:
            first = self.target.initial_points(1)[0]
            self._initial_params = self.target.unpack_unconstrained(first)

    def sample(self, params: Values) -> Values:
        """Pyro's one step of one chain."""
        if self._time == 0:
            self.prepare(self._warmup_steps)
            self._state = self.start(1, params if self._user_start else None)
        if self._time == self._warmup_steps:
            self.freeze()
        self._state, info = self.step(self._state)
        if self._time < self._warmup_steps:
            self.adapt(info)
        else:
            self._record(info)
        self._time += 1
        return self.target.unpack_unconstrained(self.target.wrap(self._state.x[0]))

    def _record(self, info: Any) -> None:
        for name, value in statistics(self._state, info).items():
            self._statistics[name].append(float(value[0]))

    def cleanup(self) -> None:
        """Ends a chain; called twice by Pyro."""
        self._begin_chain()
        self._initial_params, self._user_start = None, False

    def logging(self) -> OrderedDict[str, str]:
        """For the progress bar."""
        accepted = self._statistics["accepted"]
        rate = f"{sum(accepted[-100:]) / len(accepted[-100:]):.2f}" if accepted else "warm-up"
        return OrderedDict([("acc. rate", rate)])

    def diagnostics(self) -> dict[str, Any]:
        """Acceptance, divergences, importance ESS and Pareto k, and the per-draw statistics."""
        stats = {k: torch.tensor(v, dtype=torch.double) for k, v in self._statistics.items()}
        return {
            "divergences": stats["diverging"].nonzero()[:, 0].tolist(),
            "acceptance rate": float(stats["accepted"].mean()) if len(stats["accepted"]) else 0.0,
            **self.proposal_diagnostics(),
            "statistics": {k: v.numpy() for k, v in stats.items()},
        }

    def proposal_diagnostics(self) -> dict[str, float]:
        """How good the frozen flow is, on 4096 fresh draws; at several contexts, at the worst."""
        return proposal_diagnostics(self.proposal, self.target)

    def __getstate__(self) -> dict[str, Any]:
        """Targets, states and proposals stay behind; ``setup`` makes them again."""
        state = self.__dict__.copy()
        for name in ("_target", "_proposal", "_bound", "_state"):
            state[name] = None
        state.update(_args=(), _kwargs={})
        return state


def on_one_period(target: Target, x: Tensor) -> Tensor:
    r"""A target's log density ``(N,)``, :math:`-\infty` at angles outside [−π, π]."""
    log_p = target.log_prob(x)
    if not target.circular:
        return log_p
    outside = ((x.abs() > pi) & target.angles).any(-1)
    return torch.where(outside, -torch.inf, log_p)


def proposal_diagnostics(proposal: Proposal, target: Target) -> dict[str, float]:
    """How good a proposal is for a target, see :meth:`FlowKernel.proposal_diagnostics`."""
    found = proposal.diagnostics(lambda x: on_one_period(target, x).detach())
    return {
        "importance ess": float(found.ess.min()),
        "pareto k": float(found.pareto_k.max()),
        "log q error": found.log_q_error,
    }


def statistics(state: KernelState, info: StepInfo) -> dict[str, Tensor]:
    """The per-draw statistics of C chains, ``(C,)`` each, by their names in ArviZ."""
    return {
        "lp": state.log_p,
        "log_weight": state.log_p - state.log_q,
        "accepted": info.accepted,
        "acceptance_rate": info.accept_prob,
        "diverging": info.diverging,
    }
