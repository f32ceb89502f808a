r"""Flow recipes made with zuko, with an affine layer next to the data.

A flow follows zuko's convention: ``flow(context)`` is a distribution with ``rsample_and_log_prob``
and ``log_prob``, whose ``transform`` maps data :math:`x` to latent :math:`z`. Any zuko flow can be
used in place of ours. Ours add three things:

- an **affine layer** :math:`x = \mu + L u`, initialised to the target, so that the couplings act on
  a standardised density and start as the identity: training starts at the best Gaussian;
- **both directions in one pass**: a coupling evaluates its network once for value and log-det in
  either direction, with the cheap direction of a spline towards the data;
- **angles**: coordinates on the circle stay on it, beside real ones.

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
from .mixture_fit import MixtureFitOptions, fit_mixture
from .transforms import Univariate, affine_univariate, circular_univariate, spline_univariate

__all__ = ["LayeredFlow", "RECIPES", "circular", "coupling", "gaussian", "spline"]


class LayeredFlow(zuko.lazy.Flow):
    r"""A flow of coupling layers and an affine layer: latent → couplings → affine layer → data.

    Arguments:
        features: The dimension d.
        couplings: The coupling layers, from latent to data.
        angles: Mask ``(d,)`` of periodic coordinates, or None.
        components: The greatest number of components of the latent Gaussian mixture; 1 for a
            standard normal.

    Attributes:
        depth: The number of couplings in use, the first ones. At 0 the flow is the Gaussian (or the
            mixture) alone, and costs no more than that. Part of ``state_dict``.

    Example:
        >>> flow = coupling(2)
        >>> flow.depth, flow().log_prob(torch.zeros(2))
        (4, tensor(-1.8379, grad_fn=<AddBackward0>))
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
    def initialize_from(self, draws: Tensor, options: MixtureFitOptions | None = None) -> None:
        """Standardises draws by the affine layer, and fits the latent mixture to the result.

        Arguments:
            draws: Draws of the target, ``(M, d)``.
            options: How to fit the mixture, if there is one.
        """
        covariance = torch.cov(draws.double().mT).reshape(self.features, self.features)
        jitter = 1e-9 * covariance.diagonal().mean() * torch.eye(self.features).to(covariance)
        chol = torch.linalg.cholesky(covariance + jitter)
        self.affine.initialize(draws.mean(0), chol.to(draws))
        if self.base.components > 1:
            z = self.affine().pull(draws)[0]
            self.base.initialize(fit_mixture(z, self.base.components, options))

    @property
    def transform(self) -> zuko.lazy.LazyTransform:
        """The lazy transform from data to latent, as zuko has it."""
        layers = [*self.couplings[: self.depth], self.affine]
        return zuko.lazy.LazyComposedTransform(*layers).inv

    def get_extra_state(self) -> dict[str, int]:
        """The depth."""
        return {"depth": self.depth}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Takes the state of :meth:`get_extra_state`."""
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
    if features == 1:  # nothing to split: the parameters depend on the context alone
        maps = _maps_of_one(univariate, parameters, angles is None) if context else []
    layers = [Coupling(features, context, *each, angles, hidden_features) for each in maps]
    return LayeredFlow(features, layers, angles, components)


def _maps_of_one(
    univariate: Univariate, parameters: int, real: bool
) -> list[tuple[Tensor, Univariate, int]]:
    """Maps of one coordinate; an affine one too if it is real, since splines have a bound."""
    ways = {univariate: parameters}
    if real:
        ways[affine_univariate] = 2
    nothing = torch.zeros(1, dtype=torch.bool)
    return [(nothing, way, count) for way, count in ways.items()]


def gaussian(
    features: int, context: int = 0, angles: Tensor | None = None, components: int = 1
) -> LayeredFlow:
    """The affine layer alone: a Gaussian with full covariance.

    Arguments:
        features: The dimension.
        context: The number of context features, which must be 0.
        angles: Mask of periodic coordinates, or None.
        components: The greatest number of components of the latent mixture.

    Raises:
        ValueError: There is a context.

    Example:
        >>> round(gaussian(2)().log_prob(torch.zeros(2)).item(), 4)
        -1.8379
    """
    if context:
        raise ValueError("a 'gaussian' flow takes no context: use 'coupling' or 'spline'")
    return LayeredFlow(features, (), angles, components)


def coupling(
    features: int,
    context: int = 0,
    angles: Tensor | None = None,
    transforms: int = 4,
    hidden_features: Sequence[int] = (64, 64),
    components: int = 1,
) -> LayeredFlow:
    """Affine couplings (Real NVP): the fastest flow, for unimodal posteriors and funnels.

    Arguments:
        features: The dimension.
        context: The number of context features.
        angles: Mask of periodic coordinates; with one the flow is :func:`circular`.
        transforms: The number of coupling layers.
        hidden_features: Widths of the hidden layers of their networks.
        components: The greatest number of components of the latent mixture.

    Example:
        >>> flow = coupling(2, context=1)
        >>> flow(torch.zeros(1)).sample((5,)).shape
        torch.Size([5, 2])
    """
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
    """Spline couplings (NSF): more flexible, for several modes and hard edges.

    Arguments:
        features: The dimension.
        context: The number of context features.
        angles: Mask of periodic coordinates; with one the flow is :func:`circular`.
        transforms: The number of coupling layers.
        hidden_features: Widths of the hidden layers of their networks.
        bins: The number of pieces of each spline.
        components: The greatest number of components of the latent mixture.

    Example:
        >>> spline(2, transforms=2)().sample((5,)).shape
        torch.Size([5, 2])
    """
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
    """Circular spline couplings on a torus, or on torus × R^n.

    Arguments:
        features: The dimension.
        context: The number of context features.
        angles: Mask of periodic coordinates; all of them where None.
        transforms: The number of coupling layers.
        hidden_features: Widths of the hidden layers of their networks.
        bins: The number of pieces of each spline.

    Example:
        >>> x = circular(2)().sample((100,))
        >>> bool((x.abs() <= torch.pi).all())
        True
    """
    angles = torch.ones(features, dtype=torch.bool) if angles is None else angles.cpu()
    univariate = partial(circular_univariate, bins=bins)
    return _stack(features, context, angles, transforms, univariate, 3 * bins, hidden_features)


RECIPES: dict[str, Recipe] = {
    "gaussian": gaussian,
    "coupling": coupling,
    "spline": spline,
    "circular": circular,
}
