r"""True log evidences of the literature's posteriors, with their standard errors.

None of them uses a sampler of this package:

- *Brownian motion*: given its two scales all is Gaussian, and these are integrated on a grid.
- *Seeds*: given :math:`\tau` and the four coefficients the random effects are independent, and each
  is integrated by Gauss–Hermite quadrature. The five others are integrated by importance sampling.
- *Credit*: importance sampling from a Student-t distribution at the mode.
- *Sonar, radar returns, point process*: annealed importance sampling from the Gaussian at the mode,
  see :func:`annealed_log_z`.

``python examples/benchmarks/suites/records.py --truth seeds`` computes one of them again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import log, pi

import numpy as np
import torch
from scipy.linalg import solve_triangular
from scipy.stats import norm
from torch import Tensor

from pyro_flowsamp import log_evidence

from ..known.reference import ImportanceOptions, laplace, student_pairs
from . import posteriors

DOUBLE = torch.float64
LOG_2PI = log(2 * pi)
NEWTON_TOLERANCE = 1e-8  #: norm of the gradient at the mode

Found = tuple[float, float]  #: log evidence and its standard error


def importance_log_z(
    log_density: Callable[[Tensor], Tensor], start: Tensor, options: ImportanceOptions
) -> Found:
    r"""The log evidence :math:`\log \frac1N \sum_i w_i`, by draws from a Student-t at the mode.

    Its standard error is that of the means of pairs of antithetic draws.

    Arguments:
        log_density: Maps unconstrained ``(N, d)`` to ``(N,)``, in float64.
        start: The first point of the search for the mode, ``(d,)``.
        options: Settings.
    """
    pairs = student_pairs(log_density, start, options)
    log_w = torch.cat([log_density(x) - log_q for x, log_q in pairs])
    found = log_evidence(log_w.reshape(-1, 2).logsumexp(1) - log(2))
    return float(found.value), float(found.standard_error)


# ---- regressions ---------------------------------------------------------------------------------


def logistic_density(X: Tensor, y: Tensor, sd: float | None) -> Callable[[Tensor], Tensor]:
    """The log density of weights ``(N, d)``, written without Pyro."""

    def density(w: Tensor) -> Tensor:
        eta = w @ X.T
        likelihood = (y * eta - torch.nn.functional.softplus(eta)).sum(1)
        if sd is None:
            return likelihood
        return likelihood - 0.5 * ((w / sd).square() + LOG_2PI + 2 * log(sd)).sum(1)

    return density


def logistic_log_z(
    data: tuple[np.ndarray, np.ndarray], sd: float | None, options: ImportanceOptions
) -> Found:
    """The log evidence of a logistic regression."""
    X, y = map(torch.from_numpy, data)
    start = torch.zeros(X.shape[1], dtype=DOUBLE)
    return importance_log_z(logistic_density(X, y, sd), start, options)


# ---- seeds ---------------------------------------------------------------------------------------


def seeds_density(nodes: int) -> Callable[[Tensor], Tensor]:
    r"""The log density of :math:`(\log \tau, a)`, the random effects integrated.

    .. math:: \log p(\log\tau) + \log p(a) + \sum_j \log \int N(b; 0, 1 / \tau)
              \mathrm{Binomial}(r_j; N_j, x_j a + b)\,db

    Arguments:
        nodes: Nodes of the Gauss–Hermite rule.
    """
    r, n, X = map(torch.from_numpy, posteriors.seed_data())
    place, weight = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(nodes))
    log_weight = weight.log() - 0.5 * LOG_2PI
    constant = (torch.lgamma(n + 1) - torch.lgamma(r + 1) - torch.lgamma(n - r + 1)).sum()
    shape = rate = torch.tensor(0.01, dtype=DOUBLE)
    prior = shape * rate.log() - torch.lgamma(shape)

    def density(point: Tensor) -> Tensor:
        log_tau, a = point[:, 0], point[:, 1:]
        found = prior + shape * log_tau - rate * log_tau.exp() + constant
        found = found - 0.5 * ((a / 10).square() + LOG_2PI + 2 * log(10)).sum(1)
        eta = (a @ X.T)[..., None] + (-0.5 * log_tau).exp()[:, None, None] * place
        log_p = r[:, None] * eta - n[:, None] * torch.nn.functional.softplus(eta)
        return found + (log_p + log_weight).logsumexp(-1).sum(1)

    return density


def seeds_log_z(options: ImportanceOptions, nodes: int = 80) -> Found:
    """The log evidence of the germination of seeds."""
    start = torch.tensor([2.0, -0.5, 0.0, 1.0, -0.5], dtype=DOUBLE)
    return importance_log_z(seeds_density(nodes), start, options)


# ---- Brownian motion -----------------------------------------------------------------------------


def brownian_density(inner: np.ndarray, outer: np.ndarray) -> np.ndarray:
    r"""The log density of both log scales and the observations, the motion integrated.

    With :math:`\mathrm{Cov}(x_s, x_t) = \sigma_i^2 (1 + \min(s, t)) = \sigma_i^2 (V D V^\top)_{st}`
    at the observed times, the observations are Gaussian with the variances :math:`\sigma_i^2 D_k +
    \sigma_o^2` along the columns of V.

    Arguments:
        inner: Logs of the scale of steps, of any shape.
        outer: Logs of the scale of errors, of the same shape.
    """
    y, seen = posteriors.brownian_data(), np.array(posteriors.SEEN)
    values, vectors = np.linalg.eigh(1.0 + np.minimum(seen[:, None], seen))
    along = (vectors.T @ y) ** 2
    variance = np.exp(2 * inner)[..., None] * values + np.exp(2 * outer)[..., None]
    log_p = -0.5 * (np.log(variance) + LOG_2PI + along / variance).sum(-1)
    return log_p + norm.logpdf(inner, scale=2) + norm.logpdf(outer, scale=2)


def brownian_log_z(points: int = 400, end: float = 12.0) -> Found:
    """The log evidence of Brownian motion, by a grid of both log scales.

    Arguments:
        points: Points of each axis.
        end: The grid goes from −end to end.
    """
    axis = np.linspace(-end, end, points)
    log_p = brownian_density(*np.meshgrid(axis, axis, indexing="ij"))
    return float(np.logaddexp.reduce(log_p, axis=None) + 2 * np.log(axis[1] - axis[0])), 0.0


# ---- annealing from the Gaussian at the mode -----------------------------------------------------

Ratio = Callable[[Tensor], tuple[Tensor, Tensor]]  #: its values and gradients at ``(N, d)``


@dataclass(frozen=True)
class AnnealingOptions:
    """Settings of annealed importance sampling.

    Attributes:
        particles: Independent particles.
        temperatures: Steps from the Gaussian to the posterior, of equal length.
        leapfrogs: Leapfrog steps of the move after each.
        step_size: Their size, in standard deviations of the Gaussian.
        newton_steps: Steps to the mode.
        seed: Seed of all random numbers.
    """

    particles: int = 4000
    temperatures: int = 100
    leapfrogs: int = 5
    step_size: float = 0.35
    newton_steps: int = 100
    seed: int = 0


def annealed_log_z(ratio: Ratio, dim: int, options: AnnealingOptions) -> Found:
    r"""The log evidence by annealing from a Gaussian :math:`N(m, C C^\top)` near the posterior.

    In coordinates :math:`u`, with points :math:`x = m + C u`, the path

    .. math:: \log f_\beta(u) = -\tfrac12 \|u\|^2 + \beta\, r(u),\qquad
              r(u) = \log\tilde p(m + C u) + \log|C| + \tfrac12 \|u\|^2 + \tfrac d2 \log 2 \pi,

    goes from the standard Gaussian to the posterior. Each particle takes :math:`(\beta_{k + 1} -
    \beta_k)\,r(u)` onto its log weight before it moves at :math:`\beta_{k + 1}` by Hamiltonian
    Monte Carlo, which leaves :math:`f_{\beta_{k + 1}}` invariant, so that the mean weight is an
    unbiased estimate of Z (Neal, *Annealed importance sampling*, 2001,
    https://doi.org/10.1023/A:1008923215028).

    Arguments:
        ratio: Maps u ``(N, d)`` to r ``(N,)`` and its gradient ``(N, d)``.
        dim: The dimension.
        options: Settings.
    """
    generator = torch.Generator().manual_seed(options.seed)
    num, step = options.particles, options.step_size

    def noise() -> Tensor:
        return torch.randn(num, dim, generator=generator, dtype=DOUBLE)

    u = noise()
    r, slope = ratio(u)
    log_w = torch.zeros(num, dtype=DOUBLE)
    for k in range(1, options.temperatures + 1):
        log_w += r / options.temperatures
        beta, p = k / options.temperatures, noise()
        new, new_r, new_slope, momentum = u, r, slope, p
        for _ in range(options.leapfrogs):
            momentum = momentum + 0.5 * step * (beta * new_slope - new)
            new = new + step * momentum
            new_r, new_slope = ratio(new)
            momentum = momentum + 0.5 * step * (beta * new_slope - new)
        before = beta * r - 0.5 * (u.square() + p.square()).sum(1)
        after = beta * new_r - 0.5 * (new.square() + momentum.square()).sum(1)
        uniform = torch.rand(num, generator=generator, dtype=DOUBLE)
        accepted = uniform.log() < after - before
        u, slope = (torch.where(accepted[:, None], a, b) for a, b in ((new, u), (new_slope, slope)))
        r = torch.where(accepted, new_r, r)
    found = log_evidence(log_w)
    return float(found.value), float(found.standard_error)


def annealed_logistic(
    data: tuple[np.ndarray, np.ndarray], sd: float, options: AnnealingOptions
) -> Found:
    """The log evidence of a logistic regression, by annealing from the Gaussian at its mode."""
    density = logistic_density(*map(torch.from_numpy, data), sd)
    mode, factor = laplace(density, torch.zeros(data[0].shape[1], dtype=DOUBLE))
    constant = float(factor.diagonal().log().sum()) + 0.5 * len(mode) * LOG_2PI

    def ratio(u: Tensor) -> tuple[Tensor, Tensor]:
        u = u.detach().requires_grad_()
        value = density(mode + u @ factor.T) + constant + 0.5 * u.square().sum(1)
        return value.detach(), torch.autograd.grad(value.sum(), u)[0]

    return annealed_log_z(ratio, len(mode), options)


def annealed_process(options: AnnealingOptions) -> Found:
    r"""The log evidence of the point process, by annealing from the Gaussian at its mode.

    With whitened :math:`f = \mu + L z` the log density :math:`\ell(z)` is concave. Newton's method
    finds its mode m and the factor C with :math:`C C^\top = (-\ell''(m))^{-1}`.
    """
    counts = torch.from_numpy(posteriors.tree_counts())
    L = torch.linalg.cholesky(torch.from_numpy(posteriors.cell_covariance()))
    d, m = len(counts), torch.zeros(len(counts), dtype=DOUBLE)

    def rate(f: Tensor) -> Tensor:
        return f.exp() / d  # one cell for each component

    def curvature(z: Tensor) -> Tensor:
        return torch.eye(d, dtype=DOUBLE) + L.T @ (rate(posteriors.MEAN + L @ z)[:, None] * L)

    for _ in range(options.newton_steps):
        gradient = L.T @ (counts - rate(posteriors.MEAN + L @ m)) - m
        m = m + torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(curvature(m)))[:, 0]
        if float(gradient.norm()) < NEWTON_TOLERANCE:
            break
    upper = torch.linalg.cholesky(curvature(m)).T.contiguous().numpy()
    C = torch.from_numpy(solve_triangular(upper, np.eye(d)))
    B, centre, log_det = L @ C, posteriors.MEAN + L @ m, float(C.diagonal().log().sum())

    def ratio(u: Tensor) -> tuple[Tensor, Tensor]:
        f, z = centre + u @ B.T, m + u @ C.T
        value = (counts * f - rate(f)).sum(1) - 0.5 * (z.square() - u.square()).sum(1)
        return value + log_det, (counts - rate(f)) @ B - z @ C + u

    return annealed_log_z(ratio, d, options)


# ---- all -----------------------------------------------------------------------------------------

SMALL = ImportanceOptions(pairs=50_000, degrees=6)
WIDE = ImportanceOptions(pairs=20_000, degrees=4, scale=1.2, block=500)
LONG = AnnealingOptions(particles=64, temperatures=200, leapfrogs=4)

TRUTHS: dict[str, Callable[[], Found]] = {
    "seeds": partial(seeds_log_z, WIDE),
    "sonar": lambda: annealed_logistic(posteriors.standardised("sonar"), 1.0, AnnealingOptions()),
    "ionosphere": lambda: annealed_logistic(
        posteriors.standardised("ionosphere"), 1.0, AnnealingOptions()
    ),
    "credit_flat": lambda: logistic_log_z(posteriors.scaled_credit(), None, SMALL),
    "credit": lambda: logistic_log_z(posteriors.scaled_credit(), 10.0, SMALL),
    "brownian": brownian_log_z,
    "lgcp": lambda: annealed_process(LONG),
}
