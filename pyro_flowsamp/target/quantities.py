r"""Quantities of a model at draws of its latent sites, and draws from its prior.

The model is run for a whole batch of draws by ``torch.vmap``, in chunks that fit into memory.
Random numbers come from torch's global generator, which :func:`pyro.set_rng_seed` seeds. Where vmap
cannot evaluate a model, or cannot sample one of its distributions, the model is run once for each
draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_factor
from torch import Size, Tensor

from .density import Target
from .inspection import is_data, is_random, latent_nodes
from .missing_data import DATA_KEY, Imputed
from .model import ModelDensity
from .points import is_drawn_from_its_prior
from .simulation import Simulated
from .site import Values
from .support import Guard

__all__ = [
    "ModelVariables",
    "Variable",
    "deterministic_values",
    "log_prior",
    "model_variables",
    "prior_draws",
    "replicated_data",
]


CHUNK_NUMBERS = 2**24  #: numbers of all sites in one chunk of draws: 64 MB in float32
MAX_CHUNK = 8192  #: draws in one chunk


# ---- structure -----------------------------------------------------------------------------------
class Variable(NamedTuple):
    """The shape of one value of a site.

    Attributes:
        shape: The shape, without that of a batch.
        batch_dims: How many of its dimensions, from the left, are not part of one event.
        plates: The name of the plate of each dimension, or None.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro_flowsamp import Target
        >>> def model():
        ...     with pyro.plate("schools", 3):
        ...         pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        >>> model_variables(Target.from_model(model)).latent["x"]
        Variable(shape=torch.Size([3, 2]), batch_dims=1, plates=('schools', None))
    """

    shape: Size
    batch_dims: int
    plates: tuple[str | None, ...]


class ModelVariables(NamedTuple):
    """The sites of a model that have values.

    Attributes:
        latent: The continuous latent sites.
        discrete: The discrete latent sites, which are summed out.
        deterministic: The sites of ``pyro.deterministic``.
        observed: The observed sites.
        data: The values of the observed sites.
        improper: Names of latent sites that are not drawn from their prior, since it is masked or
            scaled.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro_flowsamp import Target
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        ...     pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=y)
        >>> found = model_variables(Target.from_model(model, torch.tensor(2.0)))
        >>> list(found.all), found.numbers, found.data
        (['x', 'y'], 4, {'y': tensor(2.)})
    """

    latent: dict[str, Variable]
    discrete: dict[str, Variable]
    deterministic: dict[str, Variable]
    observed: dict[str, Variable]
    data: Values
    improper: list[str]

    @property
    def numbers(self) -> int:
        """The number of elements of all values."""
        return sum(variable.shape.numel() for variable in self.all.values())

    @property
    def all(self) -> dict[str, Variable]:
        """All sites by name."""
        return {**self.latent, **self.discrete, **self.deterministic, **self.observed}


def model_variables(target: Target, point: Values | None = None) -> ModelVariables:
    """The sites of a target's model; for a target without a model, those of its coordinates.

    Arguments:
        target: The target.
        point: Constrained values of all sites, at which the model is run; by default those at 0.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     double = pyro.deterministic("double", 2 * mean)
        ...     with pyro.plate("people", 3):
        ...         pyro.sample("y", dist.Normal(double, 1.0), obs=y)
        >>> found = model_variables(Target.from_model(model, torch.zeros(3)))
        >>> list(found.latent), list(found.deterministic), found.observed["y"].plates
        (['mean'], ['double'], ('people',))
    """
    density = target.model
    if density is None:
        latent = {s.name: _of_shape(s.value_shape, s.event_dim) for s in target.sites}
        return ModelVariables(latent, {}, {}, {}, {}, [])
    if point is None:
        zeros = torch.zeros(target.dim, dtype=target.dtype, device=target.device)
        point = target.unpack(zeros)
    with torch.no_grad(), pyro.validation_enabled(False):
        trace = _trace(density, point)
        nodes = trace.nodes
        observed = {n["name"]: n for n in _observed(density, nodes)}
        drawn = {site.name: nodes[site.name] for site in target.sites}
        improper = [name for name, n in drawn.items() if not is_drawn_from_its_prior(n)]
    return ModelVariables(
        {name: _variable(node) for name, node in drawn.items()},
        {n["name"]: _variable(n) for n in latent_nodes(trace) if n["name"] not in drawn},
        {n["name"]: _variable(n) for n in nodes.values() if _is_deterministic(n)},
        {name: _variable(node) for name, node in observed.items()},
        {k: torch.as_tensor(n["infer"].get(DATA_KEY, n["value"])) for k, n in observed.items()},
        improper,
    )


def _of_shape(shape: Size, event_dim: int) -> Variable:
    return Variable(shape, len(shape) - event_dim, (None,) * len(shape))


def _variable(node: dict) -> Variable:
    """The shape of a node's value, with the plates whose sizes its dimensions have."""
    shape, event_dim = torch.as_tensor(node["value"]).shape, node["fn"].event_dim
    undeclared = _is_deterministic(node) and event_dim >= len(shape)
    if undeclared:  # Pyro takes all dimensions for one event unless it is told otherwise
        event_dim = 0
    batch = max(0, len(shape) - event_dim)
    plates: list[str | None] = [None] * len(shape)
    for frame in node["cond_indep_stack"]:
        place = batch + frame.dim if frame.vectorized else -1
        if place < 0 or shape[place] != frame.size:
            continue
        if not (undeclared and list(shape).count(frame.size) > 1):
            plates[place] = frame.name
    return Variable(shape, batch, tuple(plates))


