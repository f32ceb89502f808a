r"""More densities with exact draws: skewed, bounded, bent and ringed ones, funnels, modes of data.

Each function returns a :class:`~pyro_flowsamp.problems.Problem`. Variables with bounds are those of
the unbounded scale, with the Jacobian in the density.
"""

from collections.abc import Sequence
from math import log, pi

import torch
from torch import Tensor
from torch.distributions import Beta, Exponential, Gamma, StudentT, VonMises
from torch.nn.functional import logsigmoid, softplus
from torch.special import i0, log_ndtr

from pyro_flowsamp import Target
from pyro_flowsamp.problems import Problem

from .shapes import LOG_2PI, components, mixture

# ---- tails and skewness --------------------------------------------------------------------------


def skew_student(dim: int, left: float, right: float) -> Problem:
    """Independent skew t variables of Jones and Faddy, with tails of twice these degrees."""
    total = left + right

    def energy(x: Tensor) -> Tensor:
        root = (total + x.square()).sqrt()
        far = (root + x.abs()).log()  # the larger one of log(root ± x); both have the sum log total
        up = torch.where(x > 0, far, log(total) - far) - root.log()
        down = torch.where(x > 0, log(total) - far, far) - root.log()
        return -((left + 0.5) * up + (right + 0.5) * down).sum(-1)

    def sample(num: int) -> Tensor:
        share = Beta(torch.tensor(left).double(), torch.tensor(right).double()).sample((num, dim))
        return (total**0.5 * (share - 0.5) / (share * (1 - share)).sqrt()).float()

    return Problem(Target.from_energy(energy, dim), sample)


def skew_normal(dim: int, shape: float) -> Problem:
    r"""Independent variables with the density :math:`2 \varphi(x) \Phi(\alpha x)`."""
    part = shape / (1 + shape**2) ** 0.5

    def sample(num: int) -> Tensor:
        one, two = torch.randn(2, num, dim)
        return part * one.abs() + (1 - part**2) ** 0.5 * two

    return Problem(
        Target.from_energy(lambda x: (0.5 * x.square() - log_ndtr(shape * x)).sum(-1), dim), sample
    )


def asymmetric_laplace(dim: int, left: float, right: float) -> Problem:
    """Independent variables with exponential tails of these two rates."""

    def sample(num: int) -> Tensor:
        size = Exponential(1.0).sample((num, dim))
        return torch.where(torch.rand(num, dim) < left / (left + right), size / right, -size / left)

    return Problem(
        Target.from_energy(lambda x: (right * x.relu() + left * (-x).relu()).sum(-1), dim), sample
    )


def gumbel(dim: int) -> Problem:
    """Independent Gumbel variables."""
    return Problem(
        Target.from_energy(lambda x: (x + (-x).exp()).sum(-1), dim),
        lambda num: -Exponential(1.0).sample((num, dim)).log(),
    )


def secant(dim: int) -> Problem:
    r"""Independent variables with the density :math:`\propto 1 / \cosh(\pi x / 2)`."""

    def sample(num: int) -> Tensor:
        u = torch.rand(num, dim, dtype=torch.double).clamp(1e-15, 1 - 1e-15)
        return (2 / pi * (0.5 * pi * u).tan().log()).float()

    def energy(x: Tensor) -> Tensor:
        size = 0.5 * pi * x.abs()
        return (size + (-2 * size).exp().log1p()).sum(-1)

    return Problem(Target.from_energy(energy, dim), sample)


def tilted_student(scales: Sequence[float], degrees: float) -> Problem:
    """A multivariate Student-t distribution whose axes are not those of coordinates."""
    sd, dim = torch.tensor(scales), len(scales)
    normal = torch.ones(dim) / dim**0.5
    reflection = torch.eye(dim) - 2 * torch.outer(normal, normal)

    def energy(x: Tensor) -> Tensor:
        square = ((x @ reflection) / sd).square().sum(-1)
        return 0.5 * (degrees + dim) * (square / degrees).log1p()

    def sample(num: int) -> Tensor:
        chi2 = torch.distributions.Chi2(degrees).sample((num, 1))
        return (sd * torch.randn(num, dim) / (chi2 / degrees).sqrt()) @ reflection

    return Problem(Target.from_energy(energy, dim), sample)


