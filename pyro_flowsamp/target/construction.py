r"""Densities of targets, made from a Pyro model, a potential function or an energy.

Each function here finds the coordinates and a way of evaluating a batch of points, and checks both;
:class:`~pyro_flowsamp.Target` builds on what they return.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Size, Tensor

from ..seeding import Stream
from ..validation import as_tensor, check_count, default_device, shown
from .arguments import check_autograd, check_fits, check_model, check_values
from .batching import (
    FAR,
    RANDOM_DENSITY,
    Density,
    check_repeatable,
    choose_batching,
    couples,
    fixed_points,
    value_and_grad,
    warn_of_gradient,
    warn_of_loop,
)
from .evaluation import ChunkedDensity
from .inspection import Prototype, RandomDensityError, at_some_radius, inspect_model
from .model import ModelDensity
from .points import check_finite_above
from .sharded import SummedDensity
from .site import SiteLayout, Values, real_site

#: points at which an energy is looked at, and those of them at which it is evaluated alone too
CHECKED, ALONE = 16, 2
#: rounding errors by which a row alone may differ from a row of a batch, in units of eps
ROUNDING = 100.0
SOLVER_ERROR = 0.01  #: nats by which it may, as where a solver chooses its steps for a whole batch
#: points at which workers compare what is outside of the plate whose rows are shared out
COMPARED = 3

__all__ = ["BatchedDensity", "energy_density", "model_density", "potential_density", "sites_alone"]


class BatchedDensity(NamedTuple):
    r"""A batched log density on :math:`\mathbb R^d`, and where it comes from.

    Attributes:
        log_prob: Maps points ``(N, d)`` and contexts ``(N, c)`` or None to log densities ``(N,)``,
            in chunks where a batch would need too much memory.
        layout: The blocks of coordinates, in order.
        batching: How a batch is evaluated: ``"vmap"``, ``"plate"``, ``"loop"`` or ``"native"``.
        model: The Pyro model behind it, or None.

    Example:
        >>> density = energy_density(lambda x: x.square().sum(-1), 2, [], None, None)
        >>> density.batching, density.layout.dim, density.log_prob(torch.ones(1, 2), None)
        ('native', 2, tensor([-2.]))
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

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("rate", dist.Exponential(1.0))
        >>> density = model_density(model, (), {})
        >>> density.batching, density.log_prob(torch.zeros(1, 1), None)  # rate = exp(0), log-det 0
        ('vmap', tensor([-1.]))
    """
    check_autograd()
    check_model(model)
    if not all(isinstance(name, str) for name in context):
        raise TypeError(f"the context is given by names of arguments, got {list(context)}")
    check_values(model, args, kwargs)
    try:
        prototype = inspect_model(model, args, kwargs, context)
    except TypeError as error:
        check_fits(model, args, kwargs, error)
        raise
    program = ModelDensity(model, args, kwargs, prototype, context)
    if context or program.enumerated:
        program.check_supports(prototype.values)
    dtypes = {name: value.dtype for name, value in prototype.values.items()}
    layout = _layout(prototype)
    dtype, device, shard = layout.dtype, layout.device, program.shard
    if shard is not None:
        with Stream(0, "comparison", 0, device).active():
            x = torch.randn(COMPARED, layout.dim, dtype=dtype, device=device)
        values, _ = layout.constrain(x)
        program.check_shard(shard, {name: v.to(dtypes[name]) for name, v in values.items()})

    def density(evaluate: Callable) -> Density:
        def log_prob(x: Tensor, c: Tensor | None) -> Tensor:
            values, ladj = layout.constrain(x)
            values = {name: value.to(dtypes[name]) for name, value in values.items()}
            ladj = ladj if shard is None else shard.share * ladj
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
    if shard is not None:
        log_prob = ChunkedDensity(SummedDensity(shard.group, log_prob))
        log_prob.density.reason = "its rows are shared out to workers"
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

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def part():
        ...     with pyro.plate("rows", 3):
        ...         pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> sites_alone(part, (), {}).layout.dim
        3
    """

    def log_prob(x: Tensor, c: Tensor | None) -> Tensor:
        raise RandomDensityError(RANDOM_DENSITY)

    return BatchedDensity(log_prob, _layout(inspect_model(model, args, kwargs)), "none")


