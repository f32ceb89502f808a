r"""The XY model on a lattice of any dimension, also with ring exchange.

.. math:: H(\theta) = -J \sum_{\langle ij \rangle} \cos(\theta_i - \theta_j)
          - K \sum_\square \cos(\theta_1 - \theta_2 + \theta_3 - \theta_4),\qquad
          p(\theta) \propto e^{-H/T},

with the corners 1, 2, 3, 4 of a plaquette in cyclic order, so that the ends of a diagonal share a
sign. Each bond and each plaquette is counted once. The XY model has J = 1 and K = 0; the extended
model of Kanaujia et al. has J = K = 1.

References:
    Kanaujia, Scheurer and Arora, *AdvNF: Reducing Mode Collapse in Conditional Normalising Flows
    using Adversarial Learning*, 2024, https://arxiv.org/abs/2401.15948
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from math import pi, prod
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Size, Tensor

from ..problems.problem import Problem, tensor_options
from ..target.density import Target
from .grid import Shape, axes, differences, lattice_shape, on_lattice, over_sites
from .xy_exact import check_temperature, exact_xy_chain

__all__ = [
    "XYObservables",
    "vortex_density",
    "xy",
    "xy_energy",
    "xy_magnetization",
    "xy_model",
    "xy_observables",
]


ALMOST_FLAT = 1e-4  #: concentration of the von Mises distribution that draws from the flat prior


# ---- the target ---------------------------------------------------------------------------------
def xy_energy(
    theta: Tensor,
    shape: Shape,
    *,
    coupling: float | Tensor = 1.0,
    ring_exchange: float | Tensor = 0.0,
    periodic: bool = True,
) -> Tensor:
    r"""Computes the energy :math:`H(\theta)` of the whole lattice, ``(..., d) → (...,)``.

    Arguments:
        theta: Angles in radians, sites in row-major order.
        shape: Sites along each axis.
        coupling, ring_exchange: J and K, in the unit of the temperature.
        periodic: Whether the last site of an axis is bound to the first.

    Raises:
        ValueError: An axis has fewer than two sites; the points have the wrong dimension; or there
            is ring exchange in one dimension.

    Example::

        >>> float(xy_energy(torch.zeros(16), (4, 4)))  # two bonds for each site
        -32.0
    """
    sizes = lattice_shape(shape)
    has_rings = isinstance(ring_exchange, Tensor) or ring_exchange != 0
    field = on_lattice(theta, sizes)
    steps = {axis: differences(field, axis, periodic) for axis in axes(sizes)}
    energy = -coupling * _total_cosine(steps.values(), sizes)
    if has_rings:
        rings = [differences(steps[a], b, periodic) for a, b in _planes(sizes)]
        energy = energy - ring_exchange * _total_cosine(rings, sizes)
    return energy


def _total_cosine(fields: Iterable[Tensor], sizes: Size) -> Tensor:
    return torch.stack([over_sites(field.cos(), sizes) for field in fields]).sum(0)


def _planes(sizes: Size) -> list[tuple[int, int]]:
    if len(sizes) < 2:
        raise ValueError(
            f"plaquettes need two dimensions, the lattice has the shape {tuple(sizes)}"
        )
    return list(combinations(axes(sizes), 2))


def xy_model(
    shape: Shape,
    temperature: float | Tensor = 1.0,
    coupling: float | Tensor = 1.0,
    ring_exchange: float | Tensor = 0.0,
    periodic: bool = True,
) -> Tensor:
    r"""The XY model as a Pyro model, with one site ``"theta"`` of the lattice's shape.

    The density of the angles is :math:`e^{-H/T}` on :math:`[-\pi, \pi)^d`; the prior is flat with
    density 1. The dtype and device are those of ``temperature``, or torch's defaults where it is a
    number. ``temperature``, ``coupling`` and ``ring_exchange`` may be a guide's context. Without a
    guide, ``Target.from_model(xy_model, (8, 8), temperature=1.0).conditional_on("temperature")``
    takes a temperature for each point.

    Arguments:
        shape: Sites along each axis.
        temperature: T, in the unit of J and K.
        coupling, ring_exchange: J and K.
        periodic: Whether the last site of an axis is bound to the first.

    Raises:
        ValueError: The errors of :func:`xy_energy`; or a temperature, given as a number, is not
            positive.

    Example::

        >>> target = Target.from_model(xy_model, (2, 2), temperature=0.5)
        >>> float(target.log_prob(torch.zeros(1, 4)))
        16.0
    """
    sizes = lattice_shape(shape)
    check_temperature(temperature)
    zero = (1.0 * torch.as_tensor(temperature)).new_zeros(sizes)
    angle = dist.VonMises(zero, zero + ALMOST_FLAT).to_event(len(sizes)).mask(False)
    theta = pyro.sample("theta", angle)
    energy = xy_energy(
        theta.flatten(-len(sizes)),
        sizes,
        coupling=coupling,
        ring_exchange=ring_exchange,
        periodic=periodic,
    )
    pyro.factor("energy", -energy / temperature)
    return theta


def xy(
    shape: Shape,
    temperature: float = 1.0,
    *,
    coupling: float = 1.0,
    ring_exchange: float = 0.0,
    periodic: bool = True,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Problem:
    r"""A problem with the density :math:`e^{-H(\theta)/T}` of angles, points ``(N, d)``.

    The evidence and the entropy are known in one dimension. For narrow tori see
    :func:`exact_xy_torus`. For many temperatures at once use :func:`xy_model` and
    ``Target.conditional_on``.

    Arguments:
        shape: Sites along each axis.
        temperature: T, in the unit of J and K.
        coupling, ring_exchange: J and K.
        periodic: Whether the last site of an axis is bound to the first.
        dtype, device: Dtype and device of the points; torch's defaults where None.

    Raises:
        ValueError: The errors of :func:`xy_energy`; or the temperature is not positive.

    Example::

        >>> problem = xy(8, temperature=0.5)
        >>> float(problem.target.log_prob(torch.zeros(1, 8)))  # eight bonds over the temperature
        16.0
    """
    sizes = lattice_shape(shape)
    check_temperature(temperature)

    def energy(theta: Tensor) -> Tensor:
        h = xy_energy(
            theta, sizes, coupling=coupling, ring_exchange=ring_exchange, periodic=periodic
        )
        return h / temperature

    dim = prod(sizes)
    target = Target.from_energy(energy, dim, angles=range(dim), **tensor_options(dtype, device))
    if len(sizes) > 1:
        return Problem(target)
    truth = exact_xy_chain(dim, temperature, coupling=coupling, periodic=periodic)
    entropy = truth.log_z + dim * truth.energy / temperature
    return Problem(target, log_z=truth.log_z, entropy=entropy)


# ---- observables --------------------------------------------------------------------------------
def xy_magnetization(theta: Tensor) -> Tensor:
    r"""Computes :math:`|m| = |\sum_i e^{i\theta_i}| / N`, ``(..., d) → (...,)``.

    Arguments:
        theta: Angles in radians.

    Example::

        >>> float(xy_magnetization(torch.ones(4)))
        1.0
    """
    return torch.hypot(theta.cos().mean(-1), theta.sin().mean(-1))


def vortex_density(theta: Tensor, shape: Shape) -> Tensor:
    r"""Computes the fraction of plaquettes with a vortex, ``(..., d) → (...,)``.

    A plaquette's vorticity is the sum of the differences around it, each wrapped to
    :math:`[-\pi, \pi)`, over :math:`2\pi`. It is −1, 0 or 1 except on a set of measure zero. The
    lattice is periodic.

    Arguments:
        theta: Angles in radians, sites in row-major order.
        shape: Sites along each axis.

    Raises:
        ValueError: There are fewer than two dimensions; an axis has fewer than two sites; or the
            points have the wrong dimension.

    Example::

        >>> float(vortex_density(torch.zeros(16), (4, 4)))
        0.0
    """
    sizes = lattice_shape(shape)
    field = on_lattice(theta, sizes)
    steps = {a: torch.remainder(differences(field, a) + pi, 2 * pi) - pi for a in axes(sizes)}
    curls = [differences(steps[b], a) - differences(steps[a], b) for a, b in _planes(sizes)]
    vortices = [over_sites((curl.abs() > pi).to(theta.dtype), sizes) for curl in curls]
    return torch.stack(vortices).mean(0) / prod(sizes)


class XYObservables(NamedTuple):
    r"""Averages of observables over draws, each ``(...,)``.

    N is the number of sites and D the number of dimensions.

    Attributes:
        energy: :math:`\langle H \rangle / N`.
        magnetization: :math:`\langle |m| \rangle`.
        mean_square: :math:`\langle m^2 \rangle`.
        specific_heat: Per site, :math:`(\langle H^2 \rangle - \langle H \rangle^2) / (N T^2)`.
        susceptibility: :math:`N (\langle m^2 \rangle - \langle |m| \rangle^2) / T`.
        helicity: The helicity modulus, :math:`\frac1{ND} \sum_a \langle J C_a \rangle
            - \langle (J S_a)^2 \rangle / T`, with the sums :math:`C_a, S_a` of the cosines and
            sines of all differences along the axis a. A uniform twist does not change the energy of
            ring exchange.

    Example::

        >>> found = xy_observables(torch.zeros(5, 16), (4, 4))  # aligned: two bonds for each site
        >>> float(found.energy), float(found.magnetization), float(found.susceptibility)
        (-2.0, 1.0, 0.0)
    """

    energy: Tensor
    magnetization: Tensor
    mean_square: Tensor
    specific_heat: Tensor
    susceptibility: Tensor
    helicity: Tensor


def xy_observables(
    theta: Tensor,
    shape: Shape,
    temperature: float | Tensor = 1.0,
    *,
    coupling: float = 1.0,
    ring_exchange: float = 0.0,
) -> XYObservables:
    """Averages observables over equally weighted draws on a periodic lattice.

    Arguments:
        theta: Draws ``(..., S, d)``, angles in radians, sites in row-major order.
        shape: Sites along each axis.
        temperature: T, in the unit of J and K; ``(...,)`` where there is one for each batch.
        coupling, ring_exchange: J and K.

    Raises:
        ValueError: The errors of :func:`xy_energy`.

    Example::

        >>> found = xy_observables(torch.zeros(5, 16), (4, 4), temperature=0.5)
        >>> float(found.energy), float(found.magnetization), float(found.helicity)
        (-2.0, 1.0, 1.0)
    """
    sizes = lattice_shape(shape)
    num = prod(sizes)
    t = torch.as_tensor(temperature, dtype=theta.dtype, device=theta.device)
    energy = xy_energy(theta, sizes, coupling=coupling, ring_exchange=ring_exchange)
    m = xy_magnetization(theta)
    field = on_lattice(theta, sizes)
    steps = [differences(field, axis) for axis in axes(sizes)]
    stiffness = torch.stack([coupling * over_sites(s.cos(), sizes) for s in steps])
    current = torch.stack([coupling * over_sites(s.sin(), sizes) for s in steps])
    helicity = stiffness.mean(-1) - current.square().mean(-1) / t
    return XYObservables(
        energy=energy.mean(-1) / num,
        magnetization=m.mean(-1),
        mean_square=m.square().mean(-1),
        specific_heat=energy.var(-1, unbiased=False) / (num * t.square()),
        susceptibility=num * m.var(-1, unbiased=False) / t,
        helicity=helicity.mean(0) / num,
    )