# ---- bounded variables ---------------------------------------------------------------------------


def logit_beta(dim: int, one: float, other: float) -> Problem:
    """Logits of independent Beta variables."""

    def sample(num: int) -> Tensor:
        first = Gamma(torch.tensor(one).double(), 1.0).sample((num, dim))
        return (first / Gamma(torch.tensor(other).double(), 1.0).sample((num, dim))).log().float()

    return Problem(
        Target.from_energy(lambda x: -(one * logsigmoid(x) + other * logsigmoid(-x)).sum(-1), dim),
        sample,
    )


def log_half_cauchy(dim: int) -> Problem:
    """Logs of independent half-Cauchy variables."""
    return Problem(
        Target.from_energy(lambda x: (softplus(2 * x) - x).sum(-1), dim),
        lambda num: (torch.randn(num, dim) / torch.randn(num, dim)).abs().log(),
    )


def dirichlet(concentration: Sequence[float]) -> Problem:
    """Logs of the ratios of the shares of a Dirichlet variable to the last share."""
    each = torch.tensor(concentration)

    def energy(x: Tensor) -> Tensor:
        shares = torch.cat([x, torch.zeros_like(x[:, :1])], -1).log_softmax(-1)
        return -(each * shares).sum(-1)

    def sample(num: int) -> Tensor:
        logs = Gamma(each.double(), torch.ones(len(each)).double()).sample((num,)).log()
        return (logs[:, :-1] - logs[:, -1:]).float()

    return Problem(Target.from_energy(energy, len(each) - 1), sample)


# ---- modes ---------------------------------------------------------------------------------------


def grid_of_modes(spacing: float = 5.0) -> Problem:
    """Nine Gaussians on a square grid, of unequal widths and masses."""
    axis = torch.arange(3) * spacing
    k = torch.arange(9.0)
    weights = (1 + k % 4) / (1 + k % 4).sum()
    means = torch.cartesian_prod(axis, axis)
    return mixture(means.tolist(), (0.4 + 0.05 * k).tolist(), weights.tolist())


def crowd_of_modes(number: int = 20, reach: float = 12.0) -> Problem:
    """Gaussians at random points of a square, of equal masses; some of them overlap."""
    generator = torch.Generator().manual_seed(20)
    means = reach * (2 * torch.rand(number, 2, generator=generator) - 1)
    widths = 0.5 + 0.5 * torch.rand(number, generator=generator)
    return mixture(means.tolist(), widths.tolist(), [1 / number] * number)


def oriented_modes(dim: int = 5) -> Problem:
    """Three Gaussians with covariances of different axes."""
    generator = torch.Generator().manual_seed(5)
    factors = torch.randn(3, dim, dim, generator=generator) * torch.tensor([0.6, 0.4, 0.8]).view(
        3, 1, 1
    ) + 0.3 * torch.eye(dim)
    means = 6.0 * torch.randn(3, dim, generator=generator)
    weights = [0.5, 0.2, 0.3]
    normals = torch.distributions.MultivariateNormal(means, factors @ factors.mT)

    def joint(x: Tensor) -> Tensor:
        return torch.tensor(weights).log() + normals.log_prob(x[:, None])

    def draw(k: Tensor) -> Tensor:
        return means[k] + (factors[k] @ torch.randn(len(k), dim, 1))[..., 0]

    return components(dim, joint, draw, weights)


def comb_of_modes(rate: float = 2.0, width: float = 0.1) -> Problem:
    """Narrow Gaussians at 0, ..., 5 with the masses of a Poisson variable, beside a normal one."""
    k = torch.arange(6.0)
    weights = (k * log(rate) - (k + 1).lgamma()).softmax(0)

    def joint(x: Tensor) -> Tensor:
        off = (x[:, :1] - k) / width
        return weights.log() - 0.5 * off.square() - 0.5 * x[:, 1:].square()

    def draw(which: Tensor) -> Tensor:
        x = torch.randn(len(which), 2)
        return torch.stack([which + width * x[:, 0], x[:, 1]], -1)

    return components(2, joint, draw, weights.tolist())


