r"""Expectations and probabilities of rare events, by a flow that carries p to where h is large.

For :math:`h \ge 0` and a density p the estimator

.. math:: \mathbb E_p[h] = \mathbb E_{x \sim q}\!\left[\frac{h(x)\,p(x)}{q(x)}\right]

has no variance at :math:`q^* \propto h\,p`, whose normalising constant is the answer. An annealing
flow carries p to :math:`q^*` along

.. math:: \log\tilde f_k = \log p + \beta_k \log h_\epsilon, \qquad
          0 = \beta_0 < \dots < \beta_K = 1 .

The relaxation :math:`h_\epsilon` is positive everywhere, and its gradient leads to where h is
large:

- for a function, :math:`h_\epsilon = h + \epsilon`;
- for an event :math:`\{g > 0\}`, :math:`h_\epsilon = \sigma(\kappa g)`. While :math:`\beta` is
  small, this is p tilted by :math:`e^{\beta\kappa g}`, and no sequence of levels of g is needed.

The last weight is :math:`h / h_\epsilon`, at most 1 for a function and at most 2 for an event. The
relaxation adds a little variance, and no bias. There are three estimators:

- ``"particles"`` is the evidence of :math:`q^*` from fresh particles, which are weighted, resampled
  and moved along the frozen path. It is unbiased for every flow. The standard error is that of the
  mean over islands.
- ``"density"`` is the mean of :math:`w = h p / q` over the flow's own draws, by the flow's exact
  density. It is unbiased too. Draws of the flow do not show what the flow never visits. So the
  standard error is the larger of theirs and of that from particles of :math:`q^*`, by
  :math:`\mathrm{Var}_q(w) / Z^2 = \mathbb E_{q^*}[w / Z] - 1`. Where the flow has thinner tails
  than :math:`q^*`, neither can be trusted, and the Pareto k is large.
- ``"ratio"`` is :math:`\mathbb E_{f_K}[h\,p / f_K]` over particles of :math:`f_K`. The log ratio of
  start and end comes from classifiers between neighbouring densities, see
  :mod:`pyro_flowsamp.expectations.density_ratio`. Classifiers are never perfect, so this estimator
  has a bias. The standard error, from groups with separate classifiers, shows a part of it.

Where p can be sampled, the path starts at p and its evidence is the answer. An unnormalised
posterior :math:`p = \tilde p / Z_p` cannot be sampled. Then both paths start at a Gaussian
:math:`q_0`, twice as wide as a flow fitted to p, because weights from a start with thinner tails
than the event have no variance. The answer

.. math:: \mathbb E_p[h] = \frac{\int h\,\tilde p}{\int \tilde p}
          = \frac{Z(q_0 \to h\,\tilde p)}{Z(q_0 \to \tilde p)}

is a ratio of two independent estimates, whose relative errors add in squares. It is unbiased to
first order only.

References:
    Wu and Xie, *Annealing Flow Generative Models Towards Sampling High-Dimensional and Multi-Modal
    Distributions*, 2025, https://arxiv.org/abs/2409.20547 (importance flow)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import nan
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..distributed import replicated
from ..guides.annealing.guide import AutoAnnealingFlow
from ..guides.annealing.options import AnnealingOptions
from ..guides.base import FlowGuide
from ..smc.particles import Particles
from ..target.density import Target
from ..weights import Estimate
from .estimators import ESTIMATORS, Path
from .integrand import ONE, Integrand, SampledDensity, as_density, integrands
from .options import ImportanceOptions

__all__ = ["ImportanceEstimate", "WeightedEstimate", "importance_flow"]


# ---- the answer ---------------------------------------------------------------------------------
class WeightedEstimate(NamedTuple):
    """An estimate by importance weights, and the largest Pareto k of these weights.

    Attributes:
        estimate: The estimate and its standard error, 0-d tensors.
        pareto_k: The Pareto k.

    Example::

        >>> estimate = Estimate(torch.tensor(0.02), torch.tensor(0.001))
        >>> print(WeightedEstimate(estimate, 0.3))
        0.02 ± 0.001 (5.0%), Pareto k 0.30
    """

    estimate: Estimate
    pareto_k: float

    @property
    def value(self) -> float:
        """The estimate as a number."""
        return float(self.estimate.value)

    @property
    def standard_error(self) -> float:
        """The standard error as a number."""
        return float(self.estimate.standard_error)

    @property
    def relative_error(self) -> float:
        """The standard error over the value; NaN where the value is zero."""
        return self.standard_error / abs(self.value) if self.value else nan

    def __str__(self) -> str:
        error = f"± {self.standard_error:.2g} ({self.relative_error:.1%})"
        return f"{self.value:.5g} {error}, Pareto k {self.pareto_k:.2f}"


@dataclass(frozen=True)
class ImportanceEstimate:
    r"""The result of :func:`importance_flow`.

    Attributes:
        estimates: One estimate for each estimator that was asked for, in that order. The properties
            ``value``, ``standard_error``, ``relative_error`` and ``pareto_k`` are those of the
            first.
        evaluations: Number of evaluations of the density p, training included.
        particles: Weighted particles of :math:`h\,p`, or for a signed h of :math:`h^+ p` and of
            :math:`h^- p`; none for the estimator "ratio" alone.

    Example::

        >>> estimate = Estimate(torch.tensor(0.02), torch.tensor(0.001))
        >>> found = ImportanceEstimate({"particles": WeightedEstimate(estimate, 0.3)}, 5000, ())
        >>> round(found.value, 4), round(found.relative_error, 2)
        (0.02, 0.05)
        >>> print(found)
        particles: 0.02 ± 0.001 (5.0%), Pareto k 0.30
        5000 evaluations of p
    """

    estimates: dict[str, WeightedEstimate]
    evaluations: int
    particles: tuple[Particles, ...] = field(repr=False)

    @property
    def first(self) -> WeightedEstimate:
        """The estimate of the first estimator."""
        return next(iter(self.estimates.values()))

    @property
    def value(self) -> float:
        """The value of the first estimate."""
        return self.first.value

    @property
    def standard_error(self) -> float:
        """The standard error of the first estimate."""
        return self.first.standard_error

    @property
    def relative_error(self) -> float:
        """The standard error of the first estimate over its value."""
        return self.first.relative_error

    @property
    def pareto_k(self) -> float:
        """The Pareto k of the first estimate."""
        return self.first.pareto_k

    def __repr__(self) -> str:
        lines = [f"{name:>9}: {estimate}" for name, estimate in self.estimates.items()]
        return "\n".join([*lines, f"{self.evaluations} evaluations of p"])


# ---- the paths ----------------------------------------------------------------------------------
def _check_annealing(annealing: dict[str, Any]) -> None:
    """Raises the errors of the annealing flow's options before anything is trained."""
    options = inspect.signature(AutoAnnealingFlow.__init__).parameters
    known = [name for name in options if name not in ("self", "model", "reference", "settings")]
    for name in annealing:
        if name not in known:
            raise TypeError(
                f"importance_flow() got an unexpected keyword argument '{name}': keywords go to "
                f"the annealing flow, whose options are {', '.join(known)}; arguments of the model "
                f"go in args, by position after h"
            )
    AutoAnnealingFlow(lambda: None, **annealing)


