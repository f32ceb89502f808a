r"""What a Pyro model says about its own density.

:func:`inspect_model` runs the model and reports its latent sites; :class:`ModelDensity` evaluates

.. math:: \log p(u) = \log p(\text{data}, x) + \log\left|\det \frac{\partial x}{\partial u}\right|,
          \qquad x = \mathrm{constrain}(u),

for a batch of points in one of three ways: ``vmap`` (any model that is free of Python branches on
tensors), an outermost ``plate`` (models annotated for parallel particles), or a Python ``loop``.
Enumerable discrete sites are summed out, whichever way.

All use of Pyro's private names on the model side is in this file, ``_enumeration.py`` and
``_support.py``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial, wraps
from typing import Any, NamedTuple, TypeVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Size, Tensor
from torch.distributions import Transform, biject_to

from ._enumeration import Enumerate, marginal_log_prob
from ._support import (
    Guard,
    bijection,
    has_bounds,
    inside,
    is_transformed,
    moves,
    same_bijection,
    unwrapped,
)

Values = dict[str, Tensor]
T = TypeVar("T")

_CIRCULAR = (dist.VonMises, dist.SineBivariateVonMises, dist.SineSkewed)
_BATCH_PLATE = "_flowsamp_batch"
_DATA = "_flowsamp_data"  #: the observed value of a site, as the user gave it
RADII = 1.0, 1.0, 0.5, 0.1, 0.01  #: of points to try, where a matrix may not be positive definite


class ModelStructureError(RuntimeError):
    """The model's sites, shapes or supports are not the same from call to call."""


