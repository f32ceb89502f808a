r"""Densities with exact draws: heavy and light tails, modes of many kinds, funnels, bent ones.

Each function returns a :class:`~pyro_flowsamp.problems.Problem`. Where its modes have masses, a
point belongs to the component of the largest joint density.
"""

from collections.abc import Callable, Sequence
from math import log, pi

import torch
from torch import Tensor
from torch.special import log_ndtr

from pyro_flowsamp import Target
from pyro_flowsamp.problems import Problem

LOG_2PI = log(2 * pi)


# ---- modes ---------------------------------------------------------------------------------------


def mixture(means: list[list[float]], scales: list[float], weights: list[float]) -> Problem:
    """Round Gaussians with K means in d dimensions, and K scales and weights."""
    at, width = torch.tensor(means), torch.tensor(scales)
    mass, dim = torch.tensor(weights), len(means[0])

    def joint(x: Tensor) -> Tensor:
        square = (x[:, None] - at).square().sum(-1) / width.square()
        return mass.log() - dim * width.log() - 0.5 * (square + dim * log(2 * pi))

    def sample(num: int) -> Tensor:
        which = torch.multinomial(mass, num, replacement=True)
        return at[which] + width[which, None] * torch.randn(num, dim)

    return Problem(
        target=Target.from_energy(lambda x: -joint(x).logsumexp(-1), dim),
        sample=sample,
        modes=at,
        weights=mass,
        assignment=lambda x: joint(x).argmax(-1),
    )


def student(dim: int, degrees: float) -> Problem:
    """A multivariate Student-t distribution."""

    def sample(num: int) -> Tensor:
        chi2 = torch.distributions.Chi2(degrees).sample((num, 1))
        return torch.randn(num, dim) / (chi2 / degrees).sqrt()

    def energy(x: Tensor) -> Tensor:
        return 0.5 * (degrees + dim) * (x.square().sum(-1) / degrees).log1p()

    return Problem(Target.from_energy(energy, dim), sample)


def ridge(dim: int, correlation: float) -> Problem:
    """A Gaussian with equal correlations."""
    covariance = torch.full((dim, dim), correlation).fill_diagonal_(1.0)
    chol, precision = torch.linalg.cholesky(covariance), torch.linalg.inv(covariance)
    return Problem(
        Target.from_energy(lambda x: 0.5 * (x @ precision * x).sum(-1), dim),
        lambda num: torch.randn(num, dim) @ chol.mT,
    )


def skewed(dim: int, shape: float) -> Problem:
    """Independent logs of Gamma variables."""
    return Problem(
        Target.from_energy(lambda x: (x.exp() - shape * x).sum(-1), dim),
        lambda num: torch.distributions.Gamma(shape, 1.0).sample((num, dim)).log(),
    )


def laplace(dim: int) -> Problem:
    """Independent Laplace variables."""
    return Problem(
        Target.from_energy(lambda x: x.abs().sum(-1), dim),
        lambda num: torch.distributions.Laplace(0.0, 1.0).sample((num, dim)),
    )


def concentric(dim: int) -> Problem:
    """A narrow Gaussian inside a wide one, of equal masses: one region within the other."""
    return mixture([[0.0] * dim] * 2, [1.0, 5.0], [0.5, 0.5])


def components(
    dim: int,
    joint: Callable[[Tensor], Tensor],
    draw: Callable[[Tensor], Tensor],
    weights: Sequence[float],
) -> Problem:
    """Any mixture.

    Arguments:
        dim: The dimension.
        joint: The log densities of points ``(N, d)`` with each component, ``(N, K)``.
        draw: Draws from components ``(N,)``, ``(N, d)``.
        weights: Their masses.
    """
    mass = torch.tensor(weights)
    return Problem(
        target=Target.from_energy(lambda x: -joint(x).logsumexp(-1), dim),
        sample=lambda num: draw(torch.multinomial(mass, num, replacement=True)),
        weights=mass,
        assignment=lambda x: joint(x).argmax(-1),
    )


def dozen(dim: int = 3) -> Problem:
    """Twelve Gaussians on a spiral, of unequal widths and masses."""
    k = torch.arange(12.0)
    angle, radius = 2.4 * k, 3 + 0.9 * k
    side = 3.0 * (-1) ** k
    means = torch.stack([radius * angle.cos(), radius * angle.sin(), side], -1)
    weights = (1 + k % 3) / (1 + k % 3).sum()
    return mixture(means[:, :dim].tolist(), (0.3 + 0.07 * k).tolist(), weights.tolist())