def potential_density(
    potential_fn: Callable[[Values], Tensor], prototype: Mapping[str, Any]
) -> BatchedDensity:
    """The density of a potential function, see :meth:`Target.from_potential`.

    Arguments:
        potential_fn: The potential, of a dictionary of tensors.
        prototype: One value of each of these tensors.

    Example:
        >>> density = potential_density(lambda u: u["x"].square().sum(), {"x": torch.zeros(2)})
        >>> density.batching, density.log_prob(torch.tensor([[1.0, 2.0]]), None)
        ('vmap', tensor([-5.]))
    """
    check_autograd()
    if not callable(potential_fn):
        raise TypeError(f"the potential must be a function, got {shown(potential_fn)}")
    if not isinstance(prototype, Mapping) or not prototype:
        raise ValueError(
            f"the prototype must be a dict of one tensor for each parameter, {{name: value}}, got "
            f"{shown(prototype)}"
        )
    values = {name: _floating(f"prototype['{name}']", value) for name, value in prototype.items()}
    sites = [real_site(name, values[name].shape) for name in sorted(values)]
    if not any(site.size for site in sites):
        raise ValueError("the prototype has no coordinate: there is nothing to sample")
    first = values[sites[0].name]
    layout = SiteLayout(sites, first.dtype, first.device)

    def single(values: Values) -> Tensor:
        energy = potential_fn(values)
        if not isinstance(energy, Tensor) or energy.numel() != 1 or not energy.is_floating_point():
            raise ValueError(
                f"the potential returns {_kind(energy)}, expected one number of a floating type "
                f"as a tensor: write it with torch functions, and add its terms up by .sum()"
            )
        return -energy.reshape(())

    def vmapped(x: Tensor, c: Tensor | None) -> Tensor:
        _check_none(c)
        return torch.func.vmap(single)(layout.split(x))

    def loop(x: Tensor, c: Tensor | None) -> Tensor:
        _check_none(c)
        return torch.stack([single(layout.split(row)) for row in x])

    ways: dict[str, Density] = {"vmap": vmapped, "loop": loop}
    point = torch.cat([values[s.name].reshape(-1).to(first) for s in sites]).detach()
    points = torch.stack([point, point + 0.1])
    chosen = choose_batching(ways, points, None)
    warn_of_loop(chosen)
    log_prob = ChunkedDensity.measured(ways[chosen.name], points, None)
    return BatchedDensity(log_prob, layout, chosen.name)


def _floating(name: str, value: Any) -> Tensor:
    """A tensor of a floating type; arrays and lists are converted."""
    dtype, device = torch.get_default_dtype(), default_device()
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind == "f":
        dtype = torch.as_tensor(value).dtype
    return as_tensor(name, value, dtype, device)


def _check_none(context: Tensor | None) -> None:
    if context is not None:
        raise ValueError("a target of an energy or a potential has no context: give points alone")