def _is_deterministic(node: Any) -> bool:
    return node["type"] == "sample" and bool(node["infer"].get("_deterministic"))


def _observed(density: ModelDensity, nodes: Any) -> list[dict]:
    latent = {site.name for site in density.sites}
    return [
        node
        for name, node in nodes.items()
        if is_random(node) and is_data(node) and not site_is_factor(node) and name not in latent
    ]


# ---- runs of the model ---------------------------------------------------------------------------
def _trace(density: ModelDensity, values: Values, *inner: Any) -> Trace:
    """The trace of a run at given values of some sites, with messengers next to the model."""
    model = poutine.condition(density.model, data=values)
    with poutine.block(), Imputed(), Guard(density.guarded):
        for messenger in inner:
            model = messenger(model)
        return poutine.trace(model).get_trace(*density.args, **density.kwargs)


def _at_rows(
    run: Callable[[Values], Any], rows: Values, numbers: int, randomness: str = "error"
) -> Any:
    """A function of each row, for all rows: by vmap in chunks, or else one row after the other."""
    size = max(1, min(MAX_CHUNK, CHUNK_NUMBERS // max(1, numbers)))
    with torch.no_grad(), pyro.validation_enabled(False):
        try:
            return torch.func.vmap(run, chunk_size=size, randomness=randomness)(rows)
        except RuntimeError:  # vmap cannot run this model; the loop can run any
            num = len(next(iter(rows.values())))
            found = [run({name: v[i] for name, v in rows.items()}) for i in range(num)]
            return {name: torch.stack([each[name] for each in found]) for name in found[0]}


def _given(density: ModelDensity, samples: Values) -> Values:
    return {site.name: samples[site.name] for site in density.sites}


def _density(target: Target) -> ModelDensity:
    if target.model is None:
        raise ValueError("the target was made without a model: it has no sites to evaluate")
    return target.model


def deterministic_values(target: Target, samples: Values, numbers: int = 1) -> Values:
    """The values of ``pyro.deterministic`` sites at draws of all latent sites.

    Arguments:
        target: The target of a model.
        samples: Constrained draws ``{site: (N, ...)}``.
        numbers: The number of elements of all sites for one draw, which sets the size of chunks.

    Returns:
        Values ``{site: (N, ...)}``.

    Raises:
        ValueError: The target has no model.

    Example:
        >>> import pyro.distributions as dist
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.deterministic("square", x**2)
        >>> deterministic_values(Target.from_model(model), {"x": torch.tensor([1.0, 3.0])})
        {'square': tensor([1., 9.])}
    """
    density = _density(target)

    def run(values: Values) -> Values:
        nodes = _trace(density, values).nodes.values()
        return {n["name"]: n["value"] for n in nodes if _is_deterministic(n)}

    return _at_rows(run, _given(density, samples), numbers)


def log_prior(target: Target, samples: Values, numbers: int = 1) -> Values:
    r"""The log prior density of each latent site at draws, given the sites that it depends on.

    This is the density of the constrained value, without the Jacobian of the bijection from
    :math:`\mathbb R^n` and without ``poutine.scale``. Masked terms are 0.

    Arguments:
        target: The target of a model.
        samples: Constrained draws ``{site: (N, ...)}``.
        numbers: The number of elements of all sites for one draw, which sets the size of chunks.

    Returns:
        Log densities ``{site: (N, *batch_shape)}``.

    Raises:
        ValueError: The target has no model.

    Example:
        >>> import pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("x", dist.Exponential(2.0))
        >>> log_prior(Target.from_model(model), {"x": torch.tensor([0.5])})["x"]  # log 2 - 1
        tensor([-0.3069])
    """
    density = _density(target)

    def run(values: Values) -> Values:
        nodes = _trace(density, values).nodes
        return {name: _log_prob(nodes[name]) for name in values}

    return _at_rows(run, _given(density, samples), numbers)


def _log_prob(node: dict) -> Tensor:
    return scale_and_mask(node["fn"].log_prob(node["value"]), mask=node["mask"])


# ---- simulation ----------------------------------------------------------------------------------
def replicated_data(target: Target, samples: Values, numbers: int = 1) -> Values:
    r"""Draws of new data, one set at each draw of all latent sites.

    Each is a draw of :math:`p(y' \mid x)`, so that at draws of the posterior they are from the
    posterior predictive distribution. Entries that a mask hides are drawn too. Discrete sites that
    were summed out are drawn given the others.

    Arguments:
        target: The target of a model.
        samples: Constrained draws ``{site: (N, ...)}``.
        numbers: The number of elements of all sites for one draw, which sets the size of chunks.

    Returns:
        Data ``{observed site: (N, ...)}``, of the shapes of the observed ones.

    Raises:
        ValueError: The target has no model.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0).expand([2]).to_event(1), obs=y)
        >>> target = Target.from_model(model, torch.zeros(2))
        >>> y = replicated_data(target, {"x": torch.full((5000,), 3.0)})["y"]
        >>> y.shape, bool((y.mean(0) - 3).abs().max() < 0.1)
        (torch.Size([5000, 2]), True)
    """
    density = _density(target)

    def run(values: Values) -> Values:
        nodes = _trace(density, values, Simulated(values)).nodes
        return {n["name"]: n["value"] for n in _observed(density, nodes)}

    return _at_rows(run, _given(density, samples), numbers, "different")


def prior_draws(target: Target, num: int, numbers: int = 1) -> dict[str, Values]:
    r"""Draws of all sites of a model from its prior, given nothing; its factors are ignored.

    Arguments:
        target: The target of a model.
        num: The number of draws.
        numbers: The number of elements of all sites for one draw, which sets the size of chunks.

    Returns:
        Under "prior" the latent and deterministic sites, ``{site: (num, ...)}``, and under
        "prior_predictive" the data that were drawn with them.

    Raises:
        ValueError: The target has no model.
        NotImplementedError: A site cannot be sampled, as where its prior is improper.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 3.0))
        ...     pyro.sample("y", dist.Normal(x, 4.0), obs=y)
        >>> found = prior_draws(Target.from_model(model, torch.tensor(0.0)), 10_000)
        >>> round(float(found["prior_predictive"]["y"].std()))
        5
    """
    density = _density(target)

    data: set[str] = set()

    def run(row: Values) -> Values:
        nodes = _trace(density, {}, Simulated()).nodes
        observed = _observed(density, nodes)
        data.update(n["name"] for n in observed)
        sites = [n for n in nodes.values() if is_random(n) and not n["is_observed"]]
        made = [n for n in nodes.values() if _is_deterministic(n)]
        return {n["name"]: n["value"] for n in [*sites, *made, *observed]}

    found = _at_rows(run, {"row": torch.zeros(num, device=target.device)}, numbers, "different")
    return {
        "prior": {name: v for name, v in found.items() if name not in data},
        "prior_predictive": {name: v for name, v in found.items() if name in data},
    }
