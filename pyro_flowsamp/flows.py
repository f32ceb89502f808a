r"""Flow recipes over zuko, with an affine layer under them.

A flow follows zuko's convention: ``flow(context)`` is a distribution with ``rsample_and_log_prob``
and ``log_prob``, whose ``transform`` maps data :math:`x` to latent :math:`z`. Any zuko flow can be
used wherever ours are. Ours add three things:

- an **affine layer** :math:`x = \mu + L u`, initialised to the target, so that the couplings above
  it see a standardised density and start as the identity: training starts at the best Gaussian;
- **both directions in one pass**: a coupling evaluates its network once for value and log-det,
  whichever way it goes, with the cheap direction of a spline towards the data;
- **angles**: coordinates on the circle keep to it, mixed freely with real ones.

To add a recipe, write a function that picks arguments of :class:`LayeredFlow` and list it in
:data:`RECIPES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import log, pi, prod
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution, constraints

from ._zuko import zuko
from .maps import (
    AffineMap,
    CouplingMap,
    Map,
    Univariate,
    affine_univariate,
    circular_univariate,
    spline_univariate,
)
from .mixture import Mixture, fit_mixture

__all__ = [
    "RECIPES",
    "Affine",
    "Coupling",
    "FlowDistribution",
    "LatentBase",
    "LayeredFlow",
    "circular",
    "coupling",
    "gaussian",
    "spline",
]

MAX_FULL_COVARIANCE = 400  #: above this dimension the affine layer is diagonal


# ---- lazy layers -------------------------------------------------------------------------------


class Affine(zuko.lazy.LazyTransform):
    r"""The affine layer :math:`x = \mu + L\,(m + T u)`.

    :math:`\mu` and :math:`L` are buffers, set by :meth:`initialize`; the trained correction
    :math:`m`, :math:`T` (unit lower-triangular times a positive diagonal) starts at the identity,
    so that one step size suits every scale.
    """

    def __init__(self, features: int, angles: Tensor | None = None) -> None:
        super().__init__()
        full = features <= MAX_FULL_COVARIANCE
        real = torch.ones(features) if angles is None else (~angles).float()
        self.register_buffer("angles", angles, persistent=False)
        self.register_buffer("real", real, persistent=False)
        self.register_buffer("loc", torch.zeros(features))
        self.register_buffer("scale", torch.eye(features) if full else torch.ones(features))
        self.shift = nn.Parameter(torch.zeros(features))
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.lower = nn.Parameter(torch.zeros(features, features)) if full else None

    @torch.no_grad()
    def initialize(self, loc: Tensor, scale_tril: Tensor) -> None:
        """Sets the layer to N(loc, scale_tril scale_trilᵀ); angles keep unit scale.

        A full ``scale_tril`` is reduced to marginal scales where the layer is diagonal.
        """
        for parameter in self.parameters():
            parameter.zero_()
        self.loc.copy_(loc)
        if scale_tril.dim() < self.scale.dim():
            scale_tril = scale_tril.diag()
        if self.scale.dim() == 1:
            scale = scale_tril if scale_tril.dim() == 1 else scale_tril.norm(dim=-1)
            self.scale.copy_(torch.where(self.real > 0, scale, 1.0))
        else:
            if self.angles is not None:  # the reals' own root, not their rows of the joint one
                real = self.real.double()
                root = scale_tril.double() * real[:, None]
                scale_tril = torch.linalg.cholesky(root @ root.mT + torch.diag(1 - real))
            self.scale.copy_(scale_tril)

    def forward(self, c: Tensor | None = None) -> Map:
        diagonal = (self.log_diagonal * self.real).exp()
        log_det = (self.log_diagonal * self.real).sum()
        if self.lower is None:
            scale = self.scale * diagonal
            loc = self.loc + self.scale * self.shift
            return AffineMap(loc, scale, log_det + self.scale.log().sum(), self.angles)
        pair = self.real[:, None] * self.real
        tril = torch.tril(self.lower * pair, -1) + torch.diag_embed(diagonal)
        loc = self.loc + self.scale @ self.shift
        log_det = log_det + self.scale.diagonal().log().sum()
        return AffineMap(loc, self.scale @ tril, log_det, self.angles)


class Coupling(zuko.lazy.LazyTransform):
    r"""A coupling layer that starts as the identity and never touches the host.

    As :class:`zuko.flows.coupling.GeneralCouplingTransform`, whose masks are turned into indices on
    every call (a device synchronisation each). The network sees angles as (cos, sin).

    Arguments:
        features: The number of features.
        context: The number of context features.
        mask: Features that pass unchanged and steer the others, ``(features,)`` booleans.
        univariate: The element-wise map of the others.
        parameters: How many parameters it takes per feature.
        angles: Mask of periodic features, or None.
        hidden_features: Widths of the network's hidden layers.
    """

    def __init__(
        self,
        features: int,
        context: int,
        mask: Tensor,
        univariate: Univariate,
        parameters: int,
        angles: Tensor | None = None,
        hidden_features: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        order = torch.argsort(~mask, stable=True)
        self.sizes = [int(mask.sum()), int((~mask).sum())]
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", torch.argsort(order), persistent=False)
        angles = None if angles is None else angles.to(order.device)
        steering = None if angles is None else angles[order[: self.sizes[0]]]
        moved = None if angles is None else angles[order[self.sizes[0] :]]
        self.register_buffer("steering", steering, persistent=False)
        self.register_buffer("moved", moved, persistent=False)
        self._univariate, self.count = univariate, parameters
        inputs = self.sizes[0] * (1 if angles is None else 2) + context
        self.net = zuko.nn.MLP(
            inputs, self.sizes[1] * parameters, hidden_features, activation=nn.SiLU
        )
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def univariate(self, phi: Tensor, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if self.moved is None:
            return self._univariate(phi, x, inverse)
        return self._univariate(phi, x, inverse, angles=self.moved)

    def parameters_of(self, a: Tensor, context: Tensor | None) -> Tensor:
        """The univariate map's parameters, ``(N, b, count)``, given the steering features."""
        if self.steering is not None:
            first = torch.where(self.steering, a.cos(), a)
            a = torch.cat([first, torch.where(self.steering, a.sin(), torch.zeros_like(a))], -1)
        if context is not None:
            a = torch.cat([a, context.expand(a.shape[:-1] + context.shape[-1:])], -1)
        return self.net(a).unflatten(-1, (self.sizes[1], self.count))

    def forward(self, c: Tensor | None = None) -> Map:
        return CouplingMap(self, c)


