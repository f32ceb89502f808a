r"""A flow for angles on a periodic lattice: from coarse to fine, blind to where zero is.

The sites are drawn in groups: one, then those half-way between known ones, and so on, as a
renormalisation group read backwards. The angle :math:`\theta_i` of a new site comes of a latent one
:math:`u_i`, uniform on the circle, by

.. math:: \theta_i = \arg r_i + m_i + G_{\sigma_i}(S_i(u_i)), \qquad
          r_i = \sum_j w_{0j} e^{i\theta_j},

the sum over the nearest known sites :math:`j`; :math:`S_i` a circular spline, and
:math:`G_\sigma` the quantile function of :math:`N(0, \sigma^2)` cut to :math:`[-\pi, \pi]`. Shift,
width and spline are a network's, of the context and of what a rotation of all angles leaves alone,
:math:`z_{ci} \bar r_i / |r_i|` with further sums :math:`z_{ci} = \sum_j w_{cj} e^{i\theta_j}`. So

- the density is exactly that of the lattice turned by any angle, and of the lattice moved by any
  multiple of the coarsest spacing;
- in the limit of low temperatures, spin waves, each :math:`\theta_i` is Gaussian about a weighted
  mean of its neighbours' angles, which is what :math:`r_i` and :math:`\sigma_i` alone express;
- sites of a group are independent given the known ones. On the last groups of the XY model that is
  exact: a site's neighbours are all known.

The map is triangular, its determinant a product, and a layer costs the same for every size of the
lattice: the weights of one can be those of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import log, pi, sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ._zuko import zuko
from .flows import LatentBase
from .maps import CouplingMap, Map, spline_univariate, wrap

__all__ = ["LatticeCoupling", "LatticeFlow", "coarse_to_fine", "cut_normal", "lattice_flow"]

REACH = 24  #: known sites that a new one looks at
EPSILON = 1e-6  #: below which a mean direction is none


# ---- the order of sites ------------------------------------------------------------------------


class Group(NamedTuple):
    """Sites drawn at once.

    Attributes:
        sites: Their indices, ``(n,)``.
        near: For each of them the nearest known sites, ``(n, k)``, in one order of displacements.
        distance: Lengths of those displacements, ``(k,)``.
        key: The level counted from the finest, and which of its groups: the same on all lattices.
    """

    sites: Tensor
    near: Tensor
    distance: Tensor
    key: str


def coarse_to_fine(sizes: Sequence[int], reach: int = REACH) -> list[Group]:
    """Groups of sites, of a lattice of these sizes, in the order in which they are drawn.

    The coarsest sites, spaced by the largest power of two that divides all sizes, come one by one;
    then each level halves the spacing, coset by coset, those of even parity first, and each coset
    in two halves like the squares of a chessboard, where it has such.

    Raises:
        ValueError: More than 64 sites are left on the coarsest level.
    """
    spacing = 1
    while all(n % (2 * spacing) == 0 for n in sizes):
        spacing *= 2
    coarse = [
        tuple(spacing * i for i in at) for at in product(*(range(n // spacing) for n in sizes))
    ]
    if len(coarse) > 64:
        raise ValueError(
            f"a lattice of shape {tuple(sizes)} has no coarser one of at most 64 sites, as its "
            f"sizes are not divisible by a power of two: use such sizes, or flow='circular'"
        )
    known: list[tuple[int, ...]] = []
    groups = []
    for i, site in enumerate(coarse):
        groups.append(_group([site], known, sizes, reach, f"coarse_{i}"))
        known.append(site)
    while spacing > 1:
        spacing //= 2
        for offset in sorted(product((0, 1), repeat=len(sizes)), key=lambda o: (sum(o) % 2, o)):
            if not any(offset):
                continue
            for half, new in enumerate(_halves(sizes, spacing, offset)):
                key = f"{spacing.bit_length() - 1}_{''.join(map(str, offset))}_{half}"
                groups.append(_group(new, known, sizes, reach, key))
                known.extend(new)
    return groups


def _halves(
    sizes: Sequence[int], spacing: int, offset: Sequence[int]
) -> list[list[tuple[int, ...]]]:
    """A coset in two halves, where every axis has an even number of its sites, else whole."""
    counts = [n // (2 * spacing) for n in sizes]
    halves: list[list[tuple[int, ...]]] = [[], []]
    split = all(n % 2 == 0 for n in counts)
    for at in product(*(range(n) for n in counts)):
        site = tuple(spacing * (2 * i + o) for i, o in zip(at, offset))
        halves[sum(at) % 2 if split else 0].append(site)
    return [half for half in halves if half]


def _group(
    new: list[tuple[int, ...]],
    known: list[tuple[int, ...]],
    sizes: Sequence[int],
    reach: int,
    key: str,
) -> Group:
    def index(site: Sequence[int]) -> int:
        flat = 0
        for i, n in zip(site, sizes):
            flat = flat * n + i % n
        return flat

    def length(step: Sequence[int]) -> float:
        return sqrt(sum(min(i % n, -i % n) ** 2 for i, n in zip(step, sizes)))

    first = new[0]
    steps = [tuple((b - a) % n for a, b, n in zip(first, site, sizes)) for site in known]
    steps = sorted(steps, key=lambda step: (length(step), step))[:reach]
    near = [[index([a + b for a, b in zip(site, step)]) for step in steps] for site in new]
    return Group(
        torch.tensor([index(site) for site in new], device="cpu"),
        torch.tensor(near, dtype=torch.long, device="cpu").reshape(len(new), len(steps)),
        torch.tensor([length(step) for step in steps], device="cpu"),
        key,
    )


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
        context: The number of context features, all positive: they enter as :math:`\log c` and c.
        group: Which sites, and what they look at.
        channels: Sums :math:`z_c` beside :math:`r`.
        hidden_features: Widths of the network's hidden layers.
        bins: Of the spline.
    """

    def __init__(
        self,
        features: int,
        context: int,
        group: Group,
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
        self.bins, self.count, self.key = bins, 3 * bins + 2, group.key
        num = len(group.distance)
        closeness = (0.7 * group.distance.min() / group.distance).pow(4) if num else torch.ones(0)
        weight = torch.randn(num, 1 + channels) / max(num, 1) ** 0.5
        weight[:, 0] = closeness / closeness.sum()
        self.weight = nn.Parameter(weight)
        inputs = 1 + 2 * channels + 2 * context
        self.net = zuko.nn.MLP(inputs, 3 * bins + 1, hidden_features, activation=nn.SiLU)
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def parameters_of(self, a: Tensor, context: Tensor | None) -> Tensor:
        """Spline, log width, shift and direction for each new site, ``(..., n, count)``."""
        around = a.index_select(-1, self.near).unflatten(-1, (self.sizes[1], -1))
        re, im = around.cos() @ self.weight, around.sin() @ self.weight
        r_re, r_im = re[..., :1], im[..., :1]
        size = (r_re.square() + r_im.square() + EPSILON**2).sqrt()
        along = (re * r_re + im * r_im) / size
        across = (im * r_re - re * r_im)[..., 1:] / size
        inputs, log_scale = [along, across], 0.0
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


class LatticeFlow(zuko.lazy.Flow):
    """The first site uniform, then one layer after the other, named by their groups' keys."""

    def __init__(self, angles: Tensor, layers: Sequence[LatticeCoupling]) -> None:
        nn.Module.__init__(self)
        self.layers = nn.ModuleDict({layer.key: layer for layer in layers})
        self.base = LatentBase(len(angles), angles)

    @property
    def transform(self) -> zuko.lazy.LazyTransform:
        return zuko.lazy.LazyComposedTransform(*self.layers.values()).inv


def lattice_flow(
    shape: Sequence[int],
    channels: int = 8,
    hidden_features: Sequence[int] = (64, 64),
    bins: int = 8,
    reach: int = REACH,
) -> Callable[..., LatticeFlow]:
    """A recipe for angles on a periodic lattice, as ``AutoFlow(xy_model, flow=lattice_flow((8, 8)))``.

    Context features must be positive, as temperatures are.

    Arguments:
        shape: Sites along each axis; powers of two make the fewest layers.
        channels, hidden_features, bins: See :class:`LatticeCoupling`.
        reach: Known sites that a new one looks at, the nearest.

    Raises:
        ValueError: As in :func:`coarse_to_fine`; for a target of another number of angles.
    """
    groups = coarse_to_fine(shape, reach)

    def recipe(features: int, context: int = 0, angles: Tensor | None = None) -> LatticeFlow:
        sites = sum(len(group.sites) for group in groups)
        if features != sites or angles is None or not bool(angles.all()):
            raise ValueError(
                f"this flow is for {sites} angles, one for each site of a lattice of shape "
                f"{tuple(shape)}; the target has {features} coordinates, of which "
                f"{0 if angles is None else int(angles.sum())} are angles"
            )
        layers = [
            LatticeCoupling(features, context, group, channels, hidden_features, bins)
            for group in groups[1:]
        ]
        return LatticeFlow(angles, layers)

    return recipe
