r"""Densities on :math:`\mathbb R^d` with exact draws: mixtures, a funnel, products of wells.

References:
    Midgley, Stimper, Simm, Schölkopf and Hernández-Lobato, *Flow Annealed Importance Sampling
    Bootstrap*, 2023, https://arxiv.org/abs/2208.01893 (nine and forty Gaussians, many wells)

    Chen, Richter, Berner, Blessing, Neumann and Anandkumar, *Sequential Controlled Langevin
    Diffusions*, 2024, https://arxiv.org/abs/2412.07081 (forty Gaussians and ten Student-t
    distributions in 50 dimensions, the funnel, 32 wells in 5 dimensions)
"""

from collections.abc import Callable
from functools import cache, partial
from itertools import product
from math import exp, lgamma, log, log1p, pi

import numpy as np
import torch
from torch import Tensor

from pyro_flowsamp import Target
from pyro_flowsamp.problems import Problem, funnel

from ..known.energies import forty_means
from .target import LiteratureTarget, of_problem

LOG_2PI = log(2 * pi)
DOUBLE = torch.float64

# ---- mixtures ------------------------------------------------------------------------------------


def gaussians(means: Tensor, sd: float) -> Problem:
    r"""Makes the equal mixture :math:`\frac1K \sum_k N(\mu_k, s^2 I)`, normalised.

    Arguments:
        means: The means, ``(K, d)``.
        sd: The standard deviation :math:`s` of each component.
    """
    means = means.to(torch.get_default_dtype())
    count, dim = means.shape
    constant = log(count) + dim * (log(sd) + 0.5 * LOG_2PI)

    def energy(x: Tensor) -> Tensor:
        squares = ((x[:, None] - means) / sd).square().sum(-1)
        return constant - (-0.5 * squares).logsumexp(1)

    def sample(num: int) -> Tensor:
        return means[torch.randint(count, (num,))] + sd * torch.randn(num, dim).to(means)

    return _mixture(energy, sample, means)


def students(locations: Tensor, degrees: float = 2.0) -> Problem:
    r"""Makes the equal mixture of K products of d Student-t distributions of scale 1.

    Arguments:
        locations: Their locations, ``(K, d)``.
        degrees: The degrees of freedom :math:`\nu`.
    """
    locations = locations.to(torch.get_default_dtype())
    count, dim = locations.shape
    half = (degrees + 1) / 2
    one = lgamma(half) - lgamma(degrees / 2) - 0.5 * log(degrees * pi)
    constant = log(count) - dim * one

    def energy(x: Tensor) -> Tensor:
        logs = ((x[:, None] - locations).square() / degrees).log1p().sum(-1)
        return constant - (-half * logs).logsumexp(1)

    def sample(num: int) -> Tensor:
        chi2 = 2 * torch._standard_gamma(torch.full((num, dim), degrees / 2, dtype=DOUBLE))
        t = torch.randn(num, dim, dtype=DOUBLE) * (degrees / chi2).sqrt()
        return locations[torch.randint(count, (num,))] + t.to(locations)

    return _mixture(energy, sample, locations)


def _mixture(
    energy: Callable[[Tensor], Tensor], sample: Callable[[int], Tensor], centres: Tensor
) -> Problem:
    count, dim = centres.shape
    weights = centres.new_full((count,), 1 / count)
    return Problem(Target.from_energy(energy, dim), sample, 0.0, centres, weights)


def nine_gaussians() -> Problem:
    """Makes nine Gaussians on a lattice of spacing 5, of standard deviation .5477."""
    return gaussians(torch.tensor(list(product((-5.0, 0.0, 5.0), repeat=2))), 0.3**0.5)


def forty_gaussians(seed: int) -> Problem:
    """Makes forty Gaussians in the plane; with seed 0 at the published means."""
    return gaussians(forty_means(seed), log1p(exp(1.0)))


def uniform_centres(count: int, dim: int, bound: float, seed: int = 0) -> Tensor:
    """Returns points with uniform coordinates in (−bound, bound), ``(count, dim)``."""
    generator = torch.Generator().manual_seed(seed)
    return bound * (2 * torch.rand(count, dim, generator=generator, dtype=DOUBLE) - 1)


def forty_gaussians_50() -> Problem:
    """Makes forty unit Gaussians in 50 dimensions, means uniform in (−40, 40)."""
    return gaussians(uniform_centres(40, 50, 40.0), 1.0)


def ten_students_50() -> Problem:
    """Makes ten products of 50 Student-t(2) distributions, locations uniform in (−10, 10)."""
    return students(uniform_centres(10, 50, 10.0))


# ---- wells ---------------------------------------------------------------------------------------

GRID = 20_001  #: points of the quadratures; the trapezium rule converges faster than any power
END = 6.0  #: of the interval, beyond which the densities are below e^{-800}


