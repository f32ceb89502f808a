r"""What every flow guide shares: Pyro's side of a trained proposal.

A guide is an :class:`~pyro.infer.autoguide.AutoContinuous`, so SVI, Predictive, Importance and
NeuTraReparam take it; :meth:`FlowGuide.fit` trains it with the project's own loop, and
:meth:`FlowGuide.proposal` hands kernels a frozen copy. To add a guide, subclass
:class:`FlowGuide`, and give :meth:`FlowGuide.build_flow` and :meth:`FlowGuide.train_flow`.
"""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.guides import prototype_hide_fn
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor, nn
from torch.distributions import Transform, biject_to

from .._model import init_to_unconstrained, is_discrete
from ..flows import FlowDistribution
from ..importance import ess_fraction, pareto_k
from ..proposal import Proposal
from ..target import Target, Values, same_objects
from ..train import FitOptions, History

__all__ = ["FlowGuide"]

GAP_TO_WARN = 1e-2  #: nats between sampling's and scoring's log q
NUM_DIAGNOSTIC = 4096  #: fresh draws with which a trained flow is judged


def _hide(msg: dict) -> bool:
    """Discrete sites are summed out of the target, so the guide must not see them either."""
    return prototype_hide_fn(msg) or is_discrete(msg["fn"])


