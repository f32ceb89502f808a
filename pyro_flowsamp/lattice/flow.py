r"""A flow for angles on a periodic lattice: from coarse to fine, blind to where zero is.

The sites are drawn in groups: one, then those half-way between known ones, and so on, as a
renormalisation group read backwards. The angle :math:`\theta_i` of a new site comes of a latent one
:math:`u_i`, uniform on the circle, by

.. math:: \theta_i = \arg r_i + m_i + G_{\sigma_i}(S_i(u_i)), \qquad
          r_i = \sum_j w_{0j} e^{i\theta_j},

the sum over the nearest known sites :math:`j`, and over squares of which the other corners a, b
and the opposite one c are known, with :math:`\theta_j = \theta_a + \theta_b - \theta_c`, the angle
that a field with a constant slope would have; :math:`S_i` a circular spline, and
:math:`G_\sigma` the quantile function of :math:`N(0, \sigma^2)` cut to :math:`[-\pi, \pi]`. Shift,
width and spline are a network's, of the context and of what a rotation of all angles leaves alone,
:math:`z_{ci} \bar r_i / |r_i|` with further sums :math:`z_{ci} = \sum_j w_{cj} e^{i\theta_j}`. So

- the density is exactly that of the lattice turned by any angle;
- in the limit of low temperatures, spin waves, each :math:`\theta_i` is Gaussian about a weighted
  mean of its neighbours' angles, which is what :math:`r_i` and :math:`\sigma_i` alone express;
- sites of a group are independent given the known ones. On the XY model that is exact for the last
  half of the sites, whose neighbours are all known; with ring exchange for the last coset.

The map is triangular, its determinant a product. Sites of a group share their weights, so that
the trained layers of a small lattice can initialise those of a larger one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import log, pi, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from .._zuko import zuko
from ..flows.latent import LatentBase
from ..flows.transforms import CouplingMap, Map, spline_univariate, wrap
from .grid import REACH, SiteGroup, coarse_to_fine

__all__ = ["LatticeCoupling", "LatticeFlow", "cut_normal", "lattice_flow"]


EPSILON = 1e-6  #: what a mean direction's length is at least, to divide by


# ---- the layer ---------------------------------------------------------------------------------
def cut_normal(u: Tensor, log_scale: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    r""":math:`G_\sigma`: angles uniform on the circle to N(0, σ²) cut to it, with log-derivative.

    .. math:: G_\sigma(u) = \sqrt2\,\sigma\, \operatorname{erf}^{-1}(a u / \pi), \qquad
              a = \operatorname{erf}(\pi / \sqrt2 \sigma), \qquad
              \log G_\sigma' = \log\frac{a \sigma}{\sqrt{2\pi}} + \frac{G_\sigma^2}{2\sigma^2}.
    """
    scale = log_scale.exp()
    mass = torch.erf(pi / (sqrt(2) * scale))
    constant = log_scale + mass.log() - 0.5 * log(2 * pi)
    if inverse:
        z = u / scale
        return torch.erf(z / sqrt(2)) * (pi / mass), -(constant + 0.5 * z.square())
    most = 1 - torch.finfo(u.dtype).eps
    z = sqrt(2) * torch.erfinv((mass * u / pi).clamp(-most, most))
    return scale * z, constant + 0.5 * z.square()


class LatticeCoupling(zuko.lazy.LazyTransform):
    r"""Draws a group of sites given those that are known; see the module's docstring.

    Arguments:
        features: Sites of the lattice.
        context: The number of context features, all positive: they enter as :math:`\log c` and c,
            and widths start in proportion to the square root of their product, as at a temperature.
        group: Which sites, and what they look at.
        channels: Sums :math:`z_c` beside :math:`r`.
        hidden_features: Widths of the network's hidden layers.
        bins: Of the spline.
    """

    def __init__(
        self,
        features: int,
        context: int,
        group: SiteGroup,
        channels: int = 8,
        hidden_features: Sequence[int] = (64, 64),
        bins: int = 8,
    ) -> None:
        super().__init__()
        moved = torch.zeros(features, dtype=torch.bool, device="cpu")
        moved[group.sites] = True
        order = torch.cat([(~moved).nonzero()[:, 0], group.sites])
        back = torch.argsort(order)
        self.sizes = [features - len(group.sites), len(group.sites)]
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", back, persistent=False)
        self.register_buffer("near", back[group.near].flatten(), persistent=False)
        self.register_buffer("corners", back[group.corners].flatten(), persistent=False)
        self.bins, self.count, self.key = bins, 3 * bins + 2, group.key
        self.steps = group.steps
        num, squares = len(group.distance), group.corners.shape[1]
        closeness = group.distance.pow(-4)
        weight = torch.randn(num + squares, 1 + channels) / (num + squares) ** 0.5
        weight[:num, 0], weight[num:, 0] = closeness / closeness.sum(), 0.0
        self.weight = nn.Parameter(weight)
        inputs = 1 + 2 * channels + 2 * context
        self.net = zuko.nn.MLP(inputs, 3 * bins + 1, hidden_features, activation=nn.SiLU)
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def parameters_of(self, a: Tensor, context: Tensor | None) -> Tensor:
        """Spline, log width, shift and direction for each new site, ``(..., n, count)``."""
        around = a.index_select(-1, self.near).unflatten(-1, (self.sizes[1], -1))
        if len(self.corners):
            square = a.index_select(-1, self.corners).unflatten(-1, (self.sizes[1], -1, 3))
            extended = square[..., 0] + square[..., 1] - square[..., 2]
            around = torch.cat([around, extended], -1)
        re, im = around.cos() @ self.weight, around.sin() @ self.weight
        r_re, r_im = re[..., :1], im[..., :1]
        size = (r_re.square() + r_im.square() + EPSILON**2).sqrt()
        along = (re * r_re + im * r_im) / size
        across = (im * r_re - re * r_im)[..., 1:] / size
        inputs, log_scale = [along, across], torch.zeros_like(r_re)
        if context is not None:
            rows = torch.cat([context.log(), context], -1)[..., None, :]
            inputs.append(rows.expand(*along.shape[:-1], rows.shape[-1]))
            log_scale = 0.5 * context.log().sum(-1)[..., None, None]
        phi = self.net(torch.cat(inputs, -1))
        knots, width, shift = phi.split([3 * self.bins - 1, 1, 1], -1)
        direction = shift + torch.atan2(r_im, r_re)
        return torch.cat([knots, width + log_scale, direction], -1)

    def univariate(self, phi: Tensor, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        knots, log_scale, direction = phi[..., :-2], phi[..., -2], phi[..., -1]
        if inverse:
            u, ladj = cut_normal(wrap(x - direction), log_scale, True)
            z, bent = spline_univariate(knots, u, True, self.bins, pi)
            return z, ladj + bent
        u, bent = spline_univariate(knots, x, False, self.bins, pi)
        angle, ladj = cut_normal(u, log_scale, False)
        return wrap(angle + direction), ladj + bent

    def forward(self, c: Tensor | None = None) -> Map:
        return CouplingMap(self, c)


class CircleMap(Map):
    """Brings latent angles onto the circle, wherever a chain in latent space has taken them."""

    def push(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return wrap(z), torch.zeros_like(z[..., 0])

    def pull(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return wrap(x), torch.zeros_like(x[..., 0])


class Circle(zuko.lazy.LazyTransform):
    """The same in a flow."""

    def forward(self, c: Tensor | None = None) -> Map:
        return CircleMap()


class LatticeFlow(zuko.lazy.Flow):
    """The first site uniform, then one layer after the other, named by their groups' keys."""

    def __init__(self, angles: Tensor, layers: Sequence[LatticeCoupling]) -> None:
        nn.Module.__init__(self)
        self.circle = Circle()
        self.layers = nn.ModuleDict({layer.key: layer for layer in layers})
        self.base = LatentBase(len(angles), angles)

    @property
    def transform(self) -> zuko.lazy.LazyTransform:
        return zuko.lazy.LazyComposedTransform(self.circle, *self.layers.values()).inv

    def check_context(self, rows: Tensor) -> None:
        """Raises ValueError unless all features ``(K, c)`` are positive."""
        if not bool((rows > 0).all()):
            raise ValueError(
                f"a lattice flow's context must be positive, as temperatures are: its least is "
                f"{float(rows.min()):.3g}"
            )


