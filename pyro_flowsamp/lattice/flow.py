r"""A flow for angles on a periodic lattice, from coarse to fine, that respects rotations.

The sites are drawn in groups: first one, then those half-way between known ones, and so on. This is
a renormalisation group step, inverted. The angle :math:`\theta_i` of a new site is a function of a
latent angle :math:`u_i`, uniform on the circle:

.. math:: \theta_i = \arg r_i + m_i + G_{\sigma_i}(S_i(u_i)), \qquad
          r_i = \sum_j w_{0j} e^{i\theta_j} .

The sum is over the nearest known sites :math:`j`, and over squares of which the other corners a, b
and the opposite corner c are known. For a square :math:`\theta_j = \theta_a + \theta_b - \theta_c`,
which is the angle of a field with a constant slope. :math:`S_i` is a circular spline, and
:math:`G_\sigma` is the quantile function of :math:`N(0, \sigma^2)` truncated to
:math:`[-\pi, \pi]`. A network computes the shift :math:`m_i`, the width and the spline. Its inputs
are the context and the sums :math:`z_{ci} \bar r_i / |r_i|` with
:math:`z_{ci} = \sum_j w_{cj} e^{i\theta_j}`, which a rotation of all angles does not change. It
follows that

- a rotation of all angles does not change the density;
- in the limit of low temperatures (spin waves), each :math:`\theta_i` is Gaussian about a weighted
  mean of its neighbours' angles, which :math:`r_i` and :math:`\sigma_i` alone express;
- the sites of a group are independent given the known ones. In the XY model that is exact for the
  last half of the sites, whose neighbours are all known; with ring exchange for the last coset.

The map is triangular, and its determinant is a product. The sites of a group share their weights,
so that the trained layers of a small lattice can initialise those of a larger one.
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


EPSILON = 1e-6  #: added to the length of a mean direction, to divide by


# ---- the layer ---------------------------------------------------------------------------------
def cut_normal(u: Tensor, log_scale: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    r"""Maps uniform angles to a normal truncated to the circle, with the log-derivative.

    .. math:: G_\sigma(u) = \sqrt2\,\sigma\, \operatorname{erf}^{-1}(a u / \pi), \qquad
              a = \operatorname{erf}(\pi / \sqrt2 \sigma), \qquad
              \log G_\sigma' = \log\frac{a \sigma}{\sqrt{2\pi}} + \frac{G_\sigma^2}{2\sigma^2}.

    Arguments:
        u: Angles in :math:`[-\pi, \pi]`, of any shape.
        log_scale: :math:`\log \sigma`, of a shape that broadcasts.
        inverse: Whether to apply the inverse of :math:`G_\sigma`.

    Returns:
        The values and the log-derivatives.

    Example:
        >>> u = torch.tensor([-3.0, 0.0, 2.0])
        >>> z, ladj = cut_normal(u, torch.tensor(0.5).log(), inverse=False)
        >>> back, ladj_back = cut_normal(z, torch.tensor(0.5).log(), inverse=True)
        >>> torch.allclose(back, u, atol=1e-4), torch.allclose(ladj, -ladj_back, atol=1e-4)
        (True, True)
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
    r"""A layer that draws a group of sites given the known ones; see the module's docstring.

    Arguments:
        features: The number of sites of the lattice.
        context: The number of context features, which are positive. They enter as :math:`\log c`
            and c. Widths start in proportion to the square root of their product, which is right
            for a temperature.
        group: The sites, and the known sites that they depend on.
        channels: Number of sums :math:`z_c` beside :math:`r`.
        hidden_features: Widths of the network's hidden layers.
        bins: Number of bins of the spline.

    Example:
        >>> from pyro_flowsamp.lattice.grid import coarse_to_fine
        >>> group = coarse_to_fine((4,))[-1]
        >>> layer = LatticeCoupling(4, 0, group)
        >>> x = torch.tensor([[0.5, -1.0, 2.0, 0.1]])
        >>> torch.allclose(layer().inv(layer()(x)), x, atol=1e-4)
        True
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
        """Returns spline, log width and direction for each new site, ``(..., n, count)``."""
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
        """Maps a new site's latent angle to its angle, or back, with the log-derivative."""
        knots, log_scale, direction = phi[..., :-2], phi[..., -2], phi[..., -1]
        if inverse:
            u, ladj = cut_normal(wrap(x - direction), log_scale, True)
            z, bent = spline_univariate(knots, u, True, self.bins, pi)
            return z, ladj + bent
        u, bent = spline_univariate(knots, x, False, self.bins, pi)
        angle, ladj = cut_normal(u, log_scale, False)
        return wrap(angle + direction), ladj + bent

    def forward(self, c: Tensor | None = None) -> Map:
        """Returns the bijection at a context."""
        return CouplingMap(self, c)


