r"""The :math:`\varphi^4` field on a periodic lattice of any dimension.

.. math:: S(\varphi) = \sum_{\langle ij \rangle} (\varphi_i - \varphi_j)^2
          + \sum_i V(\varphi_i),\qquad V(u) = -m u^2 + \lambda (u - \alpha)^4,

with each bond counted once. On a circle this is Eq. (19) of Máté and Fleuret.

References:
    Máté and Fleuret, *Learning Interpolations between Boltzmann Densities*, 2023,
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
    r"""Computes the action :math:`S(\varphi)`, which has no unit, ``(..., d) → (...,)``.

    Arguments:
        x: Fields, with sites in row-major order.
        shape: Sites along each axis; one number is a circle of so many sites.
        mass, coupling, alpha: :math:`m`, :math:`\lambda`, :math:`\alpha`.

    Raises:
        ValueError: An axis has fewer than two sites, or the points have the wrong dimension.

    Example::

        >>> float(phi4_action(torch.ones(4), 4, mass=0.5, coupling=0.25, alpha=0.0))
        -1.0
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
    r"""The field as a Pyro model, with one site ``"phi"`` of the lattice's shape.

    The density is :math:`e^{-S}`; the prior is flat with density 1. The dtype and device are those
    of ``mass``, or torch's defaults where it is a number. ``mass``, ``coupling`` and ``alpha`` may
    be a guide's context.

    Arguments:
        shape: Sites along each axis; one number is a circle of so many sites.
        mass, coupling, alpha: :math:`m`, :math:`\lambda`, :math:`\alpha`.

    Raises:
        ValueError: An axis has fewer than two sites.

    Example::

        >>> target = Target.from_model(phi4_model, (2, 2), mass=0.5)
        >>> x = torch.ones(1, 4)
        >>> torch.allclose(target.log_prob(x), -phi4_action(x, (2, 2)))
        True
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
    r"""A problem with the density :math:`e^{-S(\varphi)}` on the lattice, points ``(N, d)``.

    The modes are the constant fields at the minima of :math:`V`. For :math:`m > 0` there is one of
    each sign, and a field belongs to the mode of the sign of its mean. Evidence, masses, entropy
    and exact draws are known on the circle only. The defaults are one of the four circles of Máté
    and Fleuret.

    Exact draws start from a chain on a grid. A triangular variate is added to each site, so that
    the density of the result is the multilinear interpolant of :math:`e^{-S}`. It bounds
    :math:`e^{-S}` up to a constant, and rejection gives the rest. The draws are independent. They
    are exact except for rounding, and for fields with a density below :math:`e^{-45}`. 10 000 draws
    take about a second for 16 sites.

    Arguments:
        shape: Sites along each axis; one number is a circle of so many sites.
        mass, coupling, alpha: :math:`m`, :math:`\lambda`, :math:`\alpha`.
        dtype, device: Dtype and device of the points; torch's defaults where None.

    Raises:
        ValueError: An axis has fewer than two sites; the density cannot be normalised; the wells
            are too far apart, or the circle is too long, for the exact solution.

    Example::

        >>> problem = phi4(8, mass=0.5)
        >>> problem.sample(5).shape, problem.modes.sign()[:, 0]
        (torch.Size([5, 8]), tensor([-1.,  1.]))
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
    """Returns the minima of V in ascending order."""
    v = np.polynomial.Polynomial([0.0, 1.0])  # u - alpha: a triple root is then exactly zero
    polynomial = coupling * v**4 - mass * (v + alpha) ** 2
    roots = polynomial.deriv().trim().roots()
    real = np.unique(roots.real[abs(roots.imag) < 1e-9])
    return [float(r) + alpha for r in real if polynomial.deriv(2)(r) >= 0]


def phi4_symmetries(shape: Shape, alpha: float = 0.0) -> list[tuple[list[int], list[int]]]:
    r"""Returns generators of the action's symmetries, in the form of :func:`lattice_symmetries`.

    The change of all signs comes last, and for :math:`\alpha = 0` only. It is no symmetry of any
    other action, however small :math:`\alpha` is: a network that respects it gives both modes the
    same mass.

    Arguments:
        shape: Sites along each axis; one number is a circle of so many sites.
        alpha: :math:`\alpha`.

    Raises:
        ValueError: An axis has fewer than two sites.

    Example::

        >>> phi4_symmetries(3)[-1]
        ([0, 1, 2], [-1, -1, -1])
    """
    dim = prod(lattice_shape(shape))
    flip = [(list(range(dim)), [-1] * dim)]
    return lattice_symmetries(shape) + (flip if alpha == 0 else [])


class Phi4Observables(NamedTuple):
    r"""Observables of each field, all ``(...,)``.

    Attributes:
        mean: :math:`\bar\varphi`, the mean over the lattice.
        mean_square: The mean of :math:`\varphi_i^2` over the lattice.
        action: The action per site, :math:`S/N`.

    Example::

        >>> found = phi4_observables(torch.tensor([[1.0, -1.0], [1.0, 1.0]]), 2)
        >>> found.mean, found.mean_square
        (tensor([0., 1.]), tensor([1., 1.]))
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
    r"""Computes observables of fields.

    Arguments:
        x: Fields ``(..., d)``, with sites in row-major order.
        shape: Sites along each axis; one number is a circle of so many sites.
        mass, coupling, alpha: :math:`m`, :math:`\lambda`, :math:`\alpha`.

    Raises:
        ValueError: An axis has fewer than two sites, or the points have the wrong dimension.

    Example::

        >>> found = phi4_observables(torch.ones(4), 4, mass=0.5, coupling=0.25, alpha=0.0)
        >>> float(found.mean), float(found.action)
        (1.0, -0.25)
    """
    action = phi4_action(x, shape, mass, coupling, alpha)
    return Phi4Observables(x.mean(-1), x.square().mean(-1), action / x.shape[-1])