def _kind(value: Any) -> str:
    """A tensor's shape and dtype in a message; the type of anything else."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    return f"a {type(value).__name__}, not a tensor"


# ---- energies ------------------------------------------------------------------------------------


def energy_density(
    fn: Callable[[Tensor], Tensor],
    dim: int,
    angles: Sequence[int],
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> BatchedDensity:
    """The density of a batched energy function, see :meth:`Target.from_energy`.

    Arguments:
        fn: The energy, of points ``(N, dim)``.
        dim: The dimension.
        angles: Indices of periodic coordinates.
        dtype, device: Those of points; torch's defaults where None.

    Example:
        >>> density = energy_density(lambda x: -x.cos().sum(-1), 1, [0], torch.float64, None)
        >>> density.layout.angles, density.log_prob(torch.zeros(1, 1).double(), None)
        (tensor([True]), tensor([1.], dtype=torch.float64))
    """
    check_autograd()
    if not callable(fn):
        raise TypeError(f"the energy must be a function, got {shown(fn)}")
    dim = check_count("dim", dim)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(
            f"dtype must be a floating type of torch, such as torch.float32, got {dtype}"
        )
    device = _usable_device(device)
    mask = torch.zeros(dim, dtype=torch.bool, device="cpu")
    mask[_indices(angles, dim)] = True
    points = torch.zeros(2, dim, dtype=dtype, device=device)
    _check_energies(fn(points), 2, dim)
    at_some_radius(lambda radius: _check_energy(fn, radius * fixed_points(points, CHECKED)))
    layout = SiteLayout([real_site("x", Size([dim]))], dtype, device, mask)

    def density(x: Tensor, c: Tensor | None) -> Tensor:
        _check_none(c)
        return -fn(x)

    return BatchedDensity(ChunkedDensity.measured(density, points, None), layout, "native")


def _usable_device(device: Any) -> torch.device:
    """A device by its name, or the default; raises a ValueError where it holds no values."""
    try:
        found = default_device() if device is None else torch.device(device)
        usable = not torch.zeros(1, device=found).is_meta
    except (TypeError, RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
        raise ValueError(
            f"the device {shown(device)} cannot be used ({str(error).splitlines()[0]:.80}): give "
            f"device='cpu', or one that PyTorch has"
        ) from error
    if not usable:
        raise ValueError("the device 'meta' holds no values: give device='cpu' or 'cuda'")
    return found


def _indices(angles: Any, dim: int) -> list[int]:
    """The indices of angles as a list of whole numbers."""
    found = angles.tolist() if isinstance(angles, Tensor | np.ndarray) else angles
    try:
        indices = [check_count("an index", index, -dim) for index in found]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"angles are indices of {dim} coordinates, such as [0, 2], got {shown(angles)}"
        ) from error
    if not all(index < dim for index in indices):
        raise ValueError(f"angles are indices of {dim} coordinates, got {indices}")
    return indices


def _check_energies(energies: Any, num: int, dim: int) -> None:
    """Checks that there is one energy of a floating type for each of so many points."""
    if not isinstance(energies, Tensor):
        raise ValueError(
            f"the energy returns a {type(energies).__name__}, not a tensor: write it with "
            f"torch functions, so that it has a gradient."
        )
    if energies.shape != (num,):
        raise ValueError(
            f"the energy of a batch of shape ({num}, {dim}) has shape {tuple(energies.shape)}; "
            f"it must be ({num},), one energy per row: sum over the last dimension, by .sum(-1)"
        )
    if not energies.is_floating_point():
        raise ValueError(
            f"the energy has dtype {energies.dtype}, which has no gradient: compute it in the "
            f"dtype of the points"
        )


def _check_energy(fn: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Checks an energy at some points ``(N, d)``.

    Raises:
        ValueError: It has no gradient, is minus infinity, or depends on other points of the batch.
        ModelStructureError: It is random.
    """

    def density(x: Tensor, c: Tensor | None) -> Tensor:
        return -fn(x)

    with torch.enable_grad():
        energies = fn(x.requires_grad_())
    _check_energies(energies, *x.shape)
    if not energies.requires_grad:
        raise ValueError(
            "the energy has no gradient: autograd cannot follow it (NumPy, .item() or .detach() on "
            "the way), or it is constant. Write it with torch functions, a constant one as "
            "0 * x.sum(-1)"
        )
    x = x.detach()
    log_p, _ = value_and_grad(density, x, None)
    check_finite_above(log_p)
    check_repeatable(density, x, None, log_p)
    with torch.no_grad():
        rows = [fn(row[None]) for row in x[:ALONE]]
    for row in rows:
        _check_energies(row, 1, x.shape[1])
    close = {"rtol": ROUNDING * torch.finfo(x.dtype).eps, "atol": SOLVER_ERROR}
    same = torch.allclose(-torch.cat(rows), log_p[:ALONE], equal_nan=True, **close)
    far = torch.cat([radius * x for radius in FAR])
    if not same or couples(density, x, log_p, far, **close):
        raise ValueError(
            "the energy of a row depends on the other rows of the batch: chains would change each "
            "other's density. Reduce over the last dimension only, as .sum(-1) and .mean(-1) do"
        )