class Site(NamedTuple):
    r"""A latent variable: one block of coordinates of :math:`\mathbb R^d`.

    Attributes:
        name: The Pyro sample site.
        shape: Shape of one unconstrained value.
        value_shape: Shape of one constrained value (a simplex has one coordinate fewer).
        event_dim: How many right-most dimensions of a constrained value are one event.
        transform: The bijection from unconstrained to constrained.
        circular: Whether the coordinates are angles, periodic on :math:`[-\pi, \pi)`.
    """

    name: str
    shape: Size
    value_shape: Size
    event_dim: int
    transform: Transform
    circular: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def constrain(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``(N, *shape)`` to values ``(N, *value_shape)`` and log-dets ``(N,)``."""
        value = self.transform(u)
        ladj = self.transform.log_abs_det_jacobian(u, value)
        return value, ladj.reshape(len(u), -1).sum(-1)


class Prototype(NamedTuple):
    """What two runs of a model agree on."""

    sites: list[Site]
    values: Values
    max_plate_nesting: int
    enumerated: bool
    conditioned: bool
    guarded: frozenset[str]


def at_some_radius(attempt: Callable[[float], T]) -> T:
    """What ``attempt`` returns at the first radius where the model's matrices can be factorised.

    Raises:
        ValueError: There is none.
    """
    for radius in RADII:
        try:
            return attempt(radius)
        except torch.linalg.LinAlgError as error:
            failure = error
    raise ValueError(
        f"a matrix of the model cannot be factorised at any of the points tried, up to next to the "
        f"origin of unconstrained space ({failure}): is it positive definite?"
    ) from failure


def is_discrete(fn: Any) -> bool:
    """Whether a Pyro distribution is discrete (enumerable or not)."""
    try:
        return fn.has_enumerate_support or fn.support.is_discrete
    except NotImplementedError:
        return False


def init_to_unconstrained(site: dict | None = None, radius: float = 2.0) -> Any:
    r"""Initialises each site at :math:`\mathrm{Uniform}(-r, r)` in unconstrained space.

    Unlike :func:`pyro.infer.autoguide.init_to_uniform` it accepts distributions that cannot be
    sampled, such as :class:`pyro.distributions.ImproperUniform`.
    """
    if site is None:
        return partial(init_to_unconstrained, radius=radius)
    fn = site["fn"]
    if is_discrete(fn):
        return fn.sample().detach()
    transform = bijection(site)
    try:
        u = transform.inv(fn.sample().detach())
    except NotImplementedError:
        u = torch.empty(transform.inverse_shape(fn.shape()))
    return transform(torch.empty_like(u).uniform_(-radius, radius))


def _components(fn: Any) -> list[Any]:
    """What a distribution is made of, itself left out."""
    parts = [getattr(fn, name, None) for name in ("base_dist", "component0", "component1")]
    found = [part for part in parts if part is not None]
    return found + [inner for part in found for inner in _components(part)]


def _site(node: dict) -> Site:
    transform, value = bijection(node), node["value"]
    fn = unwrapped(node["fn"])
    angles = [part for part in _components(fn) if isinstance(part, _CIRCULAR)]
    if angles and not isinstance(fn, _CIRCULAR):
        raise ValueError(
            f"site '{node['name']}': an angle that is transformed or mixed has no density on the "
            f"line, and a transformed angle no period of 2 pi; sample the "
            f"{type(angles[0]).__name__} and transform its value."
        )
    if isinstance(fn, dist.Delta):
        raise ValueError(
            f"site '{node['name']}' is a Delta, which has no density: give its value by "
            f"pyro.deterministic, or observe it."
        )
    shape = transform.inv(value).shape
    if not bool(torch.isfinite(transform(value.new_zeros(shape))).all()):
        raise ValueError(
            f"site '{node['name']}': the bijection onto {node['fn'].support} is not finite at 0; "
            f"re-parametrise the site over real numbers."
        )
    return Site(
        name=node["name"],
        shape=shape,
        value_shape=value.shape,
        event_dim=node["fn"].event_dim,
        transform=transform,
        circular=isinstance(fn, _CIRCULAR),
    )


class _Imputed(Messenger):
    """Gives all of what ``obs_mask`` imputes a density, and gradients to what it does not.

    ``pyro.sample("y", fn, obs=data, obs_mask=mask)`` draws "y_unobserved" for every datum, uses it
    where ``mask`` is false, and leaves it without a density elsewhere: a posterior that is improper
    in coordinates on which nothing depends. With the density of ``fn`` there, whatever the scale of
    the rest, they integrate to one, and all else is as it was. (What a mask around both hides stays
    hidden.) NaN among the data, masked, would make all gradients NaN: their place takes a point of
    the support.
    """

    def __enter__(self) -> Any:
        self._shown: dict[str, Tensor] = {}
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        stem, _, kind = msg["name"].rpartition("_")
        mask, scale, value = msg["mask"], msg["scale"], msg["value"]
        if not isinstance(mask, Tensor):
            return
        if kind == "observed" and isinstance(value, Tensor):
            self._shown[stem] = mask
            msg["infer"] = {**msg["infer"], _DATA: value}
            msg["value"] = _filled(value, mask, msg["fn"])
        elif kind == "unobserved" and stem in self._shown:
            shown = self._shown[stem]
            msg["mask"] = shown | mask
            if isinstance(scale, Tensor) or scale != 1:
                msg["scale"] = torch.where(shown & ~mask, 1.0, scale)


def _filled(data: Tensor, shown: Tensor, fn: Any) -> Tensor:
    """A point of the support in place of each NaN that is not shown."""
    if not data.is_floating_point():
        return data
    hidden = ~shown.reshape(shown.shape + (1,) * fn.event_dim)
    try:
        transform = biject_to(fn.support)
        inside = transform(data.new_zeros(transform.inverse_shape(fn.event_shape)))
    except NotImplementedError:  # discrete
        inside = data.new_zeros(fn.event_shape)
    return torch.where(hidden & data.isnan(), inside, data)


def signature_of(model: Callable) -> inspect.Signature:
    """A model's own, also where it is a module, or wrapped."""
    plain = inspect.unwrap(model)
    return inspect.signature(plain.forward if isinstance(plain, torch.nn.Module) else plain)


def named_arguments(model: Callable, args: tuple, kwargs: dict) -> dict[str, Any]:
    """All arguments of a model by name, defaults and those of its ``**kwargs`` among them.

    Raises:
        ValueError: One of them cannot be given by name.
    """
    bound = signature_of(model).bind_partial(*args, **kwargs)
    kinds = {name: p.kind for name, p in bound.signature.parameters.items()}
    nameless = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY
    for name in bound.arguments:
        if kinds[name] in nameless:
            raise ValueError(
                f"a model that is conditional on some of its arguments needs names for all: "
                f"'{name}' is positional only"
            )
    bound.apply_defaults()
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if kinds[name] is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif kinds[name] not in nameless:
            named[name] = value
    return named


def _is_random(node: dict) -> bool:
    return node["type"] == "sample" and not site_is_subsample(node)


def _latent_nodes(trace: Trace) -> list[dict]:
    return [n for _, n in trace.iter_stochastic_nodes() if not site_is_subsample(n)]


def _check_supported(trace: Trace) -> None:
    for name, node in trace.nodes.items():
        if site_is_subsample(node):
            fn = node["fn"]
            if fn.subsample_size is not None and fn.subsample_size < fn.size:
                raise ValueError(
                    f"plate '{name}' subsamples {fn.subsample_size} of {fn.size} data: its "
                    f"density is random, and no exact sampler can use it. Remove subsample_size."
                )
    for node in filter(lambda node: is_discrete(node["fn"]), _latent_nodes(trace)):
        if node["infer"].get("enumerate") == "sequential":
            raise ValueError(
                f"site '{node['name']}' asks to be enumerated sequentially: here all its states go "
                f"at once, enumerate='parallel'."
            )
        if not node["fn"].has_enumerate_support:
            raise ValueError(
                f"site '{node['name']}' is discrete ({type(node['fn']).__name__}) and cannot be "
                f"enumerated: marginalise it by hand, or observe it."
            )


def _check_same_structure(first: Trace, second: Trace) -> None:
    def shapes(trace: Trace) -> dict[str, Size]:
        nodes = trace.nodes.values()
        return {n["name"]: n["fn"].shape() for n in nodes if _is_random(n)}

    one, two = shapes(first), shapes(second)
    for name in one.keys() | two.keys():
        if one.get(name) != two.get(name):
            raise ModelStructureError(
                f"the model's structure changes between calls: site '{name}' has shape "
                f"{one.get(name, 'absent')} in one run and {two.get(name, 'absent')} in the "
                f"next. A density on R^d needs the same sites and shapes every time."
            )
    for node in _latent_nodes(first):
        if is_discrete(node["fn"]):
            continue
        here, there = (bijection(trace.nodes[node["name"]]) for trace in (first, second))
        _check_support(node["name"], same_bijection(here, there, here.inv(node["value"])))


def _check_support(name: str, stays: bool) -> None:
    if not stays:
        raise ModelStructureError(
            f"the support of site '{name}' depends on other sites, or on arguments that vary; "
            f"re-parametrise it, for example as bound * pyro.sample('fraction', Uniform(0, 1))."
        )


def _is_data(node: dict) -> bool:
    """Whether a site is observed in earnest: what is deterministic is a Delta, observed."""
    return node["is_observed"] and not isinstance(unwrapped(node["fn"]), dist.Delta)


def _guarded(first: Trace, second: Trace, all_move: bool) -> Iterable[str]:
    """Sites whose values may leave their supports.

    Raises:
        ValueError: Observed values lie outside a support that stays where it is.
    """
    for node in filter(_is_random, first.nodes.values()):
        name, fn = node["name"], node["fn"]
        if not has_bounds(fn):
            continue
        if not node["is_observed"]:
            suspect = is_transformed(fn)
        else:
            suspect = all_move or moves(node, second.nodes[name])
            if not suspect:
                _check_data(node)
        if suspect:
            yield name


def _check_data(node: dict) -> None:
    fn, mask = node["fn"], node["mask"]
    outside = ~inside(fn, node["value"])
    if mask is not None:
        outside = outside & torch.as_tensor(mask, device=outside.device)
    if bool(outside.any()):
        raise ValueError(
            f"site '{node['name']}': {int(outside.sum())} of {outside.numel()} observed values are "
            f"NaN, or lie outside the support of {fn}, {fn.support}, where the density is zero: "
            f"correct them, or leave them out (obs_mask=)."
        )


def _check_declared(trace: Trace) -> None:
    """Enumeration takes any dimension outside the plates for the states of a discrete site."""
    trace.compute_log_prob()
    for node in trace.nodes.values():
        if not _is_random(node):
            continue
        shape = node["log_prob"].shape
        plates = {frame.dim for frame in node["cond_indep_stack"]}
        undeclared = [d for d in range(-len(shape), 0) if shape[d] > 1 and d not in plates]
        if undeclared:
            raise ValueError(
                f"site '{node['name']}' has a density of shape {tuple(shape)}, whose dimension "
                f"{undeclared[-1]} belongs to no plate; a model with discrete sites, which are "
                f"summed out, needs one: with pyro.plate('data', {shape[undeclared[-1]]}): ..., "
                f"or .to_event(1)"
            )


def inspect_model(
    model: Callable, args: tuple, kwargs: dict, context: Sequence[str] = ()
) -> Prototype:
    """Runs the model twice and returns its latent structure, or says why it has none."""
    if isinstance(model, AutoGuide):
        kind = type(model).__name__
        raise ValueError(f"this {kind} is a guide, not a model: a kernel takes it as guide=...")

    def run(radius: float) -> list[Trace]:
        start = InitMessenger(partial(init_to_unconstrained, radius=2 * radius))
        with poutine.block(), _Imputed(), pyro.validation_enabled(False):
            return [poutine.trace(start(model)).get_trace(*args, **kwargs) for _ in range(2)]

    trace, again = at_some_radius(run)
    _check_supported(trace)
    _check_same_structure(trace, again)
    nodes = _latent_nodes(trace)
    continuous = [n for n in nodes if not is_discrete(n["fn"])]
    sites, enumerated = [_site(n) for n in continuous], len(continuous) < len(nodes)
    if not any(site.size for site in sites):
        raise ValueError("the model has no continuous latent site: there is nothing to sample.")
    with pyro.validation_enabled(False):
        if enumerated:
            _check_declared(trace)
        guarded = frozenset(_guarded(trace, again, all_move=enumerated or bool(context)))
    dims = [f.dim for n in trace.nodes.values() for f in n.get("cond_indep_stack", ()) if f.dim]
    return Prototype(
        sites=sites,
        values={n["name"]: n["value"] for n in continuous},
        max_plate_nesting=-min(dims, default=0),
        enumerated=enumerated,
        conditioned=any(_is_data(n) for n in trace.nodes.values() if _is_random(n)),
        guarded=guarded,
    )


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
        prototype: What :func:`inspect_model` found.
        context: Names of arguments that vary along the batch, given on each call.

    Raises:
        ValueError: The model has no such arguments, or others without names.
    """

    def __init__(
        self,
        model: Callable,
        args: tuple,
        kwargs: dict,
        prototype: Prototype,
        context: Sequence[str] = (),
    ) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.sites, self.context = prototype.sites, tuple(context)
        self.max_plate_nesting = prototype.max_plate_nesting
        self.enumerated, self.conditioned = prototype.enumerated, prototype.conditioned
        self.guarded = prototype.guarded
        if context:
            self.args, self.kwargs = (), named_arguments(model, args, kwargs)
            unknown = [name for name in context if name not in self.kwargs]
            if unknown:
                raise ValueError(
                    f"{unknown} are no arguments of the model, which has {list(self.kwargs)}"
                )

    def _trace(self, model: Callable, values: Values, context: Values) -> Trace:
        with poutine.block(), _Imputed(), Guard(self.guarded):
            conditioned = poutine.trace(poutine.condition(model, data=values))
            trace = conditioned.get_trace(*self.args, **{**self.kwargs, **context})
        for site in self.sites:
            if site.name not in trace:
                raise ModelStructureError(f"site '{site.name}' vanished from the model.")
        for node in _latent_nodes(trace):
            if not (self.enumerated and is_discrete(node["fn"])):
                raise ModelStructureError(
                    f"site '{node['name']}' appeared in the model after its first run."
                )
        return trace

    @_unvalidated
    def check_supports(self, values: Values) -> None:
        """Whether supports stay where they are, whatever discrete sites and contexts may be.

        Raises:
            ModelStructureError: One moves.
        """
        model = self._enumerate(self.model, 0) if self.enumerated else self.model
        for context in self._other_contexts():
            try:
                trace = self._trace(model, values, context)
            except ModelStructureError:
                raise
            except Exception:  # of a context that nobody has asked for
                continue
            for site in self.sites:
                other = bijection(trace.nodes[site.name])
                u = site.transform.inv(values[site.name])
                _check_support(site.name, same_bijection(site.transform, other, u))

    def _other_contexts(self) -> list[Values]:
        """The model's own, and one slightly different."""
        own = {name: torch.as_tensor(self.kwargs[name]) for name in self.context}
        other = {k: 1.1 * v + 0.01 for k, v in own.items() if v.is_floating_point()}
        return [{}, other] if other else [{}]

    def _single(self, values: Values, context: Values) -> Tensor:
        trace = self._trace(self.model, values, context)
        for site in self.sites:
            if trace.nodes[site.name]["fn"].shape() != site.value_shape:
                raise ModelStructureError(f"the shape of site '{site.name}' changes between calls")
        return trace.log_prob_sum(lambda name, node: not site_is_subsample(node))

    @_unvalidated
    def vmap(self, values: Values, context: Values) -> Tensor:
        single = self._marginal if self.enumerated else self._single
        return torch.func.vmap(single)(values, context)

    @_unvalidated
    def loop(self, values: Values, context: Values) -> Tensor:
        def row(i: int, tensors: Values) -> Values:
            return {k: v[i] for k, v in tensors.items()}

        single = self._marginal if self.enumerated else self._single
        num = len(next(iter(values.values())))
        return torch.stack([single(row(i, values), row(i, context)) for i in range(num)])

    @_unvalidated
    def plate(self, values: Values, context: Values) -> Tensor:
        """All points at once under a plate outside every plate of the model."""
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
        terms = [n["log_prob"] for n in trace.nodes.values() if _is_random(n)]
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
        """Log-likelihood of every observation: ``{observed site: (N, *batch_shape)}``."""

        def single(values: Values) -> Values:
            trace = self._trace(self.model, values, {})
            trace.compute_log_prob()  # with masks and scales
            return {n["name"]: n["log_prob"] for n in self.observed(trace)}

        try:
            return torch.func.vmap(single, chunk_size=1024)(values)
        except RuntimeError:  # the model cannot be vmapped; the loop can evaluate any model
            num = len(next(iter(values.values())))
            rows = [single({k: v[i] for k, v in values.items()}) for i in range(num)]
            return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def observed(self, trace: Trace) -> list[dict]:
        """The data sites of a conditioned trace: no latents, no factors, no deterministics."""
        latent = {site.name for site in self.sites}
        return [
            node
            for node in trace.nodes.values()
            if _is_random(node)
            and _is_data(node)
            and node["name"] not in latent
            and not site_is_factor(node)
        ]

    @_unvalidated
    def observations(self, values: Values) -> Values:
        """The observed data of the model, by site."""
        found = self.observed(self._trace(self.model, values, {}))
        return {n["name"]: n["infer"].get(_DATA, n["value"]) for n in found}
