"""Exact solutions of the XY model on chains and on narrow tori."""

from __future__ import annotations

from math import ceil, log, pi, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from ..problems.problem import EXACT
from .grid import Shape, lattice_shape

__all__ = ["ExactXY", "exact_xy_chain", "exact_xy_torus"]


ALIASED = 1e-10  #: relative size of the Fourier coefficients that the grid of a torus neglects
MAX_STATES = 20_000_000  #: largest number of pairs of rows in the transfer operator of a torus


def check_temperature(temperature: float | Tensor) -> None:
    """Raises ValueError unless the temperature is positive.

    A tensor is not checked: it may be a context, and its value cannot be read under vmap.

    Example:
        >>> check_temperature(-1.0)
        Traceback (most recent call last):
        ValueError: the temperature must be positive, got -1.0
    """
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")


class ExactXY(NamedTuple):
    r"""Exact expectations of the XY model, in float64.

    Attributes:
        log_z: :math:`\log \int e^{-H/T}` over :math:`[-\pi, \pi)^N`.
        energy: :math:`\langle H \rangle / N`.
        mean_square: :math:`\langle m^2 \rangle`.

    Example::

        >>> exact = exact_xy_chain(8, temperature=0.01)  # nearly aligned: N bonds, less T / 2 each
        >>> round(exact.energy, 2), round(exact.mean_square, 1)
        (-1.0, 1.0)
    """

    log_z: float
    energy: float
    mean_square: float


def exact_xy_chain(
    sites: int, temperature: float = 1.0, *, coupling: float = 1.0, periodic: bool = True
) -> ExactXY:
    r"""Computes the exact solution in one dimension, by Bessel functions of :math:`\kappa = J/T`.

    .. math:: Z_\mathrm{ring} = (2\pi)^N \sum_n I_n(\kappa)^N,\qquad
              Z_\mathrm{open} = (2\pi)^N I_0(\kappa)^{N-1},

    and the correlation :math:`\langle \cos(\theta_0 - \theta_r) \rangle` is
    :math:`\sum_n I_n^{N-r} I_{n+1}^r / \sum_n I_n^N` on the ring, :math:`(I_1/I_0)^r` on the open
    chain.

    Arguments:
        sites: The number of sites N.
        temperature: T, in the unit of J.
        coupling: J.
        periodic: Whether the last site is bound to the first.

    Raises:
        ValueError: There are fewer than two sites, or the temperature is not positive.

    Example::

        >>> ratio = torch.special.i1(torch.tensor(2.0)) / torch.special.i0(torch.tensor(2.0))
        >>> energy = exact_xy_chain(2, temperature=0.5, periodic=False).energy  # of one bond
        >>> round(2 * energy + float(ratio), 6)
        0.0
    """
    (sites,) = lattice_shape(sites)
    check_temperature(temperature)
    kappa = coupling / temperature
    scaled = _bessel(kappa)  # I_n over I_0, for the highest powers not to underflow
    log_i0, ratio = float(scaled[0].log()) + abs(kappa), scaled / scaled[0]
    log_z = sites * (log(2 * pi) + log_i0)
    r = torch.arange(sites, **EXACT)
    if periodic:
        powers = ratio ** (sites - r.unsqueeze(1)) * ratio.roll(-1) ** r.unsqueeze(1)
        z = float(powers[0].sum())
        correlation, log_z, bonds = powers.sum(-1) / z, log_z + log(z), sites
        mean_square = float(correlation.mean())
    else:
        correlation, log_z, bonds = ratio[1] ** r, log_z - log_i0, sites - 1
        pairs = torch.where(r > 0, 2 * (sites - r), sites)
        mean_square = float(pairs @ correlation) / sites**2
    return ExactXY(log_z, -coupling * float(correlation[1]) * bonds / sites, mean_square)


def _bessel(kappa: float) -> Tensor:
    r"""Returns :math:`e^{-|\kappa|} I_n(\kappa)` for n = 0, 1, …, −2, −1 by a Fourier transform."""
    num = 64 + 32 * ceil(sqrt(abs(kappa)))
    angle = 2 * pi / num * torch.arange(num, **EXACT)
    return torch.fft.fft((kappa * angle.cos() - abs(kappa)).exp()).real / num