class Marginal:
    """A density on the line, by a grid: its integral, its mass right of zero, its draws.

    Arguments:
        log_density: Unnormalised, of arrays.
    """

    def __init__(self, log_density: Callable[[np.ndarray], np.ndarray]) -> None:
        self.x = np.linspace(-END, END, GRID)
        density = np.exp(log_density(self.x))
        step = self.x[1] - self.x[0]
        self.log_z = float(np.log(density.sum() * step))
        steps = np.concatenate([[0.0], (density[1:] + density[:-1]) * step / 2])
        self.below = steps.cumsum() / steps.sum()
        self.right = 1 - float(self.below[GRID // 2])

    def sample(self, *shape: int) -> Tensor:
        """Exact draws but for the interpolation between points of the grid, float64."""
        u = torch.rand(*shape, dtype=DOUBLE).numpy()
        return torch.from_numpy(np.interp(u, self.below, self.x))


@cache
def tilted_well() -> Marginal:
    r"""The marginal of :math:`x` of a pair: :math:`\log p = x / 2 + 6 x^2 - x^4`."""
    return Marginal(lambda x: 0.5 * x + 6 * x**2 - x**4)


@cache
def even_well() -> Marginal:
    r"""The marginal :math:`\log p = -(x^2 - 4)^2`."""
    return Marginal(lambda x: -((x**2 - 4) ** 2))


def many_well(dim: int = 32) -> Problem:
    r"""Makes d / 2 copies of :math:`\log p = x / 2 + 6 x^2 - x^4 - y^2 / 2`, x before y."""
    pairs, marginal = dim // 2, tilted_well()

    def energy(z: Tensor) -> Tensor:
        x, y = z[:, ::2], z[:, 1::2]
        return (x**4 - 6 * x**2 - 0.5 * x + 0.5 * y**2).sum(-1)

    def sample(num: int) -> Tensor:
        x, y = marginal.sample(num, pairs), torch.randn(num, pairs, dtype=DOUBLE)
        return torch.stack([x, y], -1).flatten(1).to(torch.get_default_dtype())

    log_z = pairs * (marginal.log_z + 0.5 * LOG_2PI)
    return Problem(Target.from_energy(energy, dim), sample, log_z)


def even_wells(dim: int = 5) -> Problem:
    r"""Makes :math:`\log p = -\sum_i (x_i^2 - 4)^2`, of :math:`2^d` equal modes."""
    marginal = even_well()
    modes = torch.tensor(list(product((-2.0, 2.0), repeat=dim)))

    def energy(x: Tensor) -> Tensor:
        return (x**2 - 4).square().sum(-1)

    def sample(num: int) -> Tensor:
        return marginal.sample(num, dim).to(torch.get_default_dtype())

    weights = modes.new_full((len(modes),), 1 / len(modes))
    target = Target.from_energy(energy, dim)
    return Problem(target, sample, dim * marginal.log_z, modes, weights)


def wide_funnel() -> Problem:
    r"""Makes Neal's funnel in ten dimensions, :math:`x_1 \sim N(0, 3^2)`."""
    return funnel(10, 3.0)


NORMALISED = "normalised"
QUADRATURE = "quadrature in one dimension"

TARGETS: dict[str, LiteratureTarget] = {
    "gmm9_2": of_problem(
        nine_gaussians,
        2,
        NORMALISED,
        reference=("box", 10.0),
        published={"FAB": "mean abs error .0027 ± .0005"},
    ),
    "gmm40_2": of_problem(
        partial(forty_gaussians, 0),
        2,
        NORMALISED,
        reference=("box", 60.0),
        published={
            "iDEM": "mean abs error .34, ESS .734, W2 7.42",
            "DDS": "mean abs error .36",
            "NETS": "ESS .95–.98",
            "CMCD-LV": "ESS .655",
        },
    ),
    "gmm40_2_other": of_problem(
        partial(forty_gaussians, 1), 2, NORMALISED, reference=("box", 60.0)
    ),
    "gmm40_50": of_problem(
        forty_gaussians_50,
        50,
        NORMALISED,
        published={"SCLD": "W2² 3787", "another paper": "W2² 328"},
    ),
    "mos_50": of_problem(ten_students_50, 50, NORMALISED, clip=30.0),
    "funnel_10": of_problem(
        wide_funnel,
        10,
        NORMALISED,
        clip=30.0,
        reference=("box", 100.0),  # .001 of the mass is outside
        published={
            "FAB": "mean abs error .0022 ± .0005",
            "nested sampling": "mean abs error .033",
            "best GFlowNet": "mean abs error .051",
            "SMC": "mean abs error .561",
            "SCLD": "W2² 134.2",
        },
    ),
    "many_well_32": of_problem(
        many_well,
        32,
        QUADRATURE,
        wells=tuple(range(0, 32, 2)),
        well_share=tilted_well().right,
        reference=("box", 6.0),
        published={
            "FAB": "mean abs error .032 ± .004",
            "best GFlowNet": "mean abs error .02 ± .21",
            "nested sampling": "mean abs error .292",
            "SMC": "mean abs error 15",
        },
    ),
    "many_well_5": of_problem(
        even_wells,
        5,
        QUADRATURE,
        wells=tuple(range(5)),
        reference=("box", 4.0),
        published={"several": "W2² .08 to .65"},
    ),
}