def _trained_guide(
    density: SampledDensity,
    part: Integrand,
    annealing: dict[str, Any],
    settings: AnnealingOptions,
) -> AutoAnnealingFlow:
    """Trains an annealing flow from the density's start to the relaxed integrand times p."""
    p = density.target

    def energy(x: Tensor) -> Tensor:
        return -(p.log_prob(x) + part.relaxed(x).to(p.dtype))

    relaxed = Target.from_energy(energy, p.dim, dtype=p.dtype, device=p.device)
    guide = AutoAnnealingFlow(relaxed, reference=density.start, settings=settings, **annealing)
    guide.warn_uncovered = False  # a rare event is where p has no draws
    guide.fit()
    return guide


def _combined(
    numerators: Sequence[tuple[Estimate, float]], denominator: tuple[Estimate, float] | None
) -> WeightedEstimate:
    """Divides the first numerator minus the second by the denominator; delta-method errors."""
    (log_z, relative), k = denominator or ((torch.zeros(()), torch.zeros(())), -torch.inf)
    values = [(evidence.value - log_z).exp() for evidence, _ in numerators]
    value = values[0] - sum(values[1:])
    variance = (value * relative).square()
    for part, (evidence, _) in zip(values, numerators):
        variance = variance + (part * evidence.standard_error).square()
    return WeightedEstimate(Estimate(value, variance.sqrt()), max(k, *(k for _, k in numerators)))


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
    settings: ImportanceOptions | None = None,
    **annealing: Any,
) -> ImportanceEstimate:
    r"""Estimates :math:`\mathbb E_p[h]`, or the probability of a rare event, by a flow.

    Arguments:
        model: The density p. A Pyro model or a :class:`~pyro_flowsamp.Target` may be unnormalised.
            A distribution on :math:`\mathbb R^d` or a zuko flow is where the path starts.
        h: A function from draws to values ``(N,)``, which are not negative unless ``signed``. For a
            model its argument holds constrained values ``{site: (N, ...)}``, otherwise points
            ``(N, d)``. Gradients are taken through it, as in :meth:`Target.log_prob`.
        args: The model's arguments.
        event: Given in place of h: a real function :math:`g` of the same draws. The event is
            :math:`g > 0`. Below zero, :math:`g` leads to the event: it is a distance, or anything
            that grows towards the event from everywhere. One standard deviation of g should mean
            about the same everywhere; take the logarithm of a quantity with heavy tails.
        data: Given in place of a model: draws ``(N, d)`` of p, to which a flow is fitted. The
            answer is that of the flow. The standard error does not include the error of the fit.
        signed: Whether h is split, :math:`h = h^+ - h^-`, into two paths.
        guide: A guide of the model, which is fitted if it is not yet. It determines the location
            and the width of the start of the paths. By default
            :class:`~pyro_flowsamp.AutoFlow`.
        estimators: Some of "particles", "density" and "ratio"; the first gives the answer.
        num_samples: Number of fresh draws for each estimator, of each path.
        islands: Number of independent groups of particles.
        settings: Settings of the estimators, and of the blocks of the annealing flows.
        annealing: Arguments of :class:`~pyro_flowsamp.AutoAnnealingFlow` for every path, except for
            its start, which is p, and its settings, which are ``settings.annealing``.

    Returns:
        The estimates, the number of evaluations of p, and particles of :math:`h\,p`.

    Raises:
        TypeError: A keyword is no option of the annealing flow.
        ValueError: h is negative, NaN, of the wrong shape, or zero wherever the path leads; the
            arguments contradict each other; an option is out of range; data are not finite draws
            ``(N, d)``; a distribution does not have all of :math:`\mathbb R^d` as its support; or
            the path cannot be annealed.

    References:
        Wu and Xie, *Annealing Flow Generative Models Towards Sampling High-Dimensional and
        Multi-Modal Distributions*, 2025, https://arxiv.org/abs/2409.20547

    Example::

        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from pyro_flowsamp import FitOptions
        >>> pyro.set_rng_seed(0)
        >>> p = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> found = importance_flow(  # E exp(x₁) is exp(1/2) = 1.6487
        ...     p,
        ...     lambda x: x[:, 0].exp(),
        ...     num_samples=4096,
        ...     num_particles=512,
        ...     options=FitOptions(max_steps=20, progress=False),
        ... )
        >>> abs(found.value - 1.6487) < 4 * found.standard_error < 0.1
        True

    A rare event, here with a probability of 1.5e-8, takes a longer training::

        importance_flow(p, event=lambda x: x.norm(dim=-1) - 6)
    """
    unknown = set(estimators) - set(ESTIMATORS)
    if unknown or not estimators:
        raise ValueError(f"estimators must be some of {sorted(ESTIMATORS)}, got {estimators}")
    settings = settings or ImportanceOptions()
    if islands < 2 or num_samples % islands or num_samples % settings.groups:
        raise ValueError(
            f"num_samples must be a multiple of {settings.groups} and of islands, at least 2, got "
            f"{num_samples} and {islands}"
        )
    _check_annealing(annealing)
    with ExitStack() as stack:
        stack.enter_context(replicated("importance_flow()", first_order=False))
        density = as_density(model, args, data, guide, settings)
        stack.enter_context(replicated("importance_flow()", density.target, first_order=False))
        with torch.no_grad():
            parts = integrands(density, h, event, signed, settings)

        def path(part: Integrand) -> Path:
            trained = _trained_guide(density, part, annealing, settings.annealing)
            return Path(density.target, part, trained, num_samples, islands, settings)

        paths = [path(part) for part in parts]
        normaliser = None if density.normalised else path(ONE)
        estimates: dict[str, WeightedEstimate] = {}
        for name in estimators:
            estimate = ESTIMATORS[name]
            denominator = None if normaliser is None else estimate(normaliser)
            estimates[name] = _combined([estimate(path) for path in paths], denominator)
        particles = () if set(estimators) == {"ratio"} else tuple(path.particles for path in paths)
        evaluations = density.target.evaluations - density.evaluations_before
        return ImportanceEstimate(estimates, evaluations, particles)
