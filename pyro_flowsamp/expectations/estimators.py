"""Three estimators of the evidence at the end of a trained path of densities.

:mod:`pyro_flowsamp.expectations.rare_events` describes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import log

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..guides.annealing.guide import AutoAnnealingFlow
from ..smc.particles import Particles, resample
from ..target.density import Target
from ..weights import Estimate, log_mean_weight, pareto_k
from .density_ratio import fit_ratios
from .integrand import Integrand
from .options import ImportanceOptions

__all__ = ["ESTIMATORS", "Path", "error_at_particles"]


@dataclass(frozen=True)
class Path:
    r"""A trained path from the start to :math:`h_\epsilon\,\tilde p`, and how to sample it.

    Attributes:
        target: The density :math:`\tilde p`.
        part: The integrand.
        guide: The annealing flow, trained.
        num: Number of fresh draws for each estimator.
        islands: Number of independent groups of particles.
        options: Settings.

    Example:
        >>> from types import SimpleNamespace
        >>> from pyro_flowsamp.expectations.integrand import ONE
        >>> target = Target.from_energy(lambda x: 0.5 * x.square().sum(-1), 1)
        >>> zero = torch.zeros(1, 4).double()
        >>> made = Particles(SimpleNamespace(x=torch.randn(4, 1)), zero, zero[:, 0])
        >>> guide = SimpleNamespace(particles=lambda num, islands: made)  # stands for a trained one
        >>> path = Path(target, ONE, guide, 4, 1, ImportanceOptions())
        >>> float(path.particles.evidence.value), path.correction(path.particles.x)
        (0.0, tensor([0., 0., 0., 0.], dtype=torch.float64))
    """

    target: Target
    part: Integrand
    guide: AutoAnnealingFlow
    num: int
    islands: int
    options: ImportanceOptions

    @cached_property
    def particles(self) -> Particles:
        r"""Fresh weighted particles of :math:`h\,\tilde p`."""
        particles = self.guide.particles(self.num, islands=self.islands)
        log_w = particles.log_w + self.correction(particles.x).view_as(particles.log_w)
        return particles._replace(log_w=log_w)

    @torch.no_grad()
    def log_h(self, x: Tensor) -> Tensor:
        r"""Returns :math:`\log h` at points where the path ends, ``(N,)``, float64."""
        log_h = self.part.exact(x).double()
        if not bool(torch.isfinite(log_h).any()):
            raise ValueError(
                "h is zero at all particles: the path does not lead to where it is positive. Is "
                "the event possible, and does event= grow towards it from everywhere? More "
                "particles, more moves at each stage, or a larger effective sample size for each "
                "stage make a more careful path."
            )
        return log_h

    def correction(self, x: Tensor) -> Tensor:
        r"""Returns :math:`\log (h / h_\epsilon)` of the last particles, ``(N,)``, float64."""
        return self.log_h(x) - self.part.relaxed(x).detach().double()


def _evidence(log_w: Tensor) -> Estimate:
    """Estimates the log of the mean weight; the groups ``(G, n)`` of weights are independent."""
    return log_mean_weight(log_w.logsumexp(-1) - log(log_w.shape[-1]))


def _by_particles(path: Path) -> tuple[Estimate, float]:
    log_w = path.particles.log_w + path.particles.log_z[:, None]
    return _evidence(log_w), pareto_k(log_w)


@torch.no_grad()
def _by_density(path: Path) -> tuple[Estimate, float]:
    flow = path.guide.trained_flow(None)
    x, log_q = flow.rsample_and_log_prob((path.num,))
    log_w = path.target.log_prob(x).double() + path.log_h(x) - log_q.double()
    log_z, error = _evidence(log_w.unflatten(0, (path.islands, -1)))
    return Estimate(log_z, error.clamp(min=error_at_particles(path, flow))), pareto_k(log_w)


def error_at_particles(path: Path, flow: Distribution) -> Tensor:
    r"""Returns the relative error of a mean of n weights, from particles of :math:`q^*`, 0-d.

    .. math:: \frac{\mathrm{Var}_q(w)}{n Z^2} = \frac{\mathbb E_{q^*}[w / Z] - 1}{n},
              \qquad w = h\,p / q, \quad q^* = h\,p / Z

    Some of the particles are where the flow has no draws. A weight above :math:`n Z` counts as
    :math:`n Z`, because n draws would probably have no such weight, and their mean would be too
    small by the mass of these weights.

    References:
        Chatterjee and Diaconis, *The Sample Size Required in Importance Sampling*, 2018,
        https://arxiv.org/abs/1511.01437

    Example:
        >>> from types import SimpleNamespace
        >>> from pyro_flowsamp.expectations.integrand import ONE
        >>> normal = torch.distributions.MultivariateNormal(torch.zeros(1), torch.eye(1))
        >>> target = Target.from_energy(lambda x: -normal.log_prob(x), 1)
        >>> zero = torch.zeros(1, 4).double()
        >>> made = Particles(SimpleNamespace(x=torch.randn(4, 1)), zero, zero[:, 0])
        >>> guide = SimpleNamespace(particles=lambda num, islands: made)  # stands for a trained one
        >>> path = Path(target, ONE, guide, 100, 1, ImportanceOptions())
        >>> round(float(error_at_particles(path, normal)), 3)  # the flow is the density itself
        0.0
    """
    particles = path.particles
    mass = (particles.log_w + particles.log_z[:, None]).flatten()
    log_z = mass.logsumexp(0) - log(len(mass))
    log_w = path.target.log_prob(particles.x).double() + path.log_h(particles.x)
    excess = torch.nan_to_num(
        (log_w - flow.log_prob(particles.x).double() - log_z).exp(), nan=torch.inf
    )
    mean = (mass.softmax(0) * excess.clamp(max=path.num)).sum()
    return ((mean - 1).clamp(min=0) / path.num).sqrt()


def _by_ratio(path: Path) -> tuple[Estimate, float]:
    groups = path.options.groups
    states = [
        resample(c, torch.inf).state
        for c in path.guide.intermediate_particles(path.guide.target_for(), path.num, groups)
    ]
    x = torch.stack([state.x for state in states]).unflatten(1, (groups, -1))
    phi = torch.stack([state.log_ratio for state in states]).unflatten(1, (groups, -1))
    betas = x.new_tensor(sorted({0.0, *(report.beta for report in path.guide.reports)}))
    ratios = fit_ratios(x, phi.to(x), betas.diff(), path.options)
    log_w = phi[-1] + ratios.total(x[-1], phi[-1].to(x))
    log_w = log_w + path.correction(states[-1].x).view_as(log_w)
    return _evidence(log_w), pareto_k(log_w.unique())  # resampling has made copies


ESTIMATORS = {"particles": _by_particles, "density": _by_density, "ratio": _by_ratio}
