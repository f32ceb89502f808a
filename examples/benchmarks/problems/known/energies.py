r"""Densities on :math:`\mathbb R^d` with exact answers: modes, heavy tails, bends."""

from functools import partial

import numpy as np
import torch
from scipy.special import ndtr, stdtr
from scipy.stats import f as fisher
from torch import Tensor

from pyro_flowsamp import Target

from .. import suite
from .reference import Draws, Function, KnownPosterior, Made, Statistic, above, site, square

# ---- forty modes ---------------------------------------------------------------------------------

SD = 1.3  #: of each of the forty Gaussians


def forty_means(seed: int) -> Tensor:
    """Returns the means of the forty Gaussians, uniform on a square of side 80, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return ((torch.rand(40, 2, generator=generator, dtype=torch.float32) - 0.5) * 80).double()


def forty_modes(seed: int) -> Made:
    r"""Makes :math:`\frac{1}{40} \sum_k N(\mu_k, 1.3^2 I)` in two dimensions."""
    means = forty_means(seed).to(torch.get_default_dtype())

    def energy(x: Tensor) -> Tensor:
        return -(-0.5 * ((x[:, None] - means) / SD).square().sum(-1)).logsumexp(1)

    return Target.from_energy(energy, 2), ()


def forty_statistics(seed: int) -> list[Statistic]:
    """Means, second moments and shares of half planes and quadrants, from each Gaussian's own."""
    means = forty_means(seed).numpy()
    x = [site("x", i) for i in (0, 1)]
    positive = ndtr(means / SD)  # (40, 2)
    found = []
    for i, name in enumerate("xy"):
        found += [
            Statistic(name, x[i], means[:, i].mean()),
            Statistic(f"{name}²", square(x[i]), (means[:, i] ** 2).mean() + SD**2),
            Statistic(f"P({name} > 0)", above(x[i], 0), positive[:, i].mean(), share=True),
        ]
    for a in (1, -1):
        for b in (1, -1):
            share = _signed(positive[:, 0], a) * _signed(positive[:, 1], b)
            name = f"P({'+' if a > 0 else '-'}x, {'+' if b > 0 else '-'}y > 0)"
            found.append(Statistic(name, quadrant(a, b), float(share.mean()), share=True))
    return found


def _signed(positive: np.ndarray, sign: int) -> np.ndarray:
    return positive if sign > 0 else 1 - positive


def quadrant(a: int, b: int) -> Function:
    """The indicator of the quadrant where x has the sign a and y the sign b."""
    return lambda draws: ((a * draws["x"][..., 0] > 0) & (b * draws["x"][..., 1] > 0)).astype(float)


# ---- heavy tails ---------------------------------------------------------------------------------


def student(degrees: int, dim: int) -> Made:
    r"""Makes the multivariate Student-t :math:`\propto (1 + \|x\|^2 / \nu)^{-(\nu + d) / 2}`."""

    def energy(x: Tensor) -> Tensor:
        return 0.5 * (degrees + dim) * (x.square().sum(-1) / degrees).log1p()

    return Target.from_energy(energy, dim), ()


def radius(draws: Draws) -> np.ndarray:
    """The Euclidean norm of the draws."""
    return (draws["x"].astype(float) ** 2).sum(-1) ** 0.5


def student_statistics(degrees: int, dim: int) -> list[Statistic]:
    r"""Tails of the first component and of the radius.

    The first component is a Student-t too, and :math:`\|x\|^2 / d` has Fisher's distribution with
    :math:`d` and :math:`\nu` degrees of freedom.
    """
    x = site("x", 0)

    def size(draws: Draws) -> np.ndarray:
        return np.abs(x(draws))

    found = [Statistic("P(x > 0)", above(x, 0), 0.5, share=True)]
    for k in (2, 5, 10):
        share = float(2 * stdtr(degrees, -k))
        found.append(Statistic(f"P(|x| > {k})", above(size, k), share, share=True))
    if dim > 1:
        for k in (3, 10, 20):
            share = float(fisher.sf(k**2 / dim, dim, degrees))
            found.append(Statistic(f"P(norm > {k})", above(radius, k), share, share=True))
    return found


# ---- those of the other suite --------------------------------------------------------------------


def borrowed(name: str) -> list[Statistic]:
    """The statistics of a problem of the other suite; values of 0 and 1 are indicators."""
    problem = suite.PROBLEMS[name]
    truth = problem.truth()

    def function(key: str) -> Function:
        return lambda draws: np.asarray(problem.statistics(dict(draws))[key], dtype=float)

    indicators = name == "galaxies" or "modes" in name or "moon" in name
    return [
        Statistic(key, function(key), value, error, share=indicators and not key.startswith("x"))
        for key, (value, error) in truth.items()
    ]


FROM_SUITE = "banana_100 dual_moon_5 two_modes_2 two_modes_10 two_modes_50 galaxies".split()

PROBLEMS = {
    "forty_modes": KnownPosterior(
        partial(forty_modes, 0), partial(forty_statistics, 0), 2, "sums over the modes"
    ),
    "forty_modes_again": KnownPosterior(
        partial(forty_modes, 1), partial(forty_statistics, 1), 2, "sums over the modes"
    ),
}
for degrees, d in ((3, 1), (2, 1), (2, 10)):
    PROBLEMS[f"student_t{degrees}_{d}"] = KnownPosterior(
        partial(student, degrees, d), partial(student_statistics, degrees, d), d, "closed form"
    )
for name in FROM_SUITE:
    PROBLEMS[name] = KnownPosterior(
        suite.PROBLEMS[name].make,
        partial(borrowed, name),
        suite.PROBLEMS[name].dim or 8,  # galaxies are a Pyro model, of eight dimensions
        "symmetry" if name == "galaxies" else "closed form",
    )
