r"""Expectations and rare events by a flow that is led to where they happen.

For :math:`h \ge 0` and a density p the estimator

.. math:: \mathbb E_p[h] = \mathbb E_{x \sim q}\!\left[\frac{h(x)\,p(x)}{q(x)}\right]

has no variance at :math:`q^* \propto h\,p`, whose normalising constant is the answer. An annealing
flow carries p to :math:`q^*` (importance flow: Wu & Xie, 2025, https://arxiv.org/abs/2409.20547),
along

.. math:: \log\tilde f_k = \log p + \beta_k \log h_\epsilon, \qquad
          0 = \beta_0 < \dots < \beta_K = 1,

where :math:`h_\epsilon` is positive everywhere and its gradient leads to where h is:

- for a function, :math:`h_\epsilon = h + \epsilon`;
- for an event :math:`\{g > 0\}`, :math:`h_\epsilon = \sigma(\kappa g)`: while :math:`\beta` is
  small, p tilted by :math:`e^{\beta\kappa g}`, so that no level need be moved.

The last weight is :math:`h / h_\epsilon`, at most 1 and at most 2: the relaxation costs a little
variance, and no bias. Three estimators:

- ``"particles"``: the evidence of :math:`q^*` from fresh particles, weighted, resampled and moved
  along the frozen path; unbiased whatever the flow is worth, its standard error from islands.
- ``"density"``: the mean of :math:`w = h p / q` over the flow's own draws, by its exact density;
  unbiased too. Draws cannot tell what the flow never visits, so its standard error is the larger of
  theirs and of what particles of :math:`q^*` say, for which :math:`\mathrm{Var}_q(w) / Z^2 =
  \mathbb E_{q^*}[w / Z] - 1`. Where tails are thinner than those of :math:`q^*`, neither is to be
  believed: that is what the Pareto k beside it says.
- ``"ratio"``: :math:`\mathbb E_{f_K}[h\,p / f_K]` over particles of :math:`f_K`, with the log ratio
  of start and end by classifiers between neighbours, see
  :mod:`pyro_flowsamp.expectations.density_ratio`. Classifiers are never perfect: a bias, of which
  the standard error, from groups that each have their own, shows a part.

Where p can be sampled, the path starts at p and its evidence is the answer. A posterior :math:`p =
\tilde p / Z_p` cannot; there both paths start at a Gaussian :math:`q_0`, twice as wide as a flow
fitted to p (from a start with thinner tails than the event, weights have no variance), and

.. math:: \mathbb E_p[h] = \frac{\int h\,\tilde p}{\int \tilde p}
          = \frac{Z(q_0 \to h\,\tilde p)}{Z(q_0 \to \tilde p)}

is a ratio of two independent estimates, whose relative errors add in squares; that it is unbiased
holds to first order only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import log, nan
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..guides.annealing.guide import AutoAnnealingFlow
from ..guides.base import FlowGuide
from ..options import FitOptions
from ..smc.particles import Particles, resample
from ..target.density import Target
from ..weights import log_evidence, pareto_k
from .density_ratio import fit_ratios
from .integrand import ONE, Integrand, SampledDensity, integrands, source_of

__all__ = ["Estimate", "ImportanceEstimate", "importance_flow"]


GROUPS = 8  #: of draws, each with classifiers of its own
CLASSIFIERS = FitOptions(200, 128, 1e-3, cosine_schedule=True, progress=False)


# ---- the answer ---------------------------------------------------------------------------------
class Estimate(NamedTuple):
    """A number, its standard error, and the Pareto k of the weights behind it (the worst one)."""

    value: float
    standard_error: float
    pareto_k: float

    @property
    def relative_error(self) -> float:
        """The standard error over the value."""
        return self.standard_error / abs(self.value) if self.value else nan

    def __str__(self) -> str:
        error = f"± {self.standard_error:.2g} ({self.relative_error:.1%})"
        return f"{self.value:.5g} {error}, Pareto k {self.pareto_k:.2f}"


@dataclass(frozen=True)
class ImportanceEstimate:
    r"""What :func:`importance_flow` found; ``value`` … are those of the first estimator.

    Attributes:
        estimates: By each estimator asked for, in that order.
        evaluations: Densities of p asked for, training included.
        clouds: Weighted particles of :math:`h\,p`, for a signed h of :math:`h^+ p` and
            :math:`h^- p`; none for the estimator "ratio" alone.
    """

    estimates: dict[str, Estimate]
    evaluations: int
    clouds: tuple[Particles, ...] = field(repr=False)

    @property
    def first(self) -> Estimate:
        return next(iter(self.estimates.values()))

    @property
    def value(self) -> float:
        return self.first.value

    @property
    def standard_error(self) -> float:
        return self.first.standard_error

    @property
    def relative_error(self) -> float:
        return self.first.relative_error

    @property
    def pareto_k(self) -> float:
        return self.first.pareto_k

    def __repr__(self) -> str:
        lines = [f"{name:>9}: {estimate}" for name, estimate in self.estimates.items()]
        return "\n".join([*lines, f"{self.evaluations} evaluations of p"])


# ---- evidences ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Path:
    r"""A trained path from the start to :math:`h_\epsilon\,\tilde p`, h, and how it is sampled."""

    target: Target
    part: Integrand
    guide: AutoAnnealingFlow
    num: int
    islands: int

    @cached_property
    def particles(self) -> Particles:
        r"""Fresh weighted particles of :math:`h\,\tilde p`."""
        particles = self.guide.particles(self.num, islands=self.islands)
        log_w = particles.log_w + self.correction(particles.x).view_as(particles.log_w)
        return particles._replace(log_w=log_w)

    @torch.no_grad()
    def log_h(self, x: Tensor) -> Tensor:
        r""":math:`\log h` where the path ends, ``(N,)``, float64."""
        log_h = self.part.exact(x).double()
        if not bool(torch.isfinite(log_h).any()):
            raise ValueError(
                "h is zero at all particles: the path does not lead to where it is positive. Is "
                "the event possible, and does event= grow towards it from everywhere? More "
                "num_particles=, more mcmc_steps=, or a target_ess= closer to 1 may help."
            )
        return log_h

    def correction(self, x: Tensor) -> Tensor:
        r""":math:`\log (h / h_\epsilon)` of the path's last particles, ``(N,)``, float64."""
        return self.log_h(x) - self.part.relaxed(x).detach().double()