def lattice_flow(
    shape: int | Sequence[int],
    channels: int = 8,
    hidden_features: Sequence[int] = (64, 64),
    bins: int = 8,
    reach: int = REACH,
) -> Callable[..., LatticeFlow]:
    """A recipe for angles on a periodic lattice: ``AutoFlow(xy_model, flow=lattice_flow((8, 8)))``.

    Context features must be positive, as temperatures are.

    Arguments:
        shape: Sites along each axis; powers of two make the fewest layers.
        channels, hidden_features, bins: See :class:`LatticeCoupling`.
        reach: Known sites that a new one looks at, the nearest.

    Raises:
        ValueError: As in :func:`coarse_to_fine`; for a target of another number of angles.
    """
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    groups = coarse_to_fine(sizes, reach)
    return partial(
        _flow_of, groups, channels=channels, hidden_features=tuple(hidden_features), bins=bins
    )


def _flow_of(
    groups: Sequence[SiteGroup],
    features: int,
    context: int = 0,
    angles: Tensor | None = None,
    **options: Any,
) -> LatticeFlow:
    sites = sum(len(group.sites) for group in groups)
    if features != sites or angles is None or not bool(angles.all()):
        raise ValueError(
            f"this flow is for {sites} angles, one for each site of its lattice; the target has "
            f"{features} coordinates, of which {0 if angles is None else int(angles.sum())} are "
            f"angles"
        )
    layers = [LatticeCoupling(features, context, group, **options) for group in groups[1:]]
    return LatticeFlow(angles, layers)
