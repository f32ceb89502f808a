r"""Distributions of several separate modes.

References:
    Wu and Xie, *Annealing Flow Generative Models Towards Sampling High-Dimensional and Multi-Modal
    Distributions*, 2025, https://arxiv.org/abs/2409.20547 (``gmm``, ``exp_gauss``)

    Máté and Fleuret, *Learning Interpolations between Boltzmann Densities*, 2023,
    https://arxiv.org/abs/2301.07388 (``mog4``, ``unequal_pair``)

    Kanaujia, Scheurer and Arora, *AdvNF: Reducing Mode Collapse in Conditional Normalising Flows
    using Adversarial Learning*, 2024, https://arxiv.org/abs/2401.15948 (``mog8``, ``rings4``). That
    paper does not give centres and radii; those here were chosen for this package.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, erfc, exp, log, pi, sin, sqrt

import torch
from torch import Tensor
from torch.special import entr, ndtri

from ..target.density import Target
from .problem import EXACT, Problem, TensorOptions, tensor_options

__all__ = ["exp_gauss", "exp_gauss_unequal", "gmm", "mog4", "mog8", "rings4", "unequal_pair"]


LOG_2PI = log(2 * pi)
RING_WIDTH = 0.1
SPACING = 0.1  #: grid spacing of quadratures in units of the narrowest width; exact to rounding


# ---- Gaussians in the plane ---------------------------------------------------------------------
def gmm(
    components: int = 6,
    radius: float | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Problem:
    r"""Equal unit Gaussians, evenly spaced on a circle in the plane.

    .. math:: p(x) = \frac1K \sum_{k < K} N(x; r (\cos 2\pi k / K, \sin 2\pi k / K), I)

    Arguments:
        components: Their number :math:`K`.
        radius: Radius of the circle, :math:`r`; :math:`K + 2` where None, which is 8, 10 and 12 for
            6, 8 and 10 components, as in Wu and Xie.
        dtype, device: Dtype and device of the points; torch's defaults where None.

    Example::

        >>> problem = gmm(components=6)
        >>> problem.modes[0].tolist()
        [8.0, 0.0]
        >>> problem.mode_fractions(problem.modes).allclose(problem.weights)
        True
    """
    r = components + 2.0 if radius is None else radius
    angles = [2 * pi * k / components for k in range(components)]
    return _gaussians([(r * cos(t), r * sin(t)) for t in angles], [1.0] * components, dtype, device)


def mog4(*, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Problem:
    r"""Four equal unit Gaussians at :math:`(\pm 8, \pm 8)`, Eq. (2) of Máté and Fleuret.

    Arguments:
        dtype, device: Dtype and device of the points; torch's defaults where None.

    Example::

        >>> mog4().weights.tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    corners = [(8.0, 8.0), (-8.0, 8.0), (-8.0, -8.0), (8.0, -8.0)]
    return _gaussians(corners, [1.0] * 4, dtype, device)


