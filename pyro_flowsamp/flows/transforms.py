r"""Bijections that give value and log-determinant in one pass, both ways.

A :class:`Map` goes from latent z to data x. zuko's flows hold its inverse, :class:`Flipped`. The
inverse of that is the map itself, so that neither direction evaluates a network twice.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from .._zuko import zuko

__all__ = [
    "AffineMap",
    "CouplingMap",
    "Flipped",
    "Map",
    "Univariate",
    "affine_univariate",
    "circular_univariate",
    "spline_univariate",
    "wrap",
]


def wrap(angle: Tensor) -> Tensor:
    r"""Brings angles into :math:`[-\pi, \pi)`.

    Example:
        >>> round(float(wrap(torch.tensor(4.0))), 4)
        -2.2832
    """
    return torch.remainder(angle + pi, 2 * pi) - pi


class Map(Transform):
    """A bijection z → x; subclasses give :meth:`push` and :meth:`pull`, each with its log-det.

    Example:
        >>> class Doubling(Map):
        ...     def push(self, z):
        ...         return 2 * z, torch.full(z.shape[:-1], 2.0).log() * z.shape[-1]
        ...     def pull(self, x):
        ...         return x / 2, torch.full(x.shape[:-1], 0.5).log() * x.shape[-1]
        >>> map, z = Doubling(), torch.ones(1, 2)
        >>> map(z), map.inv(z)
        (tensor([[2., 2.]]), tensor([[0.5000, 0.5000]]))
        >>> map.log_abs_det_jacobian(z, map(z))  # log 4
        tensor([1.3863])
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def push(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`x(z)` and :math:`\log|\det \partial x / \partial z|`."""
        raise NotImplementedError

    def pull(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`z(x)` and :math:`\log|\det \partial z / \partial x|`."""
        raise NotImplementedError

    def _call(self, z: Tensor) -> Tensor:
        return self.push(z)[0]

    def _inverse(self, x: Tensor) -> Tensor:
        return self.pull(x)[0]

    def call_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-det in one pass, under zuko's name for :meth:`push`."""
        return self.push(z)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The log-det at x; the value y is not needed."""
        return self.push(x)[1]

    @property
    def inv(self) -> Map:
        return Flipped(self)


class Flipped(Map):
    """The inverse of a map.

    Arguments:
        base: The map.

    Example:
        >>> two = torch.tensor([[2.0]])
        >>> map = AffineMap(torch.tensor([1.0]), two, two.log().sum(), None)
        >>> map(3 * two), Flipped(map)(map(3 * two)), Flipped(map).inv is map
        (tensor([[13.]]), tensor([[6.]]), True)
    """

    def __init__(self, base: Map) -> None:
        super().__init__()
        self.base = base

    def push(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.base.pull(z)

    def pull(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.base.push(x)

    @property
    def inv(self) -> Map:
        return self.base


class AffineMap(Map):
    r""":math:`x = \mu + L u` with lower-triangular or diagonal :math:`L`; angles only rotate.

    Arguments:
        loc: :math:`\mu`, ``(d,)``.
        scale: :math:`L`, ``(d, d)``, or its diagonal ``(d,)``.
        log_det: :math:`\log|\det L|`.
        angles: Mask ``(d,)`` of periodic coordinates, or None.

    Example:
        >>> affine = AffineMap(torch.zeros(1), torch.tensor([2.0]), torch.tensor(2.0).log(), None)
        >>> affine.push(torch.ones(1))
        (tensor([2.]), tensor(0.6931))
    """

    def __init__(self, loc: Tensor, scale: Tensor, log_det: Tensor, angles: Tensor | None) -> None:
        super().__init__()
        self.loc, self.scale, self.log_det, self.angles = loc, scale, log_det, angles

    def _wrap(self, x: Tensor) -> Tensor:
        return x if self.angles is None else torch.where(self.angles, wrap(x), x)

    def push(self, z: Tensor) -> tuple[Tensor, Tensor]:
        scaled = z @ self.scale.mT if self.scale.dim() == 2 else z * self.scale
        return self._wrap(self.loc + scaled), self.log_det.expand(z.shape[:-1])

    def pull(self, x: Tensor) -> tuple[Tensor, Tensor]:
        centred = self._wrap(x - self.loc)
        if self.scale.dim() == 2:
            flat = centred.reshape(-1, centred.shape[-1])
            z = torch.linalg.solve_triangular(self.scale, flat.mT, upper=False).mT
            z = z.reshape(centred.shape)
        else:
            z = centred / self.scale
        return z, -self.log_det.expand(x.shape[:-1])


class CouplingLayer(Protocol):
    """The attributes and methods of its layer that a coupling map uses.

    Example:
        >>> from pyro_flowsamp.flows.recipes import coupling
        >>> layer: CouplingLayer = coupling(2, transforms=1).couplings[0]
        >>> sum(layer.order.shape) + sum(layer.back.shape)  # permutations of two coordinates
        4
    """

    order: Tensor
    back: Tensor
    sizes: list[int]

    def parameters_of(self, a: Tensor, context: Tensor | None) -> Tensor: ...
    def univariate(self, phi: Tensor, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]: ...


class CouplingMap(Map):
    r""":math:`x_a = z_a,\; x_b = g(z_b; \phi(z_a, c))`, element-wise monotone :math:`g`.

    Arguments:
        layer: The layer, which has :math:`\phi` and :math:`g`.
        context: :math:`c`, or None.

    Example:
        >>> from pyro_flowsamp.flows import Coupling
        >>> layer = Coupling(2, 0, torch.tensor([True, False]), affine_univariate, 2)
        >>> with torch.no_grad():
        ...     _ = layer.net[-1].bias.copy_(torch.tensor([1.0, 0.0]))  # a shift of one
        >>> x, ladj = CouplingMap(layer, None).push(torch.zeros(1, 2))
        >>> x.tolist(), ladj.tolist()
        ([[0.0, 1.0]], [0.0])
    """

    def __init__(self, layer: CouplingLayer, context: Tensor | None) -> None:
        super().__init__()
        self.layer, self.context = layer, context

    def _couple(self, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        a, b = z.index_select(-1, self.layer.order).split(self.layer.sizes, -1)
        b, ladj = self.layer.univariate(self.layer.parameters_of(a, self.context), b, inverse)
        return torch.cat([a, b], -1).index_select(-1, self.layer.back), ladj.sum(-1)

    def push(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._couple(z, inverse=False)

    def pull(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._couple(x, inverse=True)


# ---- element-wise monotone functions g(z; phi): (N, b, k) parameters, (N, b) values ------------
Univariate = Callable[..., tuple[Tensor, Tensor]]


def _apply(transform: Any, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    return (transform.inv if inverse else transform).call_and_ladj(x)


def affine_univariate(phi: Tensor, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """Scale and shift, the map of Real NVP.

    Arguments:
        phi: Parameters, ``(N, b, 2)``.
        x: Values, ``(N, b)``.
        inverse: Whether to invert the map.

    Returns:
        Values and log-dets, ``(N, b)`` each.

    References:
        Laurent Dinh, Jascha Sohl-Dickstein and Samy Bengio, *Density estimation using Real NVP*,
        2017, https://arxiv.org/abs/1605.08803.

    Example:
        >>> phi = torch.tensor([[[3.0, 0.0]]])  # shift 3, log scale 0
        >>> affine_univariate(phi, torch.tensor([[1.0]]), inverse=False)
        (tensor([[4.]]), tensor([[0.]]))
        >>> affine_univariate(phi, torch.tensor([[4.0]]), inverse=True)[0]
        tensor([[1.]])
    """
    return _apply(zuko.transforms.MonotonicAffineTransform(*phi.unbind(-1)), x, inverse)


def spline_univariate(
    phi: Tensor, x: Tensor, inverse: bool, bins: int, bound: float | Tensor = 5.0
) -> tuple[Tensor, Tensor]:
    """Rational-quadratic splines on an interval, and the identity outside it.

    Arguments:
        phi: Parameters, ``(N, b, 3 bins - 1)``.
        x: Values, ``(N, b)``.
        inverse: Whether to invert the map.
        bins: The number of pieces.
        bound: The half width of the interval.

    Returns:
        Values and log-dets, ``(N, b)`` each.

    References:
        Conor Durkan, Artur Bekasov, Iain Murray and George Papamakarios, *Neural Spline Flows*,
        2019, https://arxiv.org/abs/1906.04032.

    Example:
        >>> x, phi = torch.tensor([[0.0, 2.0, 9.0]]), torch.zeros(1, 3, 3 * 4 - 1)
        >>> spline_univariate(phi, x, False, bins=4)[0].round(decimals=4)  # equal pieces: identity
        tensor([[0., 2., 9.]])
        >>> phi = torch.randn(1, 3, 11)
        >>> y = spline_univariate(phi, x, False, bins=4)[0]
        >>> torch.allclose(spline_univariate(phi, y, True, bins=4)[0], x, atol=1e-4), float(y[0, 2])
        (True, 9.0)
    """
    knots = phi.split([bins, bins, bins - 1], -1)
    return _apply(zuko.transforms.MonotonicRQSTransform(*knots, bound=bound), x, inverse)


def circular_univariate(
    phi: Tensor, x: Tensor, inverse: bool, bins: int, angles: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Splines on the circle for angles, on :math:`[-8, 8]` for the other coordinates.

    An angle is rotated by half a turn and a trained phase, then transformed by a spline that is
    smooth across :math:`\pm\pi`.

    Arguments:
        phi: Parameters, ``(N, b, 3 bins)``, the phase last.
        x: Values, ``(N, b)``.
        inverse: Whether to invert the map.
        bins: The number of pieces.
        angles: Mask ``(b,)`` of periodic coordinates.

    Returns:
        Values and log-dets, ``(N, b)`` each.

    References:
        Danilo Jimenez Rezende et al., *Normalizing Flows on Tori and Spheres*, 2020,
        https://arxiv.org/abs/2002.02428.

    Example:
        >>> angles, phi = torch.tensor([True]), torch.randn(1, 1, 3 * 4)
        >>> ends = torch.tensor([[-pi], [pi - 1e-6]])
        >>> y, ladj = circular_univariate(phi, ends, False, 4, angles)
        >>> gap = wrap(y[0] - y[1]).abs()  # the two ends are one point of the circle
        >>> float(gap) < 1e-3, abs(float(ladj[0] - ladj[1])) < 1e-3
        (True, True)
    """
    knots, phase = phi[..., :-1], phi[..., -1] + pi
    bound = torch.where(angles, pi, 8.0).to(x)[..., None]
    if inverse:
        z, ladj = spline_univariate(knots, x, True, bins, bound)
        return torch.where(angles, wrap(z - phase), z), ladj
    turned = torch.where(angles, wrap(x + phase), x)
    return spline_univariate(knots, turned, False, bins, bound)