def sticks() -> Problem:
    """Two long and thin Gaussians in the plane, across each other and apart."""
    means = torch.tensor([[0.0, 0.0], [12.0, 12.0]])
    scales = torch.tensor([[4.0, 0.2], [0.2, 4.0]])
    weights = [0.6, 0.4]

    def joint(x: Tensor) -> Tensor:
        z = (x[:, None] - means) / scales
        return torch.tensor(weights).log() - scales.log().sum(-1) - 0.5 * z.square().sum(-1)

    return components(2, joint, lambda k: means[k] + scales[k] * torch.randn(len(k), 2), weights)


def heavy_modes(degrees: float = 4.0) -> Problem:
    """Two Student-t distributions in the plane, one of them narrow."""
    means = torch.tensor([[-6.0, 0.0], [6.0, 3.0]])
    scales = torch.tensor([1.0, 0.4])
    weights = [0.55, 0.45]

    def joint(x: Tensor) -> Tensor:
        square = (x[:, None] - means).square().sum(-1) / scales.square()
        tails = 0.5 * (degrees + 2) * (square / degrees).log1p()
        return torch.tensor(weights).log() - 2 * scales.log() - tails

    def draw(k: Tensor) -> Tensor:
        chi2 = torch.distributions.Chi2(degrees).sample((len(k), 1))
        return means[k] + scales[k, None] * torch.randn(len(k), 2) / (chi2 / degrees).sqrt()

    return components(2, joint, draw, weights)


def ring_and_core(radius: float = 6.0) -> Problem:
    """A thin ring in the plane around a narrow Gaussian."""
    weights, widths = [0.7, 0.3], (0.25, 0.5)

    def joint(x: Tensor) -> Tensor:
        r = x.norm(dim=-1).clamp(min=1e-6)
        ring = -0.5 * ((r - radius) / widths[0]).square() - 0.5 * LOG_2PI - r.log()
        core = -0.5 * (r / widths[1]).square() - log(widths[1])
        both = torch.stack([ring - log(widths[0]), core - log(widths[1])], -1)
        return both + torch.tensor(weights).log()

    def draw(k: Tensor) -> Tensor:
        x = torch.randn(len(k), 2)
        ring = torch.nn.functional.normalize(x, dim=-1)
        ring = ring * (radius + widths[0] * torch.randn(len(k), 1))
        return torch.where((k == 0)[:, None], ring, widths[1] * x)

    return components(2, joint, draw, weights)


def spikes_and_slabs(dim: int = 3, spike: float = 0.1, slab: float = 2.0) -> Problem:
    """Independent mixtures of a narrow and a wide Gaussian, both around zero."""

    def energy(x: Tensor) -> Tensor:
        parts = [-0.5 * (x / s).square() - log(s) for s in (spike, slab)]
        return -torch.logaddexp(*parts).sum(-1)

    def sample(num: int) -> Tensor:
        wide = torch.rand(num, dim) < 0.5
        return torch.where(wide, slab, spike) * torch.randn(num, dim)

    return Problem(Target.from_energy(energy, dim), sample)


# ---- tails ---------------------------------------------------------------------------------------


def independent_student(dim: int, degrees: float) -> Problem:
    """Independent Student-t variables."""
    half = 0.5 * (degrees + 1)
    return Problem(
        Target.from_energy(lambda x: half * (x.square() / degrees).log1p().sum(-1), dim),
        lambda num: torch.distributions.StudentT(degrees).sample((num, dim)),
    )


def sinh_arcsinh(dim: int, skew: float, tail: float) -> Problem:
    r"""Independent variables with :math:`\sinh(\delta \sinh^{-1} x - \epsilon) \sim N(0, 1)`."""

    def energy(x: Tensor) -> Tensor:
        s = (tail * x.asinh() - skew).sinh()
        return 0.5 * (s.square() - s.square().log1p() + x.square().log1p()).sum(-1)

    return Problem(
        Target.from_energy(energy, dim),
        lambda num: ((torch.randn(num, dim).asinh() + skew) / tail).sinh(),
    )


def modified_exponential(dim: int, width: float) -> Problem:
    """Independent sums of an exponential and a narrow normal variable."""
    return Problem(
        Target.from_energy(lambda x: (x - log_ndtr(x / width - width)).sum(-1), dim),
        lambda num: (
            torch.distributions.Exponential(1.0).sample((num, dim)) + width * torch.randn(num, dim)
        ),
    )


