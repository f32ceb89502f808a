r"""Samplers of other packages that estimate the evidence: nested sampling, preconditioned SMC.

Both start from a reference density :math:`\pi` on :math:`\mathbb R^d`, here a uniform distribution
on a box or a normal distribution, and take :math:`\tilde p / \pi` as the likelihood, so that the
evidence is that of :math:`\tilde p`. ``dynesty`` and ``pocomc`` are not dependencies of this
project: install them in an environment of their own, and give its interpreter to
``suites/records.py --rivals-python``.

References:
    Speagle, *dynesty: a dynamic nested sampling package*, 2020,
    https://doi.org/10.1093/mnras/staa278

    Karamanis, Nabergoj, Beutler, Peacock and Seljak, *pocoMC: a Python package for accelerated
    Bayesian inference in astronomy and cosmology*, 2022, https://arxiv.org/abs/2207.05660
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
from scipy import stats

LogDensity = Callable[[np.ndarray], np.ndarray]  #: of points ``(N, d)``


@dataclass(frozen=True)
class Reference:
    """The density that a rival starts from: independent and equal coordinates.

    Attributes:
        kind: ``"box"``, uniform in (−scale, scale), or ``"normal"``, of standard deviation scale.
        scale: The scale.
    """

    kind: str
    scale: float

    @property
    def marginal(self) -> Any:
        """The distribution of a coordinate."""
        if self.kind == "box":
            return stats.uniform(-self.scale, 2 * self.scale)
        return stats.norm(0.0, self.scale)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """The log density of points ``(N, d)``, all inside of the box."""
        if self.kind == "box":
            return np.full(len(x), -x.shape[1] * log(2 * self.scale))
        return stats.norm.logpdf(x, 0.0, self.scale).sum(1)


@dataclass
class Found:
    """The result of a rival.

    Attributes:
        log_z: The log evidence.
        error: Its stated standard error.
        x: Equally weighted draws, ``(N, d)``.
    """

    log_z: float
    error: float
    x: np.ndarray


def log_likelihood(log_density: LogDensity, reference: Reference) -> LogDensity:
    """The log ratio of a density to the reference; a large negative number where it is not one."""

    def ratio(x: np.ndarray) -> np.ndarray:
        found = log_density(x) - reference.log_prob(x)
        return np.where(np.isfinite(found), found, -1e300)

    return ratio


def nested_sampling(
    log_density: LogDensity, reference: Reference, dim: int, seed: int, live_points: int = 500
) -> Found:
    """Static nested sampling by dynesty, at its defaults.

    Arguments:
        log_density: Unnormalised, maps ``(N, d)`` to ``(N,)``.
        reference: The density to start from.
        dim: The dimension.
        seed: Of the random numbers.
        live_points: Their number.
    """
    import dynesty

    ratio, rng = log_likelihood(log_density, reference), np.random.default_rng(seed)
    sampler = dynesty.NestedSampler(
        lambda x: float(ratio(x[None])[0]), reference.marginal.ppf, dim, live_points, rstate=rng
    )
    sampler.run_nested(print_progress=False)
    results = sampler.results
    x = results.samples_equal(rstate=rng)
    return Found(float(results.logz[-1]), float(results.logzerr[-1]), x)


def preconditioned_smc(log_density: LogDensity, reference: Reference, dim: int, seed: int) -> Found:
    """Sequential Monte Carlo in the coordinates of a flow by pocoMC, at its defaults.

    Arguments:
        log_density: Unnormalised, maps ``(N, d)`` to ``(N,)``.
        reference: The density to start from.
        dim: The dimension.
        seed: Of the random numbers.
    """
    import pocomc

    prior = pocomc.Prior([reference.marginal] * dim)
    ratio = log_likelihood(log_density, reference)
    sampler = pocomc.Sampler(prior, ratio, vectorize=True, random_state=seed)
    sampler.run(progress=False)
    log_z, error = sampler.evidence()
    x = sampler.posterior(resample=True)[0]
    return Found(float(log_z), float(error), x)


RIVALS: dict[str, tuple[str, Callable[..., Found]]] = {
    "dynesty": ("dynesty", nested_sampling),
    "pocoMC": ("pocomc", preconditioned_smc),
}  #: by name: the package, and the function