class LatentDistribution(Distribution):
    r"""Standard normal on real coordinates, uniform on :math:`[-\pi, \pi)` on angles."""

    arg_constraints: dict = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, like: Tensor, angles: Tensor | None, batch_shape: Size = Size()) -> None:
        super().__init__(batch_shape, like.shape, validate_args=False)
        self.like, self.angles = like, angles

    def expand(self, batch_shape: Any, _instance: Any = None) -> LatentDistribution:
        return LatentDistribution(self.like, self.angles, Size(batch_shape))

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        z = torch.randn(shape, dtype=self.like.dtype, device=self.like.device)
        if self.angles is None:
            return z
        return torch.where(self.angles, (2 * torch.rand_like(z) - 1) * pi, z)

    def log_prob(self, z: Tensor) -> Tensor:
        normal = -0.5 * (z.square() + log(2 * pi))
        if self.angles is not None:
            normal = torch.where(self.angles, -log(2 * pi), normal)
        return normal.sum(-1)


class MixtureDistribution(Distribution):
    """A :class:`~pyro_flowsamp.mixture.Mixture` as a base; fixed, so draws need no gradient."""

    arg_constraints: dict = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, mixture: Mixture, batch_shape: Size = Size()) -> None:
        super().__init__(batch_shape, mixture.locs.shape[-1:], validate_args=False)
        self.mixture = mixture

    def expand(self, batch_shape: Any, _instance: Any = None) -> MixtureDistribution:
        return MixtureDistribution(self.mixture, Size(batch_shape))

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        return self.mixture.sample(prod(shape[:-1])).reshape(shape)

    def log_prob(self, z: Tensor) -> Tensor:
        return self.mixture.log_prob(z.reshape(-1, z.shape[-1])).reshape(z.shape[:-1])