class CircleMap(Map):
    r"""Wraps latent angles to :math:`[-\pi, \pi)`.

    A chain in latent space may leave the interval.

    Example:
        >>> CircleMap()(torch.tensor([[4.0]])).round(decimals=4)  # 4 - 2π
        tensor([[-2.2832]])
    """

    def push(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return wrap(z), torch.zeros_like(z[..., 0])

    def pull(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return wrap(x), torch.zeros_like(x[..., 0])


class Circle(zuko.lazy.LazyTransform):
    """The layer of a flow that wraps latent angles.

    Example:
        >>> Circle()().inv(torch.tensor([[4.0]])).round(decimals=4)  # 4 - 2π
        tensor([[-2.2832]])
    """

    def forward(self, c: Tensor | None = None) -> Map:
        """Returns the map, which is the same at all contexts."""
        return CircleMap()


class LatticeFlow(zuko.lazy.Flow):
    """A flow for angles on a periodic lattice, with one layer for each group of sites.

    Arguments:
        angles: Mask of angles, all true, ``(d,)``.
        layers: The layers in the order in which their sites are drawn. The first site is uniform.

    Example::

        >>> flow = lattice_flow((4, 4))(16, 0, torch.ones(16, dtype=torch.bool))
        >>> type(flow).__name__, len(flow.layers)
        ('LatticeFlow', 9)
    """

    def __init__(self, angles: Tensor, layers: Sequence[LatticeCoupling]) -> None:
        nn.Module.__init__(self)
        self.circle = Circle()
        self.layers = nn.ModuleDict({layer.key: layer for layer in layers})
        self.base = LatentBase(len(angles), angles)

    @property
    def transform(self) -> zuko.lazy.LazyTransform:
        """The map from points to latent variables."""
        return zuko.lazy.LazyComposedTransform(self.circle, *self.layers.values()).inv

    def check_context(self, rows: Tensor) -> None:
        """Raises ValueError unless all context features ``(K, c)`` are positive."""
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
    """Makes a recipe of a flow for angles on a periodic lattice, for the argument ``flow=``.

    Context features must be positive, such as temperatures.

    Arguments:
        shape: Sites along each axis; powers of two make the fewest layers.
        channels, hidden_features, bins: See
            :class:`~pyro_flowsamp.lattice.flow.LatticeCoupling`.
        reach: Number of nearest known sites that a new site depends on.

    Returns:
        A function of ``(features, context, angles)`` that makes the flow. It raises ValueError
        where the target has another number of angles.

    Raises:
        ValueError: An axis has fewer than two sites, the reach is below one, or the coarsest level
            has more than 64 sites.

    Example::

        >>> from pyro_flowsamp import AutoFlow, Target
        >>> from pyro_flowsamp.lattice import xy
        >>> guide = AutoFlow(xy((4, 4)).target, flow=lattice_flow((4, 4)))
        >>> flow = lattice_flow((4, 4))(16, 0, torch.ones(16, dtype=torch.bool))
        >>> flow(None).sample((3,)).shape
        torch.Size([3, 16])
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
