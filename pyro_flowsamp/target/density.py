r"""Targets: batched, differentiable, unnormalised log densities on :math:`\mathbb R^d`.

A Pyro model, a potential function over a dictionary, or an energy over vectors becomes the same
object; everything downstream knows only this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import reduce
from math import pi
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Size, Tensor

from .batching import Density, _choose, _warn_of_gradient, _warn_of_loop
from .context import _unflatten, every
from .inspection import ModelStructureError, at_some_radius, inspect_model
from .model import ModelDensity
from .site import Site, Values, _constrain, _real_site, _split

__all__ = ["ModelStructureError", "Site", "Target"]


@dataclass
class EvaluationCounter:
    """What a target counts, together with those made of it."""

    nonfinite: Tensor
    evaluations: int = 0


class Target:
    r"""A batched unnormalised log density :math:`\log \tilde p(x)` on :math:`\mathbb R^d`.

    Make one with :meth:`from_model`, :meth:`from_potential` or :meth:`from_energy`.

    Arguments:
        density: Maps points ``(N, d)`` and contexts ``(N, c)`` or None to log densities ``(N,)``.
        sites: The blocks of coordinates, in order.
        batching: How it evaluates a batch: ``"vmap"``, ``"plate"``, ``"loop"`` or ``"native"``.
        dtype, device: Of points and densities.
        angles: Mask ``(d,)`` of periodic coordinates, or None.

    Attributes:
        dim: The dimension :math:`d`.
        contexts: Of :meth:`at`, ``(K, c)``; else None.
    """

    def __init__(
        self,
        density: Density,
        sites: Sequence[Site],
        *,
        batching: str,
        dtype: torch.dtype,
        device: torch.device,
        angles: Tensor | None = None,
    ) -> None:
        self._density = density
        self.sites = list(sites)
        self.batching = batching
        self.dtype, self.device = dtype, device
        self.dim = sum(site.size for site in sites)
        circular = [site.circular for site in sites for _ in range(site.size)]
        mask = torch.tensor(circular, device=device) if angles is None else angles
        self.angles = mask.to(device)
        self.circular = bool(self.angles.any())
        self._counter = EvaluationCounter(torch.zeros((), dtype=torch.long, device=device))
        self.context_names: tuple[str, ...] = ()
        self.contexts: Tensor | None = None
        self._model_density: ModelDensity | None = None

    # ---- construction -------------------------------------------------------------------------

    @classmethod
    def from_model(cls, model: Callable, *args: Any, **kwargs: Any) -> Target:
        r"""The posterior of a Pyro model, given its arguments.

        Constrained sites are mapped to :math:`\mathbb R^n` by ``biject_to(support)``, with the
        log-det; enumerable discrete sites are summed out. Evaluation is batched by ``vmap`` where
        the model allows, else by an outermost plate, else by a Python loop (with a warning): the
        first that agrees with the loop, in value and gradient, on two points.

        Raises:
            ValueError: No continuous site, a discrete site that cannot be enumerated, a
                subsampling plate, or a support without a bijection.
            ModelStructureError: Sites, shapes, supports or the density change between calls.
        """
        return cls._from_model(model, args, kwargs, ())

    @classmethod
    def of(cls, source: Callable, *args: Any, **kwargs: Any) -> Target:
        """A target as it is; else :meth:`from_model`.

        Raises:
            ValueError: A target is given arguments.
        """
        if not isinstance(source, Target):
            return cls.from_model(source, *args, **kwargs)
        if args or kwargs:
            raise ValueError("a Target knows its data: it takes no model arguments")
        return source

    def conditional_on(self, *names: str) -> Target:
        """The same model as a conditional target: the named arguments become the context.

        The returned target's ``log_prob(x, context)`` takes one row of flattened argument values
        per point, in the order of ``names``.
        """
        if self._model_density is None:
            raise ValueError("only a target made from a Pyro model has named arguments")
        program = self._model_density
        return self._from_model(program.model, program.args, program.kwargs, names)

    def at(self, contexts: Tensor) -> Target:
        """The same conditional target, at K contexts in turn: row i of a batch at i mod K.

        So thousands of chains at all contexts are one batch, in any kernel. Evaluations are counted
        with this target's.

        Arguments:
            contexts: Rows as :meth:`log_prob` takes them, ``(K, c)``.

        Raises:
            ValueError: The target is not conditional, or these are no such rows.
        """
        own = None if self._model_density is None else self._own_row()
        if own is None or contexts.dim() != 2 or contexts.shape[1] != len(own):
            raise ValueError(
                f"contexts of shape {tuple(contexts.shape)}: expected (K, c), one row of the "
                f"arguments {list(self.context_names)} for each of K"
                + ("" if own is None else f", c = {len(own)}")
            )
        target = copy(self)
        target.contexts = contexts.to(self.device, self.dtype)
        return target

    @classmethod
    def _from_model(
        cls, model: Callable, args: tuple, kwargs: dict, context: Sequence[str]
    ) -> Target:
        prototype = inspect_model(model, args, kwargs, context)
        program = ModelDensity(model, args, kwargs, prototype, context)
        if context or program.enumerated:
            program.check_supports(prototype.values)
        own = {name: torch.as_tensor(program.kwargs[name]) for name in context}
        sites = prototype.sites
        dtypes = {name: value.dtype for name, value in prototype.values.items()}

        def density(evaluate: Callable) -> Density:
            def log_prob(x: Tensor, c: Tensor | None) -> Tensor:
                values, ladj = _constrain(sites, x)
                values = {name: value.to(dtypes[name]) for name, value in values.items()}
                return evaluate(values, _unflatten(c, own)) + ladj

            return log_prob

        dtype = reduce(torch.promote_types, dtypes.values())
        device = next(iter(prototype.values.values())).device
        ways = {"vmap": program.vmap, "plate": program.plate, "loop": program.loop}
        points = torch.empty(2, sum(s.size for s in sites), dtype=dtype, device=device)
        row = [value.reshape(1, -1).to(points) for value in own.values()]
        c = torch.cat(row, -1).expand(2, -1) if context else None
        evaluated = {name: density(way) for name, way in ways.items()}
        chosen = at_some_radius(
            lambda radius: _choose(evaluated, points.uniform_(-radius, radius), c)
        )
        _warn_of_loop(chosen)
        _warn_of_gradient(sites, chosen.value, chosen.grad)
        batching = chosen.name
        target = cls(evaluated[batching], sites, batching=batching, dtype=dtype, device=device)
        target._model_density = program
        target.context_names = tuple(context)
        return target

    @classmethod
    def from_potential(
        cls, potential_fn: Callable[[Values], Tensor], prototype: Mapping[str, Tensor]
    ) -> Target:
        r""":math:`\log \tilde p = -U`, for a potential :math:`U` of a dictionary of real tensors.

        Arguments:
            potential_fn: Maps ``{name: tensor}`` (one point) to a 0-d tensor, as in Pyro's HMC.
            prototype: One unconstrained value for each name; fixes shapes, dtype and device.
        """
        if not prototype:
            raise ValueError("prototype is empty: give one tensor for each parameter")
        sites = [_real_site(name, prototype[name].shape) for name in sorted(prototype)]
        first = prototype[sites[0].name]

        def single(values: Values) -> Tensor:
            return -potential_fn(values).reshape(())

        def vmapped(x: Tensor, c: Tensor | None) -> Tensor:
            return torch.func.vmap(single)(_split(sites, x))

        def loop(x: Tensor, c: Tensor | None) -> Tensor:
            return torch.stack([single(_split(sites, row)) for row in x])

        ways: dict[str, Density] = {"vmap": vmapped, "loop": loop}
        point = torch.cat([prototype[s.name].reshape(-1) for s in sites]).detach()
        points = torch.stack([point, point + 0.1])
        chosen = _choose(ways, points, None)
        _warn_of_loop(chosen, stacklevel=3)
        density, name = ways[chosen.name], chosen.name
        return cls(density, sites, batching=name, dtype=first.dtype, device=first.device)

    @classmethod
    def from_energy(
        cls,
        fn: Callable[[Tensor], Tensor],
        dim: int,
        *,
        angles: Sequence[int] = (),
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Target:
        r""":math:`\log \tilde p(x) = -E(x)` for a batched energy ``(N, dim) → (N,)``.

        Arguments:
            fn: The energy, in units of :math:`k_B T`.
            dim: The dimension.
            angles: Indices of coordinates in which the energy has period :math:`2\pi`.
            dtype, device: Of the points; torch's defaults where None.

        Raises:
            ValueError: ``fn`` does not return a tensor of one energy per row, or there are no such
                coordinates as ``angles``.
        """
        dtype = dtype or torch.get_default_dtype()
        device = torch.device(device) if device is not None else torch.get_default_device()
        if not all(-dim <= index < dim for index in angles):
            raise ValueError(f"angles are indices of {dim} coordinates, got {list(angles)}")
        mask = torch.zeros(dim, dtype=torch.bool, device="cpu")
        mask[list(angles)] = True
        energies = fn(torch.zeros(2, dim, dtype=dtype, device=device))
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
        return cls(
            lambda x, c: -fn(x),
            [_real_site("x", Size([dim]))],
            batching="native",
            dtype=dtype,
            device=device,
            angles=mask,
        )

    @property
    def evaluations(self) -> int:
        """How many densities have been asked for so far."""
        return self._counter.evaluations

    @property
    def nonfinite(self) -> Tensor:
        """How many of them were NaN or infinite, as a 0-d tensor on ``device``."""
        return self._counter.nonfinite

    @property
    def enumerated(self) -> bool:
        """Whether discrete sites of the model are summed out."""
        return self._model_density is not None and self._model_density.enumerated

    @property
    def has_observations(self) -> bool:
        """Whether there is anything but a model's prior: data, a factor, or no model at all."""
        return self._model_density is None or self._model_density.has_observations

    # ---- evaluation ---------------------------------------------------------------------------

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r""":math:`\log \tilde p(x)` up to a constant, ``(N, d) → (N,)``; never NaN.

        A conditional target without ``context`` uses the model arguments it was made with.

        NaN, infinities and numerical domain errors become :math:`-\infty` with zero gradient, and
        are counted in :attr:`nonfinite`.

        Raises:
            ValueError: ``x`` is not of shape ``(N, dim)``.
        """
        if x.dim() != 2 or x.shape[-1] != self.dim:
            raise ValueError(f"expected points of shape (N, {self.dim}), got {tuple(x.shape)}")
        if not len(x):
            return x.sum(-1)
        self._counter.evaluations += len(x)
        context = self._own_context(len(x)) if context is None else context
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(_finite_or_zero)
        log_p = self._searched(x, context)
        bad = ~torch.isfinite(log_p)
        self._counter.nonfinite = self._counter.nonfinite + bad.sum().detach()
        return torch.where(bad, -torch.inf, log_p)

    def _searched(self, x: Tensor, context: Tensor | None) -> Tensor:
        """The density; one bad matrix fails a whole batch, and is sought by halves."""
        try:
            return self._density(x, context)
        except torch.linalg.LinAlgError:
            if len(x) == 1:
                return torch.full_like(x[:, 0], -torch.inf)
        halves = [slice(None, len(x) // 2), slice(len(x) // 2, None)]
        return torch.cat(
            [self._searched(x[h], None if context is None else context[h]) for h in halves]
        )

    def log_prob_and_grad(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r""":math:`\log \tilde p(x)` and its gradient, ``(N,)`` and ``(N, d)``, detached."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            log_p = self.log_prob(x, context)
            (grad,) = torch.autograd.grad(log_p.sum(), x)
        return log_p.detach(), grad

    def pointwise_log_likelihood(self, samples: Mapping[str, Tensor]) -> Values:
        """Log-likelihood of each observation under constrained draws ``{site: (N, ...)}``.

        Raises:
            ValueError: The model has discrete sites, given which its observations are scored.
        """
        if self._model_density is None:
            return {}
        if self.enumerated:
            raise ValueError(
                "the model has discrete sites, which were summed out: single observations have no "
                "likelihood without them. Marginalise by hand (MixtureSameFamily) to have it."
            )
        with torch.no_grad():
            return self._model_density.pointwise({s.name: samples[s.name] for s in self.sites})

    def observed_data(self) -> Values:
        """The data the model conditions on, ``{observed site: value}``."""
        if self._model_density is None:
            return {}
        zeros = torch.zeros(1, self.dim, dtype=self.dtype, device=self.device)
        return self._model_density.observations({k: v[0] for k, v in self.unpack(zeros).items()})

    # ---- coordinates --------------------------------------------------------------------------

    def wrap(self, x: Tensor) -> Tensor:
        r"""Brings periodic coordinates into :math:`[-\pi, \pi)`."""
        if not self.circular:
            return x
        wrapped = torch.remainder(x + pi, 2 * pi) - pi
        return torch.where(self.angles, wrapped, x)

    def unpack(self, x: Tensor) -> Values:
        """Points ``(..., d)`` as constrained values ``{site: (..., *value_shape)}``."""
        return {s.name: s.transform(v) for s, v in self._items(self.wrap(x))}

    def unpack_unconstrained(self, x: Tensor) -> Values:
        """Points ``(..., d)`` as unconstrained blocks ``{site: (..., *shape)}``."""
        return {s.name: v for s, v in self._items(x)}

    def _items(self, x: Tensor) -> list[tuple[Site, Tensor]]:
        blocks = x.split([s.size for s in self.sites], -1)
        return [(s, b.reshape(x.shape[:-1] + s.shape)) for s, b in zip(self.sites, blocks)]

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """The inverse of :meth:`unpack`: constrained values to points ``(..., d)``.

        Raises:
            ValueError: A site is missing or its shape is wrong.
        """
        return self._pack(values, constrained=True)

    def pack_unconstrained(self, values: Mapping[str, Tensor]) -> Tensor:
        """The inverse of :meth:`unpack_unconstrained`; the same errors as :meth:`pack`."""
        return self._pack(values, constrained=False)

    def _pack(self, values: Mapping[str, Tensor], constrained: bool) -> Tensor:
        parts = []
        for site in self.sites:
            if site.name not in values:
                raise ValueError(f"no value for site '{site.name}' (got {sorted(values)})")
            value, shape = values[site.name], site.value_shape if constrained else site.shape
            if value.shape[value.dim() - len(shape) :] != shape:
                raise ValueError(
                    f"site '{site.name}': expected a shape ending in {tuple(shape)}, "
                    f"got {tuple(value.shape)}"
                )
            if value.dtype != self.dtype:
                raise ValueError(
                    f"site '{site.name}': expected dtype {self.dtype}, got {value.dtype}; "
                    f"convert with .to({self.dtype})"
                )
            batch = value.shape[: value.dim() - len(shape)]
            u = site.transform.inv(value) if constrained else value
            parts.append(u.reshape(batch + (site.size,)))
        if len({part.shape[:-1] for part in parts}) > 1:
            found = {s.name: tuple(part.shape[:-1]) for s, part in zip(self.sites, parts)}
            raise ValueError(f"the sites' leading dimensions differ: {found}")
        return torch.cat(parts, -1)

    def initial_points(self, num: int) -> Tensor:
        r"""``num`` over-dispersed points of finite density, ``(num, d)``.

        Real coordinates are uniform on :math:`(-s, s)` with :math:`s = 2`, then narrower and wider
        scales where those fail; angles are uniform on the circle.

        Raises:
            ValueError: The density is NaN or zero at every point tried.
        """
        found = torch.empty(0, self.dim, dtype=self.dtype, device=self.device)
        for scale in (2.0, 2.0, 1.0, 0.1, 10.0, 1e-3):
            x = torch.empty(4 * num + 16, self.dim, dtype=self.dtype, device=self.device)
            x = x.uniform_(-scale, scale)
            x = torch.where(self.angles.to(x.device), x * (pi / scale), x)
            with torch.no_grad():
                found = torch.cat([found, x[torch.isfinite(self.log_prob(x))]])
            if len(found) >= num:
                return found[:num]
        if len(found):
            return found[torch.arange(num, device=found.device) % len(found)]
        raise ValueError(
            "the log density is NaN or -inf at every initial point tried: check the model's "
            "supports, data for NaN, or give initial_params inside the support."
        )

    def _own_context(self, num: int) -> Tensor | None:
        """Those of :meth:`at`, or of the arguments this target was made with; or None."""
        if self.contexts is not None:
            return every(self.contexts, num)
        row = self._own_row()
        return None if row is None else row.expand(num, -1)

    def _own_row(self) -> Tensor | None:
        if not self.context_names or self._model_density is None:
            return None
        kwargs = self._model_density.kwargs
        rows = [torch.as_tensor(kwargs[name]).reshape(-1) for name in self.context_names]
        return torch.cat([r.to(self.device, self.dtype) for r in rows])

    # ---- as a Pyro model ----------------------------------------------------------------------

    def __call__(self) -> Values:
        """A target is itself a Pyro model: flat real sites and one factor, its density."""
        values = {}
        for site in self.sites:
            zero = torch.zeros(site.shape, dtype=self.dtype, device=self.device)
            flat = dist.Normal(zero, 1).to_event(len(site.shape)).mask(False)
            values[site.name] = pyro.sample(site.name, flat)
        x = self.pack_unconstrained(values)
        pyro.factor("log_density", self.log_prob(x.reshape(-1, self.dim)).reshape(x.shape[:-1]))
        return values


def _finite_or_zero(grad: Tensor) -> Tensor:
    return torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
