r"""Statistics with a truth, and ways to find one: importance sampling, stored results.

All statistics are means of functions of the draws, so that each has a standard error from the
effective sample size of its own values. A variance is a mean too, that of :math:`(x - c)^2` about
the true mean, or about a number near it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import lgamma, log, pi
from pathlib import Path
from typing import Any

import numpy as np
import stored_runs
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor
from torch.autograd.functional import hessian as autograd_hessian
from torch.autograd.functional import jacobian

REFERENCES = stored_runs.RESULTS / "references"  #: folder of the truths that take long to compute

Draws = Mapping[str, np.ndarray]  #: by site, ``(chains, draws, ...)``
Function = Callable[[Draws], np.ndarray]  #: of draws, ``(chains, draws)``
Truth = dict[str, tuple[float, float]]  #: by statistic: value, and its standard error
Made = tuple[Callable, tuple]  #: a Pyro model with its arguments, or a target without


@dataclass(frozen=True)
class Statistic:
    """The mean of a function of the draws, and its true value.

    Attributes:
        name: What it is.
        function: Maps draws to ``(chains, draws)``.
        truth: The true mean.
        error: The standard error of the truth; zero where it is exact.
        share: Whether the function is an indicator, and the truth a probability.
    """

    name: str
    function: Function
    truth: float
    error: float = 0.0
    share: bool = False


@dataclass(frozen=True)
class KnownPosterior:
    """A posterior and what is known of it.

    Attributes:
        make: Returns a Pyro model with its arguments, or a target without, in the default dtype.
        statistics: Returns the statistics; none where no truth is known.
        dim: The dimension.
        source: The origin of the truth, in words.
        double: Whether it is sampled in float64 and not in float32.
    """

    make: Callable[[], Made]
    statistics: Callable[[], Sequence[Statistic]]
    dim: int
    source: str
    double: bool = False


def nothing_known() -> Sequence[Statistic]:
    """Returns no statistics: only effective sizes, R-hat and the time are of interest."""
    return []


# ---- functions of the draws ----------------------------------------------------------------------


def site(name: str, *index: int) -> Function:
    """The values of a site, or of one of its components, in float64."""
    return lambda draws: np.asarray(draws[name][(..., *index)], dtype=np.float64)


def above(function: Function, bound: float) -> Function:
    """The indicator of values above a bound."""
    return lambda draws: (function(draws) > bound).astype(float)


def below(function: Function, bound: float) -> Function:
    """The indicator of values below a bound."""
    return lambda draws: (function(draws) < bound).astype(float)


def between(function: Function, low: float, high: float) -> Function:
    """The indicator of values in an interval."""

    def inside(draws: Draws) -> np.ndarray:
        x = function(draws)
        return ((x >= low) & (x < high)).astype(float)

    return inside


def square(function: Function, about: float = 0.0) -> Function:
    """The squared difference from a number."""
    return lambda draws: (function(draws) - about) ** 2


def gaussian_statistics(
    name: str, function: Function, mean: float, sd: float, error: float = 0.0
) -> list[Statistic]:
    """Mean, variance and upper tail of a Gaussian marginal."""
    return [
        Statistic(f"{name}", function, mean, error),
        Statistic(f"variance of {name}", square(function, mean), sd**2),
        Statistic(f"P({name} > mean + sd)", above(function, mean + sd), UPPER_TAIL, share=True),
    ]


UPPER_TAIL = 0.15865525393145707  #: probability of a Gaussian beyond one standard deviation


def tensor(values: Any) -> Tensor:
    """An array in torch's default dtype."""
    return torch.as_tensor(np.asarray(values), dtype=torch.get_default_dtype())


def probability_below(nodes: np.ndarray, weight: np.ndarray, bound: float) -> float:
    """The probability below a bound, by the integral of a spline through a density on an even grid.

    Arguments:
        nodes: Evenly spaced, ``(G,)``.
        weight: Proportional to the density, ``(G,)``.
        bound: In the coordinate of the nodes.
    """
    density = CubicSpline(nodes, weight / weight.sum() / (nodes[1] - nodes[0]))
    return float(density.integrate(nodes[0], bound))


# ---- importance sampling -------------------------------------------------------------------------


@dataclass(frozen=True)
class ImportanceOptions:
    """Settings of the importance sampler.

    Attributes:
        pairs: Antithetic pairs of draws.
        degrees: Degrees of freedom of the Student-t proposal: few where the tails are heavy.
        scale: Factor of the proposal's standard deviations, over those of the curvature.
        block: Pairs that are evaluated at once.
        newton_steps: Steps to the mode at most.
        seed: Seed of the draws.
    """

    pairs: int = 100_000
    degrees: int = 6
    scale: float = 1.1
    block: int = 1000
    newton_steps: int = 100
    seed: int = 0