def mog8(*, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Problem:
    """Eight equal unit Gaussians on a circle of radius 10 in the plane.

    Arguments:
        dtype, device: Dtype and device of the points; torch's defaults where None.

    Example::

        >>> mog8().modes.norm(dim=-1).allclose(torch.tensor(10.0))
        True
    """
    return gmm(8, 10.0, dtype=dtype, device=device)


def unequal_pair(
    *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Problem:
    r"""Two unit Gaussians of unequal mass, Eq. (11) of Máté and Fleuret.

    .. math:: p(x) = \tfrac13 N(x; (4, 4), I) + \tfrac23 N(x; (-8, -8), I)

    The mode of less mass is nearer to the origin, so an annealed path fills it first.

    Arguments:
        dtype, device: Dtype and device of the points; torch's defaults where None.

    Example::

        >>> [round(weight, 4) for weight in unequal_pair().weights.tolist()]
        [0.3333, 0.6667]
    """
    return _gaussians([(4.0, 4.0), (-8.0, -8.0)], [1.0, 2.0], dtype, device)


def _gaussians(
    centres: list[tuple[float, float]],
    masses: list[float],
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Problem:
    """Makes a mixture of unit Gaussians in the plane; masses are in the given proportions."""
    exact = torch.tensor(centres, **EXACT), torch.tensor(masses, **EXACT) / sum(masses)
    at = tensor_options(dtype, device)
    modes, weights = (t.to(**at) for t in exact)
    log_prob = _gaussians_log_prob(modes, weights)

    def sample(num: int) -> Tensor:
        which = torch.multinomial(weights, num, replacement=True)
        return modes[which] + torch.randn(num, 2, **at)

    return Problem(
        target=Target.from_energy(lambda x: -log_prob(x), 2, **at),
        sample=sample,
        log_z=0.0,
        modes=modes,
        weights=weights,
        entropy=_entropy_in_plane(_gaussians_log_prob(*exact), float(exact[0].abs().max()) + 9),
    )


def _gaussians_log_prob(modes: Tensor, weights: Tensor) -> Callable[[Tensor], Tensor]:
    r"""Expands :math:`-\frac12\|x - \mu\|^2`, so that one matrix product replaces differences."""
    bias = weights.log() - 0.5 * modes.square().sum(-1) - LOG_2PI
    return lambda x: torch.addmm(bias, x, modes.T).logsumexp(-1) - 0.5 * x.square().sum(-1)


def _entropy_in_plane(log_prob: Callable[[Tensor], Tensor], half_width: float) -> float:
    r"""Integrates by the trapezium rule.

    It converges faster than any power for smooth densities that vanish at the ends.
    """
    axis = torch.arange(-half_width, half_width, SPACING, **EXACT)
    return float(entr(log_prob(torch.cartesian_prod(axis, axis)).exp()).sum() * SPACING**2)


# ---- rings --------------------------------------------------------------------------------------
def rings4(
    *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Problem:
    r"""Four rings of equal mass, radii 1, 2, 3, 4 and radial width 0.1.

    .. math:: p(x) = \frac{1}{2\pi r} \cdot \frac14 \sum_{k=1}^4 N(r; k, 0.1^2),\qquad r = \|x\|

    The density is normalised up to the mass of the normals below zero, :math:`10^{-24}`. The modes
    are the rings, so they have masses (``weights``) and no positions (``modes``).

    Arguments:
        dtype, device: Dtype and device of the points; torch's defaults where None.

    Example::

        >>> rings4().assign(torch.tensor([[0.0, 2.9], [-1.2, 0.0]])).tolist()
        [2, 0]
    """
    at = tensor_options(dtype, device)
    radii = torch.arange(1, 5, **at)
    log_prob = _rings_log_prob(radii)

    def sample(num: int) -> Tensor:
        which = torch.randint(len(radii), (num,), device=radii.device)
        direction = torch.nn.functional.normalize(torch.randn(num, 2, **at), dim=-1)
        return direction * (radii[which] + RING_WIDTH * torch.randn(num, **at))[:, None]

    return Problem(
        target=Target.from_energy(lambda x: -log_prob(x.norm(dim=-1)), 2, **at),
        sample=sample,
        log_z=0.0,
        weights=torch.full_like(radii, 1 / len(radii)),
        entropy=_rings_entropy(),
        assignment=lambda x: (x.norm(dim=-1, keepdim=True) - radii.to(x)).abs().argmin(-1),
    )


def _rings_log_prob(radii: Tensor) -> Callable[[Tensor], Tensor]:
    """Makes the log density in the plane, a function of the distance ``(N,)`` from the origin."""
    constant = log(len(radii)) + log(RING_WIDTH) + 1.5 * LOG_2PI

    def log_prob(r: Tensor) -> Tensor:
        z = (r[:, None] - radii) / RING_WIDTH
        return (-0.5 * z.square()).logsumexp(-1) - r.log() - constant

    return log_prob


def _rings_entropy() -> float:
    step = SPACING * RING_WIDTH
    r = torch.arange(step, 6, step, **EXACT)
    log_prob = _rings_log_prob(torch.arange(1, 5, **EXACT))
    return float((2 * pi * r * entr(log_prob(r).exp())).sum() * step)


# ---- exponentially many modes -------------------------------------------------------------------
def exp_gauss(
    dim: int = 50,
    active: int = 10,
    slope: float = 10.0,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Problem:
    r"""A distribution with :math:`2^a` equal modes, one in each orthant of :math:`a` coordinates.

    .. math:: \log \tilde p(x) = s \sum_{i \le a} |x_i| - \tfrac12 \|x\|^2

    The coordinates are independent. The absolute value of an active one is :math:`N(s, 1)`
    truncated at zero, so

    .. math:: \log Z = a (\log 2 + \tfrac12 s^2 + \log\Phi(s)) + \tfrac d2 \log 2\pi,

    and with :math:`h = \varphi(s) / \Phi(s)` its moments are :math:`\mathbb E|x| = s + h` and
    :math:`\mathbb E x^2 = 1 + s^2 + s h`.

    Arguments:
        dim: The dimension :math:`d`.
        active: Coordinates with two modes, :math:`a`.
        slope: :math:`s \ge 0`; the modes are at :math:`\pm s`.
        dtype, device: Dtype and device of the points; torch's defaults where None.

    Raises:
        ValueError: There are more active coordinates than dimensions.

    Example::

        >>> problem = exp_gauss(dim=50, active=10)
        >>> len(problem.modes), round(problem.log_z, 4)
        (1024, 552.8784)
    """
    at = tensor_options(dtype, device)
    below = 0.5 * erfc(-slope / sqrt(2))  # Φ(s)
    hazard = exp(-0.5 * slope**2 - 0.5 * LOG_2PI) / below
    log_z = active * (log(2) + 0.5 * slope**2 + log(below)) + 0.5 * dim * LOG_2PI
    score = slope * (slope + hazard) - 0.5 * (1 + slope**2 + slope * hazard)  # E[s|x| - x²/2]

    def log_prob(x: Tensor) -> Tensor:
        return slope * x[:, :active].abs().sum(-1) - 0.5 * x.square().sum(-1)

    def sample(num: int) -> Tensor:
        x = torch.randn(num, dim, **at)
        u = torch.rand(num, active, dtype=torch.float64, device=at["device"])
        size = slope - ndtri(u.clamp(min=1e-300) * below)
        x[:, :active] = torch.copysign(size.to(x.dtype), x[:, :active])
        return x

    signs = _sign_patterns(active, dim, at)
    return Problem(
        target=Target.from_energy(lambda x: -log_prob(x), dim, **at),
        sample=sample,
        log_z=log_z,
        modes=slope * signs,
        weights=torch.full((len(signs),), 1 / len(signs), **at),
        entropy=log_z - active * score + 0.5 * (dim - active),
        assignment=_sign_index(active),
    )


def exp_gauss_unequal(
    dim: int = 50,
    active: int = 10,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Problem:
    r"""A normalised distribution with :math:`2^a` modes of unequal masses and widths.

    .. math:: p(x) = \prod_{i \le a} \big(w_i N(x_i; -m_i, s_i^2)
              + (1 - w_i) N(x_i; m_i, s_i^2)\big) \prod_{i > a} N(x_i; 0, 1)

    Here :math:`m_i` goes evenly from 5 to 10, :math:`w_i` evenly from 0.2 to 0.5, and
    :math:`s_i^2` is alternately ½ and 1. With ten active coordinates the mode of most mass has 650
    times the mass of the one of least. Tempering without weights gets these masses wrong.

    Arguments:
        dim: The dimension :math:`d`.
        active: Coordinates with two modes, :math:`a`.
        dtype, device: Dtype and device of the points; torch's defaults where None.

    Raises:
        ValueError: There are more active coordinates than dimensions.

    Example::

        >>> problem = exp_gauss_unequal(dim=4, active=2)
        >>> [round(weight, 2) for weight in problem.weights.tolist()]
        [0.1, 0.4, 0.1, 0.4]
    """
    at = tensor_options(dtype, device)
    exact = _unequal_parameters(active)
    m, w, s = (t.to(**at) for t in exact)
    marginals = _two_normals_log_prob(m, w, s)

    def log_prob(x: Tensor) -> Tensor:
        rest = 0.5 * x[:, active:].square().sum(-1) + 0.5 * (dim - active) * LOG_2PI
        return marginals(x[:, :active]).sum(-1) - rest

    def sample(num: int) -> Tensor:
        x = torch.randn(num, dim, **at)
        centre = torch.where(torch.rand(num, active, **at) < w, -m, m)
        x[:, :active] = centre + s * x[:, :active]
        return x

    signs = _sign_patterns(active, dim, at)
    masses = torch.where(signs[:, :active] < 0, w, 1 - w)
    axis = torch.arange(-20, 20, SPACING * 0.5, **EXACT)[:, None]
    bimodal = entr(_two_normals_log_prob(*exact)(axis).exp()).sum() * SPACING * 0.5
    return Problem(
        target=Target.from_energy(lambda x: -log_prob(x), dim, **at),
        sample=sample,
        log_z=0.0,
        modes=signs * torch.nn.functional.pad(m, (0, dim - active)),
        weights=masses.prod(-1),
        entropy=float(bimodal) + 0.5 * (dim - active) * (1 + LOG_2PI),
        assignment=_sign_index(active),
    )


def _unequal_parameters(active: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns locations, masses of the negative sides and widths, ``(active,)`` each."""
    odd = torch.arange(active, **EXACT) % 2
    m = torch.linspace(5, 10, active, **EXACT)
    w = torch.linspace(0.2, 0.5, active, **EXACT)
    return m, w, (0.5 + 0.5 * odd).sqrt()


def _two_normals_log_prob(m: Tensor, w: Tensor, s: Tensor) -> Callable[[Tensor], Tensor]:
    """Makes the log densities of the coordinates, ``(N, a) → (N, a)``."""
    left, right = w.log() - s.log() - 0.5 * LOG_2PI, (-w).log1p() - s.log() - 0.5 * LOG_2PI

    def log_prob(x: Tensor) -> Tensor:
        low, high = ((x + m) / s).square(), ((x - m) / s).square()
        return torch.logaddexp(left - 0.5 * low, right - 0.5 * high)

    return log_prob


def _sign_patterns(active: int, dim: int, at: TensorOptions) -> Tensor:
    """Returns all signs of the first coordinates, and zeros in the others, ``(2**active, dim)``.

    Row :math:`k` has a plus where bit :math:`i` of :math:`k` is set.
    """
    if active > dim:
        raise ValueError(f"{active} active coordinates in {dim} dimensions")
    bits = torch.arange(active, device=at["device"])
    index = torch.arange(2**active, device=at["device"])
    signs = 2 * (index[:, None] >> bits & 1) - 1
    return torch.nn.functional.pad(signs, (0, dim - active)).to(at["dtype"])


def _sign_index(active: int) -> Callable[[Tensor], Tensor]:
    """Makes a function that returns a point's row of :func:`_sign_patterns`."""

    def assign(x: Tensor) -> Tensor:
        bits = torch.arange(active, device=x.device)
        return ((x[:, :active] > 0).long() << bits).sum(-1)

    return assign