class LatentBase(zuko.lazy.LazyDistribution):
    """The latent distribution: standard, or a Gaussian mixture of up to ``components`` parts."""

    def __init__(self, features: int, angles: Tensor | None = None, components: int = 1) -> None:
        super().__init__()
        self.components = self.used = components
        self.register_buffer("like", torch.zeros(features), persistent=False)
        self.register_buffer("angles", angles, persistent=False)
        if components > 1:
            eye = torch.eye(features).repeat(components, 1, 1)
            self.register_buffer("log_weights", torch.zeros(components).log_softmax(0))
            self.register_buffer("locs", torch.zeros(components, features))
            self.register_buffer("scale_trils", eye)

    @torch.no_grad()
    def initialize(self, mixture: Mixture) -> None:
        """Takes a mixture of at most ``components`` parts; the rest are not used."""
        self.used = len(mixture.log_weights)
        for buffer, value in zip((self.log_weights, self.locs, self.scale_trils), mixture):
            buffer[: self.used].copy_(value)

    def forward(self, c: Tensor | None = None) -> Distribution:
        if self.components == 1:
            return LatentDistribution(self.like, self.angles)
        parts = self.log_weights, self.locs, self.scale_trils
        return MixtureDistribution(Mixture(*(part[: self.used] for part in parts)))

    def get_extra_state(self) -> dict[str, int]:
        return {"used": self.used}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.used = state["used"]


class LayeredFlow(zuko.lazy.Flow):
    r"""Latent → couplings → affine layer → data.

    Attributes:
        depth: How many couplings are in use, counted from the affine layer. At 0 the flow is the
            Gaussian (or the mixture) alone, and costs no more than one. Part of ``state_dict``.
    """

    def __init__(
        self,
        features: int,
        couplings: Sequence[Coupling] = (),
        angles: Tensor | None = None,
        components: int = 1,
    ) -> None:
        nn.Module.__init__(self)
        self.features = features
        self.couplings = nn.ModuleList(couplings)
        self.affine = Affine(features, angles)
        self.base = LatentBase(features, angles, components)
        self.depth = len(self.couplings)

    @torch.no_grad()
    def initialize_from(self, draws: Tensor) -> None:
        """Standardises draws ``(M, d)`` by the affine layer, and fits the mixture to the result."""
        covariance = torch.cov(draws.double().mT).reshape(self.features, self.features)
        jitter = 1e-9 * covariance.diagonal().mean() * torch.eye(self.features).to(covariance)
        chol = torch.linalg.cholesky(covariance + jitter)
        self.affine.initialize(draws.mean(0), chol.to(draws))
        if self.base.components > 1:
            z = self.affine().pull(draws)[0]
            self.base.initialize(fit_mixture(z, self.base.components))

    @property
    def transform(self) -> zuko.lazy.LazyTransform:
        layers = [*self.couplings[: self.depth], self.affine]
        return zuko.lazy.LazyComposedTransform(*layers).inv

    def get_extra_state(self) -> dict[str, int]:
        return {"depth": self.depth}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.depth = state["depth"]


# ---- recipes -----------------------------------------------------------------------------------

Recipe = Callable[..., LayeredFlow]


def _masks(features: int, transforms: int) -> list[Tensor]:
    """Pairs of complementary masks; halves first, then interleaved at other strides."""
    index = torch.arange(features)
    masks = []
    for i in range(transforms):
        level = i // 2
        mask = index < (features + 1) // 2 if level == 0 else (index // level) % 2 == 0
        if mask.all() or not mask.any():
            mask = index % 2 == 0
        masks.append(mask if i % 2 == 0 else ~mask)
    return masks