class Weights(NamedTuple):
    r"""Log weights ``(G, n)`` of independent groups, the mean of each of which estimates Z.

    Attributes:
        log_w: The weights.
        pareto_k: The shape of their tail.
        relative_error: Of their mean, where that is known from elsewhere.
    """

    log_w: Tensor
    pareto_k: float
    relative_error: Tensor | float = 0.0


def _by_particles(path: Path) -> Weights:
    log_w = path.particles.log_w + path.particles.log_z[:, None]
    return Weights(log_w, pareto_k(log_w))


@torch.no_grad()
def _by_density(path: Path) -> Weights:
    assert path.guide.flow is not None
    flow = path.guide.flow(None)
    x, log_q = flow.rsample_and_log_prob((path.num,))
    log_w = path.target.log_prob(x).double() + path.log_h(x) - log_q.double()
    return Weights(
        log_w.unflatten(0, (path.islands, -1)), pareto_k(log_w), _error_at_particles(path, flow)
    )


def _error_at_particles(path: Path, flow: Distribution) -> Tensor:
    r"""Relative error of the mean weight of n draws, by particles of :math:`q^* = h\,p / Z`.

    .. math:: \frac{\mathrm{Var}_q(w)}{n Z^2} = \frac{\mathbb E_{q^*}[w / Z] - 1}{n},
              \qquad w = h\,p / q

    Particles are also where the flow has no draws. What weighs more than :math:`n Z` counts as
    :math:`n Z`: of such weights n draws would see none (Chatterjee & Diaconis, 2018,
    https://arxiv.org/abs/1511.01437), and are short by the mass that they have.
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


def _by_ratio(path: Path) -> Weights:
    relaxed = path.guide.target_for()
    states = [
        resample(c, torch.inf).state
        for c in path.guide.intermediate_particles(relaxed, path.num, GROUPS)
    ]
    x = torch.stack([state.x for state in states]).unflatten(1, (GROUPS, -1))
    phi = torch.stack([state.log_ratio for state in states]).unflatten(1, (GROUPS, -1))
    betas = x.new_tensor(sorted({0.0, *(report.beta for report in path.guide.reports)}))
    ratios = fit_ratios(x, phi.to(x), betas.diff(), CLASSIFIERS)
    log_w = phi[-1] + ratios.total(x[-1], phi[-1].to(x))
    log_w = log_w + path.correction(states[-1].x).view_as(log_w)
    return Weights(log_w, pareto_k(log_w.unique()))  # resampling has made copies


ESTIMATORS = {"particles": _by_particles, "density": _by_density, "ratio": _by_ratio}


class Part(NamedTuple):
    """An evidence: its value, its relative standard error, the Pareto k of its weights."""

    log_z: Tensor
    relative_error: Tensor
    pareto_k: float


def _evidence(weights: Weights) -> Part:
    log_z, error = log_evidence(weights.log_w.logsumexp(-1) - log(weights.log_w.shape[-1]))
    return Part(log_z, error.clamp(min=weights.relative_error), weights.pareto_k)


def _check_options(annealing: dict[str, Any]) -> None:
    """Before anything is trained: raises what the annealing flow would raise after p's flow is."""
    options = inspect.signature(AutoAnnealingFlow.__init__).parameters
    known = [name for name in options if name not in ("self", "model", "reference")]
    for name in annealing:
        if name not in known:
            raise TypeError(
                f"importance_flow() got an unexpected keyword argument '{name}': keywords go to "
                f"the annealing flow, whose options are {', '.join(known)}; arguments of the model "
                f"go in args, by position after h"
            )
    AutoAnnealingFlow(lambda: None, **annealing)


