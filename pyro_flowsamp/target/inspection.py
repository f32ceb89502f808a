"""Inspection of a Pyro model: its latent sites, their supports, and its observed data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Size
from torch.distributions import transform_to

from .arguments import check_observed
from .missing_data import Imputed, refuse_missing_counts, summed_out, without_influence
from .nodes import is_data, is_discrete, is_random, latent_nodes
from .site import Site, Values, site_of
from .support import (
    bijection,
    edges,
    has_bounds,
    inside,
    is_transformed,
    moves,
    same_bijection,
)

T = TypeVar("T")
RADII = 1.0, 1.0, 0.5, 0.1, 0.01  #: half widths of boxes: nearer 0 more matrices are definite


class ModelStructureError(RuntimeError):
    """The model's sites, shapes or supports are not the same from call to call.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_flowsamp import Target
        >>> names = iter("abcdefgh")
        >>> def model():
        ...     pyro.sample(next(names), dist.Normal(0.0, 1.0))
        >>> Target.from_model(model)
        Traceback (most recent call last):
        pyro_flowsamp.target.inspection.ModelStructureError: ...
    """


class RandomDensityError(ModelStructureError):
    """Two evaluations of the density at the same points differ.

    Example:
        >>> from pyro_flowsamp import Target
        >>> Target.from_energy(lambda x: x.square().sum(-1) + torch.rand(len(x)), 2)
        Traceback (most recent call last):
        pyro_flowsamp.target.inspection.RandomDensityError: the density is random: two ...
    """


class Prototype(NamedTuple):
    """The structure that two runs of a model agree on.

    Attributes:
        sites: The continuous latent sites.
        values: Their constrained values in the first run.
        max_plate_nesting: The number of dimensions that the model's plates use.
        enumerated: Whether there are discrete latent sites, which are summed out.
        has_observations: Whether there are data.
        guarded: Names of sites whose values may lie outside their support.
        summed_out: Values of discrete missing data on which nothing depends.

    Example:
        >>> import pyro.distributions as dist
        >>> def model():
        ...     with pyro.plate("rows", 3):
        ...         pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> found = inspect_model(model, (), {})
        >>> found.values["x"].shape, found.max_plate_nesting, found.has_observations
        (torch.Size([3]), 1, False)
    """

    sites: list[Site]
    values: Values
    max_plate_nesting: int
    enumerated: bool
    has_observations: bool
    guarded: frozenset[str]
    summed_out: Values


def at_some_radius(attempt: Callable[[float], T]) -> T:
    """Calls a function at smaller and smaller radii, until the model's matrices can be factorised.

    Arguments:
        attempt: A function of the radius of points in unconstrained space.

    Returns:
        The result of the function at the first radius where no matrix fails.

    Raises:
        ValueError: There is no such radius.

    Example:
        >>> def attempt(radius):
        ...     return torch.linalg.cholesky(torch.tensor([[1.0, 3 * radius], [3 * radius, 1.0]]))
        >>> at_some_radius(attempt)[1, 0]  # not definite at radii of 1 and 0.5
        tensor(0.3000)
    """
    for radius in RADII:
        try:
            return attempt(radius)
        except torch.linalg.LinAlgError as error:
            failure = error
    raise ValueError(
        f"a matrix of the model cannot be factorised at any of some random points, some of them "
        f"close to the origin of unconstrained space ({failure}): is it positive definite?"
    ) from failure


def init_to_unconstrained(site: dict | None = None, radius: float = 2.0) -> Any:
    r"""Initialises a site at :math:`\mathrm{Uniform}(-r, r)` in unconstrained space.

    The map onto the support is that of :func:`torch.distributions.transform_to`, as in
    :func:`pyro.infer.autoguide.init_to_uniform`. It need not be a bijection, so that a site has an
    initial value even where ``poutine.reparam`` is about to replace it. Unlike Pyro's function this
    one accepts distributions that cannot be sampled, such as
    :class:`pyro.distributions.ImproperUniform`.

    Raises:
        ValueError: Nothing is known to map R^n onto the support.

    Example:
        >>> import pyro.distributions as dist
        >>> values = init_to_unconstrained({"fn": dist.HalfNormal(torch.ones(100)), "name": "x"})
        >>> bool((values >= 0.13).all() & (values <= 7.4).all())  # exp(-2) to exp(2)
        True
    """
    if site is None:
        return partial(init_to_unconstrained, radius=radius)
    fn = site["fn"]
    if is_discrete(fn):
        return fn.sample().detach()
    try:
        transform = transform_to(fn.support)
    except NotImplementedError:
        transform = bijection(site)  # raises, and says what to do
    try:
        u = transform.inv(fn.sample().detach())
    except NotImplementedError:
        u = torch.empty(transform.inverse_shape(fn.shape()))
    value = transform(torch.empty_like(u).uniform_(-radius, radius))
    value._pyro_custom_init = False  # or reparametrisations warn that they do not keep it
    return value


def _check_supported(trace: Trace) -> None:
    for name, node in trace.nodes.items():
        if site_is_subsample(node):
            fn = node["fn"]
            if fn.subsample_size is not None and fn.subsample_size < fn.size:
                raise ValueError(
                    f"plate '{name}' subsamples {fn.subsample_size} of {fn.size} data: its "
                    f"density is random, and no exact sampler can use it. Remove subsample_size."
                )
    for node in filter(lambda node: is_discrete(node["fn"]), latent_nodes(trace)):
        if node["infer"].get("enumerate") == "sequential":
            raise ValueError(
                f"site '{node['name']}' asks for sequential enumeration, which cannot be batched: "
                f"use enumerate='parallel'."
            )
        if not node["fn"].has_enumerate_support:
            raise ValueError(
                f"site '{node['name']}' is discrete ({type(node['fn']).__name__}) and cannot be "
                f"enumerated: marginalise it by hand, or observe it."
            )


def _check_same_structure(first: Trace, second: Trace) -> None:
    def shapes(trace: Trace) -> dict[str, Size]:
        nodes = trace.nodes.values()
        return {n["name"]: n["fn"].shape() for n in nodes if is_random(n)}

    one, two = shapes(first), shapes(second)
    for name in one.keys() | two.keys():
        if one.get(name) != two.get(name):
            raise ModelStructureError(
                f"the model's structure changes between calls: site '{name}' has shape "
                f"{one.get(name, 'absent')} in one run and {two.get(name, 'absent')} in the "
                f"next. A density on R^d needs the same sites and shapes every time."
            )
    for node in latent_nodes(first):
        if is_discrete(node["fn"]):
            continue
        here, there = (bijection(trace.nodes[node["name"]]) for trace in (first, second))
        check_support(node["name"], same_bijection(here, there, here.inv(node["value"])))


def check_support(name: str, stays: bool) -> None:
    """Raises ModelStructureError unless the support of a site is always the same.

    Example:
        >>> check_support("x", stays=False)
        Traceback (most recent call last):
        pyro_flowsamp.target.inspection.ModelStructureError: the support of site 'x' depends ...
    """
    if not stays:
        raise ModelStructureError(
            f"the support of site '{name}' depends on other sites, or on arguments that vary; "
            f"re-parametrise it, for example as bound * pyro.sample('fraction', Uniform(0, 1))."
        )


def _guarded(first: Trace, second: Trace, all_move: bool) -> Iterable[str]:
    """Names of sites whose values may lie outside their supports in some evaluation.

    Raises:
        ValueError: Observed values lie outside a support that is always the same.
    """
    for node in filter(is_random, first.nodes.values()):
        name, fn = node["name"], node["fn"]
        if not has_bounds(fn):
            continue
        if not node["is_observed"]:
            suspect = is_transformed(fn)
        else:
            suspect = all_move or moves(node, second.nodes[name])
            if not suspect:
                _check_data(node)
                _check_edges(node, second.nodes[name])
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


def _check_edges(node: dict, again: dict) -> None:
    on_edge = edges(node["fn"], node["value"]) & edges(again["fn"], again["value"])
    if node["mask"] is not None:
        on_edge = on_edge & torch.as_tensor(node["mask"], device=on_edge.device)
    if bool(on_edge.any()):
        raise ValueError(
            f"site '{node['name']}': {int(on_edge.sum())} of {on_edge.numel()} observed values lie "
            f"on an edge of the support of {node['fn']}, {node['fn'].support}, where the density "
            f"is zero or infinite: move them inside, by half the precision of the data, or leave "
            f"them out (obs_mask=)."
        )


def _check_declared(trace: Trace) -> None:
    """Checks that each dimension of a density belongs to a plate.

    Enumeration would take any other dimension for the states of a discrete site.
    """
    trace.compute_log_prob()
    for node in trace.nodes.values():
        if not is_random(node):
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
    """Runs the model twice and returns its latent structure.

    Arguments:
        model: A Pyro model.
        args, kwargs: Its arguments.
        context: Names of arguments that will vary, so that data and supports may move.

    Raises:
        ValueError: The model has no density on R^d; the message says why.
        ModelStructureError: The two runs differ.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Exponential(1.0))
        ...     pyro.sample("y", dist.Poisson(x), obs=y)
        >>> found = inspect_model(model, (torch.tensor(2.0),), {})
        >>> [site.name for site in found.sites], found.has_observations, found.enumerated
        (['x'], True, False)
    """
    if isinstance(model, AutoGuide):
        kind = type(model).__name__
        raise ValueError(f"this {kind} is a guide, not a model: a kernel takes it as guide=...")

    def run(radius: float) -> list[Trace]:
        start = InitMessenger(partial(init_to_unconstrained, radius=2 * radius))
        with poutine.block(), Imputed(), pyro.validation_enabled(False):
            return [poutine.trace(start(model)).get_trace(*args, **kwargs) for _ in range(2)]

    traces = at_some_radius(run)
    check_observed(traces[0].nodes.values())
    with poutine.block(), pyro.validation_enabled(False):
        fixed = without_influence(model, args, kwargs, traces)
    if fixed:
        model = summed_out(model, fixed)
        traces = at_some_radius(run)
    with poutine.block(), pyro.validation_enabled(False):
        refuse_missing_counts(model, args, kwargs, traces)
    trace, again = traces
    _check_supported(trace)
    _check_same_structure(trace, again)
    nodes = latent_nodes(trace)
    continuous = [n for n in nodes if not is_discrete(n["fn"])]
    sites, enumerated = [site_of(n) for n in continuous], len(continuous) < len(nodes)
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
        has_observations=any(is_data(n) for n in trace.nodes.values() if is_random(n)),
        guarded=guarded,
        summed_out=fixed,
    )