def two_arcs(radius: float = 4.0, width: float = 0.3, concentration: float = 8.0) -> Problem:
    """Two arcs of a ring, on opposite sides."""
    weights, angles = [0.7, 0.3], torch.tensor([0.0, pi])
    log_i0 = float(i0(torch.tensor(concentration)).log())

    def joint(x: Tensor) -> Tensor:
        r = x.norm(dim=-1).clamp(min=1e-6)
        across = -0.5 * ((r - radius) / width).square() - 0.5 * LOG_2PI - log(width) - r.log()
        along = concentration * (torch.atan2(x[:, 1], x[:, 0])[:, None] - angles).cos()
        return across[:, None] + along - LOG_2PI - log_i0 + torch.tensor(weights).log()

    def draw(k: Tensor) -> Tensor:
        angle = VonMises(angles[k], concentration).sample()
        r = radius + width * torch.randn(len(k))
        return torch.stack([r * angle.cos(), r * angle.sin()], -1)

    return components(2, joint, draw, weights)


# ---- funnels, bent densities and rings -----------------------------------------------------------


def sloped_funnel(dim: int, scale: float, slope: float) -> Problem:
    r"""A normal variable :math:`x_1`, and others with the standard deviation :math:`e^{c x_1}`."""

    def energy(x: Tensor) -> Tensor:
        first, rest = x[:, 0], x[:, 1:].square().sum(-1)
        square = (first / scale).square() + rest * (-2 * slope * first).exp()
        return 0.5 * square + (dim - 1) * slope * first

    def sample(num: int) -> Tensor:
        x = torch.randn(num, dim)
        first = scale * x[:, :1]
        return torch.cat([first, (slope * first).exp() * x[:, 1:]], -1)

    return Problem(Target.from_energy(energy, dim), sample)


def student_funnel(dim: int, scale: float, degrees: float) -> Problem:
    """Student-t variables whose common log scale is half of a normal variable."""
    half = 0.5 * (degrees + 1)

    def energy(x: Tensor) -> Tensor:
        first, rest = x[:, 0], x[:, 1:] * (-0.5 * x[:, :1]).exp()
        tails = half * (rest.square() / degrees).log1p().sum(-1)
        return 0.5 * (first / scale).square() + 0.5 * (dim - 1) * first + tails

    def sample(num: int) -> Tensor:
        first = scale * torch.randn(num, 1)
        return torch.cat([first, (0.5 * first).exp() * StudentT(degrees).sample((num, dim - 1))], 1)

    return Problem(Target.from_energy(energy, dim), sample)


def twisted(dim: int, scale: float, bend: float) -> Problem:
    """Haario's bent Gaussian: the square of the first coordinate shifts the second one."""

    def bent(first: Tensor) -> Tensor:
        return bend * (first.square() - scale**2)

    def energy(x: Tensor) -> Tensor:
        off = (x[:, 1] - bent(x[:, 0])).square() + x[:, 2:].square().sum(-1)
        return 0.5 * ((x[:, 0] / scale).square() + off)

    def sample(num: int) -> Tensor:
        x = torch.randn(num, dim)
        x[:, 0] *= scale
        x[:, 1] += bent(x[:, 0])
        return x

    return Problem(Target.from_energy(energy, dim), sample)


def ring_in_space(radius: float = 5.0, width: float = 0.4) -> Problem:
    """A ring in three dimensions."""

    def energy(x: Tensor) -> Tensor:
        r = x[:, :2].norm(dim=-1).clamp(min=1e-6)
        return 0.5 * (((r - radius) / width).square() + (x[:, 2] / width).square()) + r.log()

    def sample(num: int) -> Tensor:
        x = torch.randn(num, 3)
        r = radius + width * torch.randn(num, 1)
        return torch.cat([r * torch.nn.functional.normalize(x[:, :2], dim=-1), width * x[:, 2:]], 1)

    return Problem(Target.from_energy(energy, 3), sample)