def laplace(
    log_density: Callable[[Tensor], Tensor], start: Tensor, steps: int = 100
) -> tuple[Tensor, Tensor]:
    """Returns the mode ``(d,)`` and the Cholesky factor ``(d, d)`` of the inverse curvature.

    Newton's method with halved steps; directions of wrong curvature are turned around.

    Arguments:
        log_density: Maps ``(N, d)`` to ``(N,)``.
        start: The first point, ``(d,)``.
        steps: Newton steps at most.
    """

    def at(x: Tensor) -> Tensor:
        return log_density(x[None])[0]

    gradient, hessian = partial(jacobian, at), partial(autograd_hessian, at)
    x = start.double()
    for _ in range(steps):
        values, vectors = torch.linalg.eigh(-hessian(x))
        curvature = values.abs().clamp_min(values.abs().max() * 1e-15)
        step = vectors @ ((vectors.T @ gradient(x)) / curvature)
        now, size = at(x), 1.0
        while size > 1e-6 and not at(x + size * step) >= now:
            size /= 2
        x = x + size * step
        if (size * step * curvature.max().sqrt()).abs().max() < 1e-9:
            break
    values, vectors = torch.linalg.eigh(-hessian(x))
    if values.min() <= 0:
        raise RuntimeError("the point that was found is not a maximum")
    return x, torch.linalg.cholesky(vectors @ torch.diag(1 / values) @ vectors.T)


def student_pairs(
    log_density: Callable[[Tensor], Tensor], start: Tensor, options: ImportanceOptions
) -> Iterator[tuple[Tensor, Tensor]]:
    r"""Antithetic draws :math:`m \pm L z s` of a Student-t at the mode, block by block.

    Arguments:
        log_density: Unnormalised, maps unconstrained ``(N, d)`` to ``(N,)``, in float64.
        start: The first point of the search for the mode, ``(d,)``.
        options: Settings.

    Yields:
        Draws ``(2 n, d)``, the two of a pair in a row, and their normalised log densities
        ``(2 n,)``.
    """
    mode, factor = laplace(log_density, start, options.newton_steps)
    factor = options.scale * factor
    generator = torch.Generator().manual_seed(options.seed)
    nu, d = options.degrees, len(mode)
    constant = lgamma((nu + d) / 2) - lgamma(nu / 2) - 0.5 * d * log(nu * pi)
    constant -= float(factor.diagonal().log().sum())
    for first in range(0, options.pairs, options.block):
        count = min(options.block, options.pairs - first)
        z = torch.randn(count, d, generator=generator, dtype=torch.float64)
        normals = torch.randn(count, nu, generator=generator, dtype=torch.float64)
        z = z * (nu / normals.square().sum(1, keepdim=True)).sqrt()
        log_q = constant - 0.5 * (nu + d) * (z.square().sum(1) / nu).log1p()
        move = z @ factor.T
        x = torch.stack([mode + move, mode - move], 1).flatten(0, 1)
        yield x, log_q.repeat_interleave(2)


def importance(
    log_density: Callable[[Tensor], Tensor],
    start: Tensor,
    unpack: Callable[[Tensor], Draws],
    functions: Mapping[str, Function],
    options: ImportanceOptions = ImportanceOptions(),
) -> tuple[Truth, float]:
    r"""Posterior means by self-normalised importance sampling from a Student-t at the mode.

    Draws come in pairs :math:`m \pm L z s`, whose errors of first order cancel. With the sums
    :math:`W_i` of the weights of a pair and :math:`F_i` of weights times values,

    .. math:: \hat f = \frac{\sum_i F_i}{\sum_i W_i},\qquad \mathrm{se}^2 =
              \frac{\sum_i (F_i - \hat f W_i)^2}{(\sum_i W_i)^2}.

    Arguments:
        log_density: Unnormalised, maps unconstrained ``(N, d)`` to ``(N,)``, in float64.
        start: The first point of the search for the mode, ``(d,)``.
        unpack: Maps points to draws by site, ``(1, N, ...)``.
        functions: The functions of the draws, by name.
        options: Settings.

    Returns:
        Means with their standard errors, and the effective sample size of the weights.
    """
    log_weights, values = [], []
    for x, log_q in student_pairs(log_density, start, options):
        log_weights.append(log_density(x) - log_q)
        draws = unpack(x)
        values.append(np.stack([np.ravel(f(draws)) for f in functions.values()]))
    log_w = torch.cat(log_weights).numpy()
    w = np.exp(log_w - log_w.max())
    w[~np.isfinite(w)] = 0.0  # a density of zero
    weighted = np.concatenate(values, 1) * w
    pair_w, pair_f = w.reshape(-1, 2).sum(1), weighted.reshape(len(weighted), -1, 2).sum(-1)
    mean = pair_f.sum(1) / pair_w.sum()
    error = ((pair_f - mean[:, None] * pair_w) ** 2).sum(1) ** 0.5 / pair_w.sum()
    found = {name: (float(m), float(e)) for name, m, e in zip(functions, mean, error)}
    return found, float(w.sum() ** 2 / (w**2).sum())


# ---- stored truths -------------------------------------------------------------------------------


def cached(
    name: str, keys: Iterable[str], compute: Callable[[], Truth], folder: Path | None = None
) -> Truth:
    """Reads a truth from its file, or computes and stores it.

    Arguments:
        name: The file's name. Delete the file to compute the truth again.
        keys: The statistics. Where the file does not have them all, they are computed again.
        compute: Returns the truth.
        folder: The folder of the file.
    """
    path = (folder or REFERENCES) / f"{name}.json"
    if path.exists():
        found = json.loads(path.read_text())
        if found.keys() >= set(keys):
            return {key: (value, error) for key, (value, error) in found.items()}
    truth = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(truth, indent=1, ensure_ascii=False) + "\n")
    return truth


def asked(functions: Mapping[str, Function], truth: Truth) -> list[Statistic]:
    """Statistics of the functions, with their truths; those named P(...) are probabilities."""
    return [
        Statistic(name, f, *truth[name], share=name.startswith("P("))
        for name, f in functions.items()
    ]