class FlowGuide(AutoContinuous):
    r"""A guide whose posterior is a flow on unconstrained space.

    Arguments:
        model: A Pyro model, or a :class:`~pyro_flowsamp.Target`.
        options: How to train.
        context: Names of model arguments over which one flow is amortised. In :meth:`fit` each of
            them carries a leading dimension, of the values to train on; elsewhere, one value.

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
        self._source = (model,)  # in a tuple, so that a model that is a module is not adopted
        self.options = options or FitOptions()
        self.context_names = tuple(context)
        self.flow: nn.Module | None = None
        self.trained = False
        self.history: History | None = None
        self._pending: dict[str, Any] | None = None
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
        contexts, args, kwargs = self._split_contexts(args, kwargs)
        target = self.bind(*args, **kwargs)
        already = target.evaluations
        history = self.train_flow(target, contexts)
        self.trained = history.stopped != "unfinished"
        row = None if contexts is None else contexts[0]
        self.history = self._judge(history, target, row).updated(
            seconds=time.perf_counter() - start, evaluations=target.evaluations - already
        )
        return self.history

    @torch.no_grad()
    def _judge(self, history: History, target: Target, context: Tensor | None) -> History:
        assert self.flow is not None
        proposal = Proposal(self.flow, context)
        x, log_q = proposal.sample_and_log_prob(NUM_DIAGNOSTIC)
        rows = None if context is None else context.expand(len(x), -1)
        log_w = target.log_prob(x, rows).double() - log_q.double()
        gap = proposal.gap()
        if gap > GAP_TO_WARN:
            warnings.warn(
                f"sampling and scoring disagree on log q by {gap:.2g} nats in {target.dtype}; "
                f"kernels score a draw by the pass that made it, SVI and importance weights of "
                f"other points do not. torch.set_default_dtype(torch.float64) closes the gap.",
                stacklevel=4,
            )
        return history.updated(
            final_ess=float(ess_fraction(log_w)), pareto_k=pareto_k(log_w), log_q_gap=gap
        )

    def bind(self, *args: Any, **kwargs: Any) -> Target:
        """The target of the model with these arguments; builds the flow where there is none.

        Raises:
            ValueError: The model's sites are not those the guide was built for.
        """
        target = self._target(args, kwargs)
        self._ensure_flow(target, self._context_row(args, kwargs))
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        return target

    def _target(self, args: tuple, kwargs: dict) -> Target:
        """The target of these arguments; the last is kept, for looking at a model takes time."""
        (source,) = self._source
        names = sorted(kwargs)
        key = (source, torch.get_default_dtype(), *args, *names, *(kwargs[k] for k in names))
        if self._last is not None and same_objects(key, self._last[0]):
            return self._last[1]
        target = Target.of(source, *args, **kwargs)
        if self.context_names:
            target = target.amortize(*self.context_names)
        self._last = key, target
        return target

    def _ensure_flow(self, target: Target, row: Tensor | None) -> None:
        sites = [(s.name, tuple(s.shape)) for s in target.sites]
        if self.flow is None:
            flow = self.build_flow(target, 0 if row is None else len(row))
            self.flow = flow.to(device=target.device, dtype=target.dtype)
            self._sites = sites
            _check_dimension(self.flow, target, row)
            if self._pending is not None:
                self.load_state_dict(self._pending)
        elif sites != self._sites:
            raise ValueError(
                f"this guide was built for the sites {self._sites}, the model has {sites}: make "
                f"a new guide for it."
            )

    # ---- context ------------------------------------------------------------------------------

    def _bound(self, args: tuple, kwargs: dict) -> dict[str, Any]:
        (source,) = self._source
        return dict(inspect.signature(source).bind(*args, **kwargs).arguments)

    def _context_row(self, args: tuple, kwargs: dict) -> Tensor | None:
        if not self.context_names:
            return None
        values = self._bound(args, kwargs)
        parts = [torch.as_tensor(values[name]).reshape(-1) for name in self.context_names]
        return torch.cat([p.to(torch.get_default_dtype()) for p in parts])

    def _split_contexts(self, args: tuple, kwargs: dict) -> tuple[Tensor | None, tuple, dict]:
        """Takes the stacked values of the context arguments out; the first row stays in."""
        if not self.context_names:
            return None, args, kwargs
        values = self._bound(args, kwargs)
        stacked = [torch.as_tensor(values[name]) for name in self.context_names]
        rows = torch.cat([s.reshape(len(s), -1).to(torch.get_default_dtype()) for s in stacked], -1)
        firsts = {name: s[0] for name, s in zip(self.context_names, stacked)}
        return rows, (), {**values, **firsts}

    # ---- the protocol kernels use --------------------------------------------------------------

    def proposal(self, *args: Any, **kwargs: Any) -> Proposal:
        """A frozen copy of the flow, at the context of these model arguments."""
        if self.flow is None:
            self.bind(*args, **kwargs)
        assert self.flow is not None
        row = self._context_row(args, kwargs)
        return Proposal(self.flow, None if row is None else row.to(next(self.flow.parameters())))

    # ---- Pyro's side --------------------------------------------------------------------------

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self._create_plates(*args, **kwargs)  # NeuTraReparam wants them of a guide never called
        if self.flow is None:
            self.bind(*args, **kwargs)

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
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        latent = self.get_posterior(*args, **kwargs).sample((num,))
        (source,) = self._source
        if isinstance(source, Target):
            return source.unpack(latent)
        return {
            site["name"]: biject_to(site["fn"].support)(value)
            for site, value in self._unpack_latent(latent)
        }

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

    def get_extra_state(self) -> dict[str, bool]:
        return {"trained": self.trained}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        self.trained = state["trained"]

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As any module's; before the first use, kept until the flow has been built."""
        if self.flow is None:
            self._pending = dict(state_dict)
            self.trained = True
            return None
        self._pending = None
        return super().load_state_dict(state_dict, strict, assign)

    def __getstate__(self) -> dict[str, Any]:
        """Drops what may not pickle (models, traces); the next use with arguments restores it."""
        state = self.__dict__.copy()
        state.update(_model=(None,), _source=(None,), prototype_trace=None, master=None, _last=None)
        return state

    def attach(self, model: Callable) -> None:
        """Gives an unpickled guide its model back; does nothing where it has one."""
        if self._source == (None,):
            self._source = (model,)
            self._model = (InitMessenger(init_to_unconstrained)(model),)


def _check_dimension(flow: nn.Module, target: Target, row: Tensor | None) -> None:
    shape = flow(None if row is None else row.to(next(flow.parameters()))).event_shape
    if tuple(shape) != (target.dim,):
        sizes = ", ".join(f"{s.name}: {s.size}" for s in target.sites)
        raise ValueError(
            f"the flow has {tuple(shape)} features, the model needs ({target.dim},) ({sizes})."
        )
