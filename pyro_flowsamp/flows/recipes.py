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

import torch
from torch import Tensor, nn

from .._zuko import zuko
from .affine import Affine
from .coupling_layers import Coupling
from .latent import LatentBase
from .mixture_fit import fit_mixture
from .transforms import Univariate, affine_univariate, circular_univariate, spline_univariate

__all__ = ["LayeredFlow", "RECIPES", "circular", "coupling", "gaussian", "spline"]


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