def _stack(
    features: int,
    context: int,
    angles: Tensor | None,
    transforms: int,
    univariate: Univariate,
    parameters: int,
    hidden_features: Sequence[int],
    components: int = 1,
) -> LayeredFlow:
    maps = [(mask, univariate, parameters) for mask in _masks(features, transforms)]
    if features == 1:  # nothing to split, but a context may steer
        maps = _steered(univariate, parameters, angles is None) if context else []
    layers = [Coupling(features, context, *each, angles, hidden_features) for each in maps]
    return LayeredFlow(features, layers, angles, components)


def _steered(
    univariate: Univariate, parameters: int, real: bool
) -> list[tuple[Tensor, Univariate, int]]:
    """Maps of one coordinate, also to other places and scales if it is real: splines end."""
    ways = {univariate: parameters}
    if real:
        ways[affine_univariate] = 2
    nothing = torch.zeros(1, dtype=torch.bool)
    return [(nothing, way, count) for way, count in ways.items()]


def gaussian(
    features: int, context: int = 0, angles: Tensor | None = None, components: int = 1
) -> LayeredFlow:
    """The affine layer alone: a Gaussian with full covariance, the first rung of the ladder.

    Raises:
        ValueError: There is a context, of which it knows nothing.
    """
    if context:
        raise ValueError("a 'gaussian' flow knows no context: use 'coupling' or 'spline'")
    return LayeredFlow(features, (), angles, components)


def coupling(
    features: int,
    context: int = 0,
    angles: Tensor | None = None,
    transforms: int = 4,
    hidden_features: Sequence[int] = (64, 64),
    components: int = 1,
) -> LayeredFlow:
    """Affine couplings (Real NVP): the fastest, for unimodal posteriors and funnels."""
    if angles is not None:
        return circular(features, context, angles, transforms, hidden_features)
    return _stack(
        features, context, None, transforms, affine_univariate, 2, hidden_features, components
    )


def spline(
    features: int,
    context: int = 0,
    angles: Tensor | None = None,
    transforms: int = 6,
    hidden_features: Sequence[int] = (64, 64),
    bins: int = 8,
    components: int = 1,
) -> LayeredFlow:
    """Spline couplings (NSF): sharper, for several modes and hard edges."""
    if angles is not None:
        return circular(features, context, angles, transforms, hidden_features, bins)
    univariate = partial(spline_univariate, bins=bins)
    return _stack(
        features, context, None, transforms, univariate, 3 * bins - 1, hidden_features, components
    )


def circular(
    features: int,
    context: int = 0,
    angles: Tensor | None = None,
    transforms: int = 6,
    hidden_features: Sequence[int] = (64, 64),
    bins: int = 8,
) -> LayeredFlow:
    """Circular spline couplings on a torus, or on torus × R^n; all angles where none are named."""
    angles = torch.ones(features, dtype=torch.bool) if angles is None else angles.cpu()
    univariate = partial(circular_univariate, bins=bins)
    return _stack(features, context, angles, transforms, univariate, 3 * bins, hidden_features)


RECIPES: dict[str, Recipe] = {
    "gaussian": gaussian,
    "coupling": coupling,
    "spline": spline,
    "circular": circular,
}


class FlowDistribution(dist.TorchDistribution):
    r"""A zuko distribution as a Pyro distribution.

    Unlike :class:`pyro.contrib.zuko.ZukoToPyro` it has ``sample`` and ``support``, so that
    :class:`pyro.infer.Predictive` takes it. A draw is scored by the pass that made it.
    """

    arg_constraints: dict = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, base: Any) -> None:
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)
        self.base = base
        self._drawn: tuple[Tensor, Tensor] | None = None

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        return FlowDistribution(self.base.expand(Size(batch_shape)))

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        self._drawn = self.base.rsample_and_log_prob(Size(sample_shape))
        return self._drawn[0]

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._drawn is not None and value is self._drawn[0]:
            return self._drawn[1]
        return self.base.log_prob(value)
