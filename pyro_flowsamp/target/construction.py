r"""Densities of targets, made from a Pyro model, a potential function or an energy.

Each function here finds the coordinates and a way of evaluating a batch of points, and checks both;
:class:`~pyro_flowsamp.Target` builds on what they return.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Size, Tensor

from .batching import (
    RANDOM_DENSITY,
    Density,
    choose_batching,
    warn_of_gradient,
    warn_of_loop,
)
from .evaluation import ChunkedDensity
from .inspection import Prototype, RandomDensityError, at_some_radius, inspect_model
from .model import ModelDensity
from .site import SiteLayout, Values, real_site

__all__ = ["BatchedDensity", "energy_density", "model_density", "potential_density", "sites_alone"]


class BatchedDensity(NamedTuple):
    r"""A batched log density on :math:`\mathbb R^d`, and where it comes from.

    Attributes:
        log_prob: Maps points ``(N, d)`` and contexts ``(N, c)`` or None to log densities ``(N,)``,
            in chunks where a batch would need too much memory.
        layout: The blocks of coordinates, in order.
        batching: How a batch is evaluated: ``"vmap"``, ``"plate"``, ``"loop"`` or ``"native"``.
        model: The Pyro model behind it, or None.
    """

    log_prob: Density
    layout: SiteLayout
    batching: str
    model: ModelDensity | None = None


def model_density(
    model: Callable, args: tuple, kwargs: dict, context: Sequence[str] = ()
) -> BatchedDensity:
    """The density of a Pyro model given its arguments, see :meth:`Target.from_model`.

    Arguments:
        model: A Pyro model.
        args, kwargs: Its arguments.
        context: The names of arguments that vary along a batch.
    """
    prototype = inspect_model(model, args, kwargs, context)
    program = ModelDensity(model, args, kwargs, prototype, context)
    if context or program.enumerated:
        program.check_supports(prototype.values)
    dtypes = {name: value.dtype for name, value in prototype.values.items()}
    layout = _layout(prototype)
    dtype, device = layout.dtype, layout.device

    def density(evaluate: Callable) -> Density:
        def log_prob(x: Tensor, c: Tensor | None) -> Tensor:
            values, ladj = layout.constrain(x)
            values = {name: value.to(dtypes[name]) for name, value in values.items()}
            return evaluate(values, program.context.arguments(c)) + ladj

        return log_prob

    ways = {"vmap": program.vmap, "plate": program.plate, "loop": program.loop}
    evaluated = {name: density(way) for name, way in ways.items()}
    points = torch.empty(2, layout.dim, dtype=dtype, device=device)
    row = program.context.row(dtype, device)
    c = None if row is None else row.expand(2, -1)
    chosen = at_some_radius(
        lambda radius: choose_batching(evaluated, points.uniform_(-radius, radius), c)
    )
    warn_of_loop(chosen)
    warn_of_gradient(layout.sites, chosen.value, chosen.grad)
    log_prob = ChunkedDensity.measured(evaluated[chosen.name], points, c)
    return BatchedDensity(log_prob, layout, chosen.name, program)


def _layout(prototype: Prototype) -> SiteLayout:
    values = prototype.values.values()
    dtype = reduce(torch.promote_types, [value.dtype for value in values])
    return SiteLayout(prototype.sites, dtype, next(iter(values)).device)


def sites_alone(model: Callable, args: tuple, kwargs: dict) -> BatchedDensity:
    """The sites of a model whose density is random, as those of a part of a larger model.

    A guide of the part can be built on them, and be trained by Pyro's SVI together with guides of
    the other parts. The density raises RandomDensityError.

    Arguments:
        model: A Pyro model.
        args, kwargs: Its arguments.
    """

    def log_prob(x: Tensor, c: Tensor | None) -> Tensor:
        raise RandomDensityError(RANDOM_DENSITY)

    return BatchedDensity(log_prob, _layout(inspect_model(model, args, kwargs)), "none")


def potential_density(
    potential_fn: Callable[[Values], Tensor], prototype: Mapping[str, Tensor]
) -> BatchedDensity:
    """The density of a potential function, see :meth:`Target.from_potential`."""
    if not prototype:
        raise ValueError("prototype is empty: give one tensor for each parameter")
    sites = [real_site(name, prototype[name].shape) for name in sorted(prototype)]
    first = prototype[sites[0].name]
    layout = SiteLayout(sites, first.dtype, first.device)

    def single(values: Values) -> Tensor:
        return -potential_fn(values).reshape(())

    def vmapped(x: Tensor, c: Tensor | None) -> Tensor:
        return torch.func.vmap(single)(layout.split(x))

    def loop(x: Tensor, c: Tensor | None) -> Tensor:
        return torch.stack([single(layout.split(row)) for row in x])

    ways: dict[str, Density] = {"vmap": vmapped, "loop": loop}
    point = torch.cat([prototype[s.name].reshape(-1) for s in sites]).detach()
    points = torch.stack([point, point + 0.1])
    chosen = choose_batching(ways, points, None)
    warn_of_loop(chosen)
    log_prob = ChunkedDensity.measured(ways[chosen.name], points, None)
    return BatchedDensity(log_prob, layout, chosen.name)


def energy_density(
    fn: Callable[[Tensor], Tensor],
    dim: int,
    angles: Sequence[int],
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> BatchedDensity:
    """The density of a batched energy function, see :meth:`Target.from_energy`."""
    dtype = dtype or torch.get_default_dtype()
    device = torch.device(device) if device is not None else torch.get_default_device()
    if not all(-dim <= index < dim for index in angles):
        raise ValueError(f"angles are indices of {dim} coordinates, got {list(angles)}")
    mask = torch.zeros(dim, dtype=torch.bool, device="cpu")
    mask[list(angles)] = True
    points = torch.zeros(2, dim, dtype=dtype, device=device)
    energies = fn(points)
    if not isinstance(energies, Tensor):
        raise ValueError(
            f"the energy returns a {type(energies).__name__}, not a tensor: write it with "
            f"torch functions, so that it has a gradient."
        )
    if energies.shape != (2,):
        raise ValueError(
            f"the energy of a batch of shape (2, {dim}) has shape {tuple(energies.shape)}; "
            f"it must be (2,), one energy per row."
        )
    layout = SiteLayout([real_site("x", Size([dim]))], dtype, device, mask)
    log_prob = ChunkedDensity.measured(lambda x, c: -fn(x), points, None)
    return BatchedDensity(log_prob, layout, "native")