def _anneal(
    source: SampledDensity, part: Integrand, *, num: int, islands: int, annealing: dict[str, Any]
) -> Path:
    p = source.target

    def energy(x: Tensor) -> Tensor:
        return -(p.log_prob(x) + part.relaxed(x).to(p.dtype))

    relaxed = Target.from_energy(energy, p.dim, dtype=p.dtype, device=p.device)
    guide = _AnnealingFlow(relaxed, reference=source.start, **annealing)
    guide.fit()
    return Path(p, part, guide, num, islands)


class _AnnealingFlow(AutoAnnealingFlow):
    """A path whose end lies where its start has no draws, which is what a rare event is."""

    def _warn_if_uncovered(self, target: Target, particles: Particles) -> None:
        return None


def _combined(numerators: Sequence[Part], denominator: Part | None) -> Estimate:
    """The first numerator minus the second, over the denominator; errors by the delta method."""
    values = [part.log_z.exp() for part in numerators]
    errors = [value * part.relative_error for value, part in zip(values, numerators)]
    value, variance = values[0] - sum(values[1:]), sum(error.square() for error in errors)
    k = max(part.pareto_k for part in numerators)
    if denominator is not None:
        z = denominator.log_z.exp()
        value, k = value / z, max(k, denominator.pareto_k)
        variance = variance / z.square() + (value * denominator.relative_error).square()
    return Estimate(float(value), float(variance) ** 0.5, k)


def importance_flow(
    model: Callable | Distribution | nn.Module | None = None,
    h: Callable[[Any], Tensor] | None = None,
    *args: Any,
    event: Callable[[Any], Tensor] | None = None,
    data: Tensor | None = None,
    signed: bool = False,
    guide: FlowGuide | None = None,
    estimators: Sequence[str] = ("particles", "density"),
    num_samples: int = 32768,
    islands: int = 32,
    **annealing: Any,
) -> ImportanceEstimate:
    r""":math:`\mathbb E_p[h]`, or the probability of a rare event, by a flow from p to :math:`h p`.

    Example::

        p = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        importance_flow(p, event=lambda x: x.norm(dim=-1) - 6)      # P(|x| > 6) = 1.523e-8
        importance_flow(eight_schools, None, y, sigma, event=lambda s: s["mu"] - 25)

    Arguments:
        model: What p is: a Pyro model or a :class:`~pyro_flowsamp.Target`, which may be
            unnormalised posteriors; a distribution on :math:`\mathbb R^d`, or a zuko-style flow,
            where the path can start.
        h: Maps draws to values ``(N,)``, not negative unless ``signed``. Of a model it is given
            constrained values ``{site: (N, ...)}``, otherwise points ``(N, d)``. As in
            :meth:`Target.log_prob`, gradients are taken through it.
        args: The model's.
        event: In place of h: a real function :math:`g`, of the same draws, whose event is
            :math:`g > 0`. What it says below zero leads there: a distance, or anything that grows
            towards the event from everywhere, of which one standard deviation should mean about
            the same far out (take logs of what has heavy tails).
        data: In place of a model: draws ``(N, d)`` of p, to which a flow is fitted. The answer is
            the flow's, and the standard error knows nothing of the fit.
        signed: Whether h is split, :math:`h = h^+ - h^-`, into two paths.
        guide: Of a model, fitted if it is not yet: says where the paths start, and how wide. By
            default :class:`~pyro_flowsamp.AutoFlow`.
        estimators: Which of "particles", "density" and "ratio"; the first gives the answer.
        num_samples: Fresh draws for each, of each path.
        islands: Independent groups of particles.
        annealing: Options of :class:`~pyro_flowsamp.AutoAnnealingFlow`, for every path, but for
            ``reference``: they start at p. None go to the model, whose arguments are ``args``.

    Raises:
        TypeError: A keyword is no such option.
        ValueError: h is negative, NaN, of the wrong shape, or zero wherever the path leads; what
            is given contradicts itself; an option is out of range; data are not finite draws
            ``(N, d)``; a distribution does not live on :math:`\mathbb R^d`; or the path cannot be
            annealed.
    """
    unknown = set(estimators) - set(ESTIMATORS)
    if unknown or not estimators:
        raise ValueError(f"estimators must be some of {sorted(ESTIMATORS)}, got {estimators}")
    if islands < 2 or num_samples % islands or num_samples % GROUPS:
        raise ValueError(
            f"num_samples must be a multiple of {GROUPS} and of islands, at least 2, got "
            f"{num_samples} and {islands}"
        )
    _check_options(annealing)
    source = source_of(model, args, data, guide)
    with torch.no_grad():
        parts = integrands(source, h, event, signed)
    anneal = partial(_anneal, source, num=num_samples, islands=islands, annealing=annealing)
    paths = [anneal(part) for part in parts]
    below = None if source.normalised else anneal(ONE)
    estimates: dict[str, Estimate] = {}
    for name in estimators:
        estimate = ESTIMATORS[name]
        bottom = None if below is None else _evidence(estimate(below))
        estimates[name] = _combined([_evidence(estimate(path)) for path in paths], bottom)
    clouds = () if set(estimators) == {"ratio"} else tuple(path.particles for path in paths)
    return ImportanceEstimate(estimates, source.target.evaluations - source.already, clouds)
