r"""Targets: batched, differentiable, unnormalised log densities on :math:`\mathbb R^d`.

A Pyro model, a potential function over a dictionary, or an energy over vectors becomes a
:class:`Target`; the rest of the package works with this class only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..validation import public_call
from .batching import Density
from .construction import energy_density, model_density, potential_density
from .context import ContextValues, every
from .evaluation import ChunkedDensity, EvaluationCounter, TracedEvaluation, finite_or_zero
from .model import ModelDensity
from .points import complete_groups, overdispersed_points, prior_points
from .site import SiteLayout, Values

__all__ = ["INITIAL_SCALES", "Target", "as_target"]

INITIAL_SCALES = 2.0, 2.0, 1.0, 0.1, 10.0, 1e-3  #: half widths of the boxes of initial points


class Target(TracedEvaluation):
    r"""A batched unnormalised log density :math:`\log \tilde p(x)` on :math:`\mathbb R^d`.

    Arguments:
        log_prob: Maps points ``(N, d)`` and contexts ``(N, c)`` or None to log densities ``(N,)``;
            evaluated in chunks where it is a ``ChunkedDensity``.
        layout: The sites of the coordinates, with the dtype and device of points and densities.
        batching: How a batch is evaluated: ``"vmap"``, ``"plate"``, ``"loop"`` or ``"native"``.
        model: The Pyro model behind the density, or None.

    Attributes:
        dim: The dimension :math:`d`.
        sites: The blocks of coordinates, in order.
        angles, circular: Mask ``(d,)`` of periodic coordinates, and whether there are any.
        contexts: The rows ``(K, c)`` that were given to :meth:`at_contexts`; else None.
        starts: Points ``(N, d)`` near which :meth:`initial_points` looks too, or None; may be set.
        density, layout, model: What the target is made of, the density in chunks.
        counter: Counts evaluations; targets made from this one have the same.

    Example:
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> target = Target.from_model(model, torch.tensor(1.0))
        >>> target.dim, target.batching
        (1, 'vmap')
        >>> log_p, grad = target.log_prob_and_grad(torch.zeros(1, 1))
        >>> round(float(log_p), 4), float(grad)
        (-2.3379, 1.0)
    """

    def __init__(
        self,
        log_prob: Density,
        layout: SiteLayout,
        batching: str,
        model: ModelDensity | None = None,
    ) -> None:
        if not isinstance(log_prob, ChunkedDensity):
            log_prob = ChunkedDensity(log_prob)
        self.density: ChunkedDensity = log_prob
        self.layout, self.model = layout, model
        self._context = ContextValues({}) if model is None else model.context
        self.batching = batching
        self.contexts: Tensor | None = None
        self.starts: Tensor | None = None
        self.sites, self.dim = layout.sites, layout.dim
        self.dtype, self.device = layout.dtype, layout.device
        self.angles, self.circular = layout.angles, layout.circular
        self.counter = EvaluationCounter(torch.zeros((), dtype=torch.long, device=layout.device))

    # ---- construction -------------------------------------------------------------------------

    @classmethod
    def from_model(cls, model: Callable, *args: Any, **kwargs: Any) -> Target:
        r"""The posterior of a Pyro model, given its arguments.

        Constrained sites are mapped to :math:`\mathbb R^n` by ``biject_to(support)``, with the
        log-det; enumerable discrete sites are summed out. A batch is evaluated by ``vmap`` where
        the model allows it, else by an outermost plate, else by a Python loop (with a warning). The
        first of these is taken that agrees with the loop, in value and gradient, on two points.

        Raises:
            TypeError: The model is no function, or the arguments do not fit it.
            ValueError: There is no continuous site, a discrete site that cannot be enumerated, a
                subsampling plate, or a support without a bijection.
            ModelStructureError: Sites, shapes, supports or the density change between calls.
        """
        with public_call():
            return cls(*model_density(model, args, kwargs))

    @classmethod
    def from_potential(
        cls, potential_fn: Callable[[Values], Tensor], prototype: Mapping[str, Tensor]
    ) -> Target:
        r""":math:`\log \tilde p = -U`, for a potential :math:`U` of a dictionary of real tensors.

        Arguments:
            potential_fn: Maps ``{name: tensor}`` (one point) to a 0-d tensor, as in Pyro's HMC.
            prototype: One unconstrained value for each name; fixes shapes, dtype and device.

        Raises:
            ValueError: The prototype is empty or of integers, or the potential is no number.
            ModelStructureError: The potential is random.

        Example:
            >>> prototype = {"x": torch.zeros(2)}
            >>> target = Target.from_potential(lambda u: u["x"].square().sum(), prototype)
            >>> target.log_prob(torch.tensor([[1.0, 2.0]]))
            tensor([-5.])
        """
        with public_call():
            return cls(*potential_density(potential_fn, prototype))

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
            dtype, device: Type and device of the points; torch's defaults where None.

        Raises:
            ValueError: ``fn`` does not return one energy per row, has no gradient, depends on other
                rows or is minus infinity at random points; another argument is none of its kind.
            ModelStructureError: ``fn`` is random.

        Example:
            >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 2)
            >>> target.log_prob(torch.ones(3, 2))
            tensor([-1., -1., -1.])
        """
        with public_call():
            return cls(*energy_density(fn, dim, angles, dtype, device))

    def conditional_on(self, *names: str) -> Target:
        """A conditional target of the same model: the named arguments become the context.

        The returned target's ``log_prob(x, context)`` takes one row of flattened argument values
        per point, in the order of ``names``.

        Raises:
            ValueError: The target was not made from a model, or the model has no such arguments.
        """
        if self.model is None:
            raise ValueError("only a target made from a Pyro model has named arguments")
        own = self.model
        target = type(self)(*model_density(own.model, own.args, own.kwargs, names))
        target.compile_mode, target.tracing = self.compile_mode, self.tracing
        return target

    def at_contexts(self, contexts: Tensor) -> Target:
        """A copy of a conditional target at K contexts: row i of a batch is at context i mod K.

        One batch of chains then covers all contexts. Evaluations are counted with this target's.

        Arguments:
            contexts: Rows as :meth:`log_prob` takes them, ``(K, c)``.

        Raises:
            ValueError: The target is not conditional, or the shape is another one.

        Example:
            >>> def model(scale):
            ...     pyro.sample("x", dist.Normal(0.0, scale))
            >>> target = Target.from_model(model, torch.tensor(1.0)).conditional_on("scale")
            >>> log_p = target.at_contexts(torch.tensor([[1.0], [2.0]])).log_prob(torch.zeros(2, 1))
            >>> [round(value, 4) for value in log_p.tolist()]
            [-0.9189, -1.6121]
        """
        target = copy(self)
        target.contexts = self._context.rows(contexts, None, self.dtype, self.device)
        return target

    # ---- facts --------------------------------------------------------------------------------

    @property
    def context_names(self) -> tuple[str, ...]:
        """The model arguments over which the target is conditional, in the order of its rows."""
        return self._context.names

    @property
    def enumerated(self) -> bool:
        """Whether discrete sites of the model are summed out."""
        return self.model is not None and self.model.enumerated

    @property
    def has_observations(self) -> bool:
        """Whether there is more than a model's prior: data, a factor, or no model at all."""
        return self.model is None or self.model.has_observations

    # ---- evaluation ---------------------------------------------------------------------------

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r""":math:`\log \tilde p(x)` up to a constant, ``(N, d) → (N,)``; never NaN.

        A conditional target without ``context`` uses the model arguments it was made with. A batch
        that needs much memory is evaluated in chunks (:mod:`pyro_flowsamp.target.evaluation`).

        NaN, infinities and numerical domain errors become :math:`-\infty` with zero gradient, and
        are counted in :attr:`nonfinite`.

        Raises:
            ValueError: ``x`` is not of shape ``(N, dim)``, or ``context`` not ``(N, c)``.
        """
        x = self.layout.points(x, batch=True)
        if not len(x):
            return x.sum(-1)
        context = self._contexts_at(len(x), context)
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(finite_or_zero)
        return self._counted(self.density(x, context))

    def _counted(self, log_p: Tensor) -> Tensor:
        bad = ~torch.isfinite(log_p)
        self.counter.evaluations += len(log_p)
        self.counter.nonfinite = self.counter.nonfinite + bad.sum().detach()
        return torch.where(bad, -torch.inf, log_p)

    def log_prob_and_grad(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r""":math:`\log \tilde p(x)` and its gradient, ``(N,)`` and ``(N, d)``, detached."""
        x = self.layout.points(x, batch=True)
        context = self._contexts_at(len(x), context)
        parts = [self._value_and_grad(*chunk) for chunk in self.density.split(x, context)]
        values, grads = zip(*parts)
        return (values[0], grads[0]) if len(parts) == 1 else (torch.cat(values), torch.cat(grads))

    def _value_and_grad(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if (traced := self.density.value_and_grad(x, context)) is not None:
            log_p = self._counted(traced[0])
            return log_p, finite_or_zero(torch.where(log_p.isfinite()[:, None], traced[1], 0.0))
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            log_p = self.log_prob(x, context)
            (grad,) = torch.autograd.grad(log_p.sum(), x)
        return log_p.detach(), grad

    def _contexts_at(self, num: int, given: Any = None) -> Tensor | None:
        """The contexts of so many points: those given, of :meth:`at_contexts`, or the model's."""
        if given is not None:  # without a model only the density can know them
            rows = self._context.rows
            return given if self.model is None else rows(given, num, self.dtype, self.device)
        if self.contexts is not None:
            return every(self.contexts, num)
        row = self._context.row(self.dtype, self.device)
        return None if row is None else row.expand(num, -1)

    def pointwise_log_likelihood(self, samples: Mapping[str, Tensor]) -> Values:
        """Log-likelihood of each observation under constrained draws ``{site: (N, ...)}``.

        Raises:
            ValueError: The model has discrete sites (observations need them), or a site no value.
        """
        self.layout.check_sites(samples)
        if self.model is None:
            return {}
        if self.enumerated:
            raise ValueError(
                "the model has discrete sites, which were summed out: single observations have no "
                "likelihood without them. Marginalise by hand (MixtureSameFamily) to have it."
            )
        with torch.no_grad():
            return self.model.pointwise({s.name: samples[s.name] for s in self.sites})

    def observed_data(self) -> Values:
        """The data that the model conditions on, ``{observed site: value}``."""
        if self.model is None:
            return {}
        zeros = torch.zeros(1, self.dim, dtype=self.dtype, device=self.device)
        return self.model.observations({k: v[0] for k, v in self.unpack(zeros).items()})

    # ---- coordinates --------------------------------------------------------------------------

    def wrap(self, x: Tensor) -> Tensor:
        r"""Brings periodic coordinates into :math:`[-\pi, \pi)`."""
        return self.layout.wrap(x)

    def unpack(self, x: Tensor) -> Values:
        """Points ``(..., d)`` as constrained values ``{site: (..., *value_shape)}``."""
        return self.layout.unpack(self.layout.points(x))

    def unpack_unconstrained(self, x: Tensor) -> Values:
        """Points ``(..., d)`` as unconstrained blocks ``{site: (..., *shape)}``."""
        return self.layout.split(self.layout.points(x))

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """The inverse of :meth:`unpack`: constrained values to points ``(..., d)``.

        Raises:
            ValueError: A site is missing, or its shape or dtype is wrong.
        """
        return self.layout.pack(values)

    def pack_unconstrained(self, values: Mapping[str, Tensor]) -> Tensor:
        """The inverse of :meth:`unpack_unconstrained`; the same errors as :meth:`pack`."""
        return self.layout.pack(values, constrained=False)

    def initial_points(self, num: int, scales: Sequence[float] = INITIAL_SCALES) -> Tensor:
        r"""``num`` over-dispersed points of finite density, ``(num, d)``, :attr:`starts` first.

        Arguments:
            num: The number of points.
            scales: Real coordinates are uniform on :math:`(-s, s)` for the first of these, and for
                the later ones where too few points have a finite density; angles on the circle.
                Where none has one, draws of the prior and points of wider boxes are tried.

        Raises:
            ValueError: The density is NaN or zero at all points, or infinite at some.
        """
        densities = self.log_prob, self._unbounded
        others = self.starts, self.prior_points
        return overdispersed_points(*densities, self.layout, num, scales, *others)

    def _unbounded(self, x: Tensor) -> Tensor:
        return self.density(x, self._contexts_at(len(x)))

    def prior_points(self, num: int) -> Tensor | None:
        r"""Draws from the prior of a model's latent sites, ``(num, d)``.

        The model is run once for each draw, without its factors and what it observes. Draws at
        which the log density is not finite are left out, and at K contexts the K draws of a group.

        Returns:
            At most ``num`` points. None where the target has no model, where the prior is improper,
            masked or scaled, or cannot be sampled, and where no draw has a finite density.

        Example:
            >>> def model():
            ...     pyro.sample("x", dist.Normal(3.0, 0.1))
            >>> x = Target.from_model(model).prior_points(100)
            >>> x.shape, abs(float(x.mean()) - 3.0) < 0.1
            (torch.Size([100, 1]), True)
        """
        if self.model is None:
            return None
        x = prior_points(self.model, self.layout, self._contexts_at(num), num)
        if x is None:
            return None
        with torch.no_grad():
            usable = torch.isfinite(self.log_prob(x)) & torch.isfinite(x).all(-1)
        x = complete_groups(x, usable, 1 if self.contexts is None else len(self.contexts))
        return x if len(x) else None

    # ---- as a Pyro model ----------------------------------------------------------------------

    def __call__(self) -> Values:
        """Runs the target as a Pyro model: flat real sites and one factor, its density."""
        values = {}
        for site in self.sites:
            zero = torch.zeros(site.shape, dtype=self.dtype, device=self.device)
            flat = dist.Normal(zero, 1).to_event(len(site.shape)).mask(False)
            values[site.name] = pyro.sample(site.name, flat)
        x = self.pack_unconstrained(values)
        pyro.factor("log_density", self.log_prob(x.reshape(-1, self.dim)).reshape(x.shape[:-1]))
        return values


def as_target(source: Callable, *args: Any, **kwargs: Any) -> Target:
    """Returns a target as it is, and the target of a Pyro model with its arguments.

    Arguments:
        source: A Pyro model or a target.
        args, kwargs: The model's arguments; a target takes none.

    Raises:
        ValueError: A target is given arguments; or as :meth:`Target.from_model`.

    Example:
        >>> target = Target.from_energy(lambda x: x.square().sum(-1), 2)
        >>> as_target(target) is target
        True
    """
    if not isinstance(source, Target):
        return Target.from_model(source, *args, **kwargs)
    if args or kwargs:
        raise ValueError("a Target has its data already: it takes no model arguments")
    return source
