r"""Distributions with a difficult shape: a funnel, a banana, a normal outside a ball."""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi

import torch
from torch import Tensor
from torch.special import gammaincc

from ..target.density import Target
from .problem import EXACT, Problem, TensorOptions, tensor_options

__all__ = ["banana", "funnel", "truncated_normal"]


LOG_2PI = log(2 * pi)


def funnel(
    dim: int = 5,
    scale: float = 0.9,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Problem:
    r"""Neal's funnel, where the first coordinate sets the width of all others.

    .. math:: x_1 \sim N(0, \sigma^2),\qquad x_i \mid x_1 \sim N(0, e^{x_1}),\quad i = 2, \dots, d

    The variance is :math:`e^{x_1}`, so :math:`\mathbb E x_i^2 = e^{\sigma^2 / 2}`.

    Arguments:
        dim: The dimension :math:`d`.
        scale: :math:`\sigma`; 0.9 is the value of Wu and Xie, 3 that of Neal.
        dtype, device: Dtype and device of the points; torch's defaults where None.

    References:
        Neal, *Slice Sampling*, 2003, https://doi.org/10.1214/aos/1056562461

        Wu and Xie, *Annealing Flow Generative Models Towards Sampling High-Dimensional and
        Multi-Modal Distributions*, 2025, https://arxiv.org/abs/2409.20547

    Example::

        >>> problem = funnel(dim=5)
        >>> problem.sample(3).shape
        torch.Size([3, 5])
    """
    at = tensor_options(dtype, device)

    def log_prob(x: Tensor) -> Tensor:
        first, rest = x[:, 0], x[:, 1:]
        squares = (first / scale).square() + rest.square().sum(-1) * torch.exp(-first)
        return -0.5 * (squares + (dim - 1) * first + dim * LOG_2PI) - log(scale)

    def sample(num: int) -> Tensor:
        x = torch.randn(num, dim, **at)
        first = scale * x[:, :1]
        return torch.cat([first, torch.exp(0.5 * first) * x[:, 1:]], -1)

    return Problem(
        target=Target.from_energy(lambda x: -log_prob(x), dim, **at),
        sample=sample,
        log_z=0.0,
        entropy=0.5 * dim * (1 + LOG_2PI) + log(scale),
    )


def banana(
    dim: int = 2,
    curvature: float = 0.03,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Problem:
    r"""A normal distribution that is bent along a parabola.

    .. math:: x_1 \sim N(0, 10^2),\qquad x_2 \mid x_1 \sim N(b\,(x_1^2 - 100), 1),\qquad
              x_i \sim N(0, 1),\quad i > 2

    Arguments:
        dim: The dimension, at least 2.
        curvature: :math:`b`.
        dtype, device: Dtype and device of the points; torch's defaults where None.

    Raises:
        ValueError: There are fewer than two dimensions.

    References:
        Haario, Saksman and Tamminen, *Adaptive Proposal Distribution for Random Walk Metropolis
        Algorithm*, 1999, https://doi.org/10.1007/s001800050022

    Example::

        >>> round(banana().entropy, 4)
        5.1405
    """
    if dim < 2:
        raise ValueError(f"a banana needs two dimensions, not {dim}")
    at = tensor_options(dtype, device)

    def bend(first: Tensor) -> Tensor:
        return curvature * (first.square() - 100)

    def log_prob(x: Tensor) -> Tensor:
        squares = (x[:, 0] / 10).square() + (x[:, 1] - bend(x[:, 0])).square()
        return -0.5 * (squares + x[:, 2:].square().sum(-1) + dim * LOG_2PI) - log(10)

    def sample(num: int) -> Tensor:
        x = torch.randn(num, dim, **at)
        x[:, 0] *= 10
        x[:, 1] += bend(x[:, 0])
        return x

    return Problem(
        target=Target.from_energy(lambda x: -log_prob(x), dim, **at),
        sample=sample,
        log_z=0.0,
        entropy=0.5 * dim * (1 + LOG_2PI) + log(10),
    )


def truncated_normal(
    dim: int,
    radius: float,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Problem:
    r"""A standard normal outside a ball, a rare event whose probability is :math:`Z`.

    .. math:: \tilde p(x) = N(x; 0, I_d)\, 1\{\|x\| > c\},\qquad
              Z = P(\chi^2_d > c^2) = Q(\tfrac d2, \tfrac{c^2}2),

    :math:`Q` the regularised upper incomplete gamma function. The log density is :math:`-\infty`
    inside the ball, with no gradient that leads out.

    Arguments:
        dim: The dimension :math:`d`.
        radius: Radius of the ball, :math:`c`.
        dtype, device: Dtype and device of the points; torch's defaults where None.

    Example::

        >>> problem = truncated_normal(dim=2, radius=6.0)  # Z is exp(-18)
        >>> round(problem.log_z, 6)
        -18.0
        >>> bool((problem.sample(100).norm(dim=-1) > 6).all())
        True
    """
    at = tensor_options(dtype, device)
    shape, start = 0.5 * dim, 0.5 * radius**2
    z = _survival(shape, start)
    mean_square = dim * _survival(shape + 1, start) / z
    half_square = _gamma_tail(shape, start, at["device"])
    just_outside = radius * (1 + 4 * torch.finfo(at["dtype"]).eps)

    def energy(x: Tensor) -> Tensor:
        square = x.square().sum(-1)
        return torch.where(square > radius**2, 0.5 * (square + dim * LOG_2PI), torch.inf)

    def sample(num: int) -> Tensor:
        # Rounding must not put a draw back inside, where its density is zero.
        length = (2 * half_square(num)).sqrt().to(at["dtype"]).clamp(min=just_outside)
        direction = torch.nn.functional.normalize(torch.randn(num, dim, **at), dim=-1)
        return length[:, None] * direction

    return Problem(
        target=Target.from_energy(energy, dim, **at),
        sample=sample,
        log_z=log(z),
        entropy=log(z) + 0.5 * (mean_square + dim * LOG_2PI),
    )


def _survival(shape: float, t: float) -> float:
    return float(gammaincc(torch.tensor(shape, **EXACT), torch.tensor(t, **EXACT)))


def _gamma_tail(shape: float, start: float, device: torch.device) -> Callable[[int], Tensor]:
    r"""Makes a sampler of a :math:`\Gamma(a, 1)` variable above ``start``, by inversion.

    The equation :math:`Q(a, t) = u\, Q(a, t_0)` has no closed solution. Bisection in float64 is
    exact to rounding after a fixed number of steps; rejection would take an unknown number.
    """
    exact: TensorOptions = {"dtype": torch.float64, "device": device}
    at_start, end = _survival(shape, start), start + 1.0
    while _survival(shape, end) > 1e-17 * at_start:
        end *= 2
    a, t0, t1 = (torch.tensor(value, **exact) for value in (shape, start, end))

    def draw(num: int) -> Tensor:
        goal = torch.rand(num, **exact) * at_start
        low, high = t0.expand(num), t1.expand(num)
        for _ in range(60):
            middle = 0.5 * (low + high)
            beyond = gammaincc(a, middle) < goal
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        return high

    return draw
