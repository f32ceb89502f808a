r"""The log density of a Pyro model, for a batch of points.

:func:`~pyro_flowsamp.target.inspection.inspect_model` runs the model and reports its latent sites;
:class:`ModelDensity` evaluates

.. math:: \log p(u) = \log p(\text{data}, x) + \log\left|\det \frac{\partial x}{\partial u}\right|,
          \qquad x = \mathrm{constrain}(u),

for a batch of points in one of three ways: ``vmap`` (any model that is free of Python branches on
tensors), an outermost ``plate`` (models annotated for parallel particles), or a Python ``loop``.
Enumerable discrete sites are summed out in each of them.

All use of Pyro's private names on the model side is in this file, ``enumeration.py`` and
``support.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import config_enumerate
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

from .context import ContextValues, named_arguments
from .enumeration import Enumerate, marginal_log_prob
from .inspection import ModelStructureError, Prototype, check_support
from .missing_data import DATA_KEY, Imputed, summed_out
from .nodes import is_data, is_discrete, is_random, latent_nodes
from .sharded import Shard, shard_of_workers
from .site import Site, Values
from .support import Guard, bijection, same_bijection

__all__ = ["ModelDensity"]


_BATCH_PLATE = "_flowsamp_batch"


def _unvalidated(method: Callable) -> Callable:
    """Switches Pyro's and torch's value checks off: they branch on tensors, which vmap forbids."""

    @wraps(method)
    def wrapped(*args: Any) -> Any:
        with pyro.validation_enabled(False):
            return method(*args)

    return wrapped


class ModelDensity:
    r"""The log joint density of a model as a function of batched constrained values.

    Arguments:
        model: A Pyro model.
        args, kwargs: Its arguments.
        prototype: The structure that
            :func:`~pyro_flowsamp.target.inspection.inspect_model` found.
        context: Names of arguments that vary along the batch, given on each call.

    Attributes:
        context: The values of these arguments with which the density was made.

    Raises:
        ValueError: The model has no such arguments, or others without names.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro_flowsamp.target.inspection import inspect_model
        >>> def model():
        ...     pyro.sample("rate", dist.Exponential(1.0))
        >>> density = ModelDensity(model, (), {}, inspect_model(model, (), {}))
        >>> density.vmap({"rate": torch.tensor([1.0, 3.0])}, {})
        tensor([-1., -3.])
    """

    def __init__(
        self,
        model: Callable,
        args: tuple,
        kwargs: dict,
        prototype: Prototype,
        context: Sequence[str] = (),
    ) -> None:
        model = summed_out(model, prototype.summed_out)
        self.model, self.args, self.kwargs = model, args, kwargs
        self.sites = prototype.sites
        self.max_plate_nesting = prototype.max_plate_nesting
        self.enumerated, self.has_observations = prototype.enumerated, prototype.has_observations
        self.guarded, self.shard = prototype.guarded, shard_of_workers()
        if context:
            self.args, self.kwargs = (), named_arguments(model, args, kwargs)
            unknown = [name for name in context if name not in self.kwargs]
            if unknown:
                raise ValueError(
                    f"{unknown} are no arguments of the model, which has {list(self.kwargs)}"
                )
        self.context = ContextValues({name: self.kwargs[name] for name in context})

    def _trace(self, model: Callable, values: Values, context: Values) -> Trace:
        with poutine.block(), Imputed(), Guard(self.guarded):
            conditioned = poutine.trace(poutine.condition(model, data=values))
            trace = conditioned.get_trace(*self.args, **{**self.kwargs, **context})
        for site in self.sites:
            if site.name not in trace:
                raise ModelStructureError(f"site '{site.name}' vanished from the model.")
        for node in latent_nodes(trace):
            if not (self.enumerated and is_discrete(node["fn"])):
                raise ModelStructureError(
                    f"site '{node['name']}' appeared in the model after its first run."
                )
        return trace if self.shard is None else self.shard.weigh(trace)

    @_unvalidated
    def check_shard(self, shard: Shard, values: Values) -> None:
        """Checks a model whose rows of data are shared out to workers.

        Arguments:
            shard: The plate of the rows.
            values: Constrained values ``{site: (N, ...)}``, the same on all workers.

        Raises:
            ValueError: There are no data in the plate, or a latent site; workers differ outside of
                the plate; there are discrete sites or a context.
        """
        if self.enumerated or self.context.names:
            raise ValueError(
                "a model with discrete sites, or over a context, has no rows that are shared out "
                "to workers: leave shard=... out"
            )
        terms = []
        for i in range(len(next(iter(values.values())))):
            trace = self._trace(self.model, {k: v[i] for k, v in values.items()}, {})
            shard.check(trace, {site.name for site in self.sites})
            terms.append(
                [trace.log_prob_sum(lambda _, n, b=b: shard.has(n) is b) for b in (False, True)]
            )
        rest, rows = (torch.stack([torch.as_tensor(t) for t in column]) for column in zip(*terms))
        shard.check_same_rest(rest / shard.share, rows)

    @_unvalidated
    def check_supports(self, values: Values) -> None:
        """Checks that supports are the same at all discrete states and at another context.

        Raises:
            ModelStructureError: One of them is not.
        """
        model = self._enumerate(self.model, 0) if self.enumerated else self.model
        for context in self._other_contexts():
            try:
                trace = self._trace(model, values, context)
            except ModelStructureError:
                raise
            except Exception:  # this context is not the user's: an error there is no answer
                continue
            for site in self.sites:
                other = bijection(trace.nodes[site.name])
                u = site.transform.inv(values[site.name])
                check_support(site.name, same_bijection(site.transform, other, u))

    def _other_contexts(self) -> list[Values]:
        """The model's own context, and one that is slightly different."""
        own = self.context.values.items()
        other = {name: 1.1 * v + 0.01 for name, v in own if v.is_floating_point()}
        return [{}, other] if other else [{}]

    def _single(self, values: Values, context: Values) -> Tensor:
        trace = self._trace(self.model, values, context)
        for site in self.sites:
            if trace.nodes[site.name]["fn"].shape() != site.value_shape:
                raise ModelStructureError(f"the shape of site '{site.name}' changes between calls")
        return trace.log_prob_sum(lambda name, node: not site_is_subsample(node))

    @_unvalidated
    def vmap(self, values: Values, context: Values) -> Tensor:
        """Log densities ``(N,)`` of constrained values ``{site: (N, ...)}``, by ``torch.vmap``."""
        single = self._marginal if self.enumerated else self._single
        return torch.func.vmap(single)(values, context)

    @_unvalidated
    def loop(self, values: Values, context: Values) -> Tensor:
        """Log densities ``(N,)`` of constrained values, one point after the other."""

        def row(i: int, tensors: Values) -> Values:
            return {k: v[i] for k, v in tensors.items()}

        single = self._marginal if self.enumerated else self._single
        num = len(next(iter(values.values())))
        return torch.stack([single(row(i, values), row(i, context)) for i in range(num)])

    @_unvalidated
    def plate(self, values: Values, context: Values) -> Tensor:
        """Log densities ``(N,)`` of constrained values, under a plate outside the model's."""
        if context:
            raise ValueError("a plate cannot carry per-point model arguments")
        num, dim = len(next(iter(values.values()))), -1 - self.max_plate_nesting
        if self.enumerated and num == 1:  # Pyro's enumeration drops a plate of one
            return self.plate({k: v.expand(2, *v.shape[1:]) for k, v in values.items()}, context)[
                :1
            ]

        def batched(*args: Any, **kwargs: Any) -> None:
            with pyro.plate(_BATCH_PLATE, num, dim=dim):
                self.model(*args, **kwargs)

        expanded = {site.name: self._aligned(site, values[site.name]) for site in self.sites}
        if self.enumerated:
            return self._contract(self._enumerate(batched, 1), expanded, context)
        trace = self._trace(batched, expanded, context)
        trace.compute_log_prob()
        terms = [n["log_prob"] for n in trace.nodes.values() if is_random(n)]
        return torch.stack([t.reshape(num, -1).sum(-1) for t in terms]).sum(0)

    def _aligned(self, site: Site, value: Tensor) -> Tensor:
        """Puts the batch dimension to the left of all of the model's plates."""
        batch_dims = len(site.value_shape) - site.event_dim
        if batch_dims > self.max_plate_nesting:
            raise ValueError(f"site '{site.name}' has a dimension outside every plate")
        padding = (1,) * (self.max_plate_nesting - batch_dims)
        return value.reshape(value.shape[:1] + padding + value.shape[1:])

    def _enumerate(self, model: Callable, extra_plates: int) -> Callable:
        first = -1 - self.max_plate_nesting - extra_plates
        return Enumerate(first_available_dim=first)(config_enumerate(model))

    def _marginal(self, values: Values, context: Values) -> Tensor:
        return self._contract(self._enumerate(self.model, 0), values, context)

    def _contract(self, model: Callable, values: Values, context: Values) -> Tensor:
        return marginal_log_prob(self._trace(model, values, context), keep=_BATCH_PLATE)

    @_unvalidated
    def pointwise(self, values: Values) -> Values:
        """Log-likelihood of every observation: ``{observed site: (N, *batch_shape)}``.

        Terms that a mask hides are 0. ``poutine.scale`` is left out: it weighs observations, and
        is no part of their likelihood.
        """

        def single(values: Values) -> Values:
            trace = self._trace(self.model, values, {})
            return {
                n["name"]: scale_and_mask(n["fn"].log_prob(n["value"]), mask=n["mask"])
                for n in self.observed(trace)
            }

        try:
            return torch.func.vmap(single, chunk_size=1024)(values)
        except RuntimeError:  # the model cannot be vmapped; the loop can evaluate any model
            num = len(next(iter(values.values())))
            rows = [single({k: v[i] for k, v in values.items()}) for i in range(num)]
            return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def observed(self, trace: Trace) -> list[dict]:
        """The data sites of a conditioned trace, without latent, factor and deterministic sites."""
        latent = {site.name for site in self.sites}
        return [
            node
            for node in trace.nodes.values()
            if is_random(node)
            and is_data(node)
            and node["name"] not in latent
            and not site_is_factor(node)
        ]

    @_unvalidated
    def observations(self, values: Values) -> Values:
        """The observed data of the model, by site."""
        found = self.observed(self._trace(self.model, values, {}))
        return {n["name"]: n["infer"].get(DATA_KEY, n["value"]) for n in found}
