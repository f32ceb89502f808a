r"""The exact solution of the :math:`\varphi^4` field on a circle, and exact draws.

On a circle of N sites :math:`Z = \operatorname{Tr} T^N` with the transfer operator

.. math:: T(u, v) = e^{-V(u)/2 - (u - v)^2 - V(v)/2},

and the field's mean has the characteristic function :math:`E\,e^{i\omega\bar\varphi} =
\operatorname{Tr} (e^{i\omega u/N} T)^N / Z`. All integrands are analytic and vanish at the ends, so
that the trapezium rule is exact to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, log, pi, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from ..problems.problem import EXACT, TensorOptions
from .grid import lattice_shape

__all__ = ["ExactPhi4", "exact_phi4"]


NEGLIGIBLE = 45.0  #: height of V above its minimum beyond which the density e^-45 is neglected
MAX_GRID = 4000  #: largest number of points at which the transfer operator is diagonalised
REJECTED = 0.2  #: log of the factor by which rejection's envelope exceeds the density


def potential(
    u: Tensor, mass: float | Tensor, coupling: float | Tensor, alpha: float | Tensor
) -> Tensor:
    r"""Computes :math:`V(u) = -m u^2 + \lambda (u - \alpha)^4` at values of any shape.

    Arguments:
        u: The values.
        mass, coupling, alpha: :math:`m`, :math:`\lambda` and :math:`\alpha`.

    Example:
        >>> potential(torch.tensor([0.0, 2.0]), mass=1.0, coupling=0.5, alpha=0.0)  # u⁴ / 2 - u²
        tensor([0., 4.])
    """
    return coupling * (u - alpha).square().square() - mass * u.square()


def check_normalisable(mass: float, coupling: float) -> None:
    """Raises ValueError where V does not rise to infinity.

    Example:
        >>> check_normalisable(mass=1.0, coupling=0.0)
        Traceback (most recent call last):
        ValueError: coupling must be positive, or zero with a negative mass, for a density ...
    """
    if coupling < 0 or (coupling == 0 and mass >= 0):
        raise ValueError(
            f"coupling must be positive, or zero with a negative mass, for a density that can be "
            f"normalised; got coupling {coupling}, mass {mass}"
        )


class Transfer(NamedTuple):
    r"""The transfer operator on a grid.

    Attributes:
        u: The grid, ``(G,)``, from −R to R.
        spacing: Spacing h of the grid.
        minimum: Minimum of V on the grid.
        matrix: :math:`h\,T(u, v)\,e^{\min V}`, ``(G, G)``.
        values, vectors: Its eigenvalues that are not rounding, ``(r,)`` and ``(G, r)``.

    Example:
        >>> grid = _transfer(-1.0, 1.0, 0.0, 3.0, 0.05)
        >>> log_z = grid.values.pow(8).sum().log() - 8 * grid.minimum  # the trace of eight steps
        >>> abs(float(log_z) - exact_phi4(8, -1.0, 1.0, 0.0).log_z) < 1e-6
        True
    """

    u: Tensor
    spacing: float
    minimum: float
    matrix: Tensor
    values: Tensor
    vectors: Tensor


def _half_width(mass: float, coupling: float, alpha: float) -> float:
    """Returns R, beyond which V is so high above its minimum that the density is negligible."""
    half = 1 + 2 * abs(alpha) + (sqrt(max(mass, 0) / coupling) if coupling else 0)
    while True:  # all stationary points are inside: V only rises from here
        v = potential(torch.linspace(-half, half, 1001, **EXACT), mass, coupling, alpha)
        if min(v[0], v[-1]) > v.min() + NEGLIGIBLE:
            return half
        half *= 1.1


def _transfer(mass: float, coupling: float, alpha: float, half: float, spacing: float) -> Transfer:
    """Makes the operator on a grid of [−half, half], with steps no larger than ``spacing``."""
    num = ceil(2 * half / spacing) + 1
    if num > MAX_GRID:
        raise ValueError(
            f"the exact solution needs a grid of {num} points, more than {MAX_GRID}: wells are too "
            f"far apart, or the circle too long (mass {mass}, coupling {coupling}, alpha {alpha})"
        )
    u = torch.linspace(-half, half, num, **EXACT)
    h = float(u[1] - u[0])
    v = potential(u, mass, coupling, alpha)
    minimum = float(v.min())
    site = 0.5 * (v - minimum)
    matrix = h * (-site - site.unsqueeze(1) - (u - u.unsqueeze(1)).square()).exp()
    values, vectors = torch.linalg.eigh(matrix)
    large = values > 1e-16 * values[-1]
    return Transfer(u, h, minimum, matrix, values[large], vectors[:, large])


@dataclass(frozen=True, eq=False)
class ExactPhi4:
    r"""Exact expectations on the circle, in float64.

    Attributes:
        log_z: :math:`\log \int e^{-S}`.
        mean_square: :math:`\langle \varphi_i^2 \rangle`.
        action: :math:`\langle S \rangle / N`.
        mean_abs: :math:`\langle |\bar\varphi| \rangle`, of the field's mean :math:`\bar\varphi`.
        positive: :math:`P(\bar\varphi > 0)`.

    Example::

        >>> exact = exact_phi4(8)
        >>> round(exact.positive, 4) == round(1 - float(exact.cdf(torch.tensor(0.0))), 4)
        True
    """

    log_z: float
    mean_square: float
    action: float
    mean_abs: float
    positive: float
    _period: float
    _coefficients: Tensor

    def density(self, mean: Tensor) -> Tensor:
        r"""Returns the density of :math:`\bar\varphi` at points of any shape, to about 1e-13."""
        waves = self._waves(mean) * self._coefficients
        return (1 + 2 * waves.real.sum(-1)) / self._period * self._inside(mean)

    def cdf(self, mean: Tensor) -> Tensor:
        r"""Returns :math:`P(\bar\varphi \le a)` at points of any shape.

        Differences of it are the exact masses of a histogram's bins.
        """
        half = 0.5 * self._period
        a = mean.to(**EXACT).clamp(-half, half)
        ends = a.new_tensor(-half)
        omega = _frequencies(len(self._coefficients), self._period)
        waves = (self._waves(ends) - self._waves(a)) * self._coefficients / omega
        return (a + half + 2 * waves.imag.sum(-1)) / self._period

    def _waves(self, mean: Tensor) -> Tensor:
        omega = _frequencies(len(self._coefficients), self._period)
        return torch.exp(-1j * omega * mean.to(**EXACT).unsqueeze(-1))

    def _inside(self, mean: Tensor) -> Tensor:
        return mean.to(**EXACT).abs() <= 0.5 * self._period


def _frequencies(num: int, period: float) -> Tensor:
    return 2 * pi / period * torch.arange(1, num + 1, **EXACT)


def exact_phi4(
    sites: int = 16, mass: float = 0.5, coupling: float = 1 / 16, alpha: float = 0.01
) -> ExactPhi4:
    r"""Computes the exact solution on a circle by the transfer operator.

    The density of the mean is a Fourier series, whose coefficients are the characteristic function
    at the multiples of :math:`2\pi/2R`, up to the frequency that the grid resolves. Integrals of
    its terms give :math:`\langle|\bar\varphi|\rangle` and :math:`P(\bar\varphi > 0)`. For 64
    sites it takes a fraction of a second.

    Arguments:
        sites: The number of sites N.
        mass, coupling, alpha: :math:`m`, :math:`\lambda`, :math:`\alpha`.

    Raises:
        ValueError: There are fewer than two sites; the density cannot be normalised; the wells are
            too far apart for the grid.

    Example::

        >>> # a coupling of zero makes a Gaussian field, with log Z = d/2 log(π) - log det(A)/2
        >>> A = 3 * torch.eye(4).double() - torch.eye(4).double().roll(1, 0)
        >>> A = A - torch.eye(4).double().roll(-1, 0)
        >>> expected = 2 * log(pi) - 0.5 * torch.logdet(A)
        >>> abs(exact_phi4(4, mass=-1.0, coupling=0.0).log_z - float(expected)) < 1e-9
        True
    """
    (sites,) = lattice_shape(sites)
    check_normalisable(mass, coupling)
    half = _half_width(mass, coupling, alpha)
    sharpest = 4 + 4 * abs(mass) + 10 * sqrt(coupling)  # bound on the curvature of the integrands
    grid = _transfer(mass, coupling, alpha, half, 0.2 / sqrt(sharpest))
    top, powers = float(grid.values[-1]), grid.values / grid.values[-1]
    z = float((powers**sites).sum())
    at_site = (grid.vectors.square() * powers**sites).sum(-1) / z
    bond = (grid.vectors * powers ** (sites - 1)) @ grid.vectors.T * grid.matrix / (top * z)
    squares = (grid.u - grid.u.unsqueeze(1)).square()
    at_point = potential(grid.u, mass, coupling, alpha)
    chi = _characteristic(grid, sites) / z
    omega = _frequencies(len(chi), 2 * half)[::2]  # the odd ones; of the others nothing remains
    positive = 0.5 + 2 / half * float((chi.imag[::2] / omega).sum())
    return ExactPhi4(
        log_z=log(z) + sites * (log(top) - grid.minimum),
        mean_square=float(at_site @ grid.u.square()),
        action=float(at_site @ at_point + (bond * squares).sum()),
        mean_abs=half / 2 - 4 / half * float((chi.real[::2] / omega.square()).sum()),
        positive=min(max(positive, 0.0), 1.0),  # rounding may lead out
        _period=2 * half,
        _coefficients=chi,
    )


def _characteristic(grid: Transfer, sites: int) -> Tensor:
    r"""Returns traces of :math:`(e^{i\omega_j u/N} T)^N` over the largest eigenvalue's power.

    Their shape is ``(J,)``.
    """
    num, rank = sites * (len(grid.u) - 1) // 2, len(grid.values)
    root = grid.vectors * (grid.values / grid.values[-1]).sqrt()
    pairs = (root.unsqueeze(2) * root.unsqueeze(1)).flatten(1).to(torch.complex128)
    omega = _frequencies(num, 2 * float(grid.u[-1])) / sites
    traces = []
    for part in omega.split(128):
        twisted = torch.exp(1j * part.unsqueeze(1) * grid.u) @ pairs
        power = torch.linalg.matrix_power(twisted.reshape(-1, rank, rank), sites)
        traces.append(power.diagonal(dim1=1, dim2=2).sum(-1))
        if traces[-1].abs().max() < 1e-18:  # a smooth density has no higher frequencies
            break
    return torch.cat(traces)


# ---- exact draws on the circle ------------------------------------------------------------------
def sampler(
    action: Callable[[Tensor], Tensor],
    mass: float,
    coupling: float,
    alpha: float,
    sites: int,
    at: TensorOptions,
) -> Callable[[int], Tensor]:
    r"""Makes an exact sampler by rejection from the multilinear interpolant of :math:`e^{-S}`.

    Along one coordinate :math:`\partial_i^2 S = V'' + 4 \le \kappa`. So within a cell of width h,
    :math:`e^{-S}` is at most :math:`e^{\kappa h^2/8}` times its linear interpolant. Interpolation
    along one coordinate after the other gives the bound :math:`e^{N\kappa h^2/8}`.

    Arguments:
        action: S of points ``(N, d)``.
        mass, coupling, alpha: :math:`m`, :math:`\lambda`, :math:`\alpha`.
        sites: The number of sites.
        at: Dtype and device of the draws.

    Example:
        >>> from pyro_flowsamp.lattice.phi4_density import phi4_action
        >>> def action(x):
        ...     return phi4_action(x, 2, mass=-1.0, coupling=1.0)
        >>> draw = sampler(action, -1.0, 1.0, 0.0, 2, EXACT)
        >>> x = draw(500)
        >>> x.shape, abs(float(x.mean())) < 0.2
        (torch.Size([500, 2]), True)
    """
    half = _half_width(mass, coupling, alpha)
    steepest = 4 - 2 * mass + 12 * coupling * (half + abs(alpha)) ** 2
    grid = _transfer(mass, coupling, alpha, half, sqrt(8 * REJECTED / (sites * steepest)))
    constant = sites * (grid.minimum + log(grid.spacing)) - REJECTED

    def accepted(x: Tensor) -> Tensor:
        log_p = constant - action(x)
        log_u = torch.rand(len(x), **EXACT).log()
        return x[log_u < log_p - _interpolant(grid, x).log()]

    def sample(num: int) -> Tensor:
        kept = torch.empty(0, sites, **EXACT)
        while len(kept) < num:
            missing = ceil(1.25 * (num - len(kept))) + 8
            kept = torch.cat([kept, accepted(_proposals(grid, sites, min(missing, 8192)))])
        return kept[:num].to(**at)

    return sample


def _proposals(grid: Transfer, sites: int, num: int) -> Tensor:
    """Draws from the interpolant: a chain on the grid, plus a triangular variate at each site."""
    powers, u = grid.values / grid.values[-1], grid.vectors
    start = (u.square() * powers**sites).sum(-1)
    first = torch.multinomial(start, num, replacement=True)
    cells = [first]
    for left in range(sites - 1, 0, -1):  # bonds from the next site around to the first
        closing = ((u * powers**left)[first] @ u.T).clamp(min=0)
        weights = grid.matrix[cells[-1]] * closing
        cells.append(_categorical(weights))
    cell = torch.stack(cells, -1)
    hat = torch.rand(cell.shape, **EXACT) - torch.rand(cell.shape, **EXACT)
    return grid.u[cell] + grid.spacing * hat


def _categorical(weights: Tensor) -> Tensor:
    """Draws an index from each row, ``(N, G) → (N,)``.

    It is several times as fast as torch.multinomial.
    """
    cdf = weights.cumsum(-1)
    level = cdf[:, -1:] * torch.rand(len(cdf), 1, **EXACT)
    return torch.searchsorted(cdf, level, right=True).squeeze(-1).clamp(max=cdf.shape[1] - 1)


def _interpolant(grid: Transfer, x: Tensor) -> Tensor:
    """Returns the multilinear interpolant at points, ``(N, d) → (N,)``.

    The interpolated function is the product of the transfer matrix's entries around the circle.
    """
    position = (x - grid.u[0]) / grid.spacing
    cell = position.floor().long().clamp(0, len(grid.u) - 2)
    part = position - cell
    ends = torch.stack([cell, cell + 1], -1)
    hats = torch.stack([1 - part, part], -1).unsqueeze(-1)
    bonds = hats * grid.matrix[ends.unsqueeze(-1), ends.roll(-1, 1).unsqueeze(-2)]
    product = bonds[:, 0]
    for i in range(1, bonds.shape[1]):
        product = product @ bonds[:, i]
    return product.diagonal(dim1=1, dim2=2).sum(-1)
