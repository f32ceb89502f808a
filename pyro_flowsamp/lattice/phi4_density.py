r"""The :math:`\varphi^4` field on a periodic lattice of any dimension.

.. math:: S(\varphi) = \sum_{\langle ij \rangle} (\varphi_i - \varphi_j)^2
          + \sum_i V(\varphi_i),\qquad V(u) = -m u^2 + \lambda (u - \alpha)^4,

each bond counted once; on a circle this is Eq. (19) of Máté and Fleuret.

References:
    Máté and Fleuret: Learning Interpolations between Boltzmann Densities, 2023,
    https://arxiv.org/abs/2301.07388
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..problems.problem import Problem, tensor_options
from ..target.density import Target
from .grid import (
    Shape,
    axes,
    differences,
    lattice_shape,
    lattice_symmetries,
    on_lattice,
    over_sites,
)
from .phi4_exact import check_normalisable, exact_phi4, potential, sampler

__all__ = [
    "Phi4Observables",
    "phi4",
    "phi4_action",
    "phi4_model",
    "phi4_observables",
    "phi4_symmetries",
]


def phi4_action(
    x: Tensor,
    shape: Shape,
    mass: float | Tensor = 0.5,
    coupling: float | Tensor = 1 / 16,
    alpha: float | Tensor = 0.01,
) -> Tensor:
    r"""The action :math:`S(\varphi)`, ``(..., d) → (...,)``; dimensionless.

    Arguments:
        x: Fields, sites in row-major order.
        shape: Sites along each axis; a number of sites is a circle.
        mass, coupling, alpha: :math:`m`, :math:`\lambda`, :math:`\alpha`.

    Raises:
        ValueError: An axis of fewer than two sites, or points of the wrong dimension.
    """
    sizes = lattice_shape(shape)
    field = on_lattice(x, sizes)
    bonds = sum(differences(field, axis).square() for axis in axes(sizes))
    return over_sites(bonds + potential(field, mass, coupling, alpha), sizes)


def phi4_model(
    shape: Shape,
    mass: float | Tensor = 0.5,
    coupling: float | Tensor = 1 / 16,
    alpha: float | Tensor = 0.01,
) -> Tensor:
    r"""The field as a Pyro model: one site ``"phi"`` of the lattice's shape.

    Its density is :math:`e^{-S}`: the prior is flat, of density 1. The dtype and device are
    those of ``mass``, torch's defaults for a number. ``mass``, ``coupling`` and ``alpha`` may be a
    guide's context.

    Arguments:
        shape: Sites along each axis; a number of sites is a circle.
        mass, coupling, alpha: :math:`m`, :math:`\lambda`, :math:`\alpha`.

    Raises:
        ValueError: An axis of fewer than two sites.
    """
    sizes = lattice_shape(shape)
    zero = (1.0 * torch.as_tensor(mass)).new_zeros(sizes)
    phi = pyro.sample("phi", dist.Normal(zero, 1).to_event(len(sizes)).mask(False))
    pyro.factor("action", -phi4_action(phi.flatten(-len(sizes)), sizes, mass, coupling, alpha))
    return phi


def phi4(
    shape: Shape = 16,
    mass: float = 0.5,
    coupling: float = 1 / 16,
    alpha: float = 0.01,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Problem:
    r"""The density :math:`e^{-S(\varphi)}` on the lattice, points ``(N, d)``.

    The modes are the constant fields at the minima of :math:`V`, for :math:`m > 0` one of each
    sign, and a field belongs to the mode of the sign of its mean. Evidence, masses, entropy and
    exact draws are known on the circle only. The defaults are one of the paper's four circles.

    Draws come from a chain on a grid, to each site of which a triangular variate is added: their
    density is the multilinear interpolant of :math:`e^{-S}`, which bounds it up to a constant,
    and rejection does the rest. They are independent, and exact but for :math:`|\varphi_i|` where
    the density is :math:`e^{-45}`, and rounding; 10 000 take about a second for 16 sites.

    Arguments:
        shape: Sites along each axis; a number of sites is a circle.
        mass, coupling, alpha: :math:`m`, :math:`\lambda`, :math:`\alpha`.
        dtype, device: Of the points; torch's defaults where None.

    Raises:
        ValueError: An axis of fewer than two sites, a density that cannot be normalised, or wells
            too far apart, or a circle too long, for its exact solution.
    """
    sizes = lattice_shape(shape)
    check_normalisable(mass, coupling)
    at, dim = tensor_options(dtype, device), prod(sizes)
    minima = torch.tensor(_minima(mass, coupling, alpha), **at)
    action = partial(phi4_action, shape=sizes, mass=mass, coupling=coupling, alpha=alpha)
    target = Target.from_energy(action, dim, **at)
    modes = minima.unsqueeze(1).expand(-1, dim).clone()
    assignment = _by_sign if len(minima) == 2 else None
    if len(sizes) > 1:
        return Problem(target, modes=modes, assignment=assignment)
    truth = exact_phi4(dim, mass, coupling, alpha)
    weights = [1 - truth.positive, truth.positive] if assignment else [1.0]
    return Problem(
        target,
        sample=sampler(action, mass, coupling, alpha, dim, at),
        log_z=truth.log_z,
        modes=modes,
        weights=torch.tensor(weights, **at),
        entropy=truth.log_z + dim * truth.action,
        assignment=assignment,
    )


def _by_sign(x: Tensor) -> Tensor:
    return (x.mean(-1) > 0).long()


def _minima(mass: float, coupling: float, alpha: float) -> list[float]:
    """Where V has minima, in ascending order."""
    v = np.polynomial.Polynomial([0.0, 1.0])  # u - alpha: a triple root is then exactly zero
    polynomial = coupling * v**4 - mass * (v + alpha) ** 2
    roots = polynomial.deriv().trim().roots()
    real = np.unique(roots.real[abs(roots.imag) < 1e-9])
    return [float(r) + alpha for r in real if polynomial.deriv(2)(r) >= 0]


def phi4_symmetries(shape: Shape, alpha: float = 0.0) -> list[tuple[list[int], list[int]]]:
    r"""Generators of the action's symmetries, as in :func:`lattice_symmetries`.

    The change of all signs comes last, for :math:`\alpha = 0` only: it is no symmetry of any other
    action, however small :math:`\alpha`, and a network that respects it gives both modes one mass.

    Raises:
        ValueError: An axis of fewer than two sites.
    """
    dim = prod(lattice_shape(shape))
    flip = [(list(range(dim)), [-1] * dim)]
    return lattice_symmetries(shape) + (flip if alpha == 0 else [])


class Phi4Observables(NamedTuple):
    r"""Of each field, all ``(...,)``.

    Attributes:
        mean: :math:`\bar\varphi`, the mean over the lattice.
        mean_square: The mean of :math:`\varphi_i^2` over the lattice.
        action: :math:`S/N`, per site.
    """

    mean: Tensor
    mean_square: Tensor
    action: Tensor


def phi4_observables(
    x: Tensor,
    shape: Shape,
    mass: float | Tensor = 0.5,
    coupling: float | Tensor = 1 / 16,
    alpha: float | Tensor = 0.01,
) -> Phi4Observables:
    """Observables of fields ``(..., d)``; arguments and errors of :func:`phi4_action`."""
    action = phi4_action(x, shape, mass, coupling, alpha)
    return Phi4Observables(x.mean(-1), x.square().mean(-1), action / x.shape[-1])