def logistic(dim: int) -> Problem:
    """Independent logistic variables."""

    def sample(num: int) -> Tensor:
        return torch.rand(num, dim, dtype=torch.double).logit(eps=1e-15).float()

    def energy(x: Tensor) -> Tensor:
        return (x.abs() + 2 * (-x.abs()).exp().log1p()).sum(-1)

    return Problem(Target.from_energy(energy, dim), sample)


def light_tails(dim: int, power: float = 6.0) -> Problem:
    r"""Independent variables with the density :math:`\propto e^{-|x|^p}`: nearly a cube."""

    def sample(num: int) -> Tensor:
        size = torch.distributions.Gamma(1 / power, 1.0).sample((num, dim)) ** (1 / power)
        return torch.where(torch.rand(num, dim) < 0.5, -size, size)

    return Problem(Target.from_energy(lambda x: x.abs().pow(power).sum(-1), dim), sample)


# ---- funnels and bent densities ------------------------------------------------------------------


def laplace_funnel(dim: int, scale: float) -> Problem:
    """Laplace variables whose common log scale is half of a normal variable."""

    def energy(x: Tensor) -> Tensor:
        first, rest = x[:, 0], x[:, 1:].abs().sum(-1)
        return 0.5 * ((first / scale).square() + (dim - 1) * first) + rest * (-0.5 * first).exp()

    def sample(num: int) -> Tensor:
        first = scale * torch.randn(num, 1)
        rest = torch.distributions.Laplace(0.0, 1.0).sample((num, dim - 1))
        return torch.cat([first, (0.5 * first).exp() * rest], -1)

    return Problem(Target.from_energy(energy, dim), sample)


def bow_tie(dim: int = 3, knot: float = 0.1) -> Problem:
    """Normal variables whose variance is the square of another one: a funnel to both sides."""

    def energy(x: Tensor) -> Tensor:
        variance = knot + x[:, 0].square()
        square = x[:, 1:].square().sum(-1) / variance
        return 0.5 * (x[:, 0].square() + square + (dim - 1) * variance.log())

    def sample(num: int) -> Tensor:
        x = torch.randn(num, dim)
        x[:, 1:] *= (knot + x[:, :1].square()).sqrt()
        return x

    return Problem(Target.from_energy(energy, dim), sample)


def curved(bend: Callable[[Tensor], Tensor], dim: int, width: float, scale: float) -> Problem:
    """A normal variable, and others around a function of it."""

    def energy(x: Tensor) -> Tensor:
        off = (x[:, 1:] - bend(x[:, :1])) / width
        return 0.5 * ((x[:, 0] / scale).square() + off.square().sum(-1))

    def sample(num: int) -> Tensor:
        x = torch.randn(num, dim)
        x[:, 0] *= scale
        x[:, 1:] = bend(x[:, :1]) + width * x[:, 1:]
        return x

    return Problem(Target.from_energy(energy, dim), sample)


def shell(dim: int = 4, radius: float = 5.0, width: float = 0.3) -> Problem:
    """A sphere of normal radius and uniform direction."""

    def energy(x: Tensor) -> Tensor:
        r = x.norm(dim=-1).clamp(min=1e-6)
        return 0.5 * ((r - radius) / width).square() + (dim - 1) * r.log()

    def sample(num: int) -> Tensor:
        direction = torch.nn.functional.normalize(torch.randn(num, dim), dim=-1)
        return direction * (radius + width * torch.randn(num, 1))

    return Problem(Target.from_energy(energy, dim), sample)


# ---- Gaussians -----------------------------------------------------------------------------------


def rotated(scales: Sequence[float]) -> Problem:
    """A Gaussian with these standard deviations along axes that are not those of coordinates."""
    sd, dim = torch.tensor(scales), len(scales)
    normal = torch.ones(dim) / dim**0.5
    reflection = torch.eye(dim) - 2 * torch.outer(normal, normal)
    return Problem(
        Target.from_energy(lambda x: 0.5 * ((x @ reflection) / sd).square().sum(-1), dim),
        lambda num: (sd * torch.randn(num, dim)) @ reflection,
    )


def autoregression(dim: int, correlation: float) -> Problem:
    """A stationary Gaussian series of variance one."""
    noise = (1 - correlation**2) ** 0.5

    def energy(x: Tensor) -> Tensor:
        steps = (x[:, 1:] - correlation * x[:, :-1]) / noise
        return 0.5 * (x[:, 0].square() + steps.square().sum(-1))

    def sample(num: int) -> Tensor:
        x = torch.randn(num, dim)
        for i in range(1, dim):
            x[:, i] = correlation * x[:, i - 1] + noise * x[:, i]
        return x

    return Problem(Target.from_energy(energy, dim), sample)