def exact_xy_torus(
    shape: Shape,
    temperature: float = 1.0,
    *,
    coupling: float = 1.0,
    ring_exchange: float = 0.0,
) -> ExactXY:
    r"""Computes the exact solution on a 2×L or 3×L torus, by the transfer operator between rows.

    Angles are on a grid of n points, which converges faster than any power for periodic analytic
    integrands. The relative error is about 1e-10. A row r has the weight D(r). Two neighbouring
    rows have a weight C that depends on their difference only, ring exchange included. So the
    operator is a convolution, and :math:`Z = \operatorname{Tr}(DC)^L`. One angle is fixed. A 3×3
    torus takes seconds and 1 GB at T = 0.5, and more at lower temperatures.

    Arguments:
        shape: Sites along both axes; the shorter axis has 2 or 3.
        temperature: T, in the unit of J and K.
        coupling, ring_exchange: J and K.

    Raises:
        ValueError: There are not two dimensions; an axis has fewer than two sites; the temperature
            is not positive, or too low for the grid; or the torus is too wide.

    Example::

        >>> # the derivative of log Z with respect to 1/T is minus the energy
        >>> above, below = (exact_xy_torus((2, 2), 1 / beta).log_z for beta in (1.01, 0.99))
        >>> energy = 4 * exact_xy_torus((2, 2), 1.0).energy
        >>> abs((above - below) / 0.02 + energy) < 1e-3
        True
    """
    sizes = lattice_shape(shape)
    check_temperature(temperature)
    if len(sizes) != 2:
        raise ValueError(f"a torus has two dimensions, not the shape {tuple(sizes)}")
    rows, width = max(sizes), min(sizes)
    num = _grid_points((4 * abs(coupling) + 4 * abs(ring_exchange)) / temperature)
    if num ** (2 * width - 1) > MAX_STATES:
        raise ValueError(
            f"{num} points an angle and {width} angles a row are too many: take a narrower strip "
            f"or a higher temperature"
        )
    strip = _Strip(width, num, temperature, coupling, ring_exchange)
    return strip.truth(rows)


def _grid_points(field: float) -> int:
    """Returns the number of grid points that resolves exp(field · cos) to :data:`ALIASED`."""
    coefficients = _bessel(field)
    return int((coefficients[: len(coefficients) // 2] > ALIASED * coefficients[0]).sum())


class _Strip:
    """The transfer operator between rows of a periodic strip, on a grid of angles.

    A tensor ``(B, n, …, n)`` holds B functions of a row, one for each of the B = n^(width − 1)
    first rows whose first angle is zero.
    """

    def __init__(self, width: int, num: int, temperature: float, j: float, k: float) -> None:
        angle = 2 * pi / num * torch.arange(num, **EXACT)
        row = torch.stack(torch.meshgrid(*[angle] * width, indexing="ij"), -1)
        steps = row.roll(-1, -1) - row
        self.inside = -j * steps.cos().sum(-1)  # energy of a row
        self.between = -j * row.cos().sum(-1) - k * steps.cos().sum(-1)  # energy of a difference
        self.cos, self.sin = row.cos().sum(-1), row.sin().sum(-1)
        self.temperature, self.width, self.cell = temperature, width, 2 * pi / num
        self.weight = self._boltzmann(self.inside)
        self.kernel = torch.fft.rfftn(self._boltzmann(self.between))

    def _boltzmann(self, energy: Tensor) -> Tensor:
        """Returns the Boltzmann weights over their largest value, to prevent overflow."""
        return ((energy.min() - energy) / self.temperature).exp()

    def _next(self, v: Tensor) -> Tensor:
        """Applies the operator DC."""
        dims = tuple(range(1, v.dim()))
        spectrum = torch.fft.rfftn(v, dim=dims) * self.kernel
        return torch.fft.irfftn(spectrum, s=v.shape[1:], dim=dims) * self.weight

    def _from_first(self, f: Tensor) -> Tensor:
        """Converts a function of the difference from a first row into functions of the next row."""
        dims = tuple(range(1, self.width))
        shifts = torch.cartesian_prod(*[torch.arange(len(f), device="cpu")] * len(dims))
        return torch.stack([f.roll(s, dims) for s in shifts.reshape(-1, len(dims)).tolist()])

    def truth(self, rows: int) -> ExactXY:
        """Computes the expectations for a number of rows.

        All rows are equivalent, so they are measured on the first row and the bonds next to it.
        """
        between = self._from_first(self.between)
        closing = self._boltzmann(between)
        start = self.weight[0].reshape(-1, *[1] * self.width)
        v = first = start * closing * self.weight
        for _ in range(rows - 2):
            v = self._next(v)
        paths = v * closing
        z = float(paths.sum())
        energy = float((paths * between).sum())
        energy += float(paths.flatten(1).sum(-1) @ self.inside[0].flatten())
        square = sum(self._correlation(m, first, closing, rows) for m in (self.cos, self.sin))
        shift = rows * float(self.inside.min() + self.between.min()) / self.temperature
        free = rows * self.width - 1
        log_z = log(z) - shift + free * log(self.cell) + log(2 * pi)
        return ExactXY(log_z, energy / (z * self.width), square / (z * rows * self.width**2))

    def _correlation(self, m: Tensor, v: Tensor, closing: Tensor, rows: int) -> float:
        """Returns Z times the correlation of the first row's m with the sum of m over all rows.

        ``v`` holds the weights of the second row.
        """
        first = m[0].reshape(-1, *[1] * self.width)
        sums = v * (first + m)
        for _ in range(rows - 2):
            v = self._next(v)
            sums = self._next(sums) + v * m
        return float((sums * closing * first).sum())
